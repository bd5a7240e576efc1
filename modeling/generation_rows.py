"""What each row of a DualSpeech batch may produce, and when it is done."""

import math
from dataclasses import dataclass

import torch
from transformers import LogitsProcessor
from transformers.generation import StoppingCriteria, StoppingCriteriaList


@dataclass
class RowPlan:
    """What each row of a batch is to produce: `speaks` `(batch,)` bool, `caps` `(batch,)` ids (or codes) at most, and
    `min_codes` codes at least in a speech row."""

    speaks: torch.BoolTensor
    caps: torch.LongTensor
    prompt_length: int
    eos_token_ids: torch.LongTensor
    pad_token_id: int
    min_codes: int = 1

    def __post_init__(self):
        self.end_ids = self.eos_token_ids.tolist()  # once: reading values from a GPU waits for it
        self.eos_token_id = self.end_ids[0]

    def expand(self, rows: int, device) -> tuple[torch.BoolTensor, torch.LongTensor]:
        """`speaks` and `caps` for a batch that beams or several return sequences have repeated to `rows` rows."""
        factor = rows // len(self.speaks)
        return (
            self.speaks.to(device).repeat_interleave(factor),
            self.caps.to(device).repeat_interleave(factor),
        )


class RowPlanLogitsProcessor(LogitsProcessor):
    """Restricts each row to the ids that may come next.

    A speech row is `<audio>`, at least one code, `</audio>`, end of sequence, padding. A text row has no speech ids and
    no padding. A row that has reached its cap, or for which other processors have left nothing to choose, is ended.
    """

    def __init__(self, config, plan: RowPlan):
        self.config, self.plan = config, plan

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        config, plan = self.config, self.plan
        speaks, caps = plan.expand(len(scores), scores.device)
        new = input_ids.shape[1] - plan.prompt_length
        last = input_ids[:, -1]
        start, end = config.audio_start_token_id, config.audio_end_token_id
        codes = slice(config.semantic_token_offset, config.semantic_token_offset + config.semantic_codebook_size)
        eos, pad = plan.eos_token_id, plan.pad_token_id

        text = torch.zeros_like(scores, dtype=torch.bool)
        text[:, start] = text[:, end] = text[:, codes] = True
        text[:, pad] |= pad not in plan.end_ids
        speech = torch.ones_like(text)
        if new > 0:
            speech[:, codes] = False
            speech[:, end] = new - 1 < plan.min_codes
        scores = scores.masked_fill(torch.where(speaks[:, None], speech, text), -math.inf)

        forced = torch.full_like(last, -1)
        is_stuck = scores.amax(dim=1) == -math.inf
        forced[~speaks & (is_stuck | (new >= caps))] = eos
        if new == 0:
            forced[speaks] = start
        else:
            behind_end = (input_ids[:, plan.prompt_length :] == end).any(dim=1)
            forced[speaks & (is_stuck | (new - 1 >= caps))] = end
            forced[speaks & behind_end] = pad
            forced[speaks & (last == end)] = eos
        is_forced = forced >= 0
        chosen = torch.zeros_like(text).scatter(1, forced.clamp(min=0)[:, None], is_forced[:, None])
        return scores.masked_fill(is_forced[:, None], -math.inf).masked_fill(chosen, 0.0)


class RowPlanStoppingCriteria(StoppingCriteria):
    """A text row is done at an end id; a speech row when the states up to its end have been computed."""

    def __init__(self, config, plan: RowPlan):
        self.config, self.plan = config, plan
        self.eos_token_id = plan.eos_token_ids  # transformers then pads finished rows

    def __call__(self, input_ids: torch.LongTensor, scores, **kwargs) -> torch.BoolTensor:
        speaks, _ = self.plan.expand(len(input_ids), input_ids.device)
        text_done = torch.isin(input_ids[:, -1], self.plan.eos_token_ids.to(input_ids.device))
        # The state of an id exists one step later, when the next id has been chosen.
        behind = 2 if self.config.condition_on_eos else 1
        position = input_ids.shape[1] - 1 - behind
        if position < self.plan.prompt_length:
            return text_done & ~speaks
        return torch.where(speaks, input_ids[:, position] == self.config.audio_end_token_id, text_done)


class CancellationCriteria(StoppingCriteria):
    """The caller's criteria, with a note of the length at which each row was stopped by them (-1: not stopped)."""

    def __init__(self, criteria: list[StoppingCriteria]):
        self.criteria = StoppingCriteriaList(criteria)
        self.lengths: torch.LongTensor | None = None

    def __call__(self, input_ids: torch.LongTensor, scores, **kwargs) -> torch.BoolTensor:
        stop = self.criteria(input_ids, scores, **kwargs)
        if self.lengths is None or len(self.lengths) != len(stop):
            self.lengths = torch.full_like(input_ids[:, 0], -1)
        self.lengths = torch.where(stop & (self.lengths < 0), input_ids.shape[1], self.lengths)
        return stop

    def noted(self, rows: int, device) -> torch.LongTensor:
        """`(rows,)` lengths; all -1 where nothing was noted or beams have mixed the rows."""
        if self.lengths is None or len(self.lengths) != rows:
            return torch.full((rows,), -1, device=device)
        return self.lengths.to(device)


__all__ = ["CancellationCriteria", "RowPlan", "RowPlanLogitsProcessor", "RowPlanStoppingCriteria"]
