"""Training loss of the split-layer model: each row predicts the next one, with the head that speaks there."""

import torch
from torch import nn

from ..configuration.configuration_split_layer_qwen3 import SplitLayerQwen3Config
from .split_layer_rows import IGNORED, labels_to_flat


def split_layer_loss(
    text_logits: torch.Tensor,
    audio_logits: torch.Tensor,
    labels: torch.LongTensor | None,
    config: SplitLayerQwen3Config,
    num_items_in_batch: int | torch.Tensor | None = None,
    shift_labels: torch.LongTensor | None = None,
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
        num_items_in_batch (`int`, *optional*):
            Targets of the whole optimiser step, by which the total is divided; by default those of this batch.
        shift_labels (`torch.LongTensor`, *optional*): labels that are shifted already, instead of `labels`.

    Returns:
        The loss (sum over targets, weighted by `config.text_loss_weight` and `config.audio_loss_weight`, divided by
        their number), and for text and for audio the mean over their own targets, 0 where there are none. All depend
        on both heads.
    """
    if shift_labels is None:
        targets = labels_to_flat(labels, config, length=text_logits.shape[1])[:, 1:]
        targets = nn.functional.pad(targets, (0, 1), value=IGNORED)
    else:
        targets = labels_to_flat(shift_labels, config, length=text_logits.shape[1])
    targets = targets.to(text_logits.device)
    is_audio = targets >= config.vocab_size
    is_text = (targets != IGNORED) & ~is_audio
    if config.num_modality_layers == 0:
        logits = torch.cat((text_logits, audio_logits), dim=-1)
        losses = nn.functional.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
        ).view_as(targets)
        text_sum, audio_sum = (losses * is_text).sum(), (losses * is_audio).sum()
    else:
        text_sum = _summed(text_logits, targets.masked_fill(is_audio, IGNORED))
        audio_sum = _summed(audio_logits, torch.where(is_audio, targets - config.vocab_size, IGNORED))
    text_count, audio_count = is_text.sum(), is_audio.sum()
    total = config.text_loss_weight * text_sum + config.audio_loss_weight * audio_sum
    if num_items_in_batch is None:
        num_items_in_batch = (text_count + audio_count).clamp(min=1)
    elif isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch, text_sum / text_count.clamp(min=1), audio_sum / audio_count.clamp(min=1)


def _summed(logits: torch.Tensor, targets: torch.LongTensor) -> torch.Tensor:
    return nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )


__all__ = ["split_layer_loss"]
