"""The state machine and the settings of the channels, without a model."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation import LogitNormalization

from dualspeech.modeling.split_layer_logits import (
    CHANNEL_SETTINGS,
    BestIdLogitsProcessor,
    ByChannelLogitsProcessor,
    ChannelLogitsProcessor,
    ChannelRules,
    ChannelSettings,
    NarrowLogitsProcessor,
    speaks_next,
)

# 10 text ids, 8 audio ids: 0 to 4 are codes, 5 ends speech, 6 and 7 are never produced.
IDS = SimpleNamespace(
    vocab_size=10, audio_vocab_size=8, modality_pad_token_id=7, sosp_token_id=6, eosp_token_id=5, audio_pad_token_id=2
)
TEXT = {0, 1, 2, 3, 4, 5, 6, 8, 9}
CODES = {10, 11, 12, 13, 14}
END = 15


def allowed(scores):
    return [set(row.isfinite().nonzero()[:, 0].tolist()) for row in scores]


def random_scores(rows, seed=0):
    return torch.randn(rows, 18, generator=torch.Generator().manual_seed(seed)) * 3


def test_who_speaks():
    ids = torch.arange(18)
    expected = {6, 10, 11, 12, 13, 14, 16, 17}
    assert set(ids[speaks_next(ids, IDS)].tolist()) == expected
    assert torch.equal(speaks_next(ids.view(3, 6), IDS), speaks_next(ids, IDS).view(3, 6))


def test_only_the_channel_that_speaks():
    machine = ChannelLogitsProcessor(ChannelRules(IDS, prompt_length=2))
    ids = torch.tensor([[10, 3], [3, 6], [6, 11], [6, END], [3, 12], [3, 9]])
    scores = random_scores(6)
    given = scores.clone()
    result = machine(ids, scores)
    # Behind the code that is the pad (12), the last row of the prompt counts as text.
    assert allowed(result) == [TEXT, CODES | {END}, CODES | {END}, TEXT, TEXT, TEXT]
    kept = result.isfinite()
    assert torch.equal(result[kept], given[kept]) and torch.equal(scores, given)
    result = machine(torch.cat([torch.zeros(6, 1).long(), ids], dim=1), scores)
    assert allowed(result)[4] == CODES | {END}
    goes_on = ChannelLogitsProcessor(ChannelRules(IDS, prompt_length=2, pad_code_ends_speech=False))
    assert allowed(goes_on(ids, scores))[4] == CODES | {END}
    with pytest.raises(ValueError, match="17 entries"):
        machine(ids, scores[:, 1:])


def test_the_end_of_speech_is_held_back():
    machine = ChannelLogitsProcessor(ChannelRules(IDS, prompt_length=2), min_new_tokens=3)
    for length, held in ((2, True), (3, True), (4, False), (5, False)):
        ids = torch.cat([torch.zeros(2, length - 1).long(), torch.tensor([[11], [4]])], dim=1)
        assert allowed(machine(ids, random_scores(2))) == [CODES if held else CODES | {END}, TEXT]


def test_rows_that_are_done_get_the_pad():
    rules = ChannelRules(IDS, prompt_length=2, stop_ids=torch.tensor([9, 8]), pad_token_id=8)
    machine = ChannelLogitsProcessor(rules)
    scores = random_scores(3)
    scores[1] = -math.inf  # its branch did not run
    result = machine(torch.tensor([[1, 2, 3], [1, 2, 9], [1, 2, 11]]), scores)
    assert allowed(result) == [TEXT, {8}, CODES | {END}] and result[1, 8] == 0
    # The prompt may end in a stop id.
    assert allowed(machine(torch.tensor([[2, 9]]), random_scores(1))) == [TEXT]


def test_log_probabilities_of_one_channel():
    """What the other head says must not matter to a beam."""
    machine = ChannelLogitsProcessor(ChannelRules(IDS, prompt_length=1), normalize=True)
    ids = torch.tensor([[1, 11], [1, 2]])
    logits = random_scores(2)
    loud = logits.clone()
    loud[0, :10] += 40.0
    loud[1, 10:] -= 40.0
    lazy = logits.clone()
    lazy[0, :10] = lazy[1, 10:] = -math.inf
    for given in (logits, loud, lazy):
        result = machine(ids, given.log_softmax(dim=-1))
        assert torch.allclose(result[0, 10:16], logits[0, 10:16].log_softmax(dim=-1), atol=1e-4)
        text = logits[1, :10].clone()
        text[7] = -math.inf
        assert torch.allclose(result[1, :10], text.log_softmax(dim=-1), atol=1e-4)
        assert torch.allclose(result.exp().sum(dim=-1), torch.ones(2))


def test_one_last_id_per_request():
    """Continuous batching knows nothing but the last ids."""
    rules = ChannelRules(IDS)
    ids = torch.tensor([3, 6, 11, END, 12])
    assert allowed(ChannelLogitsProcessor(rules)(ids, random_scores(5))) == [
        TEXT,
        CODES | {END},
        CODES | {END},
        TEXT,
        CODES | {END},
    ]
    both = ByChannelLogitsProcessor(
        rules, LogitsProcessorList([BestIdLogitsProcessor()]), LogitsProcessorList([TemperatureLogitsWarper(2.0)])
    )
    scores = random_scores(5)
    result = both(ids, scores)
    assert [len(row) for row in allowed(result)] == [1, 18, 18, 1, 18]
    assert torch.equal(result[1], scores[1] / 2)


@pytest.mark.parametrize("last", [[3, 11], [3, 4], [11, 12]])
def test_processors_of_each_channel(last):
    ids = torch.tensor([[1, 13, index] for index in last])
    scores = random_scores(2)
    text = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.5), TopKLogitsWarper(2)])
    audio = LogitsProcessorList([TemperatureLogitsWarper(0.5)])
    result = ByChannelLogitsProcessor(ChannelRules(IDS, prompt_length=1), text, audio)(ids, scores)
    for row, index in enumerate(last):
        chosen = (audio if index >= 10 else text)(ids[row : row + 1], scores[row : row + 1])
        assert torch.equal(result[row], chosen[0])


@pytest.mark.parametrize("others", [[], [TopPLogitsWarper(0.7)], [MinPLogitsWarper(0.1), LogitNormalization()]])
def test_few_ids_are_enough_for_top_k(others):
    scores = torch.randn(4, 500, generator=torch.Generator().manual_seed(3)) * 2
    scores[1, 10:] = -math.inf
    scores[2] = scores[2].round()  # many equals
    scores[3] = -math.inf
    scores[3, 7] = 0.0
    processors = LogitsProcessorList([TemperatureLogitsWarper(0.6), TopKLogitsWarper(20), *others])
    result = NarrowLogitsProcessor(processors, 20)(None, scores)
    assert torch.allclose(result, processors(None, scores), atol=1e-5)
    assert torch.equal(NarrowLogitsProcessor(processors, 20, spare=900)(None, scores), processors(None, scores))


def test_when_few_ids_are_looked_at():
    config = GenerationConfig(do_sample=True, top_k=5)
    for processors, expected in (
        ([TemperatureLogitsWarper(0.6), TopKLogitsWarper(5), TopPLogitsWarper(0.7)], True),
        ([TopKLogitsWarper(5)], True),
        ([TopPLogitsWarper(0.7)], False),
        ([TopPLogitsWarper(0.7), TopKLogitsWarper(5)], False),
        ([], False),
    ):

        def build(settings, custom, processors=processors):
            return LogitsProcessorList(processors if settings.do_sample else [])

        for narrow in (True, False):
            made = ChannelSettings.read(config).processors(ChannelRules(IDS), build, [], narrow)
            assert any(isinstance(processor, NarrowLogitsProcessor) for processor in made) == (expected and narrow)
            if not (expected and narrow):
                assert list(made) == processors


def test_the_best_id():
    scores = torch.tensor([[1.0, 5.0, 5.0], [-math.inf, -2.0, -3.0]])
    result = BestIdLogitsProcessor()(None, scores)
    assert allowed(result) == [{1}, {1}] and result[:, 1].tolist() == [5.0, -2.0]


def test_settings_of_the_channels():
    flat = {"do_sample": False, "temperature": 0.9, "top_k": 7}
    settings = ChannelSettings.read(GenerationConfig(**flat))
    assert not settings.differ and not settings.any_samples
    config = GenerationConfig(**flat, audio={"do_sample": True, "top_k": 3})
    settings = ChannelSettings.read(config)
    assert settings.differ and settings.any_samples
    assert (settings.text.do_sample, settings.text.top_k, settings.text.temperature) == (False, 7, 0.9)
    assert (settings.audio.do_sample, settings.audio.top_k, settings.audio.temperature) == (True, 3, 0.9)
    settings.write(config)
    assert config.do_sample is True
    again = ChannelSettings.read(config)
    for key in CHANNEL_SETTINGS:
        assert getattr(again.text, key) == getattr(settings.text, key)
        assert getattr(again.audio, key) == getattr(settings.audio, key)
    config = GenerationConfig(text={"top_k": 3}, audio={"top_k": 3})
    ChannelSettings.read(config).write(config)
    assert config.top_k == 3


def test_released_spelling():
    config = GenerationConfig(
        layers=[{"temperature": 0.2}, {"temperature": 0.8, "top_p": 0.5}], do_samples=[False, True], top_p=0.7
    )
    settings = ChannelSettings.read(config)
    assert (settings.text.temperature, settings.text.top_p, settings.text.do_sample) == (0.2, 0.7, False)
    assert (settings.audio.temperature, settings.audio.top_p, settings.audio.do_sample) == (0.8, 0.5, True)
    config.text = {"temperature": 0.4}
    assert ChannelSettings.read(config).text.temperature == 0.4


def test_order_of_the_processors():
    """Constraints, the caller's, then what samples; a greedy channel in a loop that samples takes its best id."""
    config = GenerationConfig(
        text={"do_sample": False, "repetition_penalty": 1.1},
        audio={"do_sample": True, "temperature": 0.5, "top_k": 3, "repetition_penalty": 1.3},
    )

    def build(settings, custom):
        names = ["penalty"] if settings.repetition_penalty is not None else []
        names += [name for name in ("temperature", "top_k") if getattr(settings, name) and settings.do_sample]
        return LogitsProcessorList([*names, *custom])

    first, custom, last = ChannelSettings.read(config).processors(ChannelRules(IDS), build, ["custom"])
    assert list(first.text) == list(first.audio) == ["penalty"] and custom == "custom"
    assert isinstance(last.text[0], BestIdLogitsProcessor) and list(last.audio) == ["temperature", "top_k"]
