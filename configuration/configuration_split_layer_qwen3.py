"""Configuration of the split-layer Qwen3 language model of MOSS-Speech."""

from huggingface_hub.dataclasses import strict
from transformers import Qwen3Config

_LAYER_TP_PLAN = {
    "self_attn.q_proj": "colwise",
    "self_attn.k_proj": "colwise",
    "self_attn.v_proj": "colwise",
    "self_attn.q_norm": "replicated_with_grad_allreduce",
    "self_attn.k_norm": "replicated_with_grad_allreduce",
    "self_attn.o_proj": "rowwise",
    "mlp.gate_proj": "colwise",
    "mlp.up_proj": "colwise",
    "mlp.down_proj": "rowwise",
}
_BLOCKS = ("shared_block", "text_block", "audio_block")
# The class beside the released weights, of which a folder saved here has no copy.
_RELEASED_CODE = "configuration_moss_speech.MossSpeechConfig"


@strict
class SplitLayerQwen3Config(Qwen3Config):
    """
    Split-layer Qwen3 (MOSS-Speech, section "Modality-based layer split"): `num_shared_layers` Qwen3 layers, then a
    text branch and an audio branch of `num_modality_layers` layers each, with a norm and a head of their own. The keys
    are those of the released `config.json`, and the defaults describe the released checkpoint (9.10 billion
    parameters). Where the released class has other defaults, its checkpoint sets the key: `rope_theta` (10000 there,
    1000000 here and in the checkpoint), `audio_vocab_size`, `sosp_token_id`, `eosp_token_id` (none there) and
    `modality_pad_token_id` (0 there).

    A sequence is made of rows (text id, audio id). A row whose text id is `modality_pad_token_id` is a speech row and
    stands for its audio id, every other row stands for its text id. The same row as one number, its flat id, is the
    text id, or `vocab_size` + the audio id.

    `num_hidden_layers` and `layer_types` describe one path (trunk and one branch), as released. What decodes token by
    token needs all layers and all flat ids: `get_text_config()` gives this view, from which transformers builds caches
    (layers of the text branch from `num_shared_layers`, of the audio branch behind them) and reads the vocabulary.

    `num_modality_layers=0` is the paper's baseline without a split (NF-NoSplit): speech tokens added to the text
    vocabulary. All layers are shared, one norm follows, and one softmax goes over text and audio ids together.

    Args:
        vocab_size (`int`): text ids.
        audio_vocab_size (`int`): audio ids: codes, end of speech, and unused ids that pad the table.
        hidden_size (`int`): width of the model.
        intermediate_size (`int`): width of the feed-forward layers.
        num_hidden_layers (`int`, *optional*): layers of one path, trunk and one branch; 36 in the release. Must be
            `num_shared_layers` + `num_modality_layers`, and is their sum when omitted.
        num_shared_layers (`int`, *optional*): N, layers of the trunk, at least 1; 32 when neither it nor
            `num_hidden_layers` is given.
        num_modality_layers (`int`): K, layers of each branch; 0 for the baseline without a split.
        num_attention_heads (`int`): attention heads.
        num_key_value_heads (`int`): key and value heads.
        head_dim (`int`): width of one head.
        rope_theta (`float`): legacy key for the base of the rotary angles; `rope_parameters` takes precedence.
        modality_pad_token_id (`int`): text id of speech rows; `<think>` of the Qwen3 vocabulary.
        sosp_token_id (`int`): text id that starts speech.
        eosp_token_id (`int`): audio id that ends speech. Audio ids above it are never produced.
        audio_pad_token_id (`int`): written into the audio cell of text rows, where nothing reads it.
        channels (`int`): cells of a row; 2.
        text_loss_weight (`float`): weight of the targets of the text head in the loss.
        audio_loss_weight (`float`): weight of the targets of the audio head in the loss.
        eos_token_id (`int` or `list[int]`): text id(s) that end a turn; `<|im_end|>`.
        pad_token_id (`int`): text id of left padding; `<|endoftext|>`.
        tie_word_embeddings (`bool`): each head shares the matrix of its input table. Off, as in the checkpoint (the
            released code lists tied keys nevertheless).

    Raises:
        ValueError: if the layers do not add up, a size is below its minimum, a weight is negative, or an id lies
            outside its vocabulary or has two meanings.
    """

    model_type = "moss_speech"
    keys_to_ignore_at_inference = [
        "cache",
        "past_key_values",
        "text_logits",
        "audio_logits",
        "text_loss",
        "audio_loss",
    ]
    default_theta = 1_000_000.0
    base_model_tp_plan = {"embed_tokens": "embedding_rowwise", "audio_embed": "embedding_rowwise"} | {
        f"{block}.layers.*.{name}": plan for block in _BLOCKS for name, plan in _LAYER_TP_PLAN.items()
    }
    base_model_fsdp_plan = {
        "embed_tokens": "free_full_weight",
        "audio_embed": "free_full_weight",
        "shared_block.layers.*": "free_full_weight",
        "text_block.layers.*": "free_full_weight",
        "audio_block.layers.*": "free_full_weight",
        "text_norm": "keep_full_weight",
        "audio_norm": "keep_full_weight",
        "norm": "keep_full_weight",
    }
    base_model_pp_plan = None

    vocab_size: int = 151680
    audio_vocab_size: int = 16512
    hidden_size: int = 4096
    intermediate_size: int = 12288
    num_hidden_layers: int | None = None
    num_shared_layers: int | None = None
    num_modality_layers: int = 4
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    head_dim: int = 128
    max_position_embeddings: int = 40960
    max_window_layers: int | None = None
    rms_norm_eps: float | int = 1e-6
    initializer_range: float | int = 0.02
    modality_pad_token_id: int = 151667
    sosp_token_id: int = 151646
    eosp_token_id: int = 16384
    audio_pad_token_id: int = 512
    channels: int = 2
    text_loss_weight: float | int = 1.0
    audio_loss_weight: float | int = 1.0
    pad_token_id: int | None = 151643
    eos_token_id: int | list[int] | None = 151645

    def __post_init__(self, **kwargs):
        if self.num_shared_layers is None:
            depth = 36 if self.num_hidden_layers is None else self.num_hidden_layers
            self.num_shared_layers = depth - self.num_modality_layers
        if self.num_hidden_layers is None:
            self.num_hidden_layers = self.num_shared_layers + self.num_modality_layers
        if _RELEASED_CODE in str((kwargs.get("auto_map") or {}).get("AutoConfig")):
            del kwargs["auto_map"]
        if self.use_sliding_window and self.max_window_layers is None:
            raise ValueError(
                "`max_window_layers` (layers before the first sliding one) is needed with a sliding window"
            )
        super().__post_init__(**kwargs)

    @property
    def num_cache_layers(self) -> int:
        """Layers with keys and values: the trunk and both branches."""
        return self.num_shared_layers + 2 * self.num_modality_layers

    @property
    def total_vocab_size(self) -> int:
        """Flat ids: text ids and, behind them, audio ids."""
        return self.vocab_size + self.audio_vocab_size

    def get_text_config(self, decoder=None, encoder=None) -> "SplitLayerQwen3DecoderConfig":
        """The view of this configuration that caches and decoding need. Writing to it writes here."""
        view = object.__new__(SplitLayerQwen3DecoderConfig)
        view.__dict__ = self.__dict__
        return view

    def to_dict(self) -> dict:
        output = super().to_dict()
        theta = (output.get("rope_parameters") or {}).get("rope_theta")
        if theta is not None:
            output["rope_theta"] = theta  # the released key; other readers of the folder know no other
        return output

    def validate_layers(self):
        """Part of `@strict` validation: trunk and branch make one path."""
        if self.num_shared_layers < 1 or self.num_modality_layers < 0:
            raise ValueError(
                f"`num_shared_layers` must be at least 1 and `num_modality_layers` at least 0, got "
                f"{self.num_shared_layers} and {self.num_modality_layers}"
            )
        if self.num_shared_layers + self.num_modality_layers != self.num_hidden_layers:
            raise ValueError(
                f"`num_hidden_layers` ({self.num_hidden_layers}) must be `num_shared_layers` "
                f"({self.num_shared_layers}) + `num_modality_layers` ({self.num_modality_layers})"
            )

    def validate_channels(self):
        """Part of `@strict` validation: rows have two cells, and each vocabulary has an id."""
        if self.channels != 2:
            raise ValueError(f"`channels` must be 2 (text id and audio id of a row), got {self.channels}")
        for name in ("vocab_size", "audio_vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")

    def validate_loss_weights(self):
        """Part of `@strict` validation: weights of the parts of the loss."""
        for name in ("text_loss_weight", "audio_loss_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}")

    def validate_token_ids(self):
        """Part of `@strict` validation: each id lies in its vocabulary and has one meaning."""
        ends = self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]
        text = {"modality_pad_token_id": self.modality_pad_token_id}
        others = {
            "sosp_token_id": self.sosp_token_id,
            "pad_token_id": self.pad_token_id,
            "bos_token_id": self.bos_token_id,
            **{f"eos_token_id[{index}]": end for index, end in enumerate(ends)},
        }
        others = {name: value for name, value in others.items() if value is not None}
        audio = {"eosp_token_id": self.eosp_token_id, "audio_pad_token_id": self.audio_pad_token_id}
        for ids, size in ((text | others, "vocab_size"), (audio, "audio_vocab_size")):
            for name, value in ids.items():
                if not 0 <= value < getattr(self, size):
                    raise ValueError(
                        f"`{name}` must be an id of 0 to {getattr(self, size) - 1} (`{size}`), got {value}"
                    )
        for name, value in others.items():
            if value == self.modality_pad_token_id:
                raise ValueError(f"`{name}` and `modality_pad_token_id` must differ, both are {value}")


class SplitLayerQwen3DecoderConfig(SplitLayerQwen3Config):
    """
    A [`SplitLayerQwen3Config`] as caches and decoding see it, made by its `get_text_config`: every layer that has keys
    and values counts, and the vocabulary holds all flat ids. All else is read from and written to the configuration.
    """

    @property
    def num_hidden_layers(self) -> int:
        return self.num_cache_layers

    @property
    def layer_types(self) -> list[str]:
        types, shared = self.__dict__["layer_types"], self.num_shared_layers
        return types[:shared] + 2 * types[shared:]

    @property
    def vocab_size(self) -> int:
        return self.__dict__["vocab_size"] + self.audio_vocab_size

    @vocab_size.setter
    def vocab_size(self, value: int):
        self.__dict__["vocab_size"] = value - self.audio_vocab_size

    @property
    def total_vocab_size(self) -> int:
        return self.vocab_size

    def get_text_config(self, decoder=None, encoder=None) -> "SplitLayerQwen3DecoderConfig":
        return self


__all__ = ["SplitLayerQwen3Config", "SplitLayerQwen3DecoderConfig"]
