"""Spoken questions and answers about recordings (the task SC), from audio that was prepared before.

    spoken_qa/train.tsv     columns id, content, question, answer, and any of question_text, answer_text, content_text
    spoken_qa/...           the recordings; paths in the table are relative to its folder, or absolute

    python -m dualspeech.training.corpora.spoken_qa spoken_qa --split train --output rows.jsonl

The paper speaks pairs of the corpus `salmonn_qa` (splits `sc-train` and `sc-test`) with a synthesizer: content is the
recording of LibriSpeech, question and answer are synthesised.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from .corpus_rows import Problems, Row, corpus_parser, existing, read_table, write_corpus

_RECORDINGS = ("content", "question", "answer")
# Columns of the table and what they are called in the metadata.
_TEXTS = {"content_text": "content_text", "question_text": "question_text", "answer_text": "target_text"}


def rows(root: str | Path, split: str, problems: Problems | None = None) -> Iterator[Row]:
    """
    Rows of the task `sc`, in the order of the table. The text of the answer is `target_text` of the metadata.

    Args:
        root: the folder of the tables.
        split: which table.
        problems: what to do about missing recordings; the first is an error by default.

    Raises:
        ValueError: no such table, a missing column, or a missing recording.
    """
    problems = problems or Problems()
    table = existing("split", Path(root) / f"{split}.tsv")
    for entry in read_table(table, ("id", *_RECORDINGS)):
        paths = {name: table.parent / entry[name] for name in _RECORDINGS}
        if not [path for path in paths.values() if not problems.has_file(path)]:
            texts = {name: entry[column] for column, name in _TEXTS.items() if entry.get(column)}
            yield {
                "id": entry["id"],
                "task": "sc",
                "audio": str(paths["content"]),
                "question": str(paths["question"]),
                "targets": {"audio": str(paths["answer"])},
                "metadata": {"corpus": "spoken QA", "split": split, **texts},
            }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the number of rows."""
    return write_corpus(rows, corpus_parser(__doc__), arguments)


__all__ = ["main", "rows"]


if __name__ == "__main__":
    main()
