"""Small AcousticGPTs for the tests, and one written out position by position."""

import torch
from torch import nn

from dualspeech.configuration.configuration_acoustic_gpt import AcousticGPTConfig
from dualspeech.modeling.modeling_acoustic_gpt import AcousticGPTForCausalLM

# Sizes that share nothing with the fixture or the release; ids in another order, odd heads, several codebooks.
CASES = {
    "paper": {},
    "causal": {"condition_attention": "causal"},
    "odd": {
        "codebook_size": 7,
        "hidden_size": 15,
        "num_attention_heads": 3,
        "pad_token_id": 9,
        "none_token_id": 10,
        "bos_token_id": 7,
        "eos_token_id": 8,
    },
    "flatten": {"codebook_size": 12, "interleaved_codebooks": 3},
    "delay": {
        "codebook_size": 9,
        "num_codebooks": 3,
        "pad_token_id": 12,
        "none_token_id": 10,
        "bos_token_id": 11,
        "eos_token_id": 9,
    },
}


def tiny_config(**kwargs) -> AcousticGPTConfig:
    sizes = {
        "codebook_size": 11,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 20,
        "max_condition_positions": 13,
        "max_target_positions": 17,
    }
    return AcousticGPTConfig(**(sizes | kwargs))


def tiny_model(seed=0, **kwargs) -> AcousticGPTForCausalLM:
    """Random weights large enough that positions, masks and ids all matter."""
    torch.manual_seed(seed)
    model = AcousticGPTForCausalLM(tiny_config(**kwargs)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.35)
    return model


def random_ids(config, batch, frames, end=True):
    """Codes `[B, A]` or `[B, A, K]`; the last frame is the end id when `end`."""
    shape = (batch, frames) if config.num_codebooks == 1 else (batch, frames, config.num_codebooks)
    ids = torch.randint(config.codebook_size, shape)
    if end:
        ids[:, -1] = config.eos_token_id
    return ids


def naive_logits(model, condition, visible, ids):
    """Logits of one row: `condition [C, d]`, `visible [C]`, `ids [S, K]` in delayed layout -> `[S, K, V]`."""
    config, w = model.config, model.state_dict()
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    num_condition = len(condition)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def norm(x, name):
        return nn.functional.layer_norm(x, x.shape, w[f"{name}.weight"], w[f"{name}.bias"], config.layer_norm_eps)

    def sees(query, key):
        if key < num_condition and not visible[key]:
            return False
        if query < num_condition and key < num_condition and config.condition_attention == "bidirectional":
            return True
        return key <= query

    states = [x + w["model.embed_condition_positions.weight"][i] for i, x in enumerate(condition)]
    for step, row in enumerate(ids):
        tokens = [w["model.embed_tokens.weight"][book * config.vocab_size + int(i)] for book, i in enumerate(row)]
        states.append(sum(tokens) + w["model.embed_positions.weight"][step])
    for index in range(config.num_hidden_layers):
        layer = f"model.layers.{index}"
        normed = [norm(x, f"{layer}.input_layernorm") for x in states]
        query, key, value = (
            [linear(x, f"{layer}.self_attn.{name}_proj").view(heads, size) for x in normed] for name in "qkv"
        )
        attended = []
        for q in range(len(states)):
            keys = [k for k in range(len(states)) if sees(q, k)] or [q]
            scores = torch.stack([(query[q] * key[k]).sum(-1) for k in keys]) / size**0.5
            weights = scores.softmax(dim=0)
            attended.append(sum(weights[i, :, None] * value[k] for i, k in enumerate(keys)).flatten())
        states = [x + linear(a, f"{layer}.self_attn.o_proj") for x, a in zip(states, attended, strict=True)]
        for i, x in enumerate(states):
            hidden = linear(norm(x, f"{layer}.post_attention_layernorm"), f"{layer}.mlp.fc_in")
            hidden = nn.functional.gelu(hidden, approximate="tanh")
            states[i] = x + linear(hidden, f"{layer}.mlp.fc_out")
    out = [linear(norm(x, "model.norm"), "lm_head") for x in states[num_condition:]]
    return torch.stack(out).view(len(ids), config.num_codebooks, config.vocab_size)


__all__ = ["CASES", "naive_logits", "random_ids", "tiny_config", "tiny_model"]
