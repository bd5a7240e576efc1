import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from dualspeech.modeling.audio_features import (
    _kaldi_filters,
    _slaney_filters,
    centred_kaldi_fbank,
    kaldi_fbank,
    log_mel_spectrogram,
    num_kaldi_frames,
    resample,
    vocoder_log_mel,
)
from tests.fixture_checks import check, load


def naive_resample(signal, orig, new, width=6, rolloff=0.99):
    """One output sample at a time: sum over all inputs of the windowed sinc at their distance in time."""
    cutoff = min(orig, new) * rolloff
    output = np.zeros(-(-len(signal) * new // orig))
    for n in range(len(output)):
        t = ((np.arange(len(signal)) / orig) - n / new) * cutoff
        inside = np.abs(t) < width
        output[n] = (signal * np.sinc(t) * np.cos(np.pi * t / 2 / width) ** 2 * inside).sum() * cutoff / orig
    return output


@pytest.mark.parametrize("case", range(5))
def test_resample_recorded(case):
    _, tensors, meta = load("resample")
    check(resample(tensors[f"waveform.{case}"], *meta["config"]["rates"][case]), f"resampled.{case}", tensors, meta)


@pytest.mark.parametrize(("orig", "new", "samples"), [(8000, 16000, 41), (16000, 17600, 303), (7, 5, 1), (3, 11, 29)])
def test_resample_equals_the_sum(orig, new, samples):
    signal = torch.randn(samples, dtype=torch.float64)
    torch.testing.assert_close(resample(signal, orig, new).numpy(), naive_resample(signal.numpy(), orig, new))


def test_resample_shapes_and_gradient():
    signal = torch.randn(2, 3, 250, requires_grad=True)
    output = resample(signal, 24000, 16000)
    assert output.shape == (2, 3, 167)
    torch.testing.assert_close(output[1, 2], resample(signal[1, 2], 24000, 16000))
    output.square().sum().backward()
    assert signal.grad.abs().sum() > 0
    assert resample(signal, 16000, 16000) is signal
    assert resample(torch.zeros(2, 0), 3, 2).shape == (2, 0)


@pytest.mark.parametrize("rates", [(0, 16000), (16000, -1), (16000.5, 8000)])
def test_resample_refuses_rates(rates):
    with pytest.raises(ValueError, match="rate must be a positive whole number"):
        resample(torch.zeros(10), *rates)


@pytest.mark.parametrize("case", ["0", "1", "2", "3", "4", "tone", "tone_scaled"])
def test_kaldi_fbank_recorded(case):
    _, tensors, meta = load("kaldi_fbank")
    waveform = tensors["tone"] * 32768 if case == "tone_scaled" else tensors.get(f"waveform.{case}", tensors["tone"])
    features = kaldi_fbank(waveform)
    assert len(features) == tensors[f"frames.{case}"] == num_kaldi_frames(len(waveform))
    step = 3 if len(features) > 60 else 1  # longer results are stored every third frame
    features = features[::step]
    # Far below the loudest bin of a frame stands the rounding of a float32 FFT, which differs between processors.
    expected = tensors[f"fbank.{case}"]
    is_rounding = expected < expected.amax(dim=-1, keepdim=True) - 23
    assert bool(((features - expected).abs()[is_rounding] < 0.1).all())
    check(torch.where(is_rounding, expected, features), f"fbank.{case}", tensors, meta)
    if f"centred.{case}" in tensors:
        check(centred_kaldi_fbank(waveform[None])[0][0][::step], f"centred.{case}", tensors, meta)


@pytest.mark.parametrize(("bins", "n_fft", "rate"), [(80, 512, 16000), (40, 256, 8000)])
def test_kaldi_filters_equal_transformers(bins, n_fft, rate):
    expected = mel_filter_bank(
        n_fft // 2 + 1, bins, 20, rate / 2, rate, norm=None, mel_scale="kaldi", triangularize_in_mel_space=True
    )
    np.testing.assert_allclose(_kaldi_filters(bins, n_fft, rate), expected, atol=1e-10)


def test_kaldi_fbank_batch_equals_singles():
    lengths = torch.tensor([4000, 399, 400, 2345])
    batch = torch.randn(4, 4000) * 0.1
    features, mask = centred_kaldi_fbank(batch, lengths)
    assert mask.sum(1).tolist() == num_kaldi_frames(lengths).tolist() == [23, 0, 1, 13]
    assert not features[~mask].any()
    for row, length, row_mask, waveform in zip(features, lengths, mask, batch, strict=True):
        if length >= 400:
            torch.testing.assert_close(row[row_mask], centred_kaldi_fbank(waveform[None, :length])[0][0])
    assert kaldi_fbank(torch.zeros(2, 399)).shape == (2, 0, 80)


@pytest.mark.parametrize("bins", [80, 128, 64])
def test_slaney_filters_equal_transformers(bins):
    expected = mel_filter_bank(201, bins, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(_slaney_filters(bins), expected, atol=1e-12)


@pytest.mark.parametrize(("bins", "seconds"), [(80, 30), (128, 2)])
def test_log_mel_equals_whisper(bins, seconds):
    lengths = [seconds * 16000, seconds * 16000 - 777, 1234]
    waveforms = [torch.randn(n) * 0.3 for n in lengths]
    batch = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    extractor = WhisperFeatureExtractor(feature_size=bins, chunk_length=seconds)
    expected = extractor([w.numpy() for w in waveforms], sampling_rate=16000, return_tensors="pt").input_features
    actual = log_mel_spectrogram(batch, bins, seconds * 100)
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(log_mel_spectrogram(waveforms[2], bins, seconds * 100), actual[2])


def test_log_mel_refuses_longer_waveforms():
    with pytest.raises(ValueError, match="32001 samples, at most 32000"):
        log_mel_spectrogram(torch.zeros(1, 32001), n_frames=200)


@pytest.mark.parametrize("function", [kaldi_fbank, log_mel_spectrogram, lambda x: resample(x, 3, 2)])
def test_precision_and_gradient(function):
    waveform = torch.randn(1, 1600) * 0.1
    expected = function(waveform)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(function(waveform), expected)
    assert function(waveform.bfloat16()).dtype == torch.float32
    assert function(waveform.double()).dtype == torch.float64
    with torch.inference_mode():
        function(waveform)
    waveform.requires_grad_()
    function(waveform).sum().backward()
    assert waveform.grad.isfinite().all() and waveform.grad.any()
    with pytest.raises(ValueError, match="floating point"):
        function(torch.zeros(1, 1600, dtype=torch.int16))


@pytest.mark.parametrize("case", [".0", ".1", ".2", ".3", "_tone"])
def test_vocoder_mel_recorded(case):
    _, tensors, meta = load("moss_prompt_mel")
    sizes = meta["config"]
    waveform = tensors["tone" if case == "_tone" else f"waveform{case}"]
    mel = vocoder_log_mel(
        waveform, sizes["num_mels"], sizes["sampling_rate"], sizes["n_fft"], sizes["hop_size"], sizes["fmax"]
    )
    check(mel.T, f"mel{case}", tensors, meta)


def naive_vocoder_mel(signal, bins, rate, n_fft, hop, top):
    """One frame at a time, in double precision, with the filters of transformers."""
    margin = (n_fft - hop) // 2
    padded = np.pad(signal, margin, mode="reflect")
    filters = mel_filter_bank(n_fft // 2 + 1, bins, 0.0, top, rate, norm="slaney", mel_scale="slaney")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    frames = []
    for start in range(0, len(padded) - n_fft + 1, hop):
        spectrum = np.fft.rfft(padded[start : start + n_fft] * window)
        frames.append(np.log(np.maximum(np.sqrt(np.abs(spectrum) ** 2 + 1e-9) @ filters, 1e-5)))
    return np.stack(frames, axis=1)


@pytest.mark.parametrize(
    ("bins", "rate", "n_fft", "hop", "top", "samples"),
    [(80, 24000, 1920, 480, 8000.0, 4321), (24, 8000, 256, 64, 4000.0, 97), (10, 16000, 512, 100, 900.0, 1000)],
)
def test_vocoder_mel_equals_the_frames(bins, rate, n_fft, hop, top, samples):
    signal = torch.randn(2, samples, dtype=torch.float64) * 0.1
    signal[1, samples // 2 :] = 0
    mel = vocoder_log_mel(signal, bins, rate, n_fft, hop, top)
    assert mel.shape == (2, bins, samples // hop)
    for row in range(2):
        expected = naive_vocoder_mel(signal[row].numpy(), bins, rate, n_fft, hop, top)
        np.testing.assert_allclose(mel[row].numpy(), expected, rtol=1e-9, atol=1e-9)


def test_vocoder_mel_gradient_and_refusals():
    signal = torch.zeros(2, 960, requires_grad=True)
    vocoder_log_mel(signal + 1e-3).sum().backward()
    assert signal.grad.isfinite().all()
    with pytest.raises(ValueError, match=r"720 samples; .* needs at least 721"):
        vocoder_log_mel(torch.zeros(720))
    with pytest.raises(ValueError, match="floating point"):
        vocoder_log_mel(torch.zeros(2000, dtype=torch.int16))
