"""Configuration of the training of the speaker encoder CAM++ as a classifier of speakers."""

import copy
import math

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ..configuration.configuration_campplus import CamPPlusConfig


@strict
class SpeakerTrainingConfig(PreTrainedConfig):
    """
    Configuration of [`SpeakerEncoderForTraining`]. Scale and margin are those of CAM++ (arXiv 2303.00332, section 3.2).

    Args:
        encoder_config (`dict` or `CamPPlusConfig`): the speaker encoder.
        speakers (`list[str]`): names of the speakers that are told apart, in the order of their classes.
        scale (`float`): of the cosines in the softmax.
        margin (`float`): in radians, added to the angle between a vector and the direction of its own speaker.
        margin_start_batches, margin_full_batches (`int`): training batches (not optimiser steps) of each process
            before the margin begins to grow, and before it is whole; it grows linearly between.
        batch_norm_momentum (`float`): weight of a training batch in the running statistics of the encoder's batch
            norms, which evaluation mode takes. After few batches, 0.1 still holds much of where they began.
    """

    model_type = "speaker_training"
    sub_configs = {"encoder_config": CamPPlusConfig}
    keys_to_ignore_at_inference = ["logits", "classification_loss", "accuracy", "margin"]

    encoder_config: dict | PreTrainedConfig | None = None
    speakers: list[str] | tuple[str, ...] = ("0", "1")
    scale: float | int = 32.0
    margin: float | int = 0.2
    margin_start_batches: int = 0
    margin_full_batches: int = 0
    batch_norm_momentum: float | int = 0.1

    def __post_init__(self, **kwargs):
        encoder_config = copy.deepcopy(self.encoder_config)
        if encoder_config is None or isinstance(encoder_config, dict):
            encoder_config = CamPPlusConfig(**(encoder_config or {}))
        self.encoder_config = encoder_config
        super().__post_init__(**kwargs)

    def validate_speakers(self):
        """There are two speakers at least, each once."""
        if len(self.speakers) < 2:
            raise ValueError(f"`speakers` must hold 2 names at least, got {list(self.speakers)}")
        if len(set(self.speakers)) < len(self.speakers):
            twice = sorted({name for name in self.speakers if list(self.speakers).count(name) > 1})
            raise ValueError(f"`speakers` must hold each name once, got several times {twice}")

    def validate_margin(self):
        """Scale, margin and momentum are accepted numbers, and the margin is whole after it has begun."""
        if not 0 < self.scale < math.inf:
            raise ValueError(f"`scale` must be positive, got {self.scale}")
        if not 0 <= self.margin < math.pi / 2:
            raise ValueError(f"`margin` must be an angle from 0 to below pi / 2, got {self.margin}")
        if not 0 < self.batch_norm_momentum <= 1:
            raise ValueError(f"`batch_norm_momentum` must be above 0 and at most 1, got {self.batch_norm_momentum}")
        if not 0 <= self.margin_start_batches <= self.margin_full_batches:
            raise ValueError(
                "`margin_start_batches` must be at least 0 and at most `margin_full_batches`, "
                f"got {self.margin_start_batches} and {self.margin_full_batches}"
            )


__all__ = ["SpeakerTrainingConfig"]
