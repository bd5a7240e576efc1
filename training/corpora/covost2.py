"""CoVoST 2 over Common Voice (Corpus 4) as rows of speech to text translation.

    en/clips/common_voice_en_1.mp3
    en/validated.tsv                columns path, sentence, ... (of Common Voice)
    en/covost_v2.en_de.tsv          columns path, translation, split (train, dev, test)
or, instead of the two tables, those that the corpus' own script makes of them:
    en/covost_v2.en_de.train.tsv    columns path, sentence, translation, client_id

    python -m dualspeech.training.corpora.covost2 en --split train --source en --target de --output rows.jsonl
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from .corpus_rows import Problems, Row, corpus_parser, existing, language, read_table, write_corpus

SPLITS = ("train", "dev", "test")


def rows(
    root: str | Path, split: str, source: str = "en", target: str = "de", problems: Problems | None = None
) -> Iterator[Row]:
    """
    Rows of the task `s2tt`, in the order of the table.

    Args:
        root: the folder of the source language.
        split: `train`, `dev` or `test`; `train` has also the entries marked `train_covost`.
        source, target: codes of the languages, `en` and `de`.
        problems: what to do about missing clips and translations; the first is an error by default.

    Raises:
        ValueError: no tables, an unknown split or language, a missing clip, or an empty translation.
    """
    problems = problems or Problems()
    root, names = Path(root), {"source_language": language(source), "target_language": language(target)}
    clips = existing("root", root / "clips")
    for entry in read_entries(root, split, source, target):
        clip = clips / entry["path"]
        if not entry["translation"].strip():
            problems.add(f"{entry['path']!r} has no translation")
        elif problems.has_file(clip):
            metadata = {"corpus": "CoVoST 2", "split": split, "source_text": entry.get("sentence")}
            yield {
                "id": clip.stem,
                "task": "s2tt",
                "audio": str(clip),
                **names,
                "targets": entry["translation"].strip(),
                "metadata": {key: value for key, value in metadata.items() if value},
            }


def read_entries(root: Path, split: str, source: str, target: str) -> Iterator[dict[str, str]]:
    """
    Entries of a split with `path`, `translation` and, where it is known, `sentence`.

    Raises:
        ValueError: no tables, or an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` is {split!r}; accepted are {', '.join(map(repr, SPLITS))}")
    of_split = root / f"covost_v2.{source}_{target}.{split}.tsv"
    if of_split.is_file():
        yield from read_table(of_split, ("path", "sentence", "translation"))
        return
    table = existing("root", of_split, root / f"covost_v2.{source}_{target}.tsv")
    sentences = {}
    if (root / "validated.tsv").is_file():
        sentences = {
            entry["path"]: entry["sentence"] for entry in read_table(root / "validated.tsv", ("path", "sentence"))
        }
    wanted = (split, f"{split}_covost") if split == "train" else (split,)
    for entry in read_table(table, ("path", "translation", "split")):
        if entry["split"] in wanted:
            yield {**entry, "sentence": sentences.get(entry["path"], "")}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the number of rows."""
    parser = corpus_parser(__doc__)
    parser.add_argument("--source", default="en", help="language of the clips")
    parser.add_argument("--target", default="de", help="language of the translations")
    return write_corpus(rows, parser, arguments)


__all__ = ["main", "read_entries", "rows"]


if __name__ == "__main__":
    main()
