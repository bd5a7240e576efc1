"""Reading, checking, resampling and writing recordings."""

import io

import numpy as np
import pytest
import soundfile
import torch

from dualspeech.modeling.audio_features import resample
from dualspeech.processing.audio import load_audio, resample_audio, save_audio
from tests.tiny import tone

RATE = 16000


@pytest.fixture
def wav(tmp_path):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(0.2), RATE, subtype="FLOAT")
    return path


def test_every_way_to_give_a_recording(wav):
    class Decoder:
        def get_all_samples(self):
            return type("Samples", (), {"data": torch.from_numpy(tone(0.2))[None], "sample_rate": RATE})

    samples = tone(0.2)
    ways = [
        wav,
        str(wav),
        wav.read_bytes(),
        {"path": str(wav), "bytes": None},
        {"path": None, "bytes": wav.read_bytes()},
        {"array": samples, "sampling_rate": RATE, "path": "no longer there.wav"},
        (samples, RATE),
        (samples[None], RATE),
        (torch.from_numpy(samples), RATE),
        (torch.from_numpy(samples).requires_grad_(), RATE),
        (samples, float(RATE)),
        (samples, np.int32(RATE)),
        (samples.astype(np.float64), RATE),
        (samples.tolist(), RATE),
        Decoder(),
    ]
    for way in ways:
        array, rate = load_audio(way)
        assert array.dtype == np.float32 and rate == RATE
        np.testing.assert_array_equal(array, samples)
    np.testing.assert_array_equal(load_audio(samples, sampling_rate=RATE)[0], samples)
    half = torch.from_numpy(samples).bfloat16()
    np.testing.assert_array_equal(load_audio((half, RATE))[0], half.float().numpy())


def test_a_segment_of_a_file(tmp_path):
    samples = np.random.default_rng(0).uniform(-1, 1, 4800).astype(np.float32)
    path = tmp_path / "long.flac"
    soundfile.write(path, samples, RATE, subtype="PCM_24")
    whole, _ = load_audio(path)
    for start, end, part in (
        (0.1, 0.25, slice(1600, 4000)),
        (None, 0.1, slice(0, 1600)),
        (0.2, None, slice(3200, None)),
    ):
        for place in ({"path": str(path)}, {"path": None, "bytes": path.read_bytes()}):
            array, rate = load_audio({**place, "start": start, "end": end}, RATE)
            assert rate == RATE
            np.testing.assert_array_equal(array, whole[part])
    assert len(load_audio({"path": path, "start": 0.1, "end": 0.2}, 24000, resample=True)[0]) == 2400
    with pytest.raises(ValueError, match=r"but '.*long.flac' has 16000 Hz"):
        load_audio({"path": path, "start": 0.1, "end": 0.2}, 24000)
    inf, nan = float("inf"), float("nan")
    outside = [(0.2, 0.2), (0.2, 0.1), (-0.1, 0.1), (0.2, 0.31), (0.4, None), (None, inf), (nan, None), (0.1, nan)]
    outside += [(0.1, 1e308), (10**400, None), (-inf, 0.1), ("0.1", 0.2), (0.1, [0.2])]
    for start, end in outside:
        with pytest.raises(
            ValueError, match=r"are no segment of '.*long.flac'; accepted is 0 <= start < end <= 0.3 s"
        ):
            load_audio({"path": str(path), "start": start, "end": end})
    with pytest.raises(ValueError, match="`start` and `end` are for 'bytes' and 'path'"):
        load_audio({"array": samples, "sampling_rate": RATE, "start": 0.1})


@pytest.mark.parametrize(("dtype", "zero", "full"), [("int16", 0, 2**15), ("int32", 0, 2**31), ("uint8", 128, 2**7)])
def test_integer_samples_are_scaled_by_their_type(dtype, zero, full):
    pcm = (np.array([0, -0.5, 0.25]) * full + zero).astype(dtype)
    np.testing.assert_allclose(load_audio((pcm, RATE))[0], [0, -0.5, 0.25])


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_U8"])
def test_integer_files(tmp_path, subtype):
    soundfile.write(tmp_path / "a.wav", tone(0.1), RATE, subtype=subtype)
    np.testing.assert_allclose(load_audio(tmp_path / "a.wav")[0], tone(0.1), atol=1e-2 if "8" in subtype else 1e-4)


def test_resampling_only_when_asked(wav):
    with pytest.raises(ValueError, match=r"`sampling_rate` is 24000 Hz, but '.*tone.wav' has 16000 Hz.*resample=True"):
        load_audio(wav, sampling_rate=24000)
    array, rate = load_audio(wav, sampling_rate=24000, resample=True)
    assert rate == 24000 and len(array) == 4800
    np.testing.assert_array_equal(array, resample(torch.from_numpy(tone(0.2)), RATE, 24000).numpy())
    np.testing.assert_array_equal(load_audio(wav, sampling_rate=RATE, resample=True)[0], tone(0.2))
    assert len(resample_audio(tone(0.1, 44100), 44100, RATE)) == 1600


def test_one_channel_of_several(tmp_path):
    stereo = np.stack([tone(0.1), np.zeros(1600, dtype=np.float32)])
    soundfile.write(tmp_path / "stereo.wav", stereo.T, RATE, subtype="FLOAT")
    for source in (tmp_path / "stereo.wav", (stereo, RATE)):
        with pytest.raises(
            ValueError, match=r"has shape \[2, 1600\]; accepted is mono.*`load_audio\(source, channel=0\)`"
        ):
            load_audio(source)
        np.testing.assert_array_equal(load_audio(source, channel=0)[0], stereo[0])
        np.testing.assert_array_equal(load_audio(source, channel=1)[0], stereo[1])
        with pytest.raises(ValueError, match=r"`channel` is 2, but .* has 2 channels"):
            load_audio(source, channel=2)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.wav", "the file 'missing.wav' does not exist"),
        (b"not audio", "the given bytes cannot be read as audio"),
        (tone(0.1), "`sampling_rate` is unknown for the given recording"),
        ({"array": tone(0.1)}, "`sampling_rate` is unknown"),
        ({"samples": 1}, r"mapping with \['samples'\]; accepted are 'array'"),
        ((tone(0.1), 0), "must be a positive whole number of Hz, got 0"),
        ((tone(0.1), 16000.5), "must be a positive whole number of Hz, got 16000.5"),
        ((np.zeros(0), RATE), "the given recording is empty"),
        ((np.array([0.1, np.nan]), RATE), "NaN or infinite samples"),
        ((np.array([0.1, np.inf]), RATE), "NaN or infinite samples"),
        ((np.zeros((2, 2, 5)), RATE), r"shape \[2, 2, 5\]"),
        ((np.zeros(5, dtype=np.int64), RATE), "samples of type int64; accepted are floating point"),
        ((np.zeros(5, dtype=bool), RATE), "samples of type bool"),
        ((np.zeros(5, dtype=complex), RATE), "samples of type complex128"),
    ],
)
def test_bad_recordings(source, message):
    with pytest.raises(ValueError, match=message):
        load_audio(source)


@pytest.mark.parametrize("rate", [float("inf"), float("nan"), -16000, 0, 0.5, True, "16 kHz", 16000j])
def test_bad_rates(rate):
    message = "`sampling_rate` must be a positive whole number of Hz, got"
    for given, wanted in (({"array": tone(0.1), "sampling_rate": rate}, None), ((tone(0.1), RATE), rate)):
        with pytest.raises(ValueError, match=message):
            load_audio(given, sampling_rate=wanted, resample=True)


def test_a_file_that_is_no_audio(tmp_path):
    (tmp_path / "text.wav").write_text("hello")
    with pytest.raises(ValueError, match=r"text.wav' cannot be read as audio"):
        load_audio(tmp_path / "text.wav")
    with pytest.raises(ValueError, match="cannot be read as audio"):
        load_audio(tmp_path)


@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_save_and_read_again(tmp_path, ending):
    save_audio(tmp_path / f"a.{ending}", tone(0.1, 24000), 24000)
    array, rate = load_audio(tmp_path / f"a.{ending}")
    assert rate == 24000
    np.testing.assert_allclose(array, tone(0.1, 24000), atol=2**-15)
    save_audio(tmp_path / "tensor.wav", torch.tensor([[2.0, -2.0]]), 8000)
    np.testing.assert_allclose(load_audio(tmp_path / "tensor.wav")[0], [1, -1], atol=2**-14)
    with pytest.raises(ValueError, match="NaN"):
        save_audio(tmp_path / "bad.wav", np.array([np.nan]), 8000)
    assert not (tmp_path / "bad.wav").exists()
    assert soundfile.info(io.BytesIO((tmp_path / "tensor.wav").read_bytes())).subtype == "PCM_16"
