"""What the split-layer model returns."""

import torch
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from .cache_naming import output_with_cache


@output_with_cache
class SplitLayerModelOutput(ModelOutput):
    """
    Output of [`SplitLayerQwen3Model`]. A branch that was not asked for leaves its fields `None`.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch, length, hidden)`): text branch after its norm.
        cache (`Cache`, *optional*): keys and values of trunk and branches.
        hidden_states, attentions (*optional*): embeddings, layers of the trunk, layers of the text branch. Rows that
            the text branch catches up with are among those of its layers.
        audio_last_hidden_state (`torch.FloatTensor` of shape `(batch, length, hidden)`): audio branch after its norm.
        trunk_hidden_state (`torch.FloatTensor` of shape `(batch, length, hidden)`): what both branches read.
        audio_hidden_states, audio_attentions (*optional*): layers of the audio branch, with
            `output_audio_hidden_states` and `output_audio_attentions`.
    """

    last_hidden_state: torch.FloatTensor | None = None
    cache: Cache | None = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None
    audio_last_hidden_state: torch.FloatTensor | None = None
    trunk_hidden_state: torch.FloatTensor | None = None
    audio_hidden_states: tuple | None = None
    audio_attentions: tuple | None = None


@output_with_cache
class SplitLayerCausalLMOutput(ModelOutput):
    """
    Output of [`SplitLayerQwen3ForCausalLM`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*): weighted sum over all targets, divided by their number.
        logits (`torch.FloatTensor` of shape `(batch, kept, vocab_size + audio_vocab_size)`): next flat id: text
            scores, then audio scores; `-inf` for a branch that was not asked for.
        text_loss, audio_loss (`torch.FloatTensor` of shape `()`, *optional*): mean over the targets of that head.
        text_logits (`torch.FloatTensor` of shape `(batch, kept, vocab_size)`, *optional*): scores of the text head.
        audio_logits (`torch.FloatTensor` of shape `(batch, kept, audio_vocab_size)`, *optional*): of the audio head.
        cache, hidden_states, attentions, audio_hidden_states, audio_attentions (*optional*): as in
            [`SplitLayerModelOutput`].
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    text_loss: torch.FloatTensor | None = None
    audio_loss: torch.FloatTensor | None = None
    text_logits: torch.FloatTensor | None = None
    audio_logits: torch.FloatTensor | None = None
    cache: Cache | None = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None
    audio_hidden_states: tuple | None = None
    audio_attentions: tuple | None = None


__all__ = ["SplitLayerCausalLMOutput", "SplitLayerModelOutput"]
