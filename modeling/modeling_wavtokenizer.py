"""WavTokenizer, an acoustic codec with one codebook (arXiv 2408.16532): waveform to codes and back."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import EncodecConfig
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedAudioTokenizerBase
from transformers.models.encodec.modeling_encodec import EncodecConv1d, EncodecEncoder
from transformers.utils import ModelOutput, can_return_tuple
from transformers.utils.generic import maybe_autocast

from ..configuration.configuration_wavtokenizer import WavTokenizerConfig
from .audio_parts import check_finite, length_mask
from .vector_quantization import EmaVectorQuantizer, keeping_float32

MAX_LOG_MAGNITUDE = math.log(1e2)  # of the decoded spectrum
MAX_SAMPLES = 2**24  # EnCodec's padding arithmetic is single precision

ENCODER_FIELDS = (
    "sampling_rate",
    "audio_channels",
    "num_filters",
    "hidden_size",
    "upsampling_ratios",
    "num_residual_layers",
    "kernel_size",
    "last_kernel_size",
    "residual_kernel_size",
    "dilation_growth_rate",
    "compress",
    "num_lstm_layers",
    "use_causal_conv",
    "use_conv_shortcut",
    "pad_mode",
    "norm_type",
)


@dataclass
class WavTokenizerEncoderOutput(ModelOutput):
    """
    audio_codes (`[B, 1, A]`, long): codes, 0 behind the end of a row.
    audio_codes_mask (`[B, A]`, bool): true on the ceil(samples / hop_length) codes of a row.
    """

    audio_codes: torch.LongTensor | None = None
    audio_codes_mask: torch.BoolTensor | None = None


@dataclass
class WavTokenizerDecoderOutput(ModelOutput):
    """
    audio_values (`[B, 1, A * hop_length]`): waveforms, zero behind the last code of a row.
    """

    audio_values: torch.FloatTensor | None = None


@dataclass
class WavTokenizerOutput(ModelOutput):
    """
    audio_values (`[B, 1, S]`): reconstruction, as long as the input.
    audio_codes (`[B, 1, A]`, long): codes, 0 behind the end of a row.
    commitment_loss (`[]`): mean squared distance of the encoder's vectors to their codes, for the encoder to follow.
    perplexity (`[]`): number of codes in effective use in this batch.
    """

    audio_values: torch.FloatTensor | None = None
    audio_codes: torch.LongTensor | None = None
    commitment_loss: torch.FloatTensor | None = None
    perplexity: torch.FloatTensor | None = None


class WavTokenizerAdaNorm(nn.Module):
    """Layer norm whose scale and shift are looked up by conditioning id. `[B, T, D]` in and out."""

    def __init__(self, config: WavTokenizerConfig):
        super().__init__()
        self.eps = config.norm_eps
        self.scale = nn.Embedding(config.adanorm_num_embeddings, config.decoder_hidden_size)
        self.shift = nn.Embedding(config.adanorm_num_embeddings, config.decoder_hidden_size)

    def forward(self, hidden_states: Tensor, bandwidth_id: Tensor) -> Tensor:
        hidden_states = F.layer_norm(hidden_states, hidden_states.shape[-1:], eps=self.eps)
        return hidden_states * self.scale(bandwidth_id).unsqueeze(1) + self.shift(bandwidth_id).unsqueeze(1)


class WavTokenizerResidualBlock(nn.Module):
    """Two convolutions behind group norms, on `[B, D, T]`."""

    def __init__(self, config: WavTokenizerConfig):
        super().__init__()
        size, groups = config.decoder_hidden_size, config.decoder_attention_num_groups
        self.norm1 = nn.GroupNorm(groups, size, eps=config.norm_eps)
        self.conv1 = nn.Conv1d(size, size, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, size, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.decoder_dropout)
        self.conv2 = nn.Conv1d(size, size, 3, padding=1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        residual = hidden_states
        hidden_states = self.conv1(F.silu(self.norm1(hidden_states)))
        hidden_states = self.conv2(self.dropout(F.silu(self.norm2(hidden_states))))
        return residual + hidden_states


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.dropout(scores.softmax(dim=-1), p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class WavTokenizerAttention(nn.Module):
    """One head over all time steps behind a group norm, without positions or mask, on `[B, D, T]`."""

    def __init__(self, config: WavTokenizerConfig):
        super().__init__()
        size = config.decoder_hidden_size
        self.config = config
        self.is_causal = False
        self.scaling = size**-0.5
        self.norm = nn.GroupNorm(config.decoder_attention_num_groups, size, eps=config.norm_eps)
        self.q = nn.Conv1d(size, size, 1)
        self.k = nn.Conv1d(size, size, 1)
        self.v = nn.Conv1d(size, size, 1)
        self.proj_out = nn.Conv1d(size, size, 1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        normed = self.norm(hidden_states)
        query, key, value = (layer(normed).transpose(1, 2).unsqueeze(1) for layer in (self.q, self.k, self.v))
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, _ = attention(self, query, key, value, None, scaling=self.scaling, dropout=0.0)
        return hidden_states + self.proj_out(output.squeeze(2).transpose(1, 2))


class WavTokenizerConvNeXtBlock(GradientCheckpointingLayer):
    """Depthwise convolution, conditioned norm and a two-layer perceptron with a scaled residual, on `[B, D, T]`."""

    def __init__(self, config: WavTokenizerConfig):
        super().__init__()
        size = config.decoder_hidden_size
        self.dwconv = nn.Conv1d(size, size, 7, padding=3, groups=size)
        self.norm = WavTokenizerAdaNorm(config)
        self.pwconv1 = nn.Linear(size, config.decoder_intermediate_size)
        self.pwconv2 = nn.Linear(config.decoder_intermediate_size, size)
        self.gamma = nn.Parameter(torch.full((size,), 1 / config.decoder_num_layers))

    def forward(self, hidden_states: Tensor, bandwidth_id: Tensor) -> Tensor:
        update = self.norm(self.dwconv(hidden_states).transpose(1, 2), bandwidth_id)
        update = self.gamma * self.pwconv2(F.gelu(self.pwconv1(update)))
        return hidden_states + update.transpose(1, 2)


class WavTokenizerBackbone(nn.Module):
    """Codebook vectors `[B, T, codebook_dim]` to decoder states `[B, T, decoder_hidden_size]`."""

    def __init__(self, config: WavTokenizerConfig):
        super().__init__()
        size = config.decoder_hidden_size
        self.embed = nn.Conv1d(config.codebook_dim, size, 7, padding=3)
        self.pos_net = nn.Sequential(
            WavTokenizerResidualBlock(config),
            WavTokenizerResidualBlock(config),
            WavTokenizerAttention(config),
            WavTokenizerResidualBlock(config),
            WavTokenizerResidualBlock(config),
            nn.GroupNorm(config.decoder_attention_num_groups, size, eps=config.norm_eps),
        )
        self.norm = WavTokenizerAdaNorm(config)
        self.convnext = nn.ModuleList([WavTokenizerConvNeXtBlock(config) for _ in range(config.decoder_num_layers)])
        self.final_layer_norm = nn.LayerNorm(size, eps=config.norm_eps)

    def forward(self, vectors: Tensor, bandwidth_id: Tensor) -> Tensor:
        hidden_states = self.pos_net(self.embed(vectors.transpose(1, 2)))
        hidden_states = self.norm(hidden_states.transpose(1, 2), bandwidth_id).transpose(1, 2)
        for block in self.convnext:
            hidden_states = block(hidden_states, bandwidth_id)
        return self.final_layer_norm(hidden_states.transpose(1, 2))


class WavTokenizerISTFTHead(nn.Module):
    """Decoder states `[B, T, D]` to a waveform `[B, T * hop_length]` through magnitudes and phases of its spectrum.

    The overlapping frames are cut so that each state owns `hop_length` samples; `torch.istft` cannot cut this way.
    """

    def __init__(self, config: WavTokenizerConfig):
        super().__init__()
        self.n_fft, self.hop_length = config.n_fft, config.hop_length
        self.linear = nn.Linear(config.decoder_hidden_size, self.n_fft + 2)
        self.register_buffer("window", torch.hann_window(self.n_fft, dtype=torch.float32), persistent=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        log_magnitude, phase = self.linear(hidden_states).transpose(1, 2).chunk(2, dim=1)
        magnitude = log_magnitude.clamp(max=MAX_LOG_MAGNITUDE).exp()
        frames = torch.fft.irfft(torch.polar(magnitude, phase), n=self.n_fft, dim=1) * self.window[:, None]
        envelope = self.window.square()[None, :, None].expand(1, -1, frames.shape[-1])
        return self._overlap_add(frames) / self._overlap_add(envelope)

    def _overlap_add(self, frames: Tensor) -> Tensor:
        num_frames = frames.shape[-1]
        size = (num_frames - 1) * self.hop_length + self.n_fft
        summed = F.fold(frames, (1, size), (1, self.n_fft), stride=(1, self.hop_length))[:, 0, 0]
        start = (self.n_fft - self.hop_length) // 2
        return summed[:, start : start + num_frames * self.hop_length]


class WavTokenizerModel(PreTrainedAudioTokenizerBase):
    """
    WavTokenizer: SEANet encoder, one codebook, a decoder with attention and ConvNeXt blocks, inverse Fourier head.

    Rows of different lengths are computed in groups of equal length, each without padding: attention and norms see a
    whole row, so that a padded batch gives exactly the codes and samples of the single rows.

    Everything is computed in float32. Half precision changes most codes, so autocast is switched off inside and the
    weights stay in float32 when the model is loaded in, or cast to, a half type (also as part of another model).
    On a GPU switch TF32 convolutions off too (`torch.backends.cudnn.allow_tf32 = False`): they round like half types.

    Only `forward(..., update_codebook=True)` changes the codebook.

    Example:

    ```python
    >>> import torch
    >>> from dualspeech import WavTokenizerConfig, WavTokenizerModel

    >>> sizes = dict(num_filters=4, hidden_size=16, codebook_dim=16, decoder_hidden_size=32, decoder_num_layers=2)
    >>> model = WavTokenizerModel(WavTokenizerConfig(codebook_size=64, decoder_intermediate_size=64, **sizes)).eval()
    >>> codes = model.encode(torch.randn(1, 1, 24000)).audio_codes
    >>> codes.shape, model.decode(codes).audio_values.shape
    (torch.Size([1, 1, 40]), torch.Size([1, 1, 24000]))
    ```
    """

    config: WavTokenizerConfig
    base_model_prefix = "wavtokenizer"
    main_input_name = "input_values"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["EncodecEncoder", "WavTokenizerBackbone", "WavTokenizerISTFTHead"]

    def __init__(self, config: WavTokenizerConfig):
        super().__init__(config)
        self.encoder = EncodecEncoder(EncodecConfig(**{name: getattr(config, name) for name in ENCODER_FIELDS}))
        self.quantizer = EmaVectorQuantizer(
            config.codebook_size,
            config.codebook_dim,
            decay=config.vq_decay,
            eps=config.vq_eps,
            kmeans_init=config.kmeans_init,
            kmeans_iterations=config.kmeans_iterations,
            dead_code_threshold=config.dead_code_threshold,
        )
        self.backbone = WavTokenizerBackbone(config)
        self.head = WavTokenizerISTFTHead(config)
        self.float()  # also where a half type is the default while a checkpoint is loaded
        self.post_init()

    def _apply(self, fn, recurse=True):
        return super()._apply(keeping_float32(fn), recurse)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, EncodecConv1d):
            self._init_encoder_convolution(module)
        elif isinstance(module, (nn.Conv1d, nn.Linear)) and not nn.utils.parametrize.is_parametrized(module):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, WavTokenizerAdaNorm):
            init.ones_(module.scale.weight)
            init.zeros_(module.shift.weight)
        elif isinstance(module, WavTokenizerConvNeXtBlock):
            init.constant_(module.gamma, 1 / self.config.decoder_num_layers)
        elif isinstance(module, WavTokenizerISTFTHead):
            init.copy_(module.window, torch.hann_window(module.n_fft, dtype=torch.float32))
        elif isinstance(module, EmaVectorQuantizer):
            module.init_buffers()

    @staticmethod
    def _init_encoder_convolution(module: EncodecConv1d) -> None:
        conv = module.conv
        stride, kernel = conv.stride[0], (conv.kernel_size[0] - 1) * conv.dilation[0] + 1
        init.constant_(module.stride, stride)
        init.constant_(module.kernel_size, kernel)
        init.constant_(module.padding_total, kernel - stride)
        if nn.utils.parametrize.is_parametrized(conv):
            scale, direction = conv.parametrizations.weight.original0, conv.parametrizations.weight.original1
            init.kaiming_normal_(direction)
            init.copy_(scale, direction.flatten(1).norm(dim=1).view_as(scale))
        else:
            init.kaiming_normal_(conv.weight)

    @can_return_tuple
    @torch.no_grad()
    def encode(self, input_values: Tensor, padding_mask: Tensor | None = None) -> WavTokenizerEncoderOutput:
        """
        Codes of waveforms.

        Args:
            input_values (`torch.Tensor`): `[B, 1, S]`, mono at `config.sampling_rate`, samples in [-1, 1].
            padding_mask (`torch.Tensor`, *optional*): `[B, S]` or `[B, 1, S]`, 1 on samples, 0 on padding behind them,
                which may be anything.

        Raises:
            ValueError: another shape, integer, NaN or infinite samples, a row without samples or of more than 2^24
                samples, a mask that is not right-padded.
        """
        vectors, mask = self._encode_vectors(input_values, padding_mask)
        codes = self.quantizer.encode(vectors).masked_fill(~mask, 0)
        return WavTokenizerEncoderOutput(audio_codes=codes.unsqueeze(1), audio_codes_mask=mask)

    @can_return_tuple
    def decode(
        self,
        audio_codes: torch.LongTensor,
        audio_codes_mask: Tensor | None = None,
        bandwidth_id: int | torch.LongTensor = 0,
    ) -> WavTokenizerDecoderOutput:
        """
        Waveforms of codes; `hop_length` samples per code.

        Args:
            audio_codes (`torch.LongTensor`): `[B, 1, A]`; any value where the mask is off.
            audio_codes_mask (`torch.Tensor`, *optional*): `[B, A]`, 1 on codes, 0 on padding behind them.
            bandwidth_id (`int` or `torch.LongTensor`): conditioning id of all rows, or `[B]`. The released system
                always decodes with 0.

        Raises:
            ValueError: another shape, codes outside the codebook, a mask that is not right-padded, an unknown id.
        """
        if audio_codes.ndim != 3 or audio_codes.shape[1] != 1:
            raise ValueError(f"audio_codes must be [batch, 1, codes], got {tuple(audio_codes.shape)}")
        if audio_codes.is_floating_point():
            raise ValueError(f"audio_codes must be integers, got {audio_codes.dtype}")
        codes = audio_codes[:, 0]
        mask = torch.ones_like(codes, dtype=torch.bool)
        if audio_codes_mask is not None:
            mask = _right_padded("audio_codes_mask", audio_codes_mask, codes.shape).to(codes.device)
        vectors = self.quantizer.decode(codes.masked_fill(~mask, 0))
        return WavTokenizerDecoderOutput(audio_values=self._decode_vectors(vectors, mask, bandwidth_id))

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        bandwidth_id: int | torch.LongTensor = 0,
        update_codebook: bool = False,
        **kwargs,
    ) -> WavTokenizerOutput:
        """
        Encode and decode with a straight-through gradient, for training.

        Args:
            input_values, padding_mask: as for `encode`.
            bandwidth_id: as for `decode`. The released recipe draws one id per batch.
            update_codebook (`bool`): let the codebook follow this batch.
        """
        vectors, mask = self._encode_vectors(input_values, padding_mask)
        quantized = self.quantizer(vectors, mask, update_codebook)
        audio_values = self._decode_vectors(quantized.quantized, mask, bandwidth_id)
        return WavTokenizerOutput(
            audio_values=audio_values[..., : input_values.shape[-1]],
            audio_codes=quantized.codes.masked_fill(~mask, 0).unsqueeze(1),
            commitment_loss=quantized.commitment_loss,
            perplexity=quantized.perplexity,
        )

    def _encode_vectors(self, input_values: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Vectors in front of the quantiser `[B, A, D]` (zero where masked) and their mask `[B, A]`."""
        if input_values.ndim != 3 or input_values.shape[1] != 1:
            raise ValueError(f"input_values must be mono, [batch, 1, samples], got {tuple(input_values.shape)}")
        if not input_values.is_floating_point():
            raise ValueError(f"input_values must be floating point in [-1, 1], got {input_values.dtype}")
        batch, _, samples = input_values.shape
        num_samples = torch.full((batch,), samples)
        if padding_mask is not None:
            mask = padding_mask[:, 0] if padding_mask.ndim == 3 else padding_mask
            num_samples = _right_padded("padding_mask", mask, (batch, samples)).sum(dim=1)
        shortest, longest = (int(num_samples.min()), int(num_samples.max())) if batch else (1, 1)
        if shortest < 1 or longest > MAX_SAMPLES:
            raise ValueError(
                f"input_values: each row must have 1 to {MAX_SAMPLES} samples, got rows of {shortest} to {longest}"
            )
        input_values = input_values.to(self.device, self.dtype)
        check_finite("input_values", input_values, length_mask(num_samples.to(self.device), samples)[:, None])
        num_codes = -(-num_samples.to(self.device) // self.config.hop_length)
        mask = torch.arange(-(-longest // self.config.hop_length), device=self.device) < num_codes[:, None]
        vectors = input_values.new_zeros(*mask.shape, self.config.hidden_size)
        with maybe_autocast(self.device.type, enabled=False):
            for length, rows in _rows_by_length(num_samples):
                encoded = self.encoder(input_values[rows, :, :length]).transpose(1, 2)
                vectors[rows, : encoded.shape[1]] = encoded
        return vectors, mask

    def _decode_vectors(self, vectors: Tensor, mask: Tensor, bandwidth_id: int | Tensor) -> Tensor:
        """Waveforms `[B, 1, A * hop_length]` of codebook vectors `[B, A, D]`."""
        batch, codes, _ = vectors.shape
        ids = torch.as_tensor(bandwidth_id, device=vectors.device)
        if ids.shape not in ((), (batch,)) or ids.is_floating_point():
            raise ValueError(f"bandwidth_id must be an integer or [{batch}] integers, got {bandwidth_id}")
        if bool(((ids < 0) | (ids >= self.config.adanorm_num_embeddings)).any()):
            raise ValueError(
                f"bandwidth_id must be between 0 and {self.config.adanorm_num_embeddings - 1}, got {bandwidth_id}"
            )
        ids = ids.expand(batch)
        audio_values = vectors.new_zeros(batch, codes * self.config.hop_length)
        with maybe_autocast(vectors.device.type, enabled=False):
            for length, rows in _rows_by_length(mask.sum(dim=1)):
                if length:
                    decoded = self.head(self.backbone(vectors[rows, :length], ids[rows]))
                    audio_values[rows, : decoded.shape[1]] = decoded
        return audio_values.unsqueeze(1)


def _right_padded(name: str, mask: Tensor, shape: tuple[int, int]) -> Tensor:
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(f"{name} must be {tuple(shape)}, got {tuple(mask.shape)}")
    mask = mask.bool()
    if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise ValueError(f"{name} must be 1 on the first positions of a row and 0 behind them")
    return mask


def _rows_by_length(lengths: Tensor) -> Iterator[tuple[int, list[int]]]:
    """Each length with the rows that have it."""
    groups: dict[int, list[int]] = {}
    for row, length in enumerate(lengths.tolist()):
        groups.setdefault(length, []).append(row)
    yield from groups.items()


__all__ = [
    "WavTokenizerDecoderOutput",
    "WavTokenizerEncoderOutput",
    "WavTokenizerModel",
    "WavTokenizerOutput",
]
