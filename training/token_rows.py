"""Token rows for training: what `prepare_dualspeech` and `prepare_moss_speech` leave on disk."""

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, concatenate_datasets

from .data_steps.row_sources import finished_manifest, shard_name
from .data_steps.shards import load_rows

REQUIRED_COLUMNS = ("input_ids", "labels", "length", "source")


def load_token_rows(
    paths: str | os.PathLike | Sequence[str | os.PathLike], cache_dir: str | os.PathLike | None = None
) -> Dataset:
    """
    The token rows of one or several folders, one after the other, mapped from disk.

    Args:
        paths: folders of finished stages, see [`run_step`].
        cache_dir (*optional*): where `datasets` keeps its copy; its own cache by default.

    Raises:
        ValueError: no folder, one of something else, of a stage that is not finished or of which a part is missing or
            cannot be read, folders with different columns, or token rows of different processors.
    """
    folders = [Path(paths)] if isinstance(paths, (str, os.PathLike)) else [Path(path) for path in paths]
    if not folders:
        raise ValueError("`paths` is empty; at least one folder is needed")
    versions = [finished_manifest(folder)["step"].get("processor_version") for folder in folders]
    parts: list[Dataset] = []
    for folder, version in zip(folders, versions, strict=True):
        stage_parts(folder)
        part = load_rows(folder, cache_dir)
        if not len(part):
            raise ValueError(f"`paths`: {str(folder)!r} has no rows")
        if missing := [name for name in REQUIRED_COLUMNS if name not in part.column_names]:
            raise ValueError(
                f"`paths`: {str(folder)!r} holds no token rows: it lacks {missing} and has {part.column_names}"
            )
        if parts and set(part.column_names) != set(parts[0].column_names):
            raise ValueError(
                f"`paths`: {str(folder)!r} has the columns {part.column_names}, {str(folders[0])!r} has "
                f"{parts[0].column_names}"
            )
        if version != versions[0]:
            raise ValueError(
                f"`paths`: {str(folder)!r} and {str(folders[0])!r} were made by different processors; make them with one"
            )
        parts.append(part)
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def stage_parts(folder: str | os.PathLike) -> list[str]:
    """
    The Parquet files of a finished stage in the order of its rows, all there and as long as its manifest says.

    Raises:
        ValueError: the stage is not finished, or a part is missing, has other rows, cannot be read or is not listed.
    """
    folder = Path(folder)
    shards = finished_manifest(folder)["shards"]
    parts = [folder / shard_name("part", number) for number in range(len(shards))]
    advice = "Run the stage again"
    if missing := [part.name for part in parts if not part.is_file()]:
        raise ValueError(f"the stage in {str(folder)!r} lacks {missing[:5]}, which its manifest lists. {advice}")
    if others := sorted(part.name for part in set(folder.glob("*.parquet")) - set(parts)):
        raise ValueError(f"the stage in {str(folder)!r} has {others[:5]}, which its manifest does not list")
    for part, shard in zip(parts, shards, strict=True):
        count = num_rows(part)
        if count != shard["rows_out"]:
            raise ValueError(f"{str(part)!r} has {count} rows; the manifest says {shard['rows_out']}. {advice}")
    return [str(part) for part in parts]


def num_rows(shard: str | os.PathLike) -> int:
    """Rows of a Parquet file.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return pq.read_metadata(shard).num_rows
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{str(shard)!r} cannot be read as Parquet: {error}") from error


__all__ = ["REQUIRED_COLUMNS", "load_token_rows", "num_rows", "stage_parts"]
