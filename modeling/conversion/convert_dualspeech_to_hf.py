r"""Convert a released-layout DualSpeechLM checkpoint into [`DualSpeechForConditionalGeneration`].

Two layouts are read: the merged folder (`config.json` of a Phi-3 and weights under `model.*`, `lm_head.*`,
`llama_decoder_proj.*`, `lm_decoder.*`, `gpt_head.*`, `speaker_module.*`), and a training checkpoint (a PEFT adapter with
fully saved modules) on top of its base language model.

    python -m dualspeech.modeling.conversion.convert_dualspeech_to_hf --checkpoint merged/ --output_dir out/
    python -m dualspeech.modeling.conversion.convert_dualspeech_to_hf --checkpoint base/ --adapter checkpoint-60000/ \
        --output_dir out/

Sizes are read from the tensors. The number of attention heads of AcousticGPT and the number of speech codes cannot be
and are arguments. The input table and the head of AcousticGPT are two tensors in checkpoints of the released code (training
unties them) and stay two.
"""

import argparse
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from ...configuration.configuration_dualspeech import DualSpeechConfig
from ..generation_dualspeech import official_generation_config
from ..modeling_dualspeech import DualSpeechForConditionalGeneration
from .acoustic_gpt_keys import RELEASED_ACOUSTIC_RULES, acoustic_sizes
from .checkpoint_io import (
    KeyRule,
    check_dimensions,
    check_output_dir,
    check_weights,
    convert_keys,
    load_foreign_state_dict,
    save_converted,
)


def _below_acoustic_model(to):
    return f"acoustic_model.{to}" if isinstance(to, str) else tuple(map(_below_acoustic_model, to))


RULES = (
    KeyRule(r"((?:model|lm_head)\..+)", r"language_model.\1"),
    KeyRule(r"llama_decoder_proj\.fc([12])\.(weight|bias)", r"acoustic_projector.linear_\1.\2"),
    KeyRule(r"speaker_module\.weight", "speaker_projector.weight"),
    *(rule._replace(to=_below_acoustic_model(rule.to)) for rule in RELEASED_ACOUSTIC_RULES),
)
# Settings of a PEFT adapter that change the merge; anything but these values is refused.
PLAIN_ADAPTER = {
    "peft_type": "LORA",
    "fan_in_fan_out": False,
    "use_dora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
}
ADAPTER_PREFIX = "base_model.model."


def convert_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A merged state dict under our names; every key that is not understood is listed in a `ValueError`."""
    return convert_keys(state, RULES)


def merge_adapter(base: Mapping[str, Tensor], adapter: Mapping[str, Tensor], config: Mapping) -> dict[str, Tensor]:
    """The merged layout: adapted weights are `W + (alpha / r) B A`, other adapter entries replace the base's.

    The merge is computed in fp32 and stored in the base weight's dtype (the released script merges in bf16).

    Args:
        base: state dict of the base language model.
        adapter: state dict of the adapter, keys starting with `base_model.model.`.
        config: content of `adapter_config.json`.

    Raises:
        ValueError: an adapter of another kind, keys that are not understood, a factor without its partner or without a
            base weight.
    """
    unusual = {k: config[k] for k, plain in PLAIN_ADAPTER.items() if k in config and (config[k] or plain) != plain}
    if unusual:
        raise ValueError(f"adapter: only plain LoRA can be merged here; its configuration has {unusual}.")
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
    strange = [key for key in adapter if not key.startswith(ADAPTER_PREFIX)]
    if strange:
        raise ValueError(f"adapter: keys without the prefix {ADAPTER_PREFIX!r}: {', '.join(strange)}.")
    merged = dict(base)
    factors: dict[str, dict[str, Tensor]] = {}
    for key, value in adapter.items():
        name = key.removeprefix(ADAPTER_PREFIX)
        match = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name)
        if match:
            factors.setdefault(f"{match[1]}.weight", {})[match[2]] = value
        elif ".lora_" in name:
            raise ValueError(f"adapter: {key!r} is not understood.")
        else:
            merged[name] = value
    for name, pair in factors.items():
        if set(pair) != {"A", "B"} or name not in base:
            raise ValueError(
                f"adapter: {name!r} has factors {sorted(pair)} and {'a' if name in base else 'no'} base weight."
            )
        weight = base[name]
        if (pair["B"].shape[0], pair["A"].shape[1]) != tuple(weight.shape):
            raise ValueError(f"adapter: the factors of {name!r} do not have the shape {tuple(weight.shape)}.")
        merged[name] = (weight.float() + scale * pair["B"].float() @ pair["A"].float()).to(weight.dtype)
    return merged


def released_config(
    state: Mapping[str, Tensor], text_config: PreTrainedConfig, semantic_codebook_size: int, num_attention_heads: int
) -> DualSpeechConfig:
    """Our configuration of a merged state dict: sizes from the tensors, behaviour as released.

    The speech tokens are the last ones of the vocabulary: `<audio>`, `</audio>`, then the codes.
    """
    acoustic = ("transformer.wte", "transformer.wpe", "pos_condition", "transformer.h.0.mlp.c_fc")
    names = ("model.embed_tokens", "speaker_module", "llama_decoder_proj.fc1", *(f"lm_decoder.{n}" for n in acoustic))
    check_dimensions(state, {f"{name}.weight": 2 for name in names}, "DualSpeechLM")
    text_config.vocab_size = state["model.embed_tokens.weight"].shape[0]
    text_config.tie_word_embeddings = "lm_head.weight" not in state
    offset = text_config.vocab_size - semantic_codebook_size
    return DualSpeechConfig.official_parity(
        text_config=text_config,
        acoustic_config={**acoustic_sizes(state), "num_attention_heads": num_attention_heads},
        audio_start_token_id=offset - 2,
        audio_end_token_id=offset - 1,
        semantic_token_offset=offset,
        semantic_codebook_size=semantic_codebook_size,
        speaker_embedding_size=state["speaker_module.weight"].shape[1],
        projector_hidden_size=state["llama_decoder_proj.fc1.weight"].shape[0],
    )


def build_model(state: Mapping[str, Tensor], config: DualSpeechConfig) -> DualSpeechForConditionalGeneration:
    """The model of a merged state dict, with the released generation settings.

    Raises:
        ValueError: listing every key that is not understood, missing, left over, or of another shape, or whose weights
            are not finite floating-point numbers.
    """
    converted = convert_state(state)
    check_weights(converted)
    model, info = DualSpeechForConditionalGeneration.from_pretrained(
        None,
        config=config,
        state_dict=converted,
        dtype=state["model.embed_tokens.weight"].dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    problems = {
        name: sorted(map(str, info[name]))
        for name in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if info[name]
    }
    if problems:
        raise ValueError(f"checkpoint does not fit its own sizes: {problems}.")
    model.generation_config = official_generation_config(config)
    return model


def convert(
    checkpoint: str,
    output_dir: str,
    adapter: str | None = None,
    semantic_codebook_size: int = 1024,
    num_attention_heads: int = 8,
) -> None:
    """Read, convert and save; nothing is written unless everything was understood.

    Args:
        checkpoint: folder with the merged model, or with the base language model when `adapter` is given.
        output_dir: a new or empty folder.
        adapter: folder with `adapter_config.json` and the adapter's weights.
        semantic_codebook_size: number of speech codes, 1024 for USTokens, 500 for the HuBERT variant.
        num_attention_heads: heads of AcousticGPT (8 in all released configurations).
    """
    check_output_dir(output_dir)
    state = load_foreign_state_dict(checkpoint)
    text_config = AutoConfig.from_pretrained(checkpoint)
    if adapter is not None:
        settings = Path(adapter) / "adapter_config.json"
        if not settings.is_file():
            raise ValueError(f"adapter: {str(adapter)!r} has no adapter_config.json; it is needed for the merge.")
        adapter_config = json.loads(settings.read_text(encoding="utf-8"))
        state = merge_adapter(state, load_foreign_state_dict(adapter), adapter_config)
    config = released_config(state, text_config, semantic_codebook_size, num_attention_heads)
    save_converted(build_model(state, config), output_dir)


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="merged model, or base language model with --adapter")
    parser.add_argument("--adapter", help="folder of the training checkpoint")
    parser.add_argument("--output_dir", required=True, help="new or empty folder")
    parser.add_argument("--semantic_codebook_size", type=int, default=1024, help="speech codes (default: 1024)")
    parser.add_argument("--num_attention_heads", type=int, default=8, help="heads of AcousticGPT (default: 8)")
    options = parser.parse_args(args)
    with torch.no_grad():
        convert(**vars(options))


if __name__ == "__main__":
    main()

__all__ = ["build_model", "convert", "convert_state", "merge_adapter", "released_config"]
