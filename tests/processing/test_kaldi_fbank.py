import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor

from dualspeech.modeling.audio_features import kaldi_fbank
from dualspeech.processing.feature_extraction_kaldi_fbank import KaldiFbankFeatureExtractor
from tests.fixture_checks import check, load


def test_recorded_batch():
    _, tensors, meta = load("kaldi_fbank")
    cases = [str(i) for i in range(5)]
    waveforms = [tensors[f"waveform.{case}"].numpy() for case in cases]
    batch = KaldiFbankFeatureExtractor()(waveforms, sampling_rate=16000, return_tensors="pt")
    assert batch.attention_mask.sum(1).tolist() == [int(tensors[f"frames.{case}"]) for case in cases]
    for case, features, mask in zip(cases, batch.input_features, batch.attention_mask.bool(), strict=True):
        assert not features[~mask].any()
        step = 3 if mask.sum() > 60 else 1
        check(features[mask][::step], f"centred.{case}", tensors, meta)


@pytest.mark.parametrize("form", ["array", "tensor", "list", "rows", "two_dimensional", "float64"])
def test_forms_of_input(form):
    waveform = np.random.default_rng(0).standard_normal(1000).astype(np.float32) * 0.1
    inputs = {
        "array": waveform,
        "tensor": torch.from_numpy(waveform),
        "list": waveform.tolist(),
        "rows": [waveform.tolist()],
        "two_dimensional": waveform[None],
        "float64": waveform.astype(np.float64),
    }[form]
    features = KaldiFbankFeatureExtractor()(inputs, sampling_rate=16000, return_tensors="np")["input_features"]
    assert features.shape == (1, 4, 80) and features.dtype == np.float32
    expected = kaldi_fbank(torch.from_numpy(waveform))
    np.testing.assert_allclose(features[0], (expected - expected.mean(0)).numpy(), atol=1e-5)


def test_padding_and_truncation():
    extractor = KaldiFbankFeatureExtractor(feature_size=12, sampling_rate=8000, padding_value=-1.0)
    waveforms = [torch.randn(800), torch.randn(1600)]
    batch = extractor(waveforms, sampling_rate=8000, padding="max_length", max_length=30, return_tensors="pt")
    assert batch.input_features.shape == (2, 30, 12) and (batch.input_features[0, 8:] == -1).all()
    assert batch.attention_mask.sum(1).tolist() == [8, 18]
    cut = extractor(waveforms, 8000, max_length=5, truncation=True, return_tensors="pt")
    assert torch.equal(cut.input_features, batch.input_features[:, :5])
    assert extractor(waveforms, 8000, pad_to_multiple_of=10, return_tensors="pt").input_features.shape[1] == 20
    assert "attention_mask" not in extractor(waveforms, 8000, return_attention_mask=False)


def test_save_and_load(tmp_path):
    KaldiFbankFeatureExtractor(feature_size=40, padding_value=0.5).save_pretrained(tmp_path)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert isinstance(extractor, KaldiFbankFeatureExtractor)
    assert (extractor.feature_size, extractor.padding_value, extractor.sampling_rate) == (40, 0.5, 16000)


@pytest.mark.parametrize(
    ("audio", "rate", "message"),
    [
        (np.zeros(800, dtype=np.float32), 24000, "be 16000 Hz, got 24000"),
        (np.zeros(800, dtype=np.float32), None, "be 16000 Hz, got None"),
        (np.zeros(399, dtype=np.float32), 16000, "399 samples"),
        ([], 16000, "raw_speech is empty"),
        (np.zeros((800, 2), dtype=np.float32), 16000, "2 samples"),
        ([np.zeros((2, 800), dtype=np.float32)], 16000, "must be mono"),
        (np.zeros((1, 2, 800), dtype=np.float32), 16000, "must be mono"),
        (np.zeros(800, dtype=np.int16), 16000, "must be floating point"),
        ([np.zeros(800), np.full(800, np.nan)], 16000, r"raw_speech\[1\] has NaN"),
        (np.full(800, np.inf), 16000, "infinite"),
    ],
)
def test_refused_inputs(audio, rate, message):
    with pytest.raises(ValueError, match=message):
        KaldiFbankFeatureExtractor()(audio, sampling_rate=rate)
