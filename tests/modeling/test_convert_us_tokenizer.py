"""Released USTokenizer files become our checkpoints; files that are not understood are refused and write nothing."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoFeatureExtractor, LlamaConfig, LlamaForCausalLM, WhisperConfig, WhisperModel

from dualspeech import UsTokenizerConfig, UsTokenizerForUnderstanding, UsTokenizerModel
from dualspeech.modeling.conversion.convert_us_tokenizer_to_hf import convert, convert_state_dict, infer_config
from dualspeech.modeling.us_tokenizer_codec import UsTokenizerAdapter
from tests.fixture_checks import FIXTURES, check, load


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Folder with a released file of the fixture's trained part, its Whisper and its text model."""
    folder = tmp_path_factory.mktemp("released")
    state, tensors, meta = load("ust_full")
    sizes = meta["config"]
    frozen = ("speech_encoder.", "llama_model.")
    trained = {key: value for key, value in state.items() if not key.startswith(frozen)}
    torch.save({"model": trained, "optimizer": {"state": {}}, "config": {"lr": 3e-5}, "epoch": 3}, folder / "x.pth")
    encoder = {key: value for key, value in sizes["speech_encoder"].items() if key != "model"}
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 8, "vocab_size": 60}
    special = {"pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 2}
    whisper = WhisperModel(WhisperConfig(**encoder, **decoder, **special))
    prefix = "speech_encoder."
    whisper.encoder.load_state_dict({key[len(prefix) :]: state[key] for key in state if key.startswith(prefix)})
    whisper.save_pretrained(folder / "whisper")
    text = {key: value for key, value in sizes["text_model"].items() if key != "model"}
    LlamaForCausalLM(LlamaConfig(**text)).save_pretrained(folder / "llama")
    return folder, state, tensors, meta


def check_recorded_codes(tokenizer, tensors, meta):
    encoded = tokenizer.encode_waveform(tensors["waveform.3"][None], output_vectors=True)
    check(encoded.vectors, "z.3", tensors, meta)
    check(encoded.codes, "codes.3", tensors, meta)


@pytest.mark.parametrize("with_text_model", [False, True])
def test_converted_file_gives_the_recorded_codes(released, tmp_path, with_text_model):
    folder, state, tensors, meta = released
    text_model = str(folder / "llama") if with_text_model else None
    convert(str(folder / "x.pth"), str(folder / "whisper"), tmp_path / "out", text_model)
    cls = UsTokenizerForUnderstanding if with_text_model else UsTokenizerModel
    model, info = cls.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    check_recorded_codes(model.us_tokenizer if with_text_model else model, tensors, meta)
    check_recorded_codes(UsTokenizerModel.from_pretrained(tmp_path / "out"), tensors, meta)
    if with_text_model:
        assert torch.equal(model.adapter.conv.weight, state["llama_conv.conv.weight"])
        model.load_text_model()
    features = AutoFeatureExtractor.from_pretrained(tmp_path / "out")(
        tensors["waveform.3"].numpy(), sampling_rate=16000, return_tensors="pt"
    )["input_features"]
    check(features[0, :, : tensors["log_mel.3"].shape[1]], "log_mel.3", tensors, meta)


@pytest.mark.parametrize(("positions", "seconds"), [(100, 2), (1550, 31), (75, None)])
def test_an_encoder_of_another_length(released, tmp_path, positions, seconds):
    folder, _, _, _ = released
    config = WhisperConfig.from_pretrained(folder / "whisper", max_source_positions=positions)
    WhisperModel(config).save_pretrained(tmp_path / "whisper")
    arguments = str(folder / "x.pth"), str(tmp_path / "whisper"), tmp_path / "out"
    if seconds is None:
        with pytest.raises(ValueError, match="has 75 positions; a multiple of 50 is accepted"):
            convert(*arguments)
        assert not (tmp_path / "out").exists()
        return
    convert(*arguments)
    model = UsTokenizerModel.from_pretrained(tmp_path / "out")
    assert model.config.max_seconds == min(30, seconds)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    samples = torch.randn(16000)
    features = extractor(samples.numpy(), sampling_rate=16000, return_tensors="pt")["input_features"]
    encoded = model.encode(features, [16000])
    assert encoded.codes.shape == (1, 25)
    assert torch.equal(encoded.codes, model.encode_waveform(samples[None]).codes)


def test_nothing_is_read_for_an_output_that_is_not_free(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("x")
    with pytest.raises(ValueError, match="exists already"):
        convert("absent.pth", "absent", tmp_path / "out")


def test_a_trained_speech_encoder_in_the_file_wins(released, tmp_path):
    folder, state, tensors, meta = released
    torch.save(state, tmp_path / "whole.pth")  # text model included, which is known and left out
    whisper = WhisperModel.from_pretrained(folder / "whisper")
    whisper.encoder.layer_norm.weight.data.fill_(7.0)
    whisper.save_pretrained(tmp_path / "whisper")
    convert(str(tmp_path / "whole.pth"), str(tmp_path / "whisper"), tmp_path / "out")
    check_recorded_codes(UsTokenizerModel.from_pretrained(tmp_path / "out"), tensors, meta)


def test_the_codebook_is_transposed():
    state, _, meta = load("ust_codec")
    assert meta["config"]["codebook_size"] != meta["config"]["code_dim"]
    converted = convert_state_dict(state)
    for name in ("embed", "embed_avg"):
        assert torch.equal(converted[f"quantizer.{name}"], state[f"vq.codebook.layers.0.{name}"].T)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"add": "extra.weight"}, "1 keys are not understood: extra.weight"),
        ({"add": "codec_encoder.conv_blocks.0.norm.weight"}, "codec_encoder.conv_blocks.0.norm.weight"),
        ({"drop": "downsampling_conv.conv.bias"}, "missing: codec_encoder.downsample.bias"),
        ({"drop": "vq.codebook.layers.0.embed"}, "not a USTokenizer checkpoint, it lacks quantizer.embed"),
        (
            {"scalar": "downsampling_conv.conv.weight"},
            r"number of dimensions are codec_encoder.downsample.weight \(\)",
        ),
        ({"resize": "upsampling_conv.deconv.weight"}, "other shapes: codec_decoder.upsample.weight"),
        ({"resize": "downsampling_conv.conv.weight"}, "has width 16, the checkpoint 17"),
    ],
)
def test_files_that_are_not_understood_write_nothing(released, tmp_path, change, message):
    folder, state, _, _ = released
    state = {key: value for key, value in state.items() if not key.startswith("llama_model.")}
    if "add" in change:
        state[change["add"]] = torch.ones(1)
    if "drop" in change:
        state.pop(change["drop"])
    if "scalar" in change:
        state[change["scalar"]] = torch.tensor(1.0)
    if "resize" in change:
        old = state[change["resize"]]
        state[change["resize"]] = torch.zeros(old.shape[0], old.shape[1] + 1, old.shape[2])
    torch.save({"model": state}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=message):
        convert(str(tmp_path / "bad.pth"), str(folder / "whisper"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.pth"]


def test_a_text_model_of_another_width_is_refused(released, tmp_path):
    folder, _, _, meta = released
    text = {key: value for key, value in meta["config"]["text_model"].items() if key != "model"}
    LlamaConfig(**{**text, "hidden_size": 28}).save_pretrained(tmp_path / "llama")
    with pytest.raises(ValueError, match=r"other shapes: adapter.linear.weight \(24, 16\) instead of \(28, 16\)"):
        convert(str(folder / "x.pth"), str(folder / "whisper"), tmp_path / "out", str(tmp_path / "llama"))
    assert not (tmp_path / "out").exists()


def test_released_layout_is_the_default_configuration():
    layout = json.loads((FIXTURES / "layouts" / "us_tokenizer.json").read_text())
    converted = convert_state_dict({key: torch.empty(shape, device="meta") for key, shape in layout["keys"]})
    shapes = {key: tuple(value.shape) for key, value in converted.items()}
    config = UsTokenizerConfig()
    with torch.device("meta"):
        model, adapter = UsTokenizerModel(config), UsTokenizerAdapter(config.code_dim, 2048)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items() if not key.startswith("encoder.")}
    expected.update({f"adapter.{key}": tuple(value.shape) for key, value in adapter.state_dict().items()})
    assert shapes == expected
    inferred = infer_config(converted, config.encoder_config)
    for name in ("hidden_size", "code_dim", "codebook_size", "num_blocks", "num_residual_units", "kernel_size"):
        assert getattr(inferred, name) == getattr(config, name), name
    assert inferred.downsample == 2 and list(inferred.dilations) == [1, 1]


@pytest.mark.slow
def test_command_line(released, tmp_path):
    folder, _, tensors, meta = released
    module = "dualspeech.modeling.conversion.convert_us_tokenizer_to_hf"
    arguments = ["--checkpoint", folder / "x.pth", "--whisper", folder / "whisper", "--output_dir", tmp_path / "out"]
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True, cwd=FIXTURES.parent.parent)
    check_recorded_codes(UsTokenizerModel.from_pretrained(tmp_path / "out"), tensors, meta)
