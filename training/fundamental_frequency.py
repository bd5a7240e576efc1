"""Fundamental frequencies of recordings, one per mel frame: the targets of a vocoder's f0 predictor."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import logging

from .recording_segments import load_row

# Steps of 0.1, as by default, take five times as long in all; YIN then gives the exact value.
SEMITONES_PER_STEP = 0.5
MAX_SEMITONES_BETWEEN = 0.5


def fundamental_frequency(
    samples: np.ndarray,
    sampling_rate: int,
    hop_length: int,
    min_frequency: float = 65.0,
    max_frequency: float = 500.0,
) -> np.ndarray:
    """
    f0 at the centre of each mel frame of [`vocoder_log_mel`], by librosa.

    Probabilistic YIN with steps of half a semitone decides which frames are voiced and where the pitch is; YIN refines
    it where both agree to half a semitone. (The release of CosyVoice 2 uses Harvest of the WORLD vocoder.)

    Args:
        samples (`np.ndarray`): float `[S]`.
        sampling_rate (`int`): in Hz.
        hop_length (`int`): samples per frame.
        min_frequency, max_frequency (`float`): range of the search in Hz.

    Returns:
        `np.ndarray`: float32 `[S // hop_length]` in Hz, 0 where a frame is unvoiced.

    Raises:
        ValueError: a range that is empty or reaches the Nyquist frequency; librosa is not installed.
    """
    try:
        import librosa
    except ImportError as error:
        raise ValueError('f0 needs librosa: pip install "dualspeech[audio]"') from error
    if not 0 < min_frequency < max_frequency < sampling_rate / 2:
        raise ValueError(
            f"`min_frequency` {min_frequency} and `max_frequency` {max_frequency} must be in this order between 0 and "
            f"half of the sampling rate of {sampling_rate} Hz"
        )
    samples = np.asarray(samples, dtype=np.float32)
    frames = len(samples) // hop_length
    if not frames or not samples.any():
        return np.zeros(frames, np.float32)
    # four of the longest periods: two are compared
    window = max(4 * int(sampling_rate / min_frequency), hop_length)
    margin = window - hop_length
    padded = np.pad(samples, (margin // 2, margin - margin // 2))
    shape = {"sr": sampling_rate, "frame_length": window, "hop_length": hop_length, "center": False}
    shape |= {"fmin": min_frequency, "fmax": max_frequency}
    coarse, voiced, _ = librosa.pyin(padded, resolution=SEMITONES_PER_STEP, fill_na=None, **shape)
    exact = librosa.yin(padded, **shape)
    agree = np.abs(np.log2(exact / coarse)) < MAX_SEMITONES_BETWEEN / 12
    return np.where(voiced, np.where(agree, exact, coarse), 0.0)[:frames].astype(np.float32)


def recordings_f0(
    rows: Sequence[Mapping[str, Any]],
    sampling_rate: int,
    hop_length: int,
    min_frequency: float = 65.0,
    max_frequency: float = 500.0,
    resample: bool = False,
    channel: int | None = None,
    file: str | os.PathLike | None = None,
) -> list[Tensor]:
    """
    [`fundamental_frequency`] of all recordings: read from `file` if it exists, else computed, and written to it.

    Args:
        rows: with `audio` each: what [`load_audio`] reads.
        sampling_rate, hop_length, min_frequency, max_frequency: see [`fundamental_frequency`].
        resample: convert recordings of another rate instead of refusing them.
        channel: which channel to take of recordings that have several, instead of refusing them.
        file: a `.safetensors` file.

    Returns:
        One float32 tensor `[frames]` per row, in Hz.

    Raises:
        ValueError: a row that cannot be read, with its place; a file of other recordings or other settings.
    """
    made_of = {
        "sampling_rate": sampling_rate,
        "hop_length": hop_length,
        "min_frequency": float(min_frequency),
        "max_frequency": float(max_frequency),
        "channel": channel,
        "recordings": len(rows),
        "names": _digest(rows),
    }
    if file is not None and Path(file).is_file():
        return _read(Path(file), made_of)
    tracks = []
    for index, row in enumerate(logging.tqdm(rows, desc="f0", disable=None)):
        samples = load_row(row, index, sampling_rate, resample, channel)
        track = fundamental_frequency(samples, sampling_rate, hop_length, min_frequency, max_frequency)
        tracks.append(torch.from_numpy(track))
    if file is not None:
        _write(Path(file), made_of, tracks)
    return tracks


def _digest(rows: Sequence[Mapping[str, Any]]) -> str:
    """Of the names of the files and the segments of them, without folders: data sets move."""
    names = []
    for row in rows:
        audio = row.get("audio")
        part = audio if isinstance(audio, Mapping) else {"path": audio}
        path = part.get("path")
        name = Path(path).name if isinstance(path, str | os.PathLike) else None
        names.append([name, part.get("start"), part.get("end")])
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]


def _write(path: Path, made_of: Mapping[str, Any], tracks: Sequence[Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # whole or not there
    tensors = {"f0": torch.cat(list(tracks)), "lengths": torch.tensor([len(track) for track in tracks])}
    save_file(tensors, part, metadata={"made_of": json.dumps(dict(made_of))})
    part.replace(path)


def _read(path: Path, made_of: Mapping[str, Any]) -> list[Tensor]:
    with safe_open(path, framework="pt") as stored:
        found = json.loads((stored.metadata() or {}).get("made_of", "{}"))
        if found != made_of:
            different = sorted(name for name in made_of if found.get(name) != made_of[name])
            raise ValueError(
                f"`file` {str(path)!r} has the f0 of other recordings or settings ({', '.join(different)}); delete it, "
                "or name another one"
            )
        return list(stored.get_tensor("f0").split(stored.get_tensor("lengths").tolist()))


__all__ = ["fundamental_frequency", "recordings_f0"]
