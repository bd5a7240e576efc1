"""The questions about LibriSpeech of SALMONN's training data (stage 1) as rows of spoken question answering.

    {"annotation": [{"path": "/LibriSpeech/train-clean-100/103/1240/103-1240-0000.flac",
                     "task": "QA", "Q": "the question", "text": "the answer"}, ...]}
or a list of `{"path": ..., "question": ..., "answer": ...}`; recordings are those of LibriSpeech.

    python -m dualspeech.training.corpora.salmonn_qa stage1_train.json --librispeech LibriSpeech --split train \\
        --output rows.jsonl

The paper sets 400 random pairs aside to test question answering, 400 others to test spoken answers, and speaks 100 hours
(28 000 pairs) of the rest; which ones is not published. Splits here: `train` (all but both tests), `test`, `sc-train`
(a part of `train`) and `sc-test`, whose questions and answers are to be synthesised, and `all`.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from .corpus_rows import Problems, Row, corpus_parser, existing, write_corpus

SPLITS = ("train", "test", "sc-train", "sc-test", "all")
TASKS = ("QA", "stqa", "sqa")
_AUDIO = "LibriSpeech/"


def rows(
    root: str | Path,
    split: str,
    librispeech: str | Path,
    test_size: int = 400,
    sc_train_size: int = 28_000,
    seed: int = 0,
    problems: Problems | None = None,
) -> Iterator[Row]:
    """
    Rows of the task `sqa`, in the order of the file. Entries of other tasks, and those with paths of other
    corpora than LibriSpeech, are not part of the corpus.

    Args:
        root: the JSON file.
        split: one of those above.
        librispeech: the folder `LibriSpeech`.
        test_size: pairs of `test` and of `sc-test`.
        sc_train_size: pairs of `sc-train`, at most those that there are.
        seed: of the draw of the splits.
        problems: what to do about missing recordings and texts; the first is an error by default.

    Raises:
        ValueError: an unknown split, a file of another layout, too few pairs, a missing recording or text.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` is {split!r}; accepted are {', '.join(map(repr, SPLITS))}")
    problems = problems or Problems()
    path, folder = existing("root", Path(root)), existing("librispeech", Path(librispeech))
    entries = _entries(path)
    for number in _numbers_of(split, len(entries), test_size, sc_train_size, seed):
        entry = entries[number]
        question, answer = entry.get("Q", entry.get("question")), entry.get("text", entry.get("answer"))
        recording = folder / entry["path"].rpartition(_AUDIO)[2].lstrip("/")
        if not question or not answer:
            problems.add(f"{str(path)!r}, entry {number}: no {'answer' if question else 'question'}")
        elif problems.has_file(recording):
            yield {
                "id": f"{recording.stem}-{number}",
                "task": "sqa",
                "audio": str(recording),
                "question": question,
                "targets": answer,
                "metadata": {"corpus": "SALMONN QA", "split": split},
            }


def _entries(path: Path) -> list[dict]:
    content = json.loads(path.read_text(encoding="utf-8"))
    content = content.get("annotation") if isinstance(content, dict) else content
    if not isinstance(content, list) or not all(isinstance(entry, dict) and "path" in entry for entry in content):
        raise ValueError(f"`root` {str(path)!r} must hold a list of objects with `path`, or one under 'annotation'")
    entries = [entry for entry in content if entry.get("task", TASKS[0]) in TASKS]
    if not entries:
        found = sorted({str(entry.get("task")) for entry in content})
        raise ValueError(
            f"`root` {str(path)!r} has no entries of the tasks {', '.join(TASKS)}, only {', '.join(found)}"
        )
    # Files of the layout `{"path": "dev-clean/..."}` are of LibriSpeech as a whole.
    return [entry for entry in entries if _AUDIO in entry["path"]] or entries


def _numbers_of(split: str, count: int, test_size: int, sc_train_size: int, seed: int) -> list[int]:
    """The entries of a split, in their order."""
    if split == "all":
        return list(range(count))
    if count <= 2 * test_size:
        raise ValueError(f"`test_size` is {test_size}; two tests of it leave nothing of {count} pairs")
    order = np.random.default_rng(seed).permutation(count)
    parts = {
        "test": order[:test_size],
        "sc-test": order[test_size : 2 * test_size],
        "sc-train": order[2 * test_size : 2 * test_size + sc_train_size],
        "train": order[2 * test_size :],
    }
    return sorted(parts[split].tolist())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the number of rows."""
    parser = corpus_parser(__doc__)
    parser.add_argument("--librispeech", required=True, type=Path, help="folder of LibriSpeech")
    parser.add_argument("--test-size", type=int, default=400, help="pairs of each test")
    parser.add_argument("--sc-train-size", type=int, default=28_000, help="pairs of sc-train")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of the splits")
    return write_corpus(rows, parser, arguments)


__all__ = ["main", "rows"]


if __name__ == "__main__":
    main()
