"""What `DualTokenizerModel` expects of its three parts, and what their implementations share.

A part is a `PreTrainedModel`. One that has the attributes and methods of its protocol is used as it is; for models
with another interface, `codec_adapters.py` and `speaker_adapters.py` hold adapters. Adapters own no weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput


@dataclass
class AudioCodes(ModelOutput):
    """
    Args:
        codes (`torch.LongTensor`): `[B, T]`, or `[B, K, T]` for an acoustic codec; 0 where the mask is off.
        codes_mask (`torch.BoolTensor`): `[B, T]`, true on the codes of a row, which come first.
    """

    codes: Tensor | None = None
    codes_mask: Tensor | None = None


@runtime_checkable
class SemanticTokenizer(Protocol):
    """Waveforms to codes that carry what is said. USTokenizer in the paper; HuBERT + k-means as a baseline.

    `codebook_size` codes, `frame_rate` codes per second, `sampling_rate` of the waveforms in Hz.
    """

    codebook_size: int
    frame_rate: float
    sampling_rate: int

    def encode_waveform(self, waveforms: Tensor, num_samples: Tensor) -> AudioCodes:
        """`waveforms [B, S]` float, right-padded, with `num_samples [B]` -> codes `[B, T]` and mask `[B, T]`.

        Each row gets the codes that it would get alone. Any output with the fields of `AudioCodes` will do.
        """
        ...


@runtime_checkable
class AcousticCodec(Protocol):
    """Waveforms to codes from which they can be made again. WavTokenizer in the paper.

    `num_codebooks` books (K) of `codebook_size` codes each, `frame_rate` frames per second, `hop_length` output samples
    per frame, waveforms at `input_sampling_rate` in and at `sampling_rate` out (Hz). `supports_streaming`: whether
    decoding chunk by chunk gives what decoding at once gives.
    """

    codebook_size: int
    num_codebooks: int
    frame_rate: float
    hop_length: int
    input_sampling_rate: int
    sampling_rate: int
    supports_streaming: bool

    def encode(self, waveforms: Tensor, num_samples: Tensor) -> AudioCodes:
        """`waveforms [B, S]` float, right-padded, with `num_samples [B]` -> codes `[B, K, A]` and mask `[B, A]`."""
        ...

    def decode(self, codes: Tensor, codes_mask: Tensor | None = None) -> Tensor:
        """`codes [B, K, A]`, mask `[B, A]` -> waveforms `[B, 1, A * hop_length]`, zero behind the end of a row."""
        ...


@runtime_checkable
class SpeakerEncoder(Protocol):
    """Waveforms to one vector per row: `embedding_size` numbers, from waveforms at `sampling_rate` Hz."""

    embedding_size: int
    sampling_rate: int

    def embed(self, waveforms: Tensor, num_samples: Tensor) -> Tensor:
        """`waveforms [B, S]` float, right-padded, with `num_samples [B]` -> `[B, embedding_size]`."""
        ...


def check_waveforms(name: str, waveforms: Tensor, num_samples=None) -> tuple[Tensor, Tensor]:
    """`(waveforms [B, S], num_samples [B] long on the same device)`, or a `ValueError` that says what is wrong.

    Args:
        name: of the argument, for the message.
        waveforms: `[B, S]` float; samples behind the end of a row are not looked at.
        num_samples: `[B]` tensor or list, each from 1 to S; all S samples when `None`.
    """
    if not isinstance(waveforms, Tensor) or waveforms.dim() != 2 or not waveforms.is_floating_point():
        given = f"{waveforms.dtype} {tuple(waveforms.shape)}" if isinstance(waveforms, Tensor) else type(waveforms)
        raise ValueError(f"`{name}` must be a float tensor [batch, samples] of mono audio, got {given}")
    batch, samples = waveforms.shape
    if num_samples is None:
        num_samples = [samples] * batch
    num_samples = torch.as_tensor(num_samples, device=waveforms.device).long()
    if num_samples.shape != (batch,):
        raise ValueError(f"the numbers of samples of `{name}` must be [{batch}], got {tuple(num_samples.shape)}")
    if batch == 0 or int(num_samples.min()) < 1 or int(num_samples.max()) > samples:
        raise ValueError(
            f"each row of `{name}` {tuple(waveforms.shape)} must have 1 to {samples} samples, "
            f"got {num_samples.tolist()}"
        )
    mask = length_mask(num_samples, samples)
    check_finite(name, waveforms, mask)
    return waveforms.masked_fill(~mask, 0), num_samples


def check_finite(name: str, values: Tensor, mask: Tensor | None = None) -> None:
    """Raise a `ValueError` that names the rows of `values [B, ...]` with NaN or infinite numbers where `mask` is on.

    Nothing is looked at on the meta device and while a graph is compiled.
    """
    if values.device.type == "meta" or torch.compiler.is_compiling():
        return
    finite = values.isfinite() if mask is None else values.isfinite() | ~mask
    rows = (~finite.flatten(1).all(dim=1)).nonzero()[:, 0].tolist()
    if rows:
        raise ValueError(f"`{name}` holds NaN or infinite values in rows {rows}")


def check_at_least(name: str, num_samples: Tensor, minimum: int) -> None:
    """Raise a `ValueError` when a row has fewer than `minimum` samples."""
    if int(num_samples.min()) < minimum:
        raise ValueError(
            f"a row of `{name}` has {int(num_samples.min())} samples, the model needs at least {minimum} for one result"
        )


def length_mask(lengths: Tensor, size: int | None = None) -> Tensor:
    """`[B, size]` bool, true on the first `lengths[b]` positions; `size` defaults to the longest row."""
    size = int(lengths.max()) if size is None else size
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def rows_by_length(lengths: Tensor) -> Iterator[tuple[Tensor, int]]:
    """`(indices of the rows, their length)` for each length that occurs, the shortest first."""
    for length in lengths.unique().tolist():
        yield (lengths == length).nonzero()[:, 0], length


def samples_for_frames(config, frames: int) -> int:
    """Fewest samples of which the strided convolutions of a wav2vec 2.0-like encoder make `frames` frames."""
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        frames = (frames - 1) * stride + kernel
    return frames


def normalize_waveforms(waveforms: Tensor, num_samples: Tensor) -> Tensor:
    """Zero mean and unit variance over the samples of each row, zero behind, as `Wav2Vec2FeatureExtractor`."""
    mask = length_mask(num_samples, waveforms.shape[1])
    count = num_samples[:, None].to(waveforms.dtype)
    centred = (waveforms - waveforms.masked_fill(~mask, 0).sum(1, keepdim=True) / count).masked_fill(~mask, 0)
    return centred / (centred.square().sum(1, keepdim=True) / count + 1e-7).sqrt()


@contextmanager
def evaluating(model: nn.Module):
    """No gradients, no autocast, evaluation mode: what a frozen part computes depends on its weights and input only.

    Modules that were in training mode are so again afterwards. Parts need it: in training mode DAC returns another
    number of codebooks, wav2vec 2.0-like encoders drop layers and mask frames, CAM++ moves its batch statistics.
    """
    training = [module for module in model.modules() if module.training]
    device = next(model.parameters()).device.type
    for module in training:
        module.training = False
    try:
        with torch.no_grad(), torch.autocast(device, enabled=False):
            yield
    finally:
        for module in training:
            module.training = True


def placed_like(model: nn.Module, values: Tensor) -> Tensor:
    """`values` on the device and in the precision of the model's first floating-point parameter."""
    weight = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    return values.to(weight.device, weight.dtype)


__all__ = [
    "AcousticCodec",
    "AudioCodes",
    "SemanticTokenizer",
    "SpeakerEncoder",
    "check_at_least",
    "check_finite",
    "check_waveforms",
    "evaluating",
    "length_mask",
    "normalize_waveforms",
    "placed_like",
    "rows_by_length",
    "samples_for_frames",
]
