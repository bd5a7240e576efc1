"""Configuration of DualSpeechLM."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_acoustic_gpt import AcousticGPTConfig

# Numbers of the eight tasks in the data of the released system (specification, section 2.2).
TASK_IDS = {"asr": 1, "tts": 2, "vc": 3, "t2st": 4, "sc": 5, "sqa": 6, "s2tt": 7, "ser": 8}
SPEECH_TASKS = ("tts", "vc", "t2st", "sc")


@strict
class DualSpeechConfig(PreTrainedConfig):
    model_type = "dualspeech"
    keys_to_ignore_at_inference = ["past_key_values"]
    sub_configs_defaults = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="phi3"),
        "acoustic_config": SubConfigSpec(config_class=AcousticGPTConfig, optional=True),
    }

    text_config: dict | PreTrainedConfig | None = None
    acoustic_config: dict | PreTrainedConfig | None = None


__all__ = ["SPEECH_TASKS", "TASK_IDS", "DualSpeechConfig"]
