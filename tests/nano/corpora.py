"""Rows of the nano corpus without recordings, and file names of human digits."""

import json
from functools import cache
from pathlib import Path

from nano_audio import digit_takes
from nano_grammar import SPLITS
from nano_rows import ROW_FILES, Rows

SPEAKERS = ("george", "jackson", "lucas")
NUM_TAKES = 14


def make_takes(folder):
    """Empty files named like recorded digits, as `digit_takes` reads them."""
    for speaker in SPEAKERS:
        for digit in range(10):
            for take in range(NUM_TAKES):
                (Path(folder) / f"{digit}_{speaker}_{take}.wav").touch()
    return digit_takes(folder)


@cache
def fake_takes():
    """The same as paths that do not exist."""
    stems = {speaker: {digit: range(NUM_TAKES) for digit in range(10)} for speaker in SPEAKERS}
    return {
        speaker: {digit: [Path(f"{digit}_{speaker}_{take}.wav") for take in takes] for digit, takes in digits.items()}
        for speaker, digits in stems.items()
    }


def all_rows(split, scale, seed=0, takes=None):
    """`(Rows, rows by file)` of a split, made in the order in which the corpus makes them."""
    earlier = []
    for name in SPLITS:
        rows = Rows(name, seed, scale, takes, earlier)
        by_file = {file: getattr(rows, file)() for file in ROW_FILES}
        if name == split:
            return rows, by_file
        earlier.append(rows)
    raise ValueError(split)


def write_rows(folder, split="train", scale=0.01):
    """The files of a split as `make_corpus` writes them, in `folder`, which is returned."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, rows in all_rows(split, scale)[1].items():
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (Path(folder) / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def strings(value):
    """All strings of a row."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from strings(entry)


def recordings(value):
    """The paths of all recordings of a row, as they stand below the corpus."""
    return {text.removeprefix("../../") for text in strings(value) if text.endswith(".wav")}


def texts(value):
    """All strings of a row but paths, and keys of frames."""
    row = {**value, "metadata": {k: v for k, v in value["metadata"].items() if k not in ("frame", "frames")}}
    return {text for text in strings(row) if not text.endswith(".wav")}


def keys(value):
    """The keys of the frames of a row."""
    metadata = value["metadata"]
    return set(metadata.get("frames", [metadata["frame"]] if "frame" in metadata else []))
