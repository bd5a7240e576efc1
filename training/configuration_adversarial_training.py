"""What the configurations of adversarial trainings share: discriminators and weights of losses."""

from dataclasses import fields

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class AdversarialTrainingConfig(PreTrainedConfig):
    """
    Base of the configurations of a generator in training against discriminators.

    Args:
        periods (`list[int]`): periods of the period discriminators, in samples.
        period_channels (`list[int]`): widths of their convolutions.
        resolution_windows (`list[int]`): windows of the spectrogram discriminators, in samples; shifts are a quarter.
        resolution_channels (`int`): width of their convolutions.
        dac_windows (`list[int]`): windows of DAC's band discriminators, which come with unconditioned period
            discriminators; empty leaves both out.
        dac_channels (`int`): width of the band discriminators.
        mel_loss_weight (`float`): of the distance of the log-mel spectrograms.
        adversarial_loss_weight, feature_loss_weight (`float`): of the generator's two adversarial terms.
        mel_warmup_batches (`int`): training batches (not optimiser steps) of each process in which the discriminators
            rest.
    """

    periods: list[int] | tuple[int, ...] = (2, 3, 5, 7, 11)
    period_channels: list[int] | tuple[int, ...] = (32, 128, 512, 1024, 1024)
    resolution_windows: list[int] | tuple[int, ...] = (1024, 2048, 512)
    resolution_channels: int = 64
    dac_windows: list[int] | tuple[int, ...] = ()
    dac_channels: int = 32
    mel_loss_weight: float | int = 45.0
    adversarial_loss_weight: float | int = 1.0
    feature_loss_weight: float | int = 1.0
    mel_warmup_batches: int = 0

    def validate_discriminators(self):
        """There are discriminators, of positive sizes."""
        lists = ("periods", "period_channels", "resolution_windows")
        for name in lists:
            if not getattr(self, name):
                raise ValueError(f"`{name}` must not be empty")
        self.check_positive(*lists, "dac_windows", "resolution_channels", "dac_channels")

    def validate_weights(self):
        """No weight and no number of batches is negative."""
        for name in (entry.name for entry in fields(self) if entry.name.endswith(("_weight", "_batches"))):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}")

    def check_positive(self, *names: str) -> None:
        """Raises `ValueError` for the first of the fields `names` that is, or holds a number, below 1."""
        for name in names:
            values = getattr(self, name)
            if any(value < 1 for value in ([values] if isinstance(values, int) else values)):
                raise ValueError(f"`{name}` must be positive, got {values}")


__all__ = ["AdversarialTrainingConfig"]
