"""Samples of a training run: what is written, and that training is left alone."""

import json

import numpy as np
import pytest
import soundfile
import torch
from transformers import Trainer, TrainingArguments

from dualspeech.training.callbacks import SamplesCallback, plot_mel
from dualspeech.training.data_collator import DualSpeechDataCollator
from tests.package.hub_cases import tiny_pair

TONE = (0.3 * np.sin(2 * np.pi * 220 * np.arange(8000) / 16000)).astype(np.float32)
ROWS = [
    {"task": "asr", "audio": {"array": TONE, "sampling_rate": 16000}, "targets": "ab"},
    {"task": "tts", "text": "ab", "speaker": [0.5] * 12},
]


def train(folder, callbacks, report_to="none"):
    torch.manual_seed(0)
    model, processor = tiny_pair()
    data = [
        processor.build_example(
            "ab", task="tts", speaker=[0.5] * 12, targets={"us_codes": [1, 2], "acoustic_codes": [3]}
        )
    ] * 6
    arguments = TrainingArguments(
        folder,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        learning_rate=1e-2,
        use_cpu=True,
        report_to=report_to,
        remove_unused_columns=False,
        label_names=["labels"],
    )
    collator = DualSpeechDataCollator(processor)
    evaluation = {"tts": data[:2], "other": data[:1]}
    trainer = Trainer(model, arguments, collator, train_dataset=data, eval_dataset=evaluation)
    for callback in callbacks(processor):
        trainer.add_callback(callback)
    trainer.train()
    return model


def test_samples_are_written_once_at_each_evaluation_and_change_nothing(tmp_path):
    plain = train(tmp_path / "plain", lambda processor: [])
    sampled = train(
        tmp_path / "sampled",
        lambda processor: [SamplesCallback(processor, ROWS, max_new_tokens=8, acoustic={"max_codes": 20})],
        report_to="tensorboard",
    )
    for ours, theirs in zip(sampled.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not (tmp_path / "plain" / "samples-2").exists()
    for step in (2, 4):
        folder = tmp_path / "sampled" / f"samples-{step}"
        asr, tts = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        assert asr["row"]["task"] == "asr" and isinstance(asr["text"], str) and asr["audio"] is None
        assert asr["row"]["audio"]["array"] == "<ndarray>"
        assert tts["finish_reason"] in ("eos", "length")
        samples, rate = soundfile.read(folder / tts["audio"])
        assert rate == 24000 and len(samples) > 0
        assert (folder / "1.png").read_bytes()[:4] == b"\x89PNG"
    assert list((tmp_path / "sampled" / "samples").glob("events*"))


def test_what_the_callback_does_not_accept(monkeypatch):
    with pytest.raises(ValueError, match="`rows` is empty"):
        SamplesCallback(None, [])
    monkeypatch.setitem(__import__("sys").modules, "librosa", None)
    with pytest.raises(ValueError, match=r"`plot` needs librosa: install dualspeech\[audio\]"):
        SamplesCallback(None, ROWS)
    SamplesCallback(None, ROWS, plot=False)


def test_the_picture_of_a_sound(tmp_path):
    plot_mel(tmp_path / "tone.png", TONE, 16000)
    assert (tmp_path / "tone.png").stat().st_size > 5000
