"""Numbers with intervals and targets: word error rate, shares, BLEU, medians.

A row that failed counts as an error: it has no right answer, and all its words are wrong.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from nano_recognizer import normalize

RESAMPLES, LEVEL = 1000, 0.95
# 97.5 % point of the normal distribution.
Z = 1.959964


@dataclass(frozen=True)
class Measure:
    """
    One measured number.

    Args:
        name: what it is.
        value: the number; `None` where there were no rows.
        n: rows it was measured on.
        low, high: 95 % interval, where there is one.
        interval: `"bootstrap"` (over rows, 1000 times), `"Wilson"`, or `None`.
        unit: behind the number.
        failed: rows that failed, which are errors in `value`.
        target: what it is to be, such as `"<= 5"`; a number behind one of `<`, `<=`, `>=`, `==`.
        note: how it was measured, where the name does not say it.
    """

    name: str
    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    interval: str | None = None
    unit: str = "%"
    failed: int | None = None
    target: str | None = None
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the value is what the target asks for; `None` without a target or a value."""
        if self.target is None or self.value is None:
            return None
        relation, bound = self.target.split()
        bound = float(bound)
        return {
            "<": self.value < bound,
            "<=": self.value <= bound,
            ">=": self.value >= bound,
            "==": self.value == bound,
        }[relation]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"reached": self.reached}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Measure":
        return cls(**{name: value for name, value in values.items() if name != "reached"})


def bootstrap(statistic: Callable[[np.ndarray], float], n: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 95 % interval of `statistic(indices of rows)` over `n` rows drawn with replacement; the same each time."""
    draw = np.random.default_rng(0)
    values = [statistic(draw.integers(n, size=n)) for _ in range(resamples)]
    low, high = np.percentile(values, [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2])
    return float(low), float(high)


def share(name: str, hits: Sequence[bool], failed: Sequence[bool] | None = None, **fields) -> Measure:
    """The share of `hits` in percent with Wilson's interval; failed rows are no hits."""
    failed = [False] * len(hits) if failed is None else failed
    n, count = len(hits), sum(hit and not fails for hit, fails in zip(hits, failed, strict=True))
    if not n:
        return Measure(name, None, 0, **fields)
    p, z2 = count / n, Z**2 / n
    centre = (p + z2 / 2) / (1 + z2)
    half = Z * np.sqrt(p * (1 - p) / n + z2 / (4 * n)) / (1 + z2)
    low, high = (float(100 * min(1.0, max(0.0, bound))) for bound in (centre - half, centre + half))
    return Measure(name, 100 * p, n, low, high, "Wilson", failed=sum(failed), **fields)


@dataclass(frozen=True)
class WordErrors:
    """Per row: wrong words (substituted, deleted, inserted) and words of the reference, int `[n]`; whether it failed."""

    errors: np.ndarray
    words: np.ndarray
    failed: np.ndarray

    @classmethod
    def count(
        cls, references: Sequence[str], hypotheses: Sequence[str], failed: Sequence[bool] | None = None
    ) -> "WordErrors":
        """
        Compare normalised texts. In a row that failed all words are wrong, or more if it says more.

        Raises:
            ValueError: other numbers of rows, or a reference without words.
        """
        import jiwer

        failed = [False] * len(references) if failed is None else failed
        errors, words = [], []
        for reference, hypothesis, fails in zip(references, hypotheses, failed, strict=True):
            if not (reference := normalize(reference)):
                raise ValueError("`references` holds a text without words")
            found = jiwer.process_words(reference, normalize(hypothesis))
            wrong = found.substitutions + found.deletions + found.insertions
            words.append(len(reference.split()))
            errors.append(max(wrong, words[-1]) if fails else wrong)
        return cls(np.array(errors, dtype=int), np.array(words, dtype=int), np.array(failed, dtype=bool))

    def rate(self, name: str, **fields) -> Measure:
        """The word error rate in percent."""
        n = len(self.words)
        if not n:
            return Measure(name, None, 0, **fields)

        def rate(rows):
            return 100 * self.errors[rows].sum() / self.words[rows].sum()

        interval = bootstrap(rate, n)
        value = float(rate(np.arange(n)))
        return Measure(name, value, n, *interval, "bootstrap", failed=int(self.failed.sum()), **fields)

    def minus(self, other: "WordErrors", name: str, **fields) -> Measure:
        """The rate less that of `other` on the same references, in points; rows are drawn in pairs."""
        n = len(self.words)
        if not n:
            return Measure(name, None, 0, unit="points", **fields)

        def difference(rows):
            return 100 * (self.errors[rows].sum() - other.errors[rows].sum()) / self.words[rows].sum()

        interval, value = bootstrap(difference, n), float(difference(np.arange(n)))
        return Measure(name, value, n, *interval, "bootstrap", "points", int(self.failed.sum()), **fields)


def bleu(name: str, references: Sequence[str], hypotheses: Sequence[str], failed: Sequence[bool], **fields) -> Measure:
    """Corpus BLEU-4 of the texts as they are (case and punctuation count); a failed row says nothing."""
    hypotheses = ["" if fails else text for text, fails in zip(hypotheses, failed, strict=True)]
    if not references:
        return Measure(name, None, 0, unit="BLEU", **fields)
    score, program = _bleu_program()

    def of(rows):
        return score([hypotheses[i] for i in rows], [references[i] for i in rows])

    n = len(references)
    interval = bootstrap(of, n, resamples=300)
    fields = {"note": program, **fields}
    return Measure(name, of(range(n)), n, *interval, "bootstrap", "BLEU", sum(failed), **fields)


def _bleu_program() -> tuple[Callable[[list[str], list[str]], float], str]:
    try:
        import sacrebleu
    except ImportError:
        try:
            from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu
        except ImportError as error:
            raise ImportError("BLEU needs sacrebleu or nltk: pip install sacrebleu") from error
        smoothing = SmoothingFunction().method4

        def by_nltk(hypotheses, references):
            pairs = [[normalize(text).split()] for text in references], [normalize(t).split() for t in hypotheses]
            return 100 * corpus_bleu(*pairs, smoothing_function=smoothing)

        return by_nltk, "nltk corpus_bleu, normalised texts, smoothing 4"
    signature = f"sacrebleu {sacrebleu.__version__}, 13a, exponential smoothing"
    return lambda said, wanted: sacrebleu.corpus_bleu(said, [wanted]).score, signature


def median(name: str, values: Sequence[float], unit: str, failed: int = 0, **fields) -> Measure:
    """The median with its interval."""
    if not len(values):
        return Measure(name, None, 0, unit=unit, failed=failed, **fields)
    array = np.asarray(values, dtype=float)
    interval = bootstrap(lambda rows: float(np.median(array[rows])), len(array))
    return Measure(name, float(np.median(array)), len(array), *interval, "bootstrap", unit, failed, **fields)


__all__ = ["Measure", "WordErrors", "bleu", "bootstrap", "median", "share"]
