"""The step that speaks texts (sections 3.1.1 and 3.2.1 of the MOSS-Speech paper)."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .row_recordings import row_key, row_random, store_recording, text_of
from .speech_backends import SpeechBackend
from .spoken_text import split_sentences
from .step import Outcome, Row, Step


@dataclass
class SynthesizeSpeech(Step):
    """
    Adds the recording of a text.

    The paper gives users many voices and the assistant one: two of these steps, for the question and for the answer.

    ```python
    >>> voices = CommandBackend()
    >>> question = SynthesizeSpeech(voices, text_key="question", audio_key="question_audio", speakers=["en", "en+f3"])
    >>> answer = SynthesizeSpeech(voices, text_key="answer", audio_key="answer_audio", speakers=["en+f4"])
    ```

    Args:
        backend ([`SpeechBackend`]): what speaks.
        storage (`str`, *optional*): a folder for FLAC files (16 bits); by default their bytes stand in the row.
        text_key, audio_key (`str`, *optional*): names of the text and of its recording in a row.
        speaker_key (`str`, *optional*): name of the speaker in a row, to read it there.
        speakers (`list[str]`, *optional*): for rows without a speaker of their own, one of these is drawn from `seed`,
            the `id` or `source` of the row and the text. The speaker is kept in `metadata`, as `"<audio_key>_speaker"`.
        seed (`int`, *optional*, defaults to 0).
        max_characters (`int`, *optional*, defaults to 300): longer texts are spoken in pieces, cut behind sentences
            where possible.
        pause_seconds (`float`, *optional*, defaults to 0.2): silence between the pieces.
    """

    name = "synthesize_speech"
    backend: SpeechBackend
    storage: str | None = None
    text_key: str = "text"
    audio_key: str = "audio"
    speaker_key: str | None = None
    speakers: list[str] | None = None
    seed: int = 0
    max_characters: int = 300
    pause_seconds: float = 0.2

    def settings(self) -> dict[str, Any]:
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {"step": self.name, **values, "backend": self.backend.settings()}

    def setup(self) -> None:
        self.backend.setup()

    def process(self, rows: Sequence[Row]) -> list[Outcome]:
        return [self._speak(row) for row in rows]

    def _speak(self, row: Row) -> Outcome:
        text = text_of(row, self.text_key)
        speaker = row.get(self.speaker_key) if self.speaker_key else None
        if speaker is None and self.speakers:
            # The same voices in another column are other draws.
            draw = row_random(self.seed, row, self.audio_key, text)
            speaker = draw.choice(self.speakers)
        waveforms, rates = [], set()
        for piece in split_sentences(text, self.max_characters):
            waveform, rate = self.backend.synthesize(piece, speaker)
            rates.add(rate)
            if waveforms:
                waveforms.append(np.zeros(round(self.pause_seconds * rate), np.float32))
            waveforms.append(waveform)
        if len(rates) > 1:
            raise ValueError(f"the backend speaks the pieces of one text at different rates: {sorted(rates)} Hz")
        key = f"{row_key(row)}-{self.audio_key}"
        audio = store_recording(np.concatenate(waveforms), rates.pop(), self.storage, key)
        metadata = row.get("metadata") or {}
        if speaker is not None:
            metadata = {**metadata, f"{self.audio_key}_speaker": speaker}
        return [{**row, self.audio_key: audio, **({"metadata": metadata} if metadata else {})}]


__all__ = ["SynthesizeSpeech"]
