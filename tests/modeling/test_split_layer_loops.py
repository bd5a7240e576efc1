"""transformers' decoding loops over flat ids: each gives the rows of plain greedy decoding, or the score it claims."""

import pytest
import torch
from transformers import CompileConfig, ContinuousBatchingConfig, DynamicCache, StaticCache

from dualspeech.modeling.split_layer_cache import SplitLayerCache
from dualspeech.modeling.split_layer_rows import rows_to_flat

from .split_layer_generation_cases import left_padded, prompts_of, speech_rows, text_rows, tiny_model

PAGES = {"page_size": 16, "num_blocks": 64, "max_batch_tokens": 64}
NO_SPLIT = {"num_modality_layers": 0, "num_shared_layers": 3}


@pytest.fixture(scope="module", params=["split", "no_split"])
def model(request):
    return tiny_model(3, **(NO_SPLIT if request.param == "no_split" else {}))


@pytest.fixture(scope="module")
def batch(model):
    return left_padded(list(prompts_of(model.config).values()), model.config)


@pytest.fixture(scope="module")
def greedy(model, batch):
    return model.generate(**batch, max_new_tokens=20)


def same(output, expected):
    assert torch.equal(output.generated_rows, expected.generated_rows)
    assert torch.equal(output.generated_lengths, expected.generated_lengths)
    assert output.finish_reason == expected.finish_reason


@pytest.mark.parametrize(
    "settings",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"cache_implementation": "static", "prefill_chunk_size": 5},
        {"cache_implementation": "dynamic"},
        {"cache_implementation": "offloaded"},
        {"prefill_chunk_size": 1},
        {"prefill_chunk_size": 5},
        {"max_new_tokens": 20, "num_beams": 1, "top_k": 3},
    ],
    ids=str,
)
def test_caches_and_prefill(model, batch, greedy, settings):
    if settings.get("cache_implementation") == "offloaded" and not torch.cuda.is_available():
        pytest.skip("offloading needs an accelerator")
    same(model.generate(**batch, **{"max_new_tokens": 20, **settings}), greedy)


def test_caches_of_the_caller(model, batch, greedy):
    view = model.config.get_text_config()
    length = batch["input_ids"].shape[1] + 20
    for cache in (DynamicCache(config=view), StaticCache(config=view, max_cache_len=length)):
        output = model.generate(**batch, max_new_tokens=20, past_key_values=cache)
        same(output, greedy)
        assert output.past_key_values is cache


def test_several_sequences(model, batch, greedy):
    output = model.generate(**batch, max_new_tokens=20, num_return_sequences=2, do_sample=True, top_k=1)
    assert torch.equal(output.generated_rows, greedy.generated_rows.repeat_interleave(2, dim=0))
    assert torch.equal(output.sequences[::2], greedy.sequences)
    assert output.finish_reason == [reason for reason in greedy.finish_reason for _ in range(2)]


def test_lookup_and_assistants(model):
    small = tiny_model(1, num_shared_layers=1, num_modality_layers=1)
    for prompt in prompts_of(model.config).values():
        expected = model.generate(prompt[None], max_new_tokens=16, min_new_tokens=3)
        for settings in (
            {"prompt_lookup_num_tokens": 3},
            {"prompt_lookup_num_tokens": 8, "max_matching_ngram_size": 1},
            {"assistant_model": small},
            {"assistant_model": model},
        ):
            same(model.generate(prompt[None], max_new_tokens=16, min_new_tokens=3, **settings), expected)


def test_assistants_accept_their_own_drafts():
    """A model that drafts for itself is right each time: text and speech come in long steps."""
    model = tiny_model(3)
    steps = []
    handle = model.model.register_forward_pre_hook(lambda *_: steps.append(1))
    twin = tiny_model(3)
    twin.generation_config.num_assistant_tokens = 8
    twin.generation_config.num_assistant_tokens_schedule = "constant"
    twin.generation_config.assistant_confidence_threshold = 0.0
    output = model.generate(prompts_of(model.config)["start"][None], max_new_tokens=27, assistant_model=twin)
    handle.remove()
    assert output.generated_lengths.tolist() == [27] and len(steps) == 3


@torch.no_grad()
@pytest.mark.parametrize("kind", ["split_layer", "dynamic"])
def test_drafts_need_an_empty_cache(model, kind):
    """Prompt lookup and assistants put the whole prompt behind what is cached already."""
    prompt = prompts_of(model.config)["text"][None]

    def cache(rows):
        view = model.config.get_text_config()
        made = SplitLayerCache(model.config) if kind == "split_layer" else DynamicCache(config=view)
        if rows:
            model(prompt[:, :rows], cache=made)
        return made

    expected = model.generate(prompt, max_new_tokens=4)
    for settings in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": tiny_model(1)}):
        with pytest.raises(ValueError, match="`cache` must be empty with an assistant model or prompt lookup"):
            model.generate(prompt, max_new_tokens=4, cache=cache(2), **settings)
        same(model.generate(prompt, max_new_tokens=4, cache=cache(0), **settings), expected)
    same(model.generate(prompt, max_new_tokens=4, cache=cache(2)), expected)


def test_assistants_with_other_vocabularies(model):
    prompt = prompts_of(model.config)["text"][None]
    for other in (tiny_model(0, vocab_size=40), tiny_model(0, audio_vocab_size=21)):
        with pytest.raises(ValueError, match="assistant_model"):
            model.generate(prompt, max_new_tokens=4, assistant_model=other)


@torch.no_grad()
def score_of(model, sequence, mask, length):
    """Sum of the log-probabilities of the new ids, each among the ids its channel may produce."""
    config = model.config
    start = int(mask.sum())
    rows = sequence[len(mask) - start :]
    output = model(rows[None, : start + length])
    flat = rows_to_flat(rows, config)
    total = 0.0
    for place in range(start, start + length):
        index = int(flat[place])
        if index < config.vocab_size:
            scores = output.text_logits[0, place - 1].clone()
            scores[config.modality_pad_token_id] = -torch.inf
        else:
            index -= config.vocab_size
            scores = output.audio_logits[0, place - 1, : config.eosp_token_id + 1]
        total += float(scores.log_softmax(dim=-1)[index])
    return total


@pytest.mark.parametrize("lazy", [None, False])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0])
def test_beams_score_each_channel_by_itself(model, batch, lazy, length_penalty):
    output = model.generate(
        **batch,
        max_new_tokens=9,
        num_beams=4,
        num_return_sequences=2,
        output_scores=True,
        length_penalty=length_penalty,
        lazy_branches=lazy,
    )
    for index, score in enumerate(output.sequences_scores.tolist()):
        length = int(output.generated_lengths[index])
        mask = batch["attention_mask"][index // 2]
        expected = score_of(model, output.sequences[index], mask, length) / length**length_penalty
        assert score == pytest.approx(expected, abs=2e-4)
        assert length == 9 or output.finish_reason[index] == "eos"
    assert (output.sequences_scores[::2] >= output.sequences_scores[1::2]).all()


@pytest.mark.parametrize("beams", [1, 3])
def test_transition_scores_of_rows(model, batch, beams):
    output = model.generate(**batch, max_new_tokens=7, num_beams=beams, output_scores=True, length_penalty=0.0)
    scores = model.compute_transition_scores(
        output.sequences, output.scores, output.beam_indices, normalize_logits=beams == 1
    )
    for index, length in enumerate(output.generated_lengths.tolist()):
        expected = score_of(model, output.sequences[index], batch["attention_mask"][index], length)
        assert float(scores[index, :length].sum()) == pytest.approx(expected, abs=2e-4)


def test_beams_in_a_batch_equal_beams_alone(model):
    prompts = list(prompts_of(model.config).values())
    output = model.generate(**left_padded(prompts, model.config), max_new_tokens=9, num_beams=3)
    for index, prompt in enumerate(prompts):
        alone = model.generate(prompt[None], max_new_tokens=9, num_beams=3)
        length = int(alone.generated_lengths[0])
        assert int(output.generated_lengths[index]) == length
        assert torch.equal(output.generated_rows[index, :length], alone.generated_rows[0])
        assert output.finish_reason[index] == alone.finish_reason[0]


@pytest.mark.slow
@pytest.mark.parametrize("kwargs", [{}, NO_SPLIT], ids=["split", "no_split"])
def test_static_cache_with_compilation(kwargs):
    model = tiny_model(3, **kwargs)
    batch = left_padded(list(prompts_of(model.config).values()), model.config)
    greedy = model.generate(**batch, max_new_tokens=20)
    compile_config = CompileConfig(mode="default", fullgraph=True)
    compile_config._compile_all_devices = True
    torch._dynamo.reset()
    settings = {"cache_implementation": "static", "compile_config": compile_config}
    same(model.generate(**batch, max_new_tokens=20, **settings), greedy)
    start = prompts_of(model.config)["start"][None]
    expected = model.generate(start, max_new_tokens=20)
    same(model.generate(start, max_new_tokens=20, **settings), expected)


def test_continuous_batching(model, batch, greedy):
    prompts = list(prompts_of(model.config).values())
    pages = ContinuousBatchingConfig(**PAGES)
    output = model.generate_batch(prompts, max_new_tokens=20, continuous_batching_config=pages)
    same(output, greedy)
    width = batch["input_ids"].shape[1]
    padded = batch["attention_mask"] == 0
    assert torch.equal(output.sequences[:, :width][~padded], batch["input_ids"][~padded])
    assert (output.sequences[:, :width][padded][:, 0] == model.config.pad_token_id).all()
    same(model.generate_batch(**batch, max_new_tokens=20, continuous_batching_config=pages), greedy)
    flat = [rows_to_flat(rows, model.config).tolist() for rows in prompts]
    lists = [flat[0], prompts[1].tolist(), *flat[2:]]
    output = model.generate_batch(
        lists, max_new_tokens=20, continuous_batching_config=ContinuousBatchingConfig(**PAGES)
    )
    same(output, greedy)


def test_continuous_batching_of_several_sequences(model, greedy):
    prompts = list(prompts_of(model.config).values())
    settings = {"max_new_tokens": 20, "num_return_sequences": 2, "do_sample": True, "top_k": 1}
    pages = ContinuousBatchingConfig(**PAGES)
    output = model.generate_batch(prompts, continuous_batching_config=pages, **settings)
    assert torch.equal(output.generated_rows, greedy.generated_rows.repeat_interleave(2, dim=0))
    assert torch.equal(output.sequences[::2], output.sequences[1::2])


def test_continuous_batching_samples_by_channel():
    model = tiny_model(3)
    config = model.config
    prompts = [text_rows(config, 3, 7), text_rows(config, 3, config.sosp_token_id)]
    greedy = model.generate(**left_padded(prompts, config), max_new_tokens=1).generated_rows
    codes = set()
    settings = {"text": {"do_sample": False}, "audio": {"do_sample": True, "temperature": 4.0, "top_k": 12}}
    output = model.generate_batch(
        prompts * 12, max_new_tokens=1, continuous_batching_config=ContinuousBatchingConfig(**PAGES), **settings
    )
    assert (output.generated_rows[::2] == greedy[0]).all()
    codes = set(output.generated_rows[1::2, 0, 1].tolist())
    assert len(codes) > 3 and max(codes) <= config.eosp_token_id


def test_what_continuous_batching_does_not_take():
    model = tiny_model(3)
    config = model.config
    prompt = [3, 7]
    for settings, message in (
        ({"repetition_penalty": 1.2}, "RepetitionPenaltyLogitsProcessor"),
        ({"audio": {"repetition_penalty": 1.2}}, "RepetitionPenaltyLogitsProcessor"),
        ({"min_new_tokens": 3}, "min_new_tokens"),
        ({"num_beams": 2}, "beams"),
        ({"prompt_lookup_num_tokens": 2}, "prompt lookup"),
        ({"max_new_tokens": None, "max_length": 9}, "max_length"),
        ({"guidance_scale": 2.0}, "guidance_scale"),
        ({"heat": 2.0}, "heat"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate_batch([prompt], **{"max_new_tokens": 4, **settings})
    with pytest.raises(ValueError, match="no prompts"):
        model.generate_batch([], max_new_tokens=4)
    with pytest.raises(ValueError, match="flat ids must be"):
        model.generate_batch([prompt, [60]], max_new_tokens=4)
    quirk = torch.cat([text_rows(config, 3), speech_rows(config, config.audio_pad_token_id)])
    with pytest.raises(ValueError, match="pad_code_ends_speech"):
        model.generate_batch([quirk], max_new_tokens=4)
    output = model.generate_batch(
        [quirk],
        max_new_tokens=4,
        pad_code_ends_speech=False,
        continuous_batching_config=ContinuousBatchingConfig(**PAGES),
    )
    same(output, model.generate(quirk[None], max_new_tokens=4, pad_code_ends_speech=False))


def test_processors_of_the_caller_see_flat_ids(model, batch):
    seen = []

    def watch(input_ids, scores):
        seen.append((input_ids.shape, scores.shape[1], scores.isinf().any(dim=1).all()))
        return scores

    model.generate(**batch, max_new_tokens=2, logits_processor=[watch])
    audio = {"repetition_penalty": 1.2}
    model.generate(**batch, max_new_tokens=2, logits_processor=[watch], do_sample=True, audio=audio)
    width = batch["input_ids"].shape[1]
    assert [shape for shape, _, _ in seen] == [(7, width), (7, width + 1)] * 2
    assert all(size == model.config.total_vocab_size and masked for _, size, masked in seen)


def test_ids_of_other_settings_are_flat(model):
    config = model.config
    prompt = prompts_of(config)["start"][None]
    first = int(model.generate(prompt, max_new_tokens=1).speech_codes[0, 0])
    output = model.generate(prompt, max_new_tokens=1, suppress_tokens=[config.vocab_size + first])
    assert output.generated_rows[0, 0].tolist() != [config.modality_pad_token_id, first]
    assert output.generated_rows[0, 0, 0] == config.modality_pad_token_id
    only = [config.vocab_size + 2]
    output = model.generate(prompt, max_new_tokens=3, prefix_allowed_tokens_fn=lambda row, ids: only)
    assert output.speech_codes.tolist() == [[2, 2, 2]]
