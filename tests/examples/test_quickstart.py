"""The quickstart on tiny checkpoints: every task, files, a table, a figure; what it says to what it cannot take."""

import json
import sys

import numpy as np
import pytest
import soundfile
from matplotlib.image import imread

from tests.examples.running import EXAMPLES, load_example

ROWS = ["asr: transcribe", "s2tt: translate to German", "ser: name the emotion", "sqa: answer in writing"]
ROWS += ["tts: read aloud as voice_slt", "tts: read aloud as voice_us", "t2st: speak in English as voice_slt"]
ROWS += ["vc: convert as voice_slt", "sc: answer as voice_us"]
ROWS += ["MOSS-Speech: answer in speech", "MOSS-Speech: answer in writing"]
SPOKEN = ("tts_1", "tts_2", "t2st", "vc", "sc", "moss")


@pytest.fixture(scope="module")
def quickstart():
    return load_example("quickstart")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    dualspeech = load_example("tiny_dualspeech").make_dualspeech_checkpoint(folder / "dualspeech")
    moss = load_example("tiny_moss_speech").make_moss_checkpoint(folder / "moss")
    return ["--dualspeech", str(dualspeech), "--moss", str(moss)]


@pytest.fixture(scope="module")
def nano():
    sys.path.insert(0, str(EXAMPLES / "nano"))
    yield load_example("nano/make_samples")
    sys.path.remove(str(EXAMPLES / "nano"))


def test_all_tasks(quickstart, checkpoints, tmp_path, capsys):
    quickstart.main([*checkpoints, "--output_dir", str(tmp_path)])
    printed = capsys.readouterr().out
    lines = printed.split("input -> answer\n")[1].splitlines()
    assert [line[:36].strip() for line in lines[: len(ROWS)]] == ROWS
    for line in lines[: len(ROWS)]:
        seconds, speech, factor = map(float, line[36:60].split())
        assert seconds > 0 and speech > 0 and factor == pytest.approx(seconds / speech, rel=0.05, abs=0.01)
    assert f"'{quickstart.GERMAN}' -> t2st.wav" in printed and "sentence.wav + question.wav -> sc.wav" in printed
    for name in SPOKEN:
        audio, rate = soundfile.read(tmp_path / f"{name}.wav")
        (line,) = [line for line in lines if f" -> {name}.wav" in line]
        assert rate == 24000 and float(line[36:60].split()[1]) == pytest.approx(len(audio) / rate, abs=0.006)
    assert imread(tmp_path / "figure.png").std() > 0.05


def test_own_recordings(quickstart, checkpoints, tmp_path, capsys):
    tones = 0.3 * np.sin(np.outer(np.arange(22050), [0.05, 0.2]))
    soundfile.write(tmp_path / "me.wav", tones, 22050)
    own = ["--audio", str(tmp_path / "me.wav"), "--voice", str(tmp_path / "me.wav"), "--text", "two blue"]
    with pytest.raises(SystemExit, match=r"me\.wav' has shape \[2, 22050\]; accepted is mono.*channel=0"):
        quickstart.main([*checkpoints, *own, "--output_dir", str(tmp_path / "out")])
    quickstart.main([*checkpoints, *own, "--channel", "1", "--no_figure", "--output_dir", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "me.wav has 22050 Hz; it is converted to 16000 Hz" in printed
    for row in ("asr: transcribe", "s2tt:", "vc: convert as me", "MOSS-Speech: answer in speech"):
        (line,) = [line for line in printed.splitlines() if line.startswith(row)]
        assert " me.wav -> " in line
    assert "'two blue' -> tts_1.wav" in printed
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == sorted(SPOKEN)


def test_what_cannot_be_done_is_said(quickstart, checkpoints, tmp_path):
    long = tmp_path / "long.wav"
    soundfile.write(long, 0.1 * np.ones(16000 * 4), 16000)
    for option in ("--audio", "--voice"):
        with pytest.raises(SystemExit, match=r"long\.wav: .*4.000 s long; accepted are 0.2 s to 3.0 s"):
            quickstart.main([*checkpoints, option, str(long), "--output_dir", str(tmp_path)])


def test_without_trained_checkpoints_and_matplotlib(quickstart, tmp_path, monkeypatch, capsys):
    """As README's first command, in a copy that lacks both: random checkpoints, which stay, and no figure."""
    monkeypatch.setattr(quickstart, "CARDS", tmp_path)
    monkeypatch.setattr(quickstart.importlib.util, "find_spec", lambda name: None)
    quickstart.main(["--output_dir", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert printed.count("answers with noise") == 2 and 'pip install ".[audio]"' in printed
    assert (tmp_path / "out" / "checkpoint" / "model.safetensors").is_file()
    assert (tmp_path / "out" / "tts_1.wav").is_file() and not (tmp_path / "out" / "figure.png").exists()


def test_figure_of_an_answer_without_speech(tmp_path):
    figure = load_example("quickstart_figure")
    tone = np.sin(np.arange(8000) / 9).astype(np.float32)
    spoken = figure.Panel("given", "x" * 90, tone, 16000, np.arange(12), 25.0, is_input=True)
    silent = figure.Panel("answer", "", None, None, None, 25.0)
    zeros = figure.Panel("answer", "", np.zeros(24000, np.float32), 24000, np.zeros(25, int), 25.0)
    figure.draw({"first": [spoken, silent], "second": [zeros]}, tmp_path / "figure.png")
    assert imread(tmp_path / "figure.png").std() > 0.05


def test_samples_are_what_they_are_said_to_be(nano):
    folder = EXAMPLES / "samples"
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["audio"] for row in rows] == [f"{name}.wav" for name in nano.SAMPLES]
    assert {path.name for path in folder.glob("*.wav")} == {row["audio"] for row in rows}
    readme = (folder / "README.md").read_text(encoding="utf-8")
    for row, (frame, said) in zip(rows, nano.SAMPLES.values(), strict=True):
        assert (row["text"], row["speaker"], row["metadata"]["emotion"]) == (said.text, said.voice, said.emotion)
        assert frame.split == "test"
        assert f"`{row['audio']}`" in readme and f"| {said.text} |" in readme
        info = soundfile.info(folder / row["audio"])
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16") and 1 < info.duration < 3
        assert (folder / row["audio"]).stat().st_size < nano.MAX_BYTES


def test_sentences_of_the_quickstart_are_test_data(quickstart, nano):
    shirts = nano.Frame("event", name=5, verb=6, number=3, colour=1, noun=9, place=9)
    bottles = nano.Frame("event", name=6, verb=9, number=1, colour=3, noun=16, time=10)
    assert (shirts.text(), bottles.text("de")) == (quickstart.TEXT, quickstart.GERMAN)
    assert shirts.split == bottles.split == "test"


def test_make_samples(nano, tmp_path, monkeypatch):
    monkeypatch.setattr(nano, "speak", lambda text, voice, emotion: np.full(1000 * len(text), 0.1, np.float32))
    with pytest.raises(ValueError, match="user_turn: 104044 bytes; accepted are fewer than 100000"):
        nano.main([str(tmp_path)])
    monkeypatch.setattr(nano, "speak", lambda text, voice, emotion: np.full(100 * len(text), 0.1, np.float32))
    nano.main([str(tmp_path)])
    assert (tmp_path / "rows.jsonl").read_bytes() == (EXAMPLES / "samples" / "rows.jsonl").read_bytes()
    assert soundfile.info(tmp_path / "question.wav").frames == 100 * len("What does Robert buy?")

    train = tmp_path / "rows" / "train"
    with pytest.raises(ValueError, match=r"has no rows/train/transcripts\.jsonl"):
        nano.main([str(tmp_path), "--corpus", str(tmp_path)])
    train.mkdir(parents=True)
    row = {"text": "What does Robert buy?", "metadata": {"voice": "rms"}}
    (train / "transcripts.jsonl").write_text(json.dumps(row) + "\n")
    nano.main([str(tmp_path), "--corpus", str(tmp_path)])
    row["metadata"]["voice"] = "kal"
    (train / "transcripts.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"question: .* is in the training rows"):
        nano.main([str(tmp_path), "--corpus", str(tmp_path)])
    monkeypatch.setitem(nano.SAMPLES, "sentence", (nano.Frame("where", colour=0, noun=0), nano.SAMPLES["question"][1]))
    with pytest.raises(ValueError, match=r"sentence: .* accepted is 'test'"):
        nano.make_samples(tmp_path)
