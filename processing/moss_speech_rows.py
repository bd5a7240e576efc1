"""Rows (text id, audio id) of MOSS-Speech: prompts, training examples and documents, and their padding to batches."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.feature_extraction_utils import BatchFeature

from ..configuration.configuration_split_layer_qwen3 import SplitLayerQwen3Config
from ..modeling.split_layer_rows import IGNORED, rows_to_flat
from .moss_speech_chat import RELEASED_SYSTEM_PROMPTS, SYSTEM_PROMPTS, ChatTemplate, Content, Turn

Row = list[int]  # [text id, audio id]
# The tokens of a chat, under the names of the processor's arguments.
TOKEN_NAMES = ("sosp_token", "modality_pad_token", "pad_token", "turn_start_token", "turn_end_token")


@dataclass(frozen=True)
class RowIds:
    """The ids that rows are made of; the names are those of `SplitLayerQwen3Config`.

    A text row is (id, `audio_pad_token_id`), a code c is (`modality_pad_token_id`, c) and the end of speech is
    (`modality_pad_token_id`, `eosp_token_id`).
    """

    vocab_size: int
    codebook_size: int
    modality_pad_token_id: int
    sosp_token_id: int
    eosp_token_id: int
    audio_pad_token_id: int
    pad_token_id: int
    turn_end_id: int

    @classmethod
    def find(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        tokens: Mapping[str, str],
        vocab_size: int,
        codebook_size: int,
        eosp_token_id: int,
        audio_pad_token_id: int,
    ) -> "RowIds":
        """The ids of the tokens `TOKEN_NAMES` of `tokenizer`, beside ids that are given.

        Raises:
            ValueError: a token is missing, two are the same, or an id lies outside its vocabulary.
        """
        found = {}
        for name, token in tokens.items():
            token_id = tokenizer.convert_tokens_to_ids(token)
            if token_id is None or (token_id == tokenizer.unk_token_id and token != tokenizer.unk_token):
                raise ValueError(f"`tokenizer` lacks the token {token!r} (`{name}`); add it, or name another one")
            found[name] = token_id
        if len(set(found.values())) < len(found):
            raise ValueError(f"the tokens of a chat must differ, got the ids {found}")
        if len(tokenizer) > vocab_size:
            raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, `vocab_size` is {vocab_size}")
        if codebook_size < 1 or eosp_token_id < codebook_size or audio_pad_token_id < 0:
            raise ValueError(
                "`codebook_size` must be positive, `eosp_token_id` no code, and `audio_pad_token_id` not negative, got "
                f"{codebook_size}, {eosp_token_id} and {audio_pad_token_id}"
            )
        return cls(
            vocab_size=vocab_size,
            codebook_size=codebook_size,
            modality_pad_token_id=found["modality_pad_token"],
            sosp_token_id=found["sosp_token"],
            eosp_token_id=eosp_token_id,
            audio_pad_token_id=audio_pad_token_id,
            pad_token_id=found["pad_token"],
            turn_end_id=found["turn_end_token"],
        )

    @property
    def stop_ids(self) -> tuple[int, int]:
        """Text ids that end a reply."""
        return self.turn_end_id, self.pad_token_id

    def text(self, token_ids: Iterable[int]) -> list[Row]:
        """Text rows."""
        return [[token_id, self.audio_pad_token_id] for token_id in token_ids]

    def codes(self, codes: Sequence[int]) -> list[Row]:
        """Speech rows.

        Raises:
            ValueError: a code outside the codebook.
        """
        for code in codes:
            if not 0 <= code < self.codebook_size:
                raise ValueError(f"`codes` holds {code}; accepted are the codes 0 to {self.codebook_size - 1}")
        return [[self.modality_pad_token_id, int(code)] for code in codes]

    @property
    def start_of_speech(self) -> Row:
        return [self.sosp_token_id, self.audio_pad_token_id]

    @property
    def end_of_speech(self) -> Row:
        return [self.modality_pad_token_id, self.eosp_token_id]

    @property
    def padding(self) -> Row:
        return [self.pad_token_id, self.audio_pad_token_id]

    @property
    def audio_vocab_size(self) -> int:
        """One more than the largest audio id that rows have here; the table of the model may be larger."""
        return 1 + max(self.eosp_token_id, self.audio_pad_token_id)

    def labels(self, rows: list[Row], learned: Sequence[bool]) -> list[int]:
        """Flat ids of the learned rows, -100 for the others; at their own rows, as the model shifts."""
        flat = rows_to_flat(torch.tensor(rows), self)
        return flat.masked_fill(~torch.tensor(learned), IGNORED).tolist()


def settings_of_config(config: SplitLayerQwen3Config, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The arguments of the processor that a model decides; its text ids as tokens of `tokenizer`."""
    settings = {name: getattr(config, name) for name in ("vocab_size", "eosp_token_id", "audio_pad_token_id")}
    settings["codebook_size"] = config.eosp_token_id
    for name in ("sosp_token", "modality_pad_token", "pad_token"):
        token_id = getattr(config, f"{name}_id")
        if token_id is None:
            continue
        settings[name] = tokenizer.convert_ids_to_tokens(token_id)
        if settings[name] is None:
            raise ValueError(f"`tokenizer` has no token with the id {token_id} (`{name}_id` of the model)")
    return settings


class RowBuilder:
    """Rows of prompts and answers. Every piece of a chat is tokenised on its own, without special tokens around it.

    Args:
        tokenizer: the text tokenizer.
        ids: the ids of the model.
        template: the pieces around a turn.
        released_system_prompt: where the first turn is no system turn, put the released processor's one in front of the
            last reply. If false, the demo's one goes to the front of a conversation that has none.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        ids: RowIds,
        template: ChatTemplate,
        released_system_prompt: bool = False,
    ):
        self.tokenizer, self.ids, self.template = tokenizer, ids, template
        self.released_system_prompt = released_system_prompt
        added = tokenizer.added_tokens_decoder.items()
        control = tokenizer.convert_tokens_to_ids([template.turn_start, template.turn_end])
        self.control_ids = {
            *tokenizer.all_special_ids,
            *(token_id for token_id, token in added if token.special),
            *control,
            # In Qwen3's tokenizer this one is no special token: written in a text it would make a row of speech.
            ids.modality_pad_token_id,
            ids.sosp_token_id,
            ids.pad_token_id,
        }

    def prompt(
        self,
        turns: Sequence[Turn],
        modality: str,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        add_system_prompt: bool = True,
    ) -> tuple[list[Row], list[bool]]:
        """The rows of a conversation, and which of them are what the assistant says (content and end of turn).

        The turns hold codes in place of recordings.

        Args:
            turns: the conversation.
            modality: of the reply; it chooses the system prompt and the beginning of the reply.
            add_generation_prompt: end with the beginning of a reply.
            continue_final_message: leave the last turn, of the assistant, open. Its start of speech is then part of the
                prompt.
            add_system_prompt: whether a conversation without a system turn gets one.

        Raises:
            ValueError: texts that spell control tokens, codes outside the codebook, a last turn that cannot be continued.
        """
        if continue_final_message and add_generation_prompt:
            raise ValueError("`continue_final_message` and `add_generation_prompt` exclude each other")
        if continue_final_message and turns[-1].role != "assistant":
            raise ValueError(
                f"`continue_final_message` needs a last turn of the assistant, the last one is of the {turns[-1].role}"
            )
        turns = self._with_system_turn(turns, modality, add_system_prompt, add_generation_prompt)
        rows, spoken = [], []

        def add(new: list[Row], said: bool = False):
            rows.extend(new)
            spoken.extend([said] * len(new))

        for number, turn in enumerate(turns):
            is_open = continue_final_message and number == len(turns) - 1
            add(self.piece(self.template.start_of(turn.role)))
            assistant = turn.role == "assistant"
            if turn.content.text is not None:
                add(self.text(turn.content.text), assistant)
            else:
                add([self.ids.start_of_speech])
                add(self.ids.codes(turn.content.codes) + [self.ids.end_of_speech] * (not is_open), assistant)
            if not is_open:
                end, *rest = self.piece(self.template.end_of_turn)
                add([end], assistant)
                add(rest)
        if add_generation_prompt:
            add(self.piece(self.template.reply(modality)))
        return rows, spoken

    def render(
        self,
        turns: Sequence[Turn],
        modality: str,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        add_system_prompt: bool = True,
    ) -> str:
        """The text of which `prompt` makes rows, for conversations without speech; the arguments are the same."""
        turns = self._with_system_turn(turns, modality, add_system_prompt, add_generation_prompt)
        if any(turn.content.text is None for turn in turns):
            raise ValueError("a conversation with audio has no text form: pass `tokenize=True` for its rows")
        pieces = [self.template.start_of(turn.role) + turn.content.text + self.template.end_of_turn for turn in turns]
        if continue_final_message:
            pieces[-1] = pieces[-1].removesuffix(self.template.end_of_turn)
        return "".join(pieces) + (self.template.reply(modality) if add_generation_prompt else "")

    def example(
        self, turns: Sequence[Turn], modality: str, add_system_prompt: bool = True, learn_start_of_speech: bool = False
    ) -> dict[str, list]:
        """A training example: `input_ids` rows and `labels`, flat ids of what the assistant says and -100 elsewhere."""
        if turns[-1].role != "assistant":
            raise ValueError(
                f"a conversation to learn from must end with a turn of the assistant, the last one is of the "
                f"{turns[-1].role}"
            )
        rows, spoken = self.prompt(turns, modality, add_generation_prompt=False, add_system_prompt=add_system_prompt)
        if learn_start_of_speech:
            start = self.ids.start_of_speech
            spoken = [said or (rows[i] == start and spoken[i + 1]) for i, said in enumerate(spoken)]
        return {"input_ids": rows, "labels": self.ids.labels(rows, spoken)}

    def document(self, chunks: Sequence[Content]) -> dict[str, list]:
        """Texts and stretches of speech in a row, behind them the end of the document; everything is learned.

        A stretch of speech is start of speech, codes, end of speech, as in a turn.
        """
        rows = []
        for chunk in chunks:
            rows += self.text(chunk.text) if chunk.text is not None else self.speech(chunk.codes)
        rows.append(self.ids.padding)
        return {"input_ids": rows, "labels": self.ids.labels(rows, [True] * len(rows))}

    def speech(self, codes: Sequence[int]) -> list[Row]:
        """Start of speech, the codes, end of speech: two rows more than codes."""
        return [self.ids.start_of_speech, *self.ids.codes(codes), self.ids.end_of_speech]

    def piece(self, text: str) -> list[Row]:
        """The rows of a piece of the template."""
        return self.ids.text(self._tokenize(text))

    def text(self, text: str) -> list[Row]:
        """The rows of what somebody wrote.

        Raises:
            ValueError: it spells a control token, as `<|im_end|>` does, and the tokenizer takes it for one.
        """
        token_ids = self._tokenize(text)
        for token_id in token_ids:
            if token_id in self.control_ids:
                token = self.tokenizer.convert_ids_to_tokens(token_id)
                # An unknown character has the id of a special token without being one.
                if token_id != self.tokenizer.unk_token_id or token in text:
                    raise ValueError(f"text must not contain the control token {token!r}; leave it out")
        return self.ids.text(token_ids)

    def _tokenize(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def _with_system_turn(
        self, turns: Sequence[Turn], modality: str, add_system_prompt: bool, reply_follows: bool
    ) -> list[Turn]:
        turns = list(turns)
        if not add_system_prompt:
            return turns
        if not self.released_system_prompt:
            if any(turn.role == "system" for turn in turns):
                return turns
            return [Turn("system", Content(text=SYSTEM_PROMPTS[modality])), *turns]
        if turns[0].role == "system":
            return turns
        prompt = Turn("system", Content(text=RELEASED_SYSTEM_PROMPTS[modality]))
        # In front of the reply, whether it follows or is the last turn.
        place = len(turns) if reply_follows or turns[-1].role != "assistant" else -1
        return [*turns[:place], prompt, *turns[place:]]


def pad_rows(
    examples: Iterable[Mapping[str, Any]],
    padding_row: Row,
    *,
    padding: bool | str = True,
    padding_side: str = "right",
    max_length: int | None = None,
    pad_to_multiple_of: int | None = None,
    return_tensors: str | None = "pt",
) -> BatchFeature:
    """Pad rows to a batch; see [`MossSpeechProcessor.pad`]."""
    examples = list(examples)
    if not examples:
        raise ValueError("`examples` is empty; at least one is needed")
    if padding_side not in ("left", "right"):
        raise ValueError(f"`padding_side` is {padding_side!r}; accepted are 'left' and 'right'")
    if padding not in (True, False, "longest", "max_length", "do_not_pad"):
        raise ValueError(
            f"`padding` is {padding!r}; accepted are True or 'longest', 'max_length', and False or 'do_not_pad'"
        )
    length = max(len(example["input_ids"]) for example in examples)
    if max_length is not None and length > max_length:
        raise ValueError(f"an example has {length} rows; `max_length` is {max_length}, and examples are never cut")
    if padding == "max_length":
        if max_length is None:
            raise ValueError("`padding='max_length'` needs `max_length`")
        length = max_length
    if pad_to_multiple_of:
        length = -(-length // pad_to_multiple_of) * pad_to_multiple_of
    pads = padding not in (False, "do_not_pad")

    def padded(values, value):
        gap = [value] * (length - len(values)) if pads else []
        return [*gap, *values] if padding_side == "left" else [*values, *gap]

    data = {
        "input_ids": [padded(example["input_ids"], padding_row) for example in examples],
        "attention_mask": [padded([1] * len(example["input_ids"]), 0) for example in examples],
    }
    for name, value in (("labels", IGNORED), ("assistant_masks", 0)):
        having = sum(example.get(name) is not None for example in examples)
        if having not in (0, len(examples)):
            raise ValueError(f"`examples`: {having} of {len(examples)} have `{name}`; all or none must have it")
        if having:
            data[name] = [padded(example[name], value) for example in examples]
    return BatchFeature(data, tensor_type=return_tensors)


__all__ = ["TOKEN_NAMES", "Row", "RowBuilder", "RowIds", "pad_rows", "settings_of_config"]
