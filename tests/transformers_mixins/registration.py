"""What the mixins look up by name or by Auto class, for our classes. Also imported by the rank processes."""

from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto import modeling_auto

from dualspeech import DualSpeechConfig, registry

from .token_models import TokenAcousticGPT, TokenAcousticGPTConfig, TokenDualSpeech
from .token_split_layer import TokenSplitLayer, TokenSplitLayerConfig

# The FSDP tests build every model through this Auto class.
AutoConfig.register(TokenAcousticGPTConfig.model_type, TokenAcousticGPTConfig, exist_ok=True)
AutoModelForCausalLM.register(TokenAcousticGPTConfig, TokenAcousticGPT, exist_ok=True)
AutoModelForCausalLM.register(DualSpeechConfig, TokenDualSpeech, exist_ok=True)
AutoConfig.register(TokenSplitLayerConfig.model_type, TokenSplitLayerConfig, exist_ok=True)
AutoModelForCausalLM.register(TokenSplitLayerConfig, TokenSplitLayer, exist_ok=True)

# The mixins decide by these tables which labels a class takes, and `register` does not write them.
MAPPING_NAMES = {
    "AutoModel": modeling_auto.MODEL_MAPPING_NAMES,
    "AutoModelForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForAudioXVector": modeling_auto.MODEL_FOR_AUDIO_XVECTOR_MAPPING_NAMES,
}


def named(auto_class: str) -> dict[str, str]:
    """Our entries of the table of `auto_class`: model type -> class name."""
    return {model_type: name for model_type, (_, name) in registry.CLASSES[auto_class].items()}


__all__ = ["MAPPING_NAMES", "named"]
