"""Generation with the split-layer model: transformers' own loops over flat ids, rows outside."""

import copy
import warnings
from dataclasses import dataclass

import torch
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList
from transformers.generation import EosTokenCriteria, MaxLengthCriteria, StoppingCriteria, StoppingCriteriaList
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module

from .cache_naming import CACHE_NAME, rename_cache
from .generation_rows import CancellationCriteria
from .split_layer_cache import SplitLayerCache
from .split_layer_logits import ChannelLogitsProcessor, ChannelRules, ChannelSettings, speaks_next
from .split_layer_results import SplitLayerGenerateOutput, collect_requests, collect_rows
from .split_layer_rows import check_flat, check_rows, flat_to_rows, rows_to_flat
from .split_layer_streamers import FlatIdStreamer

# Rows when neither `max_new_tokens` nor `max_length` is given: 40 s of speech, the released demo's number.
DEFAULT_MAX_NEW_TOKENS = 500
# Sampling settings of the release, the same for both channels: its demo, and its README and generation script.
RELEASED_SETTINGS = {
    "demo": {
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "repetition_penalty": 1.1,
        "max_new_tokens": 500,
    },
    "script": {
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.95,
        "repetition_penalty": 1.0,
        "max_new_tokens": 1000,
        "min_new_tokens": 10,
    },
}
# Own entries of a generation config, beside transformers' fields. All are saved with it.
OWN_SETTINGS = ("text", "audio", "layers", "do_samples", "lazy_branches", "pad_code_ends_speech")
# Fields that have no meaning, or none that is defined, over two vocabularies; with the values that switch them off.
UNSUPPORTED = {
    "assistant_early_exit": (None,),
    "constraints": (None,),
    "dola_layers": (None,),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "force_words_ids": (None,),
    "forced_bos_token_id": (None,),
    "guidance_scale": (None, 1, 1.0),
    "low_memory": (None, False),
    "num_beam_groups": (None, 1),
    "penalty_alpha": (None, 0, 0.0),
    "speculation_type": (None,),
    "token_healing": (None, False),
    "use_mtp": (None, False),
    "watermarking_config": (None,),
}


def default_generation_config(config) -> GenerationConfig:
    """Greedy choice with the ids of `config` (`SplitLayerQwen3Config`): the end of a turn and the pad id stop a row."""
    ends = config.eos_token_id
    if ends is not None and config.pad_token_id is not None:
        ends = [*ends] if isinstance(ends, list) else [ends]
        ends += [config.pad_token_id] * (config.pad_token_id not in ends)
    return GenerationConfig(bos_token_id=config.bos_token_id, eos_token_id=ends, pad_token_id=config.pad_token_id)


def released_generation_config(config, name: str = "demo") -> GenerationConfig:
    """
    Sampling settings of the release with the ids of `config`.

    Args:
        config (`SplitLayerQwen3Config`)
        name (`str`): `"demo"` (the chat demo) or `"script"` (the generation script).
    """
    if name not in RELEASED_SETTINGS:
        raise ValueError(f"`name` is {name!r}; accepted are {sorted(RELEASED_SETTINGS)}")
    settings = default_generation_config(config)
    settings.update(**RELEASED_SETTINGS[name])
    return settings


@dataclass
class BranchPlan:
    """Which branches each step runs; `several` when a step over the prompt is to give the logits of several rows."""

    rules: ChannelRules
    several: bool = False

    def __call__(self, ids: torch.LongTensor, length: int, reads_prompt: bool) -> tuple[str, ...] | None:
        if reads_prompt and self.several:
            return None
        return self.rules.branches(ids[:, -1:] if reads_prompt else ids, length)


class SplitLayerGenerationMixin(GenerationMixin):
    """`generate()` and `generate_batch()` of [`SplitLayerQwen3ForCausalLM`]."""

    def adjust_generation_fn(self, *args, **kwargs):
        super().adjust_generation_fn(*args, **kwargs)
        if self.generation_config._from_model_config:  # no file beside the weights
            self.generation_config = default_generation_config(self.config)

    def prepare_inputs_for_generation(
        self, input_ids, next_sequence_length=None, is_first_iteration=False, branch_plan=None, **kwargs
    ):
        model_inputs = super().prepare_inputs_for_generation(
            input_ids, next_sequence_length=next_sequence_length, is_first_iteration=is_first_iteration, **kwargs
        )
        if branch_plan is not None and self.config.num_modality_layers:
            reads_prompt = is_first_iteration or next_sequence_length is None
            model_inputs["branches"] = branch_plan(model_inputs["input_ids"], input_ids.shape[1], reads_prompt)
        return model_inputs

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.LongTensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        *,
        assistant_model=None,
        streamer=None,
        generation_mode: str | None = None,
        **kwargs,
    ) -> SplitLayerGenerateOutput:
        """
        Continue every row of a batch in text or in speech.

        What comes next follows from the last row (the released state machine): behind the start of speech and behind
        every code but the end of speech a code, else a text id; prompts that ask for text and prompts that ask for
        speech mix freely in a batch. transformers' own loops run over flat ids, so beams, assistants, prompt lookup,
        static caches, compilation and chunked prefill work as everywhere.

        Args:
            inputs / input_ids (`torch.LongTensor` of shape `(batch, length, 2)` or `(batch, length)`):
                Left-padded prompts as rows (text id, audio id), or as flat ids.
            attention_mask (`torch.Tensor` of shape `(batch, length)`, *optional*):
                0 on the padding. Without it, rows with the pad id at the beginning of a prompt count as padding, and a
                prompt must not end in one.
            generation_config (`GenerationConfig`, *optional*), kwargs:
                As in `GenerationMixin.generate`. `max_new_tokens` counts rows and defaults to 500. The ids of
                `eos_token_id`, and the pad id, end a row; `eos_token_id=None` switches this off. `min_new_tokens` holds
                back the end of speech while the 1-based number of the row is below it, as released, and the stop ids
                as transformers does. Settings of logits processors that name ids (`suppress_tokens`, ...) take flat
                ids. Own entries, which are saved with a generation config:
                - `text`, `audio` (`dict`): settings of one channel over the flat ones: `do_sample`, `temperature`,
                  `top_k`, `top_p`, `repetition_penalty` and the others of `CHANNEL_SETTINGS`. The released
                  `layers` and `do_samples` are read as well.
                - `lazy_branches` (`bool`): run only the branches whose channel speaks in some unfinished row; the
                  other catches up in one pass when it is needed, with the same result. Default: on with a dynamic
                  cache or none, off with every other cache, under FSDP and ZeRO-3, and when logits, states or
                  attentions are asked for (the silent branch then has none).
                - `pad_code_ends_speech` (`bool`, default true): a prompt whose last row is a speech row with the code
                  `config.audio_pad_token_id` goes on in text, a quirk of the release. `False`: it goes on in speech.
            logits_processor, stopping_criteria: of the caller; both see flat ids.
            assistant_model (*optional*): a smaller split-layer model with the same vocabularies.
            streamer (`BaseStreamer`, *optional*):
                A [`RowStreamer`] gets rows. Any other, like transformers' `TextStreamer`, gets the text ids of a
                single row.
            generation_mode (`str`, *optional*):
                `"text"` or `"audio"`, passed by pipelines; checked against what the prompts ask for.

        Returns:
            [`SplitLayerGenerateOutput`].

        The repetition penalty counts what was spoken in a row: text ids of its text rows and codes of its speech rows,
        its prompt included, its padding not. (In the release it also counts cells that nothing reads.)

        Raises:
            ValueError: no prompts, ids outside their vocabulary, a last dimension other than 2, padding elsewhere than
                on the left, a setting that is not supported, an assistant with other vocabularies.
        """
        if generation_config is not None and getattr(generation_config, "is_assistant", False):
            # Drafting for a larger model, which calls with flat ids and reads transformers' own output.
            return super().generate(
                inputs,
                generation_config=generation_config,
                logits_processor=logits_processor,
                stopping_criteria=stopping_criteria,
                **kwargs,
            )
        input_ids = kwargs.pop("input_ids", None)
        prompts, flat = self._read_prompts(inputs if input_ids is None else input_ids)
        self._check_generation_mode(generation_mode, flat)
        kwargs = rename_cache(kwargs)
        keeps_cache = kwargs.get(CACHE_NAME) is not None
        mask = kwargs.pop("attention_mask", None)
        config, kwargs = self._prepare_generation_config(generation_config, **kwargs)
        drafts = assistant_model is not None or config.prompt_lookup_num_tokens is not None
        if drafts and keeps_cache and kwargs[CACHE_NAME].get_seq_length() > 0:
            # transformers would put the whole prompt behind what is cached already
            raise ValueError("`cache` must be empty with an assistant model or prompt lookup")
        self._check_request(config, assistant_model, kwargs)
        mask = _left_padding_mask(flat, mask, config.pad_token_id)
        keeps_cache |= bool(config.return_dict_in_generate)
        config.return_dict_in_generate = True
        if self._runs_lazily(config, kwargs.get(CACHE_NAME)):
            several = assistant_model is not None or config.prompt_lookup_num_tokens is not None
            kwargs["branch_plan"] = BranchPlan(self._channel_rules(config, flat.shape[1]), several)
        if isinstance(stopping_criteria, StoppingCriteria):
            stopping_criteria = [stopping_criteria]
        cancellation = CancellationCriteria(stopping_criteria or [])
        outputs = super().generate(
            flat,
            generation_config=config,
            logits_processor=LogitsProcessorList(logits_processor or []),
            stopping_criteria=StoppingCriteriaList([cancellation]),
            assistant_model=assistant_model,
            streamer=None if streamer is None else FlatIdStreamer(streamer, self.config),
            attention_mask=mask,
            **kwargs,
        )
        result = collect_rows(outputs, prompts, cancellation, config, self.config)
        if not keeps_cache:
            setattr(result, CACHE_NAME, None)
        return result

    def generate_batch(
        self,
        inputs=None,
        generation_config: GenerationConfig | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        continuous_batching_config=None,
        **kwargs,
    ) -> SplitLayerGenerateOutput:
        """
        Continue many prompts by continuous batching: requests enter the running batch as others leave it.

        Args:
            inputs / input_ids: list of prompts, each rows `(length, 2)` or flat ids `(length,)` as a tensor or a list
                of ints; or a left-padded batch with its `attention_mask`.
            generation_config (`GenerationConfig`, *optional*), kwargs:
                As in `generate`, and the arguments of `ContinuousMixin.generate_batch`. Only the last id of a request
                is known here, so what looks further back (`repetition_penalty`, `min_new_tokens`, ...) is not
                supported, and both branches run at each step.
            continuous_batching_config (`ContinuousBatchingConfig`, *optional*).

        Returns:
            [`SplitLayerGenerateOutput`], prompts left-padded, in the order of the prompts.

        Raises:
            ValueError: as `generate`, or a setting that continuous batching does not support.
            RuntimeError: requests that failed.
        """
        inputs = kwargs.pop("input_ids", inputs)
        runner = {
            name: kwargs.pop(name)
            for name in ("record_timestamps", "progress_bar", "persistent_manager", "warmup")
            if name in kwargs
        }
        config, unknown = self._prepare_generation_config(generation_config, **kwargs)
        self._check_request(config, None, unknown)
        if isinstance(inputs, torch.Tensor):
            prompts, flat = self._read_prompts(inputs)
            mask = _left_padding_mask(flat, attention_mask, config.pad_token_id)
            inputs = [rows[visible] for rows, visible in zip(prompts, mask.bool(), strict=True)]
        if not inputs:
            raise ValueError("`inputs` holds no prompts")
        prompts, flat = zip(*(self._read_prompts(torch.as_tensor(prompt)[None]) for prompt in inputs), strict=True)
        self._check_continuous(config, flat, unknown)
        results = super().generate_batch(
            [ids[0].tolist() for ids in flat],
            generation_config=config,
            continuous_batching_config=continuous_batching_config,
            **runner,
        )
        results = list(results.values())
        copies = config.num_return_sequences or 1
        failed = [str(result.error) for result in results if result.error is not None]
        if failed or len(results) != copies * len(flat):
            raise RuntimeError(f"{copies * len(flat) - len(results) + len(failed)} requests failed: {failed}")
        return collect_requests(results, [rows[0] for rows in prompts], copies, config, self.config)

    def compute_transition_scores(self, sequences, scores, *args, **kwargs):
        """As in transformers; `sequences` may be rows, those of [`SplitLayerGenerateOutput`]."""
        if sequences.dim() == 3:
            sequences = rows_to_flat(sequences, self.config)
        return super().compute_transition_scores(sequences, scores, *args, **kwargs)

    # Settings

    def _prepare_generation_config(self, generation_config, **kwargs):
        """The settings of a call: those in `kwargs`, over a given config, over the model's own."""
        if getattr(generation_config, "_is_complete", False):  # from `generate`, or of an assistant
            generation_config = copy.deepcopy(generation_config)
            model_kwargs = generation_config.update(**kwargs)
            for name in ("output_attentions", "output_hidden_states"):
                if getattr(generation_config, name, None):
                    model_kwargs[name] = getattr(generation_config, name)
            return generation_config, model_kwargs
        own = {name: kwargs.pop(name) for name in OWN_SETTINGS if name in kwargs}
        sources = [kwargs, *(vars(c) for c in (generation_config, self.generation_config) if c is not None)]
        limits = [source.get(name) for source in sources for name in ("max_length", "max_new_tokens")]
        if all(limit is None for limit in limits):
            kwargs["max_new_tokens"] = DEFAULT_MAX_NEW_TOKENS
        config, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)
        for name, value in own.items():
            if name in ("text", "audio") and isinstance(value, dict):
                value = {**(getattr(config, name, None) or {}), **value}
            setattr(config, name, value)
        ChannelSettings.read(config).write(config)
        if config.max_new_tokens is not None:
            config.max_length = None  # transformers would warn of its own default
        if config.min_new_tokens is not None:
            config.min_length = None
        if config.eos_token_id is not None:
            ends = torch.as_tensor(config.eos_token_id).reshape(-1).tolist()
            if config.pad_token_id is None:
                config.pad_token_id = ends[0]
            config.eos_token_id = [*ends, *({config.pad_token_id} - {*ends})]
        config._is_complete = True
        return config, model_kwargs

    def _check_generation_mode(self, mode: str | None, flat: torch.LongTensor) -> None:
        if mode not in (None, "text", "audio"):
            raise ValueError(f"`generation_mode` is {mode!r}; accepted are 'text' and 'audio'")
        others = speaks_next(flat[:, -1], self.config) != (mode == "audio")
        if mode is not None and others.any():
            raise ValueError(
                f"`generation_mode` is {mode!r}, but the prompts {others.nonzero()[:, 0].tolist()} ask for the other: the "
                "last row of a prompt decides (`output_modality` of the processor)"
            )

    def _check_request(self, config, assistant_model, kwargs):
        for name, accepted in UNSUPPORTED.items():
            if (value := getattr(config, name, None)) not in accepted:
                raise ValueError(f"`{name}` is {value!r}; it is not supported with rows of two channels")
        for name in ("inputs_embeds", "negative_prompt_ids", "custom_generate", "labels"):
            if kwargs.get(name) is not None:
                raise ValueError(f"`{name}` is not supported: generation starts from rows or flat ids")
        if config.cache_implementation == "paged":
            raise ValueError("`cache_implementation='paged'` is not supported here; use `generate_batch`")
        ends = [] if config.eos_token_id is None else config.eos_token_id
        for name, ids in (("eos_token_id", ends), ("pad_token_id", [config.pad_token_id])):
            if any(index is not None and not 0 <= index < self.config.vocab_size for index in ids):
                raise ValueError(f"`{name}` is {ids}; a text id of 0 to {self.config.vocab_size - 1} is needed")
        settings = ChannelSettings.read(config)
        if (config.num_beams or 1) > 1 and settings.differ and settings.text.do_sample != settings.audio.do_sample:
            raise ValueError("beams need `do_sample` to be the same for text and audio")
        if assistant_model is None:
            return
        sizes = [
            (getattr(c, "vocab_size", None), getattr(c, "audio_vocab_size", None))
            for c in (self.config, assistant_model.config)
        ]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"`assistant_model` has vocabularies of {sizes[1]} ids (text, audio); needed are {sizes[0]}"
            )

    def _check_continuous(self, config, flat, kwargs):
        if kwargs:
            raise ValueError(f"{sorted(kwargs)} are not used by `generate_batch`")
        if (config.num_beams or 1) > 1 or config.prompt_lookup_num_tokens is not None:
            raise ValueError("beams and prompt lookup are not supported by continuous batching")
        if config.max_new_tokens is None:
            raise ValueError("`max_length` is not supported by continuous batching; use `max_new_tokens`")
        for name in ("min_new_tokens", "min_length"):
            if getattr(config, name, None):
                raise ValueError(f"`{name}` is not supported by continuous batching, which knows the last id only")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # there are no prompts yet
            processors = list(self._get_logits_processor(config))
        while processors:
            processor = processors.pop()
            if not processor.supports_continuous_batching:
                raise ValueError(f"{type(processor).__name__} is not supported by continuous batching; use `generate`")
            processors += [*getattr(processor, "text", []), *getattr(processor, "audio", [])]
        quirk = self.config.vocab_size + self.config.audio_pad_token_id
        if self._pad_code_ends_speech(config) and any(ids[0, -1] == quirk for ids in flat):
            raise ValueError(
                f"a prompt ends in the speech code {self.config.audio_pad_token_id}, which goes on in text as released; "
                "continuous batching cannot tell it from a code in the middle: set `pad_code_ends_speech=False`"
            )

    def _runs_lazily(self, config, cache) -> bool:
        """Whether only the branches run that are needed."""
        wanted = getattr(config, "lazy_branches", None)
        if wanted is False:
            return False
        reason = None
        if not self.config.num_modality_layers:
            reason = "the model has no branches"
        elif cache is not None and not isinstance(cache, SplitLayerCache):
            reason = f"`cache` is a {type(cache).__name__}"
        elif cache is None and config.use_cache and config.cache_implementation not in (None, "dynamic"):
            reason = f"`cache_implementation` is {config.cache_implementation!r}"
        elif is_deepspeed_zero3_enabled() or is_fsdp_managed_module(self):
            reason = "all processes have to run the same layers"
        if wanted and reason is not None:
            raise ValueError(f"`lazy_branches` is not possible: {reason}")
        asked = any(getattr(config, f"output_{name}", None) for name in ("logits", "hidden_states", "attentions"))
        return reason is None and (bool(wanted) or not asked)

    @staticmethod
    def _pad_code_ends_speech(config) -> bool:
        value = getattr(config, "pad_code_ends_speech", None)
        return True if value is None else bool(value)

    def _channel_rules(self, config, prompt_length) -> ChannelRules:
        # Beams are never done while they run, and have to score what they drop.
        can_end = config.eos_token_id is not None and (config.num_beams or 1) == 1
        return ChannelRules(
            self.config,
            prompt_length,
            self._pad_code_ends_speech(config),
            torch.as_tensor(config.eos_token_id).reshape(-1) if can_end else None,
            config.pad_token_id,
        )

    # What transformers' loops ask for

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        lazy = model_kwargs.get("branch_plan") is not None and self.config.num_modality_layers
        if not lazy or model_kwargs.get(CACHE_NAME) is not None or generation_config.use_cache is False:
            return super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        model_kwargs[CACHE_NAME] = cache = SplitLayerCache(self.config)
        if generation_config.is_assistant:
            cache.activate_past_recording()

    def _get_logits_processor(
        self, generation_config, input_ids_seq_length=None, logits_processor=None, **kwargs
    ) -> LogitsProcessorList:
        custom = logits_processor if logits_processor is not None else LogitsProcessorList()
        make = super()._get_logits_processor

        def build(config, others):
            return make(config, input_ids_seq_length, logits_processor=others, **kwargs)

        if any(isinstance(processor, ChannelLogitsProcessor) for processor in custom):
            return build(generation_config, custom)  # drafting, with the processors of the larger model
        rules = self._channel_rules(generation_config, input_ids_seq_length)
        beams = (generation_config.num_beams or 1) > 1
        machine = ChannelLogitsProcessor(rules, generation_config.min_new_tokens or 0, normalize=beams)
        # Continuous batching has its own versions of some processors, and has to see them.
        narrow = input_ids_seq_length is not None
        others = ChannelSettings.read(generation_config).processors(rules, build, custom, narrow)
        return LogitsProcessorList([machine, *others])

    def _get_stopping_criteria(self, generation_config, stopping_criteria, **kwargs):
        criteria = super()._get_stopping_criteria(generation_config, stopping_criteria, **kwargs)
        noting = next((c for c in criteria if isinstance(c, CancellationCriteria)), None)
        if noting is None:
            return criteria
        # Time limits and stop strings are noted like the caller's own criteria.
        plain = [c for c in criteria if isinstance(c, MaxLengthCriteria | EosTokenCriteria)]
        noting.criteria.extend(c for c in criteria if c is not noting and not any(c is other for other in plain))
        return StoppingCriteriaList([*plain, noting])

    # Rows in, rows out

    def _read_prompts(self, input_ids) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Prompts as rows and as flat ids."""
        if input_ids is not None and not isinstance(input_ids, torch.Tensor):
            raise ValueError(f"`input_ids` must be a tensor, got {type(input_ids).__name__}")
        shape = None if input_ids is None else tuple(input_ids.shape)
        if shape is None or len(shape) not in (2, 3) or 0 in shape:
            raise ValueError(
                f"`input_ids` is {shape}; prompts of shape (batch, length, 2) or (batch, length) are needed"
            )
        if len(shape) == 2:
            check_flat(input_ids, self.config)
            flat = input_ids.long()
            return flat_to_rows(flat, self.config), flat
        check_rows(input_ids, self.config)
        rows = input_ids.long()
        return rows, rows_to_flat(rows, self.config)


def _left_padding_mask(flat, attention_mask, pad_token_id) -> torch.LongTensor:
    """The attention mask as integers; found from the pad ids in front of the prompts where it is not given."""
    if attention_mask is None:
        if pad_token_id is None:
            return torch.ones_like(flat)
        attention_mask = ((flat != pad_token_id).cumsum(dim=1) > 0).long()
        if ((flat[:, -1] == pad_token_id) & (attention_mask[:, -1] == 1)).any():
            raise ValueError(
                f"a prompt ends in the pad id {pad_token_id}; prompts are padded on the left (an `attention_mask` says "
                "that it is meant)"
            )
    attention_mask = attention_mask.to(flat.device).long()
    if attention_mask.shape != flat.shape or (attention_mask.diff(dim=1) < 0).any():
        raise ValueError(
            f"`attention_mask` {tuple(attention_mask.shape)} must have the shape of the prompts {tuple(flat.shape)} and "
            "its zeros on the left of a row: prompts are padded on the left"
        )
    if (attention_mask[:, -1] == 0).any():
        raise ValueError("a prompt is nothing but padding; every prompt needs at least one row")
    return attention_mask


__all__ = [
    "DEFAULT_MAX_NEW_TOKENS",
    "OWN_SETTINGS",
    "RELEASED_SETTINGS",
    "SplitLayerGenerationMixin",
    "default_generation_config",
    "released_generation_config",
]
