"""The processor: what may be given, batches for generation and training, and results."""

import numpy as np
import pytest
import soundfile
import torch
from transformers.utils import ModelOutput

from dualspeech import DualSpeechConfig, DualSpeechProcessor
from dualspeech.configuration.configuration_dualspeech import TASK_IDS
from dualspeech.modeling.speaker_adapters import PrecomputedSpeakers
from dualspeech.processing.tasks import TASKS
from tests.tiny import tiny_audio_tokenizer, tiny_processor, tone

VOICE = np.linspace(-1, 1, 12, dtype=np.float32)
LANGUAGES = {"source_language": "English", "target_language": "German"}
# Inputs of each task as codes and text, so that nothing has to be encoded.
INPUTS = {
    "asr": {"audio": [1, 2, 3]},
    "s2tt": {"audio": [4, 5], **LANGUAGES},
    "ser": {"audio": [6]},
    "sqa": {"audio": [7, 8], "question": "who is it?"},
    "tts": {"text": "hello there", "speaker": VOICE},
    "t2st": {"text": "good day", "speaker": VOICE, **LANGUAGES},
    "vc": {"audio": [9, 10, 11], "speaker": VOICE},
    "sc": {"audio": [12], "question": [13, 14], "speaker": VOICE},
}


@pytest.fixture(scope="module")
def audio_tokenizer():
    torch.manual_seed(0)
    return tiny_audio_tokenizer()


@pytest.fixture
def processor(audio_tokenizer):
    return tiny_processor(audio_tokenizer=audio_tokenizer)


def equal(actual, expected):
    assert set(actual) == set(expected)
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], msg=name)


@pytest.mark.parametrize("kind", ["metaspace", "metaspace_first", "byte_level"])
@pytest.mark.parametrize("task", INPUTS)
def test_inputs_of_generate(kind, task):
    processor = tiny_processor(kind)
    inputs = processor(task=task, **INPUTS[task])
    speaks = TASKS[task].output == "speech"
    assert set(inputs) == set(processor.model_input_names) - (set() if speaks else {"speaker_embeds"})
    assert inputs["input_ids"].dtype == torch.int64 and inputs["task_type_ids"].tolist() == [TASK_IDS[task]]
    prompt = processor.tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True)
    assert prompt.rstrip().endswith("\nASSISTANT:") and inputs["attention_mask"].all()
    if speaks:
        assert inputs["speaker_embeds"].dtype == torch.float32
        np.testing.assert_array_equal(inputs["speaker_embeds"][0], VOICE)


def test_mixed_batches_are_padded_on_the_left_and_equal_single_rows():
    processor = tiny_processor()
    rows = list(INPUTS.items())
    fields = {
        name: [row.get(name) for _, row in rows] for name in ("text", "audio", "question", "speaker", *LANGUAGES)
    }
    batch = processor(task=[task for task, _ in rows], **fields)
    assert batch["task_type_ids"].tolist() == [TASK_IDS[task] for task, _ in rows]
    for i, (task, row) in enumerate(rows):
        single = processor(task=task, **row)
        length = single["input_ids"].shape[1]
        assert torch.equal(batch["input_ids"][i, -length:], single["input_ids"][0])
        assert batch["attention_mask"][i].tolist() == [0] * (batch["input_ids"].shape[1] - length) + [1] * length
        assert (batch["input_ids"][i, :-length] == processor.pad_token_id).all()
        expected = single.get("speaker_embeds", torch.zeros(1, 12))
        assert torch.equal(batch["speaker_embeds"][i], expected[0])


def test_single_values_go_to_all_rows_that_take_them():
    processor = tiny_processor()
    tasks = ["s2tt", "tts", "asr"]
    batch = processor(["", "hi", None], [[1], None, [2]], task=tasks, speaker=VOICE, **LANGUAGES)
    expected = processor(
        [None, "hi", None],
        [[1], None, [2]],
        task=tasks,
        speaker=[None, VOICE, None],
        source_language=["English", None, None],
        target_language=["German", None, None],
    )
    equal(batch, expected)
    repeated = processor("hi", task="tts", speaker=np.stack([VOICE, -VOICE]))
    assert repeated["input_ids"].shape[0] == 2 and torch.equal(*repeated["input_ids"])
    np.testing.assert_array_equal(repeated["speaker_embeds"], [VOICE, -VOICE])


def test_recordings_and_codes_are_the_same(processor, audio_tokenizer, tmp_path):
    recording = tone(0.4)
    codes = processor.encode_audio((recording, 16000), outputs=["us_codes"])[0]["us_codes"]
    direct = audio_tokenizer.encode(torch.from_numpy(recording)[None], outputs=("us_codes",)).us_codes[0]
    assert codes.tolist() == direct.tolist() and len(codes) == 10
    soundfile.write(tmp_path / "a.wav", recording, 16000, subtype="FLOAT")
    expected = processor(task="asr", audio=codes)
    ways = [
        codes.tolist(),
        torch.from_numpy(codes),
        codes.astype(np.int16),
        tmp_path / "a.wav",
        str(tmp_path / "a.wav"),
        (recording, 16000),
        {"array": recording, "sampling_rate": 16000},
    ]
    for way in ways:
        equal(processor(task="asr", audio=way), expected)
        equal(processor(audio=[way], task=["asr"]), expected)
    equal(processor(task="asr", audio=recording, sampling_rate=16000), expected)
    equal(processor(task="asr", audio=recording, audio_kwargs={"sampling_rate": 16000}), expected)
    equal(processor(task="asr", audio=torch.from_numpy(recording), sampling_rate=16000), expected)
    equal(processor(task="asr", audio=recording.tolist(), sampling_rate=16000), expected)


def test_encode_audio_in_a_batch_equals_alone(processor):
    recordings = [(tone(0.5, 24000, 300), 24000), (tone(0.2, 24000), 24000)]
    together = processor.encode_audio(recordings)
    for recording, row in zip(recordings, together, strict=True):
        (alone,) = processor.encode_audio(recording)
        assert row["us_codes"].dtype == row["acoustic_codes"].dtype == np.int64
        assert row["us_codes"].tolist() == alone["us_codes"].tolist()
        assert row["acoustic_codes"].tolist() == alone["acoustic_codes"].tolist()
        np.testing.assert_allclose(row["speaker_embeds"], alone["speaker_embeds"], rtol=1e-4, atol=1e-6)
    assert len(together[0]["acoustic_codes"]) == 100 and len(together[1]["acoustic_codes"]) == 40
    with pytest.raises(ValueError, match="of 16000 Hz; accepted are 24000 Hz"):
        processor.encode_audio((tone(0.5), 16000))


def test_resampling_must_be_asked_for(processor):
    recording = (tone(0.3, 44100), 44100)
    with pytest.raises(ValueError, match="of 44100 Hz; accepted are 16000 and 24000 Hz"):
        processor(task="asr", audio=recording)
    assert processor(task="asr", audio=recording, resample=True)["input_ids"].shape[0] == 1


def test_speakers(processor, tmp_path):
    recording = tone(0.4)
    soundfile.write(tmp_path / "anna", recording, 16000, subtype="FLOAT", format="WAV")
    expected = processor.encode_audio((recording, 16000), outputs=["speaker_embeds"])[0]["speaker_embeds"]

    def vector(speaker):
        return processor("hi", task="tts", speaker=speaker)["speaker_embeds"][0].numpy()

    for way in (
        (recording, 16000),
        {"array": recording, "sampling_rate": 16000},
        tmp_path / "anna",
        str(tmp_path / "anna"),
    ):
        np.testing.assert_allclose(vector(way), expected, rtol=1e-5)
    for way in (
        VOICE,
        VOICE.tolist(),
        torch.from_numpy(VOICE),
        VOICE.astype(np.float64),
        torch.tensor(VOICE).double(),
    ):
        np.testing.assert_array_equal(vector(way), VOICE)
    for speakers in ({"anna": VOICE, "ben": -VOICE}, PrecomputedSpeakers({"anna": torch.tensor(VOICE)})):
        processor.speakers = speakers
        np.testing.assert_array_equal(vector("anna"), VOICE)
    with pytest.raises(
        ValueError, match=r"'carl' is neither a name in `processor.speakers` \('anna'\) nor an existing file"
    ):
        vector("carl")
    batch = processor(["a", "b"], task="tts", speaker=["anna", (recording, 16000)])
    np.testing.assert_allclose(batch["speaker_embeds"], [VOICE, expected], rtol=1e-5)


@pytest.mark.parametrize(
    ("speaker", "message"),
    [
        (None, r"task 'tts' needs `speaker`: a vector of 12 numbers, a recording, or a name .*\(empty\)"),
        (VOICE[:5], r"`speaker` has shape \[5\]; accepted is a vector of 12 finite numbers"),
        (tone(0.2), r"`speaker` has shape \[3200\]; .* or a recording with its rate"),
        (np.full(12, np.nan), "`speaker` has NaN or infinite numbers"),
    ],
)
def test_bad_speakers(speaker, message):
    with pytest.raises(ValueError, match=message):
        tiny_processor()("hi", task="tts", speaker=speaker)


def test_bad_named_speakers():
    processor = tiny_processor()
    with pytest.raises(ValueError, match=r"speaker 'anna' has shape \[3\]"):
        processor.speakers = {"anna": [1.0, 2.0, 3.0]}
    assert processor.speakers == {}
    processor.speakers["anna"] = VOICE[:4]
    with pytest.raises(ValueError, match=r"speaker 'anna' has shape \[4\]"):
        processor("hi", task="tts", speaker="anna")
    with pytest.raises(ValueError, match="of no use"):
        tiny_processor(speaker_embedding_size=None).speakers = {"anna": VOICE}


def test_models_without_speakers_or_acoustic_stage():
    plain = tiny_processor(speaker_embedding_size=0)
    assert "speaker_embeds" not in plain("hi", task="tts")
    with pytest.raises(ValueError, match="`speaker` is given, but the model has no speaker token"):
        plain("hi", task="tts", speaker=VOICE)
    semantic = tiny_processor(acoustic_codebook_size=None)
    row = semantic("hi", task="tts", targets={"us_codes": [1, 2]})
    assert set(row) == {"input_ids", "attention_mask", "task_type_ids", "labels", "prompt_mask"}
    assert semantic.speaker_embedding_size is None


def test_training_rows_from_recordings(processor):
    target = (tone(0.3, 24000), 24000)
    (encoded,) = processor.encode_audio(target)
    given = {"us_codes": encoded["us_codes"], "acoustic_codes": encoded["acoustic_codes"].tolist()}
    for task in ("tts", "t2st", "sc"):
        inputs = {name: value for name, value in INPUTS[task].items() if name != "speaker"}
        expected = processor(task=task, **inputs, targets={**given, "speaker_embeds": encoded["speaker_embeds"]})
        equal(processor(task=task, **inputs, targets={"audio": target}), expected)
        equal(processor(task=task, **inputs, targets={"audio": target[0], "sampling_rate": 24000}), expected)
        equal(processor(task=task, **inputs, targets=[{"audio": target[0]}], sampling_rate=24000), expected)
        named = processor(task=task, **inputs, speaker=VOICE, targets={"audio": target})
        np.testing.assert_array_equal(named["speaker_embeds"][0], VOICE)
    assert expected["acoustic_labels"][0].tolist() == [*encoded["acoustic_codes"].tolist(), 67]


def test_voice_conversion_repeats_its_input(processor):
    source, target = (tone(0.4), 16000), (tone(0.3, 24000, 400), 24000)
    codes = processor.encode_audio(source, outputs=["us_codes"])[0]["us_codes"].tolist()
    (encoded,) = processor.encode_audio(target)
    row = processor.build_example(task="vc", audio=source, targets={"audio": target})
    ids = processor.speech_token_ids
    assert row["labels"][-len(codes) - 3 :] == [*ids.encode(codes), processor.tokenizer.eos_token_id]
    assert row["acoustic_labels"] == [*encoded["acoustic_codes"].tolist(), 67]
    np.testing.assert_allclose(row["speaker_embeds"], encoded["speaker_embeds"], rtol=1e-5)
    other = processor.build_example(task="vc", audio=source, targets={"audio": target, "us_codes": [5, 6]})
    assert other["labels"][-5:] == [*ids.encode([5, 6]), processor.tokenizer.eos_token_id]


def test_training_batches_mix_all_tasks():
    processor = tiny_processor()
    tasks = list(INPUTS)
    targets = [
        f"answer {task}" if TASKS[task].output == "text" else {"us_codes": [i], "acoustic_codes": [i] * (i + 1)}
        for i, task in enumerate(tasks)
    ]
    columns = {
        name: [INPUTS[task].get(name) for task in tasks]
        for name in ("text", "audio", "question", "speaker", *LANGUAGES)
    }
    examples = processor.build_examples(task=tasks, targets=targets, **columns)
    for example, (task, inputs), target in zip(examples, INPUTS.items(), targets, strict=True):
        assert example == processor.build_example(task=task, **inputs, targets=target)
        for name, value in example.items():
            assert isinstance(value, int if name == "task_type_ids" else (list, type(None)))
    batch = processor(task=tasks, targets=targets, **columns)
    equal(batch, processor.pad(examples))
    assert (batch["attention_mask"][:, 0] == 1).all()
    labels, prompt = batch["labels"], batch["prompt_mask"].bool()
    assert (labels[prompt] == -100).all() and (labels[batch["attention_mask"] == 0] == -100).all()
    answered = (batch["attention_mask"] == 1) & ~prompt
    assert torch.equal(labels[answered], batch["input_ids"][answered])
    assert batch["acoustic_labels"][0, :3].tolist() == [65, 67, -100]
    assert batch["acoustic_labels"][4, :7].tolist() == [4, 4, 4, 4, 4, 67, -100]
    assert not batch["speaker_embeds"][:4].any() and (batch["speaker_embeds"][4:] == torch.tensor(VOICE)).all()


def test_understanding_batches_bring_what_the_acoustic_stage_needs():
    # A batch has the same entries whatever it holds: the released dummy target, and no voice.
    batch = tiny_processor()(task="asr", audio=[[1], [2, 3]], targets=["yes", {"text": "no"}])
    assert batch["acoustic_labels"].tolist() == [[65, 67]] * 2 and not batch["speaker_embeds"].any()
    several = tiny_processor(num_acoustic_codebooks=3)
    assert several(task="asr", audio=[1], targets="yes")["acoustic_labels"].tolist() == [[[65] * 3, [67] * 3]]


@pytest.mark.parametrize(
    ("task", "targets", "message"),
    [
        ("asr", "", "`targets` of task 'asr' needs a text that is not empty, got ''"),
        ("asr", 5, "needs a text that is not empty, got int"),
        ("asr", {"text": 5}, "needs a text that is not empty, got 5"),
        ("asr", {"us_codes": [1]}, "needs a text that is not empty, got 'us_codes'; accepted are 'text'"),
        ("tts", "hello", "needs a dict with `audio`.*, got 'text'; accepted are 'audio', 'sampling_rate', 'us_codes'"),
        ("tts", {"codes": [1]}, "got 'codes'; accepted are"),
        ("tts", {"us_codes": [1]}, "`targets` of task 'tts' lacks `acoustic_codes`: give it, or `audio`"),
        ("tts", {"acoustic_codes": [1]}, "lacks `us_codes`"),
        ("vc", {}, "lacks `acoustic_codes`"),
        ("tts", {"us_codes": [24], "acoustic_codes": [1]}, "`us_codes` holds 24; accepted are the codes 0 to 23"),
        (
            "tts",
            {"us_codes": [2], "acoustic_codes": [64]},
            "`acoustic_codes` holds 64; accepted are the codes 0 to 63",
        ),
        ("asr", "a</s>b", "must not contain the special token '</s>'"),
        ("asr", ["a", "b"], None),
        ("asr", [None], "`targets` has none for row 0"),
    ],
)
def test_bad_targets(task, targets, message):
    processor = tiny_processor()
    if message is None:
        assert processor(task=task, **INPUTS[task], targets=targets)["input_ids"].shape[0] == 2
        return
    with pytest.raises(ValueError, match=message):
        processor(task=task, **INPUTS[task], targets=targets)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "hello"}, "`task` is None; accepted are 'asr', 's2tt'"),
        ({}, "`task` is None"),
        ({"task": "sing", "text": "hello"}, "`task` is 'sing'; accepted are 'asr'"),
        ({"task": "asr"}, "task 'asr' needs `audio`: it takes `audio` .audio., given was nothing"),
        ({"task": "asr", "audio": [1], "text": "x"}, "task 'asr' does not take `text`"),
        ({"task": "asr", "audio": [1], "speaker": VOICE}, "task 'asr' answers with text and does not take `speaker`"),
        ({"task": "asr", "audio": [[1], [2]], "question": [None, "why?"]}, "task 'asr' does not take `question`"),
        ({"task": "asr", "audio": [24]}, "`us_codes` holds 24; accepted are the codes 0 to 23"),
        ({"task": "asr", "audio": [[1], []]}, "`us_codes` is empty"),
        ({"task": "asr", "audio": []}, "at least one: `audio` has 0"),
        ({"task": ["asr", "asr"], "audio": [[1], [2], [3]]}, "one entry per row.*`task` has 2, `audio` has 3"),
        (
            {"task": "asr", "audio": np.array([1, 2], dtype=np.int16), "sampling_rate": 16000},
            "an array of int16 and `sampling_rate` is given",
        ),
        ({"task": "asr", "audio": [1.0, 2.0]}, "`sampling_rate` is unknown"),
        ({"task": "asr", "audio": "missing.wav"}, "the file 'missing.wav' does not exist"),
        ({"task": "asr", "audio": [1], "truncation": True}, "`truncation` is not supported"),
        ({"task": "asr", "audio": [1], "max_length": 10}, "`max_length` is 10, and rows are never cut"),
        ({"task": ["asr", "ser"], "audio": [1], "targets": "yes"}, "`targets` is a single target for 2 rows"),
        ({"task": "tts", "text": "say <a_3>", "speaker": VOICE}, "must not contain the speech token '<a_3>'"),
    ],
)
def test_bad_inputs(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match=r"unexpected arguments \['speakers'\]"):
        tiny_processor()("hi", task="tts", speakers="anna")
    with pytest.raises(ValueError, match="makes one row, the arguments describe 2"):
        tiny_processor().build_example(task="asr", audio=[[1], [2]])


def test_recordings_need_an_audio_tokenizer():
    with pytest.raises(
        ValueError, match="an audio tokenizer is needed to read recordings; codes can be given instead"
    ):
        tiny_processor()(task="asr", audio=(tone(0.2), 16000))


def test_padding_options():
    processor = tiny_processor()
    rows = {"task": "asr", "audio": [[1], [2, 3, 4]]}
    assert processor(**rows, padding_side="right")["attention_mask"][0, -1] == 0
    length = processor(**rows)["input_ids"].shape[1]
    assert processor(**rows, pad_to_multiple_of=64)["input_ids"].shape[1] == -(-length // 64) * 64
    assert processor(**rows, padding="max_length", max_length=100)["input_ids"].shape[1] == 100
    assert processor(**rows, text_kwargs={"padding": "max_length", "max_length": 99})["input_ids"].shape[1] == 99
    assert isinstance(processor(**rows, return_tensors="np")["input_ids"], np.ndarray)
    lists = processor(**rows, padding=False, return_tensors=None)["input_ids"]
    assert len(lists[1]) - len(lists[0]) == 2
    end = tiny_processor()
    end.tokenizer.pad_token = None
    assert end.pad_token_id == end.tokenizer.eos_token_id


def dualspeech_config(**changes):
    values = {
        "text_config": {"model_type": "llama", "vocab_size": 140, "hidden_size": 8, "num_attention_heads": 2},
        "acoustic_config": {"codebook_size": 64, "hidden_size": 8, "num_attention_heads": 2},
        "audio_start_token_id": 108,
        "audio_end_token_id": 109,
        "semantic_token_offset": 110,
        "semantic_codebook_size": 24,
        "speaker_embedding_size": 12,
    }
    return DualSpeechConfig(**values | changes)


def test_the_processor_and_the_model_must_agree(audio_tokenizer):
    processor = tiny_processor()
    processor.check_model(dualspeech_config())
    acoustic = {"codebook_size": 60, "num_codebooks": 2, "hidden_size": 8, "num_attention_heads": 2}
    for changes, message in [
        ({"audio_start_token_id": 5}, "differ in `audio_start_token_id`: processor 108, model 5"),
        ({"semantic_codebook_size": 20}, "`semantic_codebook_size`: processor 24, model 20"),
        ({"semantic_token_offset": 111}, "`semantic_token_offset`: processor 110, model 111"),
        ({"speaker_embedding_size": 192}, "`speaker_embedding_size`: processor 12, model 192"),
        (
            {"acoustic_config": acoustic},
            "_size`: processor 64, model 60; .*`num_acoustic_codebooks`: processor 1, model 2",
        ),
        ({"acoustic_config": None}, "`acoustic_codebook_size`: processor 64, model None"),
    ]:
        with pytest.raises(ValueError, match=message):
            processor.check_model(dualspeech_config(**changes))
    processor.tokenizer.add_tokens([f"word{i}" for i in range(20)])
    with pytest.raises(ValueError, match="the tokenizer has 154 tokens, the model embeds 140"):
        processor.check_model(dualspeech_config())
    with pytest.raises(
        ValueError, match="audio tokenizer differ in `speaker_embedding_size`: processor 7, audio tokenizer 12"
    ):
        tiny_processor(speaker_embedding_size=7, audio_tokenizer=audio_tokenizer)
    with pytest.raises(ValueError, match="`semantic_codebook_size`: processor 20, audio tokenizer 24"):
        tiny_processor(semantic_codebook_size=20).audio_tokenizer = audio_tokenizer


@pytest.mark.parametrize("books", [1, 2])
def test_a_processor_from_a_model_config(books):
    acoustic = {"codebook_size": 50, "num_codebooks": books, "hidden_size": 8, "num_attention_heads": 2}
    config = dualspeech_config(acoustic_config=acoustic)
    tokenizer = tiny_processor().tokenizer
    processor = DualSpeechProcessor.from_config(config, tokenizer)
    assert processor.acoustic_codebook_size == 50 and processor.num_acoustic_codebooks == books
    assert processor.acoustic_eos_token_id == config.acoustic_config.eos_token_id
    none = DualSpeechProcessor.from_config(dualspeech_config(acoustic_config=None), tokenizer)
    assert none.acoustic_codebook_size is None and none.speaker_embedding_size is None
    with pytest.raises(ValueError, match="`semantic_token_offset`"):
        DualSpeechProcessor.from_config(dualspeech_config(semantic_token_offset=111), tokenizer)


def generated(processor, **changes):
    """What `generate` returns for a text row and two speech rows."""
    ids, tokenizer = processor.speech_token_ids, processor.tokenizer
    rows = [
        [*tokenizer("the hat", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id],
        [*ids.encode([3, 4, 5]), tokenizer.eos_token_id],
        [*ids.encode([6]), tokenizer.eos_token_id],
    ]
    width = max(map(len, rows))
    output = {
        "sequences": torch.zeros(3, 5, dtype=torch.long),
        "generated_ids": torch.tensor([row + [0] * (width - len(row)) for row in rows]),
        "generated_lengths": torch.tensor([len(row) for row in rows]),
        "semantic_codes": torch.tensor([[-1, -1, -1], [3, 4, 5], [6, -1, -1]]),
        "semantic_lengths": torch.tensor([0, 3, 1]),
        "acoustic_codes": torch.tensor([[-1, -1, -1, -1], [1, 2, 3, 63], [9, 8, -1, -1]]),
        "acoustic_lengths": torch.tensor([0, 4, 2]),
        "finish_reason": ["eos", "length", "eos"],
        "task_type_ids": torch.tensor([1, 2, 3]),
    }
    return ModelOutput({name: value for name, value in (output | changes).items() if value is not None})


def test_results_of_a_generation(processor, audio_tokenizer):
    text, speech, short = processor.batch_decode(generated(processor))
    assert (text.task, text.text, text.audio, text.sampling_rate, text.finish_reason) == (
        "asr",
        "the hat",
        None,
        None,
        "eos",
    )
    assert (speech.task, speech.text, speech.finish_reason) == ("tts", None, "length")
    assert speech.semantic_codes.tolist() == [3, 4, 5] and short.semantic_codes.tolist() == [6]
    for result, codes in ((speech, [1, 2, 3, 63]), (short, [9, 8])):
        alone = audio_tokenizer.decode(torch.tensor([codes])).audio_values[0, 0].numpy()
        assert result.sampling_rate == 24000 and result.audio.dtype == np.float32
        np.testing.assert_allclose(result.audio, alone, atol=1e-6)
    assert len(speech.audio) == 480 and len(short.audio) == 240


def test_results_without_sound_or_task_ids(processor):
    output = generated(processor, acoustic_codes=None, acoustic_lengths=None, task_type_ids=None)
    text, speech, _ = tiny_processor().batch_decode(output)
    assert text.text == "the hat" and text.task is None
    assert speech.text is None and speech.audio is None and speech.semantic_codes.tolist() == [3, 4, 5]
    nothing = generated(processor, acoustic_lengths=torch.tensor([0, 0, 2]))
    assert [r.audio is None for r in processor.batch_decode(nothing)] == [True, True, False]
    with pytest.raises(ValueError, match="an audio tokenizer is needed to decode acoustic codes"):
        tiny_processor().batch_decode(generated(processor))


def test_plain_ids_are_decoded_as_by_the_tokenizer():
    processor = tiny_processor()
    ids = [[1, 5, 6, 2], [1, 110, 2, 0]]
    assert processor.batch_decode(ids) == processor.tokenizer.batch_decode(ids)
    skipped = processor.batch_decode(torch.tensor(ids), skip_special_tokens=True)
    assert skipped == processor.tokenizer.batch_decode(ids, skip_special_tokens=True) == ["01", ""]


def test_what_the_any_to_any_pipeline_shows(processor):
    output = generated(processor)
    assert processor.post_process_multimodal_output(output) == ["the hat", "", ""]
    assert processor.post_process_multimodal_output([[5, 6]], generation_mode="text") == ["01"]
    with pytest.raises(ValueError, match="`generation_mode='audio'`, but row 0 answers with text"):
        processor.post_process_multimodal_output(output, generation_mode="audio")
    with pytest.raises(ValueError, match="`generation_mode` is 'image'; accepted are 'text' and 'audio'"):
        processor.post_process_multimodal_output(output, generation_mode="image")
    spoken = ModelOutput({name: value[1:] for name, value in output.items()})
    first, second = processor.post_process_multimodal_output(spoken, generation_mode="audio")
    assert first.shape == (480,) and second.shape == (240,)


def test_several_codebooks_and_other_rates():
    # A codec with two codebooks at its own rate, and no speaker encoder.
    from tests.modeling.tiny_audio_parts import encodec

    audio_tokenizer = tiny_audio_tokenizer(acoustic_codec=encodec(), speaker_encoder=None, num_codebooks=2)
    acoustic = {"codebook_size": 32, "num_codebooks": 2, "hidden_size": 8, "num_attention_heads": 2}
    processor = DualSpeechProcessor.from_config(
        dualspeech_config(acoustic_config=acoustic), tiny_processor().tokenizer, audio_tokenizer=audio_tokenizer
    )
    target = (tone(0.2, 24000), 24000)
    codes = processor.encode_audio(target)[0]["acoustic_codes"]
    assert codes.shape == (240, 2) and set(processor.encode_audio(target)[0]) == {"us_codes", "acoustic_codes"}
    row = processor.build_example("hi", task="tts", speaker=VOICE, targets={**processor.encode_audio(target)[0]})
    assert row["acoustic_labels"] == [*codes.tolist(), [35, 35]]
    padded = torch.full((3, 240, 2), -1)
    padded[1], padded[2, :100] = torch.from_numpy(codes), torch.from_numpy(codes[:100])
    output = generated(tiny_processor(), acoustic_codes=padded, acoustic_lengths=torch.tensor([0, 240, 100]))
    _, long, short = processor.batch_decode(output)
    assert len(long.audio) == 4800 and len(short.audio) == 2000 and long.sampling_rate == 24000
    with pytest.raises(ValueError, match="`outputs` asks for 'speaker_embeds'"):
        processor("hi", task="tts", speaker=target)
    assert DualSpeechProcessor.from_config(
        dualspeech_config(speaker_embedding_size=None), processor.tokenizer, audio_tokenizer=tiny_audio_tokenizer()
    )


def test_speech_tokens_in_a_text_answer_do_not_show():
    # Converted tokenizers may have them as ordinary tokens, which `skip_special_tokens` does not skip.
    processor = tiny_processor()
    ids = [*processor.tokenizer("hat", add_special_tokens=False)["input_ids"], 110, processor.tokenizer.eos_token_id]
    output = generated(processor, acoustic_codes=None, acoustic_lengths=None)
    output["generated_ids"][0, : len(ids)] = torch.tensor(ids)
    output["generated_lengths"][0] = len(ids)
    assert processor.batch_decode(output)[0].text == "hat"
    assert processor.batch_decode(output, skip_special_tokens=False)[0].text == "hat<a_0></s>"


def test_save_audio(processor, tmp_path):
    result = processor.batch_decode(generated(processor))[1]
    processor.save_audio(tmp_path / "a.wav", result.audio, result.sampling_rate)
    assert soundfile.info(tmp_path / "a.wav").frames == 480
