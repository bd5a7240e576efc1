"""Configuration of AcousticGPT, the acoustic decoder of DualSpeechLM."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

CONDITION_ATTENTIONS = ("bidirectional", "causal")


@strict
class AcousticGPTConfig(PreTrainedConfig):
    """
    AcousticGPT (DualSpeechLM, section "AcousticGPT" and appendix): a GPT-2-like decoder that turns condition vectors
    (a speaker token and hidden states of the language model) into codec codes. The defaults are the sizes of the
    paper with WavTokenizer at 40 codes per second: 84 million parameters and an untied head of 4.2 million.

    Ids: `0 .. codebook_size - 1` are codes. Four special ids follow, by default in the order of the released
    checkpoints: pad, none ("no speech": the target of an understanding row), bos (start), eos (end).

    Args:
        codebook_size (`int`): N, codes in one codebook. Under the flatten pattern, the codes of all books together.
        num_codebooks (`int`): K, codes predicted per position. More than one means the delay pattern: K embeddings
            are summed at each position and the head gives K distributions, book k running k positions late.
        interleaved_codebooks (`int`): books whose turns alternate within one sequence (the flatten pattern, id
            `k * (codebook_size / interleaved_codebooks) + code`). It changes nothing but generation, which then
            offers only codes of the book whose turn it is, and the end only between frames.
        hidden_size (`int`): d, width of the decoder and of the condition vectors it takes.
        num_hidden_layers (`int`): decoder layers.
        num_attention_heads (`int`): attention heads; must divide `hidden_size`.
        intermediate_size (`int`): width of the feed-forward layer.
        hidden_act (`str`): activation of the feed-forward layer; the released model has the tanh form of GELU.
        max_condition_positions (`int`): rows of the position table of the condition (speaker token included).
        max_target_positions (`int`): rows of the position table of the acoustic positions (bos included).
        layer_norm_eps (`float`): added to the variance in every LayerNorm.
        dropout (`float`): dropout behind the embeddings and each residual branch; 0 in the released model.
        attention_dropout (`float`): dropout of the attention weights; 0 in the released model.
        condition_attention (`str`): `"bidirectional"` as released: the condition sees all of itself (prefix LM);
            `"causal"` as the paper words it. Weights trained with one do not work with the other.
        initializer_range (`float`): standard deviation of new linear and embedding weights.
        use_cache (`bool`): return keys and values for the next call by default.
        tie_word_embeddings (`bool`): one matrix for input table and head. Off: the released training separates them.
        pad_token_id (`int`): behind the end of a row; `codebook_size` when omitted. Never a target.
        none_token_id (`int`): "no speech"; `codebook_size + 1` when omitted. Never generated.
        bos_token_id (`int`): first input; `codebook_size + 2` when omitted. Never generated.
        eos_token_id (`int`): end of speech; `codebook_size + 3` when omitted.

    Raises:
        ValueError: a size below 1, heads that do not divide the width, an unknown `condition_attention`, or special
            ids that are not the four ids behind the codes.
    """

    model_type = "acoustic_gpt"
    base_config_key = "acoustic_config"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]
    base_model_tp_plan = {
        "embed_tokens": "embedding_rowwise",
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.fc_in": "colwise",
        "layers.*.mlp.fc_out": "rowwise",
    }
    base_model_fsdp_plan = {
        "embed_tokens": "free_full_weight",
        "embed_positions": "free_full_weight",
        "embed_condition_positions": "free_full_weight",
        "layers.*": "free_full_weight",
        "norm": "keep_full_weight",
    }
    base_model_pp_plan = None

    codebook_size: int = 4096
    num_codebooks: int = 1
    interleaved_codebooks: int = 1
    hidden_size: int = 1024
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    intermediate_size: int = 4096
    hidden_act: str = "gelu_pytorch_tanh"
    max_condition_positions: int = 2048
    max_target_positions: int = 2048
    layer_norm_eps: float | int = 1e-5
    dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    condition_attention: str = "bidirectional"
    initializer_range: float | int = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    none_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        for offset, name in enumerate(("pad_token_id", "none_token_id", "bos_token_id", "eos_token_id")):
            if getattr(self, name) is None:
                setattr(self, name, self.codebook_size + offset)
        vocab_size = kwargs.pop("vocab_size", self.vocab_size)
        if vocab_size != self.vocab_size:
            raise ValueError(
                f"`vocab_size` is `codebook_size` + 4 = {self.vocab_size}, got {vocab_size}; set `codebook_size`"
            )
        super().__post_init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        """Ids of one codebook: the codes and the four special ids."""
        return self.codebook_size + 4

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def validate_sizes(self):
        """Part of `@strict` validation: every size is at least 1 and the heads fit the width."""
        for name in (
            "codebook_size",
            "num_codebooks",
            "interleaved_codebooks",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_condition_positions",
            "max_target_positions",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`num_attention_heads` ({self.num_attention_heads}) must divide `hidden_size` ({self.hidden_size})"
            )
        if self.num_codebooks > self.max_target_positions:
            raise ValueError(
                f"`max_target_positions` ({self.max_target_positions}) must be at least `num_codebooks` "
                f"({self.num_codebooks}): a frame takes that many positions under the delay pattern"
            )
        if self.interleaved_codebooks > 1 and (
            self.num_codebooks > 1 or self.codebook_size % self.interleaved_codebooks
        ):
            raise ValueError(
                f"`interleaved_codebooks` ({self.interleaved_codebooks}) must divide `codebook_size` "
                f"({self.codebook_size}) and needs `num_codebooks` = 1, got {self.num_codebooks}"
            )

    def validate_condition_attention(self):
        """Part of `@strict` validation: the attention pattern of the condition is a known one."""
        if self.condition_attention not in CONDITION_ATTENTIONS:
            raise ValueError(
                f"`condition_attention` must be one of {CONDITION_ATTENTIONS}, got {self.condition_attention!r}"
            )

    def validate_special_ids(self):
        """Part of `@strict` validation: the special ids are the four ids behind the codes, in any order."""
        ids = {name: getattr(self, name) for name in ("pad_token_id", "none_token_id", "bos_token_id", "eos_token_id")}
        accepted = range(self.codebook_size, self.vocab_size)
        if not all(isinstance(value, int) for value in ids.values()) or sorted(ids.values()) != list(accepted):
            raise ValueError(
                f"special ids must be {list(accepted)} (behind the {self.codebook_size} codes), each used once, got {ids}"
            )


__all__ = ["CONDITION_ATTENTIONS", "AcousticGPTConfig"]
