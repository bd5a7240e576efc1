"""Rows of the nano corpus: the eight tasks of DualSpeechLM, chats and documents of MOSS-Speech, recordings, texts."""

import random
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nano_audio import TEST_SPEAKER, TEST_TAKES, Utterance, human_utterance
from nano_grammar import KINDS, Frame, Question, draw_frames, questions
from nano_lexicon import LANGUAGES
from nano_voices import ASSISTANT, EMOTIONAL_VOICES, EMOTIONS, UNSEEN_VOICES, VOICES

TRANSLATED = tuple(kind for kind in KINDS if kind != "digits")
ASKED = ("event", "event", "state")
# Frames of each pool at scale 1. Sentences serve recognition, translation, reading aloud, conversion and documents;
# contents are asked about in writing and in speech. A recording that several rows need is made once.
SIZES = {
    "train": {"sentences": 4200, "contents": 3000, "emotions": 1600, "chats": 3000, "digits": 1500},
    "validation": {"sentences": 96, "contents": 60, "emotions": 48, "chats": 60, "digits": 40},
    "test": {"sentences": 240, "contents": 240, "emotions": 200, "chats": 240, "digits": 150},
}
# One in so many recordings that are to be understood has noise and another level.
DEGRADED = 3
# However small the scale; every voice has a document of two sentences.
LEAST = {"sentences": 2 * len(VOICES), "contents": 4, "emotions": 4, "chats": 4, "digits": 4}
REFERENCES = 16


class Rows:
    """All rows of a split, and the recordings that they need (`utterances`, filled by asking for rows). A split that is
    held out takes the splits before it, with all of their rows, as `earlier`."""

    def __init__(
        self,
        split: str,
        seed: int = 0,
        scale: float = 1.0,
        takes: dict | None = None,
        earlier: Sequence["Rows"] = (),
    ):
        self.split, self.seed, self.takes = split, seed, takes
        # What the splits before this one have: questions that a voice asks, and strings of digits.
        self.asked_before = {(u.text, u.voice) for rows in earlier for u in rows.utterances}
        self.digits_before = {digits for rows in earlier for digits in rows.digits}
        self.digits: set[str] = set()
        self.sizes = {name: max(LEAST[name], round(count * scale)) for name, count in SIZES[split].items()}
        self.draw = random.Random(f"rows/{split}/{seed}")
        self.utterances: dict[Utterance, None] = {}
        self.transcripts_of: dict[str, dict[Utterance, str]] = {"tasks": {}, "chats": {}}
        self.sentences = self._frames("sentences", 1, seed, ("event", "event", *KINDS))
        self.translatable = [(i, frame) for i, frame in self.sentences if frame.kind in TRANSLATED]
        self.contents = self._frames("contents", 2, seed, ASKED)
        # Voices are read off recordings of training sentences that no other row has.
        frames = draw_frames("train", REFERENCES * len(VOICES), seed=1_000_003, kinds=("event",))
        self.references = {voice: frames[i :: len(VOICES)] for i, voice in enumerate(VOICES)}

    def _frames(self, name: str, salt: int, seed: int, kinds: tuple[str, ...]) -> list[tuple[int, Frame]]:
        return list(enumerate(draw_frames(self.split, self.sizes[name], 100 * seed + salt, kinds)))

    def audio(self, utterance: Utterance) -> str:
        """The path of a recording, which is now needed; rows stand two folders below the recordings."""
        self.utterances[utterance] = None
        return f"../../{utterance.path}"

    def voice(self, voices: Sequence[str] = tuple(VOICES)) -> str:
        return voices[self.draw.randrange(len(voices))]

    def reference(self, voice: str) -> str:
        return self.audio(Utterance(self.draw.choice(self.references[voice]).text(), voice))

    def heard(self, text: str, voice: str, emotion: str = "neutral", where: str = "tasks") -> str:
        """The path of a recording that is to be understood; some have noise, in training."""
        seed = zlib.crc32(f"{text}|{voice}".encode())
        noisy = self.split == "train" and seed % DEGRADED == 0
        utterance = Utterance(text, voice, emotion, 1 + seed % 1000 if noisy else 0)
        self.transcripts_of[where][utterance] = text
        return self.audio(utterance)

    def asr(self) -> list[dict[str, Any]]:
        """Sentences in all voices; in the test also unseen voices; and digits of people, if there are any."""
        sets = [list(VOICES), list(UNSEEN_VOICES)] if self.split == "test" else [list(VOICES)]
        rows = []
        for voices in sets:
            for i, frame in self.sentences:
                voice = voices[i % len(voices)]
                rows.append(_row("asr", voice, frame, audio=self.heard(frame.text(), voice), targets=frame.text()))
        for utterance, said, part in self._human_digits():
            self.transcripts_of["tasks"][utterance] = said
            metadata = {"voice": utterance.voice, "takes": part}
            rows.append({"task": "asr", "audio": self.audio(utterance), "targets": said, "metadata": metadata})
        return rows

    def _human_digits(self) -> list[tuple[Utterance, str, str]]:
        """One to five digits each; of three and more, no string that an earlier split has."""
        if self.takes is None:
            return []
        known = [speaker for speaker in self.takes if speaker != TEST_SPEAKER]
        groups = {"unseen": [TEST_SPEAKER]} if self.split == "test" else {}
        groups["known"] = known
        rows = []
        for part, speakers in groups.items():
            while len(rows) < self.sizes["digits"] * (1 + list(groups).index(part)):
                speaker, count = self.draw.choice(speakers), self.draw.randint(1, 5)
                paths = [self._take(speaker, self.draw.randrange(10), part) for _ in range(count)]
                noisy = self.split == "train" and self.draw.randrange(DEGRADED) == 0
                utterance, said = human_utterance(paths, self.draw.randrange(1, 1000) if noisy else 0)
                if count < 3 or said not in self.digits_before:
                    rows.append((utterance, said, part))
                    self.digits.add(said)
        return rows

    def _take(self, speaker: str, digit: int, part: str) -> Path:
        paths = self.takes[speaker][digit]
        is_test = [int(path.stem.split("_")[2]) in TEST_TAKES for path in paths]
        if part == "known":
            wanted = self.split == "test"
            paths = [path for path, test in zip(paths, is_test, strict=True) if test == wanted]
            if self.split != "test":  # the last five are for validation
                paths = paths[-5:] if self.split == "validation" else paths[:-5]
        return self.draw.choice(paths)

    def s2tt(self) -> list[dict[str, Any]]:
        """English speech to German (half), Spanish and French text; the test is German."""
        rows = []
        for i, frame in self.translatable:
            language = "de" if self.split == "test" else ("de", "de", "es", "fr")[len(rows) % 4]
            voice = list(VOICES)[i % len(VOICES)]
            languages = {"source_language": LANGUAGES["en"], "target_language": LANGUAGES[language]}
            audio = self.heard(frame.text(), voice)
            rows.append(_row("s2tt", voice, frame, audio=audio, **languages, targets=frame.text(language)))
        return rows

    def ser(self) -> list[dict[str, Any]]:
        rows = []
        for i, frame in enumerate(draw_frames(self.split, self.sizes["emotions"], 100 * self.seed + 3, TRANSLATED)):
            emotion, voice = list(EMOTIONS)[i % len(EMOTIONS)], self.voice(EMOTIONAL_VOICES)
            rows.append(_row("ser", voice, frame, audio=self.heard(frame.text(), voice, emotion), targets=emotion))
        return rows

    def sqa(self) -> list[dict[str, Any]]:
        rows = []
        for i, frame in self.contents:
            voice, asked = list(VOICES)[i % len(VOICES)], self.draw.choice(questions(frame))
            audio = self.heard(frame.text(), voice)
            rows.append(_row("sqa", voice, frame, audio=audio, question=asked.question, targets=asked.answer))
        return rows

    def tts(self) -> list[dict[str, Any]]:
        rows = []
        for i, frame in self.sentences:
            voice = list(VOICES)[i % len(VOICES)]
            rows.append(self._spoken("tts", voice, frame, frame.text(), text=frame.text()))
        return rows

    def _spoken(self, task: str, voice: str, frame: Frame, answer: str, **inputs) -> dict[str, Any]:
        target = {"audio": self.audio(Utterance(answer, voice))}
        row = _row(task, voice, frame, **inputs, speaker=self.reference(voice), targets=target)
        row["metadata"]["target_text"] = answer
        return row

    def t2st(self) -> list[dict[str, Any]]:
        """German, Spanish and French text to English speech."""
        rows = []
        for i, frame in self.translatable:
            source, voice = ("de", "es", "fr")[len(rows) % 3], list(VOICES)[i % len(VOICES)]
            languages = {"source_language": LANGUAGES[source], "target_language": LANGUAGES["en"]}
            rows.append(self._spoken("t2st", voice, frame, frame.text(), text=frame.text(source), **languages))
        return rows

    def vc(self) -> list[dict[str, Any]]:
        """Sentences of one voice in another; in one row of eight it is the same voice."""
        rows = []
        for i, frame in self.sentences[: len(self.sentences) * 2 // 3]:
            source = list(VOICES)[i % len(VOICES)]
            voice = source if self.split == "train" and i % 8 == 0 else self.voice([v for v in VOICES if v != source])
            audio = self.audio(Utterance(frame.text(), source))
            rows.append(self._spoken("vc", voice, frame, frame.text(), audio=audio))
            rows[-1]["metadata"]["source_voice"] = source
        return rows

    def sc(self) -> list[dict[str, Any]]:
        """A sentence and a question by one speaker, the answer by another."""
        rows = []
        for i, frame in self.contents:
            asker, voice = list(VOICES)[i % len(VOICES)], self.voice()
            audio = self.heard(frame.text(), asker)
            asked, asker = self._unheard(frame, asker)
            question = self.heard(asked.question, asker)
            rows.append(self._spoken("sc", voice, frame, asked.answer, audio=audio, question=question))
            rows[-1]["metadata"]["question_text"] = asked.question
        return rows

    def _unheard(self, frame: Frame, asker: str) -> tuple[Question, str]:
        """A question about `frame`, and who asks it: `asker`, if there is a question that no earlier split has so."""
        choices = questions(frame)
        choices = [self.draw.choice(choices), *choices]
        for voice in (asker, *VOICES):
            for asked in choices:
                if (asked.question, voice) not in self.asked_before:
                    return asked, voice
        raise ValueError(f"every question about {frame.text()!r} was asked by every voice in an earlier split")

    def chats(self) -> list[dict[str, Any]]:
        """Questions after a sentence, and requests to repeat one, in four forms: speech or text in and out."""
        rows = []
        for frame in draw_frames(self.split, self.sizes["chats"], 100 * self.seed + 4, ASKED):
            asked = self.draw.choice(questions(frame))
            if self.draw.randrange(4):
                user, answer, about = f"{frame.text()} {asked.question}", asked.answer, asked.about
            else:
                user, answer, about = f"Please repeat. {frame.text()}", frame.text(), "repeat"
            voice = self.voice()
            for spoken_in, spoken_out in ((True, True), (True, False), (False, True), (False, False)):
                said = self._content(user, voice, spoken_in, understood=True)
                reply = self._content(answer, ASSISTANT, spoken_out)
                messages = [{"role": "user", "content": said}, {"role": "assistant", "content": reply}]
                form = f"{'speech' if spoken_in else 'text'}_to_{'speech' if spoken_out else 'text'}"
                metadata = {"form": form, "about": about, "user_text": user, "answer_text": answer, "voice": voice}
                rows.append({"messages": messages, "metadata": metadata | {"frame": frame.key}})
        return rows

    def _content(self, text: str, voice: str, spoken: bool, understood: bool = False) -> str | dict[str, str]:
        if not spoken:
            return text
        path = self.heard(text, voice, where="chats") if understood else self.audio(Utterance(text, voice))
        return {"type": "audio", "path": path}

    def documents(self) -> list[dict[str, Any]]:
        """Interleaved documents: two sentences of one voice, said and written in turn, most of them in both forms."""
        rows = []
        for first in range(len(VOICES)):
            voice, frames = list(VOICES)[first], [frame for _, frame in self.sentences[first :: len(VOICES)]]
            for pair in zip(frames[::2], frames[1::2], strict=False):
                spoken, chunks = bool(self.draw.randrange(2)), []
                for frame in pair:
                    chunks.append(self._content(frame.text(), voice, spoken))
                    if self.draw.randrange(4):
                        chunks.append(self._content(frame.text(), voice, not spoken))
                    spoken = not spoken
                rows.append({"chunks": chunks, "metadata": {"voice": voice, "frames": [f.key for f in pair]}})
        return rows

    def texts(self) -> list[dict[str, Any]]:
        """Documents of text alone, for the text side of MOSS-Speech."""
        rows = []
        for start in range(0, len(self.sentences), 3):
            group = [frame for _, frame in self.sentences[start : start + 3]]
            metadata = {"frames": [frame.key for frame in group]}
            rows.append({"chunks": [" ".join(frame.text() for frame in group)], "metadata": metadata})
        return rows

    def recordings(self) -> list[dict[str, Any]]:
        """Clean recordings with their text and voice, for codecs, vocoders and speaker encoders."""
        said = [(list(VOICES)[i % len(VOICES)], frame.text()) for i, frame in self.sentences]
        if self.split == "train":
            said += [(voice, frame.text()) for voice, frames in self.references.items() for frame in frames]
        return [
            {
                "audio": self.audio(Utterance(text, voice)),
                "text": text,
                "speaker": voice,
                "metadata": {"voice": voice},
            }
            for voice, text in said
        ]

    def transcripts(self) -> list[dict[str, Any]]:
        """Everything that the rows of the tasks above are to understand, with what is said: for speech encoders."""
        return self._transcripts("tasks")

    def chat_transcripts(self) -> list[dict[str, Any]]:
        """The same for the chats and documents, whose recordings are longer."""
        return self._transcripts("chats")

    def _transcripts(self, where: str) -> list[dict[str, Any]]:
        return [
            {"audio": self.audio(utterance), "text": text, "metadata": {"voice": utterance.voice}}
            for utterance, text in self.transcripts_of[where].items()
        ]


def _row(task: str, voice: str, frame: Frame, **fields) -> dict[str, Any]:
    return {"task": task, **fields, "metadata": {"voice": voice, "frame": frame.key, "text": frame.text()}}


# In this order: the last two list what the others ask for.
ROW_FILES = ("asr", "s2tt", "ser", "sqa", "tts", "t2st", "vc", "sc", "chats", "documents", "texts", "recordings")
ROW_FILES += ("transcripts", "chat_transcripts")

__all__ = ["ROW_FILES", "SIZES", "Rows"]
