"""Recordings as segments of one length, cut and scaled at random: the training data of neural codecs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from .recording_segments import RecordingSegments

TRAINING_PEAK = (-6.0, -1.0)  # dB of full scale
EVALUATION_PEAK = -3.0


class CodecSegments(RecordingSegments):
    """
    Recording rows as `input_values [1, num_samples]`, which the Trainer's default collator stacks.

    As in the training of Vocos and WavTokenizer: the recording is scaled so that its peak lies at a random level from -6
    to -1 dB of full scale, a shorter one is repeated, and a random segment is cut out. In evaluation the peak lies at
    -3 dB and the segment at the beginning. Silence stays silence. What is drawn can be repeated: see
    [`RecordingSegments`].

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
        super().__init__(rows, sampling_rate, training, seed, resample, channel)
        if num_samples < 1:
            raise ValueError(f"`num_samples` must be at least 1, got {num_samples}")
        self.num_samples = num_samples

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        audio = self.load(index)
        level, start = EVALUATION_PEAK, 0
        if self.training:
            draw = self.generator(index)
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
