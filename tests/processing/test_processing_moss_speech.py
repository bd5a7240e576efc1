"""The processor of MOSS-Speech: rows of chats, settings, and what is refused."""

import os

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoTokenizer

from dualspeech import MossSpeechFeatureExtractor, MossSpeechProcessor
from tests.modeling.moss_codec_cases import recording, tiny_moss_codec
from tests.processing.moss_processor_cases import (
    ANSWER,
    CODEBOOK,
    SPEAK,
    SYSTEM,
    USER,
    WRITE,
    Rows,
    answers,
    fitting_config,
    rows_of,
    says,
    tiny_moss_processor,
)
from tests.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def codec():
    return tiny_moss_codec()


@pytest.fixture
def processor():
    return tiny_moss_processor()


@pytest.fixture
def speaking(codec):
    return tiny_moss_processor(codec)


# Prompts


@pytest.mark.parametrize("output", ["text", "audio"])
@pytest.mark.parametrize("asked", [USER, says(3, 1, 4)])
def test_prompts_of_the_four_pairs(processor, asked, output):
    rows = Rows(processor)
    batch = processor([[asked]], [output])
    content = "hello there" if asked is USER else rows.speech(3, 1, 4)
    expected = rows.turn("system", SPEAK if output == "audio" else WRITE) + rows.turn("user", content)
    expected += rows.text("<|im_start|>assistant\n" + ("<|object_ref_start|>" if output == "audio" else ""))
    assert batch["input_ids"].tolist() == [expected] and batch["attention_mask"].tolist() == [[1] * len(expected)]
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64
    assert set(batch) == set(processor.model_input_names)
    ids = processor.row_ids
    if asked is not USER:
        n = 3
        start = expected.index([ids.sosp_token_id, 5])
        assert [audio for _, audio in expected[start + 1 : start + n + 2]] == [3, 1, 4, CODEBOOK]
        assert [text for text, _ in expected[start + 1 : start + n + 2]] == [ids.modality_pad_token_id] * (n + 1)
    assert all(audio == 5 for text, audio in expected if text != ids.modality_pad_token_id)


def test_several_turns_and_a_system_turn_that_is_given(processor):
    rows = Rows(processor)
    chat = [SYSTEM, says(1), ANSWER, USER, answers(2, 2), says(3)]
    expected = rows.turn("system", "be kind") + rows.turn("user", rows.speech(1)) + rows.turn("assistant", "an answer")
    expected += rows.turn("user", "hello there") + rows.turn("assistant", rows.speech(2, 2))
    expected += rows.turn("user", rows.speech(3)) + rows.text("<|im_start|>assistant\n")
    assert rows_of(processor(chat)) == expected
    empty = rows.turn("system", [])
    assert rows_of(processor([{"role": "system", "content": ""}, USER]))[: len(empty)] == empty
    without = rows.turn("user", "hello there") + rows.text("<|im_start|>assistant\n")
    assert rows_of(processor([USER], add_system_prompt=False)) == without


def test_mixed_batches_are_padded_on_the_left_and_equal_single_rows(processor):
    chats = [[USER], [says(1, 2, 3), ANSWER, USER], [SYSTEM, says(7)], "hi"]
    modalities = ["text", "speech", "audio", None]
    batch = processor(chats, modalities)
    width = batch["input_ids"].shape[1]
    for i, (chat, modality) in enumerate(zip(chats, modalities, strict=True)):
        alone = processor(chat, modality)
        length = alone["input_ids"].shape[1]
        assert torch.equal(batch["input_ids"][i, width - length :], alone["input_ids"][0])
        assert batch["attention_mask"][i].tolist() == [0] * (width - length) + [1] * length
        assert (batch["input_ids"][i, : width - length] == torch.tensor([0, 5])).all()
    right = processor(chats, modalities, padding_side="right", pad_to_multiple_of=32)
    assert right["attention_mask"][:, 0].all() and right["input_ids"].shape[1] % 32 == 0
    lists = processor([USER], return_tensors=None, padding=False)
    assert isinstance(lists["input_ids"], list) and isinstance(lists["input_ids"][0][0], list)
    assert isinstance(processor([USER], return_tensors="np")["input_ids"], np.ndarray)
    wide = processor([USER], padding="max_length", max_length=200)
    assert wide["input_ids"].shape == (1, 200, 2) and rows_of(wide) == rows_of(processor([USER]))


def test_other_names_of_the_arguments(processor):
    expected = processor([USER], "audio")["input_ids"]
    assert torch.equal(processor([USER], output_modality="audio")["input_ids"], expected)
    assert torch.equal(processor("hello there", "audio")["input_ids"], expected)
    assert torch.equal(processor(text="hello there", output_modality="speech")["input_ids"], expected)
    batch = processor(text=["hello there", "hello there"], images=None, videos=None, output_modality=["audio", "text"])
    assert batch["input_ids"].shape[0] == 2 and rows_of(batch) == expected[0].tolist()
    with pytest.raises(ValueError, match="are the same; give one of them"):
        processor([USER], "audio", output_modality="audio")
    with pytest.raises(TypeError, match=r"unexpected arguments \['speaker'\]"):
        processor([USER], speaker="anna")


def test_going_on_with_a_reply(processor):
    rows = Rows(processor)
    head = rows.turn("system", WRITE) + rows.turn("user", "hello there")
    written = processor([USER, ANSWER], continue_final_message=True)
    assert rows_of(written) == head + rows.text("<|im_start|>assistant\n") + rows.text("an answer")
    head = rows.turn("system", SPEAK) + rows.turn("user", "hello there")
    spoken = processor([USER, answers(4, 6)], "audio", continue_final_message=True)
    start = rows.text("<|im_start|>assistant\n<|object_ref_start|>")
    assert rows_of(spoken) == head + start + rows.codes(4, 6)
    with pytest.raises(ValueError, match="needs a last turn of the assistant, the last one is of the user"):
        processor([USER], continue_final_message=True)


@pytest.mark.parametrize(
    "text", ["a<|im_end|>b", "<|im_start|>system\n", "<|object_ref_start|>", "<think>", "<|endoftext|>"]
)
def test_control_tokens_in_what_people_write(processor, text):
    with pytest.raises(ValueError, match="text must not contain the control token '<"):
        processor([{"role": "user", "content": text}])
    with pytest.raises(ValueError, match="text must not contain the control token '<"):
        processor.build_document([text])
    # No special token in Qwen3's tokenizer, and of no meaning to the machine.
    assert processor([{"role": "user", "content": "</think>"}])["input_ids"].shape[0] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"conversations": [says(CODEBOOK)]}, "`codes` holds 27; accepted are the codes 0 to 26"),
        ({"conversations": [says(-1)]}, "`codes` holds -1"),
        ({"conversations": [USER], "max_length": 10}, "`max_length` is 10, and examples are never cut"),
        ({"conversations": [USER], "truncation": True, "max_length": 10}, "`truncation` is not supported"),
        ({"conversations": [USER], "padding": "max_length"}, "`padding='max_length'` needs `max_length`"),
        ({"conversations": [USER], "padding": "most"}, "`padding` is 'most'"),
        ({"conversations": [[USER], [USER]], "output_modalities": ["text"]}, "has 1 entries for 2 conversations"),
        ({"conversations": [USER], "output_modalities": ["image"]}, "holds 'image'"),
        ({}, "give either `conversations` or"),
        ({"audio": (np.zeros(2000, np.float32), 16000)}, "an audio tokenizer is needed to read recordings; codes"),
    ],
)
def test_bad_calls(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


# Recordings


def test_recordings_are_encoded_together_as_alone(speaking, codec, tmp_path):
    first, second = recording(0.7).numpy(), recording(31.3, seed=1).numpy()
    soundfile.write(tmp_path / "a.wav", first, 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "b.wav", second, 16000, subtype="FLOAT")
    expected = [
        codec.encode_waveform(torch.from_numpy(samples)[None]).codes[0].tolist() for samples in (first, second)
    ]
    assert [len(codes) for codes in expected] == [9, 375 + 17]
    assert len(set(expected[0])) > 1
    together = speaking.encode_audio([tmp_path / "a.wav", (second, 16000)])
    assert [codes.tolist() for codes in together] == expected and together[0].dtype == np.int64
    chat = [
        {"role": "user", "content": {"path": str(tmp_path / "a.wav"), "type": "audio/wav"}},
        {"role": "assistant", "content": {"filepath": str(tmp_path / "b.wav")}},
        {"role": "user", "content": [{"type": "audio", "audio": first, "sampling_rate": 16000}]},
    ]
    by_codes = [says(*expected[0]), answers(*expected[1]), says(*expected[0])]
    batch = speaking([chat, [USER]], ["audio", "text"])
    assert torch.equal(batch["input_ids"], speaking([by_codes, [USER]], ["audio", "text"])["input_ids"])
    by_audio = speaking(audio=[tmp_path / "a.wav", None], text=[None, "hello there"])
    assert torch.equal(by_audio["input_ids"], speaking([[says(*expected[0])], [USER]])["input_ids"])
    bare = speaking(audio=first, sampling_rate=16000)
    assert torch.equal(bare["input_ids"], speaking([says(*expected[0])])["input_ids"])


def test_rates_and_channels(speaking, tmp_path):
    samples = recording(0.5, 44100).numpy()
    soundfile.write(tmp_path / "a.wav", samples, 44100, subtype="FLOAT")
    chat = [{"role": "user", "content": {"type": "audio", "path": str(tmp_path / "a.wav")}}]
    with pytest.raises(ValueError, match=r"a.wav' has a sampling rate of 44100 Hz; accepted is 16000 Hz here"):
        speaking(chat)
    assert speaking(chat, resample=True)["input_ids"].shape[1] == speaking([says(*[1] * 7)])["input_ids"].shape[1]
    stereo = np.stack([samples, 0 * samples])
    soundfile.write(tmp_path / "b.wav", stereo.T, 44100, subtype="FLOAT")
    chat = [{"role": "user", "content": {"type": "audio", "path": str(tmp_path / "b.wav")}}]
    with pytest.raises(ValueError, match=r"has shape \[2, 22050\]; accepted is mono"):
        speaking(chat, resample=True)
    missing = [{"role": "user", "content": {"type": "audio", "url": "missing.wav"}}]
    with pytest.raises(ValueError, match=r"the file 'missing.wav' does not exist"):
        speaking(missing)
    released = tiny_moss_processor(speaking.audio_tokenizer, compat=True)
    # The released processor takes the first channel and resamples without being asked.
    (mono,) = speaking.encode_audio((samples, 44100), resample=True)
    (first,) = released.encode_audio(tmp_path / "b.wav")
    assert first.tolist() == mono.tolist()


# The released quirks


def test_system_turn_of_the_release_stands_behind_all_turns():
    processor = tiny_moss_processor(compat=True)
    rows = Rows(processor)
    expected = (
        rows.turn("user", "hello there") + rows.turn("assistant", "an answer") + rows.turn("user", rows.speech(3))
    )
    expected += rows.turn("system", "You are a helpful assistant. Respond with spoken outputs.")
    expected += rows.text("<|im_start|>assistant\n<|object_ref_start|>")
    assert rows_of(processor([USER, ANSWER, says(3)], "audio")) == expected
    text = rows.turn("system", "You are a helpful assistant. Respond with text outputs.")
    assert rows_of(processor([USER])) == rows.turn("user", "hello there") + text + rows.text("<|im_start|>assistant\n")
    # One that is not the first turn does not count as given.
    assert rows_of(processor([USER, SYSTEM])).count(rows.text("<|im_start|>")[0]) == 4
    assert rows_of(processor([SYSTEM, USER])) == rows_of(tiny_moss_processor()([SYSTEM, USER]))
    example = processor.build_example([USER, ANSWER])
    expected = rows.turn("user", "hello there") + text + rows.turn("assistant", "an answer")
    assert example["input_ids"] == expected
    opened = processor([USER, ANSWER], continue_final_message=True)
    assert rows_of(opened) == expected[: -len(rows.text("<|im_end|>\n"))]


# Chat templates of transformers


def test_apply_chat_template(processor):
    chat = [USER, {"role": "assistant", "content": [{"type": "text", "text": "an answer"}]}, USER]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text == (
        f"<|im_start|>system\n{WRITE}<|im_end|>\n<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n"
        "an answer<|im_end|>\n<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n"
    )
    assert processor.apply_chat_template([chat], add_generation_prompt=True) == [text]
    rows = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True)
    assert rows.tolist() == processor(chat)["input_ids"].tolist() == [Rows(processor).text(text)]
    batch = processor.apply_chat_template(
        [chat, [says(1)]], tokenize=True, return_dict=True, return_tensors="np", output_modality="audio"
    )
    assert set(batch) == {"input_ids", "attention_mask"} and isinstance(batch["input_ids"], np.ndarray)
    ends = [row[-2:].tolist() for row in batch["input_ids"]]
    assert ends == [Rows(processor).text("<|im_end|>\n")] * 2  # no reply was begun
    spoken = processor.apply_chat_template(
        chat, tokenize=True, add_generation_prompt=True, processor_kwargs={"output_modality": "audio", "padding": True}
    )
    assert torch.equal(spoken, processor(chat, "audio")["input_ids"])
    opened = processor.apply_chat_template(chat[:2], continue_final_message=True)
    assert opened.endswith("<|im_start|>assistant\nan answer")
    rows = processor.apply_chat_template(chat[:2], continue_final_message=True, tokenize=True)
    assert rows.tolist() == [Rows(processor).text(opened)]
    assert processor.apply_chat_template("hello there") == processor.apply_chat_template([USER])


def test_masks_of_what_the_assistant_says(processor):
    rows = Rows(processor)
    batch = processor.apply_chat_template(
        [[USER, ANSWER, says(1), answers(2, 3)], [USER, ANSWER]],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    said = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["assistant_masks"], strict=True)]
    written = rows.text("an answer") + rows.stop
    assert said == [written + rows.codes(2, 3) + rows.end + rows.stop, written]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chat_template": "{{ messages }}"}, "`chat_template` is not supported"),
        ({"tools": [{}]}, "`tools` is not supported"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "exclude each other"),
        ({"conversation": [says(1)]}, "a conversation with audio has no text form: pass `tokenize=True`"),
    ],
)
def test_chat_templates_that_are_refused(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor.apply_chat_template(**({"conversation": [USER, ANSWER]} | arguments))


# Golden prompts of the released system


GOLDEN = {
    ("text", WRITE, "Introduce yourself in one sentence."): (
        "151644 8948 198 2610 525 264 10950 17847 13 21806 279 1196 594 4755 448 1467 13 151645 198 151644 872 198 1072 "
        "47845 6133 304 825 11652 13 151645 198 151644 77091 198"
    ),
    ("audio", SPEAK, "用中文介绍一下上海的三到四个著名景点。"): (
        "151644 8948 198 2610 525 264 10950 7743 17847 13 21806 279 1196 594 4755 448 21355 14507 13 151645 198 151644 "
        "872 198 11622 104811 109432 100633 9370 44991 26939 100802 102280 105869 1773 151645 198 151644 77091 198 151646"
    ),
}


@pytest.mark.parametrize(("modality", "system", "text"), GOLDEN)
def test_golden_prompts(modality, system, text):
    """The recorded ids: with Qwen3's tokenizer files when `DUALSPEECH_QWEN3_TOKENIZER` names their folder."""
    folder = os.environ.get("DUALSPEECH_QWEN3_TOKENIZER")
    if not folder:
        pytest.skip("the recorded ids are of Qwen3's tokenizer: set DUALSPEECH_QWEN3_TOKENIZER to a folder with it")
    processor = MossSpeechProcessor(MossSpeechFeatureExtractor(), AutoTokenizer.from_pretrained(folder))
    expected = [[int(token_id), 512] for token_id in GOLDEN[modality, system, text].split()]
    assert rows_of(processor([{"role": "user", "content": text}], modality)) == expected
    given = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    assert rows_of(processor([given], [modality])) == expected


@pytest.mark.parametrize(("modality", "system", "text"), GOLDEN)
def test_golden_prompts_in_structure(processor, modality, system, text):
    """The same prompts with the small tokenizer: where control tokens and pieces stand."""
    tokenizer, ids = processor.tokenizer, processor.row_ids
    names = {
        151643: "<|endoftext|>",
        151644: "<|im_start|>",
        151645: "<|im_end|>",
        151646: "<|object_ref_start|>",
        8948: "system",
        872: "user",
        77091: "assistant",
        198: "\n",
    }
    parts, run = [], []
    for golden in map(int, GOLDEN[modality, system, text].split()):
        if golden in names:
            parts += [run] * bool(run) + [names[golden]]
            run = []
        else:
            run.append(golden)
    assert not run and sum(isinstance(part, list) for part in parts) == 2
    contents = iter([system, text])
    expected = "".join(part if isinstance(part, str) else next(contents) for part in parts)
    rows = rows_of(processor([{"role": "user", "content": text}], modality))
    assert tokenizer.decode([text_id for text_id, _ in rows]) == expected
    assert [text_id for text_id, _ in rows] == tokenizer(expected, add_special_tokens=False)["input_ids"]
    assert {audio_id for _, audio_id in rows} == {ids.audio_pad_token_id}


# Codecs and models


def test_models_that_do_not_fit(processor, codec):
    config = fitting_config(processor)
    processor.check_model(config)
    other = fitting_config(processor, vocab_size=300, sosp_token_id=269)
    with pytest.raises(
        ValueError, match="`vocab_size`: processor 280, model 300; `sosp_token_id`: processor 268, model"
    ):
        processor.check_model(other)
    with pytest.raises(
        ValueError, match=r"'<\|im_end\|>' has the id 267, but replies of the model end with `eos_token_id`"
    ):
        processor.check_model(fitting_config(processor, eos_token_id=3))
    processor.check_model(fitting_config(processor, eos_token_id=[0, 267], pad_token_id=None))
    with pytest.raises(ValueError, match="differ in `codebook_size`: processor 20, audio tokenizer 27"):
        tiny_moss_processor(codec, codebook_size=20)
    with pytest.raises(ValueError, match="`feature_size`: processor 128, audio tokenizer 80"):
        MossSpeechProcessor(MossSpeechFeatureExtractor(), tiny_tokenizer("chat"), 280, CODEBOOK, audio_tokenizer=codec)


def test_codecs_that_only_decode():
    processor = tiny_moss_processor(tiny_moss_codec(encoder_config=None))
    rows = Rows(processor)
    assert len(processor.decode(rows.codes(1, 2)).audio) == 2 * 1920
    with pytest.raises(ValueError, match="no encoder"):
        processor(audio=(recording(0.5).numpy(), 16000))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sosp_token": "<speech>"}, "`tokenizer` lacks the token '<speech>' .`sosp_token`."),
        ({"sosp_token": "<think>"}, "the tokens of a chat must differ"),
        ({"vocab_size": 200}, "the tokenizer has 272 tokens, `vocab_size` is 200"),
        ({"codebook_size": 0}, "`codebook_size` must be positive"),
        ({"eosp_token_id": 3}, "`eosp_token_id` no code"),
    ],
)
def test_settings_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_moss_processor(**arguments)


def test_from_config(codec):
    tokenizer = tiny_tokenizer("chat")
    config = fitting_config(tiny_moss_processor())
    processor = MossSpeechProcessor.from_config(config, tokenizer, audio_tokenizer=codec, compat=True)
    assert processor.row_ids == tiny_moss_processor().row_ids and processor.compat
    assert processor.feature_extractor.feature_size == 80
    others = {"sosp_token_id": 269, "modality_pad_token_id": 271, "eosp_token_id": 29, "audio_vocab_size": 30}
    processor = MossSpeechProcessor.from_config(
        fitting_config(tiny_moss_processor(), **others), tokenizer, audio_tokenizer=codec
    )
    ids = processor.row_ids
    assert (ids.sosp_token_id, ids.modality_pad_token_id, ids.eosp_token_id, ids.codebook_size) == (269, 271, 29, 27)
    with pytest.raises(ValueError, match=r"`tokenizer` has no token with the id 279 .`sosp_token_id`"):
        MossSpeechProcessor.from_config(fitting_config(processor, sosp_token_id=279), tokenizer)
