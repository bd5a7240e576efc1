"""The recordings in a row of data, wherever its kind has them."""

import base64
import binascii
import copy
import os
from collections.abc import Callable, Mapping
from typing import Any

from ..validate_rows import recordings_of
from .step import Row


def map_recordings(row: Row, function: Callable[[Any, str], Any]) -> Row:
    """
    A copy of `row` with `function(recording, key)` in place of each recording, see `recordings_of`: names of speakers and
    lists of codes are among them. `None` stays.
    """
    row = copy.deepcopy(row)
    for mapping, key, _ in recordings_of(row):
        if mapping[key] is not None:
            mapping[key] = function(mapping[key], key)
    return row


def decode_bytes(recording: Any, key: str = "audio") -> Any:
    """`{"bytes": <base64 text>}`, as JSON has it, with the bytes themselves; anything else as it is.

    Raises:
        ValueError: the text is no base64; `key` is its place in the message.
    """
    if not isinstance(recording, Mapping) or not isinstance(recording.get("bytes"), str):
        return recording
    try:
        return {**recording, "bytes": base64.b64decode(recording["bytes"], validate=True)}
    except (ValueError, binascii.Error) as error:
        raise ValueError(f"`{key}`: `bytes` is no base64 text ({error})") from error


def resolve_path(recording: Any, key: str, folder: str) -> Any:
    """A path, or `{"path": ...}`, that is relative to `folder` as an absolute one; anything else as it is.

    A `speaker` that names no file in `folder` stays: it is the name of a voice.
    """
    if isinstance(recording, Mapping):
        if recording.get("bytes") is not None or not isinstance(recording.get("path"), str):
            return recording
        return {**recording, "path": resolve_path(recording["path"], "path", folder)}
    if not isinstance(recording, str) or not recording or recording.startswith(("http://", "https://", "data:")):
        return recording
    path = os.path.join(folder, recording)
    return path if key != "speaker" or os.path.isfile(path) else recording


__all__ = ["decode_bytes", "map_recordings", "resolve_path"]
