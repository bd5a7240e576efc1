"""Bad data end every training script before it trains, with the file and the row."""

import json

import numpy as np
import pytest
import soundfile
from datasets import Dataset

from tests.examples.running import load_example
from tests.tiny import tone

FIXED = ["--report_to", "none", "--save_strategy", "no", "--disable_tqdm", "true", "--use_cpu", "true"]


@pytest.fixture(scope="module")
def loaded():
    """What the scripts have loaded, by name; a tiny model is made once."""
    return {}


@pytest.fixture
def refused(monkeypatch, tmp_path, loaded):
    """`refused(script, data, ...)`: the error of a script, which must come before its run."""

    def start(name, data, *arguments):
        module = load_example(name)
        load = module.load

        def load_once(*args, **kwargs):
            if name not in loaded:
                kwargs |= dict.fromkeys(kwargs.keys() & {"text_steps"}, 1)  # the text model need not learn to answer
                loaded[name] = load(*args, **kwargs)
            return loaded[name]

        monkeypatch.setattr(module, "load", load_once)
        monkeypatch.setattr(module, "run", lambda *args: pytest.fail("the training has started"))
        with pytest.raises(ValueError) as caught:
            module.main(["--output_dir", str(tmp_path / "out"), "--train_data", str(data), *FIXED, *arguments])
        return str(caught.value)

    return start


@pytest.fixture
def broken(tmp_path):
    """A FLAC file whose middle is lost."""
    path = tmp_path / "broken.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 12000), 16000)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) // 4) + content[-len(content) // 4 :])
    soundfile.write(tmp_path / "good.wav", tone(0.5), 16000)
    return path.name


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def spoken(codes, acoustic):
    return {"task": "sc", "audio": codes, "question": [1], "targets": {"us_codes": [1], "acoustic_codes": acoustic}}


def of_task(path="good.wav", answer="yes"):
    return {"task": "asr", "audio": path, "targets": answer}


# A right row of a recording, and rows that cannot be trained on.
RAW = {
    "train_dualspeech": (
        of_task,
        [of_task(answer=""), of_task(answer="yes " * 3000), spoken([9999], [1]), spoken([1], [9999])],
    ),
    "train_moss_speech": (
        lambda path="good.wav": {"chunks": ["yes", {"type": "audio", "path": path}]},
        [{"chunks": []}, {"chunks": ["yes " * 5000]}, {"chunks": [{"type": "audio", "codes": [1, 10**6]}]}],
    ),
    "train_us_tokenizer": (of_task, [of_task(answer=""), of_task(answer="yes " * 3000), {"task": "asr"}]),
    "train_wavtokenizer": (
        lambda path="good.wav": {"audio": path},
        [{"audio": "none.wav"}, {"audio": {"path": "good.wav", "start": 9}}],
    ),
    "train_speaker_encoder": (
        lambda path="good.wav": {"audio": path, "speaker": "ann"},
        [{"audio": "none.wav", "speaker": "bob"}, {"audio": "good.wav"}, {"audio": "good.wav", "speaker": [0.5]}],
    ),
    "train_vocoder": (
        lambda path="good.wav": {"audio": path},
        [{"audio": "none.wav"}, {"audio": {"path": "good.wav", "start": 9}}],
    ),
    "train_flow_decoder": (
        lambda path="good.wav": {"audio": path},
        [{"audio": "good.wav", "codes": [99999]}, {"audio": "good.wav", "speaker_embeds": [1.0]}],
    ),
}


@pytest.mark.parametrize(
    ("name", "number"), [(name, i) for name, (_, rows) in RAW.items() for i in range(len(rows) + 1)]
)
def test_raw_rows(name, number, refused, broken, tmp_path):
    right, wrong = RAW[name]
    path = write_lines(tmp_path / "rows.jsonl", right(), [*wrong, right(broken)][number])
    message = refused(name, path, "--tiny", "--resample")
    assert "rows.jsonl:2" in message and "rows.jsonl:1" not in message


def test_moss_speech_is_as_long_as_its_positions(refused, tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", {"chunks": ["yes"]}, {"chunks": ["yes " * 5000]})
    message = refused("train_moss_speech", path)
    assert "rows.jsonl:2" in message and "longer than `max_length` 4096" in message


@pytest.mark.parametrize("name", ["train_dualspeech", "train_moss_speech"])
def test_token_rows(name, refused, tmp_path):
    example = {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "length": 3}
    if name == "train_dualspeech":
        example |= {
            "prompt_mask": [1, 0, 0],
            "task_type_ids": 1,
            "acoustic_labels": [49, 51],
            "speaker_embeds": [0.5] * 16,
        }
    else:
        example["input_ids"] = [[5, 0], [6, 0], [7, 0]]
    bad = {**example, "labels": [-100, 6, 10**6]}
    for part, rows in (("good", [[example], [example]]), ("bad", [[example] * 2, [example, bad]])):
        (tmp_path / part).mkdir()
        for number, shard in enumerate(rows):
            Dataset.from_list(shard).to_parquet(tmp_path / part / f"part-{number}.parquet")
    message = refused(name, f"a={tmp_path / 'good'},b={tmp_path / 'bad'}", "--context_length", "64")
    assert f"`{tmp_path / 'bad' / 'part-1.parquet'}`: 1 of 2 rows" in message
    assert "row 1: `labels` holds 1000000 at position 2" in message
