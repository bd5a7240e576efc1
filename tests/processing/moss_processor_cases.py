"""A small MOSS-Speech processor: a byte-level tokenizer with the tokens of a chat, and codecs and models that fit it."""

import torch
from transformers.utils import ModelOutput

from dualspeech import MossSpeechFeatureExtractor, MossSpeechProcessor
from tests.tiny import tiny_tokenizer

CODEBOOK = 27  # of `tests.modeling.moss_codec_cases.tiny_moss_codec`
SIZES = {"vocab_size": 280, "codebook_size": CODEBOOK, "audio_pad_token_id": 5}
SPEAK = "You are a helpful voice assistant. Answer the user's questions with spoken responses."
WRITE = "You are a helpful assistant. Answer the user's questions with text."


def tiny_moss_processor(audio_tokenizer=None, tokenizer=None, **kwargs):
    """A processor of 280 text ids and 27 codes."""
    feature_extractor = MossSpeechFeatureExtractor(feature_size=80)
    tokenizer = tokenizer or tiny_tokenizer("chat")
    return MossSpeechProcessor(feature_extractor, tokenizer, audio_tokenizer=audio_tokenizer, **(SIZES | kwargs))


def fitting_config(processor, **kwargs):
    """The configuration of a tiny model for `processor`."""
    from tests.modeling.split_layer_cases import tiny_config

    ids = processor.row_ids
    names = ("modality_pad_token_id", "sosp_token_id", "eosp_token_id", "audio_pad_token_id", "pad_token_id")
    fields = {name: getattr(ids, name) for name in names} | {
        "vocab_size": ids.vocab_size,
        "audio_vocab_size": ids.eosp_token_id + 3,
        "eos_token_id": ids.turn_end_id,
        "max_position_embeddings": 1024,
    }
    return tiny_config(**fields | kwargs)


def fitting_model(processor, seed=0, scale=0.25, **kwargs):
    """A tiny random model for `processor`."""
    from dualspeech import SplitLayerQwen3ForCausalLM
    from tests.modeling.split_layer_cases import enlarge

    torch.manual_seed(seed)
    return enlarge(SplitLayerQwen3ForCausalLM(fitting_config(processor, **kwargs)), scale, seed)


USER = {"role": "user", "content": "hello there"}
SYSTEM = {"role": "system", "content": "be kind"}
ANSWER = {"role": "assistant", "content": "an answer"}


def says(*codes):
    return {"role": "user", "content": {"type": "audio", "codes": list(codes)}}


def answers(*codes):
    return {"role": "assistant", "content": [{"type": "audio", "codes": list(codes)}]}


def rows_of(batch, row=0):
    return batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()


class Rows:
    """Writes rows by hand: `rows.text("ab")`, `rows.codes(1, 2)`; `+` joins the lists."""

    def __init__(self, processor):
        self.processor, self.ids = processor, processor.row_ids

    def text(self, text):
        token_ids = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [[token_id, self.ids.audio_pad_token_id] for token_id in token_ids]

    def codes(self, *codes):
        return [[self.ids.modality_pad_token_id, code] for code in codes]

    @property
    def end(self):
        return self.codes(self.ids.eosp_token_id)

    @property
    def stop(self):
        return self.text("<|im_end|>")

    def speech(self, *codes):
        return self.text("<|object_ref_start|>") + self.codes(*codes) + self.end

    def turn(self, role, content):
        content = self.text(content) if isinstance(content, str) else content
        return self.text(f"<|im_start|>{role}\n") + content + self.text("<|im_end|>\n")


def generation(processor, *replies, reasons=None):
    """What `generate` returns for these rows, padded."""
    width = max(len(reply) for reply in replies)
    padded = [reply + [processor.row_ids.padding] * (width - len(reply)) for reply in replies]
    return ModelOutput(
        generated_rows=torch.tensor(padded),
        generated_lengths=torch.tensor([len(reply) for reply in replies]),
        finish_reason=reasons or ["eos"] * len(replies),
    )
