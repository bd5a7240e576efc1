"""Files of rows: JSON Lines, JSON lists, Parquet and Arrow, each row with the place where it stands."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

ACCEPTED_FILES = ".jsonl, .jsonl.gz, .json, .parquet and .arrow, or a folder of one kind of them"
MAX_DEPTH = 64  # of objects and lists in each other, well below where recursion ends
_SIMPLE = {int, float, bool, type(None)}


@dataclass(frozen=True)
class Entry:
    """What stands at one place of a file: a row, or why it is none.

    Attributes:
        file: the file, as it was named.
        line: line of a text file, or number of the row in a table, counted from 1.
        row: the row without its null entries, which count as absent.
        error: why there is no row, else `None`.
    """

    file: str
    line: int
    row: dict[str, Any] | None = None
    error: str | None = None


def read_entries(path: str | Path) -> Iterator[Entry]:
    """
    The entries of a file, or of the files of a folder in the order of their names. A file that cannot be read to its end
    has an error as its last entry.

    Raises:
        ValueError: the path does not exist, is no file or folder of rows, or is the folder of a stage of preparation that
            is not finished or lacks a part.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"`path` {str(path)!r} does not exist; accepted are {ACCEPTED_FILES}")
    for file in _files_of(path):
        empty, line = True, 0
        try:
            for entry in _READERS[_ending(file)](file):
                empty, line = False, entry.line
                yield entry
        except (OSError, EOFError, ValueError, zlib.error, *_arrow_errors()) as error:
            yield Entry(str(file), line + 1, error=f"the file cannot be read from here on ({error})")
            continue
        if empty:
            yield Entry(str(file), 1, error="the file holds no rows")


def parse_line(path: str | Path, line: int, text: bytes) -> Entry:
    """
    The entry of one line of a JSON Lines file, as all readers of such files see it: UTF-8, no key twice, no NaN.

    Args:
        path, line: where it stands.
        text: the line, with or without its end.
    """
    try:
        row = _DECODER.decode(text.decode("utf-8-sig").strip())
    except json.JSONDecodeError as error:
        return Entry(str(path), line, error=f"no JSON: {error.msg} (column {error.colno})")
    except ValueError as error:
        return Entry(str(path), line, error=f"no JSON: {error}")
    except RecursionError:
        return Entry(str(path), line, error=_TOO_DEEP)
    return _entry(path, line, row)


def problem_of(row: Any) -> str | None:
    """
    Why a value is no row that can be stored: it is no object, is nested too deeply, or holds a text that UTF-8 cannot
    encode (half of a surrogate pair, as `"\\ud83d"` in JSON). `None` if it can.
    """
    if not isinstance(row, Mapping):
        return f"a row must be an object {{...}}, got {type(row).__name__}"
    return _problem_at(row, "", 1)


def without_nulls(value: Any) -> Any:
    """`value` without the entries of mappings that are `None`: tables fill them in where a row lacks a key."""
    if isinstance(value, Mapping):
        return {key: without_nulls(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list) and not _is_simple(value):
        return [without_nulls(entry) for entry in value]
    return value


def _ending(path: Path) -> str:
    name = path.name.lower()
    return ".jsonl.gz" if name.endswith(".jsonl.gz") else path.suffix.lower()


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        if _ending(path) not in _READERS:
            raise ValueError(f"`path` {str(path)!r} is no file of rows; accepted are {ACCEPTED_FILES}")
        return [path]
    if (path / "dataset_dict.json").is_file():
        splits = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        raise ValueError(f"`path` {str(path)!r} holds several splits; name the folder of one: {', '.join(splits)}")
    if (path / "state.json").is_file():  # what `Dataset.save_to_disk` writes
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        return [path / entry["filename"] for entry in state["_data_files"]]
    if _is_stage(path):
        from .token_rows import stage_parts  # with what it imports, for stages only

        files = [Path(part) for part in stage_parts(path)]
        # A part is empty where all its rows were rejected.
        if not (files := [file for file in files if _num_rows(file)]):
            raise ValueError(f"`path` {str(path)!r} is the folder of a stage without rows")
        return files
    files = sorted(entry for entry in path.iterdir() if entry.is_file() and _ending(entry) in _READERS)
    endings = sorted({_ending(file) for file in files})
    if len(endings) != 1:
        found = f"files of several kinds ({', '.join(endings)})" if endings else "no rows"
        raise ValueError(f"`path` {str(path)!r} is a folder with {found}; accepted are {ACCEPTED_FILES}")
    return files


def _is_stage(path: Path) -> bool:
    """Whether a folder holds the manifest of a stage of preparation, and no other file of that name."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(manifest, dict) and {"complete", "shards"} <= manifest.keys()


def _num_rows(path: Path) -> int:
    import pyarrow.parquet

    return pyarrow.parquet.read_metadata(path).num_rows


def _arrow_errors() -> tuple[type[Exception], ...]:
    import pyarrow

    return (pyarrow.ArrowException,)


def _read_json_lines(path: Path) -> Iterator[Entry]:
    with gzip.open(path, "rb") if _ending(path) == ".jsonl.gz" else path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield parse_line(path, number, line)


def _read_json_list(path: Path) -> Iterator[Entry]:
    """The entries of a list one by one, so that each has its line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        yield Entry(str(path), 1, error=f"no JSON: the file is not UTF-8 ({error})")
        return
    position, line = _skip(text, 0, 1)
    if text[position : position + 1] != "[":
        yield Entry(str(path), line, error="a .json file must be a list of rows; one row per line is .jsonl")
        return
    position, line = _skip(text, position + 1, line)
    following = "]" if text[position : position + 1] == "]" else ","
    while following == ",":
        try:
            row, end = _DECODER.raw_decode(text, position)
        except ValueError as error:
            shown = getattr(error, "lineno", line)
            yield Entry(str(path), shown, error=f"no JSON: {getattr(error, 'msg', error)}")
            return
        except RecursionError:
            yield Entry(str(path), line, error=_TOO_DEEP)
            return
        yield _entry(path, line, row)
        position, line = _skip(text, end, line + text.count("\n", position, end))
        following = text[position : position + 1]
        if following == ",":
            position, line = _skip(text, position + 1, line)
    if following != "]" or text[position + 1 :].strip():
        wanted = "',' or ']' behind a row" if following != "]" else "nothing behind the list"
        yield Entry(str(path), line, error=f"no JSON: expected {wanted}")


def _skip(text: str, position: int, line: int) -> tuple[int, int]:
    """The next position that is no white space, and its line."""
    while position < len(text) and text[position].isspace():
        line += text[position] == "\n"
        position += 1
    return position, line


def _entry(path: str | Path, line: int, row: Any) -> Entry:
    if problem := problem_of(row):
        return Entry(str(path), line, error=problem)
    return Entry(str(path), line, without_nulls(row))


def _problem_at(value: Any, place: str, depth: int) -> str | None:
    if isinstance(value, str):
        return None if _is_utf8(value) else f"`{_escaped(place)}` is {_shown(value)}, which UTF-8 cannot encode"
    if isinstance(value, Mapping):
        if depth > MAX_DEPTH:
            return _TOO_DEEP
        for key, entry in value.items():
            inside = f"{place}.{key}" if place else str(key)
            if not _is_utf8(inside):
                return f"the key `{_escaped(inside)}` holds what UTF-8 cannot encode"
            if problem := _problem_at(entry, inside, depth + 1):
                return problem
    elif isinstance(value, list | tuple) and not _is_simple(value):
        if depth > MAX_DEPTH:
            return _TOO_DEEP
        for number, entry in enumerate(value):
            if problem := _problem_at(entry, f"{place}[{number}]", depth + 1):
                return problem
    return None


def _is_simple(values: list | tuple) -> bool:
    """Whether these are numbers, or lists of numbers: the long ones, which are not to be looked at one by one."""
    kinds = set(map(type, values))
    return kinds <= _SIMPLE or (kinds == {list} and set(map(type, chain.from_iterable(values))) <= _SIMPLE)


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _escaped(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _shown(text: str) -> str:
    return f"a text with {next(letter for letter in text if not _is_utf8(letter))!a}"


def _read_parquet(path: Path) -> Iterator[Entry]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        yield from _table_entries(path, file.schema_arrow, file.iter_batches(batch_size=1000))


def _read_arrow(path: Path) -> Iterator[Entry]:
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        try:
            batches = pyarrow.ipc.open_stream(source)
        except pyarrow.ArrowInvalid:  # the file format; data sets write streams
            file = pyarrow.ipc.open_file(source)
            batches = (file.get_batch(i) for i in range(file.num_record_batches))
            yield from _table_entries(path, file.schema, batches)
        else:
            yield from _table_entries(path, batches.schema, batches)


def _table_entries(path: Path, schema, batches) -> Iterator[Entry]:
    # Columns of JSON texts, as stages of preparation mark them and as data sets store what has no type.
    as_json = [
        field.name
        for field in schema
        if (field.metadata or {}).get(b"encoding") == b"json"
        or getattr(field.type, "extension_name", None) == "arrow.json"
    ]
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            for name in as_json:
                row[name] = None if row[name] is None else _DECODER.decode(row[name])
            yield _entry(path, number, row)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return row


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


_TOO_DEEP = f"the row is nested too deeply; accepted are {MAX_DEPTH} objects and lists in each other"
_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)
_READERS = {
    ".jsonl": _read_json_lines,
    ".jsonl.gz": _read_json_lines,
    ".json": _read_json_list,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}


__all__ = ["ACCEPTED_FILES", "MAX_DEPTH", "Entry", "parse_line", "problem_of", "read_entries", "without_nulls"]
