"""Rows of ids, labels and masks for DualSpeechLM, and their padding to batches."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.feature_extraction_utils import BatchFeature

from .audio import as_array
from .tasks import SpeechSlot, Task
from .tokenization_dualspeech import SpeechTokenIds

IGNORE_ID = -100
# Letters that tokenizers keep apart from a following line break.
_ANCHORS = ("a", "A", "0")


@dataclass(frozen=True)
class AcousticTargets:
    """The labels of AcousticGPT.

    Attributes:
        codebook_size: codes are 0 to `codebook_size - 1`.
        num_codebooks: 1, or the number of codes per position.
        none_token_id: the label "no speech" of rows that answer with text.
        eos_token_id: the label behind the last code.
    """

    codebook_size: int
    num_codebooks: int
    none_token_id: int
    eos_token_id: int

    def labels(self, codes: Any | None) -> list[int] | list[list[int]]:
        """`codes` `[A]`, or `[A, K]` with several codebooks, and the end behind them; "no speech" for `None`.

        The ids of the released code without its start id: the model shifts.
        """
        width = () if self.num_codebooks == 1 else (self.num_codebooks,)
        if codes is None:
            codes = np.full((1, *width), self.none_token_id)
        else:
            codes = as_array(codes)
            self._check(codes, width)
        return np.concatenate([codes, np.full((1, *width), self.eos_token_id)]).tolist()

    def _check(self, codes: np.ndarray, width: tuple[int, ...]) -> None:
        if codes.ndim != 1 + len(width) or codes.shape[1:] != width or not len(codes):
            expected = "[codes]" if not width else f"[positions, {width[0]}]"
            raise ValueError(f"`acoustic_codes` has shape {list(codes.shape)}; accepted is {expected}, not empty")
        if not np.issubdtype(codes.dtype, np.integer):
            raise ValueError(f"`acoustic_codes` must be whole numbers, got {codes.dtype}")
        if codes.min() < 0 or codes.max() >= self.codebook_size:
            wrong = codes.min() if codes.min() < 0 else codes.max()
            raise ValueError(f"`acoustic_codes` holds {wrong}; accepted are the codes 0 to {self.codebook_size - 1}")


class SequenceBuilder:
    """Ids of prompts and answers.

    A row is `[BOS] + question + answer + [EOS]`, without BOS where the tokenizer has none. Question and answer are
    tokenised apart, so a text answer starts with its own word-boundary mark. Spoken spans are put in as ids.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, speech: SpeechTokenIds):
        if tokenizer.eos_token_id is None:
            raise ValueError("`tokenizer` has no end-of-sequence token; set `tokenizer.eos_token`")
        self.tokenizer = tokenizer
        self.speech = speech
        added = tokenizer.added_tokens_decoder.items()
        self.special_ids = {*tokenizer.all_special_ids, *(token_id for token_id, token in added if token.special)}

    def example(self, task: Task, fields: Mapping[str, Any], answer: str | Sequence[int] | None) -> dict[str, Any]:
        """One row: `input_ids` and `task_type_ids`; with an answer also `labels` and `prompt_mask` (1 on BOS and question).

        Question and answer masks of the released code are the prompt mask and its complement.
        """
        prompt = self.prompt(task, fields)
        if answer is None:
            return {"input_ids": prompt, "task_type_ids": task.id}
        ids = self.answer(answer)
        return {
            "input_ids": prompt + ids,
            "task_type_ids": task.id,
            "labels": [IGNORE_ID] * len(prompt) + ids,
            "prompt_mask": [1] * len(prompt) + [0] * len(ids),
        }

    def prompt(self, task: Task, fields: Mapping[str, Any]) -> list[int]:
        """BOS and the question. `fields` are those of the task: codes (lists of int) for speech, text for the others."""
        bos = self.tokenizer.bos_token_id
        ids = [] if bos is None else [bos]
        behind_speech = False
        for part in task.parts(fields):
            if isinstance(part, SpeechSlot):
                ids += self.speech.encode(fields[part.field])
            else:
                ids += self.text(part, continuation=behind_speech)
            behind_speech = isinstance(part, SpeechSlot)
        return ids

    def answer(self, answer: str | Sequence[int]) -> list[int]:
        """A text, or the codes of a spoken answer, and EOS."""
        ids = self.text(answer) if isinstance(answer, str) else self.speech.encode(answer)
        return [*ids, self.tokenizer.eos_token_id]

    def text(self, text: str, continuation: bool = False) -> list[int]:
        """The ids of `text`; as a `continuation` it gets no word-boundary mark of its own.

        Raises:
            ValueError: the text spells a speech token, as `<a_3>` does, or a special token of the tokenizer, as `</s>`
                does, and the tokenizer takes it for one.
        """
        ids = self._continue(text) if continuation else self._tokenize(text)
        for token_id in ids:
            if token_id in self.speech:
                token = self.tokenizer.convert_ids_to_tokens(token_id)
                raise ValueError(f"text must not contain the speech token {token!r}; give speech as audio or codes")
            if token_id in self.special_ids:
                token = self.tokenizer.convert_ids_to_tokens(token_id)
                # An unknown character has the id of a special token without being one.
                if token_id != self.tokenizer.unk_token_id or token in text:
                    raise ValueError(
                        f"text must not contain the special token {token!r} of the tokenizer; leave it out"
                    )
        return ids

    def _tokenize(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _continue(self, text: str) -> list[int]:
        # Some tokenizers mark the start of every stretch of text behind a special token (Llama, Phi): the ids behind
        # a letter are those of text that continues.
        for anchor in _ANCHORS:
            head, ids = self._tokenize(anchor), self._tokenize(anchor + text)
            if ids[: len(head)] == head:
                return ids[len(head) :]
        raise ValueError(
            f"`tokenizer` merges letters with a following {text[:1]!r}, so {text!r} has no ids of its own"
        )


def pad_examples(
    examples: Iterable[Mapping[str, Any]],
    *,
    pad_token_id: int,
    speaker_embedding_size: int | None,
    padding_side: str = "right",
    padding: bool | str = True,
    max_length: int | None = None,
    pad_to_multiple_of: int | None = None,
    return_tensors: str | None = "pt",
) -> BatchFeature:
    """Pad rows to a batch; see [`DualSpeechProcessor.pad`]."""
    examples = list(examples)
    if not examples:
        raise ValueError("`examples` is empty; at least one row is needed")
    if padding_side not in ("left", "right"):
        raise ValueError(f"`padding_side` is {padding_side!r}; accepted are 'left' and 'right'")
    if padding not in (True, False, "longest", "max_length", "do_not_pad"):
        raise ValueError(
            f"`padding` is {padding!r}; accepted are True or 'longest', 'max_length', and False or 'do_not_pad'"
        )
    length = max(len(row["input_ids"]) for row in examples)
    if max_length is not None and length > max_length:
        raise ValueError(f"a row has {length} ids; `max_length` is {max_length}, and rows are never cut")
    if padding == "max_length":
        if max_length is None:
            raise ValueError("`padding='max_length'` needs `max_length`")
        length = max_length
    if pad_to_multiple_of:
        length = -(-length // pad_to_multiple_of) * pad_to_multiple_of
    pads = padding not in (False, "do_not_pad")

    def padded(row, value):
        gap = [value] * (length - len(row)) if pads else []
        return [*gap, *row] if padding_side == "left" else [*row, *gap]

    data = {
        "input_ids": [padded(row["input_ids"], pad_token_id) for row in examples],
        "attention_mask": [padded([1] * len(row["input_ids"]), 0) for row in examples],
        "task_type_ids": [row["task_type_ids"] for row in examples],
    }
    for name, value in (("labels", IGNORE_ID), ("prompt_mask", 0)):
        if _all_have(examples, name):
            data[name] = [padded(row[name], value) for row in examples]
    if _all_have(examples, "acoustic_labels"):
        data["acoustic_labels"] = _pad_acoustic([row["acoustic_labels"] for row in examples], pads)
    speakers = [row.get("speaker_embeds") for row in examples]
    if speaker_embedding_size and ("acoustic_labels" in data or any(speaker is not None for speaker in speakers)):
        silent = [0.0] * speaker_embedding_size
        data["speaker_embeds"] = [silent if speaker is None else list(speaker) for speaker in speakers]
    return BatchFeature(data, tensor_type=return_tensors)


def _pad_acoustic(rows: list[list], pads: bool) -> list[list]:
    """Right-padded whatever the side of the text: AcousticGPT counts its positions from the first code."""
    length = max(len(row) for row in rows) if pads else 0
    gap = [IGNORE_ID] * len(rows[0][0]) if isinstance(rows[0][0], list) else IGNORE_ID
    return [[*row, *([gap] * (length - len(row)))] for row in rows]


def _all_have(examples: list[Mapping], name: str) -> bool:
    having = sum(row.get(name) is not None for row in examples)
    if having not in (0, len(examples)):
        raise ValueError(f"`examples`: {having} of {len(examples)} rows have `{name}`; all or none must have it")
    return having > 0


__all__ = ["IGNORE_ID", "AcousticTargets", "SequenceBuilder", "pad_examples"]
