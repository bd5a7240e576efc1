"""What the loaders of corpora share: missing files, tables, draws that depend on a row alone, and the command line."""

import argparse
import csv
import json
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

# Languages of the corpora in the words of prompts, by their codes in names of files.
LANGUAGES = {
    "ar": "Arabic",
    "ca": "Catalan",
    "cy": "Welsh",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "et": "Estonian",
    "fa": "Persian",
    "fr": "French",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "lv": "Latvian",
    "mn": "Mongolian",
    "nl": "Dutch",
    "pt": "Portuguese",
    "ru": "Russian",
    "sl": "Slovenian",
    "sv-SE": "Swedish",
    "ta": "Tamil",
    "tr": "Turkish",
    "zh-CN": "Chinese",
}


class Problems:
    """
    Files, transcripts and entries of a corpus that are missing or of no use.

    Args:
        strict: the first one is an error. Otherwise rows that need them are left out, and `found` lists them.

    Attributes:
        found (`list[str]`): what was missing.
    """

    def __init__(self, strict: bool = True):
        self.strict = strict
        self.found: list[str] = []

    def add(self, message: str) -> None:
        """Something is missing: a `ValueError` if strict."""
        if self.strict:
            raise ValueError(
                f"{message}; to leave such rows out, give `problems=Problems(strict=False)` (--missing-report FILE)"
            )
        self.found.append(message)

    def has_file(self, path: Path) -> bool:
        """Whether a file exists; if not, that is a problem."""
        if path.is_file():
            return True
        self.add(f"the file {str(path)!r} is missing")
        return False


def existing(name: str, *paths: Path) -> Path:
    """The first of `paths` that exists, absolute; a `ValueError` about the argument `name` if none does."""
    for path in paths:
        if path.exists():
            return path.absolute()
    raise ValueError(f"`{name}`: there is no {' and no '.join(repr(str(path)) for path in paths)}")


def read_table(path: Path, columns: Sequence[str], header: bool = True) -> Iterator[dict[str, str]]:
    """
    The rows of a file of tab-separated values, without quoting.

    Args:
        columns: columns that the file must have; without a `header`, all that it has.

    Raises:
        ValueError: a missing column, or a line with another number of values, with its number.
    """
    with path.open(encoding="utf-8", newline="") as lines:
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, escapechar="\\")
        names = next(reader, []) if header else list(columns)
        if missing := [name for name in columns if name not in names]:
            raise ValueError(f"{str(path)!r} lacks the columns {missing}; it has {names}")
        for values in reader:
            if len(values) != len(names):
                raise ValueError(
                    f"{str(path)!r}, line {reader.line_num}: {len(values)} values for {len(names)} columns"
                )
            yield dict(zip(names, values, strict=True))


def language(code: str) -> str:
    """The name of a language in prompts."""
    if code not in LANGUAGES:
        raise ValueError(f"language {code!r} is unknown; accepted are {', '.join(LANGUAGES)}")
    return LANGUAGES[code]


def draw(seed: int, key: str) -> random.Random:
    """A generator of random numbers that depends on nothing but its arguments, not on the order of rows."""
    return random.Random(f"{seed}/{key}")


def as_recording(row: Mapping[str, Any]) -> Row:
    """A task row as a recording row: its spoken answer and the text of it, or else its recording."""
    targets = row["targets"]
    common = {key: row[key] for key in ("id", "metadata") if key in row}
    if isinstance(targets, Mapping) and row["task"] != "vc":
        text = row["text"] if row["task"] == "tts" else row.get("metadata", {}).get("target_text")
        recording = {"audio": targets["audio"], "text": text, "speaker": row.get("speaker")}
    else:
        text = targets if row["task"] == "asr" else row.get("metadata", {}).get("text")
        recording = {"audio": row["audio"], "text": text}
    return {**common, **{key: value for key, value in recording.items() if value is not None}}


def corpus_parser(documentation: str) -> argparse.ArgumentParser:
    """The arguments that all loaders have."""
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder (or file) of the corpus, as described above")
    parser.add_argument("--split", nargs="+", required=True, help="one or several splits")
    parser.add_argument("--output", type=Path, required=True, help="file of rows to write (JSON Lines)")
    parser.add_argument(
        "--kind", choices=("task", "recording"), default="task", help="task rows, or their recordings for a codec"
    )
    parser.add_argument(
        "--missing-report",
        type=Path,
        help="leave out rows whose files or transcripts are missing and list them in this file; by default the first "
        "one is an error",
    )
    return parser


def write_corpus(
    rows: Callable[..., Iterable[Row]], parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> int:
    """
    Parse a command line, write the rows of its splits, and say how many.

    Args:
        rows: `rows(root, split, problems=..., **others)`, the loader; `others` are the arguments that its parser has
            besides those of `corpus_parser`.

    Returns:
        The number of rows. The file appears when it is complete.
    """
    options = vars(parser.parse_args(arguments))
    root, splits, output, kind, report = (
        options.pop(name) for name in ("root", "split", "output", "kind", "missing_report")
    )
    problems = Problems(strict=report is None)
    unfinished = output.with_name(output.name + ".unfinished")
    count = 0
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            for split in splits:
                for row in rows(root, split, problems=problems, **options):
                    row = as_recording(row) if kind == "recording" else row
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    count += 1
        if not count:
            raise ValueError(f"`root` {str(root)!r} gives no rows for the splits {splits}")
    except BaseException:
        unfinished.unlink()
        raise
    os.replace(unfinished, output)
    if report is not None:
        report.write_text("".join(f"{message}\n" for message in problems.found), encoding="utf-8")
    left_out = f"; {len(problems.found)} problems are listed in {report}" if problems.found else ""
    print(f"{count} rows in {output}{left_out}", file=sys.stderr)
    return count


__all__ = [
    "LANGUAGES",
    "Problems",
    "Row",
    "as_recording",
    "corpus_parser",
    "draw",
    "existing",
    "language",
    "read_table",
    "write_corpus",
]
