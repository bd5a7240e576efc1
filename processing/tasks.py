"""The eight tasks of DualSpeechLM as data: their prompts, what they take and what they answer with.

The prompt strings are those of the released code of DualSpeechLM (arXiv 2508.08961); a trained model depends on every
character of them, including the space behind `ASSISTANT:`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any

from ..configuration.configuration_dualspeech import SPEECH_TASKS, TASK_IDS


@dataclass(frozen=True)
class SpeechSlot:
    """A place in a prompt for `<audio>`, the codes of a recording and `</audio>`."""

    field: str


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: its name, a key of `TASK_IDS`.
        template: the prompt, with a `{field}` for everything the caller gives.
        speech_fields: the fields that hold recordings; the others hold text.
    """

    name: str
    template: str
    speech_fields: tuple[str, ...] = ()

    @property
    def id(self) -> int:
        """Its number in the data of the released system."""
        return TASK_IDS[self.name]

    @property
    def output(self) -> str:
        """What the model answers with: `"text"` or `"speech"`."""
        return "speech" if self.name in SPEECH_TASKS else "text"

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that a caller has to give, in the order of the prompt."""
        return tuple(field for _, field, _, _ in Formatter().parse(self.template) if field)

    def check(self, fields: Mapping[str, Any]) -> None:
        """Raise a `ValueError` unless `fields` holds all inputs of this task, of the right kind, and no others.

        `None` and the empty string count as not given.
        """
        given = [name for name, value in fields.items() if not _is_absent(value)]
        accepted = " and ".join(f"`{name}` ({self._kind(name)})" for name in self.fields)
        for name in self.fields:
            if name not in given:
                shown = ", ".join(f"`{other}`" for other in given) or "nothing"
                raise ValueError(f"task {self.name!r} needs `{name}`: it takes {accepted}, given was {shown}")
        for name in given:
            if name not in self.fields:
                raise ValueError(f"task {self.name!r} does not take `{name}`: it takes {accepted}")
            if name not in self.speech_fields and not isinstance(fields[name], str):
                kind = type(fields[name]).__name__
                raise ValueError(f"task {self.name!r} needs `{name}` as text, got {kind}: it takes {accepted}")

    def parts(self, fields: Mapping[str, Any]) -> Iterator[str | SpeechSlot]:
        """The prompt as stretches of text with the text fields filled in, and the recordings between them.

        The space in front of a recording is left out: in the released ids no word-boundary mark stands there.
        """
        text = ""
        for literal, field, _, _ in Formatter().parse(self.template):
            text += literal
            if field in self.speech_fields:
                yield text.removesuffix(" ")
                yield SpeechSlot(field)
                text = ""
            elif field:
                text += fields[field]
        yield text

    def _kind(self, field: str) -> str:
        return "audio" if field in self.speech_fields else "text"


def _is_absent(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value)


TASKS = {
    task.name: task
    for task in (
        Task(
            "asr",
            "Recognize the speech and give me the transcription. USER: {audio}\nASSISTANT: ",
            speech_fields=("audio",),
        ),
        Task(
            "s2tt",
            "Please translate the {source_language} speech into {target_language} text transcription. USER: {audio}\n"
            "ASSISTANT: ",
            speech_fields=("audio",),
        ),
        Task(
            "ser",
            "Please describe the emotion of the speaker. USER: {audio}\nASSISTANT: ",
            speech_fields=("audio",),
        ),
        Task(
            "sqa",
            "Based on the content, provide a text-based answer to the question. USER: The content is: {audio}\n"
            "The question is: {question}\nASSISTANT: ",
            speech_fields=("audio",),
        ),
        Task(
            "tts",
            "Please read this sentence out loud. USER: {text}\nASSISTANT: ",
        ),
        Task(
            "t2st",
            "Please translate the {source_language} text into {target_language} speech. USER: {text}\nASSISTANT: ",
        ),
        Task(
            "vc",
            "Without altering the spoken content, transform the speaker's voice in this speech to match the target "
            "voice. USER: {audio}\nASSISTANT: ",
            speech_fields=("audio",),
        ),
        Task(
            "sc",
            "Please listen to the speech content and provide a spoken answer to the question. USER: "
            "The speech content is: {audio}\nThe question is: {question}\nASSISTANT: ",
            speech_fields=("audio", "question"),
        ),
    )
}
TASK_NAMES = {task.id: task.name for task in TASKS.values()}


def get_task(name: str) -> Task:
    """The task called `name`; a `ValueError` that lists the eight names otherwise."""
    if not isinstance(name, str) or name not in TASKS:
        raise ValueError(f"`task` is {name!r}; accepted are {', '.join(map(repr, TASKS))}")
    return TASKS[name]


__all__ = ["TASKS", "TASK_NAMES", "SpeechSlot", "Task", "get_task"]
