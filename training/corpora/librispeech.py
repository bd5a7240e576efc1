"""LibriSpeech (OpenSLR resource 12) as rows of speech recognition.

LibriSpeech/train-clean-100/103/1240/103-1240-0000.flac
LibriSpeech/train-clean-100/103/1240/103-1240.trans.txt     lines "103-1240-0000 CHAPTER ONE MISSUS RACHEL ..."

python -m dualspeech.training.corpora.librispeech LibriSpeech --split train-clean-100 --output rows.jsonl
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from .corpus_rows import Problems, Row, corpus_parser, existing, write_corpus

CASES = ("lower", "upper")


def rows(root: str | Path, split: str, case: str = "lower", problems: Problems | None = None) -> Iterator[Row]:
    """
    Rows of the task `asr`, in the order of speakers, chapters and utterances.

    Args:
        root: the folder `LibriSpeech`, or the one that holds it.
        split: a folder of it: `train-clean-100`, `test-other` ...
        case: the transcripts are in capitals (`"upper"`); the training of the paper has them in small letters.
        problems: what to do about missing files; the first is an error by default.

    Raises:
        ValueError: no such split, an unknown `case`, or a transcript without a recording or the other way round.
    """
    if case not in CASES:
        raise ValueError(f"`case` is {case!r}; accepted are {', '.join(map(repr, CASES))}")
    problems = problems or Problems()
    folder = existing("split", Path(root) / split, Path(root) / "LibriSpeech" / split)
    for chapter in sorted(path for path in folder.glob("*/*") if path.is_dir()):
        transcripts = _transcripts(chapter, problems)
        names = sorted({*transcripts, *(path.stem for path in chapter.glob("*.flac"))})
        for name in names:
            if name not in transcripts:
                problems.add(f"the recording {str(chapter / name)!r} has no transcript")
            elif problems.has_file(chapter / f"{name}.flac"):
                text = transcripts[name]
                yield {
                    "id": name,
                    "task": "asr",
                    "audio": str(chapter / f"{name}.flac"),
                    "targets": text.lower() if case == "lower" else text,
                    "metadata": {"corpus": "LibriSpeech", "split": split, "speaker": chapter.parent.name},
                }


def _transcripts(chapter: Path, problems: Problems) -> dict[str, str]:
    path = chapter / f"{chapter.parent.name}-{chapter.name}.trans.txt"
    if not problems.has_file(path):
        return {}
    transcripts = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        name, _, text = line.strip().partition(" ")
        if text:
            transcripts[name] = text
        elif name:
            problems.add(f"{str(path)!r}, line {number}: {name!r} has no text")
    return transcripts


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the number of rows."""
    parser = corpus_parser(__doc__)
    parser.add_argument("--case", choices=CASES, default="lower", help="letters of the transcripts")
    return write_corpus(rows, parser, arguments)


__all__ = ["main", "rows"]


if __name__ == "__main__":
    main()
