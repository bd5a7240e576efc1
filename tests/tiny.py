"""Tiny things that many tests use, all made on the spot."""

import math
import string

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dualspeech.processing.tokenization_dualspeech import extend_tokenizer

MERGES = ["t h", "th e", "i n", "e r", "a n", "an d", "o u"]


def tiny_tokenizer(kind="metaspace", codebook_size=None):
    """A BPE tokenizer of about a hundred (byte level: 270) tokens, with the speech tokens when `codebook_size` is given.

    `metaspace`: the legacy Llama / Phi-3 kind, every stretch of text between special tokens gets a leading mark.
    `metaspace_first`: the newer Llama kind, only the first stretch gets it.
    `byte_level`: the GPT-2 / Qwen kind, without marks and without a BOS token.
    """
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
    if codebook_size is not None:
        extend_tokenizer(tokenizer, codebook_size)
    return tokenizer


def tone(seconds, rate=16000, frequency=220.0, amplitude=0.3):
    """A sine of `seconds` at `rate` Hz as a float32 array."""
    time = np.arange(round(seconds * rate)) / rate
    return (amplitude * np.sin(2 * math.pi * frequency * time)).astype(np.float32)
