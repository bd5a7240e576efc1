"""The frozen audio tokenizer of DualSpeechLM: semantic tokenizer, acoustic codec and speaker encoder as one model."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForAudioTokenization, AutoModelForAudioXVector, PreTrainedModel
from transformers.utils import ModelOutput

from ..configuration.configuration_dual_tokenizer import DualTokenizerConfig
from .audio_parts import AcousticCodec, SemanticTokenizer, SpeakerEncoder, check_waveforms, evaluating, length_mask
from .codebook_patterns import flatten_codebooks, unflatten_codebooks
from .codec_adapters import as_acoustic_codec, check_code_range, mask_lengths
from .speaker_adapters import as_speaker_encoder

# One entry per part, in one order.
PART_CONFIGS = ("semantic_config", "codec_config", "speaker_config")
OUTPUTS = ("us_codes", "acoustic_codes", "speaker_embeds")


@dataclass
class DualTokenizerEncoderOutput(ModelOutput):
    """
    Args:
        us_codes (`torch.LongTensor` of shape `(batch, T)`, *optional*):
            Semantic codes, 0 where the mask is off.
        us_codes_mask (`torch.BoolTensor` of shape `(batch, T)`, *optional*).
        acoustic_codes (`torch.LongTensor` of shape `(batch, A)` or `(batch, A, codebooks)`, *optional*):
            Codec codes as AcousticGPT reads them, without special ids, 0 where the mask is off.
        acoustic_codes_mask (`torch.BoolTensor` of shape `(batch, A)`, *optional*).
        speaker_embeds (`torch.FloatTensor` of shape `(batch, speaker_embedding_size)`, *optional*).
    """

    us_codes: torch.LongTensor | None = None
    us_codes_mask: torch.BoolTensor | None = None
    acoustic_codes: torch.LongTensor | None = None
    acoustic_codes_mask: torch.BoolTensor | None = None
    speaker_embeds: torch.FloatTensor | None = None


@dataclass
class DualTokenizerDecoderOutput(ModelOutput):
    """
    Args:
        audio_values (`torch.FloatTensor` of shape `(batch, 1, samples)`):
            Waveforms at `output_sampling_rate`, zero behind the end of a row.
        num_samples (`torch.LongTensor` of shape `(batch,)`): samples of each row.
    """

    audio_values: torch.FloatTensor | None = None
    num_samples: torch.LongTensor | None = None


class DualTokenizerModel(PreTrainedModel):
    """Waveforms to semantic codes, acoustic codes and speaker vectors; acoustic codes to waveforms.

    Three parts, each optional: `semantic_tokenizer`, `acoustic_codec`, `speaker_encoder`. A part is a model of its own,
    built from its configuration by an Auto class, under its own parameter names; so parts can be exchanged between
    checkpoints. What a part must offer is said by the protocols in `audio_parts.py`.

    Nothing here changes a weight or a buffer: parts run in evaluation mode, without gradients, without autocast, and
    a row of a batch gets what it gets alone. The codec stays in float32 when the rest is loaded in a lower precision.

    Args:
        config (`DualTokenizerConfig`): the configuration.
        semantic_tokenizer, acoustic_codec, speaker_encoder (`PreTrainedModel`, *optional*):
            Ready parts, in place of ones built from the configuration. See [`~DualTokenizerModel.from_parts`].

    Example:

    ```python
    >>> tokenizer = DualTokenizerModel.from_parts(
    ...     acoustic_codec=AutoModel.from_pretrained("kyutai/mimi"), num_codebooks=8
    ... )
    >>> codes = tokenizer.encode(codec_values=waveforms).acoustic_codes  # [B, A, 8] at 12.5 Hz
    >>> audio = tokenizer.decode(codes).audio_values  # [B, 1, 1920 * A]
    ```
    """

    config: DualTokenizerConfig
    base_model_prefix = "dual_tokenizer"
    main_input_name = "input_values"
    input_modalities = ("audio",)
    output_modalities = ("audio",)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["acoustic_codec"]

    def __init__(
        self,
        config: DualTokenizerConfig,
        semantic_tokenizer: PreTrainedModel | None = None,
        acoustic_codec: PreTrainedModel | None = None,
        speaker_encoder: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        self.semantic_tokenizer = _build(semantic_tokenizer, config.semantic_config, AutoModel)
        self.acoustic_codec = _build(
            acoustic_codec, config.codec_config, AutoModel, AutoModelForAudioTokenization, dtype=torch.float32
        )
        self.speaker_encoder = _build(speaker_encoder, config.speaker_config, AutoModelForAudioXVector, AutoModel)
        for name, part in zip(PART_CONFIGS, self._parts(), strict=True):
            if part is not None:
                setattr(config, name, part.config)  # one object
        self._check_parts()
        self.post_init()

    def _parts(self) -> tuple[PreTrainedModel | None, ...]:
        return self.semantic_tokenizer, self.acoustic_codec, self.speaker_encoder

    @classmethod
    def from_parts(
        cls,
        semantic_tokenizer: PreTrainedModel | None = None,
        acoustic_codec: PreTrainedModel | None = None,
        speaker_encoder: PreTrainedModel | None = None,
        **kwargs,
    ) -> "DualTokenizerModel":
        """Compose ready models. They become the children of the new model and are not copied.

        Args:
            semantic_tokenizer (`PreTrainedModel`, *optional*): see `SemanticTokenizer`.
            acoustic_codec (`PreTrainedModel`, *optional*): see `AcousticCodec`.
            speaker_encoder (`PreTrainedModel`, *optional*): see `SpeakerEncoder`.
            kwargs: fields of [`DualTokenizerConfig`], such as `num_codebooks` and `codebook_pattern`.

        Raises:
            ValueError: no part at all, a part that does not fit its protocol, or parts that do not fit together.
        """
        if acoustic_codec is not None:
            as_acoustic_codec(acoustic_codec)  # its errors first
        parts = (semantic_tokenizer, acoustic_codec, speaker_encoder)
        # a composite config resets the attention implementation of its parts: it gets copies
        configs = [None if part is None else copy.deepcopy(part.config) for part in parts]
        config = DualTokenizerConfig(**dict(zip(PART_CONFIGS, configs, strict=True)), **kwargs)
        return cls(config, *parts)

    def _check_parts(self):
        if all(part is None for part in self._parts()):
            raise ValueError(
                "a DualTokenizerModel needs at least one of `semantic_config`, `codec_config` and `speaker_config`"
            )
        semantic, codec, speaker = self._semantic(), self._codec(), self._speaker()
        if semantic is not None and not isinstance(semantic, SemanticTokenizer):
            raise ValueError(
                f"`semantic_tokenizer` of type {self.config.semantic_config.model_type!r} is not supported: it must "
                "be a us_tokenizer, a kmeans_tokenizer, or have the attributes and methods of `SemanticTokenizer`"
            )
        if semantic is not None and speaker is not None and semantic.sampling_rate != speaker.sampling_rate:
            raise ValueError(
                "`semantic_tokenizer` and `speaker_encoder` read the same waveforms and must have one sampling rate, "
                f"got {semantic.sampling_rate} and {speaker.sampling_rate} Hz"
            )
        if codec is not None and self.codebook_pattern != "first" and codec.num_codebooks == 1:
            raise ValueError(
                f"the codebook pattern {self.codebook_pattern!r} needs several codebooks, the codec has 1"
            )

    # Views of the parts, made anew at each use: nothing to keep in step when a part is moved, wrapped or replaced.

    def _semantic(self) -> SemanticTokenizer | None:
        return self.semantic_tokenizer

    def _codec(self) -> AcousticCodec | None:
        if self.acoustic_codec is None:
            return None
        books = 1 if self.config.codebook_pattern == "first" else self.config.num_codebooks
        return as_acoustic_codec(self.acoustic_codec, books)

    def _speaker(self) -> SpeakerEncoder | None:
        if self.speaker_encoder is None:
            return None
        return as_speaker_encoder(self.speaker_encoder, self.config.speaker_do_normalize)

    @property
    def codebook_pattern(self) -> str | None:
        """`"first"`, `"flatten"` or `"delay"`; `None` without a codec."""
        if self.acoustic_codec is None:
            return None
        return self.config.codebook_pattern or ("first" if self._codec().num_codebooks == 1 else "delay")

    @property
    def semantic_codebook_size(self) -> int | None:
        return None if self.semantic_tokenizer is None else self._semantic().codebook_size

    @property
    def semantic_frame_rate(self) -> float | None:
        """Semantic codes per second."""
        return None if self.semantic_tokenizer is None else float(self._semantic().frame_rate)

    @property
    def semantic_sampling_rate(self) -> int | None:
        """Rate of `input_values` in Hz, which the semantic tokenizer and the speaker encoder read."""
        part = self._semantic() or self._speaker()
        return None if part is None else part.sampling_rate

    @property
    def acoustic_codebook_size(self) -> int | None:
        """Ids that AcousticGPT sees per codebook: N, or K * N when flattened."""
        if self.acoustic_codec is None:
            return None
        codec = self._codec()
        return codec.codebook_size * (codec.num_codebooks if self.codebook_pattern == "flatten" else 1)

    @property
    def num_acoustic_codebooks(self) -> int | None:
        """Parallel codebooks of AcousticGPT: K under the delay pattern, else 1."""
        if self.acoustic_codec is None:
            return None
        return self._codec().num_codebooks if self.codebook_pattern == "delay" else 1

    @property
    def acoustic_frame_rate(self) -> float | None:
        """Positions of AcousticGPT per second: frames of the codec, times K when flattened."""
        if self.acoustic_codec is None:
            return None
        codec = self._codec()
        return codec.frame_rate * (codec.num_codebooks if self.codebook_pattern == "flatten" else 1)

    @property
    def codec_sampling_rate(self) -> int | None:
        """Rate of `codec_values` in Hz."""
        return None if self.acoustic_codec is None else self._codec().input_sampling_rate

    @property
    def output_sampling_rate(self) -> int | None:
        """Rate of decoded audio in Hz."""
        return None if self.acoustic_codec is None else self._codec().sampling_rate

    @property
    def speaker_embedding_size(self) -> int | None:
        return None if self.speaker_encoder is None else self._speaker().embedding_size

    def encode(
        self,
        input_values: Tensor | None = None,
        num_samples: Tensor | None = None,
        codec_values: Tensor | None = None,
        num_codec_samples: Tensor | None = None,
        outputs: Sequence[str] | None = None,
    ) -> DualTokenizerEncoderOutput:
        """Codes and speaker vectors of waveforms.

        Args:
            input_values (`torch.Tensor` of shape `(batch, samples)`, *optional*):
                Mono waveforms at `semantic_sampling_rate` (16 kHz), right-padded: give `us_codes` and `speaker_embeds`.
            num_samples (`torch.LongTensor` of shape `(batch,)`, *optional*):
                Samples of each row of `input_values`; all when omitted.
            codec_values (`torch.Tensor` of shape `(batch, samples)`, *optional*):
                The waveforms at `codec_sampling_rate` (24 kHz for WavTokenizer): give `acoustic_codes`.
            num_codec_samples (`torch.LongTensor` of shape `(batch,)`, *optional*):
                Samples of each row of `codec_values`; all when omitted.
            outputs (`tuple[str, ...]`, *optional*):
                Which of `"us_codes"`, `"acoustic_codes"`, `"speaker_embeds"` are computed. Defaults to all that the
                given waveforms and the existing parts allow.

        Returns:
            [`DualTokenizerEncoderOutput`].

        Raises:
            ValueError: nothing to compute, an output whose part or waveform is missing, a waveform that no part reads,
                wrong shapes or lengths, NaN or infinite samples, a row too short for a part.
        """
        sources = {"us_codes": "input_values", "acoustic_codes": "codec_values", "speaker_embeds": "input_values"}
        parts = dict(zip(OUTPUTS, self._parts(), strict=True))
        given = {
            name: check_waveforms(name, values, lengths)
            for name, values, lengths in (
                ("input_values", input_values, num_samples),
                ("codec_values", codec_values, num_codec_samples),
            )
            if values is not None
        }
        if outputs is None:
            outputs = [name for name in OUTPUTS if parts[name] is not None and sources[name] in given]
            unread = [name for name in given if name not in {sources[output] for output in outputs}]
            if unread or not outputs:
                existing = [name for name in OUTPUTS if parts[name] is not None]
                raise ValueError(
                    f"{sorted(given) or 'no waveform'} given; this tokenizer computes {existing} "
                    f"from {sorted({sources[name] for name in existing})}"
                )
        if not outputs:
            raise ValueError(f"`outputs` is empty; give some of {OUTPUTS}, or None for all that can be computed")
        for name in outputs:
            if name not in OUTPUTS:
                raise ValueError(f"`outputs` may hold {OUTPUTS}, got {name!r}")
            if parts[name] is None:
                raise ValueError(f"`outputs` asks for {name!r}, but this tokenizer has no part for it")
            if sources[name] not in given:
                raise ValueError(f"`outputs` asks for {name!r}, which needs `{sources[name]}`")

        result = DualTokenizerEncoderOutput()
        if "us_codes" in outputs:
            device = self.semantic_tokenizer.device
            waveforms, lengths = (values.to(device) for values in given["input_values"])
            with evaluating(self.semantic_tokenizer):
                encoded = self._semantic().encode_waveform(waveforms, lengths)
            mask = encoded.codes_mask.bool()
            result["us_codes"] = encoded.codes.long().masked_fill(~mask, 0)
            result["us_codes_mask"] = mask
        if "acoustic_codes" in outputs:
            codes, mask = self._encode_acoustic(*given["codec_values"])
            result["acoustic_codes"], result["acoustic_codes_mask"] = codes, mask
        if "speaker_embeds" in outputs:
            result["speaker_embeds"] = self._speaker().embed(*given["input_values"])
        return result

    def _encode_acoustic(self, waveforms: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        codec = self._codec()
        encoded = codec.encode(waveforms, num_samples)
        codes, mask = encoded.codes.transpose(1, 2), encoded.codes_mask
        if self.codebook_pattern == "first":
            return codes[..., 0], mask
        if self.codebook_pattern == "delay":
            return codes, mask
        codes = flatten_codebooks(codes, codec.codebook_size, lengths=mask.sum(dim=1), fill=0)
        return codes, mask.repeat_interleave(codec.num_codebooks, dim=1)

    def decode(self, acoustic_codes: Tensor, acoustic_codes_mask: Tensor | None = None) -> DualTokenizerDecoderOutput:
        """Waveforms of acoustic codes.

        Args:
            acoustic_codes (`torch.LongTensor` of shape `(batch, A)` or `(batch, A, codebooks)`):
                Codes as `encode` gives them out, three-dimensional under the delay pattern. What stands where the mask
                is off is not looked at.
            acoustic_codes_mask (`torch.BoolTensor` of shape `(batch, A)`, *optional*):
                True on the first codes of each row, false behind them. A row may be empty. A flattened row that was
                cut inside a frame is decoded up to its last whole frame.

        Returns:
            [`DualTokenizerDecoderOutput`].

        Raises:
            ValueError: no codec, a wrong shape, a code outside the codebook, a mask that is not right-padded, or
                flattened ids out of turn.
        """
        if self.acoustic_codec is None:
            raise ValueError("this tokenizer has no acoustic codec (`codec_config` is None): it cannot decode")
        codec, pattern = self._codec(), self.codebook_pattern
        books = codec.num_codebooks
        delayed = pattern == "delay"
        if acoustic_codes.dim() != 2 + delayed or (delayed and acoustic_codes.shape[2] != books):
            expected = f"[batch, frames, {books}]" if delayed else "[batch, codes]"
            raise ValueError(
                f"`acoustic_codes` must be {expected} under the codebook pattern {pattern!r}, "
                f"got {tuple(acoustic_codes.shape)}"
            )
        if acoustic_codes.is_floating_point():
            raise ValueError(f"`acoustic_codes` must hold integers, got {acoustic_codes.dtype}")
        lengths = mask_lengths("acoustic_codes_mask", acoustic_codes_mask, acoustic_codes)
        valid = length_mask(lengths, acoustic_codes.shape[1])
        check_code_range("acoustic_codes", acoustic_codes[valid], self.acoustic_codebook_size)
        if pattern == "flatten":
            codes = unflatten_codebooks(acoustic_codes.long(), codec.codebook_size, books, lengths=lengths, fill=0)
            lengths = lengths // books
        else:
            codes = acoustic_codes.long().reshape(*acoustic_codes.shape[:2], books)
            codes = codes.masked_fill(~valid[..., None], 0)
        waveforms = codec.decode(codes.transpose(1, 2), length_mask(lengths, codes.shape[1]))
        return DualTokenizerDecoderOutput(
            audio_values=waveforms, num_samples=(lengths * codec.hop_length).to(waveforms.device)
        )

    def forward(
        self,
        input_values: Tensor | None = None,
        num_samples: Tensor | None = None,
        codec_values: Tensor | None = None,
        num_codec_samples: Tensor | None = None,
        outputs: Sequence[str] | None = None,
    ) -> DualTokenizerEncoderOutput:
        """The same as [`~DualTokenizerModel.encode`]."""
        return self.encode(input_values, num_samples, codec_values, num_codec_samples, outputs)


def _build(part: PreTrainedModel | None, config, *auto_classes, **kwargs) -> PreTrainedModel | None:
    """`part`, or a new model of `config` made by the first Auto class that knows it."""
    if part is not None or config is None:
        return part
    for auto_class in auto_classes:
        if type(config) in auto_class._model_mapping:
            model_class = auto_class._model_mapping[type(config)]
            if not (model_class._supports_sdpa or model_class._supports_flash_attn or model_class._supports_flex_attn):
                config._attn_implementation = None  # a choice for the whole model is meant for the other parts
            return auto_class.from_config(config, **kwargs)
    raise ValueError(f"no model is registered for the configuration {type(config).__name__} of a part")


__all__ = ["DualTokenizerDecoderOutput", "DualTokenizerEncoderOutput", "DualTokenizerModel"]
