"""Run a step on a Ray cluster."""

import os
from typing import Any

from tqdm.auto import tqdm

from .row_sources import RowSource, open_rows
from .runners import new_copy, run_shard
from .shards import StageFolder, StepResult
from .step import Step


def run_step_with_ray(
    step: Step,
    rows: Any,
    output_dir: str | os.PathLike,
    *,
    shard_size: int = 1000,
    concurrency: int | tuple[int, int] = 1,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    progress: bool = True,
    overwrite: bool = False,
    **ray_remote_args,
) -> StepResult:
    """
    As [`run_step`], with the same rows in the same files, by actors of `ray.data`. Ray must be initialised
    (`ray.init(...)`), or it starts a local one.

    Each actor sets the step up once and makes whole shards, so that there should be several shards per actor. Files of
    rows, recordings and `output_dir` must be on a file system that all nodes share; rows in memory are sent to each actor.

    Args:
        step, rows, output_dir, shard_size, progress, overwrite: see [`run_step`].
        concurrency: number of actors, or the least and the most.
        num_cpus, num_gpus: of an actor.
        ray_remote_args: further ones, see `ray.data.Dataset.map_batches`.

    Raises:
        ImportError: Ray is not installed (`pip install dualspeech[ray]`).
        ValueError: see [`run_step`].
    """
    import ray.data

    source = open_rows(rows)
    stage = StageFolder(output_dir, step, source, shard_size, overwrite)
    shards = stage.unfinished()
    hidden = None if progress else True
    with tqdm(total=stage.num_shards, initial=stage.num_shards - len(shards), disable=hidden, unit="shard") as bar:
        if shards:
            least, most = concurrency if isinstance(concurrency, tuple) else (concurrency, concurrency)
            numbers = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
            made = numbers.map_batches(
                _ShardMaker,
                fn_constructor_args=(new_copy(step), source, stage),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most),
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                **ray_remote_args,
            )
            for _ in made.iter_rows():
                bar.update()
    return stage.finish()


class _ShardMaker:
    """An actor: a step that is set up, and where its rows come from and go to."""

    def __init__(self, step: Step, source: RowSource, stage: StageFolder):
        self.step, self.source, self.stage = step, source, stage
        step.setup()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for shard in batch["shard"]:
            run_shard(self.step, self.source, self.stage, int(shard))
        return batch


__all__ = ["run_step_with_ray"]
