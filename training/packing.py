"""Sequence packing: several examples in one sequence of the context length, instead of padding."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..modeling.packed_rows import pack_lengths

IGNORED = -100
_ROWS_AT_A_TIME = 10_000


class PackedDataset(Dataset):
    """
    A data set whose items are packs: lists of examples that together fit in `context_length`. The collators of this
    package make one sequence of each, with positions that start anew and no attention between examples. It has a
    length and an order of its own, so that the samplers, the sharding and the resuming of `Trainer` work as usual;
    `per_device_train_batch_size` counts packs.

    Args:
        dataset (`datasets.Dataset` or sequence of mappings): examples with `input_ids`, and optionally `length`.
        context_length: the longest pack in ids (rows for MOSS-Speech).
        seed: of the order of examples of equal length, and of the packs.

    Raises:
        ValueError: no examples, or one longer than `context_length`.
    """

    def __init__(self, dataset: Sequence[Mapping[str, Any]], context_length: int, seed: int = 0):
        lengths = example_lengths(dataset)
        if not len(lengths):
            raise ValueError("`dataset` is empty; at least one example is needed")
        draw = np.random.default_rng(seed)
        order = draw.permutation(len(lengths))
        try:
            packs = pack_lengths(lengths[order], context_length)
        except ValueError:
            pack_lengths(lengths, context_length)  # the message names the example by its own number
            raise
        self.dataset = dataset
        self.context_length = context_length
        self.packs = [order[packs[place]].tolist() for place in draw.permutation(len(packs))]
        self.num_tokens = int(lengths.sum())

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        return [self.dataset[example] for example in self.packs[index]]

    @property
    def fill(self) -> float:
        """Share of the context that holds examples."""
        return self.num_tokens / (len(self) * self.context_length)


def example_lengths(dataset: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Lengths of the examples, int64: from the column `length`, or of `input_ids`."""
    if not hasattr(dataset, "column_names"):  # no `datasets.Dataset`
        return np.array([example.get("length") or len(example["input_ids"]) for example in dataset], dtype=np.int64)
    if "length" in dataset.column_names:
        return np.asarray(dataset.with_format("numpy")["length"], dtype=np.int64)
    import pyarrow.compute as pc

    table = dataset.select_columns(["input_ids"]).with_format("arrow")
    starts = range(0, len(dataset), _ROWS_AT_A_TIME)
    parts = [pc.list_value_length(table[start : start + _ROWS_AT_A_TIME].column("input_ids")) for start in starts]
    return np.concatenate([part.to_numpy() for part in parts]).astype(np.int64) if parts else np.zeros(0, np.int64)


@torch.no_grad()
def check_packing(model: torch.nn.Module) -> None:
    """
    Let two packed examples through `model`, and raise a `ValueError` if one sees the other: not every language model of
    transformers tells packed sequences apart by their positions (OPT, BLOOM, MPT and BioGPT do not).

    Args:
        model: takes `input_ids`, `position_ids` and `seq_idx`, and returns `logits`. It must not be sharded yet.
    """
    device = next(model.parameters()).device
    idx = torch.tensor([[0, 0, 0, 1, 1]], device=device)
    places = torch.tensor([[0, 1, 2, 0, 1]], device=device)
    was_training = model.training
    model.eval()
    try:
        logits = [
            model(input_ids=torch.tensor([[*first, 5, 6]], device=device), position_ids=places, seq_idx=idx).logits[
                :, 3:
            ]
            for first in ((5, 6, 7), (7, 5, 5))
        ]
    finally:
        model.train(was_training)
    if not torch.allclose(*logits, atol=1e-4, rtol=1e-3):
        difference = float((logits[0] - logits[1]).abs().max())
        raise ValueError(
            f"`packing` is not possible with this language model: what stands in one packed example changes the scores of "
            f"another by {difference:.2g}; train it without packing"
        )


def is_packed(examples: Sequence[Any]) -> bool:
    """Whether a collator got packs (lists of examples) and not examples."""
    return len(examples) > 0 and not isinstance(examples[0], Mapping)


def pack_columns(
    packs: Sequence[Sequence[Mapping[str, Any]]],
    pad_values: Mapping[str, Any],
    pad_to_multiple_of: int | None = None,
    flatten: bool = False,
) -> dict[str, torch.Tensor]:
    """
    Columns of packs, each pack one sequence, padded on the right to the longest.

    Args:
        packs: lists of examples.
        pad_values: what stands behind the end of a pack, for each column that is packed.
        pad_to_multiple_of: round the length up.
        flatten: join all packs to a batch of one sequence, as attention with variable lengths (flash attention) needs.

    Returns:
        The columns, int64 `[packs, L]` (`[packs, L, 2]` for rows), `position_ids` that start anew with each example,
        and `seq_idx`, the number of the example over the whole batch, -1 on padding.
    """
    packs = [list(pack) for pack in packs]
    if flatten:
        packs = [[example for pack in packs for example in pack]]
    longest = max(sum(len(example["input_ids"]) for example in pack) for pack in packs)
    if pad_to_multiple_of:
        longest = -(-longest // pad_to_multiple_of) * pad_to_multiple_of
    columns: dict[str, list[torch.Tensor]] = {name: [] for name in (*pad_values, "position_ids", "seq_idx")}
    numbers = iter(range(sum(map(len, packs))))
    for pack in packs:
        sizes = [len(example["input_ids"]) for example in pack]
        gap = longest - sum(sizes)
        for name, pad in pad_values.items():
            values = [torch.as_tensor(np.asarray(example[name], dtype=np.int64)) for example in pack]
            padding = torch.as_tensor(pad).expand(gap, *values[0].shape[1:])
            columns[name].append(torch.cat([*values, padding]))
        # Padding is a sequence of its own.
        columns["position_ids"].append(torch.cat([torch.arange(size) for size in [*sizes, gap]]))
        idx = [torch.full((size,), next(numbers)) for size in sizes]
        columns["seq_idx"].append(torch.cat([*idx, torch.full((gap,), -1)]))
    return {name: torch.stack(rows) for name, rows in columns.items()}


def flat_examples(packs: Iterable[Iterable[Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    """All examples of `packs`, in the order of `seq_idx`."""
    return [example for pack in packs for example in pack]


__all__ = ["PackedDataset", "check_packing", "example_lengths", "flat_examples", "is_packed", "pack_columns"]
