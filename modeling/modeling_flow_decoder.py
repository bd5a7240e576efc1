"""Speech codes to a mel spectrogram by conditional flow matching (MOSS-Speech, arXiv 2510.00499; CosyVoice 2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from ..configuration.configuration_flow_decoder import FlowDecoderConfig
from .audio_parts import check_finite, evaluating, length_mask
from .flow_encoder import FlowEncoder, FlowEncoderAttention, at_least_float32
from .flow_estimator import FlowEstimator
from .flow_inputs import check_code_values, check_codes, check_length, check_prompts, check_speaker, right_padded
from .flow_masks import ChunkGrid, attention_bias
from .flow_sampler import FlowConditions, draw, guidance, sample, time_steps, velocity_loss
from .flow_streaming import FlowStream
from .vector_quantization import keeping_float32


@dataclass
class FlowDecoderOutput(ModelOutput):
    """
    loss (`[]`, fp32): mean squared error of the velocity over the valid frames and bins; `None` without `mel`. With
        `num_items_in_batch`, the share of this batch in the mean over the whole optimiser step.
    flow_loss (`[]`, fp32): the mean over this batch.
    conditioning (`[B, num_mel_bins, upsample_ratio * T]`): the encoder's prediction, 0 on the padding.
    """

    loss: torch.FloatTensor | None = None
    flow_loss: torch.FloatTensor | None = None
    conditioning: torch.FloatTensor | None = None


class FlowNoise(nn.Module):
    """The noise from which every utterance starts: frame t of it belongs to frame t, prompt included.

    Drawn on the CPU, so that it is the same everywhere; no part of a checkpoint. Kept in fp32.
    """

    def __init__(self, config: FlowDecoderConfig):
        super().__init__()
        self.shape, self.seed = (config.num_mel_bins, config.max_mel_frames), config.noise_seed
        table = torch.empty(self.shape, dtype=torch.float32)
        self.register_buffer("table", table if table.is_meta else self.draw().to(table.device), persistent=False)

    def draw(self) -> Tensor:
        """The table `[num_mel_bins, max_mel_frames]`, made anew."""
        generator = torch.Generator("cpu").manual_seed(self.seed)
        return torch.randn(1, *self.shape, generator=generator, dtype=torch.float32, device="cpu")[0]

    def _apply(self, fn, recurse=True):
        return super()._apply(keeping_float32(fn), recurse)

    def forward(self, start: int, end: int) -> Tensor:
        """Frames `start` to `end - 1`, `[1, end - start, num_mel_bins]`."""
        return self.table[:, start:end].T[None]


class _Joined(NamedTuple):
    """Prompts and codes of a batch, each row without a gap."""

    codes: Tensor  # [B, N]
    lengths: Tensor  # [B], on the CPU
    prompt_lengths: Tensor  # [B], on the CPU
    known: Tensor  # [B, upsample_ratio * N, num_mel_bins]


class FlowDecoderModel(PreTrainedModel):
    """
    Codes -> encoder (up-sampling to mel rate) -> 10 Euler steps of a velocity estimator -> mel spectrogram.

    A voice prompt (codes and mel frames of a recording) stands in front of the codes; its frames are dropped from the
    result. The same weights decode in two ways: `decode(...)` with full attention, and with `streaming=True` in
    chunks, where what was decoded does not change when codes are added: `stream(...)` then gives the same frames piece
    by piece.

    A padded batch gives each row what it gets alone, with prompts of any length. The steps are summed in fp32 whatever
    the dtype of the weights, and mel spectrograms are fp32.

    Example:

    ```python
    >>> import torch
    >>> from dualspeech import FlowDecoderConfig, FlowDecoderModel

    >>> sizes = dict(hidden_size=32, num_attention_heads=2, intermediate_size=64, num_hidden_layers=1)
    >>> sizes |= dict(estimator_channels=16, estimator_num_mid_stages=1, estimator_num_layers=1, num_upsampled_layers=1)
    >>> model = FlowDecoderModel(FlowDecoderConfig(**sizes)).eval()
    >>> model.decode(torch.randint(16384, (1, 10))).shape
    torch.Size([1, 80, 40])
    ```
    """

    config: FlowDecoderConfig
    base_model_prefix = "flow_decoder"
    main_input_name = "codes"
    output_modalities = ("audio",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _input_embed_layer = "code_embedding"
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["FlowEncoderLayer", "FlowStage", "FlowEncoderInput", "FlowLookahead"]

    def __init__(self, config: FlowDecoderConfig):
        super().__init__(config)
        self.code_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.speaker_proj = nn.Linear(config.speaker_embedding_size, config.num_mel_bins)
        self.encoder = FlowEncoder(config)
        self.encoder_proj = nn.Linear(config.hidden_size, config.num_mel_bins)
        self.estimator = FlowEstimator(config)
        self.noise = FlowNoise(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, FlowNoise):
            init.copy_(module.table, module.draw())
        elif isinstance(module, FlowEncoderAttention):
            init.xavier_uniform_(module.pos_bias_u)
            init.xavier_uniform_(module.pos_bias_v)

    @property
    def codebook_size(self) -> int:
        """Codes in use."""
        return self.config.codebook_size

    @property
    def frame_rate(self) -> float:
        """Codes per second."""
        return self.config.frame_rate

    def chunk_grid(self, chunk_size: int | None = None, left_context: int | None = None) -> ChunkGrid:
        """Chunks in codes, after checking the settings; `chunk_size` as configured by default."""
        return ChunkGrid.of(self.config, chunk_size, left_context)

    def check_code_values(self, name: str, codes: Tensor) -> None:
        """Raise a `ValueError` that names `name` unless `codes` are integers of the codebook."""
        check_code_values(self.config, name, codes)

    def check_length(self, codes: int) -> None:
        """Raise a `ValueError` when `codes` of prompt and target together are too many."""
        check_length(self.config, codes)

    @torch.no_grad()
    def decode(
        self,
        codes: Tensor,
        codes_mask: Tensor | None = None,
        prompt_codes: Tensor | Sequence[Tensor | None] | None = None,
        prompt_mel: Tensor | Sequence[Tensor | None] | None = None,
        speaker_embeds: Tensor | None = None,
        streaming: bool = False,
        finalize: bool = True,
        chunk_size: int | None = None,
        left_context: int | None = None,
        num_timesteps: int | None = None,
        guidance_scale: float | None = None,
    ) -> Tensor:
        """The mel spectrogram of a batch of codes.

        Args:
            codes (`torch.LongTensor`): `[B, T]`; any value where the mask is off. T may be 0.
            codes_mask (`torch.Tensor`, *optional*): `[B, T]`, 1 on the codes of a row, 0 on the padding behind them.
            prompt_codes (`torch.LongTensor` or list, *optional*): `[B, P]` or `[1, P]` for all rows, or a list with
                `[P_b]` or `None` for each row: codes of the voice prompt.
            prompt_mel (`torch.Tensor` or list, *optional*): `[B, num_mel_bins, upsample_ratio * P]`, or a list as for
                `prompt_codes`: natural logarithm of the mel spectrogram of the same recording.
            speaker_embeds (`torch.Tensor`, *optional*): `[B, speaker_embedding_size]` or `[1, ...]`, of any length
                (normalised here); zeros when `None`.
            streaming (`bool`): masks in chunks instead of full attention.
            finalize (`bool`): the codes are complete. Otherwise the last `pre_lookahead` ones are looked at only, and
                the result has as many codes less.
            chunk_size (`int`, *optional*): codes per chunk in streaming mode; `config.chunk_size` by default.
            left_context (`int`, *optional*): in streaming mode, codes in front of its chunk that a frame sees, besides
                the prompt; all of them by default. See [`FlowDecoderModel.stream`].
            num_timesteps, guidance_scale (*optional*): as in the configuration by default.

        Returns:
            `[B, num_mel_bins, upsample_ratio * T]` in fp32, 0 behind the end of a row.

        Raises:
            ValueError: another shape or dtype, codes outside `codebook_size`, a mask with padding in front, a prompt
                whose codes and mel frames differ in length, NaN or infinite values, prompt and codes of more than
                `max_mel_frames`, settings out of range.
        """
        if not streaming and (chunk_size is not None or left_context is not None):
            raise ValueError("chunk_size and left_context have a meaning in streaming mode only; give streaming=True")
        config = self.config
        mask = check_codes(config, codes, codes_mask)
        batch = len(mask)
        prompts = check_prompts(config, batch, prompt_codes, prompt_mel)
        speaker_embeds = check_speaker(config, speaker_embeds, batch)
        grid = ChunkGrid.of(config, chunk_size, left_context) if streaming else None
        times, scale = time_steps(config, num_timesteps), guidance(config, guidance_scale)

        following = 0 if finalize else config.pre_lookahead
        joined = self._join(codes, mask, prompts)
        starts, ends = joined.prompt_lengths, (joined.lengths - following).clamp(min=0)
        length = max(0, codes.shape[1] - following)
        mel = torch.zeros(
            (batch, config.num_mel_bins, config.upsample_ratio * length),
            dtype=at_least_float32(self.dtype),
            device=self.device,
        )
        if bool((ends <= starts).all()):
            return mel
        if grid is not None and grid.left is not None:
            grid = ChunkGrid(grid.chunk, grid.left, starts.to(self.device))
        with evaluating(self):
            conditioning, valid = self._encode(joined.codes, joined.lengths, grid, following)
            conditions = FlowConditions(
                conditioning, self._speaker(speaker_embeds, batch), joined.known[:, : conditioning.shape[1]]
            )
            bias = attention_bias(
                conditioning.shape[1], valid, grid and grid.upsampled(config.upsample_ratio), conditioning
            )
            noise = self.noise(0, conditioning.shape[1]).to(mel.dtype)
            frames = sample(
                self.estimator, noise.expand(batch, -1, -1), conditions, times, scale, valid, bias
            ).transpose(1, 2)
        for row, (start, end) in enumerate((config.upsample_ratio * torch.stack([starts, ends], dim=1)).tolist()):
            if end > start:
                mel[row, :, : end - start] = frames[row, :, start:end]
        return mel

    def stream(
        self,
        prompt_codes: Tensor | None = None,
        prompt_mel: Tensor | None = None,
        speaker_embeds: Tensor | None = None,
        chunk_size: int | None = None,
        left_context: int | None = None,
        cache_dtype: torch.dtype | None = None,
        num_timesteps: int | None = None,
        guidance_scale: float | None = None,
    ) -> FlowStream:
        """A session that turns codes into mel frames as they come; see [`FlowStream`].

        The prompt is computed here, as far as it goes without codes behind it. To start several sessions with one
        voice, make one stream and call [`FlowStream.fork`] for each.

        Args:
            prompt_codes (`torch.LongTensor`, *optional*): `[P]` or `[1, P]`.
            prompt_mel (`torch.Tensor`, *optional*): `[num_mel_bins, upsample_ratio * P]` or `[1, ...]`.
            speaker_embeds (`torch.Tensor`, *optional*): `[speaker_embedding_size]` or `[1, ...]`.
            chunk_size (`int`, *optional*): codes per chunk; `config.chunk_size` by default.
            left_context (`int`, *optional*): codes in front of its chunk that a frame sees, besides the prompt, which
                it always sees. Memory and time per chunk are then constant. `None`: all of them.
            cache_dtype (`torch.dtype`, *optional*): of the keys and values that are kept; that of the model by
                default. Attention is computed in the dtype of the model.
            num_timesteps, guidance_scale (*optional*): as in the configuration by default.

        Raises:
            ValueError: as for [`~FlowDecoderModel.decode`].
        """
        return FlowStream(
            self,
            prompt_codes=prompt_codes,
            prompt_mel=prompt_mel,
            speaker_embeds=speaker_embeds,
            chunk_size=chunk_size,
            left_context=left_context,
            cache_dtype=cache_dtype,
            num_timesteps=num_timesteps,
            guidance_scale=guidance_scale,
        )

    @can_return_tuple
    def forward(
        self,
        codes: Tensor,
        codes_mask: Tensor | None = None,
        mel: Tensor | None = None,
        mel_mask: Tensor | None = None,
        speaker_embeds: Tensor | None = None,
        streaming: bool | None = None,
        generator: torch.Generator | None = None,
        return_loss: bool = True,
        num_items_in_batch: Mapping[str, Tensor | int] | None = None,
        **kwargs,
    ) -> FlowDecoderOutput:
        """What the encoder makes of the codes, and with `mel` the loss of conditional flow matching.

        For each row are drawn: a time, the noise, whether all conditions are dropped, and whether (and how much of) its
        beginning is given as prompt; for the batch, whether the masks are those of streaming. The configuration has the
        probabilities.

        Args:
            codes (`torch.LongTensor`): `[B, T]`; any value where the mask is off.
            codes_mask (`torch.Tensor`, *optional*): `[B, T]`, 1 on the codes of a row, 0 on the padding behind them.
            mel (`torch.Tensor`, *optional*): `[B, num_mel_bins, upsample_ratio * T]`, natural logarithm of the mel
                spectrogram; any value behind the end of a row.
            mel_mask (`torch.Tensor`, *optional*): `[B, upsample_ratio * T]`, 1 on the frames of a row, for recordings
                that end within a code. Frames count where the codes and this mask have them.
            speaker_embeds (`torch.Tensor`, *optional*): as for [`~FlowDecoderModel.decode`].
            streaming (`bool`, *optional*): the masks; drawn with `mel`, full attention without it, by default.
            generator (`torch.Generator`, *optional*): of all draws; the global one by default.
            return_loss (`bool`): the loss when there is `mel`. The Trainer evaluates models without labels when they
                have this argument.
            num_items_in_batch (mapping of `str` to `int`, *optional*): frames (`flow_loss`) of the whole optimiser step,
                sums of `loss_item_counts`, over which `loss` is then a mean.

        Raises:
            ValueError: another shape or dtype, codes outside `codebook_size`, a mask with padding in front or without
                any frame, NaN or infinite values, too many codes.
        """
        config = self.config
        mask = check_codes(config, codes, codes_mask)
        check_length(config, codes.shape[1])
        speaker_embeds = check_speaker(config, speaker_embeds, len(codes))
        draws = None
        if mel is not None and return_loss:
            mel, valid = self._check_target(mel, mel_mask, mask)
            draws = draw(config, mel, generator)
            streaming = draws.streaming if streaming is None else streaming
        elif mel is None and mel_mask is not None:
            raise ValueError("mel_mask is given without mel")
        grid = ChunkGrid.of(config) if streaming else None
        conditioning, _ = self._encode(codes.to(self.device), mask.sum(dim=1), grid)
        loss = flow_loss = None
        if draws is not None:
            speaker = self._speaker(speaker_embeds, len(codes))
            bias = attention_bias(
                mel.shape[1],
                None if bool(valid.all()) else valid,
                grid and grid.upsampled(config.upsample_ratio),
                conditioning,
            )
            flow_loss = velocity_loss(self.estimator, mel, conditioning, speaker, valid, bias, draws, config.sigma_min)
            loss = flow_loss
            if num_items_in_batch is not None:
                loss = flow_loss * valid.sum() / torch.as_tensor(num_items_in_batch["flow_loss"]).to(valid.device)
        return FlowDecoderOutput(loss=loss, flow_loss=flow_loss, conditioning=conditioning.transpose(1, 2))

    def loss_item_counts(
        self, codes: Tensor, codes_mask: Tensor | None = None, mel_mask: Tensor | None = None, **kwargs
    ) -> dict[str, Tensor]:
        """
        Number of mel frames that the loss is a mean over (`flow_loss`), without running the model. Sums over the
        micro-batches and processes of an optimiser step are `num_items_in_batch`. Arguments as for `forward`.
        """
        mask = torch.ones(codes.shape, dtype=torch.bool) if codes_mask is None else torch.as_tensor(codes_mask).bool()
        frames = mask.repeat_interleave(self.config.upsample_ratio, dim=1)
        if mel_mask is not None:
            frames = frames & torch.as_tensor(mel_mask, device=frames.device).bool()
        return {"flow_loss": frames.sum()}

    def loss_of_parts(self, parts: dict[str, float], counts: dict[str, float]) -> float:
        """`loss` of the means `parts` over `counts` frames: the only part."""
        return parts["flow_loss"]

    def _encode(
        self, codes: Tensor, lengths: Tensor, grid: ChunkGrid | None, following: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """The encoder's prediction `[B, F, num_mel_bins]` for rows of `lengths [B]` codes, the last `following` of which
        are looked at only, and its mask `[B, F]` (`None`: no padding)."""
        valid = None
        if bool((lengths < codes.shape[1]).any()):
            valid = length_mask(lengths.to(codes.device), codes.shape[1])
            codes = codes.masked_fill(~valid, 0)
        hidden_states = self.encoder(self.code_embedding(codes), valid, grid, following)
        conditioning = self.encoder_proj(hidden_states)
        if valid is None:
            return conditioning, None
        valid = valid[:, following:].repeat_interleave(self.config.upsample_ratio, dim=1)
        return conditioning * valid[..., None], valid

    def _speaker(self, speaker_embeds: Tensor, batch: int) -> Tensor:
        """`[B, num_mel_bins]` of speaker vectors `[B or 1, speaker_embedding_size]`."""
        weight = self.speaker_proj.weight
        vectors = F.normalize(speaker_embeds.to(weight.device, at_least_float32(weight.dtype)), dim=1).to(weight.dtype)
        return self.speaker_proj(vectors).expand(batch, -1)

    def _join(self, codes: Tensor, mask: Tensor, prompts: list[tuple[Tensor, Tensor]]) -> "_Joined":
        batch, config = len(codes), self.config
        counts = mask.sum(dim=1)
        prompt_lengths = torch.tensor([len(prompt) for prompt, _ in prompts])
        lengths = prompt_lengths + counts
        check_length(config, int(lengths.max()))
        joined = torch.zeros(batch, int(lengths.max()), dtype=torch.long, device=self.device)
        known = torch.zeros(
            batch, config.upsample_ratio * joined.shape[1], config.num_mel_bins, device=self.device, dtype=self.dtype
        )
        for row, (prompt, mel) in enumerate(prompts):
            start, count = len(prompt), int(counts[row])
            joined[row, :start] = prompt
            joined[row, start : start + count] = codes[row, :count]
            known[row, : len(mel)] = mel
        return _Joined(joined, lengths, prompt_lengths, known)

    def _check_target(self, mel: Tensor, mel_mask: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`mel` as `[B, F, num_mel_bins]`, 0 where it does not count, and the mask of what counts, `[B, F]`."""
        config = self.config
        shape = (len(mask), config.num_mel_bins, config.upsample_ratio * mask.shape[1])
        if not isinstance(mel, Tensor) or tuple(mel.shape) != shape or not mel.is_floating_point():
            given = f"{mel.dtype} {tuple(mel.shape)}" if isinstance(mel, Tensor) else type(mel)
            raise ValueError(
                f"mel must be floating point {shape}, {config.upsample_ratio} frames for each code, got {given}"
            )
        valid = mask.repeat_interleave(config.upsample_ratio, dim=1)
        if mel_mask is not None:
            valid &= right_padded("mel_mask", mel_mask, valid.shape)
        if not bool(valid.any()):
            raise ValueError("codes_mask and mel_mask leave no frame to learn from")
        valid = valid.to(self.device)
        mel = mel.to(self.device).transpose(1, 2)
        check_finite("mel", mel, valid[..., None])
        return mel.masked_fill(~valid[..., None], 0), valid


__all__ = ["FlowDecoderModel", "FlowDecoderOutput", "FlowNoise"]
