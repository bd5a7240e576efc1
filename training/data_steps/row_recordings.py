"""Recordings in rows of data: reading each of their forms, storing new ones, and the keys that rows go by."""

import errno
import hashlib
import io
import json
import os
import random
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from ...processing.audio import load_audio
from .row_audio import decode_bytes

# `storage` of parts of recordings that are not written.
SEGMENTS = "segments"
# Errors of the system for which no row is to blame.
_OF_THE_MACHINE = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOTCONN, errno.ESTALE)


def row_key(row: Mapping[str, Any]) -> str:
    """What a row goes by: its `id`, else its `source`, else a digest of what it says."""
    for name in ("id", "source"):
        if row.get(name) is not None:
            return str(row[name])
    said = json.dumps(row, sort_keys=True, ensure_ascii=False, default=repr)
    return hashlib.sha256(said.encode()).hexdigest()[:32]


def row_random(seed: int, row: Mapping[str, Any], *content: Any) -> random.Random:
    """A generator that follows from `seed`, the key of the row and `content`, what a step works on, as JSON values: not
    from the order of rows, and rows draw on their own even where several have the same key."""
    said = json.dumps(content, sort_keys=True, ensure_ascii=False, default=repr)
    return random.Random(f"{seed}/{row_key(row)}/{hashlib.sha256(said.encode()).hexdigest()}")


def field_of(row: Mapping[str, Any], key: str) -> Any:
    """`row[key]`.

    Raises:
        ValueError: the row has none, or `None`.
    """
    if row.get(key) is None:
        raise ValueError(f"the row has no `{key}`; it has {sorted(name for name in row if row[name] is not None)}")
    return row[key]


def text_of(row: Mapping[str, Any], key: str) -> str:
    """`row[key]` as a text that says something, without white space around it.

    Raises:
        ValueError: the row has none, something else, or an empty one.
    """
    text = field_of(row, key)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"`{key}` must be a text that is not empty, got {text!r:.80}")
    return text.strip()


def read_recording(
    row: Mapping[str, Any], key: str = "audio", sampling_rate: int | None = None
) -> tuple[np.ndarray, int]:
    """The recording `row[key]`, resampled to `sampling_rate` (Hz) if one is given: float32 `[S]` and its rate.

    Raises:
        ValueError: no recording, base64 that is none, or what [`~processing.audio.load_audio`] refuses.
    """
    return load_recording(decode_bytes(field_of(row, key)), sampling_rate, sampling_rate is not None)


def load_recording(audio: Any, sampling_rate: int | None = None, resample: bool = False) -> tuple[np.ndarray, int]:
    """[`~processing.audio.load_audio`] for rows: failures of the machine are told from bad recordings.

    Raises:
        ValueError: the recording is bad.
        OSError: the file may be good but cannot be read now, such as with too many open files.
    """
    try:
        return load_audio(audio, sampling_rate, resample)
    except OSError as error:
        if error.errno in _OF_THE_MACHINE:
            raise
        raise ValueError(f"`audio`: {error}") from error
    except ValueError as bad:
        path = audio.get("path") if isinstance(audio, Mapping) and audio.get("bytes") is None else audio
        if isinstance(path, (str, os.PathLike)):
            try:
                with open(path, "rb") as file:
                    file.read(1)
            except (OSError, ValueError) as error:
                if getattr(error, "errno", None) in _OF_THE_MACHINE:
                    raise error from bad
        raise


def store_recording(samples: np.ndarray, sampling_rate: int, folder: str | None, key: str) -> str | dict[str, bytes]:
    """What stands for a recording in a row: the path of a FLAC file (16 bits), or the bytes of one.

    Args:
        samples: `[S]` in [-1, 1]; what lies outside is clipped.
        sampling_rate: in Hz.
        folder: of the file, made if needed; `None` keeps the recording in the row as `{"bytes": ...}`.
        key: what the recording is called. The name of the file follows from it and from the samples: running again gives
            the same file, and one with other samples is never replaced.
    """
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sampling_rate, format="FLAC", subtype="PCM_16")
    if folder is None:
        return {"bytes": buffer.getvalue()}
    # The key may hold what file names may not, and differ from another one in nothing else.
    readable = re.sub(r"[^\w.-]+", "_", key)[-60:].lstrip(".")
    digest = hashlib.sha256(key.encode() + b"\0" + buffer.getvalue()).hexdigest()[:16]
    path = Path(folder) / f"{readable}-{digest}.flac"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    partial.write_bytes(buffer.getvalue())
    os.replace(partial, path)
    return str(path)


def part_of_recording(
    audio: Any, samples: np.ndarray, sampling_rate: int, start: float, end: float, storage: str | None, key: str
) -> Any:
    """
    What stands for the part of a recording from `start` to `end` seconds.

    Args:
        audio: the recording as it stands in its row.
        samples: all of it, `[S]` at `sampling_rate` Hz.
        storage: a folder for FLAC files, `None` for the bytes of one, or `"segments"`: the path of the whole file with
            the seconds of the part, and nothing is written.
        key: see [`store_recording`].

    Raises:
        ValueError: `"segments"` of a recording that is no file.
    """
    if storage != SEGMENTS:
        first, last = round(start * sampling_rate), min(round(end * sampling_rate), len(samples))
        return store_recording(samples[first:last], sampling_rate, storage, key)
    whole = dict(audio) if isinstance(audio, Mapping) else {"path": audio}
    if whole.get("bytes") is not None or not isinstance(whole.get("path"), (str, os.PathLike)):
        raise ValueError(f"`storage` is {SEGMENTS!r}, but the recording is no file")
    offset = whole.get("start") or 0.0
    # Rounding must not lead out of the recording.
    end = min(end, len(samples) / sampling_rate)
    return {"path": os.fspath(whole["path"]), "start": offset + start, "end": offset + end}


def audio_content(audio: Any) -> dict[str, Any]:
    """A recording of a row as a chunk of a document or the content of a turn: `{"type": "audio", ...}`."""
    if isinstance(audio, Mapping):
        audio = {name: value for name, value in audio.items() if value is not None}
        if set(audio) == {"path"}:
            audio = audio["path"]
    if isinstance(audio, (str, os.PathLike)):
        return {"type": "audio", "path": os.fspath(audio)}
    return {"type": "audio", "audio": audio}


def text_content(text: str) -> dict[str, str]:
    """A text as a chunk of a document or the content of a turn."""
    return {"type": "text", "text": text}


__all__ = [
    "SEGMENTS",
    "audio_content",
    "field_of",
    "load_recording",
    "part_of_recording",
    "read_recording",
    "row_key",
    "row_random",
    "store_recording",
    "text_content",
    "text_of",
]
