"""Training of the speaker encoder CAM++ as a classifier of speakers, with an additive angular margin softmax."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple
from transformers.utils.generic import maybe_autocast

from ..modeling.modeling_campplus import CamPPlusModel
from ..processing.feature_extraction_kaldi_fbank import KaldiFbankFeatureExtractor
from .configuration_speaker_training import SpeakerTrainingConfig

IGNORED = -100


@dataclass
class SpeakerTrainingOutput(ModelOutput):
    """
    loss (`[]`, fp32): `classification_loss`, or its share of `num_items_in_batch`; `None` without labels.
    classification_loss (`[]`, fp32): mean cross-entropy of the rows whose speaker is a class; 0 if there are none.
    accuracy (`[]`, fp32): the share of these rows whose nearest class is their own.
    margin (`[]`, fp32): the margin of this batch in radians; `None` in evaluation mode, where there is none.
    logits (`[B, num_speakers]`, fp32): scaled cosines, without margin.
    embeddings (`[B, embedding_size]`): the speaker vectors, not normalised.
    """

    loss: torch.Tensor | None = None
    classification_loss: torch.Tensor | None = None
    accuracy: torch.Tensor | None = None
    margin: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    embeddings: torch.Tensor | None = None


def additive_angular_margin(cosines: Tensor, labels: Tensor, margin: Tensor | float) -> Tensor:
    """
    The cosines `[B, C]` with the margin in each row's own class: `cos(angle + margin)` (ArcFace, arXiv 1801.07698,
    equation 3). Where the sum would exceed pi, and its cosine rise again, `cos(angle) - 1 + cos(margin)` goes on falling.

    Args:
        labels (`torch.LongTensor`): `[B]`, from 0 to C - 1.
        margin: in radians, from 0 to below pi / 2.
    """
    margin = torch.as_tensor(margin, dtype=cosines.dtype, device=cosines.device)
    own = cosines.gather(1, labels[:, None])
    sines = (1 - own.square()).clamp(min=1e-7).sqrt()  # the square root has no slope at 0
    moved = own * margin.cos() - sines * margin.sin()
    moved = torch.where(own > -margin.cos(), moved, own - 1 + margin.cos())
    # exactly the cosine without a margin, also where the sine was clamped
    return cosines.scatter(1, labels[:, None], torch.where(margin > 0, moved, own))


class SpeakerEncoderForTraining(PreTrainedModel):
    """
    A CAM++ and one direction per speaker. The angle between a recording's vector and the direction of its speaker has to
    be smaller, by a margin that grows in the course of the training, than those to all others.

    Checkpoints hold encoder and directions, and in their folder `speaker_encoder` the encoder alone with its feature
    extractor, as any CAM++ checkpoint.

    Batch norms stand behind all convolutions, the last one behind the vector itself. In training mode they see the whole
    batch: rows of one length without padding, two at least. They know their process alone, and checkpoints have those of
    the first process. In evaluation mode rows may be padded and give the vectors that they give alone.

    Example:

    ```python
    >>> config = SpeakerTrainingConfig(encoder_config={"embedding_size": 192}, speakers=["ann", "bob"])
    >>> model = SpeakerEncoderForTraining(config)
    >>> crops = SpeakerSegments(rows, config.encoder_config, config.speakers, num_samples=48000)
    >>> trainer = SpeakerTrainer(model, arguments, train_dataset=crops)
    >>> trainer.train()
    >>> trainer.save_model("outputs/speakers")
    >>> encoder = AutoModel.from_pretrained("outputs/speakers/speaker_encoder")
    ```
    """

    config: SpeakerTrainingConfig
    base_model_prefix = "speaker_training"
    main_input_name = "input_features"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False

    def __init__(self, config: SpeakerTrainingConfig, encoder: CamPPlusModel | None = None):
        super().__init__(config)
        self.speaker_encoder = CamPPlusModel._from_config(config.encoder_config) if encoder is None else encoder
        config.encoder_config = self.speaker_encoder.config  # one object
        for module in self.speaker_encoder.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = config.batch_norm_momentum
        self.directions = nn.Parameter(torch.empty(len(config.speakers), config.encoder_config.embedding_size))
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.long))
        self.post_init()
        if encoder is None:
            _init_as_released(self.speaker_encoder)

    @classmethod
    def from_encoder(cls, encoder: CamPPlusModel, **kwargs) -> "SpeakerEncoderForTraining":
        """Train `encoder` on, which becomes a child and is not copied; `kwargs` are fields of [`SpeakerTrainingConfig`]."""
        return cls(SpeakerTrainingConfig(encoder_config=encoder.config, **kwargs), encoder)

    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True, **kwargs) -> None:
        """As for all models; and the encoder with its feature extractor in the folder `speaker_encoder`."""
        folder, config = Path(save_directory) / "speaker_encoder", self.config.encoder_config
        self.speaker_encoder.save_pretrained(folder, is_main_process=is_main_process)
        if is_main_process:
            extractor = KaldiFbankFeatureExtractor(config.num_mel_bins, sampling_rate=config.sampling_rate)
            extractor.save_pretrained(folder)
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module):
        if module is self:
            init.xavier_uniform_(self.directions)
            init.zeros_(self.num_batches)

    def loss_item_counts(self, labels: Tensor | None = None, **kwargs) -> dict[str, Tensor]:
        """Rows whose speaker is a class; see [`LossPartsMixin`]. Arguments as for `forward`."""
        if labels is None:
            return {}
        known = (labels < len(self.config.speakers)).sum()
        return {"classification_loss": known, "accuracy": known}

    def loss_of_parts(self, parts: Mapping[str, float], counts: Mapping[str, float]) -> float:
        """`loss` of data of which the means of the parts are known."""
        return parts["classification_loss"]

    @can_return_tuple
    def forward(
        self,
        input_features: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Mapping[str, Tensor | int] | None = None,
    ) -> SpeakerTrainingOutput:
        """
        Args:
            input_features, attention_mask (`torch.Tensor`): as for [`CamPPlusModel`].
            labels (`torch.LongTensor`, *optional*): `[B]`, the class of each row. In evaluation mode also numbers behind the
                classes, for speakers that are none of them: their rows are left out of loss and accuracy.
            num_items_in_batch (mapping of `str` to `int`, *optional*): sums of `loss_item_counts` over the optimiser
                step, by which the sum of this batch is divided in `loss`.

        Raises:
            ValueError: labels of another shape or outside the classes; in training mode, a single row or padding; what
                [`CamPPlusModel`] refuses.
        """
        if labels is not None:
            self._check_labels(labels, len(input_features))
        if self.training:
            self._check_training_batch(input_features, attention_mask)
        embeddings = self.speaker_encoder(input_features, attention_mask).embeddings
        with maybe_autocast(embeddings.device.type, enabled=False):
            cosines = F.normalize(embeddings.float(), dim=-1) @ F.normalize(self.directions.float(), dim=-1).T
            output = SpeakerTrainingOutput(logits=self.config.scale * cosines, embeddings=embeddings)
            if labels is None:
                return output
            labels = labels.to(cosines.device)
            is_class = labels < cosines.shape[1]
            known, targets = is_class.sum().clamp(min=1), labels.masked_fill(~is_class, IGNORED)
            logits = output.logits
            if self.training:
                output.margin = self._margin()
                logits = self.config.scale * additive_angular_margin(cosines, labels, output.margin)
                self.num_batches += 1
            total = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        output.classification_loss = total / known
        output.accuracy = (cosines.argmax(dim=-1) == targets).sum() / known
        output.loss = output.classification_loss
        if num_items_in_batch is not None:
            count = torch.as_tensor(num_items_in_batch["classification_loss"]).clamp(min=1)
            output.loss = total / count.to(total.device)
        return output

    def _margin(self) -> Tensor:
        start, full = self.config.margin_start_batches, self.config.margin_full_batches
        share = (self.num_batches.float() - start + 1) / (full - start + 1)
        return self.config.margin * share.clamp(0, 1)

    def _check_labels(self, labels: Tensor, batch: int) -> None:
        if labels.shape != (batch,):
            raise ValueError(f"labels must be [{batch}], one per row, got {tuple(labels.shape)}")
        most = len(self.config.speakers) - 1
        if batch and (labels.min() < 0 or (self.training and labels.max() > most)):
            raise ValueError(
                f"labels must be from 0 to {most} (behind that in evaluation mode only), got {labels.tolist()}"
            )

    @staticmethod
    def _check_training_batch(input_features: Tensor, attention_mask: Tensor | None) -> None:
        if len(input_features) < 2:
            raise ValueError(
                "input_features: in training mode the batch norms need 2 rows at least, got "
                f"{len(input_features)}; use larger batches, and `dataloader_drop_last` for the last one"
            )
        if attention_mask is not None and not bool(attention_mask.all()):
            raise ValueError("attention_mask: in training mode rows must have one length, without padding")


@torch.no_grad()
def _init_as_released(encoder: CamPPlusModel) -> None:
    """He's normal initialisation of the convolutions over time, PyTorch's own of those over frequency and time."""
    for module in encoder.modules():
        if isinstance(module, nn.Conv1d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5)


__all__ = ["SpeakerEncoderForTraining", "SpeakerTrainingOutput", "additive_angular_margin"]
