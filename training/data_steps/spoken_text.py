"""Texts that are spoken: words, sentences, and what of them counts when a transcript is compared."""

import re
import unicodedata

# Characters that are written without spaces between words: Chinese characters and kana.
CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{CJK}][^\w\s]*|[^\s{CJK}]+")
# Whisper's rules delete what stands in brackets, which is read aloud. Glued ones belong to a word, as in "word(s)".
_GLUED_BRACKETS, _BRACKETS = re.compile(r"(?<=\w)[(\[<](?=\w)"), re.compile(r"[()\[\]<>]")
# Where a text may be cut, the best places first: behind sentences, behind clauses, between words.
_CUTS = [
    re.compile(r"(?<=[.!?])(?=\s)|(?<=[.!?][\"'”’)\]])(?=\s)|(?<=[。！？])(?![。！？”’」』])|(?<=\n)"),
    re.compile(r"(?<=[,;:])(?=\s)|(?<=[，；：、])"),
    re.compile(r"(?<=\s)(?=\S)"),
]


def split_words(text: str) -> list[str]:
    """The words of `text`, with the punctuation behind them: what stands between white space, and single characters of
    Chinese and Japanese."""
    return _WORD.findall(text)


def is_mostly_cjk(text: str) -> bool:
    """Whether at least half of the letters of `text` are Chinese or Japanese characters."""
    letters = [character for character in text if character.isalpha()]
    return 2 * len(re.findall(rf"[{CJK}]", text)) >= max(len(letters), 1)


def split_sentences(text: str, max_characters: int) -> list[str]:
    """`text` in pieces of at most `max_characters`: whole sentences where they fit, else clauses, else words.

    Raises:
        ValueError: `max_characters` is below 1, or `text` has no word.
    """
    if max_characters < 1:
        raise ValueError(f"`max_characters` must be at least 1, got {max_characters}")
    if not text.strip():
        raise ValueError("`text` is empty; at least one word is needed")
    return _pack(text, max_characters, [cut.split for cut in _CUTS] + [list])


def _pack(text: str, max_characters: int, splits: list) -> list[str]:
    """Parts of the first of `splits`, joined as long as they fit; a part that does not goes on to the next one."""
    pieces, piece = [], ""
    for part in splits[0](text):
        if len((piece + part).strip()) <= max_characters:
            piece += part
            continue
        pieces.append(piece)
        piece = part
        if len(part.strip()) > max_characters:
            *whole, piece = _pack(part, max_characters, splits[1:])
            pieces += whole
    return [piece.strip() for piece in [*pieces, piece] if piece.strip()]


def normalize_text(text: str, language: str) -> str:
    """`text` as it is compared with a transcript: small letters, no punctuation, one way of writing numbers. What stands
    in brackets stays.

    Args:
        language: `"en"` takes Whisper's English rules (numbers as digits, no fillers, contractions in full), `"zh"`
            leaves letters and digits without spaces, others take Whisper's basic rules.
    """
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    text = unicodedata.normalize("NFKC", text)
    if language == "zh":
        return "".join(character for character in text.lower() if character.isalnum())
    text = _BRACKETS.sub(" ", _GLUED_BRACKETS.sub("", text))
    # The mapping of the English rules holds British spellings, which both sides have alike.
    normalizer = EnglishTextNormalizer({}) if language == "en" else BasicTextNormalizer()
    # The rules leave single signs behind, such as one dot of three.
    return " ".join(word for word in normalizer(text).split() if any(map(str.isalnum, word)))


__all__ = ["CJK", "is_mostly_cjk", "normalize_text", "split_sentences", "split_words"]
