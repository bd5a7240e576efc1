"""Recordings as segments that are cut at random: what the training data of codecs and vocoders share."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..processing.audio import load_audio


def load_row(
    row: Mapping[str, Any], index: int, sampling_rate: int, resample: bool = False, channel: int | None = None
) -> np.ndarray:
    """The recording `[S]` of a row with `audio`; errors name the row by its `source`, or by `index`.

    Raises:
        ValueError: no `audio`, or what [`load_audio`] raises.
    """
    try:
        if row.get("audio") is None:
            raise ValueError(f"a row needs 'audio'; this one has {sorted(row)}")
        return load_audio(row["audio"], sampling_rate, resample, channel)[0]
    except ValueError as error:
        raise ValueError(f"{row.get('source', f'row {index}')}: {error}") from error


class RecordingSegments(Dataset):
    """
    Base of data sets that cut segments out of recordings.

    What is drawn follows from the seed, the epoch and the place of the row alone, whatever the number of workers and
    processes, so that an interrupted training goes on exactly. Who trains tells the epoch with `set_epoch`; give the
    Trainer a [`DatasetEpochCallback`], which does so for several processes too.

    Args:
        rows: with `audio` each: what [`load_audio`] reads.
        sampling_rate: in Hz.
        training: random segments.
        seed: of the draws.
        resample: convert recordings of another rate instead of refusing them.
        channel: which channel to take of recordings that have several, instead of refusing them.

    Raises:
        ValueError: no rows; on access, a row that cannot be read, with its place.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        sampling_rate: int,
        training: bool = True,
        seed: int = 0,
        resample: bool = False,
        channel: int | None = None,
    ):
        if not len(rows):
            raise ValueError("`rows` must hold a recording at least, got none")
        self.rows, self.sampling_rate = rows, sampling_rate
        self.training, self.seed, self.resample, self.channel = training, seed, resample, channel
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()  # also seen by workers that live on

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw anew, as belongs to this epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, index: int) -> np.ndarray:
        """The whole recording `[S]` of a row."""
        return load_row(self.rows[index], index, self.sampling_rate, self.resample, self.channel)

    def generator(self, index: int) -> np.random.Generator:
        """What the draws of a row in this epoch come from."""
        return np.random.default_rng([self.seed, self.epoch, index])


__all__ = ["RecordingSegments", "load_row"]
