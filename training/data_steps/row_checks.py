"""Rows that break the schema, as steps report them."""

from collections.abc import Mapping
from typing import Any

from ..validate_rows import validate_rows
from .step import Row


def check_row(row: Row, kind: str) -> None:
    """
    Raises:
        ValueError: `row_schema.json` does not allow the row as one of `kind`, see `validate_rows`.
    """
    if errors := validate_rows([row], kind):
        raise ValueError(
            "; ".join(f"`{error.path}` {error.message}" if error.path else error.message for error in errors)
        )


# Far below what functions that call themselves can follow.
MAX_DEPTH = 100


def check_storable(value: Any, depth: int = 0) -> None:
    """
    Raises:
        ValueError: a text in `value` that is not Unicode (JSON can say half of a pair of surrogates), or more than
            `MAX_DEPTH` levels.
    """
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"the text {value!r:.80} is not Unicode ({error.reason})") from error
    elif isinstance(value, (Mapping, list, tuple)):
        if depth >= MAX_DEPTH:
            raise ValueError(f"the row is nested in more than {MAX_DEPTH} levels")
        entries = [*value, *value.values()] if isinstance(value, Mapping) else value
        for entry in entries:
            if not isinstance(entry, (int, float)):
                check_storable(entry, depth + 1)


__all__ = ["MAX_DEPTH", "check_row", "check_storable"]
