"""Speech-text data in a tiny world: all stages, resumed runs, other runners, data of one's own."""

import argparse
import json
import re
import subprocess
import sys

import pytest

from dualspeech.processing.audio import load_audio
from dualspeech.processing.moss_speech_chat import parse_content, parse_conversations
from dualspeech.training.data_steps.row_recordings import read_recording
from dualspeech.training.data_steps.shards import load_rejected, load_rows
from tests.examples.running import EXAMPLES, load_example


@pytest.fixture(scope="module")
def script():
    return load_example("build_speech_text_data")


@pytest.fixture(scope="module")
def built(script, tmp_path_factory):
    """The folder of a whole run, and its numbers."""
    folder = tmp_path_factory.mktemp("built") / "data"
    return folder, script.main(["--output_dir", str(folder), "--device", "cpu", "--no-progress"])


def words(text):
    return re.sub(r"[^a-z ]", "", text.lower()).split()


def test_every_stage(script, built):
    folder, summary = built
    numbers = {name: (stage["rows"], stage["rejected"]) for name, stage in summary.items()}
    assert numbers == {
        "recordings/voice_activity": (4, 0),
        "recordings/unsupervised": (4, 0),
        "recordings/recognition": (4, 0),
        "recordings/alignment": (4, 0),
        "recordings/interleaved": (4, 0),
        "corpus/quality": (3, 1),
        "corpus/text": (3, 0),
        "corpus/synthesis": (3, 0),
        "corpus/filter": (3, 0),
        "corpus/alignment": (3, 0),
        "corpus/interleaved": (3, 0),
        "chats/adaptation": (2, 1),
        "chats/question_synthesis": (2, 0),
        "chats/question_filter": (2, 0),
        "chats/answer_synthesis": (2, 0),
        "chats/answer_filter": (2, 0),
        "chats/four_modalities": (8, 0),
    }
    assert json.loads((folder / "summary.json").read_text()) == summary
    (rejected,) = load_rejected(folder / "chats" / "adaptation").to_list()
    assert rejected["reason"] == "REJECT of the answer: Code cannot be spoken."
    assert rejected["source"].endswith("questions.jsonl:3")


def test_documents(script, built):
    folder, _ = built
    sentences = load_example("tiny_speech_text").SENTENCES
    heard = {row["id"]: row["text"] for row in load_rows(folder / "recordings" / "recognition").to_list()}
    assert sorted(heard.values()) == sorted(sentences)
    kinds = set()
    for stage in ("recordings", "corpus"):
        documents = load_rows(folder / stage / "interleaved").to_list()
        for document in documents:
            contents = [parse_content(chunk, "chunk") for chunk in document["chunks"]]
            kinds |= {content.modality for content in contents}
            for content in contents:
                if content.modality == "audio":
                    samples, rate = load_audio(content.audio)
                    assert 3.0 <= len(samples) / rate <= 6.0 + 1e-3
                else:
                    assert any(content.text in sentence for sentence in sentences)
        assert sum(len(document["chunks"]) for document in documents) >= 2 * len(documents)
    assert kinds == {"audio", "text"}
    (first, *_) = load_rows(folder / "recordings" / "unsupervised").to_list()
    assert [chunk["type"] for chunk in first["chunks"]] == ["audio"]
    texts = [row["chunks"] for row in load_rows(folder / "corpus" / "text").to_list()]
    assert [chunks[0]["text"] for chunks in texts] == [sentences[i] for i in (0, 1, 3)]


def test_words_lie_where_they_are_spoken(script, built):
    """The times of the alignment against those of the synthesizer: each symbol takes as long as the others."""
    folder, _ = built
    world = load_example("tiny_letter_speech")
    symbol = world.TONE_SECONDS + world.GAP_SECONDS
    rows = load_rows(folder / "corpus" / "alignment").to_list()
    for row in rows:
        position = 0
        for word in row["words"]:
            start = world.GAP_SECONDS + position * symbol
            end = start + len(word["text"]) * symbol - world.GAP_SECONDS
            assert word["start"] == pytest.approx(start, abs=0.04) and word["end"] == pytest.approx(end, abs=0.04)
            position += len(word["text"]) + 1


def test_chats(built):
    folder, _ = built
    chats = load_rows(folder / "chats" / "four_modalities").to_list()
    pairs = []
    for chat in chats:
        (turns,) = parse_conversations([chat["messages"]])
        pairs.append((turns[1].content.modality, turns[2].content.modality))
        assert chat["output_modality"] == turns[2].content.modality
        assert chat["metadata"]["answer_audio_speaker"] == "loud" and chat["metadata"]["answer_audio_wer"] == 0.0
    assert sorted(pairs) == sorted(2 * [("audio", "audio"), ("audio", "text"), ("text", "audio"), ("text", "text")])
    answers = {turn.content.text for chat in chats for turn in parse_conversations([chat["messages"]])[0][2:]}
    assert "A red house stands by the tree." in answers  # without the asterisks


def test_a_second_run_does_nothing(script, built, monkeypatch):
    folder, summary = built
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("part-*.parquet")}
    monkeypatch.setattr(script.RecognizeSpeech, "setup", lambda self: pytest.fail("loads a model for nothing"))
    assert script.main(["--output_dir", str(folder), "--device", "cpu", "--no-progress"]) == summary
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("part-*.parquet")} == times


def test_with_datasets(script, built, tmp_path):
    folder, summary = built
    arguments = ["--output_dir", str(tmp_path), "--device", "cpu", "--runner", "datasets", "--no-progress"]
    (tmp_path / "tiny").symlink_to(folder / "tiny")
    assert script.main(arguments) == summary
    assert script.main(arguments) == summary
    rows = script.load_from_disk(tmp_path / "chats" / "four_modalities" / "rows")
    assert len(rows) == 8 and read_recording(rows[0]["messages"][1]["content"], "path")[1] == 16000


def test_datasets_are_resumed_with_the_same_only(script, tmp_path):
    options = argparse.Namespace(output_dir=tmp_path, runner="datasets", num_workers=0)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"score": 4, "metadata": {"n": 1}}\n{"score": 4, "metadata": {"n": "x"}}\nno row\n')
    made = script.Stages(options).run("quality", script.FilterByScore(3.0), path)
    assert [row["metadata"] for row in made] == [{"n": 1}, {"n": "x"}]
    stages = script.Stages(options)
    assert stages.run("quality", script.FilterByScore(3.0), path).to_list() == made.to_list()
    assert stages.summary["quality"]["rejected"] == 1
    with pytest.raises(ValueError, match="other settings"):
        stages.run("quality", script.FilterByScore(5.0), path)
    path.write_text('{"score": 5}\n')
    with pytest.raises(ValueError, match="other rows"):
        stages.run("quality", script.FilterByScore(3.0), path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "rejected").write_text("mine")
    with pytest.raises(ValueError, match="something else"):
        stages.run("mine", script.FilterByScore(3.0), path)


@pytest.mark.slow
def test_with_ray(script, built, tmp_path):
    ray = pytest.importorskip("ray")
    folder, summary = built
    recognizer = str(folder / "tiny" / "recognizer")
    own = ["--recordings", str(folder / "tiny" / "recordings"), "--asr", recognizer, "--aligner", recognizer]
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        made = script.main(
            [*own, "--output_dir", str(tmp_path), "--device", "cpu", "--runner", "ray", "--no-progress"]
        )
    finally:
        ray.shutdown()
    assert made == {name: stage for name, stage in summary.items() if name.startswith("recordings/")}


@pytest.mark.slow
def test_with_workers(built, tmp_path):
    folder, summary = built
    recognizer = str(folder / "tiny" / "recognizer")
    own = ["--recordings", str(folder / "tiny" / "recordings"), "--asr", recognizer, "--aligner", recognizer]
    script = str(EXAMPLES / "build_speech_text_data.py")
    options = ["--output_dir", str(tmp_path), "--num_workers", "1", "--shard_size", "2", "--no-progress"]
    subprocess.run([sys.executable, script, *own, *options], check=True, timeout=500)
    made = json.loads((tmp_path / "summary.json").read_text())
    assert made == {name: stage for name, stage in summary.items() if name.startswith("recordings/")}


def test_data_of_ones_own(script, built, tmp_path, capsys):
    folder, _ = built
    recognizer = str(folder / "tiny" / "recognizer")
    recordings = ["--recordings", str(folder / "tiny" / "recordings"), "--output_dir", str(tmp_path)]
    for arguments, message in (
        (recordings, "--asr is needed"),
        ([*recordings, "--asr", recognizer], "--aligner is needed"),
        (["--questions", "a", "--asr", recognizer, "--output_dir", str(tmp_path)], "--chat_model is needed"),
    ):
        with pytest.raises(SystemExit):
            script.main(arguments)
        assert message in capsys.readouterr().err
    own = [*recordings, "--asr", recognizer, "--aligner", recognizer, "--chunk_seconds", "1", "2", "--no-progress"]
    summary = script.main(own)
    assert list(summary)[-1] == "recordings/interleaved" and summary["recordings/interleaved"]["rows"] == 4
    with pytest.raises(ValueError, match=r"no file that ends in \.flac"):
        script.recordings_of(tmp_path / "recordings" / "interleaved")
