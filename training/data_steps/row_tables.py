"""Rows as Arrow tables and back, and tables of one schema."""

import base64
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ...processing.audio import as_array, is_array_with_rate
from .step import Row

# Metadata of the field of a column that holds JSON texts because Arrow has no type for its values.
_JSON = {b"encoding": b"json"}

_NO_COMMON_TYPE = (
    pa.ArrowInvalid,
    pa.ArrowTypeError,
    pa.ArrowNotImplementedError,
    TypeError,
    ValueError,
    OverflowError,
)


def table_of_rows(rows: Sequence[Row]) -> pa.Table:
    """
    Rows as a table; a column that a row lacks is null there. Arrays and tensors become lists, a pair `(array, rate)`
    becomes `{"array", "sampling_rate"}`.

    A column whose values have no common Arrow type (texts and mappings, say) holds JSON texts, see `to_json`;
    `rows_of_table` reads them back.

    Raises:
        ValueError: a value that is no data (an object of some class), or rows that are all without entries.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    if rows and not names:
        raise ValueError("the rows have no entries; a table cannot count them")
    columns, fields = [], []
    for name in names:
        values = [row.get(name) for row in rows]
        column = _typed(values)
        if column is None:
            values = [None if value is None else to_json(value, name) for value in values]
            columns.append(pa.array(values, pa.string()))
            fields.append(pa.field(name, pa.string(), metadata=_JSON))
        else:
            columns.append(column)
            fields.append(pa.field(name, column.type))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def rows_of_table(table: pa.Table) -> list[Row]:
    """The rows of a table of `table_of_rows`."""
    rows = table.to_pylist()
    for name in json_columns(table.schema):
        for row in rows:
            row[name] = None if row[name] is None else json.loads(row[name])
    return rows


def json_columns(schema: pa.Schema) -> list[str]:
    """Names of the columns that hold JSON texts."""
    return [field.name for field in schema if _is_json(field)]


def common_schema(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """The schema that tables of `table_of_rows` can all take, see `with_schema`. Columns in order of appearance; a
    column that is null in one table has its type from another."""
    fields: dict[str, pa.Field] = {}
    for schema in schemas:
        for field in schema:
            fields[field.name] = _merged(fields[field.name], field) if field.name in fields else field
    return pa.schema(fields.values())


def with_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The same rows in columns of `schema`, which is a `common_schema` of the table's and others."""
    if table.schema.equals(schema, check_metadata=True):
        return table
    columns = []
    for field in schema:
        place = table.schema.get_field_index(field.name)
        if place < 0:
            columns.append(pa.nulls(len(table), field.type))
            continue
        column = table.column(place)
        if _is_json(field) and not _is_json(table.schema.field(place)):
            values = [None if value is None else to_json(value, field.name) for value in column.to_pylist()]
            column = pa.array(values, pa.string())
        elif column.type != field.type:
            column = pa.array(column.to_pylist(), field.type)
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)


def to_json(value: Any, name: str = "row", sort_keys: bool = False) -> str:
    """
    `value` as JSON, which UTF-8 can encode. Bytes are base64 under the key `bytes`, and `{"bytes": <base64>}` elsewhere;
    arrays are lists.

    Raises:
        ValueError: something in it is no data; `name` is its place in the message.
    """
    try:
        plain = _plain(value, for_json=True)
        text = json.dumps(plain, ensure_ascii=False, sort_keys=sort_keys)
        return text if is_utf8(text) else json.dumps(plain, sort_keys=sort_keys)
    except TypeError as error:
        raise ValueError(f"{name!r} cannot be stored: {error}") from error


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can encode `text`: it has no half of a pair of surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _typed(values: list[Any]) -> pa.Array | None:
    """`values` as one Arrow column that Parquet can store, `None` where there is no such type."""
    try:
        column = pa.array(values)
    except _NO_COMMON_TYPE:
        try:
            column = pa.array([_plain(value) for value in values])
        except _NO_COMMON_TYPE:
            return None
    # Arrow takes texts among bytes for bytes, and Parquet has no mapping without keys.
    if _has_type(column.type, pa.types.is_binary) and _has_text(values, column.type):
        return None
    if _has_type(column.type, lambda kind: pa.types.is_struct(kind) and not kind.num_fields):
        return None
    return column


def _plain(value: Any, for_json: bool = False) -> Any:
    if isinstance(value, Mapping):
        entries = {str(name): entry for name, entry in value.items()}
        return {
            name: base64.b64encode(entry).decode()
            if for_json and name == "bytes" and isinstance(entry, (bytes, bytearray))
            else _plain(entry, for_json)
            for name, entry in entries.items()
        }
    if is_array_with_rate(value):
        return _plain({"array": value[0], "sampling_rate": value[1]}, for_json)
    if isinstance(value, (list, tuple)):
        return [_plain(entry, for_json) for entry in value]
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return as_array(value).tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": base64.b64encode(value).decode()} if for_json else bytes(value)
    return value


def _has_type(kind: pa.DataType, test) -> bool:
    return test(kind) or any(_has_type(kind.field(i).type, test) for i in range(kind.num_fields))


def _has_text(values: list[Any], kind: pa.DataType) -> bool:
    """Whether there is a text where `kind` has bytes."""
    values = [value for value in values if value is not None]
    if pa.types.is_binary(kind):
        return any(isinstance(value, str) for value in values)
    if pa.types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        return any(_has_text([value.get(field.name) for value in values], field.type) for field in fields)
    if pa.types.is_list(kind):
        return any(_has_text(list(value), kind.value_type) for value in values)
    return False


def _is_json(field: pa.Field) -> bool:
    return (field.metadata or {}).get(b"encoding") == b"json"


def _merged(one: pa.Field, other: pa.Field) -> pa.Field:
    if one.equals(other, check_metadata=True):
        return one
    as_json = pa.field(one.name, pa.string(), metadata=_JSON)
    if _is_json(one) or _is_json(other):
        return as_json
    try:
        kind = pa.unify_schemas([pa.schema([one]), pa.schema([other])], promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return as_json
    # Permissive unification makes bytes of texts.
    return as_json if _mixes_texts_and_bytes(one.type, other.type) else pa.field(one.name, kind)


def _mixes_texts_and_bytes(one: pa.DataType, other: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_binary)
    if any(first(one) and second(other) for first, second in (tests, tests[::-1])):
        return True
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        shared = {one.field(i).name for i in range(one.num_fields)} & {
            other.field(i).name for i in range(other.num_fields)
        }
        return any(_mixes_texts_and_bytes(one.field(name).type, other.field(name).type) for name in shared)
    if pa.types.is_list(one) and pa.types.is_list(other):
        return _mixes_texts_and_bytes(one.value_type, other.value_type)
    return False


__all__ = ["common_schema", "is_utf8", "json_columns", "rows_of_table", "table_of_rows", "to_json", "with_schema"]
