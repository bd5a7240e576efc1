"""Which frames see which in the flow decoder: all of them, or in chunks, with a bounded past if wanted.

Frames count from the start of the voice prompt, so that masks do not depend on how an utterance is fed. In streaming
mode a frame sees

- the frames of its own chunk, also those behind it,
- of the frames in front of its chunk: all, or with a bounded left context the last `left` ones and the first `pinned`
  ones, which are those of the voice prompt.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..configuration.configuration_flow_decoder import FlowDecoderConfig


@dataclass(frozen=True)
class ChunkGrid:
    """Chunks of `chunk` frames with a past of `left` frames (`None`: unbounded) and `pinned` frames, an `int`, or a
    tensor `[B]` for rows that differ."""

    chunk: int
    left: int | None = None
    pinned: int | Tensor = 0

    @classmethod
    def of(
        cls, config: FlowDecoderConfig, chunk_size: int | None = None, left_context: int | None = None
    ) -> "ChunkGrid":
        """Chunks in codes, without pinned ones, after checking the settings; `chunk_size` as configured by default."""
        chunk_size = config.chunk_size if chunk_size is None else chunk_size
        if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
            raise ValueError(f"chunk_size must be a positive number of codes, got {chunk_size!r}")
        counted = isinstance(left_context, int) and not isinstance(left_context, bool) and left_context >= 0
        if left_context is not None and not counted:
            raise ValueError(f"left_context must be a number of codes or None, got {left_context!r}")
        return cls(chunk_size, left_context)

    def upsampled(self, ratio: int) -> "ChunkGrid":
        """The same grid where each frame has become `ratio` frames."""
        left = None if self.left is None else ratio * self.left
        return ChunkGrid(ratio * self.chunk, left, ratio * self.pinned)

    def visible(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Bool `[Q, K]`, or `[B, Q, K]` when `pinned` differs by row, of absolute frames `queries [Q]`, `keys [K]`."""
        start = queries // self.chunk * self.chunk
        keys = keys[None, :]
        mask = keys < start[:, None] + self.chunk
        if self.left is None:
            return mask
        near = keys >= start[:, None] - self.left
        if isinstance(self.pinned, int):
            return mask & (near | (keys < self.pinned))
        return mask & (near | (keys < self.pinned.to(keys.device)[:, None, None]))


def attention_bias(length: int, valid: Tensor | None, grid: ChunkGrid | None, like: Tensor) -> Tensor | None:
    """What is added to attention scores `[B, heads, T, T]`; `None` when every frame sees every other.

    Args:
        length: T.
        valid: `[B, T]` bool, true on the frames of a row, which come first; `None` when there is no padding.
        grid: chunks, in streaming mode.
        like: tensor with the wanted dtype and device.
    """
    mask = None
    if grid is not None:
        positions = torch.arange(length, device=like.device)
        mask = grid.visible(positions, positions)
    if valid is not None:
        mask = valid[:, None] if mask is None else mask & valid[:, None]
    return None if mask is None else additive(mask, like)


def additive(mask: Tensor, like: Tensor) -> Tensor:
    """0 where `mask [Q, K]` or `[B, Q or 1, K]` is true and a very negative number elsewhere, `[B or 1, 1, Q or 1, K]`.

    The number is finite, so that a frame of the padding that sees nothing does not become NaN.
    """
    mask = mask[None] if mask.dim() == 2 else mask
    # half of the smallest number: a position term may still be added to it
    bias = torch.zeros(mask.shape, dtype=like.dtype, device=like.device)
    return bias.masked_fill(~mask, torch.finfo(like.dtype).min / 2)[:, None]


__all__ = ["ChunkGrid", "additive", "attention_bias"]
