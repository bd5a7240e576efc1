"""Random changes of recordings and of their features, for the training of speech encoders."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..modeling.audio_features import resample

SPEED_STEPS = 20  # speeds are multiples of 1 / 20, so that resampling needs few filters
MIN_SNR_POWER = 1e-10  # what silence counts as
LOW_PASS_SLOPE = 0.05  # share of the cut-off over which a low-pass falls


@dataclass
class SpeechAugmentation:
    """
    What is drawn for each recording. Noise has a random colour from white to pink. SpecAugment (arXiv 1904.08779) covers
    bins and frames with the mean of the features. Everything is off by default.

    All methods draw from the given generator only.
    """

    speed_probability: float = field(default=0.0, metadata={"help": "of another speed (and pitch)"})
    min_speed: float = field(default=0.9, metadata={"help": "slowest"})
    max_speed: float = field(default=1.1, metadata={"help": "fastest"})
    gain_probability: float = field(default=0.0, metadata={"help": "of another loudness"})
    min_gain: float = field(default=-12.0, metadata={"help": "softest, in dB"})
    max_gain: float = field(default=6.0, metadata={"help": "loudest, in dB; samples may leave [-1, 1]"})
    low_pass_probability: float = field(default=0.0, metadata={"help": "of a missing upper band"})
    min_low_pass: float = field(default=3000.0, metadata={"help": "lowest cut-off in Hz; 4000 is a telephone's"})
    max_low_pass: float = field(default=7500.0, metadata={"help": "highest cut-off in Hz"})
    noise_probability: float = field(default=0.0, metadata={"help": "of added noise"})
    min_snr: float = field(default=5.0, metadata={"help": "loudest noise, dB below the recording"})
    max_snr: float = field(default=35.0, metadata={"help": "softest noise, dB below the recording"})
    time_masks: int = field(default=0, metadata={"help": "stretches of frames that SpecAugment covers"})
    max_time_mask: float = field(default=0.1, metadata={"help": "longest stretch, as a share of the frames"})
    frequency_masks: int = field(default=0, metadata={"help": "bands that SpecAugment covers"})
    max_frequency_mask: float = field(default=0.2, metadata={"help": "widest band, as a share of the bins"})

    def __post_init__(self):
        for name, value in vars(self).items():
            is_share = name.endswith("_probability") or name in ("max_time_mask", "max_frequency_mask")
            if is_share and not 0 <= value <= 1:
                raise ValueError(f"`{name}` must be from 0 to 1, got {value}")
            if name.endswith("_masks") and value < 0:
                raise ValueError(f"`{name}` must not be negative, got {value}")
        for name in ("speed", "gain", "low_pass", "snr"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low > high or (name in ("speed", "low_pass") and low <= 0):
                raise ValueError(f"`min_{name}` and `max_{name}` must be a range, got {low} and {high}")

    @property
    def fastest(self) -> float:
        """The speed at which recordings are shortest."""
        return max(1.0, self.max_speed) if self.speed_probability > 0 else 1.0

    def waveform(self, waveform: Tensor, draw: np.random.Generator, sampling_rate: int, max_samples: int) -> Tensor:
        """`waveform [S]` changed; slower speeds are drawn only as far as the result has at most `max_samples`."""
        if draw.random() < self.speed_probability:
            waveform = self._speed(waveform, draw, max_samples)
        is_filtered, is_noisy = draw.random() < self.low_pass_probability, draw.random() < self.noise_probability
        if is_noisy:
            waveform = waveform + self._noise(waveform, draw)
        if is_filtered:  # behind the noise, as in a channel
            waveform = _low_pass(waveform, draw.uniform(self.min_low_pass, self.max_low_pass), sampling_rate)
        if draw.random() < self.gain_probability:
            waveform = waveform * float(10 ** (draw.uniform(self.min_gain, self.max_gain) / 20))
        return waveform

    def features(self, features: Tensor, draw: np.random.Generator, num_frames: int) -> Tensor:
        """`features [bins, F]` with covered bands, and covered stretches of the first `num_frames`."""
        if not self.time_masks and not self.frequency_masks:
            return features
        features, mean = features.clone(), features[:, :num_frames].mean()
        for _ in range(self.frequency_masks):
            width = int(draw.integers(int(self.max_frequency_mask * len(features)) + 1))
            start = int(draw.integers(len(features) - width + 1))
            features[start : start + width, :num_frames] = mean
        for _ in range(self.time_masks):
            width = int(draw.integers(int(self.max_time_mask * num_frames) + 1))
            start = int(draw.integers(num_frames - width + 1))
            features[:, start : start + width] = mean
        return features

    def _speed(self, waveform: Tensor, draw: np.random.Generator, max_samples: int) -> Tensor:
        steps = np.arange(np.ceil(self.min_speed * SPEED_STEPS), np.floor(self.max_speed * SPEED_STEPS) + 1)
        steps = steps[np.ceil(len(waveform) * SPEED_STEPS / steps) <= max_samples]
        if not len(steps):
            return waveform
        return resample(waveform, int(draw.choice(steps)), SPEED_STEPS)

    def _noise(self, waveform: Tensor, draw: np.random.Generator) -> Tensor:
        noise = coloured_noise(len(waveform), draw.random(), draw)
        power = waveform.square().mean().clamp_min(MIN_SNR_POWER) * 10 ** (
            -draw.uniform(self.min_snr, self.max_snr) / 10
        )
        return noise * (power / noise.square().mean().clamp_min(MIN_SNR_POWER)).sqrt()


def coloured_noise(num_samples: int, tilt: float, draw: np.random.Generator) -> Tensor:
    """Noise `(num_samples,)` whose power falls with the power `tilt` of the frequency: 0 white, 1 pink, 2 brown."""
    spectrum = torch.fft.rfft(torch.from_numpy(draw.standard_normal(num_samples, dtype=np.float32)))
    falling = torch.arange(1, len(spectrum) + 1, dtype=torch.float32) ** (-tilt / 2)
    return torch.fft.irfft(spectrum * falling, n=num_samples)


def _low_pass(waveform: Tensor, cutoff: float, sampling_rate: int) -> Tensor:
    """Without what lies above `cutoff` Hz."""
    spectrum = torch.fft.rfft(waveform)
    frequencies = torch.linspace(0, sampling_rate / 2, len(spectrum))
    return torch.fft.irfft(
        spectrum * torch.sigmoid((cutoff - frequencies) / (LOW_PASS_SLOPE * cutoff / 4)), n=len(waveform)
    )


__all__ = ["SpeechAugmentation", "coloured_noise"]
