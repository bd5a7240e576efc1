"""Rows that break the schema, as steps report them."""

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


__all__ = ["check_row"]
