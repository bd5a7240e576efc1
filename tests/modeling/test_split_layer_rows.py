"""Rows and flat ids of the split-layer model."""

import pytest
import torch

from dualspeech.modeling.split_layer_rows import check_flat, check_rows, flat_to_rows, labels_to_flat, rows_to_flat
from tests.modeling.split_layer_cases import tiny_config

CONFIG = tiny_config()
PAD, SOSP, EOSP, AUDIO_PAD = 27, 28, 16, 5


def test_rows_and_flat_ids_of_a_speech_turn():
    rows = torch.tensor([[3, 11], [SOSP, 0], [PAD, 0], [PAD, 7], [PAD, EOSP], [30, AUDIO_PAD]])
    flat = torch.tensor([3, SOSP, 33, 40, 33 + EOSP, 30])
    assert torch.equal(rows_to_flat(rows, CONFIG), flat)
    back = rows.clone()
    back[:2, 1] = AUDIO_PAD  # what nobody reads
    assert torch.equal(flat_to_rows(flat, CONFIG), back)


@pytest.mark.parametrize("shape", [(), (5,), (2, 0), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_any_shape(shape, dtype):
    flat = torch.randint(28, CONFIG.total_vocab_size, shape, dtype=dtype)
    rows = flat_to_rows(flat, CONFIG)
    assert rows.shape == (*shape, 2)
    assert torch.equal(rows_to_flat(rows, CONFIG), flat.long())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.long), r"2 cells.*shape \[2, 3\]"),
        (torch.tensor(3), r"2 cells.*shape \[\]"),
        (torch.zeros(2, 2), "must be integers, got torch.float32"),
        (torch.zeros(2, 2, dtype=torch.bool), "must be integers, got torch.bool"),
        (torch.tensor([[33, 0]]), "text ids must be 0 to 32, got 33 to 33"),
        (torch.tensor([[-1, 0]]), "text ids must be 0 to 32, got -1"),
        (torch.tensor([[PAD, 19]]), "audio ids must be 0 to 18, got 19"),
        (torch.tensor([[1, 19]]), "audio ids must be 0 to 18, got 19"),  # also where nothing reads it
    ],
)
def test_bad_rows(rows, message):
    with pytest.raises(ValueError, match=f"`input_ids`.*{message}"):
        check_rows(rows, CONFIG)
    with pytest.raises(ValueError, match=message):
        rows_to_flat(rows, CONFIG)


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        (torch.tensor([52]), "flat ids must be 0 to 51, got 52"),
        (torch.tensor([-3, 1]), "flat ids must be 0 to 51, got -3 to 1"),
        (torch.tensor([PAD]), r"hold 27 \(`modality_pad_token_id`\)"),
        (torch.tensor([1.0]), "must be integers"),
    ],
)
def test_bad_flat_ids(flat, message):
    with pytest.raises(ValueError, match=f"`prompt`.*{message}"):
        check_flat(flat, CONFIG, name="prompt")
    with pytest.raises(ValueError, match=message):
        flat_to_rows(flat, CONFIG)


def test_labels():
    flat = torch.tensor([[-100, 4, 33, -100, 49]])
    rows = torch.tensor([[[-100, -100], [4, 9], [PAD, 0], [-100, -100], [PAD, 16]]])
    assert torch.equal(labels_to_flat(flat, CONFIG, 5), flat)
    assert torch.equal(labels_to_flat(rows, CONFIG, 5), flat)
    assert torch.equal(rows[0, 1], torch.tensor([4, 9]))  # the input is left alone
    assert torch.equal(labels_to_flat(torch.full((2, 3, 2), -100), CONFIG, 3), torch.full((2, 3), -100))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(1, 4, dtype=torch.long), r"\[batch, 5\].*got shape \[1, 4\]"),
        (torch.zeros(5, dtype=torch.long), r"got shape \[5\]"),
        (torch.zeros(1, 5, 3, dtype=torch.long), r"got shape \[1, 5, 3\]"),
        (torch.full((1, 5), PAD), "`labels` hold 27"),
        (torch.full((1, 5), 52), "flat ids must be 0 to 51"),
        (torch.full((1, 5), -1), "flat ids must be 0 to 51, got -1"),
        (torch.tensor([[[-100, 5]] * 5]), "-100 in both cells"),
        (torch.tensor([[[PAD, -100]] * 5]), "-100 in both cells"),
        (torch.tensor([[[33, 0]] * 5]), "`labels`.*text ids must be 0 to 32"),
    ],
)
def test_bad_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        labels_to_flat(labels, CONFIG, 5)
