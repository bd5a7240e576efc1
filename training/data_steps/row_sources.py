"""Where the rows of a stage come from, read by number: lists, data sets, JSON Lines files, earlier stages."""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from datasets import Audio, Dataset

from ...processing.audio import as_array
from ..row_files import Entry, parse_line, read_entries
from .row_audio import map_recordings, resolve_path
from .row_tables import rows_of_table, to_json
from .step import Row


@dataclass(frozen=True)
class UnreadableRow:
    """A line that holds no row, and why."""

    text: str
    source: str
    reason: str


class RowSource(ABC):
    """Rows by number. A source can be pickled and read in another process.

    Attributes:
        fingerprint: JSON values that change when the rows do.
    """

    fingerprint: dict[str, Any]

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abstractmethod
    def read(self, start: int, stop: int) -> list[Row | UnreadableRow]:
        """The rows `start` to `stop`, without `stop`."""


class ListRows(RowSource):
    """Rows in memory; those of a file may be unreadable."""

    def __init__(self, rows: Sequence[Mapping[str, Any] | UnreadableRow]):
        digest = hashlib.sha256()
        for number, row in enumerate(rows):
            if isinstance(row, UnreadableRow):
                row = {"source": row.source, "reason": row.reason}
            if not isinstance(row, Mapping):
                raise ValueError(f"`rows`: row {number} is {type(row).__name__}; accepted are mappings")
            try:
                digest.update(to_json(_with_digests(row), sort_keys=True).encode() + b"\n")
            except RecursionError as error:
                raise ValueError(f"`rows`: row {number} is nested too deeply") from error
        self.rows = rows
        self.fingerprint = {"kind": "list", "rows": len(rows), "sha256": digest.hexdigest()}

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, start: int, stop: int) -> list[Row | UnreadableRow]:
        return [row if isinstance(row, UnreadableRow) else dict(row) for row in self.rows[start:stop]]


class DatasetRows(RowSource):
    """The rows of a data set; recordings of its `Audio` columns as `{"bytes": ..., "path": ...}`, not decoded."""

    def __init__(self, dataset: Dataset):
        self.dataset = undecoded(dataset)
        self.fingerprint = {"kind": "dataset", "rows": len(dataset), "fingerprint": dataset._fingerprint}

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, start: int, stop: int) -> list[Row]:
        return self.dataset.select(range(start, min(stop, len(self)))).to_list()


class JsonLinesRows(RowSource):
    """The lines of a JSON Lines file. Each row gets the `source` "file:line"; one that it had goes to `metadata`. Empty
    lines are no rows.

    Paths of recordings may be relative to the folder of the file.
    """

    def __init__(self, path: str | os.PathLike):
        # "rows.jsonl" and "./rows.jsonl" are the same file.
        self.name = os.path.normpath(path)
        self.path = Path(path).absolute()
        self.offsets, self.numbers = array("Q"), array("Q")
        digest, offset = hashlib.sha256(), 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                digest.update(line)
                if line.strip():
                    self.offsets.append(offset)
                    self.numbers.append(number)
                offset += len(line)
        self.fingerprint = {
            "kind": "JSON Lines",
            "path": self.name,
            "rows": len(self.offsets),
            "sha256": digest.hexdigest(),
        }

    def __len__(self) -> int:
        return len(self.offsets)

    def read(self, start: int, stop: int) -> list[Row | UnreadableRow]:
        rows = []
        with self.path.open("rb") as file:
            for place in range(start, min(stop, len(self))):
                file.seek(self.offsets[place])
                line = file.readline()
                entry = parse_line(self.name, self.numbers[place], line)
                rows.append(_row_of(entry, str(self.path.parent), line.decode("utf-8", "replace").rstrip("\n")))
        return rows


class StageRows(RowSource):
    """The rows that an earlier stage made; see `run_step`."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder).absolute()
        manifest = finished_manifest(self.folder)
        self.starts = [0]
        for shard in manifest["shards"]:
            self.starts.append(self.starts[-1] + shard["rows_out"])
        digest = hashlib.sha256(to_json(manifest, sort_keys=True).encode()).hexdigest()
        self.fingerprint = {"kind": "stage", "rows": len(self), "sha256": digest}
        self._table = None

    def __len__(self) -> int:
        return self.starts[-1]

    def __getstate__(self):
        return self.__dict__ | {"_table": None}

    def read(self, start: int, stop: int) -> list[Row]:
        rows = []
        for shard, (first, behind) in enumerate(pairwise(self.starts)):
            if first < stop and start < behind:
                begin = max(start, first)
                rows += rows_of_table(self._shard(shard).slice(begin - first, min(stop, behind) - begin))
        return rows

    def _shard(self, shard: int):
        # Rows are read in order, a few at a time: the last shard is kept.
        if self._table is None or self._table[0] != shard:
            self._table = shard, pq.ParquetFile(self.folder / shard_name("part", shard)).read()
        return self._table[1]


def open_rows(rows: Any) -> RowSource:
    """
    Args:
        rows: a list of mappings, a data set, the path of a JSON Lines file, the folder of an earlier stage, or the path
            of something else that `read_entries` reads, which is held in memory.

    Raises:
        ValueError: something else, a path that does not exist, or a stage that is not finished.
    """
    if isinstance(rows, RowSource):
        return rows
    if isinstance(rows, Dataset):
        return DatasetRows(rows)
    if isinstance(rows, (str, os.PathLike)):
        if (Path(rows) / "manifest.json").is_file():
            return StageRows(rows)
        if Path(rows).is_file() and Path(rows).suffix.lower() == ".jsonl":
            return JsonLinesRows(rows)
        entries = read_entries(os.path.normpath(rows))
        return ListRows([_row_of(entry, os.path.dirname(os.path.abspath(entry.file))) for entry in entries])
    if isinstance(rows, Sequence) and not isinstance(rows, (bytes, bytearray)):
        return ListRows(rows)
    raise ValueError(
        f"`rows` is {type(rows).__name__}; accepted are a list of mappings, a data set, the path of a file of rows and the "
        "folder of a stage"
    )


def _row_of(entry: Entry, folder: str, text: str = "") -> Row | UnreadableRow:
    """The row of an entry with its place as `source` and absolute paths, from `folder`."""
    source = f"{entry.file}:{entry.line}"
    if entry.error is not None:
        return UnreadableRow(text, source, entry.error)
    row = map_recordings(entry.row, partial(resolve_path, folder=folder))
    given, metadata = row.get("source"), row.get("metadata", {})
    if given is not None and given != source:
        if not isinstance(metadata, Mapping):
            return UnreadableRow(text, source, f"`metadata` is {metadata!r:.80}; accepted is an object")
        # What the row says of its origin stays, but names no row.
        row["metadata"] = {**metadata, "row_source" if "source" in metadata else "source": given}
    return {**row, "source": source}


def _with_digests(value: Any) -> Any:
    """`value` with digests for arrays, which are long as JSON."""
    if isinstance(value, Mapping):
        return {name: _with_digests(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_digests(entry) for entry in value]
    if isinstance(value, (np.ndarray, torch.Tensor)):
        values = np.ascontiguousarray(as_array(value))
        return [values.dtype.str, list(values.shape), hashlib.sha256(values).hexdigest()]
    return value


def undecoded(dataset: Dataset) -> Dataset:
    """`dataset` with its `Audio` columns as they are stored."""
    for name, feature in dataset.features.items():
        if isinstance(feature, Audio):
            dataset = dataset.cast_column(name, Audio(decode=False))
    return dataset


def shard_name(kind: str, shard: int) -> str:
    """The file of a shard in the folder of a stage; `kind` is `"part"` or `"rejected"`."""
    name = f"{kind}-{shard:05d}.parquet"
    # In a folder of its own: whoever reads all Parquet files of a folder gets the parts.
    return name if kind == "part" else f"{kind}/{name}"


def finished_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a stage.

    Raises:
        ValueError: the folder is none of a stage, or the stage is not finished.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise ValueError(f"{str(folder)!r} is no folder of a stage: it has no manifest.json")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    if not manifest["complete"]:
        raise ValueError(f"the stage in {str(folder)!r} is not finished; run it again to go on where it stopped")
    return manifest


__all__ = [
    "DatasetRows",
    "JsonLinesRows",
    "ListRows",
    "RowSource",
    "StageRows",
    "UnreadableRow",
    "finished_manifest",
    "open_rows",
    "shard_name",
    "undecoded",
]
