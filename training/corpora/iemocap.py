"""IEMOCAP (full release) as rows of emotion recognition, 16 kHz.

    IEMOCAP_full_release/Session1/dialog/EmoEvaluation/Ses01F_impro01.txt
        lines "[6.2901 - 8.2357]<tab>Ses01F_impro01_F000<tab>neu<tab>[2.5000, 2.5000, 2.5000]"
    IEMOCAP_full_release/Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav

    python -m dualspeech.training.corpora.iemocap IEMOCAP_full_release --split train --output rows.jsonl

The usual set of four classes: angry, happy, neutral, sad. Utterances of other classes, and those without a majority, are
not part of it. The paper trains on about 4000 utterances of sessions 1 to 4 and tests on session 5, without naming the
classes; with excited as happy there are 4290 in sessions 1 to 4.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from .corpus_rows import Problems, Row, corpus_parser, existing, write_corpus

EMOTIONS = {"ang": "angry", "hap": "happy", "neu": "neutral", "sad": "sad"}
SPLITS = ("train", "test")
SESSIONS = (1, 2, 3, 4, 5)
_LINE = re.compile(r"^\[[\d.]+ - [\d.]+\]\t(?P<name>Ses\w+)\t(?P<emotion>\w+)\t")


def rows(
    root: str | Path,
    split: str,
    merge_excited: bool = True,
    test_session: int = 5,
    problems: Problems | None = None,
) -> Iterator[Row]:
    """
    Rows of the task `ser`, in the order of sessions, dialogues and utterances.

    Args:
        root: the folder with `Session1` to `Session5`, or the one that holds it.
        split: `test` is one session, `train` the others.
        merge_excited: count "excited" as happy; otherwise it is none of the four classes.
        test_session: the session of the test.
        problems: what to do about missing recordings; the first is an error by default.

    Raises:
        ValueError: an unknown split or session, a missing session, or a missing recording.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` is {split!r}; accepted are {', '.join(map(repr, SPLITS))}")
    if test_session not in SESSIONS:
        raise ValueError(f"`test_session` is {test_session!r}; accepted are {', '.join(map(str, SESSIONS))}")
    problems = problems or Problems()
    emotions = {**EMOTIONS, "exc": "happy"} if merge_excited else EMOTIONS
    for number in SESSIONS:
        if (number == test_session) != (split == "test"):
            continue
        name = f"Session{number}"
        session = existing("root", Path(root) / name, Path(root) / "IEMOCAP_full_release" / name)
        labels = existing("root", session / "dialog" / "EmoEvaluation")
        # The archive also has files ._*.txt, which are none.
        for path in sorted(path for path in labels.glob("*.txt") if not path.name.startswith(".")):
            for utterance, label in _labels(path):
                recording = session / "sentences" / "wav" / path.stem / f"{utterance}.wav"
                if label in emotions and problems.has_file(recording):
                    yield {
                        "id": utterance,
                        "task": "ser",
                        "audio": str(recording),
                        "targets": emotions[label],
                        "metadata": {"corpus": "IEMOCAP", "split": split, "session": number, "label": label},
                    }


def _labels(path: Path) -> list[tuple[str, str]]:
    found = [_LINE.match(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted((match["name"], match["emotion"]) for match in found if match)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the number of rows."""
    parser = corpus_parser(__doc__)
    parser.add_argument(
        "--merge-excited", action=argparse.BooleanOptionalAction, default=True, help="count excited as happy"
    )
    parser.add_argument("--test-session", type=int, default=5, help="session of the split test")
    return write_corpus(rows, parser, arguments)


__all__ = ["EMOTIONS", "main", "rows"]


if __name__ == "__main__":
    main()
