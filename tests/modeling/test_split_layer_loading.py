"""Checkpoints of the split-layer model: the released layout, Qwen3 checkpoints, heads, tied weights, adapters."""

import copy
import json
import logging

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from dualspeech import SplitLayerQwen3ForCausalLM, SplitLayerQwen3Model
from dualspeech.modeling.cache_naming import CACHE_NAME
from tests.fixture_checks import FIXTURES
from tests.modeling.split_layer_cases import IDS, random_flat, tiny_config, tiny_model, tiny_qwen3

REPORTS = ("missing_keys", "unexpected_keys", "mismatched_keys")
AUDIO_IDS = {name: IDS[name] for name in ("modality_pad_token_id", "sosp_token_id", "eosp_token_id")}
NEW = {"audio_vocab_size": 19, "audio_pad_token_id": 5, **AUDIO_IDS}
AUDIO_PARTS = ("model.audio_embed.", "model.audio_block.", "model.audio_norm.", "audio_lm_head.")


@pytest.fixture
def released_folder(tmp_path):
    """The 446 names of the release at reduced size in four bfloat16 shards, its configuration keys, no code."""
    config = tiny_config(num_shared_layers=32, num_modality_layers=4, hidden_size=16, num_attention_heads=2)
    state = SplitLayerQwen3ForCausalLM(config).bfloat16().state_dict()
    layout = [name for name, _ in json.loads((FIXTURES / "layouts" / "moss_lm.json").read_text())["keys"]]
    assert state.keys() == set(layout)
    files = {
        name: f"model-0000{1 + 4 * place // len(layout)}-of-00004.safetensors" for place, name in enumerate(layout)
    }
    for file in set(files.values()):
        shard = {name: state[name].contiguous() for name in layout if files[name] == file}
        save_file(shard, tmp_path / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": files}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    keys = (
        "vocab_size audio_vocab_size hidden_size intermediate_size num_hidden_layers num_shared_layers head_dim "
        "num_modality_layers num_attention_heads num_key_value_heads max_position_embeddings layer_types channels "
        "modality_pad_token_id sosp_token_id eosp_token_id eos_token_id pad_token_id audio_pad_token_id"
    )
    fields = {name: getattr(config, name) for name in keys.split()} | {
        "architectures": ["MossSpeechForCausalLM"],
        "model_type": "moss_speech",
        "auto_map": {
            "AutoConfig": "configuration_moss_speech.MossSpeechConfig",
            "AutoModel": "modeling_moss_speech.MossSpeechForCausalLM",
            "AutoProcessor": "processing_moss_speech.MossSpeechProcessor",
        },
        "torch_dtype": "bfloat16",
        "rope_theta": 1000000,
        "rope_scaling": None,
        "max_window_layers": None,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "transformers_version": "4.57.0.dev0",
    }
    (tmp_path / "config.json").write_text(json.dumps(fields))
    return tmp_path, state


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM])
def test_the_released_layout(released_folder, auto_class, monkeypatch, caplog):
    folder, state = released_folder
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to trust remote code"))
    with caplog.at_level(logging.WARNING):
        model, info = auto_class.from_pretrained(folder, output_loading_info=True)
    assert not caplog.records
    assert not any(info[name] for name in REPORTS)
    assert model.dtype == torch.bfloat16
    assert model.config.rope_parameters["rope_theta"] == 1000000
    prefix = "model." if auto_class is AutoModel else ""
    assert type(model) is (SplitLayerQwen3Model if prefix else SplitLayerQwen3ForCausalLM)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[prefix + name]), name
    rows = torch.tensor([[[3, 5], [28, 5], [27, 4]]])
    assert bool(torch.isfinite(model(rows)[0]).all())


def test_the_heads_are_new_on_a_base_checkpoint(released_folder, tmp_path):
    folder, _ = released_folder
    base = AutoModel.from_pretrained(folder)
    base.save_pretrained(tmp_path / "base")
    _, info = SplitLayerQwen3ForCausalLM.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert info["missing_keys"] == {"text_lm_head.weight", "audio_lm_head.weight"}
    assert not info["unexpected_keys"]


@pytest.mark.parametrize(
    "shape", [{}, {"num_shared_layers": 3, "num_modality_layers": 0}, {"tie_word_embeddings": True}]
)
def test_save_and_load(tmp_path, shape):
    model = tiny_model(**shape)
    model.save_pretrained(tmp_path)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[name] for name in REPORTS)
    flat = random_flat(model.config, 1, 6)
    with torch.no_grad():
        assert torch.equal(again(flat).logits, model(flat).logits)
        assert torch.equal(copy.deepcopy(model)(flat).logits, model(flat).logits)


def test_heads_are_tied_only_when_the_configuration_says_so():
    def pairs(model):
        yield model.text_lm_head.weight, model.model.embed_tokens.weight
        yield model.audio_lm_head.weight, model.model.audio_embed.weight

    assert not any(head is table for head, table in pairs(tiny_model()))
    assert all(head is table for head, table in pairs(tiny_model(tie_word_embeddings=True)))


def test_attention_of_every_layer_can_be_switched():
    model = copy.deepcopy(tiny_model(attn_implementation="sdpa"))
    model.set_attn_implementation("eager")
    layers = [module for module in model.modules() if hasattr(module, "layer_idx")]
    assert len(layers) == model.config.num_cache_layers
    assert {layer.config._attn_implementation for layer in layers} == {"eager"}


def text_rows(vocab_size=27):
    return torch.randint(vocab_size, (3, 11))


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_from_qwen3(tied, layers, attention):
    rope = {"rope_type": "default", "rope_theta": 700.0}
    text_model = tiny_qwen3(tie_word_embeddings=tied, rope_parameters=rope)
    text_model.set_attn_implementation(attention)
    model = SplitLayerQwen3ForCausalLM.from_text_model(text_model, layers, **NEW)
    ids = text_rows()
    assert torch.equal(model(ids).text_logits, text_model(ids).logits)
    mask = torch.ones_like(ids)
    mask[1, :4] = mask[2, :1] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)  # which Qwen3 leaves to the caller
    expected = text_model(ids, attention_mask=mask, position_ids=positions).logits
    assert torch.equal(model(ids, attention_mask=mask).text_logits, expected)
    # Left to itself, Qwen3 counts the padding.
    assert not torch.equal(text_model(ids, attention_mask=mask).logits[1, 4:], expected[1, 4:])
    cached = text_model(ids[:, :-1], use_cache=True)[CACHE_NAME]
    ours = model(ids[:, :-1], use_cache=True).cache
    expected = text_model(ids[:, -1:], **{CACHE_NAME: cached}).logits
    assert torch.equal(model(ids[:, -1:], cache=ours).text_logits, expected)

    config = model.config
    assert (config.num_shared_layers, config.num_modality_layers, config.num_hidden_layers) == (4 - layers, layers, 4)
    assert (config.vocab_size, config.audio_vocab_size, config.rope_parameters) == (33, 19, rope)
    assert (config.eos_token_id, config.pad_token_id, config.tie_word_embeddings) == (30, 31, False)
    assert config._attn_implementation == attention
    state, size = model.state_dict(), len(text_model.state_dict())
    assert len(state) == size + 2 + (11 * layers + 1 if layers else 0)
    for index in range(layers):
        for name, value in text_model.model.layers[4 - layers + index].state_dict().items():
            for block in ("text_block", "audio_block"):
                assert torch.equal(state[f"model.{block}.layers.{index}.{name}"], value)
    storages = [value.untyped_storage().data_ptr() for value in (*state.values(), *text_model.parameters())]
    assert len(set(storages)) == len(storages)
    for name in ("model.audio_embed.weight", "audio_lm_head.weight"):
        assert 0.01 < float(state[name].std()) < 0.03


@torch.no_grad()
def test_from_a_qwen3_checkpoint(tmp_path):
    text_model = tiny_qwen3(tie_word_embeddings=True).bfloat16()
    text_model.generation_config.pad_token_id = 26
    text_model.config.pad_token_id = None
    text_model.save_pretrained(tmp_path)
    text_model = AutoModelForCausalLM.from_pretrained(tmp_path)
    model = SplitLayerQwen3ForCausalLM.from_text_model(str(tmp_path), 2, vocab_size=32, audio_loss_weight=0.5, **NEW)
    assert (model.dtype, model.config.vocab_size, model.config.audio_loss_weight) == (torch.bfloat16, 32, 0.5)
    assert model.config.pad_token_id == 26
    storages = [value.untyped_storage() for value in model.state_dict().values()]
    assert len({storage.data_ptr() for storage in storages}) == len(storages)
    ids = text_rows()
    torch.testing.assert_close(model(ids).text_logits, text_model(ids).logits[..., :32])
    full = SplitLayerQwen3ForCausalLM.from_text_model(tmp_path, 2, dtype=torch.float32, **NEW)
    text_model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(full(ids).text_logits, text_model(ids).logits)
    model.save_pretrained(tmp_path / "split")
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "split", output_loading_info=True)
    assert not any(info[name] for name in REPORTS)
    assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize("shape", [{"layers": 2}, {"layers": 1, "tied": True}])
def test_stage_1_leaves_text_bit_for_bit(shape):
    """A few steps with everything but the audio parts frozen (paper, section "Frozen pre-training")."""
    text_model = tiny_qwen3(tie_word_embeddings=shape.get("tied", False))
    model = SplitLayerQwen3ForCausalLM.from_text_model(text_model, shape["layers"], **NEW).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(AUDIO_PARTS))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02, weight_decay=0.1)
    losses = []
    flat = random_flat(model.config, 2, 12)
    for _ in range(5):
        output = model(flat, labels=flat)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.audio_loss.item())
    assert losses[-1] < 0.8 * losses[0]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith(AUDIO_PARTS), name
    ids = text_rows()
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).text_logits, text_model(ids).logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_modality_layers": 4}, "`num_modality_layers` must be 0 to 3"),
        ({"num_modality_layers": -1}, "`num_modality_layers` must be 0 to 3"),
        ({"vocab_size": 40}, "`vocab_size` must be at most 33"),
        ({"device_map": "auto"}, "`device_map` is no field"),
    ],
)
def test_bad_arguments_for_qwen3(arguments, message):
    with pytest.raises(ValueError, match=message):
        SplitLayerQwen3ForCausalLM.from_text_model(tiny_qwen3(), **{"num_modality_layers": 1, **NEW, **arguments})


def test_what_is_no_qwen3(tmp_path):
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=33, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    llama.save_pretrained(tmp_path)
    for given, message in (
        (llama, "got LlamaForCausalLM"),
        (tmp_path, "got model type 'llama'"),
        (tiny_qwen3().model, "got Qwen3Model"),
        (torch.nn.Linear(1, 1), "got Linear"),
    ):
        with pytest.raises(ValueError, match=f"`text_model` must be .*{message}"):
            SplitLayerQwen3ForCausalLM.from_text_model(given, 1, **NEW)


def test_lora_on_the_audio_branch(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    base = tiny_model()
    flat = random_flat(base.config, 2, 10)
    with torch.no_grad():
        before = base(flat)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules=r"model\.audio_block\..*\.(q_proj|v_proj|up_proj)",
        modules_to_save=["audio_embed", "audio_lm_head"],
    )
    model = get_peft_model(copy.deepcopy(base), lora)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    model.train()
    adapted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(any(part in name for part in AUDIO_PARTS) for name in adapted)
    assert sum("lora_" in name for name in adapted) == 2 * 3 * 2
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        model(input_ids=flat, labels=flat).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    text = random_flat(base.config, 2, 10, speech=0.0)
    with torch.no_grad():
        after = model(input_ids=flat)
        assert torch.equal(model(input_ids=text).text_logits, base(text).text_logits)
    assert not torch.allclose(after.audio_logits, before.audio_logits, atol=1e-3)

    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    merged = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).merge_and_unload().eval()
    with torch.no_grad():
        assert torch.equal(again(input_ids=flat).logits, after.logits)
        torch.testing.assert_close(merged(flat).logits, after.logits, atol=1e-5, rtol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    plain, info = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(info[name] for name in REPORTS)
    with torch.no_grad():
        assert torch.equal(plain(flat).logits, merged(flat).logits)
