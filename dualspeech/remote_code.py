"""A checkpoint's own code: what it needs of this package, flattened into its folder for `trust_remote_code`."""

import ast
import importlib.util
import json
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_imports

from .registry import CLASSES, CONFIGS
from .version import __version__

_PACKAGE = __name__.rpartition(".")[0]
_REGISTRATION = f"{_PACKAGE}.remote_registration"
_NOT_MODELS = ("AutoFeatureExtractor", "AutoProcessor")
# Model types whose processor needs no files of its own beside a tokenizer: the ids of `config.json` are enough.
_WITH_PROCESSOR = ("moss_speech",)
_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json")
# What the modules may import without a `try`: transformers refuses a checkpoint of which an import is missing.
_REQUIRED = ("torch", "transformers", "huggingface_hub", "safetensors", "numpy", "soundfile", "soxr")


def bundle_remote_code(folder: str | os.PathLike) -> list[Path]:
    """Make the checkpoint in `folder` loadable with `trust_remote_code=True` where this package is not installed.

    Copies the modules that the checkpoint needs beside its weights, with flat imports, and writes `auto_map` into
    `config.json`, `processor_config.json` (and its `feature_extractor` part) and `preprocessor_config.json`. The same
    is done in sub-folders that hold a checkpoint of ours (`audio_tokenizer/`). transformers looks for the code of a
    `subfolder=` in the root, so the root gets those modules too. Nothing is written when something fails.

    Entries that `auto_map` had before are replaced; those without a successor here are named in a warning. In a folder
    laid out like the released MOSS-Speech model (a tokenizer, no files of a processor) `config.json` gets the entry of
    `AutoProcessor`.

    Where the package is installed, its own classes are used, with or without `trust_remote_code`.

    Args:
        folder: a folder written by `save_pretrained` of a model, a processor, or both.

    Returns:
        The files that were written.

    Raises:
        ValueError: `folder` holds nothing of ours, or a module cannot be flattened (two modules of one name, an import
            from a package, an optional import outside of a `try`).
    """
    folder = Path(folder)
    parts = [path for path in sorted(folder.iterdir()) if _model_types(read_json(path / "config.json"))]
    inner = set().union(*(_model_types(read_json(part / "config.json")) for part in parts))
    root = _needs(folder, inner)
    written = {}
    for part in parts:
        needs = _needs(part, set())
        written |= {part / name: source for name, source in _flatten(needs).items()}
        root.add(needs)
    if not root.jsons:
        raise ValueError(
            f"`folder` {str(folder)!r} holds neither a config.json of a model type of this package "
            f"({', '.join(sorted(CONFIGS))}) nor a configuration of one of its processors"
        )
    written |= {folder / name: source for name, source in _flatten(root).items()}
    written |= {path: json.dumps(content, indent=2, sort_keys=True) + "\n" for path, content in root.jsons.items()}
    for path, content in written.items():
        replace_text(path, content)
    return sorted(written)


@dataclass
class _Needs:
    """What a checkpoint folder needs: changed JSON files, modules, and the model types that a module registers."""

    jsons: dict[Path, dict] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)
    registered: dict[str, set[str]] = field(default_factory=dict)

    def add(self, other: "_Needs") -> None:
        self.jsons |= other.jsons
        self.modules |= other.modules
        for module, model_types in other.registered.items():
            self.registered.setdefault(module, set()).update(model_types)

    def refer(self, named: Mapping[str, tuple[str, str]], registered: set[str] = frozenset()) -> dict[str, str]:
        """The `auto_map` entries of `named` (Auto class -> module and class), whose modules are noted as needed."""
        for module, _ in named.values():
            self.modules.add(f"{_PACKAGE}.{module}")
            self.registered.setdefault(f"{_PACKAGE}.{module}", set()).update(registered)
        return {auto: f"{module.rpartition('.')[2]}.{name}" for auto, (module, name) in named.items()}


def _needs(folder: Path, inner: set[str]) -> _Needs:
    """What `folder` itself needs; its processor registers the model types `inner` of its sub-folders."""
    needs = _Needs()
    config = read_json(folder / "config.json")
    if (model_type := config.get("model_type")) in CONFIGS:
        named = {"AutoConfig": CONFIGS[model_type]}
        named |= {auto: classes[model_type] for auto, classes in _model_classes() if model_type in classes}
        entries = needs.refer(named, _model_types(config) - {model_type})
        processor_class = read_json(folder / "processor_config.json").get("processor_class")
        has_tokenizer = any((folder / name).is_file() for name in _TOKENIZER_FILES)
        if processor_class is None and has_tokenizer and model_type in _WITH_PROCESSOR:
            entries |= needs.refer({"AutoProcessor": CLASSES["AutoProcessor"][model_type]}, inner)
        kept = {*entries, *(_class_named("AutoProcessor", processor_class))}
        if lost := sorted(set(config.get("auto_map") or ()) - kept):
            warnings.warn(
                f"{folder / 'config.json'}: `auto_map` loses {lost}, for which the folder holds nothing of this package; "
                "save the processor or tokenizer into it first",
                stacklevel=3,
            )
        config["auto_map"] = entries
        needs.jsons[folder / "config.json"] = config
    processor = read_json(folder / "processor_config.json")
    if named := _class_named("AutoProcessor", processor.get("processor_class")):
        processor["auto_map"] = needs.refer(named, inner)
        extractor = processor.get("feature_extractor") or {}
        if named := _class_named("AutoFeatureExtractor", extractor.get("feature_extractor_type")):
            extractor["auto_map"] = needs.refer(named)
        needs.jsons[folder / "processor_config.json"] = processor
    extractor = read_json(folder / "preprocessor_config.json")
    if named := _class_named("AutoFeatureExtractor", extractor.get("feature_extractor_type")):
        extractor["auto_map"] = needs.refer(named)
        needs.jsons[folder / "preprocessor_config.json"] = extractor
    return needs


def _model_classes() -> Iterator[tuple[str, dict[str, tuple[str, str]]]]:
    return ((auto, classes) for auto, classes in CLASSES.items() if auto not in _NOT_MODELS)


def _model_types(config: Any) -> set[str]:
    """Our model types in a configuration and in those nested in it."""
    if not isinstance(config, Mapping):
        return set()
    own = {config["model_type"]} & set(CONFIGS) if isinstance(config.get("model_type"), str) else set()
    return own.union(*map(_model_types, config.values()))


def _class_named(auto_class: str, name: str | None) -> dict[str, tuple[str, str]]:
    """`auto_class` with the module and name of its registered class `name`; empty if there is none."""
    found = {where for where in CLASSES[auto_class].values() if where[1] == name}
    return {auto_class: found.pop()} if found else {}


def _flatten(needs: _Needs) -> dict[str, str]:
    """File names and sources of the modules of `needs` and of every module of this package that they import."""
    todo, homes, sources = sorted(needs.modules), {}, {}
    while todo:
        module = todo.pop()
        base = module.rpartition(".")[2]
        if homes.setdefault(base, module) != module:
            raise ValueError(
                f"{homes[base]} and {module} cannot be flattened into one folder: they have the same name"
            )
        if f"{base}.py" not in sources:
            source, imported = _flat_source(module)
            footer, registered = _registration(module, sorted(needs.registered.get(module, ())))
            sources[f"{base}.py"] = source + footer
            todo += imported + registered
    return sources


def _flat_source(module: str) -> tuple[str, list[str]]:
    """Source of `module` with imports from its own folder only, and the modules of this package that it imports."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.submodule_search_locations is not None:
        raise ValueError(f"{module} is a package: import from the module that defines the name")
    optional = set(get_imports(spec.origin)) - set(_REQUIRED) - sys.stdlib_module_names
    if optional:
        raise ValueError(f"{module} imports {sorted(optional)} outside of a `try`: not every user has it")
    source = Path(spec.origin).read_bytes()
    lines = source.splitlines(keepends=True)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.level > 0]
    imported, pieces, position = [], [], 0
    for node in sorted(nodes, key=lambda node: node.lineno):
        parent = module.split(".")[: -node.level]
        if node.module is None or len(parent) == 0:
            raise ValueError(f"{module} imports from a package: import from the module that defines the name")
        imported.append(".".join([*parent, node.module]))
        start = sum(map(len, lines[: node.lineno - 1])) + node.col_offset
        head = re.match(rb"from\s+[.\s]*[\w.]+", source[start:]).group()
        pieces += [source[position:start], b"from ." + imported[-1].rpartition(".")[2].encode()]
        position = start + len(head)
    header = f"# From dualspeech {__version__} (Apache-2.0), with flat imports.\n"
    return header + b"".join([*pieces, source[position:]]).decode(), imported


def _registration(module: str, model_types: list[str]) -> tuple[str, list[str]]:
    """Lines for the end of `module` that register the classes of `model_types`, and the modules that they import."""
    if not model_types:
        return "", []
    configs = [CONFIGS[model_type] for model_type in model_types]
    models = {}
    if not module.startswith(f"{_PACKAGE}.configuration."):
        for auto, classes in _model_classes():
            if found := [classes[model_type] for model_type in model_types if model_type in classes]:
                models[auto] = found
    calls = [f"register_configs({', '.join(name for _, name in configs)})"]
    calls += [f"register_models({auto}, {', '.join(name for _, name in found)})" for auto, found in models.items()]
    needed = {*configs, *(where for found in models.values() for where in found)}
    imports = [f"from .{home.rpartition('.')[2]} import {name}" for home, name in sorted(needed)]
    functions = "register_configs, register_models" if models else "register_configs"
    imports.append(f"from .{_REGISTRATION.rpartition('.')[2]} import {functions}")
    if models:
        imports.insert(0, f"from transformers import {', '.join(models)}")
    reason = "# Parts are built by model type; this makes them known where dualspeech is not installed."
    lines = ["", "", reason, *(f"{line}  # noqa: E402" for line in imports), "", *calls, ""]
    return "\n".join(lines), [_REGISTRATION, *(f"{_PACKAGE}.{home}" for home, _ in needed)]


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file, empty where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def replace_text(path: Path, content: str) -> None:
    """Put a new file at `path`; another name of an old file there keeps its content."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, path)


__all__ = ["bundle_remote_code", "read_json", "replace_text"]
