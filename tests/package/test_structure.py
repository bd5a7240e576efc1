"""Rules of the source tree: who may import whom, module sizes, names, and nothing of the machine it was written on."""

import ast
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from .running import ROOT

LIBRARY = ("dualspeech", "configuration", "modeling", "processing", "training")
# folder -> folders of this package that its modules may import
MAY_IMPORT = {
    "configuration": {"configuration"},
    "modeling": {"configuration", "modeling"},
    "processing": {"configuration", "modeling", "processing"},
    "training": {"configuration", "modeling", "processing", "training", "dualspeech"},
    "dualspeech": {"dualspeech"},
}
MAX_LINES = 550


def tracked():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: no list of tracked files")
    return [Path(name) for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


MODULES = sorted(path.relative_to(ROOT) for folder in LIBRARY for path in (ROOT / folder).rglob("*.py"))
CODE = [path for path in MODULES if path.name != "__init__.py"]
modules = pytest.mark.parametrize("path", CODE, ids=str)


def imports(path):
    """`(node, dotted name inside this package or absolute name)` of every import in a module of the library."""
    home = path.with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node, node.module
        elif isinstance(node, ast.ImportFrom):
            base = home[: len(home) - node.level + 1]
            if not base and node.module and (ROOT / "dualspeech" / f"{node.module}.py").is_file():
                base = ("dualspeech",)  # the root of the package, which is this folder
            yield node, ".".join([*base, *filter(None, [node.module])])


@modules
def test_imports_go_one_way(path):
    for node, name in imports(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert name.split(".")[0] in MAY_IMPORT[path.parts[0]], f"line {node.lineno} imports {name}"
        else:
            assert name.split(".")[0] not in {"dualspeech", "tests", "examples", *LIBRARY}, (
                f"line {node.lineno}: {name}"
            )


@modules
def test_imports_come_from_defining_modules(path):
    for node, name in imports(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.module, f"line {node.lineno} imports from a package"
            target = ROOT.joinpath(*name.split(".")).with_suffix(".py")
            assert target.is_file(), f"line {node.lineno} imports from {name}, which is no module"
            source = target.read_text(encoding="utf-8")
            for alias in node.names:
                defined = rf"^(class|def) {alias.name}\b|^{alias.name}\b.*=|^    from .* import .*\b{alias.name}\b"
                assert re.search(defined, source, re.MULTILINE), f"{name} does not define {alias.name}"


@modules
def test_module_says_what_it_exports(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    if path.name == "version.py":
        return
    assert ast.get_docstring(tree), "no docstring"
    last = tree.body[-1]
    if path.parts[0] != "dualspeech" and isinstance(last, ast.If):
        last = tree.body[-2]  # a script: `if __name__ == "__main__"` comes behind
    assert isinstance(last, ast.Assign) and last.targets[0].id == "__all__", "`__all__` is not at the end"
    defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    for node in tree.body:
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            defined |= {target.id} if isinstance(target, ast.Name) else set()
        if isinstance(node, ast.ImportFrom) and path.parts[0] == "dualspeech":
            defined |= {alias.name for alias in node.names}
    assert set(ast.literal_eval(last.value)) <= defined


def test_modules_are_short():
    long = {str(path): len((ROOT / path).read_text().splitlines()) for path in tracked() if path.suffix == ".py"}
    assert not {path: lines for path, lines in long.items() if lines >= MAX_LINES}


def test_module_names_are_unique():
    """Checkpoints carry the modules in one folder."""
    names = Counter(path.name for path in CODE)
    assert not [name for name, count in names.items() if count > 1]


def test_examples_are_short():
    for path in (ROOT / "examples").glob("*.py"):
        assert len(path.read_text().splitlines()) < 250, path


def test_nothing_of_a_machine():
    """Neither paths of a machine nor addresses of package indexes."""
    path_of_machine = re.compile(r"(?<![\w.])/(?:work|tmp|farm|root|opt|home/[a-z]+)/")
    index = re.compile(r"pypi[.]org|pythonhosted[.]org|download[.]pytorch[.]org|index-url|find-links", re.IGNORECASE)
    for path in tracked():
        if path.parts[:2] == ("tests", "fixtures") or path == Path(__file__).relative_to(ROOT):
            continue
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for pattern in (path_of_machine, index):
            found = pattern.search(text)
            assert not found, f"{path}: {found.group()!r}"


def test_no_large_files():
    assert not [str(path) for path in tracked() if (ROOT / path).stat().st_size > 2_000_000]
