"""VCTK (0.92, or 0.80) as pairs for voice conversion: one sentence by two speakers, 48 kHz.

    VCTK-Corpus-0.92/txt/p225/p225_001.txt
    VCTK-Corpus-0.92/wav48_silence_trimmed/p225/p225_001_mic1.flac
or, in version 0.80:
    VCTK-Corpus/wav48/p225/p225_001.wav

    python -m dualspeech.training.corpora.vctk VCTK-Corpus-0.92 --split test --count 400 --output rows.jsonl

The test of the paper (appendix C): 400 random pairs of one sentence, and the voice from a different utterance of the
target speaker. Its list of pairs is not published.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path

from .corpus_rows import Problems, Row, corpus_parser, existing, write_corpus

MICROPHONES = ("mic1", "mic2")
# The texts of this speaker are lost, as the corpus' own documentation says.
WITHOUT_TEXTS = ("p315",)
# Version 0.92 has texts of this speaker without recordings, so that texts alone are no gap there.
WITHOUT_RECORDINGS = ("p362",)


def rows(
    root: str | Path,
    split: str = "test",
    count: int = 400,
    seed: int = 0,
    microphone: str = "mic1",
    problems: Problems | None = None,
) -> Iterator[Row]:
    """
    Rows of the task `vc`: a recording, another utterance of the target speaker as `speaker`, and the target speaker's
    recording of the same sentence as the target. The sentence is `text` of the metadata.

    Args:
        root: the folder of the corpus.
        split: `test`; the corpus has no others.
        count: number of pairs.
        seed: of the draw of pairs and utterances.
        microphone: of version 0.92; some speakers have no `mic2`.
        problems: what to do about missing files; the first is an error by default.

    Raises:
        ValueError: no corpus, another split, an unknown microphone, missing files, or fewer than `count` pairs.
    """
    if split != "test":
        raise ValueError(f"`split` is {split!r}; accepted is 'test', the corpus has no others")
    if microphone not in MICROPHONES:
        raise ValueError(f"`microphone` is {microphone!r}; accepted are {', '.join(map(repr, MICROPHONES))}")
    problems = problems or Problems()
    utterances = _utterances(Path(root), microphone, problems)
    by_text, by_speaker = defaultdict(list), defaultdict(list)
    for utterance in utterances:
        by_text[utterance[2]].append(utterance)
        by_speaker[utterance[0]].append(utterance)
    pairs = []
    for text in sorted(by_text):
        for source, target in permutations(by_text[text], 2):
            others = len(by_speaker[target[0]]) > sum(entry[2] == text for entry in by_speaker[target[0]])
            if source[0] != target[0] and others:
                pairs.append((source, target))
    if len(pairs) < count:
        raise ValueError(f"`count` is {count}; accepted are at most {len(pairs)}, the pairs of one sentence")
    generator = random.Random(seed)
    for source, target in (pairs[i] for i in sorted(generator.sample(range(len(pairs)), count))):
        voice = generator.choice([entry for entry in by_speaker[target[0]] if entry[2] != target[2]])
        yield {
            "id": f"{source[1].stem}-{target[1].stem}",
            "task": "vc",
            "audio": str(source[1]),
            "speaker": str(voice[1]),
            "targets": {"audio": str(target[1])},
            "metadata": {
                "corpus": "VCTK",
                "split": split,
                "source_speaker": source[0],
                "target_speaker": target[0],
                "text": target[3],
            },
        }


def _utterances(root: Path, microphone: str, problems: Problems) -> list[tuple[str, Path, str, str]]:
    """Speaker, recording, sentence in plain words, and sentence of every utterance."""
    texts = existing("root", root / "txt")
    audio = existing("root", root / "wav48_silence_trimmed", root / "wav48")
    is_trimmed = audio.name == "wav48_silence_trimmed"  # version 0.92
    ending = f"_{microphone}.flac" if is_trimmed else ".wav"
    utterances = []
    for speaker in sorted(path.name for path in audio.iterdir() if path.is_dir()):
        if speaker in WITHOUT_TEXTS:
            continue
        names = {path.name.removesuffix(ending) for path in (audio / speaker).glob(f"*{ending}")}
        if not (is_trimmed and speaker in WITHOUT_RECORDINGS):
            names |= {path.stem for path in (texts / speaker).glob("*.txt")}
        for name in sorted(names):
            transcript, recording = texts / speaker / f"{name}.txt", audio / speaker / f"{name}{ending}"
            if problems.has_file(transcript) and problems.has_file(recording):
                text = " ".join(transcript.read_text(encoding="utf-8").split())
                utterances.append((speaker, recording, plain_words(text), text))
    return utterances


def plain_words(text: str) -> str:
    """Small letters without punctuation: what two transcripts of one sentence have in common."""
    return " ".join(re.sub(r"[^\w' ]+", " ", text.lower()).split())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the number of rows."""
    parser = corpus_parser(__doc__)
    parser.add_argument("--count", type=int, default=400, help="number of pairs")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--microphone", choices=MICROPHONES, default="mic1", help="of version 0.92")
    return write_corpus(rows, parser, arguments)


__all__ = ["main", "plain_words", "rows"]


if __name__ == "__main__":
    main()
