"""Steps that find the speech in recordings (section 3.1.1 of the MOSS-Speech paper)."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioFrameClassification

from .model_step import ModelStep, load_model, loaded
from .row_recordings import field_of, part_of_recording, read_recording, row_key
from .step import Outcome, Rejection, Row, Step

Stretch = tuple[float, float]


def speech_stretches(
    intervals: Sequence[Stretch],
    duration: float,
    activity: np.ndarray,
    *,
    merge_gap: float,
    padding: float,
    min_seconds: float,
    max_seconds: float,
) -> list[Stretch]:
    """
    Stretches of speech from the intervals in which a detector found some; all times in seconds.

    Intervals with a short gap between them become one, as long as that is not too long; too long ones are cut at their
    quietest places; then too short ones are left out, and the others are padded, at most to the middle of a gap.

    Args:
        intervals: start and end, in order.
        duration: of the recording.
        activity: `[frames]`, how much speech there is in equal parts of the recording; where to cut.
        merge_gap, padding, min_seconds, max_seconds: `min_seconds` is of the speech alone, `max_seconds` with padding.
    """
    longest = max_seconds - 2 * padding
    merged: list[Stretch] = []
    for interval in intervals:
        for start, end in cut_interval(interval, longest, duration, activity):
            if merged and start - merged[-1][1] <= merge_gap and end - merged[-1][0] <= longest:
                merged[-1] = merged[-1][0], end
            else:
                merged.append((start, end))
    kept = [(start, end) for start, end in merged if end - start >= min_seconds]
    padded = []
    for place, (start, end) in enumerate(kept):
        before = (start - kept[place - 1][1]) / 2 if place else start
        behind = (kept[place + 1][0] - end) / 2 if place + 1 < len(kept) else duration - end
        padded.append((start - min(padding, before), end + min(padding, behind)))
    return padded


def cut_interval(interval: Stretch, longest: float, duration: float, activity: np.ndarray) -> list[Stretch]:
    """An interval in pieces of at most `longest` seconds, cut where there is least `activity`: `[frames]`, of equal parts
    of a recording of `duration` seconds."""
    start, end = interval
    pieces, frame = [], duration / len(activity)
    while end - start > longest:
        # In the second half of what fits, so that pieces are not needlessly short.
        first, last = int((start + longest / 2) / frame), int((start + longest) / frame)
        cut = (first + int(activity[first:last].argmin()) + 0.5) * frame if last > first else start + longest
        pieces.append((start, cut))
        start = cut
    return [*pieces, (start, end)]


@dataclass
class VoiceActivity(Step):
    """
    A recording becomes one row for each stretch of speech in it. `source` and everything else stays, but `text` and
    `words`, which were of the whole; `metadata` gets `start` and `end` in seconds, and `id` a number behind it.
    Recordings without speech are rejected.

    Args:
        storage (`str`, *optional*): a folder for FLAC files (16 bits, at the rate of the recording), or `"segments"` to
            write nothing: rows then name the file with start and end. By default the bytes of a FLAC file stand in
            the row.
        merge_gap (`float`, *optional*, defaults to 0.5): the longest pause in seconds within a stretch.
        padding (`float`, *optional*, defaults to 0.1): seconds kept in front of and behind the speech.
        min_seconds, max_seconds (`float`, *optional*, defaults to 1.0 and 30.0): the shortest speech that is kept, and
            the longest stretch; longer ones are cut at their quietest places.
        audio_key (`str`, *optional*, defaults to `"audio"`): name of the recording in a row.
    """

    storage: str | None = None
    merge_gap: float = 0.5
    padding: float = 0.1
    min_seconds: float = 1.0
    max_seconds: float = 30.0
    audio_key: str = "audio"

    def __post_init__(self):
        if self.merge_gap < 0 or self.padding < 0 or not 0 < self.min_seconds < self.max_seconds - 2 * self.padding:
            raise ValueError(
                "`merge_gap` and `padding` must be at least 0, and 0 < `min_seconds` < `max_seconds` - 2 `padding`; got "
                f"{self.merge_gap}, {self.padding}, {self.min_seconds}, {self.max_seconds}"
            )

    @abstractmethod
    def detect(self, samples: np.ndarray, sampling_rate: int) -> tuple[list[Stretch], np.ndarray]:
        """The intervals with speech in seconds, in order, and how much there is in equal parts of the recording."""

    def process(self, rows: Sequence[Row]) -> list[Outcome]:
        return [self._split(row) for row in rows]

    def _split(self, row: Row) -> Outcome:
        samples, rate = read_recording(row, self.audio_key)
        duration = len(samples) / rate
        intervals, activity = self.detect(samples, rate)
        stretches = speech_stretches(
            intervals,
            duration,
            activity,
            merge_gap=self.merge_gap,
            padding=self.padding,
            min_seconds=self.min_seconds,
            max_seconds=self.max_seconds,
        )
        if not stretches:
            found = sum(end - start for start, end in intervals)
            return Rejection(
                f"no stretch of speech of at least {self.min_seconds} s in {duration:.2f} s ({found:.2f} s of speech)"
            )
        kept = {name: value for name, value in row.items() if name not in ("text", "words")}
        audio, key, made = field_of(row, self.audio_key), row_key(row), []
        for number, (start, end) in enumerate(stretches):
            name = f"{key}-{number:04d}"
            part = part_of_recording(audio, samples, rate, start, end, self.storage, name)
            metadata = {**(row.get("metadata") or {}), "start": start, "end": end}
            made.append({**kept, self.audio_key: part, "id": name, "metadata": metadata})
        return made


@dataclass
class EnergyVoiceActivity(VoiceActivity):
    """
    Speech is what is loud (`librosa.effects.split`): for clean recordings.

    Args:
        top_db (`float`, *optional*, defaults to 40.0): what is quieter than the loudest frame by more is silence.
        floor_db (`float`, *optional*, defaults to -60.0): and so is what is quieter than this, relative to full scale.
        frame_seconds, hop_seconds (`float`, *optional*, defaults to 0.05 and 0.0125): frames of the energy.
    """

    name = "energy_voice_activity"
    top_db: float = 40.0
    floor_db: float = -60.0
    frame_seconds: float = 0.05
    hop_seconds: float = 0.0125

    def detect(self, samples: np.ndarray, sampling_rate: int) -> tuple[list[Stretch], np.ndarray]:
        import librosa

        frame, hop = round(self.frame_seconds * sampling_rate), round(self.hop_seconds * sampling_rate)
        energy = librosa.feature.rms(y=samples, frame_length=frame, hop_length=hop)[0]
        loudest_db = 20 * np.log10(max(float(energy.max()), 1e-10))
        if loudest_db < self.floor_db:
            return [], energy
        top_db = min(self.top_db, loudest_db - self.floor_db)
        intervals = librosa.effects.split(samples, top_db=top_db, frame_length=frame, hop_length=hop)
        return [(start / sampling_rate, end / sampling_rate) for start, end in intervals.tolist()], energy


@dataclass
class ModelVoiceActivity(VoiceActivity, ModelStep):
    """
    Speech is what any `AutoModelForAudioFrameClassification` takes for it, such as a model of speaker diarization.

    Args:
        checkpoint (`str`): the model with its feature extractor.
        labels (`list`, *optional*): ids of the labels that mean speech; all of them by default.
        activation (`str`, *optional*, defaults to `"sigmoid"`): `"sigmoid"` for labels that may hold at the same time
            (speakers): the highest of `labels` counts; `"softmax"` where one holds at a time: their sum does.
        threshold (`float`, *optional*, defaults to 0.5): the lowest probability of speech.
        window_seconds (`float`, *optional*, defaults to 30.0): the recording goes through the model in equal windows of
            at most this length.
        device, dtype: see [`ModelStep`].
    """

    name = "model_voice_activity"
    checkpoint: str = field(kw_only=True)
    labels: list[int] | None = None
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    threshold: float = 0.5
    window_seconds: float = 30.0

    _model = None

    def __post_init__(self):
        super().__post_init__()
        if self.activation not in ("sigmoid", "softmax") or (self.activation == "softmax" and not self.labels):
            raise ValueError(
                f"`activation` is {self.activation!r} with `labels` {self.labels}; accepted is 'sigmoid', and 'softmax' "
                "with the labels that mean speech"
            )

    def setup(self) -> None:
        self._model = load_model(AutoModelForAudioFrameClassification, self.checkpoint, self.device, self.dtype)
        self._feature_extractor = AutoFeatureExtractor.from_pretrained(self.checkpoint)
        num_labels = self._model.config.num_labels
        if wrong := [label for label in self.labels or [] if not 0 <= label < num_labels]:
            raise ValueError(f"`labels` has {wrong}; the model has the labels 0 to {num_labels - 1}")

    @torch.no_grad()
    def detect(self, samples: np.ndarray, sampling_rate: int) -> tuple[list[Stretch], np.ndarray]:
        model, duration = loaded(self._model, self), len(samples) / sampling_rate
        rate = self._feature_extractor.sampling_rate
        samples, _ = read_recording({"audio": (samples, sampling_rate)}, sampling_rate=rate)
        # Equal windows, so that the last one is not too short for the model.
        count = int(np.ceil(duration / self.window_seconds))
        intervals, probabilities, position = [], [], 0
        for window in np.array_split(samples, count):
            inputs = self._feature_extractor(window, sampling_rate=rate, return_tensors="pt")
            logits = model(**inputs.to(model.device, model.dtype)).logits[0].float().cpu()
            chosen = logits.sigmoid() if self.activation == "sigmoid" else logits.softmax(-1)
            chosen = chosen if self.labels is None else chosen[:, self.labels]
            speech = (chosen.amax(-1) if self.activation == "sigmoid" else chosen.sum(-1)).numpy()
            edges = np.linspace(position, position + len(window), len(speech) + 1) / rate
            position += len(window)
            for place in np.flatnonzero(speech >= self.threshold):
                if intervals and intervals[-1][1] >= edges[place]:
                    intervals[-1] = intervals[-1][0], float(edges[place + 1])
                else:
                    intervals.append((float(edges[place]), float(edges[place + 1])))
            probabilities.append(speech)
        return [(start, min(end, duration)) for start, end in intervals], np.concatenate(probabilities)


__all__ = ["EnergyVoiceActivity", "ModelVoiceActivity", "VoiceActivity", "cut_interval", "speech_stretches"]
