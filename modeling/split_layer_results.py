"""What generation with the split-layer model returns: rows, lengths, channels, finish reasons."""

import torch
from transformers import Cache, GenerationConfig
from transformers.utils import ModelOutput

from ..configuration.configuration_split_layer_qwen3 import SplitLayerQwen3Config
from .cache_naming import CACHE_NAME, output_with_cache
from .generation_rows import CancellationCriteria
from .split_layer_rows import flat_to_rows


@output_with_cache
class SplitLayerGenerateOutput(ModelOutput):
    """
    Result of [`SplitLayerGenerationMixin.generate`]; R rows of the batch = prompts x `num_return_sequences`.

    Args:
        sequences (`torch.LongTensor` of shape `(R, prompt length + new, 2)`):
            Prompts (left-padded as given) and new rows.
        generated_rows (`torch.LongTensor` of shape `(R, new, 2)`):
            New rows (text id, audio id), the row that stops included. Text rows hold `config.audio_pad_token_id` as
            their audio id. Behind the end: (pad id, `config.audio_pad_token_id`).
        generated_lengths (`torch.LongTensor` of shape `(R,)`):
            New rows without padding.
        text_ids (`torch.LongTensor` of shape `(R, T)`), text_lengths (`torch.LongTensor` of shape `(R,)`):
            Text ids of the new text rows in their order (stop id and start of speech included), -1 behind.
        speech_codes (`torch.LongTensor` of shape `(R, A)`), speech_lengths (`torch.LongTensor` of shape `(R,)`):
            Codes of the new speech rows in their order, without the end of speech, -1 behind.
        finish_reason (`list[str]`):
            Per row `"eos"` (a stop id), `"length"` or `"cancelled"` (any other stopping criterion).
        sequences_scores, beam_indices (*optional*): of beams, as transformers gives them.
        scores, logits (`tuple` of `(R, config.total_vocab_size)`, *optional*):
            Per step, over flat ids, when asked for: behind and in front of the logits processors.
        hidden_states, attentions (`tuple`, *optional*): per step, when asked for.
        cache (`Cache`, *optional*):
            When the caller gave one or set `return_dict_in_generate`. The last new row is not in it.
    """

    sequences: torch.LongTensor | None = None
    generated_rows: torch.LongTensor | None = None
    generated_lengths: torch.LongTensor | None = None
    text_ids: torch.LongTensor | None = None
    text_lengths: torch.LongTensor | None = None
    speech_codes: torch.LongTensor | None = None
    speech_lengths: torch.LongTensor | None = None
    finish_reason: list[str] | None = None
    sequences_scores: torch.FloatTensor | None = None
    beam_indices: torch.LongTensor | None = None
    scores: tuple | None = None
    logits: tuple | None = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None
    cache: Cache | None = None


def collect_rows(
    outputs: ModelOutput,
    prompts: torch.LongTensor,
    cancellation: CancellationCriteria,
    generation_config: GenerationConfig,
    config: SplitLayerQwen3Config,
) -> SplitLayerGenerateOutput:
    """The result of one of transformers' loops over flat ids that began with `prompts` `[batch, length, 2]`."""
    new = outputs.sequences[:, prompts.shape[1] :]
    width = new.shape[1]
    beams = outputs.get("beam_indices")
    if beams is not None:
        limits = (beams >= 0).sum(dim=1)
        most = generation_config.max_new_tokens
        cut = limits < (generation_config.max_length - prompts.shape[1] if most is None else most)
    else:
        noted = cancellation.noted(len(new), new.device) - prompts.shape[1]
        cut = noted >= 0
        limits = torch.where(cut, noted, width)
    ids = generation_config.eos_token_id
    ends = torch.isin(new, torch.as_tensor([] if ids is None else ids, dtype=new.dtype, device=new.device))
    ends &= torch.arange(width, device=new.device) < limits[:, None]
    has_end = ends.any(dim=1)
    lengths = torch.where(has_end, ends.int().argmax(dim=1) + 1, limits)
    reasons = [
        "eos" if ended else "cancelled" if stopped else "length"
        for ended, stopped in zip(has_end.tolist(), cut.tolist(), strict=True)
    ]
    prompts = prompts.to(new.device).repeat_interleave(len(new) // len(prompts), dim=0)
    result = _describe(prompts, new[:, : int(lengths.max())], lengths, reasons, generation_config, config)
    names = ("sequences_scores", "beam_indices", "scores", "logits", "hidden_states", "attentions", CACHE_NAME)
    for name in names:
        setattr(result, name, outputs.get(name))
    return result


def collect_requests(
    requests: list,
    prompts: list[torch.LongTensor],
    copies: int,
    generation_config: GenerationConfig,
    config: SplitLayerQwen3Config,
) -> SplitLayerGenerateOutput:
    """The result of finished requests of continuous batching, `copies` for each of `prompts` (`[length, 2]`)."""
    pad = _pad_id(generation_config, config)
    stops = generation_config.eos_token_id or []
    lengths = torch.tensor([len(request.generated_tokens) for request in requests])
    new = torch.full((len(requests), int(lengths.max())), pad)
    for ids, request in zip(new, requests, strict=True):
        ids[: len(request.generated_tokens)] = torch.tensor(request.generated_tokens)
    reasons = ["eos" if request.generated_tokens[-1] in stops else "length" for request in requests]
    longest = max(len(rows) for rows in prompts)
    padding = torch.tensor([pad, config.audio_pad_token_id])
    padded = [torch.cat([padding.expand(longest - len(rows), 2), rows.cpu()]) for rows in prompts]
    padded = torch.stack(padded).repeat_interleave(copies, dim=0)
    return _describe(padded, new, lengths, reasons, generation_config, config)


def _describe(prompts, new, lengths, reasons, generation_config, config) -> SplitLayerGenerateOutput:
    visible = torch.arange(new.shape[1], device=new.device) < lengths[:, None]
    new = new.masked_fill(~visible, _pad_id(generation_config, config))
    rows = flat_to_rows(new, config)
    codes = new - config.vocab_size
    text_ids, text_lengths = _pack(new, visible & (codes < 0))
    speech_codes, speech_lengths = _pack(codes, visible & (codes >= 0) & (codes != config.eosp_token_id))
    return SplitLayerGenerateOutput(
        sequences=torch.cat([prompts, rows], dim=1),
        generated_rows=rows,
        generated_lengths=lengths,
        text_ids=text_ids,
        text_lengths=text_lengths,
        speech_codes=speech_codes,
        speech_lengths=speech_lengths,
        finish_reason=reasons,
    )


def _pack(values, keep) -> tuple[torch.LongTensor, torch.LongTensor]:
    """The values to keep, moved to the left of each row, -1 behind; and how many there are."""
    lengths = keep.sum(dim=1)
    order = (~keep).int().argsort(dim=1, stable=True)[:, : int(lengths.max())]
    packed = values.gather(1, order)
    return packed.masked_fill(torch.arange(packed.shape[1], device=values.device) >= lengths[:, None], -1), lengths


def _pad_id(generation_config, config) -> int:
    return next(i for i in (generation_config.pad_token_id, config.pad_token_id, 0) if i is not None)


__all__ = ["SplitLayerGenerateOutput", "collect_requests", "collect_rows"]
