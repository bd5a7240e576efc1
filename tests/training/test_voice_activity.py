"""Finding speech: known pauses, limits of length, models of frames."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from transformers import AutoModelForAudioFrameClassification

from dualspeech.training.data_steps.row_recordings import read_recording, store_recording
from dualspeech.training.data_steps.step import Rejection, apply_step
from dualspeech.training.data_steps.voice_activity import (
    EnergyVoiceActivity,
    ModelVoiceActivity,
    cut_interval,
    speech_stretches,
)
from tests.tiny import tone
from tests.training.tiny_speech_models import frame_classifier_checkpoint

LIMITS = {"merge_gap": 0.5, "padding": 0.1, "min_seconds": 1.0, "max_seconds": 10.0}


def spoken(*parts, rate=16000):
    """Speech (positive seconds) and silence (negative ones) in a row."""
    return np.concatenate(
        [tone(part, rate) if part > 0 else np.zeros(round(-part * rate), np.float32) for part in parts]
    )


def stretches(intervals, duration=60.0, **limits):
    return speech_stretches(intervals, duration, np.ones(600), **{**LIMITS, **limits})


def test_gaps_lengths_and_padding():
    # two intervals with a short gap, one that is too short, one at the end of the recording
    found = stretches([(1.0, 2.0), (2.4, 3.0), (5.0, 5.5), (58.0, 60.0)])
    assert found == [pytest.approx((0.9, 3.1)), pytest.approx((57.9, 60.0))]
    # padding goes to the middle of a gap at most
    assert stretches([(1.0, 3.0), (3.1, 5.0)], merge_gap=0.0) == [
        pytest.approx((0.9, 3.05)),
        pytest.approx((3.05, 5.1)),
    ]
    # what would become too long is not merged
    assert len(stretches([(1.0, 6.0), (6.2, 11.5)])) == 2
    assert stretches([]) == []


def test_long_speech_is_cut_where_it_is_quiet():
    activity = np.ones(600)  # 0.1 s each
    activity[[87, 170]] = 0.1
    found = speech_stretches([(0.0, 25.0)], 60.0, activity, **LIMITS)
    assert [end for _, end in found] == pytest.approx([8.75, 17.05, 25.1])
    assert all(end - start <= 10.0 + 1e-9 for start, end in found)
    assert found[0][1] == found[1][0]  # no padding into the neighbour
    draw = np.random.default_rng(0)
    for _ in range(50):
        longest, end = draw.uniform(0.5, 12), draw.uniform(1, 60)
        pieces = cut_interval((0.5, end), longest, 60.0, draw.random(600))
        assert pieces[0][0] == 0.5 and pieces[-1][1] == end
        assert all(a[1] == b[0] for a, b in itertools.pairwise(pieces))
        assert max(b - a for a, b in pieces) <= longest + 0.1


@pytest.mark.parametrize("storage", ["files", None, "segments"])
def test_energy(storage, tmp_path):
    samples = spoken(-1.0, 2.0, -0.3, 1.0, -2.0, 1.5, -0.5, rate=22050)
    path = store_recording(samples, 22050, str(tmp_path), "whole")
    storage = str(tmp_path / "parts") if storage == "files" else storage
    step = pickle.loads(pickle.dumps(EnergyVoiceActivity(storage=storage)))
    step.setup()
    row = {"audio": path, "source": "list.jsonl:7", "text": "of the whole", "speaker": "x", "metadata": {"a": 1}}
    ((first, second),) = step.process([row])
    for made, start, end in ((first, 0.9, 4.4), (second, 6.2, 7.9)):
        assert made["source"] == "list.jsonl:7" and made["speaker"] == "x" and "text" not in made
        assert made["metadata"]["a"] == 1
        assert made["metadata"]["start"] == pytest.approx(start, abs=0.05)
        assert made["metadata"]["end"] == pytest.approx(end, abs=0.05)
        read, rate = read_recording(made)
        assert rate == 22050
        assert len(read) / rate == pytest.approx(made["metadata"]["end"] - made["metadata"]["start"], abs=1e-3)
        begin = round(made["metadata"]["start"] * rate)
        assert np.abs(read - samples[begin : begin + len(read)]).max() < 1e-4
    assert first["id"] != second["id"]
    assert step.process([row]) == step.process([row])


def test_silence_is_rejected():
    noise = np.random.default_rng(0).normal(0, 1e-5, 32000).astype(np.float32)
    rows = [{"audio": (np.zeros(32000, np.float32), 16000)}, {"audio": (noise, 16000)}, {"audio": "no file"}]
    outcomes = apply_step(EnergyVoiceActivity(), [*rows, {"audio": (spoken(0.4, -1.0), 16000)}])
    assert all(isinstance(outcome, Rejection) for outcome in outcomes)
    assert "no stretch of speech of at least 1.0 s in 2.00 s (0.00 s of speech)" in outcomes[0].reason
    assert "0.00 s of speech" in outcomes[1].reason and "does not exist" in outcomes[2].reason
    assert "no stretch" in outcomes[3].reason and "(0.00 s" not in outcomes[3].reason


def test_wrong_settings():
    with pytest.raises(ValueError, match="min_seconds"):
        EnergyVoiceActivity(min_seconds=5.0, max_seconds=5.1)
    with pytest.raises(ValueError, match="with the labels that mean speech"):
        ModelVoiceActivity(checkpoint="a", activation="softmax")


@pytest.mark.parametrize(("activation", "labels"), [("sigmoid", None), ("sigmoid", [1]), ("softmax", [0, 2])])
def test_model(activation, labels, tmp_path):
    checkpoint = frame_classifier_checkpoint(tmp_path, num_labels=3)
    samples = np.random.default_rng(0).normal(0, 0.1, 5 * 16000).astype(np.float32)
    step = ModelVoiceActivity(
        checkpoint=checkpoint, activation=activation, labels=labels, device="cpu", window_seconds=2.0, min_seconds=0.01
    )
    step = pickle.loads(pickle.dumps(step))
    step.setup()
    # the same by hand: three equal windows
    model, speech = AutoModelForAudioFrameClassification.from_pretrained(checkpoint).eval(), []
    for window in np.array_split(samples, 3):
        values = torch.from_numpy((window - window.mean()) / np.sqrt(window.var() + 1e-7))[None]
        with torch.no_grad():
            logits = model(values).logits[0]
        if activation == "softmax":
            speech.append(1 - logits.softmax(-1)[:, 1])
        else:
            speech.append((logits.amax(-1) if labels is None else logits[:, 1]).sigmoid())
    step.threshold = float(torch.cat(speech).median())
    intervals, activity = step.detect(samples, 16000)
    expected = torch.cat(speech).numpy()
    assert activity == pytest.approx(expected, abs=1e-5)
    frame = 5.0 / len(expected)
    for place in np.flatnonzero(np.abs(expected - step.threshold) > 1e-4):
        middle = (place + 0.5) * frame
        inside = any(start <= middle <= end for start, end in intervals)
        assert inside == (expected[place] > step.threshold)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(intervals))
    (rows,) = step.process([{"audio": (samples, 16000), "id": "a"}])
    assert rows and all(row["id"].startswith("a-") for row in rows)


def test_model_reads_other_rates_and_checks_labels(tmp_path):
    checkpoint = frame_classifier_checkpoint(tmp_path)
    step = ModelVoiceActivity(checkpoint=checkpoint, threshold=0.0, device="cpu")
    step.setup()
    intervals, _ = step.detect(tone(1.5, rate=24000), 24000)
    assert intervals == [(0.0, pytest.approx(1.5, abs=1e-3))]
    assert step.settings() == ModelVoiceActivity(checkpoint=checkpoint, threshold=0.0, device="cuda").settings()
    with pytest.raises(ValueError, match="labels 0 to 1"):
        ModelVoiceActivity(checkpoint=checkpoint, labels=[2], device="cpu").setup()
