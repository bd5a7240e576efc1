"""Configuration of the split-layer model: released keys and meanings, and the view that caches and decoding need."""

import copy
import json

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoConfig, DynamicCache, StaticCache

from dualspeech import SplitLayerQwen3Config
from tests.modeling.split_layer_cases import tiny_config

RELEASED = {
    "architectures": ["MossSpeechForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_moss_speech.MossSpeechConfig",
        "AutoModel": "modeling_moss_speech.MossSpeechForCausalLM",
        "AutoProcessor": "processing_moss_speech.MossSpeechProcessor",
    },
    "attention_bias": False,
    "attention_dropout": 0.0,
    "audio_vocab_size": 16512,
    "channels": 2,
    "eosp_token_id": 16384,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 12288,
    "layer_types": ["full_attention"] * 36,
    "max_position_embeddings": 40960,
    "max_window_layers": None,
    "modality_pad_token_id": 151667,
    "model_type": "moss_speech",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "num_modality_layers": 4,
    "num_shared_layers": 32,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "sosp_token_id": 151646,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.57.0.dev0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151680,
}


def written(folder):
    return json.loads((folder / "config.json").read_text())


def test_the_released_file(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(RELEASED))
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is SplitLayerQwen3Config
    default = SplitLayerQwen3Config()
    for name, value in RELEASED.items():
        if name not in (
            "architectures",
            "auto_map",
            "rope_scaling",
            "rope_theta",
            "torch_dtype",
            "transformers_version",
        ):
            assert getattr(config, name) == value == getattr(default, name), name
    assert config.rope_parameters == default.rope_parameters == {"rope_type": "default", "rope_theta": 1000000}
    assert (config.audio_pad_token_id, config.eos_token_id, config.pad_token_id) == (512, 151645, 151643)
    assert "bfloat16" in str(config.dtype)

    config.save_pretrained(tmp_path / "saved")
    saved = written(tmp_path / "saved")
    lost = {"auto_map", "rope_scaling", "torch_dtype", "transformers_version"}
    assert {name: saved[name] for name in RELEASED.keys() - lost} == {n: RELEASED[n] for n in RELEASED.keys() - lost}
    assert "auto_map" not in saved  # it names files that the saved folder has not
    assert saved["dtype"] == "bfloat16"
    again = AutoConfig.from_pretrained(tmp_path / "saved")
    assert again.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}


def test_the_base_of_the_rotary_angles(tmp_path):
    """The released class takes 10000 where its file has no key; the file has one, and ours assumes it."""
    assert tiny_config().rope_parameters["rope_theta"] == 1e6
    config = tiny_config(rope_theta=500.0)
    assert config.rope_parameters["rope_theta"] == 500.0
    config.save_pretrained(tmp_path)
    assert written(tmp_path)["rope_theta"] == 500.0
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters["rope_theta"] == 500.0
    both = tiny_config(rope_theta=1.0, rope_parameters={"rope_type": "default", "rope_theta": 70.0})
    assert both.rope_parameters["rope_theta"] == 70.0
    scaled = tiny_config(rope_theta=50.0, rope_scaling={"rope_type": "linear", "factor": 2.0})
    assert scaled.rope_parameters == {"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0}


def test_depth_and_layers():
    config = tiny_config(num_shared_layers=3, num_modality_layers=2)
    assert (config.num_hidden_layers, len(config.layer_types), config.num_cache_layers) == (5, 5, 7)
    config = tiny_config(num_shared_layers=None, num_hidden_layers=5, num_modality_layers=1)
    assert (config.num_shared_layers, config.num_cache_layers) == (4, 6)
    config = SplitLayerQwen3Config(num_modality_layers=0)
    assert (config.num_shared_layers, config.num_hidden_layers, config.num_cache_layers) == (36, 36, 36)


def test_view_for_caches_and_decoding():
    config = tiny_config(use_sliding_window=True, sliding_window=4, max_window_layers=3)
    view = config.get_text_config(decoder=True)
    assert config.layer_types == ["full_attention"] * 3 + ["sliding_attention"]
    assert view.layer_types == ["full_attention"] * 3 + ["sliding_attention", "full_attention", "sliding_attention"]
    assert (view.num_hidden_layers, view.vocab_size, view.total_vocab_size) == (6, 52, 52)
    assert (config.num_hidden_layers, config.vocab_size, config.total_vocab_size) == (4, 33, 52)
    assert view.get_text_config() is view
    for given in (config, view):
        assert len(DynamicCache(config=given)) == len(StaticCache(config=given, max_cache_len=9)) == 6
    assert len(view.per_layer_config) == 6
    assert view.to_dict() == config.to_dict()

    view.eos_token_id = 3
    assert config.eos_token_id == 3
    config.eos_token_id = 4
    assert view.eos_token_id == 4
    apart = copy.deepcopy(view)
    apart.eos_token_id = 5
    assert (config.eos_token_id, apart.num_hidden_layers) == (4, 6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 5}, r"`num_hidden_layers` \(5\) must be `num_shared_layers` \(2\)"),
        ({"num_shared_layers": 0}, "`num_shared_layers` must be at least 1"),
        ({"num_modality_layers": -1, "num_shared_layers": 4}, "`num_modality_layers` at least 0"),
        ({"channels": 3}, "`channels` must be 2"),
        ({"audio_vocab_size": 0}, "`audio_vocab_size` must be at least 1"),
        ({"modality_pad_token_id": 33}, r"`modality_pad_token_id` must be an id of 0 to 32 \(`vocab_size`\), got 33"),
        ({"sosp_token_id": -1}, "`sosp_token_id` must be an id of 0 to 32"),
        ({"eosp_token_id": 19}, r"`eosp_token_id` must be an id of 0 to 18 \(`audio_vocab_size`\), got 19"),
        ({"audio_pad_token_id": 512}, "`audio_pad_token_id` must be an id of 0 to 18"),
        ({"pad_token_id": 151643}, "`pad_token_id` must be an id of 0 to 32"),
        ({"eos_token_id": [30, 40]}, r"`eos_token_id\[1\]` must be an id of 0 to 32"),
        ({"sosp_token_id": 27}, "`sosp_token_id` and `modality_pad_token_id` must differ"),
        ({"eos_token_id": 27}, "`modality_pad_token_id` must differ"),
        ({"text_loss_weight": -1.0}, "`text_loss_weight` must be at least 0"),
        ({"audio_loss_weight": float("nan")}, "`audio_loss_weight` must be at least 0"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        tiny_config(**fields)


def test_sliding_window_without_its_place():
    with pytest.raises(ValueError, match=r"`max_window_layers`.*is needed"):
        tiny_config(use_sliding_window=True, sliding_window=4)


def test_bad_type():
    with pytest.raises(StrictDataclassFieldValidationError, match="num_modality_layers"):
        tiny_config(num_modality_layers="2")
