"""Adversarial training of the HiFT vocoder with the plain `transformers.Trainer`, as WavTokenizer is trained."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple

from ..modeling.audio_features import vocoder_log_mel
from ..modeling.modeling_hift import HiFTModel, HiFTOutput
from .adversarial_losses import HIFT_TERMS, discriminator_loss, generator_losses, relativistic_loss
from .adversarial_training import AdversarialTrainingMixin, init_convolution_as_torch
from .configuration_hift_training import HiFTTrainingConfig


@dataclass
class HiFTTrainingOutput(ModelOutput):
    """
    loss (`[]`): what the vocoder minimises, plus `discriminator_loss`, which only the discriminators feel.
    mel_loss (`[]`, fp32): mean absolute difference of the log-mel spectrograms, summed over windows.
    adversarial_loss, feature_loss, relativistic_loss (`[]`, fp32): the discriminators' say, for the vocoder; `None` in the
        warm-up.
    f0_loss (`[]`, fp32): mean absolute difference of predicted and true f0 in Hz. No part is weighted.
    discriminator_loss (`[]`, fp32): what the discriminators minimise; `None` in the warm-up.
    waveform (`[B, F * hop_length]`): what was made of the mel frames.
    """

    loss: torch.Tensor | None = None
    mel_loss: torch.Tensor | None = None
    adversarial_loss: torch.Tensor | None = None
    feature_loss: torch.Tensor | None = None
    relativistic_loss: torch.Tensor | None = None
    f0_loss: torch.Tensor | None = None
    discriminator_loss: torch.Tensor | None = None
    waveform: torch.Tensor | None = None


class HiFTForTraining(AdversarialTrainingMixin, PreTrainedModel):
    """
    A HiFT vocoder with the discriminators that teach it, in one loss: see [`AdversarialTrainingMixin`]. Checkpoints hold
    both, and in their folder `vocoder` the vocoder alone, as any HiFT checkpoint.

    **Excitation.** As in the released training it comes from the predicted f0, which is what the vocoder has when it is
    used. No gradient flows through the phase (its slope grows with time, so that gradients would not be of use): the
    f0 predictor learns from the f0 loss alone, and the filter is never taught through it. As long as a new predictor
    knows nothing, the filter would hear noise only: with `target_f0_batches` the excitation comes from the true f0 in the
    first batches. In evaluation mode it always comes from the predicted f0, and nothing is drawn.

    Where this differs from the released training of CosyVoice 2:
    - Vocoder and discriminators take their steps at the same time; there, one after the other.
    - The spectrogram discriminators are those of Vocos, as for WavTokenizer.
    - f0 comes from probabilistic YIN, see [`fundamental_frequency`]; there, from Harvest.
    - The Trainer decays weight matrices, if at all; there, nothing.

    Example:

    ```python
    >>> vocoder = HiFTModel.from_pretrained("path/to/vocoder")
    >>> model = HiFTForTraining.from_vocoder(vocoder)
    >>> f0 = recordings_f0(rows, vocoder.sampling_rate, vocoder.hop_length)
    >>> segments = VocoderSegments(rows, f0, num_frames=51, config=vocoder.config)
    >>> trainer = Trainer(model, arguments, train_dataset=segments, callbacks=[DatasetEpochCallback()])
    >>> trainer.train()
    >>> trainer.save_model("outputs/finetuned")
    >>> vocoder = AutoModel.from_pretrained("outputs/finetuned/vocoder")
    ```
    """

    config: HiFTTrainingConfig
    base_model_prefix = "hift_training"
    generator_name = "vocoder"
    main_input_name = "mel"
    input_modalities = ("audio",)
    accepts_loss_kwargs = False

    def __init__(self, config: HiFTTrainingConfig, vocoder: HiFTModel | None = None):
        super().__init__(config)
        self.vocoder = HiFTModel._from_config(config.vocoder_config) if vocoder is None else vocoder
        config.vocoder_config = self.vocoder.config  # one object
        self._add_discriminators(config)
        self.post_init()
        if vocoder is None:
            _init_as_released(self.vocoder)

    @classmethod
    def from_vocoder(cls, vocoder: HiFTModel, **kwargs) -> "HiFTForTraining":
        """Train `vocoder`, which becomes a child and is not copied, against new discriminators; `kwargs` are fields of
        [`HiFTTrainingConfig`].

        Raises:
            ValueError: a vocoder without weight norm ([`HiFTModel.fold_weight_norm`]).
        """
        if not vocoder.config.weight_norm:
            raise ValueError(
                "`vocoder` has its weight norm folded; give the checkpoint in front of `fold_weight_norm`"
            )
        return cls(HiFTTrainingConfig(vocoder_config=vocoder.config, **kwargs), vocoder)

    @can_return_tuple
    def forward(self, mel: Tensor, f0: Tensor, input_values: Tensor, return_loss: bool = True) -> HiFTTrainingOutput:
        """
        Args:
            mel (`torch.Tensor`): `[B, num_mel_bins, F]`, natural logarithm of mel magnitudes, at least
                `config.min_frames`; segments without padding.
            f0 (`torch.Tensor`): `[B, F]`, true fundamental frequency in Hz, 0 where unvoiced.
            input_values (`torch.Tensor`): `[B, 1, F * hop_length]`, the samples in [-1, 1] that `mel` is of.
            return_loss (`bool`): must be true; the Trainer evaluates models without labels when they have it.

        Raises:
            ValueError: another shape or type, too few frames, NaN or infinite numbers in `mel`.
        """
        if not return_loss:
            raise ValueError("return_loss must be True; call `model.vocoder` for the waveform alone")
        self._check_inputs(mel, f0, input_values)
        output = self._synthesize(mel, f0)
        fake, real = output.waveform[:, None], input_values.to(output.waveform)

        config = self.config
        mel_loss = sum(self._mel_distance(real, fake, window) for window in config.mel_loss_windows)
        f0_loss = (output.f0 - f0.to(output.f0)).abs().mean()
        loss = config.mel_loss_weight * mel_loss + config.f0_loss_weight * f0_loss
        adversarial_loss = feature_loss = relative_loss = judges_loss = None
        if self._in_warmup():
            loss = loss + self._resting_discriminators()
        else:
            for_real, for_fake, heard = self._judge(real, fake)
            adversarial_loss, feature_loss = generator_losses(for_real, heard, terms=HIFT_TERMS)
            judges_loss = discriminator_loss(for_real, for_fake, terms=HIFT_TERMS)
            loss = loss + config.adversarial_loss_weight * adversarial_loss + config.feature_loss_weight * feature_loss
            if config.relativistic_loss_weight:
                constants = {
                    kind: [part._replace(scores=part.scores.detach()) for part in parts]
                    for kind, parts in for_real.items()
                }
                tau = config.relativistic_tau
                relative_loss = relativistic_loss(heard, constants, tau)
                judges_loss = judges_loss + config.relativistic_loss_weight * relativistic_loss(
                    for_real, for_fake, tau
                )
                loss = loss + config.relativistic_loss_weight * relative_loss
            loss = loss + judges_loss
        if self.training:
            self.num_batches += 1
        return HiFTTrainingOutput(
            loss=loss,
            mel_loss=mel_loss,
            adversarial_loss=adversarial_loss,
            feature_loss=feature_loss,
            relativistic_loss=relative_loss,
            f0_loss=f0_loss,
            discriminator_loss=judges_loss,
            waveform=output.waveform,
        )

    def _check_inputs(self, mel: Tensor, f0: Tensor, input_values: Tensor) -> None:
        hop, least = self.config.vocoder_config.hop_length, self.config.min_frames
        if mel.ndim != 3 or mel.shape[-1] < least:
            raise ValueError(f"mel must be [batch, bins, frames] with at least {least} frames, got {tuple(mel.shape)}")
        batch, _, frames = mel.shape
        for name, value, shape in (
            ("f0", f0, (batch, frames)),
            ("input_values", input_values, (batch, 1, frames * hop)),
        ):
            if tuple(value.shape) != shape or not value.is_floating_point():
                raise ValueError(f"{name} must be floating point {shape}, got {value.dtype} {tuple(value.shape)}")

    def _synthesize(self, mel: Tensor, f0: Tensor) -> HiFTOutput:
        start = self.config.target_f0_batches
        if not self.training or start == 0 or int(self.num_batches) >= start:
            return self.vocoder(mel)
        config = self.config.vocoder_config
        samples = mel.shape[-1] * config.hop_length
        noise = torch.randn(len(mel), samples, config.num_harmonics, device=self.device)
        return self.vocoder(mel, source=self.vocoder.m_source(f0.to(noise), noise))

    def _mel_distance(self, real: Tensor, fake: Tensor, window: int) -> Tensor:
        config = self.config.vocoder_config
        shape = (self.config.mel_loss_bins, config.sampling_rate, window, window // 4, config.sampling_rate / 2)
        return (vocoder_log_mel(real, *shape) - vocoder_log_mel(fake, *shape)).abs().mean()


def _init_as_released(vocoder: HiFTModel) -> None:
    """PyTorch's own initialisation of the first convolution, the f0 predictor and the mixing of the sines; the small
    weights of the other ones would let f0 vanish on its way through the predictor."""
    for module in (vocoder.conv_pre, *vocoder.f0_predictor.modules()):
        if isinstance(module, nn.Conv1d):
            init_convolution_as_torch(module)
    for linear in (vocoder.f0_predictor.classifier, vocoder.m_source.l_linear):
        linear.reset_parameters()


__all__ = ["HiFTForTraining", "HiFTTrainingOutput"]
