"""Speech to codes: the causal Whisper-VQ encoder of MOSS-Speech (arXiv 2510.00499) and the tokenizer of GLM-4-Voice."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperEncoderLayer
from transformers.utils import ModelOutput
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..configuration.configuration_whisper_vq import WhisperVqConfig
from .audio_features import log_mel_spectrogram
from .audio_parts import AudioCodes, check_finite, check_waveforms, evaluating, length_mask, rows_by_length
from .cache_naming import CACHE_NAME
from .growing_cache import GrowingCache
from .vector_quantization import EmaVectorQuantizer, keeping_float32
from .whisper_vq_streaming import WhisperVqStream

CONTEXT = 2  # frames to the left that a convolution of width 3 sees
PIECES_PER_BATCH = 32  # encoded together; a piece of 30 s needs about 50 MB at the released size


@dataclass
class WhisperVqOutput(ModelOutput):
    """
    loss (`[]`): the commitment loss times `quantize_commit_coefficient` and `quantize_loss_scale`.
    commitment_loss (`[]`): mean squared distance of the vectors to their codes, for the encoder to follow.
    perplexity (`[]`): number of codes in effective use in this batch.
    last_hidden_state (`[B, T, d_model]`): codebook vectors with a straight-through gradient, plus learned positions:
        what the decoder of the tokenizer's training reads.
    vectors (`[B, T, d_model]`): averaged groups of frames, in front of the quantiser.
    codes (`[B, T]`, long): 0 where the mask is off.
    codes_mask (`[B, T]`, bool): true on the codes of a row, which come first.
    hidden_states, attentions: of the layers, 50 frames per second, when asked for.
    """

    loss: torch.FloatTensor | None = None
    commitment_loss: torch.FloatTensor | None = None
    perplexity: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    vectors: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    codes_mask: torch.BoolTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class WhisperVqState(NamedTuple):
    """What the encoder must remember between two chunks of one recording: about 160 kB per frame of 20 ms (fp32).

    mel: `[B, num_mel_bins, 2]`, the last frames of the features.
    convolved: `[B, d_model, 2]`, the last outputs of the first convolution.
    cache: keys and values of the layers; it is filled in place, the rest is replaced.
    """

    mel: Tensor
    convolved: Tensor
    cache: Cache


class WhisperVqModel(PreTrainedModel):
    """
    Log-mel features (100 frames per second) to 12.5 codes per second.

    Two convolutions that see the past only, learned positions, Whisper's encoder layers under a causal or block-causal
    mask, the average of groups of four frames (the last group is completed with zeros), and the nearest of 16384
    codebook vectors by Euclidean distance; no norm in front of it. Audio longer than 30 s (`config.max_samples`) is
    encoded in pieces of 30 s that know nothing of each other.

    In the mode `"block"` frame i sees frame j when j <= i or both are in the same block, and j is no padding. In the
    mode `"causal"` padding, which comes last, cannot be seen.

    Difference from the release: there the features of a batch are taken from waveforms padded to the longest one, so
    that the last code of a recording of a whole number of codes depends on the batch. Here each row has the codes that
    it has alone.

    Codebook and moving averages stay in fp32 in half-precision models, and distances are computed in fp32. Only
    `forward(..., update_codebook=True)` changes the codebook.

    Example:

    ```python
    >>> import torch
    >>> from dualspeech import WhisperVqConfig, WhisperVqModel

    >>> sizes = dict(d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64)
    >>> model = WhisperVqModel(WhisperVqConfig(quantize_vocab_size=24, **sizes)).eval()
    >>> model.encode_waveform(torch.randn(1, 16000)).codes.shape
    torch.Size([1, 13])
    ```
    """

    config: WhisperVqConfig
    base_model_prefix = "whisper_vq"
    main_input_name = "input_features"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["WhisperEncoderLayer"]
    _keep_in_fp32_modules_strict = ["codebook", "ema_count", "ema_weight"]
    _can_record_outputs = {"hidden_states": WhisperEncoderLayer, "attentions": WhisperAttention}
    _input_embed_layer = "conv1"

    def __init__(self, config: WhisperVqConfig):
        super().__init__(config)
        size = config.d_model
        self.conv1 = nn.Conv1d(config.num_mel_bins, size, CONTEXT + 1)
        self.conv2 = nn.Conv1d(size, size, CONTEXT + 1, stride=2)
        self.embed_positions = nn.Embedding(config.max_source_positions, size)
        self.layers = nn.ModuleList([WhisperEncoderLayer(config) for _ in range(config.encoder_layers)])
        for index, layer in enumerate(self.layers):
            layer.self_attn.layer_idx = index
            layer.self_attn.is_causal = config.attention_mode == "causal"
        self.codebook = nn.Embedding(config.quantize_vocab_size, size, dtype=torch.float32).requires_grad_(False)
        self.embed_positions2 = nn.Embedding(config.max_source_positions // config.pooling_kernel_size, size)
        self.register_buffer("ema_count", torch.ones(config.quantize_vocab_size, dtype=torch.float32))
        self.register_buffer("ema_weight", torch.zeros(config.quantize_vocab_size, size, dtype=torch.float32))
        self.post_init()

    def _apply(self, fn, recurse=True):
        if recurse:
            for module in self.children():
                module._apply(keeping_float32(fn) if module is self.codebook else fn)
        return super()._apply(keeping_float32(fn), recurse=False)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, WhisperVqModel):
            init.ones_(module.ema_count)
            init.copy_(module.ema_weight, module.codebook.weight)

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return self.config.quantize_vocab_size

    @property
    def frame_rate(self) -> float:
        """Codes per second."""
        return self.config.frame_rate

    @property
    def sampling_rate(self) -> int:
        """Hz of the waveforms."""
        return self.config.sampling_rate

    def encode(
        self, input_features: Tensor, attention_mask: Tensor | None = None, num_pieces: Tensor | None = None
    ) -> AudioCodes:
        """
        Codes of log-mel features, in evaluation mode and without autocast.

        Args:
            input_features (`torch.Tensor`): `[P, num_mel_bins, F]` float, F from 1 to `config.max_frames` (3000, 30 s),
                as `MossSpeechFeatureExtractor` gives them.
            attention_mask (`torch.Tensor`, *optional*): `[P, F]`, 1 on the frames of a row, 0 on padding behind them.
                A row has ceil(frames / 8) codes.
            num_pieces (`torch.Tensor`, *optional*): `[B]`, how many rows, one after the other, are pieces of the same
                recording; their codes are joined. Each row is a recording when omitted.

        Returns:
            [`AudioCodes`]: `codes [B, T]` and `codes_mask [B, T]`.

        Raises:
            ValueError: another shape or dtype, NaN or infinite features, a mask that is not right-padded or has no frame
                in a row, numbers of pieces that do not add up to P.
        """
        frame_mask = self._check_features(input_features, attention_mask)
        codes_mask = frame_mask[:, :: self.config.frames_per_code]
        codes = []
        with evaluating(self):
            for start in range(0, len(input_features), PIECES_PER_BATCH):
                rows = slice(start, start + PIECES_PER_BATCH)
                codes.append(self.codes_of(self._hidden_states(input_features[rows], frame_mask[rows])))
        codes = torch.cat(codes).masked_fill(~codes_mask, 0)
        if num_pieces is None:
            return AudioCodes(codes=codes, codes_mask=codes_mask)
        return _join_pieces(codes, codes_mask, num_pieces)

    def encode_waveform(self, waveforms: Tensor, num_samples: Tensor | None = None) -> AudioCodes:
        """
        Codes of waveforms, ceil(samples / 1280) for each piece of 30 s.

        Args:
            waveforms (`torch.Tensor`): `[B, S]` float, mono at 16 kHz, samples in [-1, 1].
            num_samples (`torch.Tensor`, *optional*): `[B]`, samples of each row, at least 1; all S when omitted.

        Returns:
            [`AudioCodes`]: `codes [B, T]` and `codes_mask [B, T]`; each row has the codes that it has alone.

        Raises:
            ValueError: another shape or dtype, NaN or infinite samples, rows without samples.
        """
        waveforms, num_samples = check_waveforms("waveforms", waveforms, num_samples)
        hop, longest = self.config.mel_hop_length, self.config.max_samples
        pieces, num_pieces = [], []
        for row, length in zip(waveforms.to(self.device), num_samples.tolist(), strict=True):
            pieces += row[:length].split(longest)
            num_pieces.append(-(-length // longest))
        lengths = torch.tensor([len(piece) for piece in pieces])
        frames = -(-lengths // self.config.samples_per_code) * self.config.frames_per_code
        features = waveforms.new_zeros(
            len(pieces), self.config.num_mel_bins, int(frames.max()), dtype=torch.float32, device=self.device
        )
        for rows, count in rows_by_length(frames):  # a row's own end is reflected, whatever the others have there
            batch = torch.stack([F.pad(pieces[row], (0, count * hop - len(pieces[row]))) for row in rows])
            features[rows.to(self.device), :, :count] = log_mel_spectrogram(
                batch, self.config.num_mel_bins, count
            ).float()
        mask = length_mask(-(-lengths // hop), features.shape[-1]).to(self.device)
        return self.encode(features, mask, num_pieces)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_features: Tensor,
        attention_mask: Tensor | None = None,
        update_codebook: bool = False,
        restart_codes: bool | float = False,
        **kwargs,
    ) -> WhisperVqOutput:
        """
        Codes and quantised states with a straight-through gradient, for training.

        Args:
            input_features, attention_mask: as for [`~WhisperVqModel.encode`].
            update_codebook (`bool`): let the codebook follow this batch by moving averages, after it was used.
            restart_codes (`bool` or `float`): with `update_codebook`, also replace the codes whose moving count is below
                this number (true: 1) by vectors of this batch.

        Returns:
            [`WhisperVqOutput`].
        """
        frame_mask = self._check_features(input_features, attention_mask)
        codes_mask = frame_mask[:, :: self.config.frames_per_code]
        vectors = self._pool(self._hidden_states(input_features, frame_mask, **kwargs))
        quantized = self._quantizer(restart_codes)(vectors, codes_mask, update_codebook)
        weight = self.config.quantize_commit_coefficient * self.config.quantize_loss_scale
        return WhisperVqOutput(
            loss=weight * quantized.commitment_loss,
            commitment_loss=quantized.commitment_loss,
            perplexity=quantized.perplexity,
            last_hidden_state=quantized.quantized + self.embed_positions2.weight[: vectors.shape[1]],
            vectors=vectors,
            codes=quantized.codes.masked_fill(~codes_mask, 0),
            codes_mask=codes_mask,
        )

    def initial_state(self, batch_size: int = 1) -> WhisperVqState:
        """The state in front of the first chunk of a piece, for `encode_frames`."""
        config, weight = self.config, self.conv1.weight
        return WhisperVqState(
            weight.new_zeros(batch_size, config.num_mel_bins, CONTEXT),
            weight.new_zeros(batch_size, config.d_model, CONTEXT),
            GrowingCache(config, block=config.max_source_positions),
        )

    def encode_frames(
        self, input_features: Tensor, state: WhisperVqState, frame_mask: Tensor | None = None, **kwargs
    ) -> tuple[Tensor, WhisperVqState]:
        """
        Outputs of the last layer for the next frames of a piece.

        Args:
            input_features (`torch.Tensor`): `[B, num_mel_bins, F]`; F is even, except for the last chunk of a piece. In
                the mode `"block"` a chunk ends where a block ends, or the piece.
            state (`WhisperVqState`): what the call before returned. It must not be used again.
            frame_mask (`torch.Tensor`, *optional*): `[B, n]`, true on those frames of 20 ms, of all so far and of this
                chunk, that are no padding; only the mode `"block"` looks at it.

        Returns:
            `(hidden_states [B, ceil(F / 2), d_model], state)`.
        """
        mel = torch.cat([state.mel, input_features.to(self.conv1.weight.dtype)], dim=-1)
        convolved = torch.cat([state.convolved, F.gelu(self.conv1(mel))], dim=-1)
        hidden_states = F.gelu(self.conv2(convolved)).transpose(1, 2)
        start = state.cache.get_seq_length() if state.cache is not None else 0
        hidden_states = hidden_states + self.embed_positions.weight[start : start + hidden_states.shape[1]]
        hidden_states = F.dropout(hidden_states, p=self.config.dropout, training=self.training)
        attention_mask = self._attention_mask(hidden_states, state.cache, frame_mask)
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask, **{CACHE_NAME: state.cache}, **kwargs)
        return hidden_states, WhisperVqState(mel[..., -CONTEXT:], convolved[..., -CONTEXT:], state.cache)

    def codes_of(self, hidden_states: Tensor) -> Tensor:
        """Codes `[B, ceil(n / 4)]` of outputs of the last layer `[B, n, d_model]`, from the start of a group of four."""
        return self._quantizer().encode(self._pool(hidden_states))

    def streaming_encoder(self, maximum: float | None = None) -> WhisperVqStream:
        """The encoder for one recording that comes in chunks; see [`WhisperVqStream`], also for `maximum`."""
        return WhisperVqStream(self, maximum)

    def _attention_mask(self, hidden_states: Tensor, cache: Cache | None, frame_mask: Tensor | None):
        config = self.config
        if config.attention_mode == "causal":
            return create_causal_mask(config, hidden_states, None, cache)
        if "flash" in config._attn_implementation:
            raise ValueError(
                f"attn_implementation: {config._attn_implementation!r} has no block-causal mask; accepted with "
                "attention_mode='block' are 'sdpa', 'eager' and 'flex_attention'"
            )
        size = config.quantize_causal_block_size

        def same_block(batch_index, head_index, query_index, key_index):
            return query_index // size == key_index // size

        return create_causal_mask(config, hidden_states, frame_mask, cache, or_mask_function=same_block)

    def _hidden_states(self, input_features: Tensor, frame_mask: Tensor, **kwargs) -> Tensor:
        """Outputs `[B, ceil(F / 2), d_model]` of the last layer for whole pieces."""
        state = self.initial_state(len(input_features))._replace(cache=None)
        hidden_states, _ = self.encode_frames(input_features, state, frame_mask[:, ::2], **kwargs)
        return hidden_states

    def _pool(self, hidden_states: Tensor) -> Tensor:
        """Means of groups of frames; the last group is completed with zeros and divided by its full size."""
        size = self.config.pooling_kernel_size
        padded = F.pad(hidden_states, (0, 0, 0, -hidden_states.shape[1] % size))
        return padded.unflatten(1, (-1, size)).mean(dim=2)

    def _quantizer(self, restart_codes: bool | float = False) -> EmaVectorQuantizer:
        """The codebook and its averages as a quantiser that works on our tensors, which have their released names."""
        config = self.config
        with torch.device("meta"):
            quantizer = EmaVectorQuantizer(
                config.quantize_vocab_size,
                config.d_model,
                decay=config.quantize_ema_decay,
                dead_code_threshold=float(restart_codes),
            )
        quantizer.embed = self.codebook.weight.detach()
        quantizer.embed_avg, quantizer.cluster_size = self.ema_weight, self.ema_count
        return quantizer

    def _check_features(self, input_features: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The mask of the frames `[B, F]`, bool, after checking both."""
        bins, longest = self.config.num_mel_bins, self.config.max_frames
        shape = tuple(input_features.shape)
        if len(shape) != 3 or shape[1] != bins or not shape[0] or not 1 <= shape[2] <= longest:
            raise ValueError(
                f"input_features: expected [B, {bins}, F] with a row at least and F from 1 to {longest} frames, "
                f"got {shape}"
            )
        if not input_features.is_floating_point():
            raise ValueError(f"input_features: expected floating point, got {input_features.dtype}")
        check_finite("input_features", input_features)
        if attention_mask is None:
            return torch.ones(shape[0], shape[2], dtype=torch.bool, device=input_features.device)
        if tuple(attention_mask.shape) != (shape[0], shape[2]):
            raise ValueError(
                f"attention_mask: expected {(shape[0], shape[2])}, the rows and frames of input_features, "
                f"got {tuple(attention_mask.shape)}"
            )
        mask = attention_mask.to(input_features.device, torch.bool)
        if mask.device.type == "meta" or torch.compiler.is_compiling():
            return mask
        if not bool(mask[:, 0].all()) or bool((mask[:, 1:] & ~mask[:, :-1]).any()):
            raise ValueError("attention_mask: expected 1 on the first frames of each row and 0 behind them")
        return mask


def _join_pieces(codes: Tensor, codes_mask: Tensor, num_pieces: Tensor) -> AudioCodes:
    """Codes `[P, T]` of pieces to those of recordings `[B, T']`."""
    num_pieces = torch.as_tensor(num_pieces, device=codes.device).long()
    if num_pieces.dim() != 1 or int(num_pieces.min()) < 1 or int(num_pieces.sum()) != len(codes):
        raise ValueError(
            f"num_pieces: expected positive numbers [B] that add up to the {len(codes)} rows, got {num_pieces.tolist()}"
        )
    lengths = torch.stack([counts.sum() for counts in codes_mask.sum(dim=1).split(num_pieces.tolist())])
    joined_mask = length_mask(lengths)
    joined = codes.new_zeros(joined_mask.shape)
    joined[joined_mask] = codes[codes_mask]
    return AudioCodes(codes=joined, codes_mask=joined_mask)


__all__ = ["WhisperVqModel", "WhisperVqOutput", "WhisperVqState"]
