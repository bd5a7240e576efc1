"""CAM++, a speaker encoder: mel filter banks of an utterance in, one vector per voice out (arXiv 2303.00332)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import XVectorOutput
from transformers.utils import can_return_tuple

from ..configuration.configuration_campplus import CamPPlusConfig
from .audio_parts import check_finite

MIN_POOLED_FRAMES = 2  # fewer have no standard deviation


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _masked_sum(hidden_states: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    return (hidden_states * mask).sum(dim=dim, keepdim=True)


class CamPPlusResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut on `[B, channels, bins, F]`; `stride` thins the bins, never the frames."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, stride=(stride, 1), padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, channels, 1, stride=(stride, 1), bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, hidden_states: Tensor, mask: Tensor) -> Tensor:
        residual = self.shortcut(hidden_states)
        hidden_states = F.relu(self.bn1(self.conv1(hidden_states))) * mask
        hidden_states = self.bn2(self.conv2(hidden_states))
        return F.relu(hidden_states + residual) * mask


class CamPPlusHead(nn.Module):
    """Two-dimensional front part: `[B, num_mel_bins, F]` to `[B, out_channels, F]`."""

    def __init__(self, config: CamPPlusConfig):
        super().__init__()
        channels = config.head_channels
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.layer1 = nn.ModuleList([CamPPlusResidualBlock(channels, 2), CamPPlusResidualBlock(channels, 1)])
        self.layer2 = nn.ModuleList([CamPPlusResidualBlock(channels, 2), CamPPlusResidualBlock(channels, 1)])
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=(2, 1), padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.out_channels = channels * -(-config.num_mel_bins // 8)  # three strides of two, each rounded up

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        mask = mask.unsqueeze(1)
        hidden_states = F.relu(self.bn1(self.conv1(features.unsqueeze(1) * mask))) * mask
        for block in (*self.layer1, *self.layer2):
            hidden_states = block(hidden_states, mask)
        hidden_states = F.relu(self.bn2(self.conv2(hidden_states))) * mask
        return hidden_states.flatten(1, 2)


class CamPPlusNonlinearity(nn.Module):
    """Batch norm, then ReLU where the released model has one."""

    def __init__(self, channels: int, affine_and_relu: bool = True):
        super().__init__()
        self.batchnorm = nn.BatchNorm1d(channels, affine=affine_and_relu)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.batchnorm(hidden_states)
        return F.relu(hidden_states) if self.batchnorm.affine else hidden_states


class CamPPlusTdnnLayer(nn.Module):
    """Convolution over five frames that keeps every second one, then batch norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.linear = nn.Conv1d(in_channels, out_channels, 5, stride=2, padding=2, bias=False)
        self.nonlinear = CamPPlusNonlinearity(out_channels)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.nonlinear(self.linear(hidden_states))


class CamPPlusContextAwareMask(nn.Module):
    """A convolution whose output channels are gated by the mean of the utterance plus the mean of the segment."""

    def __init__(self, config: CamPPlusConfig, dilation: int):
        super().__init__()
        channels = config.growth_rate * config.bottleneck_multiplier
        self.segment_length = config.segment_length
        self.linear_local = nn.Conv1d(channels, config.growth_rate, 3, padding=dilation, dilation=dilation, bias=False)
        self.linear1 = nn.Conv1d(channels, channels // 2, 1)
        self.linear2 = nn.Conv1d(channels // 2, config.growth_rate, 1)

    def context(self, hidden_states: Tensor, mask: Tensor) -> Tensor:
        """Means over the valid frames of the row and of each segment, `[B, channels, segments]`."""
        frames = hidden_states.shape[-1]
        missing = -frames % self.segment_length
        split = (-1, self.segment_length)
        hidden_states = F.pad(_at_least_float32(hidden_states), (0, missing)).unflatten(-1, split)
        mask = F.pad(_at_least_float32(mask), (0, missing)).unflatten(-1, split)
        sums, counts = _masked_sum(hidden_states, mask).squeeze(-1), mask.sum(dim=-1)
        return sums.sum(-1, keepdim=True) / counts.sum(-1, keepdim=True) + sums / counts.clamp(min=1)

    def forward(self, hidden_states: Tensor, mask: Tensor) -> Tensor:
        context = self.context(hidden_states, mask).to(hidden_states.dtype)
        gate = torch.sigmoid(self.linear2(F.relu(self.linear1(context))))
        gate = gate.repeat_interleave(self.segment_length, dim=-1)[..., : hidden_states.shape[-1]]
        return self.linear_local(hidden_states) * gate


class CamPPlusDenseLayer(GradientCheckpointingLayer):
    """Appends `growth_rate` channels to `[B, in_channels, T]`."""

    def __init__(self, config: CamPPlusConfig, in_channels: int, dilation: int):
        super().__init__()
        channels = config.growth_rate * config.bottleneck_multiplier
        self.nonlinear1 = CamPPlusNonlinearity(in_channels)
        self.linear1 = nn.Conv1d(in_channels, channels, 1, bias=False)
        self.nonlinear2 = CamPPlusNonlinearity(channels)
        self.cam_layer = CamPPlusContextAwareMask(config, dilation)

    def forward(self, hidden_states: Tensor, mask: Tensor) -> Tensor:
        appended = self.nonlinear2(self.linear1(self.nonlinear1(hidden_states))) * mask
        return torch.cat([hidden_states, self.cam_layer(appended, mask)], dim=1)


class CamPPlusTransitLayer(nn.Module):
    """Halves the channels behind a dense block."""

    def __init__(self, in_channels: int):
        super().__init__()
        self.nonlinear = CamPPlusNonlinearity(in_channels)
        self.linear = nn.Conv1d(in_channels, in_channels // 2, 1, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.linear(self.nonlinear(hidden_states))


class CamPPlusDenseOutput(nn.Module):
    """Statistics `[B, 2 * channels]` to the speaker vector `[B, embedding_size]`."""

    def __init__(self, in_channels: int, embedding_size: int):
        super().__init__()
        self.linear = nn.Conv1d(in_channels, embedding_size, 1, bias=False)
        self.nonlinear = CamPPlusNonlinearity(embedding_size, affine_and_relu=False)

    def forward(self, statistics: Tensor) -> Tensor:
        return self.nonlinear(self.linear(statistics.unsqueeze(-1))).squeeze(-1)


class CamPPlusStatistics(nn.Module):
    """Mean and unbiased standard deviation over the valid frames: `[B, channels, T]` to `[B, 2 * channels]`."""

    def forward(self, hidden_states: Tensor, mask: Tensor) -> Tensor:
        dtype = hidden_states.dtype
        hidden_states, mask = _at_least_float32(hidden_states), _at_least_float32(mask)
        count = mask.sum(dim=-1, keepdim=True)
        mean = _masked_sum(hidden_states, mask) / count
        variance = _masked_sum((hidden_states - mean).square(), mask) / (count - 1)
        # The square root has no slope at 0, where channels that never fire are.
        deviation = variance.clamp(min=1e-14).sqrt()
        return torch.cat([mean, deviation], dim=1).squeeze(-1).to(dtype)


class CamPPlusXVector(nn.Module):
    """One-dimensional part: `[B, channels, F]` to `[B, embedding_size]`."""

    def __init__(self, config: CamPPlusConfig, in_channels: int):
        super().__init__()
        channels = config.init_channels
        self.tdnn = CamPPlusTdnnLayer(in_channels, channels)
        self.num_blocks = len(config.block_layers)
        for block, (layers, dilation) in enumerate(zip(config.block_layers, config.block_dilations, strict=True), 1):
            widths = [channels + layer * config.growth_rate for layer in range(layers)]
            dense = {f"tdnnd{i}": CamPPlusDenseLayer(config, width, dilation) for i, width in enumerate(widths, 1)}
            channels += layers * config.growth_rate
            self.add_module(f"block{block}", nn.ModuleDict(dense))
            self.add_module(f"transit{block}", CamPPlusTransitLayer(channels))
            channels //= 2
        self.out_nonlinear = CamPPlusNonlinearity(channels)
        self.stats = CamPPlusStatistics()
        self.dense = CamPPlusDenseOutput(2 * channels, config.embedding_size)

    def forward(self, hidden_states: Tensor, mask: Tensor) -> Tensor:
        mask = mask[..., ::2]
        hidden_states = self.tdnn(hidden_states)
        for block in range(1, self.num_blocks + 1):
            for layer in getattr(self, f"block{block}").values():
                hidden_states = layer(hidden_states, mask)
            hidden_states = getattr(self, f"transit{block}")(hidden_states)
        return self.dense(self.stats(self.out_nonlinear(hidden_states), mask))


class CamPPlusModel(PreTrainedModel):
    """
    CAM++: a densely connected time-delay network with context-aware masks.

    Module names are those of the released checkpoints. Every convolution over time reads zeros behind the end of a
    row, and every mean and standard deviation covers the valid frames only, so a padded batch gives the vectors of
    the single rows; the released code has no mask and wants one utterance at a time. In training mode the batch norms
    take their statistics over padded frames too (train on crops of one length, as the released recipe does), and
    gradient checkpointing updates their running statistics twice per step. Call `eval()` for embedding.

    Example:

    ```python
    >>> import torch
    >>> from dualspeech import CamPPlusConfig, CamPPlusModel, KaldiFbankFeatureExtractor

    >>> model = CamPPlusModel(CamPPlusConfig(growth_rate=8, init_channels=32, block_layers=(2, 2, 2))).eval()
    >>> waveforms = [torch.randn(16000), torch.randn(9000)]
    >>> inputs = KaldiFbankFeatureExtractor()(waveforms, sampling_rate=16000, return_tensors="pt")
    >>> model(**inputs).embeddings.shape
    torch.Size([2, 512])
    ```
    """

    config: CamPPlusConfig
    base_model_prefix = "campplus"
    main_input_name = "input_features"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["CamPPlusHead", "CamPPlusDenseLayer"]

    def __init__(self, config: CamPPlusConfig):
        super().__init__(config)
        self.head = CamPPlusHead(config)
        self.xvector = CamPPlusXVector(config, self.head.out_channels)
        self.post_init()

    @can_return_tuple
    def forward(self, input_features: Tensor, attention_mask: Tensor | None = None, **kwargs) -> XVectorOutput:
        """
        Args:
            input_features (`torch.Tensor`): `[B, F, num_mel_bins]`, Kaldi filter banks every 10 ms minus their mean
                over the utterance ([`KaldiFbankFeatureExtractor`]).
            attention_mask (`torch.Tensor`, *optional*): `[B, F]`, 1 on the frames of the row, 0 on the padding behind them,
                which may be anything.

        Returns:
            `XVectorOutput`: `embeddings [B, embedding_size]`, not normalised.

        Raises:
            ValueError: features of another shape, NaN or infinite ones, padding that is not on the right, rows of fewer
                than 3 frames.
        """
        mask = self._frame_mask(input_features, attention_mask)
        check_finite("input_features", input_features, mask[..., None])
        features = input_features.masked_fill(~mask[..., None], 0).to(self.dtype).transpose(1, 2)
        mask = mask.to(features.dtype).unsqueeze(1)
        return XVectorOutput(embeddings=self.xvector(self.head(features, mask), mask))

    def _frame_mask(self, input_features: Tensor, attention_mask: Tensor | None) -> Tensor:
        if input_features.ndim != 3 or input_features.shape[-1] != self.config.num_mel_bins:
            raise ValueError(
                f"input_features must be [batch, frames, {self.config.num_mel_bins}], got {tuple(input_features.shape)}"
            )
        batch, frames, _ = input_features.shape
        needed = 2 * MIN_POOLED_FRAMES - 1
        if attention_mask is None:
            shortest = frames
            mask = torch.ones(batch, frames, dtype=torch.bool, device=input_features.device)
        else:
            if attention_mask.shape != (batch, frames):
                raise ValueError(f"attention_mask must be {(batch, frames)}, got {tuple(attention_mask.shape)}")
            mask = attention_mask.to(input_features.device).bool()
            lengths = mask.sum(dim=1)
            if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
                raise ValueError("attention_mask must be 1 on the first frames of a row and 0 behind them")
            shortest = int(lengths.min()) if batch else needed
        if shortest < needed:
            raise ValueError(f"input_features: each row needs at least {needed} frames, the shortest has {shortest}")
        return mask


__all__ = ["CamPPlusModel"]
