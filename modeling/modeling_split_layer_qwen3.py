"""Split-layer Qwen3, the language model of MOSS-Speech: a shared trunk, then a text branch and an audio branch."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_utils import PreTrainedModel, slice_logits_to_keep
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3Attention,
    Qwen3DecoderLayer,
    Qwen3RMSNorm,
    Qwen3RotaryEmbedding,
)
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ..configuration.configuration_split_layer_qwen3 import SplitLayerQwen3Config
from .cache_naming import CACHE_NAME, CACHE_NAMES, cache_arguments, takes_cache
from .generation_split_layer_qwen3 import SplitLayerGenerationMixin, default_generation_config
from .packed_rows import check_seq_idx
from .split_layer_cache import BRANCHES, SplitLayerCache
from .split_layer_from_text import config_from_text, state_from_text
from .split_layer_loss import shifted_targets, split_layer_loss, split_layer_loss_of_states, target_counts
from .split_layer_outputs import SplitLayerCausalLMOutput, SplitLayerModelOutput
from .split_layer_rows import check_flat, check_not_empty, rows_to_flat

_MASKS = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}


class SplitLayerBlock(nn.Module):
    """
    Qwen3 layers in a row.

    Args:
        config (`SplitLayerQwen3Config`): of the model.
        num_layers (`int`): layers of the block.
        depth (`int`): layers before the block on its path.
        slot (`int`): place of its first layer in the cache.
    """

    def __init__(self, config: SplitLayerQwen3Config, num_layers: int, depth: int, slot: int):
        super().__init__()
        self.layers = nn.ModuleList([Qwen3DecoderLayer(config, depth + index) for index in range(num_layers)])
        self.slots = {}  # kind of attention -> place of the first such layer in the cache
        for index, layer in enumerate(self.layers):
            layer.self_attn.layer_idx = slot + index
            self.slots.setdefault(layer.self_attn.layer_type, slot + index)

    def forward(self, hidden_states: torch.Tensor, masks: dict, **kwargs) -> torch.Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask=masks[layer.self_attn.layer_type], **kwargs)
        return hidden_states


class SplitLayerQwen3PreTrainedModel(PreTrainedModel):
    config: SplitLayerQwen3Config
    base_model_prefix = "model"
    input_modalities = ("text", "audio")
    supports_gradient_checkpointing = True
    _no_split_modules = ["Qwen3DecoderLayer"]
    _skip_keys_device_placement = [*CACHE_NAMES]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _supports_attention_backend = True
    _can_record_outputs = {
        "hidden_states": [
            OutputRecorder(Qwen3DecoderLayer, layer_name="shared_block"),
            OutputRecorder(Qwen3DecoderLayer, layer_name="text_block"),
        ],
        "attentions": [
            OutputRecorder(Qwen3Attention, index=1, layer_name="shared_block"),
            OutputRecorder(Qwen3Attention, index=1, layer_name="text_block"),
        ],
        "audio_hidden_states": OutputRecorder(Qwen3DecoderLayer, layer_name="audio_block"),
        "audio_attentions": OutputRecorder(Qwen3Attention, index=1, layer_name="audio_block"),
    }

    def resize_token_embeddings(self, new_num_tokens=None, pad_to_multiple_of=None, mean_resizing=True):
        """
        Resize the text vocabulary: text table, text head and `config.vocab_size`. Flat ids of speech rows move with it.

        Raises:
            ValueError: if a special text id of the configuration would lie outside.
        """
        config = self.config
        lowest = max(config.modality_pad_token_id, config.sosp_token_id) + 1
        if new_num_tokens is not None and new_num_tokens < lowest:
            raise ValueError(
                f"`new_num_tokens` must be at least {lowest} to hold the special ids, got {new_num_tokens}"
            )
        embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        config.vocab_size = self.vocab_size = embeddings.weight.shape[0]
        return embeddings


class SplitLayerQwen3Model(SplitLayerQwen3PreTrainedModel):
    """
    Trunk, text branch and audio branch (paper, section "Modality-based layer split"). Both branches read the raw trunk
    states, each ends in a norm of its own, and every row takes one place in the cache of all layers. Parameter names
    are those of the released checkpoint; with `config.num_modality_layers=0` one `norm` stands for the branches.
    """

    _keys_to_ignore_on_load_unexpected = [r"^text_lm_head\.", r"^audio_lm_head\."]

    def __init__(self, config: SplitLayerQwen3Config):
        super().__init__(config)
        self.vocab_size = config.vocab_size
        shared, layers = config.num_shared_layers, config.num_modality_layers
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.audio_embed = nn.Embedding(config.audio_vocab_size, config.hidden_size)
        self.shared_block = SplitLayerBlock(config, shared, depth=0, slot=0)
        if layers:
            self.text_block = SplitLayerBlock(config, layers, depth=shared, slot=shared)
            self.audio_block = SplitLayerBlock(config, layers, depth=shared, slot=shared + layers)
            self.text_norm = Qwen3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            self.audio_norm = Qwen3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        else:
            self.norm = Qwen3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = Qwen3RotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    def embed(self, input_ids: torch.LongTensor) -> torch.Tensor:
        """
        Vectors `[batch, length, hidden]` of rows `[batch, length, 2]` or flat ids `[batch, length]` (or `[length]`,
        for a batch of one): each row is looked up in exactly one of the two tables.

        Raises:
            ValueError: if `input_ids` are no tensor, are empty, have another shape, or ids outside their vocabulary.
                (Flat ids are looked at on the CPU only: elsewhere this would stall each decoding step.)
        """
        check_not_empty(input_ids)
        if input_ids.dim() == 3:
            flat = rows_to_flat(input_ids, self.config)
        elif input_ids.dim() in (1, 2):
            flat = input_ids if input_ids.dim() == 2 else input_ids[None]
            if flat.device.type == "cpu":
                check_flat(flat, self.config)
        else:
            raise ValueError(
                "`input_ids` must be rows [batch, length, 2] or flat ids [batch, length], got shape "
                f"{list(input_ids.shape)}"
            )
        is_audio = flat >= self.config.vocab_size
        text = self.embed_tokens(flat.masked_fill(is_audio, 0))
        audio = self.audio_embed(torch.where(is_audio, flat - self.config.vocab_size, 0))
        return torch.where(is_audio[..., None].to(text.device), audio.to(text.device), text)

    @takes_cache
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        branches: Iterable[str] | None = None,
        **kwargs,
    ) -> SplitLayerModelOutput:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length, 2)` or `(batch, length)`):
                Rows (text id, audio id) or flat ids.
            attention_mask (`torch.Tensor` of shape `(batch, cached + length)`, *optional*):
                1 on rows, 0 on left padding.
            position_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*):
                By default rows are counted from 0, left out padding. Sequences packed into one are told apart by
                positions that start anew, without `attention_mask` and cache.
            cache (`Cache`, *optional*):
                A [`SplitLayerCache`] can put off the work of a branch that is not asked for. With other caches it runs
                nevertheless, as its keys and values will be needed.
            inputs_embeds (`torch.FloatTensor` of shape `(batch, length, hidden)`, *optional*):
                Instead of `input_ids`.
            branches (iterable of `"text"` and `"audio"`, *optional*): the branches whose states are wanted; both.

        Raises:
            ValueError: if both or none of `input_ids` and `inputs_embeds` are given, on ids as for `embed`, on unknown
                `branches`, and on a mask that is too short.
        """
        branches = _wanted_branches(branches)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of `input_ids` and `inputs_embeds` must be given")
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids)
        check_not_empty(inputs_embeds, "inputs_embeds")
        if use_cache and cache is None:
            cache = SplitLayerCache(self.config)
        kwargs.update(cache_arguments(cache), use_cache=use_cache)
        cache = kwargs.get(CACHE_NAME)
        if position_ids is None:
            position_ids = _positions(inputs_embeds, attention_mask, cache)

        masks = self._masks(self.shared_block, inputs_embeds, attention_mask, cache, position_ids)
        position_embeddings = self.rotary_emb(inputs_embeds, position_ids)
        trunk = self.shared_block(
            inputs_embeds, masks, position_ids=position_ids, position_embeddings=position_embeddings, **kwargs
        )
        if self.config.num_modality_layers == 0:
            states = dict.fromkeys(branches, self.norm(trunk))
        else:
            states = {
                branch: self._branch(
                    branch,
                    branch in branches,
                    trunk,
                    masks,
                    attention_mask,
                    position_ids,
                    position_embeddings,
                    **kwargs,
                )
                for branch in BRANCHES
            }
        return SplitLayerModelOutput(
            last_hidden_state=states.get("text"),
            **{CACHE_NAME: cache if use_cache else None},
            audio_last_hidden_state=states.get("audio"),
            trunk_hidden_state=trunk,
        )

    def _branch(
        self, branch, is_wanted, trunk, masks, attention_mask, position_ids, position_embeddings, **kwargs
    ) -> torch.Tensor | None:
        """Normed states of `branch` for the rows of `trunk`; rows that it had put off come first and go nowhere."""
        block, norm = getattr(self, f"{branch}_block"), getattr(self, f"{branch}_norm")
        cache, length = kwargs.get(CACHE_NAME), trunk.shape[1]
        if not is_wanted and (cache is None or getattr(cache, "lazy", False)):
            if cache is not None:
                cache.defer(branch, trunk, position_ids, *position_embeddings)
            return None
        has_pending = isinstance(cache, SplitLayerCache) and cache.pending_length(branch) > 0
        if has_pending:
            if isinstance(attention_mask, dict) or (attention_mask is not None and attention_mask.dim() != 2):
                raise ValueError(
                    "`attention_mask` must be [batch, length] while a branch has rows to catch up with: a finished mask "
                    "does not fit them"
                )
            cache.defer(branch, trunk, position_ids, *position_embeddings)
            trunk, position_ids, *position_embeddings = cache.take_pending(branch)
        if has_pending or not block.slots.keys() <= masks.keys():
            masks = self._masks(block, trunk, attention_mask, cache, position_ids)
        hidden = block(
            trunk, masks, position_ids=position_ids, position_embeddings=tuple(position_embeddings), **kwargs
        )
        return norm(hidden[:, -length:]) if is_wanted else None

    def _masks(self, block, hidden, attention_mask, cache, position_ids) -> dict:
        """Kind of attention -> mask for `hidden` behind what the layers of `block` have in the cache."""
        if isinstance(attention_mask, dict):  # made by `generate` for a static cache
            return attention_mask
        return {
            kind: _MASKS[kind](
                config=self.config,
                inputs_embeds=hidden,
                attention_mask=attention_mask,
                position_ids=position_ids,
                layer_idx=slot,
                **{CACHE_NAME: cache},
            )
            for kind, slot in block.slots.items()
        }


class SplitLayerQwen3ForCausalLM(SplitLayerQwen3PreTrainedModel, SplitLayerGenerationMixin):
    """
    [`SplitLayerQwen3Model`] with a text head and an audio head. Rows (text id, audio id) go in, scores of both heads
    come out; which head speaks follows from the rows (`generate`).

    ```python
    >>> model = AutoModelForCausalLM.from_pretrained("OpenMOSS-Team/MOSS-Speech")
    >>> rows = torch.tensor([[[151644, 512], [8948, 512], [198, 512]]])
    >>> output = model(rows)
    >>> output.text_logits.shape, output.audio_logits.shape
    ```
    """

    output_modalities = ("text", "audio")
    _tied_weights_keys = {
        "text_lm_head.weight": "model.embed_tokens.weight",
        "audio_lm_head.weight": "model.audio_embed.weight",
    }
    _tp_plan = {"text_lm_head": "colwise_gather_output", "audio_lm_head": "colwise_gather_output"}
    _fsdp_plan = {"text_lm_head": "keep_full_weight", "audio_lm_head": "keep_full_weight"}

    def __init__(self, config: SplitLayerQwen3Config):
        super().__init__(config)
        self.model = SplitLayerQwen3Model(config)
        self.vocab_size = config.vocab_size
        self.text_lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.audio_lm_head = nn.Linear(config.hidden_size, config.audio_vocab_size, bias=False)
        self.post_init()
        self.generation_config = default_generation_config(config)

    @classmethod
    def from_text_model(
        cls,
        text_model: str | PreTrainedModel,
        num_modality_layers: int = 4,
        audio_vocab_size: int = 16512,
        vocab_size: int | None = None,
        dtype: str | torch.dtype | None = None,
        **kwargs,
    ) -> "SplitLayerQwen3ForCausalLM":
        """
        Build the model from a Qwen3 language model, as the paper starts: the last `num_modality_layers` layers, and
        the final norm, become the text branch and, copied, the audio branch; the audio table and the audio head are
        drawn anew. Rows of text then give the logits of the Qwen3 model, bit for bit in fp32, and still do after
        training nothing but the audio parts (stage 1 of the paper). With left padding this takes the same `position_ids`:
        Qwen3 counts the padding, this model does not.

        Args:
            text_model (`str` or `Qwen3ForCausalLM`):
                A checkpoint, or the model itself, which is left as it is and shares no weights with the new one.
            num_modality_layers (`int`): K; 0 builds the baseline without a split.
            audio_vocab_size (`int`): audio ids.
            vocab_size (`int`, *optional*):
                Text ids to keep, from the first on; all by default. (Qwen3-8B has 151936, the released model 151680.)
            dtype (`str` or `torch.dtype`, *optional*): of the new model; that of `text_model` by default.
            kwargs: fields of [`SplitLayerQwen3Config`]: special ids, loss weights.

        Raises:
            ValueError: if `text_model` is no Qwen3 language model or has too few layers or ids, or a field is unknown.
        """
        config, text_model, is_ours = config_from_text(
            text_model, dtype, num_modality_layers, audio_vocab_size, vocab_size, **kwargs
        )
        state = state_from_text(text_model, config, copy=not is_ours)
        model = cls.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=text_model.dtype if dtype is None else dtype,
            attn_implementation=text_model.config._attn_implementation,
        )
        return model.to(text_model.device)

    def get_output_embeddings(self):
        return self.text_lm_head

    def set_output_embeddings(self, value):
        self.text_lm_head = value

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        branches: Iterable[str] | None = None,
        seq_idx: torch.LongTensor | None = None,
        skip_logits: bool | None = None,
        num_items_in_batch: int | torch.Tensor | Mapping[str, int | torch.Tensor] | None = None,
        **kwargs,
    ) -> SplitLayerCausalLMOutput:
        """
        Arguments as for [`SplitLayerQwen3Model.forward`], and

        Args:
            labels (`torch.LongTensor` of shape `(batch, length)` or `(batch, length, 2)`, *optional*):
                The input as flat ids (recommended: `Trainer` counts the targets of these correctly) or rows, -100 (in
                both cells) where nothing is to be learnt; shifted inside. No cache is made unless asked for, so that
                packed sequences stay apart.
            use_cache (`bool`, *optional*): return keys and values.
            logits_to_keep (`int` or `torch.Tensor`): score only the last rows (0: all) or these places.
            branches (iterable of `"text"` and `"audio"`, *optional*): the heads to run; the loss needs both.
            seq_idx (`torch.LongTensor` of shape `(batch, length)`, *optional*):
                Sequence that each place of a pack belongs to, -1 on padding. Checked with `position_ids`, which tell
                the sequences apart.
            skip_logits (`bool`, *optional*):
                With `labels`: run each head only where it has a target, and return no scores. By default in training
                mode.
            num_items_in_batch (`int` or mapping, *optional*):
                Targets of the whole optimiser step, or those of each part (given by `Trainer`).

        Raises:
            ValueError: as for the model, if `labels` do not fit the rows or come without both branches, and if packed
                sequences would see each other.
        """
        branches = _wanted_branches(branches)
        if seq_idx is not None:
            check_seq_idx(seq_idx, position_ids, attention_mask, cache, self.config._attn_implementation)
            use_cache = False
        if labels is not None:
            if len(branches) < len(BRANCHES):
                raise ValueError(f"`labels` need both branches, got `branches` {branches}")
            if use_cache is None and cache is None:
                use_cache = False
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            branches=branches,
            **kwargs,
        )
        states = {"text": outputs.last_hidden_state, "audio": outputs.audio_last_hidden_state}
        targets = {
            "labels": labels,
            "config": self.config,
            "num_items_in_batch": num_items_in_batch,
            "shift_labels": kwargs.get("shift_labels"),
            "position_ids": position_ids,
        }
        if labels is not None and (self.training if skip_logits is None else skip_logits):
            heads = (self.text_lm_head, self.audio_lm_head)
            losses = split_layer_loss_of_states(states["text"], states["audio"], *heads, **targets)
            return self._output(outputs, losses)
        scores = {
            branch: getattr(self, f"{branch}_lm_head")(slice_logits_to_keep(states[branch], logits_to_keep))
            for branch in branches
        }
        if len(scores) == len(BRANCHES):
            scores["audio"] = scores["audio"].to(scores["text"].device)  # branches of a large model may lie apart
        losses = (None,) * 3
        if labels is not None:
            losses = split_layer_loss(scores["text"], scores["audio"], **targets)
        logits = self._flat_logits(scores.get("text"), scores.get("audio"))
        # Views, so that the scores are held once.
        return self._output(
            outputs,
            losses,
            logits=logits,
            text_logits=logits[..., : self.config.vocab_size] if "text" in scores else None,
            audio_logits=logits[..., self.config.vocab_size :] if "audio" in scores else None,
        )

    def loss_item_counts(
        self,
        labels: torch.LongTensor,
        position_ids: torch.LongTensor | None = None,
        shift_labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> dict[str, torch.LongTensor]:
        """
        Number of targets of each part of the loss, `text_loss` and `audio_loss`, without running the model. Sums over
        the micro-batches and processes of an optimiser step are `num_items_in_batch`. Arguments as for `forward`.
        """
        targets = shifted_targets(labels, labels.shape[1], self.config, shift_labels, position_ids)
        return target_counts(targets, self.config)

    def loss_of_parts(self, parts: Mapping[str, float], counts: Mapping[str, float]) -> float:
        """`loss` of the means `parts` over `counts` targets, as `forward` makes it; parts without targets are left out."""
        names = [name for name in ("text_loss", "audio_loss") if counts.get(name)]
        total = sum(getattr(self.config, f"{name}_weight") * parts[name] * counts[name] for name in names)
        return total / max(sum(counts[name] for name in names), 1)

    @staticmethod
    def _output(outputs: SplitLayerModelOutput, losses: tuple, **scores) -> SplitLayerCausalLMOutput:
        loss, text_loss, audio_loss = losses
        return SplitLayerCausalLMOutput(
            loss=loss,
            text_loss=text_loss,
            audio_loss=audio_loss,
            **scores,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_hidden_states=outputs.audio_hidden_states,
            audio_attentions=outputs.audio_attentions,
        )

    def _flat_logits(self, text_logits: torch.Tensor | None, audio_logits: torch.Tensor | None) -> torch.Tensor:
        """Scores of all flat ids, `-inf` for a head that did not run."""
        known = audio_logits if text_logits is None else text_logits
        filler = known.new_full((1,), float("-inf"))
        if text_logits is None:
            text_logits = filler.expand(*known.shape[:-1], self.config.vocab_size)
        if audio_logits is None:
            audio_logits = filler.expand(*known.shape[:-1], self.config.audio_vocab_size)
        return torch.cat((text_logits, audio_logits), dim=-1)


def _wanted_branches(branches: Iterable[str] | None) -> tuple[str, ...]:
    """
    `branches` in the order of the cache; both for `None`.

    Raises:
        ValueError: if it is empty or names something else.
    """
    if branches is None:
        return BRANCHES
    names = tuple(branches) if not isinstance(branches, str) else (branches,)
    if not names or any(name not in BRANCHES for name in names):
        raise ValueError(f"`branches` must be None or one or both of {BRANCHES}, got {branches!r}")
    return tuple(branch for branch in BRANCHES if branch in names)


def _positions(embeds: torch.Tensor, attention_mask: torch.Tensor | None, cache: Cache | None) -> torch.LongTensor:
    """Places `[batch or 1, length]` of new rows: rows are counted, left padding is not."""
    past = 0 if cache is None else cache.get_seq_length()
    length = embeds.shape[1]
    places = (torch.arange(length, device=embeds.device) + past)[None]
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != 2:
        return places
    if isinstance(past, int) and attention_mask.shape[1] < past + length:
        raise ValueError(
            f"`attention_mask` must cover the {past} cached and the {length} new rows, got shape "
            f"{list(attention_mask.shape)}"
        )
    counted = attention_mask.to(embeds.device).long().cumsum(-1) - 1
    return counted.clamp(min=0).gather(1, places.expand(counted.shape[0], -1))


__all__ = [
    "SplitLayerBlock",
    "SplitLayerQwen3ForCausalLM",
    "SplitLayerQwen3Model",
    "SplitLayerQwen3PreTrainedModel",
]
