"""Generation with AcousticGPT: recorded ids, a naive loop, batches, stopping, streaming, sampling, bad input."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CompileConfig,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation import BaseStreamer

from dualspeech.modeling.codebook_patterns import undo_delay_pattern, unflatten_codebooks
from dualspeech.modeling.generation_acoustic_gpt import AcousticIdsLogitsProcessor
from tests.fixture_checks import check
from tests.modeling.acoustic_gpt_cases import CASES, tiny_model
from tests.modeling.test_acoustic_gpt import condition_of, released_model

PATHS = {
    "cached": {},
    "dynamic": {"cache_implementation": "dynamic"},
    "static": {"cache_implementation": "static"},
    "recomputed": {"use_cache": False},
}
GREEDY = {"do_sample": False}


class EndAt(LogitsProcessor):
    """Forces the end id of book 0 at a frame of each row (never where the frame is None)."""

    def __init__(self, model, frames):
        self.eos, self.books, self.frames = model.config.eos_token_id, model.config.num_codebooks, frames

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        for row, frame in enumerate(self.frames):
            first = row * self.books
            if input_ids.shape[1] - 1 == frame:
                scores[first] = -torch.inf
                scores[first, self.eos] = 0
            else:
                scores[first, self.eos] = -torch.inf
        return scores


class StopRow(StoppingCriteria):
    """Stops one row once a number of steps is done, and remembers the shapes it saw."""

    def __init__(self, row, steps):
        self.row, self.steps, self.shapes = row, steps, []

    def __call__(self, input_ids, scores, **kwargs):
        self.shapes.append(tuple(input_ids.shape))
        stop = torch.zeros(len(input_ids), dtype=torch.bool)
        stop[self.row] = input_ids.shape[1] - 1 >= self.steps
        return stop


class Recorder(BaseStreamer):
    def __init__(self):
        self.frames, self.ended = [], False

    def put(self, value):
        assert not self.ended
        self.frames.append(value)

    def end(self):
        self.ended = True


@torch.no_grad()
def naive_greedy(model, condition, limit, end_at=None):
    """Greedy ids of one row `[1, C, d]`, everything computed again at each step: `(frames [A, K], reason)`.

    With several books it generates until the last book has what book 0 decided, and cuts by hand.
    """
    config = model.config
    books, interleaved = config.num_codebooks, config.interleaved_codebooks
    ids = torch.full((1, 1, books), config.bos_token_id)
    end, reason = limit, "length"
    for step in range(limit + books - 1):
        logits = model(condition, input_ids=ids if books > 1 else ids[..., 0], use_cache=False).logits[0, -1]
        logits = logits.view(books, -1)
        new = []
        for book in range(books):
            allowed = torch.zeros(config.vocab_size, dtype=torch.bool)
            per_book = config.codebook_size // interleaved
            turn = step % interleaved
            allowed[turn * per_book : (turn + 1) * per_book] = True
            if book == 0:
                if end_at is None:
                    allowed[config.eos_token_id] = step > 0 and turn == 0
                elif step == end_at:
                    allowed[:] = False
                    allowed[config.eos_token_id] = True
            new.append(int(logits[book].masked_fill(~allowed, -torch.inf).argmax()))
        if new[0] == config.eos_token_id and step < end:
            end, reason = step, "eos"
        for book in range(books):
            frame = step - book
            if frame < 0:
                new[book] = config.bos_token_id
            elif frame >= end:
                new[book] = config.eos_token_id if frame == end else config.pad_token_id
        ids = torch.cat([ids, torch.tensor(new).view(1, 1, books)], dim=1)
        if step + 1 >= end + books - 1:
            break
    missing = ids.new_full((1, max(books - ids.shape[1], 0), books), config.pad_token_id)
    return undo_delay_pattern(torch.cat([ids[:, 1:], missing], dim=1))[0, :end], reason


def frames_of(output, row):
    """Valid frames of a row as `[A, K]`."""
    codes = output.codes[row, : output.lengths[row]]
    return codes if codes.dim() == 2 else codes[:, None]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_recorded_greedy_run(path, attention):
    model, tensors, meta = released_model()
    model.set_attn_implementation(attention)
    output = model.generate(
        tensors["greedy_condition"],
        tensors["greedy_condition_mask"],
        max_lengths=meta["config"]["greedy_steps"],
        suppress_special_ids=False,
        output_logits=True,
        **GREEDY,
        **PATHS[path],
    )
    assert torch.equal(output.codes, tensors["greedy_ids"][:, 1:])
    check(torch.stack(output.logits, dim=1), "greedy_logits", tensors, meta)
    assert output.finish_reason == ["length", "length"] and output.lengths.tolist() == [40, 40]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", CASES)
def test_every_path_equals_the_naive_loop(case, path):
    model = tiny_model(**CASES[case])
    condition, limits = condition_of(model, 3, 5), [12, 7, 12]
    for end_at in (None, [6, None, 3]):
        processors = None if end_at is None else LogitsProcessorList([EndAt(model, end_at)])
        output = model.generate(condition, logits_processor=processors, max_lengths=limits, **GREEDY, **PATHS[path])
        for row in range(3):
            forced = None if end_at is None else (99 if end_at[row] is None else end_at[row])
            frames, reason = naive_greedy(model, condition[row : row + 1], limits[row], forced)
            assert torch.equal(frames_of(output, row), frames)
            assert output.finish_reason[row] == reason
        assert output.codes.shape[1] == max(output.lengths)
        behind = torch.arange(output.codes.shape[1]) >= output.lengths[:, None]
        assert (output.codes[behind] == model.config.pad_token_id).all()


@pytest.mark.parametrize("case", CASES)
def test_a_batch_equals_its_rows(case):
    model = tiny_model(seed=3, **CASES[case])
    condition, lengths = condition_of(model, 3, 9), [9, 4, 1]
    mask = (torch.arange(9) < torch.tensor(lengths)[:, None]).long()
    end_at = [None, 5, 2]
    right = model.generate(
        condition,
        mask,
        logits_processor=LogitsProcessorList([EndAt(model, end_at)]),
        max_lengths=[10, 10, 8],
        **GREEDY,
    )
    left_condition, left_positions = torch.randn_like(condition), torch.zeros(3, 9, dtype=torch.long)
    for row, length in enumerate(lengths):
        left_condition[row, 9 - length :] = condition[row, :length]
        left_positions[row, 9 - length :] = torch.arange(length)
    left = model.generate(
        left_condition,
        mask.flip(1),
        condition_position_ids=left_positions,
        logits_processor=LogitsProcessorList([EndAt(model, end_at)]),
        max_lengths=[10, 10, 8],
        **GREEDY,
    )
    for row, length in enumerate(lengths):
        single = model.generate(
            condition[row : row + 1, :length],
            logits_processor=LogitsProcessorList([EndAt(model, [end_at[row]])]),
            max_lengths=[10, 10, 8][row],
            **GREEDY,
        )
        for output in (right, left):
            assert torch.equal(frames_of(output, row), frames_of(single, 0))
            assert output.finish_reason[row] == single.finish_reason[0]
    assert right.finish_reason == ["length", "eos", "eos"] and right.lengths.tolist() == [10, 5, 2]


@pytest.mark.parametrize("case", CASES)
def test_training_reproduces_generation(case):
    """The inputs that labels give are the ids that generation has fed, the tail of the delayed books included."""
    model = tiny_model(**CASES[case])
    config, condition = model.config, condition_of(model, 2, 4)
    processors = LogitsProcessorList([EndAt(model, [6, 4])])
    output = model.generate(condition, logits_processor=processors, max_lengths=9, output_logits=True, **GREEDY)
    end = output.codes.new_full((2, 1, *output.codes.shape[2:]), config.eos_token_id)
    labels = torch.cat([output.codes, end], dim=1).masked_fill(
        (torch.arange(output.codes.shape[1] + 1) > output.lengths[:, None]).view(2, -1, *[1] * (end.dim() - 2)), -100
    )
    labels[1, output.lengths[1]] = config.eos_token_id
    logits = model(condition, labels=labels).logits
    steps = len(output.logits)
    torch.testing.assert_close(torch.stack(output.logits, dim=1)[0], logits[0, :steps], rtol=1e-4, atol=2e-5)
    steps = int(output.lengths[1]) + config.num_codebooks - 1
    torch.testing.assert_close(torch.stack(output.logits, dim=1)[1, :steps], logits[1, :steps], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("path", ["cached", "recomputed"])
def test_cancelled_rows_and_streaming(case, path):
    model = tiny_model(**CASES[case])
    books, condition = model.config.num_codebooks, condition_of(model, 3, 4)
    settings = {"logits_processor": LogitsProcessorList([EndAt(model, [None, 3, None])]), "max_lengths": 9}
    settings |= GREEDY | PATHS[path]
    whole, streamer, stop = model.generate(condition, **settings), Recorder(), StopRow(2, steps=6)
    output = model.generate(condition, streamer=streamer, stopping_criteria=StoppingCriteriaList([stop]), **settings)
    assert whole.finish_reason == ["length", "eos", "length"]
    assert output.finish_reason == ["length", "eos", "cancelled"]
    assert output.lengths.tolist() == [9, 3, 6 - (books - 1)]
    for row in range(3):
        assert torch.equal(frames_of(output, row), frames_of(whole, row)[: output.lengths[row]])
    assert streamer.ended and torch.equal(torch.stack(streamer.frames, dim=1), output.codes)
    steps = 9 + books - 1
    shape = (3, steps + 1) if books == 1 else (3, steps + 1, books)
    assert stop.shapes[-1] == shape and len(stop.shapes) == steps


@pytest.mark.parametrize("case", ["paper", "delay"])
def test_cancelled_before_the_first_frame(case):
    model = tiny_model(**CASES[case])
    streamer = Recorder()
    output = model.generate(
        condition_of(model, 1, 4), streamer=streamer, stopping_criteria=StoppingCriteriaList([StopRow(0, 1)])
    )
    length = 1 if model.config.num_codebooks == 1 else 0
    assert output.lengths.tolist() == [length] and output.finish_reason == ["cancelled"]
    assert output.codes.shape[1] == length == len(streamer.frames) and streamer.ended


def test_time_limit_cancels():
    model = tiny_model()
    assert model.generate(condition_of(model, 2, 4), max_time=0.0).finish_reason == ["cancelled"] * 2


@pytest.mark.parametrize("case", CASES)
def test_seeds(case):
    model = tiny_model(**CASES[case])
    condition = condition_of(model, 2, 4)

    def sample(**kwargs):
        return model.generate(condition, max_lengths=13, eos_token_id=None, temperature=2.0, top_k=0, **kwargs).codes

    torch.manual_seed(5)
    first = sample()
    second = sample()
    torch.manual_seed(5)
    assert torch.equal(first, sample()) and not torch.equal(first, second)
    state = torch.get_rng_state()
    third = sample(generator=torch.Generator().manual_seed(7))
    assert torch.equal(third, sample(generator=torch.Generator().manual_seed(7)))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(sample(use_cache=False, generator=torch.Generator().manual_seed(7)), third)


@pytest.mark.parametrize("case", CASES)
def test_special_ids_are_never_codes(case):
    model = tiny_model(**CASES[case])
    config, condition = model.config, condition_of(model, 8, 4)
    with torch.no_grad():  # a model that would say nothing but special ids
        model.lm_head.weight.view(config.num_codebooks, config.vocab_size, -1)[:, config.codebook_size :] *= 8
    output = model.generate(condition, max_lengths=12, top_k=0, temperature=3.0)
    assert (output.lengths >= 1).all() and "eos" in output.finish_reason
    for row in range(8):
        frames = frames_of(output, row)
        assert (frames >= 0).all() and (frames < config.codebook_size).all()
    unfinished = model.generate(condition, max_lengths=12, eos_token_id=None)
    assert unfinished.finish_reason == ["length"] * 8 and (unfinished.codes < config.codebook_size).all()
    free = model.generate(condition, max_lengths=12, suppress_special_ids=False, top_k=0, temperature=3.0)
    assert (free.codes[free.codes != config.pad_token_id] >= config.codebook_size).any()


def test_interleaved_codes_can_be_unflattened():
    model = tiny_model(**CASES["flatten"])
    output = model.generate(condition_of(model, 6, 4), max_lengths=14, temperature=3.0, top_k=0)
    ended = torch.tensor([reason == "eos" for reason in output.finish_reason])
    assert ended.any() and (output.lengths[ended] % 3 == 0).all()
    codes = unflatten_codebooks(output.codes, 4, 3, output.lengths)
    assert codes.shape[2] == 3 and int(codes.max()) < 4


def test_the_table_of_forbidden_ids():
    model = tiny_model(**CASES["delay"])
    config, processor = model.config, AcousticIdsLogitsProcessor(model.config)
    scores = torch.zeros(2 * 3, config.vocab_size)
    first, later = (processor(torch.zeros(6, length), scores).isfinite() for length in (1, 2))
    assert (first[:, : config.codebook_size]).all() and not first[:, config.codebook_size :].any()
    expected = first.clone()
    expected[[0, 3], config.eos_token_id] = True
    assert torch.equal(later, expected)
    assert torch.equal(AcousticIdsLogitsProcessor(config, can_end=False)(torch.zeros(6, 2), scores).isfinite(), first)


def test_processors_of_transformers():
    model = tiny_model()
    condition = condition_of(model, 2, 4)
    with torch.no_grad():
        model.lm_head.weight[model.config.eos_token_id] *= 50
    assert int(model.generate(condition, max_lengths=12, min_new_tokens=9, top_k=0).lengths.min()) >= 9
    assert torch.equal(
        model.generate(condition, max_lengths=9, top_k=1).codes,
        model.generate(condition, max_lengths=9, **GREEDY).codes,
    )
    output = model.generate(
        condition, max_lengths=9, no_repeat_ngram_size=1, eos_token_id=None, output_scores=True, **GREEDY
    )
    assert all(len(set(row.tolist())) == 9 for row in output.codes)
    assert len(output.scores) == 9 and output.scores[0].shape == (2, model.config.vocab_size)
    banned = model.generate(condition, max_lengths=9, suppress_tokens=[3], eos_token_id=None, top_k=0)
    assert not (banned.codes == 3).any()


def test_generation_config_is_saved(tmp_path):
    model = tiny_model()
    assert (model.generation_config.do_sample, model.generation_config.top_k) == (True, 10)
    assert model.generation_config.temperature == 1.0
    model.generation_config.update(do_sample=False, top_k=None, max_new_tokens=4, suppress_tokens=[1])
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    condition = condition_of(model, 2, 3)
    output = again.generate(condition)
    assert torch.equal(output.codes, model.generate(condition).codes) and int(output.lengths.max()) <= 4
    other = GenerationConfig(do_sample=False, max_new_tokens=6, eos_token_id=None)
    before = other.to_dict()
    assert again.generate(condition, generation_config=other).lengths.tolist() == [6, 6]
    assert other.to_dict() == before and again.generation_config.max_new_tokens == 4


def test_default_limit_and_the_whole_table():
    for case, most in (("paper", 17), ("delay", 15)):
        model = tiny_model(**CASES[case])
        condition = condition_of(model, 1, 13)
        assert model.generate(condition, eos_token_id=None).lengths.tolist() == [most - 1]
        assert model.generate(condition, eos_token_id=None, max_lengths=most).lengths.tolist() == [most]
        with pytest.raises(ValueError, match=f"must be from 1 to {most} .*got {most + 1}"):
            model.generate(condition, max_lengths=most + 1)
        with pytest.raises(ValueError, match="must be from 1 to"):
            model.generate(condition, max_new_tokens=most + 1)
        assert model.generate(condition, eos_token_id=None, max_new_tokens=3, max_lengths=5).lengths.tolist() == [3]


def test_generation_leaves_no_trace():
    model = tiny_model()
    condition = condition_of(model, 2, 4)
    before = model.state_dict()
    first = model.generate(condition, **GREEDY)
    model.generate(condition_of(model, 3, 7))
    assert torch.equal(model.generate(condition, **GREEDY).codes, first.codes)
    assert not condition.requires_grad and all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.slow
def test_compiled_generation():
    model = tiny_model()
    condition, mask = condition_of(model, 2, 4), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    compiling = CompileConfig(mode="default", fullgraph=True)
    compiling._compile_all_devices = True
    settings = {"max_lengths": 9, "eos_token_id": None, **GREEDY}
    expected = model.generate(condition, mask, **settings)
    output = model.generate(condition, mask, cache_implementation="static", compile_config=compiling, **settings)
    assert torch.equal(output.codes, expected.codes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_lengths": 0}, "from 1 to 17"),
        ({"max_lengths": [3, 3, 3]}, "one for each of 2 rows"),
        ({"max_lengths": 2.5}, "a whole number"),
        ({"max_length": 9}, "`max_length` .9. is not used"),
        ({"generation_config": GenerationConfig(max_length=9)}, "`max_length` .9. is not used"),
        ({"num_beams": 2}, "`num_beams` must be 1, got 2"),
        ({"num_return_sequences": 3, "do_sample": True}, "`num_return_sequences` must be 1, got 3"),
        ({"guidance_scale": 1.5}, "`guidance_scale` must be 1, got 1.5"),
        ({"frames": 3}, r"does not know \['frames'\]"),
        ({"past_key_values": DynamicCache()}, r"does not know \['past_key_values'\]"),
        ({"condition_mask": torch.tensor([[1, 1, 1], [0, 0, 0]])}, "at least one position of every row"),
        ({"condition_mask": torch.ones(2, 4)}, "`condition_mask` must have the shape .2, 3."),
        ({"condition_embeds": torch.randn(2, 0, 16)}, "must have 1 to 13 positions"),
        ({"condition_embeds": torch.randn(2, 14, 16)}, "must have 1 to 13 positions"),
        ({"condition_embeds": torch.randn(2, 3, 8)}, r"\[2, condition, 16\], got \(2, 3, 8\)"),
        ({"condition_embeds": torch.randn(3, 16)}, r"\[3, condition, 16\], got \(3, 16\)"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_model().generate(**({"condition_embeds": torch.randn(2, 3, 16)} | arguments))
