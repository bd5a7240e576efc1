"""Lazy branches: the same greedy results as with both branches at every step, and less work."""

import pytest
import torch
from transformers import DynamicCache

from dualspeech.modeling.generation_split_layer_qwen3 import BranchPlan
from dualspeech.modeling.split_layer_cache import SplitLayerCache
from dualspeech.modeling.split_layer_logits import ChannelRules

from .split_layer_generation_cases import (
    left_padded,
    naive_generate,
    prompts_of,
    recorded,
    same_rows,
    speech_rows,
    text_rows,
    tiny_model,
)

SIZES = {
    "two": {},
    "one": {"num_shared_layers": 1, "num_modality_layers": 1},
    "sliding": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3},
}
SETTINGS = {
    "greedy": {},
    "penalty": {"repetition_penalty": 1.3},
    "min_new_tokens": {"min_new_tokens": 5},
    "chunked": {"prefill_chunk_size": 4},
    "no_cache": {"use_cache": False},
    "beams": {"num_beams": 3},
    "beams_returned": {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.5},
    "sampling": {"do_sample": True, "temperature": 0.8, "top_k": 8, "num_return_sequences": 2},
    "channels": {"do_sample": True, "text": {"do_sample": False}, "audio": {"top_p": 0.8}},
    "other_pad": {"pad_token_id": 2},
    "no_stop": {"eos_token_id": None},
}


class Counter:
    """Rows that the layers of each branch went through."""

    def __init__(self, model):
        self.rows = {"text": 0, "audio": 0, "trunk": 0}
        self.heads = {"text": 0, "audio": 0}
        blocks = {"text": model.model.text_block, "audio": model.model.audio_block, "trunk": model.model.shared_block}
        self.hooks = [block.register_forward_pre_hook(self.count(name)) for name, block in blocks.items()]
        for name, head in (("text", model.text_lm_head), ("audio", model.audio_lm_head)):
            self.hooks.append(head.register_forward_pre_hook(self.count_head(name)))

    def count(self, name):
        def hook(module, args):
            self.rows[name] += args[0].shape[1]

        return hook

    def count_head(self, name):
        def hook(module, args):
            self.heads[name] += 1

        return hook

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for hook in self.hooks:
            hook.remove()


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("seed, size", [(0, "two"), (3, "two"), (3, "one"), (0, "sliding")])
def test_a_mixed_batch_is_the_same_with_and_without(seed, size, settings):
    model = tiny_model(seed, **SIZES[size])
    batch = left_padded(list(prompts_of(model.config).values()), model.config)
    results = []
    for lazy in (True, False):
        torch.manual_seed(7)
        results.append(model.generate(**batch, max_new_tokens=20, lazy_branches=lazy, **SETTINGS[settings]))
    assert torch.equal(results[0].sequences, results[1].sequences)
    assert results[0].finish_reason == results[1].finish_reason


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("kind", ["lookup", "assistant", "assistant_sampling"])
def test_assisted_decoding_is_the_same_with_and_without(seed, kind):
    """Several candidate rows per step, some of one channel and some of the other."""
    model = tiny_model(seed)
    settings = {"prompt_lookup_num_tokens": 5}
    if kind != "lookup":
        settings = {"assistant_model": tiny_model(seed, num_shared_layers=1), "num_assistant_tokens": 4}
        settings["assistant_model"].load_state_dict(model.state_dict(), strict=False)
    for prompt in prompts_of(model.config).values():
        if kind == "assistant_sampling":
            results = []
            for lazy in (True, False):
                torch.manual_seed(1)
                sampling = {"do_sample": True, "top_k": 6, "lazy_branches": lazy}
                results.append(model.generate(prompt[None], max_new_tokens=20, **sampling, **settings).sequences)
            assert torch.equal(*results)
            continue
        expected = naive_generate(model, prompt, 20)[0]
        for lazy in (True, False):
            output = model.generate(prompt[None], max_new_tokens=20, lazy_branches=lazy, **settings)
            same_rows(output, 0, expected, model.config)


def test_multi_turn_with_one_cache():
    """A branch may stay silent over several calls."""
    model = tiny_model(3)
    config = model.config
    turns = [text_rows(config, 5, config.sosp_token_id), text_rows(config, 6, 2), speech_rows(config, 3, 4)]
    for lazy in (True, False):
        rows, cache = prompts_of(config)["text"], SplitLayerCache(config, lazy=lazy)
        for turn in turns:
            rows = torch.cat([rows, turn])
            output = model.generate(rows[None], past_key_values=cache, max_new_tokens=3)
            same_rows(output, 0, naive_generate(model, rows, 3)[0], config)
            rows = output.sequences[0]


def test_work_of_a_speech_reply():
    """While speech is produced the text branch does not run; it takes all rows at once when text follows."""
    model, tensors, _ = recorded()
    prompt = tensors["speech_reply.prompt"][None]
    length = prompt.shape[1]
    with Counter(model) as counter:
        output = model.generate(prompt, max_new_tokens=20)
    assert output.speech_lengths.tolist() == [20]
    assert counter.rows == {"text": 0, "audio": length + 19, "trunk": length + 19}
    assert counter.heads == {"text": 0, "audio": 20}
    with Counter(model) as counter:
        output = model.generate(prompt, max_new_tokens=40)
    spoken, total = int(output.speech_lengths) + 1, int(output.generated_lengths)
    assert spoken < total
    # Behind the end of speech the text branch reads all rows, and the audio branch none of the new ones.
    assert counter.rows["trunk"] == counter.rows["text"] == length + total - 1
    assert counter.rows["audio"] == length + spoken - 1
    assert counter.heads == {"text": total - spoken, "audio": spoken}
    with Counter(model) as counter:
        model.generate(prompt, max_new_tokens=40, lazy_branches=False)
    assert len(set(counter.rows.values())) == 1 and set(counter.heads.values()) == {total}


def test_finished_rows_need_no_branch():
    """A text row that has ended does not keep the text branch running beside a row that speaks."""
    model, tensors, _ = recorded()
    prompts = [tensors["text_reply.prompt"], tensors["speech_reply.prompt"]]
    batch = left_padded(prompts, model.config)
    written = len(tensors["text_reply.rows"])
    with Counter(model) as counter:
        output = model.generate(**batch, max_new_tokens=27)
    assert output.generated_lengths.tolist() == [written, 27]
    assert counter.heads == {"text": written, "audio": 27}


def test_when_lazy_is_the_default():
    model = tiny_model(0)
    prompt = prompts_of(model.config)["start"][None]

    end = model.config.vocab_size + model.config.eosp_token_id

    def is_lazy(**settings):
        with Counter(model) as counter:
            model.generate(prompt, max_new_tokens=2, suppress_tokens=[end], **settings)
        return counter.heads["text"] == 0

    assert is_lazy() and is_lazy(use_cache=False) and is_lazy(cache_implementation="dynamic")
    assert is_lazy(past_key_values=SplitLayerCache(model.config)) and is_lazy(num_beams=2)
    assert not is_lazy(lazy_branches=False)
    assert not is_lazy(cache_implementation="static")
    assert not is_lazy(past_key_values=DynamicCache(config=model.config.get_text_config()))
    assert not is_lazy(output_logits=True) and not is_lazy(output_hidden_states=True)
    assert is_lazy(output_scores=True)
    model.generation_config.lazy_branches = False
    assert not is_lazy() and is_lazy(lazy_branches=True)
    with pytest.raises(ValueError, match="DynamicCache"):
        is_lazy(lazy_branches=True, past_key_values=DynamicCache(config=model.config.get_text_config()))


def test_branches_of_a_step():
    config = tiny_model(0).config
    code, end, stop = config.vocab_size + 3, config.vocab_size + config.eosp_token_id, config.eos_token_id
    rules = ChannelRules(config, 4, stop_ids=torch.tensor([stop]), pad_token_id=config.pad_token_id)
    cases = [
        ([code], 6, ("audio",)),
        ([config.sosp_token_id], 6, ("audio",)),
        ([end], 6, ("text",)),
        ([7], 6, ("text",)),
        ([7, code], 6, ("text", "audio")),
        ([stop, code], 6, ("audio",)),
        ([stop, 7], 6, ("text",)),
        ([stop, stop], 6, ("text",)),
        ([stop, code], 4, ("text", "audio")),  # a prompt may end in a stop id
        ([config.vocab_size + config.audio_pad_token_id, code], 4, ("text", "audio")),
        ([config.vocab_size + config.audio_pad_token_id, code], 5, ("audio",)),
    ]
    for last, length, expected in cases:
        assert rules.branches(torch.tensor(last)[:, None], length) == expected
    assert rules.branches(torch.tensor([[7, code], [code, code]]), 6) == ("text", "audio")
    no_stop = ChannelRules(config, 4)
    assert no_stop.branches(torch.tensor([[stop], [code]]), 6) == ("text", "audio")
    goes_on = ChannelRules(config, 4, pad_code_ends_speech=False)
    assert goes_on.branches(torch.tensor([[config.vocab_size + config.audio_pad_token_id]]), 4) == ("audio",)
    ids = torch.tensor([[7, 8, code]])
    assert BranchPlan(rules)(ids, 3, reads_prompt=True) == ("audio",)
    assert BranchPlan(rules)(ids, 8, reads_prompt=False) == ("text", "audio")
    assert BranchPlan(rules, several=True)(ids, 3, reads_prompt=True) is None
