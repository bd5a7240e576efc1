"""Token rows: the steps that make them, the commands, and reading them for training."""

import base64
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from dualspeech.training import prepare_dualspeech, prepare_moss_speech, prepare_us_tokenizer
from dualspeech.training.data_collator import DualSpeechDataCollator
from dualspeech.training.data_collator_moss_speech import MossSpeechDataCollator
from dualspeech.training.data_collator_us_tokenizer import UsTokenizerCollator
from dualspeech.training.data_steps.runners import map_dataset, new_copy, run_step
from dualspeech.training.data_steps.shards import load_rejected, load_rows
from dualspeech.training.data_steps.step import Rejection, apply_step
from dualspeech.training.data_steps.tokenization import TokenizeChats, TokenizeDocuments, TokenizeTasks
from dualspeech.training.data_steps.understanding_rows import PrepareUnderstanding
from dualspeech.training.token_rows import load_token_rows
from dualspeech.training.validate_rows import validate_rows
from tests.modeling.moss_codec_cases import recording, tiny_moss_codec
from tests.modeling.us_tokenizer_cases import recorded_tokenizer
from tests.processing.moss_processor_cases import tiny_moss_processor
from tests.tiny import tiny_audio_tokenizer, tiny_processor, tone
from tests.training.test_us_tokenizer_training import config as us_tokenizer_config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    processor = tiny_processor(audio_tokenizer=tiny_audio_tokenizer())
    processor.speakers = {"anna": np.linspace(0, 1, 12)}
    folder = tmp_path_factory.mktemp("dualspeech")
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def moss_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moss")
    tiny_moss_processor(tiny_moss_codec()).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def step(checkpoint):
    step = TokenizeTasks(checkpoint, device="cpu", check_schema=True)
    step.setup()
    return step


@pytest.fixture
def clips(tmp_path):
    """Paths of recordings, relative to the folder of the rows."""
    (tmp_path / "clips").mkdir()
    for number in range(4):
        soundfile.write(
            tmp_path / "clips" / f"{number}.wav", tone(0.2 + 0.05 * number, 24000, 200 + 90 * number), 24000
        )
    soundfile.write(tmp_path / "clips" / "low.wav", tone(0.3, 8000), 8000)
    (tmp_path / "clips" / "broken.wav").write_bytes(b"RIFF but no more")
    return [f"clips/{number}.wav" for number in range(4)]


def content(path):
    return base64.b64encode(Path(path).read_bytes()).decode()


def task_rows(clips, folder):
    languages = {"source_language": "English", "target_language": "German"}
    return [
        {"task": "asr", "audio": clips[0], "targets": "a red house", "id": "first", "metadata": {"corpus": 1}},
        {"task": "s2tt", "audio": {"bytes": content(folder / clips[1])}, **languages, "targets": {"text": "ein Haus"}},
        {"task": "ser", "audio": [3, 1, 4], "targets": "glad"},
        {
            "task": "sqa",
            "audio": {"path": clips[2], "start": 0.05, "end": 0.25},
            "question": "Who?",
            "targets": "She.",
        },
        {"task": "tts", "text": "hello", "speaker": "anna", "targets": {"audio": clips[1]}},
        {"task": "t2st", "text": "hello", **languages, "speaker": clips[0], "targets": {"audio": {"path": clips[3]}}},
        {"task": "vc", "audio": clips[0], "targets": {"audio": clips[2]}, "speaker": [0.5] * 12},
        {
            "task": "sc",
            "audio": clips[3],
            "question": {"bytes": content(folder / clips[1])},
            "targets": {"us_codes": [1, 2], "acoustic_codes": [3, 4, 5], "speaker_embeds": [0.1] * 12},
        },
    ]


def bad_rows(clips):
    return [
        ({"task": "asr", "audio": "clips/broken.wav", "targets": "a"}, "cannot be read as audio"),
        ({"task": "asr", "audio": "clips/no.wav", "targets": "a"}, "does not exist"),
        ({"task": "asr", "audio": "clips/low.wav", "targets": "a"}, "sampling rate of 8000 Hz; accepted are 16000"),
        ({"task": "asr", "audio": {"bytes": "no base64"}, "targets": "a"}, "is no base64"),
        ({"task": "asr", "audio": clips[0], "targets": "say <a_3>"}, "must not contain the speech token '<a_3>'"),
        ({"task": "asr", "audio": clips[0], "targets": "say </s>"}, "must not contain the special token '</s>'"),
        ({"task": "asr", "audio": [1, 2], "targets": "long " * 60}, r"the row has \d+ ids; `max_length` is 250"),
        ({"task": "asr", "audio": [1, 99], "targets": "a"}, "99"),
        ({"task": "asr", "audio": clips[0], "targets": "a", "speeker": "b"}, "unknown key `speeker`"),
        ({"task": "sing", "audio": clips[0], "targets": "a"}, "`task` is 'sing'"),
        ({"task": "tts", "text": 5, "targets": {"audio": clips[0]}}, "`text` is 5"),
        ({"task": "tts", "text": "hello", "speaker": "bert", "targets": {"audio": clips[0]}}, "neither a name"),
    ]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def tokens_of(folder, tmp_path):
    cache = str(tmp_path / "cache")
    return load_token_rows(folder, cache), load_rejected(folder, cache)


def close(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        if name == "speaker_embeds" and value is not None:
            np.testing.assert_allclose(value, other[name], atol=1e-4)
        else:
            assert value == other[name], name


def test_task_rows(step, clips, tmp_path):
    rows = task_rows(clips, tmp_path)
    path = write_rows(tmp_path / "rows.jsonl", rows)
    result = run_step(step, path, tmp_path / "tokens", shard_size=3, progress=False)
    assert (result.num_rows_out, result.num_rejected) == (8, 0)
    tokens, _ = tokens_of(tmp_path / "tokens", tmp_path)
    processor = step._processor
    assert tokens["source"][:] == [f"{path}:{line}" for line in range(1, 9)]
    folder = str(tmp_path)
    recordings = [
        ({"audio": f"{folder}/{clips[0]}"}, {}),
        ({"audio": f"{folder}/{clips[1]}"}, {}),
        ({}, {}),
        ({"audio": {**rows[3]["audio"], "path": f"{folder}/{clips[2]}"}}, {}),
        ({}, {"audio": f"{folder}/{clips[1]}"}),
        ({"speaker": f"{folder}/{clips[0]}"}, {"audio": f"{folder}/{clips[3]}"}),
        ({"audio": f"{folder}/{clips[0]}"}, {"audio": f"{folder}/{clips[2]}"}),
        ({"audio": f"{folder}/{clips[3]}", "question": f"{folder}/{clips[1]}"}, {}),
    ]
    for row, (inputs, target), made in zip(rows, recordings, tokens, strict=True):
        row = {name: value for name, value in {**row, **inputs}.items() if name not in ("id", "metadata")}
        row["targets"] = {**row["targets"], **target} if target else row["targets"]
        expected = processor.build_example(**row)
        close(made, {**expected, "source": made["source"], "length": len(expected["input_ids"])})
    collator = DualSpeechDataCollator(processor)
    (batch,) = DataLoader(tokens, batch_size=8, collate_fn=collator)
    assert batch["labels"].shape == batch["input_ids"].shape == (8, max(tokens["length"]))


def test_a_bad_row_is_rejected_alone(checkpoint, clips, tmp_path):
    good, bad = task_rows(clips, tmp_path), bad_rows(clips)
    rows = [good[0]] + [row for pair in zip([b for b, _ in bad], good * 2, strict=False) for row in pair]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    step = TokenizeTasks(checkpoint, max_length=250, check_schema=True, device="cpu")
    run_step(step, path, tmp_path / "tokens", progress=False)
    run_step(step, write_rows(tmp_path / "good.jsonl", (good * 2)[:12]), tmp_path / "good", progress=False)
    tokens, rejected = tokens_of(tmp_path / "tokens", tmp_path)
    expected, _ = tokens_of(tmp_path / "good", tmp_path)
    assert [row["source"] for row in rejected] == [f"{path}:{line}" for line in range(2, 25, 2)]
    for row, (_, reason) in zip(rejected, bad, strict=True):
        with pytest.raises(ValueError, match=reason):
            raise ValueError(row["reason"])
    for made, wanted in zip(list(tokens)[1:], expected, strict=True):
        close({**made, "source": ""}, {**wanted, "source": ""})
    # Given again, the rejected rows are the same.
    again = [json.loads(row["row"]) for row in rejected]
    assert [outcome.reason for outcome in apply_step(ready(step), again)] == rejected["reason"][:]


def ready(step):
    step.setup()
    return step


def test_recordings_of_a_batch_are_encoded_together(step, clips, tmp_path, monkeypatch):
    processor = step._processor
    sizes = []
    encode = processor.encode_audio
    monkeypatch.setattr(
        processor, "encode_audio", lambda audio, *a, **k: sizes.append(len(audio)) or encode(audio, *a, **k)
    )
    rows = [{"task": "asr", "audio": str(tmp_path / clip), "targets": "a"} for clip in clips]
    apply_step(step, rows)
    assert sizes == [4]


def test_rows_without_recordings_need_no_audio_tokenizer(tmp_path):
    tiny_processor().save_pretrained(tmp_path / "processor")
    step = ready(TokenizeTasks(str(tmp_path / "processor"), device="cpu"))
    row = {"task": "asr", "audio": [1, 2], "targets": "yes", "id": "mine"}
    ((made,), spoken) = apply_step(step, [row, {**row, "audio": (tone(0.2), 16000)}])
    assert made["length"] == len(made["input_ids"]) and made["source"] == "mine"
    assert "an audio tokenizer is needed" in spoken.reason


def test_settings_follow_the_checkpoint(checkpoint, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    settings = TokenizeTasks(str(copy), device="cpu", batch_size=2).settings()
    (copy / "README.md").write_text("new")
    (copy / "model.safetensors").write_bytes(b"weights of a language model")
    assert TokenizeTasks(str(copy), device="meta").settings() == settings
    assert json.loads(json.dumps(settings)) == settings
    run_step(TokenizeTasks(str(copy), device="cpu"), [], tmp_path / "tokens", progress=False)
    weights = copy / "audio_tokenizer" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + bytes([weights.read_bytes()[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"step.processor_version is '\w+' there and '\w+' here"):
        run_step(TokenizeTasks(str(copy), device="cpu"), [], tmp_path / "tokens", progress=False)


def test_a_step_that_is_set_up_can_be_pickled(step):
    for copy in (pickle.loads(pickle.dumps(step)), new_copy(step)):
        assert copy == step and copy._processor is None
    with pytest.raises(RuntimeError, match=r"call `setup\(\)`"):
        new_copy(step).process([{"task": "asr", "audio": [1], "targets": "a"}])


def chat_rows(clips):
    spoken = {"type": "audio", "path": clips[0]}
    return [
        {"messages": [{"role": "user", "content": spoken}, {"role": "assistant", "content": "yes"}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "say it"}]},
                {"role": "assistant", "content": [{"type": "audio", "audio": {"path": clips[1]}}]},
            ]
        },
        {
            "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
            "output_modality": "audio",
        },
        {
            "messages": [
                {"role": "user", "content": {"type": "audio", "codes": [1, 2]}},
                {"role": "assistant", "content": {"type": "audio", "codes": [3]}},
            ]
        },
    ]


@pytest.fixture
def spoken(tmp_path):
    (tmp_path / "clips").mkdir()
    for number in range(2):
        soundfile.write(tmp_path / "clips" / f"{number}.wav", recording(0.5 + number / 3, seed=number).numpy(), 16000)
    return ["clips/0.wav", "clips/1.wav"]


def test_chats(moss_checkpoint, spoken, tmp_path):
    rows = chat_rows(spoken)
    bad = [
        {"messages": [{"role": "user", "content": "hi"}]},
        {"messages": [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "b"}]},
        {"messages": "hi"},
        {"text": "hi"},
        {"messages": [{"role": "user", "content": {"type": "audio", "path": "no.wav"}}, rows[0]["messages"][1]]},
    ]
    path = write_rows(tmp_path / "chats.jsonl", [*rows, *bad])
    step = TokenizeChats(moss_checkpoint, device="cpu")
    run_step(step, path, tmp_path / "tokens", progress=False)
    tokens, rejected = tokens_of(tmp_path / "tokens", tmp_path)
    processor = ready(step)._processor
    absolute = chat_rows([str(tmp_path / clip) for clip in spoken])
    for row, made in zip(absolute, tokens, strict=True):
        example = processor.build_example(row["messages"], row.get("output_modality"))
        assert made == {**example, "source": made["source"], "length": len(example["input_ids"])}
    assert [row["source"] for row in rejected] == [f"{path}:{line}" for line in range(5, 10)]
    reasons = ["the assistant", "<|im_end|>", "the assistant", "must be a list of turns", "does not exist"]
    for row, reason in zip(rejected, reasons, strict=True):
        assert reason in row["reason"]
    batch = MossSpeechDataCollator(processor)(list(tokens))
    assert batch["input_ids"].shape == (4, max(tokens["length"]), 2)
    plain = ready(TokenizeChats(moss_checkpoint, device="cpu", add_system_prompt=False))
    assert apply_step(plain, absolute[3:])[0][0]["length"] < tokens[3]["length"]
    learned = ready(TokenizeChats(moss_checkpoint, device="cpu", learn_start_of_speech=True))
    count = [
        sum(label != -100 for label in row["labels"]) for row in (apply_step(learned, absolute[3:])[0][0], tokens[3])
    ]
    assert count[0] == count[1] + 1


def test_documents(moss_checkpoint, spoken, tmp_path):
    chunks = ["once", {"type": "audio", "path": str(tmp_path / spoken[0])}, {"type": "text", "text": "more"}]
    step = ready(TokenizeDocuments(moss_checkpoint, device="cpu", max_length=40))
    rows = [{"chunks": chunks, "source": "a:1"}, {"chunks": []}, {"chunks": ["long " * 50]}, {"text": "a"}]
    (made,), *others = apply_step(step, rows)
    example = step._processor.build_document(chunks)
    assert made == {**example, "source": "a:1", "length": len(example["input_ids"])}
    assert all(isinstance(outcome, Rejection) for outcome in others)
    assert "`max_length` is 40" in others[1].reason and "needs `chunks`" in others[2].reason


def test_rows_of_a_table(moss_checkpoint, spoken, tmp_path):
    """Data sets fill in null where an entry is missing."""
    absolute = chat_rows([str(tmp_path / clip) for clip in spoken])
    parts = [
        [
            {"role": t["role"], "content": t["content"] if isinstance(t["content"], list) else [t["content"]]}
            for t in row["messages"]
        ]
        for row in absolute[1:2]
    ]
    step = ready(TokenizeChats(moss_checkpoint, device="cpu", check_schema=True))
    dataset = Dataset.from_list([{"messages": messages} for messages in parts])
    assert dataset[0]["messages"][0]["content"][0].get("audio", 0) is None
    run_step(step, dataset, tmp_path / "tokens", progress=False)
    (made,) = tokens_of(tmp_path / "tokens", tmp_path)[0]
    assert made["input_ids"] == step._processor.build_example(absolute[1]["messages"])["input_ids"]


def test_the_command(checkpoint, clips, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good, bad = task_rows(clips, tmp_path), [row for row, _ in bad_rows(clips)[:2]]
    write_rows(tmp_path / "rows.jsonl", [*good, *bad, bad[1]])
    arguments = ["rows.jsonl", "--processor", checkpoint, "--device", "cpu", "--shard-size", "4", "--quiet"]
    assert prepare_dualspeech.main([*arguments, "--output", "tokens"]) == 0
    printed = capsys.readouterr().out
    tokens, rejected = tokens_of("tokens", tmp_path)
    total = f"of {sum(tokens['length'])} ids, at most {max(tokens['length'])}"
    assert f"11 rows in, 8 rows out {total}, 3 rejected" in printed
    assert "2 x rows.jsonl:10: `audio`: the file" in printed and "1 x rows.jsonl:9: " in printed
    assert tokens["source"][0] == "rows.jsonl:1" and len(rejected) == 3
    # Only the rows in the file are bad, not the file: it is told after the run.
    assert prepare_dualspeech.main([*arguments, "--output", "tokens", "--strict"]) == 1

    write_rows(tmp_path / "bad.jsonl", bad)
    arguments[0] = "bad.jsonl"
    assert prepare_dualspeech.main([*arguments, "--output", "none"]) == 1
    assert "2 rows in, 0 rows out, 2 rejected" in capsys.readouterr().out

    write_rows(tmp_path / "schema.jsonl", [good[0], {**good[0], "speeker": "x"}])
    arguments[0] = "schema.jsonl"
    assert prepare_dualspeech.main([*arguments, "--output", "strict", "--strict"]) == 1
    assert "schema.jsonl:2: has the unknown key `speeker`" in capsys.readouterr().out
    assert not (tmp_path / "strict").exists()
    assert prepare_dualspeech.main([*arguments, "--output", "strict"]) == 0
    assert prepare_dualspeech.main([*arguments, "--output", "strict", "--overwrite", "--max-length", "3"]) == 1


def test_the_command_for_chats_and_documents(moss_checkpoint, spoken, tmp_path, capsys):
    chats = write_rows(tmp_path / "chats.jsonl", chat_rows(spoken))
    documents = write_rows(tmp_path / "documents.jsonl", [{"chunks": ["a", {"type": "audio", "path": spoken[1]}]}])
    folders = [str(tmp_path / "tokens" / kind) for kind in ("chats", "documents")]
    arguments = ["--processor", moss_checkpoint, "--device", "cpu", "--quiet", "--strict", "--output"]
    assert prepare_moss_speech.main([chats, *arguments, folders[0]]) == 0
    assert prepare_moss_speech.main([documents, *arguments, folders[1], "--kind", "document"]) == 0
    tokens, _ = tokens_of(folders[0], tmp_path)[0], capsys.readouterr()
    both = load_token_rows(folders, str(tmp_path / "cache"))
    assert both.to_list()[:4] == tokens.to_list() and len(both) == 5
    assert prepare_moss_speech.main([chats, *arguments, str(tmp_path / "wrong"), "--kind", "document"]) == 1
    assert "is a chat row; accepted are document rows" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        prepare_moss_speech.main([documents, *arguments, folders[1], "--kind", "document", "--no-system-prompt"])


def test_token_rows_that_do_not_belong_together(checkpoint, clips, tmp_path):
    rows = task_rows(clips, tmp_path)
    cache = str(tmp_path / "cache")
    for name, chosen in (("text", rows[2:3]), ("speech", rows[7:])):
        path = write_rows(tmp_path / f"{name}.jsonl", chosen)
        run_step(TokenizeTasks(checkpoint, device="cpu"), path, tmp_path / name, progress=False)
    # One has no speaker vectors at all.
    both = load_token_rows([tmp_path / "text", str(tmp_path / "speech")], cache)
    assert [row["speaker_embeds"] is None for row in both] == [True, False]
    with pytest.raises(ValueError, match=r"`paths` is empty"):
        load_token_rows([])
    with pytest.raises(ValueError, match=r"is no folder of a stage"):
        load_token_rows(tmp_path)
    run_step(
        PrepareUnderstanding(resample=True),
        [{**rows[0], "audio": str(tmp_path / clips[0])}],
        tmp_path / "us",
        progress=False,
    )
    with pytest.raises(
        ValueError, match=r"holds no token rows: it lacks \['input_ids', 'labels', 'length', 'source'\]"
    ):
        load_token_rows(tmp_path / "us", cache)
    run_step(TokenizeTasks(checkpoint, device="cpu"), [], tmp_path / "none", progress=False)
    with pytest.raises(ValueError, match=r"has no rows"):
        load_token_rows(tmp_path / "none", cache)
    without = tmp_path / "processor"
    tiny_processor(acoustic_codebook_size=None).save_pretrained(without)
    row = {"task": "asr", "audio": [1], "targets": "a", "source": "a:1"}
    run_step(TokenizeTasks(str(without), device="cpu"), [row], tmp_path / "semantic", progress=False)
    with pytest.raises(ValueError, match=r"semantic' has the columns"):
        load_token_rows([tmp_path / "text", tmp_path / "semantic"], cache)
    tiny_processor("byte_level").save_pretrained(without)
    run_step(TokenizeTasks(str(without), device="cpu"), [row], tmp_path / "bytes", progress=False)
    with pytest.raises(ValueError, match=r"made by different processors"):
        load_token_rows([tmp_path / "text", tmp_path / "bytes"], cache)


def test_rows_for_the_us_tokenizer(clips, tmp_path, capsys):
    rows = task_rows(clips, tmp_path)
    rows = [rows[0], {**rows[3], "audio": "clips/low.wav"}, rows[2], rows[4], {**rows[0], "audio": "clips/broken.wav"}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    arguments = [path, "--output", str(tmp_path / "rows"), "--quiet", "--resample", "--max-seconds", "1"]
    assert prepare_us_tokenizer.main(arguments) == 0
    assert "5 rows in, 2 rows out" in capsys.readouterr().out
    made, rejected = (load(tmp_path / "rows", str(tmp_path / "cache")) for load in (load_rows, load_rejected))
    assert made["targets"][:] == ["a red house", "She."] and made["question"][:] == [None, "Who?"]
    assert made["id"][:] == ["first", None] and made["source"][:] == [f"{path}:1", f"{path}:2"]
    assert not validate_rows(made, "task", check_audio=True)
    samples, rate = soundfile.read(io.BytesIO(made[1]["audio"]["bytes"]))
    assert rate == 16000 and len(samples) == 4800 and abs(np.abs(samples).max() - 0.3) < 0.01
    assert [row["reason"][:20] for row in rejected][:2] == ["`audio` must be a re", "`task` is 'tts'; the"]
    batch = UsTokenizerCollator(us_tokenizer_config(), recorded_tokenizer())(
        [{**row, "text": row["targets"]} for row in made]
    )
    assert batch["num_samples"].tolist() == [3200, 4800] and torch.isfinite(batch["input_features"]).all()
    step = PrepareUnderstanding(max_seconds=0.1)
    row = {"task": "asr", "audio": (tone(0.2), 16000), "targets": "a"}
    for change, reason in (
        ({}, "0.200 s long"),
        ({"targets": {}}, "must be a text"),
        ({"targets": " \n"}, "must be a text that is not empty"),
        ({"task": "sqa", "question": " "}, "`question` is missing"),
        ({"task": "sqa"}, "`question` is"),
    ):
        (outcome,) = apply_step(step, [{**row, **change}])
        assert reason in outcome.reason


@pytest.mark.slow
def test_the_command_with_workers(checkpoint, clips, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", task_rows(clips, tmp_path) * 2 + [row for row, _ in bad_rows(clips)])
    arguments = [
        path,
        "--processor",
        checkpoint,
        "--device",
        "cpu",
        "--shard-size",
        "8",
        "--batch-size",
        "4",
        "--quiet",
    ]
    assert prepare_dualspeech.main([*arguments, "--output", str(tmp_path / "alone")]) == 0
    command = [sys.executable, "-m", "dualspeech.training.prepare_dualspeech", *arguments, "--num-workers", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--output", str(tmp_path / "workers")], check=True, env=environment)
    alone, workers = (tokens_of(tmp_path / name, tmp_path) for name in ("alone", "workers"))
    assert alone[1].to_list() == workers[1].to_list()
    for one, other in zip(alone[0], workers[0], strict=True):
        close(one, other)
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()[:4] if "bytes" not in line]
    dataset = Dataset.from_list([{**row, "audio": str(tmp_path / row["audio"])} for row in rows[:1]])
    mapped, rejected = map_dataset(TokenizeTasks(checkpoint, device="cpu"), dataset)
    assert len(rejected) == 0 and mapped[0]["input_ids"] == alone[0][0]["input_ids"]
