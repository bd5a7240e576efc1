"""Recordings in rows: all forms, files that replace themselves, keys that do not depend on the order of rows."""

import base64
import errno
import io

import numpy as np
import pytest
import soundfile

from dualspeech.processing.moss_speech_chat import parse_content
from dualspeech.training.data_steps.row_recordings import (
    audio_content,
    part_of_recording,
    read_recording,
    row_key,
    row_random,
    store_recording,
    text_of,
)
from tests.tiny import tone


def test_every_form_of_a_recording(tmp_path):
    samples = tone(0.5)
    path = store_recording(samples, 16000, str(tmp_path / "new"), "a/b:1")
    packed = store_recording(samples, 16000, None, "a/b:1")
    assert soundfile.info(path).format == "FLAC"
    text = base64.b64encode(packed["bytes"]).decode()
    for audio in (path, {"path": path, "bytes": None}, packed, {"bytes": text}):
        read, rate = read_recording({"audio": audio})
        assert rate == 16000 and np.abs(read - samples).max() < 1e-4
    assert len(read_recording({"audio": path}, sampling_rate=8000)[0]) == 4000
    with pytest.raises(ValueError, match="base64"):
        read_recording({"audio": {"bytes": "no base64!"}})
    with pytest.raises(ValueError, match=r"no `audio`; it has \['text'\]"):
        read_recording({"text": "a", "audio": None})


def test_files_are_named_by_their_keys(tmp_path):
    names = {store_recording(tone(0.1), 16000, str(tmp_path), key) for key in ("a/b", "a:b", "a_b", "../a", "x" * 500)}
    assert len(names) == 5
    assert store_recording(tone(0.1), 16000, str(tmp_path), "a/b") in names
    # Another recording of the same key replaces none.
    assert store_recording(tone(0.2), 16000, str(tmp_path), "a/b") not in names
    assert len(list(tmp_path.iterdir())) == 6  # and nothing half written


def test_parts(tmp_path):
    samples = tone(2.0, frequency=300) * np.linspace(0, 1, 32000, dtype=np.float32)
    whole = store_recording(samples, 16000, str(tmp_path), "whole")
    for storage in (None, str(tmp_path), "segments"):
        part = part_of_recording(whole, samples, 16000, 0.5, 1.25, storage, "whole-1")
        read, _ = read_recording({"audio": part})
        assert len(read) == 12000 and np.abs(read - samples[8000:20000]).max() < 1e-4
    # a part of a part
    inner = part_of_recording(part, samples[8000:20000], 16000, 0.25, 0.5, "segments", "whole-1-1")
    assert inner == {"path": whole, "start": 0.75, "end": 1.0}
    with pytest.raises(ValueError, match="no file"):
        part_of_recording({"bytes": b"x"}, samples, 16000, 0.0, 1.0, "segments", "a")


def test_contents_are_those_of_the_processor(tmp_path):
    path = store_recording(tone(0.1), 16000, str(tmp_path), "a")
    segment = {"path": path, "start": 0.0, "end": 0.05, "bytes": None}
    for audio, expected in ((path, path), ({"path": path, "bytes": None}, path), ({"bytes": b"1"}, {"bytes": b"1"})):
        assert parse_content(audio_content(audio), "here").audio == expected
    assert parse_content(audio_content(segment), "here").audio == {"path": path, "start": 0.0, "end": 0.05}


def test_keys():
    assert row_key({"id": "a", "source": "b:1"}) == "a"
    assert row_key({"id": None, "source": "b:1"}) == "b:1"
    assert row_key({"text": "x"}) == row_key({"text": "x"}) != row_key({"text": "y"})
    draws = [row_random(0, {"source": f"b:{i}"}).random() for i in (1, 2, 1)]
    assert draws[0] == draws[2] != draws[1]
    draws = [row_random(0, {"id": "a"}, {"text": text}).random() for text in "xyx"]
    assert draws[0] == draws[2] != draws[1]
    assert row_random(1, {"source": "b:1"}).random() != draws[0]


def test_texts():
    assert text_of({"text": " a b\n"}, "text") == "a b"
    for wrong in (None, "", "  ", 3):
        with pytest.raises(ValueError, match="text"):
            text_of({"text": wrong}, "text")


def test_failures_of_the_machine_are_no_bad_recordings(tmp_path, monkeypatch):
    path = store_recording(tone(0.1), 16000, str(tmp_path), "a")
    with pytest.raises(ValueError, match="too long"):
        read_recording({"audio": "x" * 5000})

    def full(*_arguments, **_options):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("dualspeech.training.data_steps.row_recordings.load_audio", _unreadable)
    with pytest.raises(ValueError, match="no audio"):
        read_recording({"audio": path})
    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(OSError, match="Too many open files"):
        read_recording({"audio": path})


def _unreadable(*_arguments):
    raise ValueError("no audio")


def test_bytes_are_a_whole_file():
    packed = store_recording(tone(0.1), 22050, None, "a")
    assert soundfile.info(io.BytesIO(packed["bytes"])).samplerate == 22050
