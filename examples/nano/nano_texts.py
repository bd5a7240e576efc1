"""What the small text models learn: sentences, the tasks with text in place of speech, and text that is spelled out.

A text model of some million parameters has not read the internet. So that, frozen, it can teach a speech tokenizer, it
practises what speech will ask of it: reading words off a slow and irregular stream of letters.
"""

import json
import random
import string
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dualspeech.processing.moss_speech_chat import SYSTEM_PROMPTS
from dualspeech.processing.tasks import TASKS
from dualspeech.training.data_collator_us_tokenizer import PROMPTS, TEXT_BEFORE_SPEECH, TEXT_BEHIND_SPEECH

# The tokens of Qwen3 that MOSS-Speech uses, and the one that sequences of DualSpeechLM start with.
CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<think>")
START_TOKEN = "<|startoftext|>"
MARKS = str.maketrans("", "", string.punctuation)


class TextExample(NamedTuple):
    """A prompt and what follows it; `starts` with a start token, as DualSpeechLM does."""

    prompt: str
    answer: str
    starts: bool = True


def spell(text: str, draw: random.Random, repeats: tuple[int, int], mistakes: float = 0.05) -> str:
    """`text` letter by letter, each some times, and spaces as "|": "to" as " t t o". A share of the letters is another one."""
    letters = []
    for letter in text.lower().translate(MARKS):
        shown = "|" if letter == " " else letter
        for _ in range(draw.randint(*repeats)):
            letters.append(draw.choice(string.ascii_lowercase) if draw.random() < mistakes else shown)
    return "".join(f" {letter}" for letter in letters)


def rows_of(folder: str | Path, name: str) -> list[dict]:
    """The rows of a file of a split."""
    with open(Path(folder) / f"{name}.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _speech(text: str, draw: random.Random, repeats: tuple[int, int]) -> str:
    return spell(text, draw, repeats) if draw.random() < 0.75 else text


def _words(folder: str | Path) -> list[str]:
    return sorted({word for row in rows_of(folder, "asr") for word in row["targets"].translate(MARKS).split()})


def copying_drills(folder: str | Path, seed: int = 0) -> Iterator[TextExample]:
    """Lists of words that repeat themselves: nothing but copying helps, so a model finds out about it soonest."""
    draw, words = random.Random(f"copying/{seed}"), _words(folder)
    for index in range(6 * len(rows_of(folder, "asr"))):
        said = [draw.choice(words) for _ in range(draw.randint(4, 14))]
        yield TextExample("", " ".join((said * 7)[: draw.randint(24, 28)]), starts=index % 2 == 0)


def reading_drills(folder: str | Path, seed: int = 0) -> Iterator[TextExample]:
    """
    Words without grammar, which can be read but not guessed, unlike those of a sentence. In one of five a list is copied;
    two of five spell each word in front of it, two ask for all that is spelled, as either design asks.
    """
    draw, words = random.Random(f"reading/{seed}"), _words(folder)
    for index in range(8 * len(rows_of(folder, "asr"))):
        said, starts = [draw.choice(words) for _ in range(draw.randint(1, 7))], draw.random() < 0.6
        repeats = (1, 3) if starts else (1, 2)
        text = " ".join(said)
        if index % 5 == 0:
            yield TextExample("", " ".join(said * draw.randint(2, 3)), starts)
        elif index % 5 < 3:
            yield TextExample("", "".join(f"{spell(word, draw, repeats)} {word}" for word in said), starts)
        elif starts:
            yield _as_tokenizer_prompt("asr", _speech(text, draw, repeats), text)
        else:
            speech = _speech(text, draw, repeats)
            asked = "Please repeat. " if speech == text else spell("Please repeat ", draw, repeats)
            yield _chat(asked + speech, text)


def task_examples(folder: str | Path, seed: int = 0) -> Iterator[TextExample]:
    """For the text model of DualSpeechLM: sentences in four languages, and understanding with texts as speech."""
    draw = random.Random(f"tasks/{seed}")
    for row in rows_of(folder, "asr"):
        text = row["metadata"].get("text", row["targets"])
        yield TextExample("", row["targets"])
        yield _as_tokenizer_prompt("asr", _speech(text, draw, (1, 3)), row["targets"])
        yield _as_task_prompt(row, draw, audio=text)
    for row in rows_of(folder, "sqa"):
        speech = _speech(row["metadata"]["text"], draw, (1, 3))
        yield _as_tokenizer_prompt("sqa", speech, row["targets"], row["question"])
        yield _as_task_prompt(row, draw, audio=row["metadata"]["text"])
    for row in rows_of(folder, "ser"):
        # An emotion is no text: here a word between the letters stands for how they sound.
        letters = spell(row["metadata"]["text"], draw, (1, 3)).split()
        letters = [row["targets"] if draw.random() < 0.2 else letter for letter in letters]
        yield _as_tokenizer_prompt("ser", " " + " ".join(letters), row["targets"])
    for row in rows_of(folder, "s2tt"):
        yield TextExample("", row["targets"])
        yield _as_task_prompt(row, draw, audio=row["metadata"]["text"])
    for row in rows_of(folder, "t2st"):
        yield _as_task_prompt(row, draw, answer=row["metadata"]["target_text"])


def _as_tokenizer_prompt(task: str, speech: str, answer: str, question: str = "") -> TextExample:
    """As the USTokenizer is trained."""
    return TextExample(TEXT_BEFORE_SPEECH + speech + TEXT_BEHIND_SPEECH.format(PROMPTS[task].format(question)), answer)


def _as_task_prompt(row: dict, draw: random.Random, audio: str = "", answer: str | None = None) -> TextExample:
    """As DualSpeechLM is asked, with `audio` as letters in place of speech."""
    fields = {name: row.get(name) for name in TASKS[row["task"]].fields}
    if audio:
        fields["audio"] = _speech(audio, draw, (1, 3))
    return TextExample(TASKS[row["task"]].template.format(**fields), row["targets"] if answer is None else answer)


def chat_examples(folder: str | Path, seed: int = 0) -> Iterator[TextExample]:
    """For the text model of MOSS-Speech: documents, and chats with texts as speech."""
    draw = random.Random(f"chats/{seed}")
    for row in rows_of(folder, "texts"):
        yield TextExample("", row["chunks"][0], starts=False)
        yield TextExample(_speech(row["chunks"][0], draw, (1, 2)) + " ", row["chunks"][0], starts=False)
    for row in rows_of(folder, "chats"):
        metadata = row["metadata"]
        if metadata["form"] in ("text_to_text", "speech_to_text"):
            spoken = metadata["form"] == "speech_to_text"
            user = _speech(metadata["user_text"], draw, (1, 2)) if spoken else metadata["user_text"]
            yield _chat(user, metadata["answer_text"])


def _chat(user: str, answer: str) -> TextExample:
    turns = (("system", SYSTEM_PROMPTS["text"]), ("user", user))
    prompt = "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in turns)
    return TextExample(f"{prompt}<|im_start|>assistant\n", answer, starts=False)


__all__ = [
    "CHAT_TOKENS",
    "START_TOKEN",
    "TextExample",
    "chat_examples",
    "copying_drills",
    "reading_drills",
    "rows_of",
    "spell",
    "task_examples",
]
