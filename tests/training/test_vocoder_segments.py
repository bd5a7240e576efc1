"""f0 of recordings, and the segments of mel frames, f0 and samples that vocoders are trained on."""

import numpy as np
import pytest
import torch

from dualspeech import HiFTConfig
from dualspeech.modeling.audio_features import vocoder_log_mel
from dualspeech.training.fundamental_frequency import fundamental_frequency, recordings_f0
from dualspeech.training.vocoder_segments import VocoderSegments
from tests.training.vocoder_cases import HOP, RATE, VOCODER, recordings


def glide(seconds=1.5, rate=16000):
    """A gliding tone with overtones, silent noise in its middle; and f0 of every sample."""
    time = np.arange(int(seconds * rate)) / rate
    f0 = 120 + 80 * time
    phase = 2 * np.pi * np.cumsum(f0) / rate
    voiced = np.abs(time - seconds / 2) > 0.2
    audio = 0.1 * sum(np.sin(h * phase) / h for h in range(1, 6)) * voiced
    audio += 0.001 * np.random.default_rng(0).normal(size=len(time))
    return audio.astype(np.float32), np.where(voiced, f0, 0.0)


@pytest.mark.parametrize("hop", [320, 240])
def test_f0_of_a_glide(hop):
    audio, truth = glide()
    found = fundamental_frequency(audio, 16000, hop)
    assert found.dtype == np.float32 and found.shape == (len(audio) // hop,)
    truth = truth[hop // 2 :: hop][: len(found)]  # at the centres of the frames
    assert np.mean((found > 0) == (truth > 0)) > 0.9
    both = (found > 0) & (truth > 0)
    cents = 1200 * np.abs(np.log2(found[both] / truth[both]))
    # half a frame off would be 10 cents
    assert np.median(cents) < 3 and np.quantile(cents, 0.9) < 30
    assert not fundamental_frequency(np.zeros(1000, np.float32), 16000, hop).any()
    assert fundamental_frequency(audio[: hop - 1], 16000, hop).shape == (0,)
    with pytest.raises(ValueError, match="max_frequency"):
        fundamental_frequency(audio, 16000, hop, max_frequency=9000.0)


def test_f0_file(tmp_path, monkeypatch):
    rows, file = recordings(3), tmp_path / "new" / "f0.safetensors"
    first = recordings_f0(rows, RATE, HOP, file=file)
    monkeypatch.setattr("dualspeech.training.fundamental_frequency.fundamental_frequency", None)  # not called again
    again = recordings_f0(rows, RATE, HOP, file=file)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)) and first[0].any()
    for changed in ({"rows": rows[:2]}, {"hop_length": 2 * HOP}, {"max_frequency": 300.0}):
        with pytest.raises(ValueError, match="other recordings or settings"):
            recordings_f0(**{"rows": rows, "sampling_rate": RATE, "hop_length": HOP, "file": file, **changed})
    with pytest.raises(ValueError, match="names"):
        recordings_f0([{"audio": "a.wav"}, *rows[1:]], RATE, HOP, file=file)
    with pytest.raises(ValueError, match=r"file.jsonl:7: .*needs 'audio'"):
        recordings_f0([{"source": "file.jsonl:7"}], RATE, HOP)


def test_segments_are_pieces_of_the_recording():
    """Mel frames are those of the whole recording, as the flow decoder is trained on them, wherever a segment lies."""
    config, draw = HiFTConfig(**VOCODER), np.random.default_rng(0)
    audio = draw.uniform(-0.5, 0.5, 30 * HOP + 17).astype(np.float32)
    f0 = torch.arange(30.0)
    whole = vocoder_log_mel(torch.from_numpy(audio), 10, RATE, 4 * HOP, HOP, 4000.0)
    starts = set()
    data = VocoderSegments([{"audio": audio}], [f0], 8, config, max_frequency=4000.0, seed=1)
    for epoch in range(150):
        data.set_epoch(epoch)
        row = data[0]
        start = int(row["f0"][0])
        starts.add(start)
        assert torch.equal(row["f0"], f0[start : start + 8])
        assert np.array_equal(row["input_values"][0], audio[start * HOP : (start + 8) * HOP])
        assert row["input_values"].shape == (1, 8 * HOP)
        assert torch.allclose(row["mel"], whole[:, start : start + 8], atol=1e-5)
    assert starts == set(range(23))
    first = data[0]["f0"]
    data.set_epoch(0)
    data.set_epoch(149)
    assert torch.equal(data[0]["f0"], first)
    fixed = VocoderSegments([{"audio": audio}], [f0], 8, config, max_frequency=4000.0, training=False)
    assert fixed[0]["f0"][0] == 11


def test_short_recordings_are_followed_by_silence():
    config = HiFTConfig(**VOCODER)
    audio = np.full(5 * HOP + 3, 0.25, np.float32)
    row = VocoderSegments([{"audio": audio}], [torch.full((5,), 100.0)], 8, config, max_frequency=4000.0)[0]
    assert row["f0"].tolist() == [100.0] * 5 + [0.0] * 3
    assert row["input_values"][0].count_nonzero() == 5 * HOP + 3
    assert row["mel"].shape == (10, 8) and torch.allclose(row["mel"][:, -1], torch.tensor(1e-5).log(), atol=0.5)


def test_what_does_not_fit_is_refused():
    config, rows = HiFTConfig(**VOCODER), recordings(2)
    f0 = recordings_f0(rows, RATE, HOP)
    with pytest.raises(ValueError, match="one entry per row, 2"):
        VocoderSegments(rows, f0[:1], 8, config)
    with pytest.raises(ValueError, match="num_frames"):
        VocoderSegments(rows, f0, 1, config)
    with pytest.raises(ValueError, match=r"row 1: the recording has \d+ frames, its `f0` 3"):
        VocoderSegments(rows, [f0[0], f0[1][:3]], 8, config)[1]
    with pytest.raises(ValueError, match="got none"):
        VocoderSegments([], [], 8, config)
