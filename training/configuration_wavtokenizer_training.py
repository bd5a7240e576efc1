"""Configuration of WavTokenizer's adversarial training."""

import copy

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ..configuration.configuration_wavtokenizer import WavTokenizerConfig
from .configuration_adversarial_training import AdversarialTrainingConfig


@strict
class WavTokenizerTrainingConfig(AdversarialTrainingConfig):
    """
    Configuration of [`WavTokenizerForTraining`]. The defaults are the released training configuration of WavTokenizer
    (arXiv 2408.16532).

    Args:
        codec_config (`dict` or `WavTokenizerConfig`): the codec.
        periods, period_channels, resolution_windows, resolution_channels, dac_windows, dac_channels: see
            [`AdversarialTrainingConfig`].
        mel_loss_weight, adversarial_loss_weight, feature_loss_weight (`float`): see [`AdversarialTrainingConfig`].
        commitment_loss_weight (`float`): of the distance of the encoder's vectors to their codes.
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
    dac_windows: list[int] | tuple[int, ...] = (2048, 1024, 512)
    commitment_loss_weight: float | int = 1000.0
    resolution_loss_weight: float | int = 1.0
    mel_n_fft: int = 1024
    mel_hop_length: int = 256
    num_mel_bins: int = 100
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

    def validate_mel_loss(self):
        """The spectrogram has positive sizes."""
        self.check_positive("mel_n_fft", "mel_hop_length", "num_mel_bins")


__all__ = ["WavTokenizerTrainingConfig"]
