"""Rows of data against their schema: every kind, readable errors with file and line, and what is read back."""

import base64
import gzip
import io
import json
import re

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from datasets import Dataset
from jsonschema import Draft202012Validator

from dualspeech.processing.tasks import TASKS
from dualspeech.training.data_steps.row_tables import table_of_rows
from dualspeech.training.data_steps.shards import load_rows
from dualspeech.training.row_files import without_nulls
from dualspeech.training.validate_rows import (
    SCHEMA_FILE,
    check_rows,
    main,
    read_rows,
    validate_rows,
)
from tests.tiny import tone

SCHEMA = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
LANGUAGES = {"source_language": "English", "target_language": "German"}
CODES = {"us_codes": [1, 2], "acoustic_codes": [[3, 4], [5, 6]], "speaker_embeds": [0.5, 1]}
RIGHT = [
    {"task": "asr", "audio": "a.wav", "targets": "hello", "id": "1", "metadata": {"any": [1, None]}, "source": "x:1"},
    {"task": "asr", "audio": [0, 5], "targets": {"text": "hello"}},
    {"task": "s2tt", "audio": {"path": "a.wav", "start": 0, "end": 1.5}, **LANGUAGES, "targets": "hallo"},
    {"task": "ser", "audio": {"bytes": "AAAA", "path": "name only"}, "targets": "happy"},
    {"task": "sqa", "audio": "a.wav", "question": "Who?", "targets": "Me."},
    {"task": "tts", "text": "hello", "speaker": "anna", "targets": CODES},
    {"task": "tts", "text": "hello", "speaker": [0.1, 1], "targets": {"audio": {"path": "a.wav"}}},
    {"task": "t2st", "text": "hello", **LANGUAGES, "speaker": {"path": "a.wav"}, "targets": {"audio": "b.wav"}},
    {"task": "vc", "audio": "a.wav", "targets": {"acoustic_codes": [1, 2]}},
    {"task": "sc", "audio": "a.wav", "question": [3], "targets": {"audio": "b.wav"}},
    {
        "messages": [{"role": "system", "content": ""}, {"role": "assistant", "content": "hi"}],
        "output_modality": "text",
    },
    {
        "messages": [
            {"role": "user", "content": {"type": "audio/wav", "path": "https://host/a.wav"}},
            {"role": "assistant", "content": [{"type": "audio", "codes": [1, 2]}]},
        ]
    },
    {"chunks": ["a", {"text": "b"}, {"type": "audio", "audio": {"path": "a.wav", "start": 1.0}}, {"codes": [1]}]},
    {"audio": {"array": [0.0, 0.5], "sampling_rate": 16000}, "text": "hello", "speaker": "anna"},
]
TASK_LIST = re.escape("accepted are 'asr', 's2tt', 'ser', 'sqa', 'tts', 't2st', 'vc', 'sc'")
# row, place, message
WRONG = [
    ({"task": "ars", "audio": "a", "targets": "x"}, "task", f"is 'ars'; {TASK_LIST}"),
    ({"audio": "a", "targets": "x"}, "", f"lacks `task` beside `targets`; {TASK_LIST}"),
    ({"task": "asr", "audio": "a"}, "", r"lacks `targets`; accepted are `task` \(needed\), `audio` \(needed\)"),
    ({"task": "sqa", "targets": "x"}, "", r"lacks `audio` and `question`; accepted are"),
    ({"task": "asr", "audio": "a", "targets": "x", "txt": 1}, "", r"has the unknown key `txt`; accepted"),
    ({"task": "tts", "text": "a", "targets": {"audoi": "x", "us_codes": [1]}}, "targets", r"did you mean `audio`\?"),
    ({"task": "asr", "audio": "a", "targets": "x", "speaker": "s"}, "", "has the unknown key `speaker`"),
    ({"task": "asr", "audio": 3, "targets": "x"}, "audio", r"is 3; accepted is a path, or an object .*USTokens"),
    ({"task": "asr", "audio": [1, 2.5], "targets": "x"}, r"audio[1]", "is 2.5; accepted is a whole number"),
    ({"task": "asr", "audio": [1, True], "targets": "x"}, r"audio[1]", "is True; accepted is a whole number"),
    ({"task": "asr", "audio": [], "targets": "x"}, "audio", "is empty"),
    ({"task": "asr", "audio": "a", "targets": ""}, "targets", "is empty; accepted is a text that is not empty"),
    ({"task": "tts", "text": "a", "targets": "b.wav"}, "targets", "is 'b.wav'; accepted is an object with 'audio'"),
    ({"task": "tts", "text": "a", "targets": {"acoustic_codes": [1]}}, "targets", "has none of `audio`, `us_codes`"),
    ({"task": "vc", "audio": "a", "targets": {"acoustic_codes": [[1, -2]]}}, "targets.acoustic_codes[0][1]", "is -2"),
    ({"task": "sc", "audio": "a", "question": "", "targets": {"audio": "b"}}, "question", "is empty"),
    ({"audio": {"paht": "a"}}, "audio", "none of `path`, `bytes`, `array`"),
    ({"audio": {"array": [0.5]}}, "audio", "`array` needs `sampling_rate`"),
    ({"audio": {"path": "a", "start": -1}}, "audio.start", "is -1; accepted is at least 0"),
    ({"audio": {"path": "a", "start": 2, "end": 2}}, "audio.end", "is 2; accepted is more than `start`, 2"),
    ({"audio": "a", "id": 7}, "id", "is 7; accepted is a text"),
    ({"messages": []}, "messages", "is empty; accepted is a list of turns"),
    ({"messages": [{"role": "bot", "content": "a"}]}, "messages[0].role", "is 'bot'; accepted are 'system'"),
    ({"messages": [{"role": "user", "content": "a"}]}, "messages[0].role", "last turn must be of the 'assistant'"),
    ({"messages": [{"role": "assistant", "content": ""}]}, "messages[0].content", "is empty"),
    ({"messages": [{"role": "assistant", "content": {"text": "a", "path": "b"}}]}, "messages[0].content", "`path`"),
    (
        {"messages": [{"role": "assistant", "content": {"path": "a", "codes": [1]}}]},
        "messages[0].content",
        "has `path` and `codes` of .*; exactly one",
    ),
    ({"messages": [{"role": "assistant", "content": ["a", "b"]}]}, "messages[0].content", "has 2 entries"),
    ({"chunks": [{"type": "image", "path": "a"}]}, "chunks[0].type", "is 'image'; accepted is 'text', 'audio'"),
    ({"chunks": ["a", 5]}, "chunks[1]", "is 5; accepted is a text, a text part, an audio part"),
    ({"task": "asr", "chunks": ["a"]}, "", "has `task` and `chunks`, which belong to different kinds"),
    ({"name": 1}, "", "has none of the keys that tell its kind"),
    (
        {"task": "asr", "audio": "a", "targets": " \n"},
        "targets",
        "is white space; accepted is a text that is not empty",
    ),
    ({"task": "asr", "audio": "a", "targets": {"text": "\u3000"}}, "targets.text", "is white space"),
    ({"task": "sqa", "audio": "a", "question": " ", "targets": "x"}, "question", "is white space"),
    ({"messages": [{"role": "assistant", "content": " "}]}, "messages[0].content", "is white space"),
    ({"messages": [{"role": "assistant", "content": [{"text": "\t"}]}]}, "messages[0].content[0].text", "white space"),
    ({"chunks": ["a", " "]}, "chunks[1]", "is white space"),
    ({"audio": {"path": "a", "end": 1e308}}, "audio.end", "is 1e\\+308; accepted is at most 1000000000.0"),
    ({"audio": {"path": "a", "start": float("inf")}}, "audio.start", "is inf; accepted is at most"),
    ({"audio": {"path": "a", "start": float("nan")}}, "audio.start", "is nan; accepted is a number of seconds"),
    (
        {"audio": {"array": ["a", "b"], "sampling_rate": 16000}},
        "audio.array[0]",
        "is 'a'; accepted is a number or a list",
    ),
    (
        {"audio": {"array": [0.5, [0.5]], "sampling_rate": 16000}},
        "audio.array",
        "has numbers and lists of 1; accepted is mono",
    ),
    (
        {"audio": {"array": [[0.5, 0.1], [0.5]], "sampling_rate": 16000}},
        "audio.array",
        "has lists of 1 and lists of 2; accepted is mono",
    ),
    (
        {"audio": {"array": [0, 1], "sampling_rate": 16000}},
        "audio.array",
        "whole numbers; accepted are samples in float",
    ),
    (
        {"audio": {"array": [0.5], "sampling_rate": 16000, "start": 1, "end": 2}},
        "audio",
        "has `start` and `end` beside `array`; they are for",
    ),
    (
        {"task": "vc", "audio": "a", "targets": {"acoustic_codes": [1, [2]]}},
        "targets.acoustic_codes",
        "has numbers and lists of 1; accepted is the same at every position",
    ),
    (
        {"task": "vc", "audio": "a", "targets": {"acoustic_codes": [[1, 2], [2]]}},
        "targets.acoustic_codes",
        "has lists of 1 and lists of 2; accepted is the same",
    ),
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_schema_is_one_and_documents_every_task():
    Draft202012Validator.check_schema(SCHEMA)
    plain = Draft202012Validator(SCHEMA)
    for name, task in TASKS.items():
        row = SCHEMA["$defs"][f"{name}_row"]
        assert set(task.fields) == set(row["required"]) - {"task", "targets"}
        assert ("speaker" in row["properties"]) == (task.output == "speech")
        assert all(plain.is_valid(example) and not validate_rows([example]) for example in row["examples"])

    def undescribed(schema, place=""):
        for key, entry in schema.get("properties", {}).items():
            if "$ref" not in entry and key not in ("task", "role", "text", "type") and "description" not in entry:
                yield f"{place}.{key}"

    assert not [found for name, entry in SCHEMA["$defs"].items() for found in undescribed(entry, name)]


@pytest.mark.parametrize("row", RIGHT, ids=lambda row: row.get("task", next(iter(row))))
def test_right_rows(row):
    assert Draft202012Validator(SCHEMA).is_valid(row)
    row = {key: value for key, value in row.items() if key != "source"}
    assert validate_rows([row]) == []
    assert validate_rows([{**row, "id": None}]) == [], "null counts as absent"


@pytest.mark.parametrize(("row", "place", "message"), WRONG)
def test_wrong_rows(row, place, message):
    errors = validate_rows([RIGHT[1], row])
    assert any(error.path == place and re.search(message, error.message) for error in errors), errors
    assert {(error.file, error.line) for error in errors} == {("rows", 2)}
    assert not any("given schemas" in error.message for error in errors)
    beyond_the_schema = (
        "more than `start`|last turn must|is nan|is mono|samples in float|beside `array`; they|is the same"
    )
    assert Draft202012Validator(SCHEMA).is_valid(row) == bool(re.search(beyond_the_schema, message))


def test_rows_of_a_known_shape_are_judged_as_others():
    """Most rows share a shape and are judged once; whatever the schema looks at must be part of it."""

    def keywords(schema):
        if isinstance(schema, dict):
            for key, entry in schema.items():
                yield key
                if key in ("examples", "dependentRequired"):
                    continue
                entries = entry.values() if key in ("properties", "$defs") else [entry]
                yield from (found for value in entries for found in keywords(value))
        elif isinstance(schema, list):
            yield from (found for value in schema for found in keywords(value))

    judged = {"type", "const", "enum", "pattern", "required", "additionalProperties", "dependentRequired", "minLength"}
    judged |= {"minItems", "maxItems", "minimum", "maximum", "exclusiveMinimum"}
    structure = {"$schema", "$defs", "$ref", "properties", "items", "oneOf", "anyOf", "allOf", "if", "then", "else"}
    structure |= {"not"}
    notes = {"title", "description", "examples", "contentEncoding"}
    assert set(keywords(SCHEMA)) - notes - structure <= judged
    for row in (row for row in RIGHT for _ in range(2)):
        assert not validate_rows([row])
    for row, place, _ in WRONG:
        assert place in {error.path for error in validate_rows([row])}
    codes = [RIGHT[1], {**RIGHT[1], "audio": [0.0, 5.0]}]
    for wrong in ([0.5, 5.0], [0.0, float("inf")]):
        errors = [validate_rows([*before, {**RIGHT[1], "audio": wrong}]) for before in ([], codes)]
        assert [len(found) for found in errors] == [1, 1]
    for rate in (16000.0, 16000.5):
        row = {"audio": {"array": np.zeros(2), "sampling_rate": rate}}
        assert bool(validate_rows([row])) == bool(rate % 1)
    for changed in ({"start": 0, "end": 0}, {"start": -0.5, "end": 1.5}, {"start": 0, "end": 1.5, "path": ""}):
        assert validate_rows([{**RIGHT[2], "audio": {"path": "a.wav", **changed}}])


def test_every_error_has_its_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [
        json.dumps(RIGHT[0]),
        "",
        '{"task": "asr"',
        '{"task": "asr", "task": "tts"}',
        '{"audio": NaN}',
        "[1]",
        '{"audio": {"bytes": "?"}}',
        '{"audio": "a", "text": ""}',
    ]
    path.write_text("\n".join(lines))
    errors = validate_rows(path)
    assert [error.line for error in errors] == [3, 4, 5, 6, 7, 8] and {error.file for error in errors} == {str(path)}
    messages = "\n".join(map(str, errors))
    for expected in (
        r"rows.jsonl:3: no JSON: Expecting ',' delimiter \(column 15\)",
        "rows.jsonl:4: no JSON: the key 'task' stands twice",
        "rows.jsonl:5: no JSON: NaN is no JSON number",
        r"rows.jsonl:6: a row must be an object \{...\}, got list",
        "rows.jsonl:7: `audio.bytes` is no base64",
        "rows.jsonl:8: `text` is empty",
    ):
        assert re.search(expected, messages)
    with pytest.raises(ValueError, match=r"rows.jsonl:3: no JSON"):
        read_rows(path)


def test_texts_that_utf_8_cannot_encode_are_errors(tmp_path):
    rows = [
        (
            {"task": "asr", "audio": "a.wav", "targets": "x \ud83d"},
            r"`targets` is a text with '\ud83d', which UTF-8 cannot",
        ),
        (
            {"audio": "a.wav", "metadata": {"names": ["a", {"b": "\udc00"}]}},
            r"`metadata.names[1].b` is a text with '\udc00'",
        ),
        ({"audio": "a.wav", "metadata": {"\ud83d": 1}}, r"the key `metadata.\ud83d` holds"),
    ]
    lines = write(tmp_path / "rows.jsonl", [row for row, _ in rows])
    (tmp_path / "rows.json").write_text(json.dumps([row for row, _ in rows]))
    for given in (lines, tmp_path / "rows.json", [row for row, _ in rows]):
        for error, (_, message) in zip(validate_rows(given), rows, strict=True):
            assert error.message.startswith(message) and str(error).isascii()
    with pytest.raises(ValueError, match=r"rows.jsonl:1: `targets` is a text with"):
        read_rows(lines)
    assert validate_rows([{"audio": "a.wav", "text": "\U0001f600 \u00e4"}]) == []


def test_rows_that_are_nested_too_deeply_are_errors(tmp_path):
    message = "the row is nested too deeply; accepted are 64 objects and lists in each other"
    deep = [f'{{"audio": "a", "metadata": {{"a": {"[" * n}{"]" * n}}}}}' for n in (3000, 400, 70)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*deep, '{"audio": "a", "metadata": [[[1]]]}']))
    assert [(error.line, error.message) for error in validate_rows(path)][:3] == [(n, message) for n in (1, 2, 3)]
    (tmp_path / "rows.json").write_text(f"[{deep[0]}]")
    assert validate_rows(tmp_path / "rows.json")[0].message == message
    row = {"audio": "a", "metadata": {}}
    row["metadata"]["itself"] = row
    assert [error.message for error in validate_rows([row])] == [message]


def test_lists_of_rows_have_lines_too(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('\n[\n  {"audio": "a",\n   "text": "b"},\n  {"audio": "c", "text": ""}\n]\n')
    assert [row["source"].rpartition(":")[2] for row in read_rows(path)] == ["3", "5"]
    assert [(error.line, error.path) for error in validate_rows(path)] == [(5, "text")]
    for text, line, message in (
        ('[{"audio": "a"},\n]', 2, "Expecting value"),
        ('[{"audio": "a"}\n{"audio": "a"}]', 2, "expected ',' or ']'"),
        ('[{"audio": "a"}]\n]', 1, "nothing behind the list"),
        ('[{"audio": "a"},', 1, "Expecting value"),
        ('{"annotation": []}', 1, "must be a list of rows"),
        ("[]", 1, "no rows"),
    ):
        path.write_text(text)
        (error,) = (error for error in validate_rows(path) if not error.path)
        assert (error.line, message in error.message) == (line, True), error


def test_reading_resolves_paths_and_decodes_bytes(tmp_path):
    (tmp_path / "voice.wav").write_bytes(b"x")
    content = base64.b64encode(b"RIFF").decode()
    parts = [{"path": "a.wav"}, {"type": "audio", "audio": "https://host/a.wav"}, {"codes": [1]}, "text"]
    rows = [
        {
            "task": "sc",
            "audio": "a.wav",
            "question": {"path": "b.wav"},
            "speaker": "voice.wav",
            "targets": {"audio": "c"},
        },
        {"task": "tts", "text": "x", "speaker": "anna", "targets": {"audio": {"bytes": content, "path": "name"}}},
        {"task": "sqa", "audio": "/absolute.wav", "question": "b.wav", "targets": "x", "speaker": None},
        {"messages": [{"role": "user", "content": [part]} for part in parts]},
        {"chunks": [{"type": "audio", "audio": {"path": "a.wav", "start": 1}}, "a.wav"]},
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    first, second, third, chat, document = read_rows(path)
    assert first["audio"] == str(tmp_path / "a.wav") and first["question"] == {"path": str(tmp_path / "b.wav")}
    assert first["speaker"] == str(tmp_path / "voice.wav") and first["targets"]["audio"] == str(tmp_path / "c")
    assert first["source"] == f"{path}:1"
    (tmp_path / "anna").mkdir()
    assert read_rows(path)[1]["speaker"] == "anna", "a folder is no recording"
    assert second["speaker"] == "anna" and second["targets"]["audio"] == {"bytes": b"RIFF", "path": "name"}
    assert third["audio"] == "/absolute.wav" and third["question"] == "b.wav" and "speaker" not in third
    assert chat["messages"][0]["content"] == [{"path": str(tmp_path / "a.wav")}]
    assert [message["content"] for message in chat["messages"][1:]] == [[part] for part in parts[1:]]
    assert document["chunks"] == [{"type": "audio", "audio": {"path": str(tmp_path / "a.wav"), "start": 1}}, "a.wav"]
    assert read_rows(path, audio_root="/elsewhere")[0]["audio"] == "/elsewhere/a.wav"
    assert rows[0]["audio"] == "a.wav"
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert [row["source"] for row in read_rows(packed)][-1] == f"{packed}:5"


def test_given_rows_are_not_changed():
    row = {"task": "tts", "text": "x", "targets": {"audio": {"path": "a.wav"}}, "id": None}
    copy = json.loads(json.dumps(row))
    assert validate_rows([row], audio_root="/elsewhere") == [] and row == copy
    codes = {"us_codes": np.array([1, 2]), "acoustic_codes": np.array([[1, 2]]), "speaker_embeds": np.ones(3)}
    assert validate_rows([{"task": "tts", "text": "x", "targets": codes}]) == []
    (error,) = validate_rows([{"task": "asr", "audio": np.array([1, -1]), "targets": "x", "source": "some.jsonl:12"}])
    assert str(error) == "some.jsonl:12: `audio[1]` is -1; accepted is at least 0"


def test_tables(tmp_path):
    rows = [
        {"task": "asr", "audio": {"bytes": b"RIFF", "path": "x.wav"}, "targets": "hello", "question": None},
        {"task": "sqa", "audio": {"bytes": None, "path": "x.wav"}, "targets": "hello", "question": "Who?"},
        {"task": "sqa", "audio": {"bytes": None, "path": "x.wav"}, "targets": "hello", "question": None},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "part-00000.parquet")
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for path, file in (
        (tmp_path, tmp_path / "part-00000.parquet"),
        (tmp_path / "part-00000.parquet", tmp_path / "part-00000.parquet"),
        (tmp_path / "saved", tmp_path / "saved" / "data-00000-of-00001.arrow"),
    ):
        first, second, _ = read_rows(path)
        assert first["audio"] == rows[0]["audio"] and "question" not in first
        assert second["audio"] == {"path": str(file.parent / "x.wav")} and second["source"] == f"{file}:2"
        assert [(error.file, error.line, error.message[:16]) for error in validate_rows(path)] == [
            (str(file), 3, "lacks `question`")
        ]


def stage(folder, *parts, complete=True):
    """A folder as stages of preparation leave it."""
    folder.mkdir()
    for number, rows in enumerate(parts):
        pyarrow.parquet.write_table(table_of_rows(rows), folder / f"part-{number:05d}.parquet")
    shards = [{"rows_in": 2, "rows_out": len(rows), "rejected": 0} for rows in parts]
    (folder / "manifest.json").write_text(json.dumps({"complete": complete, "shards": shards}))
    return folder


def test_stages_are_read_whole_or_not_at_all(tmp_path):
    one, two = [{"audio": "/a.wav", "text": "a"}], [{"audio": "/b.wav", "text": "b"}] * 2
    whole = stage(tmp_path / "whole", one, [], two)
    assert [row["text"] for row in read_rows(whole)] == ["a", "b", "b"] and validate_rows(whole) == []
    lacking = stage(tmp_path / "lacking", one, two)
    (lacking / "part-00001.parquet").unlink()
    short = stage(tmp_path / "short", one, two)
    (short / "part-00001.parquet").write_bytes((short / "part-00000.parquet").read_bytes())
    for folder, message in (
        (stage(tmp_path / "unfinished", one, complete=False), "is not finished"),
        (stage(tmp_path / "none", []), "is the folder of a stage without rows"),
        (lacking, "part-00001.parquet"),
        (short, "part-00001.parquet' has 1 rows; the manifest says 2"),
    ):
        for function in (read_rows, validate_rows):
            with pytest.raises(ValueError, match=message):
                function(folder)
    # Somebody else's file of this name is a file as others.
    other = tmp_path / "other"
    other.mkdir()
    (other / "manifest.json").write_text('[{"audio": "a.wav"}]')
    assert len(read_rows(other)) == 1


def test_columns_of_json_texts_are_decoded(tmp_path):
    rows = [{"audio": "/a.wav", "metadata": metadata} for metadata in ({"age": 3}, {"age": "n/a"})]
    rows.append({"audio": "/b.wav"})
    stage(tmp_path / "stage", rows)
    load_rows(tmp_path / "stage", str(tmp_path / "cache")).save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "stage", tmp_path / "saved"):
        assert [row.get("metadata") for row in read_rows(path)] == [{"age": 3}, {"age": "n/a"}, None]
        assert validate_rows(path) == []


def test_files_that_cannot_be_read_are_errors_with_their_name(tmp_path, capsys):
    packed = gzip.compress("".join(f'{{"audio": "{i}.wav"}}\n' for i in range(2000)).encode())
    (tmp_path / "short.jsonl.gz").write_bytes(packed[:-500])
    (tmp_path / "no.jsonl.gz").write_text('{"audio": "a.wav"}')
    for name in ("no.parquet", "no.arrow"):
        (tmp_path / name).write_text("hello")
    files = [tmp_path / name for name in ("short.jsonl.gz", "no.jsonl.gz", "no.parquet", "no.arrow")]
    assert main([*map(str, files), "--json"]) == 1
    errors = json.loads(capsys.readouterr().out)
    assert [error["file"] for error in errors] == [str(file) for file in files]
    assert errors[0]["line"] > 1000 and [error["line"] for error in errors[1:]] == [1, 1, 1]
    for file, error in zip(files, errors, strict=True):
        assert error["message"].startswith("the file cannot be read from here on (")
        with pytest.raises(ValueError, match=f"{file.name}:{error['line']}: the file cannot be read"):
            read_rows(file)
    folder = tmp_path / "saved"  # of which nothing can be read, before any of its files
    (folder / "manifest.json").mkdir(parents=True)
    assert main([str(folder), str(files[1])]) == 1
    assert capsys.readouterr().out.startswith(f"{folder}:0: ")


def test_what_a_row_says_of_its_source_goes_to_its_metadata(tmp_path):
    rows = [{"audio": "a.wav", "source": "web"}, {"audio": "a.wav", "source": "web", "metadata": {"source": "CCI3"}}]
    path = write(tmp_path / "rows.jsonl", [*rows, {"audio": "a.wav", "source": f"{tmp_path / 'rows.jsonl'}:3"}])
    first, second, third = read_rows(path)
    assert [row["source"] for row in (first, second, third)] == [f"{path}:{line}" for line in (1, 2, 3)]
    assert first["metadata"] == {"source": "web"} and "metadata" not in third
    assert second["metadata"] == {"source": "CCI3", "row_source": "web"}


def test_nulls_are_absent_behind_a_text():
    chunks = ["Once", {"type": "audio", "path": "a.wav", "url": None}, ["then", {"text": "x", "path": None}]]
    assert without_nulls({"chunks": chunks, "id": None}) == {
        "chunks": ["Once", {"type": "audio", "path": "a.wav"}, ["then", {"text": "x"}]]
    }
    assert validate_rows([{"chunks": chunks[:2]}]) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.jsonl", "does not exist; accepted are .jsonl"),
        ("rows.txt", "is no file of rows"),
        ("empty", "is a folder with no rows"),
        ("mixed", r"files of several kinds \(.json, .jsonl\)"),
        ("splits", "holds several splits; name the folder of one: train"),
    ],
)
def test_what_is_no_file_of_rows(tmp_path, name, message):
    (tmp_path / "rows.txt").touch()
    for folder, files in {"empty": [], "mixed": ["a.json", "b.jsonl"], "splits": ["dataset_dict.json"]}.items():
        (tmp_path / folder).mkdir()
        for file in files:
            (tmp_path / folder / file).touch()
    (tmp_path / "splits" / "train").mkdir()
    for function in (read_rows, validate_rows, check_rows):
        with pytest.raises(ValueError, match=message):
            function(tmp_path / name)


def test_the_kind_that_rows_must_have(tmp_path):
    path = write(tmp_path / "rows.jsonl", [RIGHT[0], {"audio": "a.wav"}])
    assert [(error.line, error.message) for error in validate_rows(path, kind="task")] == [
        (2, "is a recording row; accepted are task rows, which have `task`")
    ]
    with pytest.raises(ValueError, match="`kind` is 'chats'; accepted are 'task', 'chat', 'document', 'recording'"):
        validate_rows(path, kind="chats")


def test_recordings_can_be_looked_at(tmp_path):
    soundfile.write(tmp_path / "good.wav", tone(0.5), 16000)
    soundfile.write(tmp_path / "stereo.wav", np.zeros((100, 2)), 16000)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    (tmp_path / "text.wav").write_text("hello")
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(0.5), 16000, format="WAV")
    content = base64.b64encode(buffer.getvalue()).decode()
    rows = [
        {"audio": "good.wav", "speaker": "anna"},
        {"audio": {"bytes": content}, "speaker": [1.0, 2.0]},
        {"audio": {"path": "good.wav", "start": 0.1, "end": 0.5}},
        {"task": "asr", "audio": [1, 2], "targets": "x"},
        {"messages": [{"role": "assistant", "content": {"path": "https://host/a.wav"}}]},
        {"audio": {"path": "good.wav", "start": 0.1, "end": 0.6}},
        {"audio": {"path": "good.wav", "start": 0.5}},
        {"audio": "none.wav"},
        {"task": "tts", "text": "x", "speaker": {"path": "stereo.wav"}, "targets": {"audio": "empty.wav"}},
        {"chunks": [{"type": "audio", "path": "text.wav"}]},
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    assert validate_rows(path) == []
    errors = [(error.line, error.path, error.message) for error in validate_rows(path, check_audio=True)]
    expected = [
        (6, "audio", "names the segment 0.1 to 0.6 s of a recording of 0.500 s"),
        (7, "audio", "names the segment 0.5 to 0.5 s of a recording of 0.500 s"),
        (8, "audio", f"names the file '{tmp_path / 'none.wav'}', which does not exist"),
        (9, "speaker", f"is '{tmp_path / 'stereo.wav'}' with 2 channels; accepted is mono"),
        (9, "targets.audio", f"is '{tmp_path / 'empty.wav'}', which is empty"),
    ]
    assert errors[:5] == expected
    assert errors[5][:2] == (10, "chunks[0].path") and "text.wav' (" in errors[5][2] and len(errors) == 6


def test_one_error_lists_the_first_twenty(tmp_path):
    path = write(tmp_path / "rows.jsonl", [RIGHT[0], *[{"audio": ""}] * 25])
    check_rows([RIGHT[0]])
    with pytest.raises(ValueError) as caught:
        check_rows(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == "25 errors in the rows:" and lines[-1] == "  and 5 more" and len(lines) == 22
    assert lines[1].startswith(f"  {path}:2: `audio` is empty")


def test_command_line(tmp_path, capsys):
    good, bad = write(tmp_path / "good.jsonl", RIGHT), write(tmp_path / "bad.jsonl", [{"audio": ""}, {"audio": "a"}])
    assert main([str(good)]) == 0 and capsys.readouterr().out == ""
    assert main([str(good), str(bad)]) == 1 and capsys.readouterr().out.startswith(f"{bad}:1: `audio` is empty")
    assert main([str(bad), "--kind", "recording", "--check-audio", "--json"]) == 1
    errors = json.loads(capsys.readouterr().out)
    assert [(error["line"], error["path"]) for error in errors] == [(1, "audio"), (2, "audio")]
    assert main([str(tmp_path / "none.jsonl"), "--json"]) == 1
    assert "does not exist" in json.loads(capsys.readouterr().out)[0]["message"]
