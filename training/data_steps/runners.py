"""Ways to run a step: in this process, in workers, and through `datasets.map`. All give the same rows."""

import dataclasses
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, Value, concatenate_datasets
from tqdm.auto import tqdm

from ..row_files import problem_of, without_nulls
from .row_sources import UnreadableRow, open_rows, undecoded
from .row_tables import common_schema, table_of_rows, with_schema
from .shards import StageFolder, StepResult, dataset_of_table, rows_of, table_of_rejected
from .step import Outcome, Rejection, Row, Step, apply_step

Items = list[Row | UnreadableRow]


def run_step(
    step: Step,
    rows: Any,
    output_dir: str | os.PathLike,
    *,
    shard_size: int = 1000,
    num_workers: int = 0,
    progress: bool = True,
    overwrite: bool = False,
) -> StepResult:
    """
    Run a step over rows and store what it makes: Parquet shards, rejected rows beside them, a manifest. See [`load_rows`].

    Interrupted at any moment, the same call goes on behind the last finished shard and gives the same files. A batch
    never reaches over the end of a shard: with the same `shard_size` and `step.batch_size` each row meets the same
    neighbours whatever the number of workers.

    Args:
        step: the step.
        rows: a list of mappings, a data set, the path of a file of rows (each row gets the `source` "file:line"; paths of
            recordings may be relative to the file), or the folder of an earlier stage. Lines that are no rows are rejected.
        output_dir: folder of the stage.
        shard_size: rows of the input per shard.
        num_workers: processes that work; 0 works in this one. They are spawned: a script that asks for them needs
            `if __name__ == "__main__":`. GPUs are dealt out to them in turn, as the current CUDA device.
        progress: show a progress bar.
        overwrite: start anew where the folder holds another stage.

    Raises:
        ValueError: rows that cannot be read, or a folder with a stage of other settings or other rows.
        Others: what the step raises besides `ValueError`, which rejects rows; an `OSError` is a failure of the machine.
    """
    if num_workers < 0:
        raise ValueError(f"`num_workers` is {num_workers}; at least 0 is needed")
    source = open_rows(rows)
    stage = StageFolder(output_dir, step, source, shard_size, overwrite)
    shards = stage.unfinished()
    todo = sum(stop - start for start, stop in map(stage.limits, shards))
    hidden = None if progress else True
    with tqdm(total=len(source), initial=len(source) - todo, disable=hidden, desc=step.name, unit="row") as bar:
        if shards:
            with _applied(step, num_workers) as apply:
                batches = _batches(source, stage, shards, step.batch_size)
                _store(stage, step.name, apply(batches), bar)
    return stage.finish()


def run_steps(steps: Sequence[Step], rows: Any, output_dir: str | os.PathLike, **kwargs) -> list[StepResult]:
    """
    Steps one after the other, each a stage of [`run_step`] that reads what the one before it made.

    The folders in `output_dir` are `00-<name>`, `01-<name>` and so on; `kwargs` go to `run_step`.
    """
    results: list[StepResult] = []
    for number, step in enumerate(steps):
        folder = Path(output_dir) / f"{number:02d}-{step.name}"
        results.append(run_step(step, results[-1].folder if results else rows, folder, **kwargs))
    return results


def map_dataset(step: Step, rows: Any, num_proc: int | None = None) -> tuple[Dataset, Dataset]:
    """
    Run a step through `datasets.map`, with its cache and its processes; the rows it makes and the rejected ones (see
    [`load_rejected`]), both in memory. `rows` are those of [`run_step`].

    With several processes, batches end where `datasets` divides the rows.
    """
    if not isinstance(rows, Dataset):
        return _map_rows(step, rows, num_proc)
    dataset = undecoded(rows)
    mapped = dataset.map(
        _MappedStep(step),
        batched=True,
        batch_size=step.batch_size,
        with_indices=True,
        num_proc=num_proc,
        remove_columns=dataset.column_names,
        features=Features({"rows": Value("large_binary"), "rejected": Value("large_binary")}),
        writer_batch_size=16,  # an entry holds the rows of a batch, with their recordings
        desc=step.name,
    )
    return tuple(dataset_of_table(_joined(mapped[name])) for name in ("rows", "rejected"))


def _map_rows(step: Step, rows: Any, num_proc: int | None) -> tuple[Dataset, Dataset]:
    source = open_rows(rows)
    items = source.read(0, len(source))
    reasons = [item.reason if isinstance(item, UnreadableRow) else problem_of(item) for item in items]
    readable = [without_nulls(item) for item, reason in zip(items, reasons, strict=True) if reason is None]
    made, rejected = Dataset.from_list([]), None
    if readable:
        made, rejected = map_dataset(step, dataset_of_table(table_of_rows(readable)), num_proc)
    lost = [
        table_of_rejected([item], [Rejection(reason)], step.name, place)
        for place, (item, reason) in enumerate(zip(items, reasons, strict=True))
        if reason is not None
    ]
    if lost or rejected is None:
        others = dataset_of_table(pa.concat_tables([table_of_rejected([], [], step.name), *lost]))
        rejected = others if not rejected else concatenate_datasets([rejected, others])
    return made, rejected


def outcomes_of(step: Step, items: Items) -> list[Outcome]:
    """What becomes of rows: `apply_step`, and a rejection for those that could not be read or cannot be stored, see
    `problem_of`. Null entries count as absent, as tables fill them in."""
    reasons = [item.reason if isinstance(item, UnreadableRow) else problem_of(item) for item in items]
    rows = [without_nulls(item) for item, reason in zip(items, reasons, strict=True) if reason is None]
    made = iter(apply_step(step, rows))
    return [_storable(next(made)) if reason is None else Rejection(reason) for reason in reasons]


def _storable(outcome: Outcome) -> Outcome:
    problems = [] if isinstance(outcome, Rejection) else list(filter(None, map(problem_of, outcome)))
    return Rejection(f"the step made a row that cannot be stored: {problems[0]}") if problems else outcome


def new_copy(step: Step) -> Step:
    """The step as before `setup`: without what that loaded, so that it can be pickled."""
    return dataclasses.replace(step) if dataclasses.is_dataclass(step) else step


def run_shard(step: Step, source, stage: StageFolder, shard: int) -> None:
    """Make one shard, with a step that is set up."""
    items, outcomes = [], []
    for _, batch in _batches(source, stage, [shard], step.batch_size):
        items += batch
        outcomes += outcomes_of(step, batch)
    stage.write(shard, items, outcomes, step.name)


def _batches(source, stage: StageFolder, shards: Iterable[int], size: int) -> Iterator[tuple[int, Items]]:
    for shard in shards:
        first, behind = stage.limits(shard)
        for start in range(first, behind, size):
            yield shard, source.read(start, min(start + size, behind))


def _store(stage: StageFolder, step: str, results: Iterable[tuple[int, Items, list[Outcome]]], bar: tqdm) -> None:
    items, outcomes = [], []
    for shard, batch, made in results:
        items += batch
        outcomes += made
        bar.update(len(batch))
        first, behind = stage.limits(shard)
        if len(items) == behind - first:
            stage.write(shard, items, outcomes, step)
            items, outcomes = [], []


@contextmanager
def _applied(step: Step, num_workers: int) -> Iterator[Callable]:
    """A function from `(shard, rows)` to `(shard, rows, outcomes)`, in the same order."""
    if not num_workers:
        step = new_copy(step)  # what it loads goes with the stage
        step.setup()
        yield lambda batches: ((shard, items, outcomes_of(step, items)) for shard, items in batches)
        return
    context = multiprocessing.get_context("spawn")
    arguments = (new_copy(step), num_workers, context.Value("i", 0))
    pool = ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=arguments)
    try:
        yield lambda batches: _in_order(pool, batches, ahead=2 * num_workers)
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, batches: Iterable[tuple[int, Items]], ahead: int):
    waiting: deque = deque()
    for shard, items in batches:
        waiting.append((shard, items, pool.submit(_work, items)))
        if len(waiting) > ahead:
            shard, items, future = waiting.popleft()
            yield shard, items, future.result()
    for shard, items, future in waiting:
        yield shard, items, future.result()


_worker_step: Step | None = None


def _start_worker(step: Step, num_workers: int, counter) -> None:
    global _worker_step
    import torch

    threading.Thread(target=_end_with_parent, daemon=True).start()
    with counter.get_lock():
        rank = counter.value
        counter.value += 1
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_workers))
    if torch.cuda.is_available():
        torch.cuda.set_device(rank % torch.cuda.device_count())
    step.setup()
    _worker_step = step


def _end_with_parent() -> None:
    # A worker whose parent was killed would wait for work for ever.
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(items: Items) -> list[Outcome]:
    return outcomes_of(_worker_step, items)


class _MappedStep:
    """A batch of columns to one entry with the rows made of it, as Arrow: they need not have the types of others."""

    def __init__(self, step: Step):
        self.step, self.settings, self.is_ready = new_copy(step), step.settings(), False

    def __getstate__(self):
        # The cache of `datasets` goes by this.
        return {"step": new_copy(self.step), "settings": self.settings, "is_ready": False}

    def __call__(self, columns, indices: list[int]) -> dict[str, list[bytes]]:
        if not self.is_ready:
            self.step.setup()
            self.is_ready = True
        rows = [{name: columns[name][place] for name in columns} for place in range(len(indices))]
        outcomes = outcomes_of(self.step, rows)
        tables = {
            "rows": table_of_rows(rows_of(outcomes)),
            "rejected": table_of_rejected(rows, outcomes, self.step.name, indices[0]),
        }
        return {name: [_to_bytes(table)] for name, table in tables.items()}


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _joined(entries: Iterable[bytes]) -> pa.Table:
    tables = [pa.ipc.open_stream(entry).read_all() for entry in entries]
    schema = common_schema([table.schema for table in tables])
    return pa.concat_tables([with_schema(table, schema) for table in tables]) if tables else schema.empty_table()


__all__ = ["map_dataset", "new_copy", "outcomes_of", "run_shard", "run_step", "run_steps"]
