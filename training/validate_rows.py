"""Check files of training rows against `row_schema.json`.

    python -m dualspeech.training.validate_rows train.jsonl eval.jsonl
    python -m dualspeech.training.validate_rows recordings/ --kind recording --check-audio --json

Every error names the file, the line, the key, what was given and what is accepted. The exit code is 1 if there is any.
The schema is the documentation of rows: four kinds, told apart by their keys.
"""

import argparse
import base64
import binascii
import dataclasses
import functools
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from .row_files import Entry, problem_of, read_entries, without_nulls
from .row_messages import messages_of

SCHEMA_FILE = Path(__file__).parent / "row_schema.json"
# The key that tells a kind, in the order in which they are looked for.
KIND_KEYS = {"task": "task", "chat": "messages", "document": "chunks", "recording": "audio"}
KINDS = tuple(KIND_KEYS)
_TASK_KEYS = ("targets", "question", "source_language", "target_language")
_CONTENT_KEYS = ("audio", "path", "filepath", "url")
_SHOWN = 20
# Keys whose very value the schema looks at; of other texts it is whether they are empty.
_TELLING_KEYS = ("task", "role", "type", "output_modality")
_RIGHT_SHAPES: set[Any] = set()
_MOST_SHAPES = 10_000
_MOST_SECONDS = 1e9  # as in the schema
_NOT_PLAIN = (Mapping, list, tuple, np.ndarray, bytes, os.PathLike)


@dataclass(frozen=True)
class RowError:
    """One error.

    Attributes:
        file, line: where the row stands, see [`~training.row_files.Entry`].
        path: the key in the row, `targets.audio`; empty for the row itself.
        message: what is wrong and what is accepted.
    """

    file: str
    line: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f"`{self.path}` " if self.path else ""
        return f"{self.file}:{self.line}: {place}{self.message}"


def read_rows(path: str | os.PathLike, audio_root: str | os.PathLike | None = None) -> list[dict[str, Any]]:
    """
    The rows of a file or folder: JSON Lines (also gzipped), a JSON list, Parquet or Arrow.

    Each row gets `source`, `"file:line"` (in tables the number of the row); one that it had goes to `metadata`. Null entries are left out, base64 audio
    becomes `bytes`, and relative paths of audio become absolute, from `audio_root` or the folder of the file. Whether
    rows fit the schema is the business of [`check_rows`].

    Raises:
        ValueError: no such file, a file without rows, or a line that is no row, with its place.
    """
    rows = []
    for entry in read_entries(path):
        row, errors = _opened(entry, audio_root)
        if errors:
            raise ValueError(str(errors[0]))
        rows.append(row)
    return rows


def validate_rows(
    rows_or_path: str | os.PathLike | Iterable[Mapping[str, Any]],
    kind: str | None = None,
    audio_root: str | os.PathLike | None = None,
    check_audio: bool = False,
) -> list[RowError]:
    """
    The errors of rows, or of a file or folder of rows, in their order.

    Args:
        rows_or_path: a path, or rows, whose place is their `source` or else their number.
        kind: the kind that all rows must have; by default each row's keys tell it.
        audio_root: folder where relative paths of audio start; that of the file by default, for rows the current one.
        check_audio: also look at the head of every recording: it exists, is mono audio, not empty, and holds the
            segment. Addresses on the network are not looked at.

    Raises:
        ValueError: an unknown `kind`, or a path that does not exist or is no file of rows.
    """
    return list(_errors_of(rows_or_path, kind, audio_root, check_audio))


def check_rows(
    rows_or_path: str | os.PathLike | Iterable[Mapping[str, Any]],
    kind: str | None = None,
    audio_root: str | os.PathLike | None = None,
    check_audio: bool = False,
) -> None:
    """
    Raise one `ValueError` with the first 20 errors of [`validate_rows`] and the number of the others, if there are any.
    """
    errors = validate_rows(rows_or_path, kind, audio_root, check_audio)
    if errors:
        listed = "\n".join(f"  {error}" for error in errors[:_SHOWN])
        rest = f"\n  and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
        raise ValueError(f"{len(errors)} error{'s' * (len(errors) > 1)} in the rows:\n{listed}{rest}")


def recordings_of(row: Mapping[str, Any]) -> Iterator[tuple[Any, str, str]]:
    """Where the recordings of a row are: `(mapping, key, place)` with the recording at `mapping[key]`.

    Names of speakers and lists of codes are among them; rows that break the schema are looked at as far as they go.
    """
    for key in ("audio", "speaker", *(["question"] if row.get("task") == "sc" else [])):
        if key in row:
            yield row, key, key
    targets = row.get("targets")
    if isinstance(targets, Mapping) and "audio" in targets:
        yield targets, "audio", "targets.audio"
    messages, chunks = row.get("messages"), row.get("chunks")
    contents = [
        (message.get("content"), f"messages[{i}].content")
        for i, message in enumerate(messages if isinstance(messages, list) else [])
        if isinstance(message, Mapping)
    ]
    contents += [(chunk, f"chunks[{i}]") for i, chunk in enumerate(chunks if isinstance(chunks, list) else [])]
    for content, place in contents:
        for number, part in enumerate(content if isinstance(content, list) else [content]):
            inner = f"{place}[{number}]" if isinstance(content, list) else place
            for key in _CONTENT_KEYS if isinstance(part, Mapping) else ():
                if key in part:
                    yield part, key, f"{inner}.{key}"


def _errors_of(rows_or_path, kind, audio_root, check_audio) -> Iterator[RowError]:
    if kind is not None and kind not in KINDS:
        raise ValueError(f"`kind` is {kind!r}; accepted are {', '.join(map(repr, KINDS))}")
    if isinstance(rows_or_path, str | os.PathLike):
        entries = read_entries(Path(rows_or_path))
    else:
        entries, audio_root = _given_entries(rows_or_path), audio_root or "."
    for entry in entries:
        row, errors = _opened(entry, audio_root)
        yield from errors
        if row is None or errors:
            continue
        places = [(entry.file, entry.line, *error) for error in _row_errors(row, kind)]
        if check_audio and not places:
            places = [(entry.file, entry.line, *error) for error in _audio_errors(row)]
        yield from (RowError(*place) for place in places)


def _given_entries(rows: Iterable[Mapping[str, Any]]) -> Iterator[Entry]:
    for number, row in enumerate(rows, start=1):
        file, _, line = str(row.get("source", "") if isinstance(row, Mapping) else "").rpartition(":")
        place = (file, int(line)) if file and line.isdecimal() else ("rows", number)
        problem = problem_of(row)
        yield Entry(*place, None if problem else without_nulls(row), problem)


def _opened(entry: Entry, audio_root: str | os.PathLike | None) -> tuple[dict[str, Any] | None, list[RowError]]:
    """The row of an entry with its `source`, absolute paths and decoded bytes; and what went wrong."""
    if entry.error is not None:
        return None, [RowError(entry.file, entry.line, "", entry.error)]
    row, errors = entry.row, []
    folder = os.path.abspath(os.path.dirname(entry.file) if audio_root is None else audio_root)
    for mapping, key, place in recordings_of(row):
        value = os.fspath(mapping[key]) if isinstance(mapping[key], os.PathLike) else mapping[key]
        if isinstance(value, str):
            mapping[key] = _resolved(value, folder, is_speaker=key == "speaker")
        elif isinstance(value, dict) and isinstance(value.get("bytes"), str):
            try:
                value["bytes"] = base64.b64decode(value["bytes"], validate=True)
            except (ValueError, binascii.Error) as error:
                errors.append(RowError(entry.file, entry.line, f"{place}.bytes", f"is no base64 ({error})"))
        elif isinstance(value, dict) and isinstance(value.get("path"), str) and "bytes" not in value:
            value["path"] = _resolved(value["path"], folder)
    source, given, metadata = f"{entry.file}:{entry.line}", row.get("source"), row.get("metadata", {})
    if given not in (None, source) and isinstance(metadata, Mapping):
        # What the row says of its origin stays, but names no row.
        row["metadata"] = {**metadata, "row_source" if "source" in metadata else "source": given}
    row["source"] = source
    return row, errors


def _resolved(path: str, folder: str, is_speaker: bool = False) -> str:
    if not path or path.startswith(("http://", "https://", "data:")):
        return path
    joined = os.path.join(folder, path)
    return path if is_speaker and not os.path.isfile(joined) else joined


def _kind_of(row: Mapping[str, Any]) -> tuple[str | None, str]:
    """The kind of a row, or `None` and why it has none."""
    found = [kind for kind, key in KIND_KEYS.items() if key in row and kind != "recording"]
    if len(found) > 1:
        keys = " and ".join(f"`{KIND_KEYS[kind]}`" for kind in found)
        return None, f"has {keys}, which belong to different kinds of rows; accepted is one of them"
    if found:
        return found[0], ""
    if any(key in row for key in _TASK_KEYS):
        return "task", ""
    if "audio" in row:
        return "recording", ""
    needed = ", ".join(f"`{key}` ({kind} row)" for kind, key in KIND_KEYS.items())
    return None, f"has none of the keys that tell its kind; accepted is one of {needed}"


def _row_errors(row: Mapping[str, Any], kind: str | None) -> list[tuple[str, str]]:
    found, problem = _kind_of(row)
    if found is None:
        return [("", problem)]
    if kind not in (None, found):
        return [("", f"is a {found} row; accepted are {kind} rows, which have `{KIND_KEYS[kind]}`")]
    definition = f"{found}_row"
    if found == "task":
        tasks = _schema()["$defs"]["task_row"]["properties"]["task"]["enum"]
        if "task" not in row:
            keys = " and ".join(f"`{key}`" for key in _TASK_KEYS if key in row)
            return [("", f"lacks `task` beside {keys}; accepted are {', '.join(map(repr, tasks))}")]
        if row["task"] not in tasks:
            return [("task", f"is {row['task']!r}; accepted are {', '.join(map(repr, tasks))}")]
        definition = f"{row['task']}_row"
    shape = (definition, _shape(row))
    if shape not in _RIGHT_SHAPES:
        errors = sorted(_validator(definition).iter_errors(_as_json(row)), key=lambda error: str(error.absolute_path))
        if errors:
            return list(chain.from_iterable(messages_of(error) for error in errors))
        if len(_RIGHT_SHAPES) < _MOST_SHAPES:
            _RIGHT_SHAPES.add(shape)
    return list(_errors_beyond_the_schema(row))


def _shape(value: Any, key: str | None = None) -> Any:
    """All that the schema looks at in a value: rows of one shape are right or wrong together, and most rows share a few."""
    if isinstance(value, str):
        return value if key in _TELLING_KEYS else (str, value != "", value == "" or value.isspace())
    if isinstance(value, Mapping):
        return dict if key == "metadata" else tuple((name, _shape(entry, name)) for name, entry in value.items())
    if isinstance(value, np.ndarray) and value.dtype.kind == "O":
        value = value.tolist()
    if isinstance(value, np.ndarray):
        numbers = value.dtype.kind in "iuf" and value.size > 0
        whole = numbers and bool((value % 1 == 0).all())
        return np.ndarray, value.dtype, value.ndim, value.size > 0, bool(numbers and value.min() >= 0), whole
    if isinstance(value, list | tuple):
        kinds = frozenset(map(type, value))
        if kinds <= {int, float}:
            whole = float not in kinds or all(entry % 1 == 0 for entry in value)
            return list, kinds, bool(value) and min(value) >= 0, whole
        if kinds == {list} and set(map(type, chain.from_iterable(value))) <= {int, float}:
            return list, min(len(value), 2), all(value), _shape(list(chain.from_iterable(value)))
        return list, min(len(value), 2), frozenset(_shape(entry, key) for entry in value)
    if isinstance(value, int | float):
        return type(value), value > 0, value >= 0, value >= 1, value <= _MOST_SECONDS, value % 1 == 0
    return type(value), bool(value)


def _errors_beyond_the_schema(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a schema cannot say."""
    for mapping, key, place in recordings_of(row):
        if isinstance(mapping[key], Mapping):
            yield from _recording_errors(mapping[key], place)
    targets = row.get("targets")
    if isinstance(targets, Mapping) and "acoustic_codes" in targets:
        codes = targets["acoustic_codes"]
        if isinstance(codes, list | tuple) and len(sizes := _sizes(codes)) > 1:
            yield "targets.acoustic_codes", f"has {_listed(sizes)}; accepted is the same at every position"
    if "messages" in row and row["messages"][-1]["role"] != "assistant":
        yield (
            f"messages[{len(row['messages']) - 1}].role",
            f"is {row['messages'][-1]['role']!r}; the last turn must be of the 'assistant', whose words are learned",
        )


def _recording_errors(value: Mapping[str, Any], place: str) -> Iterator[tuple[str, str]]:
    start, end = value.get("start", 0), value.get("end", _MOST_SECONDS)
    for name, seconds in (("start", start), ("end", end)):
        if seconds != seconds:
            yield f"{place}.{name}", f"is {seconds}; accepted is a number of seconds"
    if end <= start:
        yield f"{place}.end", f"is {end}; accepted is more than `start`, {start}"
    if "array" in value:
        if segment := [f"`{name}`" for name in ("start", "end") if name in value]:
            yield (
                place,
                f"has {' and '.join(segment)} beside `array`; they are for `path` and `bytes`, slice the array",
            )
        array = value["array"]
        if isinstance(array, list | tuple):
            if (sizes := _sizes(array)) != {0} and len(array) != 1:
                yield f"{place}.array", f"has {_listed(sizes)}; accepted is mono, [samples] or [1, samples]"
            elif set(map(type, array if sizes == {0} else array[0])) == {int}:
                yield f"{place}.array", "is a list of whole numbers; accepted are samples in floating point"


def _sizes(values: Sequence[Any]) -> set[int]:
    """The lengths of the lists among `values`, and 0 if there are numbers among them."""
    kinds = set(map(type, values))
    if not kinds & {list, tuple, np.ndarray}:
        return {0}
    return {len(entry) if isinstance(entry, list | tuple | np.ndarray) else 0 for entry in values}


def _listed(sizes: set[int]) -> str:
    return " and ".join(f"lists of {size}" if size else "numbers" for size in sorted(sizes))


def _as_json(value: Any) -> Any:
    """`value` with what JSON lacks replaced by its counterpart; only its kind and length are looked at."""
    if isinstance(value, Mapping):
        return {key: _as_json(entry) for key, entry in value.items()}
    if isinstance(value, bytes | bytearray):
        return "bytes" if value else ""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_as_json(entry) if isinstance(entry, _NOT_PLAIN) else entry for entry in value]
    return value


@functools.cache
def _schema() -> dict[str, Any]:
    return json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))


@functools.cache
def _validator(definition: str) -> Any:
    """A validator of one definition, with its references resolved once and long lists of numbers checked at once."""
    from jsonschema import Draft202012Validator, ValidationError, validators

    def items(validator, schema, values, whole):
        if isinstance(values, list) and not _are_numbers(values, schema):
            for index, value in enumerate(values):
                yield from validator.descend(value, schema, path=index)

    def required(validator, names, value, schema):
        if validator.is_type(value, "object") and any(name not in value for name in names):
            yield ValidationError("required")

    keywords = {"items": items, "required": required}
    return validators.extend(Draft202012Validator, keywords)(_inlined(_schema()["$defs"][definition]))


def _are_numbers(values: list, schema: Mapping[str, Any]) -> bool:
    """Whether `values` are a flat list of the numbers that `schema` wants; if not, the errors are still to be found."""
    kinds = schema.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds or []
    if "integer" not in kinds and "number" not in kinds:
        return False
    is_right = set(map(type, values)) <= ({int} if "integer" in kinds else {int, float})
    return is_right and ("minimum" not in schema or not values or min(values) >= schema["minimum"])


def _inlined(value: Any) -> Any:
    if isinstance(value, list):
        return [_inlined(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    value = {key: _inlined(entry) for key, entry in value.items()}
    reference = value.pop("$ref", None)
    if reference is None:
        return value
    return {**_inlined(_schema()["$defs"][reference.removeprefix("#/$defs/")]), **value}


def _audio_errors(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for mapping, key, place in recordings_of(row):
        value = mapping[key]
        if isinstance(value, str):
            value = {"path": value}
            if key == "speaker" and not os.path.isfile(value["path"]):
                continue  # a name, as the schema allows
        if isinstance(value, Mapping) and "array" not in value:
            content = value.get("bytes")
            if content is None and value["path"].startswith(("http://", "https://", "data:")):
                continue
            problem = _file_problem(value["path"]) if content is None else _head_problem(bytes(content))
            if isinstance(problem, str):
                yield place, problem
            elif value.get("end", 0) > problem + 1e-3 or value.get("start", 0) >= problem:
                segment = f"{value.get('start', 0)} to {value.get('end', problem)} s"
                yield place, f"names the segment {segment} of a recording of {problem:.3f} s"


@functools.lru_cache(maxsize=1024)
def _file_problem(path: str) -> str | float:
    """As `_head_problem`; a long file with many segments is opened once."""
    if not os.path.isfile(path):
        return f"names the file {path!r}, which does not exist"
    return _head_problem(path)


def _head_problem(source: str | bytes) -> str | float:
    """What is wrong with a recording, or its length in seconds."""
    import soundfile

    name = repr(source) if isinstance(source, str) else "the given bytes"
    try:
        info = soundfile.info(source if isinstance(source, str) else io.BytesIO(source))
    except soundfile.LibsndfileError as error:
        return f"cannot be read as audio: {name} ({error})"
    if info.channels != 1:
        return f"is {name} with {info.channels} channels; accepted is mono"
    return info.frames / info.samplerate if info.frames else f"is {name}, which is empty"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 if there are errors, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m dualspeech.training.validate_rows",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", help="files or folders of rows")
    parser.add_argument("--kind", choices=KINDS, help="the kind that all rows must have")
    parser.add_argument("--audio-root", help="folder where relative paths of audio start; that of the file by default")
    parser.add_argument("--check-audio", action="store_true", help="also open every recording")
    parser.add_argument("--json", action="store_true", help="print the errors as a JSON list")
    options = parser.parse_args(arguments)
    errors = []
    for file in options.files:
        try:
            errors += validate_rows(file, options.kind, options.audio_root, options.check_audio)
        except (ValueError, OSError) as error:
            errors.append(RowError(file, 0, "", str(error)))
    if options.json:
        print(json.dumps([dataclasses.asdict(error) for error in errors], indent=2, ensure_ascii=False))
    else:
        for error in errors:
            print(error)
    print(f"{len(errors)} errors in {', '.join(options.files)}", file=sys.stderr)
    return int(bool(errors))


__all__ = ["KINDS", "SCHEMA_FILE", "RowError", "check_rows", "read_rows", "recordings_of", "validate_rows"]


if __name__ == "__main__":
    sys.exit(main())
