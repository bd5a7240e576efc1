"""One-codebook vector quantiser whose codebook follows the data by exponential moving averages."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import maybe_autocast


@dataclass
class VectorQuantizerOutput(ModelOutput):
    """
    quantized (`[B, T, D]`, dtype of the input): the selected codebook vectors; the gradient passes straight through.
    codes (`[B, T]`, long): index of the nearest codebook vector, also where the mask is off.
    commitment_loss (`[]`, fp32): mean of (sg(quantized) - x)^2 over the elements of the valid vectors
        (DualSpeechLM, eq. 7).
    perplexity (`[]`, fp32): exp of the entropy of the code histogram of the valid vectors of this process.
    """

    quantized: torch.Tensor | None = None
    codes: torch.LongTensor | None = None
    commitment_loss: torch.Tensor | None = None
    perplexity: torch.Tensor | None = None


class EmaVectorQuantizer(nn.Module):
    """Nearest neighbour in a codebook of `codebook_size` vectors of width `dim`; no projection, no normalisation.

    The codebook is a buffer and gets no gradient. An update takes the counts n and the sums m of the vectors that
    chose each code, n <- d n + (1 - d) count, m <- d m + (1 - d) sum, and sets each code to m / n' with the smoothed
    n' = (n + eps) / (sum n + K eps) * sum n. The vectors returned by the same call are those before the update.

    Where this differs from the released USTokenizer and WavTokenizer code:
    - Only `forward(..., update_codebook=True)` changes state. `encode` never does, in training mode either.
    - Counts and sums are added over all ranks of `torch.distributed`, so every rank keeps the codebook that one
      process with the joined batch would have. All ranks must make the same number of updating calls.
    - A restarted code gets its vector, average and count together; upstream the average wins and undoes the restart.
    - After k-means the average is codebook * count; upstream it lacks the count, and every code shrinks at once.
    - A fresh codebook starts with count 1 per code instead of 0, which throws each unused code 1e5 times too far
      at the first update. For the released start set `cluster_size` to 0.

    Distances are computed in fp32, under autocast too. The buffers stay in fp32 when the module is cast to a half type:
    rounded vectors are other codes.

    Args:
        decay: d above.
        eps: smoothing constant above.
        kmeans_init: start from k-means on the vectors of the first update instead of from N(0, 1).
        kmeans_iterations: Lloyd iterations of that start.
        dead_code_threshold: codes whose count falls below it are replaced by random vectors of the batch; 0 = never.
    """

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        decay: float = 0.8,
        eps: float = 1e-5,
        kmeans_init: bool = False,
        kmeans_iterations: int = 50,
        dead_code_threshold: float = 0.0,
    ):
        super().__init__()
        self.codebook_size = codebook_size
        self.dim = dim
        self.decay = decay
        self.eps = eps
        self.kmeans_init = kmeans_init
        self.kmeans_iterations = kmeans_iterations
        self.dead_code_threshold = dead_code_threshold
        # said, since a half type is the default while a checkpoint is loaded in one
        self.register_buffer("embed", torch.empty(codebook_size, dim, dtype=torch.float32))
        self.register_buffer("embed_avg", torch.empty(codebook_size, dim, dtype=torch.float32))
        self.register_buffer("cluster_size", torch.empty(codebook_size, dtype=torch.float32))
        self.register_buffer("initialized", torch.empty((), dtype=torch.bool))
        self.init_buffers()

    def _apply(self, fn, recurse=True):
        return super()._apply(keeping_float32(fn), recurse)

    def init_buffers(self) -> None:
        """Fresh buffers; call it from `_init_weights` (tensors that a checkpoint filled are left alone)."""
        init.normal_(self.embed)
        init.copy_(self.embed_avg, self.embed)
        init.ones_(self.cluster_size)
        init.constant_(self.initialized, not self.kmeans_init)

    @torch.no_grad()
    def encode(self, x: torch.Tensor) -> torch.LongTensor:
        """Codes `[...]` of the vectors `x [..., D]`. The lowest index wins a tie. Changes nothing."""
        return self._nearest(x.reshape(-1, self.dim)).view(x.shape[:-1])

    def decode(self, codes: torch.LongTensor) -> torch.Tensor:
        """Codebook vectors `[..., D]` of `codes [...]`.

        Raises:
            ValueError: codes that are no integers, or a code outside 0 ... codebook_size - 1.
        """
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise ValueError(f"codes: must be integers, got {codes.dtype}.")
        if codes.numel() and codes.device.type != "meta":
            low, high = codes.min().item(), codes.max().item()
            if low < 0 or high >= self.codebook_size:
                raise ValueError(
                    f"codes: must be between 0 and {self.codebook_size - 1}, got values from {low} to {high}."
                )
        return F.embedding(codes.to(self.embed.device, torch.long), self.embed)

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, update_codebook: bool = False
    ) -> VectorQuantizerOutput:
        """Quantise `x [B, T, D]`; vectors where `mask [B, T]` is off count in no loss and in no statistic.

        Raises:
            ValueError: an update from NaN or infinite vectors, on every rank if one has them; nothing is changed.
        """
        flat = x.reshape(-1, self.dim)
        weights = flat.new_ones(len(flat), dtype=torch.float32) if mask is None else mask.reshape(-1).float()
        if update_codebook:
            _check_update(flat, weights)
            if self.kmeans_init and not self.initialized:
                self._init_from(flat.detach(), weights)
        codes = self._nearest(flat)
        quantized = F.embedding(codes, self.embed)

        count = weights.sum().clamp_min(1)
        distance = (flat.float() - quantized.float()).pow(2).mean(dim=-1)
        commitment_loss = (distance * weights).sum() / count
        histogram = weights.new_zeros(self.codebook_size).index_add_(0, codes, weights) / count
        perplexity = torch.special.entr(histogram).sum().exp()
        if update_codebook:
            self._update(flat.detach(), codes, weights)

        quantized = quantized.to(x.dtype) + (flat - flat.detach())  # straight through, without changing the value
        return VectorQuantizerOutput(
            quantized=quantized.view(x.shape),
            codes=codes.view(x.shape[:-1]),
            commitment_loss=commitment_loss,
            perplexity=perplexity,
        )

    @torch.no_grad()
    def _nearest(self, flat: torch.Tensor) -> torch.LongTensor:
        with maybe_autocast(flat.device.type, enabled=False):
            embed = self.embed.float()
            # |x|^2 is the same for all codes and left out
            distance = embed.pow(2).sum(dim=1) - 2 * (flat.float() @ embed.T)
        return distance.argmin(dim=-1)

    @torch.no_grad()
    def _update(self, flat: torch.Tensor, codes: torch.LongTensor, weights: torch.Tensor) -> None:
        counts, sums = self._statistics(flat, codes, weights)
        cluster_size = self.cluster_size.float().lerp(counts, 1 - self.decay)
        embed_avg = self.embed_avg.float().lerp(sums, 1 - self.decay)
        total = cluster_size.sum()
        smoothed = (cluster_size + self.eps) / (total + self.codebook_size * self.eps) * total
        embed = torch.where(total > 0, embed_avg / smoothed[:, None], self.embed.float())
        if self.dead_code_threshold > 0:
            dead = cluster_size < self.dead_code_threshold
            restarted_size = max(1.0, self.dead_code_threshold)
            replacement = self._sample(flat, weights, repeated=True)
            embed = torch.where(dead[:, None], replacement, embed)
            embed_avg = torch.where(dead[:, None], replacement * restarted_size, embed_avg)
            cluster_size = cluster_size.masked_fill(dead, restarted_size)
        self.embed.copy_(embed)
        self.embed_avg.copy_(embed_avg)
        self.cluster_size.copy_(cluster_size)

    @torch.no_grad()
    def _init_from(self, flat: torch.Tensor, weights: torch.Tensor) -> None:
        """Lloyd's k-means over the valid vectors of all ranks; a centre that loses all its vectors stays."""
        self.embed.copy_(self._sample(flat, weights, repeated=bool(weights.sum() < self.codebook_size)))
        for _ in range(self.kmeans_iterations):
            counts, sums = self._statistics(flat, self._nearest(flat), weights)
            self.embed.copy_(torch.where(counts[:, None] > 0, sums / counts[:, None].clamp_min(1), self.embed))
        counts, _ = self._statistics(flat, self._nearest(flat), weights)
        self.cluster_size.copy_(counts.clamp_min(1))
        self.embed_avg.copy_(self.embed * self.cluster_size[:, None])
        self.initialized.fill_(True)

    def _statistics(
        self, flat: torch.Tensor, codes: torch.LongTensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Number `[K]` and sum `[K, D]` of the valid vectors of each code, over all ranks."""
        rows = torch.cat([flat.float() * weights[:, None], weights[:, None]], dim=1)
        table = rows.new_zeros(self.codebook_size, self.dim + 1).index_add_(0, codes, rows)
        if _distributed():
            dist.all_reduce(table)
        return table[:, -1], table[:, :-1]

    def _sample(self, flat: torch.Tensor, weights: torch.Tensor, repeated: bool) -> torch.Tensor:
        """`codebook_size` random valid vectors of the first rank in fp32, the same ones on every rank."""
        chosen = flat[torch.multinomial(weights, self.codebook_size, replacement=repeated)].float()
        if _distributed():
            dist.broadcast(chosen, src=0)
        return chosen

    def extra_repr(self) -> str:
        return f"{self.codebook_size}, {self.dim}, decay={self.decay}, dead_code_threshold={self.dead_code_threshold}"


def keeping_float32(fn: Callable) -> Callable:
    """`fn` of `Module._apply` (behind `.to()`, `.half()`, `.cuda()`), but what has 32 bits or more keeps them."""

    def applied(tensor: torch.Tensor) -> torch.Tensor:
        result = fn(tensor)
        halved = result.is_floating_point() and result.element_size() < 4 <= tensor.element_size()
        return tensor.to(result.device) if halved else result

    return applied


def _check_update(flat: torch.Tensor, weights: torch.Tensor) -> None:
    """One such vector would make NaN of its code, and then of all codes, for good."""
    if flat.device.type == "meta":
        return
    broken = (~flat.detach().isfinite().all(dim=-1) & (weights > 0)).any().float()
    if _distributed():
        dist.all_reduce(broken)  # no rank may wait for one that has stopped
    if bool(broken):
        raise ValueError("x: NaN or infinite vectors; the codebook is not updated from them.")


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


__all__ = ["EmaVectorQuantizer", "VectorQuantizerOutput", "keeping_float32"]
