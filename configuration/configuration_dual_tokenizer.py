"""Configurations of the dual audio tokenizer and of the semantic tokenizer made of a speech encoder and k-means."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


@strict
class KMeansTokenizerConfig(PreTrainedConfig):
    model_type = "kmeans_tokenizer"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="hubert")}

    encoder_config: dict | PreTrainedConfig | None = None
    codebook_size: int = 500
    layer: int = -1
    sampling_rate: int = 16000


@strict
class DualTokenizerConfig(PreTrainedConfig):
    model_type = "dual_tokenizer"
    sub_configs_defaults = {
        "semantic_config": SubConfigSpec(config_class=AutoConfig, model_type="us_tokenizer", optional=True),
        "codec_config": SubConfigSpec(config_class=AutoConfig, model_type="dualspeech_wavtokenizer", optional=True),
        "speaker_config": SubConfigSpec(config_class=AutoConfig, model_type="campplus", optional=True),
    }

    semantic_config: dict | PreTrainedConfig | None = None
    codec_config: dict | PreTrainedConfig | None = None
    speaker_config: dict | PreTrainedConfig | None = None
    num_codebooks: int | None = None
    codebook_pattern: str | None = None


__all__ = ["DualTokenizerConfig", "KMeansTokenizerConfig"]
