"""Who speaks next: the released state machine over flat ids, and sampling settings per channel.

A flat id below `vocab_size` is a text id, one at or above it a speech code (`vocab_size + code`). Only one channel
speaks at a time, and which one follows from the last id alone.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

CHANNELS = ("text", "audio")
# Settings that may differ between the channels: the keys of `generation_config.text` and `generation_config.audio`.
CHANNEL_SETTINGS = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "top_h",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "repetition_penalty",
    "no_repeat_ngram_size",
)


def speaks_next(last_ids: torch.LongTensor, config) -> torch.BoolTensor:
    """True where the id behind `last_ids` (flat ids, any shape) is a speech code: behind the start of speech and
    behind every code but the end of speech."""
    is_code = last_ids >= config.vocab_size
    return (last_ids == config.sosp_token_id) | (is_code & (last_ids != config.vocab_size + config.eosp_token_id))


@dataclass
class ChannelRules:
    """
    Which channel speaks at each row of a batch, and which rows are done.

    Args:
        config (`SplitLayerQwen3Config`): ids and vocabulary sizes.
        prompt_length (`int`, *optional*): rows of the prompts; `None` when it is not known (continuous batching).
        pad_code_ends_speech (`bool`): a prompt whose last row is a speech row with the code `audio_pad_token_id` goes
            on in text, as in the release (its second mode test wins). `False`: it goes on in speech.
        stop_ids (`torch.LongTensor`, *optional*): ids behind which a row is done and only padded; `None`: never.
        pad_token_id (`int`, *optional*): what a row that is done is filled with.
    """

    config: object
    prompt_length: int | None = None
    pad_code_ends_speech: bool = True
    stop_ids: torch.LongTensor | None = None
    pad_token_id: int | None = None

    def is_speech(self, last_ids: torch.LongTensor, length: int | None) -> torch.BoolTensor:
        """Whether the id behind `last_ids` is a speech code. `length` is the number of rows up to `last_ids`."""
        speech = speaks_next(last_ids, self.config)
        if self.pad_code_ends_speech and length is not None and length == self.prompt_length:
            speech &= last_ids != self.config.vocab_size + self.config.audio_pad_token_id
        return speech

    def is_done(self, last_ids: torch.LongTensor, length: int | None) -> torch.BoolTensor | None:
        """Whether the rows ended at `last_ids`; `None` when no row can be done."""
        if self.stop_ids is None or length is None or length <= self.prompt_length:
            return None
        if self.stop_ids.device != last_ids.device:
            self.stop_ids = self.stop_ids.to(last_ids.device)
        return torch.isin(last_ids, self.stop_ids)

    def branches(self, ids: torch.LongTensor, length: int) -> tuple[str, ...]:
        """Branches that a step over `ids` `(rows, steps)` has to run to choose an id behind each of them; `length` is
        the number of rows up to the last of `ids`."""
        speech = self.is_speech(ids, length)
        open_ = torch.ones_like(speech)
        done = self.is_done(ids, length)
        if done is not None:
            open_ = ~done
        # One transfer: reading two values from a GPU would wait twice.
        text, audio = torch.stack([(open_ & ~speech).any(), (open_ & speech).any()]).tolist()
        return tuple(name for name, needed in zip(CHANNELS, (text, audio), strict=True) if needed) or ("text",)


class ChannelLogitsProcessor(LogitsProcessor):
    """
    The released state machine: only ids of the channel that speaks next may be chosen.

    Speech codes above the end of speech and the text id of speech rows are never chosen; while the 1-based number of
    the new row is below `min_new_tokens`, neither is the end of speech. A row that is done gets the pad id.

    Args:
        rules ([`ChannelRules`])
        min_new_tokens (`int`): as in the release; transformers' own processor holds back the end of the text.
        normalize (`bool`): make log-probabilities of the channel out of log-probabilities over both vocabularies, as
            beams need them: the scores of two heads have nothing to do with each other.
    """

    supports_continuous_batching = True

    def __init__(self, rules: ChannelRules, min_new_tokens: int = 0, normalize: bool = False):
        self.rules, self.min_new_tokens, self.normalize = rules, min_new_tokens, normalize
        config = rules.config
        ids = torch.arange(config.vocab_size + config.audio_vocab_size)
        self.end_of_speech = config.vocab_size + config.eosp_token_id
        self.not_text = (ids >= config.vocab_size) | (ids == config.modality_pad_token_id)
        self.not_audio = (ids < config.vocab_size) | (ids > self.end_of_speech)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        rules = self.rules
        if scores.shape[-1] != len(self.not_text):
            raise ValueError(
                f"`scores` has {scores.shape[-1]} entries per row; the vocabularies have {len(self.not_text)}"
            )
        if self.not_text.device != scores.device:
            self.not_text, self.not_audio = self.not_text.to(scores.device), self.not_audio.to(scores.device)
        # Continuous batching gives the last id of each request only.
        length = None if input_ids.dim() == 1 else input_ids.shape[1]
        last = input_ids if length is None else input_ids[:, -1]
        speech = rules.is_speech(last, length)
        forbidden = torch.where(speech[:, None], self.not_audio, self.not_text)
        if length is not None and length + 1 - rules.prompt_length < self.min_new_tokens:
            forbidden[:, self.end_of_speech] = True
        done = rules.is_done(last, length)
        if done is not None:
            # Such a row may have no score at all (its branch did not run); what is chosen for it is not looked at.
            forbidden = forbidden | done[:, None]
        scores = scores.masked_fill(forbidden, -math.inf)
        if done is not None:
            scores[:, rules.pad_token_id] = scores[:, rules.pad_token_id].masked_fill(done, 0.0)
        return scores.log_softmax(dim=-1) if self.normalize else scores


class ByChannelLogitsProcessor(LogitsProcessor):
    """`text` for the rows whose next id is text, `audio` for those that speak.

    Both see the whole batch: processors may hold something per row.
    """

    supports_continuous_batching = True

    def __init__(self, rules: ChannelRules, text: LogitsProcessorList, audio: LogitsProcessorList):
        self.rules, self.text, self.audio = rules, text, audio

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        length = None if input_ids.dim() == 1 else input_ids.shape[1]
        speech = self.rules.is_speech(input_ids if length is None else input_ids[:, -1], length)
        if speech.all():
            return self.audio(input_ids, scores)
        if not speech.any():
            return self.text(input_ids, scores)
        return torch.where(speech[:, None], self.audio(input_ids, scores), self.text(input_ids, scores))


class BestIdLogitsProcessor(LogitsProcessor):
    """Leaves the best id of each row: greedy choice within a loop that samples."""

    supports_continuous_batching = True

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        best = scores.argmax(dim=-1, keepdim=True)
        return torch.full_like(scores, -math.inf).scatter(-1, best, scores.gather(-1, best))


class NarrowLogitsProcessor(LogitsProcessor):
    """
    `processors`, of which the first but for a temperature is a top-k, on the best ids of each row: sorting two whole
    vocabularies for each row would cost more than the rest of a small model's step.

    Args:
        processors (`LogitsProcessorList`): they look at scores only.
        top_k (`int`): of the top-k.
        spare (`int`): ids beyond `top_k` to keep, as many as may equal the last of the best.
    """

    def __init__(self, processors: LogitsProcessorList, top_k: int, spare: int = 64):
        self.processors, self.count = processors, top_k + spare

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if scores.shape[-1] <= self.count:
            return self.processors(input_ids, scores)
        best, places = scores.topk(self.count, dim=-1)
        return torch.full_like(scores, -math.inf).scatter(-1, places, self.processors(input_ids, best))


@dataclass
class ChannelSettings:
    """The generation settings of the two channels, `text` and `audio`, out of one generation config."""

    text: GenerationConfig
    audio: GenerationConfig
    differ: bool = field(init=False)

    def __post_init__(self):
        self.differ = any(getattr(self.text, key, None) != getattr(self.audio, key, None) for key in CHANNEL_SETTINGS)

    @classmethod
    def read(cls, generation_config: GenerationConfig) -> "ChannelSettings":
        """
        `generation_config.text` and `generation_config.audio` (dicts) over the flat fields.

        The release spells the same `layers=[{...}, {...}]` and `do_samples=[..., ...]`, text first; those count where
        the dicts are silent.

        Raises:
            ValueError: a group that is no dict, an unknown key, `layers` or `do_samples` that are not two entries.
        """
        layers, samples = (getattr(generation_config, name, None) for name in ("layers", "do_samples"))
        for name, pair in (("layers", layers), ("do_samples", samples)):
            if pair is not None and (not isinstance(pair, list | tuple) or len(pair) != 2):
                raise ValueError(f"`{name}` is {pair!r}; two entries are needed, text and audio")
        configs = []
        for index, name in enumerate(CHANNELS):
            groups = [getattr(generation_config, name, None) or {}, layers[index] if layers is not None else {}]
            for given in groups:
                unknown = sorted(set(given) - {*CHANNEL_SETTINGS}) if isinstance(given, dict) else repr(given)
                if unknown:
                    raise ValueError(f"`{name}` has {unknown}; accepted is a dict with the keys {CHANNEL_SETTINGS}")
            group = {**groups[1], **({} if samples is None else {"do_sample": samples[index]}), **groups[0]}
            config = copy.copy(generation_config)
            for key, value in group.items():
                setattr(config, key, value)
            configs.append(config)
        return cls(*configs)

    def write(self, generation_config: GenerationConfig) -> None:
        """Put the settings into `generation_config`: into the flat fields where the channels agree, and else, complete,
        into its dicts, whatever `do_sample` the loop then has."""
        if not self.differ:
            for key in CHANNEL_SETTINGS:
                setattr(generation_config, key, getattr(self.text, key, None))
            return
        for name in CHANNELS:
            setattr(
                generation_config, name, {key: getattr(getattr(self, name), key, None) for key in CHANNEL_SETTINGS}
            )
        generation_config.do_sample = self.any_samples

    @property
    def any_samples(self) -> bool:
        return bool(self.text.do_sample or self.audio.do_sample)

    def processors(
        self,
        rules: ChannelRules,
        build: Callable[[GenerationConfig, LogitsProcessorList], LogitsProcessorList],
        custom: LogitsProcessorList,
        narrow: bool = True,
    ) -> LogitsProcessorList:
        """
        transformers' own processors (`build` makes them out of a config and the caller's) for each channel: those that
        constrain, the caller's, those that sample. `narrow` lets the last run on few ids.
        """
        shorten = _narrowed if narrow else LogitsProcessorList
        if not self.differ:
            first, last = _stages(self.text, build, custom)
            return LogitsProcessorList([*first, *shorten(last)])
        first, last = {}, {}
        for name in CHANNELS:
            config = getattr(self, name)
            first[name], last[name] = _stages(config, build, LogitsProcessorList())
            last[name] = shorten(last[name])
            if not config.do_sample and self.any_samples:
                last[name] = LogitsProcessorList([BestIdLogitsProcessor()])
        return LogitsProcessorList(
            [
                *([ByChannelLogitsProcessor(rules, **first)] if any(first.values()) else []),
                *custom,
                *([ByChannelLogitsProcessor(rules, **last)] if any(last.values()) else []),
            ]
        )


def _stages(config, build, custom) -> tuple[LogitsProcessorList, LogitsProcessorList]:
    """What `build` makes: processors that also count without sampling, and those that follow them."""
    without = copy.copy(config)
    without.do_sample, without.renormalize_logits = False, None
    first = build(without, custom)
    return first, LogitsProcessorList(build(config, custom)[len(first) :])


def _narrowed(processors: LogitsProcessorList) -> LogitsProcessorList:
    """`processors` on the best ids only, where a top-k among them leaves no others."""
    for processor in processors:
        if isinstance(processor, TopKLogitsWarper):
            return LogitsProcessorList([NarrowLogitsProcessor(processors, processor.top_k)])
        if not isinstance(processor, TemperatureLogitsWarper):
            break
    return processors


__all__ = [
    "CHANNELS",
    "CHANNEL_SETTINGS",
    "BestIdLogitsProcessor",
    "ByChannelLogitsProcessor",
    "ChannelLogitsProcessor",
    "ChannelRules",
    "ChannelSettings",
    "NarrowLogitsProcessor",
    "speaks_next",
]
