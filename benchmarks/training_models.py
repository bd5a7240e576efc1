"""Mid-size random models and training examples for the benchmarks of training."""

import numpy as np
import torch

from dualspeech import (
    DualSpeechConfig,
    DualSpeechForConditionalGeneration,
    SplitLayerQwen3Config,
    SplitLayerQwen3ForCausalLM,
)

TEXT_IDS, AUDIO_IDS, SPEAKER_SIZE = 4096, 1026, 192


def backbone(width: int, layers: int, vocabulary: int) -> dict:
    """Fields of a Qwen3 configuration."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": max(width // 128, 1),
        "head_dim": 64,
        "max_position_embeddings": 16384,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def dualspeech(width: int, layers: int) -> DualSpeechForConditionalGeneration:
    torch.manual_seed(0)
    config = DualSpeechConfig(
        text_config={"model_type": "qwen3", **backbone(width, layers, TEXT_IDS + AUDIO_IDS)},
        acoustic_config={
            "codebook_size": 4096,
            "hidden_size": width // 2,
            "num_hidden_layers": 6,
            "num_attention_heads": max(width // 128, 1),
            "intermediate_size": 2 * width,
            "max_condition_positions": 4096,
            "max_target_positions": 4096,
        },
        audio_start_token_id=TEXT_IDS,
        audio_end_token_id=TEXT_IDS + 1,
        semantic_token_offset=TEXT_IDS + 2,
        semantic_codebook_size=1024,
        speaker_embedding_size=SPEAKER_SIZE,
    )
    return DualSpeechForConditionalGeneration(config).train()


def split_layer(width: int, layers: int, branch: int | None = None) -> SplitLayerQwen3ForCausalLM:
    """`layers` deep; of these `branch` layers (a quarter by default) stand twice."""
    torch.manual_seed(0)
    branch = max(layers // 4, 1) if branch is None else branch
    fields = backbone(width, layers, TEXT_IDS)
    del fields["num_hidden_layers"], fields["bos_token_id"]
    config = SplitLayerQwen3Config(
        num_shared_layers=layers - branch,
        num_modality_layers=branch,
        audio_vocab_size=AUDIO_IDS,
        modality_pad_token_id=3,
        sosp_token_id=4,
        eosp_token_id=1024,
        audio_pad_token_id=512,
        **fields,
    )
    return SplitLayerQwen3ForCausalLM(config).train()


def dualspeech_example(length: int, draw: np.random.Generator) -> dict:
    """A row of text to speech: a quarter prompt, the rest USTokens, and 1.6 codes of the codec per USToken."""
    prompt = max(length // 4, 1)
    codes = max(length - prompt - 3, 1)
    answer = [TEXT_IDS, *draw.integers(TEXT_IDS + 2, TEXT_IDS + AUDIO_IDS, codes).tolist(), TEXT_IDS + 1, 2]
    question = [1, *draw.integers(5, TEXT_IDS, prompt - 1).tolist()]
    return {
        "input_ids": question + answer,
        "labels": [-100] * prompt + answer,
        "prompt_mask": [1] * prompt + [0] * len(answer),
        "acoustic_labels": [*draw.integers(0, 4096, round(1.6 * codes)).tolist(), 4099],
        "speaker_embeds": draw.standard_normal(SPEAKER_SIZE).astype(np.float32).tolist(),
        "task_type_ids": 2,
    }


def document(length: int, draw: np.random.Generator) -> dict:
    """Rows of an interleaved document: stretches of 40 rows, text and speech in turns; everything is learnt."""
    is_audio = (np.arange(length) // 40) % 2 == 1
    text = np.where(is_audio, 3, draw.integers(5, TEXT_IDS, length))
    audio = np.where(is_audio, draw.integers(0, 1024, length), 512)
    labels = np.where(is_audio, TEXT_IDS + audio, text)
    return {"input_ids": np.stack([text, audio], axis=1).tolist(), "labels": labels.tolist()}


def pad(examples: list[dict]) -> dict[str, torch.Tensor]:
    """A batch of rows padded on the right, as the collators make it."""
    length = max(len(example["input_ids"]) for example in examples)

    def column(name, value):
        rows = [torch.tensor(example[name]) for example in examples]
        gaps = [torch.as_tensor(value).expand(length - len(row), *row.shape[1:]) for row in rows]
        return torch.stack([torch.cat(pair) for pair in zip(rows, gaps, strict=True)])

    pads = {"input_ids": 0, "labels": -100, **({"prompt_mask": 0} if "prompt_mask" in examples[0] else {})}
    if isinstance(examples[0]["input_ids"][0], list):
        pads["input_ids"] = [0, 512]
    batch = {name: column(name, value) for name, value in pads.items()}
    lengths = torch.tensor([len(example["input_ids"]) for example in examples])
    return {**batch, "attention_mask": (torch.arange(length) < lengths[:, None]).long(), **per_row(examples)}


def per_row(examples: list[dict]) -> dict[str, torch.Tensor]:
    """What has an entry per example, packed or not."""
    if "acoustic_labels" not in examples[0]:
        return {}
    codes = [torch.tensor(example["acoustic_labels"]) for example in examples]
    return {
        "acoustic_labels": torch.nn.utils.rnn.pad_sequence(codes, batch_first=True, padding_value=-100),
        "speaker_embeds": torch.tensor([example["speaker_embeds"] for example in examples]),
        "task_type_ids": torch.tensor([example["task_type_ids"] for example in examples]),
    }
