"""Steps for the tests of the runners; run as a module, a slow one over a JSON Lines file."""

import multiprocessing
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from dualspeech.training.data_steps.runners import run_step
from dualspeech.training.data_steps.step import Rejection, Step


@dataclass
class Repeat(Step):
    """`text` as often as `times` says, in a row each; a row without text is refused, one of `times` 0 vanishes."""

    name = "repeat"
    batch_size = 4

    suffix: str = ""
    seconds: float = 0.0  # that a batch takes
    ready = False

    def setup(self):
        assert not self.ready, "set up twice"
        self.ready = True

    def process(self, rows):
        assert self.ready, "not set up"
        time.sleep(self.seconds)
        return [self.one(row) for row in rows]

    def one(self, row):
        if row.get("text") is None:
            raise ValueError(f"no text beside {sorted(name for name in row if row[name] is not None)}")
        if row["text"] == "":
            return Rejection("the text is empty")
        said = {"text": row["text"] + self.suffix, "source": row.get("source"), "note": row.get("note")}
        return [{**said, "copy": copy} for copy in range(row.get("times", 1))]


@dataclass
class Workers(Step):
    """The process that a row met, and how often it was set up."""

    name = "workers"
    batch_size = 1
    setups = 0

    def setup(self):
        self.setups += 1

    def process(self, rows):
        import torch

        process = multiprocessing.current_process().pid
        found = {"process": process, "setups": self.setups, "threads": torch.get_num_threads()}
        return [[{**row, **found}] for row in rows]


def texts(count):
    """Rows with texts that are missing, empty, said twice, or not at all."""
    rows = [{"text": f"text {number}"} for number in range(count)]
    for number, row in enumerate(rows):
        if number % 7 == 2:
            row["times"] = number % 4
        if number % 11 == 3:
            del row["text"]
        if number % 13 == 5:
            row["text"] = ""
        if number > 12:
            row["note"] = {"number": number}
    return rows


if __name__ == "__main__":
    source, folder, num_workers, seconds = sys.argv[1:]
    run_step(
        Repeat(seconds=float(seconds)),
        source,
        Path(folder),
        shard_size=10,
        num_workers=int(num_workers),
        progress=False,
    )
