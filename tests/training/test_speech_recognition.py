"""Transcripts of CTC models, of Whisper, and of DualSpeechLM, against the same by hand."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor

from dualspeech.training.data_steps import speech_recognition
from dualspeech.training.data_steps.speech_recognition import RecognizeSpeech, SpeechRecognizer, transcripts
from dualspeech.training.data_steps.step import Rejection, apply_step
from tests.examples.running import load_example
from tests.training.tiny_speech_models import ctc_checkpoint, wav2vec2_log_probs


def noise(seconds, seed=0, rate=16000):
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate)).astype(np.float32)


def ready(checkpoint, **kwargs):
    step = pickle.loads(pickle.dumps(RecognizeSpeech(checkpoint, device="cpu", **kwargs)))
    step.setup()
    return step


def test_ctc(tmp_path):
    checkpoint = ctc_checkpoint(tmp_path)
    log_probs, vocabulary = wav2vec2_log_probs(checkpoint, noise(1.0))
    names = {token: name for name, token in vocabulary.items()}
    merged = [names[token] for token, _ in itertools.groupby(log_probs.argmax(-1).tolist())]
    expected = "".join(" " if name == "|" else name for name in merged if not name.startswith("<")).strip()
    rows = [{"audio": (noise(1.0), 16000), "source": "a:1"}, {"audio": (noise(1.3, seed=1, rate=24000), 24000)}]
    (first,), (second,) = ready(checkpoint).process(rows)
    assert first["text"] == expected and first["source"] == "a:1" and second["text"]
    with pytest.raises(ValueError, match="does not generate"):
        ready(checkpoint, generation={"num_beams": 2})


def whisper_checkpoint(folder):
    """A random Whisper that sees 2 s of sound."""
    tokenizer = load_example("tiny_moss_speech").tiny_moss_tokenizer()
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(tokenizer),
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            max_source_positions=100,
            max_target_positions=40,
            decoder_start_token_id=1,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            suppress_tokens=None,
            begin_suppress_tokens=None,
            init_std=0.3,
        )
    )
    model.generation_config.update(max_length=12, forced_decoder_ids=None)
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(chunk_length=2), tokenizer).save_pretrained(folder)
    return str(folder)


def test_whisper(tmp_path):
    step = ready(whisper_checkpoint(tmp_path), max_seconds=10.0)
    rows = [{"audio": (noise(1.0), 16000)}, {"audio": (noise(1.5, seed=1), 16000)}]
    outcomes = step.process(rows)
    recognizer = step._recognizer
    for row, (made,) in zip(rows, outcomes, strict=True):
        features = recognizer.processor(audio=row["audio"][0], sampling_rate=16000, return_tensors="pt")
        ids = recognizer.model.generate(features["input_features"])
        text = recognizer.processor.batch_decode(ids, skip_special_tokens=True)[0].strip()
        assert text and made["text"] == text
    # the feature extractor would cut it
    (long,) = apply_step(step, [{"audio": (noise(3.0), 16000)}])
    assert long == Rejection("a recording has 3.0 s; the model takes at most 2.0 s")
    assert step.settings()["generation"] == {}


def test_dualspeech(tmp_path):
    tiny = load_example("tiny_dualspeech")
    tokenizer = tiny.tiny_tokenizer()
    processor = tiny.tiny_processor(tokenizer)
    model = tiny.tiny_model(tokenizer).eval()
    model.generation_config.update(max_new_tokens=30, eos_token_id=list(range(0, len(tokenizer), 5)))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    recordings = [tiny.tone_speech([word, "red"], rate=16000) for word in ("one", "house", "tree")]
    step = ready(str(tmp_path))
    inputs = [processor(task="asr", audio=speech, sampling_rate=16000) for speech in recordings]
    expected = [processor.batch_decode(model.generate(**row, do_sample=False))[0] for row in inputs]
    assert any(result.text.strip() and result.finish_reason == "eos" for result in expected)
    for result, outcome in zip(expected, apply_step(step, [{"audio": (s, 16000)} for s in recordings]), strict=True):
        if result.finish_reason == "length":
            assert "did not end" in outcome.reason
        elif not result.text.strip():
            assert outcome == Rejection("nothing was recognised")
        else:
            assert outcome[0]["text"] == result.text.strip()


class Lengths(SpeechRecognizer):
    """Says how much it hears."""

    sampling_rate = 1000

    def __init__(self):
        self.batches = []

    def transcribe(self, recordings):
        self.batches.append(len(recordings))
        return ["" if not recording.any() else str(len(recording)) for recording in recordings]


def test_long_recordings_are_heard_in_pieces():
    recognizer, speech = Lengths(), noise(10.0, rate=1000)
    speech[3500:3600] = 0  # the place to cut
    rows = [{"audio": (speech, 1000)}, {"audio": (noise(1.0, rate=1000), 1000)}]
    texts = transcripts(recognizer, rows, "audio", max_seconds=5.0, batch_size=2)
    lengths = [int(length) for length in texts[0].split()]
    assert sum(lengths) == 10000 and max(lengths) <= 5050 and 3500 <= lengths[0] <= 3600
    assert texts[1] == "1000" and recognizer.batches == [2, 2][: len(recognizer.batches) - 1] + recognizer.batches[-1:]
    assert sum(recognizer.batches) == len(lengths) + 1


def test_nothing_recognised(monkeypatch):
    monkeypatch.setattr(speech_recognition, "load_recognizer", lambda *arguments: Lengths())
    step = RecognizeSpeech("any", text_key="heard")
    step.setup()
    silence = np.zeros(100, np.float32)
    outcomes = step.process([{"audio": (silence, 1000)}, {"audio": (silence + 1, 1000), "text": "kept"}])
    assert outcomes[0] == Rejection("nothing was recognised")
    assert outcomes[1][0]["heard"] == "100" and outcomes[1][0]["text"] == "kept"


def test_other_checkpoints(tmp_path):
    from transformers import LlamaConfig

    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'llama'; accepted are types of AutoModelForCTC"):
        ready(str(tmp_path))
    with pytest.raises(RuntimeError, match="setup"):
        RecognizeSpeech("any").process([{"audio": (noise(1.0), 16000)}])
