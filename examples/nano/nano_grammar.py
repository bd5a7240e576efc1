"""Sentences of the micro-language: what is said (a `Frame`), how four languages say it, and what can be asked about it.

    python examples/nano/nano_grammar.py          # some sentences in four languages, with questions and answers

A frame is a choice of words. Frames are split by a hash of what they say into training, validation and test, so a test
sentence is a combination that no row of the training has in any language, spoken or written, as content or as answer.
Strings of recorded human digits are no frames: they are drawn freely, and their recordings are split (`nano_audio`).
"""

import hashlib
import random
from dataclasses import dataclass
from typing import NamedTuple

from nano_lexicon import (
    COLOURS,
    DIGITS,
    LANGUAGES,
    NAMES,
    NOUNS,
    NUMBERS,
    PLACES,
    REQUESTS,
    TIMES,
    VERBS,
)

KINDS = ("event", "state", "request", "where", "digits")
# Shares of the frames in percent; the hash of a frame decides.
SPLITS = {"train": 85, "validation": 5, "test": 10}


@dataclass(frozen=True)
class Frame:
    """
    What a sentence says; fields are indices into the lists of `nano_lexicon`, `None` where nothing is said.

    event:   Tom buys three red apples in the park on Monday.   (number is required; colour, place, time are not)
    state:   The red apple is in the park.
    request: Please wash the red car in the garden.             (place is not required)
    where:   Where is the red car?
    digits:  three five nine                                    (English only)
    """

    kind: str
    name: int | None = None
    verb: int | None = None
    number: int | None = None
    colour: int | None = None
    noun: int | None = None
    place: int | None = None
    time: int | None = None
    digits: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """The same for equal frames only."""
        values = (self.kind, self.name, self.verb, self.number, self.colour, self.noun, self.place, self.time)
        return "/".join("-" if value is None else str(value) for value in (*values, *self.digits))

    @property
    def split(self) -> str:
        """`"train"`, `"validation"` or `"test"`; decided by what is said alone."""
        if self.kind == "digits" and len(self.digits) < 3:
            return "train"  # there are so few that every combination is needed
        draw = int.from_bytes(hashlib.sha256(self.key.encode()).digest()[:8], "big") % 100
        for name, share in SPLITS.items():
            if draw < share:
                return name
            draw -= share
        raise AssertionError("the shares sum to 100")

    def text(self, language: str = "en") -> str:
        """The sentence, written.

        Raises:
            ValueError: another language than `LANGUAGES`, or digits in another one than English.
        """
        if language not in LANGUAGES:
            raise ValueError(f"`language` is {language!r}; accepted are {', '.join(LANGUAGES)}")
        if self.kind == "digits":
            if language != "en":
                raise ValueError("digits exist in English only")
            return " ".join(DIGITS[digit] for digit in self.digits)
        return {"en": _english, "de": _german, "es": _spanish, "fr": _french}[language](self)


def _join(*words: str | None, end: str = ".") -> str:
    text = " ".join(word for word in words if word) + end
    return text[0].upper() + text[1:]


def things(frame: Frame, language: str = "en") -> str:
    """What an event is about, with number and colour, as an object of the sentence: "three red apples"."""
    noun, number = NOUNS[frame.noun], frame.number
    colour = None if frame.colour is None else COLOURS[frame.colour]
    count, plural = NUMBERS[language][number], int(number > 0)
    if language == "en":
        return " ".join(filter(None, (count, colour and colour.en, noun.en[plural])))
    if language == "de":
        gender = noun.de[0]
        if number == 0:
            count = {"m": "einen", "f": "eine", "n": "ein"}[gender]
        ending = "e" if plural else {"m": "en", "f": "e", "n": "es"}[gender]
        return " ".join(filter(None, (count, colour and colour.de + ending, noun.de[1 + plural])))
    gender, *forms = noun.es if language == "es" else noun.fr
    if number == 0 and gender == "f":
        count = {"es": "una", "fr": "une"}[language]
    form = 2 * plural + (gender == "f")
    shade = colour and (colour.es if language == "es" else colour.fr)[form]
    return " ".join(filter(None, (count, forms[plural], shade)))


def _the(frame: Frame, language: str, accusative: bool = False) -> str:
    """One definite thing: "the red apple"."""
    noun, colour = NOUNS[frame.noun], COLOURS[frame.colour]
    if language == "en":
        return f"the {colour.en} {noun.en[0]}"
    if language == "de":
        gender = noun.de[0]
        article = {"m": "den" if accusative else "der", "f": "die", "n": "das"}[gender]
        ending = "en" if accusative and gender == "m" else "e"
        return f"{article} {colour.de}{ending} {noun.de[1]}"
    if language == "es":
        gender, word = noun.es[:2]
        return f"{'la' if gender == 'f' else 'el'} {word} {colour.es[gender == 'f']}"
    gender, word = noun.fr[:2]
    article = "l'" if word[0] in "aoh" else "la " if gender == "f" else "le "
    return f"{article}{word} {colour.fr[gender == 'f']}"


def _phrase(phrases, index: int | None, language: str) -> str | None:
    return None if index is None else getattr(phrases[index], language)


def _english(frame: Frame) -> str:
    place, time = _phrase(PLACES, frame.place, "en"), _phrase(TIMES, frame.time, "en")
    if frame.kind == "event":
        return _join(NAMES[frame.name], VERBS[frame.verb].en, things(frame), place, time)
    if frame.kind == "state":
        return _join(_the(frame, "en"), "is", place)
    if frame.kind == "request":
        return _join("please", REQUESTS[frame.verb].en, _the(frame, "en"), place)
    return _join("where is", _the(frame, "en"), end="?")


def _german(frame: Frame) -> str:
    place, time = _phrase(PLACES, frame.place, "de"), _phrase(TIMES, frame.time, "de")
    if frame.kind == "event":
        return _join(NAMES[frame.name], VERBS[frame.verb].de, time, things(frame, "de"), place)
    if frame.kind == "state":
        return _join(_the(frame, "de"), "ist", place)
    if frame.kind == "request":
        return _join("bitte", REQUESTS[frame.verb].de, _the(frame, "de", accusative=True), place)
    return _join("wo ist", _the(frame, "de"), end="?")


def _spanish(frame: Frame) -> str:
    place, time = _phrase(PLACES, frame.place, "es"), _phrase(TIMES, frame.time, "es")
    if frame.kind == "event":
        return _join(NAMES[frame.name], VERBS[frame.verb].es, things(frame, "es"), place, time)
    if frame.kind == "state":
        return _join(_the(frame, "es"), "está", place)
    if frame.kind == "request":
        return _join("por favor,", REQUESTS[frame.verb].es, _the(frame, "es"), place)
    return "¿" + _join("dónde está", _the(frame, "es"), end="?")


def _french(frame: Frame) -> str:
    place, time = _phrase(PLACES, frame.place, "fr"), _phrase(TIMES, frame.time, "fr")
    if frame.kind == "event":
        return _join(NAMES[frame.name], VERBS[frame.verb].fr, things(frame, "fr"), place, time)
    if frame.kind == "state":
        return _join(_the(frame, "fr"), "est", place)
    if frame.kind == "request":
        return _join("s'il te plaît,", REQUESTS[frame.verb].fr, _the(frame, "fr"), place)
    return _join("où est", _the(frame, "fr"), end=" ?")


class Question(NamedTuple):
    """A question about the content of a frame, and its answer, in English. `about` names what is asked for."""

    about: str
    question: str
    answer: str


def questions(frame: Frame) -> list[Question]:
    """What can be asked about an event or a state; nothing about the other kinds."""
    if frame.kind == "state":
        thing = NOUNS[frame.noun].en[0]
        return [
            Question("place", f"Where is the {thing}?", _join(PLACES[frame.place].en)),
            Question("colour", f"What colour is the {thing}?", _join(COLOURS[frame.colour].en)),
        ]
    if frame.kind != "event":
        return []
    name, verb, noun = NAMES[frame.name], VERBS[frame.verb], NOUNS[frame.noun].en
    thing = noun[int(frame.number > 0)]
    asked = [
        Question("who", f"Who {verb.en} the {thing}?", _join(name)),
        Question("what", f"What does {name} {verb.base}?", _join(things(frame))),
    ]
    if frame.number > 0:
        question = f"How many {noun[1]} does {name} {verb.base}?"
        asked.append(Question("number", question, _join(NUMBERS["en"][frame.number])))
    if frame.colour is not None:
        question = f"What colour {'are' if frame.number > 0 else 'is'} the {thing}?"
        asked.append(Question("colour", question, _join(COLOURS[frame.colour].en)))
    if frame.place is not None:
        asked.append(Question("place", f"Where is {name}?", _join(PLACES[frame.place].en)))
    if frame.time is not None:
        asked.append(Question("time", f"When does {name} {verb.base} the {thing}?", _join(TIMES[frame.time].en)))
    return asked


def draw_frame(draw: random.Random, kinds: tuple[str, ...] = KINDS) -> Frame:
    """A frame of one of `kinds`, each as likely as the others, of any split."""
    kind = draw.choice(kinds)
    if kind == "digits":
        return Frame(kind, digits=tuple(draw.randrange(10) for _ in range(draw.randint(1, 6))))

    def index(values, probability: float = 1.0) -> int | None:
        return draw.randrange(len(values)) if draw.random() < probability else None

    if kind == "event":
        return Frame(
            kind,
            name=index(NAMES),
            verb=index(VERBS),
            number=index(NUMBERS["en"]),
            colour=index(COLOURS, 0.7),
            noun=index(NOUNS),
            place=index(PLACES, 0.6),
            time=index(TIMES, 0.4),
        )
    place = {"state": 1.0, "request": 0.6, "where": 0.0}[kind]
    verb = index(REQUESTS) if kind == "request" else None
    return Frame(kind, verb=verb, colour=index(COLOURS), noun=index(NOUNS), place=index(PLACES, place))


def draw_frames(split: str, count: int, seed: int, kinds: tuple[str, ...] = KINDS) -> list[Frame]:
    """
    `count` different frames of a split; the same arguments give the same frames.

    Raises:
        ValueError: an unknown split, or more frames than there are (found by drawing in vain).
    """
    if split not in SPLITS:
        raise ValueError(f"`split` is {split!r}; accepted are {', '.join(SPLITS)}")
    draw, frames = random.Random(f"{split}/{seed}/{'/'.join(kinds)}"), {}
    for _ in range(200 * count + 1000):
        if len(frames) == count:
            return list(frames.values())
        frame = draw_frame(draw, kinds)
        if frame.split == split:
            frames.setdefault(frame.key, frame)
    raise ValueError(
        f"{count} different frames of {kinds} in the split {split!r} are too many; {len(frames)} were found"
    )


def main() -> None:
    for frame in draw_frames("train", 8, seed=0):
        for language in LANGUAGES if frame.kind != "digits" else ("en",):
            print(f"{language}  {frame.text(language)}")
        for _, question, answer in questions(frame):
            print(f"    {question} {answer}")


if __name__ == "__main__":
    main()

__all__ = ["KINDS", "SPLITS", "Frame", "Question", "draw_frame", "draw_frames", "questions", "things"]
