"""Small DualSpeech models and the recorded released one, shared by the tests of the language model."""

import torch
from transformers import Phi3Config

from dualspeech.configuration.configuration_dualspeech import TASK_IDS, DualSpeechConfig
from dualspeech.modeling.conversion.convert_dualspeech_to_hf import build_model, released_config
from dualspeech.modeling.modeling_dualspeech import DualSpeechForConditionalGeneration

BACKBONES = {
    "llama": {"model_type": "llama", "num_key_value_heads": 2},
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True},
    "phi3": {"model_type": "phi3", "num_key_value_heads": 2},
}
SPEECH = {
    "audio_start_token_id": 40,
    "audio_end_token_id": 41,
    "semantic_token_offset": 42,
    "semantic_codebook_size": 13,
}


def tiny_config(backbone="llama", acoustic=None, **kwargs) -> DualSpeechConfig:
    text_config = {
        "vocab_size": 57,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **BACKBONES[backbone],
    }
    acoustic = {
        "codebook_size": 11,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "max_condition_positions": 128,
        "max_target_positions": 96,
        **(acoustic or {}),
    }
    return DualSpeechConfig(
        **{"text_config": text_config, "acoustic_config": acoustic, "speaker_embedding_size": 6, **SPEECH, **kwargs}
    )


def tiny_model(backbone="llama", seed=0, scale=8.0, **kwargs) -> DualSpeechForConditionalGeneration:
    """A random model whose greedy choices are well apart (matrices larger than at initialisation)."""
    torch.manual_seed(seed)
    model = DualSpeechForConditionalGeneration(tiny_config(backbone, **kwargs)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return model


def training_batch(config: DualSpeechConfig, tasks=("asr", "tts", "vc", "sqa"), seed=0) -> dict[str, torch.Tensor]:
    """A right-padded batch as the processor makes it: mixed tasks, prompts and answers of different lengths."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low, high, count):
        return torch.randint(low, high, (count,), generator=generator).tolist()

    acoustic = config.acoustic_config
    rows, codes = [], []
    for index, task in enumerate(tasks):
        speech = lambda n: [40, *ids(42, 55, n), 41]  # noqa: E731
        prompt = [1, *ids(3, 40, 4 + index), *(speech(5) if task in ("asr", "vc", "sqa") else [])]
        if task in ("tts", "vc", "t2st", "sc"):
            answer = speech(3 + index)
            codes.append([*ids(0, acoustic.codebook_size, 5 + index), acoustic.eos_token_id])
        else:
            answer = ids(3, 40, 3 + index)
            codes.append([acoustic.none_token_id, acoustic.eos_token_id])
        rows.append((prompt, [*answer, 2]))
    length = max(len(p) + len(a) for p, a in rows)
    width = max(map(len, codes))

    def pad(values, value, size):
        return values + [value] * (size - len(values))

    speaks = torch.tensor([[float(task in ("tts", "vc", "t2st", "sc"))] for task in tasks])
    return {
        "input_ids": torch.tensor([pad(p + a, 0, length) for p, a in rows]),
        "attention_mask": torch.tensor([pad([1] * len(p + a), 0, length) for p, a in rows]),
        "labels": torch.tensor([pad([-100] * len(p) + a, -100, length) for p, a in rows]),
        "prompt_mask": torch.tensor([pad([1] * len(p), 0, length) for p, _ in rows]),
        "acoustic_labels": torch.tensor([pad(c, -100, width) for c in codes]),
        "speaker_embeds": torch.randn(len(tasks), config.speaker_embedding_size or 1, generator=generator) * speaks,
        "task_type_ids": torch.tensor([TASK_IDS[task] for task in tasks]),
    }


def prompt_batch(tasks=("tts", "asr", "vc"), lengths=(5, 9, 7), pad=0, seed=0):
    """Left-padded prompts: ids, mask, task numbers."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    rows = [torch.randint(3, 40, (n,), generator=generator).tolist() for n in lengths]
    return {
        "input_ids": torch.tensor([[pad] * (width - len(r)) + r for r in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows]),
        "task_type_ids": torch.tensor([TASK_IDS[task] for task in tasks]),
    }


def fixture_text_config(config: dict) -> Phi3Config:
    """Phi-3 configuration of a fixture."""
    text = {k: v for k, v in config["text_model"].items() if k not in ("model", "base_vocab_size")}
    theta, scaling = text.pop("rope_theta"), text.pop("rope_scaling")
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    if scaling:
        scaling = dict(scaling)
        text["rope_parameters"] |= {"rope_type": scaling.pop("type"), **scaling}
    return Phi3Config(**text)


def fixture_model(state, meta) -> DualSpeechForConditionalGeneration:
    """The model of a fixture in the merged layout, through the converter."""
    config = meta["config"]
    ours = released_config(
        state,
        fixture_text_config(config),
        semantic_codebook_size=config.get("semantic_codebook_size", 50),
        num_attention_heads=config["acoustic"]["num_attention_heads"],
    )
    return build_model(state, ours).eval()


def fixture_inputs(tensors, name) -> dict[str, torch.Tensor]:
    """One training batch of a fixture in our argument names."""
    acoustic = tensors[f"{name}.acoustic_ids"][:, 1:]
    return {
        "input_ids": tensors[f"{name}.input_ids"],
        "attention_mask": tensors[f"{name}.attention_mask"],
        "labels": tensors[f"{name}.labels"],
        "acoustic_labels": acoustic.masked_fill(acoustic == 4096, -100),
        "speaker_embeds": tensors[f"{name}.speaker"],
        "prompt_mask": tensors[f"{name}.question_mask"],
    }
