"""Recordings as segments of one length, cut and scaled at random: the training data of neural codecs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback

from ..processing.audio import load_audio

TRAINING_PEAK = (-6.0, -1.0)  # dB of full scale
EVALUATION_PEAK = -3.0


class CodecSegments(Dataset):
    """
    Recording rows as `input_values [1, num_samples]`, which the Trainer's default collator stacks.

    As in the training of Vocos and WavTokenizer: the recording is scaled so that its peak lies at a random level from -6
    to -1 dB of full scale, a shorter one is repeated, and a random segment is cut out. In evaluation the peak lies at
    -3 dB and the segment at the beginning. Silence stays silence.

    What is drawn follows from the seed, the epoch and the place of the row alone, whatever the number of workers and
    processes, so that an interrupted training goes on exactly. Who trains tells the epoch with `set_epoch`; give the
    Trainer a [`DatasetEpochCallback`], which does so for several processes too.

    Args:
        rows: with `audio` each: what [`load_audio`] reads.
        num_samples: of a segment.
        sampling_rate: in Hz.
        training: random segments and levels.
        seed: of the draws.
        resample: convert recordings of another rate instead of refusing them.
        channel: which channel to take of recordings that have several, instead of refusing them.

    Raises:
        ValueError: no rows, a length below 1; on access, a row that cannot be read, with its place.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        num_samples: int,
        sampling_rate: int = 24000,
        training: bool = True,
        seed: int = 0,
        resample: bool = False,
        channel: int | None = None,
    ):
        if not len(rows):
            raise ValueError("`rows` must hold a recording at least, got none")
        if num_samples < 1:
            raise ValueError(f"`num_samples` must be at least 1, got {num_samples}")
        self.rows, self.num_samples, self.sampling_rate = rows, num_samples, sampling_rate
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

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.rows[index]
        try:
            if row.get("audio") is None:
                raise ValueError(f"a row needs 'audio'; this one has {sorted(row)}")
            audio, _ = load_audio(row["audio"], self.sampling_rate, self.resample, self.channel)
        except ValueError as error:
            raise ValueError(f"{row.get('source', f'row {index}')}: {error}") from error
        level, start = EVALUATION_PEAK, 0
        if self.training:
            draw = np.random.default_rng([self.seed, self.epoch, index])
            level = draw.uniform(*TRAINING_PEAK)
            start = int(draw.integers(max(0, len(audio) - self.num_samples) + 1))
        peak = np.abs(audio).max()
        scale = np.float32(10 ** (level / 20) / peak if peak > 0 else 1.0)
        # a recording that is too short starts again
        segment = np.resize(audio, self.num_samples) if len(audio) < self.num_samples else audio[start:]
        return {"input_values": torch.from_numpy(scale * segment[: self.num_samples]).unsqueeze(0)}


class DatasetEpochCallback(TrainerCallback):
    """Tell the training data the epoch, where it has `set_epoch`. Accelerate does so on a single process only."""

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        dataset = getattr(train_dataloader, "dataset", None)
        if hasattr(dataset, "set_epoch"):
            # a resumed epoch has a fraction; a full one may have lost its last bit
            dataset.set_epoch(int((state.epoch or 0) + 1e-6))


__all__ = ["CodecSegments", "DatasetEpochCallback"]
