"""Folders of stages: Parquet shards, the table of rejected rows beside them, and a manifest."""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from .row_sources import RowSource, UnreadableRow, finished_manifest, shard_name
from .row_tables import common_schema, json_columns, table_of_rows, to_json, with_schema
from .step import Outcome, Rejection, Row, Step

_VERSION = 1
# What a stage writes, and what is left of that when it is stopped.
_WRITTEN = re.compile(r"((part|rejected)-\d{5,}\.parquet|manifest\.json)(?P<temporary>\.\d+\.tmp)?")
_REJECTED = pa.schema([(name, pa.string()) for name in ("row", "source", "step", "reason")])


@dataclass(frozen=True)
class StepResult:
    """What a stage made: numbers of rows, and the folder where they are."""

    num_rows_in: int
    num_rows_out: int
    num_rejected: int
    folder: Path


class StageFolder:
    """
    The folder of one stage: the results of one step over the rows of one source.

    `part-00000.parquet` holds what became of the first `shard_size` rows of the source,
    `rejected/rejected-00000.parquet` those of them that were rejected, and so on; `manifest.json` says of which step and
    which source. A shard is done when its part exists: each file is complete from the moment it has its name. At the end
    all parts get the same schema.

    Args:
        folder: created if need be; one that holds something must hold a stage.
        step, source: of the stage.
        shard_size: rows of the source per shard.
        overwrite: remove what the folder holds of another stage instead of refusing it.

    Raises:
        ValueError: the folder holds a stage of other settings, other rows or another shard size, or something else,
            which is not removed in any case.
    """

    def __init__(
        self, folder: str | os.PathLike, step: Step, source: RowSource, shard_size: int, overwrite: bool = False
    ):
        if shard_size < 1:
            raise ValueError(f"`shard_size` is {shard_size}; at least 1 is needed")
        self.folder = Path(folder).absolute()
        self.num_rows, self.shard_size = len(source), shard_size
        self.num_shards = -(-self.num_rows // shard_size)
        # As they are read back.
        self.header = json.loads(
            json.dumps(
                {"version": _VERSION, "step": step.settings(), "input": source.fingerprint, "shard_size": shard_size}
            )
        )
        manifest = self._read_manifest()
        if manifest is None and (others := self._others()):
            raise ValueError(
                f"`output_dir` {str(folder)!r} is no folder of a stage and not empty: it has {others[:5]}"
            )
        if manifest is not None and not overwrite:
            found = {name: manifest.get(name) for name in self.header}
            if differences := list(_differences(found, self.header)):
                raise ValueError(
                    f"`output_dir` {str(folder)!r} holds a stage that was made otherwise: {'; '.join(differences)}. "
                    "Choose another folder, or give `overwrite`"
                )
        fits = manifest is not None and all(manifest.get(name) == value for name, value in self.header.items())
        (self.folder / "rejected").mkdir(parents=True, exist_ok=True)
        self._remove(only_temporary=fits and not overwrite)
        self.is_finished = fits and not overwrite and manifest["complete"]
        if not self.is_finished:
            self._write_manifest(complete=False, shards=[])

    def unfinished(self) -> list[int]:
        """Numbers of the shards that are to be made."""
        return [shard for shard in range(self.num_shards) if not self._path("part", shard).exists()]

    def limits(self, shard: int) -> tuple[int, int]:
        """The first row of a shard, and that behind the last one."""
        return shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_rows)

    def write(self, shard: int, rows: Sequence[Row | UnreadableRow], outcomes: Sequence[Outcome], step: str) -> None:
        """Store what became of the rows of a shard."""
        _write_table(table_of_rejected(rows, outcomes, step, self.limits(shard)[0]), self._path("rejected", shard))
        # The part comes last: it says that the shard is done.
        _write_table(table_of_rows(rows_of(outcomes)), self._path("part", shard))

    def finish(self) -> StepResult:
        """Give all parts the same schema and complete the manifest; again if that was interrupted."""
        parts = [self._path("part", shard) for shard in range(self.num_shards)]
        if not self.is_finished:
            schema = common_schema([pq.read_schema(part) for part in parts])
            for part in parts:
                if not pq.read_schema(part).equals(schema, check_metadata=True):
                    _write_table(with_schema(pq.ParquetFile(part).read(), schema), part)
            self._write_manifest(complete=True, shards=[self._numbers(shard) for shard in range(self.num_shards)])
            self.is_finished = True
        shards = self._read_manifest()["shards"]
        return StepResult(
            self.num_rows,
            sum(shard["rows_out"] for shard in shards),
            sum(shard["rejected"] for shard in shards),
            self.folder,
        )

    def _numbers(self, shard: int) -> dict[str, int]:
        start, stop = self.limits(shard)
        counts = {kind: pq.read_metadata(self._path(kind, shard)).num_rows for kind in ("part", "rejected")}
        return {"rows_in": stop - start, "rows_out": counts["part"], "rejected": counts["rejected"]}

    def _path(self, kind: str, shard: int) -> Path:
        return self.folder / shard_name(kind, shard)

    def _others(self) -> list[str]:
        """What a folder without a manifest holds, but for what a stage leaves that is stopped before its first one."""
        if not self.folder.exists():
            return []
        names = []
        for path in self.folder.iterdir():
            is_first = path.name.startswith("manifest.json.") and _WRITTEN.fullmatch(path.name)
            if not is_first and not (path.name == "rejected" and path.is_dir() and not any(path.iterdir())):
                names.append(path.name)
        return sorted(names)

    def _remove(self, only_temporary: bool) -> None:
        for folder in (self.folder, self.folder / "rejected"):
            for path in folder.iterdir():
                name = _WRITTEN.fullmatch(path.name)
                is_part = name and (name["temporary"] or (not only_temporary and path.name != "manifest.json"))
                if is_part and path.is_file():
                    path.unlink(missing_ok=True)

    def _read_manifest(self) -> dict[str, Any] | None:
        """The manifest, `None` if there is none of a stage."""
        path = self.folder / "manifest.json"
        if not path.is_file():
            return None
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return None
        return manifest if isinstance(manifest, dict) and set(self.header) <= set(manifest) else None

    def _write_manifest(self, complete: bool, shards: list[dict[str, int]]) -> None:
        manifest = {**self.header, "complete": complete, "shards": shards}
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        _write(self.folder / "manifest.json", lambda path: path.write_text(text, encoding="utf-8"))


def load_rows(folder: str | os.PathLike, cache_dir: str | None = None) -> Dataset:
    """
    The rows that a finished stage made, in the order of its input, mapped from disk. A column that a row lacks is `None`.

    Args:
        folder: of the stage.
        cache_dir (*optional*): where `datasets` keeps its copy; its own cache by default.

    Raises:
        ValueError: the folder is none of a stage, or the stage is not finished.
    """
    return load_parts(folder, "part", cache_dir)


def load_rejected(folder: str | os.PathLike, cache_dir: str | None = None) -> Dataset:
    """The rejected rows of a finished stage: `row` (the row as JSON), `source`, `step`, `reason`; see [`load_rows`]."""
    return load_parts(folder, "rejected", cache_dir)


def load_parts(folder: str | os.PathLike, kind: str, cache_dir: str | None = None) -> Dataset:
    """The files of one kind in the folder of a finished stage; see [`load_rows`]."""
    folder = Path(folder)
    parts = [folder / shard_name(kind, shard) for shard in range(len(finished_manifest(folder)["shards"]))]
    schema = pq.read_schema(parts[0]) if parts else pa.schema([])
    if not any(pq.read_metadata(part).num_rows for part in parts):
        return dataset_of_table(schema.empty_table())
    dataset = Dataset.from_parquet([str(part) for part in parts], cache_dir=cache_dir)
    return with_json_columns(dataset, schema)


def dataset_of_table(table: pa.Table) -> Dataset:
    """A data set in memory with the rows of a table of `table_of_rows`."""
    plain = pa.schema([pa.field(field.name, field.type) for field in table.schema])
    return with_json_columns(Dataset(table.cast(plain)), table.schema)


def with_json_columns(dataset: Dataset, schema: pa.Schema) -> Dataset:
    """`dataset` with values in place of JSON texts."""
    names = json_columns(schema)
    if names:
        from datasets import Json

        for name in names:
            dataset = dataset.cast_column(name, Json())
    return dataset


def rows_of(outcomes: Sequence[Outcome]) -> list[Row]:
    """The rows among `outcomes`."""
    return [row for outcome in outcomes if not isinstance(outcome, Rejection) for row in outcome]


def table_of_rejected(
    rows: Sequence[Row | UnreadableRow], outcomes: Sequence[Outcome], step: str, start: int = 0
) -> pa.Table:
    """The rejected among `rows`: the row as JSON, its `source` (its number, from `start`, without one), step, reason."""
    rejected = []
    for number, (row, outcome) in enumerate(zip(rows, outcomes, strict=True), start=start):
        if not isinstance(outcome, Rejection):
            continue
        if isinstance(row, UnreadableRow):
            entry = {"row": to_json(row.text), "source": row.source, "step": "read"}
        else:
            entry = {"row": _as_json(row), "source": str(row.get("source") or f"row {number}"), "step": step}
        entry["reason"] = outcome.reason
        rejected.append({name: text.encode("utf-8", "backslashreplace").decode() for name, text in entry.items()})
    return pa.Table.from_pylist(rejected, schema=_REJECTED)


def _as_json(row: Row) -> str:
    try:
        return to_json(row)
    except RecursionError:
        return json.dumps("the row is nested too deeply to be written")


def _differences(found: Any, given: Any, place: str = ""):
    if isinstance(found, Mapping) and isinstance(given, Mapping):
        for name in [*given, *(name for name in found if name not in given)]:
            yield from _differences(found.get(name), given.get(name), f"{place}.{name}" if place else name)
    elif found != given:
        yield f"{place} is {found!r} there and {given!r} here"


def _write_table(table: pa.Table, path: Path) -> None:
    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, table.schema, compression="zstd") as writer:
            if len(table):  # `datasets` does not read groups of no rows
                writer.write_table(table)

    _write(path, write)


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Complete or not at all, also when the machine stops."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    write(temporary)
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


__all__ = [
    "StageFolder",
    "StepResult",
    "dataset_of_table",
    "load_parts",
    "load_rejected",
    "load_rows",
    "rows_of",
    "table_of_rejected",
    "with_json_columns",
]
