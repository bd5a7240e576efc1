"""Reading, checking, resampling and writing recordings."""

import io
import math
import numbers
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from ..modeling.audio_features import resample

# Integer samples are scaled by the full range of their type; a 64-bit integer has no customary full scale.
PCM_SCALE = {"int16": 2.0**15, "int32": 2.0**31, "uint8": 2.0**7}


def load_audio(
    source: Any, sampling_rate: int | None = None, resample: bool = False, channel: int | None = None
) -> tuple[np.ndarray, int]:
    """Read one recording.

    Args:
        source: a path; encoded audio as `bytes`; a mapping with `array` and `sampling_rate`, or with `bytes` or `path`
            (what `datasets.Audio` gives, decoded or not), the last two also with `start` and `end` in seconds, of
            which only that segment is read; a pair `(array, rate)`; or an array. Arrays are `[S]` or `[channels, S]`,
            floating point in [-1, 1] or PCM of 16, 32 or (unsigned) 8 bits.
        sampling_rate (`int`, *optional*): the wanted rate in Hz; a bare array is taken to have it.
        resample (`bool`): convert a recording that has another rate; without it that is an error.
        channel (`int`, *optional*): which channel to take of a recording that has several.

    Returns:
        The samples, float32 `[S]`, and their rate in Hz.

    Raises:
        ValueError: the file does not exist or is no audio; the recording is empty, has several channels, NaN or
            infinite samples, an unknown rate, or another rate than `sampling_rate`; a rate that is no positive whole
            number; a segment that is empty or not within the recording.
    """
    if sampling_rate is not None:
        sampling_rate = _checked_rate(sampling_rate)
    array, rate = read_audio(source, sampling_rate, channel)
    if sampling_rate is None or rate == sampling_rate:
        return array, rate
    if not resample:
        raise ValueError(
            f"`sampling_rate` is {sampling_rate} Hz, but {_describe(source)} has {rate} Hz; pass `resample=True` to "
            "convert it"
        )
    return resample_audio(array, rate, sampling_rate), sampling_rate


def read_audio(source: Any, array_rate: int | None = None, channel: int | None = None) -> tuple[np.ndarray, int]:
    """Read one recording at the rate it has; `array_rate` is the rate of a bare array. See [`load_audio`]."""
    samples, rate = _samples_of(source)
    rate = array_rate if rate is None else rate
    if rate is None:
        raise ValueError(
            f"`sampling_rate` is unknown for {_describe(source)}: give (array, rate), "
            "{'array': ..., 'sampling_rate': ...} or `sampling_rate=`"
        )
    rate = _checked_rate(rate)
    return _check_samples(samples, channel, _describe(source)), rate


def as_array(values: Any) -> np.ndarray:
    """Any array, list or tensor as a NumPy array; also tensors on a GPU, with gradients, or in bfloat16, which NumPy lacks."""
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def resample_audio(array: np.ndarray, orig_rate: int, new_rate: int) -> np.ndarray:
    """Change the rate of float32 `[S]` with the windowed sinc of the released data preparation.

    Returns:
        float32 `[ceil(S * new_rate / orig_rate)]`.
    """
    return resample(torch.from_numpy(array), orig_rate, new_rate).numpy()


def save_audio(path: str | os.PathLike, audio: Any, sampling_rate: int) -> None:
    """Write `[S]` or `[1, S]` samples as 16-bit PCM (samples outside [-1, 1] are clipped); the ending of `path`
    chooses the container (`.wav`, `.flac`)."""
    array, rate = read_audio((audio, sampling_rate))
    soundfile.write(os.fspath(path), array, rate, subtype="PCM_16")


def _samples_of(source: Any, start: float | None = None, end: float | None = None) -> tuple[Any, int | None]:
    """The samples of `source`, or of a segment of a file in seconds, as they are, and the rate if it carries one."""
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.exists():
            raise ValueError(f"`audio`: the file {str(source)!r} does not exist; accepted are paths of local files")
        return _decode(path, start, end)
    if isinstance(source, (bytes, bytearray)):
        return _decode(io.BytesIO(source), start, end)
    if isinstance(source, Mapping):
        start, end = source.get("start"), source.get("end")
        if source.get("array") is not None:
            if start is not None or end is not None:
                raise ValueError("`audio`: `start` and `end` are for 'bytes' and 'path', not for an 'array'; slice it")
            return source["array"], source.get("sampling_rate")
        for key in ("bytes", "path"):
            if source.get(key) is not None:
                return _samples_of(source[key], start, end)
        raise ValueError(
            f"`audio` is a mapping with {sorted(source)}; accepted are 'array' with 'sampling_rate', 'bytes', 'path'"
        )
    if is_array_with_rate(source):
        return source
    if hasattr(source, "get_all_samples"):  # the lazy decoder that recent versions of datasets hand out
        samples = source.get_all_samples()
        return samples.data, samples.sample_rate
    return source, None


def is_array_with_rate(source: Any) -> bool:
    """Whether `source` is a pair of samples and their rate."""
    if not isinstance(source, tuple) or len(source) != 2:
        return False
    samples, rate = source
    return isinstance(rate, (int, float, np.number)) and np.ndim(samples) > 0


def _checked_rate(rate: Any) -> int:
    is_number = isinstance(rate, numbers.Real) and not isinstance(rate, bool)
    if not is_number or not math.isfinite(rate) or rate != int(rate) or rate <= 0:
        raise ValueError(f"`sampling_rate` must be a positive whole number of Hz, got {rate!r}")
    return int(rate)


def _decode(file: Path | io.BytesIO, start: float | None, end: float | None) -> tuple[np.ndarray, int]:
    name = repr(str(file)) if isinstance(file, Path) else "the given bytes"
    try:
        with soundfile.SoundFile(file) as reader:
            first, last = _segment(name, start, end, reader.frames, reader.samplerate)
            if first:
                reader.seek(first)
            samples = reader.read(last - first, dtype="float32", always_2d=True)
            return samples.T, reader.samplerate
    except soundfile.LibsndfileError as error:
        raise ValueError(f"`audio`: {name} cannot be read as audio ({error})") from error


def _segment(name: str, start: float | None, end: float | None, num_samples: int, rate: int) -> tuple[int, int]:
    """The first sample of a segment and the one behind its last."""
    if start is None and end is None:
        return 0, num_samples
    seconds = num_samples / rate
    start, end = 0.0 if start is None else start, seconds if end is None else end
    # Bounded first: NaN, infinity and what overflows cannot be rounded.
    are_near = all(isinstance(value, numbers.Real) and -1 <= value <= seconds + 1 for value in (start, end))
    first, last = (round(start * rate), round(end * rate)) if are_near else (0, 0)
    if not 0 <= first < last <= num_samples:
        raise ValueError(
            f"`audio`: `start` {start!r} and `end` {end!r} are no segment of {name}; accepted is 0 <= start < end <= "
            f"{seconds} s"
        )
    return first, last


def _check_samples(samples: Any, channel: int | None, name: str) -> np.ndarray:
    array = as_array(samples)
    if array.ndim == 2 and channel is not None:
        if not 0 <= channel < len(array):
            raise ValueError(f"`channel` is {channel}, but {name} has {len(array)} channels")
        array = array[channel]
    elif array.ndim == 2 and len(array) == 1:
        array = array[0]
    if array.ndim != 1:
        raise ValueError(
            f"`audio`: {name} has shape {list(array.shape)}; accepted is mono, [samples] or [1, samples]; "
            "choose a channel of [channels, samples] with `load_audio(source, channel=0)`"
        )
    if not len(array):
        raise ValueError(f"`audio`: {name} is empty")
    if array.dtype.name in PCM_SCALE:
        scale = PCM_SCALE[array.dtype.name]
        array = array / scale - (array.dtype == np.uint8)
    elif not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"`audio`: {name} has samples of type {array.dtype}; accepted are floating point in [-1, 1] and PCM "
            f"({', '.join(PCM_SCALE)})"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"`audio`: {name} has NaN or infinite samples")
    return np.ascontiguousarray(array, dtype=np.float32)


def _describe(source: Any) -> str:
    if isinstance(source, Mapping) and source.get("array") is None and source.get("bytes") is None:
        source = source.get("path")
    return repr(str(source)) if isinstance(source, (str, os.PathLike)) else "the given recording"


__all__ = ["PCM_SCALE", "as_array", "is_array_with_rate", "load_audio", "read_audio", "resample_audio", "save_audio"]
