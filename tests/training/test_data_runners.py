"""Stages on disk: shards, rejected rows, resuming, and the ways to run a step."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Audio, Dataset

from dualspeech.training.data_steps import shards
from dualspeech.training.data_steps.row_sources import UnreadableRow, open_rows
from dualspeech.training.data_steps.row_tables import common_schema, rows_of_table, table_of_rows, with_schema
from dualspeech.training.data_steps.runners import map_dataset, run_step, run_steps
from dualspeech.training.data_steps.shards import load_rejected, load_rows
from dualspeech.training.data_steps.step import Step
from tests.package.running import ROOT
from tests.training.data_runner_steps import Repeat, Workers, texts


class Same(Step):
    name = "same"

    def process(self, rows):
        return [[row] for row in rows]

    def settings(self):
        return {"step": self.name}


@pytest.fixture
def run(tmp_path):
    def run(step, rows, name="stage", **kwargs):
        return run_step(step, rows, tmp_path / name, **{"progress": False, "shard_size": 10, **kwargs})

    return run


@pytest.fixture
def read(tmp_path):
    def read(folder="stage"):
        return [load(tmp_path / folder, str(tmp_path / "cache")).to_list() for load in (load_rows, load_rejected)]

    return read


def lines_file(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def expected(rows, suffix=""):
    """What `Repeat` makes of rows with a `source`."""
    step = Repeat(suffix)
    return [made for row in rows if row.get("text") for made in step.one(row)]


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_rows_and_rejected_rows(run, read, tmp_path):
    rows = [{**row, "source": f"here:{number}"} for number, row in enumerate(texts(33))]
    result = run(Repeat("!"), rows)
    made, rejected = read()
    assert made == expected(rows, "!")
    refused = [row for row in rows if not row.get("text")]
    assert [json.loads(row["row"]) for row in rejected] == refused
    assert [row["source"] for row in rejected] == [row["source"] for row in refused]
    assert {row["step"] for row in rejected} == {"repeat"}
    assert {row["reason"] for row in rejected} == {
        "no text beside ['source']",
        "no text beside ['note', 'source']",
        "the text is empty",
    }
    assert (result.num_rows_in, result.num_rows_out, result.num_rejected) == (33, len(made), len(refused))
    assert result.folder == tmp_path / "stage" and len(made) != 33 - len(refused)
    manifest = json.loads((tmp_path / "stage" / "manifest.json").read_text())
    assert [shard["rows_in"] for shard in manifest["shards"]] == [10, 10, 10, 3]
    assert manifest["step"] == {"step": "repeat", "suffix": "!", "seconds": 0.0}
    # Whoever reads the Parquet files of the folder gets the rows.
    parts = sorted(str(path) for path in (tmp_path / "stage").glob("*.parquet"))
    assert Dataset.from_parquet(parts, cache_dir=str(tmp_path / "cache")).to_list() == made


def test_no_rows_and_empty_shards(run, read):
    assert run(Repeat(), [], "none").num_rows_in == 0
    assert read("none") == [[], []]
    result = run(Repeat(), [{"text": ""}] * 12, "rejected")
    assert (result.num_rows_out, result.num_rejected) == (0, 12)
    made, rejected = read("rejected")
    assert made == [] and [row["source"] for row in rejected] == [f"row {number}" for number in range(12)]
    # The first and the last shard have no rows.
    rows = [{"text": "a", "times": 0}] * 10 + [{"text": "b"}] * 10 + [{"text": ""}] * 3
    run(Repeat(), rows, "middle")
    assert [row["text"] for row in read("middle")[0]] == ["b"] * 10
    assert run(Repeat(), run(Repeat(), [], "none").folder, "after").num_rows_in == 0


def test_shards_agree_on_their_columns(run, read, tmp_path):
    rows = [{"a": None, "list": [], "inner": {"x": 1}, "number": number} for number in range(10)]
    rows += [{"a": "text", "list": [1], "inner": {"y": "z"}, "number": 0.5, "late": b"\x00\xff"} for _ in range(10)]
    rows += [{"a": None, "number": 1.5} for _ in range(10)]
    run(Same(), rows)
    schemas = {pq.read_schema(path).to_string() for path in (tmp_path / "stage").glob("part-*")}
    assert len(schemas) == 1
    made = read()[0]
    assert made[0] == {"a": None, "list": [], "inner": {"x": 1, "y": None}, "number": 0.0, "late": None}
    assert made[10] == {"a": "text", "list": [1], "inner": {"x": None, "y": "z"}, "number": 0.5, "late": b"\x00\xff"}
    assert made[20] == {**dict.fromkeys(made[0]), "number": 1.5}
    assert open_rows(tmp_path / "stage").read(8, 12) == made[8:12]


def test_values_without_a_common_type_survive(run, read, tmp_path):
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": [{"type": "text", "text": "hi"}]}]
    rows = [{"messages": chat, "targets": "a", "audio": "a.wav", "metadata": {}} for _ in range(10)]
    rows += [{"messages": chat, "targets": {"text": "a"}, "audio": {"bytes": b"RIFF"}, "metadata": {"x": [1]}}]
    run(Same(), rows)
    # Bytes in a column of JSON are base64, as in JSON Lines.
    assert read()[0] == [*rows[:10], {**rows[10], "audio": {"bytes": "UklGRg=="}}]
    again = run(Same(), tmp_path / "stage", "again")
    assert again.num_rows_out == 11 and read("again") == read()


def test_tables_hold_rows():
    rows = [
        {"array": np.arange(3), "pair": (np.zeros(2, np.float32), 16000), "path": Path("a") / "b", "mixed": 1},
        {"array": torch.tensor([4]), "matrix": np.eye(2), "mixed": "one", "binary": "text"},
        {"huge": 2**70, "flag": np.bool_(True), "binary": b"\xff"},
    ]
    table = table_of_rows(rows)
    nothing = dict.fromkeys(table.column_names)
    assert rows_of_table(table) == [
        {
            **nothing,
            "array": [0, 1, 2],
            "pair": {"array": [0, 0], "sampling_rate": 16000},
            "path": os.path.join("a", "b"),
            "mixed": 1,
        },
        {**nothing, "array": [4], "matrix": [[1, 0], [0, 1]], "mixed": "one", "binary": "text"},
        {**nothing, "huge": 2**70, "flag": True, "binary": {"bytes": "/w=="}},
    ]
    assert table_of_rows([]).num_rows == 0
    with pytest.raises(ValueError, match=r"'thing' cannot be stored: .*object"):
        table_of_rows([{"thing": object()}])
    with pytest.raises(ValueError, match=r"the rows have no entries"):
        table_of_rows([{}])


@pytest.mark.parametrize("other", [b"x", {"y": 1}, [1], 3, True])
@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: [value], lambda value: {"z": value}])
def test_tables_of_different_types_have_a_common_schema(other, wrap):
    tables = [table_of_rows([{"a": value}] * 2) for value in (None, wrap("x"), wrap(other))]
    for order in (tables, tables[::-1]):
        schema = common_schema([table.schema for table in order])
        cast = [with_schema(table, schema) for table in tables]
        assert all(table.schema.equals(schema, check_metadata=True) for table in cast)
        other_json = {"bytes": "eA=="} if other == b"x" else other
        assert [rows_of_table(table)[0]["a"] for table in cast] == [None, wrap("x"), wrap(other_json)]


def test_json_lines(run, read, tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.wav").write_bytes(b"")
    rows = [
        {"task": "vc", "audio": "clips/a.wav", "targets": {"audio": {"path": "clips/a.wav"}}, "speaker": "anna"},
        {"audio": [1, 2], "speaker": "clips/a.wav", "source": "mine"},
        {"messages": [{"role": "user", "content": [{"type": "audio", "path": "clips/no.wav"}]}]},
        {"chunks": [{"type": "audio", "audio": {"bytes": "AAAA"}}, "text", {"type": "audio", "path": "http://a/b"}]},
    ]
    path = lines_file(tmp_path / "rows.jsonl", rows)
    path.write_bytes(path.read_bytes() + b'\n[1, 2]\n{"text": "\xff"}\n{"cut')
    places = [f"{path}:{line}" for line in range(1, 9)]
    source = open_rows(path)
    first, second, third, fourth, *others = source.read(0, 99)
    clip, folder = str(tmp_path / "clips" / "a.wav"), str(tmp_path / "clips")
    assert first == {**rows[0], "audio": clip, "targets": {"audio": {"path": clip}}, "source": f"{path}:1"}
    # Where a row stands is told, and what it says of its origin is kept.
    assert second == {"audio": [1, 2], "speaker": clip, "source": places[1], "metadata": {"source": "mine"}}
    assert third["messages"][0]["content"] == [{"type": "audio", "path": os.path.join(folder, "no.wav")}]
    assert fourth == {**rows[3], "source": f"{path}:4"}
    assert all(isinstance(row, UnreadableRow) for row in others)
    assert [row.source for row in others] == [f"{path}:6", f"{path}:7", f"{path}:8"]  # line 5 is empty
    assert source.read(2, 5) == [third, fourth, others[0]] and len(source) == 7
    run(Same(), path)
    made, rejected = read()
    assert [row["source"] for row in made] == places[:4]
    assert [(row["source"], row["step"]) for row in rejected] == [(f"{path}:{line}", "read") for line in (6, 7, 8)]
    assert json.loads(rejected[2]["row"]) == '{"cut' and "no JSON" in rejected[2]["reason"]
    assert rejected[0]["reason"] == "a row must be an object {...}, got list"


def test_lines_are_read_as_the_validator_reads_them(run, read, tmp_path):
    lines = ['{"text": "a"}', '{"text": 1, "text": 2}', '{"x": NaN}', '{"x": ' * 3000, '{"text": "\\ud83d"}', '{"cut']
    lines.append('{"source": "web", "metadata": {"source": "page", "n": 1}}')
    kept = [{"text": "a"}, {"metadata": {"source": "page", "n": 1, "row_source": "web"}}]
    for name in ("rows.jsonl", "rows.JSONL", "rows.jsonl.gz"):
        path = tmp_path / name
        with gzip.open(path, "wt") if name.endswith("gz") else path.open("w") as file:
            file.write("\n".join(lines))
        run(Same(), path, f"stage of {name}")
        made, rejected = read(f"stage of {name}")
        for row in made:
            row["metadata"] = row["metadata"] and {key: row["metadata"][key] for key in ("source", "n", "row_source")}
        expected = [{**kept[0], "source": f"{path}:1", "metadata": None}]
        assert made == [*expected, {**kept[1], "source": f"{path}:7", "text": None}]
        assert [row["source"] for row in rejected] == [f"{path}:{line}" for line in range(2, 7)]
        reasons = ["stands twice", "NaN is no JSON number", "nested too deeply", "UTF-8 cannot encode", "no JSON"]
        assert all(part in row["reason"] for part, row in zip(reasons, rejected, strict=True))


def test_a_file_has_one_name(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines_file(tmp_path / "rows.jsonl", texts(3))
    assert run(Repeat(), "rows.jsonl") == run(Repeat(), "./rows.jsonl")


def test_rows_that_cannot_be_stored_are_rejected(run, read):
    deep = []
    for _ in range(300):
        deep = [deep]

    class Half(Same):
        def process(self, rows):
            return [[{**row, "text": "\ud83d" if row["text"] == "b" else row["text"]}] for row in rows]

    run(Half(), [{"text": "a"}, {"text": "x \ud83d"}, {"text": "b"}, {"text": "c", "deep": deep}, {"text": "d"}])
    made, rejected = read()
    assert [row["text"] for row in made] == ["a", "d"]
    assert [row["source"] for row in rejected] == ["row 1", "row 2", "row 3"]
    assert json.loads(rejected[0]["row"]) == {"text": "x \ud83d"}
    reasons = ["`text` is a text with '\\ud83d'", "the step made a row that cannot be stored", "nested too deeply"]
    assert all(part in row["reason"] for part, row in zip(reasons, rejected, strict=True))


def test_files_of_others_are_never_removed(run, tmp_path):
    folder = tmp_path / "stage"
    mine = {"rejected/rejected-thesis.parquet": "a", "notes.tmp": "b", "deep/part-00000.parquet": "c"}
    for name, text in mine.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"not empty: it has \['deep', 'notes.tmp', 'rejected'\]"):
            run(Repeat(), texts(12), overwrite=overwrite)
    assert files_of(folder) == {name: text.encode() for name, text in mine.items()}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match="no folder of a stage"):
        run(Repeat(), texts(12), "other", overwrite=True)
    assert os.listdir(tmp_path / "other") == ["manifest.json"]

    run(Repeat("a"), texts(25), "made")
    for name, text in mine.items():
        (tmp_path / "made" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "made" / name).write_text(text)
    run(Repeat("b"), texts(12), "made", overwrite=True)
    run(Repeat("b"), texts(12), "fresh")
    made = files_of(tmp_path / "made")
    assert made == files_of(tmp_path / "fresh") | {name: text.encode() for name, text in mine.items()}


def test_rows_of_a_data_set(run, read, tmp_path):
    def dataset(first):
        rows = [{"audio": {"bytes": b"RIFF", "path": None}, "text": str(i)} for i in range(first, 12)]
        return Dataset.from_list(rows).cast_column("audio", Audio(16000)).select(range(11 - first, -1, -1))

    run(Same(), dataset(0))
    assert run(Same(), dataset(0)).num_rows_out == 12
    made = read()[0]
    assert [row["text"] for row in made] == [str(i) for i in range(11, -1, -1)]
    assert made[0]["audio"] == {"bytes": b"RIFF"}  # not decoded, and null counts as absent
    with pytest.raises(ValueError, match=r"input.fingerprint is"):
        run(Same(), dataset(1))


def test_sources_that_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"`rows` is int; accepted are"):
        run(Same(), 3)
    with pytest.raises(ValueError, match=r"row 1 is str"):
        run(Same(), [{}, "a"])
    with pytest.raises(ValueError, match=r"does not exist"):
        run(Same(), tmp_path / "no.jsonl")
    with pytest.raises(ValueError, match=r"`shard_size` is 0"):
        run(Same(), [{}], shard_size=0)
    with pytest.raises(ValueError, match=r"`num_workers` is -1"):
        run(Same(), [{}], num_workers=-1)


def test_a_finished_stage_is_left_alone(run, tmp_path):
    class Once(Repeat):
        def setup(self):
            raise AssertionError("set up for nothing")

    rows = texts(25)
    result = run(Repeat(), rows)
    before = files_of(tmp_path / "stage")
    assert run(Once(), rows) == result and files_of(tmp_path / "stage") == before


def test_another_stage_is_refused(run, tmp_path):
    rows = texts(12)
    run(Repeat("a"), rows)
    before = files_of(tmp_path / "stage")
    with pytest.raises(ValueError, match=r"step.suffix is 'a' there and 'b' here\. Choose"):
        run(Repeat("b"), rows)
    with pytest.raises(ValueError, match=r"shard_size is 10 there and 5 here"):
        run(Repeat("a"), rows, shard_size=5)
    with pytest.raises(ValueError, match=r"input.rows is 12 there and 11 here; input.sha256 is"):
        run(Repeat("a"), rows[:11])
    with pytest.raises(ValueError, match=r"input.sha256 is"):
        run(Repeat("a"), [*rows[:11], {**rows[11], "text": "changed"}])
    with pytest.raises(
        ValueError, match=r"step.step is 'repeat' there and 'same' here; step.suffix is 'a' there and None"
    ):
        run(Same(), rows)
    assert files_of(tmp_path / "stage") == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"is no folder of a stage and not empty: it has \['thesis.txt'\]"):
        run(Repeat(), rows, "other")

    run(Repeat("b"), rows, overwrite=True, shard_size=100)
    run(Repeat("b"), rows, "fresh", shard_size=100)
    assert files_of(tmp_path / "stage") == files_of(tmp_path / "fresh")


def test_arrays_count_in_the_fingerprint():
    rows = [{"audio": {"array": np.zeros(4, np.float32), "sampling_rate": 16000}, "codes": torch.arange(3)}]
    other = [
        {"audio": {"array": np.array([0, 0, 0, 1], np.float32), "sampling_rate": 16000}, "codes": torch.arange(3)}
    ]
    assert open_rows(rows).fingerprint == open_rows([dict(rows[0])]).fingerprint != open_rows(other).fingerprint


def test_stopped_at_any_write_it_goes_on(run, tmp_path, monkeypatch):
    """Every rename is a moment at which a process can die."""
    path = lines_file(tmp_path / "rows.jsonl", texts(25))
    run(Repeat(), path, "whole")
    whole, replace = files_of(tmp_path / "whole"), os.replace

    class Died(Exception):
        pass

    def dying(moment):
        def rename(*names):
            nonlocal moment
            moment -= 1
            if moment < 0:
                raise Died
            replace(*names)

        return rename

    moments = 0
    for moments in range(99):
        monkeypatch.setattr(shards.os, "replace", dying(moments))
        try:
            run(Repeat(), path, f"stage{moments}")
            break
        except Died:
            left = list((tmp_path / f"stage{moments}").glob("**/*.tmp"))
            assert left
            with pytest.raises(ValueError, match=r"no folder of a stage|is not finished"):
                load_rows(tmp_path / f"stage{moments}")
        monkeypatch.setattr(shards.os, "replace", replace)
        run(Repeat(), path, f"stage{moments}")
        assert files_of(tmp_path / f"stage{moments}") == whole
    # The manifest twice, two files for each of three shards, and the first part again for its late column.
    assert moments == 9


def test_finished_shards_are_not_made_again(run, tmp_path, read):
    class Failing(Repeat):
        seen = []
        last = 24

        def process(self, rows):
            if rows[0]["text"] == f"text {self.last}":
                raise RuntimeError("out of memory")
            self.seen.extend(rows)
            return super().process(rows)

    rows = [{"text": f"text {number}"} for number in range(30)]
    with pytest.raises(RuntimeError, match=r"out of memory"):
        run(Failing(), rows)
    assert Failing.seen == rows[:24]
    Failing.seen, Failing.last = [], 99
    run(Failing(), rows)
    assert Failing.seen == rows[20:]
    assert [row["text"] for row in read()[0]] == [row["text"] for row in rows]


def test_stages(tmp_path):
    rows = texts(25)
    results = run_steps([Repeat("a"), Repeat("b")], rows, tmp_path, shard_size=10, progress=False)
    assert [result.folder.name for result in results] == ["00-repeat", "01-repeat"]
    assert results[1].num_rows_in == results[0].num_rows_out
    made = load_rows(results[1].folder, str(tmp_path / "cache"))
    assert made["text"][:] == [row["text"] for row in expected(rows, "ab")]
    with pytest.raises(ValueError, match=r"step.suffix is 'b' there and 'c' here"):
        run_steps([Repeat("a"), Repeat("c")], rows, tmp_path, shard_size=10, progress=False)
    (results[0].folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"no folder of a stage"):
        load_rows(results[0].folder)


def test_map_dataset_gives_the_same_rows(run, read, tmp_path):
    rows = [{"text": "", "times": 1, "note": None, "source": None}, *texts(41)]
    dataset = Dataset.from_list([{"times": 1, "text": None, "note": None, "source": None, **row} for row in rows])
    run(Repeat("!"), dataset, shard_size=40)
    made, rejected = map_dataset(Repeat("!"), dataset)
    assert [made.to_list(), rejected.to_list()] == read()
    assert rejected[0]["source"] == "row 0" and len(rejected) > 3
    none, rejected = map_dataset(Repeat(), dataset.select([0]))
    assert len(none) == 0 and len(rejected) == 1
    lines = [{"text": "a", "n": {"x": 1}}, {"text": "b", "n": {"x": "y"}}, {"text": "\ud83d"}]
    path = lines_file(tmp_path / "rows.jsonl", lines)
    path.write_text(path.read_text() + "no row\n")
    made, rejected = map_dataset(Same(), path)
    assert [row["n"] for row in made.to_list()] == [{"x": 1}, {"x": "y"}]
    assert [(row["source"], row["step"]) for row in rejected] == [(f"{path}:3", "read"), (f"{path}:4", "read")]
    made, rejected = map_dataset(Repeat(), [{"text": ""}, {"text": "\ud83d"}])
    assert len(made) == 0 and [row["source"] for row in rejected] == ["row 0", "row 1"]
    made, rejected = map_dataset(Repeat(), [{"text": "\ud83d"}])
    assert len(made) == 0 and len(rejected) == 1 and len(map_dataset(Repeat(), [])[1]) == 0
    mixed, _ = map_dataset(Same(), Dataset.from_list([{"a": 1}, {"a": 2}]))
    assert mixed.to_list() == [{"a": 1}, {"a": 2}]


@pytest.mark.slow
def test_workers_give_the_same_rows_in_order(run, tmp_path, read):
    path = lines_file(tmp_path / "rows.jsonl", texts(50))
    run(Repeat("!"), path, "alone")
    run(Repeat("!"), path, "workers", num_workers=2)
    assert files_of(tmp_path / "alone") == files_of(tmp_path / "workers")
    run(Workers(), path, num_workers=2)
    made = read()[0]
    assert [row["source"] for row in made] == [f"{path}:{line}" for line in range(1, 51)]
    assert os.getpid() not in {row["process"] for row in made}
    assert {(row["setups"], row["threads"]) for row in made} == {(1, max(1, os.cpu_count() // 2))}
    dataset = load_rows(tmp_path / "stage", str(tmp_path / "cache"))
    run(Repeat("?"), dataset, "one")
    mapped, rejected = map_dataset(Repeat("?"), dataset, num_proc=2)
    assert [mapped.to_list(), rejected.to_list()] == read("one")


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_it_goes_on(run, tmp_path, num_workers):
    path = lines_file(tmp_path / "rows.jsonl", texts(60))
    step = Repeat(seconds=0.05)
    run(step, path, "whole")
    command = [sys.executable, "-m", "tests.training.data_runner_steps", str(path), str(tmp_path / "stage")]
    process = subprocess.Popen([*command, str(num_workers), "0.05"], cwd=ROOT)
    children = []
    try:
        wait_for(lambda: (tmp_path / "stage" / "part-00001.parquet").exists() or process.poll() is not None)
        children = children_of(process.pid)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(list((tmp_path / "stage").glob("part-*"))) < 6
    if num_workers:
        assert len(children) >= num_workers
        wait_for(lambda: not any(is_running(child) for child in children), seconds=30)
    run(step, path)
    assert files_of(tmp_path / "stage") == files_of(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_ray_gives_the_same_rows(run, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    import ray

    from dualspeech.training.data_steps.ray_runner import run_step_with_ray

    path = lines_file(tmp_path / "rows.jsonl", texts(45))
    rows = texts(25)
    run(Repeat("!"), path, "file")
    run(Repeat("!"), rows, "list")
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    try:
        options = {"shard_size": 10, "progress": False}
        result = run_step_with_ray(Repeat("!"), path, tmp_path / "ray", concurrency=2, **options)
        assert files_of(tmp_path / "ray") == files_of(tmp_path / "file") and result.num_rows_in == 45
        (tmp_path / "ray" / "part-00002.parquet").unlink()
        manifest = json.loads((tmp_path / "ray" / "manifest.json").read_text())
        (tmp_path / "ray" / "manifest.json").write_text(json.dumps({**manifest, "complete": False, "shards": []}))
        assert run_step_with_ray(Repeat("!"), path, tmp_path / "ray", **options) == result
        assert files_of(tmp_path / "ray") == files_of(tmp_path / "file")
        run_step_with_ray(Repeat("!"), rows, tmp_path / "ray_list", **options)
        assert files_of(tmp_path / "ray_list") == files_of(tmp_path / "list")
    finally:
        ray.shutdown()


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def children_of(process):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if path.read_text().rpartition(")")[2].split()[1] == str(process):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
