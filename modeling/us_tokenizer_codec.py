"""The convolutional codec of the USTokenizer (encoder features to code vectors, and back) and its adapter.

Tensors are `[B, C, T]`. Convolutions are not causal, pad with zeros and are not normalised. A mask `[B, 1, T]`
multiplies the input of every convolution that looks sideways, so a row sees zeros behind its end, exactly as it does
alone.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..configuration.configuration_us_tokenizer import UsTokenizerConfig


class MaskedConv1d(nn.Conv1d):
    """Convolution that keeps the length (at stride 1) and reads zeros where the mask is off."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, dilation=1, bias=True):
        padding = (kernel_size - 1) // 2 * dilation
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=bias)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(hidden_states if mask is None else hidden_states * mask)


class UsTokenizerResidualUnit(nn.Module):
    """x + conv1x1(ELU(conv(ELU(x))))."""

    def __init__(self, channels: int, kernel_size: int, dilation: int):
        super().__init__()
        self.conv1 = MaskedConv1d(channels, channels, kernel_size, dilation=dilation, bias=False)
        self.conv2 = nn.Conv1d(channels, channels, 1, bias=False)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return hidden_states + self.conv2(F.elu(self.conv1(F.elu(hidden_states), mask)))


class UsTokenizerBlock(nn.Module):
    """Residual units and one convolution: behind them in the encoder, in front of them in the decoder."""

    def __init__(self, config: UsTokenizerConfig, channels: int, conv_first: bool):
        super().__init__()
        self.conv_first = conv_first
        self.conv = MaskedConv1d(channels, channels, config.kernel_size)
        self.residual_units = nn.ModuleList(
            UsTokenizerResidualUnit(channels, config.kernel_size, dilation) for dilation in config.dilations
        )

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        if self.conv_first:
            hidden_states = self.conv(hidden_states, mask)
        for unit in self.residual_units:
            hidden_states = unit(hidden_states, mask)
        return hidden_states if self.conv_first else self.conv(hidden_states, mask)


class UsTokenizerCodecEncoder(nn.Module):
    """Encoder features `[B, hidden_size, F]` to vectors `[B, code_dim, T]` for the quantiser, T = ceil(F / s)."""

    def __init__(self, config: UsTokenizerConfig):
        super().__init__()
        width, stride = config.hidden_size, config.downsample
        # kernel 2 s - 1 and padding s - 1: kernel 3, stride 2, padding 1 in the released code
        self.downsample = MaskedConv1d(width, width, 2 * stride - 1, stride=stride)
        self.conv_in = MaskedConv1d(width, width, config.kernel_size, bias=False)
        self.blocks = nn.ModuleList(
            UsTokenizerBlock(config, width, conv_first=False) for _ in range(config.num_blocks)
        )
        self.conv_out = MaskedConv1d(width, config.code_dim, config.kernel_size, bias=False)

    def forward(
        self, features: torch.Tensor, frame_mask: torch.Tensor | None = None, code_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        hidden_states = self.downsample(features, frame_mask)
        hidden_states = self.conv_in(hidden_states, code_mask)
        for block in self.blocks:
            hidden_states = block(hidden_states, code_mask)
        return self.conv_out(hidden_states, code_mask)


class UsTokenizerCodecDecoder(nn.Module):
    """Code vectors `[B, code_dim, T]` to encoder features `[B, hidden_size, s (T - 1) + 1]`."""

    def __init__(self, config: UsTokenizerConfig):
        super().__init__()
        width, stride = config.hidden_size, config.downsample
        self.conv_in = MaskedConv1d(config.code_dim, width, config.kernel_size, bias=False)
        self.blocks = nn.ModuleList(UsTokenizerBlock(config, width, conv_first=True) for _ in range(config.num_blocks))
        self.conv_out = MaskedConv1d(width, width, config.kernel_size, bias=False)
        self.upsample = nn.ConvTranspose1d(width, width, 2 * stride - 1, stride=stride, padding=stride - 1)

    def forward(self, vectors: torch.Tensor, code_mask: torch.Tensor | None = None) -> torch.Tensor:
        hidden_states = self.conv_in(vectors, code_mask)
        for block in self.blocks:
            hidden_states = block(hidden_states, code_mask)
        hidden_states = self.conv_out(hidden_states, code_mask)
        return self.upsample(hidden_states if code_mask is None else hidden_states * code_mask)


class UsTokenizerAdapter(nn.Module):
    """The paper's adapter: one linear layer and one convolution over time, nothing in between."""

    def __init__(self, code_dim: int, text_hidden_size: int, kernel_size: int = 3):
        super().__init__()
        self.linear = nn.Linear(code_dim, text_hidden_size)
        self.conv = MaskedConv1d(text_hidden_size, text_hidden_size, kernel_size)

    def forward(self, vectors: torch.Tensor, mask: torch.BoolTensor | None = None) -> torch.Tensor:
        """`[B, T, text_hidden_size]` of code vectors `[B, T, code_dim]`."""
        hidden_states = self.linear(vectors).transpose(1, 2)
        return self.conv(hidden_states, None if mask is None else mask[:, None]).transpose(1, 2)


__all__ = ["MaskedConv1d", "UsTokenizerAdapter", "UsTokenizerCodecDecoder", "UsTokenizerCodecEncoder"]
