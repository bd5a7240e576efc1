"""Make the nano corpus: the micro-language, spoken, as rows of all tasks.

    python examples/nano/make_corpus.py --output outputs/nano/corpus
    python examples/nano/make_corpus.py --output outputs/nano/corpus --human_digits free-spoken-digit-dataset/recordings

espeak-ng and flite must be installed. The same command makes the same corpus; recordings that are there already are kept,
so an interrupted run goes on. The folder gets `rows/<split>/<task>.jsonl` and `audio/<voice>/*.wav` (16 kHz, mono).
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from nano_audio import digit_takes, record
from nano_grammar import SPLITS
from nano_rows import ROW_FILES, Rows
from nano_voices import check_programs


def make_corpus(
    output: str | Path, human_digits: str | None = None, seed: int = 0, scale: float = 1.0, workers: int = 2
) -> dict[str, int]:
    """Make the corpus in `output`; returns the number of rows of each file. See the module."""
    check_programs()
    takes = None if human_digits is None else digit_takes(human_digits)
    counts, utterances, earlier = {}, {}, []
    for split in SPLITS:
        rows = Rows(split, seed, scale, takes, earlier)
        folder = Path(output) / "rows" / split
        folder.mkdir(parents=True, exist_ok=True)
        for name in ROW_FILES:
            made = getattr(rows, name)()
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
            (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
            counts[f"{split}/{name}"] = len(made)
        utterances |= rows.utterances
        earlier.append(rows)
    make = partial(record, folder=str(output), human_digits=human_digits)
    with ProcessPoolExecutor(workers) as pool:
        for done, _ in enumerate(pool.map(make, utterances, chunksize=16), start=1):
            if done % 1000 == 0 or done == len(utterances):
                print(f"{done} of {len(utterances)} recordings", flush=True)
    return counts


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="outputs/nano/corpus")
    parser.add_argument("--human_digits", help="folder of recorded digits, {digit}_{speaker}_{take}.wav")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of rows")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    counts = make_corpus(**vars(parser.parse_args(arguments)))
    print("\n".join(f"{count:7} {name}" for name, count in counts.items()))


if __name__ == "__main__":
    main()
