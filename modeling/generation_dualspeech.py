"""Two-stage generation of DualSpeechLM: ids from the language model, then codec codes from AcousticGPT."""

import copy
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList
from transformers.generation import EosTokenCriteria, StoppingCriteria, StoppingCriteriaList
from transformers.utils import ModelOutput

from ..configuration.configuration_dualspeech import SPEECH_TASKS, TASK_IDS
from .cache_naming import rename_cache
from .generation_rows import CancellationCriteria, RowPlan, RowPlanLogitsProcessor, RowPlanStoppingCriteria

# Groups of settings inside a generation config, each a plain dict (nested config objects cannot be saved). "text" and
# "speech" bound the rows of their kind, and what else they hold counts when all rows are of that kind; "acoustic" is the
# second stage.
SETTINGS = {
    "text": {"num_beams": 4, "tokens_per_prompt_token": 1.0, "extra_tokens": 256},
    "speech": {"codes_per_prompt_token": 12.0, "extra_codes": 250},
    "acoustic": {"do_sample": True, "temperature": 1.0, "top_k": 10, "length_slack": 1.25, "extra_codes": 20},
}
# The released inference scripts: 400 ids (two of them markers), 1000 acoustic ids.
OFFICIAL_SETTINGS = {
    "text": {"num_beams": 4, "max_tokens": 400},
    "speech": {"max_codes": 398},
    "acoustic": {"do_sample": True, "temperature": 1.0, "top_k": 10, "max_codes": 1000},
}


def default_generation_config(config) -> GenerationConfig:
    """Sampling settings of the released system, with lengths that scale with the prompt and the speech codes.

    Args:
        config (`DualSpeechConfig`): the special ids are read from its text configuration.
    """
    return _generation_config(config, SETTINGS)


def official_generation_config(config) -> GenerationConfig:
    """The released settings, fixed lengths included: 400 ids, 1000 acoustic codes."""
    return _generation_config(config, OFFICIAL_SETTINGS)


def _generation_config(config, groups):
    ids = {name: getattr(config.text_config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return GenerationConfig(
        do_sample=True,
        temperature=0.6,
        top_p=0.9,
        top_k=50,
        **ids,
        **{name: dict(group) for name, group in groups.items()},
    )


# Keys of the groups that are no fields of a generation config: fixed cap, or cap per unit of input and constant.
LENGTH_KEYS = {
    "text": ("max_tokens", "tokens_per_prompt_token", "extra_tokens"),
    "speech": ("max_codes", "codes_per_prompt_token", "extra_codes"),
    "acoustic": ("max_codes", "length_slack", "extra_codes"),
}


@dataclass
class DualSpeechGenerateOutput(ModelOutput):
    """
    Result of [`DualSpeechGenerationMixin.generate`]; R rows = batch x `num_return_sequences`.

    Args:
        sequences (`torch.LongTensor` of shape `(R, prompt length + new)`):
            Prompts (left-padded as given) and new ids.
        generated_ids (`torch.LongTensor` of shape `(R, new)`):
            New ids, end of sequence included, pad id behind.
        generated_lengths (`torch.LongTensor` of shape `(R,)`):
            New ids per row without padding.
        semantic_codes (`torch.LongTensor` of shape `(R, T)`):
            Speech codes of the language model, -1 behind; no code in rows with a text answer.
        semantic_lengths (`torch.LongTensor` of shape `(R,)`).
        acoustic_codes (`torch.LongTensor` of shape `(R, A)` or `(R, A, codebooks)`, *optional*):
            Codec codes, -1 behind. `None` when no row speaks or the model has no acoustic stage.
        acoustic_lengths (`torch.LongTensor` of shape `(R,)`, *optional*).
        finish_reason (`list[str]`):
            Per row `"eos"`, `"length"` (a cap cut the language model or the acoustic stage) or `"cancelled"` (a
            stopping criterion of the caller).
        task_type_ids (`torch.LongTensor` of shape `(R,)`, *optional*): as given.
        scores, logits, hidden_states (`tuple`, *optional*):
            Of the language model, step by step, when asked for (`output_scores=True`, ...).
    """

    sequences: torch.LongTensor | None = None
    generated_ids: torch.LongTensor | None = None
    generated_lengths: torch.LongTensor | None = None
    semantic_codes: torch.LongTensor | None = None
    semantic_lengths: torch.LongTensor | None = None
    acoustic_codes: torch.LongTensor | None = None
    acoustic_lengths: torch.LongTensor | None = None
    finish_reason: list[str] | None = None
    task_type_ids: torch.LongTensor | None = None
    scores: tuple | None = None
    logits: tuple | None = None
    hidden_states: tuple | None = None


class DualSpeechGenerationMixin(GenerationMixin):
    """`generate()` of [`DualSpeechForConditionalGeneration`]."""

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        # Backbones with two sets of rotary factors (Phi-3) drop their cache where the sets change.
        return self.language_model.prepare_inputs_for_generation(input_ids, **kwargs)

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.LongTensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        *,
        task_type_ids: torch.LongTensor | None = None,
        speaker_embeds: torch.FloatTensor | None = None,
        generation_mode: str | None = None,
        acoustic: dict | None = None,
        acoustic_streamer=None,
        **kwargs,
    ) -> DualSpeechGenerateOutput:
        """
        Generate text answers, speech answers, or both kinds in one batch.

        Stage 1 is transformers' own decoding loop over the language model, with the vocabulary restricted to what may
        come next. Stage 2 runs on the rows that speak: the last hidden states kept while decoding, moved to the left
        edge, become the condition of AcousticGPT, whose prefix is computed once.

        Args:
            inputs / input_ids (`torch.LongTensor` of shape `(batch, length)`):
                Left-padded prompts.
            attention_mask (`torch.Tensor` of shape `(batch, length)`, *optional*):
                0 on the padding. Without it, pad ids at the beginning of a row count as padding.
            task_type_ids (`torch.LongTensor` of shape `(batch,)`, *optional*):
                Numbers of `TASK_IDS`; they decide per row whether text or speech is produced.
            speaker_embeds (`torch.FloatTensor` of shape `(batch, speaker_embedding_size)`, *optional*):
                Needed when any row speaks.
            generation_mode (`str`, *optional*):
                `"text"` or `"audio"` for every row, when there are no `task_type_ids`. Defaults to `"text"`.
            acoustic (`dict`, *optional*):
                Settings of stage 2 for this call, over `generation_config.acoustic`: `do_sample`, `temperature`,
                `top_k`, `top_p`, `cache_implementation`, ... and `max_codes`.
            streamer (`BaseStreamer`, *optional*): gets the ids of stage 1.
            acoustic_streamer (`BaseStreamer`, *optional*): gets the codec codes of stage 2, step by step.
            text, speech (`dict`, *optional*):
                Settings for this call over `generation_config.text` and `.speech`: caps (`max_tokens`, `max_codes`, or
                per id of the prompt and a constant), and fields of a generation config that count when every row
                answers in text, or in speech. By default text is decoded with four beams, as released; a batch that
                also holds speech rows has none, so compare rows at `num_beams=1`.
            kwargs:
                Whatever `GenerationMixin.generate` takes. `max_new_tokens` bounds the new ids of stage 1, both markers
                and the end of a speech answer included, in place of the lengths that scale with the prompt;
                `min_new_tokens` counts in the same way.

        Returns:
            [`DualSpeechGenerateOutput`].

        Raises:
            ValueError: no prompts, padding elsewhere than on the left, missing speaker vectors, an unknown mode, task
                number or setting, beams or assistants for speech, a prompt that leaves no room in AcousticGPT's
                position table.
        """
        input_ids = kwargs.pop("input_ids", None)
        input_ids = inputs if input_ids is None else input_ids
        if input_ids is None or input_ids.dim() != 2 or input_ids.numel() == 0:
            given = None if input_ids is None else tuple(input_ids.shape)
            raise ValueError(f"`input_ids` is {given}; prompts of shape (batch, length) are needed")
        if task_type_ids is not None:
            task_type_ids = torch.as_tensor(task_type_ids, device=input_ids.device)
        speaks = self._speech_rows(len(input_ids), task_type_ids, generation_mode).to(input_ids.device)
        generation_config = self._merge_generation_config(generation_config, speaks, kwargs)
        self._check_speech_request(speaks, speaker_embeds, generation_config, kwargs)
        attention_mask = self._left_padding_mask(input_ids, kwargs.pop("attention_mask", None), generation_config)
        plan = self._plan_rows(input_ids, attention_mask, speaks, generation_config)

        processors = LogitsProcessorList([*(logits_processor or []), RowPlanLogitsProcessor(self.config, plan)])
        if isinstance(stopping_criteria, StoppingCriteria):
            stopping_criteria = [stopping_criteria]
        cancellation = CancellationCriteria(stopping_criteria or [])
        criteria = StoppingCriteriaList([RowPlanStoppingCriteria(self.config, plan)])
        if stopping_criteria:
            criteria.append(cancellation)
        has_stage_two = bool(speaks.any()) and self.config.acoustic_config is not None
        generation_config.pad_token_id = plan.pad_token_id
        generation_config.return_dict_in_generate = True
        wants_states = bool(generation_config.output_hidden_states)
        if has_stage_two and not wants_states:
            generation_config.output_hidden_states = -1  # only the last layer is kept
        outputs = super().generate(
            input_ids,
            generation_config=generation_config,
            logits_processor=processors,
            stopping_criteria=criteria,
            attention_mask=attention_mask,
            **rename_cache(kwargs),
        )
        result = self._collect_rows(outputs, plan, cancellation, task_type_ids, generation_config)
        if wants_states:
            result.hidden_states = outputs.get("hidden_states")
        if has_stage_two:
            self._run_acoustic_stage(
                result,
                outputs,
                plan,
                attention_mask,
                speaker_embeds,
                _checked_group("acoustic", {**generation_config.acoustic, **(acoustic or {})}),
                acoustic_streamer,
            )
        return result

    def _speech_rows(self, batch_size, task_type_ids, generation_mode):
        if generation_mode not in (None, "text", "audio"):
            raise ValueError(f"`generation_mode` is {generation_mode!r}; accepted are 'text' and 'audio'")
        if task_type_ids is None:
            return torch.full((batch_size,), generation_mode == "audio")
        if task_type_ids.shape != (batch_size,) or not set(task_type_ids.tolist()) <= set(TASK_IDS.values()):
            raise ValueError(
                f"`task_type_ids` is {task_type_ids.tolist()}; one number per row is needed, out of {TASK_IDS}"
            )
        speaks = torch.isin(task_type_ids.cpu(), torch.tensor([TASK_IDS[name] for name in SPEECH_TASKS]))
        if generation_mode is not None and (speaks != (generation_mode == "audio")).any():
            raise ValueError(
                f"`generation_mode` {generation_mode!r} contradicts `task_type_ids` {task_type_ids.tolist()}"
            )
        return speaks

    def _merge_generation_config(self, generation_config, speaks, kwargs):
        """A private copy of the settings: those named in `kwargs`, then a given config, then the model's own. A group
        counts between the first two where no config is given."""
        own = self.generation_config
        merged = copy.deepcopy(generation_config if generation_config is not None else own)
        merged.update(**own.to_dict(), defaults_only=True, allow_custom_entries=True)
        for name in SETTINGS:
            group = {**(getattr(merged, name, None) or SETTINGS[name]), **(kwargs.pop(name, None) or {})}
            setattr(merged, name, _checked_group(name, group))
        if generation_config is None and (speaks.all() or not speaks.any()):
            name = "speech" if speaks.all() else "text"
            merged.update(**{k: v for k, v in getattr(merged, name).items() if k not in LENGTH_KEYS[name]})
            if kwargs.get("streamer") is not None:
                merged.num_beams = 1  # beams cannot be streamed
        for name in [name for name in kwargs if hasattr(merged, name)]:
            setattr(merged, name, kwargs.pop(name))
        return merged

    def _left_padding_mask(self, input_ids, attention_mask, generation_config):
        """The attention mask as integers; found from the pad ids in front of the rows where it is not given."""
        if attention_mask is None:
            pad, ends = generation_config.pad_token_id, generation_config.eos_token_id
            if pad is None or pad in torch.as_tensor([] if ends is None else ends).reshape(-1).tolist():
                return torch.ones_like(input_ids)
            return ((input_ids != pad).cumsum(dim=1) > 0).long()
        attention_mask = attention_mask.to(input_ids.device).long()
        if attention_mask.shape != input_ids.shape or (attention_mask.diff(dim=1) < 0).any():
            raise ValueError("`attention_mask` must have the shape of `input_ids` and its zeros on the left of a row")
        if (attention_mask[:, -1] == 0).any():
            raise ValueError("`attention_mask` hides a whole row; every prompt needs at least one id")
        return attention_mask

    def _get_stopping_criteria(self, generation_config, stopping_criteria, **kwargs):
        criteria = super()._get_stopping_criteria(generation_config, stopping_criteria, **kwargs)
        if any(isinstance(criterion, RowPlanStoppingCriteria) for criterion in criteria):
            # The plan knows which rows end at an end id and which one step later.
            return StoppingCriteriaList([c for c in criteria if not isinstance(c, EosTokenCriteria)])
        return criteria

    def _check_speech_request(self, speaks, speaker_embeds, generation_config, kwargs):
        if not speaks.any():
            return
        if (generation_config.num_beams or 1) > 1:
            raise ValueError(f"`num_beams` is {generation_config.num_beams}; speech rows accept 1")
        if generation_config.prompt_lookup_num_tokens or kwargs.get("assistant_model") is not None:
            raise ValueError("assisted decoding and prompt lookup are for text rows; this batch has speech rows")
        size = self.config.speaker_embedding_size
        if self.config.acoustic_config is None or size is None:
            return
        if speaker_embeds is None or speaker_embeds.shape != (len(speaks), size):
            given = None if speaker_embeds is None else tuple(speaker_embeds.shape)
            raise ValueError(f"`speaker_embeds` is {given}; speech rows need {(len(speaks), size)}")

    def _plan_rows(self, input_ids, attention_mask, speaks, generation_config):
        """Caps per row. They depend on the row's own prompt only, so that a row of a batch equals the row alone."""
        if generation_config.eos_token_id is None:
            raise ValueError("`eos_token_id` is not set in the generation config; generation could not end")
        eos = torch.as_tensor(generation_config.eos_token_id).reshape(-1).to(input_ids.device)
        pad = generation_config.pad_token_id
        prompt_lengths = attention_mask.sum(dim=1)
        text, speech = generation_config.text, generation_config.speech
        explicit = generation_config.max_new_tokens
        if explicit is None and generation_config.max_length is not None:
            explicit = generation_config.max_length - input_ids.shape[1]
        if explicit is not None and explicit < (4 if speaks.any() else 1):
            raise ValueError(f"`max_new_tokens` is {explicit}; a speech answer needs at least 4 ids, a text answer 1")
        if explicit is not None:
            text_caps = torch.full_like(prompt_lengths, explicit)
            speech_caps = torch.full_like(prompt_lengths, explicit - 3)
        else:
            text_caps = _scaled(text, "max_tokens", "tokens_per_prompt_token", "extra_tokens", prompt_lengths)
            speech_caps = _scaled(speech, "max_codes", "codes_per_prompt_token", "extra_codes", prompt_lengths)
        if speaks.any() and self.config.acoustic_config is not None:
            # Speaker, prompt, both markers and the end of sequence share the table with the codes.
            room = self.config.acoustic_config.max_condition_positions - self.config.num_condition_tokens - 3
            room = room - prompt_lengths
            if (room[speaks] < 1).any():
                raise ValueError(
                    f"a prompt of {int(prompt_lengths[speaks].max())} ids leaves no room for speech in a condition of "
                    f"{self.config.acoustic_config.max_condition_positions} positions"
                )
            speech_caps = torch.minimum(speech_caps, room)
        caps = torch.where(speaks, speech_caps, text_caps)
        # Speech rows: both markers, end of sequence, one step to compute its state. Text rows: end of sequence.
        needed = torch.where(speaks, caps + 4, text_caps if explicit is not None else caps + 1)
        generation_config.max_length = None
        generation_config.max_new_tokens = int(needed.max())
        min_codes = max(1, (generation_config.min_new_tokens or 0) - 3)
        return RowPlan(speaks, caps, input_ids.shape[1], eos, int(eos[0]) if pad is None else pad, min_codes)

    def _collect_rows(self, outputs, plan, cancellation, task_type_ids, generation_config):
        """Lengths, speech codes and finish reasons of stage 1."""
        sequences = outputs.sequences
        speaks, caps = plan.expand(len(sequences), sequences.device)
        new = sequences[:, plan.prompt_length :]
        end = torch.where(
            speaks[:, None],
            new == self.config.audio_end_token_id,
            torch.isin(new, plan.eos_token_ids.to(new.device)),
        )
        noted = cancellation.noted(len(new), new.device) - plan.prompt_length
        limit = torch.where(noted >= 0, noted, new.shape[1])
        end &= torch.arange(new.shape[1], device=new.device) < limit[:, None]
        padding = (new == plan.pad_token_id).flip(1).int().cumprod(dim=1).sum(dim=1)
        stopped = torch.minimum(limit, new.shape[1] - padding)
        has_end = end.any(dim=1)
        content = torch.where(has_end, end.int().argmax(dim=1), stopped)
        # Ends belong to the row: marker and end of sequence of speech, end of sequence of text unless the cap forced it.
        ends = torch.where(speaks, 2, (content < caps).long())
        lengths = torch.where(has_end, (content + ends).clamp(max=new.shape[1]), content)
        # Criteria of transformers that stop rows in the middle leave no note.
        unnoted = generation_config.max_time is not None or generation_config.stop_strings is not None
        is_short = content < generation_config.max_new_tokens
        cancelled = ~has_end & ((noted >= 0) | (is_short & unnoted))
        at_cap = content - speaks.long() >= caps
        reasons = [
            "cancelled" if stopped_early else "eos" if ended and not capped else "length"
            for stopped_early, ended, capped in zip(*(t.tolist() for t in (cancelled, has_end, at_cap)), strict=True)
        ]
        first = 1  # `<audio>`
        width = int((content - first)[speaks].clamp(min=0).max()) if speaks.any() else 0
        steps = torch.arange(width, device=new.device)
        semantic_lengths = torch.where(speaks, (content - first).clamp(min=0), 0)
        codes = new[:, first : first + width] - self.config.semantic_token_offset
        codes = torch.nn.functional.pad(codes, (0, width - codes.shape[1]))
        codes = codes.masked_fill(steps >= semantic_lengths[:, None], -1)
        generated = new[:, : int(lengths.max())]
        generated = generated.masked_fill(
            torch.arange(generated.shape[1], device=new.device) >= lengths[:, None], plan.pad_token_id
        )
        factor = len(sequences) // len(plan.speaks)
        return DualSpeechGenerateOutput(
            sequences=torch.cat([sequences[:, : plan.prompt_length], generated], dim=1),
            generated_ids=generated,
            generated_lengths=lengths,
            semantic_codes=codes,
            semantic_lengths=semantic_lengths,
            finish_reason=reasons,
            task_type_ids=None if task_type_ids is None else task_type_ids.repeat_interleave(factor),
            scores=outputs.get("scores"),
            logits=outputs.get("logits"),
        )

    def _run_acoustic_stage(self, result, outputs, plan, attention_mask, speaker_embeds, settings, streamer):
        """Fill in the acoustic codes of the rows that speak and were not cancelled."""
        count = len(result.sequences)
        factor = count // len(plan.speaks)
        speaks, _ = plan.expand(count, result.sequences.device)
        going = torch.tensor([reason != "cancelled" for reason in result.finish_reason], device=speaks.device)
        rows = (speaks & going & (result.semantic_lengths > 0)).nonzero()[:, 0]
        books = self.config.acoustic_config.num_codebooks
        shape = (count, 0) if books == 1 else (count, 0, books)
        result.acoustic_codes = result.sequences.new_zeros(shape)
        result.acoustic_lengths = torch.zeros_like(result.generated_lengths)
        if len(rows) == 0:
            return
        prompts = attention_mask.sum(dim=1).repeat_interleave(factor)
        # Condition: prompt, `<audio>`, codes, `</audio>`, and end of sequence where it conditions.
        lengths = prompts + result.semantic_lengths + 2 + int(self.config.condition_on_eos)
        hidden = self._stitch_states(outputs, attention_mask, factor)
        hidden, visible = _to_left_edge(hidden[rows], plan.prompt_length - prompts[rows], lengths[rows])
        speakers = None if speaker_embeds is None else speaker_embeds.repeat_interleave(factor, dim=0).to(hidden)[rows]
        condition = self.build_condition(hidden, None, visible, speakers)
        caps = self._acoustic_caps(result.semantic_lengths[rows], settings)
        acoustic = self.acoustic_model.generate(
            condition_embeds=condition["condition_embeds"],
            condition_mask=condition["condition_mask"],
            max_lengths=caps,
            streamer=streamer,
            **{k: v for k, v in settings.items() if k not in LENGTH_KEYS["acoustic"]},
        )
        width = acoustic.codes.shape[1]
        behind = torch.arange(width, device=rows.device) >= acoustic.lengths[:, None]
        codes = acoustic.codes.masked_fill(behind.view(*behind.shape, *[1] * (acoustic.codes.dim() - 2)), -1)
        result.acoustic_codes = codes.new_full((count, *codes.shape[1:]), -1).index_copy(0, rows, codes)
        result.acoustic_lengths = result.acoustic_lengths.index_copy(0, rows, acoustic.lengths)
        for row, reason in zip(rows.tolist(), acoustic.finish_reason, strict=True):
            if result.finish_reason[row] == "eos":
                result.finish_reason[row] = reason

    def _acoustic_caps(self, semantic_lengths, settings):
        """Most codec positions per row: a fixed number, or the expected number with some slack."""
        ratio = self.config.acoustic_frame_rate / self.config.semantic_frame_rate * settings.get("length_slack", 1.0)
        caps = _scaled({"ratio": ratio, **settings}, "max_codes", "ratio", "extra_codes", semantic_lengths)
        acoustic = self.config.acoustic_config
        # A frame of K delayed codebooks takes K positions to complete.
        most = min(acoustic.max_target_positions - 1, acoustic.max_target_positions - acoustic.num_codebooks + 1)
        return caps.clamp(min=1, max=max(most, 1))

    def _stitch_states(self, outputs, attention_mask, factor):
        """Last hidden states `(rows, prompt + new - 1, width)` out of the steps of the decoding loop."""
        states = None
        for step in outputs.hidden_states:
            state = step[-1]
            # A step over several ids starts from the beginning (no cache, or the backbone dropped it).
            states = state if states is None or state.shape[1] > 1 else torch.cat([states, state], dim=1)
        if states.shape[1] == outputs.sequences.shape[1] - 1:
            return states
        mask = attention_mask.repeat_interleave(factor, dim=0)
        mask = torch.nn.functional.pad(mask, (0, outputs.sequences.shape[1] - mask.shape[1]), value=1)
        positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        return self.language_model(
            outputs.sequences,
            attention_mask=mask,
            position_ids=positions,
            output_hidden_states=-1,
            use_cache=False,
            logits_to_keep=1,
        ).hidden_states[-1]


def _checked_group(name, group):
    """`group` itself; an error for a key that means nothing."""
    known = {*LENGTH_KEYS[name], *vars(GenerationConfig())}
    if unknown := sorted(set(group) - known):
        raise ValueError(f"`{name}` has {unknown}; accepted are {LENGTH_KEYS[name]} and fields of GenerationConfig")
    return group


def _scaled(settings, fixed, per_token, extra, lengths):
    if settings.get(fixed) is not None:
        return torch.full_like(lengths, settings[fixed])
    return (lengths.double() * settings[per_token]).round().long() + settings[extra]


def _to_left_edge(hidden, starts, lengths):
    """Rows `hidden[i, starts[i] : starts[i] + lengths[i]]`, right-padded with zeros, and their mask."""
    steps = torch.arange(int(lengths.max()), device=hidden.device)
    mask = steps < lengths[:, None]
    index = (starts[:, None] + steps).clamp(max=hidden.shape[1] - 1)
    moved = hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))
    return moved * mask[..., None], mask


__all__ = [
    "DualSpeechGenerateOutput",
    "DualSpeechGenerationMixin",
    "default_generation_config",
    "official_generation_config",
]
