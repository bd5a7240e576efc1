"""Generated rows of MOSS-Speech as texts, waveforms and messages."""

import numpy as np
import pytest
import torch

from dualspeech import MossSpeechProcessor, MossSpeechVoice
from tests.modeling.moss_codec_cases import recording, tiny_moss_codec
from tests.processing.moss_processor_cases import (
    USER,
    Rows,
    answers,
    fitting_model,
    generation,
    rows_of,
    says,
    tiny_moss_processor,
)


@pytest.fixture(scope="module")
def codec():
    return tiny_moss_codec()


@pytest.fixture
def processor():
    return tiny_moss_processor()


@pytest.fixture
def speaking(codec):
    return tiny_moss_processor(codec)


def test_texts_and_codes(processor):
    rows = Rows(processor)
    output = generation(
        processor,
        rows.text("hello there") + rows.stop,
        rows.codes(1, 5, 1) + rows.end + rows.stop,
        rows.text("cut of") + rows.text("f"),
        rows.codes(4, 4),
        rows.stop,
        reasons=["eos", "eos", "length", "length", "cancelled"],
    )
    results = processor.batch_decode(output, return_audio=False)
    assert [result.text for result in results] == ["hello there", None, "cut off", None, ""]
    assert [None if r.codes is None else r.codes.tolist() for r in results] == [None, [1, 5, 1], None, [4, 4], None]
    assert [r.finish_reason for r in results] == ["eos", "eos", "length", "length", "cancelled"]
    assert results[1].codes.dtype == np.int64 and results[1].audio is results[1].sampling_rate is None
    # Plain rows, of one or several replies: how they ended is read from them.
    grids = [rows.text("hello there") + rows.stop + [processor.row_ids.padding] * 3, rows.codes(4, 4)]
    plain = processor.batch_decode(grids, return_audio=False)
    assert [(r.text, r.finish_reason) for r in plain] == [("hello there", "eos"), (None, "length")]
    assert processor.decode(torch.tensor(grids[0])).text == "hello there"
    assert processor.decode(np.array(grids[1]), return_audio=False).codes.tolist() == [4, 4]
    shown = processor.batch_decode(output, skip_special_tokens=False, return_audio=False)
    assert shown[0].text == "hello there<|im_end|>" and shown[1].text == "<|im_end|>"
    ids = processor.tokenizer("hello there<|im_end|>", add_special_tokens=False)["input_ids"]
    assert processor.batch_decode([ids, ids]) == ["hello there<|im_end|>"] * 2
    assert processor.decode(ids, skip_special_tokens=True) == "hello there"


def test_text_and_speech_in_one_reply(speaking):
    rows = Rows(speaking)
    reply = (
        rows.text("listen")
        + rows.speech(1, 2, 3)
        + rows.text(" and")
        + rows.speech(4)
        + rows.text(" done")
        + rows.stop
    )
    (result,) = speaking.batch_decode(generation(speaking, reply))
    assert result.text == "listen and done" and result.codes.tolist() == [1, 2, 3, 4]
    kinds = [(s.text, None if s.codes is None else s.codes.tolist()) for s in result.segments]
    assert kinds == [("listen", None), (None, [1, 2, 3]), (" and", None), (None, [4]), (" done", None)]
    assert [None if s.audio is None else len(s.audio) for s in result.segments] == [None, 3 * 1920, None, 1920, None]
    assert len(result.audio) == 4 * 1920
    np.testing.assert_array_equal(result.audio[: 3 * 1920], result.segments[1].audio)
    # Codes that follow the end of speech without a new start are no padding: they are kept, as speech of their own.
    (odd,) = speaking.batch_decode(generation(speaking, rows.codes(1) + rows.end + rows.codes(2)), return_audio=False)
    assert [s.codes.tolist() for s in odd.segments] == [[1], [2]]
    with pytest.raises(ValueError, match="the reply holds text and speech"):
        result.message()


def test_waveforms_in_a_batch_equal_those_alone(speaking, codec):
    rows = Rows(speaking)
    voice = speaking.make_voice((recording(1.0, 44100), 44100))
    replies = [rows.codes(1, 5, 1, 7) + rows.end + rows.stop, rows.text("hm") + rows.stop, rows.codes(4, 9)]
    results = speaking.batch_decode(generation(speaking, *replies), voice=voice)
    assert results[1].audio is None and results[1].sampling_rate is None
    for result, codes in ((results[0], [1, 5, 1, 7]), (results[2], [4, 9])):
        assert result.audio.dtype == np.float32 and result.sampling_rate == 24000
        expected = codec.decode(torch.tensor([codes]), voice=voice)[0, 0]
        assert result.audio.shape == expected.shape == (1920 * len(codes),) and expected.abs().max() > 1e-3
        np.testing.assert_allclose(result.audio, expected, atol=1e-4)
    fewer = speaking.batch_decode(generation(speaking, *replies), voice=voice, audio_kwargs={"num_timesteps": 1})
    assert not np.allclose(fewer[0].audio, results[0].audio, atol=1e-4)
    with pytest.raises(ValueError, match="needed to decode codes; without it pass `return_audio=False`"):
        tiny_moss_processor().batch_decode(generation(speaking, *replies))


def test_voices(speaking):
    rows = Rows(speaking)
    one, two = (speaking.make_voice((recording(1.0, seed=seed), 16000)) for seed in (1, 2))
    assert isinstance(one, MossSpeechVoice) and one.num_codes == 12
    output = generation(speaking, *[rows.codes(3, 8) + rows.end + rows.stop] * 3)

    def waves(**kwargs):
        return [result.audio for result in speaking.batch_decode(output, **kwargs)]

    none, first, second = (waves(voice=voice)[0] for voice in (None, one, two))
    assert not np.allclose(none, first, atol=1e-3) and not np.allclose(first, second, atol=1e-3)
    for mixed, expected in zip(waves(voice=[two, None, one]), [second, none, first], strict=True):
        np.testing.assert_allclose(mixed, expected, atol=1e-4)
    np.testing.assert_allclose(waves()[0], none, atol=1e-6)
    speaking.voice = two
    np.testing.assert_allclose(waves()[1], second, atol=1e-6)
    np.testing.assert_allclose(waves(voice=None)[1], none, atol=1e-6)
    for wrong, message in {
        "anna": "`voice` is 'anna'; accepted are MossSpeechVoice objects",
        (one,): "`voice` has 1 entries for 3 rows",
    }.items():
        with pytest.raises(ValueError, match=message):
            waves(voice=wrong)
    with pytest.raises(ValueError, match="must be a MossSpeechVoice or None, got str; make one with `make_voice`"):
        speaking.voice = "anna"
    foreign = another_codec().make_voice(recording(1.0), 16000)
    with pytest.raises(ValueError, match="a voice of another codec"):
        waves(voice=foreign)


def another_codec():
    return tiny_moss_codec(prompt_max_frequency=6000.0)


def test_a_default_voice_of_another_codec_is_refused_at_once(codec):
    processor, other = tiny_moss_processor(codec), another_codec()
    voice, foreign = (model.make_voice(recording(1.0), 16000) for model in (codec, other))
    with pytest.raises(ValueError, match="`voice` is a voice of another codec: fingerprint"):
        processor.voice = foreign
    assert processor.voice is None
    processor.voice = voice
    with pytest.raises(ValueError, match=r"`processor\.voice` is a voice of another codec"):
        processor.audio_tokenizer = other
    assert processor.audio_tokenizer is codec
    processor.voice = None
    processor.audio_tokenizer = other
    processor.voice = foreign
    # Nothing to compare with yet.
    processor = tiny_moss_processor()
    processor.voice = foreign
    with pytest.raises(ValueError, match=r"`processor\.voice` is a voice of another codec"):
        processor.audio_tokenizer = codec


def test_a_default_voice_is_compared_before_the_codec_is_loaded(codec, tmp_path):
    tiny_moss_processor(codec).save_pretrained(tmp_path)
    foreign = another_codec().make_voice(recording(1.0), 16000)
    processor = MossSpeechProcessor.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`voice` is a voice of another codec"):
        processor.voice = foreign
    processor.voice = codec.make_voice(recording(1.0), 16000)
    assert processor._audio_tokenizer.model is None
    # A codec on the Hub is compared when it comes.
    location = processor._audio_tokenizer.location
    processor._audio_tokenizer.location = location | {"pretrained_model_name_or_path": "user/name"}
    processor.voice = foreign
    processor._audio_tokenizer.location = location
    with pytest.raises(ValueError, match=r"`processor\.voice` is a voice of another codec"):
        processor.load_audio_tokenizer()
    foreign.save(tmp_path / "voice.safetensors")
    with pytest.raises(ValueError, match="`voice` is a voice of another codec"):
        MossSpeechProcessor.from_pretrained(tmp_path)


def test_text_ids_outside_the_vocabulary(processor):
    rows = Rows(processor)
    pad = processor.row_ids.audio_pad_token_id
    for wrong in (-1, 280, -100):
        message = f"holds the text id {wrong}; accepted are 0 to 279"
        grid = [*rows.text("hello"), [wrong, pad]]
        for output in (generation(processor, grid), [grid], [np.array(grid)]):
            with pytest.raises(ValueError, match=f"row 5 {message}"):
                processor.batch_decode(output, return_audio=False)
        with pytest.raises(ValueError, match=message):
            processor.decode(torch.tensor(grid))
        for plain in ([[1, 2], [3, wrong]], torch.tensor([[1, wrong]]), [torch.tensor([wrong])], [1, wrong]):
            with pytest.raises(ValueError, match=f"`output` {message}"):
                processor.batch_decode(plain)
        for plain in ([1, wrong], torch.tensor([wrong]), np.array([wrong]), wrong):
            with pytest.raises(ValueError, match=f"`output` {message}"):
                processor.decode(plain)
        for shown in ([grid], [[1, wrong]]):
            with pytest.raises(ValueError, match=message):
                processor.post_process_multimodal_output(shown)
    # The rows behind a stop row are padding, which nobody reads.
    assert processor.decode(rows.text("hello") + rows.stop + [[-1, pad]], return_audio=False).text == "hello"
    assert processor.decode(279) is not None and processor.decode([]) == ""


def test_speech_without_codes_is_silence_with_a_warning(speaking):
    rows = Rows(speaking)
    output = generation(speaking, rows.end + rows.stop, rows.codes(1) + rows.end + rows.stop)
    with pytest.warns(UserWarning, match="row 0 speaks without a single code: its audio has length 0"):
        empty, other = speaking.batch_decode(output)
    assert empty.audio.shape == (0,) and empty.audio.dtype == np.float32 and empty.sampling_rate == 24000
    assert empty.codes.tolist() == [] and empty.text is None and len(other.audio) == 1920
    with pytest.raises(ValueError, match="the reply is empty"):
        empty.message()


def test_released_decoding_drops_the_last_row_and_replaces_strings():
    released, ours = tiny_moss_processor(compat=True), tiny_moss_processor()
    rows = Rows(ours)
    replies = [
        rows.text("wait<|empty|> now<|end_empty|>") + rows.stop,
        rows.text("cut of") + rows.text("f"),
        rows.codes(1, 2, 3),
        rows.codes(1, 2) + rows.end + rows.stop,
    ]
    plain = ours.batch_decode(generation(ours, *replies), return_audio=False)
    quirky = released.batch_decode(generation(ours, *replies), return_audio=False)
    assert [r.text for r in plain] == ["wait<|empty|> now<|end_empty|>", "cut off", None, None]
    assert [r.text for r in quirky] == ["wait. now:", "cut of", None, None]
    assert [r.codes.tolist() for r in plain[2:]] == [[1, 2, 3], [1, 2]]
    assert [r.codes.tolist() for r in quirky[2:]] == [[1, 2], [1, 2]]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            [[[0, 5], [270, 28]]],
            "row 1 holds the audio id 28; accepted are the codes 0 to 26 and the end of speech 27",
        ),
        ([[[0, 5, 1]]], r"rows must be whole numbers \[L, 2\] .text id, audio id., got int64 \[1, 3\]"),
        ([[[0.5, 5]]], "rows must be whole numbers"),
        ([[[0, 5]], [1, 2]], "holds both rows .* and plain ids"),
    ],
)
def test_bad_replies(processor, output, message):
    output = [
        [[0 if i == 0 else i, *rest] for i, *rest in grid] if isinstance(grid[0], list) else grid for grid in output
    ]
    if output[0][0] == [0, 5] and len(output[0]) > 1:
        output[0][0] = [10, 5]  # the text id 0 ends a reply
    with pytest.raises(ValueError, match=message):
        processor.batch_decode(output)


@pytest.mark.parametrize("lengths", [(3, 12)])
def test_a_conversation_with_a_model(speaking, lengths):
    model = fitting_model(speaking)
    speaking.check_model(model)
    chats = [[USER], [says(1, 2, 3)], [USER]]
    inputs = speaking(chats, ["text", "audio", "audio"])
    torch.manual_seed(0)
    output = model.generate(**inputs, max_new_tokens=lengths[1], do_sample=True)
    text, *spoken = speaking.batch_decode(output)
    assert isinstance(text.text, str) and all(len(s.audio) == 1920 * len(s.codes) for s in spoken)
    for i, result in enumerate([text, *spoken]):
        length = int(output.speech_lengths[i])
        codes = np.zeros(0, np.int64) if result.codes is None else result.codes
        assert codes.tolist() == output.speech_codes[i, :length].tolist()
        assert result.finish_reason == output.finish_reason[i]
    # The reply goes on as codes, and the model would have been asked the same with them written by hand.
    chat = [*chats[1], spoken[0].message() if spoken[0].text is None else answers(*spoken[0].codes), USER]
    assert rows_of(speaking(chat, "text")) == rows_of(
        speaking([says(1, 2, 3), answers(*spoken[0].codes), USER], "text")
    )
    again = model.generate(**speaking(chat, "audio"), max_new_tokens=2)
    assert len(speaking.batch_decode(again, return_audio=False)) == 1


def test_what_the_pipeline_shows(speaking):
    rows = Rows(speaking)
    reply, written = rows.codes(1, 2) + rows.end + rows.stop, rows.text("hi") + rows.stop
    output = generation(speaking, reply, reply)
    (wave, _) = speaking.post_process_multimodal_output(output, generation_mode="audio")
    np.testing.assert_allclose(wave, speaking.decode(reply).audio, atol=1e-5)
    both = generation(speaking, reply, written)
    assert speaking.post_process_multimodal_output(both) == ["", "hi"]
    assert speaking.post_process_multimodal_output(both["generated_rows"]) == ["", "hi"]
    assert speaking.post_process_multimodal_output(torch.tensor([[72, 73]])) == [speaking.tokenizer.decode([72, 73])]
    with pytest.raises(ValueError, match="`generation_mode='audio'`, but row 1 does not speak; ask for speech"):
        speaking.post_process_multimodal_output(both, generation_mode="audio")
    with pytest.raises(ValueError, match="`generation_mode` is 'image'; accepted are 'text' and 'audio'"):
        speaking.post_process_multimodal_output(both, generation_mode="image")
