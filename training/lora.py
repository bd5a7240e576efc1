"""LoRA for DualSpeechLM with PEFT: the right target modules for every backbone, and only the new token rows."""

import re

from torch import nn
from transformers.pytorch_utils import Conv1D

# Names as users know them -> names under which fused backbones (Phi-3) keep the same projections.
FUSED_NAMES = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}
ACOUSTIC_MODULES = ("acoustic_model", "acoustic_projector", "speaker_projector")


def lora_target_names(model) -> list[str]:
    """Last names of all linear layers inside the decoder layers of `model.language_model`, sorted.

    Llama and Qwen3 give `down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj`; Phi-3 gives `down_proj,
    gate_up_proj, o_proj, qkv_proj`.
    """
    decoder = model.language_model.get_decoder()
    names = {
        name.rpartition(".")[2] for name, module in decoder.named_modules() if isinstance(module, (nn.Linear, Conv1D))
    }
    return sorted(names)


def dualspeech_lora_config(
    model,
    r: int = 16,
    lora_alpha: int = 32,
    lora_dropout: float = 0.05,
    target_names: list[str] | None = None,
    train_new_tokens: bool = True,
    train_acoustic: bool = True,
    **kwargs,
):
    """
    A `peft.LoraConfig` for [`DualSpeechForConditionalGeneration`] with the paper's rank.

    The released code names unfused targets on Phi-3 and relies on a suffix match that PEFT has since dropped: with a
    recent PEFT its list reaches two of four projections without a word. Here names are translated to the backbone's
    own, and a name that reaches nothing is an error. The released code also trains both whole embedding tables; here
    only the rows of the speech tokens are trained.

    Args:
        model: the DualSpeech model.
        r, lora_alpha, lora_dropout: rank 16 (paper, table 11), alpha 32 and dropout 0.05 (released code).
        target_names: last names of the projections, fused or not; all linear layers of the backbone by default.
        train_new_tokens: train the embedding and output rows of `<audio>`, `</audio>` and the codes.
        train_acoustic: train the projector, the speaker projection and AcousticGPT in full.
        kwargs: further arguments of `LoraConfig`.

    Raises:
        ValueError: a target name that no layer of the backbone has.
    """
    from peft import LoraConfig

    known = lora_target_names(model)
    names = (
        known
        if target_names is None
        else [name if name in known else FUSED_NAMES.get(name, name) for name in target_names]
    )
    unknown = sorted({name for name in names if name not in known})
    if unknown:
        raise ValueError(f"`target_names` has {unknown}; the linear layers of this backbone are {known}")
    names = sorted(set(names))
    if train_acoustic:
        present = [name for name in ACOUSTIC_MODULES if hasattr(model, name)]
        kwargs["modules_to_save"] = sorted({*present, *(kwargs.get("modules_to_save") or [])})
    if train_new_tokens:
        kwargs["trainable_token_indices"] = new_token_indices(model)
    return LoraConfig(
        r=r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=r"language_model\..*\.(" + "|".join(map(re.escape, names)) + ")",
        **kwargs,
    )


def new_token_indices(model) -> dict[str, list[int]]:
    """Rows of the speech tokens in the input table and, when it is a tensor of its own, in the output head."""
    config = model.config
    codes = range(config.semantic_token_offset, config.semantic_token_offset + config.semantic_codebook_size)
    rows = sorted({config.audio_start_token_id, config.audio_end_token_id, *codes})
    tables = [model.get_input_embeddings()]
    head = model.get_output_embeddings()
    if head is not None and head.weight is not tables[0].weight:
        tables.append(head)
    return {name: rows for name, module in model.named_modules() if any(module is table for table in tables)}


__all__ = ["dualspeech_lora_config", "lora_target_names", "new_token_indices"]
