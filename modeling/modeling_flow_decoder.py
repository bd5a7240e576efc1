"""Speech codes to a mel spectrogram by conditional flow matching (MOSS-Speech, arXiv 2510.00499; CosyVoice 2)."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from ..configuration.configuration_flow_decoder import FlowDecoderConfig
from .audio_parts import check_finite, evaluating, length_mask
from .flow_encoder import FlowEncoder, FlowEncoderAttention
from .flow_estimator import FlowEstimator
from .flow_masks import ChunkGrid, attention_bias
from .vector_quantization import keeping_float32


@dataclass
class FlowDecoderOutput(ModelOutput):
    """
    loss (`[]`, fp32): mean squared error of the velocity over the valid frames and bins; `None` without `mel`.
    conditioning (`[B, num_mel_bins, upsample_ratio * T]`): the encoder's prediction, 0 on the padding.
    """

    loss: torch.FloatTensor | None = None
    conditioning: torch.FloatTensor | None = None


class FlowNoise(nn.Module):
    """The noise from which every utterance starts: frame t of it belongs to frame t, prompt included.

    Drawn on the CPU, so that it is the same everywhere; no part of a checkpoint. Kept in fp32.
    """

    def __init__(self, config: FlowDecoderConfig):
        super().__init__()
        self.shape, self.seed = (config.num_mel_bins, config.max_mel_frames), config.noise_seed
        self.register_buffer("table", torch.empty(self.shape, dtype=torch.float32), persistent=False)

    def draw(self) -> Tensor:
        """The table `[num_mel_bins, max_mel_frames]`, made anew."""
        generator = torch.Generator("cpu").manual_seed(self.seed)
        return torch.randn(1, *self.shape, generator=generator, dtype=torch.float32, device="cpu")[0]

    def _apply(self, fn, recurse=True):
        return super()._apply(keeping_float32(fn), recurse)

    def forward(self, start: int, end: int) -> Tensor:
        """Frames `start` to `end - 1`, `[1, end - start, num_mel_bins]`."""
        return self.table[:, start:end].T[None]


class _Sequence(NamedTuple):
    """Prompts and codes joined without gaps."""

    codes: Tensor  # [B, N]
    lengths: Tensor  # [B], on the CPU, without codes that are looked at only
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

    def get_input_embeddings(self) -> nn.Embedding:
        return self.code_embedding

    @property
    def codebook_size(self) -> int:
        """Codes in use."""
        return self.config.codebook_size

    @property
    def frame_rate(self) -> float:
        """Codes per second."""
        return self.config.frame_rate

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
        grid = self.chunk_grid(chunk_size, left_context) if streaming else None
        if not streaming and (chunk_size is not None or left_context is not None):
            raise ValueError("chunk_size and left_context have a meaning in streaming mode only; give streaming=True")
        mask = self._check_codes(codes, codes_mask)
        sequence = self._join(codes, mask, prompt_codes, prompt_mel, finalize)
        times, scale = self.time_steps(num_timesteps), self.check_guidance(guidance_scale)
        ratio = self.config.upsample_ratio
        length = max(0, codes.shape[1] - (0 if finalize else self.config.pre_lookahead))
        mel = torch.zeros(len(codes), self.config.num_mel_bins, ratio * length, device=self.device)
        starts, ends = sequence.prompt_lengths, sequence.lengths
        if bool((ends <= starts).all()):
            return mel
        if grid is not None and left_context is not None:
            grid = ChunkGrid(grid.chunk, grid.left, starts.to(self.device))
        with evaluating(self):
            speaker = self.speaker_conditioning(speaker_embeds, len(codes))
            conditioning, valid = self.encode(sequence.codes, sequence.lengths, grid, finalize)
            known = sequence.known[:, : conditioning.shape[1]]
            grid = None if grid is None else grid.upsampled(ratio)
            sampled = self.sample(conditioning, speaker, known, valid, grid, times, scale)
        for row, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
            if end > start:
                mel[row, :, : ratio * (end - start)] = sampled[row, ratio * start : ratio * end].T
        return mel

    def encode(
        self, codes: Tensor, lengths: Tensor, grid: ChunkGrid | None, finalize: bool
    ) -> tuple[Tensor, Tensor | None]:
        """What the encoder predicts, `[B, F, num_mel_bins]`, and its mask `[B, F]` (`None`: no padding).

        `lengths [B]` counts the codes of a row without those that are looked at only.
        """
        total = codes.shape[1]
        lookahead = 0 if finalize else self.config.pre_lookahead
        valid = None
        if bool((lengths + lookahead < total).any()):
            valid = length_mask(lengths.to(codes.device) + lookahead, total)
            codes = codes.masked_fill(~valid, 0)
        hidden_states = self.encoder(self.code_embedding(codes), valid, grid, finalize)
        conditioning = self.encoder_proj(hidden_states)
        if valid is None:
            return conditioning, None
        valid = valid[:, lookahead:].repeat_interleave(self.config.upsample_ratio, dim=1)
        return conditioning * valid[..., None], valid

    def sample(
        self,
        conditioning: Tensor,
        speaker: Tensor,
        known: Tensor,
        valid: Tensor | None,
        grid: ChunkGrid | None,
        times: list[float],
        scale: float,
    ) -> Tensor:
        """Euler steps from the fixed noise with classifier-free guidance, `[B, F, num_mel_bins]` in fp32.

        Args: as for the estimator; `times` from 0 to 1, `scale` is s of v = (1 + s) v(conditional) - s v(without).
        """
        batch, frames, _ = conditioning.shape
        state = self.noise(0, frames).to(torch.promote_types(conditioning.dtype, torch.float32)).repeat(batch, 1, 1)
        if grid is not None and not isinstance(grid.pinned, int):
            grid = ChunkGrid(grid.chunk, grid.left, grid.pinned.repeat(2))
        valid = None if valid is None else valid.repeat(2, 1)
        bias = attention_bias(frames, valid, grid, conditioning)
        conditioning, speaker, known = guided(conditioning), guided(speaker), guided(known)
        for start, end in itertools.pairwise(times):
            velocity = self.guided_velocity(state, conditioning, speaker, known, start, scale, valid, bias)
            state = state + (end - start) * velocity
        return state

    def guided_velocity(
        self, noisy, conditioning, speaker, known, time: float, scale: float, valid=None, bias=None, state=None
    ) -> Tensor:
        """Velocity of `noisy [B, F, num_mel_bins]`; all other tensors have 2 B rows, see [`guided`]."""
        times = torch.full((len(conditioning),), time, device=noisy.device, dtype=torch.float32)
        doubled = noisy.to(conditioning.dtype).repeat(2, 1, 1)
        velocity = self.estimator(doubled, conditioning, speaker, known, times, valid, bias, state).to(noisy.dtype)
        with_conditions, without = velocity.chunk(2)
        return (1.0 + scale) * with_conditions - scale * without

    def chunk_grid(self, chunk_size: int | None = None, left_context: int | None = None) -> ChunkGrid:
        """Chunks in codes, without pinned ones, after checking the settings."""
        chunk_size = self.config.chunk_size if chunk_size is None else chunk_size
        if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
            raise ValueError(f"chunk_size must be a positive number of codes, got {chunk_size!r}")
        if left_context is not None and (
            isinstance(left_context, bool) or not isinstance(left_context, int) or left_context < 0
        ):
            raise ValueError(f"left_context must be a number of codes or None, got {left_context!r}")
        return ChunkGrid(chunk_size, left_context)

    def time_steps(self, num_timesteps: int | None = None) -> list[float]:
        """Times of the Euler steps, from 0 to 1."""
        steps = self.config.num_timesteps if num_timesteps is None else num_timesteps
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"num_timesteps must be a positive number of steps, got {steps!r}")
        times = torch.linspace(0, 1, steps + 1, dtype=torch.float32)
        if self.config.time_schedule == "cosine":
            times = 1 - torch.cos(times * (0.5 * math.pi))
        return times.tolist()

    def check_guidance(self, guidance_scale: float | None = None) -> float:
        """The scale of the guidance, after checking it."""
        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        if not isinstance(scale, int | float) or not math.isfinite(scale) or scale < 0:
            raise ValueError(f"guidance_scale must be a number of at least 0, got {scale!r}")
        return float(scale)

    def speaker_conditioning(self, speaker_embeds: Tensor | None, batch: int) -> Tensor:
        """`[B, num_mel_bins]` of speaker vectors `[B or 1, speaker_embedding_size]`, zeros when `None`."""
        size = self.config.speaker_embedding_size
        if speaker_embeds is None:
            speaker_embeds = torch.zeros(1, size)
        if not isinstance(speaker_embeds, Tensor) or speaker_embeds.shape not in ((1, size), (batch, size)):
            given = tuple(speaker_embeds.shape) if isinstance(speaker_embeds, Tensor) else type(speaker_embeds)
            raise ValueError(f"speaker_embeds must be [{batch}, {size}] or [1, {size}], got {given}")
        check_finite("speaker_embeds", speaker_embeds)
        weight = self.speaker_proj.weight
        vectors = F.normalize(speaker_embeds.to(weight.device, torch.float32), dim=1).to(weight.dtype)
        return self.speaker_proj(vectors).expand(batch, -1)

    def _check_codes(self, codes: Tensor, codes_mask: Tensor | None) -> Tensor:
        """The mask of `codes [B, T]` on the CPU, after checking both."""
        if not isinstance(codes, Tensor) or codes.dim() != 2 or not len(codes):
            given = tuple(codes.shape) if isinstance(codes, Tensor) else type(codes)
            raise ValueError(f"codes must be [batch, codes] with a row at least, got {given}")
        mask = torch.ones(codes.shape, dtype=torch.bool)
        if codes_mask is not None:
            mask = torch.as_tensor(codes_mask).cpu().bool()
            if mask.shape != codes.shape:
                raise ValueError(f"codes_mask must be {tuple(codes.shape)}, got {tuple(mask.shape)}")
            if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
                raise ValueError("codes_mask must be 1 on the first codes of a row and 0 behind them")
        self.check_code_values("codes", codes, mask)
        return mask

    def check_code_values(self, name: str, codes: Tensor, mask: Tensor | None = None) -> None:
        """Raise a `ValueError` unless `codes` are integers of the codebook wherever `mask` (on the CPU) is on."""
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise ValueError(f"{name} must be integers, got {codes.dtype}")
        if codes.device.type == "meta":
            return
        values = codes.cpu() if mask is None else codes.cpu()[mask]
        if values.numel() and (int(values.min()) < 0 or int(values.max()) >= self.config.codebook_size):
            raise ValueError(
                f"{name} must be between 0 and {self.config.codebook_size - 1}, got values from {int(values.min())} "
                f"to {int(values.max())}"
            )

    def check_prompt(self, codes: Tensor | None, mel: Tensor | None, where: str = "") -> tuple[Tensor, Tensor]:
        """Codes `[P]` and mel frames `[upsample_ratio * P, num_mel_bins]` of one prompt; both empty when `None`.

        Args:
            codes: `[P]` or `None`.
            mel: `[num_mel_bins, upsample_ratio * P]` or `None`.
            where: which row, for the message.
        """
        config = self.config
        codes = torch.zeros(0, dtype=torch.long) if codes is None else codes
        mel = torch.zeros(config.num_mel_bins, 0) if mel is None else mel
        if codes.dim() != 1 or mel.dim() != 2 or mel.shape[0] != config.num_mel_bins:
            raise ValueError(
                f"prompt_codes and prompt_mel{where} must be [P] and [{config.num_mel_bins}, "
                f"{config.upsample_ratio} * P], got {tuple(codes.shape)} and {tuple(mel.shape)}"
            )
        if mel.shape[1] != config.upsample_ratio * len(codes):
            raise ValueError(
                f"prompt_mel{where} must have {config.upsample_ratio} frames for each of the {len(codes)} codes of "
                f"prompt_codes, got {mel.shape[1]} frames; cut both to the shorter one"
            )
        self.check_code_values(f"prompt_codes{where}", codes)
        if not mel.is_floating_point():
            raise ValueError(f"prompt_mel{where} must be floating point, got {mel.dtype}")
        check_finite(f"prompt_mel{where}", mel[None])
        return codes.to(self.device, torch.long), mel.T.to(self.device, self.dtype)

    def _prompts(self, batch: int, prompt_codes, prompt_mel) -> list[tuple[Tensor, Tensor]]:
        def rows(name, values, dims):
            if values is None:
                return [None] * batch
            if isinstance(values, Tensor) and values.dim() != dims:
                raise ValueError(f"{name} must have {dims} dimensions, got {tuple(values.shape)}")
            if len(values) not in (1, batch):
                raise ValueError(
                    f"{name} must have a row for each of {batch} rows of codes, or one, got {len(values)}"
                )
            return list(values) * (batch if len(values) == 1 else 1)

        pairs = zip(rows("prompt_codes", prompt_codes, 2), rows("prompt_mel", prompt_mel, 3), strict=True)
        return [self.check_prompt(*pair, where=f" of row {row}") for row, pair in enumerate(pairs)]

    def _join(self, codes: Tensor, mask: Tensor, prompt_codes, prompt_mel, finalize: bool) -> _Sequence:
        batch, config = len(codes), self.config
        prompts = self._prompts(batch, prompt_codes, prompt_mel)
        counts = mask.sum(dim=1)
        prompt_lengths = torch.tensor([len(prompt) for prompt, _ in prompts])
        totals = prompt_lengths + counts
        self.check_length(int(totals.max()))
        joined = torch.zeros(batch, int(totals.max()), dtype=torch.long, device=self.device)
        known = torch.zeros(
            batch, config.upsample_ratio * joined.shape[1], config.num_mel_bins, device=self.device, dtype=self.dtype
        )
        for row, (prompt, mel) in enumerate(prompts):
            start, count = len(prompt), int(counts[row])
            joined[row, :start] = prompt
            joined[row, start : start + count] = codes[row, :count]
            known[row, : len(mel)] = mel
        lengths = totals if finalize else (totals - config.pre_lookahead).clamp(min=0)
        return _Sequence(joined, lengths, prompt_lengths, known)

    def check_length(self, codes: int) -> None:
        """Raise a `ValueError` when `codes` of prompt and target together are too many."""
        if codes > self.config.max_codes:
            raise ValueError(
                f"codes: prompt and codes together are {codes}, at most {self.config.max_codes} "
                f"({self.config.max_codes / self.frame_rate:g} s) are accepted; decode longer audio in pieces"
            )


def guided(values: Tensor) -> Tensor:
    """`values [B, ...]` and zeros: the conditions of the rows with and without guidance."""
    return torch.cat([values, torch.zeros_like(values)])


__all__ = ["FlowDecoderModel", "FlowDecoderOutput", "FlowNoise", "guided"]
