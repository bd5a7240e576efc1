"""The only place that registers our classes with transformers' Auto classes.

Configurations are imported; models, feature extractors and processors are named and imported when an Auto class
first asks for them, so that `import dualspeech` stays quick.
"""

import importlib

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
}

# Auto class -> model_type -> (module, class)
CLASSES = {
    "AutoModel": {
        "us_tokenizer": ("modeling.modeling_us_tokenizer", "UsTokenizerModel"),
        "us_tokenizer_for_understanding": ("modeling.modeling_us_tokenizer", "UsTokenizerForUnderstanding"),
        "dualspeech_wavtokenizer": ("modeling.modeling_wavtokenizer", "WavTokenizerModel"),
        "campplus": ("modeling.modeling_campplus", "CamPPlusModel"),
        "kmeans_tokenizer": ("modeling.modeling_kmeans_tokenizer", "KMeansTokenizerModel"),
        "dual_tokenizer": ("modeling.modeling_dual_tokenizer", "DualTokenizerModel"),
        "acoustic_gpt": ("modeling.modeling_acoustic_gpt", "AcousticGPTModel"),
        "dualspeech": ("modeling.modeling_dualspeech", "DualSpeechForConditionalGeneration"),
    },
    "AutoModelForCausalLM": {"acoustic_gpt": ("modeling.modeling_acoustic_gpt", "AcousticGPTForCausalLM")},
    "AutoModelForMultimodalLM": {
        "dualspeech": ("modeling.modeling_dualspeech", "DualSpeechForConditionalGeneration")
    },
    "AutoModelForTextToWaveform": {
        "dualspeech": ("modeling.modeling_dualspeech", "DualSpeechForConditionalGeneration")
    },
    "AutoModelForAudioTokenization": {
        "dualspeech_wavtokenizer": ("modeling.modeling_wavtokenizer", "WavTokenizerModel")
    },
    "AutoModelForAudioXVector": {"campplus": ("modeling.modeling_campplus", "CamPPlusModel")},
    "AutoFeatureExtractor": {
        "campplus": ("processing.feature_extraction_kaldi_fbank", "KaldiFbankFeatureExtractor"),
        "dual_tokenizer": ("processing.feature_extraction_dualspeech", "DualSpeechFeatureExtractor"),
        "dualspeech": ("processing.feature_extraction_dualspeech", "DualSpeechFeatureExtractor"),
    },
    "AutoProcessor": {"dualspeech": ("processing.processing_dualspeech", "DualSpeechProcessor")},
}

_PACKAGE = __name__.rpartition(".")[0]


def load(module: str, name: str) -> type:
    """Import `dualspeech.<module>` and return its `name`."""
    return getattr(importlib.import_module(f"{_PACKAGE}.{module}"), name)


class _LazyClasses(dict):
    """A registry of an Auto class whose entries of ours are imported on first use.

    transformers keeps registered classes in a plain dict and has no lazy form of `register`; this one holds
    `(module, name)` pairs until somebody reads them.
    """

    def _resolve(self, key, value):
        if isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, str) for part in value):
            value = load(*value)
            super().__setitem__(key, value)
        return value

    def __getitem__(self, key):
        return self._resolve(key, super().__getitem__(key))

    def get(self, key, default=None):
        return self[key] if key in self else default

    def values(self):
        return [self[key] for key in self]

    def items(self):
        return [(key, self[key]) for key in self]

    def __reduce__(self):
        return dict, (dict(self.items()),)


def _mapping(auto_class: str):
    """The mapping object that `auto_class.register` writes to."""
    if auto_class == "AutoFeatureExtractor":
        from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING

        return FEATURE_EXTRACTOR_MAPPING
    if auto_class == "AutoProcessor":
        from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

        return PROCESSOR_MAPPING
    import transformers

    return getattr(transformers, auto_class)._model_mapping


def register() -> None:
    """Register every class of this package with the Auto classes of transformers. Calling it again changes nothing."""
    from transformers import AutoConfig

    configs = {model_type: load(*where) for model_type, where in CONFIGS.items()}
    for model_type, config in configs.items():
        AutoConfig.register(model_type, config, exist_ok=True)
    for auto_class, classes in CLASSES.items():
        mapping = _mapping(auto_class)
        if not isinstance(mapping._extra_content, _LazyClasses):
            mapping._extra_content = _LazyClasses(mapping._extra_content)
        for model_type, where in classes.items():
            mapping._extra_content[configs[model_type]] = where


__all__ = ["register"]
