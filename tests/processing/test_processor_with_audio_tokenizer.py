"""Saving, loading and pushing a processor whose audio tokenizer is at its side."""

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from transformers import AutoModel, AutoProcessor, PreTrainedModel

from dualspeech import DualSpeechProcessor
from dualspeech.processing.processor_with_audio_tokenizer import staged_folder
from tests.hub_server import HubServer
from tests.tiny import tiny_audio_tokenizer, tiny_processor, tone

VOICE = np.linspace(-1, 1, 12, dtype=np.float32)


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(0)
    processor = tiny_processor(audio_tokenizer=tiny_audio_tokenizer())
    processor.speakers = {"anna": VOICE}
    return processor


@pytest.fixture(scope="module")
def checkpoint(original, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "new"
    original.save_pretrained(folder)
    return folder


def files_of(folder):
    """Path -> content, but for the file in which the tokenizer notes where it came from."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
    return files | {"tokenizer_config.json": b""} if "tokenizer_config.json" in files else files


def same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_everything_is_restored(original, checkpoint):
    assert sorted(os.listdir(checkpoint)) == [
        "audio_tokenizer",
        "processor_config.json",
        "speakers.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert sorted(os.listdir(checkpoint / "audio_tokenizer")) == ["config.json", "model.safetensors"]
    processor = AutoProcessor.from_pretrained(checkpoint)
    assert type(processor) is DualSpeechProcessor and processor.to_dict() == original.to_dict()
    np.testing.assert_array_equal(processor.speakers["anna"], VOICE)
    same_weights(processor.audio_tokenizer, original.audio_tokenizer)
    assert not processor.audio_tokenizer.training
    arguments = {"task": "vc", "audio": (tone(0.3), 16000), "targets": {"audio": (tone(0.2, 24000), 24000)}}
    mine, theirs = processor(**arguments), original(**arguments)
    assert all(torch.allclose(mine[name], theirs[name]) for name in theirs)


def test_nothing_is_loaded_before_it_is_needed(checkpoint, monkeypatch, tmp_path):
    loads = []
    load = AutoModel.from_pretrained
    monkeypatch.setattr(AutoModel, "from_pretrained", lambda **kwargs: loads.append(kwargs) or load(**kwargs))
    processor = AutoProcessor.from_pretrained(checkpoint)
    processor(task="asr", audio=[1, 2], targets="hello")
    processor("hello", task="tts", speaker="anna")
    repr(processor)
    processor.save_pretrained(tmp_path / "copy")
    assert not loads
    processor(task="asr", audio=(tone(0.2), 16000))
    processor(task="asr", audio=(tone(0.2), 16000))
    assert len(loads) == 1 and isinstance(processor.audio_tokenizer, PreTrainedModel)
    assert copy.deepcopy(processor).audio_tokenizer is processor.audio_tokenizer


def test_device_and_precision_can_be_given(checkpoint):
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = processor.load_audio_tokenizer(device="cpu", dtype=torch.bfloat16)
    assert processor.audio_tokenizer is model and model.speaker_encoder.dtype == torch.bfloat16
    assert processor.load_audio_tokenizer(device="meta").device.type == "meta"
    with pytest.raises(ValueError, match="not loaded from a checkpoint with an audio tokenizer"):
        tiny_processor().load_audio_tokenizer()


def test_one_that_was_never_loaded_is_carried_along(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(checkpoint.parent)
    processor = AutoProcessor.from_pretrained(checkpoint.name)  # a relative path must survive a change of folder
    monkeypatch.chdir(tmp_path)
    processor.save_pretrained("copy")
    assert processor._audio_tokenizer.model is None
    assert files_of("copy/audio_tokenizer") == files_of(checkpoint / "audio_tokenizer")
    again = AutoProcessor.from_pretrained("copy")
    again.save_pretrained("copy")  # onto itself
    assert files_of("copy") == files_of(checkpoint)


def test_it_can_be_given_left_out_or_be_in_a_subfolder(original, checkpoint, tmp_path):
    given = AutoProcessor.from_pretrained(checkpoint, audio_tokenizer=original.audio_tokenizer)
    assert given.audio_tokenizer is original.audio_tokenizer
    bare = tiny_processor()
    assert bare.audio_tokenizer is None
    bare.save_pretrained(tmp_path / "bare")
    assert not (tmp_path / "bare" / "audio_tokenizer").exists()
    assert AutoProcessor.from_pretrained(tmp_path / "bare").audio_tokenizer is None
    original.save_pretrained(tmp_path / "all" / "processor")
    inner = DualSpeechProcessor.from_pretrained(tmp_path / "all", subfolder="processor")
    assert inner.speakers.keys() == {"anna"}
    same_weights(inner.audio_tokenizer, original.audio_tokenizer)


@pytest.mark.parametrize("source", ["checkpoint", "model"])
def test_processes_of_a_data_set_get_a_processor_in_use(original, checkpoint, source):
    processor = original if source == "model" else AutoProcessor.from_pretrained(checkpoint)
    rows = Dataset.from_dict({"samples": [tone(0.2, frequency=f).tolist() for f in (200, 300, 400, 500)]})

    def codes(row):
        return {"codes": processor.encode_audio((row["samples"], 16000), outputs=["us_codes"])[0]["us_codes"]}

    fresh = Hasher.hash(processor)
    expected = [codes(row)["codes"].tolist() for row in rows]
    assert rows.map(codes, num_proc=2)["codes"][:] == expected
    assert Hasher.hash(processor) == fresh, "the first use must not make a cached data set stale"


def test_a_pickle_holds_the_place_or_the_weights_of_the_audio_tokenizer(original, checkpoint):
    processor = AutoProcessor.from_pretrained(checkpoint)
    processor.load_audio_tokenizer(dtype=torch.bfloat16)
    copied = pickle.loads(pickle.dumps(processor))
    assert copied._audio_tokenizer.model is None
    assert copied.audio_tokenizer.speaker_encoder.dtype == torch.bfloat16
    weights = sum(value.nbytes for value in original.audio_tokenizer.state_dict().values())
    assert len(pickle.dumps(processor)) < weights / 2
    mixed = tiny_processor(audio_tokenizer=copied.audio_tokenizer)
    copied = pickle.loads(pickle.dumps(mixed))
    same_weights(copied.audio_tokenizer, mixed.audio_tokenizer)
    assert not copied.audio_tokenizer.training and copied.audio_tokenizer.device.type == "cpu"
    assert pickle.loads(pickle.dumps(tiny_processor())).audio_tokenizer is None


def test_saving_beside_other_files_and_again(original, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "audio_tokenizer").mkdir()
    (tmp_path / "audio_tokenizer" / "old.bin").write_text("old")
    returned = original.save_pretrained(tmp_path)
    assert returned == [str(tmp_path / "processor_config.json")] and Path(returned[0]).is_file()
    assert (tmp_path / "config.json").read_text() == "{}"
    assert not (tmp_path / "audio_tokenizer" / "old.bin").exists()
    silent = tiny_processor(audio_tokenizer=original.audio_tokenizer)
    silent.save_pretrained(tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path).speakers == {}
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("failing", ["audio tokenizer", "speakers", "configuration"])
def test_a_failed_save_leaves_nothing_behind(original, checkpoint, tmp_path, monkeypatch, failing):
    def fail(*args, **kwargs):
        if failing == "audio tokenizer":
            (Path(args[0]) / "half.safetensors").parent.mkdir(parents=True)
            (Path(args[0]) / "half.safetensors").write_text("half")
        raise OSError("disk full")

    target = {
        "audio tokenizer": (original.audio_tokenizer, "save_pretrained"),
        "speakers": (original, "_save_optional_files"),
        "configuration": (original, "to_json_file"),
    }[failing]
    monkeypatch.setattr(*target, fail)
    with pytest.raises(OSError, match="disk full"):
        original.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    existing = tmp_path / "existing"
    AutoProcessor.from_pretrained(checkpoint).save_pretrained(existing)
    before = files_of(existing)
    with pytest.raises(OSError, match="disk full"):
        original.save_pretrained(existing)
    assert files_of(existing) == before


def test_a_checkpoint_that_lost_its_audio_tokenizer(checkpoint, tmp_path):
    processor = AutoProcessor.from_pretrained(checkpoint)
    processor._audio_tokenizer.location["subfolder"] = "gone"
    with pytest.raises(ValueError, match="has no audio tokenizer in its folder 'gone'"):
        processor.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_an_audio_tokenizer_that_does_not_fit_is_not_kept(checkpoint, tmp_path):
    changed = AutoProcessor.from_pretrained(checkpoint)
    changed.speakers = {}
    changed.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "processor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(json.dumps(values | {"speaker_embedding_size": 8}))
    processor = AutoProcessor.from_pretrained(tmp_path)
    for _ in range(2):
        with pytest.raises(ValueError, match="`speaker_embedding_size`: processor 8, audio tokenizer 12"):
            processor.encode_audio((tone(0.2), 16000))


def test_staged_folder_replaces_entries_at_the_end(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "kept").write_text("kept")
    with staged_folder(tmp_path) as staging:
        (staging / "a").write_text("new")
        (staging / "b").mkdir()
        assert (tmp_path / "a").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "kept"] and (tmp_path / "a").read_text() == "new"


HUB_ROUND_TRIP = """
import sys
from transformers import AutoModel, AutoProcessor
import dualspeech

processor = AutoProcessor.from_pretrained(sys.argv[1])
processor.push_to_hub("me/pushed", token="hf_test")
processor.save_pretrained(sys.argv[2], push_to_hub=True, repo_id="me/saved", token="hf_test")
assert processor._audio_tokenizer.model is None
loaded = AutoProcessor.from_pretrained("me/pushed")
loaded.save_pretrained(sys.argv[3])
assert loaded._audio_tokenizer.model is None
assert list(loaded.speakers) == ["anna"]
assert loaded.audio_tokenizer.semantic_codebook_size == 24
"""


@pytest.mark.slow
def test_pushed_to_and_loaded_from_a_hub(checkpoint, tmp_path):
    with HubServer() as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        environment.pop("HF_HUB_OFFLINE", None)
        folders = [str(tmp_path / name) for name in ("saved", "copied")]
        run = subprocess.run(
            [sys.executable, "-c", HUB_ROUND_TRIP, str(checkpoint), *folders],
            env=environment,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr[-3000:]
        expected = files_of(checkpoint)
        assert files_of(folders[0]) == files_of(folders[1]) == expected
        for name in ("me/pushed", "me/saved"):
            pushed = {**hub.repositories[name].files(), "tokenizer_config.json": b""}
            pushed.pop("README.md", None)
            assert pushed == expected
    assert json.loads(expected["processor_config.json"])["audio_subfolder"] == "audio_tokenizer"
