"""Reading foreign checkpoints completely or not at all, and writing converted ones completely or not at all."""

import json
import os
import pickle
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

# file names under which transformers and PEFT keep weights in a folder, in order of preference
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.bin",
)


class KeyRule(NamedTuple):
    """How one group of foreign keys is renamed. Plain tuples of two or three entries serve as well.

    pattern: regular expression that must match the whole foreign key.
    to: the new key, with the groups of `pattern` as `\\1` or `\\g<name>`; a tuple of keys when one tensor is split.
    transform: applied to the tensor; returns one tensor, or one per entry of `to`.
    """

    pattern: str
    to: str | Sequence[str]
    transform: Callable[[Tensor], Tensor | Sequence[Tensor]] | None = None


def load_foreign_state_dict(path: str | os.PathLike, entry: str | None = None) -> dict[str, Tensor]:
    """The tensors of a checkpoint file or folder, on the CPU. No code in the file is ever executed.

    Args:
        path: a `.safetensors` file, a file written by `torch.save`, or a folder as written by `save_pretrained` of
            transformers or PEFT (sharded or not).
        entry: name of the state dict inside a `torch.save` file that also holds other things ("model", "state_dict").
            A file that holds nothing but tensors is read as it is.

    Raises:
        ValueError: the path does not exist, cannot be read without executing code, lacks `entry`, or holds something
            other than tensors.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path, entry)
    if not path.is_file():
        raise ValueError(f"checkpoint: {str(path)!r} is neither a file nor a folder.")
    if path.suffix == ".safetensors":
        return load_file(str(path))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(
            f"checkpoint: {str(path)!r} cannot be read with weights_only=True, the only way in which foreign files "
            f"are read here: {error}"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"checkpoint: {str(path)!r} holds a {type(content).__name__}, expected a dict of tensors.")
    if entry is not None and isinstance(content.get(entry), Mapping):
        content = content[entry]
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        wanted = f"an entry {entry!r} with a state dict, or tensors only" if entry else "tensors only"
        raise ValueError(f"checkpoint: {str(path)!r} must hold {wanted}; it has other entries: {_listing(others)}.")
    return dict(content)


def _load_folder(folder: Path, entry: str | None) -> dict[str, Tensor]:
    for name in _WEIGHT_FILES:
        file = folder / name
        if not file.is_file():
            continue
        if file.suffix != ".json":
            return load_foreign_state_dict(file, entry)
        weight_map = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        state = {}
        for shard in sorted(set(weight_map.values())):
            state.update(load_foreign_state_dict(folder / shard, entry))
        if state.keys() != weight_map.keys():
            difference = sorted(state.keys() ^ weight_map.keys())
            raise ValueError(f"checkpoint: {str(file)!r} and its shards disagree about {_listing(difference)}.")
        return state
    raise ValueError(f"checkpoint: the folder {str(folder)!r} has none of the files {', '.join(_WEIGHT_FILES)}.")


def convert_keys(
    state: Mapping[str, Tensor], rules: Iterable[KeyRule | tuple], *, ignore: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Rename (and transform) every tensor of `state` by the first rule whose pattern matches its whole key.

    Args:
        state: foreign key -> tensor.
        rules: see [`KeyRule`].
        ignore: patterns of keys that are known and not needed.

    Raises:
        ValueError: keys that no rule understands (all of them are listed), or two keys with the same new name.
    """
    rules = [KeyRule(*rule) for rule in rules]
    ignore = tuple(ignore)
    converted, unknown = {}, []
    for key, tensor in state.items():
        if any(re.fullmatch(pattern, key) for pattern in ignore):
            continue
        rule, match = next(((r, m) for r in rules if (m := re.fullmatch(r.pattern, key))), (None, None))
        if rule is None:
            unknown.append(key)
            continue
        result = rule.transform(tensor) if rule.transform is not None else tensor
        names, tensors = ([rule.to], [result]) if isinstance(rule.to, str) else (rule.to, result)
        for name, value in zip(names, tensors, strict=True):
            name = match.expand(name)
            if name in converted:
                raise ValueError(f"checkpoint: two of its keys become {name!r}, the second one is {key!r}.")
            converted[name] = value
    if unknown:
        raise ValueError(f"checkpoint: {len(unknown)} keys are not understood: {_listing(unknown)}.")
    return converted


def load_strictly(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy `state` into `model`, which must have exactly these keys and shapes.

    Raises:
        ValueError: all missing keys, unexpected keys and differing shapes in one message; the model is then unchanged.
    """
    expected = model.state_dict()
    problems = []
    if missing := [key for key in expected if key not in state]:
        problems.append(f"missing: {_listing(missing)}")
    if unexpected := [key for key in state if key not in expected]:
        problems.append(f"unexpected: {_listing(unexpected)}")
    if shapes := [
        f"{key} {tuple(value.shape)} instead of {tuple(expected[key].shape)}"
        for key, value in state.items()
        if key in expected and value.shape != expected[key].shape
    ]:
        problems.append(f"other shapes: {_listing(shapes)}")
    if problems:
        raise ValueError(f"checkpoint does not fit {type(model).__name__}; " + "; ".join(problems) + ".")
    model.load_state_dict(state, strict=True)


@contextmanager
def atomic_folder(output_dir: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder beside `output_dir` that takes its place when the block ends, and vanishes when it fails.

    Raises:
        ValueError: `output_dir` exists and is not an empty folder.
    """
    target = Path(output_dir).absolute()
    _check_free(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.partial"
    partial.mkdir()
    try:
        yield partial
        _check_free(target)
        if target.is_dir():
            target.rmdir()
        os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _check_free(target: Path) -> None:
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"output_dir: {str(target)!r} exists already; give a new or an empty folder.")


def save_converted(model, output_dir: str | os.PathLike, processor=None) -> None:
    """`save_pretrained` of the model, and of the processor when there is one: all of it or nothing.

    Raises:
        ValueError: `output_dir` exists and is not an empty folder.
    """
    with atomic_folder(output_dir) as folder:
        model.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)


def _listing(names: Sequence[str], limit: int = 400) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


__all__ = ["KeyRule", "atomic_folder", "convert_keys", "load_foreign_state_dict", "load_strictly", "save_converted"]
