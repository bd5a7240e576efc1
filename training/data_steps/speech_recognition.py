"""The step that transcribes recordings, with any speech recogniser of transformers or with DualSpeechLM."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import (
    MODEL_FOR_CTC_MAPPING,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    AutoConfig,
    AutoModelForMultimodalLM,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
)

from .ctc_models import CtcModel
from .model_step import ModelStep, load_model, loaded
from .row_recordings import read_recording
from .spoken_text import is_mostly_cjk
from .step import Outcome, Rejection, Row
from .voice_activity import cut_interval

ENERGY_FRAME_SECONDS = 0.05


class SpeechRecognizer(ABC):
    """Recordings to texts.

    Attributes:
        sampling_rate: of the recordings that it takes, in Hz.
    """

    sampling_rate: int

    @abstractmethod
    def transcribe(self, recordings: Sequence[np.ndarray]) -> list[str]:
        """The text of each recording `[S]`.

        Raises:
            ValueError: a recording that is too short or too long.
        """


class CtcRecognizer(SpeechRecognizer):
    """Any `AutoModelForCTC`, decoded greedily."""

    def __init__(self, checkpoint: str, device: str | None, dtype: str, generation: Mapping[str, Any]):
        if generation:
            raise ValueError(f"`generation` is {dict(generation)}, but a CTC model does not generate")
        self.model = CtcModel(checkpoint, device, dtype)
        self.sampling_rate = self.model.sampling_rate

    def transcribe(self, recordings: Sequence[np.ndarray]) -> list[str]:
        return self.model.transcribe(recordings)


class Seq2SeqRecognizer(SpeechRecognizer):
    """Any `AutoModelForSpeechSeq2Seq` that takes nothing but recordings, such as Whisper or Moonshine."""

    def __init__(self, checkpoint: str, device: str | None, dtype: str, generation: Mapping[str, Any]):
        self.model = load_model(AutoModelForSpeechSeq2Seq, checkpoint, device, dtype)
        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self.feature_extractor = self.processor.feature_extractor
        self.sampling_rate = self.feature_extractor.sampling_rate
        self.generation = dict(generation)
        # Whisper's window of 30 s: the feature extractor would cut what is longer.
        self.window = getattr(self.feature_extractor, "n_samples", None)

    @torch.no_grad()
    def transcribe(self, recordings: Sequence[np.ndarray]) -> list[str]:
        if self.window is not None and (longest := max(map(len, recordings))) > self.window:
            raise ValueError(
                f"a recording has {longest / self.sampling_rate:.1f} s; the model takes at most "
                f"{self.window / self.sampling_rate:.1f} s"
            )
        inputs = self.feature_extractor(
            list(recordings),
            sampling_rate=self.sampling_rate,
            padding="longest" if self.window is None else "max_length",
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self.model.device, self.model.dtype)
        ids = self.model.generate(**inputs, **self.generation)
        return [text.strip() for text in self.processor.batch_decode(ids, skip_special_tokens=True)]


class DualSpeechRecognizer(SpeechRecognizer):
    """The task asr of a [`DualSpeechForConditionalGeneration`] with its processor and audio tokenizer; greedy, unless
    `generation` says otherwise."""

    def __init__(self, checkpoint: str, device: str | None, dtype: str, generation: Mapping[str, Any]):
        self.model = load_model(AutoModelForMultimodalLM, checkpoint, device, dtype)
        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self.processor.load_audio_tokenizer(device=str(self.model.device))
        self.sampling_rate = self.processor.feature_extractor.sampling_rate
        self.generation = {"do_sample": False, **generation}

    @torch.no_grad()
    def transcribe(self, recordings: Sequence[np.ndarray]) -> list[str]:
        inputs = self.processor(
            task=["asr"] * len(recordings), audio=list(recordings), sampling_rate=self.sampling_rate
        )
        output = self.model.generate(**inputs.to(self.model.device), **self.generation)
        results = self.processor.batch_decode(output)
        if any(result.finish_reason == "length" for result in results):
            raise ValueError("the transcript did not end within the longest length that `generation` allows")
        return [result.text.strip() for result in results]


def load_recognizer(
    checkpoint: str, device: str | None = None, dtype: str = "auto", generation: Mapping[str, Any] | None = None
) -> SpeechRecognizer:
    """
    The recogniser in a checkpoint, by the type of its model: CTC, encoder and decoder, or DualSpeechLM.

    Args:
        checkpoint: folder or Hub id.
        device, dtype: see [`ModelStep`].
        generation: arguments of `generate`, for instance `{"language": "en"}` for Whisper.

    Raises:
        ValueError: another type of model.
    """
    config = AutoConfig.from_pretrained(checkpoint)
    if config.model_type == "dualspeech":
        kind = DualSpeechRecognizer
    elif type(config) in MODEL_FOR_CTC_MAPPING:
        kind = CtcRecognizer
    elif type(config) in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING:
        kind = Seq2SeqRecognizer
    else:
        raise ValueError(
            f"`checkpoint` {checkpoint!r} is of the type {config.model_type!r}; accepted are types of AutoModelForCTC "
            "and of AutoModelForSpeechSeq2Seq, and 'dualspeech'"
        )
    return kind(checkpoint, device, dtype, generation or {})


@dataclass
class RecognizeSpeech(ModelStep):
    """
    Adds the transcript of a recording as `text` (section 3.1.1 of the MOSS-Speech paper). A recording in which nothing
    is recognised is rejected.

    Args:
        checkpoint (`str`): an `AutoModelForCTC`, an `AutoModelForSpeechSeq2Seq`, or a DualSpeechLM, with its processor.
        generation (`dict`, *optional*): arguments of `generate`.
        max_seconds (`float`, *optional*, defaults to 30.0): longer recordings are recognised in pieces of at most this
            length, cut at their quietest places.
        audio_key, text_key (`str`, *optional*): names of the recording and of the transcript in a row.
    """

    name = "recognize_speech"
    checkpoint: str
    generation: dict[str, Any] = field(default_factory=dict)
    max_seconds: float = 30.0
    audio_key: str = "audio"
    text_key: str = "text"

    _recognizer = None

    def setup(self) -> None:
        self._recognizer = load_recognizer(self.checkpoint, self.device, self.dtype, self.generation)

    def process(self, rows: Sequence[Row]) -> list[Outcome]:
        texts = transcripts(loaded(self._recognizer, self), rows, self.audio_key, self.max_seconds, self.batch_size)
        return [
            [{**row, self.text_key: text}] if text else Rejection("nothing was recognised")
            for row, text in zip(rows, texts, strict=True)
        ]


def transcripts(
    recognizer: SpeechRecognizer, rows: Sequence[Row], audio_key: str, max_seconds: float, batch_size: int
) -> list[str]:
    """
    The transcripts of the recordings of `rows`.

    Args:
        max_seconds: longer recordings are cut at their quietest places, and the transcripts of the pieces are joined.
        batch_size: recordings and pieces that go through the recogniser at a time.

    Raises:
        ValueError: a recording that cannot be read, or that the recogniser refuses.
    """
    rate, pieces = recognizer.sampling_rate, []
    for place, row in enumerate(rows):
        samples = read_recording(row, audio_key, rate)[0]
        duration, frame = len(samples) / rate, round(ENERGY_FRAME_SECONDS * rate)
        energy = np.square(np.pad(samples, (0, -len(samples) % frame)).reshape(-1, frame)).mean(-1)
        # The last frame may reach beyond the recording.
        padded = len(energy) * frame / rate
        for start, end in cut_interval((0.0, duration), max_seconds, padded, energy):
            pieces.append((place, samples[round(start * rate) : round(end * rate)]))
    texts: list[list[str]] = [[] for _ in rows]
    for first in range(0, len(pieces), batch_size):
        batch = pieces[first : first + batch_size]
        for (place, _), text in zip(batch, recognizer.transcribe([piece for _, piece in batch]), strict=True):
            texts[place].append(text)
    return [("" if is_mostly_cjk("".join(parts)) else " ").join(filter(None, parts)) for parts in texts]


__all__ = [
    "CtcRecognizer",
    "DualSpeechRecognizer",
    "RecognizeSpeech",
    "Seq2SeqRecognizer",
    "SpeechRecognizer",
    "load_recognizer",
    "transcripts",
]
