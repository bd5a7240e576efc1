"""Libriheavy (manifests of version 1) over Libri-Light as rows of voice conversion, 16 kHz.

    libriheavy/libriheavy_cuts_small.jsonl.gz           one cut per line, as Lhotse writes them
    libriheavy/download/librilight/small/100/sea_fairies_0812_librivox_64kb_mp3/01_baum_sea_fairies_64kb.flac

    python -m dualspeech.training.corpora.libriheavy libriheavy --split large --hours 1000 --output rows.jsonl

A cut is a segment of a recording of up to hours: rows name it as `{"path": ..., "start": ..., "end": ...}` in seconds,
and only that segment is read. The paper draws 1000 hours at random; input and target are the same segment, and the voice
is that of the target. Training needs the recordings at the codec's rate too (`resample`).
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .corpus_rows import Problems, Row, corpus_parser, existing, write_corpus

_AUDIO = "librilight/"  # in front of the part of a source that is the same for everybody


def rows(
    root: str | Path,
    split: str,
    librilight: str | Path | None = None,
    hours: float | None = None,
    seed: int = 0,
    problems: Problems | None = None,
) -> Iterator[Row]:
    """
    Rows of the task `vc`, in the order of the manifest. The text is `text` of the metadata.

    Args:
        root: the folder of the manifests.
        split: `small`, `medium`, `large`, `dev`, `test_clean` ...: which manifest.
        librilight: the folder of Libri-Light (with `small`, `medium`, `large`); `download/librilight` or `librilight` in
            `root` by default.
        hours: draw cuts at random until they have this length; all by default.
        seed: of the draw.
        problems: what to do about missing recordings; the first is an error by default.

    Raises:
        ValueError: no manifest, no folder of recordings, a cut of another layout, a missing recording, or fewer than
            `hours`.
    """
    problems = problems or Problems()
    root = Path(root)
    manifest = existing("split", root / f"libriheavy_cuts_{split}.jsonl.gz", root / f"libriheavy_cuts_{split}.jsonl")
    default = (root / "download" / "librilight", root / "librilight")
    folder = existing("librilight", *(default if librilight is None else (Path(librilight),)))
    chosen = None if hours is None else _drawn(manifest, hours, seed)
    missing, present = set(), set()
    for number, cut in enumerate(_cuts(manifest)):
        if chosen is not None and not chosen[number]:
            continue
        path = folder / cut["source"]
        if path not in present:
            if path in missing or not problems.has_file(path):
                missing.add(path)
                continue
            present.add(path)
        segment = {"path": str(path), "start": cut["start"], "end": cut["end"]}
        metadata = {"corpus": "Libriheavy", "split": split, "speaker": cut["speaker"], "text": cut["text"]}
        yield {
            "id": cut["id"],
            "task": "vc",
            "audio": segment,
            "targets": {"audio": dict(segment)},
            "metadata": {key: value for key, value in metadata.items() if value},
        }


def _cuts(manifest: Path) -> Iterator[dict[str, Any]]:
    """Name, recording, seconds, speaker and text of every cut."""
    with gzip.open(manifest, "rt", encoding="utf-8") if manifest.suffix == ".gz" else manifest.open() as lines:
        for number, line in enumerate(lines, start=1):
            cut = json.loads(line)
            try:
                (source,) = cut["recording"]["sources"]
                (supervision,) = cut["supervisions"]
                _, _, path = source["source"].rpartition(_AUDIO)
                texts = supervision.get("custom", {}).get("texts") or [supervision.get("text")]
                yield {
                    "id": cut["id"],
                    "source": path,
                    "start": round(cut["start"], 6),
                    "end": round(cut["start"] + cut["duration"], 6),
                    "speaker": supervision.get("speaker"),
                    "text": texts[0],
                }
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(
                    f"{str(manifest)!r}, line {number}: no cut with one source and one supervision ({error!r})"
                ) from error


def _drawn(manifest: Path, hours: float, seed: int) -> np.ndarray:
    """Which cuts are drawn: as few as make up `hours` in a random order."""
    seconds = np.array([cut["end"] - cut["start"] for cut in _cuts(manifest)])
    if seconds.sum() < 3600 * hours:
        raise ValueError(f"`hours` is {hours}; {str(manifest)!r} has {seconds.sum() / 3600:.1f}")
    order = np.random.default_rng(seed).permutation(len(seconds))
    needed = 1 + int(np.searchsorted(seconds[order].cumsum(), 3600 * hours - 1e-6))
    chosen = np.zeros(len(seconds), dtype=bool)
    chosen[order[:needed]] = True
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the number of rows."""
    parser = corpus_parser(__doc__)
    parser.add_argument("--librilight", type=Path, help="folder of Libri-Light")
    parser.add_argument("--hours", type=float, help="draw this much at random")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    return write_corpus(rows, parser, arguments)


__all__ = ["main", "rows"]


if __name__ == "__main__":
    main()
