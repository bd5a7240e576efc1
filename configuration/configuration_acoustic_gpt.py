"""Configuration of AcousticGPT, the acoustic decoder of DualSpeechLM."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class AcousticGPTConfig(PreTrainedConfig):
    model_type = "acoustic_gpt"
    base_config_key = "acoustic_config"
    keys_to_ignore_at_inference = ["past_key_values"]

    codebook_size: int = 4096
    num_codebooks: int = 1
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


__all__ = ["AcousticGPTConfig"]
