"""Batches of samples at the rates of the semantic tokenizer and of the codec."""

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoFeatureExtractor

from dualspeech import DualSpeechFeatureExtractor
from dualspeech.processing.audio import resample_audio
from tests.tiny import tone


def test_batches_at_both_rates(tmp_path):
    extractor = DualSpeechFeatureExtractor()
    soundfile.write(tmp_path / "a.wav", tone(0.2, 24000), 24000, subtype="FLOAT")
    recordings = [tmp_path / "a.wav", (tone(0.5, 24000), 24000)]
    batch = extractor(recordings, return_codec_values=True, return_tensors="pt")
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "input_values": (2, 8000),
        "num_samples": (2,),
        "codec_values": (2, 12000),
        "num_codec_samples": (2,),
    }
    assert batch["input_values"].dtype == batch["codec_values"].dtype == torch.float32
    assert batch["num_samples"].tolist() == [3200, 8000] and batch["num_codec_samples"].tolist() == [4800, 12000]
    np.testing.assert_array_equal(batch["codec_values"][0, :4800], tone(0.2, 24000))
    np.testing.assert_array_equal(batch["input_values"][0, :3200], resample_audio(tone(0.2, 24000), 24000, 16000))
    assert not batch["input_values"][0, 3200:].any() and not batch["codec_values"][0, 4800:].any()


def test_what_is_returned_when_not_asked_for_more():
    extractor = DualSpeechFeatureExtractor()
    assert set(extractor((tone(0.2), 16000))) == set(extractor.model_input_names)
    codec_only = extractor((tone(0.2, 24000), 24000), return_input_values=False, return_codec_values=True)
    assert set(codec_only) == {"codec_values", "num_codec_samples"}
    assert isinstance(codec_only["codec_values"], np.ndarray)
    padded = extractor((tone(0.2), 16000), pad_to_multiple_of=1000)
    assert padded["input_values"].shape == (1, 4000) and padded["num_samples"].tolist() == [3200]
    assert (
        extractor(tone(0.2), sampling_rate=16000, padding="max_length", max_length=5000)["input_values"].shape[1]
        == 5000
    )


@pytest.mark.parametrize(
    ("rate", "codec", "passes"),
    [(16000, False, True), (24000, False, True), (24000, True, True), (16000, True, False), (48000, False, False)],
)
def test_only_the_way_down_from_the_codec_rate_needs_no_flag(rate, codec, passes):
    extractor = DualSpeechFeatureExtractor()
    recording = (tone(0.2, rate), rate)
    if passes:
        extractor(recording, return_codec_values=codec)
    else:
        needed = 24000 if codec else 16000
        with pytest.raises(ValueError, match=f"of {rate} Hz; accepted are .*{needed}.* Hz here. Pass `resample=True`"):
            extractor(recording, return_codec_values=codec)
    batch = extractor(recording, return_codec_values=True, resample=True)
    assert batch["num_samples"].tolist() == [3200] and batch["num_codec_samples"].tolist() == [4800]


def test_other_rates():
    extractor = DualSpeechFeatureExtractor(sampling_rate=8000, codec_sampling_rate=4000)
    with pytest.raises(ValueError, match="of 4000 Hz; accepted are 8000 Hz"):
        extractor((tone(0.2, 4000), 4000))
    batch = extractor((tone(0.2, 4000), 4000), return_codec_values=True, resample=True)
    assert batch["num_samples"].tolist() == [1600] and batch["num_codec_samples"].tolist() == [800]


@pytest.mark.parametrize(
    ("recording", "message"),
    [
        ((tone(0.05), 16000), "is 0.050 s long; accepted are 0.1 s to 30.0 s"),
        ((tone(30.01), 16000), "is 30.010 s long; accepted are 0.1 s to 30.0 s"),
        (tone(0.2), "`sampling_rate` is unknown"),
        ((np.full(3200, np.nan), 16000), "NaN or infinite"),
        ((np.zeros((2, 3200)), 16000), "accepted is mono"),
        ("missing.wav", "does not exist"),
        ([], "`raw_speech` is an empty list"),
        ([(tone(0.2), 16000), (np.zeros(0), 16000)], "is empty"),
    ],
)
def test_bad_recordings(recording, message):
    with pytest.raises(ValueError, match=message):
        DualSpeechFeatureExtractor()(recording)


def test_nothing_is_cut():
    DualSpeechFeatureExtractor()((tone(30.0), 16000))
    with pytest.raises(ValueError, match="`truncation` is not supported"):
        DualSpeechFeatureExtractor()((tone(0.2), 16000), truncation=True, max_length=100)
    with pytest.raises(ValueError, match=r"must be 0 < min <= max, got 2.0 and 1.0"):
        DualSpeechFeatureExtractor(min_seconds=2.0, max_seconds=1.0)


def test_save_and_load(tmp_path):
    extractor = DualSpeechFeatureExtractor(codec_sampling_rate=44100, min_seconds=0.5, max_seconds=12.0)
    extractor.save_pretrained(tmp_path)
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(loaded) is DualSpeechFeatureExtractor and loaded.to_dict() == extractor.to_dict()


def test_errors_name_the_recording(tmp_path):
    path = str(tmp_path / "high.wav")
    soundfile.write(path, tone(0.5, 44100), 44100)
    with pytest.raises(ValueError, match=r"high.wav' \(recording 1 of 2\) has a sampling rate of 44100 Hz"):
        DualSpeechFeatureExtractor()([(tone(0.2), 16000), path])
    with pytest.raises(ValueError, match=r"`audio` \(recording 0 of 2\) is 0.050 s long"):
        DualSpeechFeatureExtractor()([(tone(0.05), 16000), path])
