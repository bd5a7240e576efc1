"""Mixtures of data sets by weight, drawn from a seed."""

from collections.abc import Mapping

from datasets import Dataset, concatenate_datasets, interleave_datasets


def mix_datasets(
    parts: Mapping[str, Dataset], weights: Mapping[str, float], seed: int, num_rows: int | None = None
) -> Dataset:
    """
    Rows of `parts`, each row drawn from part `p` with probability proportional to `weights[p]`. Rows of a part come in
    an order shuffled by `seed`, and again from the start when the part is used up. The same arguments give the same
    mixture, so that a resumed run sees the rows that it would have seen.

    Args:
        parts: data sets with the same columns, by name.
        weights: weight of each part, at least 0 with one above 0; names without a part are not looked at.
        seed: of the draws and of the order of rows.
        num_rows: length of the mixture; by default it ends when every part of positive weight has been seen whole.

    Raises:
        ValueError: no parts, an empty part, a part without a weight, a negative weight, or all weights 0.
    """
    if not parts:
        raise ValueError("`parts` is empty; at least one data set is needed")
    if missing := sorted(set(parts) - set(weights)):
        raise ValueError(f"`weights` has no weight for {missing}; it has {dict(weights)}")
    if wrong := {name: weights[name] for name in parts if not weights[name] >= 0}:
        raise ValueError(f"`weights` must be at least 0, got {wrong}")
    if empty := sorted(name for name, part in parts.items() if not len(part)):
        raise ValueError(f"`parts`: {empty} have no rows")
    used = {name: part for name, part in parts.items() if weights[name] > 0}
    if not used:
        raise ValueError(f"`weights` of {sorted(parts)} are all 0; at least one must be positive")
    total = sum(weights[name] for name in used)
    shuffled = [part.shuffle(seed=seed + place) for place, part in enumerate(used.values())]
    probabilities = [weights[name] / total for name in used]
    if len(shuffled) == 1:
        mixed = shuffled[0]
    else:
        mixed = interleave_datasets(
            shuffled, probabilities=probabilities, seed=seed, stopping_strategy="all_exhausted"
        )
    if num_rows is None:
        return mixed
    while len(mixed) < num_rows:
        mixed = concatenate_datasets([mixed, mixed])
    return mixed.select(range(num_rows))


def parse_weights(text: str) -> dict[str, float]:
    """
    `"tts=0.5,asr=0.2"` as a mapping.

    Raises:
        ValueError: an entry that is not `name=number`, or a name twice.
    """
    weights: dict[str, float] = {}
    for entry in text.split(","):
        name, equals, value = (part.strip() for part in entry.partition("="))
        try:
            weight = float(value)
        except ValueError:
            weight = None
        if not name or not equals or weight is None or name in weights:
            raise ValueError(f"weights {text!r}: {entry.strip()!r} is not accepted; write name=number, each name once")
        weights[name] = weight
    return weights


__all__ = ["mix_datasets", "parse_weights"]
