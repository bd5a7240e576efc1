"""Speech that is not understood is rejected, with the number."""

import pickle

import numpy as np
import pytest

from dualspeech.training.data_steps import transcript_filter
from dualspeech.training.data_steps.speech_recognition import SpeechRecognizer
from dualspeech.training.data_steps.step import Rejection, apply_step
from dualspeech.training.data_steps.transcript_filter import FilterByTranscript, transcript_error
from tests.training.tiny_speech_models import ctc_checkpoint


class Heard(SpeechRecognizer):
    """Hears the text whose number is the level of the recording."""

    sampling_rate = 1000

    def __init__(self, *texts):
        self.texts = texts

    def transcribe(self, recordings):
        return [self.texts[round(float(recording[0]) * 100)] for recording in recordings]


def spoken(number):
    return (np.full(100, number / 100, np.float32), 1000)


def judged(monkeypatch, pairs, **kwargs):
    """The outcomes for pairs of text and transcript."""
    recognizer = Heard(*(heard for _, heard in pairs))
    monkeypatch.setattr(transcript_filter, "load_recognizer", lambda *arguments: recognizer)
    step = FilterByTranscript("any", **kwargs)
    step.setup()
    return apply_step(step, [{"text": text, "audio": spoken(i), "id": str(i)} for i, (text, _) in enumerate(pairs)])


def test_error_rates():
    assert transcript_error("One red house!", "one red house") == ("WER", 0.0)
    assert transcript_error("a b c d e", "a b c d") == ("WER", pytest.approx(0.2))
    assert transcript_error("It's twenty-one.", "it is 21") == ("WER", 0.0)
    assert transcript_error("a b", "") == ("WER", 1.0)
    assert transcript_error("a", "a b c") == ("WER", 2.0)
    assert transcript_error("今天天气很好。", "今天 天汽很好") == ("CER", pytest.approx(1 / 6))
    assert transcript_error("今天天气", "今天天气", language="en")[0] == "WER"
    said, heard = "He said (very loudly) that it works", "he said very loudly that it works"
    assert transcript_error(said, heard) == transcript_error(said, heard, "de") == ("WER", 0.0)
    with pytest.raises(ValueError, match="no word"):
        transcript_error("...", "a")


def test_threshold(monkeypatch):
    pairs = [
        ("a b c d e", "A B C D E."),
        ("a b c d e f", "a b c d e"),
        ("a b c d e", "a b c d"),
        ("a b c d e", "x y z"),
        ("!", "a"),
        ("今天天气很好", "今天天汽很好"),
        ("今天天气", "今天天汽"),
    ]
    outcomes = judged(monkeypatch, pairs)
    kept = [isinstance(outcome, list) for outcome in outcomes]
    assert kept == [True, True, False, False, False, True, False]
    assert outcomes[0][0]["metadata"] == {"audio_wer": 0.0} and outcomes[0][0]["id"] == "0"
    assert outcomes[1][0]["metadata"]["audio_wer"] == pytest.approx(1 / 6)
    assert outcomes[5][0]["metadata"]["audio_cer"] == pytest.approx(1 / 6)
    # exactly 0.2 is rejected, as in the paper
    assert outcomes[2] == Rejection("WER 0.200 of `audio`; `threshold` is 0.2; 'a b c d'")
    assert "WER 1.000" in outcomes[3].reason and "CER 0.250" in outcomes[6].reason
    assert isinstance(judged(monkeypatch, pairs, threshold=0.3)[2], list)


def test_other_names_and_settings(monkeypatch):
    monkeypatch.setattr(transcript_filter, "load_recognizer", lambda *arguments: Heard("four"))
    step = FilterByTranscript("any", text_key="answer", audio_key="answer_audio")
    step.setup()
    row = {"answer": "Four.", "answer_audio": spoken(0), "metadata": {"a": 1}}
    assert step.process([row]) == [[{**row, "metadata": {"a": 1, "answer_audio_wer": 0.0}}]]
    with pytest.raises(ValueError, match="`threshold`"):
        FilterByTranscript("any", threshold=0.0)


def test_model(tmp_path):
    step = pickle.loads(pickle.dumps(FilterByTranscript(ctc_checkpoint(tmp_path), device="cpu")))
    step.setup()
    noise = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    (rejected,) = apply_step(step, [{"text": "one red house", "audio": (noise, 16000)}])
    heard = step._recognizer.transcribe([noise])[0]
    assert "`threshold` is 0.2" in rejected.reason and repr(heard)[:200] in rejected.reason
    (kept,) = apply_step(step, [{"text": heard, "audio": (noise, 16000)}])
    assert kept[0]["metadata"]["audio_wer"] == 0.0
