"""Registration of nested classes in a checkpoint that carries its own code.

`dualspeech.remote_code.bundle_remote_code` copies this module beside the weights. A composite configuration builds its parts by
model type through the Auto classes; where `dualspeech` is not installed, the copied modules register these parts.
"""

from transformers import CONFIG_MAPPING, AutoConfig


def _origin(cls: type) -> str:
    """The repository or folder from which transformers copied the module of `cls`, without version and file."""
    return cls.__module__.rpartition(".")[0].rpartition(".")[0]


def register_configs(*configs: type) -> None:
    """Register configuration classes under their model types.

    transformers copies a local folder once per module that it asks for, so the same class may arrive twice. The first
    stays: configurations that were made from it must remain known. A class from elsewhere takes its place.
    """
    for config in configs:
        is_known = config.model_type in CONFIG_MAPPING
        if not is_known or _origin(CONFIG_MAPPING[config.model_type]) != _origin(config):
            AutoConfig.register(config.model_type, config, exist_ok=True)


def register_models(auto_class, *models: type) -> None:
    """Register model classes with `auto_class`, for their own configuration class and for its registered twin."""
    for model in models:
        for config in {model.config_class, CONFIG_MAPPING[model.config_class.model_type]}:
            auto_class.register(config, model, exist_ok=True)


__all__ = ["register_configs", "register_models"]
