"""AcousticGPT: recorded outputs, a naive reference, caches, masks, checkpoints, bad input."""

import json

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DynamicCache, StaticCache

from dualspeech.configuration.configuration_acoustic_gpt import AcousticGPTConfig
from dualspeech.modeling.conversion.acoustic_gpt_keys import RELEASED_ACOUSTIC_RULES, acoustic_sizes
from dualspeech.modeling.conversion.checkpoint_io import convert_keys
from dualspeech.modeling.growing_cache import GrowingCache
from dualspeech.modeling.modeling_acoustic_gpt import AcousticGPTForCausalLM, AcousticGPTModel
from tests.fixture_checks import FIXTURES, check, load
from tests.modeling.acoustic_gpt_cases import CASES, naive_logits, random_ids, tiny_config, tiny_model

CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def released_model():
    """The model of the fixture, built from the released names."""
    state, tensors, meta = load("acoustic_gpt")
    config = AcousticGPTConfig(**acoustic_sizes(state), num_attention_heads=meta["config"]["num_attention_heads"])
    model = AcousticGPTForCausalLM(config).eval()
    model.load_state_dict(convert_keys(state, RELEASED_ACOUSTIC_RULES))
    return model, tensors, meta


def condition_of(model, batch, length):
    return torch.randn(batch, length, model.config.hidden_size)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("mask", ["full", "question", "answer"])
def test_recorded_states_logits_and_loss(mask, attention):
    model, tensors, meta = released_model()
    model.set_attn_implementation(attention)
    ids, visible = tensors["acoustic_ids"], tensors[f"condition_mask.{mask}"]
    labels = ids[:, 1:].masked_fill(ids[:, 1:] == model.config.pad_token_id, -100)
    hidden = model.model(tensors["condition"], visible, ids[:, :-1]).last_hidden_state
    output = model(tensors["condition"], visible, labels=labels)
    check(hidden, f"hidden.{mask}", tensors, meta)
    check(output.logits, f"logits.{mask}", tensors, meta)
    check(output.loss, f"loss.{mask}", tensors, meta)


def test_recorded_gradients():
    model, tensors, meta = released_model()
    labels = tensors["acoustic_ids"][:, 1:]
    labels = labels.masked_fill(labels == model.config.pad_token_id, -100)
    model(tensors["condition"], tensors["condition_mask.answer"], labels=labels).loss.backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    attention = [ours[f"model.layers.0.self_attn.{name}_proj.weight"] for name in "qkv"]
    check(torch.cat(attention), "grad.lm_decoder.transformer.h.0.attn.c_attn.weight", tensors, meta)
    for released, name in (
        ("lm_decoder.pos_condition", "model.embed_condition_positions"),
        ("lm_decoder.transformer.wte", "model.embed_tokens"),
        ("gpt_head", "lm_head"),
    ):
        check(ours[f"{name}.weight"], f"grad.{released}.weight", tensors, meta)


def test_released_layout_at_its_size():
    layout = json.loads((FIXTURES / "layouts" / "dualspeech_merged.json").read_text(encoding="utf-8"))
    shapes = {key: shape for key, shape in layout["keys"] if key.startswith(("lm_decoder.", "gpt_head."))}
    assert len(shapes) == 78
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    with torch.device("meta"):
        model = AcousticGPTForCausalLM(AcousticGPTConfig(**acoustic_sizes(state)))
    converted = convert_keys(state, RELEASED_ACOUSTIC_RULES)
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert sum(p.numel() for p in model.model.parameters()) == pytest.approx(83.97e6, rel=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_equals_the_naive_model(case, attention):
    model = tiny_model(**CASES[case])
    model.set_attn_implementation(attention)
    condition, visible = condition_of(model, 2, 5), torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 1, 0]])
    labels = random_ids(model.config, 2, 4)
    inputs = model._targets(labels)[1].view(2, -1, model.config.num_codebooks)
    for mask in (None, visible):
        logits = model(condition, mask, labels=labels).logits.view(2, inputs.shape[1], -1, model.config.vocab_size)
        rows = torch.ones_like(visible) if mask is None else mask
        for row in range(2):
            expected = naive_logits(model, condition[row], rows[row], inputs[row])
            torch.testing.assert_close(logits[row], expected, **CLOSE)


@pytest.mark.parametrize("chunks", [(1, 1, 1, 1, 1, 1), (2, 3, 1), (1, 5)])
@pytest.mark.parametrize("cache", ["default", "dynamic", "static", "growing"])
@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_cached_calls_equal_one_pass(case, cache, chunks):
    model = tiny_model(**CASES[case])
    condition, ids = condition_of(model, 2, 4), random_ids(model.config, 2, 6, end=False)
    masks = [torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]), torch.ones(2, 4)]
    for mask in masks:
        past = {
            "default": lambda: None,
            "dynamic": lambda: DynamicCache(config=model.config),
            "static": lambda: StaticCache(config=model.config, max_cache_len=12),
            "growing": lambda: GrowingCache(model.config, block=3),
        }[cache]()
        expected = model(condition, mask, ids, use_cache=False)
        assert expected.past_key_values is None
        logits, start = [], 0
        for length in chunks:
            output = model(
                condition if start == 0 else None,
                mask,
                ids[:, start : start + length],
                past_key_values=past,
                use_cache=True,
            )
            past, start = output.past_key_values, start + length
            logits.append(output.logits)
        torch.testing.assert_close(torch.cat(logits, dim=1), expected.logits, **CLOSE)


def test_position_ids_take_the_place_of_the_mask():
    model = tiny_model()
    condition, ids = condition_of(model, 2, 4), random_ids(model.config, 2, 3)
    expected = model(condition, input_ids=ids).logits
    first = model(condition, input_ids=ids[:, :2])
    last = model(input_ids=ids[:, 2:], position_ids=torch.tensor([[2]]), past_key_values=first.past_key_values)
    torch.testing.assert_close(last.logits, expected[:, 2:], **CLOSE)


@pytest.mark.parametrize("case", ["paper", "causal"])
def test_a_mask_removes_keys_and_never_moves_positions(case):
    model = tiny_model(**CASES[case])
    condition, ids = condition_of(model, 1, 6), random_ids(model.config, 1, 4)
    masked_tail = model(condition, torch.tensor([[1, 1, 1, 1, 0, 0]]), ids).logits
    torch.testing.assert_close(masked_tail, model(condition[:, :4], input_ids=ids).logits, **CLOSE)
    masked_head = model(condition, torch.tensor([[0, 0, 1, 1, 1, 1]]), ids).logits
    kept = model(condition[:, 2:], input_ids=ids, condition_position_ids=torch.arange(2, 6)[None]).logits
    torch.testing.assert_close(masked_head, kept, **CLOSE)
    assert not torch.allclose(masked_head, model(condition[:, 2:], input_ids=ids).logits, atol=1e-2)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", ["paper", "causal"])
def test_hidden_condition_positions_never_give_nan(case, attention):
    model = tiny_model(**CASES[case])
    model.set_attn_implementation(attention)
    condition = condition_of(model, 2, 4).requires_grad_()
    output = model(condition, torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0]]), labels=random_ids(model.config, 2, 3))
    output.loss.backward()
    assert output.logits.isfinite().all() and condition.grad.isfinite().all()
    assert condition.grad[0, 3].abs().sum() > 0 and condition.grad[1].abs().sum() == 0


@pytest.mark.parametrize("case", CASES)
def test_sdpa_equals_eager(case):
    model = tiny_model(**CASES[case])
    condition, labels = condition_of(model, 3, 5), random_ids(model.config, 3, 4)
    mask = torch.ones(3, 5).tril(2)
    outputs = {}
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        outputs[attention] = model(condition, mask, labels=labels)
    torch.testing.assert_close(outputs["sdpa"].logits, outputs["eager"].logits, **CLOSE)
    torch.testing.assert_close(outputs["sdpa"].loss, outputs["eager"].loss, **CLOSE)


def test_labels_give_the_inputs():
    model = tiny_model()
    config, condition = model.config, condition_of(model, 2, 3)
    labels = torch.tensor([[3, 1, config.eos_token_id, -100], [config.none_token_id, config.eos_token_id, -100, -100]])
    pad, bos = config.pad_token_id, config.bos_token_id
    inputs = torch.tensor([[bos, 3, 1, config.eos_token_id], [bos, config.none_token_id, config.eos_token_id, pad]])
    output, given = model(condition, labels=labels), model(condition, input_ids=inputs, labels=labels)
    assert torch.equal(output.logits, given.logits) and output.past_key_values is None
    counted = labels != -100
    expected = torch.nn.functional.cross_entropy(output.logits[counted], labels[counted])
    for loss in (output.loss, given.loss, model(condition, labels=labels, num_items_in_batch=5).loss):
        torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(model(condition, labels=labels, num_items_in_batch=10).loss, expected / 2)
    last = model(condition, labels=labels, logits_to_keep=2)
    torch.testing.assert_close(last.logits, output.logits[:, -2:], **CLOSE)


def test_delayed_labels_and_inputs():
    config = tiny_config(**CASES["delay"])
    model, eos, bos, pad = (
        AcousticGPTForCausalLM(config),
        config.eos_token_id,
        config.bos_token_id,
        config.pad_token_id,
    )
    labels = torch.tensor([[[1, 2, 3], [4, 5, 6], [eos] * 3], [[7, 8, 0], [eos] * 3, [-100] * 3]])
    targets, inputs = model._targets(labels)
    no = -100
    assert targets[0].tolist() == [[1, no, no], [4, 2, no], [eos, 5, 3], [no, eos, 6], [no, no, eos]]
    assert targets[1].tolist() == [[7, no, no], [eos, 8, no], [no, eos, 0], [no, no, eos], [no, no, no]]
    assert inputs[0].tolist() == [[bos] * 3, [1, bos, bos], [4, 2, bos], [eos, 5, 3], [pad, eos, 6]]
    assert inputs[1].tolist() == [[bos] * 3, [7, bos, bos], [eos, 8, bos], [pad, eos, 0], [pad, pad, eos]]
    output = model(condition_of(model, 2, 3), labels=labels)
    assert output.logits.shape == (2, 5, 3, config.vocab_size)
    counted = targets != -100
    torch.testing.assert_close(
        output.loss, torch.nn.functional.cross_entropy(output.logits[counted], targets[counted])
    )


def test_a_batch_without_targets_has_no_loss_and_no_gradient():
    model = tiny_model()
    loss = model(condition_of(model, 1, 3), labels=torch.full((1, 4), -100)).loss
    loss.backward()
    assert loss.item() == 0 and model.lm_head.weight.grad.abs().sum() == 0


def test_trainer_counts_every_label():
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

    assert LOSS_MAPPING[tiny_model().loss_type] is not ForCausalLMLoss


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("case", ["paper", "delay"])
def test_gradient_checkpointing_gives_the_same_gradients(case, reentrant):
    model = tiny_model(**CASES[case]).train()
    condition, labels = condition_of(model, 2, 4).requires_grad_(), random_ids(model.config, 2, 5)
    gradients = []
    for enable in (False, True):
        model.zero_grad()
        if enable:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        model(condition, torch.ones(2, 4), labels=labels).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=lambda text, name=name: f"{name}: {text}")


def test_recorded_layers_cover_the_condition():
    model = tiny_model(num_hidden_layers=3)
    model.set_attn_implementation("eager")
    condition, ids = condition_of(model, 2, 4), random_ids(model.config, 2, 3)
    output = model(condition, input_ids=ids, output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, 7, 16)] * 4
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 2, 7, 7)] * 3
    assert (output.attentions[0][:, :, :4, 4:] == 0).all()
    assert isinstance(model(condition, input_ids=ids, return_dict=False), tuple)


def test_bfloat16_is_close():
    model = tiny_model()
    condition, mask = condition_of(model, 2, 5), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    ids = random_ids(model.config, 2, 6)
    expected = model(condition, mask, ids).logits
    logits = model.to(torch.bfloat16)(condition, mask, ids).logits  # the condition may come in another precision
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).norm() / expected.norm() < 0.03


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tied", [False, True])
def test_save_and_load(case, tied, tmp_path):
    torch.manual_seed(1)
    model = AcousticGPTForCausalLM(tiny_config(tie_word_embeddings=tied, **CASES[case])).eval()
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    model.save_pretrained(tmp_path)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(again, AcousticGPTForCausalLM) and not any(info.values())
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied
    condition, ids = condition_of(model, 1, 3), random_ids(model.config, 1, 4)
    assert torch.equal(model(condition, input_ids=ids).logits, again(condition, input_ids=ids).logits)
    trunk, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(trunk, AcousticGPTModel) and not info["missing_keys"]
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, AcousticGPTConfig) and config.to_diff_dict() == model.config.to_diff_dict()


def test_new_weights():
    model = AcousticGPTForCausalLM(tiny_config(hidden_size=64, num_attention_heads=4, intermediate_size=96))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == (1 if name.endswith("weight") else 0)).all()
        elif name.endswith("bias"):
            assert (parameter == 0).all()
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name


def test_plans_name_modules_that_exist():
    model = AcousticGPTForCausalLM(tiny_config())
    modules = {
        ".".join("*" if part.isdigit() else part for part in name.split(".")) for name, _ in model.named_modules()
    }
    for plan in (model.tp_plan, model.fsdp_plan):
        assert plan and set(plan) <= modules
    sharded = {f"{name}.weight" for name in model.tp_plan}
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= sharded


def test_a_compiled_step_has_one_graph():
    model = tiny_model()
    condition, mask = condition_of(model, 2, 4), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    ids = random_ids(model.config, 2, 6, end=False)
    expected = model(condition, mask, ids).logits
    cache = StaticCache(config=model.config, max_cache_len=12)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    step = torch.compile(model.__call__, fullgraph=True, backend=counter)
    with torch.no_grad():
        model(condition, mask, ids[:, :1], past_key_values=cache)
        for position in range(1, 6):
            output = step(
                condition_mask=mask,
                input_ids=ids[:, position : position + 1].clone(),
                position_ids=torch.full((1, 1), position),
                past_key_values=cache,
                use_cache=True,
            )
            torch.testing.assert_close(output.logits, expected[:, position : position + 1], **CLOSE)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"condition_attention": "prefix"}, "`condition_attention` must be one of"),
        ({"num_attention_heads": 3}, r"`num_attention_heads` \(3\) must divide `hidden_size` \(16\)"),
        ({"codebook_size": 0}, "`codebook_size` must be at least 1"),
        ({"num_codebooks": 0}, "`num_codebooks` must be at least 1"),
        ({"num_codebooks": 20}, "`max_target_positions`"),
        ({"interleaved_codebooks": 2}, "must divide `codebook_size`"),
        ({"interleaved_codebooks": 11, "num_codebooks": 2}, "needs `num_codebooks` = 1"),
        ({"eos_token_id": 5}, "special ids must be"),
        ({"eos_token_id": 13}, "special ids must be"),
        ({"eos_token_id": [14, 15]}, "special ids must be"),
        ({"vocab_size": 11}, "`vocab_size` is `codebook_size` \\+ 4 = 15, got 11"),
    ],
)
def test_bad_config(fields, message):
    with pytest.raises(Exception, match=message) as error:
        tiny_config(**fields)
    assert isinstance(error.value, ValueError) or isinstance(error.value.__cause__, ValueError)


def test_default_ids():
    config = AcousticGPTConfig()
    assert config.vocab_size == 4100
    assert (config.pad_token_id, config.none_token_id) == (4096, 4097)
    assert (config.bos_token_id, config.eos_token_id) == (4098, 4099)
    assert tiny_config(vocab_size=15).vocab_size == 15


def _inputs(**changes):
    inputs = {"condition_embeds": torch.randn(2, 4, 16), "input_ids": torch.zeros(2, 3, dtype=torch.long)}
    inputs.update(changes)
    return {name: value for name, value in inputs.items() if value is not None}


BAD_INPUTS = {
    "code too large": (_inputs(input_ids=torch.full((2, 3), 15)), r"`input_ids` must be from 0 to 14 .*got 15"),
    "negative code": (_inputs(input_ids=torch.full((2, 3), -1)), "`input_ids` must be from 0 to 14"),
    "no ids": (_inputs(input_ids=None), r"`input_ids` must have the shape \[batch, positions\].*got None"),
    "empty ids": (_inputs(input_ids=torch.zeros(2, 0, dtype=torch.long)), "at least one position"),
    "three-dimensional ids": (_inputs(input_ids=torch.zeros(2, 3, 2, dtype=torch.long)), "`input_ids` must have"),
    "ids too long": (_inputs(input_ids=torch.zeros(2, 18, dtype=torch.long)), "`config.max_target_positions` is 17"),
    "position too large": (_inputs(position_ids=torch.tensor([[15, 16, 17]])), "`position_ids` must be from 0 to 16"),
    "no condition": (_inputs(condition_embeds=None), "`condition_embeds` is needed"),
    "empty condition": (_inputs(condition_embeds=torch.randn(2, 0, 16)), "must have 1 to 13 positions.*got 0"),
    "condition too long": (_inputs(condition_embeds=torch.randn(2, 14, 16)), "must have 1 to 13 positions.*got 14"),
    "condition too narrow": (
        _inputs(condition_embeds=torch.randn(2, 4, 15)),
        r"\[2, condition, 16\], got \(2, 4, 15\)",
    ),
    "other batch": (_inputs(condition_embeds=torch.randn(3, 4, 16)), r"\[2, condition, 16\], got \(3, 4, 16\)"),
    "other mask": (_inputs(condition_mask=torch.ones(2, 5)), r"`condition_mask` must have the shape \(2, 4\)"),
    "other positions": (
        _inputs(condition_position_ids=torch.zeros(2, 5)),
        r"`condition_position_ids` must have the shape \(2, 4\)",
    ),
    "position outside": (
        _inputs(condition_position_ids=torch.full((2, 4), 13)),
        "`condition_position_ids` must be from 0 to 12",
    ),
    "label too large": (_inputs(input_ids=None, labels=torch.full((2, 3), 15)), "`labels` must be from 0 to 14"),
    "wrong label shape": (
        _inputs(input_ids=None, labels=torch.zeros(2, 3, 2, dtype=torch.long)),
        "`labels` must have",
    ),
    "ids and labels": (_inputs(labels=torch.zeros(2, 4, dtype=torch.long)), "shape .2, 4. that `labels` ask for"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input(name):
    inputs, message = BAD_INPUTS[name]
    with pytest.raises(ValueError, match=message):
        tiny_model()(**inputs)


def test_bad_input_with_a_cache():
    model = tiny_model()
    past = model(**_inputs(), use_cache=True).past_key_values
    new = torch.zeros(2, 1, dtype=torch.long)
    with pytest.raises(ValueError, match="`condition_mask` or `position_ids` is needed"):
        model(input_ids=new, past_key_values=past)
    with pytest.raises(ValueError, match="holds a condition already"):
        model(**_inputs(), past_key_values=past)
    with pytest.raises(ValueError, match="`position_ids` must be from 0 to 16"):
        model(condition_mask=torch.ones(2, 4), input_ids=new.repeat(1, 15), past_key_values=past)


def test_bad_released_checkpoint():
    state, *_ = load("acoustic_gpt")
    with pytest.raises(ValueError, match=r"lm_decoder.transformer.h.0.attn.bias"):
        convert_keys(state | {"lm_decoder.transformer.h.0.attn.bias": torch.zeros(1)}, RELEASED_ACOUSTIC_RULES)
    state.pop("lm_decoder.pos_condition.weight")
    with pytest.raises(ValueError, match=r"lacks lm_decoder\.pos_condition\.weight"):
        acoustic_sizes(state)
