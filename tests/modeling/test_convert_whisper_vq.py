import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoFeatureExtractor, AutoModel

from dualspeech import MossSpeechFeatureExtractor, WhisperVqConfig, WhisperVqModel
from dualspeech.modeling.conversion import convert_whisper_vq_to_hf as converter
from tests.fixture_checks import FIXTURES, check, load

from .whisper_vq_cases import recorded_model, recording, released_config, tiny_model

RELEASED = {  # config.json of MOSS-Speech's codec; GLM-4-Voice differs in three fields
    "d_model": 1280,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "encoder_layers": 32,
    "num_mel_bins": 128,
    "max_source_positions": 1500,
    "pooling_kernel_size": 4,
    "pooling_type": "avg",
    "pooling_position": 16,
    "quantize_vocab_size": 16384,
    "quantize_position": 16,
    "quantize_encoder_only": True,
    "quantize_causal_encoder": True,
    "quantize_causal_block_size": 200,
    "quantize_ema_decay": 0.99,
    "quantize_restart_interval": 100,
    "quantize_commit_coefficient": 0.25,
    "quantize_loss_scale": 10.0,
    "encoder_causal_attention": True,
    "encoder_causal_convolution": True,
    "activation_function": "gelu",
    "scale_embedding": False,
    "dropout": 0.0,
    "model_type": "whisper",
    "architectures": ["WhisperVQEncoder"],
}
GLM = RELEASED | {"quantize_causal_encoder": False, "encoder_causal_attention": False}


def training_module(state, layers):
    """The encoder under its prefix, amid what the released file also holds; and the keys of that."""
    surplus = [
        f"encoder.layers.{layer}.{name}" for layer in layers for name in ("fc1.weight", "self_attn.q_proj.bias")
    ]
    surplus += ["encoder.layer_norm.weight", "encoder.layer_norm.bias", "proj_out.weight"]
    surplus += ["decoder.embed_tokens.weight", "decoder.layers.0.fc1.bias", "decoder.layer_norm.weight"]
    encoder = {key if key.startswith("encoder.") else f"encoder.{key}": value for key, value in state.items()}
    return encoder | {key: torch.zeros(2) for key in surplus}, surplus


def write_folder(folder, state, config, shards=1):
    """A repository as released."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    state = {key: value.contiguous().clone() for key, value in state.items()}
    if shards == 1:
        save_file(state, folder / "model.safetensors")
        return
    weight_map = {key: f"model-{number % shards:05d}.safetensors" for number, key in enumerate(state)}
    for name in set(weight_map.values()):
        save_file({key: state[key] for key in state if weight_map[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("shards", [1, 3])
def test_codec_repository(tmp_path, capsys, shards):
    recorded, tensors, meta = recorded_model()
    state, surplus = training_module(load("moss_codec_encoder")[0], layers=(2, 3))
    write_folder(tmp_path / "codec", state, released_config(recorded), shards)
    converter.main(["--checkpoint", str(tmp_path / "codec"), "--output_dir", str(tmp_path / "out")])
    report = capsys.readouterr().out
    assert f"{len(surplus)} tensors" in report and all(f"  {key}\n" in report for key in surplus)
    model, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert isinstance(model, WhisperVqModel) and not any(info.values())
    assert (model.config.encoder_layers, model.config.attention_mode) == (2, "causal")
    check(model.eval().encode(tensors["features"]).codes, "codes", tensors, meta)

    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    assert isinstance(extractor, MossSpeechFeatureExtractor)
    batch = extractor(tensors["waveform.5"], sampling_rate=16000, return_tensors="pt")
    codes = model.encode(batch["input_features"], batch["attention_mask"], batch["num_pieces"]).codes
    check(codes[0], "waveform_codes.5", tensors, meta)


def test_glm_repository(tmp_path):
    """Keys without a prefix, and a block size of its own."""
    model = tiny_model(attention_mode="block", quantize_causal_block_size=12)
    write_folder(tmp_path / "glm", model.state_dict(), released_config(model))
    assert converter.convert(str(tmp_path / "glm"), str(tmp_path / "out")) == []
    loaded = AutoModel.from_pretrained(tmp_path / "out").eval()
    names = (*converter.SAME_FIELDS, "encoder_layers", "attention_mode")
    assert {name: getattr(loaded.config, name) for name in names} == {
        name: getattr(model.config, name) for name in names
    }
    waveform = recording(40000)[None]
    assert torch.equal(loaded.encode_waveform(waveform).codes, model.encode_waveform(waveform).codes)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    assert (extractor.feature_size, extractor.chunk_length) == (16, 2)


def test_weights_and_config_in_different_places(tmp_path):
    model = tiny_model()
    torch.save(model.state_dict(), tmp_path / "encoder.pt")
    (tmp_path / "released.json").write_text(json.dumps(released_config(model)))
    arguments = [str(tmp_path / "encoder.pt"), str(tmp_path / "out")]
    with pytest.raises(ValueError, match=r"config: '.*config.json' cannot be read"):
        converter.convert(*arguments)
    assert not (tmp_path / "out").exists()
    converter.convert(*arguments, config=str(tmp_path / "released.json"))
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("released", [RELEASED, GLM])
def test_released_sizes(released):
    layout = json.loads((FIXTURES / "layouts" / "moss_codec_encoder.json").read_text())
    state = {key: torch.empty(shape, device="meta") for key, shape, *_ in layout["keys"]}
    surplus = {f"encoder.layers.{layer}.fc1.bias": torch.empty(5120, device="meta") for layer in range(16, 32)}
    surplus |= {"decoder.layers.0.fc1.bias": torch.empty(5120, device="meta")}
    selected, left_out = converter.select_keys(state | surplus, released)
    config = converter.config_from_released(released)
    with torch.device("meta"):
        model = WhisperVqModel(config)
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in selected.items()}
    assert left_out == list(surplus) and len(selected) == 249
    mode = {} if released is RELEASED else {"attention_mode": "block"}
    assert config.to_diff_dict() == WhisperVqConfig(**mode).to_diff_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"encoder.adapter.weight": torch.zeros(1)}, "unexpected: adapter.weight"),
        (lambda s: s | {"encoder.layers.4.fc1.bias": torch.zeros(1)}, "unexpected: layers.4.fc1.bias"),
        (lambda s: s | {"encoder.layers.1.fc3.bias": torch.zeros(1)}, "unexpected: layers.1.fc3.bias"),
        (
            lambda s: {k: v for k, v in s.items() if k not in ("encoder.codebook.weight", "encoder.ema_count")},
            "missing: ema_count, codebook.weight|missing: codebook.weight, ema_count",
        ),
        (
            lambda s: {k.replace("encoder.", "model."): v for k, v in s.items()},
            r"missing: .*unexpected: .*model\.conv1",
        ),
        (lambda s: s | {"encoder.conv1.bias": torch.zeros(3)}, r"other shapes: conv1.bias \(3,\) instead of \(24,\)"),
        (lambda s: s | {"encoder.conv1.bias": torch.full((24,), torch.nan)}, r"conv1.bias \(NaN or infinite\)"),
        (lambda s: s | {"encoder.conv1.bias": torch.zeros(24, dtype=torch.int8)}, "conv1.bias .*int8"),
    ],
)
def test_refused_weights(tmp_path, change, message):
    model = tiny_model()
    state = change({f"encoder.{key}": value for key, value in model.state_dict().items()})
    write_folder(tmp_path / "codec", state, released_config(model))
    with pytest.raises(ValueError, match=message):
        converter.convert(str(tmp_path / "codec"), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["codec"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_model": None, "quantize_position": None}, "it lacks d_model, quantize_position"),
        ({"encoder_causal_convolution": False}, "encoder_causal_convolution must be True, got False"),
        ({"quantize_encoder_only": False}, "quantize_encoder_only must be True"),
        ({"scale_embedding": True}, "scale_embedding must be False"),
        ({"quantize_position": 33}, "quantize_position must be between 1 and encoder_layers=32, got 33"),
        ({"pooling_position": 8}, "pooling_position must equal quantize_position=16, got 8"),
        ({"quantize_causal_encoder": False}, "quantize_causal_encoder must equal encoder_causal_attention=True"),
        (
            {"quantize_causal_encoder": False, "encoder_causal_attention": False, "quantize_causal_block_size": None},
            "it lacks quantize_causal_block_size",
        ),
    ],
)
def test_refused_config(fields, message):
    with pytest.raises(ValueError, match=message):
        converter.config_from_released(RELEASED | fields)


@pytest.mark.parametrize("content", ["[1]", "{"])
def test_refused_config_file(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config: .*config.json' (holds a list|cannot be read)"):
        converter.read_released_config(tmp_path / "config.json")


def test_no_feature_extractor_for_broken_seconds():
    config = WhisperVqConfig(max_source_positions=60)
    assert converter.feature_extractor_of(config) is None
