"""Training data of the scripts: files of raw rows or folders of token rows, mixed by weights or by passes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from transformers import TrainingArguments

from ..processing.audio import load_audio
from .mixtures import check_columns, mix_datasets, parse_weights
from .packing import PackedDataset
from .token_rows import num_rows, stage_parts
from .validate_rows import check_rows, read_rows

# Rows are encoded together this many at a time.
ENCODE_BATCH_SIZE = 16
# Columns of token rows that say where they come from; nothing is learned from them.
PROVENANCE = ("id", "metadata", "source")


@dataclass
class DataArguments:
    """Arguments of the scripts that train on token rows."""

    train_data: str | None = field(
        default=None,
        metadata={
            "help": "a file of raw rows (JSON Lines), or a folder of Parquet shards of token rows; several as "
            "name=path,name=path",
            "aliases": ["--train_file"],
        },
    )
    eval_data: str | None = field(
        default=None, metadata={"help": "the same, for evaluation", "aliases": ["--eval_file"]}
    )
    weights: str | None = field(
        default=None,
        metadata={
            "help": "name=weight,...: how often a row is drawn from each part of the data",
            "aliases": ["--task_weights"],
        },
    )
    passes: str | None = field(
        default=None,
        metadata={
            "help": "instead of weights, name=number,...: how often each part is seen in an epoch, also 0.1 times"
        },
    )
    packing: bool = field(
        default=False, metadata={"help": "several examples in one sequence of at most context_length, without padding"}
    )
    context_length: int | None = field(
        default=None,
        metadata={
            "help": "longest accepted example, and the length of packed sequences; by default train_moss_speech accepts "
            "what its model has positions for"
        },
    )
    resample: bool = field(default=False, metadata={"help": "convert recordings of other rates"})
    tiny_rows: int = field(default=64, metadata={"help": "rows of generated training data without train_data"})

    def __post_init__(self):
        if self.packing and self.context_length is None:
            raise ValueError("`packing` needs `context_length`, the length of packed sequences")
        self.weights, self.passes = self.weights or None, self.passes or None  # an empty text takes away a recipe's
        if self.weights is not None and self.passes is not None:
            raise ValueError(
                f"`weights` {self.weights!r} and `passes` {self.passes!r} exclude each other; give one of them, and an "
                "empty text for the other if the recipe has it"
            )


def parse_sources(text: str) -> dict[str, str]:
    """
    `"speech=rows/speech,text=rows/text"` as paths by name; a path without a name is called by its last part.

    Raises:
        ValueError: an empty entry, or a name twice.
    """
    sources: dict[str, str] = {}
    for entry in text.split(","):
        name, equals, path = (part.strip() for part in entry.partition("="))
        if not equals:
            name, path = Path(name).stem, name
        if not name or not path or name in sources:
            raise ValueError(f"data {text!r}: {entry.strip()!r} is not accepted; write name=path, each name once")
        sources[name] = path
    return sources


def encode_rows(
    rows: Sequence[Mapping[str, Any]],
    encode: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
    batch_size: int = ENCODE_BATCH_SIZE,
) -> Dataset:
    """
    Raw rows as token rows, in their order, each with its `length`.

    Args:
        rows: raw rows; `source`, if any, names the row in errors and is kept.
        encode: rows to as many examples (`input_ids`, `labels`, ...).

    Raises:
        ValueError: a row that cannot be encoded, with its place.
    """
    examples = []
    for start in range(0, len(rows), batch_size):
        batch = [dict(row) for row in rows[start : start + batch_size]]
        places = [row.pop("source", f"row {start + i + 1}") for i, row in enumerate(batch)]
        try:
            encoded = encode(batch)
        except ValueError:
            encoded = [_encode_one(encode, row, place) for row, place in zip(batch, places, strict=True)]
        examples += [{**example, "source": place} for example, place in zip(encoded, places, strict=True)]
    return dataset_of([{**example, "length": len(example["input_ids"])} for example in examples])


def dataset_of(rows: Sequence[Mapping[str, Any]]) -> Dataset:
    """A data set with the columns of all rows; `Dataset.from_list` takes those of the first."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})


def _encode_one(encode, row: dict[str, Any], place: str) -> dict[str, Any]:
    try:
        return encode([row])[0]
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def load_source(
    path: str | Path,
    encode: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
    kind: str | None = None,
    check: Callable[..., None] | None = None,
) -> Dataset:
    """
    Token rows of one source: a folder of Parquet shards of token rows as it is; raw rows checked and encoded.

    Args:
        encode: see `encode_rows`.
        kind: of raw rows, see `check_rows`.
        check: looks at the token rows, called as `check(rows, name=file)` for each shard and for the file of raw rows;
            see `example_checks`.

    Raises:
        ValueError: no rows, or bad ones, with their places; see `token_shards` for folders.
    """
    if (shards := token_shards(path)) is None:
        check_rows(path, kind=kind)
        data = encode_rows(read_rows(path), encode)
        shards, counts = [str(path)], [len(data)]
    else:
        counts = [num_rows(shard) for shard in shards]
        if not any(counts):
            raise ValueError(f"data {str(path)!r} has no rows")
        data = _read_shards(path, shards)
    stops = np.cumsum(counts).tolist()
    for shard, count, stop in zip(shards, counts, stops, strict=True):
        if check is not None and count:
            check(data.select(range(stop - count, stop)), name=shard)
    return data


def _read_shards(path: str | Path, shards: list[str]) -> Dataset:
    import pyarrow
    import pyarrow.parquet as pq
    from datasets.exceptions import DatasetGenerationError

    try:
        return Dataset.from_parquet(shards)
    except (DatasetGenerationError, pyarrow.ArrowException) as error:
        for shard in shards:  # the error does not say which
            try:
                with pq.ParquetFile(shard) as file:
                    for _ in file.iter_batches():
                        pass
            except (pyarrow.ArrowException, OSError) as found:
                raise ValueError(f"{shard!r} cannot be read as Parquet: {found}") from found
        reason = error.__cause__ or error
        raise ValueError(f"the shards in {str(path)!r} do not fit each other: {reason}") from error


def token_shards(path: str | Path) -> list[str] | None:
    """The Parquet shards of a folder of token rows in the order of their names, `None` if it holds something else.

    Raises:
        ValueError: token rows without labels, shards with different columns, a file that cannot be read, or a stage of
            data preparation that is not finished or lacks a part.
    """
    import pyarrow.parquet

    if (Path(path) / "manifest.json").is_file():
        shards = stage_parts(path)
    else:
        shards = sorted(str(shard) for shard in Path(path).glob("*.parquet")) if Path(path).is_dir() else []
    for shard in shards:
        num_rows(shard)
    names = {shard: set(pyarrow.parquet.read_schema(shard).names) for shard in shards}
    columns = names[shards[0]] if shards else set()
    if not any("input_ids" in found for found in names.values()):
        return None
    for shard, found in names.items():
        if found != columns:
            raise ValueError(
                f"{shard!r} has the columns {sorted(found)}, {shards[0]!r} has {sorted(columns)}; shards of one folder need "
                "the same"
            )
    if "labels" not in columns:
        raise ValueError(f"data {str(path)!r} has no column 'labels'; it has {sorted(columns)}")
    return shards


def join(parts: Mapping[str, Dataset], seed: int, weights: str | None = None, passes: str | None = None) -> Dataset:
    """
    One data set of named parts: drawn by weight (see `mix_datasets`), or each as often as `passes` says, or each once.
    The columns that say where rows come from are left out unless all parts have them.

    Args:
        weights, passes: `"name=number,..."`; at most one of them.

    Raises:
        ValueError: parts with different columns, a part without a number, a number without a part, a number that is not
            accepted, or passes that leave no row.
    """
    kept = set.intersection(*(set(part.column_names) for part in parts.values()))
    parts = {
        name: part.remove_columns(
            [column for column in PROVENANCE if column in part.column_names and column not in kept]
        )
        for name, part in parts.items()
    }
    check_columns(parts)
    if weights is not None:
        return mix_datasets(parts, _numbers(weights, parts, "weights"), seed)
    numbers = dict.fromkeys(parts, 1.0) if passes is None else _numbers(passes, parts, "passes")
    repeated = [repeat(part, numbers[name], seed + place) for place, (name, part) in enumerate(parts.items())]
    if not any(map(len, repeated)):
        sizes = {name: len(part) for name, part in parts.items()}
        raise ValueError(f"`passes` {passes!r} leave no row of parts with {sizes} rows; give larger numbers")
    return concatenate_datasets([part for part in repeated if len(part)])


def _numbers(text: str, parts: Mapping[str, Dataset], name: str) -> dict[str, float]:
    numbers = parse_weights(text)
    if set(numbers) != set(parts):
        raise ValueError(f"`{name}` {text!r} must name the parts of the data, which are {sorted(parts)}")
    if wrong := {part: number for part, number in numbers.items() if not 0 <= number < math.inf}:
        raise ValueError(f"`{name}` must be at least 0, got {wrong}")
    if not any(numbers.values()):
        raise ValueError(f"`{name}` {text!r} are all 0; at least one must be positive")
    return numbers


def repeat(data: Dataset, passes: float, seed: int) -> Dataset:
    """`data` as often as `passes` says; of a begun pass, rows drawn from `seed` without repetition."""
    whole = math.floor(passes)
    rest = round((passes - whole) * len(data))
    drawn = np.random.default_rng(seed).permutation(len(data))[:rest]
    places = np.concatenate([np.tile(np.arange(len(data)), whole), np.sort(drawn)]).astype(np.int64)
    return data.select(places)


def split_by(data: Dataset, column: str, names: Mapping[int, str]) -> dict[str, Dataset]:
    """The rows of each value of `column`, by the names of the values, in the order of `names`."""
    values = np.asarray(data[column])
    if unknown := sorted(set(values.tolist()) - set(names)):
        raise ValueError(f"column {column!r} has unknown values {unknown}; accepted are {sorted(names)}")
    places = {name: np.flatnonzero(values == value) for value, name in names.items()}
    return {name: data.select(rows) for name, rows in places.items() if len(rows)}


def recording_seconds(audio: Any) -> float:
    """Length of a recording in seconds, from the head of its file where it is one; see `load_audio` for the forms.

    Raises:
        ValueError: no recording.
    """
    if isinstance(audio, str | Path):
        audio = {"path": audio}
    if isinstance(audio, Mapping) and audio.get("path") is not None and audio.get("bytes") is None:
        import soundfile

        try:
            info = soundfile.info(str(audio["path"]))
        except soundfile.LibsndfileError as error:
            raise ValueError(f"`audio` {str(audio['path'])!r} cannot be read: {error}") from error
        end = info.duration if audio.get("end") is None else audio["end"]
        return end - (audio.get("start") or 0.0)
    samples, rate = load_audio(audio)
    return len(samples) / rate


def packed(data: Dataset, arguments: DataArguments, training: TrainingArguments) -> Any:
    """
    `data`, or with `packing` a [`PackedDataset`] of it.

    Raises:
        ValueError: packed sequences cannot be grouped by length.
    """
    if not arguments.packing:
        return data
    if training.train_sampling_strategy != "random":
        raise ValueError(
            f"`train_sampling_strategy` {training.train_sampling_strategy!r} does not go with `packing`; packed sequences "
            "are of about one length"
        )
    return PackedDataset(data, arguments.context_length, seed=training.seed)


__all__ = [
    "DataArguments",
    "dataset_of",
    "encode_rows",
    "join",
    "load_source",
    "packed",
    "parse_sources",
    "recording_seconds",
    "repeat",
    "split_by",
    "token_shards",
]
