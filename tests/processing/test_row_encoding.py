"""Codes and rates that a caller gives for a spoken answer."""

import numpy as np
import pytest
import torch

from tests.tiny import tiny_processor, tone

VOICE = np.ones(12, dtype=np.float32)


def labels(us_codes, acoustic_codes=(1, 2)):
    targets = {"us_codes": us_codes, "acoustic_codes": acoustic_codes}
    row = tiny_processor().build_example(text="hi", task="tts", speaker=VOICE, targets=targets)
    return row["labels"], row["acoustic_labels"]


@pytest.mark.parametrize("codes", [(4, 5), np.array([4, 5], dtype=np.uint8), torch.tensor([4, 5], dtype=torch.int32)])
def test_codes_in_any_integer_form(codes):
    assert labels(codes, codes) == labels([4, 5], [4, 5])


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([1.7, 2.9], "`us_codes` must be whole numbers, got float64"),
        (torch.ones(2, dtype=torch.bfloat16, requires_grad=True), "`us_codes` must be whole numbers, got float32"),
        ([True, False], "`us_codes` must be whole numbers, got bool"),
        ([[1, 2]], r"`us_codes` has shape \[1, 2\]; accepted is \[codes\], not empty"),
        (3, r"`us_codes` has shape \[\]"),
        ([], r"`us_codes` has shape \[0\]"),
        ([24], "`us_codes` holds 24; accepted are the codes 0 to 23"),
    ],
)
def test_codes_that_are_none(codes, message):
    with pytest.raises(ValueError, match=message):
        labels(codes)


def test_acoustic_codes_in_bfloat16():
    with pytest.raises(ValueError, match="`acoustic_codes` must be whole numbers"):
        labels([1], torch.ones(2, dtype=torch.bfloat16))


def test_the_rate_of_a_target_is_checked():
    targets = {"audio": tone(0.2), "sampling_rate": 0}
    with pytest.raises(ValueError, match="`sampling_rate` must be a positive whole number of Hz, got 0"):
        tiny_processor()("hi", task="tts", targets=targets, sampling_rate=24000)
