"""What the commands that prepare training data share: arguments, checks, and the summary."""

import argparse
import re
from collections import Counter
from collections.abc import Iterator

import pyarrow.parquet as pq

from .data_steps.row_sources import RowSource, UnreadableRow, open_rows, shard_name
from .data_steps.runners import run_step
from .data_steps.shards import StepResult
from .data_steps.step import Row, Step

_READ_AT_ONCE = 1000
_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every command, see [`prepare`]."""
    parser.add_argument("rows", help="file of rows (JSON Lines, JSON, Parquet) or folder of an earlier stage")
    parser.add_argument("--output", required=True, help="folder for the Parquet shards; resumed if it was interrupted")
    parser.add_argument("--resample", action="store_true", help="convert recordings of other rates")
    parser.add_argument("--num-workers", type=int, default=0, help="processes; 0 works in this one")
    parser.add_argument("--shard-size", type=int, default=1000, help="rows of the input per shard")
    parser.add_argument("--overwrite", action="store_true", help="start anew where the folder holds something else")
    parser.add_argument(
        "--strict", action="store_true", help="stop at rows that break the schema; 1 if any is rejected"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def add_processor_arguments(parser: argparse.ArgumentParser, max_length: int | None) -> None:
    """The arguments of commands that make token rows, see [`tokenization.TokenizeStep`]."""
    parser.add_argument("--processor", required=True, help="checkpoint of the processor, with its audio tokenizer")
    parser.add_argument("--revision", help="of the checkpoint, if it is a Hub repository")
    parser.add_argument(
        "--max-length",
        type=int,
        default=max_length,
        help="longest accepted row in ids; longer ones are rejected (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=16, help="rows that are encoded together; 1 is the fastest on a CPU"
    )
    parser.add_argument("--device", help="of the audio tokenizer; a GPU where there is one by default")
    parser.add_argument("--dtype", default="auto", help="of the audio tokenizer; that of the checkpoint by default")


def processor_arguments(options: argparse.Namespace) -> dict:
    """The arguments of a step of `tokenization`, from those of the command."""
    names = ("processor", "revision", "max_length", "batch_size", "device", "dtype", "resample")
    return {name: getattr(options, name) for name in names} | {"check_schema": True}


def prepare(step: Step, options: argparse.Namespace, kind: str) -> int:
    """
    Run a step as a command: check the rows, run, print what became of them.

    Args:
        step: a step that rejects rows which break the schema.
        options: of `add_arguments`.
        kind: of the rows, see `validate_rows`.

    Returns:
        The exit code: 1 if all rows were rejected, or with `strict` if one breaks the schema (nothing is run then) or
        was rejected; else 0.

    Raises:
        ValueError: see [`run_step`].
    """
    from .validate_rows import check_rows

    source = open_rows(options.rows)
    if options.strict:
        try:
            check_rows(_rows_of(source), kind)
        except ValueError as error:
            print(error)
            return 1
    result = run_step(
        step,
        source,
        options.output,
        shard_size=options.shard_size,
        num_workers=options.num_workers,
        progress=not options.quiet,
        overwrite=options.overwrite,
    )
    print("\n".join(summary(result)))
    return int(result.num_rows_out == 0 or (options.strict and result.num_rejected > 0))


def summary(result: StepResult) -> Iterator[str]:
    """Lines that say what became of the rows; reasons that differ in names and numbers only are counted together."""
    lengths = [
        length
        for part in sorted(result.folder.glob(shard_name("part", 0).replace("00000", "*")))
        if "length" in pq.read_schema(part).names
        for length in pq.read_table(part, columns=["length"])["length"].to_pylist()
    ]
    ids = f" of {sum(lengths)} ids, at most {max(lengths)}" if lengths else ""
    yield (
        f"{result.num_rows_in} rows in, {result.num_rows_out} rows out{ids}, {result.num_rejected} rejected: "
        f"{result.folder}"
    )
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for file in sorted((result.folder / "rejected").glob("rejected-*.parquet")):
        for entry in pq.ParquetFile(file).read(["source", "reason"]).to_pylist():
            reason = entry["reason"].removeprefix(f"{entry['source']}: ")
            reason = re.sub(r"'[^']*'|\S*[/\\]\S*|\d+(\.\d+)?", "_", reason)
            counts[reason] += 1
            first.setdefault(reason, f"{entry['source']}: {entry['reason']}")
    for reason, count in counts.most_common(_SHOWN):
        yield f"{count:8} x {first[reason]}"
    if len(counts) > _SHOWN:
        yield f"and {len(counts) - _SHOWN} other reasons"


def _rows_of(source: RowSource) -> Iterator[Row]:
    for start in range(0, len(source), _READ_AT_ONCE):
        for row in source.read(start, start + _READ_AT_ONCE):
            if isinstance(row, UnreadableRow):
                raise ValueError(f"{row.source}: {row.reason}")
            yield row


__all__ = ["add_arguments", "add_processor_arguments", "prepare", "processor_arguments", "summary"]
