"""Losses of neural codecs and vocoders: adversarial terms, feature matching, the distance of log-mel spectrograms.

How the discriminators of each kind count is a table of `Terms`. The default is the released training of WavTokenizer
(arXiv 2408.16532, section 3.3): the hinge terms of period and of spectrogram discriminators are means over each kind, the
least-squares terms of DAC are sums. `HIFT_TERMS` are those of HiFTNet (arXiv 2309.09493): least squares, sums.
"""

import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank
from transformers.utils.generic import maybe_autocast

from .discriminators import Judgement

LOG_MEL_FLOOR = 1e-7
Judgements = Mapping[str, Sequence[Judgement]]


class Terms(NamedTuple):
    """How the discriminators of one kind count."""

    least_squares: bool  # instead of hinge
    mean: bool  # over the discriminators, instead of their sum
    match_outputs: bool  # the outputs are among the features that are matched


HIFT_TERMS = {
    "period": Terms(least_squares=True, mean=False, match_outputs=True),
    "resolution": Terms(least_squares=True, mean=False, match_outputs=True),
    "dac": Terms(least_squares=True, mean=False, match_outputs=False),
}
WAVTOKENIZER_TERMS = {
    "period": Terms(least_squares=False, mean=True, match_outputs=True),
    "resolution": Terms(least_squares=False, mean=True, match_outputs=True),
    "dac": HIFT_TERMS["dac"],
}


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """mean max(0, 1 - real) + mean max(0, 1 + fake) of scores of any shape."""
    return (1 - real.float()).relu().mean() + (1 + fake.float()).relu().mean()


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """mean max(0, 1 - fake)."""
    return (1 - fake.float()).relu().mean()


def least_squares_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """mean (1 - real)^2 + mean fake^2."""
    return (1 - real.float()).square().mean() + fake.float().square().mean()


def least_squares_generator_loss(fake: Tensor) -> Tensor:
    """mean (1 - fake)^2."""
    return (1 - fake.float()).square().mean()


def feature_matching_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Sum over layers of the mean absolute difference of their activations."""
    return sum((a.float() - b.float()).abs().mean() for a, b in zip(real, fake, strict=True))


def discriminator_loss(
    real: Judgements,
    fake: Judgements,
    resolution_weight: float = 1.0,
    terms: Mapping[str, Terms] = WAVTOKENIZER_TERMS,
) -> Tensor:
    """What the discriminators minimise.

    Args:
        real, fake: judgements of recordings and of generated audio, by kind.
        resolution_weight: of the spectrogram discriminators.
        terms: how each kind counts.
    """
    total = 0.0
    for kind, weight in _weights(real, resolution_weight, terms).items():
        criterion = least_squares_discriminator_loss if terms[kind].least_squares else hinge_discriminator_loss
        pairs = zip(real[kind], fake[kind], strict=True)
        total = total + weight * sum(criterion(a.scores, b.scores) for a, b in pairs)
    return total


def generator_losses(
    real: Judgements,
    fake: Judgements,
    resolution_weight: float = 1.0,
    terms: Mapping[str, Terms] = WAVTOKENIZER_TERMS,
) -> tuple[Tensor, Tensor]:
    """The adversarial and the feature matching loss of the generator, weighted like `discriminator_loss`. As in DAC,
    the outputs of its discriminators are not among the features.

    Args:
        real, fake: judgements of recordings, whose features are constants here, and of generated audio, by kind.
        resolution_weight: of the spectrogram discriminators.
        terms: how each kind counts.
    """
    adversarial, matching = 0.0, 0.0
    for kind, weight in _weights(real, resolution_weight, terms).items():
        criterion = least_squares_generator_loss if terms[kind].least_squares else hinge_generator_loss
        layers = slice(None) if terms[kind].match_outputs else slice(None, -1)
        for a, b in zip(real[kind], fake[kind], strict=True):
            adversarial = adversarial + weight * criterion(b.scores)
            constants = [feature.detach() for feature in a.features[layers]]
            matching = matching + weight * feature_matching_loss(constants, b.features[layers])
    return adversarial, matching


def relativistic_loss(better: Judgements, worse: Judgements, tau: float = 0.04) -> Tensor:
    """
    Truncated pointwise relativistic loss (arXiv 2309.09493, section 3.2), the sum over all discriminators.

    Scores of a pair that differ by less than their median difference m are pulled to it: the mean of
    (better - worse - m)^2 over those, at most `tau`.

    Args:
        better, worse: judgements of recordings and of generated audio for the discriminators, the other way round for
            the generator.
        tau: where the loss of a discriminator is cut off.
    """
    total = 0.0
    for kind, judgements in better.items():
        for a, b in zip(judgements, worse[kind], strict=True):
            difference = a.scores.float() - b.scores.float()
            distance = difference - difference.median()
            below = (distance < 0).float()
            # all scores may differ alike
            mean = (distance.square() * below).sum() / below.sum().clamp(min=1)
            total = total + mean.clamp(max=tau)
    return total


def _weights(judgements: Judgements, resolution_weight: float, terms: Mapping[str, Terms]) -> dict[str, float]:
    return {
        kind: (resolution_weight if kind == "resolution" else 1.0) / (len(parts) if terms[kind].mean else 1)
        for kind, parts in judgements.items()
    }


@functools.lru_cache(maxsize=8)
def _htk_filters(num_mel_bins: int, n_fft: int, sampling_rate: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the lowest filters are narrower than a bin, as in the released loss
        return mel_filter_bank(n_fft // 2 + 1, num_mel_bins, 0.0, sampling_rate / 2, sampling_rate, mel_scale="htk")


def codec_log_mel(
    audio: Tensor, sampling_rate: int = 24000, n_fft: int = 1024, hop_length: int = 256, num_mel_bins: int = 100
) -> Tensor:
    """The log-mel spectrogram that WavTokenizer's reconstruction is measured in.

    Magnitudes with centred periodic Hann windows, HTK's mel filters from 0 Hz to half the rate without normalisation,
    natural logarithm above 1e-7; in float32 under autocast too.

    Args:
        audio (`torch.Tensor`): `[B, 1, S]` float, S > n_fft / 2.
        sampling_rate (`int`): in Hz.
        n_fft, hop_length (`int`): window and shift in samples.
        num_mel_bins (`int`): number of mel bins.

    Returns:
        `torch.Tensor`: `[B, num_mel_bins, 1 + S // hop_length]`.
    """
    with maybe_autocast(audio.device.type, enabled=False):
        samples = audio.squeeze(1).float()
        window = torch.hann_window(n_fft, dtype=torch.float32, device=samples.device)
        magnitude = torch.stft(samples, n_fft, hop_length, window=window, center=True, return_complex=True).abs()
        filters = _htk_filters(num_mel_bins, n_fft, sampling_rate)
        mel = torch.as_tensor(filters, dtype=torch.float32, device=samples.device).T @ magnitude
        return mel.clamp(min=LOG_MEL_FLOOR).log()


__all__ = [
    "HIFT_TERMS",
    "Terms",
    "WAVTOKENIZER_TERMS",
    "codec_log_mel",
    "discriminator_loss",
    "feature_matching_loss",
    "generator_losses",
    "hinge_discriminator_loss",
    "hinge_generator_loss",
    "least_squares_discriminator_loss",
    "least_squares_generator_loss",
    "relativistic_loss",
]
