"""Recordings as segments of mel frames, f0 and samples: the training data of vocoders."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..configuration.configuration_hift import HiFTConfig
from ..modeling.audio_features import vocoder_log_mel
from .recording_segments import RecordingSegments


class VocoderSegments(RecordingSegments):
    """
    Recording rows as `mel [num_mel_bins, num_frames]`, `f0 [num_frames]` and `input_values [1, num_frames * hop]`, which
    the Trainer's default collator stacks.

    The mel frames are those that the flow decoder is trained on: [`vocoder_log_mel`] of the whole recording at the level
    that it has, of which a segment is taken. The segment begins at a random frame, in evaluation it is the middle; a
    recording that is too short is followed by silence, as in the released training. What is drawn can be repeated: see
    [`RecordingSegments`].

    Args:
        rows: with `audio` each: what [`load_audio`] reads.
        f0: of each row, `[S // hop]` in Hz, 0 where unvoiced; see [`recordings_f0`].
        num_frames: mel frames of a segment.
        config: of the vocoder.
        max_frequency: upper edge of the last mel filter in Hz.
        n_fft: window of the mel spectrogram in samples; four hops by default.
        training: random segments.
        seed: of the draws.
        resample: convert recordings of another rate instead of refusing them.
        channel: which channel to take of recordings that have several, instead of refusing them.

    Raises:
        ValueError: no rows, another number of f0, a segment that the window is too long for; on access, a row that cannot
            be read or whose f0 has another length, with its place.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        f0: Sequence[Tensor],
        num_frames: int,
        config: HiFTConfig,
        max_frequency: float = 8000.0,
        n_fft: int | None = None,
        training: bool = True,
        seed: int = 0,
        resample: bool = False,
        channel: int | None = None,
    ):
        super().__init__(rows, config.sampling_rate, training, seed, resample, channel)
        if len(f0) != len(rows):
            raise ValueError(f"`f0` must have one entry per row, {len(rows)}, got {len(f0)}")
        self.n_fft = 4 * config.hop_length if n_fft is None else n_fft
        if num_frames < 1 or num_frames * config.hop_length <= self.margin(config):
            raise ValueError(
                f"`num_frames` must be at least {self.margin(config) // config.hop_length + 1} for a window of "
                f"{self.n_fft} samples, got {num_frames}"
            )
        self.f0, self.num_frames, self.config, self.max_frequency = f0, num_frames, config, max_frequency

    def margin(self, config: HiFTConfig) -> int:
        """Samples on each side of a frame that its mel magnitudes depend on."""
        return (self.n_fft - config.hop_length) // 2

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        audio, hop, count = self.load(index), self.config.hop_length, self.num_frames
        f0 = self.f0[index]
        if len(f0) != len(audio) // hop:
            place = self.rows[index].get("source", f"row {index}")
            raise ValueError(f"{place}: the recording has {len(audio) // hop} frames, its `f0` {len(f0)}")
        if len(audio) < count * hop:
            audio = np.pad(audio, (0, count * hop - len(audio)))
            f0 = torch.nn.functional.pad(f0, (0, count - len(f0)))
        free = len(f0) - count
        start = int(self.generator(index).integers(free + 1)) if self.training else free // 2
        return {
            "mel": self._mel(torch.from_numpy(audio), start),
            "f0": f0[start : start + count].clone(),
            "input_values": torch.from_numpy(audio[start * hop : (start + count) * hop].copy()).unsqueeze(0),
        }

    def _mel(self, audio: Tensor, start: int) -> Tensor:
        """Frames from `start` on of the mel spectrogram of `audio`, computed from the samples they depend on alone."""
        config, hop = self.config, self.config.hop_length
        # frames that the mirrored ends of an excerpt would reach
        around = -(-self.margin(config) // hop)
        first, last = max(start - around, 0), start + self.num_frames + around
        mel = vocoder_log_mel(
            audio[first * hop : last * hop],
            config.num_mel_bins,
            config.sampling_rate,
            self.n_fft,
            hop,
            self.max_frequency,
        )
        return mel[:, start - first : start - first + self.num_frames].clone()


__all__ = ["VocoderSegments"]
