"""Named freezing policies."""

import pytest
import torch
from torch import nn

from dualspeech.training.freezing import POLICIES, apply_freezing, format_parameter_table, parameter_table


def split_model():
    """Modules with the names of a split language model."""
    inner = nn.Module()
    for name in ("embed_tokens", "audio_embed", "text_norm", "audio_norm"):
        inner.add_module(name, nn.Linear(2, 2))
    for name in ("shared_block", "text_block", "audio_block"):
        block = nn.Module()
        block.layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(2)])
        inner.add_module(name, block)
    model = nn.Module()
    model.model, model.text_lm_head, model.audio_lm_head = inner, nn.Linear(2, 3), nn.Linear(2, 4)
    return model


SPEECH = {"model.audio_embed", "model.audio_norm", "model.audio_block", "audio_lm_head"}
SHARED = {"model.shared_block"}
TEXT = {"model.embed_tokens", "model.text_norm", "model.text_block", "text_lm_head"}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("full", SPEECH | SHARED | TEXT),
        ("speech_only", SPEECH),
        ("shared", SPEECH | SHARED),
        ("layerwise", SPEECH | SHARED),
        (r"^text_lm_head\.", {"text_lm_head"}),
    ],
)
def test_policies(policy, expected):
    model = split_model()
    apply_freezing(model, "full")
    apply_freezing(model, policy)
    rows = parameter_table(model)
    assert {row["group"] for row in rows if row["trainable"]} == expected
    assert {row["group"] for row in rows if row["frozen"]} == (SPEECH | SHARED | TEXT) - expected


def test_every_policy_has_a_source():
    assert all(policy.source for policy in POLICIES.values())


def test_names_with_a_prefix_are_found():
    wrapped = nn.Module()
    wrapped.base = split_model()
    apply_freezing(wrapped, "speech_only")
    assert sum(parameter.requires_grad for parameter in wrapped.parameters()) == 2 * (1 + 1 + 2 + 1)


@pytest.mark.parametrize("policy", ["speech_onyl", "(", "speech_only"])
def test_bad_policies(policy):
    with pytest.raises(ValueError, match="`policy`"):
        apply_freezing(nn.Linear(2, 2), policy)


def test_table_counts_once_and_sums():
    model = nn.Module()
    model.one, model.two = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
    model.two.weight = model.one.weight
    model.direct = nn.Parameter(torch.zeros(5), requires_grad=False)
    assert parameter_table(model) == [
        {"group": "direct", "trainable": 0, "frozen": 5},
        {"group": "one", "trainable": 6, "frozen": 0},
    ]
    last = format_parameter_table(parameter_table(model)).splitlines()[-1]
    assert last.split() == ["total", "6", "5"]
