"""Discriminators of neural codecs and vocoders: by period, by spectrogram, and by bands of a complex spectrogram.

WavTokenizer (arXiv 2408.16532, section 3.3) trains against all of them: the first two as in Vocos, with the conditioning
id of the codec as class, and the pair of DAC, which repeats the first kind and adds the third.
"""

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from transformers.utils.generic import maybe_autocast

SLOPE = 0.1  # of the leaky ReLUs
PERIOD_KERNEL, PERIOD_STRIDE = 5, 3
# Kernels and strides over frequency and time.
SPECTROGRAM_LAYERS = (((7, 5), (2, 2)), ((5, 3), (2, 1)), ((5, 3), (2, 2)), ((3, 3), (2, 1)), ((3, 3), (2, 2)))
# The same over time and frequency.
BAND_LAYERS = (((3, 9), (1, 1)), ((3, 9), (1, 2)), ((3, 9), (1, 2)), ((3, 9), (1, 2)), ((3, 3), (1, 1)))
BAND_EDGES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # shares of the Nyquist frequency
DAC_PEAK = 0.8


class Judgement(NamedTuple):
    """What one discriminator says about a batch."""

    scores: Tensor  # [B, N], high for recordings
    features: list[
        Tensor
    ]  # activations of the hidden convolutions, then the output convolution without the class term


def _convolution(inputs: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1)) -> nn.Module:
    padding = (kernel[0] // 2, kernel[1] // 2)
    return weight_norm(nn.Conv2d(inputs, outputs, kernel, stride, padding))


class _Projection(nn.Module):
    """The output convolution, and the inner product of its input with the vector of a class, `[B, C, H, W]` -> `[B, N]`."""

    def __init__(self, channels: int, kernel: tuple[int, int], num_classes: int):
        super().__init__()
        self.output = _convolution(channels, 1, kernel)
        self.classes = nn.Embedding(num_classes, channels) if num_classes else None

    def forward(self, hidden_states: Tensor, class_id: Tensor | None, features: list[Tensor]) -> Judgement:
        plain = self.output(hidden_states)
        scores = plain
        if self.classes is not None:
            vectors = self.classes(class_id.expand(len(hidden_states)))[:, :, None, None]
            scores = plain + (vectors * hidden_states).sum(dim=1, keepdim=True)
        return Judgement(scores.flatten(1), [*features, plain])


class PeriodDiscriminator(nn.Module):
    """2-D convolutions on a waveform whose samples `period` apart stand in one column (HiFi-GAN).

    Args:
        period: samples per row.
        channels: of the convolutions; all but the last one shorten the columns by 3.
        num_classes: rows of the class table; 0 for none.
    """

    def __init__(self, period: int, channels: tuple[int, ...], num_classes: int = 0):
        super().__init__()
        self.period = period
        strides = [PERIOD_STRIDE] * (len(channels) - 1) + [1]
        self.layers = nn.ModuleList(
            _convolution(inputs, outputs, (PERIOD_KERNEL, 1), (stride, 1))
            for inputs, outputs, stride in zip((1, *channels), channels, strides, strict=False)
        )
        self.projection = _Projection(channels[-1], (3, 1), num_classes)

    def forward(self, audio: Tensor, class_id: Tensor | None = None) -> Judgement:
        """`audio [B, 1, S]`, `class_id` `[]` or `[B]`."""
        padded = F.pad(audio, (0, -audio.shape[-1] % self.period), mode="reflect")
        hidden_states = padded.unflatten(-1, (-1, self.period))
        features = []
        for layer in self.layers:
            hidden_states = F.leaky_relu(layer(hidden_states), SLOPE)
            features.append(hidden_states)
        return self.projection(hidden_states, class_id, features)


class SpectrogramDiscriminator(nn.Module):
    """2-D convolutions on a magnitude spectrogram with rectangular windows (Vocos).

    Args:
        n_fft: window in samples; the shift is a quarter.
        channels: of all convolutions.
        num_classes: rows of the class table; 0 for none.
    """

    def __init__(self, n_fft: int, channels: int, num_classes: int = 0):
        super().__init__()
        self.n_fft = n_fft
        inputs = (1, *[channels] * len(SPECTROGRAM_LAYERS))
        self.layers = nn.ModuleList(
            _convolution(size, channels, *shape) for size, shape in zip(inputs, SPECTROGRAM_LAYERS, strict=False)
        )
        self.projection = _Projection(channels, (3, 3), num_classes)

    def forward(self, audio: Tensor, class_id: Tensor | None = None) -> Judgement:
        """`audio [B, 1, S]`, S > n_fft / 2, `class_id` `[]` or `[B]`."""
        spectrum = _spectrum(audio, audio.new_ones(self.n_fft))
        # The slope of |z| is 0 at z = 0, so that silence gives finite gradients.
        hidden_states = spectrum.abs().unsqueeze(1)
        features = []
        for layer in self.layers:
            hidden_states = F.leaky_relu(layer(hidden_states), SLOPE)
            features.append(hidden_states)
        return self.projection(hidden_states, class_id, features)


class BandDiscriminator(nn.Module):
    """2-D convolutions on a complex spectrogram, a stack for each band of frequencies, joined before the output (DAC).

    Args:
        n_fft: window in samples; the shift is a quarter.
        channels: of all convolutions.
    """

    def __init__(self, n_fft: int, channels: int):
        super().__init__()
        self.n_fft = n_fft
        bins = n_fft // 2 + 1
        edges = [round(edge * bins) for edge in BAND_EDGES]
        self.bands = list(itertools.pairwise(edges))
        inputs = (2, *[channels] * len(BAND_LAYERS))
        self.stacks = nn.ModuleList(
            nn.ModuleList(
                _convolution(size, channels, *shape) for size, shape in zip(inputs, BAND_LAYERS, strict=False)
            )
            for _ in self.bands
        )
        self.output = _convolution(channels, 1, (3, 3))
        self.register_buffer("window", torch.hann_window(n_fft, dtype=torch.float32), persistent=False)

    def forward(self, audio: Tensor) -> Judgement:
        """`audio [B, 1, S]`, S > n_fft / 2."""
        spectrum = _spectrum(audio, self.window)
        planes = torch.view_as_real(spectrum).permute(0, 3, 2, 1)  # [B, 2, time, frequency]
        features, outputs = [], []
        for (start, end), stack in zip(self.bands, self.stacks, strict=True):
            hidden_states = planes[..., start:end]
            for layer in stack:
                hidden_states = F.leaky_relu(layer(hidden_states), SLOPE)
                features.append(hidden_states)
            outputs.append(hidden_states)
        plain = self.output(torch.cat(outputs, dim=-1))
        return Judgement(plain.flatten(1), [*features, plain])


def _spectrum(audio: Tensor, window: Tensor) -> Tensor:
    """`[B, 1, S]` to a complex spectrum `[B, n_fft / 2 + 1, frames]`, in float32 under autocast too."""
    n_fft = len(window)
    with maybe_autocast(audio.device.type, enabled=False):
        samples = audio.squeeze(1).float()
        return torch.stft(samples, n_fft, max(1, n_fft // 4), window=window.float(), center=True, return_complex=True)


class CodecDiscriminators(nn.Module):
    """All discriminators of a codec.

    Args:
        periods, period_channels: of the period discriminators, and of their unconditioned twins beside the bands.
        resolution_windows: windows of the spectrogram discriminators, in samples.
        resolution_channels: their width.
        dac_windows: windows of the band discriminators; empty leaves them and the twins out.
        dac_channels: their width.
        num_classes: conditioning ids of the codec; 0 for none.
    """

    def __init__(
        self,
        periods: tuple[int, ...],
        period_channels: tuple[int, ...],
        resolution_windows: tuple[int, ...],
        resolution_channels: int,
        dac_windows: tuple[int, ...],
        dac_channels: int,
        num_classes: int = 0,
    ):
        super().__init__()
        self.period = nn.ModuleList(PeriodDiscriminator(period, period_channels, num_classes) for period in periods)
        self.resolution = nn.ModuleList(
            SpectrogramDiscriminator(n_fft, resolution_channels, num_classes) for n_fft in resolution_windows
        )
        self.dac_period = nn.ModuleList(
            PeriodDiscriminator(period, period_channels) for period in (periods if dac_windows else ())
        )
        self.dac_band = nn.ModuleList(BandDiscriminator(n_fft, dac_channels) for n_fft in dac_windows)

    def forward(self, audio: Tensor, class_id: Tensor | None = None) -> dict[str, list[Judgement]]:
        """Judgements of `audio [B, 1, S]` under the classes `class_id` (`[]` or `[B]`; none without classes), by kind:
        `period`, `resolution`, and `dac` where there are band discriminators."""
        judgements = {
            "period": [part(audio, class_id) for part in self.period],
            "resolution": [part(audio, class_id) for part in self.resolution],
        }
        if len(self.dac_band):
            centred = audio - audio.mean(dim=-1, keepdim=True)
            scaled = DAC_PEAK * centred / (centred.abs().amax(dim=-1, keepdim=True) + 1e-9)
            judgements["dac"] = [part(scaled) for part in (*self.dac_period, *self.dac_band)]
        return judgements


__all__ = [
    "BandDiscriminator",
    "CodecDiscriminators",
    "Judgement",
    "PeriodDiscriminator",
    "SpectrogramDiscriminator",
]
