"""Small split-layer models for the tests, and the same models as two plain Qwen3 models."""

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from dualspeech import SplitLayerQwen3Config, SplitLayerQwen3ForCausalLM

# Special ids of all tiny models: 33 text ids and 19 audio ids, of which the last two are never produced.
IDS = {
    "modality_pad_token_id": 27,
    "sosp_token_id": 28,
    "eosp_token_id": 16,
    "audio_pad_token_id": 5,
    "eos_token_id": 30,
    "pad_token_id": 31,
}
# Sizes that share nothing with the fixture or the release.
CASES = {
    "split": {},
    "one_layer_each": {"num_shared_layers": 1, "num_modality_layers": 1},
    "long_branches": {"num_shared_layers": 1, "num_modality_layers": 3, "head_dim": 6},
    "no_split": {"num_shared_layers": 3, "num_modality_layers": 0},
    "sliding": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3},
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 300.0,
            "factor": 4.0,
            "original_max_position_embeddings": 8,
        }
    },
}
SPLIT_CASES = [name for name in CASES if name != "no_split"]


def tiny_config(**kwargs) -> SplitLayerQwen3Config:
    sizes = {
        "vocab_size": 33,
        "audio_vocab_size": 19,
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_shared_layers": 2,
        "num_modality_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
    }
    return SplitLayerQwen3Config(**(sizes | IDS | kwargs))


def enlarge(model, scale=0.25, seed=0):
    """Random weights large enough that positions, masks and ids all matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


def seeded(make, seed, scale=0.25):
    """The model that `make` makes, the same for the same `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return enlarge(make(), scale, seed)


def tiny_model(seed=0, scale=0.25, attn_implementation=None, **kwargs) -> SplitLayerQwen3ForCausalLM:
    config = tiny_config(**kwargs)
    if attn_implementation is not None:
        config._attn_implementation = attn_implementation
    return seeded(lambda: SplitLayerQwen3ForCausalLM(config), seed, scale)


def tiny_qwen3(seed=0, scale=0.25, **kwargs) -> Qwen3ForCausalLM:
    sizes = {
        "vocab_size": 33,
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "eos_token_id": 30,
        "pad_token_id": 31,
    }
    config = Qwen3Config(**(sizes | kwargs))
    return seeded(lambda: Qwen3ForCausalLM(config), seed, scale)


def random_flat(config, batch, length, speech=0.5) -> torch.LongTensor:
    """Flat ids `[batch, length]` of text rows below the special ids and speech rows up to the end of speech."""
    text = torch.randint(config.modality_pad_token_id, (batch, length))
    audio = config.vocab_size + torch.randint(config.eosp_token_id + 1, (batch, length))
    return torch.where(torch.rand(batch, length) < speech, audio, text)


def left_padded(config, flat, lengths):
    """`flat` with all but the last `lengths[i]` ids of row i padded, and its attention mask."""
    mask = torch.stack([torch.arange(flat.shape[1]) >= flat.shape[1] - length for length in lengths]).long()
    return flat.masked_fill(mask == 0, config.pad_token_id), mask


def plain_path(model, branch) -> Qwen3ForCausalLM:
    """Trunk and one branch of `model` as a stock Qwen3 model, to be fed with vectors."""
    config, state = model.config, model.state_dict()
    fields = {name: getattr(config, name, None) for name in Qwen3Config().to_dict()}
    fields = {name: value for name, value in fields.items() if value is not None}
    fields |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    fields |= {"tie_word_embeddings": False, "vocab_size": model.get_submodule(f"{branch}_lm_head").out_features}
    plain_config = Qwen3Config(**fields)
    plain_config._attn_implementation = config._attn_implementation
    plain = Qwen3ForCausalLM(plain_config).eval()
    norm = f"model.{branch}_norm.weight" if config.num_modality_layers else "model.norm.weight"
    table = {"text": "model.embed_tokens.weight", "audio": "model.audio_embed.weight"}[branch]
    own = {
        "model.embed_tokens.weight": state[table],
        "model.norm.weight": state[norm],
        "lm_head.weight": state[f"{branch}_lm_head.weight"],
    }
    for block, first in (("shared_block", 0), (f"{branch}_block", config.num_shared_layers)):
        prefix = f"model.{block}.layers."
        for name, value in state.items():
            if name.startswith(prefix):
                index, rest = name.removeprefix(prefix).split(".", 1)
                own[f"model.layers.{first + int(index)}.{rest}"] = value
    plain.load_state_dict(own)
    return plain


@torch.no_grad()
def naive_logits(model, flat_row):
    """Text and audio logits `[length, ...]` of one unpadded row of flat ids, branch by branch and without a cache."""
    state, config = model.state_dict(), model.config
    vectors = torch.stack(
        [
            state["model.audio_embed.weight"][i - config.vocab_size]
            if i >= config.vocab_size
            else state["model.embed_tokens.weight"][i]
            for i in flat_row.tolist()
        ]
    )
    return tuple(
        plain_path(model, branch)(inputs_embeds=vectors[None], use_cache=False).logits[0]
        for branch in ("text", "audio")
    )
