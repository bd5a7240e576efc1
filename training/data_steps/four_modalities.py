"""The step that makes chats in all pairs of modalities (section 3.2.2 of the MOSS-Speech paper)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...processing.moss_speech_chat import SYSTEM_PROMPTS
from .row_recordings import audio_content, field_of, row_key, text_content, text_of
from .step import Outcome, Row, Step

# Modality of the question and of the answer, in the paper's order.
MODALITY_PAIRS = (("audio", "audio"), ("audio", "text"), ("text", "audio"), ("text", "text"))


@dataclass
class FourModalities(Step):
    """
    A question and its answer, both written and spoken, become four chats with the same content: speech to speech, speech
    to text, text to speech and text to text. The system turn says how to answer.

    Args:
        pairs (`list`, *optional*): pairs of `"audio"` and `"text"`, of the question and of the answer; all four by
            default. A row needs only what its pairs take.
        system_prompts (`dict`, *optional*): the system turn by the modality of the answer; by default that of the
            processor's [`~processing.moss_speech_chat.SYSTEM_PROMPTS`].
        question_key, answer_key, question_audio_key, answer_audio_key (`str`, *optional*): names in a row.
    """

    name = "four_modalities"
    pairs: list[list[str]] = field(default_factory=lambda: [list(pair) for pair in MODALITY_PAIRS])
    system_prompts: dict[str, str] = field(default_factory=lambda: dict(SYSTEM_PROMPTS))
    question_key: str = "question"
    answer_key: str = "answer"
    question_audio_key: str = "question_audio"
    answer_audio_key: str = "answer_audio"

    def __post_init__(self):
        self.pairs = [list(pair) for pair in self.pairs]
        if not self.pairs or any(tuple(pair) not in MODALITY_PAIRS for pair in self.pairs):
            raise ValueError(f"`pairs` is {self.pairs}; accepted are pairs of 'audio' and 'text', at least one")
        if missing := sorted({answer for _, answer in self.pairs} - set(self.system_prompts)):
            raise ValueError(f"`system_prompts` has none for answers of the modality {missing}")

    def process(self, rows: Sequence[Row]) -> list[Outcome]:
        return [[self._chat(row, *pair) for pair in self.pairs] for row in rows]

    def _chat(self, row: Row, question: str, answer: str) -> Row:
        key = row_key(row)
        turns = [
            ("system", text_content(self.system_prompts[answer])),
            ("user", self._content(row, question, self.question_key, self.question_audio_key)),
            ("assistant", self._content(row, answer, self.answer_key, self.answer_audio_key)),
        ]
        names = {"audio": "speech", "text": "text"}
        chat = {
            "messages": [{"role": role, "content": content} for role, content in turns],
            "output_modality": answer,
            "id": f"{key}-{names[question]}-to-{names[answer]}",
        }
        return chat | {name: row[name] for name in ("source", "metadata") if row.get(name) is not None}

    def _content(self, row: Row, modality: str, text_key: str, audio_key: str) -> dict:
        if modality == "audio":
            return audio_content(field_of(row, audio_key))
        return text_content(text_of(row, text_key))


__all__ = ["MODALITY_PAIRS", "FourModalities"]
