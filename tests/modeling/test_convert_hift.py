import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel

from dualspeech import HiFTConfig, HiFTModel
from dualspeech.modeling.conversion import convert_hift_to_hf as hift
from tests.fixture_checks import FIXTURES, check, load

from .hift_cases import GEOMETRIES, frames_for, lively_model

GAIN, DIRECTION = "parametrizations.weight.original0", "parametrizations.weight.original1"


def older_names(state):
    return {key.replace(GAIN, "weight_g").replace(DIRECTION, "weight_v"): value for key, value in state.items()}


def folded(state):
    gained = {key.removesuffix(GAIN) for key in state if key.endswith(GAIN)}
    plain = {key: value for key, value in state.items() if not key.endswith((GAIN, DIRECTION))}
    for key in gained:
        gain, direction = state[key + GAIN], state[key + DIRECTION]
        plain[key + "weight"] = gain * direction / direction.flatten(1).norm(dim=1).view_as(gain)
    return plain


LAYOUTS = {
    "released": lambda state: state,
    "older": older_names,
    "generator": lambda state: {f"generator.{key}": value for key, value in state.items()},
    "older_generator": lambda state: {f"generator.{key}": value for key, value in older_names(state).items()},
    "folded": folded,
}


def test_released_sizes():
    keys = json.loads((FIXTURES / "layouts" / "moss_hift.json").read_text())["keys"]
    state = {key: torch.empty(shape, device="meta") for key, shape in keys}
    for layout in ("released", "older_generator"):
        converted = hift.convert_state(LAYOUTS[layout](state))
        config = hift.released_config(converted)
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in config.to_dict().items()}
        default = HiFTConfig().to_dict()
        assert plain == {name: list(value) if isinstance(value, tuple) else value for name, value in default.items()}
        with torch.device("meta"):
            model = HiFTModel(config)
        assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in converted.items()}
        assert len(converted) == 328 and config.num_mel_bins == 80 and config.num_f0_layers == 5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@torch.no_grad()
def test_layouts(tmp_path, layout, suffix):
    state, tensors, meta = load("moss_hift")
    state, file = LAYOUTS[layout](state), tmp_path / f"hift{suffix}"
    if suffix == ".pt":
        torch.save(state | {"epoch": 3, "step": 12}, file)
    else:
        save_file({key: value.contiguous() for key, value in state.items()}, file)
    hift.main(["--checkpoint", str(file), "--output_dir", str(tmp_path / "out")])
    model, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert isinstance(model, HiFTModel) and not any(info.values())
    recorded, config = meta["config"], model.config
    assert config.weight_norm == (layout != "folded")
    assert (config.hop_length, config.num_harmonics) == (recorded["hop"], recorded["nb_harmonics"] + 1)
    assert list(config.upsample_rates) == recorded["upsample_rates"]
    assert list(config.upsample_kernel_sizes) == recorded["upsample_kernel_sizes"]
    assert list(config.resblock_kernel_sizes) == recorded["resblock_kernel_sizes"]
    assert list(config.source_resblock_kernel_sizes) == recorded["source_resblock_kernel_sizes"]
    assert list(config.resblock_dilation_sizes) == recorded["resblock_dilations"]
    assert (config.istft_n_fft, config.istft_hop_length) == tuple(recorded["istft"].values())
    assert (config.upsample_initial_channel, config.f0_hidden_size) == (32, 32)
    assert (config.sine_amplitude, config.noise_amplitude) == (recorded["nsf_alpha"], recorded["nsf_sigma"])
    assert (config.voiced_threshold, config.audio_limit) == (recorded["nsf_voiced_threshold"], recorded["audio_limit"])
    assert (config.leaky_relu_slope, config.sampling_rate) == (recorded["lrelu_slope"], recorded["sampling_rate"])
    waveform = model(tensors["mel"], source=tensors["given_source"]).waveform
    check(waveform, "decoded", tensors, meta)


@torch.no_grad()
def test_fold_on_the_way(tmp_path):
    state, tensors, meta = load("moss_hift")
    torch.save(state, tmp_path / "hift.pt")
    args = ["--checkpoint", str(tmp_path / "hift.pt"), "--output_dir", str(tmp_path / "out"), "--fold_weight_norm"]
    hift.main(args)
    model, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()) and len(model.state_dict()) < len(state) == 328
    check(model(tensors["mel"], source=tensors["given_source"]).waveform, "decoded", tensors, meta)


@torch.no_grad()
def test_another_geometry():
    """Sizes that the tensors tell are read, the others are given."""
    model = lively_model("two_stages", upsample_initial_channel=12)
    state = {f"generator.{key}": value for key, value in older_names(model.state_dict()).items()}
    converted = hift.build_model(state, sampling_rate=22050)
    assert converted.config.to_dict() == model.config.to_dict() | {"architectures": converted.config.architectures}
    mel = frames_for(model, 5)
    assert torch.equal(converted(mel).waveform, model(mel).waveform)
    sizes = GEOMETRIES["odd_hop"]
    model = lively_model("odd_hop")
    names = ("upsample_rates", "istft_hop_length", "resblock_dilation_sizes", "sampling_rate")
    converted = hift.build_model(model.state_dict(), **{name: sizes[name] for name in names})
    mel = frames_for(model, 5)
    assert torch.equal(converted(mel).waveform, model(mel).waveform)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"x.y": torch.zeros(1), "conv_pre.z": torch.zeros(1)}, "2 keys are not .*: x.y, conv_pre.z"),
        (lambda s: {k: v for k, v in s.items() if k != "conv_post.bias"}, "missing: conv_post.bias"),
        (lambda s: {k: v for k, v in s.items() if not k.startswith("ups.")}, "it lacks ups.0.param"),
        (lambda s: s | {"conv_pre.bias": torch.zeros(3)}, r"conv_pre.bias \(3,\) instead of \(32,\)"),
        (lambda s: s | {"resblocks.9.convs1.0.bias": torch.zeros(4)}, "unexpected: resblocks.9.convs1.0.bias"),
        (lambda s: s | {"conv_pre.bias": torch.full((32,), torch.nan)}, "conv_pre.bias .NaN or infinite"),
        (lambda s: s | {"source_downs.0.weight": torch.zeros(16, 18, 8)}, r"kernels \[8, 6, 1\], the up-sampling by"),
        (lambda s: s | {f"generator.conv_pre.{GAIN}": s[f"conv_pre.{GAIN}"]}, "two of its keys become 'conv_pre"),
        (lambda s: s | {"optimizer": {"lr": 1}}, "other entries: optimizer"),
        (lambda s: {}, "it lacks m_source.l_linear.weight"),
    ],
)
def test_refused(tmp_path, change, message):
    state, _, _ = load("moss_hift")
    torch.save(change(state), tmp_path / "hift.pt")
    with pytest.raises(ValueError, match=message):
        hift.convert(str(tmp_path / "hift.pt"), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["hift.pt"]
