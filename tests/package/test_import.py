"""`import dualspeech` is quick, registers everything, and disturbs nobody."""

import pickle
import sys

import pytest
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)

import dualspeech
from dualspeech import registry

from .running import run_python

PUBLIC = [
    "AcousticGPTConfig",
    "AcousticGPTForCausalLM",
    "AcousticGPTModel",
    "CamPPlusConfig",
    "CamPPlusModel",
    "DualSpeechConfig",
    "DualSpeechDataCollator",
    "DualSpeechFeatureExtractor",
    "DualSpeechForConditionalGeneration",
    "DualSpeechProcessor",
    "DualTokenizerConfig",
    "DualTokenizerModel",
    "FlowDecoderConfig",
    "FlowDecoderModel",
    "HiFTConfig",
    "HiFTModel",
    "KMeansTokenizerConfig",
    "KMeansTokenizerModel",
    "KaldiFbankFeatureExtractor",
    "MossSpeechCodecConfig",
    "MossSpeechCodecModel",
    "MossSpeechDataCollator",
    "MossSpeechFeatureExtractor",
    "MossSpeechProcessor",
    "MossSpeechVoice",
    "PackedDataset",
    "PrecomputedSpeakers",
    "PushToHubCallback",
    "SamplesCallback",
    "SpeechTrainer",
    "SplitLayerQwen3Config",
    "SplitLayerQwen3ForCausalLM",
    "SplitLayerQwen3Model",
    "UsTokenizerConfig",
    "UsTokenizerForUnderstanding",
    "UsTokenizerForUnderstandingConfig",
    "UsTokenizerModel",
    "WavTokenizerConfig",
    "WavTokenizerModel",
    "WhisperVqConfig",
    "WhisperVqModel",
    "__version__",
    "bundle_remote_code",
    "create_model_card",
    "dualspeech_lora_config",
    "extend_tokenizer",
    "load_audio",
    "push_to_hub",
    "save_audio",
]

# Prints the name of every class that the Auto classes know for our model types.
LIST_REGISTERED = """
import transformers
from dualspeech import registry
names = [transformers.AutoConfig.for_model(model_type).__class__.__name__ for model_type in registry.CONFIGS]
for auto_class, classes in registry.CLASSES.items():
    home, table = registry._TABLES.get(auto_class, ("modeling_auto", None))
    table = getattr(getattr(transformers.models.auto, home), table) if table else getattr(transformers, auto_class)._model_mapping
    names += [table[transformers.CONFIG_MAPPING[model_type]].__name__ for model_type in classes]
print(" ".join(names))
"""


def expected_names():
    named = [
        *registry.CONFIGS.values(),
        *(where for classes in registry.CLASSES.values() for where in classes.values()),
    ]
    return " ".join(name for _, name in named)


def test_public_names_are_frozen():
    assert sorted(dualspeech.__all__) == sorted(PUBLIC)
    assert set(PUBLIC) <= set(dir(dualspeech))


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_resolve(name):
    value = getattr(dualspeech, name)
    assert name == "__version__" or (value.__name__ == name and value.__module__.startswith("dualspeech."))


def test_unknown_name():
    with pytest.raises(AttributeError, match="NoSuchModel"):
        dualspeech.NoSuchModel  # noqa: B018


def test_import_loads_no_model_code():
    loaded = run_python("import sys, dualspeech; print(*sys.modules)").split()
    assert not {"torch", "transformers", "numpy"} & set(loaded)
    assert {name for name in loaded if name.startswith("dualspeech.")} == {
        "dualspeech.registry",
        "dualspeech.torchaudio_guard",
        "dualspeech.version",
    }


def test_auto_classes_load_no_model_code_before_it_is_asked_for():
    loaded = run_python(
        """
        import sys, dualspeech
        from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor
        AutoConfig.for_model("acoustic_gpt")
        print(*sys.modules)
        """
    ).split()
    assert "dualspeech.configuration.configuration_acoustic_gpt" in loaded
    assert not [name for name in loaded if name.startswith(("dualspeech.modeling", "dualspeech.processing"))]


@pytest.mark.parametrize(
    "imports",
    [
        "import dualspeech",
        pytest.param("from transformers import AutoModel, AutoProcessor; import dualspeech", marks=pytest.mark.slow),
        pytest.param(
            "import dualspeech; from transformers.models.auto.processing_auto import PROCESSOR_MAPPING",
            marks=pytest.mark.slow,
        ),
        "from dualspeech.configuration.configuration_dualspeech import DualSpeechConfig",
    ],
)
def test_registered_whichever_is_imported_first(imports):
    assert run_python(imports + "\n" + LIST_REGISTERED) == expected_names()


def test_registering_again_changes_nothing():
    finders, tables = list(sys.meta_path), [CONFIG_MAPPING._extra_content, AutoModel._model_mapping._extra_content]
    before = [dict(table) for table in tables]
    registry.register()
    assert sys.meta_path == finders
    assert [CONFIG_MAPPING._extra_content, AutoModel._model_mapping._extra_content] == tables
    assert [dict(table) for table in tables] == before


def test_a_later_registration_by_others_stays():
    class OtherConfig(PreTrainedConfig):
        model_type = "dualspeech_test_other"

    class OtherModel(PreTrainedModel):
        config: OtherConfig

    try:
        AutoConfig.register("dualspeech_test_other", OtherConfig)
        AutoModel.register(OtherConfig, OtherModel)
        AutoFeatureExtractor.register(OtherConfig, dict)
        AutoProcessor.register(OtherConfig, list)
        registry.register()
        assert isinstance(AutoConfig.for_model("dualspeech_test_other"), OtherConfig)
        assert AutoModel._model_mapping[OtherConfig] is OtherModel
        assert OtherConfig in AutoModel._model_mapping
    finally:
        for table in (CONFIG_MAPPING, AutoModel._model_mapping):
            for key in [key for key in table._extra_content if key in ("dualspeech_test_other", OtherConfig)]:
                del table._extra_content[key]
        from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING
        from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

        del FEATURE_EXTRACTOR_MAPPING._extra_content[OtherConfig], PROCESSOR_MAPPING._extra_content[OtherConfig]


@pytest.mark.parametrize("table", [CONFIG_MAPPING, AutoModel._model_mapping], ids=["configs", "models"])
def test_tables_survive_pickling(table):
    again = pickle.loads(pickle.dumps(table))
    assert again._extra_content == dict(table._extra_content)
    assert all(isinstance(value, type) for value in again._extra_content.values())


def test_reloaded_auto_module_is_registered_again():
    assert (
        run_python(
            """
        import importlib, dualspeech, transformers
        from transformers.models.auto import configuration_auto
        configuration_auto = importlib.reload(configuration_auto)
        print(configuration_auto.CONFIG_MAPPING["campplus"].__name__)
        """
        )
        == "CamPPlusConfig"
    )
