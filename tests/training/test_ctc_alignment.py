"""Forced alignment: recorded values of torchaudio, all paths at tiny size, words of a model."""

import itertools
import pickle
import re

import numpy as np
import pytest
import torch

from dualspeech.torchaudio_guard import torchaudio_or_none
from dualspeech.training.data_steps import ctc_alignment
from dualspeech.training.data_steps.ctc_alignment import (
    AlignWords,
    TokenSpan,
    forced_align,
    merge_tokens,
    word_spans,
)
from dualspeech.training.data_steps.step import Rejection, apply_step
from tests.fixture_checks import load
from tests.training.tiny_speech_models import ctc_checkpoint, wav2vec2_log_probs

_, TENSORS, META = load("forced_align")
BACKENDS = ["torch"] + ["torchaudio"] * (torchaudio_or_none() is not None)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return ctc_checkpoint(tmp_path_factory.mktemp("ctc"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", META["cases"], ids=lambda case: case["name"])
def test_equals_torchaudio(case, backend):
    part = {name: TENSORS[f"{case['name']}.{name}"] for name in ("log_probs", "targets", "path", "scores")}
    path, scores = forced_align(part["log_probs"], part["targets"], case["blank"], backend=backend)
    assert path.dtype == torch.int64
    assert torch.equal(path, part["path"])
    assert torch.equal(scores, part["scores"])
    spans = merge_tokens(path, scores, case["blank"])
    assert [[span.token, span.start, span.end] for span in spans] == case["spans"]
    assert [span.token for span in spans] == part["targets"].tolist()
    for span in spans:
        assert span.score == pytest.approx(float(scores[span.start : span.end].mean()))


def collapsed(path, blank):
    return [token for token, _ in itertools.groupby(path) if token != blank]


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("targets", [[], [1], [1, 1], [1, 3], [3, 1, 1], [1, 3, 1, 3], [3, 3, 3]])
def test_is_the_best_of_all_paths(targets, blank):
    generator = torch.Generator().manual_seed(len(targets))
    for frames in range(max(1, len(targets) + sum(a == b for a, b in itertools.pairwise(targets))), 7):
        log_probs = (2 * torch.randn(frames, 4, generator=generator)).double().log_softmax(-1)
        paths = [path for path in itertools.product(range(4), repeat=frames) if collapsed(path, blank) == targets]
        totals = [sum(float(log_probs[frame, token]) for frame, token in enumerate(path)) for path in paths]
        best = paths[int(np.argmax(totals))]
        path, scores = forced_align(log_probs, targets, blank, backend="torch")
        assert tuple(path.tolist()) == best
        assert float(scores.sum()) == pytest.approx(max(totals))


@pytest.mark.parametrize(
    ("targets", "blank", "message"),
    [
        ([1, 2, 1, 2, 1], 0, "needs 5 frames .* has 4"),
        ([1, 1, 1], 0, "needs 5 frames"),
        ([1, 0], 0, "blank token 0"),
        ([1, 3], 0, "outside 0 to 2"),
        ([-1], 0, "outside 0 to 2"),
        ([1], 3, "`blank` is 3"),
        ([[1]], 0, r"must be \[tokens\]"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_targets(targets, blank, message, backend):
    with pytest.raises(ValueError, match=message):
        forced_align(torch.randn(4, 3).log_softmax(-1), torch.tensor(targets), blank, backend=backend)


def test_wrong_log_probs():
    for wrong in (torch.zeros(2, 3, 4), torch.zeros(0, 3), torch.zeros(4, 3, dtype=torch.long)):
        with pytest.raises(ValueError, match="`log_probs` must be"):
            forced_align(wrong, [1])
    impossible = torch.zeros(4, 3)
    impossible[:, 1] = -torch.inf
    with pytest.raises(ValueError, match="finite probability"):
        forced_align(impossible, [1], backend="torch")


def test_torchaudio_is_taken_where_it_loads(monkeypatch):
    """What does not load is left alone in "auto", and an error where it was asked for."""
    calls = []

    class Functional:
        @staticmethod
        def forced_align(log_probs, targets, blank):
            calls.append((log_probs.shape, targets.tolist(), blank))
            return torch.tensor([[1, 0, 2]], dtype=torch.int32), None

    fake = type("torchaudio", (), {"functional": Functional})
    log_probs = torch.randn(3, 4).log_softmax(-1)
    monkeypatch.setattr(ctc_alignment, "torchaudio_or_none", lambda: fake)
    path, scores = forced_align(log_probs, [1, 2])
    assert path.tolist() == [1, 0, 2] and scores.tolist() == [log_probs[i, t] for i, t in enumerate(path)]
    assert calls == [((1, 3, 4), [[1, 2]], 0)]
    forced_align(log_probs, [1, 2], backend="torch")
    assert len(calls) == 1
    monkeypatch.setattr(ctc_alignment, "torchaudio_or_none", lambda: None)
    forced_align(log_probs, [1, 2])
    with pytest.raises(ValueError, match="'torchaudio', which is not installed"):
        forced_align(log_probs, [1, 2], backend="torchaudio")


def test_word_spans():
    spans = [TokenSpan(1, 2, 3, 0.0), TokenSpan(2, 4, 6, 0.0), TokenSpan(3, 10, 12, 0.0)]
    # words of two, no, no and one token, and one without tokens on each side
    times = word_spans(spans, [0, 2, 0, 0, 1, 0], seconds_per_frame=0.5, duration=8.0)
    assert times == [(0.0, 1.0), (1.0, 3.0), (3.0, 4.0), (4.0, 5.0), (5.0, 6.0), (6.0, 8.0)]
    with pytest.raises(ValueError, match="adds up to 2"):
        word_spans(spans, [2], 0.5, 8.0)


def test_words_of_a_recording(checkpoint):
    step = pickle.loads(pickle.dumps(AlignWords(checkpoint, device="cpu")))
    step.setup()
    seconds = 2.0
    samples = np.random.default_rng(0).normal(0, 0.1, int(seconds * 16000)).astype(np.float32)
    row = {"audio": (samples, 16000), "text": "Red house, 42 no!", "source": "a:1", "metadata": {"b": 1}}
    ((made,),) = step.process([row])
    assert made["text"] == row["text"] and made["source"] == "a:1" and made["metadata"]["b"] == 1
    words = made["words"]
    assert [word["text"] for word in words] == ["Red", "house,", "42", "no!"]
    times = [time for word in words for time in (word["start"], word["end"])]
    assert times == sorted(times) and times[0] >= 0 and times[-1] <= seconds
    assert words[2]["start"] == words[1]["end"] and words[2]["end"] == words[3]["start"]

    # the same by hand: letters in capitals, `|` between words, 0 is the blank
    log_probs, vocabulary = wav2vec2_log_probs(checkpoint, samples)
    targets = [vocabulary[letter] for letter in "RED|HOUSE|NO"]
    path, scores = forced_align(log_probs, targets, backend="torch")
    spans = merge_tokens(path, scores)
    frame = seconds / len(log_probs)
    assert words[0]["start"] == pytest.approx(spans[0].start * frame)
    assert words[0]["end"] == pytest.approx(spans[2].end * frame)
    assert words[3]["end"] == pytest.approx(spans[-1].end * frame)
    letters = [span.score for span, letter in zip(spans, "RED|HOUSE|NO", strict=True) if letter != "|"]
    assert made["metadata"]["alignment_score"] == pytest.approx(np.mean(letters), rel=1e-4)


def test_rejections(checkpoint):
    step = AlignWords(checkpoint, device="cpu", min_score=-1.0, max_seconds=3.0)
    step.setup()
    noise = np.random.default_rng(0).normal(0, 0.1, 64000).astype(np.float32)
    rows = [
        {"audio": (noise[:32000], 16000), "text": "42"},
        {"audio": (noise[:8000], 16000), "text": "red house " * 20},
        {"audio": (noise, 16000), "text": "red"},
        {"audio": (noise[:32000], 16000), "text": "red"},
        {"audio": (noise[:32000], 16000), "text": " "},
        {"audio": (noise[:100], 16000), "text": "red"},
    ]
    reasons = [outcome.reason for outcome in apply_step(step, rows) if isinstance(outcome, Rejection)]
    assert len(reasons) == len(rows)
    expected = ["no token", "needs .* frames", "`max_seconds` is 3.0", "`min_score` is -1.0", "not empty", "too short"]
    for reason, pattern in zip(reasons, expected, strict=True):
        assert re.search(pattern, reason), reason


def test_batches_change_nothing(checkpoint):
    """Padding would change the frames of a model that normalises over time, and is masked in others."""
    draw = np.random.default_rng(1)
    rows = [
        {"audio": (draw.normal(0, 0.1, size).astype(np.float32), 16000), "text": "red house", "id": str(size)}
        for size in (32000, 24000, 40001)
    ]
    for path in (checkpoint, ctc_checkpoint(checkpoint + "-masked", masked=True)):
        step = AlignWords(path, device="cpu")
        step.setup()
        together = step.process(rows)
        for row, (made,) in zip(rows, together, strict=True):
            ((alone,),) = step.process([row])
            assert made["words"] == alone["words"]
            assert made["metadata"]["alignment_score"] == pytest.approx(alone["metadata"]["alignment_score"], abs=1e-4)


def test_settings_name_what_decides():
    step = AlignWords("a/b", device="cuda", batch_size=64)
    assert step.settings() == AlignWords("a/b").settings()
    assert step.settings()["checkpoint"] == "a/b" and step.settings()["step"] == "align_words"
