import json
import os

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel

from dualspeech.modeling.conversion import convert_campplus_to_hf as campplus
from dualspeech.modeling.conversion import convert_wavtokenizer_to_hf as wavtokenizer
from dualspeech.modeling.conversion.checkpoint_io import load_foreign_state_dict
from dualspeech.modeling.modeling_campplus import CamPPlusModel
from dualspeech.modeling.modeling_wavtokenizer import WavTokenizerModel
from tests.fixture_checks import FIXTURES, check, load

RELEASED = "DUALSPEECH_WAVTOKENIZER_40"  # environment variable: path of the released file, for a check by hand
FIRST_CONV = "feature_extractor.encodec.encoder.model.0.conv.conv."
DISCRIMINATOR = {
    "multiperioddisc.discriminators.0.convs.0.bias": torch.zeros(2),
    "multiresddisc.discriminators.1.conv_post.bias": torch.zeros(2),
    "dac.discriminators.2.bias": torch.zeros(2),
    "dacdiscriminator.x": torch.zeros(1),
    "melspec_loss.mel_spec.mel_scale.fb": torch.zeros(2, 2),
    "feature_extractor.encodec.decoder.model.1.lstm.bias_ih_l0": torch.zeros(2),
}


def meta_state(layout, unused=False):
    content = json.loads((FIXTURES / "layouts" / f"{layout}.json").read_text())
    keys = content["keys"] + (content["unused"] if unused else [])
    state = {key: torch.empty(shape, device="meta") for key, shape, *_ in keys}
    return {key: torch.hann_window(*v.shape) if key.endswith("istft.window") else v for key, v in state.items()}


def shapes(state):
    return {key: tuple(value.shape) for key, value in state.items()}


def port_layout(state, nested):
    """The layout of transformers' own port, made from a released one."""
    prefix = "encoder_model." if nested else ""
    port = {}
    for key, value in state.items():
        name = key.replace("feature_extractor.encodec.encoder.model.", f"{prefix}encoder.layers.")
        name = name.replace(".conv.conv.", ".conv.")
        name = name.replace("weight_g", "parametrizations.weight.original0")
        name = name.replace("weight_v", "parametrizations.weight.original1")
        name = name.replace(
            "feature_extractor.encodec.quantizer.vq.layers.0._codebook.", f"{prefix}quantizer.codebook."
        )
        port[name.replace("head.out.", "head.linear.")] = value
    del port["head.istft.window"]
    return port


@pytest.mark.parametrize(("layout", "ratios", "rate"), [("40", [6, 5, 5, 4], 40.0), ("75", [8, 5, 4, 2], 75.0)])
def test_wavtokenizer_released_sizes(layout, ratios, rate):
    converted = wavtokenizer.convert_state(meta_state(f"wavtokenizer_{layout}", unused=True))
    config = wavtokenizer.released_config(converted)
    with torch.device("meta"):
        model = WavTokenizerModel(config)
    assert shapes(model.state_dict()) == shapes(converted)
    assert (list(config.upsampling_ratios), config.frame_rate) == (ratios, rate)
    default = type(config)(upsampling_ratios=ratios).to_diff_dict()
    assert config.to_diff_dict() == default


@pytest.mark.parametrize("layout", ["lightning", "plain", "port", "nested", "legacy_weight_norm"])
def test_wavtokenizer_layouts(tmp_path, layout):
    state, tensors, meta = load("wavtokenizer")
    file = tmp_path / "model.ckpt"
    if layout == "lightning":
        torch.save({"state_dict": state | DISCRIMINATOR, "epoch": 3, "optimizer_states": [{}]}, file)
    elif layout == "plain":
        torch.save(state, file)
    elif layout == "legacy_weight_norm":
        port = port_layout(state, nested=False)
        port = {k.replace("parametrizations.weight.original0", "weight_g"): v for k, v in port.items()}
        port = {k.replace("parametrizations.weight.original1", "weight_v"): v for k, v in port.items()}
        torch.save(port, file)
    else:
        file = tmp_path / "model.safetensors"
        save_file(port_layout(state, nested=layout == "nested"), file)
    wavtokenizer.main(["--checkpoint", str(file), "--output_dir", str(tmp_path / "out")])
    model, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert isinstance(model, WavTokenizerModel) and not any(info.values())
    sizes = {name: value for name, value in meta["config"].items() if name not in ("hop_length", "n_fft")}
    assert {name: getattr(model.config, name) for name in sizes} == sizes
    assert (model.config.hop_length, model.config.n_fft) == (meta["config"]["hop_length"], meta["config"]["n_fft"])
    check(model.eval().encode(tensors["waveform.1"][None, None]).audio_codes, "codes.1", tensors, meta)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"backbone2.x": torch.zeros(1), "a.b": torch.zeros(1)}, "2 keys are not .*: backbone2.x, a.b"),
        (
            lambda s: {k: v for k, v in s.items() if "final_layer" not in k},
            "missing: backbone.final_layer_norm.weight",
        ),
        (lambda s: {k: v for k, v in s.items() if k != "backbone.embed.weight"}, "it lacks backbone.embed.weight"),
        (lambda s: s | {"backbone.x": torch.zeros(1)}, "unexpected: backbone.x"),
        (lambda s: s | {"head.istft.window": torch.ones(480)}, "not the periodic Hann window"),
        (lambda s: s | {"head.istft.window": torch.tensor(1.0)}, "not the periodic Hann window"),
        (lambda s: s | {"head.out.weight": torch.tensor(1.0)}, r"number of dimensions are head.linear.weight \(\)"),
        (lambda s: s | {f"{FIRST_CONV}weight_v": torch.ones(3)}, "number of dimensions are encoder.layers.0.conv.par"),
        (lambda s: s | {"backbone.embed.weight": s["backbone.embed.weight"].char()}, "backbone.embed.weight .*int8"),
        (lambda s: s | {"head.out.weight": torch.zeros(402, 64)}, "frames of 400 samples"),
        (lambda s: s | {"backbone.norm.shift.weight": torch.zeros(5, 64)}, r"shift.weight \(5, 64\)"),
    ],
)
def test_wavtokenizer_refused(tmp_path, change, message):
    state, _, _ = load("wavtokenizer")
    torch.save({"state_dict": change(state)}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=message):
        wavtokenizer.convert(str(tmp_path / "model.ckpt"), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]


@pytest.mark.skipif(RELEASED not in os.environ, reason=f"{RELEASED} does not name a released 40-token checkpoint")
def test_wavtokenizer_released_codes():
    """Codes of a tone that transformers' own port records for large-unify-40token."""
    model = wavtokenizer.build_model(load_foreign_state_dict(os.environ[RELEASED], entry="state_dict"))
    tone = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(12000, dtype=torch.float64) / 24000)
    codes = model.encode(tone[None, None].float()).audio_codes[0, 0].tolist()
    assert len(codes) == 20
    assert codes[:10] == [1323, 1442, 3524, 2056, 3229, 1723, 2785, 1389, 3144, 1723]


@pytest.mark.parametrize("size", [192, 512])
def test_campplus_released_sizes(size):
    state = meta_state(f"campplus_{size}")
    config = campplus.released_config(state)
    with torch.device("meta"):
        model = CamPPlusModel(config)
    assert shapes(model.state_dict()) == shapes(state)
    assert config.to_diff_dict() == type(config)(embedding_size=size).to_diff_dict()


def test_campplus_file(tmp_path):
    state, tensors, meta = load("campplus")
    torch.save(state, tmp_path / "campplus.bin")
    campplus.main(["--checkpoint", str(tmp_path / "campplus.bin"), "--output_dir", str(tmp_path / "out")])
    model, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert isinstance(model, CamPPlusModel) and not any(info.values())
    assert {name: getattr(model.config, name) for name in meta["config"]} == meta["config"]
    check(model.eval()(tensors["features.2"]).embeddings, "embeddings.2", tensors, meta)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"classifier.weight": torch.zeros(2)}, "1 keys are not understood: classifier.weight"),
        (lambda s: {k: v for k, v in s.items() if "head" not in k}, "it lacks head.conv1.weight"),
        (lambda s: {k: v for k, v in s.items() if k != "head.bn2.bias"}, "missing: head.bn2.bias"),
        (lambda s: s | {"head.conv1.weight": torch.tensor(1.0)}, r"number of dimensions are head.conv1.weight \(\)"),
        (lambda s: s | {"head.bn2.bias": s["head.bn2.bias"] * torch.nan}, r"head.bn2.bias \(NaN or infinite\)"),
        (lambda s: s | {"head.bn1.bias": torch.zeros(3)}, r"other shapes: head.bn1.bias \(3,\)"),
    ],
)
def test_campplus_refused(tmp_path, change, message):
    state, _, _ = load("campplus")
    torch.save(change(state), tmp_path / "campplus.bin")
    with pytest.raises(ValueError, match=message):
        campplus.convert(str(tmp_path / "campplus.bin"), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["campplus.bin"]
