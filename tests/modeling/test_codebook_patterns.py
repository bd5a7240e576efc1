"""Flattened and delayed codebooks against loops that a person can read."""

import pytest
import torch

from dualspeech.modeling.codebook_patterns import (
    apply_delay_pattern,
    flatten_codebooks,
    undo_delay_pattern,
    unflatten_codebooks,
)

SIZES = [(1, 1, 1, 2), (2, 5, 3, 7), (3, 4, 8, 1024), (2, 1, 4, 5), (1, 0, 2, 3)]


def random_codes(batch, frames, books, size):
    return torch.randint(size, (batch, frames, books), generator=torch.Generator().manual_seed(frames))


def naive_flatten(row, size):
    return [book * size + int(code) for frame in row for book, code in enumerate(frame)]


def naive_delay(row, before, after):
    books, frames = row.shape[1], len(row)
    steps = []
    for step in range(frames + books - 1):
        steps.append([])
        for book in range(books):
            frame = step - book
            value = before if frame < 0 else after if frame >= frames else int(row[frame, book])
            steps[-1].append(value)
    return torch.tensor(steps, dtype=torch.long).reshape(-1, books)


@pytest.mark.parametrize(("batch", "frames", "books", "size"), SIZES)
def test_flatten_equals_the_loop_and_can_be_undone(batch, frames, books, size):
    codes = random_codes(batch, frames, books, size)
    flat = flatten_codebooks(codes, size)
    assert flat.tolist() == [naive_flatten(row, size) for row in codes]
    assert torch.equal(unflatten_codebooks(flat, size, books), codes)


@pytest.mark.parametrize(("batch", "frames", "books", "size"), SIZES)
def test_delay_equals_the_loop_and_can_be_undone(batch, frames, books, size):
    codes = random_codes(batch, frames, books, size)
    delayed = apply_delay_pattern(codes, before=size, after=size + 1)
    assert torch.equal(delayed, torch.stack([naive_delay(row, size, size + 1) for row in codes]))
    assert torch.equal(undo_delay_pattern(delayed), codes)


def test_rows_of_a_batch_equal_single_rows():
    codes, lengths = random_codes(3, 6, 4, 9), torch.tensor([6, 2, 0])
    flat = flatten_codebooks(codes.masked_fill(torch.arange(6)[:, None] >= lengths[:, None, None], 99), 9, lengths)
    delayed = apply_delay_pattern(codes, before=-2, after=-1, lengths=lengths)
    flat_again = unflatten_codebooks(flat, 9, 4, lengths * 4)
    again = undo_delay_pattern(delayed, lengths)
    for row, length in enumerate(lengths.tolist()):
        single = codes[row : row + 1, :length]
        assert torch.equal(flat[row, : 4 * length], flatten_codebooks(single, 9)[0])
        assert torch.equal(delayed[row, : length + 3], apply_delay_pattern(single, -2, -1)[0])
        assert bool((flat[row, 4 * length :] == -1).all()) and bool((delayed[row, length + 3 :] == -1).all())
        for undone in (flat_again, again):
            assert torch.equal(undone[row, :length], single[0]) and bool((undone[row, length:] == -1).all())


def test_a_row_cut_inside_a_frame_keeps_its_whole_frames():
    flat = flatten_codebooks(random_codes(1, 3, 4, 5), 5)
    assert torch.equal(unflatten_codebooks(flat[:, :10], 5, 4, lengths=[10]), unflatten_codebooks(flat[:, :8], 5, 4))
    with pytest.raises(ValueError, match=r"frames \* 4"):
        unflatten_codebooks(flat[:, :10], 5, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flatten_codebooks(torch.tensor([[[0, 5]]]), 5), "holds 5, a codebook has the codes 0 to 4"),
        (lambda: flatten_codebooks(torch.tensor([[[0, -1]]]), 5), "holds -1"),
        (lambda: flatten_codebooks(torch.zeros(2, 3, dtype=torch.long), 5), "frames, codebooks"),
        (lambda: flatten_codebooks(torch.zeros(2, 3, 2, dtype=torch.long), 5, torch.tensor([3, 4])), "`lengths`"),
        (lambda: unflatten_codebooks(torch.tensor([[5, 0]]), 5, 2), "another book"),
        (lambda: apply_delay_pattern(torch.zeros(2, 3, dtype=torch.long), 0, 0), "frames, codebooks"),
        (lambda: undo_delay_pattern(torch.zeros(1, 1, 4, dtype=torch.long)), "at least 3 steps"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
