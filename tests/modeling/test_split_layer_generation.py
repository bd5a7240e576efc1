"""generate() of the split-layer model: the recorded runs, a naive reference, batches, settings, errors."""

import copy
import warnings

import pytest
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast
from transformers.generation import MaxTimeCriteria, StoppingCriteria

from dualspeech import SplitLayerQwen3ForCausalLM
from dualspeech.modeling.generation_split_layer_qwen3 import RELEASED_SETTINGS, released_generation_config
from dualspeech.modeling.split_layer_rows import rows_to_flat

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

RECORDED = [
    "text_reply",
    "max_new_tokens",
    "self_started_speech",
    "speech_reply",
    "repetition_penalty",
    "continue_speech",
    "last_code_is_pad",
    "min_new_tokens",
    "double_switch",
]


@pytest.fixture(scope="module")
def record():
    return recorded()


@pytest.fixture(scope="module")
def model():
    return tiny_model(3)


def expected_rows(name, tensors, config):
    """What the record says, with the pad in the cells that nothing reads."""
    rows = tensors.get(f"{name}.live_rows", tensors[f"{name}.rows"]).clone()
    rows[rows[:, 0] != config.modality_pad_token_id, 1] = config.audio_pad_token_id
    return rows, bool(tensors.get(f"{name}.live_stopped", tensors[f"{name}.stopped"]))


@pytest.mark.parametrize("as_flat", [False, True])
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("name", RECORDED)
def test_recorded_runs(record, name, lazy, as_flat):
    model, tensors, meta = record
    prompt = tensors[f"{name}.prompt"][None]
    ids = rows_to_flat(prompt, model.config) if as_flat else prompt
    output = model.generate(ids, lazy_branches=lazy, **meta["cases"][name])
    rows, stopped = expected_rows(name, tensors, model.config)
    assert output.generated_rows[0].tolist() == rows.tolist()
    assert output.finish_reason == ["eos" if stopped else "length"]
    assert output.generated_lengths.tolist() == [len(rows)]


@pytest.mark.parametrize("lazy", [False, True])
def test_recorded_runs_as_one_left_padded_batch(record, lazy):
    model, tensors, meta = record
    names = [name for name in RECORDED if meta["cases"][name] == {"max_new_tokens": 40}]
    batch = left_padded([tensors[f"{name}.prompt"] for name in names], model.config)
    output = model.generate(**batch, max_new_tokens=40, lazy_branches=lazy)
    for index, name in enumerate(names):
        rows, stopped = expected_rows(name, tensors, model.config)
        same_rows(output, index, rows, model.config)
        assert output.finish_reason[index] == ("eos" if stopped else "length")
    assert torch.equal(output.sequences[:, : batch["input_ids"].shape[1]], batch["input_ids"])
    assert torch.equal(output.sequences[:, batch["input_ids"].shape[1] :], output.generated_rows)
    recorded_batch = {"input_ids": tensors["batch.prompt_grid"], "attention_mask": tensors["batch.prompt_mask"]}
    output = model.generate(**recorded_batch, max_new_tokens=40, lazy_branches=lazy)
    for index, name in enumerate(["text_reply", "speech_reply"]):
        same_rows(output, index, expected_rows(name, tensors, model.config)[0], model.config)


def test_the_code_that_is_the_pad_may_go_on_in_speech(record):
    model, tensors, _ = record
    prompt = tensors["last_code_is_pad.prompt"]
    released = model.generate(prompt[None], max_new_tokens=5)
    assert released.generated_rows[0, 0, 0] != model.config.modality_pad_token_id
    output = model.generate(prompt[None], max_new_tokens=40, pad_code_ends_speech=False)
    rows, _ = naive_generate(model, prompt, 40, pad_code_ends_speech=False)
    assert output.generated_rows[0, 0, 0] == model.config.modality_pad_token_id
    same_rows(output, 0, rows, model.config)


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.4}, {"min_new_tokens": 6}])
@pytest.mark.parametrize("kwargs", [{}, {"num_modality_layers": 0, "num_shared_layers": 3}, {"vocab_size": 41}])
@pytest.mark.parametrize("seed", [0, 3])
def test_a_mixed_batch_equals_the_naive_reference(seed, kwargs, settings):
    model = tiny_model(seed, **kwargs)
    prompts = list(prompts_of(model.config).values())
    output = model.generate(**left_padded(prompts, model.config), max_new_tokens=24, **settings)
    for index, prompt in enumerate(prompts):
        rows, stopped = naive_generate(model, prompt, 24, **settings)
        same_rows(output, index, rows, model.config)
        assert output.finish_reason[index] == ("eos" if stopped else "length")
        same_rows(model.generate(prompt[None], max_new_tokens=24, **settings), 0, rows, model.config)


def test_the_reference_runs_are_worth_comparing():
    kinds = set()
    for seed in (0, 3):
        model = tiny_model(seed)
        for prompt in prompts_of(model.config).values():
            rows, stopped = naive_generate(model, prompt, 24)
            switches = (rows[:, 0] == model.config.modality_pad_token_id).int().diff().abs().sum()
            kinds.add((stopped, min(int(switches), 2)))
    assert {stopped for stopped, _ in kinds} == {True, False} and {count for _, count in kinds} == {0, 1, 2}


def test_channels_of_the_output(model):
    config = model.config
    output = model.generate(**left_padded(list(prompts_of(config).values()), config), max_new_tokens=24)
    for index, length in enumerate(output.generated_lengths.tolist()):
        rows = output.generated_rows[index, :length]
        spoken = rows[:, 0] == config.modality_pad_token_id
        codes = rows[spoken & (rows[:, 1] != config.eosp_token_id), 1].tolist()
        written = rows[~spoken, 0].tolist()
        for ids, lengths, expected in (
            (output.speech_codes, output.speech_lengths, codes),
            (output.text_ids, output.text_lengths, written),
        ):
            assert ids[index, : int(lengths[index])].tolist() == expected
            assert (ids[index, int(lengths[index]) :] == -1).all()
    assert output.past_key_values is None and output.scores is None
    assert set(output.speech_lengths.tolist()) - {0}


def test_pairs_of_modalities():
    """Text or speech asks, text or speech answers: what answers is said by the last row of the prompt alone."""
    model = tiny_model(0)
    config = model.config
    question = {
        "text": text_rows(config, 3, 7, 2),
        "speech": torch.cat(
            [text_rows(config, config.sosp_token_id), speech_rows(config, 1, 9, config.eosp_token_id)]
        ),
    }
    for asked in question:
        for answered in ("text", "speech"):
            parts = [text_rows(config, 8), question[asked], text_rows(config, 4)]
            if answered == "speech":
                parts.append(text_rows(config, config.sosp_token_id))
            output = model.generate(torch.cat(parts)[None], max_new_tokens=3)
            assert (output.generated_rows[0, 0, 0] == config.modality_pad_token_id) == (answered == "speech")


def test_history_of_several_turns_equals_one_prompt(model):
    """The rows of one answer are the history of the next call."""
    config = model.config
    rows = prompts_of(config)["start"]
    for turn in (text_rows(config, 5, 2), text_rows(config, 6, config.sosp_token_id), text_rows(config, 1)):
        output = model.generate(rows[None], max_new_tokens=7)
        same_rows(output, 0, naive_generate(model, rows, 7)[0], config)
        rows = torch.cat([output.sequences[0], turn])


@pytest.mark.parametrize("lazy", [None, False])
def test_a_cache_goes_on_over_several_turns(model, lazy):
    config = model.config
    rows, cache = prompts_of(config)["start"], None
    for turn in (text_rows(config, 5, 2), text_rows(config, 6, config.sosp_token_id), text_rows(config, 1)):
        settings = {"return_dict_in_generate": True} if cache is None else {"past_key_values": cache}
        output = model.generate(rows[None], max_new_tokens=7, lazy_branches=lazy, **settings)
        cache = output.past_key_values
        assert cache.get_seq_length() == output.sequences.shape[1] - 1
        same_rows(output, 0, naive_generate(model, rows, 7)[0], config)
        rows = torch.cat([output.sequences[0], turn])


def test_sampling_settings_of_each_channel(model):
    """A greedy text channel beside sampled speech, and the other way round, in one batch."""
    config = model.config
    prompts = prompts_of(config)
    batch = left_padded([prompts["text"], prompts["start"]] * 3, config)
    greedy = model.generate(**batch, max_new_tokens=1).generated_rows
    seen = {"text": set(), "audio": set()}
    for channel in seen:
        for seed in range(12):
            torch.manual_seed(seed)
            rows = model.generate(
                **batch, max_new_tokens=1, **{channel: {"do_sample": True, "temperature": 3.0}}
            ).generated_rows
            quiet = rows[1::2] if channel == "text" else rows[::2]
            assert torch.equal(quiet, greedy[1::2] if channel == "text" else greedy[::2])
            loud = rows[::2, 0, 0] if channel == "text" else rows[1::2, 0, 1]
            seen[channel] |= set(loud.tolist())
    assert len(seen["text"]) > 3 and len(seen["audio"]) > 3
    assert max(seen["audio"]) <= config.eosp_token_id and config.modality_pad_token_id not in seen["text"]


def test_channel_settings_equal_flat_ones(model):
    batch = left_padded(list(prompts_of(model.config).values()), model.config)
    flat = {"do_sample": True, "temperature": 0.7, "top_k": 6, "top_p": 0.9, "repetition_penalty": 1.2}
    results = []
    for settings in (
        flat,
        {"text": flat, "audio": flat},
        {**flat, "audio": flat},
        {"text": flat, "audio": {"repetition_penalty": 1.2, "temperature": 0.7}, **flat},
        {"do_samples": [True, True], "layers": [{k: v for k, v in flat.items() if k != "do_sample"}] * 2},
        {"text": flat, "layers": [{"temperature": 9.0}, flat]},
        {**flat, "audio": {**flat, "min_p": 0.0}},  # differs, so that each channel has processors of its own
    ):
        torch.manual_seed(5)
        results.append(model.generate(**batch, max_new_tokens=12, **settings).generated_rows)
    assert [torch.equal(rows, results[0]) for rows in results] == [True] * len(results)
    torch.manual_seed(5)
    other = model.generate(**batch, max_new_tokens=12, **{**flat, "audio": {"top_k": 1}}).generated_rows
    assert not torch.equal(other, results[0])


def test_penalty_of_one_channel(model):
    config = model.config
    prompt = prompts_of(config)["history_start"]
    plain = naive_generate(model, prompt, 20)[0]
    penalized = naive_generate(model, prompt, 20, repetition_penalty=1.5)[0]
    assert plain.tolist() != penalized.tolist()
    both = {"text": {"repetition_penalty": 1.5}, "audio": {"repetition_penalty": 1.5}}
    same_rows(model.generate(prompt[None], max_new_tokens=20, **both), 0, penalized, config)
    speech_only = model.generate(prompt[None], max_new_tokens=20, audio={"repetition_penalty": 1.5})
    first_text = int((penalized[:, 0] != config.modality_pad_token_id).int().argmax()) or len(penalized)
    assert speech_only.generated_rows[0, :first_text].tolist() == penalized[:first_text].tolist()
    text_only = model.generate(prompt[None], max_new_tokens=20, text={"repetition_penalty": 1.5})
    first_text = int((plain[:, 0] != config.modality_pad_token_id).int().argmax()) or len(plain)
    assert text_only.generated_rows[0, :first_text].tolist() == plain[:first_text].tolist()


def test_settings_are_saved_with_the_model(tmp_path):
    model = tiny_model(1)
    model.generation_config.text = {"do_sample": False}
    model.generation_config.audio = {"do_sample": True, "temperature": 0.5, "top_k": 4}
    model.generation_config.lazy_branches = False
    model.generation_config.max_new_tokens = 9
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name in ("text", "audio", "lazy_branches"):
        assert getattr(loaded.generation_config, name) == getattr(model.generation_config, name)
    before = copy.deepcopy(loaded.generation_config.to_dict())
    batch = left_padded(list(prompts_of(model.config).values()), model.config)
    torch.manual_seed(2)
    output = loaded.generate(**batch, audio={"top_k": 2})
    assert loaded.generation_config.to_dict() == before
    other = tiny_model(1)
    torch.manual_seed(2)
    given = GenerationConfig(
        audio={"do_sample": True, "temperature": 0.5, "top_k": 2}, text={"do_sample": False}, max_new_tokens=9
    )
    assert torch.equal(other.generate(**batch, generation_config=given).sequences, output.sequences)
    assert output.generated_rows.shape[1] == 9


def test_a_folder_without_generation_settings(tmp_path):
    model = tiny_model(1)
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    loaded.generation_config.text = {"top_k": 3}
    loaded.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.generation_config.text == {"top_k": 3}
    assert loaded.generation_config.eos_token_id == [30, 31] and loaded.generation_config.pad_token_id == 31


def test_released_settings(model):
    prompt = prompts_of(model.config)["short"][None]
    for name, settings in RELEASED_SETTINGS.items():
        config = released_generation_config(model.config, name)
        assert config.eos_token_id == [model.config.eos_token_id, model.config.pad_token_id]
        assert all(getattr(config, key) == value for key, value in settings.items())
        torch.manual_seed(0)
        config.max_time = 0.5
        output = model.generate(prompt, generation_config=config)
        assert output.generated_lengths[0] <= settings["max_new_tokens"]
    with pytest.raises(ValueError, match="'demo', 'script'"):
        released_generation_config(model.config, "paper")


def test_stop_ids_and_lengths(model):
    config = model.config
    prompt = prompts_of(config)["text"][None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        free = model.generate(prompt, max_new_tokens=30, eos_token_id=None, pad_token_id=None)
    assert free.finish_reason == ["length"] and free.generated_rows.shape == (1, 30, 2)
    third = next(i for i in range(2, 30) if free.generated_rows[0, i, 0] != config.modality_pad_token_id)
    stop = int(free.generated_rows[0, third, 0])
    output = model.generate(prompt, max_new_tokens=30, eos_token_id=[stop, 0])
    first = int((free.generated_rows[0, :, 0] == stop).int().argmax())
    assert output.finish_reason == ["eos"] and output.generated_lengths.tolist() == [first + 1]
    padded = model.generate(prompt, max_new_tokens=30, eos_token_id=config.eos_token_id, pad_token_id=stop)
    assert padded.generated_lengths.tolist() == [first + 1] and padded.finish_reason == ["eos"]
    assert model.generate(prompt, max_length=prompt.shape[1] + 4, eos_token_id=None).generated_rows.shape[1] == 4
    fresh = tiny_model(5, lively=False)
    assert fresh.generate(prompt, eos_token_id=None).generated_rows.shape[1] == 500


class StopAt(StoppingCriteria):
    """Stops row `index` at `length` rows."""

    def __init__(self, index, length):
        self.index, self.length = index, length

    def __call__(self, input_ids, scores, **kwargs):
        stop = torch.zeros(len(input_ids), dtype=torch.bool)
        stop[self.index] = input_ids.shape[1] >= self.length
        return stop


def test_cancelled_rows(model):
    config = model.config
    prompts = prompts_of(config)
    batch = left_padded([prompts["start"], prompts["behind_speech"]], config)
    width = batch["input_ids"].shape[1]
    plain = model.generate(**batch, max_new_tokens=12)
    output = model.generate(**batch, max_new_tokens=12, stopping_criteria=StopAt(0, width + 2))
    assert output.finish_reason == ["cancelled", plain.finish_reason[1]]
    assert output.generated_lengths.tolist() == [2, int(plain.generated_lengths[1])]
    same_rows(output, 0, plain.generated_rows[0, :2], config)
    same_rows(output, 1, plain.generated_rows[1, : int(plain.generated_lengths[1])], config)
    for stop in ({"max_time": 0.0}, {"stopping_criteria": [MaxTimeCriteria(0.0)]}):
        output = model.generate(**batch, max_new_tokens=12, **stop)
        assert output.finish_reason == ["cancelled"] * 2 and output.generated_lengths.tolist() == [1, 1]


def test_stop_strings(model):
    config = model.config
    letters = [chr(ord("A") + index) for index in range(config.vocab_size - 6)] + list("abcdef")  # prefix of its table
    tokenizer = Tokenizer(WordLevel({letter: index for index, letter in enumerate(letters)}, unk_token="A"))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    tokenizer.decoder = Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    prompts = [prompts_of(config)[name] for name in ("history", "text", "start")]
    batch = left_padded(prompts, config)
    plain = model.generate(**batch, max_new_tokens=16, eos_token_id=None)
    word = int(plain.text_ids[0, 1])
    output = model.generate(**batch, max_new_tokens=16, stop_strings=[letters[word]], tokenizer=tokenizer)
    assert output.finish_reason[0] == "cancelled"
    for index in range(3):
        rows, length = output.generated_rows[index], int(output.generated_lengths[index])
        assert torch.equal(rows[:length], plain.generated_rows[index, :length])
        assert (rows[: length - 1, 0] != word).all()
        if output.finish_reason[index] == "cancelled":
            assert rows[length - 1, 0] == word


def test_the_mask_may_say_that_a_pad_id_is_meant(model):
    prompt = text_rows(model.config, 3, model.config.pad_token_id)
    output = model.generate(prompt[None], attention_mask=torch.ones(1, 2), max_new_tokens=6)
    same_rows(output, 0, naive_generate(model, prompt, 6)[0], model.config)


def test_left_padding_is_found_without_a_mask(model):
    config = model.config
    batch = left_padded(list(prompts_of(config).values()), config)
    with_mask = model.generate(**batch, max_new_tokens=8)
    assert torch.equal(model.generate(batch["input_ids"], max_new_tokens=8).sequences, with_mask.sequences)
    flat = rows_to_flat(batch["input_ids"], config)
    output = model.generate(flat, attention_mask=batch["attention_mask"].bool(), max_new_tokens=8)
    assert torch.equal(output.generated_rows, with_mask.generated_rows)


def test_scores_states_and_attentions(model):
    config = model.config
    batch = left_padded([prompts_of(config)["text"], prompts_of(config)["start"]], config)
    model.set_attn_implementation("eager")
    settings = {"output_scores": True, "output_logits": True, "output_hidden_states": True, "output_attentions": True}
    output = model.generate(**batch, max_new_tokens=3, **settings)
    model.set_attn_implementation("sdpa")
    for name in ("scores", "logits", "hidden_states", "attentions"):
        assert len(getattr(output, name)) == 3
    assert output.logits[0].shape == (2, config.total_vocab_size) and output.logits[0].isfinite().all()
    assert output.scores[0].isinf().any()
    assert len(output.hidden_states[1]) == config.num_hidden_layers + 1
    lazy = model.generate(**batch, max_new_tokens=3, output_logits=True, lazy_branches=True)
    assert torch.equal(lazy.generated_rows, output.generated_rows)


BAD_CALLS = {
    "no prompts": ({"input_ids": None}, "`input_ids` is None"),
    "no rows": ({"input_ids": torch.zeros(1, 0, 2).long()}, r"\(1, 0, 2\)"),
    "empty batch": ({"input_ids": torch.zeros(0, 3, 2).long()}, r"\(0, 3, 2\)"),
    "one row without batch": ({"input_ids": torch.tensor([3, 5])}, r"\(2,\)"),
    "three cells": ({"input_ids": torch.zeros(1, 4, 3).long()}, "2 cells"),
    "text id": ({"input_ids": torch.tensor([[[33, 5]]])}, "text ids must be 0 to 32"),
    "audio id": ({"input_ids": torch.tensor([[[27, 19]]])}, "audio ids must be 0 to 18"),
    "negative": ({"input_ids": torch.tensor([[[-1, 0]]])}, "text ids must be 0 to 32"),
    "flat id": ({"input_ids": torch.tensor([[52]])}, "flat ids must be 0 to 51"),
    "pad of the modality": ({"input_ids": torch.tensor([[3, 27]])}, "modality_pad_token_id"),
    "floats": ({"input_ids": torch.zeros(1, 4)}, "integers"),
    "right padding": ({"attention_mask": torch.tensor([[1, 1, 0]])}, "padded on the left"),
    "hole": ({"attention_mask": torch.tensor([[1, 0, 1]])}, "padded on the left"),
    "short mask": ({"attention_mask": torch.tensor([[1, 1]])}, "shape"),
    "nothing visible": ({"attention_mask": torch.tensor([[0, 0, 0]])}, "nothing but padding"),
    "only padding": ({"input_ids": torch.tensor([[31, 31]])}, "nothing but padding"),
    "right padding without a mask": ({"input_ids": torch.tensor([[3, 4, 31], [31, 3, 4]])}, "padded on the left"),
    "embeddings": ({"inputs_embeds": torch.zeros(1, 3, 24)}, "inputs_embeds"),
    "negative prompt": ({"guidance_scale": 2.0}, "guidance_scale"),
    "contrastive": ({"penalty_alpha": 0.5}, "penalty_alpha"),
    "beam groups": ({"num_beams": 4, "num_beam_groups": 2}, "num_beam_groups"),
    "healing": ({"token_healing": True}, "token_healing"),
    "paged": ({"cache_implementation": "paged"}, "generate_batch"),
    "group": ({"text": {"heat": 1.0}}, "heat"),
    "group of another kind": ({"audio": 0.7}, "`audio` has"),
    "three layers": ({"layers": [{}, {}, {}]}, "`layers`"),
    "one do_sample": ({"do_samples": [True]}, "`do_samples`"),
    "temperature": ({"do_sample": True, "audio": {"temperature": -1.0}}, "temperature"),
    "stop id": ({"eos_token_id": 40}, "eos_token_id"),
    "mixed beams": ({"num_beams": 2, "audio": {"do_sample": True}}, "do_sample"),
    "lazy and static": ({"lazy_branches": True, "cache_implementation": "static"}, "'static'"),
    "typo": ({"tempreature": 0.5}, "tempreature"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls(model, name):
    kwargs, message = BAD_CALLS[name]
    with pytest.raises(ValueError, match=message):
        model.generate(**{"input_ids": torch.tensor([[3, 4, 6]]), "max_new_tokens": 3, **kwargs})


def test_lazy_needs_branches():
    model = tiny_model(0, num_modality_layers=0, num_shared_layers=2)
    with pytest.raises(ValueError, match="no branches"):
        model.generate(torch.tensor([[3]]), max_new_tokens=2, lazy_branches=True)


def test_the_model_keeps_no_state(model):
    """Interleaved calls with other settings do not disturb each other."""
    assert isinstance(model, SplitLayerQwen3ForCausalLM)
    config = model.config
    prompts = prompts_of(config)
    before = set(vars(model))
    first = model.generate(prompts["start"][None], max_new_tokens=9).sequences
    model.generate(prompts["text"][None], max_new_tokens=4, min_new_tokens=3, audio={"top_k": 3}, num_beams=2)
    assert torch.equal(model.generate(prompts["start"][None], max_new_tokens=9).sequences, first)
    assert set(vars(model)) == before
