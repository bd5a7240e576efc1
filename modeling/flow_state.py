"""What the causal parts of the flow decoder remember of the frames before: ends of convolutions, keys and values."""

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from .flow_masks import ChunkGrid
from .growing_cache import GrowingLayer

GROWTH = 8  # spare room: one part in so many of what is filled, so that copying stays in proportion to the length
SPARE_CHUNKS = 3  # spare room at least


class UnboundedPast(GrowingLayer):
    """Keys and values of all frames, with spare room in proportion to their number, `spare` frames at least."""

    def __init__(self, spare: int):
        super().__init__()
        self.spare = spare

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        self.block = max(self.spare, (self.get_seq_length() + key_states.shape[-2]) // GROWTH)
        return super().update(key_states, value_states)

    @property
    def nbytes(self) -> int:
        """Bytes of the storage, spare room included."""
        return sum(room.nbytes for room in self._room) if self.is_initialized else 0

    def fork(self) -> "UnboundedPast":
        """A copy that shares the storage until either side is written to."""
        other = UnboundedPast(self.spare)
        if self.is_initialized:
            other.lazy_initialization(self.keys, self.values)
            # without spare room, the next update of either side moves to storage of its own
            self._room = [self.keys, self.values]
            other.keys, other.values, other._room = self.keys, self.values, [self.keys, self.values]
        return other


class BoundedPast(DynamicLayer):
    """Keys and values of the first `pinned` frames and of the last `window` others, in storage of constant size.

    Slot of frame j: j for the pinned ones, pinned + (j - pinned) mod window for the others.
    """

    def __init__(self, pinned: int, window: int):
        super().__init__()
        self.pinned, self.window = pinned, window
        self.seen = 0
        self._shared = False

    def slots(self, start: int, end: int, device=None) -> Tensor:
        """Slots of the frames `start` to `end - 1`."""
        frames = torch.arange(start, end, device=device)
        return torch.where(frames < self.pinned, frames, self.pinned + (frames - self.pinned) % self.window)

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        capacity, end = self.pinned + self.window, self.seen + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = (
                states.new_empty(*states.shape[:2], capacity, states.shape[-1])
                for states in (key_states, value_states)
            )
        elif self._shared:
            self.keys, self.values, self._shared = self.keys.clone(), self.values.clone(), False
        slots = self.slots(self.seen, end, key_states.device)
        self.keys.index_copy_(2, slots, key_states)
        self.values.index_copy_(2, slots, value_states)
        self.seen = end
        filled = min(end, capacity)
        return self.keys[:, :, :filled], self.values[:, :, :filled]

    @property
    def nbytes(self) -> int:
        """Bytes of the storage."""
        return self.keys.nbytes + self.values.nbytes if self.is_initialized else 0

    def fork(self) -> "BoundedPast":
        """A copy that shares the storage until either side is written to."""
        other = BoundedPast(self.pinned, self.window)
        if self.is_initialized:
            other.lazy_initialization(self.keys, self.values)
            other.keys, other.values, other.seen = self.keys, self.values, self.seen
            self._shared = other._shared = True
        return other


class FlowState:
    """State of one evaluation of a causal network that is fed piece by piece (encoder part, or one step of the sampler).

    The network itself is not touched: its modules are the keys under which their states are kept here.

    Args:
        grid: chunks in frames of this network; with a bounded left context a piece must not be longer than a chunk,
            except inside the pinned frames.
        cache_dtype: in which keys and values are kept; as they come when `None`.
    """

    def __init__(self, grid: ChunkGrid, cache_dtype: torch.dtype | None = None):
        self.grid = grid
        self.cache_dtype = cache_dtype
        self.frames = 0
        self._tails: dict[nn.Module, Tensor] = {}
        self._pasts: dict[nn.Module, UnboundedPast | BoundedPast] = {}

    def positions(self, length: int, device=None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Where the next `length` frames stand, and what they see.

        Returns:
            Absolute positions of the new frames `[length]`, those of all keys that `with_past` will return `[K]`, and
            which keys each frame sees, `[length, K]` bool, or `None` when all see all.
        """
        start, end = self.frames, self.frames + length
        queries = torch.arange(start, end, device=device)
        past, chunk = self._new_past(), self.grid.chunk
        if isinstance(past, UnboundedPast):
            keys = torch.arange(end, device=device)
        else:
            keys = torch.empty(min(end, past.pinned + past.window), dtype=torch.long, device=device)
            first = min(end, max(past.pinned, end - past.window))  # of the others that are still there
            keys[: past.pinned] = torch.arange(min(end, past.pinned), device=device)
            keys[past.slots(first, end, device)] = torch.arange(first, end, device=device)
        whole = length == chunk or (length < chunk and self.grid.left is None)
        if start % chunk == 0 and whole:
            return queries, keys, None
        return queries, keys, self.grid.visible(queries, keys)

    def advance(self, length: int) -> None:
        """Count the next `length` frames. Call it once for each piece."""
        self.frames += length

    def with_tail(self, module: nn.Module, frames: Tensor, size: int) -> Tensor:
        """`frames [B, T, C]` behind the `size` frames that `module` got before them, or zeros at the start."""
        if not size:
            return frames
        tail = self._tails.get(module)
        if tail is None:
            tail = frames.new_zeros(frames.shape[0], size, frames.shape[2])
        joined = torch.cat([tail, frames], dim=1)
        self._tails[module] = joined[:, -size:].clone()
        return joined

    def with_past(self, module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, heads, K, D]` that `module` attends to: `key`, `value [B, heads, T, D]` among those that
        it got before, in the dtype of the new ones."""
        dtype = self.cache_dtype or key.dtype
        keys, values = self._past(module).update(key.to(dtype), value.to(dtype))
        return keys.to(key.dtype), values.to(value.dtype)

    def with_table(self, module: nn.Module, rows: Tensor) -> Tensor:
        """`[K, D]`: `rows [T, D]` of the new frames among those of the frames that are kept, in the order of the keys."""
        nothing = rows.new_empty(1, 1, len(rows), 0)
        return self._past(module).update(rows[None, None], nothing)[0][0, 0]

    def _past(self, module: nn.Module) -> UnboundedPast | BoundedPast:
        if module not in self._pasts:
            self._pasts[module] = self._new_past()
        return self._pasts[module]

    def _new_past(self) -> UnboundedPast | BoundedPast:
        if self.grid.left is None:
            return UnboundedPast(SPARE_CHUNKS * self.grid.chunk)
        return BoundedPast(self.grid.pinned, self.grid.left + self.grid.chunk)

    @property
    def nbytes(self) -> int:
        """Bytes of all storage."""
        tails = sum(tail.nbytes for tail in self._tails.values())
        return tails + sum(past.nbytes for past in self._pasts.values())

    def fork(self) -> "FlowState":
        """An independent continuation. Keys and values are shared until one of the two goes on."""
        other = FlowState(self.grid, self.cache_dtype)
        other.frames = self.frames
        other._tails = dict(self._tails)
        other._pasts = {module: past.fork() for module, past in self._pasts.items()}
        return other


__all__ = ["BoundedPast", "FlowState", "UnboundedPast"]
