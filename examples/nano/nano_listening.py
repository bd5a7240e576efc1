"""What evaluations of the nano checkpoints share: rows of the corpus, ears, and answers that are listened to."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from nano_recognizer import Recognizer, accepts, normalize
from nano_scores import Measure, WordErrors, share
from nano_speaker_id import SpeakerId
from nano_voices import VOICES

from dualspeech.processing.audio import load_audio
from dualspeech.training.validate_rows import read_rows, recordings_of

# Recordings of the training per voice that tell what it sounds like.
REFERENCES = 16


@dataclass
class Answer:
    """
    What a model made of a row.

    Args:
        text: what it wrote.
        audio: what it said, float32 `[S]` at `rate` Hz.
        failed: why the row counts as an error whatever it says: it was refused, cut by its length, or does not speak.
    """

    text: str | None = None
    audio: np.ndarray | None = None
    rate: int | None = None
    failed: str | None = None

    def in_speech(self) -> "Answer":
        """The same, failed if it says nothing."""
        if self.failed is None and (self.audio is None or not len(self.audio)):
            self.failed = "no speech"
        return self


@dataclass(frozen=True)
class Corpus:
    """
    The nano corpus.

    Args:
        folder: as `make_corpus.py` makes it.
        limit: rows of a group that are used; all if not given.
    """

    folder: Path
    limit: int | None = None

    def file(self, name: str, split: str = "test") -> Path:
        """
        Raises:
            ValueError: there is no such file.
        """
        path = Path(self.folder) / "rows" / split / f"{name}.jsonl"
        if not path.is_file():
            raise ValueError(f"`corpus` has no {path.relative_to(self.folder)}; make it with make_corpus.py")
        return path

    def rows(self, name: str, group: Callable[[dict], Any] = lambda row: "", split: str = "test") -> list[dict]:
        """
        Rows of a file, the first `limit` of each `group`; paths of recordings start where this one does.

        Raises:
            ValueError: there is no such file, or a recording is missing.
        """
        counts, kept = defaultdict(int), []
        for row in read_rows(self.file(name, split)):
            counts[group(row)] += 1
            if self.limit is None or counts[group(row)] <= self.limit:
                kept.append(row)
        for row in kept:
            for holder, key, place in recordings_of(row):
                path = holder[key]
                if isinstance(path, str) and path.endswith(".wav") and not Path(path).is_file():
                    raise ValueError(f"{row['source']}: `{place}` {path!r} is missing; make_corpus.py makes what is")
        return kept

    def recordings_by_voice(self, count: int) -> dict[str, list[str]]:
        """`count` recordings of the training of each voice."""
        found: dict[str, list[str]] = {voice: [] for voice in VOICES}
        for row in read_rows(self.file("recordings", "train")):
            if len(found[row["speaker"]]) < count:
                found[row["speaker"]].append(row["audio"])
        return found


class Ears:
    """Recognition and speaker identification, loaded when needed; each file is listened to once."""

    def __init__(self, corpus: Corpus):
        self.corpus = corpus
        self.heard: dict[tuple[str, str], str] = {}

    @cached_property
    def recognizer(self) -> Recognizer:
        return Recognizer()

    @cached_property
    def speakers(self) -> SpeakerId:
        references = self.corpus.recordings_by_voice(REFERENCES)
        loaded = {voice: [load_audio(path)[0] for path in paths] for voice, paths in references.items()}
        return SpeakerId({voice: recordings for voice, recordings in loaded.items() if recordings})

    def words(self, answer: Answer, rule: str) -> str:
        """What is said; nothing where there is no speech."""
        spoken = answer.audio is not None and len(answer.audio)
        return self.recognizer(answer.audio, answer.rate, rule) if spoken else ""

    def words_of_file(self, path: str, rule: str) -> str:
        if (path, rule) not in self.heard:
            self.heard[path, rule] = self.recognizer(*load_audio(path), rule)
        return self.heard[path, rule]

    def voice(self, answer: Answer) -> str:
        spoken = answer.audio is not None and len(answer.audio)
        return self.speakers(answer.audio, answer.rate) if spoken else ""

    def voice_of_file(self, path: str) -> str:
        if (path, "voice") not in self.heard:
            self.heard[path, "voice"] = self.speakers(*load_audio(path))
        return self.heard[path, "voice"]


@dataclass
class Spoken:
    """
    Answers beside the synthesizer's own recordings of the same sentences.

    Args:
        ears: who listens.
        answers: of the model.
        texts: what is to be said.
        originals: files of the synthesizer that say it.
        rule: grammar of the recogniser.
    """

    ears: Ears
    answers: Sequence[Answer]
    texts: Sequence[str]
    originals: Sequence[str]
    rule: str = "sentence"

    def __post_init__(self):
        if strange := [text for text in self.texts if not accepts(text, self.rule)]:
            raise ValueError(f"the grammar of the recogniser has no {self.rule} {strange[0]!r}")
        self.failed = [answer.in_speech().failed is not None for answer in self.answers]
        self.heard = [self.ears.words(answer, self.rule) for answer in self.answers]
        self.heard_originals = [self.ears.words_of_file(path, self.rule) for path in self.originals]

    def word_errors(self, target: str | None = None, what: str = "generated speech") -> list[Measure]:
        """Word error rates of both, and the difference."""
        ours = WordErrors.count(self.texts, self.heard, self.failed)
        theirs = WordErrors.count(self.texts, self.heard_originals)
        return [
            ours.rate(f"WER of {what}, pocketsphinx"),
            theirs.rate("WER of the synthesizer, pocketsphinx"),
            ours.minus(theirs, f"WER of {what} less that of the synthesizer", target=target),
        ]

    def right(self, target: str | None = None, what: str = "spoken answer correct") -> list[Measure]:
        """Shares of answers that are heard as they should be."""
        wanted = [normalize(text) for text in self.texts]
        ours = [a == b for a, b in zip(self.heard, wanted, strict=True)]
        theirs = [a == b for a, b in zip(self.heard_originals, wanted, strict=True)]
        understood = [i for i, right in enumerate(theirs) if right]
        return [
            share(what, ours, self.failed, target=target, note="pocketsphinx hears the answer word for word"),
            share(f"{what}: the synthesizer's own", theirs, note="the most that this recogniser lets expect"),
            share(
                f"{what}: where the synthesizer's own is",
                [ours[i] for i in understood],
                [self.failed[i] for i in understood],
            ),
        ]

    def voices(self, voices: Sequence[str], target: str | None = None) -> list[Measure]:
        """Shares of speech whose nearest voice is that of `voices`."""
        ours = [self.ears.voice(a) == v for a, v in zip(self.answers, voices, strict=True)]
        theirs = [self.ears.voice_of_file(p) == v for p, v in zip(self.originals, voices, strict=True)]
        return [
            share("nearest voice is the target voice", ours, self.failed, target=target),
            share("nearest voice is the target voice: the synthesizer's own", theirs),
        ]

    def lines(self, rows: Sequence[dict]) -> Iterator[dict]:
        """What was heard in each row, for reading."""
        for i, row in enumerate(rows):
            yield {
                "source": Path(row["source"]).name,
                "wanted": self.texts[i],
                "heard": self.heard[i],
                "heard_in_the_synthesizer": self.heard_originals[i],
                "failed": self.answers[i].failed,
                "metadata": row.get("metadata"),
            }


def batches(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


__all__ = ["Answer", "Corpus", "Ears", "Spoken", "batches"]
