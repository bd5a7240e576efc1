"""Generation with AcousticGPT: a cached loop over codec frames that stops row by row."""

from dataclasses import dataclass

import torch
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import BaseStreamer, GenerationMode, MaxTimeCriteria
from transformers.utils import ModelOutput

from ..configuration.configuration_acoustic_gpt import AcousticGPTConfig
from .cache_naming import CACHE_NAME
from .codebook_patterns import undo_delay_pattern
from .growing_cache import GrowingCache

FINISH_REASONS = ("length", "eos", "cancelled")
_LENGTH, _EOS, _CANCELLED = range(3)


@dataclass
class AcousticGenerateOutput(ModelOutput):
    """
    Result of `AcousticGPTForCausalLM.generate`.

    Attributes:
        codes: `[B, A]` long, or `[B, A, K]` aligned frames; `pad_token_id` behind the end of a row.
        lengths: `[B]` long, frames of each row (0 only if a row was cancelled before its first frame was complete).
        finish_reason: for each row `"eos"`, `"length"` (its limit) or `"cancelled"` (a stopping criterion).
        logits: with `output_logits=True`, one `[B, V]` or `[B, K, V]` per step, as they came from the head.
        scores: with `output_scores=True`, the same behind the logits processors.
    """

    codes: torch.LongTensor | None = None
    lengths: torch.LongTensor | None = None
    finish_reason: list[str] | None = None
    logits: tuple[torch.Tensor, ...] | None = None
    scores: tuple[torch.Tensor, ...] | None = None


class AcousticIdsLogitsProcessor(LogitsProcessor):
    """
    Forbids ids where they cannot stand: pad, none and bos anywhere; eos as the first id, in any book but the first,
    and inside a frame; with interleaved codebooks, codes of a book whose turn it is not.

    Args:
        config: of the model.
        can_end: whether the end id may be chosen at all.
        device: of the scores.
    """

    def __init__(self, config: AcousticGPTConfig, can_end: bool = True, device: torch.device | str | None = None):
        period, ids = config.interleaved_codebooks, torch.arange(config.vocab_size)
        turn = torch.arange(period)[:, None, None]
        book = torch.arange(config.num_codebooks)[:, None]
        is_code = (ids < config.codebook_size) & (ids // (config.codebook_size // period) == turn)
        is_end = (ids == config.eos_token_id) & (turn == 0) & (book == 0) & can_end
        first = is_code.expand(period, config.num_codebooks, -1)[:1]
        self.forbidden = ~torch.cat([is_code | is_end, first]).to(device)  # [period + 1, K, V], the last for step 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """`input_ids [B * K, 1 + steps]` with the start id, `scores [B * K, V]`."""
        step = input_ids.shape[1] - 1
        forbidden = self.forbidden[step % (len(self.forbidden) - 1) if step else -1]
        return scores.unflatten(0, (-1, len(forbidden))).masked_fill(forbidden, -torch.inf).flatten(0, 1)


class AcousticGenerationMixin(GenerationMixin):
    """`generate` of AcousticGPT, in place of the loop of transformers, which has no condition and one stop for all."""

    @torch.no_grad()
    def generate(
        self,
        condition_embeds: torch.Tensor,
        condition_mask: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        streamer: BaseStreamer | None = None,
        max_lengths: int | list[int] | torch.Tensor | None = None,
        condition_position_ids: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        suppress_special_ids: bool = True,
        **kwargs,
    ) -> AcousticGenerateOutput:
        """
        Generate codes for a batch of conditions, greedily or by sampling.

        Under greedy a row gives the ids that it gives alone. Sampled output repeats with the seed of torch or of
        `generator`. With K > 1 codebooks the end id in book 0 ends the row, and the other books finish their delayed
        tail; their own end ids are never sampled. Lengths count frames: codes of one book, without the end id.

        Args:
            condition_embeds: `[B, C, d]`, the speaker token first. Rows of different length are padded on the right.
            condition_mask: `[B, C]`, 1 for visible positions, at least one a row.
            generation_config: replaces `model.generation_config`, which samples like the released system (temperature
                1.0, top-k 10). `max_new_tokens` is the limit in frames.
            logits_processor: processors of transformers. They see `input_ids [B * K, 1 + steps]` (start id first,
                every book a row of its own) and `scores [B * K, V]`.
            stopping_criteria: criteria of transformers. They see the ids so far, `[B, 1 + steps]` or
                `[B, 1 + steps, K]` in delayed layout, and stop rows with the reason `"cancelled"`.
            streamer: `put` gets every frame as soon as it is complete, `[B]` or `[B, K]` on the CPU, `pad_token_id`
                in rows that have ended; `end` is called behind the last one.
            max_lengths: limit in frames, one for all or one a row; `max_new_tokens` when omitted (the smaller of both
                when both are given), else one less than the position table holds.
            condition_position_ids: `[B, C]`, positions of conditions that are padded on the left.
            generator: source of random numbers for sampling.
            suppress_special_ids: forbid ids where they cannot stand (`AcousticIdsLogitsProcessor`). The released
                system forbids none; an id that it then draws counts as a code here.
            kwargs: fields of the generation config, such as `do_sample`, `top_k`, `cache_implementation="static"`,
                `use_cache=False` (everything is computed again at every step; slow, for comparison).

        Returns:
            `AcousticGenerateOutput`.

        Raises:
            ValueError: a limit that the position table cannot hold, a row without visible condition, beams, or an
                argument that generation does not know.
        """
        config, device, batch = self.config, condition_embeds.device, len(condition_embeds)
        generation_config = self._acoustic_generation_config(generation_config, **kwargs)
        limits = self._frame_limits(max_lengths, generation_config.max_new_tokens, batch).to(device)
        books = config.num_codebooks
        steps = int(limits.max()) + books - 1
        generation_config.max_length = steps + 1  # for processors that look at it; the start id counts
        if condition_mask is not None:
            visible = condition_mask.to(torch.bool)
            if not bool(visible.any(dim=1).all()):
                raise ValueError("`condition_mask` must show at least one position of every row")
            if visible.shape == condition_embeds.shape[:2] and bool(visible.all()):
                condition_mask = None  # steps without a mask are cheaper

        self._prepare_special_tokens(generation_config, True, device=device, batch_size=batch)
        end_ids = generation_config._eos_token_tensor
        own_processors = (
            [AcousticIdsLogitsProcessor(config, end_ids is not None, device)] if suppress_special_ids else []
        )
        processors = self._get_logits_processor(
            generation_config,
            input_ids_seq_length=1,
            logits_processor=LogitsProcessorList(own_processors + list(logits_processor or [])),
            device=device,
        )
        criteria = StoppingCriteriaList(stopping_criteria or [])
        if generation_config.max_time is not None:
            criteria.append(MaxTimeCriteria(generation_config.max_time))
        cache = {}
        if generation_config.cache_implementation is None and generation_config.use_cache:
            cache[CACHE_NAME] = GrowingCache(config)
        else:
            self._prepare_cache_for_generation(
                generation_config, cache, GenerationMode.SAMPLE, batch, condition_embeds.shape[1] + steps
            )
        step_forward = self.__call__
        if cache and self._valid_auto_compile_criteria(cache, generation_config):
            step_forward = self.get_compiled_call(generation_config.compile_config)

        ids = torch.full((batch * books, steps + 1), config.pad_token_id, device=device)  # delayed layout
        ids[:, 0] = config.bos_token_id
        ends, reasons = limits, torch.full_like(limits, _LENGTH)
        delays = torch.arange(books, device=device)
        all_logits, all_scores = [], []
        for step in range(steps):
            if step == 0 or not cache:
                logits = self(
                    condition_embeds,
                    condition_mask,
                    self._as_input(ids[:, : step + 1]),
                    condition_position_ids=condition_position_ids,
                    use_cache=bool(cache),
                    logits_to_keep=1,
                    **cache,
                ).logits[:, -1]
            else:
                logits = step_forward(
                    condition_mask=condition_mask,
                    input_ids=self._as_input(ids[:, step : step + 1]).clone(),
                    position_ids=torch.full((1, 1), step, device=device),
                    use_cache=True,
                    **cache,
                ).logits[:, -1]
            scores = processors(ids[:, : step + 1], logits.to(torch.float32, copy=True).view(batch * books, -1))
            if generation_config.do_sample:
                new_ids = torch.multinomial(scores.softmax(dim=-1), 1, generator=generator)
            else:
                new_ids = scores.argmax(dim=-1)
            new_ids = new_ids.view(batch, books)
            if generation_config.output_logits:
                all_logits.append(logits.clone())
            if generation_config.output_scores:
                all_scores.append(scores.view(logits.shape))

            if end_ids is not None:
                ended = torch.isin(new_ids[:, 0], end_ids) & (step < ends)
                ends, reasons = ends.masked_fill(ended, step), reasons.masked_fill(ended, _EOS)
            frame, row_ends = step - delays, ends[:, None]  # the frame that each book is at
            new_ids = new_ids.masked_fill(frame < 0, config.bos_token_id)
            new_ids = new_ids.masked_fill(frame == row_ends, config.eos_token_id)
            new_ids = new_ids.masked_fill(frame > row_ends, config.pad_token_id)
            ids[:, step + 1] = new_ids.flatten()

            complete = max(step + 2 - books, 0)  # frames whose last book is known
            if criteria:
                stop = criteria(self._as_input(ids[:, : step + 2]), tuple(all_scores) or None)
                stop = stop.to(device) & (complete < ends)
                ends, reasons = ends.masked_fill(stop, complete), reasons.masked_fill(stop, _CANCELLED)
            if streamer is not None and complete and bool((complete <= ends).any()):
                newest = undo_delay_pattern(self._as_frames(ids[:, step + 2 - books : step + 2]))[:, 0]
                newest = newest.masked_fill((complete > ends)[:, None], config.pad_token_id)
                streamer.put((newest if books > 1 else newest[:, 0]).cpu())
            if bool((ends <= complete).all()):
                break

        if streamer is not None:
            streamer.end()
        codes = undo_delay_pattern(self._as_frames(ids[:, 1:]), ends, config.pad_token_id)[:, : int(ends.max())]
        return AcousticGenerateOutput(
            codes=codes if books > 1 else codes[..., 0],
            lengths=ends,
            finish_reason=[FINISH_REASONS[reason] for reason in reasons.tolist()],
            logits=tuple(all_logits) or None,
            scores=tuple(all_scores) or None,
        )

    def _as_frames(self, ids: torch.Tensor) -> torch.Tensor:
        """`[B * K, steps]` as `[B, steps, K]`."""
        return ids.unflatten(0, (-1, self.config.num_codebooks)).transpose(1, 2)

    def _as_input(self, ids: torch.Tensor) -> torch.Tensor:
        """`[B * K, steps]` as the model takes it: `[B, steps]`, or `[B, steps, K]`."""
        return self._as_frames(ids) if self.config.num_codebooks > 1 else ids

    def _acoustic_generation_config(self, generation_config, **kwargs) -> GenerationConfig:
        """The generation config of this call; what the loop cannot do is an error."""
        for source in (kwargs, vars(generation_config) if generation_config is not None else {}):
            if source.get("max_length") is not None:
                raise ValueError(
                    f"`max_length` ({source['max_length']}) is not used: set `max_lengths` or `max_new_tokens`, in frames"
                )
        if generation_config is None:
            kwargs.setdefault("return_dict_in_generate", True)  # else `output_logits` is reported as without effect
        generation_config, unknown = self._prepare_generation_config(generation_config, **kwargs)
        if unknown:
            raise ValueError(f"`generate` does not know {sorted(unknown)}")
        for name in ("num_beams", "num_return_sequences", "guidance_scale"):
            if (getattr(generation_config, name, None) or 1) != 1:
                raise ValueError(f"`{name}` must be 1, got {getattr(generation_config, name)}")
        return generation_config

    def _frame_limits(self, max_lengths, max_new_tokens, batch: int) -> torch.Tensor:
        """Limit of each row in frames, `[B]` long."""
        most = self.config.max_target_positions - self.config.num_codebooks + 1
        limits = [torch.as_tensor(limit).cpu() for limit in (max_lengths, max_new_tokens) if limit is not None]
        limits = limits or [torch.tensor(max(most - 1, 1))]
        for limit in limits:
            if limit.shape not in ((), (batch,)) or limit.is_floating_point():
                raise ValueError(f"`max_lengths` must be a whole number or one for each of {batch} rows, got {limit}")
            if int(limit.min()) < 1 or int(limit.max()) > most:
                raise ValueError(
                    f"`max_lengths` and `max_new_tokens` must be from 1 to {most} (what `config.max_target_positions` "
                    f"= {self.config.max_target_positions} positions hold), got {limit.tolist()}"
                )
        return torch.stack([limit.expand(batch) for limit in limits]).amin(dim=0).long()


__all__ = ["FINISH_REASONS", "AcousticGenerateOutput", "AcousticGenerationMixin", "AcousticIdsLogitsProcessor"]
