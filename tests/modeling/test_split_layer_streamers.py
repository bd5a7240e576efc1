"""Streamers of the split-layer model: rows, text of transformers' own streamers, speech in chunks."""

import queue
import threading

import pytest
import torch
from transformers import TextIteratorStreamer
from transformers.generation.streamers import BaseStreamer

from dualspeech.modeling.split_layer_streamers import RowStreamer, SpeechStreamer

from .split_layer_generation_cases import left_padded, prompts_of, recorded, speech_rows, text_rows, tiny_model


class Words:
    """A tokenizer whose words are numbers."""

    def decode(self, ids, **kwargs):
        return "".join(f"{index} " for index in ids)


class Rows(RowStreamer):
    def __init__(self):
        self.values, self.ended = [], 0

    def put(self, value):
        self.values.append(value)

    def end(self):
        self.ended += 1


class Plain(BaseStreamer):
    def __init__(self):
        self.values = []

    def put(self, value):
        self.values.append(value.tolist())

    def end(self):
        pass


@pytest.fixture(scope="module")
def model():
    return tiny_model(3)


@pytest.mark.parametrize("settings", [{}, {"prompt_lookup_num_tokens": 3}, {"do_sample": True}])
def test_rows_as_they_come(model, settings):
    prompts = list(prompts_of(model.config).values())
    batches = [left_padded(prompts, model.config)] if "prompt_lookup_num_tokens" not in settings else []
    batches += [left_padded([prompt], model.config) for prompt in prompts]
    for batch in batches:
        streamer = Rows()
        output = model.generate(**batch, max_new_tokens=14, streamer=streamer, **settings)
        assert streamer.ended == 1
        spoken = batch["attention_mask"][..., None].bool()
        shown = streamer.values[0]
        assert shown.shape == batch["input_ids"].shape
        assert torch.equal(shown.where(spoken, 0), batch["input_ids"].where(spoken, 0))
        new = torch.cat(streamer.values[1:], dim=1)
        assert torch.equal(new[:, : output.generated_rows.shape[1]], output.generated_rows)
        if not settings:
            assert all(value.shape == (len(new), 1, 2) for value in streamer.values[1:])


def test_text_of_a_streamer_of_transformers(model):
    prompt = prompts_of(model.config)["history"]
    output = model.generate(prompt[None], max_new_tokens=20)
    words = output.text_ids[0].tolist()
    assert len(words) > 2 and output.speech_lengths[0] > 0
    streamer = TextIteratorStreamer(Words(), skip_prompt=True, timeout=20)
    model.generate(prompt[None], max_new_tokens=20, streamer=streamer)
    assert "".join(streamer).split() == [str(index) for index in words]
    streamer = Plain()
    model.generate(prompt[None], max_new_tokens=20, streamer=streamer)
    said = prompt[prompt[:, 0] != model.config.modality_pad_token_id, 0].tolist()
    assert streamer.values == [said, *[[index] for index in words]]


def test_who_may_stream(model):
    prompts = list(prompts_of(model.config).values())
    with pytest.raises(ValueError, match="accepts_rows"):
        model.generate(**left_padded(prompts, model.config), max_new_tokens=3, streamer=Plain())
    with pytest.raises(ValueError, match="one row, not 7"):
        model.generate(**left_padded(prompts, model.config), max_new_tokens=3, streamer=SpeechStreamer(model.config))
    with pytest.raises(ValueError, match="beam"):
        model.generate(prompts[0][None], max_new_tokens=3, streamer=Rows(), num_beams=2)
    for sizes in ({"chunk_size": 0}, {"first_chunk_size": 0}):
        with pytest.raises(ValueError, match="chunk"):
            SpeechStreamer(model.config, **sizes)


@pytest.mark.parametrize("first", [None, 2])
@pytest.mark.parametrize("size", [1, 3, 5, 100])
@pytest.mark.parametrize("name", ["speech_reply", "self_started_speech", "continue_speech", "max_new_tokens"])
def test_speech_in_chunks(name, size, first):
    model, tensors, meta = recorded()
    streamer = SpeechStreamer(model.config, chunk_size=size, first_chunk_size=first, timeout=60)
    streamer.start(model.generate, tensors[f"{name}.prompt"][None], **meta["cases"][name])
    events = list(streamer)
    result = streamer.result
    text = torch.cat([event.ids for event in events if event.channel == "text"] or [torch.zeros(0).long()])
    assert torch.equal(text, result.text_ids[0])
    speech = [event for event in events if event.channel == "audio"]
    assert torch.equal(torch.cat([event.ids for event in speech]), result.speech_codes[0])
    assert [event.ends_speech for event in speech] == [False] * (len(speech) - 1) + [True]
    expected = [first or size, *[size] * len(speech)][: len(speech) - 1]
    assert [len(event.ids) for event in speech[:-1]] == expected and len(speech[-1].ids) < size + (len(speech) == 1)
    assert all(event.ids.dtype == torch.int64 for event in events)
    assert next(streamer, None) is None


def put_all(streamer, *rows):
    streamer.put(rows[0][None])
    for row in torch.cat(rows[1:]):
        streamer.put(row[None, None])
    streamer.end()
    return [(event.channel, event.ids.tolist(), event.ends_speech) for event in streamer]


def test_turns_of_speech(model):
    config = model.config
    start, end = text_rows(config, config.sosp_token_id), speech_rows(config, config.eosp_token_id)
    text = text_rows(config, 4)
    streamer = SpeechStreamer(config, chunk_size=2)
    events = put_all(
        streamer, start, speech_rows(config, 1, 2, 3), end, text, start, end, start, speech_rows(config, 6, 7), end
    )
    assert events == [
        ("audio", [1, 2], False),
        ("audio", [3], True),
        ("text", [4], False),
        ("text", [config.sosp_token_id], False),
        ("audio", [], True),
        ("text", [config.sosp_token_id], False),
        ("audio", [6, 7], False),
        ("audio", [], True),
    ]
    assert put_all(SpeechStreamer(config), text, text) == [("text", [4], False)]
    # Cut by the length limit, in the middle of speech and right behind its start.
    assert put_all(SpeechStreamer(config), start, speech_rows(config, 1)) == [("audio", [1], True)]
    assert put_all(SpeechStreamer(config), text, start)[-1] == ("audio", [], True)


def test_errors_and_cancellation(model):
    config = model.config
    prompt = prompts_of(config)["start"][None]
    streamer = SpeechStreamer(config, timeout=30)
    streamer.start(model.generate, prompt, max_new_tokens=3, num_beams=2)
    with pytest.raises(ValueError, match="beam"):
        list(streamer)
    assert next(streamer, None) is None
    # The same object once more; it is cancelled in the middle.
    seen = threading.Event()

    def wait(input_ids, scores):
        if input_ids.shape[1] == prompt.shape[1] + 1:
            seen.wait(20)
        return scores

    streamer = SpeechStreamer(config, chunk_size=1, timeout=30)
    end = [config.vocab_size + config.eosp_token_id]
    thread = streamer.start(model.generate, prompt, max_new_tokens=5000, suppress_tokens=end, logits_processor=[wait])
    first = next(streamer)
    streamer.cancel()
    seen.set()
    rest = list(streamer)
    assert first.channel == "audio" and not thread.is_alive()
    assert streamer.result.finish_reason == ["cancelled"]
    assert len(rest) + 1 >= int(streamer.result.generated_lengths) == 2
    streamer.start(model.generate, prompt, max_new_tokens=2, suppress_tokens=end)
    assert sum(len(event.ids) for event in streamer) == 2 and streamer.result.finish_reason == ["length"]
    with pytest.raises(queue.Empty):
        next(SpeechStreamer(config, timeout=0.01))
