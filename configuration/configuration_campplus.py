"""Configuration of CAM++, the speaker encoder."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class CamPPlusConfig(PreTrainedConfig):
    model_type = "campplus"

    num_mel_bins: int = 80
    embedding_size: int = 512
    growth_rate: int = 32
    bottleneck_multiplier: int = 4
    init_channels: int = 128
    head_channels: int = 32
    block_layers: list[int] | tuple[int, ...] = (12, 24, 16)
    block_dilations: list[int] | tuple[int, ...] = (1, 2, 2)
    segment_length: int = 100
    sampling_rate: int = 16000


__all__ = ["CamPPlusConfig"]
