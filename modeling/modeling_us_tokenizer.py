"""USTokenizer, the understanding-driven speech tokenizer of DualSpeechLM (arXiv 2508.08961)."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder, WhisperModel
from transformers.utils import ModelOutput, can_return_tuple

from ..configuration.configuration_us_tokenizer import UsTokenizerConfig, whisper_encoder_config
from .audio_features import log_mel_spectrogram
from .audio_parts import check_finite, evaluating, length_mask
from .us_tokenizer_codec import UsTokenizerCodecDecoder, UsTokenizerCodecEncoder
from .vector_quantization import EmaVectorQuantizer


@dataclass
class UsTokenizerEncoderOutput(ModelOutput):
    """
    codes (`[B, T]`, long): USTokens at 25 Hz; 0 where the mask is off.
    codes_mask (`[B, T]`, bool): true on the codes of each row.
    vectors (`[B, T, code_dim]`, with `output_vectors=True`): what was quantised.
    """

    codes: torch.LongTensor | None = None
    codes_mask: torch.BoolTensor | None = None
    vectors: torch.Tensor | None = None


@dataclass
class UsTokenizerOutput(ModelOutput):
    """
    loss (`[]`): commitment and reconstruction loss with the weights of the configuration.
    commitment_loss, reconstruction_loss (`[]`, fp32): means over the valid elements, not weighted.
    perplexity (`[]`, fp32): of the code usage of the batch.
    codes (`[B, T]`, long), codes_mask (`[B, T]`, bool): see [`UsTokenizerEncoderOutput`].
    quantized (`[B, T, code_dim]`): codebook vectors with straight-through gradient.
    reconstruction (`[B, s (T - 1) + 1, hidden_size]`): reconstructed encoder features, 0 behind the end of a row.
    hidden_states, attentions: of the speech encoder, with `output_hidden_states=True` or `output_attentions=True`.
    """

    loss: torch.Tensor | None = None
    commitment_loss: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    perplexity: torch.Tensor | None = None
    codes: torch.LongTensor | None = None
    codes_mask: torch.BoolTensor | None = None
    quantized: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class _Speech(NamedTuple):
    features: torch.Tensor  # [B, F, hidden_size], the target of the reconstruction
    frames: torch.LongTensor  # [B], valid frames
    vectors: torch.Tensor  # [B, T, code_dim], in front of the quantiser
    codes_mask: torch.BoolTensor  # [B, T]
    encoder_output: BaseModelOutput


class UsTokenizerPreTrainedModel(PreTrainedModel):
    config: UsTokenizerConfig
    base_model_prefix = "us_tokenizer"
    main_input_name = "input_features"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["UsTokenizerCodecEncoder", "UsTokenizerCodecDecoder"]
    _keep_in_fp32_modules_strict = ["quantizer"]

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, EmaVectorQuantizer):
            module.init_buffers()
        elif isinstance(module, (nn.Conv1d, nn.ConvTranspose1d, nn.Linear)):
            # PyTorch's scale, as released: nothing is normalised here, so the width must not change the scale.
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)


class UsTokenizerModel(UsTokenizerPreTrainedModel):
    """Speech to 25 discrete codes (USTokens) per second, and the codes back to features of the speech encoder.

    log-mel of 30 s -> Whisper encoder, cut to floor(samples / 320) frames -> strided convolution -> convolutional
    encoder -> one codebook -> convolutional decoder -> transposed convolution.

    Where it differs from the released code:
    - `encode` never changes the codebook. The released token extraction runs in training mode, so that its codes
      depend on the files before. Only a `forward` in training mode with gradients enabled updates the codebook, once
      per micro-batch.
    - `mask_padding` (on by default): the frames behind a shorter item are cut off, so that a batch gives what single
      items give. The released code keeps as many frames for every item as the longest has.
    - Statistics of the codebook are added over ranks; the released code uses those of rank 0 only.
    - Codes that are no longer used are restarted (`dead_code_threshold`).
    - When the speech encoder is trained, it gets no gradient as the target of the reconstruction.

    Precision: the quantiser stays in fp32 when the model is loaded in, or cast to, a half type, and distances are
    computed in fp32 under autocast, which `encode` switches off altogether (computed in bf16, as in the released code on a GPU, 8 to 11 % of the codes of random vectors changed;
    with fp32 distances of bf16 vectors 0.5 to 1 %). Extract the codes of a data set in fp32: a tiny random model
    changed 1 % of its codes in bf16.

    Example:

    ```python
    >>> import torch
    >>> from transformers import AutoModel
    >>> import dualspeech

    >>> model = AutoModel.from_pretrained("path/to/us_tokenizer").eval()
    >>> output = model.encode_waveform(torch.randn(1, 16000) * 0.1)
    >>> output.codes.shape
    torch.Size([1, 25])
    ```
    """

    _keys_to_ignore_on_load_unexpected = [r"^adapter\."]

    def __init__(self, config: UsTokenizerConfig):
        super().__init__(config)
        self.encoder = WhisperEncoder._from_config(config.encoder_config)
        self.codec_encoder = UsTokenizerCodecEncoder(config)
        self.quantizer = EmaVectorQuantizer(
            config.codebook_size,
            config.code_dim,
            decay=config.vq_decay,
            eps=config.vq_eps,
            kmeans_init=config.kmeans_init,
            kmeans_iterations=config.kmeans_iterations,
            dead_code_threshold=config.dead_code_threshold,
        )
        self.codec_decoder = UsTokenizerCodecDecoder(config)
        self.post_init()

    @classmethod
    def from_whisper(cls, name_or_path: str, **kwargs) -> "UsTokenizerModel":
        """A new tokenizer around the encoder of a Whisper checkpoint (folder or Hub id); `kwargs` are fields of
        [`UsTokenizerConfig`]. `max_seconds` is what an encoder with fewer positions than Whisper's has room for."""
        whisper = WhisperModel.from_pretrained(name_or_path, dtype=torch.float32)
        encoder_config = whisper_encoder_config(whisper.config)
        room = encoder_config.max_source_positions * UsTokenizerConfig.hop_length / UsTokenizerConfig.sampling_rate
        kwargs = {"max_seconds": min(UsTokenizerConfig.max_seconds, room), **kwargs}
        model = cls(UsTokenizerConfig(encoder_config=encoder_config, hidden_size=encoder_config.d_model, **kwargs))
        model.encoder.load_state_dict(whisper.encoder.state_dict())
        return model

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return self.config.codebook_size

    @property
    def frame_rate(self) -> float:
        """Codes per second."""
        return self.config.frame_rate

    @property
    def sampling_rate(self) -> int:
        """Hz of the waveforms."""
        return self.config.sampling_rate

    def freeze_encoder(self) -> None:
        """Exclude the speech encoder from training; it then stays in evaluation mode."""
        self.encoder.requires_grad_(False)
        self.encoder.eval()

    def train(self, mode: bool = True):
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.encoder.parameters()):
            self.encoder.eval()
        return self

    def encode(
        self,
        input_features: torch.Tensor,
        num_samples: torch.LongTensor | None = None,
        output_vectors: bool = False,
    ) -> UsTokenizerEncoderOutput:
        """The codes of a batch of utterances, in evaluation mode and without autocast. Changes no state.

        Args:
            input_features (`torch.Tensor`): log-mel `[B, num_mel_bins, 3000]` of 30 s, as `WhisperFeatureExtractor`
                or `log_mel_spectrogram` gives it.
            num_samples (`torch.LongTensor`, *optional*): `[B]`, 16 kHz samples of each utterance in front of the
                padding; the whole 30 s by default. A row has ceil(floor(num_samples / 320) / 2) codes.
            output_vectors (`bool`): whether to return the vectors in front of the quantiser.

        Raises:
            ValueError: features of another shape, or NaN or infinite; a length outside `min_seconds`, `max_seconds`.
        """
        with evaluating(self):
            speech = self._analyse(input_features, num_samples)
            codes = self.quantizer.encode(speech.vectors).masked_fill(~speech.codes_mask, 0)
        vectors = speech.vectors * speech.codes_mask[..., None] if output_vectors else None
        return UsTokenizerEncoderOutput(codes=codes, codes_mask=speech.codes_mask, vectors=vectors)

    def encode_waveform(
        self, waveforms: torch.Tensor, num_samples: torch.LongTensor | None = None, output_vectors: bool = False
    ) -> UsTokenizerEncoderOutput:
        """[`~UsTokenizerModel.encode`] of `waveforms [B, S]` (16 kHz, float, whatever stands behind `num_samples [B]`).

        Raises:
            ValueError: as `encode`, and for waveforms of another shape or dtype.
        """
        if waveforms.dim() != 2 or not len(waveforms) or not waveforms.is_floating_point():
            raise ValueError(
                f"waveforms: expected floating point [B, S] with a row at least, got {waveforms.dtype} "
                f"{tuple(waveforms.shape)}."
            )
        length = waveforms.shape[1]
        num_samples = self._check_num_samples(length if num_samples is None else num_samples, waveforms, length)
        behind = torch.arange(length, device=waveforms.device) >= num_samples[:, None]
        waveforms = waveforms.masked_fill(behind, 0.0)[:, : self.config.max_samples]
        check_finite("waveforms", waveforms)
        features = log_mel_spectrogram(waveforms, self.config.encoder_config.num_mel_bins, self._num_mel_frames)
        return self.encode(features, num_samples, output_vectors)

    def decode_features(self, codes: torch.LongTensor, codes_mask: torch.BoolTensor | None = None) -> torch.Tensor:
        """Features of the speech encoder `[B, 2 T - 1, hidden_size]` (50 Hz) of `codes [B, T]`.

        Args:
            codes (`torch.LongTensor`): `[B, T]`; any value where the mask is off.
            codes_mask (`torch.BoolTensor`, *optional*): `[B, T]`, true on valid codes, which come first. Features of
                a row with n codes are 0 from frame 2 n - 1.

        Raises:
            ValueError: codes of another shape, none, no integers, or a valid one outside the codebook.
        """
        if codes.dim() != 2 or not codes.numel():
            raise ValueError(f"codes: expected [B, T] with a code at least, got {tuple(codes.shape)}.")
        if codes_mask is None:
            codes_mask = torch.ones_like(codes, dtype=torch.bool)
        vectors = self.quantizer.decode(codes.masked_fill(~codes_mask.bool(), 0))
        return self._synthesise(vectors.to(self.dtype), codes_mask.bool())

    @can_return_tuple
    def forward(
        self, input_features: torch.Tensor, num_samples: torch.LongTensor | None = None, **kwargs
    ) -> UsTokenizerOutput:
        """Codes, reconstruction and their losses. In training mode, with gradients enabled, the codebook is updated
        after it was used.

        Args:
            input_features (`torch.Tensor`): as for [`~UsTokenizerModel.encode`].
            num_samples (`torch.LongTensor`, *optional*): as for [`~UsTokenizerModel.encode`].
        """
        speech = self._analyse(input_features, num_samples, **kwargs)
        update_codebook = self.training and torch.is_grad_enabled()
        quantizer_output = self.quantizer(speech.vectors, speech.codes_mask, update_codebook=update_codebook)
        reconstruction = self._synthesise(quantizer_output.quantized, speech.codes_mask)
        reconstruction_loss = self._reconstruction_loss(reconstruction, speech)
        return UsTokenizerOutput(
            loss=self.config.commitment_loss_weight * quantizer_output.commitment_loss
            + self.config.reconstruction_loss_weight * reconstruction_loss,
            commitment_loss=quantizer_output.commitment_loss,
            reconstruction_loss=reconstruction_loss,
            perplexity=quantizer_output.perplexity,
            codes=quantizer_output.codes.masked_fill(~speech.codes_mask, 0),
            codes_mask=speech.codes_mask,
            quantized=quantizer_output.quantized,
            reconstruction=reconstruction,
            hidden_states=speech.encoder_output.hidden_states,
            attentions=speech.encoder_output.attentions,
        )

    @property
    def _num_mel_frames(self) -> int:
        return 2 * self.config.encoder_config.max_source_positions

    def _analyse(self, input_features, num_samples, **kwargs) -> _Speech:
        expected = (self.config.encoder_config.num_mel_bins, self._num_mel_frames)
        if input_features.dim() != 3 or not len(input_features) or tuple(input_features.shape[1:]) != expected:
            raise ValueError(
                f"input_features: expected [B, {expected[0]}, {expected[1]}] with a row at least, "
                f"got {tuple(input_features.shape)}."
            )
        check_finite("input_features", input_features)
        encoder_output = self.encoder(input_features.to(self.encoder.conv1.weight.dtype), **kwargs)
        features = encoder_output.last_hidden_state
        if num_samples is None:
            frames = torch.full((len(features),), features.shape[1], device=features.device)
        else:
            frames = self.config.num_frames(self._check_num_samples(num_samples, features))
        longest = int(frames.max()) if num_samples is not None else features.shape[1]
        if not self.config.mask_padding:
            frames = torch.full_like(frames, longest)
        features = features[:, :longest]
        frame_mask = length_mask(frames, longest)
        codes_mask = length_mask(-(-frames // self.config.downsample), -(-longest // self.config.downsample))
        vectors = self.codec_encoder(features.transpose(1, 2), frame_mask[:, None], codes_mask[:, None])
        return _Speech(features, frames, vectors.transpose(1, 2), codes_mask, encoder_output)

    def _synthesise(self, vectors: torch.Tensor, codes_mask: torch.BoolTensor) -> torch.Tensor:
        features = self.codec_decoder(vectors.transpose(1, 2), codes_mask[:, None]).transpose(1, 2)
        frames = self.config.downsample * (codes_mask.sum(dim=1) - 1) + 1
        return features * length_mask(frames, features.shape[1])[..., None]

    def _reconstruction_loss(self, reconstruction: torch.Tensor, speech: _Speech) -> torch.Tensor:
        """Mean squared error over the frames that both sides of a row have (equation 1)."""
        length = min(reconstruction.shape[1], speech.features.shape[1])
        available = self.config.downsample * (speech.codes_mask.sum(dim=1) - 1) + 1
        mask = length_mask(torch.minimum(speech.frames, available), length)
        error = reconstruction[:, :length].float() - speech.features[:, :length].detach().float()
        return (error.pow(2).mean(dim=-1) * mask).sum() / mask.sum()

    def _check_num_samples(self, num_samples, like: torch.Tensor, limit: int | None = None) -> torch.LongTensor:
        """`num_samples` as a tensor `[B]` on the device of `like [B, ...]`, after checking its values."""
        num_samples = torch.as_tensor(num_samples, device=like.device)
        if num_samples.dim() == 0:
            num_samples = num_samples.expand(len(like))
        if num_samples.shape != like.shape[:1] or num_samples.is_floating_point():
            raise ValueError(
                f"num_samples: expected {len(like)} integers, got {num_samples.dtype} {tuple(num_samples.shape)}."
            )
        low, high, config = int(num_samples.min()), int(num_samples.max()), self.config
        if low < config.min_samples or high > config.max_samples:
            raise ValueError(
                f"num_samples: {low if low < config.min_samples else high} samples are outside the accepted "
                f"{config.min_samples} to {config.max_samples} ({config.min_seconds} to {config.max_seconds} seconds)."
            )
        if limit is not None and high > limit:
            raise ValueError(f"num_samples: {high} is more than the {limit} samples of the waveforms.")
        return num_samples


__all__ = [
    "UsTokenizerEncoderOutput",
    "UsTokenizerModel",
    "UsTokenizerOutput",
    "UsTokenizerPreTrainedModel",
]
