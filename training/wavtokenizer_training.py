"""Adversarial training of WavTokenizer with the plain `transformers.Trainer`: generator and discriminators in one loss."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple

from ..modeling.modeling_wavtokenizer import WavTokenizerModel
from .adversarial_losses import codec_log_mel, discriminator_loss, generator_losses
from .adversarial_training import AdversarialTrainingMixin, init_convolution_as_torch
from .configuration_wavtokenizer_training import WavTokenizerTrainingConfig


@dataclass
class WavTokenizerTrainingOutput(ModelOutput):
    """
    loss (`[]`): what the codec minimises, plus `discriminator_loss`, which only the discriminators feel.
    mel_loss (`[]`, fp32): mean absolute difference of the log-mel spectrograms.
    adversarial_loss, feature_loss (`[]`, fp32): the discriminators' say, for the codec; `None` in the warm-up.
    commitment_loss (`[]`, fp32): see [`WavTokenizerOutput`]. No part is weighted.
    discriminator_loss (`[]`, fp32): what the discriminators minimise; `None` in the warm-up.
    perplexity (`[]`, fp32): number of codes in effective use in this batch.
    audio_values (`[B, 1, S]`): the reconstruction.
    """

    loss: torch.Tensor | None = None
    mel_loss: torch.Tensor | None = None
    adversarial_loss: torch.Tensor | None = None
    feature_loss: torch.Tensor | None = None
    commitment_loss: torch.Tensor | None = None
    discriminator_loss: torch.Tensor | None = None
    perplexity: torch.Tensor | None = None
    audio_values: torch.Tensor | None = None


class WavTokenizerForTraining(AdversarialTrainingMixin, PreTrainedModel):
    """
    A WavTokenizer with the discriminators that teach it, in one loss: see [`AdversarialTrainingMixin`]. Checkpoints hold
    both, and in their folder `codec` the codec alone, as any WavTokenizer checkpoint.

    Where this differs from the released training:
    - Codec and discriminators take their steps at the same time; there, the discriminators first.
    - The codebook follows each batch once; there, twice, since the discriminators' step runs the codec too.
    - The Trainer decays weight matrices only; there, biases and norms too.
    - `mel_warmup_batches` works; there, `pretrain_mel_steps` stops with an error.

    In training mode a conditioning id of the codec is drawn for each batch from torch's CPU generator, which the Trainer
    saves and restores; in evaluation mode it is 0 and nothing changes.

    Example:

    ```python
    >>> codec = WavTokenizerModel.from_pretrained("path/to/codec")
    >>> model = WavTokenizerForTraining.from_codec(codec, freeze_encoder=True)
    >>> segments = CodecSegments(rows, num_samples=72000)
    >>> trainer = Trainer(model, arguments, train_dataset=segments, callbacks=[DatasetEpochCallback()])
    >>> trainer.train()
    >>> trainer.save_model("outputs/finetuned")
    >>> codec = AutoModel.from_pretrained("outputs/finetuned/codec")
    ```
    """

    config: WavTokenizerTrainingConfig
    base_model_prefix = "wavtokenizer_training"
    generator_name = "codec"
    main_input_name = "input_values"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: WavTokenizerTrainingConfig, codec: WavTokenizerModel | None = None):
        super().__init__(config)
        self.codec = WavTokenizerModel._from_config(config.codec_config) if codec is None else codec
        config.codec_config = self.codec.config  # one object
        self._add_discriminators(config, config.codec_config.adanorm_num_embeddings)
        if config.freeze_encoder:
            self.codec.encoder.requires_grad_(False)
        self.post_init()
        if codec is None:
            _init_as_released(self.codec)

    @classmethod
    def from_codec(cls, codec: WavTokenizerModel, **kwargs) -> "WavTokenizerForTraining":
        """Train `codec`, which becomes a child and is not copied, against new discriminators; `kwargs` are fields of
        [`WavTokenizerTrainingConfig`].

        Raises:
            ValueError: `freeze_encoder` with a codebook that was never trained.
        """
        if kwargs.get("freeze_encoder") and not bool(codec.quantizer.initialized):
            raise ValueError("`freeze_encoder` needs a trained codec; the codebook of this one was never trained")
        return cls(WavTokenizerTrainingConfig(codec_config=codec.config, **kwargs), codec)

    @can_return_tuple
    def forward(
        self, input_values: Tensor, bandwidth_id: int | Tensor | None = None, return_loss: bool = True
    ) -> WavTokenizerTrainingOutput:
        """
        Args:
            input_values (`torch.Tensor`): `[B, 1, S]`, mono at the rate of the codec, samples in [-1, 1], at least
                `config.min_samples`; segments without padding.
            bandwidth_id (`int` or `torch.LongTensor`, *optional*): conditioning id, or `[B]`; drawn in training mode and
                0 in evaluation mode by default.
            return_loss (`bool`): must be true; the Trainer evaluates models without labels when they have it.

        Raises:
            ValueError: another shape or type, too few samples, NaN or infinite samples.
        """
        if not return_loss:
            raise ValueError("return_loss must be True; call `model.codec` for the reconstruction alone")
        if input_values.ndim != 3 or input_values.shape[-1] < self.config.min_samples:
            raise ValueError(
                f"input_values must be [batch, 1, samples] with at least {self.config.min_samples} samples, "
                f"got {tuple(input_values.shape)}"
            )
        ids = self._class_ids(bandwidth_id).to(self.device)
        follow = self.training and not self.config.freeze_encoder
        reconstruction = self.codec(input_values, bandwidth_id=ids, update_codebook=follow)
        fake, real = reconstruction.audio_values, input_values.to(reconstruction.audio_values)

        config, codec_config = self.config, self.config.codec_config
        shape = (codec_config.sampling_rate, config.mel_n_fft, config.mel_hop_length, config.num_mel_bins)
        mel_loss = (codec_log_mel(real, *shape) - codec_log_mel(fake, *shape)).abs().mean()
        commitment_loss = reconstruction.commitment_loss
        loss = config.mel_loss_weight * mel_loss + config.commitment_loss_weight * commitment_loss
        adversarial_loss = feature_loss = judges_loss = None
        if self._in_warmup():
            loss = loss + self._resting_discriminators()
        else:
            for_real, for_fake, heard = self._judge(real, fake, ids)
            adversarial_loss, feature_loss = generator_losses(for_real, heard, config.resolution_loss_weight)
            judges_loss = discriminator_loss(for_real, for_fake, config.resolution_loss_weight)
            loss = loss + config.adversarial_loss_weight * adversarial_loss
            loss = loss + config.feature_loss_weight * feature_loss + judges_loss
        if self.training:
            self.num_batches += 1
        return WavTokenizerTrainingOutput(
            loss=loss,
            mel_loss=mel_loss,
            adversarial_loss=adversarial_loss,
            feature_loss=feature_loss,
            commitment_loss=commitment_loss,
            discriminator_loss=judges_loss,
            perplexity=reconstruction.perplexity,
            audio_values=fake,
        )

    def _class_ids(self, bandwidth_id: int | Tensor | None) -> Tensor:
        if bandwidth_id is not None:
            return torch.as_tensor(bandwidth_id)
        if not self.training:
            return torch.zeros((), dtype=torch.long)
        return torch.randint(self.config.codec_config.adanorm_num_embeddings, (), device="cpu")


def _init_as_released(codec: WavTokenizerModel) -> None:
    """PyTorch's own initialisation of the encoder's convolutions: vectors of a size for which the weight of the
    commitment loss was chosen, 0.03 instead of 3."""
    for module in codec.encoder.modules():
        if isinstance(module, nn.Conv1d):
            init_convolution_as_torch(module)


__all__ = ["WavTokenizerForTraining", "WavTokenizerTrainingOutput"]
