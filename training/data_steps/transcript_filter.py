"""The step that keeps synthesized speech only if a recogniser understands it (section 3.2.1 of the MOSS-Speech paper)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .model_step import ModelStep, loaded
from .row_recordings import text_of
from .speech_recognition import load_recognizer, transcripts
from .spoken_text import is_mostly_cjk, normalize_text
from .step import Outcome, Rejection, Row


def transcript_error(text: str, transcript: str, language: str | None = None) -> tuple[str, float]:
    """
    How far a transcript is from the text: `("WER", rate)`, or `("CER", rate)` for Chinese and Japanese, of the normalised
    texts, see [`~training.data_steps.spoken_text.normalize_text`]. A rate is at least 0 and may exceed 1.

    Args:
        language: `"en"`, `"zh"` or another code; by default `"zh"` for texts mostly in Chinese characters, else `"en"`.

    Raises:
        ValueError: nothing of the text is left when it is normalised.
    """
    import jiwer

    language = language or ("zh" if is_mostly_cjk(text) else "en")
    reference, hypothesis = normalize_text(text, language), normalize_text(transcript, language)
    if not reference:
        raise ValueError(f"the text {text!r:.80} has no word to compare a transcript with")
    if language in ("zh", "ja"):
        return "CER", float(jiwer.cer(reference.replace(" ", ""), hypothesis.replace(" ", "")))
    return "WER", float(jiwer.wer(reference, hypothesis))


@dataclass
class FilterByTranscript(ModelStep):
    """
    Rejects rows whose recording is not understood: transcripts with an error rate of `threshold` or more. What is kept
    gets the rate in `metadata`, as `"<audio_key>_wer"` or `"<audio_key>_cer"`.

    Args:
        checkpoint (`str`): a recogniser, see [`RecognizeSpeech`].
        threshold (`float`, *optional*, defaults to 0.2): the lowest rate that is rejected.
        text_key, audio_key (`str`, *optional*): names of the text and of its recording in a row.
        language (`str`, *optional*): see [`transcript_error`].
        generation, max_seconds: see [`RecognizeSpeech`].
    """

    name = "filter_by_transcript"
    checkpoint: str
    threshold: float = 0.2
    text_key: str = "text"
    audio_key: str = "audio"
    language: Literal["en", "zh"] | str | None = None
    generation: dict[str, Any] = field(default_factory=dict)
    max_seconds: float = 30.0

    _recognizer = None

    def __post_init__(self):
        if not self.threshold > 0:
            raise ValueError(f"`threshold` must be above 0, got {self.threshold}: every row would be rejected")

    def setup(self) -> None:
        self._recognizer = load_recognizer(self.checkpoint, self.device, self.dtype, self.generation)

    def process(self, rows: Sequence[Row]) -> list[Outcome]:
        texts = [text_of(row, self.text_key) for row in rows]
        recognizer = loaded(self._recognizer, self)
        heard = transcripts(recognizer, rows, self.audio_key, self.max_seconds, self.batch_size)
        return [self._judge(*entry) for entry in zip(rows, texts, heard, strict=True)]

    def _judge(self, row: Row, text: str, heard: str) -> Outcome:
        measure, rate = transcript_error(text, heard, self.language)
        if rate >= self.threshold:
            return Rejection(
                f"{measure} {rate:.3f} of `{self.audio_key}`; `threshold` is {self.threshold}; {heard!r:.200}"
            )
        metadata = {**(row.get("metadata") or {}), f"{self.audio_key}_{measure.lower()}": rate}
        return [{**row, "metadata": metadata}]


__all__ = ["FilterByTranscript", "transcript_error"]
