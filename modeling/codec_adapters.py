"""Adapters that make the codecs of transformers, and our WavTokenizer, satisfy `AcousticCodec`.

They even out what differs: argument names, leading frame axes, missing channel axes, integer types, lengths that are a
few samples off. Codes are computed in float32 without autocast, and rows of different lengths are encoded apart:
every codec here lets padding leak into the last codes (reflected or zero-filled convolutions, attention without a
mask), so only then does a row get the codes that it gets alone.
"""

import math

import torch
from torch import Tensor, nn

from ..configuration.configuration_dual_tokenizer import check_discrete
from .audio_features import kaldi_fbank
from .audio_parts import (
    AcousticCodec,
    AudioCodes,
    check_at_least,
    check_waveforms,
    evaluating,
    length_mask,
    rows_by_length,
)


class CodecAdapter:
    """An `AcousticCodec` made of a `PreTrainedModel`; a codec's own adapter overrides what differs.

    Args:
        model (`PreTrainedModel`): the codec; it is referred to, never copied or changed.
        num_codebooks (`int`, *optional*): how many codebooks are used, the coarsest first; all when omitted.
    """

    supports_streaming = False

    def __init__(self, model: nn.Module, num_codebooks: int | None = None):
        self.model, self.config = model, model.config
        available = self._available_codebooks()
        self.num_codebooks = available if num_codebooks is None else num_codebooks
        if not 1 <= self.num_codebooks <= available:
            raise ValueError(
                f"`num_codebooks` must be from 1 to {available} for this {self.config.model_type}, got {num_codebooks}"
            )

    @property
    def codebook_size(self) -> int:
        return self.config.codebook_size

    @property
    def sampling_rate(self) -> int:
        """Hz of decoded audio."""
        return self.config.sampling_rate

    @property
    def input_sampling_rate(self) -> int:
        """Hz of audio to encode."""
        return self.sampling_rate

    @property
    def hop_length(self) -> int:
        """Decoded samples per frame."""
        return self.config.hop_length

    @property
    def frame_rate(self) -> float:
        """Frames per second (`config.frame_rate` of transformers' codecs is rounded up)."""
        return self.sampling_rate / self.hop_length

    def encode(self, waveforms: Tensor, num_samples: Tensor | None = None) -> AudioCodes:
        """Codes of waveforms.

        Args:
            waveforms (`torch.Tensor`): `[B, S]` float, right-padded, at `input_sampling_rate`.
            num_samples (`torch.Tensor`, *optional*): `[B]`; all S samples when omitted.

        Returns:
            `AudioCodes`: codes `[B, K, A]` long, mask `[B, A]`, on the device of the codec.
        """
        waveforms, num_samples = check_waveforms("waveforms", waveforms, num_samples)
        check_at_least("waveforms", num_samples, self._min_samples())
        waveforms = waveforms.to(self._device(), torch.float32)
        num_samples = num_samples.to(waveforms.device)
        with evaluating(self.model):
            parts = [
                (rows, self._encode(waveforms[rows, None, :length])[:, : self.num_codebooks].long())
                for rows, length in rows_by_length(num_samples)
            ]
        lengths = torch.zeros_like(num_samples)
        codes = lengths.new_zeros(len(waveforms), self.num_codebooks, max(part.shape[2] for _, part in parts))
        for rows, part in parts:
            lengths[rows] = part.shape[2]
            codes[rows, :, : part.shape[2]] = part
        return AudioCodes(codes=codes, codes_mask=length_mask(lengths, codes.shape[2]))

    def decode(self, codes: Tensor, codes_mask: Tensor | None = None) -> Tensor:
        """Waveforms of codes.

        Args:
            codes (`torch.LongTensor`): `[B, K, A]`; what stands where the mask is off is not looked at.
            codes_mask (`torch.BoolTensor`, *optional*): `[B, A]`, true on the first codes of each row.

        Returns:
            `torch.Tensor`: `[B, 1, A * hop_length]` float32, zero behind the end of a row.
        """
        codes, lengths = check_codes(codes, codes_mask, self.num_codebooks, self.codebook_size)
        codes, lengths = codes.to(self._device()), lengths.to(self._device())
        waveforms = torch.zeros(len(codes), 1, codes.shape[2] * self.hop_length, device=codes.device)
        with evaluating(self.model):
            for rows, length in self._decoding_groups(lengths):
                samples = length * self.hop_length
                decoded = self._decode(codes[rows, :, :length])[..., :samples]
                waveforms[rows, :, : decoded.shape[-1]] = decoded
        behind = ~length_mask(lengths * self.hop_length, waveforms.shape[2])
        return waveforms.masked_fill(behind[:, None], 0)

    def _decoding_groups(self, lengths: Tensor):
        return ((rows, length) for rows, length in rows_by_length(lengths) if length)

    def _device(self) -> torch.device:
        weight = next(self.model.parameters())
        if weight.dtype != torch.float32:
            raise ValueError(f"the codec must be in float32 (another precision changes its codes), got {weight.dtype}")
        return weight.device

    def _available_codebooks(self) -> int:
        return 1

    def _min_samples(self) -> int:
        return 1

    def _encode(self, waveforms: Tensor) -> Tensor:
        """`[b, 1, n]`, all rows of one length -> codes `[b, at least K, A]`."""
        return self.model.encode(waveforms).audio_codes

    def _decode(self, codes: Tensor) -> Tensor:
        """`[b, K, A]`, all rows of one length -> `[b, 1, about A * hop_length]`."""
        return self.model.decode(codes).audio_values


class EncodecAdapter(CodecAdapter):
    """EnCodec for 24 kHz mono (arXiv 2210.13438): one frame, no loudness scales."""

    def __init__(self, model: nn.Module, num_codebooks: int | None = None):
        super().__init__(model, num_codebooks)
        for name, accepted in (("audio_channels", 1), ("normalize", False), ("chunk_length_s", None)):
            given = getattr(self.config, name)
            if given != accepted:
                raise ValueError(
                    f"EnCodec needs `{name}={accepted}` here, got {given}: codes must not need a side input"
                )

    def _available_codebooks(self) -> int:
        return self.config.num_quantizers

    def _encode(self, waveforms):
        books = self.model.quantizer.get_num_quantizers_for_bandwidth
        bandwidth = min(rate for rate in self.config.target_bandwidths if books(rate) >= self.num_codebooks)
        return self.model.encode(waveforms, bandwidth=bandwidth).audio_codes[0]

    def _decode(self, codes):
        return self.model.decode(codes[None], [None]).audio_values


class MimiAdapter(CodecAdapter):
    """Mimi (arXiv 2410.00037): the first `num_semantic_quantizers` codebooks are semantic."""

    @property
    def hop_length(self) -> int:
        return round(self.config.sampling_rate / self.config.frame_rate)

    def _available_codebooks(self) -> int:
        return self.config.num_quantizers

    def _encode(self, waveforms):
        books = max(self.num_codebooks, self.config.num_semantic_quantizers)
        return self.model.encode(waveforms, num_quantizers=books).audio_codes

    def _decoding_groups(self, lengths):
        config = self.config
        if config.use_causal_conv and config.trim_right_ratio == 1.0 and config.pad_mode == "constant":
            longest = int(lengths.max())  # the decoder is strictly causal: nothing behind a row's end reaches it
            return [(torch.arange(len(lengths), device=lengths.device), longest)] if longest else []
        return super()._decoding_groups(lengths)


class DacAdapter(CodecAdapter):
    """DAC (arXiv 2306.06546)."""

    def _available_codebooks(self) -> int:
        return self.config.n_codebooks

    def _encode(self, waveforms):
        waveforms = nn.functional.pad(waveforms, (0, -waveforms.shape[-1] % self.hop_length))
        return self.model.encode(waveforms, n_quantizers=self.num_codebooks).audio_codes

    def _decode(self, codes):
        return self.model.decode(audio_codes=codes).audio_values[:, None]


class Xcodec2Adapter(CodecAdapter):
    """X-codec 2 (arXiv 2502.04128): one finite scalar codebook; a semantic encoder reads filter banks beside the audio.

    Its feature extractor needs torchaudio; the same features are computed here.
    """

    @property
    def codebook_size(self) -> int:
        return math.prod(self.config.quantization_levels)

    def _encoder_hop(self) -> int:
        return self.config.hop_length

    def _encode(self, waveforms):
        hop = self._encoder_hop()
        # As the extractor does: one zero more, then up to a multiple of the hop.
        waveforms = nn.functional.pad(waveforms, (0, hop - waveforms.shape[-1] % hop))
        features = semantic_features(self._framed(waveforms[:, 0], hop))
        return self.model.encode(waveforms, input_features=features).audio_codes

    def _framed(self, waveforms: Tensor, hop: int) -> Tensor:
        return nn.functional.pad(waveforms, (hop // 2, hop // 2))


class NeuCodecAdapter(Xcodec2Adapter):
    """NeuCodec: X-codec 2 with a decoder at another rate (16 kHz in, 24 kHz out)."""

    @property
    def sampling_rate(self) -> int:
        return self.config.output_sampling_rate

    @property
    def input_sampling_rate(self) -> int:
        return self.config.input_sampling_rate

    def _encoder_hop(self) -> int:
        return self.config.encoder_hop_length

    def _min_samples(self) -> int:
        return self._encoder_hop()

    def _framed(self, waveforms, hop):
        return waveforms  # without margins the last frame is lost, as in the released code


def semantic_features(waveforms: Tensor) -> Tensor:
    """`[b, n]` at 16 kHz -> `[b, frames // 2, 160]`: the input of w2v-BERT 2.0.

    Kaldi filter banks of 16-bit samples, zero mean and unit (unbiased) variance per bin over time, two frames stacked.
    """
    features = kaldi_fbank(waveforms * 2**15)
    features = (features - features.mean(1, keepdim=True)) / (features.var(1, keepdim=True) + 1e-7).sqrt()
    frames = features.shape[1] // 2
    return features[:, : 2 * frames].reshape(len(features), frames, -1)


def check_codes(codes: Tensor, codes_mask: Tensor | None, num_codebooks: int, codebook_size: int):
    """`(codes [B, K, A] with 0 where the mask is off, lengths [B])`, or a `ValueError` that says what is wrong."""
    if codes.dim() != 3 or codes.shape[1] != num_codebooks or codes.is_floating_point():
        raise ValueError(
            f"`codes` must be an integer tensor [batch, {num_codebooks}, frames], got {codes.dtype} {tuple(codes.shape)}"
        )
    lengths = mask_lengths("codes_mask", codes_mask, codes[:, 0])
    codes = codes.long().masked_fill(~length_mask(lengths, codes.shape[2])[:, None], 0)
    check_code_range("codes", codes, codebook_size)
    return codes, lengths


def mask_lengths(name: str, mask: Tensor | None, codes: Tensor) -> Tensor:
    """`[B]` numbers of valid positions of `codes [B, A, ...]`, whose mask `[B, A]` must be true first, then false."""
    batch, size = codes.shape[:2]
    if mask is None:
        return torch.full((batch,), size, device=codes.device)
    if mask.shape != (batch, size):
        raise ValueError(f"`{name}` must be [{batch}, {size}] like the codes, got {tuple(mask.shape)}")
    mask = mask.to(codes.device).bool()
    lengths = mask.sum(dim=1)
    if not bool((mask == length_mask(lengths, size)).all()):
        raise ValueError(f"`{name}` must be true on the first codes of a row and false behind them (right padding)")
    return lengths


def check_code_range(name: str, codes: Tensor, codebook_size: int) -> None:
    """Raise a `ValueError` when a code is not in `0 .. codebook_size - 1`."""
    outside = codes[(codes < 0) | (codes >= codebook_size)]
    if len(outside):
        raise ValueError(
            f"`{name}` holds {int(outside[0])}, codes from 0 to {codebook_size - 1} are accepted; "
            "mark what stands behind the end of a row in the mask"
        )


# model_type -> adapter. "wavtokenizer" is transformers' own port, in releases that have it.
CODEC_ADAPTERS: dict[str, type[CodecAdapter]] = {
    "dualspeech_wavtokenizer": CodecAdapter,
    "wavtokenizer": CodecAdapter,
    "xcodec2": Xcodec2Adapter,
    "neucodec": NeuCodecAdapter,
    "encodec": EncodecAdapter,
    "mimi": MimiAdapter,
    "dac": DacAdapter,
}


def as_acoustic_codec(model: nn.Module, num_codebooks: int | None = None) -> AcousticCodec:
    """The codec `model` behind the `AcousticCodec` protocol: through its adapter, or itself when it satisfies it.

    Args:
        model (`PreTrainedModel`): a codec.
        num_codebooks (`int`, *optional*): how many codebooks are used; all when omitted.

    Raises:
        ValueError: its latents are continuous, no adapter is known and the protocol is not satisfied, or the codec has fewer codebooks.
    """
    check_discrete(model.config)
    adapter = CODEC_ADAPTERS.get(model.config.model_type)
    if adapter is not None:
        return adapter(model, num_codebooks)
    if not isinstance(model, AcousticCodec):
        raise ValueError(
            f"`acoustic_codec` of type {model.config.model_type!r} is not supported: it must be one of "
            f"{sorted(CODEC_ADAPTERS)} or have the attributes and methods of `AcousticCodec`"
        )
    if num_codebooks not in (None, model.num_codebooks):
        raise ValueError(f"`num_codebooks` must be {model.num_codebooks} for this codec, got {num_codebooks}")
    return model


__all__ = [
    "CODEC_ADAPTERS",
    "CodecAdapter",
    "DacAdapter",
    "EncodecAdapter",
    "MimiAdapter",
    "NeuCodecAdapter",
    "Xcodec2Adapter",
    "as_acoustic_codec",
    "check_code_range",
    "mask_lengths",
    "semantic_features",
]
