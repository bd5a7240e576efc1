"""Both names of a cache are taken and given, on every transformers."""

import inspect

import pytest
import torch
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.utils import ModelOutput, generic

from dualspeech.modeling.cache_naming import (
    CACHE_NAME,
    CACHE_NAMES,
    cache_arguments,
    output_with_cache,
    rename_cache,
    takes_cache,
)

from . import acoustic_gpt_cases, dualspeech_cases, split_layer_cases


@output_with_cache
class Output(ModelOutput):
    loss: torch.Tensor | None = None
    cache: object | None = None
    logits: torch.Tensor | None = None


def test_the_name_is_the_one_of_transformers():
    assert CACHE_NAME in inspect.signature(create_causal_mask).parameters


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_either_name_is_taken(name):
    @takes_cache
    def forward(ids, cache=None, **kwargs):
        return ids, cache, kwargs

    assert forward(1, **{name: 2}, other=3) == (1, 2, {"other": 3})
    assert forward(1, 2, other=3) == (1, 2, {"other": 3})
    assert list(inspect.signature(forward).parameters) == ["ids", CACHE_NAME, "kwargs"]
    assert rename_cache({name: 2, "other": 3}) == {CACHE_NAME: 2, "other": 3}
    assert rename_cache({name: None}) == {CACHE_NAME: None}
    assert rename_cache({"other": 3}) == {"other": 3}


def test_both_names_at_once_are_refused():
    with pytest.raises(ValueError, match="`cache` and `past_key_values` are two names"):
        rename_cache({"cache": 1, "past_key_values": 2})
    assert rename_cache({"cache": 1, "past_key_values": None}) == {CACHE_NAME: 1}
    assert rename_cache({"cache": None, "past_key_values": 1}) == {CACHE_NAME: 1}


def test_outputs_hold_the_name_of_transformers():
    output = Output(logits=torch.zeros(1), **{CACHE_NAME: "filled"})
    assert list(output) == [CACHE_NAME, "logits"] and output[0] == "filled"
    assert output.cache == output.past_key_values == output[CACHE_NAME] == "filled"
    assert Output().cache is None


@torch.no_grad()
@pytest.mark.parametrize("name", CACHE_NAMES)
@pytest.mark.parametrize("kind", ["split_layer", "dualspeech", "acoustic_gpt"])
def test_models_take_both_names_without_a_warning(kind, name, monkeypatch):
    said = []
    monkeypatch.setattr(generic.logger, "warning_once", said.append)
    model, first, second = _MODELS[kind]()
    start = model(**first, use_cache=True)
    cached = model(**second, **{name: start[CACHE_NAME]}, use_cache=True)
    assert cached[CACHE_NAME] is start[CACHE_NAME] and CACHE_NAME in cached
    assert not said


@pytest.mark.parametrize("name", CACHE_NAMES)
@pytest.mark.parametrize("kind", ["split_layer", "dualspeech"])
def test_generate_takes_both_names(kind, name, monkeypatch):
    said = []
    monkeypatch.setattr(generic.logger, "warning_once", said.append)
    model, first, _ = _MODELS[kind]()
    ids = first["input_ids"]
    with torch.no_grad():
        filled = model(ids[:, :-1], use_cache=True)[CACHE_NAME]
    settings = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False, "num_beams": 1}
    expected = model.generate(ids, **settings)
    generated = model.generate(ids, **settings, **{name: filled})
    assert torch.equal(generated.sequences, expected.sequences)
    assert filled.get_seq_length() == ids.shape[1] + 1
    assert not said


def test_a_paged_cache_goes_by_its_own_name():
    assert cache_arguments(paged := object()) == {"cache": paged}
    assert cache_arguments(None) == {CACHE_NAME: None}
    assert cache_arguments(cache := DynamicCache()) == {CACHE_NAME: cache}


def _split_layer():
    model = split_layer_cases.tiny_model()
    ids = split_layer_cases.random_flat(model.config, 2, 6, speech=0.0)
    return model, {"input_ids": ids}, {"input_ids": ids[:, :1]}


def _dualspeech():
    model = dualspeech_cases.tiny_model()
    ids = torch.arange(5, 11)[None]
    return model, {"input_ids": ids}, {"input_ids": ids[:, :1]}


def _acoustic_gpt():
    model = acoustic_gpt_cases.tiny_model()
    ids = acoustic_gpt_cases.random_ids(model.config, 2, 3, end=False)
    condition = torch.randn(2, 4, model.config.hidden_size)
    mask = torch.ones(2, 4, dtype=torch.long)
    first = {"condition_embeds": condition, "condition_mask": mask, "input_ids": ids}
    return model, first, {"condition_mask": mask, "input_ids": ids[:, :1]}


_MODELS = {"split_layer": _split_layer, "dualspeech": _dualspeech, "acoustic_gpt": _acoustic_gpt}
