"""Tiny USTokenizers for the tests: recorded ones and randomly made ones. Codebook size and width always differ."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, WhisperConfig

from dualspeech import (
    UsTokenizerConfig,
    UsTokenizerForUnderstanding,
    UsTokenizerForUnderstandingConfig,
    UsTokenizerModel,
)
from dualspeech.modeling.conversion.checkpoint_io import load_strictly
from dualspeech.modeling.conversion.convert_us_tokenizer_to_hf import convert_state_dict
from tests.fixture_checks import FIXTURES, load


def tiny_config(**kwargs):
    """A tokenizer of 1 second at most: 100 mel frames, 50 encoder frames, 25 codes."""
    encoder = {"d_model": 12, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 20}
    encoder = {**encoder, "num_mel_bins": 8, "max_source_positions": 50, **kwargs.pop("encoder_config", {})}
    sizes = {"hidden_size": 12, "code_dim": 10, "codebook_size": 17, "min_seconds": 0.02, "max_seconds": 1.0}
    return UsTokenizerConfig(encoder_config=encoder, **{**sizes, **kwargs})


def tiny_batch(config, num_samples, seed=0):
    """Random log-mel features `[B, 8, 100]` and lengths."""
    generator = torch.Generator().manual_seed(seed)
    encoder = config.encoder_config
    shape = (len(num_samples), encoder.num_mel_bins, 2 * encoder.max_source_positions)
    return torch.randn(shape, generator=generator), torch.tensor(num_samples)


def spread_codebook(model):
    """Put the codebook of a random model where its vectors are, so that many codes are used."""
    positions = model.config.encoder_config.max_source_positions
    features, num_samples = tiny_batch(model.config, [positions * model.config.hop_length] * 4, seed=1)
    vectors = model.encode(features, num_samples, output_vectors=True).vectors.flatten(0, 1)
    model.quantizer.embed.copy_(vectors[torch.randperm(len(vectors))[: model.codebook_size]])
    model.quantizer.embed_avg.copy_(model.quantizer.embed)
    return model


def tiny_model(**kwargs):
    """A random tokenizer that uses many codes."""
    return spread_codebook(UsTokenizerModel(tiny_config(**kwargs))).eval()


def tiny_text_model(hidden_size=20, vocab_size=31):
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=18,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def tiny_understanding(text_hidden_size=20, **kwargs):
    """A model for understanding with its text model attached."""
    text_model = tiny_text_model(text_hidden_size)
    tokenizer_kwargs = kwargs.pop("us_tokenizer", {})
    config = UsTokenizerForUnderstandingConfig(
        us_tokenizer_config=tiny_config(**tokenizer_kwargs), text_config=text_model.config, **kwargs
    )
    model = UsTokenizerForUnderstanding(config)
    model.attach_text_model(text_model)
    spread_codebook(model.us_tokenizer)
    return model


def recorded_codec():
    """`(UsTokenizerModel without recorded speech encoder, adapter state, tensors, meta)` of the fixture `ust_codec`."""
    state, tensors, meta = load("ust_codec")
    sizes = meta["config"]
    encoder = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 8}
    names = ("hidden_size", "code_dim", "codebook_size", "num_blocks", "num_residual_units", "dilations")
    config = UsTokenizerConfig.official_parity(
        encoder_config={**encoder, "max_source_positions": 50, "num_mel_bins": 8},
        max_seconds=1.0,
        **{name: sizes[name] for name in (*names, "kernel_size", "downsample", "vq_decay", "vq_eps")},
    )
    model = UsTokenizerModel(config).eval()
    converted = convert_state_dict(state)
    adapter = {key.removeprefix("adapter."): converted.pop(key) for key in list(converted) if "adapter." in key}
    converted.update({f"encoder.{key}": value for key, value in model.encoder.state_dict().items()})
    load_strictly(model, converted)
    return model, adapter, tensors, meta


def recorded_full(**kwargs):
    """`(UsTokenizerForUnderstanding with its text model, tensors, meta)` of the fixture `ust_full`."""
    state, tensors, meta = load("ust_full")
    sizes, text = meta["config"], meta["config"]["text_model"]
    encoder = {key: value for key, value in sizes["speech_encoder"].items() if key != "model"}
    llama = LlamaConfig(**{key: value for key, value in text.items() if key != "model"})
    text_model = LlamaForCausalLM(llama)
    prefix = "llama_model."
    load_strictly(text_model, {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)})
    names = (
        "hidden_size",
        "code_dim",
        "codebook_size",
        "num_blocks",
        "dilations",
        "kernel_size",
        "vq_decay",
        "vq_eps",
    )
    tokenizer_config = UsTokenizerConfig.official_parity(
        encoder_config=WhisperConfig(**encoder), **{name: sizes[name] for name in names}, **kwargs
    )
    model = UsTokenizerForUnderstanding(
        UsTokenizerForUnderstandingConfig(us_tokenizer_config=tokenizer_config, text_config=llama)
    ).eval()
    converted = convert_state_dict(state)
    load_strictly(
        model, {key if "adapter." in key else f"us_tokenizer.{key}": value for key, value in converted.items()}
    )
    model.attach_text_model(text_model)
    return model, tensors, meta


def recorded_tokenizer():
    """The toy text tokenizer of the fixture `ust_full`."""
    file = FIXTURES / "ust_full" / "tokenizer.json"
    return PreTrainedTokenizerFast(
        tokenizer_file=str(file), bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>", pad_token="[PAD]"
    )
