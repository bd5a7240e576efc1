"""Tiny things that many tests use, all made on the spot."""

import math
import string

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

from dualspeech.processing.tokenization_dualspeech import extend_tokenizer

# What Qwen3 adds to its byte-level vocabulary behind `<|endoftext|>`, and whether it is special.
CHAT_TOKENS = {
    "<|im_start|>": True,
    "<|im_end|>": True,
    "<|object_ref_start|>": True,
    "<|object_ref_end|>": True,
    "<think>": False,
    "</think>": False,
}
MERGES = ["t h", "th e", "i n", "e r", "a n", "an d", "o u"]


def tiny_tokenizer(kind="metaspace", codebook_size=None):
    """A BPE tokenizer of about a hundred (byte level: 270) tokens, with the speech tokens when `codebook_size` is given.

    `metaspace`: the legacy Llama / Phi-3 kind, every stretch of text between special tokens gets a leading mark.
    `metaspace_first`: the newer Llama kind, only the first stretch gets it.
    `byte_level`: the GPT-2 / Qwen kind, without marks and without a BOS token.
    `chat`: the same with the tokens of a Qwen3 chat, of which `<think>` is none of the special ones.
    """
    is_chat, kind = kind == "chat", "byte_level" if kind == "chat" else kind
    if kind == "byte_level":
        special, alphabet, space = ["<|endoftext|>"], sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġ"
    else:
        special, alphabet, space = ["<unk>", "<s>", "</s>"], ["▁", "\n", *string.printable.strip()], "▁"
    merges = [tuple(merge.split()) for merge in [*MERGES, f"{space} a", f"{space} t"]]
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet, *("".join(m) for m in merges)])}
    unknown = None if kind == "byte_level" else "<unk>"
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=unknown is not None))
    if kind == "metaspace":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
        )
    elif kind == "metaspace_first":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        backend.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    elif kind == "byte_level":
        words = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(words, behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.decoder = decoders.ByteLevel()
    else:
        raise ValueError(f"kind={kind!r}")
    names = {"eos_token": special[-1], "pad_token": special[0]}
    if kind != "byte_level":
        names |= {"unk_token": "<unk>", "bos_token": "<s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    if is_chat:
        for token, is_special in CHAT_TOKENS.items():
            tokenizer.add_tokens([AddedToken(token, special=is_special, normalized=False)], special_tokens=is_special)
        tokenizer.eos_token = "<|im_end|>"
    if codebook_size is not None:
        extend_tokenizer(tokenizer, codebook_size)
    return tokenizer


def tone(seconds, rate=16000, frequency=220.0, amplitude=0.3):
    """A sine of `seconds` at `rate` Hz as a float32 array."""
    time = np.arange(round(seconds * rate)) / rate
    return (amplitude * np.sin(2 * math.pi * frequency * time)).astype(np.float32)


def tiny_audio_tokenizer(**parts):
    """A random `DualTokenizerModel`: 24 USTokens, a codec of 64 codes (200 a second at 24 kHz), speaker vectors of 12.

    `parts` replaces parts; `None` leaves one out.
    """
    from dualspeech import DualTokenizerModel
    from tests.modeling.tiny_audio_parts import campplus, us_tokenizer, wavtokenizer

    factories = {
        "semantic_tokenizer": lambda: us_tokenizer(min_seconds=0.1),
        "acoustic_codec": wavtokenizer,
        "speaker_encoder": campplus,
    }
    made = {name: make() for name, make in factories.items() if name not in parts}
    return DualTokenizerModel.from_parts(**made, **parts)


def tiny_processor(kind="metaspace", audio_tokenizer=None, **kwargs):
    """A `DualSpeechProcessor` of the sizes of `tiny_audio_tokenizer()`, which has none unless it is given."""
    from dualspeech import DualSpeechFeatureExtractor, DualSpeechProcessor

    sizes = {"semantic_codebook_size": 24, "acoustic_codebook_size": 64, "speaker_embedding_size": 12}
    sizes |= kwargs
    tokenizer = tiny_tokenizer(kind, sizes["semantic_codebook_size"])
    return DualSpeechProcessor(DualSpeechFeatureExtractor(), tokenizer, audio_tokenizer=audio_tokenizer, **sizes)
