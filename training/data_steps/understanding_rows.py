"""Rows for the training of the USTokenizer, with their recordings read, checked and resampled once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..data_collator_us_tokenizer import PROMPTS
from .row_audio import decode_bytes, map_recordings
from .row_checks import check_row
from .row_recordings import load_recording, store_recording
from .step import Outcome, Rejection, Row, Step


@dataclass
class PrepareUnderstanding(Step):
    """
    Task rows that answer a recording with text, for the training of the USTokenizer: the same rows, with `audio` as bytes
    (16-bit FLAC at its rate) and `targets` as text.

    Args:
        resample: convert recordings of other rates instead of rejecting them.
        sampling_rate: of the USTokenizer, in Hz.
        max_seconds: longer recordings are rejected, as by the collator.
        check_schema: also reject rows that `row_schema.json` does not allow, such as those with unknown keys.
    """

    name = "prepare_understanding"

    resample: bool = False
    sampling_rate: int = 16000
    max_seconds: float = 30.0
    check_schema: bool = False

    def process(self, rows: Sequence[Row]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for row in rows:
            try:
                outcomes.append([self._prepared(map_recordings(row, decode_bytes))])
            except ValueError as error:
                outcomes.append(Rejection(str(error)))
        return outcomes

    def _prepared(self, row: Row) -> Row:
        if self.check_schema:
            check_row(row, "task")
        task, targets = row.get("task"), row.get("targets")
        if task not in PROMPTS:
            raise ValueError(f"`task` is {task!r}; the USTokenizer is trained on {', '.join(map(repr, PROMPTS))}")
        text = targets.get("text") if isinstance(targets, Mapping) else targets
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"`targets` of task {task!r} must be a text that is not empty, got {text!r}")
        question = row.get("question")
        if "{}" in PROMPTS[task] and (question is None or not str(question).strip()):
            raise ValueError(f"`question` is missing in a row of the task {task!r}")
        if row.get("audio") is None or isinstance(row["audio"], list):
            raise ValueError("`audio` must be a recording; codes do not train the tokenizer")
        samples, rate = load_recording(row["audio"], self.sampling_rate, self.resample)
        if len(samples) > self.max_seconds * rate:
            raise ValueError(f"`audio` is {len(samples) / rate:.3f} s long; accepted are up to {self.max_seconds} s")
        return {**row, "audio": store_recording(samples, rate, None, ""), "targets": text}


__all__ = ["PrepareUnderstanding"]
