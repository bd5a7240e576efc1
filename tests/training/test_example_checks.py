"""Data sets before training: right rows of both processors pass, and whatever is wrong is named with its place."""

import re

import numpy as np
import pytest
import soundfile
from datasets import Dataset, IterableDataset

from dualspeech import DualSpeechConfig, UsTokenizerConfig, UsTokenizerForUnderstandingConfig
from dualspeech.processing.sequence_builder import AcousticTargets
from dualspeech.training.data_collator_us_tokenizer import UsTokenizerCollator
from dualspeech.training.example_checks import (
    check_dualspeech_examples,
    check_moss_speech_examples,
    check_recording_rows,
    check_us_tokenizer_rows,
)
from tests.modeling.us_tokenizer_cases import recorded_tokenizer, tiny_text_model
from tests.modeling.us_tokenizer_cases import tiny_config as tiny_us_tokenizer_config
from tests.processing.moss_processor_cases import ANSWER, USER, answers, fitting_config, says, tiny_moss_processor
from tests.tiny import tiny_processor, tone

NONE, END = 49, 51  # of a codebook of 48


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(acoustic_codebook_size=48)


@pytest.fixture(scope="module")
def rows(processor):
    voice = np.ones(processor.speaker_embedding_size)
    codes = {"us_codes": [4, 5], "acoustic_codes": [6, 7, 8]}
    rows = [
        processor.build_example(task="asr", audio=[1, 2, 3], targets="yes it is"),
        processor.build_example("hello", task="tts", speaker=voice, targets=codes),
        processor.build_example(task="sc", audio=[1], question=[2, 3], speaker=voice, targets=codes),
        processor.build_example(task="ser", audio=[9], targets="glad"),
    ]
    return [{**row, "source": f"rows.jsonl:{i + 1}", "length": 3} for i, row in enumerate(rows)]


def config_of(processor, acoustic=None, **kwargs):
    ids = processor.speech_token_ids
    if acoustic is None:
        acoustic = {"codebook_size": processor.acoustic_codebook_size}
    return DualSpeechConfig(
        **{
            "text_config": {"model_type": "llama", "vocab_size": len(processor.tokenizer)},
            "acoustic_config": acoustic or None,
            "audio_start_token_id": ids.audio_start_token_id,
            "audio_end_token_id": ids.audio_end_token_id,
            "semantic_token_offset": ids.semantic_token_offset,
            "semantic_codebook_size": processor.semantic_codebook_size,
            "speaker_embedding_size": processor.speaker_embedding_size,
            **kwargs,
        }
    )


def changed(rows, number, **columns):
    """The rows with other values in one of them; a function gets the old value."""
    new = {name: value(list(rows[number][name])) if callable(value) else value for name, value in columns.items()}
    return [{**row, **new} if i == number else row for i, row in enumerate(rows)]


def put(place, value):
    return lambda values: [*values[:place], value, *values[place:][1:]]


@pytest.mark.parametrize("kind", ["list", "data set", "shuffled", "arrays"])
def test_right_rows_pass(processor, rows, kind):
    config = config_of(processor)
    data = {
        "list": rows,
        "data set": Dataset.from_list(rows),
        "shuffled": Dataset.from_list(rows).shuffle(seed=1),
        "arrays": [{**row, "input_ids": np.array(row["input_ids"]), "more": object()} for row in rows],
    }[kind]
    for batch_size in (1, 3, 100):
        check_dualspeech_examples(data, config, max_length=200, batch_size=batch_size)
    check_dualspeech_examples(Dataset.from_list(rows[:1]) if kind == "data set" else data, config)


def test_every_wrong_row_is_named(processor, rows):
    config, size = config_of(processor), len(processor.tokenizer)
    ids, voice = processor.speech_token_ids, processor.speaker_embedding_size
    audio_end = rows[0]["input_ids"].index(ids.audio_end_token_id)
    nothing = [-100] * len(rows[0]["labels"])
    cases = [
        (0, {"input_ids": put(0, size)}, f"`input_ids` holds {size} at position 0; accepted are 0 to {size - 1}"),
        (0, {"input_ids": put(2, -1)}, "`input_ids` holds -1 at position 2"),
        (0, {"labels": put(-1, size + 7)}, f"`labels` holds {size + 7} at position"),
        (0, {"labels": put(-1, -1)}, "`labels` holds -1 at position"),
        (0, {"labels": nothing}, "nothing to learn"),
        (0, {"labels": [5, *nothing[1:]]}, "nothing to learn"),
        (0, {"labels": lambda values: values[1:]}, "`labels` and `input_ids` differ in length"),
        (1, {"prompt_mask": lambda values: values[1:]}, "`prompt_mask` and `input_ids` differ in length"),
        (1, {"prompt_mask": put(0, 2)}, "`prompt_mask` holds 2 at position 0; accepted are 0 and 1"),
        (0, {"input_ids": [], "labels": [], "prompt_mask": []}, "`input_ids` is empty"),
        (0, {"input_ids": put(audio_end - 1, 5)}, r"holds 5 at position \d+; a span of speech takes the codes"),
        (0, {"input_ids": put(audio_end, 5)}, "a span of speech without its start or end"),
        (0, {"input_ids": put(1, ids.audio_end_token_id)}, "a span of speech without its start or end"),
        (0, {"input_ids": put(1, ids.semantic_token_offset)}, "a code stands outside of a span"),
        (1, {"task_type_ids": 9}, "`task_type_ids` holds 9; accepted are"),
        (
            1,
            {"acoustic_labels": [6, 48, END]},
            r"`acoustic_labels` holds 48 at position 1; accepted are the codes 0 to 47",
        ),
        (1, {"acoustic_labels": [6, -7, END]}, "`acoustic_labels` holds -7"),
        (1, {"acoustic_labels": [NONE, END]}, "the answer is spoken, but `acoustic_labels` holds no codes"),
        (0, {"acoustic_labels": [6, END]}, "the answer is text, but `acoustic_labels` holds codes"),
        (1, {"acoustic_labels": [6, 7]}, f"does not end with {END}"),
        (1, {"acoustic_labels": [6, END, 7, END]}, r"holds 49 \(none\) or 51 \(end\) within the speech"),
        (1, {"acoustic_labels": []}, r"`acoustic_labels` is empty; rows with a text answer have \[49, 51\]"),
        (0, {"acoustic_labels": None}, "`acoustic_labels` is empty"),
        (1, {"speaker_embeds": [1.0] * 3}, f"`speaker_embeds` needs {voice} numbers, has 3"),
        (1, {"speaker_embeds": [float("nan")] * voice}, "`speaker_embeds` holds nan at position 0"),
        (1, {"speaker_embeds": put(2, float("inf"))}, "`speaker_embeds` holds inf at position 2"),
        (1, {"speaker_embeds": None}, "the answer is spoken, but there are no `speaker_embeds`"),
    ]
    for number, columns, message in cases:
        data = changed(rows, number, **columns)
        for given, batch_size in ((data, 100), (Dataset.from_list(data), 2)):
            with pytest.raises(ValueError) as caught:
                check_dualspeech_examples(given, config, batch_size=batch_size)
            head, *lines = str(caught.value).splitlines()
            assert head == "`dataset`: 1 of 4 rows cannot be trained on:", (columns, lines)
            assert re.search(rf"^  rows.jsonl:{number + 1} \(row {number}\): .*{message}", lines[0]), lines


def test_rows_that_are_too_long(processor, rows):
    lengths = [len(row["input_ids"]) for row in rows]
    longest = int(np.argmax(lengths))
    check_dualspeech_examples(rows, config_of(processor), max_length=max(lengths))
    with pytest.raises(ValueError, match=rf"row {longest}\): the row is longer than `max_length` \d+: {max(lengths)}"):
        check_dualspeech_examples(rows, config_of(processor), max_length=max(lengths) - 1)
    sizes = {"codebook_size": 48, "hidden_size": 8}
    check_dualspeech_examples(
        rows, config_of(processor, {**sizes, "max_condition_positions": max(lengths) + 1, "max_target_positions": 4})
    )
    message = (
        rf"longer than the {max(lengths) - 1} ids that AcousticGPT's `max_condition_positions` leave: {max(lengths)}"
    )
    with pytest.raises(ValueError, match=message):
        check_dualspeech_examples(rows, config_of(processor, {**sizes, "max_condition_positions": max(lengths)}))
    with pytest.raises(ValueError, match="`acoustic_labels` are longer than AcousticGPT's 3 positions: 4"):
        check_dualspeech_examples(rows, config_of(processor, {**sizes, "max_target_positions": 3}))


def test_several_codebooks(processor, rows):
    targets = AcousticTargets(48, 2, NONE, END)
    codes = [None, [[1, 2], [3, 4]], [[5, 6]], None]
    rows = [{**row, "acoustic_labels": targets.labels(c)} for row, c in zip(rows, codes, strict=True)]
    sizes = {"codebook_size": 48, "num_codebooks": 2, "hidden_size": 8}
    config = config_of(processor, {**sizes, "max_target_positions": 4})
    check_dualspeech_examples(rows, config)
    for labels, message in (
        ([[1, 2], [3, 48], [END, END]], "`acoustic_labels` holds 48 at position 1"),
        ([[1, 2, 3], [END] * 3], "`acoustic_labels`: positions need 2 codebooks, has 3"),
        ([[1, 2], [3, END]], f"does not end with {END}"),
        ([[1, 2]] * 3 + [[END, END]], "longer than AcousticGPT's 3 positions: 4"),
    ):
        with pytest.raises(ValueError, match=rf"rows.jsonl:2 \(row 1\): .*{message}"):
            check_dualspeech_examples(changed(rows, 1, acoustic_labels=labels), config)
    with pytest.raises(
        ValueError, match=r"wrong columns: `acoustic_labels` is list<.*; accepted is a list of numbers"
    ):
        check_dualspeech_examples(rows, config_of(processor))


def test_codebooks_that_take_turns(processor, rows):
    config = config_of(processor, {"codebook_size": 48, "interleaved_codebooks": 2, "hidden_size": 8})
    rows = changed(changed(rows, 1, acoustic_labels=[1, 30, 2, 31, END]), 2, acoustic_labels=[0, 24, END])
    check_dualspeech_examples(rows, config)
    with pytest.raises(ValueError, match=r"row 2\): `acoustic_labels` holds 23 at position 1; the 2 codebooks of 24"):
        check_dualspeech_examples(changed(rows, 2, acoustic_labels=[0, 23, END]), config)


def test_models_without_an_acoustic_stage(processor, rows):
    config = config_of(processor, acoustic={}, speaker_embedding_size=None)
    with pytest.raises(ValueError, match=r"row 1\): `acoustic_labels` holds 6 .*the model has no acoustic stage"):
        check_dualspeech_examples(rows, config)
    plain = [{name: row[name] for name in ("input_ids", "labels", "prompt_mask", "task_type_ids")} for row in rows]
    check_dualspeech_examples(plain, config)


def test_wrong_columns(processor, rows):
    config = config_of(processor)
    plain = [{name: row[name] for name in ("input_ids", "labels", "source")} for row in rows]
    missing = (
        "`prompt_mask`, `task_type_ids`, `acoustic_labels`, `speaker_embeds` missing, there are input_ids, labels"
    )
    for data in (plain, Dataset.from_list(plain)):
        with pytest.raises(ValueError, match=f"`dataset` has wrong columns: {missing}"):
            check_dualspeech_examples(data, config)
    with pytest.raises(ValueError, match=r"`labels` is list<.*string>; accepted is a list of numbers"):
        check_dualspeech_examples([{**row, "labels": ["a"]} for row in rows], config)
    with pytest.raises(ValueError, match="`input_ids` has values of several kinds"):
        check_dualspeech_examples(changed(rows, 1, input_ids=["a"]), config)
    with pytest.raises(ValueError, match="`labels` holds null among its numbers"):
        check_dualspeech_examples(changed(rows, 1, labels=put(0, None)), config)
    chat = tiny_moss_processor().build_examples([[USER, ANSWER]])
    with pytest.raises(ValueError, match=r"`input_ids` is list<.*list<.*; accepted is a list of numbers"):
        check_dualspeech_examples(chat, config)
    for empty in ([], Dataset.from_list(rows).select([])):
        with pytest.raises(ValueError, match="`dataset` has no rows"):
            check_dualspeech_examples(empty, config)
    with pytest.raises(ValueError, match="`dataset` is a stream"):
        check_dualspeech_examples(IterableDataset.from_generator(lambda: iter(rows)), config)


def test_the_first_twenty_are_shown(processor, rows):
    many = [{**rows[0], "labels": [-100] * len(rows[0]["labels"]), "source": f"rows.jsonl:{i}"} for i in range(30)]
    with pytest.raises(ValueError) as caught:
        check_dualspeech_examples([*rows, *many], config_of(processor), batch_size=10)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("`dataset`: 30 of 34 rows") and lines[-1] == "  and 10 more" and len(lines) == 22
    assert lines[1].startswith("  rows.jsonl:0 (row 4): nothing to learn") and "rows.jsonl:19 (row 23)" in lines[20]


def test_moss_speech():
    processor = tiny_moss_processor()
    config = fitting_config(processor)
    pad, vocab, end = config.modality_pad_token_id, config.vocab_size, config.eosp_token_id
    rows = processor.build_examples([[USER, ANSWER], [says(1, 2), answers(3, 4)]])
    rows += processor.build_documents([["text", {"codes": [1, 26]}]])
    for data in (rows, Dataset.from_list(rows)):
        check_moss_speech_examples(data, config, max_length=200)
    longest = max(len(row["input_ids"]) for row in rows)
    cases = [
        ({"input_ids": put(0, [vocab, 0])}, f"`input_ids` holds {vocab} at position 0; accepted are the text ids"),
        (
            {"input_ids": put(1, [pad, end + 1])},
            f"`input_ids` holds {end + 1} at position 1; .*in rows of speech to {end}",
        ),
        ({"input_ids": put(1, [0, config.audio_vocab_size])}, "accepted are the audio ids 0 to"),
        ({"labels": put(-1, vocab + end + 1)}, f"the last label of speech is {vocab + end}"),
        ({"labels": put(-1, vocab + config.audio_vocab_size)}, "accepted are -100 and 0 to"),
        ({"labels": put(-1, pad)}, "it marks rows of speech"),
        ({"labels": lambda values: [-100] * len(values)}, "nothing to learn"),
        ({"labels": lambda values: values[1:]}, "`labels` and `input_ids` differ in length"),
        ({"input_ids": put(0, [1, 2, 3])}, "rows need a text id and an audio id, has 3"),
    ]
    for columns, message in cases:
        with pytest.raises(ValueError, match=rf"1 of 3 rows cannot be trained on:\n  row 1: .*{message}"):
            check_moss_speech_examples(changed(rows, 1, **columns), config)
    with pytest.raises(ValueError, match=f"longer than `max_length` {longest - 1}: {longest}"):
        check_moss_speech_examples(rows, config, max_length=longest - 1)
    with pytest.raises(ValueError, match=r"`input_ids` is list<.*; accepted is a list of lists of numbers"):
        check_moss_speech_examples([{"input_ids": [1, 2], "labels": [1, 2]}], config)


def test_rows_of_the_us_tokenizer(tmp_path):
    config = UsTokenizerConfig(max_seconds=1.0)
    for name, seconds, rate in (("good", 0.5, 16000), ("long", 1.1, 16000), ("fast", 0.5, 24000)):
        soundfile.write(tmp_path / f"{name}.wav", tone(seconds, rate), rate)
    soundfile.write(tmp_path / "stereo.wav", np.zeros((800, 2)), 16000)
    broken = (tmp_path / "good.wav").read_bytes()
    soundfile.write(tmp_path / "nan.wav", np.full(800, np.nan), 16000, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("hello")
    good = {"task": "asr", "audio": str(tmp_path / "good.wav"), "text": "hello"}
    right = [
        good,
        {"task": "sqa", "audio": {"bytes": broken}, "question": "Who?", "targets": "me"},
        {
            "task": "ser",
            "audio": {"path": str(tmp_path / "long.wav"), "start": 0.3, "end": 0.9},
            "targets": {"text": "x"},
        },
        {"task": "asr", "audio": {"array": tone(0.2), "sampling_rate": 16000}, "text": "x"},
        {"task": "asr", "audio": tone(0.2), "text": "x"},
    ]
    for decode in (False, True):
        check_us_tokenizer_rows(right, config, decode=decode)
    fast = {**good, "audio": str(tmp_path / "fast.wav"), "source": "rows.jsonl:7"}
    check_us_tokenizer_rows([fast], config, resample=True)
    cases = [
        (fast, r"rows.jsonl:7 \(row 1\): `audio` has 24000 Hz; accepted are 16000 Hz"),
        ({**good, "audio": str(tmp_path / "long.wav")}, "`audio` is 1.100 s long; accepted is more than 0 to 1.0 s"),
        ({**good, "audio": str(tmp_path / "stereo.wav")}, "2 channels|shape"),
        ({**good, "audio": str(tmp_path / "none.wav")}, "none.wav' does not exist"),
        ({**good, "audio": str(tmp_path / "text.wav")}, "text.wav"),
        ({**good, "audio": {"path": str(tmp_path / "good.wav"), "start": 0.4, "end": 0.6}}, "no segment"),
        ({**good, "audio": None}, "`audio` is missing"),
        ({**good, "text": " "}, r"the answer \(`targets`, or `text`\) is ' '"),
        ({"task": "asr", "audio": good["audio"]}, "is None; accepted is a text that is not empty"),
        ({**good, "task": "tts"}, "`task` is 'tts'; accepted are 'asr', 'ser', 'sqa'"),
        ({**good, "task": "sqa"}, "task 'sqa' needs `question`"),
    ]
    for row, message in cases:
        for decode in (False, True):
            with pytest.raises(ValueError, match=rf"1 of 2 rows cannot be trained on:\n.*({message})"):
                check_us_tokenizer_rows([good, row], config, decode=decode)
    broken_row = {**good, "audio": str(tmp_path / "nan.wav")}
    check_us_tokenizer_rows([broken_row], config, decode=False)
    with pytest.raises(ValueError, match="NaN or infinite samples"):
        check_us_tokenizer_rows([broken_row], config)
    with pytest.raises(ValueError, match="`rows` has no rows"):
        check_us_tokenizer_rows([], config)


def test_answers_longer_than_the_text_model(tmp_path):
    text_config = tiny_text_model(vocab_size=321).config
    config = UsTokenizerForUnderstandingConfig(
        us_tokenizer_config=tiny_us_tokenizer_config(encoder_config={"num_mel_bins": 80}), text_config=text_config
    )
    row = {"task": "asr", "audio": tone(0.5, 8000), "text": "hello world", "source": "rows.jsonl:4"}
    row["audio"] = {"array": row["audio"], "sampling_rate": 8000}
    collator = UsTokenizerCollator(config, recorded_tokenizer(), resample=True)
    length = collator([row])["input_ids"].shape[1]
    config.text_config.max_position_embeddings = length
    check_us_tokenizer_rows([row], config, resample=True, collator=collator)
    config.text_config.max_position_embeddings = length - 1
    message = rf"rows.jsonl:4 \(row 0\): .* have {length} positions; the text model has {length - 1}"
    with pytest.raises(ValueError, match=message):
        check_us_tokenizer_rows([row], config, resample=True, collator=collator)
    collator.max_text_length = 1
    check_us_tokenizer_rows([row], config, resample=True, collator=collator)
    for change in ({"audio": str(tmp_path / "none.wav")}, {"task": "tts"}):
        with pytest.raises(ValueError, match=r"^rows.jsonl:4: "):
            collator([{**row, **change}])


def test_recordings(tmp_path):
    soundfile.write(tmp_path / "good.wav", tone(0.5, 24000), 24000)
    soundfile.write(tmp_path / "slow.wav", tone(0.5, 16000), 16000)
    soundfile.write(tmp_path / "stereo.wav", np.zeros((800, 2)), 24000)
    soundfile.write(tmp_path / "broken.flac", np.random.default_rng(0).uniform(-0.5, 0.5, 48000), 24000)
    flac = (tmp_path / "broken.flac").read_bytes()
    (tmp_path / "broken.flac").write_bytes(flac[: len(flac) // 2] + bytes(len(flac) // 4) + flac[-len(flac) // 4 :])
    (tmp_path / "text.wav").write_text("hello")
    names = ("good.wav", "none.wav", "slow.wav", "stereo.wav", "text.wav", "broken.flac")
    rows = [{"audio": str(tmp_path / name), "source": f"rows.jsonl:{i + 1}"} for i, name in enumerate(names)]
    rows += [{"audio": {"array": tone(0.1), "sampling_rate": 24000}}, {"text": "a"}]
    for decode in (True, False):
        with pytest.raises(ValueError) as caught:
            check_recording_rows(rows, 24000, decode=decode)
        lines = str(caught.value).splitlines()[1:]
        places = ["rows.jsonl:2", "rows.jsonl:3", "rows.jsonl:4", "rows.jsonl:5", *["rows.jsonl:6"] * decode, "row 7"]
        assert [line.split(" (")[0].split(": ")[0].strip() for line in lines] == places, lines
        check_recording_rows([rows[0], rows[2], rows[3]], 24000, resample=True, channel=0, decode=decode)
        with pytest.raises(ValueError, match=r"`channel` is 2, but .* has 2 channels"):
            check_recording_rows([rows[3]], 24000, channel=2, decode=decode)
