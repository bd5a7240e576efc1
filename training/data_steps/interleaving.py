"""Steps that make documents for the pre-training of MOSS-Speech (section 3.1 of the paper)."""

import numbers
import random
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from .row_recordings import (
    audio_content,
    field_of,
    part_of_recording,
    read_recording,
    row_key,
    row_random,
    text_content,
    text_of,
)
from .step import Outcome, Rejection, Row, Step


def cut_times(
    boundaries: Sequence[float], duration: float, min_seconds: float, max_seconds: float, draw: random.Random
) -> list[float]:
    """
    Where to cut a recording into chunks of random length: times in order, the last one is `duration`.

    The length of each chunk is drawn uniformly from `min_seconds` to `max_seconds`, and the cut is the boundary nearest
    to it that keeps the chunk within that range, if possible one from which the rest can be divided into such chunks too.
    Where no boundary lies in that range, the cut is one of its neighbours. So chunks are longer or shorter only where the
    boundaries leave no other way.

    Args:
        boundaries: times in seconds at which a cut may be, in order.
    """
    boundaries = [time for time in boundaries if 0.0 < time < duration]
    divisible = _divisible(boundaries, duration, min_seconds, max_seconds)
    cuts, start = [], 0.0
    while duration - start > max_seconds:
        length = draw.uniform(min_seconds, max_seconds)
        first, behind = bisect_left(boundaries, start + min_seconds), bisect_right(boundaries, start + max_seconds)
        if first < behind:
            places = [place for place in range(first, behind) if divisible[place]]
            inside = [boundaries[place] for place in places or range(first, behind)]
            roomy = [time for time in inside if duration - time >= min_seconds] or inside
            cut = min(roomy, key=lambda time: abs(time - start - length))
        else:
            # A chunk that is too long, or one that is too short and the rest of the long one: whichever is less wrong.
            cut = boundaries[first] if first < len(boundaries) else duration
            before = boundaries[first - 1] if first else start
            short = start + min_seconds - before + max(0.0, cut - before - max_seconds)
            if before > start and short < cut - start - max_seconds:
                cut = before
            if cut == duration:
                break
        start = cut
        cuts.append(start)
    return [*cuts, duration]


def _divisible(boundaries: Sequence[float], duration: float, min_seconds: float, max_seconds: float) -> list[bool]:
    """Whether what follows each boundary can be divided at others into chunks within the range."""
    divisible = [False] * len(boundaries)
    # Number of divisible boundaries from each one on.
    following = [0] * (len(boundaries) + 1)
    for place in range(len(boundaries) - 1, -1, -1):
        time = boundaries[place]
        first, behind = bisect_left(boundaries, time + min_seconds), bisect_right(boundaries, time + max_seconds)
        is_last = min_seconds <= duration - time <= max_seconds
        divisible[place] = is_last or following[first] > following[behind]
        following[place] = following[place + 1] + divisible[place]
    return divisible


@dataclass
class ChunkAndInterleave(Step):
    """
    A recording with the times of its words becomes a document of chunks of 3 to 6 seconds, each either audio or its text.

    Cuts lie in the middle between two words. What is drawn follows from `seed`, the `id` or `source` of the row and its
    words.

    Args:
        storage (`str`, *optional*): of the audio chunks, see [`VoiceActivity`].
        min_seconds, max_seconds (`float`, *optional*, defaults to 3.0 and 6.0): lengths of chunks, see [`cut_times`].
        rule (`str`, *optional*, defaults to `"random"`): `"random"`: each chunk is audio with `audio_probability`;
            `"alternating"`: audio and text in turn, the first one is audio with `audio_probability`.
        audio_probability (`float`, *optional*, defaults to 0.5).
        merge_neighbours (`bool`, *optional*, defaults to `False`): neighbouring chunks that are drawn alike become one.
        seed (`int`, *optional*, defaults to 0).
        audio_key, words_key, text_key (`str`, *optional*): names of the recording, of its words (`{"text", "start",
            "end"}`) and, for the white space between words, of its text in a row.
    """

    name = "chunk_and_interleave"
    storage: str | None = None
    min_seconds: float = 3.0
    max_seconds: float = 6.0
    rule: Literal["random", "alternating"] = "random"
    audio_probability: float = 0.5
    merge_neighbours: bool = False
    seed: int = 0
    audio_key: str = "audio"
    words_key: str = "words"
    text_key: str = "text"

    def __post_init__(self):
        if not 0 < self.min_seconds <= self.max_seconds:
            raise ValueError(
                f"`min_seconds` {self.min_seconds} and `max_seconds` {self.max_seconds} must be positive and in order"
            )
        if self.rule not in ("random", "alternating"):
            raise ValueError(f"`rule` is {self.rule!r}; accepted are 'random' and 'alternating'")
        if not 0 <= self.audio_probability <= 1:
            raise ValueError(f"`audio_probability` must be from 0 to 1, got {self.audio_probability}")

    def process(self, rows: Sequence[Row]) -> list[Outcome]:
        return [self._document(row) for row in rows]

    def _document(self, row: Row) -> Outcome:
        samples, rate = read_recording(row, self.audio_key)
        duration = len(samples) / rate
        words = checked_words(field_of(row, self.words_key), duration)
        text, ends = _text_of_words(words, row.get(self.text_key))
        boundaries = [(word["end"] + behind["start"]) / 2 for word, behind in pairwise(words)]
        draw = row_random(self.seed, row, words)
        cuts = cut_times(boundaries, duration, self.min_seconds, self.max_seconds, draw)

        # Spans in seconds, in characters of the text, and whether it is audio.
        spans, start, position, is_audio = [], 0.0, 0, None
        for cut in cuts:
            if self.rule == "random" or is_audio is None:
                is_audio = draw.random() < self.audio_probability
            else:
                is_audio = not is_audio
            # A boundary belongs to the word in front of it.
            behind = ends[bisect_right(boundaries, cut) - 1] if cut < duration else len(text)
            if self.merge_neighbours and spans and spans[-1][4] == is_audio:
                spans[-1] = (spans[-1][0], cut, spans[-1][2], behind, is_audio)
            else:
                spans.append((start, cut, position, behind, is_audio))
            start, position = cut, behind

        audio, key = row[self.audio_key], row_key(row)
        chunks: list[dict[str, Any]] = []
        for number, (start, end, first, last, is_audio) in enumerate(spans):
            if is_audio:
                name = f"{key}-chunk-{number:04d}"
                part = part_of_recording(audio, samples, rate, start, end, self.storage, name)
                chunks.append(audio_content(part))
            else:
                # Texts in a row keep the space between them; elsewhere there is none.
                follows_text = bool(chunks) and chunks[-1]["type"] == "text"
                piece = text[first:last].rstrip()
                chunks.append(text_content(piece if follows_text else piece.lstrip()))
        return [document_row(row, chunks)]


def checked_words(words: Any, duration: float) -> list[Mapping[str, Any]]:
    """
    Words with times, as `AlignWords` makes them.

    Raises:
        ValueError: no words, other entries, or times that are not in order or not within `duration` seconds.
    """
    if not isinstance(words, (list, tuple)) or not words:
        raise ValueError(f"`words` is {'empty' if words == [] else repr(words)[:80]}; a list of words is needed")
    before = 0.0
    for word in words:
        if not isinstance(word, Mapping) or not {"text", "start", "end"} <= set(word):
            raise ValueError(f"`words` must hold mappings with 'text', 'start' and 'end', got {word!r:.80}")
        if not isinstance(word["text"], str) or not all(_is_number(word[name]) for name in ("start", "end")):
            raise ValueError(f"`words`: 'text' must be a text, 'start' and 'end' numbers, got {dict(word)!r:.160}")
        # Times are multiples of a frame; the last one may end behind the recording by a rounding.
        if not before - 1e-6 <= word["start"] <= word["end"] <= duration + 1e-3:
            raise ValueError(f"`words`: {dict(word)} is not behind {before} s, or not within {duration} s")
        before = word["end"]
    return list(words)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _text_of_words(words: Sequence[Mapping[str, Any]], text: str | None) -> tuple[str, list[int]]:
    """The text, and where in it each word ends; without a text, words are joined by spaces."""
    if text is not None and not isinstance(text, str):
        raise ValueError(f"the text of `words` must be a text, got {text!r:.80}")
    if text is None:
        text = " ".join(word["text"] for word in words)
    ends, position = [], 0
    for word in words:
        place = text.find(word["text"], position)
        if place < 0:
            raise ValueError(f"`words`: {word['text']!r} does not follow in `text` behind {text[:position]!r:.80}")
        position = place + len(word["text"])
        ends.append(position)
    return text, ends


@dataclass
class UnsupervisedDocuments(Step):
    """
    A recording becomes a document of speech alone: "full-length audio segments without transcript".

    Args:
        min_seconds, max_seconds (`float`, *optional*): shorter and longer recordings are rejected.
        audio_key (`str`, *optional*, defaults to `"audio"`): name of the recording in a row.
    """

    name = "unsupervised_documents"
    min_seconds: float = 0.0
    max_seconds: float | None = None
    audio_key: str = "audio"

    def process(self, rows: Sequence[Row]) -> list[Outcome]:
        return [self._document(row) for row in rows]

    def _document(self, row: Row) -> Outcome:
        samples, rate = read_recording(row, self.audio_key)
        seconds = len(samples) / rate
        if seconds < self.min_seconds:
            return Rejection(f"the recording has {seconds:.2f} s; `min_seconds` is {self.min_seconds}")
        if self.max_seconds is not None and seconds > self.max_seconds:
            return Rejection(f"the recording has {seconds:.2f} s; `max_seconds` is {self.max_seconds}")
        return [document_row(row, [audio_content(row[self.audio_key])])]


@dataclass
class FilterByScore(Step):
    """
    Rejects rows whose quality is too low.

    Args:
        min_score (`float`, *optional*, defaults to 3.0): lower scores are rejected; `None` takes all rows.
        score_key (`str`, *optional*, defaults to `"score"`): name of the score in a row; a name with dots is looked up
            in nested mappings (`"metadata.score"`).
    """

    name = "filter_by_score"
    min_score: float | None = 3.0
    score_key: str = "score"

    def process(self, rows: Sequence[Row]) -> list[Outcome]:
        return [self._judge(row) or [row] for row in rows]

    def _judge(self, row: Row) -> Rejection | None:
        if self.min_score is None:
            return None
        score: Any = row
        for name in self.score_key.split("."):
            score = score.get(name) if isinstance(score, Mapping) else None
        if isinstance(score, bool) or not isinstance(score, (int, float)):
            return Rejection(f"the score `{self.score_key}` must be a number, got {score!r}")
        if not score >= self.min_score:
            return Rejection(f"the score `{self.score_key}` is {score}; `min_score` is {self.min_score}")
        return None


@dataclass
class TextDocuments(FilterByScore):
    """
    A text becomes a document of text alone, if its quality is high enough: what keeps the knowledge of the text model
    in the second stage (section 3.1.2: FineWeb-Edu and Chinese FineWeb-Edu V2.1 with scores of at least 3).

    Args:
        min_score, score_key: see [`FilterByScore`].
        text_key (`str`, *optional*, defaults to `"text"`): name of the text in a row.
    """

    name = "text_documents"
    text_key: str = "text"

    def process(self, rows: Sequence[Row]) -> list[Outcome]:
        texts = [text_of(row, self.text_key) for row in rows]
        return [
            self._judge(row) or [document_row(row, [text_content(text)])]
            for row, text in zip(rows, texts, strict=True)
        ]


def document_row(row: Row, chunks: list[dict[str, Any]]) -> Row:
    """The document row that `row` becomes: its chunks, and of the row what is known of its origin."""
    origin = {name: row[name] for name in ("id", "source", "metadata") if row.get(name) is not None}
    return {"chunks": chunks, **origin}


__all__ = [
    "ChunkAndInterleave",
    "FilterByScore",
    "TextDocuments",
    "UnsupervisedDocuments",
    "checked_words",
    "cut_times",
    "document_row",
]
