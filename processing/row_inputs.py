"""What a caller gives to the processor, sorted into rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .audio import PCM_SCALE, as_array, is_array_with_rate
from .tasks import Task, get_task


@dataclass
class Row:
    """One row of a batch: the inputs of its task, and the speaker and the target if there are any."""

    task: Task
    fields: dict[str, Any]
    speaker: Any = None
    target: Any = None


def split_rows(task: Any, fields: Mapping[str, Any], speaker: Any = None, targets: Any = None) -> list[Row]:
    """Sort the arguments of a call into rows.

    An argument is a list with one entry per row, `None` where a row does not take it, or a single value for all rows
    that take it. A single target is for a single row.

    Raises:
        ValueError: lists of different lengths, an unknown task, an input that a task lacks or does not take.
    """
    columns = {"task": task, **fields, "speaker": speaker, "targets": targets}
    columns = {name: _as_list(value) for name, value in columns.items()}
    lists = {name: value for name, value in columns.items() if _is_column(name, value)}
    lengths = {name: len(value) for name, value in lists.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        shown = ", ".join(f"`{name}` has {length}" for name, length in lengths.items())
        raise ValueError(f"lists must have one entry per row and at least one: {shown}")
    size = next(iter(lengths.values()), 1)
    if targets is not None and "targets" not in lists and size > 1:
        raise ValueError(f"`targets` is a single target for {size} rows; give a list with one for each row")

    tasks = [get_task(name) for name in lists.get("task", [task] * size)]
    takers = {name: [name in task.fields for task in tasks] for name in fields}
    takers["speaker"] = [task.output == "speech" for task in tasks]
    takers["targets"] = [True] * size

    def value_of(name, i):
        if name in lists:
            return lists[name][i]
        # Without a taker the value stays, so that it is reported and not dropped.
        return columns[name] if takers[name][i] or not any(takers[name]) else None

    rows = []
    for i, row_task in enumerate(tasks):
        row = Row(
            row_task, {name: value_of(name, i) for name in fields}, value_of("speaker", i), value_of("targets", i)
        )
        row_task.check(row.fields)
        if row.speaker is not None and row_task.output != "speech":
            raise ValueError(f"task {row_task.name!r} answers with text and does not take `speaker`")
        if (row.target is None) != (targets is None):
            raise ValueError(f"`targets` has none for row {i}; for training every row needs one")
        rows.append(row)
    return rows


def is_one_recording(audio: Any) -> bool:
    """Whether `audio` is a single recording, or the codes of one, and not a list of them."""
    if not isinstance(audio, (list, tuple)) or is_array_with_rate(audio):
        return True
    return bool(audio) and isinstance(audio[0], (int, float, np.number))


def codes_of(audio: Any, sampling_rate: int | None = None) -> list[int] | None:
    """`audio` as codes if it is a one-dimensional array, tensor or list of whole numbers, else `None`.

    Raises:
        ValueError: an array of a sample type (16-bit, say) beside a `sampling_rate`: it may be either.
    """
    if is_array_with_rate(audio) or not isinstance(audio, (np.ndarray, torch.Tensor, list, tuple)):
        return None
    array = as_array(audio)
    if array.ndim == 1 and not len(array) and isinstance(audio, (list, tuple)):
        return []
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        return None
    if sampling_rate is not None and not isinstance(audio, (list, tuple)) and array.dtype.name in PCM_SCALE:
        raise ValueError(
            f"`audio` is an array of {array.dtype} and `sampling_rate` is given, it may hold samples or codes: give "
            "samples as (array, rate), codes as a list"
        )
    return array.tolist()


def vector_of(speaker: Any) -> np.ndarray | None:
    """`speaker` as a float32 vector if it is a one-dimensional array, tensor or list of floats, else `None`."""
    if is_array_with_rate(speaker) or not isinstance(speaker, (np.ndarray, torch.Tensor, list, tuple)):
        return None
    array = as_array(speaker)
    return array.astype(np.float32) if array.ndim == 1 and np.issubdtype(array.dtype, np.number) else None


def _as_list(value: Any) -> Any:
    """Lists stay; columns of data sets and other sequences become lists."""
    is_sequence = isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, list, tuple))
    return list(value) if is_sequence else value


def _is_column(name: str, value: Any) -> bool:
    """Whether `value` has an entry for each row."""
    if name in ("audio", "question"):
        return not is_one_recording(value)
    if name == "speaker":
        return np.ndim(value) == 2 if isinstance(value, (np.ndarray, torch.Tensor)) else not is_one_recording(value)
    return isinstance(value, (list, tuple))


__all__ = ["Row", "codes_of", "is_one_recording", "split_rows", "vector_of"]
