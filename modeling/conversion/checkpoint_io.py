"""Reading foreign checkpoints completely or not at all, and writing converted ones completely or not at all."""

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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
# what weights may be stored in; integers and 8-bit numbers are quantised and need scales
_WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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
        ValueError: the path does not exist, is damaged, cannot be read without executing code, lacks `entry`, or holds
            something other than tensors under names.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path, entry)
    if not path.is_file():
        raise ValueError(f"checkpoint: {str(path)!r} is neither a file nor a folder.")
    try:
        if path.suffix == ".safetensors":
            return load_file(str(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # which one depends on the bytes of a damaged file
        how = "as safetensors" if path.suffix == ".safetensors" else "with weights_only=True"
        raise ValueError(
            f"checkpoint: {str(path)!r} cannot be read {how}, the only way in which such files are read here: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"checkpoint: {str(path)!r} holds a {type(content).__name__}, expected a dict of tensors.")
    if entry is not None and isinstance(content.get(entry), Mapping):
        content = content[entry]
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        wanted = f"an entry {entry!r} with a state dict, or tensors only" if entry else "tensors only"
        raise ValueError(f"checkpoint: {str(path)!r} must hold {wanted}; it has other entries: {_listing(others)}.")
    if unnamed := [repr(key) for key in content if not isinstance(key, str)]:
        raise ValueError(f"checkpoint: the keys of {str(path)!r} must be names, got {_listing(unnamed)}.")
    return dict(content)


def _load_folder(folder: Path, entry: str | None) -> dict[str, Tensor]:
    for name in _WEIGHT_FILES:
        file = folder / name
        if not file.is_file():
            continue
        if file.suffix != ".json":
            return load_foreign_state_dict(file, entry)
        weight_map = _weight_map(file)
        state = {}
        for shard in sorted(set(weight_map.values())):
            state.update(load_foreign_state_dict(folder / shard, entry))
        if state.keys() != weight_map.keys():
            difference = sorted(state.keys() ^ weight_map.keys())
            raise ValueError(f"checkpoint: {str(file)!r} and its shards disagree about {_listing(difference)}.")
        return state
    raise ValueError(f"checkpoint: the folder {str(folder)!r} has none of the files {', '.join(_WEIGHT_FILES)}.")


def _weight_map(index: Path) -> dict[str, str]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"checkpoint: {str(index)!r} is no JSON: {error}") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise ValueError(f"checkpoint: {str(index)!r} has no `weight_map` from keys to file names.")
    return weight_map


def convert_keys(
    state: Mapping[str, Tensor], rules: Iterable[KeyRule | tuple], *, ignore: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Rename (and transform) every tensor of `state` by the first rule whose pattern matches its whole key.

    Args:
        state: foreign key -> tensor.
        rules: see [`KeyRule`].
        ignore: patterns of keys that are known and not needed.

    Raises:
        ValueError: keys that no rule understands (all of them are listed), two keys with the same new name, or a tensor
            whose shape its rule cannot transform.
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
        for name, value in _transformed(rule, key, tensor):
            name = match.expand(name)
            if name in converted:
                raise ValueError(f"checkpoint: two of its keys become {name!r}, the second one is {key!r}.")
            converted[name] = value
    if unknown:
        raise ValueError(f"checkpoint: {len(unknown)} keys are not understood: {_listing(unknown)}.")
    return converted


def _transformed(rule: KeyRule, key: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    try:
        result = rule.transform(tensor) if rule.transform is not None else tensor
        names, tensors = ([rule.to], [result]) if isinstance(rule.to, str) else (rule.to, result)
        return list(zip(names, tensors, strict=True))
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"checkpoint: {key!r} cannot have the shape {tuple(tensor.shape)}: {error}") from error


def check_dimensions(state: Mapping[str, Tensor], dimensions: Mapping[str, int], model: str) -> None:
    """Raise a `ValueError` unless the tensors that tell the sizes of a `model` are there, with so many dimensions."""
    if missing := [key for key in dimensions if key not in state]:
        raise ValueError(f"checkpoint: not a {model} checkpoint, it lacks {_listing(missing)}.")
    if others := [f"{key} {tuple(state[key].shape)}" for key, size in dimensions.items() if state[key].dim() != size]:
        raise ValueError(
            f"checkpoint: not a {model} checkpoint, of another number of dimensions are {_listing(others)}."
        )


def check_weights(state: Mapping[str, Tensor]) -> None:
    """Raise a `ValueError` that lists the tensors of `state` that are quantised, complex, NaN or infinite."""
    problems = [f"{key} ({value.dtype})" for key, value in state.items() if value.dtype not in _WEIGHT_TYPES]
    problems = problems or [f"{key} (NaN or infinite)" for key, value in state.items() if not value.isfinite().all()]
    if problems:
        raise ValueError(
            f"checkpoint: weights must be finite and of 16, 32 or 64 bits; not so are {_listing(problems)}."
        )


def load_strictly(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy `state` into `model`, which must have exactly these keys and shapes.

    Raises:
        ValueError: all missing keys, unexpected keys and differing shapes in one message, or weights as described at
            [`check_weights`]; the model is then unchanged.
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
    check_weights({key: state[key] for key, value in expected.items() if value.is_floating_point()})
    model.load_state_dict(state, strict=True)


@contextmanager
def atomic_folder(output_dir: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder whose content is in `output_dir` when the block ends, and which vanishes when it fails.

    A new folder appears complete. An empty one stays the folder that it is (someone's working folder, say, or the
    target of a link), and gets the entries at the end.

    Raises:
        ValueError: see [`check_output_dir`].
    """
    target = check_output_dir(output_dir)
    exists = target.is_dir()
    created = [folder for folder in target.parents if not folder.exists()]
    partial = (target if exists else target.parent) / f".{target.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        partial.mkdir(parents=True)
        yield partial
        check_output_dir(target, besides=partial)
        if exists:
            for entry in list(partial.iterdir()):
                os.replace(entry, target / entry.name)
            partial.rmdir()
        else:
            os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in created:
            with suppress(OSError):  # not empty, or never made
                folder.rmdir()
        raise


def check_output_dir(output_dir: str | os.PathLike, besides: Path | None = None) -> Path:
    """The absolute path, links followed, of a folder that is new or empty (`besides` one entry) and can be written to.

    Converters call it before they read anything.

    Raises:
        ValueError: it is neither new nor empty, or cannot be written to.
    """
    target = Path(output_dir).resolve()
    if target.exists() and not (target.is_dir() and all(entry == besides for entry in target.iterdir())):
        raise ValueError(f"output_dir: {str(target)!r} exists already; give a new or an empty folder.")
    nearest = next(folder for folder in (target, *target.parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ValueError(f"output_dir: {str(target)!r} cannot be written, {str(nearest)!r} is no writable folder.")
    return target


def save_converted(model, output_dir: str | os.PathLike, processor=None) -> None:
    """`save_pretrained` of the model, and of the processor when there is one: all of it or nothing.

    Raises:
        ValueError: see [`check_output_dir`].
    """
    with atomic_folder(output_dir) as folder:
        model.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)


def _listing(names: Sequence[str], limit: int = 400) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


__all__ = [
    "KeyRule",
    "atomic_folder",
    "check_dimensions",
    "check_output_dir",
    "check_weights",
    "convert_keys",
    "load_foreign_state_dict",
    "load_strictly",
    "save_converted",
]
