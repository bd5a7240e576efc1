"""Velocity estimator of the flow decoder: a causal U-Net with one level of resolution (no down-sampling in time).

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
from .flow_encoder import FlowConv1d
from .flow_state import FlowState
from .modeling_wavtokenizer import eager_attention_forward

TIME_SCALE = 1000.0  # flow times 0 to 1 as the steps of a diffusion model
WIDENING = 4  # of the time embedding and of the feed-forward layers, in units of the channels


class FlowTimeEmbedding(nn.Module):
    """Flow times `[B]` to `[B, 4 * channels]`."""

    def __init__(self, config: FlowDecoderConfig):
        super().__init__()
        self.in_features = 4 * config.num_mel_bins
        size = WIDENING * config.estimator_channels
        self.linear1 = nn.Linear(self.in_features, size)
        self.linear2 = nn.Linear(size, size)

    def forward(self, times: Tensor) -> Tensor:
        half = self.in_features // 2
        steps = torch.arange(half, device=times.device, dtype=torch.float32)
        frequencies = torch.exp(steps * (-math.log(10000.0) / (half - 1)))
        angles = TIME_SCALE * times.float()[:, None] * frequencies
        embedding = torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.linear1.weight.dtype)
        return self.linear2(F.silu(self.linear1(embedding)))


class FlowConvBlock(nn.Module):
    """Causal convolution, norm over the channels, Mish; nothing comes from or goes to the padding."""

    def __init__(self, config: FlowDecoderConfig, in_channels: int):
        super().__init__()
        self.conv = FlowConv1d(in_channels, config.estimator_channels, 3)
        self.norm = nn.LayerNorm(config.estimator_channels, eps=config.norm_eps)

    def forward(self, hidden_states: Tensor, valid: Tensor | None, state: FlowState | None) -> Tensor:
        hidden_states = F.mish(self.norm(self.conv(_masked(hidden_states, valid), state)))
        return _masked(hidden_states, valid)


class FlowResnet(nn.Module):
    """Two convolution blocks with the time in between and a linear shortcut."""

    def __init__(self, config: FlowDecoderConfig, in_channels: int):
        super().__init__()
        channels = config.estimator_channels
        self.time_proj = nn.Linear(WIDENING * channels, channels)
        self.block1 = FlowConvBlock(config, in_channels)
        self.block2 = FlowConvBlock(config, channels)
        self.shortcut = nn.Linear(in_channels, channels)

    def forward(self, hidden_states: Tensor, time: Tensor, valid: Tensor | None, state: FlowState | None) -> Tensor:
        update = self.block1(hidden_states, valid, state) + self.time_proj(F.mish(time))[:, None]
        return self.block2(update, valid, state) + self.shortcut(_masked(hidden_states, valid))


class FlowEstimatorAttention(nn.Module):
    """Multi-head self-attention without positions."""

    def __init__(self, config: FlowDecoderConfig):
        super().__init__()
        channels, self.head_dim = config.estimator_channels, config.estimator_head_dim
        inner = config.estimator_num_heads * self.head_dim
        self.config = config
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(channels, inner, bias=False)
        self.k_proj = nn.Linear(channels, inner, bias=False)
        self.v_proj = nn.Linear(channels, inner, bias=False)
        self.o_proj = nn.Linear(inner, channels)

    def forward(self, hidden_states: Tensor, bias: Tensor | None, state: FlowState | None) -> Tensor:
        shape = (*hidden_states.shape[:2], -1, self.head_dim)
        query, key, value = (
            projection(hidden_states).view(shape).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if state is not None:
            key, value = state.with_past(self, key, value)
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, _ = attention(self, query, key, value, bias, scaling=self.scaling, dropout=0.0)
        return self.o_proj(output.flatten(2))


class FlowEstimatorLayer(GradientCheckpointingLayer):
    """Pre-norm attention and feed-forward."""

    def __init__(self, config: FlowDecoderConfig):
        super().__init__()
        channels = config.estimator_channels
        self.attention_norm = nn.LayerNorm(channels, eps=config.norm_eps)
        self.attention = FlowEstimatorAttention(config)
        self.mlp_norm = nn.LayerNorm(channels, eps=config.norm_eps)
        self.fc1 = nn.Linear(channels, WIDENING * channels)
        self.fc2 = nn.Linear(WIDENING * channels, channels)

    def forward(self, hidden_states: Tensor, bias: Tensor | None, state: FlowState | None = None) -> Tensor:
        hidden_states = hidden_states + self.attention(self.attention_norm(hidden_states), bias, state)
        return hidden_states + self.fc2(F.gelu(self.fc1(self.mlp_norm(hidden_states))))


class FlowStage(nn.Module):
    """Residual convolutions, transformer layers, and for the outer stages one more convolution."""

    def __init__(self, config: FlowDecoderConfig, in_channels: int, outer: bool):
        super().__init__()
        channels = config.estimator_channels
        self.resnet = FlowResnet(config, in_channels)
        self.layers = nn.ModuleList([FlowEstimatorLayer(config) for _ in range(config.estimator_num_layers)])
        self.conv = FlowConv1d(channels, channels, 3) if outer else None

    def forward(
        self, hidden_states: Tensor, time: Tensor, valid: Tensor | None, bias: Tensor | None, state: FlowState | None
    ) -> tuple[Tensor, Tensor]:
        """The result, and what it was in front of the last convolution."""
        hidden_states = self.resnet(hidden_states, time, valid, state)
        for layer in self.layers:
            hidden_states = layer(hidden_states, bias, state)
        if self.conv is None:
            return hidden_states, hidden_states
        return self.conv(_masked(hidden_states, valid), state), hidden_states


class FlowEstimator(nn.Module):
    """Velocity of noisy mel frames, given the encoder's prediction, the voice and the frames that are known."""

    def __init__(self, config: FlowDecoderConfig):
        super().__init__()
        channels = config.estimator_channels
        self.time_embedding = FlowTimeEmbedding(config)
        self.down = FlowStage(config, 4 * config.num_mel_bins, outer=True)
        self.mid = nn.ModuleList([FlowStage(config, channels, False) for _ in range(config.estimator_num_mid_stages)])
        self.up = FlowStage(config, 2 * channels, outer=True)
        self.final_block = FlowConvBlock(config, channels)
        self.out_proj = nn.Linear(channels, config.num_mel_bins)

    def forward(
        self,
        noisy: Tensor,
        conditioning: Tensor,
        speaker: Tensor,
        known: Tensor,
        times: Tensor,
        valid: Tensor | None = None,
        bias: Tensor | None = None,
        state: FlowState | None = None,
    ) -> Tensor:
        """
        Args:
            noisy: `[B, T, num_mel_bins]`, x_t.
            conditioning: `[B, T, num_mel_bins]`, mu of the encoder.
            speaker: `[B, num_mel_bins]`, the projected speaker vector.
            known: `[B, T, num_mel_bins]`, mel frames of the prompt, zeros elsewhere.
            times: `[B]`, 0 (noise) to 1 (mel spectrogram).
            valid: `[B, T]` bool, true on the frames of a row; `None` without padding.
            bias: added to the attention scores, see `flow_masks.py`; `None` when all frames see all.
            state: for frames that continue those of earlier calls.

        Returns:
            `[B, T, num_mel_bins]`, 0 on the padding.
        """
        time = self.time_embedding(times)
        speaker = speaker[:, None].expand(-1, noisy.shape[1], -1)
        hidden_states = torch.cat([noisy, conditioning, speaker, known], dim=-1)
        hidden_states, skip = self.down(hidden_states, time, valid, bias, state)
        for stage in self.mid:
            hidden_states, _ = stage(hidden_states, time, valid, bias, state)
        hidden_states, _ = self.up(torch.cat([hidden_states, skip], dim=-1), time, valid, bias, state)
        return _masked(self.out_proj(self.final_block(hidden_states, valid, state)), valid)


def _masked(hidden_states: Tensor, valid: Tensor | None) -> Tensor:
    return hidden_states if valid is None else hidden_states * valid[..., None]


__all__ = ["FlowEstimator", "FlowEstimatorAttention", "FlowEstimatorLayer", "FlowTimeEmbedding"]
