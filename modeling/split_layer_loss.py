"""Training loss of the split-layer model: each row predicts the next one, with the head that speaks there."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from ..configuration.configuration_split_layer_qwen3 import SplitLayerQwen3Config
from .split_layer_rows import IGNORED, labels_to_flat

Counts = int | torch.Tensor | Mapping[str, int | torch.Tensor]


def split_layer_loss(
    text_logits: torch.Tensor,
    audio_logits: torch.Tensor,
    labels: torch.LongTensor | None,
    config: SplitLayerQwen3Config,
    num_items_in_batch: Counts | None = None,
    shift_labels: torch.LongTensor | None = None,
    position_ids: torch.LongTensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Cross-entropy of the next row. The text head is trained where the next row is a text row, the audio head where it
    is a speech row, each over its own vocabulary: what the other head predicts is never read. (The released code gives
    the audio head the text vocabulary, and no labels or weights were published.) Without branches
    (`config.num_modality_layers` 0) one softmax goes over both vocabularies.

    Args:
        text_logits (`torch.Tensor` of shape `(batch, length, vocab_size)`): scores of the text head.
        audio_logits (`torch.Tensor` of shape `(batch, length, audio_vocab_size)`): scores of the audio head.
        labels (`torch.LongTensor` of shape `(batch, length)` or `(batch, length, 2)`):
            The rows themselves as flat ids or rows, -100 (in both cells) where nothing is to be learnt; shifted here.
        num_items_in_batch (`int` or mapping, *optional*):
            Targets of the whole optimiser step (or those of each part), by whose number the total is divided; by
            default those of this batch.
        shift_labels (`torch.LongTensor`, *optional*): labels that are shifted already, instead of `labels`.
        position_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*):
            With several sequences in one: 0 starts a sequence, which the row before does not predict.

    Returns:
        The loss (sum over targets, weighted by `config.text_loss_weight` and `config.audio_loss_weight`, divided by
        their number), and for text and for audio the mean over their own targets, 0 where there are none. All depend
        on both heads.
    """
    targets = shifted_targets(labels, text_logits.shape[1], config, shift_labels, position_ids)
    return _loss(
        lambda chosen: text_logits[chosen], lambda chosen: audio_logits[chosen], targets, config, num_items_in_batch
    )


def split_layer_loss_of_states(
    text_states: torch.Tensor,
    audio_states: torch.Tensor,
    text_head: nn.Module,
    audio_head: nn.Module,
    labels: torch.LongTensor | None,
    config: SplitLayerQwen3Config,
    num_items_in_batch: Counts | None = None,
    shift_labels: torch.LongTensor | None = None,
    position_ids: torch.LongTensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    [`split_layer_loss`] of the normed states `(batch, length, hidden)` of both branches. Each head runs only on the
    rows whose target it learns, so that no scores are made which no loss reads.
    """
    targets = shifted_targets(labels, text_states.shape[1], config, shift_labels, position_ids)
    return _loss(
        lambda chosen: text_head(text_states[chosen]),
        lambda chosen: audio_head(audio_states[chosen]),
        targets,
        config,
        num_items_in_batch,
    )


def shifted_targets(
    labels: torch.LongTensor | None,
    length: int,
    config: SplitLayerQwen3Config,
    shift_labels: torch.LongTensor | None = None,
    position_ids: torch.LongTensor | None = None,
) -> torch.LongTensor:
    """Flat id `(batch, length)` that each row has to predict, -100 for none. Arguments as for [`split_layer_loss`]."""
    if shift_labels is not None:
        return labels_to_flat(shift_labels, config, length=length)
    labels = labels_to_flat(labels, config, length=length)
    if position_ids is not None:
        labels = labels.masked_fill(position_ids.to(labels.device) == 0, IGNORED)
    return nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


def target_counts(targets: torch.LongTensor, config: SplitLayerQwen3Config) -> dict[str, torch.LongTensor]:
    """Number of `targets` of each head."""
    is_audio = targets >= config.vocab_size
    return {"text_loss": ((targets != IGNORED) & ~is_audio).sum(), "audio_loss": is_audio.sum()}


def _loss(
    text_logits_at: Callable[[torch.BoolTensor], torch.Tensor],
    audio_logits_at: Callable[[torch.BoolTensor], torch.Tensor],
    targets: torch.LongTensor,
    config: SplitLayerQwen3Config,
    num_items_in_batch: Counts | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss, given the scores `(chosen rows, vocabulary)` of each head."""
    is_audio = targets >= config.vocab_size
    is_text = (targets != IGNORED) & ~is_audio
    if config.num_modality_layers == 0:
        chosen = is_text | is_audio
        logits = torch.cat((text_logits_at(chosen), audio_logits_at(chosen)), dim=-1)
        losses = nn.functional.cross_entropy(logits.float(), targets[chosen].to(logits.device), reduction="none")
        picked = is_audio[chosen].to(logits.device)
        text_sum, audio_sum = (losses * ~picked).sum(), (losses * picked).sum()
    else:
        text_sum = _summed(text_logits_at(is_text), targets[is_text])
        audio_sum = _summed(audio_logits_at(is_audio), targets[is_audio] - config.vocab_size).to(text_sum.device)
    counts = {name: count.to(text_sum.device) for name, count in target_counts(targets, config).items()}
    total = config.text_loss_weight * text_sum + config.audio_loss_weight * audio_sum
    divisor = counts if num_items_in_batch is None else num_items_in_batch
    divisor = sum(divisor.values()) if isinstance(divisor, Mapping) else divisor
    divisor = torch.as_tensor(divisor, device=total.device).clamp(min=1)
    text_mean, audio_mean = text_sum / counts["text_loss"].clamp(min=1), audio_sum / counts["audio_loss"].clamp(min=1)
    return total / divisor, text_mean, audio_mean


def _summed(logits: torch.Tensor, targets: torch.LongTensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.float(), targets.to(logits.device), reduction="sum")


__all__ = ["shifted_targets", "split_layer_loss", "split_layer_loss_of_states", "target_counts"]
