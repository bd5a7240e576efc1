"""Configuration of HiFT's adversarial training."""

import copy

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ..configuration.configuration_hift import HiFTConfig
from .configuration_adversarial_training import AdversarialTrainingConfig


@strict
class HiFTTrainingConfig(AdversarialTrainingConfig):
    """
    Configuration of [`HiFTForTraining`]. The weights are those of the released training of CosyVoice 2, which follows
    HiFTNet (arXiv 2309.09493, section 3.2).

    Args:
        vocoder_config (`dict` or `HiFTConfig`): the vocoder.
        periods, period_channels, resolution_windows, resolution_channels, dac_windows, dac_channels: see
            [`AdversarialTrainingConfig`].
        mel_loss_windows (`list[int]`, *optional*): windows in samples of the log-mel spectrograms whose distance is a
            loss, up to the Nyquist frequency; shifts are a quarter. The loss is the sum over windows. Four hops of the
            vocoder by default.
        mel_loss_bins (`int`): their bins.
        mel_loss_weight, adversarial_loss_weight, feature_loss_weight (`float`): see [`AdversarialTrainingConfig`].
        relativistic_loss_weight (`float`): of the truncated pointwise relativistic loss, for both sides.
        relativistic_tau (`float`): where that is cut off.
        f0_loss_weight (`float`): of the mean distance of predicted and true f0, in Hz.
        mel_warmup_batches (`int`): training batches (not optimiser steps) of each process in which only mel and f0 loss
            teach, and the discriminators rest.
        target_f0_batches (`int`): training batches of each process in which the excitation comes from the true f0, before
            it comes from the predicted one as in the released training.
    """

    model_type = "hift_training"
    sub_configs = {"vocoder_config": HiFTConfig}
    keys_to_ignore_at_inference = [
        "mel_loss",
        "adversarial_loss",
        "feature_loss",
        "relativistic_loss",
        "f0_loss",
        "discriminator_loss",
        "waveform",
    ]

    vocoder_config: dict | PreTrainedConfig | None = None
    mel_loss_windows: list[int] | tuple[int, ...] | None = None
    mel_loss_bins: int = 80
    feature_loss_weight: float | int = 2.0
    relativistic_loss_weight: float | int = 1.0
    relativistic_tau: float | int = 0.04
    f0_loss_weight: float | int = 1.0
    target_f0_batches: int = 0

    def __post_init__(self, **kwargs):
        vocoder_config = copy.deepcopy(self.vocoder_config)
        if vocoder_config is None or isinstance(vocoder_config, dict):
            vocoder_config = HiFTConfig(**(vocoder_config or {}))
        self.vocoder_config = vocoder_config
        if self.mel_loss_windows is None:
            self.mel_loss_windows = [4 * vocoder_config.hop_length]
        super().__post_init__(**kwargs)

    @property
    def min_frames(self) -> int:
        """Fewest mel frames of a segment: all spectrograms reflect a part of a window at both ends."""
        # mel spectrograms reflect three eighths, discriminators half a window
        needed = max(*self.resolution_windows, *self.dac_windows, 0.75 * max(self.mel_loss_windows)) // 2 + 1
        return int(-(-needed // self.vocoder_config.hop_length))

    def validate_mel_loss(self):
        """There is a spectrogram, of positive sizes, and the relativistic loss is cut off above 0."""
        if not self.mel_loss_windows or min(self.mel_loss_windows) < 4:
            raise ValueError(
                f"`mel_loss_windows` must hold windows of 4 samples at least, got {self.mel_loss_windows}"
            )
        self.check_positive("mel_loss_bins")
        if self.relativistic_tau <= 0:
            raise ValueError(f"`relativistic_tau` must be positive, got {self.relativistic_tau}")


__all__ = ["HiFTTrainingConfig"]
