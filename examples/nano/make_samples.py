"""Make the spoken inputs of the quickstart: sentences of the test split, which no training of the nano models has.

    python examples/nano/make_samples.py          # writes examples/samples/*.wav and rows.jsonl
    python examples/nano/make_samples.py --corpus outputs/nano/corpus         # also compares them with the training rows

espeak-ng and flite must be installed. Files are 16 kHz, mono, 16 bits. What each is: examples/samples/README.md.
"""

import argparse
import json
from pathlib import Path

from nano_audio import Utterance
from nano_grammar import Frame, questions
from nano_voices import SAMPLING_RATE, speak

MAX_BYTES = 100_000


def _asked(frame: Frame, about: str) -> str:
    return next(question.question for question in questions(frame) if question.about == about)


LAMPS = Frame("event", name=13, verb=0, number=7, colour=2, noun=19, place=4)
SHIRT = Frame("state", colour=7, noun=9, place=5)
COATS = Frame("event", name=8, verb=6, number=8, noun=20, place=9)
CHAIRS = Frame("event", name=9, verb=5, number=1, colour=1, noun=4, place=5, time=9)
BEDS = Frame("event", name=0, verb=8, number=2, colour=1, noun=23, place=2, time=1)
# File name: the frame that it is about, which is one of the test split, and what is said.
SAMPLES = {
    "sentence": (LAMPS, Utterance(LAMPS.text(), "kal")),
    "question": (LAMPS, Utterance(_asked(LAMPS, "what"), "kal")),
    "angry": (COATS, Utterance(COATS.text(), "m3", "angry")),
    "user_turn": (SHIRT, Utterance(f"{SHIRT.text()} {_asked(SHIRT, 'place')}", "rms")),
    "voice_slt": (CHAIRS, Utterance(CHAIRS.text(), "slt")),
    "voice_us": (BEDS, Utterance(BEDS.text(), "us")),
}


def check_unheard(corpus: str | Path) -> None:
    """
    Raises:
        ValueError: a training row of the nano corpus in the folder `corpus` has one of the recordings of `SAMPLES`, or,
            with noise or in another voice, one of their texts; but the question is asked of other sentences too, by
            other voices.
    """
    trained = set()
    for path in (Path(corpus) / "rows" / "train").glob("*transcripts.jsonl"):
        rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        trained |= {(row["text"], row["metadata"]["voice"]) for row in rows}
    if not trained:
        raise ValueError(f"`corpus` {str(corpus)!r} has no rows/train/transcripts.jsonl; make_corpus.py writes it")
    texts = {text for text, _ in trained}
    for name, (_, said) in SAMPLES.items():
        if (said.text, said.voice) in trained or (name != "question" and said.text in texts):
            raise ValueError(f"{name}: {said.text!r} is in the training rows of {str(corpus)!r}")


def make_samples(folder: str | Path) -> None:
    """
    Speak `SAMPLES` into `folder`, with a row for each in `rows.jsonl`.

    Raises:
        ValueError: a frame is not of the test split, a synthesizer is missing, or a file gets too large.
    """
    import soundfile

    folder, lines = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    for name, (frame, said) in SAMPLES.items():
        if frame.split != "test":
            raise ValueError(f"{name}: {frame.text()!r} is of the split {frame.split!r}; accepted is 'test'")
        path = folder / f"{name}.wav"
        soundfile.write(str(path), speak(said.text, said.voice, said.emotion), SAMPLING_RATE, subtype="PCM_16")
        if path.stat().st_size >= MAX_BYTES:
            raise ValueError(f"{name}: {path.stat().st_size} bytes; accepted are fewer than {MAX_BYTES}")
        row = {"audio": path.name, "text": said.text, "speaker": said.voice, "metadata": {"emotion": said.emotion}}
        lines.append(json.dumps(row) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default=str(Path(__file__).parents[1] / "samples"))
    parser.add_argument("--corpus", help="folder of the nano corpus, whose training must not have the samples")
    options = parser.parse_args(arguments)
    if options.corpus is not None:
        check_unheard(options.corpus)
    make_samples(options.folder)


if __name__ == "__main__":
    main()

__all__ = ["MAX_BYTES", "SAMPLES", "check_unheard", "make_samples"]
