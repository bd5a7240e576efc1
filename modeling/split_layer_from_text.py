"""From a Qwen3 language model to the configuration and the weights of a split-layer model."""

import dataclasses
import os

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import PreTrainedModel

from ..configuration.configuration_split_layer_qwen3 import SplitLayerQwen3Config

_FIELDS = {field.name for field in dataclasses.fields(SplitLayerQwen3Config)}
# Fields of the Qwen3 configuration that are not taken over.
_OWN_FIELDS = {"architectures", "transformers_version", "dtype", "num_hidden_layers", "tie_word_embeddings"}
_TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def config_from_text(
    text_model: str | PreTrainedModel,
    dtype: str | torch.dtype | None,
    num_modality_layers: int,
    audio_vocab_size: int,
    vocab_size: int | None = None,
    **kwargs,
) -> tuple[SplitLayerQwen3Config, PreTrainedModel, bool]:
    """
    Configuration for `SplitLayerQwen3ForCausalLM.from_text_model`, the Qwen3 model, and whether it was loaded here.
    Special text ids, rotary angles and sizes are those of the Qwen3 model.

    Raises:
        ValueError: if `text_model` is no Qwen3 language model or has too few layers or ids, or a field is unknown.
    """
    unknown = sorted(set(kwargs) - _FIELDS)
    if unknown:
        raise ValueError(f"`{unknown[0]}` is no field of SplitLayerQwen3Config; load the Qwen3 model with it instead")
    is_ours = isinstance(text_model, (str, os.PathLike))
    if not is_ours and not isinstance(text_model, PreTrainedModel):
        raise ValueError(
            f"`text_model` must be a checkpoint or a Qwen3 language model, got {type(text_model).__name__}"
        )
    text_config = AutoConfig.from_pretrained(text_model) if is_ours else text_model.config
    if text_config.model_type != "qwen3" or not (is_ours or hasattr(text_model, "lm_head")):
        raise ValueError(
            "`text_model` must be a Qwen3 language model (or its checkpoint), got "
            + (f"model type {text_config.model_type!r}" if is_ours else type(text_model).__name__)
        )
    depth = text_config.num_hidden_layers
    if not 0 <= num_modality_layers < depth:
        raise ValueError(
            f"`num_modality_layers` must be 0 to {depth - 1} (one of {depth} layers is shared), got {num_modality_layers}"
        )
    if vocab_size is not None and vocab_size > text_config.vocab_size:
        raise ValueError(
            f"`vocab_size` must be at most {text_config.vocab_size}, the vocabulary of `text_model`, got {vocab_size}"
        )
    fields = {name: value for name, value in text_config.to_dict().items() if name in _FIELDS - _OWN_FIELDS}
    if is_ours:
        text_model = AutoModelForCausalLM.from_pretrained(text_model, **({} if dtype is None else {"dtype": dtype}))
    if fields["pad_token_id"] is None:
        fields["pad_token_id"] = text_model.generation_config.pad_token_id
    fields |= {
        "num_shared_layers": depth - num_modality_layers,
        "num_modality_layers": num_modality_layers,
        "audio_vocab_size": audio_vocab_size,
        "vocab_size": vocab_size or text_config.vocab_size,
    }
    return SplitLayerQwen3Config(**{**fields, **kwargs}), text_model, is_ours


def state_from_text(text_model: PreTrainedModel, config: SplitLayerQwen3Config, copy: bool) -> dict[str, torch.Tensor]:
    """
    Weights of the split-layer model under their own names, the audio table and head drawn at random. What appears
    twice has two storages; with `copy` nothing shares one with `text_model`.

    Raises:
        ValueError: if `text_model` has weights that a Qwen3 model has not (quantised or adapted ones).
    """
    shared, own = config.num_shared_layers, {}
    norms = ("text_norm", "audio_norm") if config.num_modality_layers else ("norm",)
    for name, value in text_model.state_dict().items():
        parts = name.split(".")
        if name == _TABLES[0]:
            targets = [name]
        elif name == _TABLES[1]:  # may be the embedding itself
            targets, value = ["text_lm_head.weight"], value.clone()
        elif name == "model.norm.weight":
            targets = [f"model.{norm}.weight" for norm in norms]
        elif parts[:2] == ["model", "layers"]:
            index, rest = int(parts[2]), ".".join(parts[3:])
            targets = [f"model.shared_block.layers.{index}.{rest}"]
            if index >= shared:
                targets = [f"model.{block}.layers.{index - shared}.{rest}" for block in ("text_block", "audio_block")]
        else:
            raise ValueError(f"`text_model` must have the plain weights of a Qwen3 model, but has {name}")
        if len(value) > config.vocab_size and name in _TABLES:
            value = value[: config.vocab_size].clone()
        own[targets[0]] = value.clone() if copy else value
        own.update({target: value.clone() for target in targets[1:]})
    table = own[_TABLES[0]]
    for name in ("model.audio_embed.weight", "audio_lm_head.weight"):
        own[name] = table.new_empty(config.audio_vocab_size, config.hidden_size).normal_(std=config.initializer_range)
    return own


__all__ = ["config_from_text", "state_from_text"]
