"""Steps of data preparation: rows in, rows or rejections out, the same object for every way of running it."""

import errno
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Rejection:
    """A row that a step could not use, and why."""

    reason: str


Outcome = list[Row] | Rejection


class Step(ABC):
    """
    One step: rows to rows. A row gives no, one or several rows, or a [`Rejection`] with a reason; it never vanishes.

    A step is a dataclass whose fields are plain JSON values (names of checkpoints, thresholds, seeds). Models are
    loaded in `setup`, once per process, so that a step can be pickled and sent to workers. What a step draws at random
    must follow from its fields and the row, not from the order of rows.

    ```python
    >>> @dataclass
    ... class Uppercase(Step):
    ...     name = "uppercase"
    ...     key: str = "text"
    ...
    ...     def process(self, rows):
    ...         return [[{**row, self.key: row[self.key].upper()}] for row in rows]
    >>> apply_step(Uppercase(), [{"text": "hello"}])
    [[{'text': 'HELLO'}]]
    ```
    """

    name: str
    # Rows that `process` gets at a time.
    batch_size: int = 16

    def setup(self) -> None:  # noqa: B027  (optional)
        """Load what cannot be pickled. Called once in each process, before the first `process`."""

    @abstractmethod
    def process(self, rows: Sequence[Row]) -> list[Outcome]:
        """One outcome per row. A `ValueError` says that a row of the batch is bad, anything else ends the run: see
        `apply_step`."""

    def settings(self) -> dict[str, Any]:
        """Everything that decides what the step makes, as JSON values: results are resumed only with the same."""
        if not is_dataclass(self):
            raise TypeError(f"{type(self).__name__} must be a dataclass or have `settings` of its own")
        return {"step": self.name, **{field.name: getattr(self, field.name) for field in fields(self) if field.init}}


def apply_step(step: Step, rows: Sequence[Row]) -> list[Outcome]:
    """
    `step.process(rows)`; a batch that is refused is halved until a bad row is rejected alone.

    Raises:
        RuntimeError: the step does not return one outcome per row.
        OSError: a failure of the machine (a full disk, a missing program), for which no row is to blame.
    """
    rows = list(rows)
    if not rows:
        return []
    try:
        outcomes = list(step.process(rows))
    except (ValueError, OSError) as error:
        # The one error of the system that a path in a row can cause.
        if isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG:
            raise
        if len(rows) == 1:
            return [Rejection(str(error) or type(error).__name__)]
        middle = len(rows) // 2
        return apply_step(step, rows[:middle]) + apply_step(step, rows[middle:])
    if len(outcomes) != len(rows):
        raise RuntimeError(f"step {step.name!r} returned {len(outcomes)} outcomes for {len(rows)} rows")
    return outcomes


def batches(rows: Sequence[Mapping[str, Any]], size: int) -> Iterator[list[Row]]:
    """`rows` in lists of at most `size`."""
    for start in range(0, len(rows), size):
        yield [dict(row) for row in rows[start : start + size]]


__all__ = ["Outcome", "Rejection", "Row", "Step", "apply_step", "batches"]
