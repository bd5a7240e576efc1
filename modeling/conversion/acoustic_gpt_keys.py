"""Names of AcousticGPT in the released DualSpeechLM checkpoints, and ours."""

import re

import torch

# Released module -> our module, inside one decoder layer and outside. `c_attn` is split, see `convert_acoustic_entry`.
LAYER_NAMES = {
    "ln_1": "input_layernorm",
    "attn.c_proj": "self_attn.o_proj",
    "ln_2": "post_attention_layernorm",
    "mlp.c_fc": "mlp.fc_in",
    "mlp.c_proj": "mlp.fc_out",
}
NAMES = {
    "lm_decoder.transformer.wte": "model.embed_tokens",
    "lm_decoder.transformer.wpe": "model.embed_positions",
    "lm_decoder.pos_condition": "model.embed_condition_positions",
    "lm_decoder.transformer.ln_f": "model.norm",
    "gpt_head": "lm_head",
}
_LAYER = re.compile(r"lm_decoder\.transformer\.h\.(\d+)\.(.+)")


def convert_acoustic_entry(key: str, tensor: torch.Tensor) -> dict[str, torch.Tensor] | None:
    """One released tensor under the names of `AcousticGPTForCausalLM`.

    Args:
        key: released name (`lm_decoder...`, `gpt_head.weight`), without the prefix of an adapter.
        tensor: its values. Linear weights are `[out, in]`; `attn.c_attn` holds query, key and value rows in turn.

    Returns:
        Our names and values; `None` for a key that is not part of AcousticGPT.

    Raises:
        ValueError: a key below `lm_decoder` or `gpt_head` that the released layout does not have.
    """
    if key.split(".")[0] not in ("lm_decoder", "gpt_head"):
        return None
    module, _, kind = key.rpartition(".")
    if kind in ("weight", "bias"):
        if module in NAMES:
            return {f"{NAMES[module]}.{kind}": tensor}
        if match := _LAYER.fullmatch(module):
            layer, part = f"model.layers.{match[1]}", match[2]
            if part in LAYER_NAMES:
                return {f"{layer}.{LAYER_NAMES[part]}.{kind}": tensor}
            if part == "attn.c_attn" and len(tensor) % 3 == 0:
                # Clones: parts that share storage cannot be saved as safetensors.
                rows = (rows.clone() for rows in tensor.chunk(3))
                return {f"{layer}.self_attn.{name}_proj.{kind}": part for name, part in zip("qkv", rows, strict=True)}
    raise ValueError(f"`{key}` with shape {tuple(tensor.shape)} is not a tensor of the released AcousticGPT")


def convert_acoustic_state(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The AcousticGPT tensors of a released state dict, as a state dict of `AcousticGPTForCausalLM`."""
    converted = {}
    for key, tensor in state_dict.items():
        converted.update(convert_acoustic_entry(key, tensor) or {})
    return converted


def acoustic_sizes(state_dict: dict[str, torch.Tensor]) -> dict[str, int]:
    """Fields of `AcousticGPTConfig` that a released state dict tells. The number of heads is not among them."""
    tokens = state_dict["lm_decoder.transformer.wte.weight"]
    return {
        "codebook_size": len(tokens) - 4,
        "hidden_size": tokens.shape[1],
        "num_hidden_layers": len({match[1] for key in state_dict if (match := _LAYER.match(key))}),
        "intermediate_size": len(state_dict["lm_decoder.transformer.h.0.mlp.c_fc.weight"]),
        "max_condition_positions": len(state_dict["lm_decoder.pos_condition.weight"]),
        "max_target_positions": len(state_dict["lm_decoder.transformer.wpe.weight"]),
    }


__all__ = ["acoustic_sizes", "convert_acoustic_entry", "convert_acoustic_state"]
