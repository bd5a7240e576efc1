"""The step that makes questions and answers fit to be spoken (appendix A of the MOSS-Speech paper)."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, Literal

from ..row_files import problem_of
from .chat_backends import ChatBackend, Message
from .row_recordings import text_of
from .step import Outcome, Rejection, Row, Step

STATES = ("PASSTHROUGH", "ADAPT", "REJECT")
STYLES = ("neutral", "happy", "sad", "angry", "surprised", "fear", "hate", "excited", "coldness")
PARTS = ("question", "answer")


def _part_schema(*flags: str) -> dict[str, Any]:
    properties = {
        "state": {"enum": list(STATES)},
        "text": {"type": "string"},
        "style": {"enum": ["", *STYLES]},
        **{flag: {"type": "boolean"} for flag in flags},
    }
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


# What the model answers; the keys are those of the paper.
ADAPTATION_SCHEMA = {
    "type": "object",
    "properties": {
        "question": _part_schema("simplified"),
        "answer": _part_schema("corrected", "simplified"),
        "quality": {"type": "integer", "minimum": 1, "maximum": 5},
    },
    "required": ["question", "answer", "quality"],
    "additionalProperties": False,
}

_MATH = {
    "latex": (
        "The synthesizer reads short inline LaTeX. Write every formula as inline LaTeX, for example "
        r"$\cos 30^\circ = \frac{\sqrt{2}}{2}$, and also every single variable: $x$. It does not read sums, limits, "
        "integrals, derivatives, sets, intervals, vectors, matrices, signs such as \\approx, or Greek letters other than "
        "pi: name variables by English letters, say the rest in words where that is possible, and reject the text "
        "where it is not."
    ),
    "words": "Say formulas in words, as a teacher reads them aloud; reject formulas that cannot be followed by ear.",
}

_PROMPT = """\
A data set of written questions and answers is being turned into speech: a synthesizer reads what you return, and a \
spoken assistant is trained on it. For the question and for the answer, decide on its own whether the text can be read \
as it is (PASSTHROUGH), has to be rewritten (ADAPT), or cannot become speech (REJECT).

Rules:
1. Keep what is said, change how it is said. Keep the wording where you can, and turn stiff or written phrasing into \
natural speech. No brackets, symbols, Markdown or other layout that lives on paper, no headings such as "Method:". \
Never talk about the rewriting itself.
2. What has no sound of its own is told in words. {math} Tables: tell what is in them, as in "First, two processors at \
two hundred dollars each, then one graphics card at one thousand dollars." Addresses on the web: leave them out or \
describe them; only simple ones may be read ("google dot com"). Short code: read it, "this.parseOptions" as "this dot \
parse options". Do not read punctuation marks aloud.
3. Length: shorten a text of more than 200 words to about 200, with its facts and its line of thought intact; up to 400 \
words where the question asks for detail. Being clear matters more than being short; some repetition is fine. Reject \
what cannot be shortened without distortion.
4. Languages: English and Simplified Chinese, also mixed. Do not translate. No Classical Chinese or Old English unless \
asked for. Reject other languages.
5. If the question asks for a form that speech does not have (a table, a boxed result): reject it where the form is the \
point of the question. Otherwise leave the question and begin the answer politely, as in "Sorry, I cannot give the \
answer as a table. However, ..."
6. Set punctuation and ends of sentences so that pauses come naturally, cut long sentences into short ones, and use \
spoken connectives ("so", "in other words", "for example") where they help.
7. The result has to sound like a person talking: short clauses and rhythm rather than the letter of the text, and a \
short summing up ("in short ...") where it helps to follow.
8. Correct answers that are wrong or beside the question, with as few changes as possible and without saying so. Do not \
reject unsafe or improper content: rewrite the answer so that it is proper. Answers are neutral and objective unless \
the question asks for something else.
9. Where an answer to a difficult question gives the result first and reasons afterwards, put the reasons first, unless \
the question asks for the other order.
10. Name for each text the style in which to speak it: {styles}.
11. Reject long code, difficult or dense mathematics, huge tables, and everything that cannot follow these rules.

Return one JSON object and nothing else:
{{
  "question": {{"state": "PASSTHROUGH" | "ADAPT" | "REJECT", "text": "...", "style": "...", "simplified": false}},
  "answer": {{"state": "PASSTHROUGH" | "ADAPT" | "REJECT", "text": "...", "style": "...", "corrected": false, \
"simplified": false}},
  "quality": 1
}}
"text" is the rewritten text if the state is ADAPT, one sentence with the reason if it is REJECT, and empty otherwise. \
"simplified" and "corrected" say whether you shortened or corrected the text. "quality" is a whole number from 1 \
(useless) to 5 (excellent)."""


def adaptation_messages(question: str, answer: str, math: Literal["latex", "words"] = "latex") -> list[Message]:
    """The chat that asks for an adaptation.

    Args:
        math: what becomes of formulas: inline LaTeX, as in the paper, for synthesizers that read it, or words.
    """
    prompt = _PROMPT.format(math=_MATH[math], styles=", ".join(STYLES))
    pair = json.dumps({"question": question, "answer": answer}, ensure_ascii=False, indent=1)
    return [{"role": "system", "content": prompt}, {"role": "user", "content": pair}]


def parse_adaptation(reply: str, question: str, answer: str) -> dict[str, Any]:
    """
    The JSON object of a reply; what a model thinks in front of it, and the text and the fence around it, are skipped.

    Raises:
        ValueError: no JSON object, one that does not follow `ADAPTATION_SCHEMA`, a text that is missing (ADAPT), or one
            that differs from the original (PASSTHROUGH).
    """
    import jsonschema

    adaptation = _object_in(reply.rpartition("</think>")[2])
    if problem := problem_of(adaptation):
        raise ValueError(f"the JSON cannot be stored: {problem}")
    error = jsonschema.exceptions.best_match(
        jsonschema.Draft202012Validator(ADAPTATION_SCHEMA).iter_errors(adaptation)
    )
    if error is not None:
        raise ValueError(f"the JSON does not follow the schema at {error.json_path}: {error.message}")
    for part, original in zip(PARTS, (question, answer), strict=True):
        state, text = adaptation[part]["state"], adaptation[part]["text"].strip()
        if state == "ADAPT" and not text:
            raise ValueError(f'"{part}" has the state ADAPT but no "text"')
        if state == "PASSTHROUGH" and text not in ("", original.strip()):
            raise ValueError(f'"{part}" has the state PASSTHROUGH but another "text"; use ADAPT, or leave it empty')
        if state != "REJECT" and not adaptation[part]["style"]:
            raise ValueError(f'"{part}" has no "style"; name one of {", ".join(STYLES)}')
    return adaptation


def _object_in(said: str) -> dict[str, Any]:
    """The first JSON object in a text that has a key of `ADAPTATION_SCHEMA`."""
    start, reason = said.find("{"), None
    while start >= 0:
        end = start + 1
        try:
            found, end = json.JSONDecoder().raw_decode(said, start)
            if not found.keys().isdisjoint(ADAPTATION_SCHEMA["properties"]):
                return found
            reason = reason or f"the JSON does not follow the schema: it has the keys {sorted(found)}"
        except json.JSONDecodeError as error:
            reason = reason or f"the reply is not valid JSON: {error}"
        except RecursionError:
            # What is nested that deep holds no object that is meant.
            raise ValueError("the reply is not valid JSON: it is nested too deeply") from None
        start = said.find("{", end)
    raise ValueError(reason or "the reply holds no JSON object")


@dataclass
class AdaptForSpeech(Step):
    """
    Makes a question and its answer fit to be spoken, with a chat model. Rows that the model rejects are rejected with
    its reason, and so are rows without a valid reply. `metadata` gets `adaptation`: states, styles, flags and quality.

    A reply that is not valid is answered with the error, and asked for anew.

    Differs from the paper: a rejection gives its reason as `text`, which is empty there; and formulas may become words.

    Args:
        backend ([`ChatBackend`]): the chat model. The paper uses the GPT-5 API.
        math (`str`, *optional*, defaults to `"latex"`): see [`adaptation_messages`].
        max_retries (`int`, *optional*, defaults to 3): of a reply that is not valid.
        min_quality (`int`, *optional*, defaults to 1): rows of a lower quality are rejected.
        question_key, answer_key (`str`, *optional*): names of the texts in a row.
    """

    name = "adapt_for_speech"
    backend: ChatBackend
    math: Literal["latex", "words"] = "latex"
    max_retries: int = 3
    min_quality: int = 1
    question_key: str = "question"
    answer_key: str = "answer"

    def __post_init__(self):
        if self.math not in _MATH:
            raise ValueError(f"`math` is {self.math!r}; accepted are {', '.join(_MATH)}")
        if self.max_retries < 0:
            raise ValueError(f"`max_retries` must be at least 0, got {self.max_retries}")
        if not 1 <= self.min_quality <= 5:
            raise ValueError(f"`min_quality` must be from 1 to 5, got {self.min_quality}")

    def settings(self) -> dict[str, Any]:
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {"step": self.name, **values, "backend": self.backend.settings()}

    def setup(self) -> None:
        self.backend.setup()

    def process(self, rows: Sequence[Row]) -> list[Outcome]:
        if self.backend.concurrency == 1:
            return [self._adapt(row) for row in rows]
        with ThreadPoolExecutor(self.backend.concurrency) as pool:
            return list(pool.map(self._adapt, rows))

    def _adapt(self, row: Row) -> Outcome:
        try:
            texts = {"question": text_of(row, self.question_key), "answer": text_of(row, self.answer_key)}
            adaptation = self._ask(**texts)
        except ValueError as error:  # caught here: the other rows of the batch need not be asked again
            return Rejection(str(error))
        return self._outcome(row, texts, adaptation)

    def _ask(self, question: str, answer: str) -> dict[str, Any]:
        messages = adaptation_messages(question, answer, self.math)
        for attempt in range(self.max_retries + 1):
            reply = self.backend.reply(messages)
            try:
                return parse_adaptation(reply, question, answer)
            except ValueError as error:
                if attempt == self.max_retries:
                    raise ValueError(f"no valid reply in {attempt + 1} attempts; the last one: {error}") from error
                complaint = (
                    f"That is not valid: {error}. Return the whole JSON object again, corrected, and nothing else."
                )
                messages = [
                    *messages[:2],
                    {"role": "assistant", "content": reply},
                    {"role": "user", "content": complaint},
                ]

    def _outcome(self, row: Row, texts: Mapping[str, str], adaptation: dict[str, Any]) -> Outcome:
        for part in PARTS:
            if adaptation[part]["state"] == "REJECT":
                reason = adaptation[part]["text"].strip() or "the model gave no reason"
                return Rejection(f"REJECT of the {part}: {reason}")
        if adaptation["quality"] < self.min_quality:
            return Rejection(f"the quality is {adaptation['quality']}; `min_quality` is {self.min_quality}")
        made = dict(row)
        for part, key in zip(PARTS, (self.question_key, self.answer_key), strict=True):
            is_new = adaptation[part]["state"] == "ADAPT"
            made[key] = adaptation[part]["text"].strip() if is_new else texts[part]
        notes = {part: {name: value for name, value in adaptation[part].items() if name != "text"} for part in PARTS}
        metadata = {**(row.get("metadata") or {}), "adaptation": {**notes, "quality": adaptation["quality"]}}
        return [{**made, "metadata": metadata}]


__all__ = ["ADAPTATION_SCHEMA", "STATES", "STYLES", "AdaptForSpeech", "adaptation_messages", "parse_adaptation"]
