"""AcousticGPT, the acoustic decoder of DualSpeechLM: a prefix language model over condition vectors and codec codes."""

from collections.abc import Callable

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..configuration.configuration_acoustic_gpt import AcousticGPTConfig
from .cache_naming import CACHE_NAME, CACHE_NAMES, takes_cache
from .codebook_patterns import apply_delay_pattern
from .generation_acoustic_gpt import AcousticGenerationMixin
from .onednn_linear import OneDnnLinear
from .packed_rows import RowPacking

IGNORED_LABEL = -100


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out; `[B, heads, positions, head_dim]` in, `[B, positions, heads, head_dim]` and weights out."""
    weights = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class AcousticGPTAttention(nn.Module):
    """Multi-head self-attention with biases, without rotary or relative positions."""

    is_causal = True

    def __init__(self, config: AcousticGPTConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scaling = self.head_dim**-0.5
        self.q_proj = OneDnnLinear(config.hidden_size, config.hidden_size)
        self.k_proj = OneDnnLinear(config.hidden_size, config.hidden_size)
        self.v_proj = OneDnnLinear(config.hidden_size, config.hidden_size)
        self.o_proj = OneDnnLinear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        positions = hidden_states.shape[:-1]
        query, key, value = (
            projection(hidden_states).view(*positions, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(output.reshape(*positions, -1)), weights


class AcousticGPTMLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: AcousticGPTConfig):
        super().__init__()
        self.fc_in = OneDnnLinear(config.hidden_size, config.intermediate_size)
        self.fc_out = OneDnnLinear(config.intermediate_size, config.hidden_size)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc_out(self.act_fn(self.fc_in(hidden_states)))


class AcousticGPTDecoderLayer(GradientCheckpointingLayer):
    """Pre-norm block: attention, then feed-forward, each added to its input."""

    def __init__(self, config: AcousticGPTConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = AcousticGPTAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = AcousticGPTMLP(config)
        self.dropout = nn.Dropout(config.dropout)

    @takes_cache
    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        attended, _ = self.self_attn(
            self.input_layernorm(hidden_states),
            attention_mask=attention_mask,
            cache=cache,
            **kwargs,
        )
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.post_attention_layernorm(hidden_states)))


class AcousticGPTPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation. New weights are N(0, `initializer_range`), biases 0, as in the release."""

    config: AcousticGPTConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("audio",)
    output_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["AcousticGPTDecoderLayer"]
    _skip_keys_device_placement = [*CACHE_NAMES]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": AcousticGPTDecoderLayer, "attentions": AcousticGPTAttention}


class AcousticGPTModel(AcousticGPTPreTrainedModel):
    """
    The decoder without its head.

    The sequence is `[condition, acoustic ids]`. Condition and acoustic positions have separate learned tables, each
    counted from 0. Acoustic positions see the condition and the acoustic positions up to themselves; the condition
    never sees acoustic positions, and sees all of itself (`condition_attention="bidirectional"`, as released) or its
    past (`"causal"`). Its keys and values are therefore computed once: a call with a filled `cache` takes
    only new ids, and gives exactly what one pass over everything gives.
    """

    def __init__(self, config: AcousticGPTConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.num_codebooks * config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.max_target_positions, config.hidden_size)
        self.embed_condition_positions = nn.Embedding(config.max_condition_positions, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            [AcousticGPTDecoderLayer(config, index) for index in range(config.num_hidden_layers)]
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @takes_cache
    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        condition_embeds: torch.Tensor | None = None,
        condition_mask: torch.Tensor | None = None,
        input_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        condition_position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        packed_input_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """
        Args:
            condition_embeds: `[B, C, d]` floats without positions, C at least 1. Position 0 is the speaker token,
                which the caller puts there. Left out when `cache` holds the condition already.
            condition_mask: `[B, C]`, 1 for keys that may be seen; all when omitted. A mask removes keys and never
                moves positions. Give it again with a filled `cache`.
            input_ids: `[B, A]` ids, or `[B, A, K]` in delayed layout when the model has K > 1 codebooks.
            position_ids: `[B, A]` or `[1, A]`, rows of the acoustic position table; by default they count from 0,
                or on from the cached ids (which needs `condition_mask`, to tell them from the condition).
            condition_position_ids: `[B, C]`, rows of the condition's position table; 0 to C - 1 when omitted. For
                conditions that are padded on the left.
            cache: a cache of transformers (dynamic, static ...), empty or filled by an earlier call.
            use_cache: return the cache; `config.use_cache` when omitted.
            packed_input_mask: `[B, A]`, 1 on the first ids of a row, which count. Then rows are joined to fewer, full
                sequences inside, without what nobody attends to: the same states in less time. Not with a cache.

        Returns:
            `last_hidden_state [B, A, d]`, of the acoustic positions only, behind the last norm. `hidden_states` and
            `attentions`, when asked for, are those of the layers and cover the condition too.

        Raises:
            ValueError: an input is missing, has the wrong shape, or does not fit the tables.
        """
        self._check_inputs(condition_embeds, condition_mask, input_ids, condition_position_ids, cache)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if position_ids is None:
            position_ids = self._positions(condition_embeds, condition_mask, input_ids, cache)
        _check_range("position_ids", position_ids, self.config.max_target_positions, "config.max_target_positions")

        if self.config.num_codebooks > 1:
            offsets = torch.arange(self.config.num_codebooks, device=input_ids.device) * self.config.vocab_size
            hidden_states = self.embed_tokens(input_ids + offsets).sum(dim=2)
        else:
            hidden_states = self.embed_tokens(input_ids)
        hidden_states = hidden_states + self.embed_positions(position_ids)

        if condition_embeds is None:
            attention_mask = self._step_mask(hidden_states, condition_mask, cache)
        else:
            num_condition = condition_embeds.shape[1]
            if condition_position_ids is None:
                condition_position_ids = torch.arange(num_condition, device=condition_embeds.device)
            positions = self.embed_condition_positions(condition_position_ids)
            hidden_states = torch.cat([condition_embeds.to(positions.dtype) + positions, hidden_states], dim=1)
            if packed_input_mask is None:
                attention_mask = self._prefix_mask(hidden_states, num_condition, condition_mask, cache)

        packing = None
        if packed_input_mask is not None:
            packing, hidden_states, attention_mask = self._pack(
                hidden_states, condition_embeds, condition_mask, packed_input_mask, cache
            )
        hidden_states = self.dropout(hidden_states)
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask=attention_mask, **{CACHE_NAME: cache}, **kwargs)
        if packing is not None:
            hidden_states = packing.unpack(hidden_states)
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states[:, -input_ids.shape[1] :]),
            **{CACHE_NAME: cache if use_cache else None},
        )

    def _check_inputs(self, condition_embeds, condition_mask, input_ids, condition_position_ids, cache):
        config = self.config
        shape = "[batch, positions]" if config.num_codebooks == 1 else f"[batch, positions, {config.num_codebooks}]"
        if input_ids is None or input_ids.dim() != (2 if config.num_codebooks == 1 else 3) or not input_ids.shape[1]:
            given = None if input_ids is None else tuple(input_ids.shape)
            raise ValueError(f"`input_ids` must have the shape {shape} with at least one position, got {given}")
        if config.num_codebooks > 1 and input_ids.shape[2] != config.num_codebooks:
            raise ValueError(f"`input_ids` must have the shape {shape}, got {tuple(input_ids.shape)}")
        _check_range("input_ids", input_ids, config.vocab_size, "config.vocab_size")
        if input_ids.shape[1] > config.max_target_positions:
            raise ValueError(
                f"`input_ids` has {input_ids.shape[1]} positions, `config.max_target_positions` is "
                f"{config.max_target_positions}"
            )
        if condition_embeds is None:
            if cache is None or not cache.is_initialized:
                raise ValueError("`condition_embeds` is needed unless `cache` holds the condition")
            return
        batch, width = len(input_ids), config.hidden_size
        if condition_embeds.dim() != 3 or condition_embeds.shape[0] != batch or condition_embeds.shape[2] != width:
            raise ValueError(
                f"`condition_embeds` must have the shape [{batch}, condition, {width}], got "
                f"{tuple(condition_embeds.shape)}"
            )
        if not 1 <= condition_embeds.shape[1] <= config.max_condition_positions:
            raise ValueError(
                f"`condition_embeds` must have 1 to {config.max_condition_positions} positions "
                f"(`config.max_condition_positions`), got {condition_embeds.shape[1]}"
            )
        for name, value in (("condition_mask", condition_mask), ("condition_position_ids", condition_position_ids)):
            if value is not None and value.shape != condition_embeds.shape[:2]:
                raise ValueError(
                    f"`{name}` must have the shape {tuple(condition_embeds.shape[:2])} of `condition_embeds`, got "
                    f"{tuple(value.shape)}"
                )
        if condition_position_ids is not None:
            _check_range(
                "condition_position_ids",
                condition_position_ids,
                config.max_condition_positions,
                "config.max_condition_positions",
            )
        if cache is not None and cache.get_seq_length() > 0:
            raise ValueError("`condition_embeds` was given, but `cache` holds a condition already")

    def _positions(self, condition_embeds, condition_mask, input_ids, cache):
        """`[1, A]`, counted from 0 or on from the cached ids."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        if condition_embeds is not None:
            return positions
        if condition_mask is None:
            raise ValueError("`condition_mask` or `position_ids` is needed when `cache` holds the condition")
        return positions + (cache.get_seq_length() - condition_mask.shape[1])

    def _prefix_mask(self, embeds, num_condition, condition_mask, cache):
        """The mask of a pass that holds the condition. A masked condition position still sees itself: a query
        without any key would be undefined, and nobody reads its output."""
        or_mask = and_mask = None
        if self.config.condition_attention == "bidirectional":

            def or_mask(batch, head, query, key):
                return key < num_condition

        if condition_mask is not None:
            visible = _pad_to_keys(condition_mask.to(torch.bool), embeds, cache)

            def and_mask(batch, head, query, key):
                return visible[batch, key] | (query == key)

        # No 2D mask and no position ids: the first would hide a position from itself, the second may look packed.
        return create_causal_mask(
            config=self.config,
            inputs_embeds=embeds,
            attention_mask=None,
            or_mask_function=or_mask,
            and_mask_function=and_mask,
            **{CACHE_NAME: cache},
        )

    def _pack(self, embeds, condition_embeds, condition_mask, input_mask, cache):
        """Rows `[condition, ids]` as packs of their visible positions, and the mask that keeps them apart."""
        if (
            condition_embeds is None
            or cache is not None
            or condition_embeds.shape[1] + input_mask.shape[1] != embeds.shape[1]
        ):
            raise ValueError("`packed_input_mask` [batch, positions] goes with `condition_embeds` and without a cache")
        if condition_mask is None:
            condition_mask = torch.ones(condition_embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        condition_mask, input_mask = condition_mask.bool(), input_mask.to(embeds.device).bool()
        packing = RowPacking(torch.cat([condition_mask, input_mask], dim=1))
        of_condition = torch.cat([torch.ones_like(condition_mask), torch.zeros_like(input_mask)], dim=1)
        of_condition, rows = packing.pack(of_condition), packing.seq_idx

        def or_mask(batch, head, query, key):
            return of_condition[batch, key]

        def and_mask(batch, head, query, key):
            return rows[batch, query] == rows[batch, key]

        embeds = packing.pack(embeds)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=embeds,
            attention_mask=None,
            or_mask_function=or_mask if self.config.condition_attention == "bidirectional" else None,
            and_mask_function=and_mask,
            **{CACHE_NAME: None},
        )
        return packing, embeds, mask

    def _step_mask(self, embeds, condition_mask, cache):
        """The mask of a pass behind a cached condition; `None` for one new id under sdpa when nothing is masked."""
        if condition_mask is not None:
            condition_mask = _pad_to_keys(condition_mask.to(torch.bool), embeds, cache)
        return create_causal_mask(
            config=self.config,
            inputs_embeds=embeds,
            attention_mask=condition_mask,
            **{CACHE_NAME: cache},
        )


class AcousticGPTForCausalLM(AcousticGPTPreTrainedModel, AcousticGenerationMixin):
    """
    AcousticGPT with its head: condition vectors in, distributions over codec codes out.

    `labels[:, t]` is the target of `logits[:, t]`: the loss does not shift. Without `input_ids` the inputs are the
    labels moved right behind the start id. With K > 1 codebooks `labels [B, A, K]` hold aligned frames, the last
    one the end id in every book, and the model applies the delay pattern itself: its inputs and logits have
    `A + K - 1` positions.

    Example:

    ```python
    >>> import torch
    >>> from dualspeech.configuration.configuration_acoustic_gpt import AcousticGPTConfig
    >>> from dualspeech.modeling.modeling_acoustic_gpt import AcousticGPTForCausalLM

    >>> config = AcousticGPTConfig(codebook_size=16, hidden_size=32, num_hidden_layers=2, intermediate_size=64)
    >>> model = AcousticGPTForCausalLM(config).eval()
    >>> condition = torch.randn(1, 5, 32)
    >>> labels = torch.tensor([[3, 1, 4, config.eos_token_id]])
    >>> model(condition, labels=labels).logits.shape
    torch.Size([1, 4, 20])
    >>> output = model.generate(condition, max_lengths=6, do_sample=False)
    >>> output.codes.shape == (1, int(output.lengths))
    True

    ```
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: AcousticGPTConfig):
        super().__init__(config)
        self.model = AcousticGPTModel(config)
        self.lm_head = OneDnnLinear(config.hidden_size, config.num_codebooks * config.vocab_size, bias=False)
        # The loss that does not shift; Trainer then counts every label, not all but the first.
        self.loss_type = "ForMaskedLM"
        # The sampling of the released system.
        self.generation_config.update(do_sample=True, temperature=1.0, top_k=10)
        self.post_init()

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        condition_embeds: torch.Tensor | None = None,
        condition_mask: torch.Tensor | None = None,
        input_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        condition_position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        pack_rows: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """
        Args:
            condition_embeds: `[B, C, d]`, see `AcousticGPTModel.forward`, also for the arguments not named here.
            condition_mask: `[B, C]`, 1 for keys that may be seen.
            input_ids: `[B, A]` ids, or `[B, A, K]` in delayed layout. May be omitted when `labels` are given.
            labels: `[B, A]`, or `[B, A, K]` aligned: codes and the end id; -100 is ignored.
            use_cache: return the cache; off when `labels` are given, else `config.use_cache`.
            logits_to_keep: compute only the last that many positions (0: all), or the positions of an index tensor.
            pack_rows: with `labels`, join rows of different lengths inside (`packed_input_mask` of the model; logits
                behind the last label of a row are then those of zeros). By default in training mode.

        Returns:
            `loss` (mean over the labels that count, 0 if none does; or their sum over `num_items_in_batch`), `logits [B, A, V]` or
            `[B, A, K, V]` with `V = codebook_size + 4`, and `cache`.
        """
        if labels is not None:
            use_cache = bool(use_cache)
            labels, shifted_ids = self._targets(labels)
            input_ids = shifted_ids if input_ids is None else input_ids
            if input_ids.shape != labels.shape:
                raise ValueError(
                    f"`input_ids` must have the shape {tuple(labels.shape)} that `labels` ask for, got "
                    f"{tuple(input_ids.shape)}"
                )
            if (self.training if pack_rows is None else pack_rows) and cache is None and not use_cache:
                kwargs["packed_input_mask"] = _up_to_last_label(labels)
        outputs: BaseModelOutputWithPast = self.model(
            condition_embeds=condition_embeds,
            condition_mask=condition_mask,
            input_ids=input_ids,
            position_ids=position_ids,
            condition_position_ids=condition_position_ids,
            cache=cache,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        if self.config.num_codebooks > 1:
            logits = logits.unflatten(-1, (self.config.num_codebooks, self.config.vocab_size))
        loss = None
        if labels is not None:
            labels = labels[:, kept].contiguous()
            # Divided here, so that a batch without any target gives 0 and not NaN.
            kwargs.setdefault("num_items_in_batch", (labels != IGNORED_LABEL).sum().clamp(min=1))
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **{CACHE_NAME: outputs.get(CACHE_NAME)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _targets(self, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels as the logits need them (delayed when K > 1), and the input ids that go with them."""
        config = self.config
        if labels.dim() != (2 if config.num_codebooks == 1 else 3):
            shape = "[batch, positions]" if config.num_codebooks == 1 else "[batch, frames, codebooks]"
            raise ValueError(f"`labels` must have the shape {shape}, got {tuple(labels.shape)}")
        ignored = labels == IGNORED_LABEL
        ids = labels.masked_fill(ignored, config.pad_token_id)
        _check_range("labels", ids, config.vocab_size, "config.vocab_size")
        if config.num_codebooks > 1:
            labels = apply_delay_pattern(labels, before=IGNORED_LABEL, after=IGNORED_LABEL)
            ids = apply_delay_pattern(ids, before=config.bos_token_id, after=config.pad_token_id)
        return labels, torch.cat([torch.full_like(ids[:, :1], config.bos_token_id), ids[:, :-1]], dim=1)


def _up_to_last_label(labels: torch.LongTensor) -> torch.BoolTensor:
    """`[B, A]`: positions of `labels [B, A]` or `[B, A, K]` up to the last that counts, at least the first."""
    counts = labels != IGNORED_LABEL
    counts = counts.any(dim=2) if counts.dim() == 3 else counts.clone()
    counts[:, 0] = True
    return counts.flip(1).cumsum(dim=1).flip(1) > 0


def _check_range(name: str, values: torch.Tensor, size: int, source: str) -> None:
    """Raise a `ValueError` unless `values` are in `0 .. size - 1`. On the CPU only: elsewhere reading them would stall
    the device, which reports a bad index by itself."""
    if values.device.type != "cpu" or torch.compiler.is_compiling() or not values.numel():
        return
    low, high = (int(value) for value in values.aminmax())
    if low < 0 or high >= size:
        raise ValueError(f"`{name}` must be from 0 to {size - 1} (`{source}` is {size}), got {low} to {high}")


def _pad_to_keys(mask: torch.Tensor, embeds: torch.Tensor, cache: Cache | None) -> torch.Tensor:
    """`mask [B, C]` with ones up to the number of keys that attention over `embeds` has."""
    length = embeds.shape[1]
    if cache is not None:
        length, _ = cache.get_mask_sizes(length, 0)
    return nn.functional.pad(mask, (0, length - mask.shape[1]), value=True)


__all__ = ["AcousticGPTForCausalLM", "AcousticGPTModel", "AcousticGPTPreTrainedModel"]
