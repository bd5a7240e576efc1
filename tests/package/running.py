"""Running code in a fresh interpreter."""

import os
import subprocess
import sys
import textwrap
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


__all__ = ["ROOT", "run_python"]
