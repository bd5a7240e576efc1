"""Mixtures of data sets: frequencies, seeds, and what ends them."""

from collections import Counter

import pytest
from datasets import Dataset

from dualspeech.training.mixtures import mix_datasets, parse_weights


def parts(**sizes):
    return {name: Dataset.from_dict({"row": [f"{name}{i}" for i in range(size)]}) for name, size in sizes.items()}


def names(data):
    return Counter(row.rstrip("0123456789") for row in data["row"])


def test_frequencies_follow_the_weights():
    data = mix_datasets(parts(a=700, b=700, c=700), {"a": 6, "b": 3, "c": 1, "other": 9}, seed=0, num_rows=6000)
    counts = names(data)
    assert len(data) == 6000
    assert [counts[name] / 6000 for name in "abc"] == pytest.approx([0.6, 0.3, 0.1], abs=0.02)


def test_only_ratios_count():
    one = mix_datasets(parts(a=9, b=9), {"a": 0.2, "b": 0.1}, seed=1)
    assert one["row"][:] == mix_datasets(parts(a=9, b=9), {"a": 1.4, "b": 0.7}, seed=1)["row"][:]


def test_seed_decides_the_order():
    first, again, other = (mix_datasets(parts(a=30, b=20), {"a": 1, "b": 1}, seed)["row"][:] for seed in (3, 3, 4))
    assert first == again != other


def test_every_part_is_seen_whole():
    data = mix_datasets(parts(a=7, b=40), {"a": 1, "b": 1}, seed=0)
    assert set(data["row"]) == {f"a{i}" for i in range(7)} | {f"b{i}" for i in range(40)}
    repeated = Counter(row for row in data["row"] if row[0] == "a")
    assert max(repeated.values()) - min(repeated.values()) <= 1


def test_weight_zero_leaves_a_part_out():
    data = mix_datasets(parts(a=5, b=5), {"a": 1, "b": 0}, seed=0)
    assert sorted(data["row"]) == [f"a{i}" for i in range(5)]
    longer = mix_datasets(parts(a=5, b=5), {"a": 1, "b": 0}, seed=0, num_rows=12)
    assert len(longer) == 12 and names(longer) == {"a": 12}


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [
        ({}, {"a": 1}, "`parts` is empty"),
        ({"a": 1, "b": 1}, {"a": 1}, r"no weight for \['b'\]"),
        ({"a": 1, "b": 1}, {"a": 1, "b": -1}, "must be at least 0"),
        ({"a": 1}, {"a": float("nan")}, "must be at least 0"),
        ({"a": 1, "b": 1}, {"a": 1, "b": float("inf")}, "at least 0 and finite, got {'b': inf}"),
        ({"a": 1, "b": 0}, {"a": 1, "b": 1}, r"\['b'\] have no rows"),
        ({"a": 1, "b": 1}, {"a": 0, "b": 0}, "all 0"),
    ],
)
def test_bad_mixtures(sizes, weights, message):
    with pytest.raises(ValueError, match=message):
        mix_datasets(parts(**sizes), weights, seed=0)


def test_bad_lengths_and_columns():
    with pytest.raises(ValueError, match="`num_rows` is -1; accepted is at least 1"):
        mix_datasets(parts(a=3), {"a": 1}, seed=0, num_rows=-1)
    other = {**parts(a=3), "b": Dataset.from_dict({"row": ["b0"], "more": [1]})}
    with pytest.raises(ValueError, match=r"need the same columns; all have \['row'\], 'b' also has \['more'\]"):
        mix_datasets(other, {"a": 1, "b": 1}, seed=0)


def test_weights_as_text():
    assert parse_weights("tts=0.5, asr = 2") == {"tts": 0.5, "asr": 2.0}
    for text in ("", "tts", "tts=", "=1", "tts=x", "tts=1,tts=2", "tts=1,"):
        with pytest.raises(ValueError, match="write name=number, each name once"):
            parse_weights(text)
