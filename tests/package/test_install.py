"""The package imports from a wheel, an ordinary install, an editable install and a source checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .running import ROOT, interpreter_without_package, run_python

pytestmark = pytest.mark.slow

FOLDERS = ("dualspeech", "configuration", "modeling", "processing", "training")

CHECK = """
import importlib, importlib.metadata, pathlib, sys
import dualspeech
for module in {modules!r}:
    importlib.import_module(module)
from transformers import AutoConfig
assert type(AutoConfig.for_model("acoustic_gpt")).__module__ == "dualspeech.configuration.configuration_acoustic_gpt"
assert (pathlib.Path(dualspeech.__file__).parent / "py.typed").is_file()
if {installed}:
    assert importlib.metadata.version("dualspeech") == dualspeech.__version__
print(dualspeech.__file__, sys.modules["dualspeech.configuration"].__file__)
"""


def library_files(root):
    """The `.py` files of the library, relative to the repository, and the name under which each is imported."""
    files = [path.relative_to(root) for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))]
    names = {}
    for path in files:
        parts = path.with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        names[path] = ".".join(parts if parts[0] == "dualspeech" else ("dualspeech", *parts))
    return names


def pip(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", *map(str, arguments)],
        # In the checkout, or with it on the path, pip would take its egg-info for an installed package.
        cwd=Path(sys.executable).parent,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture
def checkout(tmp_path):
    """A copy of the checkout, so that nothing is built inside the real one."""
    ignored = shutil.ignore_patterns(
        ".git", "__pycache__", "build", "dist", "*.egg-info", ".venv*", "tests", "outputs"
    )
    return shutil.copytree(ROOT, tmp_path / "checkout", ignore=ignored)


@pytest.fixture
def python(tmp_path):
    return interpreter_without_package(tmp_path / "venv")


@pytest.fixture
def wheel(checkout, tmp_path):
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path / "wheels", checkout)
    (wheel,) = (tmp_path / "wheels").glob("dualspeech-*.whl")
    return wheel


def imported_from(python, cwd, modules, installed=True):
    out = run_python(CHECK.format(modules=modules, installed=installed), cwd=cwd, python=python)
    return [Path(path) for path in out.splitlines()[-1].split()]


def test_wheel_holds_the_library_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {name.replace(".", "/") for name in library_files(ROOT).values()}
    packed = {name.removesuffix(".py").removesuffix("/__init__") for name in names if name.endswith(".py")}
    assert packed == expected
    assert "dualspeech/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"dualspeech"}


@pytest.mark.parametrize("mode", ["wheel", "install", "editable", "editable strict"])
def test_installed(mode, checkout, python, tmp_path, request):
    what = {
        "wheel": lambda: [request.getfixturevalue("wheel")],
        "install": lambda: [checkout],
        "editable": lambda: ["-e", checkout],
        "editable strict": lambda: ["-e", checkout, "--config-settings", "editable_mode=strict"],
    }[mode]()
    pip("--python", python, "install", "--no-deps", "--no-index", "--no-build-isolation", *what)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    home = checkout if "editable" in mode else tmp_path / "venv"
    for path in imported_from(python, elsewhere, list(library_files(ROOT).values())):
        assert home in path.parents, path


def test_checkout_without_install(checkout, python):
    for path in imported_from(python, checkout, list(library_files(ROOT).values()), installed=False):
        assert checkout in path.parents, path


def test_checkout_wins_over_an_installed_copy_when_run_from_its_root(checkout, wheel, python):
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    for path in imported_from(python, checkout, list(library_files(ROOT).values())):
        assert checkout in path.parents, path
