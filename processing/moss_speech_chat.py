"""The chats of MOSS-Speech as data: modalities, roles, system prompts, the pieces of the template, and turns."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .audio import as_array, is_array_with_rate
from .row_inputs import is_one_recording

MODALITIES = ("text", "audio")
ROLES = ("system", "user", "assistant")

# What the first turn says, by the modality of the reply: the texts of the official demo.
SYSTEM_PROMPTS = {
    "audio": "You are a helpful voice assistant. Answer the user's questions with spoken responses.",
    "text": "You are a helpful assistant. Answer the user's questions with text.",
}
# What the released processor adds by itself, behind all turns, where the first one is not a system turn.
RELEASED_SYSTEM_PROMPTS = {
    "audio": "You are a helpful assistant. Respond with spoken outputs.",
    "text": "You are a helpful assistant. Respond with text outputs.",
}
# Strings that the released processor replaces in decoded text; what they mean is not published.
RELEASED_REPLACEMENTS = {"<|empty|>": ".", "<|end_empty|>": ":"}

_SOURCE_KEYS = ("audio", "path", "filepath", "url", "codes")
_ACCEPTED_CONTENT = (
    "a text, {'type': 'text', 'text': ...}, {'type': 'audio', <source>} with one <source> of 'audio', 'path', "
    "'filepath', 'url' and 'codes', or a list with one of these"
)


@dataclass(frozen=True)
class ChatTemplate:
    """The pieces around a turn. Each piece is tokenised on its own: `start_of(role)`, the content, `end_of_turn`.

    A turn is `<|im_start|>role\\n`, its content, `<|im_end|>\\n`; a reply begins with `<|im_start|>assistant\\n`, and a
    spoken one with `<|object_ref_start|>` behind it.
    """

    turn_start: str = "<|im_start|>"
    turn_end: str = "<|im_end|>"
    start_of_speech: str = "<|object_ref_start|>"

    def start_of(self, role: str) -> str:
        """The piece in front of the content of a turn."""
        return f"{self.turn_start}{role}\n"

    @property
    def end_of_turn(self) -> str:
        """The piece behind the content of a turn."""
        return f"{self.turn_end}\n"

    def reply(self, modality: str) -> str:
        """What a reply of the assistant begins with; in a spoken one the start of speech belongs to the prompt."""
        return self.start_of("assistant") + (self.start_of_speech if modality == "audio" else "")


@dataclass(frozen=True)
class Content:
    """A stretch of text or of speech: exactly one of the three is not `None`.

    Args:
        text (`str`, *optional*): a text.
        audio (*optional*): a recording in any form that [`~processing.audio.load_audio`] reads, or an http(s) address.
        codes (`list[int]`, *optional*): the codes of a recording.
    """

    text: str | None = None
    audio: Any = None
    codes: list[int] | None = None

    @property
    def modality(self) -> str:
        return "audio" if self.text is None else "text"


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation; `role` is one of `ROLES`."""

    role: str
    content: Content


def conversations_of(conversations: Any, text: Any = None, audio: Any = None) -> Any:
    """What `parse_conversations` reads, from the arguments of a call: conversations, or what users write or speak.

    Args:
        conversations: one or several, or `None` with one of the others.
        text: a text or a list of them; `None` or empty where a user speaks.
        audio: a recording or a list of them; `None` where a user writes.

    Raises:
        ValueError: nothing, conversations beside text or audio, both or none for one conversation, or lists of different
            lengths.
    """
    given = [name for name, value in {"text": text, "audio": audio}.items() if value is not None]
    if (conversations is not None) == bool(given):
        raise ValueError(
            f"give either `conversations` or `text` and `audio`; given is {given or 'nothing'} of the latter"
        )
    if conversations is not None:
        return conversations
    texts = [text] if text is None or isinstance(text, str) else list(text)
    recordings = [audio] if audio is None or is_one_recording(audio) else list(audio)
    count = max(len(texts), len(recordings))
    if len(texts) == 1 and not texts[0]:
        texts = texts * count
    if len(recordings) == 1 and recordings[0] is None:
        recordings = recordings * count
    if len(texts) != len(recordings):
        raise ValueError(f"`text` has {len(texts)} entries and `audio` {len(recordings)}; give one per conversation")
    result = []
    for number, (written, spoken) in enumerate(zip(texts, recordings, strict=True)):
        if (spoken is None) == (not written):
            kind = "neither `text` nor `audio`" if spoken is None else "both `text` and `audio`"
            raise ValueError(f"conversation {number} has {kind}: a turn is wholly one of them; use `conversations`")
        content = {"type": "text", "text": written} if written else {"type": "audio", "audio": spoken}
        result.append([{"role": "user", "content": content}])
    return result


def parse_conversations(conversations: Any) -> list[list[Turn]]:
    """The turns of one conversation or of a list of them.

    Args:
        conversations: a conversation is a list of turns `{"role": ..., "content": ...}`, or a string: the text of a
            single user turn. The content is described in [`parse_content`].

    Raises:
        ValueError: an empty conversation, an unknown role or key, or a content that is not wholly text or wholly audio.
    """
    if isinstance(conversations, str):
        conversations = [conversations]
    if isinstance(conversations, Mapping) or not _is_sequence(conversations):
        raise ValueError(
            "`conversations` must be a list of turns {'role': ..., 'content': ...} or a list of such lists, got "
            f"{type(conversations).__name__}"
        )
    if not len(conversations):
        raise ValueError("`conversations` is empty; at least one turn is needed")
    if isinstance(conversations[0], Mapping):
        conversations = [conversations]
    return [_parse_conversation(turns, number) for number, turns in enumerate(conversations)]


def parse_content(content: Any, place: str) -> Content:
    """What a turn, or a chunk of an interleaved document, says.

    Args:
        content: a string; a part `{"type": "text", "text": ...}` or `{"type": "audio", ...}` with one of `audio`
            (anything that [`~processing.audio.load_audio`] reads), `path`, `filepath`, `url` (a file or an http(s)
            address) and `codes` (the codes of a recording), and `sampling_rate` beside a bare array; a part of the
            released schema (`{"path": ..., "type": "audio/wav"}`, `{"filepath": ...}`); or a list with one part. Entries
            that are `None` count as absent: data sets fill them in.
        place: where it stands, for messages.

    Raises:
        ValueError: something else.
    """
    if _is_sequence(content):
        if len(content) != 1:
            kinds = sorted({_describe(part) for part in content})
            raise ValueError(
                f"{place} has {len(content)} parts ({', '.join(kinds) or 'none'}); a turn is wholly text or wholly "
                "audio, and one part of it: join texts, and give further parts in turns of their own"
            )
        (content,) = content
    if isinstance(content, str):
        return Content(text=content)
    if not isinstance(content, Mapping):
        raise ValueError(f"{place} is {type(content).__name__}; accepted is {_ACCEPTED_CONTENT}")
    part = {key: value for key, value in content.items() if value is not None}
    kind = part.pop("type", None)
    if kind == "text" or (kind is None and "text" in part):
        if set(part) != {"text"} or not isinstance(part["text"], str):
            raise ValueError(f"{place} has the keys {sorted(content)}; a text part has 'type' and 'text', a string")
        return Content(text=part["text"])
    if kind is not None and kind != "audio" and not str(kind).startswith("audio/"):
        raise ValueError(f"{place} is of the type {kind!r}; accepted is {_ACCEPTED_CONTENT}")
    sources = [key for key in _SOURCE_KEYS if key in part]
    unknown = sorted(set(part) - {*_SOURCE_KEYS, "sampling_rate"})
    if len(sources) != 1 or unknown:
        raise ValueError(f"{place} is an audio part with the keys {sorted(part)}; accepted is {_ACCEPTED_CONTENT}")
    source = part[sources[0]]
    if sources[0] == "codes":
        return Content(codes=checked_codes(source, place))
    if "sampling_rate" not in part:
        return Content(audio=source)
    if isinstance(source, (str, bytes, bytearray, os.PathLike, Mapping)) or is_array_with_rate(source):
        raise ValueError(f"{place}: `sampling_rate` is for bare arrays of samples; a recording has a rate of its own")
    return Content(audio=(source, part["sampling_rate"]))


def checked_codes(codes: Any, place: str) -> list[int]:
    """`codes` `[T]` as a list of whole numbers; that they are in the codebook is checked with the rows.

    Raises:
        ValueError: an empty list, another shape, or other numbers.
    """
    array = as_array(codes)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{place}: `codes` has shape {list(array.shape)}; accepted is [codes], not empty")
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{place}: `codes` must be whole numbers, got {array.dtype}")
    return array.tolist()


def parse_modalities(modalities: Any, count: int) -> list[str]:
    """The modality of each of `count` replies, `"text"` or `"audio"`.

    Args:
        modalities: one for all or a list with one per conversation; `"speech"` is another name of `"audio"`, and `None`
            stands for `"text"`.

    Raises:
        ValueError: an unknown modality, or another number of them.
    """
    names = [modalities] * count if modalities is None or isinstance(modalities, str) else list(modalities)
    if len(names) != count:
        raise ValueError(
            f"`output_modalities` has {len(names)} entries for {count} conversations; give one per conversation, or one "
            "for all"
        )
    names = ["text" if name is None else "audio" if name == "speech" else name for name in names]
    for name in names:
        if name not in MODALITIES:
            raise ValueError(f"`output_modalities` holds {name!r}; accepted are 'text' and 'audio' (or 'speech')")
    return names


def _parse_conversation(turns: Any, number: int) -> list[Turn]:
    if isinstance(turns, str):
        turns = [{"role": "user", "content": turns}]
    if isinstance(turns, Mapping) or not _is_sequence(turns):
        raise ValueError(
            f"conversation {number} must be a list of turns {{'role': ..., 'content': ...}} or a text, got "
            f"{type(turns).__name__}"
        )
    if not len(turns):
        raise ValueError(f"conversation {number} is empty; at least one turn is needed")
    return [_parse_turn(turn, f"conversation {number}, turn {i}") for i, turn in enumerate(turns)]


def _parse_turn(turn: Any, place: str) -> Turn:
    if not isinstance(turn, Mapping):
        raise ValueError(f"{place} must be {{'role': ..., 'content': ...}}, got {type(turn).__name__}")
    given = {key: value for key, value in turn.items() if value is not None}
    if set(given) != {"role", "content"}:
        raise ValueError(f"{place} has the keys {sorted(given)}; accepted are 'role' and 'content', both needed")
    if given["role"] not in ROLES:
        raise ValueError(f"{place}: `role` is {given['role']!r}; accepted are {', '.join(map(repr, ROLES))}")
    content = parse_content(given["content"], f"{place} ({given['role']})")
    if content.text == "" and given["role"] != "system":
        raise ValueError(f"{place} ({given['role']}) is an empty text")
    return Turn(given["role"], content)


def _is_sequence(value: Any) -> bool:
    """Lists, tuples and the columns of data sets; no texts."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))


def _describe(part: Any) -> str:
    if isinstance(part, Mapping):
        return str(part.get("type") or ("text" if part.get("text") is not None else "audio"))
    return "text" if isinstance(part, str) else type(part).__name__


__all__ = [
    "MODALITIES",
    "RELEASED_REPLACEMENTS",
    "RELEASED_SYSTEM_PROMPTS",
    "ROLES",
    "SYSTEM_PROMPTS",
    "ChatTemplate",
    "Content",
    "Turn",
    "checked_codes",
    "conversations_of",
    "parse_content",
    "parse_conversations",
    "parse_modalities",
]
