"""Configuration of CAM++, the speaker encoder."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class CamPPlusConfig(PreTrainedConfig):
    """
    Configuration of [`CamPPlusModel`]. The defaults are the released English model (VoxCeleb, 512 numbers per voice);
    the released Chinese models, and the copy inside MOSS-Speech and CosyVoice, have `embedding_size=192`.

    Args:
        num_mel_bins (`int`): mel bins of the input; the released models read 80.
        embedding_size (`int`): size of the speaker vector, 512 or 192 in the released models.
        growth_rate (`int`): channels that each layer of a dense block appends.
        bottleneck_multiplier (`int`): width of the bottleneck inside a dense layer, in units of `growth_rate`.
        init_channels (`int`): channels in front of the first dense block.
        head_channels (`int`): channels of the two-dimensional convolutions over frequency and time.
        block_layers (`list[int]`): layers of each dense block.
        block_dilations (`list[int]`): dilation over time in each dense block.
        segment_length (`int`): frames (of 20 ms) that share one local context in the context-aware masks.
        sampling_rate (`int`): rate in Hz of the audio behind the features.
    """

    model_type = "campplus"
    attribute_map = {"hidden_size": "embedding_size", "xvector_output_dim": "embedding_size"}

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

    @property
    def num_hidden_layers(self) -> int:
        return sum(self.block_layers)

    def validate_sizes(self):
        names = ("num_mel_bins", "embedding_size", "growth_rate", "bottleneck_multiplier", "init_channels")
        names += ("head_channels", "segment_length", "sampling_rate")
        for name in names:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if (self.growth_rate * self.bottleneck_multiplier) % 2:
            raise ValueError(
                "growth_rate * bottleneck_multiplier must be even (the context is computed in half as many channels), "
                f"got {self.growth_rate} * {self.bottleneck_multiplier}"
            )

    def validate_blocks(self):
        if not self.block_layers or len(self.block_layers) != len(self.block_dilations):
            raise ValueError(
                "block_layers and block_dilations must have one entry per dense block, "
                f"got {list(self.block_layers)} and {list(self.block_dilations)}"
            )
        for name in ("block_layers", "block_dilations"):
            if min(getattr(self, name)) <= 0:
                raise ValueError(f"{name} must hold positive numbers, got {list(getattr(self, name))}")
        channels = self.init_channels
        for block, layers in enumerate(self.block_layers):
            channels += layers * self.growth_rate
            if channels % 2:
                raise ValueError(
                    f"init_channels, block_layers and growth_rate give {channels} channels behind dense block {block}; "
                    "the number is halved there and must be even"
                )
            channels //= 2


__all__ = ["CamPPlusConfig"]
