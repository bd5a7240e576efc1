"""Configurations of the understanding-driven speech tokenizer (USTokenizer)."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig, WhisperConfig
from transformers.configuration_utils import SubConfigSpec


@strict
class UsTokenizerConfig(PreTrainedConfig):
    model_type = "us_tokenizer"
    base_config_key = "us_tokenizer_config"
    sub_configs_defaults = {"encoder_config": WhisperConfig}

    encoder_config: dict | PreTrainedConfig | None = None
    hidden_size: int = 1024
    code_dim: int = 1024
    codebook_size: int = 1024
    num_blocks: int = 2
    num_residual_units: int = 2
    dilations: list[int] | tuple[int, ...] = (1, 1)
    kernel_size: int = 3
    downsample: int = 2
    vq_decay: float | int = 0.8
    vq_eps: float | int = 1e-5
    kmeans_init: bool = False
    dead_code_threshold: float | int = 0.0
    commitment_loss_weight: float | int = 1.0
    reconstruction_loss_weight: float | int = 45.0
    mask_padding: bool = True
    sampling_rate: int = 16000
    hop_length: int = 320
    min_seconds: float | int = 1.0
    max_seconds: float | int = 30.0
    initializer_range: float | int = 0.02


@strict
class UsTokenizerForUnderstandingConfig(PreTrainedConfig):
    model_type = "us_tokenizer_for_understanding"
    sub_configs_defaults = {
        "us_tokenizer_config": UsTokenizerConfig,
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }

    us_tokenizer_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    understanding_loss_weight: float | int = 5.0
    freeze_encoder: bool = True
    speech_placeholder_id: int = -1
    text_model_name_or_path: str | None = None


__all__ = ["UsTokenizerConfig", "UsTokenizerForUnderstandingConfig"]
