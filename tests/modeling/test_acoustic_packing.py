"""AcousticGPT in training: rows of different lengths joined inside give the losses and gradients of padded rows."""

import pytest
import torch

from dualspeech.configuration.configuration_acoustic_gpt import AcousticGPTConfig
from dualspeech.modeling.modeling_acoustic_gpt import AcousticGPTForCausalLM


def tiny(**kwargs):
    torch.manual_seed(0)
    config = AcousticGPTConfig(
        codebook_size=11,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=40,
        max_condition_positions=64,
        max_target_positions=64,
        initializer_range=0.2,
        **kwargs,
    )
    return AcousticGPTForCausalLM(config).train()


def batch_of(config, seed=1):
    """Five rows: conditions with holes, targets of 9, 1, 4, 0 and 7 positions."""
    torch.manual_seed(seed)
    lengths = torch.tensor([9, 1, 4, 0, 7])
    width = () if config.num_codebooks == 1 else (config.num_codebooks,)
    labels = torch.randint(0, 11, (5, 9, *width))
    labels[torch.arange(9) >= lengths[:, None]] = -100
    mask = torch.rand(5, 12) < 0.6
    mask[:, 0] = True
    positions = (mask.long().cumsum(1) + 2)[torch.randperm(5)]
    condition = torch.randn(5, 12, config.hidden_size)
    return {
        "condition_embeds": condition,
        "condition_mask": mask,
        "condition_position_ids": positions,
        "labels": labels,
    }


def run(model, batch, **kwargs):
    model.zero_grad()
    condition = batch["condition_embeds"].clone().requires_grad_()
    output = model(**{**batch, "condition_embeds": condition}, **kwargs)
    output.loss.backward()
    return output, {"condition": condition.grad, **{n: p.grad.clone() for n, p in model.named_parameters()}}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("codebooks", [1, 3])
@pytest.mark.parametrize("condition_attention", ["bidirectional", "causal"])
def test_packed_rows_equal_padded_rows(condition_attention, codebooks, attention):
    model = tiny(condition_attention=condition_attention, num_codebooks=codebooks)
    model.set_attn_implementation(attention)
    batch = batch_of(model.config)
    padded, expected = run(model, batch, pack_rows=False)
    together, found = run(model, batch)  # in training mode rows are packed
    torch.testing.assert_close(together.loss, padded.loss)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=name)
    targets = batch["labels"] != -100
    if codebooks == 1:
        torch.testing.assert_close(together.logits[targets], padded.logits[targets], atol=1e-5, rtol=1e-4)
        # Nothing was computed where nothing is learnt.
        assert not torch.allclose(together.logits[3, 5], padded.logits[3, 5])
    without_mask = {name: value for name, value in batch.items() if name != "condition_mask"}
    torch.testing.assert_close(run(model, without_mask)[0].loss, run(model, without_mask, pack_rows=False)[0].loss)


def test_fewer_and_fuller_sequences_reach_the_layers():
    model = tiny()
    batch = batch_of(model.config)
    shapes = []
    model.model.layers[0].register_forward_hook(lambda module, args, output: shapes.append(output.shape[:2]))
    for pack_rows in (False, True):
        run(model, batch, pack_rows=pack_rows)
    (rows, length), (packs, longest) = shapes
    assert (rows, length) == (5, 21)
    assert packs < rows and longest < length
    kept = batch["condition_mask"].sum() + (batch["labels"] != -100).sum() + 1  # a row without targets keeps one
    assert kept <= packs * longest < rows * length


def test_evaluation_is_not_packed_and_caches_are_refused():
    model = tiny().eval()
    batch = batch_of(model.config)
    shapes = []
    model.model.layers[0].register_forward_hook(lambda module, args, output: shapes.append(output.shape[:2]))
    with torch.no_grad():
        model(**batch)
    assert shapes == [(5, 21)]
    ids = torch.zeros(5, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"`packed_input_mask` .* goes with `condition_embeds` and without a cache"):
        model.model(batch["condition_embeds"], input_ids=ids, packed_input_mask=torch.ones(5, 3), use_cache=True)
