"""A tiny USTokenizer, a tiny text model that reads, and rows to learn from, for `train_us_tokenizer.py`."""

import numpy as np
import torch
from tiny_dualspeech import EMOTIONS, WORDS, tone_speech
from transformers import LlamaConfig, LlamaForCausalLM

from dualspeech import UsTokenizerConfig, UsTokenizerModel
from dualspeech.training.data_collator_us_tokenizer import PROMPTS, TEXT_BEFORE_SPEECH, TEXT_BEHIND_SPEECH


def tiny_rows(count: int, seed: int) -> list[dict]:
    """Task rows with recordings of two words, one tone each: what was said, how loud it was, which word came first. What
    a perfect transcription of the recording would be is its `content`."""
    draw = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        words = [list(WORDS)[j] for j in draw.integers(len(WORDS), size=2)]
        emotion = str(draw.choice(list(EMOTIONS)))
        audio = tone_speech(words, voice=int(draw.integers(1, 4)), rate=16000, emotion=emotion)
        audio = {"array": audio + 0.01 * draw.standard_normal(len(audio)), "sampling_rate": 16000}
        row = (
            {"task": "asr", "targets": " ".join(words)},
            {"task": "ser", "targets": emotion},
            {"task": "sqa", "question": "What is the first word?", "targets": words[0]},
        )[i % 3]
        rows.append({"audio": audio, "metadata": {"content": " ".join([emotion, *words])}, **row})
    return rows


def tiny_text_model(tokenizer, rows: list[dict], steps: int = 120) -> LlamaForCausalLM:
    """A character model of 70 000 parameters that answers when the content is written where the speech goes."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        batch = [rows[(24 * step + i) % len(rows)] for i in range(24)]
        prompts = [PROMPTS[row["task"]].replace("{}", row.get("question", "")) for row in batch]
        lines = [
            f"<s>{TEXT_BEFORE_SPEECH}{row['metadata']['content']}{TEXT_BEHIND_SPEECH.replace('{}', prompt)}{row['targets']}</s>"
            for row, prompt in zip(batch, prompts, strict=True)
        ]
        inputs = tokenizer(lines, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=False)
        labels = inputs["input_ids"].clone()
        for row, label in zip(batch, labels, strict=True):
            label[: -len(row["targets"]) - 1] = -100  # one id per character
        model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model


def tiny_us_tokenizer(**kwargs) -> UsTokenizerModel:
    """A tokenizer of 60 000 parameters for recordings of at most one second."""
    encoder = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
    config = UsTokenizerConfig(
        encoder_config={**encoder, "max_source_positions": 50},
        **{"hidden_size": 32, "code_dim": 24, "codebook_size": 40, "min_seconds": 0.1, "max_seconds": 1.0, **kwargs},
    )
    model = UsTokenizerModel(config)
    with torch.no_grad():
        model.encoder.conv1.weight.mul_(20)  # a random encoder; so that its output follows the sound
        model.encoder.conv2.weight.mul_(20)
    return model
