"""Key-value cache of the split-layer model: one for the trunk and both branches, with work put off for a silent one."""

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache

BRANCHES = ("text", "audio")


class SplitLayerCache(DynamicCache):
    """
    [`~transformers.DynamicCache`] over trunk, text branch and audio branch (in this order of layers) that also keeps
    the trunk states which a silent branch has not seen yet. While one branch speaks, the model runs the trunk and this
    branch only; the other one takes its pending states in one pass when it is next asked for. The result is the one of
    running both branches at every step, at the cost of one hidden state per row and silent branch instead of the keys
    and values of its layers.

    Everything that changes rows or positions of a cache also changes the pending states, so that beams, prompt lookup,
    assisted decoding and copies for several continuations need not know of them. `get_seq_length()` counts rows of the
    trunk.

    Args:
        config (`SplitLayerQwen3Config`): the configuration of the model, or its `get_text_config()`.
        lazy (`bool`): put off the work of a silent branch. `False` makes a plain dynamic cache.
        offloading (`bool`), offload_only_non_sliding (`bool`): as for `DynamicCache`; pending states are not offloaded.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        lazy: bool = True,
        offloading: bool = False,
        offload_only_non_sliding: bool = False,
    ):
        super().__init__(config=config, offloading=offloading, offload_only_non_sliding=offload_only_non_sliding)
        self.lazy = lazy
        first, layers = config.num_shared_layers, config.num_modality_layers
        self._layers_of = {
            branch: range(first + k * layers, first + (k + 1) * layers) for k, branch in enumerate(BRANCHES)
        }
        # branch -> pieces; a piece is a tuple of tensors [batch, rows, ...] over the same rows
        self._pending: dict[str, list[tuple[torch.Tensor, ...]]] = {branch: [] for branch in BRANCHES}

    def pending_length(self, branch: str) -> int:
        """Rows that `branch` has not seen."""
        return sum(piece[0].shape[1] for piece in self._pending[branch])

    def defer(self, branch: str, *states: torch.Tensor) -> None:
        """Keep `states` (each `[batch, rows, ...]`, the first one of the trunk) until `branch` is asked for."""
        batch = states[0].shape[0]
        self._pending[branch].append(tuple(value.expand(batch, *value.shape[1:]) for value in states))

    def take_pending(self, branch: str) -> tuple[torch.Tensor, ...] | None:
        """Hand out what `defer` kept for `branch`, joined along the rows, and forget it."""
        states = self._joined(branch)
        self._pending[branch] = []
        return states

    def _joined(self, branch: str) -> tuple[torch.Tensor, ...] | None:
        pieces = self._pending[branch]
        if len(pieces) > 1:
            pieces[:] = [tuple(torch.cat(values, dim=1) for values in zip(*pieces, strict=True))]
        return pieces[0] if pieces else None

    def _change_pending(self, change) -> None:
        for branch in BRANCHES:
            states = self._joined(branch)
            if states is not None:
                self._pending[branch] = [tuple(change(value) for value in states)]

    def reset(self):
        super().reset()
        self._pending = {branch: [] for branch in BRANCHES}

    def reorder_cache(self, beam_idx: torch.LongTensor):
        super().reorder_cache(beam_idx)
        self._change_pending(lambda value: value.index_select(0, beam_idx.to(value.device)))

    def batch_repeat_interleave(self, repeats: int):
        super().batch_repeat_interleave(repeats)
        self._change_pending(lambda value: value.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor):
        super().batch_select_indices(indices)
        self._change_pending(lambda value: value[indices, ...])

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last `-tokens_to_remove` rows (a negative number or 0) of trunk and branches."""
        for layer in self.layers[: self._layers_of["text"].start]:
            layer.crop(tokens_to_remove)
        for branch in BRANCHES:
            dropped = min(self.pending_length(branch), -tokens_to_remove)
            if dropped:
                kept = self.pending_length(branch) - dropped
                states = self.take_pending(branch)
                if kept:
                    self._pending[branch] = [tuple(value[:, :kept] for value in states)]
            for layer in self.layers[self._layers_of[branch].start : self._layers_of[branch].stop]:
                layer.crop(tokens_to_remove + dropped)


__all__ = ["BRANCHES", "SplitLayerCache"]
