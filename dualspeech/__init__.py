"""Speech language models as Hugging Face classes: DualSpeechLM (arXiv 2508.08961), MOSS-Speech (arXiv 2510.00499).

Importing this package registers its classes with the Auto classes of transformers. Model code is loaded on first use.
"""

import importlib as _importlib
from pathlib import Path as _Path

_here = _Path(__file__).resolve().parent
if not (_here / "modeling").is_dir() and (_here.parent / "setup.cfg").is_file():
    __path__.append(str(_here.parent))  # a checkout: the subpackages are the repository's folders

from . import registry as _registry  # noqa: E402
from .torchaudio_guard import hide_broken_torchaudio as _hide_broken_torchaudio  # noqa: E402
from .version import __version__  # noqa: E402

_hide_broken_torchaudio()
_registry.register()

# public name -> module that defines it
_EXPORTS = {
    **{name: module for module, name in _registry.CONFIGS.values()},
    **{name: module for classes in _registry.CLASSES.values() for module, name in classes.values()},
    "DualSpeechDataCollator": "training.data_collator",
    "MossSpeechDataCollator": "training.data_collator_moss_speech",
    "MossSpeechVoice": "modeling.moss_speech_voice",
    "PackedDataset": "training.packing",
    "PrecomputedSpeakers": "modeling.speaker_adapters",
    "PushToHubCallback": "hub_callback",
    "SamplesCallback": "training.callbacks",
    "SpeechTrainer": "training.trainer",
    "bundle_remote_code": "hub",
    "create_model_card": "hub",
    "dualspeech_lora_config": "training.lora",
    "extend_tokenizer": "processing.tokenization_dualspeech",
    "load_audio": "processing.audio",
    "push_to_hub": "hub",
    "save_audio": "processing.audio",
}

__all__ = ["__version__", *sorted(_EXPORTS)]


def __getattr__(name):
    if name in _EXPORTS:
        try:
            value = getattr(_importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
        except ModuleNotFoundError as error:
            if not _EXPORTS[name].startswith("training."):
                raise
            raise ModuleNotFoundError(
                f"{name} needs {error.name}: pip install 'dualspeech[train]'", name=error.name
            ) from error
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_EXPORTS})
