"""Several rows of a batch in one sequence (packing): which position belongs to which row, and back to padded rows."""

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
import torch
from transformers.cache_utils import Cache


def check_seq_idx(
    seq_idx: torch.LongTensor,
    position_ids: torch.LongTensor | None,
    attention_mask: torch.Tensor | None,
    cache: Cache | None = None,
    attn_implementation: str | None = None,
) -> None:
    """
    Raise a `ValueError` unless packed rows stay apart: transformers tells them apart by positions that start anew, and
    only without a mask and a cache.

    Args:
        seq_idx (`torch.LongTensor` of shape `(packs, length)`): row of each position, -1 on padding.
        position_ids (`torch.LongTensor` of shape `(packs, length)`): place of each position in its row.
    """
    if position_ids is None or position_ids.shape != seq_idx.shape:
        given = None if position_ids is None else list(position_ids.shape)
        raise ValueError(f"`seq_idx` {list(seq_idx.shape)} needs `position_ids` of the same shape, got {given}")
    if attention_mask is not None or cache is not None:
        name = "cache" if attention_mask is None else "attention_mask"
        raise ValueError(f"`{name}` must be left out with `seq_idx`: packed rows would see each other")
    if "flash" in (attn_implementation or "") and len(seq_idx) > 1:
        raise ValueError(
            f"`seq_idx` has {len(seq_idx)} packs; {attn_implementation} keeps packed rows apart in a batch of one only: "
            "let the collator join them (`flatten_packs=True`)"
        )


def spread_rows(flags: torch.BoolTensor, seq_idx: torch.LongTensor | None) -> torch.BoolTensor:
    """
    For each position, whether any position of its row is set.

    Args:
        flags (`torch.BoolTensor` of shape `(batch, length)`): one row each, or packed as `seq_idx` says.
        seq_idx (`torch.LongTensor` of shape `(batch, length)`, *optional*): row of each position, -1 on padding.
    """
    if seq_idx is None:
        return flags.any(dim=1, keepdim=True).expand_as(flags)
    # One place more, for padding.
    rows = flags.new_zeros(seq_idx.numel() + 1, dtype=torch.long).index_add_(
        0, (seq_idx + 1).flatten(), flags.flatten().long()
    )
    return rows[seq_idx + 1] > 0


def unpack_rows(
    packed: dict[str, torch.Tensor | None], seq_idx: torch.LongTensor, position_ids: torch.LongTensor, num_rows: int
) -> dict[str, torch.Tensor | None]:
    """
    Rows padded on the right, zeros behind their ends.

    Args:
        packed: tensors `(packs, length, ...)`; `None` stays.
        seq_idx, position_ids: row of each position (-1 on padding), and its place in the row.
        num_rows: number of rows.

    Returns:
        Tensors `(num_rows, longest row, ...)`.

    Raises:
        ValueError: a row number that is too high.
    """
    is_row = seq_idx >= 0
    rows, places = seq_idx[is_row], position_ids[is_row]
    highest = int(rows.max()) if rows.numel() else -1
    if highest >= num_rows:
        raise ValueError(f"`seq_idx` holds {highest}, but the batch has {num_rows} rows (`acoustic_labels`)")
    width = int(places.max()) + 1 if places.numel() else 1

    def unpacked(tensor: torch.Tensor) -> torch.Tensor:
        out = tensor.new_zeros(num_rows, width, *tensor.shape[2:])
        return out.index_put((rows, places), tensor[is_row])

    return {name: None if tensor is None else unpacked(tensor) for name, tensor in packed.items()}


def pack_lengths(lengths: Sequence[int], context_length: int) -> list[list[int]]:
    """
    Best-fit decreasing: each example, from the longest to the shortest, goes where the least space is left over.

    Args:
        lengths: of the examples, at least 1.
        context_length: length of a pack.

    Returns:
        Numbers of the examples of each pack. Equal lengths keep their order.

    Raises:
        ValueError: an example that is empty or longer than `context_length`.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(wrong := np.flatnonzero((lengths < 1) | (lengths > context_length))):
        raise ValueError(
            f"example {wrong[0]} has length {lengths[wrong[0]]}; accepted are 1 to `context_length` {context_length}, "
            f"and nothing is cut ({len(wrong)} of {len(lengths)} examples do not fit)"
        )
    packs: list[list[int]] = []
    by_space: dict[int, list[int]] = {}  # space left -> packs
    spaces: list[int] = []  # the keys of by_space, sorted
    for example in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[example])
        place = bisect_left(spaces, length)
        if place == len(spaces):
            pack, space = len(packs), context_length
            packs.append([])
        else:
            space = spaces[place]
            pack = by_space[space].pop()
            if not by_space[space]:
                del by_space[space], spaces[place]
        packs[pack].append(example)
        if left := space - length:
            if left not in by_space:
                by_space[left] = []
                insort(spaces, left)
            by_space[left].append(pack)
    return packs


class RowPacking:
    """
    The kept positions of padded rows, joined to as few sequences as long as the longest row.

    Args:
        keep (`torch.BoolTensor` of shape `(rows, length)`): positions that are kept, at least one in each row.

    Attributes:
        seq_idx (`torch.LongTensor` of shape `(packs, longest)`): row of each position, -1 on padding.
    """

    def __init__(self, keep: torch.BoolTensor):
        counts = keep.sum(dim=1).tolist()
        longest = max(counts)
        packs = pack_lengths(counts, longest)
        starts = [0] * len(counts)
        for number, pack in enumerate(packs):
            used = number * longest
            for row in pack:
                starts[row] = used
                used += counts[row]
        places = torch.tensor(starts, device=keep.device)[:, None] + keep.cumsum(dim=1) - 1
        self.keep = keep
        self.places = places[keep]
        self.shape = (len(packs), longest)
        rows = torch.arange(len(keep), device=keep.device)[:, None].expand_as(keep)
        self.seq_idx = self.pack(rows, fill=-1)

    def pack(self, tensor: torch.Tensor, fill: float = 0) -> torch.Tensor:
        """`tensor` `(rows, length, ...)` as `(packs, longest, ...)`, `fill` on padding."""
        flat = tensor.new_full((self.shape[0] * self.shape[1], *tensor.shape[2:]), fill)
        return flat.index_put((self.places,), tensor[self.keep]).view(*self.shape, *tensor.shape[2:])

    def unpack(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` `(packs, longest, ...)` as `(rows, length, ...)`, zeros where nothing was kept."""
        rows = tensor.new_zeros(*self.keep.shape, *tensor.shape[2:])
        return rows.masked_scatter(
            self.keep.reshape(*self.keep.shape, *[1] * (tensor.dim() - 2)), tensor.flatten(0, 1)[self.places]
        )


__all__ = ["RowPacking", "check_seq_idx", "pack_lengths", "spread_rows", "unpack_rows"]
