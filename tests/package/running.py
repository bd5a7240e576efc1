"""Running code in a fresh interpreter, with or without this package."""

import os
import re
import subprocess
import sys
import sysconfig
import textwrap
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_python(code, cwd=ROOT, path=(), python=sys.executable, **env):
    """Run `code` in a new interpreter and return what it printed; fail with its errors if it fails.

    `path` goes in front of the module search path. The folder `cwd` is on that path too, so the checkout is importable
    by default and is not when another folder is given.
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1", **env}
    done = subprocess.run(
        [python, "-c", textwrap.dedent(code)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.strip()


def blocks(text, language):
    """The fenced blocks of a language in a Markdown text."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def run_commands(commands, folder):
    """Run a block of shell commands in `folder` as in a checkout, without what installs; return what they printed."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    for name in ("pip", "apt-get"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    for name in ("examples", "model_cards"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    search = os.pathsep.join(map(str, (programs, Path(sys.executable).parent, os.environ["PATH"])))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env={**os.environ, "PATH": search, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def interpreter_without_package(folder):
    """The interpreter of a new virtual environment in `folder` with the dependencies of this one, but not this package."""
    venv.create(folder, with_pip=False)
    dependencies = folder / "dependencies"
    dependencies.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "dualspeech" not in entry.name:
            (dependencies / entry.name).symlink_to(entry)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    return str(folder / "bin" / "python")


__all__ = ["ROOT", "blocks", "interpreter_without_package", "run_commands", "run_python"]
