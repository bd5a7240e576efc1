"""Data of the training scripts: files and folders, mixed by weight or by passes, packed."""

import json
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Dataset
from transformers import TrainingArguments

from dualspeech.training.packing import PackedDataset
from dualspeech.training.token_rows import load_token_rows
from dualspeech.training.training_data import (
    DataArguments,
    dataset_of,
    encode_rows,
    join,
    load_source,
    packed,
    parse_sources,
    recording_seconds,
    repeat,
    split_by,
)


def example(name, length):
    return {"input_ids": list(range(length)), "labels": [-100] * length, "name": name}


def tokens(name, count, length=3):
    return dataset_of([{**example(f"{name}{i}", length + i % 2), "length": length + i % 2} for i in range(count)])


def encode(rows):
    """As many ids as the text has characters; digits are refused."""
    for row in rows:
        if any(character.isdigit() for character in row["chunks"][0]):
            raise ValueError("digits are not accepted")
    return [example(row["chunks"][0], len(row["chunks"][0])) for row in rows]


def write_rows(path, texts):
    path.write_text("".join(json.dumps({"chunks": [text]}) + "\n" for text in texts))
    return path


def test_sources_as_text():
    assert parse_sources("speech=a/b,text = c.jsonl") == {"speech": "a/b", "text": "c.jsonl"}
    assert parse_sources("rows/train.jsonl,tokens/speech") == {"train": "rows/train.jsonl", "speech": "tokens/speech"}
    for text in ("", "a=", "a=x,a=y", "x/a.jsonl,y/a.jsonl", "a,"):
        with pytest.raises(ValueError, match="write name=path, each name once"):
            parse_sources(text)


def test_raw_rows_are_checked_and_encoded(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", ["hello", "one two"] * 20)
    data = load_source(path, encode)
    assert data["length"][:3] == [5, 7, 5] and data["name"][1] == "one two"
    assert data["source"][39] == f"{path}:40"
    write_rows(path, ["hello", "7", "word"])
    with pytest.raises(ValueError, match=r"rows.jsonl:2: digits are not accepted"):
        load_source(path, encode)
    path.write_text('{"chunks": ["hello"]}\n{"chunks": []}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl:2"):
        load_source(path, encode)
    with pytest.raises(ValueError, match=r"rows.jsonl:1.*task"):
        load_source(write_rows(path, ["hello"]), encode, kind="task")
    with pytest.raises(ValueError, match="does not exist"):
        load_source(tmp_path / "absent", encode)


def test_token_rows_are_read_as_they_are(tmp_path):
    whole = tokens("a", 7)
    whole.select(range(4)).to_parquet(tmp_path / "part-00000.parquet")
    whole.select(range(4, 7)).to_parquet(tmp_path / "part-00001.parquet")
    data = load_source(tmp_path, encode)
    assert data["name"][:] == whole["name"][:] and data["input_ids"][:] == whole["input_ids"][:]
    (tmp_path / "manifest.json").write_text('{"complete": false, "shards": []}')
    with pytest.raises(ValueError, match="not finished"):
        load_source(tmp_path, encode)


def write_stage(folder, *parts, complete=True):
    folder.mkdir(exist_ok=True)
    for number, part in enumerate(parts):
        part.to_parquet(folder / f"part-{number:05d}.parquet")
    manifest = {"complete": complete, "step": {}, "shards": [{"rows_out": len(part)} for part in parts]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_stages_are_whole(tmp_path):
    folder = write_stage(tmp_path / "stage", tokens("a", 3), tokens("b", 2))
    assert len(load_source(folder, encode)) == 5
    tokens("b", 1).to_parquet(folder / "part-00001.parquet")
    with pytest.raises(ValueError, match=r"part-00001.parquet' has 1 rows; the manifest says 2"):
        load_source(folder, encode)
    (folder / "part-00001.parquet").unlink()
    for load in (partial(load_source, encode=encode), load_token_rows):
        with pytest.raises(ValueError, match=r"lacks \['part-00001.parquet'\], which its manifest lists"):
            load(folder)
    write_stage(folder, tokens("a", 3))
    tokens("b", 1).to_parquet(folder / "more.parquet")
    with pytest.raises(ValueError, match=r"has \['more.parquet'\], which its manifest does not list"):
        load_source(folder, encode)


def test_shards_that_cannot_be_read_are_named(tmp_path):
    for number in range(3):
        tokens("a", 2).to_parquet(tmp_path / f"part-{number}.parquet")
    shard = tmp_path / "part-1.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"part-1.parquet' cannot be read as Parquet"):
        load_source(tmp_path, encode)
    shard.write_bytes(whole[:4] + bytes(len(whole) // 4) + whole[4 + len(whole) // 4 :])
    with pytest.raises(ValueError, match=r"part-1.parquet' cannot be read as Parquet"):
        load_source(tmp_path, encode)
    tokens("a", 2).remove_columns("length").to_parquet(shard)
    with pytest.raises(ValueError, match=r"part-1.parquet' has the columns \['input_ids', 'labels', 'name'\]"):
        load_source(tmp_path, encode)


def test_each_shard_is_checked(tmp_path):
    for number in range(3):
        tokens("a", 2).to_parquet(tmp_path / f"part-{number}.parquet")
    seen = []
    load_source(tmp_path, encode, check=lambda data, name: seen.append((Path(name).name, len(data))))
    assert seen == [("part-0.parquet", 2), ("part-1.parquet", 2), ("part-2.parquet", 2)]
    path, seen[:] = write_rows(tmp_path / "rows.jsonl", ["hello", "one"]), []
    load_source(path, encode, check=lambda data, name: seen.append((name, data["source"][:])))
    assert seen == [(str(path), [f"{path}:1", f"{path}:2"])]


def test_token_rows_without_labels(tmp_path):
    tokens("a", 2).remove_columns("labels").to_parquet(tmp_path / "part-00000.parquet")
    with pytest.raises(ValueError, match="no column 'labels'"):
        load_source(tmp_path, encode)


def test_columns_of_all_rows_are_kept():
    data = dataset_of([{"a": 1}, {"a": 2, "b": "x"}])
    assert data.column_names == ["a", "b"] and data["b"][:] == [None, "x"]
    assert encode_rows([{"chunks": ["ab"]}], encode)["source"][:] == ["row 1"]


def counts(data):
    return Counter(name[0] for name in data["name"])


def test_parts_are_joined():
    parts = {"a": tokens("a", 20), "b": tokens("b", 10)}
    assert counts(join(parts, 0)) == {"a": 20, "b": 10}
    drawn = counts(join(parts, 0, weights="a=1,b=9"))
    assert drawn["b"] > 5 * drawn["a"]
    passes = join(parts, 0, passes="a=2,b=0.3")
    assert counts(passes) == {"a": 40, "b": 3}
    assert set(Counter(name for name in passes["name"] if name[0] == "a").values()) == {2}
    assert join(parts, 0, passes="a=2,b=0.3")["name"][:] == passes["name"][:]
    assert join(parts, 1, passes="a=2,b=0.3")["name"][:] != passes["name"][:]
    assert counts(join(parts, 0, passes="a=0,b=1")) == {"b": 10}
    sourced = {"a": parts["a"].add_column("source", ["x"] * 20), "b": parts["b"]}
    assert "source" not in join(sourced, 0).column_names


def test_bad_numbers_of_parts():
    parts = {"a": tokens("a", 2), "b": tokens("b", 2)}
    for passes in ("a=1", "a=1,c=1", "a=1,b=1,c=1"):
        with pytest.raises(ValueError, match=r"must name the parts of the data, which are \['a', 'b'\]"):
            join(parts, 0, passes=passes)
    for numbers in ("a=-1,b=1", "a=nan,b=1", "a=inf,b=1", "a=0,b=0"):
        with pytest.raises(ValueError, match="`weights`"):
            join(parts, 0, weights=numbers)
    with pytest.raises(ValueError, match="exclude each other"):
        DataArguments(weights="a=1", passes="a=1")


def test_parts_that_cannot_be_joined():
    parts = {"a": tokens("a", 4), "b": tokens("b", 4)}
    with pytest.raises(ValueError, match=r"`passes` 'a=0.001,b=0.1' leave no row of parts with {'a': 4, 'b': 4} rows"):
        join(parts, 0, passes="a=0.001,b=0.1")
    with pytest.raises(ValueError, match=r"'b' also has \['length'\]"):
        join({"a": parts["a"].remove_columns("length"), "b": parts["b"]}, 0)


def test_a_begun_pass_has_no_row_twice():
    data = repeat(tokens("a", 10), 2.5, seed=0)
    assert Counter(Counter(data["name"]).values()) == {2: 5, 3: 5}
    assert len(repeat(tokens("a", 10), 0.0, seed=0)) == 0


def test_rows_by_value():
    data = Dataset.from_dict({"task": [2, 1, 2, 2], "row": list("abcd")})
    parts = split_by(data, "task", {1: "asr", 2: "tts", 3: "vc"})
    assert list(parts) == ["asr", "tts"] and parts["tts"]["row"][:] == ["a", "c", "d"]
    with pytest.raises(ValueError, match=r"unknown values \[2\]"):
        split_by(data, "task", {1: "asr"})


def test_packing(tmp_path):
    training = TrainingArguments(tmp_path, report_to="none", use_cpu=True, seed=3)
    arguments = DataArguments(packing=True, context_length=10)
    data = tokens("a", 9)
    made = packed(data, arguments, training)
    assert isinstance(made, PackedDataset) and made.context_length == 10
    assert sorted(row["name"] for pack in made for row in pack) == sorted(data["name"])
    assert packed(data, DataArguments(), training) is data
    training.train_sampling_strategy = "group_by_length"
    with pytest.raises(ValueError, match="does not go with `packing`"):
        packed(data, arguments, training)
    with pytest.raises(ValueError, match="`packing` needs `context_length`"):
        DataArguments(packing=True)


def test_seconds_of_recordings(tmp_path):
    path = tmp_path / "speech.wav"
    soundfile.write(path, np.zeros(12000, dtype=np.float32), 16000)
    assert recording_seconds(str(path)) == recording_seconds(path) == recording_seconds({"path": str(path)}) == 0.75
    assert recording_seconds({"path": str(path), "start": 0.25}) == 0.5
    assert recording_seconds({"path": str(path), "start": 0.25, "end": 0.5}) == 0.25
    assert recording_seconds({"array": np.zeros(8000), "sampling_rate": 16000}) == 0.5
    assert recording_seconds({"bytes": path.read_bytes(), "path": None}) == 0.75
    with pytest.raises(ValueError, match=r"absent.wav"):
        recording_seconds(str(tmp_path / "absent.wav"))
