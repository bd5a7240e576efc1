"""generate() of DualSpeech: recorded runs, batches, caches, restrictions, ends, settings, streamers."""

import copy

import pytest
import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from dualspeech.modeling.generation_dualspeech import OFFICIAL_SETTINGS, official_generation_config
from dualspeech.modeling.modeling_dualspeech import DualSpeechForConditionalGeneration
from tests.fixture_checks import load
from tests.modeling.dualspeech_cases import BACKBONES, fixture_model, prompt_batch, tiny_model, training_batch

GREEDY = {"do_sample": False, "num_beams": 1, "acoustic": {"do_sample": False}}
START, END, OFFSET, CODES = 40, 41, 42, 13


def speakers(batch):
    return torch.randn(len(batch["input_ids"]), 6, generator=torch.Generator().manual_seed(9))


def rows(output):
    """Per row: new ids, speech codes, codec codes, reason."""
    result = []
    for i in range(len(output.sequences)):
        result.append(
            (
                output.generated_ids[i, : output.generated_lengths[i]].tolist(),
                output.semantic_codes[i, : output.semantic_lengths[i]].tolist(),
                []
                if output.acoustic_codes is None
                else output.acoustic_codes[i, : output.acoustic_lengths[i]].tolist(),
                output.finish_reason[i],
            )
        )
    return result


def singles(model, batch, speaker_embeds, **kwargs):
    """Every row by itself, without its padding."""
    result = []
    for i in range(len(batch["input_ids"])):
        keep = batch["attention_mask"][i].bool()
        output = model.generate(
            input_ids=batch["input_ids"][i][keep][None],
            attention_mask=batch["attention_mask"][i][keep][None],
            task_type_ids=batch["task_type_ids"][[i]],
            speaker_embeds=speaker_embeds[[i]],
            **kwargs,
        )
        result += rows(output)
    return result


def test_released_greedy_runs():
    """Three recorded two-stage runs, alone and as one left-padded batch."""
    state, tensors, meta = load("dualspeech_lm")
    model = fixture_model(state, meta)
    settings = {"do_sample": False, "num_beams": 1, "max_new_tokens": 18, "generation_mode": "audio"}
    settings["acoustic"] = {"do_sample": False, "max_codes": meta["config"]["acoustic_steps"]}
    prompts = [tensors[f"prompt.{j}"] for j in range(3)]
    speaker = torch.cat([tensors[f"prompt_speaker.{j}"] for j in range(3)])
    expected = []
    for j, prompt in enumerate(prompts):
        output = model.generate(prompt, speaker_embeds=speaker[[j]], **settings)
        sequence = tensors[f"generated_sequence.{j}"][0].tolist()
        assert output.sequences[0].tolist()[: len(sequence)] == sequence
        assert output.acoustic_codes[0].tolist() == tensors[f"acoustic_ids.{j}"][1:].tolist()
        expected += rows(output)
    width = max(p.shape[1] for p in prompts)
    output = model.generate(
        torch.cat([torch.nn.functional.pad(p, (width - p.shape[1], 0)) for p in prompts]),
        attention_mask=torch.tensor([[0] * (width - p.shape[1]) + [1] * p.shape[1] for p in prompts]),
        speaker_embeds=speaker,
        **settings,
    )
    assert rows(output) == expected


@pytest.mark.parametrize("condition_on_eos", [True, False])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_rows_of_a_mixed_batch_equal_single_runs(backbone, condition_on_eos):
    model = tiny_model(backbone, condition_on_eos=condition_on_eos, seed=1)
    batch = prompt_batch(("tts", "asr", "vc", "sqa"), (5, 9, 7, 3))
    settings = {**GREEDY, "speech": {"codes_per_prompt_token": 1.0, "extra_codes": 6}, "text": {"extra_tokens": 8}}
    output = model.generate(**batch, speaker_embeds=speakers(batch), **settings)
    assert rows(output) == singles(model, batch, speakers(batch), **settings)
    kinds = [bool(codes) for _, codes, _, _ in rows(output)]
    assert kinds == [True, False, True, False]


@pytest.mark.parametrize("cache", ["static", "none"])
def test_caches_change_nothing(cache):
    model = tiny_model("llama", seed=2)
    batch = prompt_batch(("tts", "sqa", "sc"))
    settings = {**GREEDY, "max_new_tokens": 14}
    expected = rows(model.generate(**batch, speaker_embeds=speakers(batch), **settings))
    change = {"use_cache": False} if cache == "none" else {"cache_implementation": "static"}
    settings = {**settings, **change, "acoustic": {**GREEDY["acoustic"], **change}}
    assert rows(model.generate(**batch, speaker_embeds=speakers(batch), **settings)) == expected


def test_states_kept_while_decoding_equal_a_second_pass():
    model = tiny_model("llama", seed=2)
    batch = prompt_batch(("tts", "vc", "sc"))
    seen = []
    original = model.acoustic_model.generate
    model.acoustic_model.generate = lambda **kwargs: seen.append(kwargs) or original(**kwargs)
    output = model.generate(**batch, speaker_embeds=speakers(batch), **GREEDY, max_new_tokens=12)
    for i in range(3):
        keep = batch["attention_mask"][i].bool()
        ids = torch.cat([batch["input_ids"][i][keep], output.generated_ids[i, : output.generated_lengths[i]]])
        hidden = model.language_model(ids[None], output_hidden_states=-1).hidden_states[-1]
        condition = model.build_condition(hidden, None, torch.ones(1, len(ids)), speakers(batch)[[i]])
        n = len(ids) + 1
        assert seen[0]["condition_mask"][i].sum() == n and seen[0]["condition_mask"][i, :n].all()
        torch.testing.assert_close(
            seen[0]["condition_embeds"][i, :n], condition["condition_embeds"][0], rtol=1e-4, atol=1e-4
        )


def test_crossing_the_rotary_switch_equals_no_cache():
    """Phi-3 changes its rotary factors at the original length: cached generation recomputes there."""
    state, _, meta = load("dualspeech_lm_longrope")
    model = fixture_model(state, meta)
    prompt = torch.randint(3, 12, (1, 26))
    settings = {"do_sample": False, "num_beams": 1, "max_new_tokens": 16, "generation_mode": "audio"}
    settings["acoustic"] = {"do_sample": False, "max_codes": 12}
    settings["speaker_embeds"] = torch.randn(1, 8)
    cached = model.generate(prompt, **settings)
    uncached = model.generate(prompt, **{**settings, "use_cache": False})
    assert cached.sequences.shape[1] > 33
    assert rows(cached) == rows(uncached)


def test_only_permitted_ids_come_out():
    model = tiny_model("llama", scale=1.0)  # almost uniform choices: anything permitted will come
    batch = prompt_batch(("tts", "asr") * 20, (5, 6) * 20)
    torch.manual_seed(0)
    output = model.generate(**batch, speaker_embeds=speakers(batch), num_beams=1, max_new_tokens=12)
    for (ids, codes, _, reason), task in zip(rows(output), batch["task_type_ids"].tolist(), strict=True):
        if task == 1:
            assert all(i < START or i >= OFFSET + CODES for i in ids) and not codes
            continue
        assert ids[0] == START and ids[-2:] == [END, 2] and len(codes) == len(ids) - 3 >= 1
        assert all(OFFSET <= i < OFFSET + CODES for i in ids[1:-2])
        assert [i - OFFSET for i in ids[1:-2]] == codes
        assert reason in ("eos", "length")


def test_lengths_and_reasons():
    model = tiny_model("llama")
    batch = prompt_batch(("tts", "asr"), (4, 6))
    forced = copy.deepcopy(model)
    with torch.no_grad():  # ends are never chosen freely
        forced.language_model.lm_head.weight[[2, END]] = 0
        forced.language_model.lm_head.weight[OFFSET] = 5 * forced.language_model.lm_head.weight[OFFSET]
    output = forced.generate(**batch, speaker_embeds=speakers(batch), **GREEDY, max_new_tokens=9)
    speech, text = rows(output)
    assert len(speech[1]) == 6 and len(speech[0]) == 9 and speech[3] == "length"
    assert len(text[0]) == 9 and text[3] == "length"
    scaled = {
        "speech": {"codes_per_prompt_token": 2.0, "extra_codes": 1},
        "text": {"tokens_per_prompt_token": 1.0, "extra_tokens": 2},
    }
    output = forced.generate(**batch, speaker_embeds=speakers(batch), **GREEDY, **scaled)
    assert output.semantic_lengths.tolist() == [9, 0] and output.generated_lengths.tolist() == [12, 8]
    fixed = {"speech": {"max_codes": 5}, "text": {"max_tokens": 3}}
    output = forced.generate(**batch, speaker_embeds=speakers(batch), **GREEDY, **fixed)
    assert output.semantic_lengths.tolist() == [5, 0] and output.generated_lengths.tolist() == [8, 3]


def test_the_acoustic_cap_scales_with_the_speech_codes():
    model = tiny_model("llama")
    caps = model._acoustic_caps(torch.tensor([10, 25]), {"length_slack": 1.5, "extra_codes": 3})
    assert caps.tolist() == [27, 63]
    assert model._acoustic_caps(torch.tensor([10]), {"max_codes": 7}).tolist() == [7]
    assert model._acoustic_caps(torch.tensor([10**6]), {"length_slack": 1, "extra_codes": 0}).tolist() == [95]


class StopAt(StoppingCriteria):
    def __init__(self, length, row):
        self.length, self.row = length, row

    def __call__(self, input_ids, scores, **kwargs):
        done = torch.zeros(len(input_ids), dtype=torch.bool)
        done[self.row] = input_ids.shape[1] >= self.length
        return done


def test_cancelled_rows_are_named_and_do_not_speak():
    model = tiny_model("llama")
    batch = prompt_batch(("tts", "tts"), (6, 6))
    with torch.no_grad():
        model.language_model.lm_head.weight[END] = 0
    output = model.generate(
        **batch,
        speaker_embeds=speakers(batch),
        **GREEDY,
        max_new_tokens=12,
        stopping_criteria=StoppingCriteriaList([StopAt(10, row=1)]),
    )
    assert output.finish_reason[1] == "cancelled" and output.acoustic_lengths[1] == 0
    assert output.finish_reason[0] != "cancelled" and output.acoustic_lengths[0] > 0


def test_several_sequences_per_prompt():
    model = tiny_model("llama", scale=1.0)
    batch = prompt_batch(("tts", "asr"), (4, 6))
    torch.manual_seed(0)
    output = model.generate(
        **batch, speaker_embeds=speakers(batch), num_beams=1, num_return_sequences=3, max_new_tokens=9
    )
    assert output.task_type_ids.tolist() == [2, 2, 2, 1, 1, 1]
    assert [bool(n) for n in output.acoustic_lengths] == [True] * 3 + [False] * 3
    assert len({tuple(codes) for _, codes, _, _ in rows(output)[:3]}) > 1


def test_seeds_reproduce():
    model = tiny_model("llama", scale=1.0)
    batch = prompt_batch(("tts", "asr", "sc"))

    def run(seed):
        torch.manual_seed(seed)
        return rows(model.generate(**batch, speaker_embeds=speakers(batch), max_new_tokens=10))

    assert run(3) == run(3) != run(4)


def test_beams_for_text_and_not_for_speech():
    model = tiny_model("llama")
    text = prompt_batch(("asr", "ser"), (4, 6))
    default = model.generate(**text, do_sample=False, max_new_tokens=6)
    beams = model.generate(**text, do_sample=False, num_beams=4, max_new_tokens=6)
    assert rows(default) == rows(beams)  # four beams are the released setting
    plain = model.language_model.generate(
        text["input_ids"],
        attention_mask=text["attention_mask"],
        do_sample=False,
        num_beams=4,
        max_new_tokens=6,
        suppress_tokens=[START, END, *range(OFFSET, OFFSET + CODES)],
        eos_token_id=2,
        pad_token_id=0,
        return_dict_in_generate=False,
    )
    expected = [[i for i in row if i != 0] for row in plain[:, 6:].tolist()]
    assert [[i for i in ids if i != 0] for ids, *_ in rows(beams)] == expected
    batch = prompt_batch(("tts",), (4,))
    with pytest.raises(ValueError, match="num_beams"):
        model.generate(**batch, speaker_embeds=speakers(batch), num_beams=2)


def test_text_rows_equal_a_plain_language_model():
    model = tiny_model("qwen3")
    batch = prompt_batch(("asr", "sqa", "ser"))
    output = model.generate(**batch, **GREEDY, max_new_tokens=10)
    plain = model.language_model.generate(
        batch["input_ids"],
        attention_mask=batch["attention_mask"],
        do_sample=False,
        max_new_tokens=10,
        suppress_tokens=[START, END, *range(OFFSET, OFFSET + CODES)],
        eos_token_id=2,
        pad_token_id=0,
    )[:, 9:]
    for (ids, *_), row in zip(rows(output), plain.tolist(), strict=True):
        assert ids == row[: len(ids)] and not any(row[len(ids) :])
    looked_up = [
        rows(
            model.generate(
                batch["input_ids"][i][batch["attention_mask"][i].bool()][None],
                generation_mode="text",
                **GREEDY,
                max_new_tokens=10,
                prompt_lookup_num_tokens=3,
            )
        )[0]
        for i in range(3)
    ]
    assert looked_up == rows(output)


class Recorder(BaseStreamer):
    def __init__(self):
        self.values, self.ended = [], False

    def put(self, value):
        self.values.append(value.tolist())

    def end(self):
        self.ended = True


def test_streamers_get_ids_and_codes():
    model = tiny_model("llama")
    batch = prompt_batch(("tts",), (5,))
    ids, codes = Recorder(), Recorder()
    output = model.generate(
        **batch, speaker_embeds=speakers(batch), **GREEDY, max_new_tokens=9, streamer=ids, acoustic_streamer=codes
    )
    assert ids.ended and codes.ended
    assert ids.values[0] == batch["input_ids"].tolist()
    streamed = [value[0] for value in ids.values[1:]]
    assert streamed[: int(output.generated_lengths[0])] == output.generated_ids[0].tolist()
    assert [v[0] for v in codes.values][: int(output.acoustic_lengths[0])] == output.acoustic_codes[0].tolist()
    text = prompt_batch(("asr",), (5,))
    streamer = Recorder()
    model.generate(**text, max_new_tokens=4, streamer=streamer)  # the default of four beams gives way
    assert streamer.ended


def test_generation_settings_are_saved_and_loaded(tmp_path):
    model = tiny_model("llama")
    assert model.generation_config.temperature == 0.6 and model.generation_config.acoustic["top_k"] == 10
    assert model.generation_config.eos_token_id == 2
    model.generation_config.acoustic["top_k"] = 3
    model.generation_config.speech["max_codes"] = 4
    model.save_pretrained(tmp_path)
    again = DualSpeechForConditionalGeneration.from_pretrained(tmp_path)
    assert again.generation_config.acoustic["top_k"] == 3
    batch = prompt_batch(("tts",), (4,))
    output = again.generate(**batch, speaker_embeds=speakers(batch))
    assert 1 <= output.semantic_lengths[0] <= 4
    own = GenerationConfig(do_sample=False, max_new_tokens=5)
    assert model.generate(**batch, speaker_embeds=speakers(batch), generation_config=own).semantic_lengths[0] <= 3
    assert own.max_new_tokens == 5 and not hasattr(own, "acoustic")


def test_official_settings():
    model = tiny_model("llama")
    settings = official_generation_config(model.config)
    assert settings.speech == OFFICIAL_SETTINGS["speech"] and settings.acoustic["max_codes"] == 1000
    assert settings.top_p == 0.9 and settings.eos_token_id == 2


def test_several_codebooks_come_out_aligned():
    model = tiny_model("llama", acoustic={"num_codebooks": 3})
    batch = prompt_batch(("tts", "asr", "vc"))
    output = model.generate(**batch, speaker_embeds=speakers(batch), **GREEDY, max_new_tokens=8)
    assert output.acoustic_codes.dim() == 3 and output.acoustic_codes.shape[-1] == 3
    assert output.acoustic_codes.max() < 11
    settings = {**GREEDY, "max_new_tokens": 8}
    assert rows(output) == singles(model, batch, speakers(batch), **settings)


def test_without_an_acoustic_stage_codes_are_the_output():
    model = tiny_model("llama", acoustic_config=None)
    batch = prompt_batch(("tts", "asr"), (4, 5))
    output = model.generate(**batch, **GREEDY, max_new_tokens=8)
    assert output.acoustic_codes is None and output.semantic_lengths[0] >= 1


def test_parity_and_default_conditions_differ_by_one_state():
    batch = prompt_batch(("tts",), (5,))
    lengths = []
    for flag in (True, False):
        model = tiny_model("llama", condition_on_eos=flag)
        seen = []
        original = model.acoustic_model.generate
        model.acoustic_model.generate = lambda o=original, s=seen, **kwargs: s.append(kwargs) or o(**kwargs)
        model.generate(**batch, speaker_embeds=speakers(batch), **GREEDY, max_new_tokens=8)
        lengths.append(int(seen[0]["condition_mask"].sum()))
    assert lengths[0] == lengths[1] + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speaker_embeds": None}, "speaker_embeds"),
        ({"speaker_embeds": torch.zeros(1, 5)}, r"\(1, 5\)"),
        ({"task_type_ids": torch.tensor([9])}, "9"),
        ({"task_type_ids": torch.tensor([1, 2])}, "one number per row"),
        ({"generation_mode": "speech"}, "'text' and 'audio'"),
        ({"generation_mode": "text"}, "contradicts"),
        ({"max_new_tokens": 3}, "at least 4"),
        ({"input_ids": torch.zeros(0, 4, dtype=torch.long)}, "input_ids"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 0]])}, "left"),
        ({"attention_mask": torch.tensor([[1, 0, 1, 1]])}, "left"),
        ({"attention_mask": torch.zeros(1, 4)}, "whole row"),
        ({"speech": {"max_codez": 3}}, "max_codez"),
        ({"text": {"tokens": 3}}, "tokens"),
        ({"acoustic": {"max_codez": 3}}, "max_codez"),
        ({"prompt_lookup_num_tokens": 3}, "text rows"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, "input_ids"),
        ({"input_ids": torch.ones(1, 130, dtype=torch.long), "attention_mask": torch.ones(1, 130)}, "no room"),
        ({"frames": 3}, "frames"),
    ],
)
def test_bad_requests(change, message):
    model = tiny_model("llama")
    batch = prompt_batch(("tts",), (4,))
    with pytest.raises(ValueError, match=message):
        model.generate(**{**batch, "speaker_embeds": speakers(batch), **change})


def forbid(*ids):
    def processor(input_ids, scores):
        scores = scores.clone()
        scores[:, list(ids)] = -torch.inf
        return scores

    return [processor]


def test_rows_with_nothing_left_to_choose_end():
    """Other processors may rule out every id; what comes out is still well-formed."""
    model = tiny_model("llama")
    batch = prompt_batch(("tts", "asr"), (4, 5))
    codes = range(OFFSET, OFFSET + CODES)
    for settings in (GREEDY, {"num_beams": 1}):
        output = model.generate(
            **batch,
            speaker_embeds=speakers(batch),
            **settings,
            max_new_tokens=8,
            logits_processor=forbid(*range(START), *codes, *range(OFFSET + CODES, 57)),
        )
        assert output.generated_ids[0, :3].tolist() == [START, END, 2] and output.semantic_lengths.tolist() == [0, 0]
        assert output.acoustic_lengths.tolist() == [0, 0]
    repeated = model.generate(
        **batch, speaker_embeds=speakers(batch), **GREEDY, max_new_tokens=20, no_repeat_ngram_size=1
    )
    found = repeated.semantic_codes[0, : repeated.semantic_lengths[0]].tolist()
    assert len(found) == len(set(found)) and set(found) <= set(range(CODES))


def test_text_does_not_pad_itself():
    model = tiny_model("llama")
    with torch.no_grad():
        model.language_model.lm_head.weight[0] = 9 * model.language_model.lm_head.weight[5]
    batch = prompt_batch(("asr", "ser", "sqa"), (4, 5, 6))
    output = model.generate(**batch, **GREEDY, max_new_tokens=7)
    assert "cancelled" not in output.finish_reason
    assert not (output.generated_ids[:, :1] == 0).any()


@pytest.mark.parametrize("tokens", [4, 5, 9])
def test_max_new_tokens_is_a_bound_on_the_ids(tokens):
    model = tiny_model("llama")
    batch = prompt_batch(("tts", "asr"), (4, 6))
    with torch.no_grad():
        model.language_model.lm_head.weight[[2, END]] = 0
    for limit in ({"max_new_tokens": tokens}, {"max_length": 6 + tokens}):
        output = model.generate(**batch, speaker_embeds=speakers(batch), **GREEDY, **limit)
        assert output.generated_lengths.tolist() == [tokens, tokens]


def test_min_new_tokens_counts_in_speech_too():
    model = tiny_model("llama")
    with torch.no_grad():
        model.language_model.lm_head.weight[END] = 9 * model.language_model.lm_head.weight[OFFSET]
    batch = prompt_batch(("tts",), (4,))
    output = model.generate(**batch, speaker_embeds=speakers(batch), **GREEDY, min_new_tokens=8, max_new_tokens=12)
    assert 8 <= output.generated_lengths[0] <= 12


def test_padding_is_found_without_an_attention_mask():
    model = tiny_model("llama")
    batch = prompt_batch(("tts", "asr", "vc"))
    settings = {**GREEDY, "max_new_tokens": 9, "speaker_embeds": speakers(batch)}
    expected = rows(model.generate(**batch, **settings))
    del batch["attention_mask"]
    assert rows(model.generate(**batch, **settings)) == expected


def test_settings_of_the_model_fill_a_given_config():
    model = tiny_model("llama")
    batch = prompt_batch(("tts",), (4,))
    model.generation_config.max_new_tokens = 6
    output = model.generate(
        **batch, speaker_embeds=speakers(batch), generation_config=GenerationConfig(do_sample=False)
    )
    assert output.generated_lengths[0] <= 6
    model.generation_config.num_beams = 3
    with pytest.raises(ValueError, match="num_beams"):
        model.generate(**batch, speaker_embeds=speakers(batch), generation_config=GenerationConfig(do_sample=False))


@pytest.mark.parametrize("books", [2, 4])
def test_acoustic_caps_fit_the_table_with_several_codebooks(books):
    model = tiny_model("llama", acoustic={"num_codebooks": books, "max_target_positions": 9})
    batch = prompt_batch(("tts",), (4,))
    output = model.generate(**batch, speaker_embeds=speakers(batch), **GREEDY, max_new_tokens=20)
    assert 1 <= output.acoustic_lengths[0] <= 10 - books


def test_hidden_states_and_scores_come_when_asked_for():
    model = tiny_model("llama")
    batch = prompt_batch(("tts",), (4,))
    settings = {**GREEDY, "max_new_tokens": 8, "speaker_embeds": speakers(batch)}
    plain = model.generate(**batch, **settings)
    asked = model.generate(**batch, **settings, output_hidden_states=True, output_scores=True)
    assert plain.hidden_states is None and len(asked.hidden_states[0]) == 3 and len(asked.scores) > 0
    assert rows(plain) == rows(asked)
    assert model(**training_batch(model.config)).hidden_states is None
