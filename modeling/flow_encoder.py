"""Encoder of the flow decoder: conformer-like layers with relative positions, a short look-ahead and up-sampling.

All sequences are `[B, T, channels]`. Every part takes an optional state (`flow_state.py`) that holds what it needs of
the frames before; without one, the sequence starts here.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..configuration.configuration_flow_decoder import FlowDecoderConfig
from .flow_masks import ChunkGrid, additive, attention_bias
from .flow_state import FlowState
from .modeling_wavtokenizer import eager_attention_forward

MAX_SCORES = 2**24  # per head and row that one call of the attention may hold: bounds memory for long utterances
LOOKAHEAD_SLOPE = 0.01


class FlowConv1d(nn.Linear):
    """Convolution over `[B, T, in_channels]`, computed as one matrix product over `kernel_size` joined frames.

    A causal one sees the frame itself and those before it, and keeps the length; another one sees the frame and those
    behind it, and the result is `kernel_size - 1` frames shorter. The weight is `[out, kernel_size * in]`: for pieces
    of a few frames this is several times faster than `nn.Conv1d`, which rearranges its weight at every call, and it
    does not fall under the TF32 default of convolutions on GPUs.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, causal: bool = True):
        super().__init__(kernel_size * in_channels, out_channels)
        self.kernel_size, self.causal = kernel_size, causal

    def forward(self, hidden_states: Tensor, state: FlowState | None = None) -> Tensor:
        left = self.kernel_size - 1
        if self.causal:
            if state is None:
                hidden_states = F.pad(hidden_states, (0, 0, left, 0))
            else:
                hidden_states = state.with_tail(self, hidden_states, left)
        length = hidden_states.shape[1] - left
        joined = torch.cat([hidden_states[:, i : i + length] for i in range(self.kernel_size)], dim=-1)
        return super().forward(joined)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """`dtype`, or fp32 when it is a half type."""
    return torch.promote_types(dtype, torch.float32)


def sinusoids(positions: Tensor, size: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Sine and cosine `[T, size / 2]` of `positions [T]`, for frequencies from 1 down to almost 1 / 10000.

    The angles are computed in double precision: at frame 15000 single precision would be off by 1e-3.
    """
    if positions.device.type == "mps":  # has no double precision
        return tuple(part.to(positions.device) for part in sinusoids(positions.cpu(), size, dtype))
    frequencies = torch.arange(0, size, 2, device=positions.device, dtype=torch.float64)
    frequencies = torch.exp(frequencies * (-math.log(10000.0) / size))
    angles = positions.double()[:, None] * frequencies
    return angles.sin().to(dtype), angles.cos().to(dtype)


class FlowEncoderAttention(nn.Module):
    """Self-attention with relative positions (Transformer-XL): score(i, j) = ((q_i + u) k_j + (q_i + v) W e(i - j)) / sqrt d.

    With e made of sines and cosines, the angle of i - j splits into those of i and j: the second term is the product
    of a vector of the query with the *absolute* e(j). So keys carry their absolute position, no table of distances is
    projected or shifted, and a cache of keys stays valid while the utterance grows.
    """

    def __init__(self, config: FlowDecoderConfig):
        super().__init__()
        size, self.num_heads = config.hidden_size, config.num_attention_heads
        self.config = config
        self.head_dim = size // self.num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.dropout = config.dropout
        self.q_proj = nn.Linear(size, size)
        self.k_proj = nn.Linear(size, size)
        self.v_proj = nn.Linear(size, size)
        self.o_proj = nn.Linear(size, size)
        self.pos_proj = nn.Linear(size, size, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(self.num_heads, self.head_dim))
        self.pos_bias_v = nn.Parameter(torch.empty(self.num_heads, self.head_dim))

    def position_queries(self, query: Tensor, sine: Tensor, cosine: Tensor) -> tuple[Tensor, Tensor]:
        """What the sines and the cosines of the keys' positions are multiplied with, `[B, heads, T, size / 2]` each."""
        projection = self.pos_proj.weight.view(self.num_heads, self.head_dim, -1).to(sine.dtype)
        weights = (query + self.pos_bias_v[:, None]).to(sine.dtype) @ projection
        of_sine, of_cosine = weights[..., 0::2], weights[..., 1::2]
        return of_cosine * sine - of_sine * cosine, of_sine * sine + of_cosine * cosine

    def forward(
        self,
        hidden_states: Tensor,
        query_table: tuple[Tensor, Tensor],
        key_table: Tensor,
        bias: Tensor | None,
        state: FlowState | None = None,
    ) -> Tensor:
        """
        Args:
            hidden_states: `[B, T, size]`.
            query_table: `sinusoids` of the T positions.
            key_table: `[K, size]`, sines then cosines of the positions of the keys, those of the state included.
            bias: `[B or 1, 1, T or 1, K]`, see `flow_masks.py`.
            state: where keys and values are kept.
        """
        shape = (*hidden_states.shape[:2], self.num_heads, self.head_dim)
        query = self.q_proj(hidden_states).view(shape).transpose(1, 2)
        key = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        if state is not None:
            key, value = state.with_past(self, key, value)
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        positional = torch.cat(self.position_queries(query, *query_table), dim=-1) * self.scaling
        query = query + self.pos_bias_u[:, None]
        outputs = []
        block = max(1, MAX_SCORES // key.shape[2])
        for start in range(0, query.shape[2], block):
            rows = slice(start, start + block)
            scores = (positional[:, :, rows] @ key_table.T).to(query.dtype)
            if bias is not None:
                scores = scores + (bias if bias.shape[2] == 1 else bias[:, :, rows])
            dropout = self.dropout if self.training else 0.0
            outputs.append(
                attention(self, query[:, :, rows], key, value, scores, scaling=self.scaling, dropout=dropout)[0]
            )
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        return self.o_proj(output.flatten(2))


class FlowEncoderLayer(GradientCheckpointingLayer):
    """Pre-norm attention and feed-forward, without the convolution and the second feed-forward of a conformer."""

    def __init__(self, config: FlowDecoderConfig):
        super().__init__()
        size = config.hidden_size
        self.attention_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.attention = FlowEncoderAttention(config)
        self.mlp_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden_states: Tensor,
        query_table: tuple[Tensor, Tensor],
        key_table: Tensor,
        bias: Tensor | None,
        state: FlowState | None = None,
    ) -> Tensor:
        normed = self.attention_norm(hidden_states)
        attended = self.attention(normed, query_table, key_table, bias, state)
        hidden_states = hidden_states + self.dropout(attended)
        update = self.fc2(self.dropout(F.silu(self.fc1(self.mlp_norm(hidden_states)))))
        return hidden_states + self.dropout(update)


class FlowEncoderInput(nn.Module):
    """Linear layer and norm, times the square root of the width."""

    def __init__(self, config: FlowDecoderConfig):
        super().__init__()
        self.linear = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.scale = math.sqrt(config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.dropout(self.norm(self.linear(hidden_states)) * self.scale)


class FlowLookahead(nn.Module):
    """Mixes each frame with the `pre_lookahead` next ones and what comes of the two frames before."""

    def __init__(self, config: FlowDecoderConfig):
        super().__init__()
        size = config.hidden_size
        self.conv1 = FlowConv1d(size, size, config.pre_lookahead + 1, causal=False)
        self.conv2 = FlowConv1d(size, size, 3)

    def forward(self, hidden_states: Tensor, state: FlowState | None = None) -> Tensor:
        """`[B, T + pre_lookahead, size]` -> `[B, T, size]`; the last frames are looked at only."""
        update = F.leaky_relu(self.conv1(hidden_states), LOOKAHEAD_SLOPE)
        return hidden_states[:, : update.shape[1]] + self.conv2(update, state)


class FlowUpsample(nn.Module):
    """Repeats each frame `ratio` times and smooths with a causal convolution over two and a bit original frames."""

    def __init__(self, config: FlowDecoderConfig):
        super().__init__()
        self.ratio = config.upsample_ratio
        self.conv = FlowConv1d(config.hidden_size, config.hidden_size, 2 * self.ratio + 1)

    def forward(self, hidden_states: Tensor, state: FlowState | None = None) -> Tensor:
        return self.conv(hidden_states.repeat_interleave(self.ratio, dim=1), state)


class FlowEncoder(nn.Module):
    """Embedded codes `[B, T, hidden_size]` to states at mel rate `[B, upsample_ratio * T, hidden_size]`."""

    def __init__(self, config: FlowDecoderConfig):
        super().__init__()
        self.config = config
        self.embed = FlowEncoderInput(config)
        self.lookahead = FlowLookahead(config)
        self.layers = nn.ModuleList([FlowEncoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.upsample = FlowUpsample(config)
        self.upsampled_embed = FlowEncoderInput(config)
        self.upsampled_layers = nn.ModuleList([FlowEncoderLayer(config) for _ in range(config.num_upsampled_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)

    def forward(
        self,
        inputs_embeds: Tensor,
        valid: Tensor | None = None,
        grid: ChunkGrid | None = None,
        following: int = 0,
        states: tuple[FlowState, FlowState] | None = None,
    ) -> Tensor:
        """
        Args:
            inputs_embeds: `[B, T, hidden_size]`, embedded codes.
            valid: `[B, T]` bool, true on the codes of a row, which come first.
            grid: chunks in codes for the streaming masks; full attention when `None`.
            following: so many of the last codes of each row, `pre_lookahead` at most, are looked at only, and the
                result has as many codes less. Zeros stand for those that are missing.
            states: for codes that continue those of earlier calls: the states at code rate and at mel rate, which
                know their grids. Then there is one row without padding.
        """
        ratio = self.config.upsample_ratio
        hidden_states = self.embed(inputs_embeds)
        if valid is not None:
            hidden_states = hidden_states * valid[..., None]
            valid = valid[:, following:]
        hidden_states = F.pad(hidden_states, (0, 0, 0, self.config.pre_lookahead - following))
        at_code_rate, at_mel_rate = states or (None, None)
        hidden_states = self.lookahead(hidden_states, at_code_rate)
        hidden_states = self._run(self.layers, hidden_states, valid, grid, at_code_rate)
        hidden_states = self.upsampled_embed(self.upsample(hidden_states, at_code_rate))
        valid = None if valid is None else valid.repeat_interleave(ratio, dim=1)
        grid = None if grid is None else grid.upsampled(ratio)
        return self.norm(self._run(self.upsampled_layers, hidden_states, valid, grid, at_mel_rate))

    def _run(
        self,
        layers: nn.ModuleList,
        hidden_states: Tensor,
        valid: Tensor | None,
        grid: ChunkGrid | None,
        state: FlowState | None,
    ) -> Tensor:
        length, device = hidden_states.shape[1], hidden_states.device
        if state is None:
            queries, bias = torch.arange(length, device=device), attention_bias(length, valid, grid, hidden_states)
        else:
            queries, _, mask = state.positions(length, device)
            bias = None if mask is None else additive(mask, hidden_states)
            state.advance(length)
        query_table = sinusoids(queries, self.config.hidden_size, at_least_float32(hidden_states.dtype))
        key_table = torch.cat(query_table, dim=-1)
        if state is not None:
            key_table = state.with_table(layers, key_table)
        for layer in layers:
            hidden_states = layer(hidden_states, query_table, key_table, bias, state)
        return hidden_states


__all__ = [
    "FlowConv1d",
    "FlowEncoder",
    "FlowEncoderAttention",
    "FlowEncoderInput",
    "FlowEncoderLayer",
    "FlowLookahead",
    "FlowUpsample",
    "at_least_float32",
    "sinusoids",
]
