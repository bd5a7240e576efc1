"""Rows of the nano corpus: what they say is right, they fit the schema, and the same arguments make the same ones."""

import hashlib
import json
from collections import Counter

import pytest
from nano_audio import Utterance
from nano_grammar import SPLITS, questions
from nano_lexicon import LANGUAGES
from nano_rows import ROW_FILES, SIZES
from nano_voices import ASSISTANT, EMOTIONAL_VOICES, EMOTIONS, VOICES

from dualspeech.processing.tasks import TASKS
from dualspeech.training.validate_rows import check_rows

from .corpora import all_rows, fake_takes, recordings

CODES = {name: code for code, name in LANGUAGES.items()}
KIND_OF_FILE = dict.fromkeys(TASKS, "task") | {"chats": "chat", "documents": "document", "texts": "document"}


@pytest.fixture(scope="module", params=SPLITS)
def made(request):
    """`(Rows, rows by file, frames by key)` of a split at scale 0.03."""
    rows, by_file = all_rows(request.param, 0.03, takes=fake_takes())
    return rows, by_file, {frame.key: frame for _, frame in [*rows.sentences, *rows.contents]}


def path_of(text, voice, emotion="neutral", variant=0):
    return f"../../{Utterance(text, voice, emotion, variant).path}"


def said(rows, path):
    """What a recording says and by whom."""
    (utterance,) = [entry for entry in rows.utterances if f"../../{entry.path}" == path]
    return utterance


def test_rows_fit_the_schema(made):
    for name, rows in made[1].items():
        assert rows
        check_rows(rows, kind=KIND_OF_FILE.get(name, "recording"))


def test_tasks_have_their_name(made):
    for name in TASKS:
        assert {row["task"] for row in made[1][name]} == {name}
        assert set(made[1][name][0]) == {"task", *TASKS[name].fields, "targets", "metadata"} | (
            {"speaker"} if TASKS[name].output == "speech" else set()
        )


def test_recordings_say_what_rows_claim(made):
    rows, by_file, _ = made
    utterances = {f"../../{entry.path}": entry for entry in rows.utterances}
    assert len(utterances) == len(rows.utterances)
    for name in ("s2tt", "ser", "sqa", "vc", "sc"):
        for row in by_file[name]:
            assert utterances[row["audio"]].text == row["metadata"]["text"]
    for name in ("tts", "t2st", "vc", "sc"):
        for row in by_file[name]:
            assert row["targets"]["audio"] == path_of(row["metadata"]["target_text"], row["metadata"]["voice"])
    for row in by_file["asr"]:
        if "takes" not in row["metadata"]:
            assert utterances[row["audio"]].text == row["targets"] == row["metadata"]["text"]
            assert utterances[row["audio"]].voice == row["metadata"]["voice"]
    for row in by_file["vc"]:
        assert row["audio"] == path_of(row["metadata"]["text"], row["metadata"]["source_voice"])
        assert row["metadata"]["target_text"] == row["metadata"]["text"]
    for row in by_file["sc"]:
        assert utterances[row["question"]].text == row["metadata"]["question_text"]
        assert utterances[row["question"]].voice == utterances[row["audio"]].voice
    for row in by_file["recordings"]:
        assert row["audio"] == path_of(row["text"], row["speaker"])


def test_answers_answer(made):
    _, by_file, frames = made
    for row in by_file["sqa"]:
        assert (row["question"], row["targets"]) in {
            asked[1:] for asked in questions(frames[row["metadata"]["frame"]])
        }
    for row in by_file["sc"]:
        asked = (row["metadata"]["question_text"], row["metadata"]["target_text"])
        assert asked in {entry[1:] for entry in questions(frames[row["metadata"]["frame"]])}
    for row in by_file["s2tt"]:
        assert row["targets"] == frames[row["metadata"]["frame"]].text(CODES[row["target_language"]])
        assert row["source_language"] == "English"
    for row in by_file["t2st"]:
        frame = frames[row["metadata"]["frame"]]
        assert row["text"] == frame.text(CODES[row["source_language"]])
        assert row["metadata"]["target_text"] == frame.text() and row["target_language"] == "English"
    for row in by_file["tts"]:
        assert row["text"] == row["metadata"]["target_text"]


def test_emotions_are_balanced_and_expressed(made):
    rows, by_file, _ = made
    counts = Counter(row["targets"] for row in by_file["ser"])
    assert counts.keys() == EMOTIONS.keys() and max(counts.values()) - min(counts.values()) <= 1
    for row in by_file["ser"]:
        utterance = said(rows, row["audio"])
        assert utterance.emotion == row["targets"] and utterance.voice in EMOTIONAL_VOICES


def test_human_digits_say_their_takes(made):
    rows, by_file, _ = made
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    human = [row for row in by_file["asr"] if "takes" in row["metadata"]]
    assert human
    for row in human:
        stems = said(rows, row["audio"]).text.split()
        assert row["targets"] == " ".join(words[int(stem[0])] for stem in stems)
        assert {f"human_{stem.split('_')[1]}" for stem in stems} == {row["metadata"]["voice"]}


def test_chats_have_four_forms(made):
    rows, by_file, _ = made
    chats = by_file["chats"]
    counts = Counter(row["metadata"]["form"] for row in chats)
    assert counts.keys() == {f"{a}_to_{b}" for a in ("speech", "text") for b in ("speech", "text")}
    assert set(counts.values()) == {len(chats) // 4}
    for row in chats:
        metadata = row["metadata"]
        spoken = [part == "speech" for part in metadata["form"].split("_to_")]
        turns = zip(row["messages"], ("user", "assistant"), ("user_text", "answer_text"), spoken, strict=True)
        for message, role, key, is_spoken in turns:
            assert message["role"] == role
            if not is_spoken:
                assert message["content"] == metadata[key]
                continue
            utterance = said(rows, message["content"]["path"])
            assert utterance.text == metadata[key]
            assert utterance.voice == (ASSISTANT if role == "assistant" else metadata["voice"])
    assert len({row["metadata"]["about"] for row in chats}) > 1


def test_documents_change_between_speech_and_text(made):
    kinds = [["text" if isinstance(c, str) else "audio" for c in row["chunks"]] for row in made[1]["documents"]]
    assert all(2 <= len(document) <= 4 for document in kinds)
    assert {"text", "audio"} == {kind for document in kinds for kind in document}


def test_every_recording_is_listed(made):
    rows, by_file, _ = made
    named = {path for made_rows in by_file.values() for row in made_rows for path in recordings(row)}
    assert named == {utterance.path for utterance in rows.utterances}
    heard = {row["audio"] for name in ("asr", "s2tt", "ser", "sqa", "sc") for row in by_file[name]}
    heard |= {row["question"] for row in by_file["sc"]}
    assert {row["audio"] for row in by_file["transcripts"]} == heard
    texts = {row["audio"]: row["text"] for row in by_file["transcripts"]}
    assert all(texts[row["audio"]] == row["targets"] for row in by_file["asr"])
    spoken = {message["content"]["path"] for row in by_file["chats"] for message in row["messages"][:1] if isinstance(message["content"], dict)}  # fmt: skip
    assert {row["audio"] for row in by_file["chat_transcripts"]} == spoken


def test_all_voices_speak(made):
    for name in ("tts", "vc", "recordings"):
        assert {row["metadata"]["voice"] for row in made[1][name]} <= VOICES.keys()
    assert len({row["metadata"]["voice"] for row in made[1]["recordings"]}) == len(VOICES)


@pytest.mark.parametrize("split", SPLITS)
def test_same_arguments_same_rows(split):
    first, again = (all_rows(split, 0.01, takes=fake_takes()) for _ in range(2))
    assert first[1] == again[1] and list(first[0].utterances) == list(again[0].utterances)
    assert all_rows(split, 0.01, seed=1, takes=fake_takes())[1] != first[1]


def test_corpora_that_exist_are_made_again():
    """Recorded: a change of grammar, sizes or draws makes other rows, for which the models were not trained."""
    rows = {split: all_rows(split, 0.01)[1] for split in SPLITS}
    assert hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()[:16] == "ea2893bf2337eb0c"


def test_sizes_follow_the_scale():
    rows, by_file = all_rows("train", 0.01)
    sizes = SIZES["train"]
    assert len(by_file["tts"]) == round(sizes["sentences"] * 0.01) == len(rows.sentences)
    assert len(by_file["chats"]) == 4 * round(sizes["chats"] * 0.01)
    assert len(by_file["ser"]) == round(sizes["emotions"] * 0.01)
    assert [row for row in by_file["asr"] if "takes" in row["metadata"]] == []
    assert set(by_file) == set(ROW_FILES)
