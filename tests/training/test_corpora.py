"""Loaders of corpora on miniature trees with the published layouts."""

import gzip
import json
from importlib import import_module

import numpy as np
import pytest
import soundfile

from dualspeech.processing.audio import load_audio
from dualspeech.training.corpora import corpus_rows
from dualspeech.training.corpora.corpus_rows import Problems
from dualspeech.training.validate_rows import check_rows, read_rows
from tests.examples.running import load_example
from tests.tiny import tone


def loader(name):
    return import_module(f"dualspeech.training.corpora.{name}")


def sound(path, seconds=0.3, rate=16000, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(seconds, rate), rate, **kwargs)
    return str(path)


def text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def processor():
    return load_example("tiny_dualspeech").tiny_processor()


def written(name, tmp_path, *arguments, kind="task", count=None):
    """The rows that the command line writes, which the validator has passed."""
    output = tmp_path / "written" / f"{name}-{kind}.jsonl"
    output.parent.mkdir(exist_ok=True)
    number = loader(name).main([*map(str, arguments), "--output", str(output), "--kind", kind])
    check_rows(output, kind=kind, check_audio=True)
    rows = read_rows(output)
    assert len(rows) == number == (count or number)
    assert not list(output.parent.glob("*.unfinished"))
    return [{key: value for key, value in row.items() if key != "source"} for row in rows]


def encodes(processor, row):
    """A row as an example to train on."""
    row = {key: value for key, value in row.items() if key not in ("id", "metadata")}
    return processor.build_example(**row, resample=True)


@pytest.fixture
def librispeech(tmp_path):
    root = tmp_path / "LibriSpeech"
    for speaker, chapter, texts in (("103", "1240", ["CHAPTER ONE", "A TREE"]), ("84", "121", ["IT'S RED"])):
        folder = root / "dev-clean" / speaker / chapter
        names = [f"{speaker}-{chapter}-{i:04d}" for i in range(len(texts))]
        for name in names:
            sound(folder / f"{name}.flac")
        lines = [f"{name} {line}" for name, line in zip(names, texts, strict=True)]
        text(folder / f"{speaker}-{chapter}.trans.txt", *lines)
    return root


def test_librispeech(tmp_path, librispeech, processor):
    rows = written("librispeech", tmp_path, librispeech, "--split", "dev-clean", count=3)
    assert rows[1] == {
        "id": "103-1240-0001",
        "task": "asr",
        "audio": str(librispeech / "dev-clean" / "103" / "1240" / "103-1240-0001.flac"),
        "targets": "a tree",
        "metadata": {"corpus": "LibriSpeech", "split": "dev-clean", "speaker": "103"},
    }
    assert [row["targets"] for row in rows] == ["chapter one", "a tree", "it's red"]
    assert rows == list(loader("librispeech").rows(tmp_path, "dev-clean"))
    assert next(loader("librispeech").rows(librispeech, "dev-clean", case="upper"))["targets"] == "CHAPTER ONE"
    recordings = written("librispeech", tmp_path, librispeech, "--split", "dev-clean", kind="recording")
    assert recordings[1] == {key: rows[1][key] for key in ("id", "audio", "metadata")} | {"text": "a tree"}
    assert encodes(processor, rows[0])["acoustic_labels"] == [49, 51]
    with pytest.raises(ValueError, match=r"`split`: there is no '.*train-clean-100' and no"):
        next(loader("librispeech").rows(librispeech, "train-clean-100"))
    with pytest.raises(ValueError, match="`case` is 'Upper'; accepted are 'lower', 'upper'"):
        next(loader("librispeech").rows(librispeech, "dev-clean", case="Upper"))


def test_what_is_missing_is_an_error_or_listed(tmp_path, librispeech, capsys):
    folder = librispeech / "dev-clean" / "103" / "1240"
    (folder / "103-1240-0000.flac").unlink()
    sound(folder / "103-1240-0007.flac")
    text(librispeech / "dev-clean" / "84" / "121" / "84-121.trans.txt", "84-121-0000")
    rows = loader("librispeech").rows
    with pytest.raises(ValueError, match=r"the file '.*103-1240-0000.flac' is missing; to leave such rows out"):
        list(rows(librispeech, "dev-clean"))
    problems = Problems(strict=False)
    assert [row["id"] for row in rows(librispeech, "dev-clean", problems=problems)] == ["103-1240-0001"]
    for found, expected in zip(
        problems.found,
        (
            "0000.flac' is missing",
            "0007' has no transcript",
            "'84-121-0000' has no text",
            "84-121-0000' has no transcript",
        ),
        strict=True,
    ):
        assert expected in found
    report = tmp_path / "missing.txt"
    arguments = [librispeech, "--split", "dev-clean"]
    with pytest.raises(ValueError, match="is missing"):
        written("librispeech", tmp_path, *arguments)
    assert not list((tmp_path / "written").iterdir()), "no half-written file"
    written("librispeech", tmp_path, *arguments, "--missing-report", report, count=1)
    assert report.read_text().splitlines() == problems.found
    assert f"1 rows in {tmp_path / 'written' / 'librispeech-task.jsonl'}; 4 problems" in capsys.readouterr().err
    (folder / "103-1240-0001.flac").unlink()
    with pytest.raises(ValueError, match="gives no rows for the splits"):
        written("librispeech", tmp_path, *arguments, "--missing-report", report)


def test_libritts_r(tmp_path, processor):
    folder = tmp_path / "LibriTTS_R" / "test-clean"
    for speaker, names in (("12", ["a", "b", "c"]), ("7", ["d"])):
        for name in names:
            sound(folder / speaker / "1" / f"{speaker}_1_{name}.wav", rate=24000)
            text(folder / speaker / "1" / f"{speaker}_1_{name}.normalized.txt", f"Say {name}.")
            text(folder / speaker / "1" / f"{speaker}_1_{name}.original.txt", "Not this.")
    rows = written("libritts_r", tmp_path, tmp_path, "--split", "test-clean", count=4)
    first = {
        "id": "12_1_a",
        "task": "tts",
        "text": "Say a.",
        "targets": {"audio": str(folder / "12" / "1" / "12_1_a.wav")},
        "metadata": {"corpus": "LibriTTS-R", "split": "test-clean", "speaker": "12"},
    }
    assert rows[0] == first and [row["id"] for row in rows] == ["12_1_a", "12_1_b", "12_1_c", "7_1_d"]
    assert len(encodes(processor, rows[0])["acoustic_labels"]) > 2

    load = loader("libritts_r").rows
    problems = Problems(strict=False)
    others = list(load(tmp_path / "LibriTTS_R", "test-clean", speaker="other", problems=problems))
    assert [row["id"] for row in others] == ["12_1_a", "12_1_b", "12_1_c"]
    assert "7_1_d.wav' has no other utterance" in problems.found[0]
    for row in others:
        assert row["speaker"] != row["targets"]["audio"] and "/12/1/12_1_" in row["speaker"]
    choices = [
        tuple(row["speaker"] for row in load(tmp_path, "test-clean", "other", seed, Problems(strict=False)))
        for seed in (0, 0, *range(1, 8))
    ]
    assert choices[0] == choices[1] and len(set(choices)) > 1
    recordings = written("libritts_r", tmp_path, tmp_path, "--split", "test-clean", kind="recording")
    assert recordings[0] == {
        "id": "12_1_a",
        "audio": first["targets"]["audio"],
        "text": "Say a.",
        "metadata": first["metadata"],
    }
    text(folder / "7" / "1" / "7_1_e.normalized.txt", "No recording.")
    (folder / "12" / "1" / "12_1_a.normalized.txt").unlink()
    text(folder / "12" / "1" / "12_1_b.normalized.txt", "")
    problems = Problems(strict=False)
    assert [row["id"] for row in load(tmp_path, "test-clean", problems=problems)] == ["12_1_c", "7_1_d"]
    assert len(problems.found) == 3 and "7_1_e.wav' is missing" in problems.found[2]
    with pytest.raises(ValueError, match="`speaker` is 'mine'; accepted are 'target', 'other'"):
        next(load(tmp_path, "test-clean", speaker="mine"))


@pytest.fixture
def common_voice(tmp_path):
    root = tmp_path / "en"
    for i in range(4):
        sound(root / "clips" / f"common_voice_en_{i}.mp3", 0.5, format="MP3")
    names = [f"common_voice_en_{i}.mp3" for i in range(4)]
    sentences = ["Good morning.", 'He said "no".', "Three.", "Four."]
    text(
        root / "validated.tsv",
        "client_id\tpath\tsentence\tage",
        *(f"x{i}\t{name}\t{sentences[i]}\t" for i, name in enumerate(names)),
    )
    translations = ["Guten Morgen.", "Er sagte „nein“.", "Drei.", "Vier."]
    splits = ["train", "train_covost", "dev", "test"]
    text(
        root / "covost_v2.en_de.tsv",
        "path\ttranslation\tsplit",
        *(f"{name}\t{t}\t{split}" for name, t, split in zip(names, translations, splits, strict=True)),
    )
    return root


def test_covost2(tmp_path, common_voice, processor):
    rows = written("covost2", tmp_path, common_voice, "--split", "train", count=2)
    assert rows[1] == {
        "id": "common_voice_en_1",
        "task": "s2tt",
        "audio": str(common_voice / "clips" / "common_voice_en_1.mp3"),
        "source_language": "English",
        "target_language": "German",
        "targets": "Er sagte „nein“.",
        "metadata": {"corpus": "CoVoST 2", "split": "train", "source_text": 'He said "no".'},
    }
    assert encodes(processor, rows[0])["task_type_ids"] == 7
    load = loader("covost2").rows
    text(
        common_voice / "covost_v2.en_de.test.tsv",
        "path\tsentence\ttranslation\tclient_id",
        "common_voice_en_2.mp3\tThree.\tDrei!\tx",
        "common_voice_en_3.mp3\tFour.\t\tx",
    )
    problems = Problems(strict=False)
    (row,) = load(common_voice, "test", problems=problems)
    assert row["targets"] == "Drei!" and problems.found == ["'common_voice_en_3.mp3' has no translation"]
    (common_voice / "clips" / "common_voice_en_0.mp3").unlink()
    with pytest.raises(ValueError, match=r"common_voice_en_0.mp3' is missing"):
        list(load(common_voice, "train"))
    for arguments, message in (
        (("valid",), "`split` is 'valid'; accepted are 'train', 'dev', 'test'"),
        (("dev", "en", "xx"), "language 'xx' is unknown; accepted are ar, ca"),
        (("dev", "en", "fr"), r"`root`: there is no '.*covost_v2.en_fr.dev.tsv' and no '.*covost_v2.en_fr.tsv'"),
    ):
        with pytest.raises(ValueError, match=message):
            list(load(common_voice, *arguments))
    text(common_voice / "covost_v2.en_de.dev.tsv", "path\ttranslation", "a\tb")
    with pytest.raises(ValueError, match=r"lacks the columns \['sentence'\]"):
        list(load(common_voice, "dev"))
    text(common_voice / "covost_v2.en_de.dev.tsv", "path\tsentence\ttranslation", "a\tb")
    with pytest.raises(ValueError, match="line 2: 2 values for 3 columns"):
        list(load(common_voice, "dev"))


def test_cvss(tmp_path, processor):
    root, covost = tmp_path / "cvss_c_es_en_v1.0", tmp_path / "es"
    names = [f"common_voice_es_{i}.mp3" for i in (5, 3)]
    text(root / "dev.tsv", *(f"{name}\tgood morning {i}" for i, name in enumerate(names)))
    for name in names:
        sound(root / "dev" / f"{name}.wav", rate=24000)
    text(
        covost / "covost_v2.es_en.dev.tsv",
        "path\tsentence\ttranslation\tclient_id",
        *(f"{name}\tBuenos dias.\tGood morning.\tx" for name in names),
    )
    rows = written("cvss", tmp_path, root, "--covost", covost, "--split", "dev", count=2)
    assert rows[0] == {
        "id": "common_voice_es_5",
        "task": "t2st",
        "text": "Buenos dias.",
        "source_language": "Spanish",
        "target_language": "English",
        "targets": {"audio": str(root / "dev" / "common_voice_es_5.mp3.wav")},
        "metadata": {"corpus": "CVSS-C", "split": "dev", "target_text": "good morning 0"},
    }
    assert len(encodes(processor, rows[0])["acoustic_labels"]) > 2
    recordings = written("cvss", tmp_path, root, "--covost", covost, "--split", "dev", kind="recording")
    assert recordings[0]["text"] == "good morning 0" and recordings[0]["audio"] == rows[0]["targets"]["audio"]
    text(covost / "covost_v2.es_en.dev.tsv", "path\tsentence\ttranslation", f"{names[0]}\tBuenos dias.\tx")
    with pytest.raises(ValueError, match=f"'{names[1]}' has no source text"):
        list(loader("cvss").rows(root, "dev", covost))
    (root / "dev" / f"{names[0]}.wav").unlink()
    problems = Problems(strict=False)
    assert not list(loader("cvss").rows(root, "dev", covost, problems=problems)) and len(problems.found) == 2


def test_iemocap(tmp_path, processor):
    root = tmp_path / "IEMOCAP_full_release"
    labels = ["neu", "hap", "exc", "fru", "xxx", "ang", "sad"]
    for session in range(1, 6):
        dialogue = f"Ses0{session}F_impro01"
        folder = root / f"Session{session}"
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        for i, label in enumerate(labels):
            name = f"{dialogue}_F{i:03d}"
            lines += [f"[{i}.2901 - {i}.9]\t{name}\t{label}\t[2.5000, 2.5000, 2.5000]", "C-E2:\tNeutral;\t()", ""]
            if label not in ("fru", "xxx"):
                sound(folder / "sentences" / "wav" / dialogue / f"{name}.wav")
        text(folder / "dialog" / "EmoEvaluation" / f"{dialogue}.txt", *lines)
        text(folder / "dialog" / "EmoEvaluation" / f"._{dialogue}.txt", "\x00")
        text(folder / "dialog" / "EmoEvaluation" / "Categorical" / "other.txt", "no")
    rows = written("iemocap", tmp_path, root, "--split", "train", count=20)
    assert rows[2] == {
        "id": "Ses01F_impro01_F002",
        "task": "ser",
        "audio": str(root / "Session1" / "sentences" / "wav" / "Ses01F_impro01" / "Ses01F_impro01_F002.wav"),
        "targets": "happy",
        "metadata": {"corpus": "IEMOCAP", "split": "train", "session": 1, "label": "exc"},
    }
    assert [row["targets"] for row in rows[:5]] == ["neutral", "happy", "happy", "angry", "sad"]
    assert {row["metadata"]["session"] for row in rows} == {1, 2, 3, 4}
    assert encodes(processor, rows[0])["task_type_ids"] == 8
    rows = written("iemocap", tmp_path, tmp_path, "--split", "test", "--no-merge-excited", count=4)
    assert {row["metadata"]["label"] for row in rows} == {"neu", "hap", "ang", "sad"}
    assert {row["metadata"]["session"] for row in rows} == {5}
    load = loader("iemocap").rows
    assert {row["metadata"]["session"] for row in load(root, "test", test_session=2)} == {2}
    for arguments, message in (
        (("dev",), "`split` is 'dev'; accepted are 'train', 'test'"),
        (("test", True, 6), "`test_session` is 6; accepted are 1, 2, 3, 4, 5"),
    ):
        with pytest.raises(ValueError, match=message):
            next(load(root, *arguments))
    with pytest.raises(ValueError, match=r"`root`: there is no '.*Session1'"):
        next(load(root / "Session1", "train"))


@pytest.mark.parametrize("version", ["0.92", "0.80"])
def test_vctk(tmp_path, processor, version):
    root = tmp_path / "VCTK"
    sentences = ["Please call Stella.", "Ask her to bring.", "Please  call Stella"]
    spoken = {"p225": (0, 1), "p226": (0, 1), "p227": (2, 1), "p315": (0,), "s5": (0,)}
    for speaker, numbers in spoken.items():
        for place, number in enumerate(numbers, start=1):
            name = f"{speaker}_{place:03d}"
            if version == "0.92":
                sound(root / "wav48_silence_trimmed" / speaker / f"{name}_mic1.flac", rate=48000)
                sound(root / "wav48_silence_trimmed" / speaker / f"{name}_mic2.flac", rate=48000)
            else:
                sound(root / "wav48" / speaker / f"{name}.wav", rate=48000)
            if speaker != "p315":
                text(root / "txt" / speaker / f"{name}.txt", sentences[number])
    if version == "0.92":
        text(root / "txt" / "p362" / "p362_001.txt", sentences[0])
        (root / "wav48_silence_trimmed" / "p362").mkdir()
    # Two sentences by three speakers each; `s5` says one only, so it is a source and no target.
    rows = written("vctk", tmp_path, root, "--split", "test", "--count", "15", count=15)
    load = loader("vctk").rows
    with pytest.raises(ValueError, match="`count` is 16; accepted are at most 15"):
        list(load(root, count=16))
    texts = {}
    for speaker, numbers in spoken.items():
        texts |= {f"{speaker}_{place:03d}": numbers[place - 1] % 2 for place in range(1, len(numbers) + 1)}

    def named(path):
        return path.rpartition("/")[2].removesuffix(".flac").removesuffix(".wav").removesuffix("_mic1")

    for row in rows:
        source, voice, target = (named(path) for path in (row["audio"], row["speaker"], row["targets"]["audio"]))
        assert texts[source] == texts[target] != texts[voice] and source[:4] != target[:4] == voice[:4]
        assert row["metadata"]["text"].replace("  ", " ").startswith(("Please call Stella", "Ask her to bring"))
    few = [list(load(root, count=6, seed=seed)) for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2]
    assert len(encodes(processor, rows[0])["acoustic_labels"]) > 2
    with pytest.raises(ValueError, match="`split` is 'train'; accepted is 'test'"):
        next(load(root, "train"))
    (root / "txt" / "p225" / "p225_001.txt").unlink()
    with pytest.raises(ValueError, match=r"p225_001.txt' is missing"):
        next(load(root, count=1))


@pytest.fixture
def libriheavy(tmp_path):
    root = tmp_path / "libriheavy"
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 16000 * 8)
    cuts = []
    for book in ("a", "b"):
        path = root / "download" / "librilight" / "small" / "100" / book / f"{book}_64kb.flac"
        path.parent.mkdir(parents=True)
        soundfile.write(path, samples, 16000)
        for i in range(4):
            supervision = {"id": f"{book}{i}", "start": 0, "duration": 1.5, "channel": 0, "speaker": "100"}
            supervision |= {"custom": {"texts": [f"Text {i}.", f"TEXT {i}"], "begin_byte": 0}, "language": "English"}
            source = f"download/librilight/small/100/{book}/{book}_64kb.flac"
            cuts.append(
                {
                    "id": f"small/100/{book}/{book}_64kb_{i}",
                    "start": i * 1.7000000000000002,
                    "duration": 1.5,
                    "channel": 0,
                    "supervisions": [supervision],
                    "recording": {
                        "id": book,
                        "sources": [{"type": "file", "channels": [0], "source": source}],
                        "sampling_rate": 16000,
                        "num_samples": 128000,
                    },
                    "type": "MonoCut",
                }
            )
    lines = "".join(json.dumps(cut) + "\n" for cut in cuts)
    (root / "libriheavy_cuts_small.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return root


def test_libriheavy(tmp_path, libriheavy, processor):
    rows = written("libriheavy", tmp_path, libriheavy, "--split", "small", count=8)
    path = libriheavy / "download" / "librilight" / "small" / "100" / "a" / "a_64kb.flac"
    segment = {"path": str(path), "start": 3.4, "end": 4.9}
    assert rows[2] == {
        "id": "small/100/a/a_64kb_2",
        "task": "vc",
        "audio": segment,
        "targets": {"audio": segment},
        "metadata": {"corpus": "Libriheavy", "split": "small", "speaker": "100", "text": "Text 2."},
    }
    array, rate = load_audio(rows[2]["audio"], 16000)
    np.testing.assert_array_equal(array, soundfile.read(path, dtype="float32")[0][54400:78400])
    example = encodes(processor, rows[2])
    whole = processor.build_example(task="vc", audio=(array, rate), targets={"audio": (array, rate)}, resample=True)
    assert example == whole and len(example["acoustic_labels"]) > 2
    recordings = written("libriheavy", tmp_path, libriheavy, "--split", "small", kind="recording")
    assert recordings[2]["audio"] == segment and recordings[2]["text"] == "Text 2."


def test_libriheavy_by_hours(libriheavy):
    load = loader("libriheavy").rows
    drawn = {seed: [row["id"] for row in load(libriheavy, "small", hours=4.5 / 3600, seed=seed)] for seed in range(6)}
    everything = [row["id"] for row in load(libriheavy, "small", hours=12 / 3600)]
    assert everything == [row["id"] for row in load(libriheavy, "small")]
    for ids in drawn.values():
        assert len(ids) == 3 and ids == [name for name in everything if name in ids]
    assert (
        drawn[0] == [row["id"] for row in load(libriheavy, "small", hours=4.5 / 3600)]
        and len(set(map(tuple, drawn.values()))) > 1
    )
    with pytest.raises(ValueError, match=r"`hours` is 1; .* has 0.0"):
        list(load(libriheavy, "small", hours=1))


def test_libriheavy_that_is_incomplete(libriheavy):
    load = loader("libriheavy").rows
    (libriheavy / "download" / "librilight" / "small" / "100" / "b" / "b_64kb.flac").unlink()
    with pytest.raises(ValueError, match=r"b_64kb.flac' is missing"):
        list(load(libriheavy, "small"))
    problems = Problems(strict=False)
    assert len(list(load(libriheavy, "small", problems=problems))) == 4 and len(problems.found) == 1
    with pytest.raises(ValueError, match=r"`librilight`: there is no '.*elsewhere'"):
        next(load(libriheavy, "small", librilight=libriheavy / "elsewhere"))
    with pytest.raises(ValueError, match=r"`split`: there is no '.*libriheavy_cuts_large.jsonl.gz' and no"):
        next(load(libriheavy, "large"))
    text(libriheavy / "libriheavy_cuts_dev.jsonl", '{"id": "x", "supervisions": []}')
    with pytest.raises(ValueError, match="line 1: no cut with one source and one supervision"):
        list(load(libriheavy, "dev"))


def test_salmonn_qa(tmp_path, librispeech, processor):
    names = ["103/1240/103-1240-0000", "103/1240/103-1240-0001", "84/121/84-121-0000"]
    annotation = [
        {"path": f"/LibriSpeech/dev-clean/{names[i % 3]}.flac", "task": "QA", "Q": f"Who {i}?", "text": f"Answer {i}."}
        for i in range(9)
    ]
    annotation.insert(4, {"path": "/LibriSpeech/dev-clean/none.flac", "task": "asr", "text": "no"})
    file = tmp_path / "stage1_train.json"
    file.write_text(json.dumps({"annotation": annotation}))
    base = [file, "--librispeech", librispeech, "--test-size", "2", "--sc-train-size", "3"]
    rows = written("salmonn_qa", tmp_path, *base, "--split", "all", count=9)
    assert rows[5] == {
        "id": "84-121-0000-5",
        "task": "sqa",
        "audio": str(librispeech / "dev-clean" / "84" / "121" / "84-121-0000.flac"),
        "question": "Who 5?",
        "targets": "Answer 5.",
        "metadata": {"corpus": "SALMONN QA", "split": "all"},
    }
    assert encodes(processor, rows[0])["task_type_ids"] == 6
    load = loader("salmonn_qa").rows
    sizes = {"test_size": 2, "sc_train_size": 3}
    ids = {
        split: [row["id"] for row in load(file, split, librispeech, **sizes)]
        for split in ("train", "test", "sc-train", "sc-test", "all")
    }
    assert [len(ids[split]) for split in ("train", "test", "sc-train", "sc-test")] == [5, 2, 3, 2]
    assert sorted(ids["train"] + ids["test"] + ids["sc-test"]) == sorted(ids["all"])
    assert set(ids["sc-train"]) < set(ids["train"])
    drawn = [[row["id"] for row in load(file, "test", librispeech, seed=seed, **sizes)] for seed in range(5)]
    assert drawn[0] == ids["test"] and len(set(map(tuple, drawn))) > 1

    others = [{"path": "/AudioCaps/train/1.flac", "task": "QA", "Q": "What?", "text": "A dog."}]
    file.write_text(json.dumps({"annotation": others + annotation + others}))
    mixed = [row["id"] for row in load(file, "all", librispeech)]
    assert mixed == ids["all"], "questions about other corpora change neither rows nor splits"

    plain = [{"path": f"dev-clean/{names[0]}.flac", "question": "Who?", "answer": "Me."}]
    other = [{"path": "x", "task": "asr"}]
    for content, message in (
        (plain, None),
        ({"annotation": other}, "has no entries of the tasks QA, stqa, sqa, only asr"),
        ({"rows": []}, "must hold a list of objects with `path`"),
        ([{**plain[0], "answer": ""}], "entry 0: no answer"),
        ([{**plain[0], "path": "none.flac"}], r"none.flac' is missing"),
    ):
        file.write_text(json.dumps(content))
        if message is None:
            assert next(load(file, "all", librispeech))["targets"] == "Me."
        else:
            with pytest.raises(ValueError, match=message):
                list(load(file, "all", librispeech))
    file.write_text(json.dumps(plain))
    with pytest.raises(ValueError, match="`test_size` is 400; two tests of it leave nothing of 1 pairs"):
        list(load(file, "test", librispeech))
    with pytest.raises(ValueError, match="`split` is 'dev'; accepted are 'train', 'test', 'sc-train'"):
        list(load(file, "dev", librispeech))


def test_spoken_qa(tmp_path, librispeech, processor):
    root = tmp_path / "spoken_qa"
    content = librispeech / "dev-clean" / "84" / "121" / "84-121-0000.flac"
    question, answer = sound(root / "question" / "1.wav", rate=24000), sound(root / "answer" / "1.wav", rate=24000)
    text(
        root / "test.tsv",
        "id\tcontent\tquestion\tanswer\tquestion_text\tanswer_text",
        f"1\t{content}\tquestion/1.wav\tanswer/1.wav\tWho?\tMe.",
        f"2\t{content}\tquestion/2.wav\tanswer/2.wav\tWho?\tMe.",
    )
    report = tmp_path / "missing.txt"
    (row,) = written("spoken_qa", tmp_path, root, "--split", "test", "--missing-report", report)
    assert row == {
        "id": "1",
        "task": "sc",
        "audio": str(content),
        "question": question,
        "targets": {"audio": answer},
        "metadata": {"corpus": "spoken QA", "split": "test", "question_text": "Who?", "target_text": "Me."},
    }
    assert [line.rpartition("/spoken_qa/")[2] for line in report.read_text().splitlines()] == [
        "question/2.wav' is missing",
        "answer/2.wav' is missing",
    ]
    assert encodes(processor, row)["task_type_ids"] == 5
    with pytest.raises(ValueError, match=r"question/2.wav' is missing"):
        list(loader("spoken_qa").rows(root, "test"))


def test_every_loader_documents_its_layout(capsys):
    names = [
        "librispeech",
        "libritts_r",
        "covost2",
        "cvss",
        "iemocap",
        "vctk",
        "libriheavy",
        "salmonn_qa",
        "spoken_qa",
    ]
    for name in names:
        assert f"python -m dualspeech.training.corpora.{name} " in loader(name).__doc__
        with pytest.raises(SystemExit):
            loader(name).main(["--help"])
        assert "--missing-report" in capsys.readouterr().out
    assert corpus_rows.language("sv-SE") == "Swedish"
