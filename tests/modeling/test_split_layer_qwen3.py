"""The split-layer model: recorded outputs, stock Qwen3 paths, input forms, branches, caches, recorded states."""

import json
from unittest.mock import patch

import pytest
import torch
from transformers import DynamicCache, StaticCache

from dualspeech import SplitLayerQwen3Config, SplitLayerQwen3ForCausalLM
from dualspeech.modeling.split_layer_cache import SplitLayerCache
from dualspeech.modeling.split_layer_rows import flat_to_rows
from tests.fixture_checks import FIXTURES, check, load
from tests.modeling.split_layer_cases import (
    CASES,
    SPLIT_CASES,
    left_padded,
    naive_logits,
    plain_path,
    random_flat,
    tiny_config,
    tiny_model,
)


def close(actual, expected, **kwargs):
    torch.testing.assert_close(actual, expected, **{"atol": 2e-5, "rtol": 1e-4, **kwargs})


@pytest.fixture(scope="module")
def recorded():
    state, tensors, meta = load("moss_lm")
    fields = {name: value for name, value in meta["config"].items() if name != "stop_token_ids"}
    model = SplitLayerQwen3ForCausalLM(SplitLayerQwen3Config(**fields)).eval()
    model.load_state_dict(state)
    return model, tensors, meta


@torch.no_grad()
def test_recorded_outputs(recorded):
    model, tensors, meta = recorded
    output = model(tensors["grid"])
    check(output.text_logits, "text_logits", tensors, meta)
    check(output.audio_logits, "audio_logits", tensors, meta)
    check(model.model(tensors["grid"]).trunk_hidden_state, "trunk", tensors, meta)


@torch.no_grad()
def test_recorded_outputs_of_a_padded_batch(recorded):
    model, tensors, meta = recorded
    mask = tensors["padded_mask"]
    output = model(tensors["padded_grid"], attention_mask=mask)
    for name in ("text_logits", "audio_logits"):
        check(output[name] * mask[..., None], f"padded_{name}", tensors, meta)


@torch.no_grad()
@pytest.mark.parametrize("first", [1, 6])
def test_recorded_outputs_row_by_row(recorded, first):
    model, tensors, meta = recorded
    grid = tensors["grid"]
    outputs = [model(grid[:, :first], use_cache=True)]
    for row in range(first, grid.shape[1]):
        outputs.append(model(grid[:, row : row + 1], past_key_values=outputs[-1].past_key_values))
    for name in ("text_logits", "audio_logits"):
        check(torch.cat([output[name] for output in outputs], dim=1), name, tensors, meta)


def test_released_sizes():
    with torch.device("meta"):
        model = SplitLayerQwen3ForCausalLM(SplitLayerQwen3Config())
    layout = json.loads((FIXTURES / "layouts" / "moss_lm.json").read_text())["keys"]
    assert len(layout) == 446
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == {k[0]: k[1] for k in layout}

    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    assert round(count(model) / 1e9, 2) == 9.10
    assert round(count(model.model.shared_block) / 1e9, 2) == 6.17
    for block in (model.model.text_block, model.model.audio_block):
        assert round(count(block) / 1e6, 1) == 771.8


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("case", CASES)
def test_each_path_is_a_qwen3(case, attention):
    model = tiny_model(**CASES[case], attn_implementation=attention)
    flat = random_flat(model.config, 2, 11)
    output = model(flat)
    for row, ids in enumerate(flat):
        text, audio = naive_logits(model, ids)
        close(output.text_logits[row], text)
        close(output.audio_logits[row], audio)
    assert torch.equal(output.logits, torch.cat([output.text_logits, output.audio_logits], dim=-1))


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_left_padding_changes_nothing(case):
    model, lengths = tiny_model(**CASES[case]), (9, 5, 1)
    flat = random_flat(model.config, 3, 9)
    padded, mask = left_padded(model.config, flat, lengths)
    output, with_cache = model(padded, attention_mask=mask), model(padded, attention_mask=mask, use_cache=True)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    given = model(padded, attention_mask=mask, position_ids=positions)
    for row, length in enumerate(lengths):
        alone = model(flat[row : row + 1, -length:])
        for name in ("text_logits", "audio_logits"):
            for batch in (output, with_cache, given):
                close(batch[name][row, -length:], alone[name][0])


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["lazy", "dynamic", "static"])
def test_caches(case, kind):
    """Prompt, then several rows, then row by row, in a left-padded batch."""
    model = tiny_model(**CASES[case])
    flat, mask = left_padded(model.config, random_flat(model.config, 2, 12), (12, 8))
    cache = {
        "lazy": lambda: SplitLayerCache(model.config),
        "dynamic": lambda: DynamicCache(config=model.config),
        "static": lambda: StaticCache(config=model.config, max_cache_len=15),
    }[kind]()
    assert len(cache) == model.config.num_cache_layers
    pieces, start = [], 0
    for stop in (6, 9, 10, 11, 12):
        output = model(flat[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache)
        pieces.append(output.logits)
        start = stop
    expected = model(flat, attention_mask=mask, use_cache=False)
    assert expected.past_key_values is None
    close(torch.cat(pieces, dim=1)[mask.bool()], expected.logits[mask.bool()])


@torch.no_grad()
def test_input_forms():
    model = tiny_model()
    flat = random_flat(model.config, 2, 6)
    expected = model(flat).logits
    rows = flat_to_rows(flat, model.config)
    assert torch.equal(model(rows).logits, expected)
    rows[..., 1] = torch.where(rows[..., 0] == 27, rows[..., 1], 18)  # nothing reads this cell
    assert torch.equal(model(rows).logits, expected)
    assert torch.equal(model(flat.int()).logits, expected)
    assert torch.equal(model(inputs_embeds=model.model.embed(flat)).logits, expected)
    one = model(flat[0])
    assert one.logits.shape == (1, 6, 52)
    close(one.logits[0], expected[0])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "exactly one of `input_ids` and `inputs_embeds`"),
        ({"input_ids": torch.ones(1, 2, dtype=torch.long), "inputs_embeds": torch.ones(1, 2, 24)}, "exactly one of"),
        ({"input_ids": torch.ones(1, 2, 3, dtype=torch.long)}, r"2 cells.*\[1, 2, 3\]"),
        ({"input_ids": torch.ones(1, 2, 2, 2, dtype=torch.long)}, r"\[batch, length, 2\] or flat"),
        ({"input_ids": torch.tensor([[[33, 0]]])}, "text ids must be 0 to 32"),
        ({"input_ids": torch.tensor([[[27, 19]]])}, "audio ids must be 0 to 18"),
        ({"input_ids": torch.tensor([[52]])}, "flat ids must be 0 to 51"),
        ({"input_ids": torch.tensor([[27, 3]])}, "rows of two ids are"),
        ({"input_ids": torch.tensor([[0.5]])}, "must be integers"),
        ({"input_ids": torch.tensor([[1, 2]]), "branches": ()}, r"`branches`.*got \(\)"),
        ({"input_ids": torch.tensor([[1, 2]]), "branches": ("speech",)}, "`branches`.*'text', 'audio'"),
        ({"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 2)}, "the 0 cached and the 3 new"),
        ({"input_ids": torch.tensor([[1, 2]]), "labels": torch.ones(1, 2).long(), "branches": ["text"]}, "need both"),
    ],
)
def test_bad_inputs(inputs, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(**inputs)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_one_branch(case):
    model = tiny_model(**CASES[case])
    flat = random_flat(model.config, 2, 7)
    both = model(flat, use_cache=False)
    for branch, other in (("text", "audio"), ("audio", "text")):
        head = getattr(model, f"{other}_lm_head")
        with patch.object(head, "forward", side_effect=AssertionError("a silent head has nothing to do")):
            one = model(flat, branches=(branch,), use_cache=False)
        assert torch.equal(one[f"{branch}_logits"], both[f"{branch}_logits"])
        assert getattr(one, f"{other}_logits") is None
        text, audio = one.logits.split([33, 19], dim=-1)
        assert torch.equal(text if branch == "text" else audio, both[f"{branch}_logits"])
        assert bool((text if other == "text" else audio).isneginf().all())
        assert one.logits.shape == both.logits.shape
        assert torch.equal(model(flat, branches=branch, use_cache=False).logits, one.logits)


@torch.no_grad()
def test_last_rows_only():
    model = tiny_model()
    flat = random_flat(model.config, 2, 7)
    full = model(flat)
    for keep in (1, 3, torch.tensor([2, 5])):
        places = keep if isinstance(keep, torch.Tensor) else slice(-keep, None)
        kept = model(flat, logits_to_keep=keep)
        for name in ("logits", "text_logits", "audio_logits"):
            close(kept[name], full[name][:, places])


@torch.no_grad()
@pytest.mark.parametrize("case", SPLIT_CASES)
def test_recorded_states_follow_one_path(case):
    model = tiny_model(**CASES[case], attn_implementation="eager")
    config, flat = model.config, random_flat(model.config, 2, 6)
    flags = ("hidden_states", "attentions", "audio_hidden_states", "audio_attentions")
    output = model(flat, **{f"output_{name}": True for name in flags})
    depth, layers = config.num_hidden_layers, config.num_modality_layers
    assert [len(output[name]) for name in flags] == [depth + 1, depth, layers, layers]
    embeds = model.model.embed(flat)
    text, audio = (
        plain_path(model, branch)(inputs_embeds=embeds, output_hidden_states=True, output_attentions=True)
        for branch in ("text", "audio")
    )
    for name in ("hidden_states", "attentions"):
        for ours, theirs in zip(output[name], text[name], strict=True):
            close(ours, theirs)
    trunk = output.hidden_states[config.num_shared_layers]
    close(trunk, audio.hidden_states[config.num_shared_layers])
    close(trunk, model.model(flat).trunk_hidden_state)
    between = audio.hidden_states[config.num_shared_layers + 1 : -1]
    for ours, theirs in zip(output.audio_hidden_states[:-1], between, strict=True):
        close(ours, theirs)
    close(model.model.audio_norm(output.audio_hidden_states[-1]), audio.hidden_states[-1])
    for ours, theirs in zip(output.audio_attentions, audio.attentions[config.num_shared_layers :], strict=True):
        close(ours, theirs)
    last = model(flat, output_hidden_states=-1).hidden_states
    close(last[-1], text.hidden_states[-1])
    assert all(value is None for value in last[:-1])


def test_gradient_checkpointing_gives_the_same_gradients():
    model = tiny_model().train()
    flat = random_flat(model.config, 2, 8)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.zero_grad()
        model(flat, labels=flat).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        close(checkpointed, plain, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_sequences_stay_apart(case, attention):
    model, lengths = tiny_model(**CASES[case], attn_implementation=attention), (4, 1, 6)
    flat = random_flat(model.config, 1, sum(lengths))
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    labels = flat.clone()
    labels[0, [0, 4, 5]] = -100  # the first row of a sequence is nobody's target
    packed = model(flat, position_ids=positions, labels=labels)
    pieces = [model(piece, use_cache=False).logits for piece in flat.split(lengths, dim=1)]
    close(packed.logits, torch.cat(pieces, dim=1))
    assert packed.past_key_values is None
    again = model(flat, position_ids=positions, use_cache=False)
    close(again.logits, packed.logits)


def test_layers_take_their_places_in_the_cache():
    config = tiny_config(num_shared_layers=2, num_modality_layers=3)
    model = SplitLayerQwen3ForCausalLM(config).model
    places = {
        name: [layer.self_attn.layer_idx for layer in getattr(model, name).layers]
        for name in ("shared_block", "text_block", "audio_block")
    }
    assert places == {"shared_block": [0, 1], "text_block": [2, 3, 4], "audio_block": [5, 6, 7]}


@torch.no_grad()
def test_another_size_of_the_text_vocabulary():
    model = tiny_model()
    flat = random_flat(model.config, 1, 5, speech=0.0)
    before = model(flat)
    model.resize_token_embeddings(40)
    assert (model.config.vocab_size, model.vocab_size, model.config.get_text_config().vocab_size) == (40, 40, 59)
    after = model(flat)
    assert torch.equal(after.text_logits[..., :33], before.text_logits)
    assert torch.equal(after.audio_logits, before.audio_logits)
    assert after.logits.shape[-1] == 59
    with pytest.raises(ValueError, match="`new_num_tokens` must be at least 29"):
        model.resize_token_embeddings(20)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("branches", [None, ("audio",)])
def test_compiled_step_equals_eager(branches):
    model = tiny_model()
    flat = random_flat(model.config, 2, 9)
    compiled = torch.compile(model, fullgraph=True)
    caches = [StaticCache(config=model.config, max_cache_len=12) for _ in range(2)]
    for cache in caches:
        model(flat[:, :6], past_key_values=cache)
    for row in range(6, 9):
        step = flat[:, row : row + 1].clone()
        eager = model(step, past_key_values=caches[0], branches=branches)
        close(compiled(step, past_key_values=caches[1], branches=branches).logits, eager.logits)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 3, 2), (2, 0, 2), (0,)])
def test_rows_are_needed(shape):
    model = tiny_model()
    ids = torch.zeros(shape, dtype=torch.long)
    for call in (model, model.model, model.model.embed):
        with pytest.raises(ValueError, match=rf"`input_ids` must hold at least one row, got shape \{list(shape)}"):
            call(ids)
    if len(shape) == 2:
        with pytest.raises(ValueError, match="`inputs_embeds` must hold at least one row"):
            model(inputs_embeds=torch.zeros(*shape, model.config.hidden_size))


@pytest.mark.parametrize("ids", [[[1, 2, 3]], [[[1, 5], [2, 5]]], (1, 2)], ids=str)
def test_lists_are_no_tensors(ids):
    model = tiny_model()
    for call in (model, model.model, model.generate, lambda ids: model.generate(input_ids=ids)):
        with pytest.raises(ValueError, match=f"`input_ids` must be a tensor, got {type(ids).__name__}"):
            call(ids)
    with pytest.raises(ValueError, match="`inputs_embeds` must be a tensor, got list"):
        model(inputs_embeds=[[0.0]])
