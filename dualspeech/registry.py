"""The only place that registers our classes with transformers' Auto classes.

Importing transformers' Auto modules takes seconds (they pull torch and the processors), so this module imports none:
our classes are entered into each Auto table when Python first executes the module that holds it, or at once where
that happened already. They are entered by name and imported when they are first asked for.
"""

import importlib
import sys
from collections.abc import MutableMapping
from importlib.abc import MetaPathFinder
from typing import NamedTuple

# model_type -> (module, configuration class)
CONFIGS = {
    "us_tokenizer": ("configuration.configuration_us_tokenizer", "UsTokenizerConfig"),
    "us_tokenizer_for_understanding": (
        "configuration.configuration_us_tokenizer",
        "UsTokenizerForUnderstandingConfig",
    ),
    "dualspeech_wavtokenizer": ("configuration.configuration_wavtokenizer", "WavTokenizerConfig"),
    "campplus": ("configuration.configuration_campplus", "CamPPlusConfig"),
    "kmeans_tokenizer": ("configuration.configuration_dual_tokenizer", "KMeansTokenizerConfig"),
    "dual_tokenizer": ("configuration.configuration_dual_tokenizer", "DualTokenizerConfig"),
    "acoustic_gpt": ("configuration.configuration_acoustic_gpt", "AcousticGPTConfig"),
    "dualspeech": ("configuration.configuration_dualspeech", "DualSpeechConfig"),
    "moss_speech": ("configuration.configuration_split_layer_qwen3", "SplitLayerQwen3Config"),
    "whisper_vq": ("configuration.configuration_whisper_vq", "WhisperVqConfig"),
    "flow_decoder": ("configuration.configuration_flow_decoder", "FlowDecoderConfig"),
    "hift": ("configuration.configuration_hift", "HiFTConfig"),
    "moss_speech_codec": ("configuration.configuration_moss_speech_codec", "MossSpeechCodecConfig"),
}

# Auto class -> model_type -> (module, class)
CLASSES = {
    "AutoModel": {
        "us_tokenizer": ("modeling.modeling_us_tokenizer", "UsTokenizerModel"),
        "us_tokenizer_for_understanding": (
            "modeling.modeling_us_tokenizer_understanding",
            "UsTokenizerForUnderstanding",
        ),
        "dualspeech_wavtokenizer": ("modeling.modeling_wavtokenizer", "WavTokenizerModel"),
        "campplus": ("modeling.modeling_campplus", "CamPPlusModel"),
        "kmeans_tokenizer": ("modeling.modeling_kmeans_tokenizer", "KMeansTokenizerModel"),
        "dual_tokenizer": ("modeling.modeling_dual_tokenizer", "DualTokenizerModel"),
        "acoustic_gpt": ("modeling.modeling_acoustic_gpt", "AcousticGPTModel"),
        "dualspeech": ("modeling.modeling_dualspeech", "DualSpeechForConditionalGeneration"),
        "moss_speech": ("modeling.modeling_split_layer_qwen3", "SplitLayerQwen3Model"),
        "whisper_vq": ("modeling.modeling_whisper_vq", "WhisperVqModel"),
        "flow_decoder": ("modeling.modeling_flow_decoder", "FlowDecoderModel"),
        "hift": ("modeling.modeling_hift", "HiFTModel"),
        "moss_speech_codec": ("modeling.modeling_moss_speech_codec", "MossSpeechCodecModel"),
    },
    "AutoModelForCausalLM": {
        "acoustic_gpt": ("modeling.modeling_acoustic_gpt", "AcousticGPTForCausalLM"),
        "moss_speech": ("modeling.modeling_split_layer_qwen3", "SplitLayerQwen3ForCausalLM"),
    },
    "AutoModelForMultimodalLM": {
        "dualspeech": ("modeling.modeling_dualspeech", "DualSpeechForConditionalGeneration"),
        "moss_speech": ("modeling.modeling_split_layer_qwen3", "SplitLayerQwen3ForCausalLM"),
    },
    "AutoModelForTextToWaveform": {
        "dualspeech": ("modeling.modeling_dualspeech", "DualSpeechForConditionalGeneration")
    },
    "AutoModelForAudioTokenization": {
        "dualspeech_wavtokenizer": ("modeling.modeling_wavtokenizer", "WavTokenizerModel"),
        "moss_speech_codec": ("modeling.modeling_moss_speech_codec", "MossSpeechCodecModel"),
    },
    "AutoModelForAudioXVector": {"campplus": ("modeling.modeling_campplus", "CamPPlusModel")},
    "AutoFeatureExtractor": {
        "campplus": ("processing.feature_extraction_kaldi_fbank", "KaldiFbankFeatureExtractor"),
        "dual_tokenizer": ("processing.feature_extraction_dualspeech", "DualSpeechFeatureExtractor"),
        "dualspeech": ("processing.feature_extraction_dualspeech", "DualSpeechFeatureExtractor"),
        "whisper_vq": ("processing.feature_extraction_moss_speech", "MossSpeechFeatureExtractor"),
        "moss_speech_codec": ("processing.feature_extraction_moss_speech", "MossSpeechFeatureExtractor"),
        "moss_speech": ("processing.feature_extraction_moss_speech", "MossSpeechFeatureExtractor"),
    },
    "AutoProcessor": {
        "dualspeech": ("processing.processing_dualspeech", "DualSpeechProcessor"),
        "moss_speech": ("processing.processing_moss_speech", "MossSpeechProcessor"),
    },
}

# Auto class -> (module of `transformers.models.auto`, its table); all others are model classes of `modeling_auto`.
_TABLES = {
    "AutoFeatureExtractor": ("feature_extraction_auto", "FEATURE_EXTRACTOR_MAPPING"),
    "AutoProcessor": ("processing_auto", "PROCESSOR_MAPPING"),
}
_AUTO = "transformers.models.auto"
_MODULES = tuple(
    f"{_AUTO}.{name}" for name in ("configuration_auto", "modeling_auto", "feature_extraction_auto", "processing_auto")
)
_PACKAGE = __name__.rpartition(".")[0]


class _Named(NamedTuple):
    """A class of this package that need not be imported yet."""

    module: str
    name: str

    def load(self) -> type:
        return getattr(importlib.import_module(f"{_PACKAGE}.{self.module}"), self.name)


_CONFIGS = {_Named(*where) for where in CONFIGS.values()}


def _key(key):
    """`key`, or the name of it when it is one of our configuration classes."""
    if isinstance(key, type) and key.__module__.startswith(f"{_PACKAGE}."):
        named = _Named(key.__module__.removeprefix(f"{_PACKAGE}."), key.__qualname__)
        return named if named in _CONFIGS else key
    return key


class _LazyClasses(MutableMapping):
    """What was registered with one Auto class; ours are known by name and imported when they are read.

    Stands for the plain dict in which transformers keeps these classes, and pickles as one. Our keys are names too:
    the tables are filled in the middle of an import, perhaps in that of one of our own configurations.
    """

    def __init__(self, classes: dict):
        self._classes = {_key(key): value for key, value in classes.items()}

    def __getitem__(self, key):
        key = _key(key)
        value = self._classes[key]
        if isinstance(value, _Named):
            value = self._classes[key] = value.load()
        return value

    def __setitem__(self, key, value):
        self._classes[_key(key)] = value

    def __delitem__(self, key):
        del self._classes[_key(key)]

    def __contains__(self, key):
        return _key(key) in self._classes

    def __iter__(self):
        return iter([key.load() if isinstance(key, _Named) else key for key in self._classes])

    def __len__(self):
        return len(self._classes)

    def __reduce__(self):
        return dict, (dict(self),)


def _enter(table, classes: dict) -> None:
    """Add `classes` to what was registered with `table`, leaving keys alone that are there already."""
    if not isinstance(table._extra_content, _LazyClasses):
        table._extra_content = _LazyClasses(table._extra_content)
    for key, value in classes.items():
        if key not in table._extra_content:
            table._extra_content[key] = value


def _attach(module) -> None:
    """Enter our classes into the tables of `module`, one of `_MODULES`. Imports nothing."""
    name = module.__name__.rpartition(".")[2]
    if name == "configuration_auto":
        _enter(module.CONFIG_MAPPING, {model_type: _Named(*where) for model_type, where in CONFIGS.items()})
    for auto_class, classes in CLASSES.items():
        home, table = _TABLES.get(auto_class, ("modeling_auto", None))
        if home == name:
            table = getattr(module, table) if table else getattr(module, auto_class)._model_mapping
            _enter(table, {_Named(*CONFIGS[key]): _Named(*where) for key, where in classes.items()})


class _AttachOnImport(MetaPathFinder):
    """Calls `_attach` right after Python has executed one of `_MODULES`."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in _MODULES:
            return None
        found = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, found), None)
        if spec is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                _attach(module)

            spec.loader.exec_module = exec_module
        return spec


def register() -> None:
    """Register every class of this package with the Auto classes of transformers. Calling it again changes nothing."""
    if not any(isinstance(finder, _AttachOnImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AttachOnImport())
    for name in _MODULES:
        if name in sys.modules:
            _attach(sys.modules[name])


__all__ = ["register"]
