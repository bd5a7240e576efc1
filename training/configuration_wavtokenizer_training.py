"""Configuration of WavTokenizer's adversarial training."""

import copy

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ..configuration.configuration_wavtokenizer import WavTokenizerConfig


@strict
class WavTokenizerTrainingConfig(PreTrainedConfig):
    """
    Configuration of [`WavTokenizerForTraining`]. The defaults are the released training configuration of WavTokenizer
    (arXiv 2408.16532).

    Args:
        codec_config (`dict` or `WavTokenizerConfig`): the codec.
        periods (`list[int]`): periods of the period discriminators, in samples.
        period_channels (`list[int]`): widths of their convolutions.
        resolution_windows (`list[int]`): windows of the spectrogram discriminators, in samples; shifts are a quarter.
        resolution_channels (`int`): width of their convolutions.
        dac_windows (`list[int]`): windows of DAC's band discriminators, which come with unconditioned period
            discriminators; empty leaves both out.
        dac_channels (`int`): width of the band discriminators.
        mel_loss_weight (`float`): of the distance of the log-mel spectrograms.
        commitment_loss_weight (`float`): of the distance of the encoder's vectors to their codes.
        adversarial_loss_weight, feature_loss_weight (`float`): of the generator's two adversarial terms.
        resolution_loss_weight (`float`): of the spectrogram discriminators beside the others, in all terms.
        mel_n_fft, mel_hop_length, num_mel_bins (`int`): of the log-mel spectrograms.
        mel_warmup_batches (`int`): training batches (not optimiser steps) of each process in which only the mel and the
            commitment loss teach, and the discriminators rest.
        freeze_encoder (`bool`): keep encoder and codebook, so that every recording keeps its codes; only the decoder
            learns.
    """

    model_type = "wavtokenizer_training"
    sub_configs = {"codec_config": WavTokenizerConfig}
    keys_to_ignore_at_inference = [
        "mel_loss",
        "adversarial_loss",
        "feature_loss",
        "commitment_loss",
        "discriminator_loss",
        "perplexity",
        "audio_values",
    ]

    codec_config: dict | PreTrainedConfig | None = None
    periods: list[int] | tuple[int, ...] = (2, 3, 5, 7, 11)
    period_channels: list[int] | tuple[int, ...] = (32, 128, 512, 1024, 1024)
    resolution_windows: list[int] | tuple[int, ...] = (1024, 2048, 512)
    resolution_channels: int = 64
    dac_windows: list[int] | tuple[int, ...] = (2048, 1024, 512)
    dac_channels: int = 32
    mel_loss_weight: float | int = 45.0
    commitment_loss_weight: float | int = 1000.0
    adversarial_loss_weight: float | int = 1.0
    feature_loss_weight: float | int = 1.0
    resolution_loss_weight: float | int = 1.0
    mel_n_fft: int = 1024
    mel_hop_length: int = 256
    num_mel_bins: int = 100
    mel_warmup_batches: int = 0
    freeze_encoder: bool = False

    def __post_init__(self, **kwargs):
        codec_config = copy.deepcopy(self.codec_config)
        if codec_config is None or isinstance(codec_config, dict):
            codec_config = WavTokenizerConfig(**(codec_config or {}))
        self.codec_config = codec_config
        super().__post_init__(**kwargs)

    @property
    def min_samples(self) -> int:
        """Fewest samples of a segment: all spectrograms reflect half a window at both ends."""
        return max(self.mel_n_fft, *self.resolution_windows, *self.dac_windows) // 2 + 1

    def validate_discriminators(self):
        """There are discriminators, of positive sizes."""
        lists = ("periods", "period_channels", "resolution_windows")
        for name in lists:
            if not getattr(self, name):
                raise ValueError(f"`{name}` must not be empty")
        sizes = ("resolution_channels", "dac_channels", "mel_n_fft", "mel_hop_length", "num_mel_bins")
        for name in (*lists, "dac_windows", *sizes):
            values = getattr(self, name)
            if any(value < 1 for value in ([values] if isinstance(values, int) else values)):
                raise ValueError(f"`{name}` must be positive, got {values}")

    def validate_weights(self):
        """No weight is negative."""
        names = ("mel_loss_weight", "commitment_loss_weight", "adversarial_loss_weight", "feature_loss_weight")
        for name in (*names, "resolution_loss_weight", "mel_warmup_batches"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}")


__all__ = ["WavTokenizerTrainingConfig"]
