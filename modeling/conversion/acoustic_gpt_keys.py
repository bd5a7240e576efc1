"""Names of AcousticGPT in checkpoints of the released DualSpeechLM code, and ours."""

import re
from collections.abc import Mapping

from torch import Tensor

from .checkpoint_io import KeyRule


def _thirds(rows: Tensor) -> list[Tensor]:
    """Query, key and value rows; clones, since parts that share storage cannot be saved."""
    return [part.clone() for part in rows.chunk(3)]


_LAYER = r"lm_decoder\.transformer\.h\.(\d+)\."
# Rules of `convert_keys`: released keys -> keys of `AcousticGPTForCausalLM`. Linear weights are [out, in] on both sides.
RELEASED_ACOUSTIC_RULES = (
    KeyRule(r"lm_decoder\.transformer\.wte\.weight", "model.embed_tokens.weight"),
    KeyRule(r"lm_decoder\.transformer\.wpe\.weight", "model.embed_positions.weight"),
    KeyRule(r"lm_decoder\.pos_condition\.weight", "model.embed_condition_positions.weight"),
    KeyRule(_LAYER + r"ln_1\.(weight|bias)", r"model.layers.\1.input_layernorm.\2"),
    KeyRule(
        _LAYER + r"attn\.c_attn\.(weight|bias)",
        tuple(rf"model.layers.\1.self_attn.{name}_proj.\2" for name in "qkv"),
        _thirds,
    ),
    KeyRule(_LAYER + r"attn\.c_proj\.(weight|bias)", r"model.layers.\1.self_attn.o_proj.\2"),
    KeyRule(_LAYER + r"ln_2\.(weight|bias)", r"model.layers.\1.post_attention_layernorm.\2"),
    KeyRule(_LAYER + r"mlp\.c_fc\.(weight|bias)", r"model.layers.\1.mlp.fc_in.\2"),
    KeyRule(_LAYER + r"mlp\.c_proj\.(weight|bias)", r"model.layers.\1.mlp.fc_out.\2"),
    KeyRule(r"lm_decoder\.transformer\.ln_f\.(weight|bias)", r"model.norm.\1"),
    KeyRule(r"gpt_head\.weight", "lm_head.weight"),
)


def acoustic_sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Fields of `AcousticGPTConfig` that the tensors of a released checkpoint tell (the number of heads they do not).

    Raises:
        ValueError: a tensor that tells a size is missing.
    """
    names = {
        "codes": "lm_decoder.transformer.wte.weight",
        "condition": "lm_decoder.pos_condition.weight",
        "target": "lm_decoder.transformer.wpe.weight",
        "feed_forward": "lm_decoder.transformer.h.0.mlp.c_fc.weight",
    }
    if missing := [name for name in names.values() if name not in state]:
        raise ValueError(f"checkpoint: it lacks {', '.join(missing)}.")
    codes, condition, target, feed_forward = (state[name].shape for name in names.values())
    return {
        "codebook_size": codes[0] - 4,
        "hidden_size": codes[1],
        "num_hidden_layers": len({match[1] for key in state if (match := re.match(_LAYER, key))}),
        "intermediate_size": feed_forward[0],
        "max_condition_positions": condition[0],
        "max_target_positions": target[0],
    }


__all__ = ["RELEASED_ACOUSTIC_RULES", "acoustic_sizes"]
