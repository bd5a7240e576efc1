import json

import pytest
import torch
from transformers import AutoModel

from dualspeech import FlowDecoderConfig, FlowDecoderModel
from dualspeech.modeling.conversion import convert_flow_decoder_to_hf as flow
from tests.fixture_checks import FIXTURES, check, load


def meta_state():
    content = json.loads((FIXTURES / "layouts" / "moss_flow.json").read_text())
    return {key: torch.empty(shape, device="meta") for key, shape in content["keys"]}


def cosyvoice2_state():
    """The same layout in the other geometry."""
    state = meta_state()
    for key, shape in {"input_embedding.weight": (6561, 512), "encoder.up_layer.conv.weight": (512, 512, 5)}.items():
        state[key] = torch.empty(shape, device="meta")
    return state


def shapes(state):
    return {key: tuple(value.shape) for key, value in state.items()}


@pytest.mark.parametrize(
    ("state", "config", "parameters"),
    [
        (meta_state, FlowDecoderConfig, 120_724_464),
        (cosyvoice2_state, FlowDecoderConfig.cosyvoice2, 112_549_360),
    ],
)
def test_released_sizes(state, config, parameters):
    converted = flow.convert_state(state())
    assert len(converted) == len(state()) == 1121
    derived = flow.released_config(converted)
    assert derived.to_diff_dict() == config().to_diff_dict()
    with torch.device("meta"):
        model = FlowDecoderModel(derived)
    assert shapes(model.state_dict()) == shapes(converted)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_released_rates():
    assert FlowDecoderConfig().frame_rate == 12.5 and FlowDecoderConfig.cosyvoice2().frame_rate == 25
    assert FlowDecoderConfig().max_codes == 3750


@pytest.mark.parametrize(
    ("name", "chunk_size"), [("flow.pt", 5), ("flow-chunk-5.pt", 5), ("flow-chunk-25.pt", 25), ("other.pt", 7)]
)
def test_file(tmp_path, name, chunk_size):
    state, tensors, meta = load("moss_flow")
    torch.save(state | {"epoch": 3, "step": 1200}, tmp_path / name)
    arguments = ["--checkpoint", str(tmp_path / name), "--output_dir", str(tmp_path / "out")]
    if name == "other.pt":
        arguments += ["--chunk_size", "7"]
    # heads of 16 instead of 64 are the fixture's own
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(FlowDecoderConfig, "estimator_head_dim", 16)
        flow.main(arguments)
    model, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert isinstance(model, FlowDecoderModel) and not any(info.values())
    assert (model.config.chunk_size, model.config.estimator_num_heads) == (chunk_size, 4)
    check(model.noise.table[:, :64], "noise_first64", tensors, meta)
    mel = model.eval().decode(tensors["codes"][:, :6])
    check(mel, "mel_no_prompt_offline", tensors, meta)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"optimizer": [1], "epoch": 3}, "has other entries: optimizer"),
        (lambda s: s | {"a.b": torch.zeros(1), "encoder.x": torch.zeros(1)}, "2 keys are not .*: a.b, encoder.x"),
        (lambda s: {k: v for k, v in s.items() if k != "encoder_proj.bias"}, "missing: encoder_proj.bias"),
        (lambda s: {k: v for k, v in s.items() if k != "input_embedding.weight"}, "it lacks code_embedding.weight"),
        (lambda s: s | {"decoder.estimator.final_proj.weight": torch.zeros(80, 64)}, "final_proj.weight.*shape"),
        (lambda s: s | {"encoder_proj.bias": torch.zeros(7)}, r"encoder_proj.bias \(7,\) instead of \(80,\)"),
        (lambda s: s | {"encoder_proj.bias": torch.full((80,), torch.nan)}, "encoder_proj.bias .NaN"),
        (lambda s: s | {"input_embedding.weight": torch.zeros(3)}, r"number of dimensions are code_embedding.weight"),
        (lambda s: [s], "holds a list"),
    ],
)
def test_refused(tmp_path, change, message):
    state, _, _ = load("moss_flow")
    torch.save(change(state), tmp_path / "flow.pt")
    with pytest.raises(ValueError, match=message):
        flow.convert(str(tmp_path / "flow.pt"), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["flow.pt"]


def test_other_head_sizes_are_refused():
    with pytest.raises(ValueError, match="no heads of 48"):
        flow.released_config(flow.convert_state(meta_state()), estimator_head_dim=48)


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        flow.load_flow_state_dict(tmp_path / "flow.pt")
    (tmp_path / "flow.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="weights_only=True"):
        flow.load_flow_state_dict(tmp_path / "flow.pt")
