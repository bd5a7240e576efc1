"""A generator and its discriminators in one model with one loss: what the trainings of codec and vocoder share."""

import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrize import is_parametrized
from transformers import initialization as init

from .adversarial_losses import Judgements
from .configuration_adversarial_training import AdversarialTrainingConfig
from .discriminators import BandDiscriminator, CodecDiscriminators


class AdversarialTrainingMixin:
    """
    Put in front of `PreTrainedModel` by a model whose child `generator_name` is trained against `discriminators`.

    One backward pass gives every parameter its own gradient: the discriminators judge the detached audio, and the
    generator hears the discriminators with detached weights. One optimiser and one schedule then do, and checkpoints,
    accumulation and several processes are those of the Trainer. Checkpoints hold all, and in their folder
    `generator_name` the generator alone.
    """

    generator_name: str

    def _add_discriminators(self, config: AdversarialTrainingConfig, num_classes: int = 0) -> None:
        self.discriminators = CodecDiscriminators(
            tuple(config.periods),
            tuple(config.period_channels),
            tuple(config.resolution_windows),
            config.resolution_channels,
            tuple(config.dac_windows),
            config.dac_channels,
            num_classes,
        )
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.long))

    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True, **kwargs) -> None:
        """As for all models; and the generator alone in its folder."""
        generator = getattr(self, self.generator_name)
        generator.save_pretrained(Path(save_directory) / self.generator_name, is_main_process=is_main_process)
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

    def _in_warmup(self) -> bool:
        warmup = self.config.mel_warmup_batches
        return warmup > 0 and int(self.num_batches) < warmup

    def _resting_discriminators(self) -> Tensor:
        """Zero, with zero gradients: DistributedDataParallel waits for one of each parameter."""
        return 0.0 * sum(parameter.sum() for parameter in self.discriminators.parameters())

    def _judge(
        self, real: Tensor, fake: Tensor, class_id: Tensor | None = None
    ) -> tuple[Judgements, Judgements, Judgements]:
        """Judgements of the recordings and of the detached audio, for the loss of the discriminators, and of the audio
        by constant discriminators, for the generator."""
        constants = {name: parameter.detach() for name, parameter in self.discriminators.named_parameters()}
        heard = functional_call(self.discriminators, constants, (fake, class_id))
        return self.discriminators(real, class_id), self.discriminators(fake.detach(), class_id), heard


@torch.no_grad()
def init_convolution_as_torch(module: nn.Conv1d) -> None:
    """PyTorch's own initialisation of a convolution, through the weight norm if it has one."""
    direction, scale = module.weight, None
    if is_parametrized(module, "weight"):
        scale, direction = module.parametrizations.weight.original0, module.parametrizations.weight.original1
    nn.init.kaiming_uniform_(direction, a=5**0.5)
    if scale is not None:
        scale.copy_(direction.flatten(1).norm(dim=1).view_as(scale))
    bound = direction[0].numel() ** -0.5
    nn.init.uniform_(module.bias, -bound, bound)


__all__ = ["AdversarialTrainingMixin", "init_convolution_as_torch"]
