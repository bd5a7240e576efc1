"""CVSS-C 1.0 with the source texts of CoVoST 2 as rows of text to speech translation, 24 kHz.

cvss_c_es_en_v1.0/train.tsv                                 lines "common_voice_es_1.mp3<tab>the translation"
cvss_c_es_en_v1.0/train/common_voice_es_1.mp3.wav           the translation, spoken
es/covost_v2.es_en.train.tsv                                or validated.tsv and covost_v2.es_en.tsv: the source texts,
                                                            as in the loader `covost2`

python -m dualspeech.training.corpora.cvss cvss_c_es_en_v1.0 --covost es --source es --split train --output rows.jsonl
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from .corpus_rows import Problems, Row, corpus_parser, existing, language, read_table, write_corpus
from .covost2 import read_entries


def rows(
    root: str | Path, split: str, covost: str | Path, source: str = "es", problems: Problems | None = None
) -> Iterator[Row]:
    """
    Rows of the task `t2st` into English, in the order of the table; the translation is `target_text` of the metadata.

    Args:
        root: the folder of a pair of languages.
        split: `train`, `dev` or `test`.
        covost: the folder of the source language of CoVoST 2 with its tables; no clips are needed.
        source: code of the source language, `es` or `fr` in the paper.
        problems: what to do about missing recordings and source texts; the first is an error by default.

    Raises:
        ValueError: no tables, an unknown split or language, a missing recording or source text.
    """
    problems = problems or Problems()
    table = existing("split", Path(root) / f"{split}.tsv")
    sentences = {entry["path"]: entry.get("sentence", "") for entry in read_entries(Path(covost), split, source, "en")}
    for entry in read_table(table, ("path", "translation"), header=False):
        recording = table.parent / split / f"{entry['path']}.wav"
        text = sentences.get(entry["path"], "").strip()
        if not text:
            problems.add(f"{entry['path']!r} has no source text in {str(covost)!r}")
        elif problems.has_file(recording):
            yield {
                "id": Path(entry["path"]).stem,
                "task": "t2st",
                "text": text,
                "source_language": language(source),
                "target_language": language("en"),
                "targets": {"audio": str(recording)},
                "metadata": {"corpus": "CVSS-C", "split": split, "target_text": entry["translation"]},
            }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the number of rows."""
    parser = corpus_parser(__doc__)
    parser.add_argument("--covost", required=True, type=Path, help="folder of the tables of CoVoST 2")
    parser.add_argument("--source", default="es", help="source language")
    return write_corpus(rows, parser, arguments)


__all__ = ["main", "rows"]


if __name__ == "__main__":
    main()
