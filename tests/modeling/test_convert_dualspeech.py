"""Conversion of the released DualSpeechLM layouts: merged folder, base model with adapter, refusals."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, Phi3ForCausalLM

from dualspeech.modeling.conversion.convert_dualspeech_to_hf import convert, convert_state, main, merge_adapter
from tests.fixture_checks import FIXTURES, check, load
from tests.modeling.dualspeech_cases import fixture_inputs, fixture_text_config


def write_merged(state, meta, folder):
    folder.mkdir()
    config = fixture_text_config(meta["config"])
    config.architectures = ["Phi3ForCausalLM"]
    config.save_pretrained(folder)
    save_file(state, folder / "model.safetensors")


@pytest.fixture
def adapter_case(tmp_path):
    base, tensors, meta = load("dualspeech_adapter", "base")
    adapter, _, _ = load("dualspeech_adapter", "adapter")
    config = fixture_text_config(meta["config"])
    config.vocab_size = meta["config"]["text_model"]["base_vocab_size"]
    model = Phi3ForCausalLM(config)
    model.load_state_dict(base)
    model.save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    save_file(adapter, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(meta["config"]["adapter_config"]))
    return tmp_path, base, adapter, tensors, meta


def test_merged_folder(tmp_path):
    state, tensors, meta = load("dualspeech_lm")
    write_merged(state, meta, tmp_path / "in")
    main(
        f"--checkpoint {tmp_path}/in --output_dir {tmp_path}/out --semantic_codebook_size 50 --num_attention_heads 4".split()
    )
    model, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    check(model(**fixture_inputs(tensors, "speech"), condition="full").loss, "speech.full.loss", tensors, meta)
    assert model.config.semantic_token_offset == meta["config"]["semantic_offset"]
    assert model.config.audio_start_token_id == meta["config"]["audio_start_id"]
    assert model.generation_config.speech == {"max_codes": 398} and not model.config.condition_on_eos
    table, head = model.acoustic_model.model.embed_tokens.weight, model.acoustic_model.lm_head.weight
    assert not torch.equal(table, head)


def test_base_and_adapter(adapter_case):
    folder, base, adapter, tensors, meta = adapter_case
    merged = merge_adapter(base, adapter, meta["config"]["adapter_config"])
    for name in (name for name in tensors if name.startswith("merged.")):
        key = name.removeprefix("merged.").removeprefix("first_rows.")
        value = merged[key][:4] if "first_rows" in name else merged[key]
        check(value, name, tensors, meta)
    convert(folder / "base", folder / "out", folder / "adapter", semantic_codebook_size=50, num_attention_heads=4)
    model = AutoModel.from_pretrained(folder / "out")
    output = model(**fixture_inputs(tensors, "speech"), condition="full", output_hidden_states=True)
    check(output.loss, "loss", tensors, meta)
    check(output.semantic_loss, "lm_loss", tensors, meta)
    check(output.acoustic_loss, "acoustic_loss", tensors, meta)
    check(output.logits, "logits", tensors, meta)
    check(output.hidden_states[-1], "hidden", tensors, meta)


def test_the_released_adapter_layout_is_understood():
    """Released sizes: every key of the adapter finds its place (shapes only)."""

    adapter = json.loads((FIXTURES / "layouts" / "dualspeech_adapter.json").read_text())["keys"]
    merged = dict(json.loads((FIXTURES / "layouts" / "dualspeech_merged.json").read_text())["keys"])
    with torch.device("meta"):
        base = {k: torch.empty(s) for k, s in merged.items() if k.startswith(("model.", "lm_head"))}
        state = {key: torch.empty(shape) for key, shape in adapter}
    result = merge_adapter(base, state, {"peft_type": "LORA", "r": 16, "lora_alpha": 32})
    assert {k: list(v.shape) for k, v in result.items()} == merged
    assert len(convert_state(result)) > len(merged)  # fused acoustic projections are split


@pytest.mark.parametrize("damage", ["unknown", "missing", "shape", "scalar", "integers", "infinite"])
def test_files_that_are_not_understood_are_refused(tmp_path, damage):
    state, _, meta = load("dualspeech_lm")
    if damage == "unknown":
        state |= {"strange.weight": torch.zeros(1), "lm_decoder.more": torch.zeros(1)}
        message = "lm_decoder.more, strange.weight"
    elif damage == "missing":
        del state["lm_decoder.transformer.ln_f.bias"], state["model.norm.weight"]
        message = "language_model.model.norm.weight"
    elif damage == "shape":
        state["model.norm.weight"] = torch.zeros(3)
        message = "model.norm.weight"
    elif damage == "scalar":
        state["lm_decoder.transformer.wte.weight"] = torch.tensor(1.0)
        message = r"number of dimensions are lm_decoder.transformer.wte.weight \(\)"
    elif damage == "integers":
        state["model.norm.weight"] = state["model.norm.weight"].char()
        message = r"model.norm.weight \(torch.int8\)"
    else:
        state["model.norm.weight"] = state["model.norm.weight"] * torch.inf
        message = r"model.norm.weight \(NaN or infinite\)"
    write_merged(state, meta, tmp_path / "in")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "in", tmp_path / "out", semantic_codebook_size=50, num_attention_heads=4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"x": 2}}, "rank_pattern"),
        ({"peft_type": "IA3"}, "IA3"),
        ("lora_B", "factors"),
        ("other_prefix", "prefix"),
        ("no_base", "no base weight"),
    ],
)
def test_adapters_that_are_not_understood_are_refused(adapter_case, change, message):
    _, base, adapter, _, meta = adapter_case
    config, adapter = dict(meta["config"]["adapter_config"]), dict(adapter)
    if isinstance(change, dict):
        config |= change
    elif change == "lora_B":
        del adapter[next(k for k in adapter if "lora_B" in k)]
    elif change == "other_prefix":
        adapter["model.x.weight"] = torch.zeros(1)
    else:
        base = {k: v for k, v in base.items() if "o_proj" not in k}
    with pytest.raises(ValueError, match=message):
        merge_adapter(base, adapter, config)


def test_an_adapter_needs_its_settings(adapter_case):
    folder, *_ = adapter_case
    (folder / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        convert(folder / "base", folder / "out", folder / "adapter")
    assert not (folder / "out").exists()
