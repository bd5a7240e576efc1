"""A key-value cache for step-by-step decoding that does not copy itself at every step."""

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicLayer


class GrowingLayer(DynamicLayer):
    """
    `DynamicLayer` with spare room: new states are written behind the old ones in place, and the storage grows by
    `block` positions when it is full. `keys` and `values` are views of the filled part.
    """

    def __init__(self, block: int = 256):
        super().__init__()
        self.block = block

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._room = [
                states.new_empty(*states.shape[:2], 0, states.shape[-1]) for states in (key_states, value_states)
            ]
        for index, (old, new) in enumerate(((self.keys, key_states), (self.values, value_states))):
            if end > self._room[index].shape[-2]:
                room = new.new_empty(*new.shape[:2], end + self.block, new.shape[-1])
                if start:
                    room[:, :, :start] = old
                self._room[index] = room
            self._room[index][:, :, start:end] = new
        self.keys, self.values = (room[:, :, :end] for room in self._room)
        return self.keys, self.values


class GrowingCache(Cache):
    """
    A cache of `GrowingLayer`s, for models whose layers all attend to everything.

    It is filled front to back and holds no gradients. Attention sees the filled positions only (a static cache attends
    to all its room), and nothing is copied (a dynamic cache copies all of it at every step). It cannot be reordered:
    for beams take `DynamicCache`.
    """

    def __init__(self, config: PreTrainedConfig, block: int = 256):
        super().__init__(layers=[GrowingLayer(block) for _ in range(config.num_hidden_layers)])


__all__ = ["GrowingCache", "GrowingLayer"]
