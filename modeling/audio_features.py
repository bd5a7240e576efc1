"""Resampling, Kaldi filter banks, and the log-mel spectrograms of Whisper and of vocoders: batched, differentiable torch
functions.

They need neither torchaudio nor a feature extractor and run on the device of their input. Everything is computed in
float32, or float64 for float64 input, whatever autocast says; lower precisions come back as float32. Constants are
cached as numpy arrays: a cached tensor would remember the device or inference mode of its first use.
"""

import functools
import math

import numpy as np
import torch
from torch import Tensor
from transformers.utils.generic import maybe_autocast

RESAMPLE_FILTER_WIDTH = 6  # zero crossings of the sinc on each side
RESAMPLE_ROLLOFF = 0.99  # cut-off as a share of the lower Nyquist frequency
KALDI_FRAME_SECONDS, KALDI_SHIFT_SECONDS = 0.025, 0.010
KALDI_LOW_FREQUENCY = 20.0
KALDI_PREEMPHASIS = 0.97
KALDI_ENERGY_FLOOR = 1.1920928955078125e-07
WHISPER_SAMPLING_RATE = 16000
WHISPER_N_FFT = 400
WHISPER_HOP_LENGTH = 160
WHISPER_DYNAMIC_RANGE = 8.0  # in log10 units, below the loudest value
VOCODER_POWER_OFFSET = 1e-9  # keeps the slope of the magnitude finite in silence
VOCODER_MEL_FLOOR = 1e-5


def _full_precision(function):
    """Run `function(waveform, ...)` outside autocast on a waveform of at least float32."""

    @functools.wraps(function)
    def wrapper(waveform: Tensor, *args, **kwargs):
        if not waveform.is_floating_point():
            raise ValueError(f"waveform must be floating point with samples in [-1, 1], got {waveform.dtype}")
        with maybe_autocast(waveform.device.type, enabled=False):
            return function(waveform.to(torch.promote_types(waveform.dtype, torch.float32)), *args, **kwargs)

    return wrapper


def _triangles(edges: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Filters `[len(positions), len(edges) - 2]`: filter i rises from edge i to 1 at edge i + 1, falls to edge i + 2."""
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (positions[:, None] - left) / (centre - left)
    falling = (right - positions[:, None]) / (right - centre)
    return np.maximum(0.0, np.minimum(rising, falling))


@functools.lru_cache(maxsize=16)
def _resampling_filters(orig: int, new: int) -> tuple[np.ndarray, int]:
    """`([new, taps], width)`: one windowed sinc for each of the `new` output phases of a block of `orig` samples."""
    cutoff = min(orig, new) * RESAMPLE_ROLLOFF
    width = math.ceil(RESAMPLE_FILTER_WIDTH * orig / cutoff)
    # Distance of each tap from each output sample, in zero crossings of the sinc.
    taps = np.arange(-width, width + orig, dtype=np.float64) / orig
    distance = (taps - np.arange(new, dtype=np.float64)[:, None] / new) * cutoff
    distance = distance.clip(-RESAMPLE_FILTER_WIDTH, RESAMPLE_FILTER_WIDTH)
    window = np.cos(distance * np.pi / (2 * RESAMPLE_FILTER_WIDTH)) ** 2
    return np.sinc(distance) * window * (cutoff / orig), width


@_full_precision
def resample(waveform: Tensor, orig_rate: int, new_rate: int) -> Tensor:
    """Change the sampling rate by interpolation with a Hann-windowed sinc (width 6, roll-off 0.99).

    The filters are computed in double precision, so that awkward ratios lose nothing. They hold about
    `(orig_rate / g) * (new_rate / g)` numbers, where g is the greatest common divisor of the rates.

    Args:
        waveform (`torch.Tensor`): `[..., S]`, floating point.
        orig_rate, new_rate (`int`): sampling rates in Hz.

    Returns:
        `torch.Tensor`: `[..., ceil(S * new_rate / orig_rate)]`.
    """
    for name, rate in (("orig_rate", orig_rate), ("new_rate", new_rate)):
        if rate != int(rate) or rate <= 0:
            raise ValueError(f"{name} must be a positive whole number of Hz, got {rate}")
    orig_rate, new_rate = int(orig_rate), int(new_rate)
    if orig_rate == new_rate:
        return waveform
    divisor = math.gcd(orig_rate, new_rate)
    orig, new = orig_rate // divisor, new_rate // divisor
    filters, width = _resampling_filters(orig, new)
    kernel = torch.as_tensor(filters, dtype=waveform.dtype, device=waveform.device).unsqueeze(1)
    num_samples = waveform.shape[-1]
    padded = torch.nn.functional.pad(waveform, (width, width + orig))
    blocks = torch.nn.functional.conv1d(padded.reshape(-1, 1, padded.shape[-1]), kernel, stride=orig)
    length = -(-num_samples * new // orig)
    return blocks.transpose(1, 2).reshape(*waveform.shape[:-1], -1)[..., :length]


@functools.lru_cache(maxsize=8)
def _kaldi_filters(num_mel_bins: int, n_fft: int, sampling_rate: int) -> np.ndarray:
    def mel(hertz):
        return 1127.0 * np.log1p(np.asarray(hertz, dtype=np.float64) / 700.0)

    edges = np.linspace(mel(KALDI_LOW_FREQUENCY), mel(sampling_rate / 2), num_mel_bins + 2)
    return _triangles(edges, mel(np.fft.rfftfreq(n_fft, 1 / sampling_rate)))


@functools.lru_cache(maxsize=8)
def _povey_window(length: int) -> np.ndarray:
    # Rounded to float32 as in Kaldi's torch port: the side lobes of the rounding stand above the floor in clean tones.
    return torch.hann_window(length, periodic=False, dtype=torch.float32, device="cpu").pow(0.85).numpy()


@_full_precision
def kaldi_fbank(waveform: Tensor, num_mel_bins: int = 80, sampling_rate: int = 16000) -> Tensor:
    """Kaldi's log filter banks as CAM++ uses them: 25 ms frames every 10 ms, inside the signal only, without dither.

    Per frame: mean removed, pre-emphasis 0.97, povey window, power spectrum, mel triangles from 20 Hz to Nyquist,
    natural logarithm above the float32 epsilon. Samples are expected in [-1, 1]; the floor makes the scale matter in
    silence, so they must not be multiplied by 32768.

    Args:
        waveform (`torch.Tensor`): `[..., S]`, floating point.
        num_mel_bins (`int`): number of mel bins.
        sampling_rate (`int`): rate of the waveform in Hz.

    Returns:
        `torch.Tensor`: `[..., F, num_mel_bins]` with F = `num_kaldi_frames(S, sampling_rate)`; at 16 kHz
        1 + (S - 400) // 160, and 0 for less than one frame.
    """
    length, shift = _kaldi_frame(sampling_rate)
    if waveform.shape[-1] < length:
        return waveform.new_zeros(*waveform.shape[:-1], 0, num_mel_bins)
    frames = waveform.unfold(-1, length, shift)
    frames = frames - frames.mean(dim=-1, keepdim=True)
    previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    window = torch.as_tensor(_povey_window(length), dtype=frames.dtype, device=frames.device)
    n_fft = 2 ** math.ceil(math.log2(length))
    spectrum = torch.fft.rfft((frames - KALDI_PREEMPHASIS * previous) * window, n=n_fft)
    power = spectrum.real.square() + spectrum.imag.square()
    filters = _kaldi_filters(num_mel_bins, n_fft, sampling_rate)
    energies = power @ torch.as_tensor(filters, dtype=power.dtype, device=power.device)
    return energies.clamp(min=KALDI_ENERGY_FLOOR).log()


def _kaldi_frame(sampling_rate: int) -> tuple[int, int]:
    return int(sampling_rate * KALDI_FRAME_SECONDS), int(sampling_rate * KALDI_SHIFT_SECONDS)


def num_kaldi_frames(num_samples, sampling_rate: int = 16000):
    """Frames that `kaldi_fbank` makes of `num_samples` samples (an int or an integer tensor)."""
    length, shift = _kaldi_frame(sampling_rate)
    frames = (num_samples - length) // shift + 1
    return frames.clamp(min=0) if isinstance(frames, Tensor) else max(frames, 0)


def centred_kaldi_fbank(
    waveform: Tensor, num_samples: Tensor | None = None, num_mel_bins: int = 80, sampling_rate: int = 16000
) -> tuple[Tensor, Tensor]:
    """`kaldi_fbank` of a right-padded batch minus each row's mean over its own frames: the input of CAM++.

    Args:
        waveform (`torch.Tensor`): `[B, S]`, floating point.
        num_samples (`torch.Tensor`, *optional*): `[B]`, samples of each row; all of them when omitted.

    Returns:
        `(features [B, F, num_mel_bins], attention_mask [B, F] bool)`; features outside the mask are zero.
    """
    features = kaldi_fbank(waveform, num_mel_bins, sampling_rate)
    if num_samples is None:
        num_samples = torch.full((waveform.shape[0],), waveform.shape[-1], device=waveform.device)
    num_frames = num_kaldi_frames(num_samples.to(features.device), sampling_rate)
    mask = torch.arange(features.shape[1], device=features.device) < num_frames[:, None]
    weights = mask.unsqueeze(-1).to(features.dtype)
    mean = (features * weights).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True).clamp(min=1)
    return (features - mean) * weights, mask


@functools.lru_cache(maxsize=8)
def _slaney_filters(
    num_mel_bins: int,
    n_fft: int = WHISPER_N_FFT,
    sampling_rate: int = WHISPER_SAMPLING_RATE,
    max_frequency: float = 8000.0,
) -> np.ndarray:
    """Mel filters of equal area on Slaney's scale: linear below 1000 Hz, logarithmic above. `[n_fft // 2 + 1, bins]`."""
    break_mel, log_step = 15.0, math.log(6.4) / 27.0
    top = max_frequency * 3.0 / 200.0
    if max_frequency > 1000.0:
        top = break_mel + math.log(max_frequency / 1000.0) / log_step
    mels = np.linspace(0.0, top, num_mel_bins + 2)
    edges = np.where(mels < break_mel, mels * 200.0 / 3.0, 1000.0 * np.exp(log_step * (mels - break_mel)))
    filters = _triangles(edges, np.fft.rfftfreq(n_fft, 1 / sampling_rate))
    return filters * 2.0 / (edges[2:] - edges[:-2])


@_full_precision
def log_mel_spectrogram(waveform: Tensor, num_mel_bins: int = 80, n_frames: int = 3000) -> Tensor:
    """The input of Whisper encoders, equal to `WhisperFeatureExtractor`.

    Args:
        waveform (`torch.Tensor`): `[..., S]`, 16 kHz mono, zero behind the end of shorter rows.
        num_mel_bins (`int`): 80, or 128 for Whisper large-v3.
        n_frames (`int`): frames of 10 ms to return; the waveform is padded with zeros to `160 * n_frames` samples.

    Returns:
        `torch.Tensor`: `[..., num_mel_bins, n_frames]`.

    Raises:
        ValueError: the waveform is longer than `n_frames` frames.
    """
    num_samples, room = waveform.shape[-1], n_frames * WHISPER_HOP_LENGTH
    if num_samples > room:
        raise ValueError(f"waveform has {num_samples} samples, at most {room} ({n_frames} frames) are accepted")
    padded = torch.nn.functional.pad(waveform, (0, room - num_samples)).reshape(-1, room)
    half = WHISPER_N_FFT // 2
    reflected = torch.nn.functional.pad(padded, (half, half - WHISPER_HOP_LENGTH), mode="reflect")
    log_mel = whisper_log_mel(reflected, num_mel_bins)
    scaled = scale_whisper_log_mel(log_mel, log_mel.amax(dim=(-2, -1), keepdim=True))
    return scaled.reshape(*waveform.shape[:-1], num_mel_bins, n_frames)


@_full_precision
def whisper_log_mel(waveform: Tensor, num_mel_bins: int = 80) -> Tensor:
    """Whisper's features in front of [`scale_whisper_log_mel`], of the frames that lie inside the waveform.

    Periodic Hann window of 400 samples every 160, power, Slaney's mel filters from 0 to 8000 Hz, log10 above 1e-10.

    Args:
        waveform (`torch.Tensor`): `[B, S]`, 16 kHz mono, at least 400 samples.
        num_mel_bins (`int`): 80, or 128 for Whisper large-v3.

    Returns:
        `torch.Tensor`: `[B, num_mel_bins, 1 + (S - 400) // 160]`.
    """
    window = torch.hann_window(WHISPER_N_FFT, dtype=waveform.dtype, device=waveform.device)
    spectrum = torch.stft(
        waveform, WHISPER_N_FFT, WHISPER_HOP_LENGTH, window=window, center=False, return_complex=True
    )
    power = spectrum.real.square() + spectrum.imag.square()
    filters = torch.as_tensor(_slaney_filters(num_mel_bins), dtype=power.dtype, device=power.device)
    return (filters.T @ power).clamp(min=1e-10).log10()


def scale_whisper_log_mel(log_mel: Tensor, maximum: Tensor | float) -> Tensor:
    """Clamp at 8 log10 units below `maximum`, the largest value of the segment, then (x + 4) / 4."""
    floor = torch.as_tensor(maximum, dtype=log_mel.dtype, device=log_mel.device) - WHISPER_DYNAMIC_RANGE
    return (torch.maximum(log_mel, floor) + 4.0) / 4.0


@_full_precision
def vocoder_log_mel(
    waveform: Tensor,
    num_mel_bins: int = 80,
    sampling_rate: int = 24000,
    n_fft: int = 1920,
    hop_length: int = 480,
    max_frequency: float = 8000.0,
) -> Tensor:
    """The mel spectrogram that HiFT turns into sound, as a voice prompt needs it (CosyVoice 2, MOSS-Speech).

    Reflection by `(n_fft - hop_length) / 2` samples on both sides, periodic Hann window of `n_fft` samples, magnitude
    `sqrt(re^2 + im^2 + 1e-9)`, Slaney's mel filters from 0 Hz, natural logarithm above 1e-5.

    Args:
        waveform (`torch.Tensor`): `[..., S]`, floating point in [-1, 1], S > (n_fft - hop_length) / 2.
        num_mel_bins (`int`): number of mel bins.
        sampling_rate (`int`): rate of the waveform in Hz.
        n_fft, hop_length (`int`): window and shift in samples.
        max_frequency (`float`): upper edge of the last filter in Hz.

    Returns:
        `torch.Tensor`: `[..., num_mel_bins, floor(S / hop_length)]`.

    Raises:
        ValueError: too few samples to reflect, or a waveform that is not floating point.
    """
    num_samples, margin = waveform.shape[-1], (n_fft - hop_length) // 2
    if num_samples <= margin:
        raise ValueError(
            f"waveform has {num_samples} samples; the mel spectrogram reflects {margin} and needs at least {margin + 1} "
            f"({(margin + 1) / sampling_rate * 1000:.1f} ms at {sampling_rate} Hz)"
        )
    rows = waveform.reshape(-1, 1, num_samples)
    padded = torch.nn.functional.pad(rows, (margin, margin), mode="reflect").squeeze(1)
    window = torch.hann_window(n_fft, dtype=waveform.dtype, device=waveform.device)
    spectrum = torch.stft(padded, n_fft, hop_length, window=window, center=False, return_complex=True)
    magnitude = (spectrum.real.square() + spectrum.imag.square() + VOCODER_POWER_OFFSET).sqrt()
    filters = _slaney_filters(num_mel_bins, n_fft, sampling_rate, float(max_frequency))
    mel = torch.as_tensor(filters, dtype=magnitude.dtype, device=magnitude.device).T @ magnitude
    return mel.clamp(min=VOCODER_MEL_FLOOR).log().reshape(*waveform.shape[:-1], num_mel_bins, -1)


__all__ = [
    "centred_kaldi_fbank",
    "kaldi_fbank",
    "log_mel_spectrogram",
    "num_kaldi_frames",
    "resample",
    "scale_whisper_log_mel",
    "vocoder_log_mel",
    "whisper_log_mel",
]
