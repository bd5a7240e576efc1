"""Mixtures of data sets by weight, drawn from a seed."""

import math
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
        weights: weight of each part, finite and at least 0 with one above 0; names without a part are not looked at.
        seed: of the draws and of the order of rows.
        num_rows: length of the mixture; by default it ends when every part of positive weight has been seen whole.

    Raises:
        ValueError: no parts, an empty part, parts with different columns, a part without a weight, a weight that is
            negative or not finite, all weights 0, or a length below 1.
    """
    if not parts:
        raise ValueError("`parts` is empty; at least one data set is needed")
    if missing := sorted(set(parts) - set(weights)):
        raise ValueError(f"`weights` has no weight for {missing}; it has {dict(weights)}")
    if wrong := {name: weights[name] for name in parts if not 0 <= weights[name] < math.inf}:
        raise ValueError(f"`weights` must be at least 0 and finite, got {wrong}")
    if num_rows is not None and num_rows < 1:
        raise ValueError(f"`num_rows` is {num_rows}; accepted is at least 1, or None")
    if empty := sorted(name for name, part in parts.items() if not len(part)):
        raise ValueError(f"`parts`: {empty} have no rows")
    check_columns(parts)
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


def check_columns(parts: Mapping[str, Dataset]) -> None:
    """
    Raises:
        ValueError: parts with different columns; what one lacks would be filled in with `None`.
    """
    columns = {name: set(part.column_names) for name, part in parts.items()}
    everywhere = set.intersection(*columns.values())
    if others := {name: sorted(found - everywhere) for name, found in columns.items() if found != everywhere}:
        listed = ", ".join(f"{name!r} also has {found}" for name, found in others.items())
        raise ValueError(f"`parts` need the same columns; all have {sorted(everywhere)}, {listed}")


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


__all__ = ["check_columns", "mix_datasets", "parse_weights"]
