"""LibriTTS-R (OpenSLR resource 141) as rows of text to speech, 24 kHz.

LibriTTS_R/train-clean-100/103/1241/103_1241_000000_000001.wav
LibriTTS_R/train-clean-100/103/1241/103_1241_000000_000001.normalized.txt

python -m dualspeech.training.corpora.libritts_r LibriTTS_R --split train-clean-100 --output rows.jsonl
python -m dualspeech.training.corpora.libritts_r LibriTTS_R --split test-clean --speaker other --output rows.jsonl
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from .corpus_rows import Problems, Row, corpus_parser, draw, existing, write_corpus

SPEAKERS = ("target", "other")
_TEXT = ".normalized.txt"


def rows(
    root: str | Path, split: str, speaker: str = "target", seed: int = 0, problems: Problems | None = None
) -> Iterator[Row]:
    """
    Rows of the task `tts`, in the order of speakers, chapters and utterances.

    Args:
        root: the folder `LibriTTS_R`, or the one that holds it.
        split: a folder of it: `train-clean-100`, `test-other` ...
        speaker: whose voice: `"target"` leaves it to the target recording, as in the released training; `"other"` names
            another utterance of the speaker, as similarity of voices should be measured.
        seed: of the choice of the other utterance.
        problems: what to do about missing files; the first is an error by default.

    Raises:
        ValueError: no such split, an unknown `speaker`, a text without a recording or the other way round, or a speaker
            without another utterance.
    """
    if speaker not in SPEAKERS:
        raise ValueError(f"`speaker` is {speaker!r}; accepted are {', '.join(map(repr, SPEAKERS))}")
    problems = problems or Problems()
    folder = existing("split", Path(root) / split, Path(root) / "LibriTTS_R" / split)
    for person in sorted(path for path in folder.iterdir() if path.is_dir()):
        texts = _utterances(person, problems)
        paths = sorted(texts)
        for path in paths:
            row = {
                "id": path.stem,
                "task": "tts",
                "text": texts[path],
                "targets": {"audio": str(path)},
                "metadata": {"corpus": "LibriTTS-R", "split": split, "speaker": person.name},
            }
            if speaker == "other":
                others = [other for other in paths if other != path]
                if not others:
                    problems.add(f"the speaker of {str(path)!r} has no other utterance")
                    continue
                row["speaker"] = str(draw(seed, path.stem).choice(others))
            yield row


def _utterances(person: Path, problems: Problems) -> dict[Path, str]:
    """The texts of a speaker's recordings."""
    recordings = set(person.glob("*/*.wav"))
    transcripts = {path.with_name(path.name.removesuffix(_TEXT) + ".wav"): path for path in person.glob(f"*/*{_TEXT}")}
    texts = {}
    for path in sorted({*recordings, *transcripts}):
        if path not in transcripts:
            problems.add(f"the recording {str(path)!r} has no {path.stem}{_TEXT}")
        elif problems.has_file(path):
            text = " ".join(transcripts[path].read_text(encoding="utf-8").split())
            if text:
                texts[path] = text
            else:
                problems.add(f"the text {str(transcripts[path])!r} is empty")
    return texts


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the number of rows."""
    parser = corpus_parser(__doc__)
    parser.add_argument("--speaker", choices=SPEAKERS, default="target", help="the voice: the target's, or another")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of the other utterance")
    return write_corpus(rows, parser, arguments)


__all__ = ["main", "rows"]


if __name__ == "__main__":
    main()
