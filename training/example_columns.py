"""Columns of token rows as flat arrays with their rows, and a collection of what is wrong with rows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

_SHOWN = 20
_KINDS = {0: "a number", 1: "a list of numbers", 2: "a list of lists of numbers"}


class RowProblems:
    """What is wrong with the rows of a data set, for one error at the end.

    Args:
        name: the argument that holds the rows.
    """

    def __init__(self, name: str):
        self.name = name
        self.num_rows = 0
        self._found: dict[int, tuple[str | None, list[str]]] = {}
        self._columns: list[str] = []
        self._start = 0
        self._sources: Any = None

    def count_rows(self, count: int, sources: Any = None) -> None:
        """The next `count` rows are looked at; `sources` says where they come from."""
        self._start, self._sources = self.num_rows, sources
        self.num_rows += count

    def add_column(self, message: str) -> None:
        """Something is wrong with a column; said once."""
        if message not in self._columns:
            self._columns.append(message)

    def add(self, row: int, source: str | None, message: str) -> None:
        """Something is wrong with row `row`, counted from 0."""
        self._found.setdefault(row, (source, []))[1].append(message)

    def add_row(self, row: Mapping[str, Any], messages: Iterable[str]) -> None:
        """The next row is looked at, and this is wrong with it."""
        self.count_rows(1)
        for message in messages:
            self.add(self._start, row.get("source"), message)

    def add_in_batch(self, row: int, message: str) -> None:
        """Something is wrong with row `row` of the rows counted last."""
        self.add(self._start + row, None if self._sources is None else self._sources[row].as_py(), message)

    def add_rows(self, is_wrong: np.ndarray, message: str, values: np.ndarray | None = None) -> None:
        """The same for all rows where `is_wrong` [rows] is true; `values` [rows] end the message."""
        for row in np.flatnonzero(is_wrong).tolist():
            self.add_in_batch(row, message if values is None else f"{message} {values[row]}")

    def raise_if_any(self) -> None:
        """
        Raises:
            ValueError: there were no rows, or something is wrong with them.
        """
        if self._columns:
            raise ValueError(f"`{self.name}` has wrong columns: {'; '.join(self._columns)}")
        if not self.num_rows:
            raise ValueError(f"`{self.name}` has no rows; at least one is needed")
        if not self._found:
            return
        lines = []
        for row in sorted(self._found)[:_SHOWN]:
            source, messages = self._found[row]
            lines.append(f"  {f'{source} (row {row})' if source else f'row {row}'}: {'; '.join(messages)}")
        if len(self._found) > _SHOWN:
            lines.append(f"  and {len(self._found) - _SHOWN} more")
        head = f"`{self.name}`: {len(self._found)} of {self.num_rows} rows cannot be trained on:"
        raise ValueError("\n".join([head, *lines]))


@dataclass
class Column:
    """
    A column of a batch of rows.

    Attributes:
        name: its name.
        values: all numbers, flat.
        lengths: int64 `[rows]`, entries per row (1 in a column of numbers, 0 for a missing value).
        starts: int64 `[rows]`, where each row starts, in entries.
        inner_lengths: of a column of lists of lists, numbers per entry, `[entries]`.
    """

    name: str
    values: np.ndarray
    lengths: np.ndarray
    starts: np.ndarray
    inner_lengths: np.ndarray | None = None

    @classmethod
    def of(cls, table: pa.Table, name: str, depth: int, problems: RowProblems) -> "Column | None":
        """The column `name`, of numbers (`depth` 0), lists (1) or lists of lists (2); `None` if it is no such column, which
        is then one of the problems."""
        if name not in table.column_names:
            return None
        array = table.column(name).combine_chunks()
        lengths, inner = [], array
        while _is_list(inner.type):
            inner = inner.cast(pa.list_(inner.type.value_type)) if pa.types.is_fixed_size_list(inner.type) else inner
            lengths.append(inner.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64))
            inner = inner.flatten()
        is_number = pa.types.is_integer(inner.type) or pa.types.is_floating(inner.type) or pa.types.is_null(inner.type)
        if pa.types.is_null(array.type):  # missing values only
            zeros = np.zeros(len(array), dtype=np.int64)
            return cls(name, np.zeros(0, dtype=np.int64), zeros, zeros, zeros[:0] if depth == 2 else None)
        if len(lengths) != depth or not is_number:
            problems.add_column(f"`{name}` is {array.type}; accepted is {_KINDS[depth]}")
            return None
        if inner.null_count:
            problems.add_column(f"`{name}` holds null among its numbers")
            return None
        values = inner.to_numpy(zero_copy_only=False)
        if depth == 0:
            lengths = [np.ones(len(values), dtype=np.int64)]
        starts = np.cumsum(lengths[0]) - lengths[0]
        return cls(name, values, lengths[0], starts, lengths[1] if depth == 2 else None)

    def any_per_row(self, flags: np.ndarray, inner: bool = True) -> np.ndarray:
        """Whether one of the `flags` of a row is true, `[rows]`; they are per number, or without `inner` per entry."""
        counts = np.concatenate([[0], np.cumsum(flags)])
        starts, ends = self.starts, self.starts + self.lengths
        if inner and self.inner_lengths is not None:
            entries = np.concatenate([[0], np.cumsum(self.inner_lengths)])
            starts, ends = entries[starts], entries[ends]
        return counts[ends] > counts[starts]

    def report(self, is_wrong: np.ndarray, accepted: str, problems: RowProblems) -> None:
        """Report the first wrong number of each row; `is_wrong` is per number."""
        wrong = np.flatnonzero(is_wrong)
        if not len(wrong):
            return
        entries = wrong
        if self.inner_lengths is not None:
            entries = np.searchsorted(np.cumsum(self.inner_lengths), wrong, side="right")
        rows, first = np.unique(self._rows(entries), return_index=True)
        for row, index in zip(rows.tolist(), first.tolist(), strict=True):
            place = int(entries[index] - self.starts[row])
            number = self.values[wrong[index]].item()
            where = "" if self.lengths[row] == 1 and place == 0 else f" at position {place}"
            problems.add_in_batch(row, f"`{self.name}` holds {number}{where}; {accepted}")

    def report_rows(self, is_wrong: np.ndarray, accepted: str, problems: RowProblems) -> None:
        """Report rows with an entry that has the wrong number of numbers; `is_wrong` is per entry."""
        wrong = np.flatnonzero(is_wrong)
        if not len(wrong):
            return
        rows, first = np.unique(self._rows(wrong), return_index=True)
        flags, found = np.zeros(len(self.lengths), dtype=bool), np.zeros(len(self.lengths), dtype=np.int64)
        flags[rows], found[rows] = True, self.inner_lengths[wrong[first]]
        problems.add_rows(flags, f"`{self.name}`: {accepted}, has", found)

    def _rows(self, entries: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.starts + self.lengths, entries, side="right")


def tables_of(dataset: Any, needed: Sequence[str], batch_size: int, problems: RowProblems) -> Iterator[pa.Table]:
    """The rows of a data set or a list in tables of at most `batch_size` rows; columns that are missing are problems."""
    wanted = [*needed, "acoustic_labels", "source"]
    if hasattr(dataset, "column_names") and hasattr(dataset, "with_format"):
        names = dataset.column_names
        if names is None or not hasattr(dataset, "__len__"):
            raise ValueError("`dataset` is a stream; accepted is a data set with a length, or a list of rows")
        batches = dataset.select_columns([name for name in names if name in wanted]).with_format("arrow")
        batches = batches.iter(batch_size=batch_size) if len(dataset) else iter(())
    else:
        rows = list(dataset)
        names = sorted({name for row in rows for name in row})
        batches = _tables_of_rows(rows, [name for name in names if name in wanted], batch_size, problems)
    if missing := [name for name in needed if name not in names] if len(dataset) else []:
        problems.add_column(f"{', '.join(f'`{name}`' for name in missing)} missing, there are {', '.join(names)}")
    for table in batches:
        sources = table.column("source") if "source" in table.column_names else None
        problems.count_rows(table.num_rows, sources)
        yield table


def _tables_of_rows(rows: list, names: list[str], batch_size: int, problems: RowProblems) -> Iterator[pa.Table]:
    for start in range(0, len(rows), batch_size):
        columns = {}
        for name in names:
            values = [row.get(name) for row in rows[start : start + batch_size]]
            values = [value.tolist() if hasattr(value, "tolist") else value for value in values]
            try:
                columns[name] = pa.array(values)
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                problems.add_column(f"`{name}` has values of several kinds ({error})")
        if columns:
            yield pa.table(columns)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


__all__ = ["Column", "RowProblems", "tables_of"]
