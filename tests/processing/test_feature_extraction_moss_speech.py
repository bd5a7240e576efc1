import json

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoFeatureExtractor, WhisperFeatureExtractor

from dualspeech import MossSpeechFeatureExtractor
from tests.fixture_checks import check, load
from tests.modeling.whisper_vq_cases import recorded_model, recording, tiny_model
from tests.tiny import tone


@pytest.mark.parametrize("number", range(5))
def test_recorded(number):
    _, tensors, meta = load("whisper_features")
    batch = MossSpeechFeatureExtractor()(tensors[f"waveform.{number}"], sampling_rate=16000, return_tensors="pt")
    if f"log_mel.{number}" in tensors:
        check(batch["input_features"][0], f"log_mel.{number}", tensors, meta)
    check(batch["attention_mask"][0], f"frame_mask.{number}", tensors, meta)
    assert int(batch["attention_mask"][0][::2][::4].sum()) == int(tensors[f"code_count.{number}"])


def test_recorded_batch():
    _, tensors, meta = load("whisper_features")
    waveforms = [tensors[f"waveform.{number}"] for number in range(3)]
    extractor = MossSpeechFeatureExtractor()
    batch = extractor(waveforms, sampling_rate=16000, return_tensors="pt")
    check(batch["attention_mask"], "joint_frame_mask", tensors, meta)
    for waveform, row in zip(waveforms, batch["input_features"], strict=True):
        alone = extractor(waveform, sampling_rate=16000, return_tensors="pt")["input_features"][0]
        assert torch.equal(row[:, : alone.shape[1]], alone)
        # in the release the last frames depend on the batch: recorded values of the joint batch
    counts = [-(-len(waveform) // 160) for waveform in waveforms]
    last = [row[:, max(0, n - 3) : n] for row, n in zip(batch["input_features"], counts, strict=True)]
    error = [(mine - joint).abs().max() for mine, joint in zip(last, tensors["joint_last_frames"], strict=True)]
    assert error[0] > 0.01 and error[1] < 1e-4


def test_recorded_codes():
    model, tensors, meta = recorded_model()
    names = sorted(name for name in tensors if name.startswith("waveform."))
    batch = MossSpeechFeatureExtractor()(
        [tensors[name] for name in names], sampling_rate=16000, return_tensors="pt", padding="max_length"
    )
    assert batch["input_features"].shape[1:] == (128, 3000)
    output = model.encode(batch["input_features"], batch["attention_mask"], batch["num_pieces"])
    for number, (codes, mask) in enumerate(zip(output.codes, output.codes_mask, strict=True)):
        check(codes[mask], f"waveform_codes.{number}", tensors, meta)


@pytest.mark.parametrize(("bins", "samples"), [(128, 480000), (128, 23040), (80, 12800), (16, 1280)])
def test_equals_whisper(bins, samples):
    waveform = recording(samples).numpy()
    whisper = WhisperFeatureExtractor(feature_size=bins)
    expected = whisper(
        waveform,
        sampling_rate=16000,
        padding="longest",
        pad_to_multiple_of=1280,
        return_attention_mask=True,
        return_tensors="pt",
    )
    actual = MossSpeechFeatureExtractor(feature_size=bins)(waveform, sampling_rate=16000, return_tensors="pt")
    # the clamp is at the same place in both, and single precision far below the maximum is coarse
    torch.testing.assert_close(actual["input_features"], expected["input_features"], atol=1e-3, rtol=0)
    close = (actual["input_features"] - expected["input_features"]).abs() < 2e-5
    assert close.float().mean() > 0.999
    assert torch.equal(actual["attention_mask"], expected["attention_mask"].long())


def test_pieces():
    extractor = MossSpeechFeatureExtractor(feature_size=16, chunk_length=2)
    lengths = [70001, 1, 32000, 32001]
    waveforms = [recording(length, seed).numpy() for seed, length in enumerate(lengths)]
    batch = extractor(waveforms, sampling_rate=16000, return_tensors="np")
    assert batch["num_pieces"].tolist() == [3, 1, 1, 2] and batch["num_samples"].tolist() == lengths
    assert batch["input_features"].shape == (7, 16, 200) and batch["input_features"].dtype == np.float32
    assert batch["attention_mask"].sum(1).tolist() == [200, 200, 38, 1, 200, 200, 1]
    model = tiny_model()
    tensors = {name: torch.from_numpy(batch[name]) for name in ("input_features", "attention_mask", "num_pieces")}
    output = model.encode(**tensors)
    for waveform, codes, mask in zip(waveforms, output.codes, output.codes_mask, strict=True):
        expected = model.encode_waveform(torch.from_numpy(waveform)[None]).codes[0]
        assert torch.equal(codes[mask], expected)


def test_padding():
    extractor = MossSpeechFeatureExtractor(feature_size=16, chunk_length=2, padding_value=-1.0)
    waveforms = [recording(1000).numpy(), recording(3000).numpy()]

    def shapes(**kwargs):
        batch = extractor(waveforms, sampling_rate=16000, **kwargs)
        assert [len(row) for row in batch["attention_mask"]] == [row.shape[1] for row in batch["input_features"]]
        assert (np.asarray(batch["input_features"][0])[:, 8:] == -1).all()
        return [row.shape for row in batch["input_features"]]

    assert shapes() == [(16, 24)] * 2
    assert shapes(padding="max_length") == [(16, 200)] * 2
    assert shapes(padding="max_length", max_length=48) == [(16, 48)] * 2
    assert shapes(pad_to_multiple_of=32) == [(16, 32)] * 2
    assert shapes(padding=False) == [(16, 8), (16, 24)]


def test_saved_and_loaded(tmp_path):
    extractor = MossSpeechFeatureExtractor(chunk_length=2, feature_size=80)
    extractor.save_pretrained(tmp_path)
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert isinstance(loaded, MossSpeechFeatureExtractor) and loaded.to_dict() == extractor.to_dict()
    assert (loaded.max_samples, loaded.feature_size) == (32000, 80)


def test_released_preprocessor_file(tmp_path):
    WhisperFeatureExtractor(feature_size=128).save_pretrained(tmp_path)
    released = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert released["n_samples"] == 480000
    loaded = MossSpeechFeatureExtractor.from_pretrained(tmp_path)
    assert loaded.max_samples == 480000 and loaded.feature_size == 128


def test_forms_of_recordings(tmp_path):
    extractor = MossSpeechFeatureExtractor()
    wave = tone(0.5)
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="FLOAT")
    expected = extractor(wave, sampling_rate=16000)["input_features"]
    forms = [tmp_path / "a.wav", (wave, 16000), {"array": wave, "sampling_rate": 16000}, torch.tensor(wave)]
    for form in forms:
        assert np.array_equal(extractor(form, sampling_rate=16000)["input_features"], expected)
    assert extractor(forms, sampling_rate=16000)["input_features"].shape == (4, 128, 56)
    assert extractor(wave.tolist(), sampling_rate=16000)["input_features"].shape == (1, 128, 56)
    resampled = extractor((tone(0.5, 24000), 24000), resample=True)
    assert resampled["num_samples"].tolist() == [8000]


@pytest.mark.parametrize(
    ("audio", "kwargs", "message"),
    [
        ((tone(0.1, 24000), 24000), {}, "sampling rate of 24000 Hz; accepted is 16000 Hz.*resample=True"),
        ([(tone(0.1), 16000), (tone(0.1, 8000), 8000)], {}, r"\(recording 1 of 2\) has a sampling rate of 8000 Hz"),
        (tone(0.1), {}, "`sampling_rate` is unknown"),
        (np.zeros((2, 100), np.float32), {"sampling_rate": 16000}, "accepted is mono"),
        (np.zeros(0, np.float32), {"sampling_rate": 16000}, "empty"),
        (np.full(9, np.nan), {"sampling_rate": 16000}, "NaN or infinite"),
        ([], {}, "`raw_speech` is an empty list"),
        (tone(0.1), {"sampling_rate": 16000, "truncation": True}, "`truncation` is not supported"),
    ],
)
def test_refused_recordings(audio, kwargs, message):
    with pytest.raises(ValueError, match=message):
        MossSpeechFeatureExtractor()(audio, **kwargs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampling_rate": 24000}, "`sampling_rate` must be 16000, got 24000"),
        ({"hop_length": 200}, "`hop_length` must be 160"),
        ({"n_fft": 512}, "`n_fft` must be 400"),
        ({"dither": 0.1}, "`dither` must be 0.0"),
        ({"padding_side": "left"}, "`padding_side` must be 'right', got 'left'"),
        ({"chunk_length": 1}, "`chunk_length` must be positive seconds that hold a whole number of codes"),
        ({"chunk_length": 0}, "`chunk_length` must be positive"),
        ({"samples_per_code": 1000}, "`samples_per_code` must be a positive multiple of 160"),
    ],
)
def test_refused_settings(fields, message):
    with pytest.raises(ValueError, match=message):
        MossSpeechFeatureExtractor(**fields)
