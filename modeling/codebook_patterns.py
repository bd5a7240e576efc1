"""Layouts of codec codes with several codebooks: flattened into one sequence, or delayed book by book.

A frame of a codec with K codebooks of N codes is K codes, `codes [B, A, K]` for A frames. AcousticGPT reads them in
one of two layouts. *Flatten* (time-major): one sequence of `A * K` ids, `k * N + code` for book k. *Delay* (Copet et
al., "Simple and Controllable Music Generation", section 2.2): K ids a step, book k shifted k steps to the right, so
that a step sees the earlier books of its frame; `A + K - 1` steps.
"""

import torch


def _fill_behind(values: torch.Tensor, lengths: torch.Tensor | None, fill: int) -> torch.Tensor:
    """`values [B, A, ...]` with `fill` at positions from `lengths [B]` on."""
    if lengths is None:
        return values
    lengths = torch.as_tensor(lengths, device=values.device)
    if lengths.shape != values.shape[:1] or bool(((lengths < 0) | (lengths > values.shape[1])).any()):
        raise ValueError(
            f"`lengths` must hold one number from 0 to {values.shape[1]} for each of the {len(values)} rows, "
            f"got {lengths.tolist()}"
        )
    behind = torch.arange(values.shape[1], device=values.device) >= lengths[:, None]
    return values.masked_fill(behind.reshape(behind.shape + (1,) * (values.dim() - 2)), fill)


def _outside(codes: torch.Tensor, size: int, lengths: torch.Tensor | None) -> torch.Tensor:
    """The values of `codes [B, A, K]`, up to `lengths`, that are not in `0 .. size - 1`."""
    codes = _fill_behind(codes, lengths, 0)
    return codes[(codes < 0) | (codes >= size)]


def _check_frames(name: str, codes: torch.Tensor) -> None:
    if codes.dim() != 3:
        raise ValueError(f"`{name}` must have the shape [batch, frames, codebooks], got {tuple(codes.shape)}")


def flatten_codebooks(
    codes: torch.Tensor, codebook_size: int, lengths: torch.Tensor | None = None, fill: int = -1
) -> torch.Tensor:
    """Interleave the books of each frame.

    Args:
        codes: `[B, A, K]` long, each in `0 .. codebook_size - 1`.
        codebook_size: N, the codes of one book.
        lengths: `[B]`, valid frames of each row; all when omitted. The flat row has `lengths * K` ids.
        fill: id written behind the end of a row.

    Returns:
        `[B, A * K]` long, id `k * N + code`.

    Raises:
        ValueError: a code outside its codebook, or a shape or length that does not fit.
    """
    _check_frames("codes", codes)
    if len(outside := _outside(codes, codebook_size, lengths)):
        raise ValueError(f"`codes` holds {int(outside[0])}, a codebook has the codes 0 to {codebook_size - 1}")
    offsets = torch.arange(codes.shape[2], device=codes.device) * codebook_size
    return _fill_behind(codes + offsets, lengths, fill).flatten(1)


def unflatten_codebooks(
    ids: torch.Tensor,
    codebook_size: int,
    num_codebooks: int,
    lengths: torch.Tensor | None = None,
    fill: int = -1,
) -> torch.Tensor:
    """Undo `flatten_codebooks`.

    Args:
        ids: `[B, L]` long.
        codebook_size: N, the codes of one book.
        num_codebooks: K.
        lengths: `[B]`, valid ids of each row; all when omitted. A row that was cut inside a frame (generation that
            reached its limit) keeps its `lengths // K` whole frames; without `lengths`, L must be a multiple of K.
        fill: code written behind the end of a row.

    Returns:
        `[B, L // K, K]` long codes.

    Raises:
        ValueError: an id that belongs to another book than the one whose turn it is, or a shape that does not fit.
    """
    if ids.dim() != 2 or (lengths is None and ids.shape[1] % num_codebooks):
        raise ValueError(
            f"`ids` must have the shape [batch, frames * {num_codebooks}], got {tuple(ids.shape)}; "
            "pass `lengths` for rows that end inside a frame"
        )
    frames = ids.shape[1] // num_codebooks
    if lengths is not None:
        lengths = torch.as_tensor(lengths, device=ids.device) // num_codebooks
    codes = ids[:, : frames * num_codebooks].unflatten(1, (frames, num_codebooks))
    codes = codes - torch.arange(num_codebooks, device=ids.device) * codebook_size
    if len(_outside(codes, codebook_size, lengths)):
        raise ValueError(
            f"`ids` holds an id of another book than the one whose turn it is: position t must hold an id from "
            f"(t % {num_codebooks}) * {codebook_size} to (t % {num_codebooks} + 1) * {codebook_size} - 1"
        )
    return _fill_behind(codes, lengths, fill)


def apply_delay_pattern(
    codes: torch.Tensor, before: int, after: int, lengths: torch.Tensor | None = None
) -> torch.Tensor:
    """Shift book k by k steps to the right.

    Args:
        codes: `[B, A, K]`, book k of frame t at `[:, t, k]`.
        before: id where a book has not started yet.
        after: id where a book, or a row, has ended.
        lengths: `[B]`, valid frames of each row; all when omitted. The delayed row has `lengths + K - 1` steps.

    Returns:
        `[B, A + K - 1, K]`, the same code at `[:, t + k, k]`.
    """
    _check_frames("codes", codes)
    codes = _fill_behind(codes, lengths, after)
    batch, frames, books = codes.shape
    delayed = codes.new_full((batch, frames + books - 1, books), after)
    for book in range(books):
        delayed[:, :book, book] = before
        delayed[:, book : book + frames, book] = codes[:, :, book]
    return delayed


def undo_delay_pattern(delayed: torch.Tensor, lengths: torch.Tensor | None = None, fill: int = -1) -> torch.Tensor:
    """Undo `apply_delay_pattern`.

    Args:
        delayed: `[B, S, K]` with at least K - 1 steps. Frames whose last book has not been reached are left out.
        lengths: `[B]`, valid frames of each row; all when omitted.
        fill: code written behind the end of a row.

    Returns:
        `[B, S - K + 1, K]`.
    """
    _check_frames("delayed", delayed)
    steps, books = delayed.shape[1:]
    frames = steps - books + 1
    if frames < 0:
        raise ValueError(f"`delayed` must have at least {books - 1} steps for {books} codebooks, got {steps}")
    codes = torch.stack([delayed[:, book : book + frames, book] for book in range(books)], dim=2)
    return _fill_behind(codes, lengths, fill)


__all__ = ["apply_delay_pattern", "flatten_codebooks", "undo_delay_pattern", "unflatten_codebooks"]
