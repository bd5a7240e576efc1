"""Several rows of a batch in one sequence (packing): which position belongs to which row, and back to padded rows."""

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


__all__ = ["check_seq_idx", "spread_rows", "unpack_rows"]
