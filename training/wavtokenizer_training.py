"""Adversarial training of WavTokenizer with the plain `transformers.Trainer`: generator and discriminators in one loss."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from ..modeling.modeling_wavtokenizer import WavTokenizerModel
from .adversarial_losses import codec_log_mel, discriminator_loss, generator_losses
from .configuration_wavtokenizer_training import WavTokenizerTrainingConfig
from .discriminators import BandDiscriminator, CodecDiscriminators


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


class WavTokenizerForTraining(PreTrainedModel):
    """
    A WavTokenizer with the discriminators that teach it. One backward pass gives every parameter its own gradient: the
    discriminators judge the detached reconstruction, and the codec hears the discriminators with detached weights.
    One optimiser and one schedule then do, and checkpoints, accumulation and several processes are those of the Trainer.

    Checkpoints hold the codec and the discriminators, and in their folder `codec` the codec alone, as any WavTokenizer
    checkpoint.

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
        self.discriminators = CodecDiscriminators(
            tuple(config.periods),
            tuple(config.period_channels),
            tuple(config.resolution_windows),
            config.resolution_channels,
            tuple(config.dac_windows),
            config.dac_channels,
            config.codec_config.adanorm_num_embeddings,
        )
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.long))
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

    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True, **kwargs) -> None:
        """As for all models; and the codec alone in the folder `codec`."""
        self.codec.save_pretrained(Path(save_directory) / "codec", is_main_process=is_main_process)
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.Conv2d):
            self._init_convolution(module)
        elif isinstance(module, nn.Embedding):
            init.zeros_(module.weight)  # the classes have no say at the start
        elif isinstance(module, BandDiscriminator):
            init.copy_(module.window, torch.hann_window(module.n_fft, dtype=torch.float32))
        elif module is self:
            init.zeros_(self.num_batches)

    @staticmethod
    def _init_convolution(module: nn.Conv2d) -> None:
        """PyTorch's own initialisation, through the weight norm."""
        scale, direction = module.parametrizations.weight.original0, module.parametrizations.weight.original1
        init.kaiming_uniform_(direction, a=5**0.5)
        init.copy_(scale, direction.flatten(1).norm(dim=1).view_as(scale))
        bound = direction[0].numel() ** -0.5
        init.uniform_(module.bias, -bound, bound)

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
            # Zero gradients: DistributedDataParallel waits for one of each parameter.
            loss = loss + 0.0 * sum(parameter.sum() for parameter in self.discriminators.parameters())
        else:
            adversarial_loss, feature_loss, judges_loss = self._judge(real, fake, ids)
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

    def _in_warmup(self) -> bool:
        warmup = self.config.mel_warmup_batches
        return warmup > 0 and int(self.num_batches) < warmup

    def _judge(self, real: Tensor, fake: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The adversarial and feature losses of the codec, then the loss of the discriminators."""
        weight = self.config.resolution_loss_weight
        real_judgements = self.discriminators(real, ids)
        judges_loss = discriminator_loss(real_judgements, self.discriminators(fake.detach(), ids), weight)
        constants = {name: parameter.detach() for name, parameter in self.discriminators.named_parameters()}
        heard = functional_call(self.discriminators, constants, (fake, ids))
        return *generator_losses(real_judgements, heard, weight), judges_loss


@torch.no_grad()
def _init_as_released(codec: WavTokenizerModel) -> None:
    """PyTorch's own initialisation of the encoder's convolutions: vectors of a size for which the weight of the
    commitment loss was chosen, 0.03 instead of 3."""
    for module in codec.encoder.modules():
        if isinstance(module, nn.Conv1d):
            direction = module.weight
            if nn.utils.parametrize.is_parametrized(module):
                direction = module.parametrizations.weight.original1
            nn.init.kaiming_uniform_(direction, a=5**0.5)
            if nn.utils.parametrize.is_parametrized(module):
                scale = module.parametrizations.weight.original0
                scale.copy_(direction.flatten(1).norm(dim=1).view_as(scale))
            bound = direction[0].numel() ** -0.5
            nn.init.uniform_(module.bias, -bound, bound)


__all__ = ["WavTokenizerForTraining", "WavTokenizerTrainingOutput"]
