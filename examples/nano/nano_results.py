"""results.json: the measured numbers, written task by task, and the table of them."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nano_scores import Measure

# Task -> the checkpoint that it measures, and the files of rows that it reads.
TASKS = {
    **{task: ("dualspeech", (task,)) for task in ("asr", "s2tt", "ser", "sqa", "tts", "vc", "t2st", "sc")},
    "codec_dualspeech": ("dualspeech", ("recordings",)),
    "chats": ("moss", ("chats",)),
    "streaming": ("moss", ("chats",)),
    "codec_moss": ("moss", ("recordings",)),
    "perplexity": ("moss", ("texts",)),
}
# What the perplexity compares, in this order.
TEXT_STAGES = ("text_model", "stage1", "stage2", "moss")
# What decides what a checkpoint does: weights, vocabularies, configurations; not its card.
CHECKPOINT_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt")


def digest(paths: Iterable[str | Path]) -> str:
    """The first 16 digits of a SHA-256 of the contents of files, in the given order."""
    whole = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:16]


def checkpoint_digest(folder: str | Path) -> str:
    """
    What tells two checkpoints apart, of all files that decide what they do, in sub-folders too.

    Raises:
        ValueError: no weights in `folder`.
    """
    folder = Path(folder)
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"no checkpoint: {str(folder)!r} has no file *.safetensors")
    return digest(sorted({path for pattern in CHECKPOINT_FILES for path in folder.rglob(pattern)}))


class Results:
    """
    The file of results. A task is done when it is there with the same `inputs` (checkpoints, rows, limit, seed).

    Raises:
        ValueError: the file is there and holds something else.
    """

    def __init__(self, path: str | Path):
        self.path, self.tasks = Path(path), {}
        if self.path.is_file():
            try:
                self.tasks = json.loads(self.path.read_text(encoding="utf-8"))["tasks"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{str(path)!r} holds no results: {error!r}") from error

    def is_done(self, task: str, inputs: Mapping[str, Any]) -> bool:
        return task in self.tasks and self.tasks[task]["inputs"] == dict(inputs)

    def add(
        self,
        task: str,
        inputs: Mapping[str, Any],
        measures: Sequence[Measure],
        rows: Sequence[Mapping[str, Any]],
        seconds: float,
        about: Mapping[str, Any],
    ) -> None:
        """Write the numbers of a task to the file, and what was said in each row beside it, in `<name>/<task>.jsonl`."""
        folder = self.path.with_suffix("")
        folder.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{task}.jsonl").write_text(lines, encoding="utf-8")
        self.tasks[task] = {
            "inputs": dict(inputs),
            "measures": [measure.to_dict() for measure in measures],
            "rows": len(rows),
            "seconds": round(seconds, 1),
            **about,
        }
        text = json.dumps({"tasks": self.tasks}, indent=2, ensure_ascii=False) + "\n"
        partial = self.path.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(self.path)

    def measures(self, task: str) -> list[Measure]:
        return [Measure.from_dict(values) for values in self.tasks[task]["measures"]]


HEAD = ("task", "number", "value", "95 % interval", "rows", "failed", "target", "reached")


def table_cells(tasks: Mapping[str, Sequence[Measure]], targets_only: bool = False) -> list[list[str]]:
    """The cells of a table, one row per measure, in the columns of `HEAD`."""
    cells = []
    for task, measures in tasks.items():
        for m in measures:
            if targets_only and m.target is None:
                continue
            interval = "" if m.low is None else f"{_shown(m.low)} to {_shown(m.high)}"
            reached = {True: "yes", False: "no", None: ""}[m.reached]
            value = "no rows" if m.value is None else f"{_shown(m.value)} {m.unit}".strip()
            failed = "" if m.failed is None else str(m.failed)
            cells.append([task, m.name, value, interval, str(m.n), failed, m.target or "", reached])
    return cells


def _shown(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def plain_table(cells: Sequence[Sequence[str]]) -> str:
    """For a terminal."""
    rows = [HEAD, *cells]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def markdown_table(cells: Sequence[Sequence[str]]) -> str:
    """For a model card."""
    rows = [HEAD, ["---"] * len(HEAD), *cells]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)


__all__ = [
    "HEAD",
    "TASKS",
    "TEXT_STAGES",
    "Results",
    "checkpoint_digest",
    "digest",
    "markdown_table",
    "plain_table",
    "table_cells",
]
