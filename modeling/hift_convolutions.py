"""Convolutions over a whole signal, or over its pieces as they come: two classes with the same methods.

A network that is written against these methods runs both ways, and its output for pieces of any sizes, joined, is its
output for the whole signal: a convolution waits until the positions to the right of its kernel exist, and keeps the last
positions on the left. Padding is applied at the true ends of the signal only.

`key` names a place of the network, the same at every call; a module serves when it is used once.
"""

from collections.abc import Hashable

import torch
import torch.nn.functional as F
from torch import Tensor


class WholeSignal:
    """The methods for a signal `[B, C, T]` that is there from start to end."""

    def conv1d(
        self,
        key: Hashable,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
    ) -> Tensor:
        """`torch.nn.functional.conv1d`; `padding` zeros on both ends."""
        return F.conv1d(x, weight, bias, stride, padding, dilation)

    def conv_transpose1d(
        self, key: Hashable, x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0
    ) -> Tensor:
        """`torch.nn.functional.conv_transpose1d`; `padding` positions are cut from both ends."""
        return F.conv_transpose1d(x, weight, bias, stride, padding)

    def reflect(self, key: Hashable, x: Tensor, left: int, right: int) -> Tensor:
        """Mirror `left` and `right` positions at the ends, which are not repeated."""
        return F.pad(x, (left, right), mode="reflect")

    def align(self, key: Hashable, *signals: Tensor) -> tuple[Tensor, ...]:
        """Signals of the same total length, cut to the positions that are there in all of them."""
        return signals


class SignalPieces:
    """The methods for consecutive pieces, which may be empty; keeps what the next piece needs.

    Set `final` before the last piece: the right end is padded then. Tensors that are kept are never changed in place,
    so that a `copy` can be carried on without touching the original.
    """

    def __init__(self):
        self.final = False
        self._kept: dict[Hashable, tuple] = {}

    def copy(self) -> "SignalPieces":
        twin = SignalPieces()
        twin.final, twin._kept = self.final, dict(self._kept)
        return twin

    @property
    def nbytes(self) -> int:
        """Memory of what is kept, in bytes."""
        return sum(item.nbytes for kept in self._kept.values() for item in kept if isinstance(item, Tensor))

    def conv1d(
        self,
        key: Hashable,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
    ) -> Tensor:
        if key in self._kept:
            x = torch.cat([*self._kept[key], x], dim=-1)
        elif padding:
            x = F.pad(x, (padding, 0))
        if self.final and padding:
            x = F.pad(x, (0, padding))
        span = (weight.shape[-1] - 1) * dilation + 1
        count = max((x.shape[-1] - span) // stride + 1, 0)
        self._kept[key] = (x[..., count * stride :].clone(),)
        if not count:
            return x.new_zeros(x.shape[0], weight.shape[0], 0)
        return F.conv1d(x[..., : (count - 1) * stride + span], weight, bias, stride, 0, dilation)

    def conv_transpose1d(
        self, key: Hashable, x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0
    ) -> Tensor:
        overlap = weight.shape[-1] - stride
        # sums of the positions that the next piece reaches too, and how many positions at the start are still to cut
        sums, uncut = self._kept.get(key, (x.new_zeros(x.shape[0], weight.shape[1], overlap), padding))
        if x.shape[-1]:
            y = F.conv_transpose1d(x, weight, None, stride)
            y = torch.cat([y[..., :overlap] + sums, y[..., overlap:]], dim=-1)
        else:
            y = sums
        ready = y.shape[-1] - (padding if self.final else overlap)
        start = min(uncut, ready)
        self._kept[key] = (y[..., y.shape[-1] - overlap :].clone(), uncut - start)
        y = y[..., start:ready]
        return y if bias is None else y + bias[:, None]

    def reflect(self, key: Hashable, x: Tensor, left: int, right: int) -> Tensor:
        recent, started = self._kept.get(key, (x[..., :0], False))
        recent = torch.cat([recent, x], dim=-1)
        if started:
            parts = [x]
        elif recent.shape[-1] > left:
            parts = [recent[..., 1 : left + 1].flip(-1), recent]
        elif self.final:
            raise ValueError(f"a signal of {recent.shape[-1]} positions cannot be mirrored by {left}")
        else:
            self._kept[key] = (recent, False)
            return x[..., :0]
        if self.final and right:
            parts.append(recent[..., -right - 1 : -1].flip(-1))
        self._kept[key] = (recent[..., max(recent.shape[-1] - right - 1, 0) :].clone(), True)
        return torch.cat(parts, dim=-1)

    def align(self, key: Hashable, *signals: Tensor) -> tuple[Tensor, ...]:
        if key in self._kept:
            signals = tuple(torch.cat(pair, dim=-1) for pair in zip(self._kept[key], signals, strict=True))
        count = min(signal.shape[-1] for signal in signals)
        self._kept[key] = tuple(signal[..., count:].clone() for signal in signals)
        return tuple(signal[..., :count] for signal in signals)


__all__ = ["SignalPieces", "WholeSignal"]
