"""Speech tokens in a text tokenizer: `<audio>`, `</audio>`, `<a_0>`, `<a_1>`, ..."""

from dataclasses import dataclass

from transformers import AddedToken, PreTrainedTokenizerBase

AUDIO_START = "<audio>"
AUDIO_END = "</audio>"


def code_token(code: int) -> str:
    """The token of one USToken, `<a_7>` for code 7."""
    return f"<a_{code}>"


@dataclass(frozen=True)
class SpeechTokenIds:
    """Where the speech tokens are in a vocabulary; the field names are those of `DualSpeechConfig`.

    Code `c` has the id `semantic_token_offset + c`.
    """

    audio_start_token_id: int
    audio_end_token_id: int
    semantic_token_offset: int
    semantic_codebook_size: int

    def encode(self, codes) -> list[int]:
        """`<audio>`, the codes, `</audio>` as ids; the ids of a spoken span are never made from strings."""
        if not len(codes):
            raise ValueError("`us_codes` is empty; at least one code is needed")
        for code in codes:
            if not 0 <= code < self.semantic_codebook_size:
                raise ValueError(
                    f"`us_codes` holds {code}; accepted are the codes 0 to {self.semantic_codebook_size - 1}"
                )
        offset = self.semantic_token_offset
        return [self.audio_start_token_id, *(offset + int(code) for code in codes), self.audio_end_token_id]

    def __contains__(self, token_id: int) -> bool:
        first = self.semantic_token_offset
        is_code = first <= token_id < first + self.semantic_codebook_size
        return is_code or token_id in (self.audio_start_token_id, self.audio_end_token_id)


def speech_token_ids(tokenizer: PreTrainedTokenizerBase, codebook_size: int) -> SpeechTokenIds:
    """Find the speech tokens of `tokenizer`.

    Raises:
        ValueError: a token is missing, the ids of the codes are not consecutive, or there are more than
            `codebook_size` codes.
    """
    vocabulary = tokenizer.get_vocab()
    names = [AUDIO_START, AUDIO_END, *map(code_token, range(codebook_size))]
    missing = [name for name in names if name not in vocabulary]
    if missing:
        raise ValueError(
            f"`tokenizer` lacks {len(missing)} of the {len(names)} speech tokens, first {missing[0]!r}; "
            "add them with `extend_tokenizer(tokenizer, codebook_size)`"
        )
    if code_token(codebook_size) in vocabulary:
        raise ValueError(
            f"`tokenizer` has the token {code_token(codebook_size)!r}, so its codebook is larger than "
            f"`codebook_size`={codebook_size}"
        )
    offset = vocabulary[code_token(0)]
    ids = [vocabulary[name] for name in names[2:]]
    if ids != list(range(offset, offset + codebook_size)):
        raise ValueError(f"`tokenizer` must give consecutive ids to {code_token(0)!r} ... {names[-1]!r}")
    return SpeechTokenIds(vocabulary[AUDIO_START], vocabulary[AUDIO_END], offset, codebook_size)


def extend_tokenizer(tokenizer: PreTrainedTokenizerBase, codebook_size: int) -> SpeechTokenIds:
    """Add the speech tokens to `tokenizer`, in the order `<audio>`, `</audio>`, `<a_0>`, ..., `<a_{codebook_size-1}>`.

    They are special tokens, so `skip_special_tokens=True` leaves them out of decoded text. A tokenizer that has
    them already is not changed. Afterwards the model needs at least `len(tokenizer)` embeddings:
    `model.resize_token_embeddings(max(len(tokenizer), model.config.get_text_config().vocab_size))` keeps spare rows
    of the backbone; the released system cuts to `len(tokenizer)`.

    Returns:
        Their ids (fields as in `DualSpeechConfig`).

    Raises:
        ValueError: `codebook_size` is not positive, or tokens of another codebook are present (see
            `speech_token_ids`).
    """
    if codebook_size < 1:
        raise ValueError(f"`codebook_size` must be positive, got {codebook_size}")
    vocabulary = tokenizer.get_vocab()
    names = [AUDIO_START, AUDIO_END, *map(code_token, range(codebook_size))]
    present = sum(name in vocabulary for name in names)
    if present not in (0, len(names)):
        raise ValueError(
            f"`tokenizer` already has {present} of the {len(names)} speech tokens for `codebook_size`={codebook_size}; "
            "accepted is a tokenizer with none or all of them"
        )
    if not present:
        tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    return speech_token_ids(tokenizer, codebook_size)


__all__ = ["AUDIO_END", "AUDIO_START", "SpeechTokenIds", "code_token", "extend_tokenizer", "speech_token_ids"]
