"""Conversations as given become turns; what is not wholly text or wholly audio is refused."""

import base64
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch

from dualspeech.processing.moss_speech_chat import (
    RELEASED_SYSTEM_PROMPTS,
    SYSTEM_PROMPTS,
    ChatTemplate,
    Content,
    Turn,
    conversations_of,
    parse_content,
    parse_conversations,
    parse_modalities,
)
from dualspeech.processing.moss_speech_recordings import fetch

SAMPLES = np.zeros(4, dtype=np.float32)


def test_system_prompts_and_pieces_are_those_of_the_release():
    assert SYSTEM_PROMPTS == {
        "audio": "You are a helpful voice assistant. Answer the user's questions with spoken responses.",
        "text": "You are a helpful assistant. Answer the user's questions with text.",
    }
    assert RELEASED_SYSTEM_PROMPTS == {
        "audio": "You are a helpful assistant. Respond with spoken outputs.",
        "text": "You are a helpful assistant. Respond with text outputs.",
    }
    template = ChatTemplate()
    assert template.start_of("user") == "<|im_start|>user\n" and template.end_of_turn == "<|im_end|>\n"
    assert template.reply("text") == "<|im_start|>assistant\n"
    assert template.reply("audio") == "<|im_start|>assistant\n<|object_ref_start|>"


@pytest.mark.parametrize(
    "content",
    [
        "hello",
        {"type": "text", "text": "hello"},
        {"text": "hello"},
        [{"type": "text", "text": "hello"}],
        ["hello"],
        ({"type": "text", "text": "hello", "audio": None, "path": None},),
    ],
)
def test_ways_to_give_text(content):
    assert parse_content(content, "here") == Content(text="hello")


@pytest.mark.parametrize(
    ("content", "source"),
    [
        ({"path": "a.wav", "type": "audio/wav"}, "a.wav"),
        ({"filepath": "a.wav"}, "a.wav"),
        ({"type": "audio/wav", "filepath": "a.wav"}, "a.wav"),
        ({"type": "audio", "path": "a.wav"}, "a.wav"),
        ({"type": "audio", "url": "https://host/a.wav"}, "https://host/a.wav"),
        ([{"type": "audio", "audio": "a.wav", "text": None}], "a.wav"),
        ({"type": "audio", "audio": SAMPLES}, SAMPLES),
        ({"type": "audio", "audio": (SAMPLES, 16000)}, (SAMPLES, 16000)),
        ({"type": "audio", "audio": SAMPLES, "sampling_rate": 16000}, (SAMPLES, 16000)),
    ],
)
def test_ways_to_give_audio(content, source):
    parsed = parse_content(content, "here")
    assert parsed.text is parsed.codes is None and parsed.modality == "audio"
    if isinstance(source, tuple):
        assert parsed.audio[0] is source[0] and parsed.audio[1] == source[1]
    else:
        assert parsed.audio is source or parsed.audio == source


@pytest.mark.parametrize("codes", [[3, 1], (3, 1), np.array([3, 1], dtype=np.int16), torch.tensor([3, 1])])
@pytest.mark.parametrize("kind", ["audio", "audio/wav", None])
def test_ways_to_give_codes(codes, kind):
    assert parse_content({"type": kind, "codes": codes}, "here") == Content(codes=[3, 1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            [{"type": "text", "text": "a"}, {"type": "audio", "path": "b"}],
            r"has 2 parts \(audio, text\); a turn is wholly",
        ),
        (["a", "b"], "has 2 parts"),
        ([], r"has 0 parts \(none\)"),
        (5, "here is int; accepted is a text"),
        (b"ab", "here is bytes"),
        ({}, r"an audio part with the keys \[\]"),
        ({"type": "image", "url": "a.png"}, "is of the type 'image'"),
        ({"type": "text"}, "a text part has 'type' and 'text', a string"),
        ({"type": "text", "text": 5}, "a text part has 'type' and 'text', a string"),
        ({"type": "text", "text": "a", "audio": "b"}, r"has the keys \['audio', 'text', 'type'\]"),
        ({"text": "a", "path": "b"}, "a text part has"),
        ({"type": "audio"}, r"an audio part with the keys \[\]; accepted is"),
        ({"type": "audio", "path": "a", "codes": [1]}, r"an audio part with the keys \['codes', 'path'\]"),
        ({"type": "audio", "path": "a", "volume": 2}, r"an audio part with the keys \['path', 'volume'\]"),
        ({"type": "audio", "path": "a", "sampling_rate": 16000}, "`sampling_rate` is for bare arrays of samples"),
        ({"type": "audio", "codes": []}, r"`codes` has shape \[0\]; accepted is \[codes\], not empty"),
        ({"type": "audio", "codes": [[1]]}, r"`codes` has shape \[1, 1\]"),
        ({"type": "audio", "codes": [1.5]}, "`codes` must be whole numbers, got float64"),
        ({"type": "audio", "codes": [True]}, "`codes` must be whole numbers, got bool"),
    ],
)
def test_bad_content(content, message):
    with pytest.raises(ValueError, match=message):
        parse_content(content, "here")


def test_one_conversation_or_several():
    turns = [{"role": "system", "content": ""}, {"role": "user", "content": "hi"}]
    parsed = [Turn("system", Content(text="")), Turn("user", Content(text="hi"))]
    assert parse_conversations(turns) == [parsed]
    assert parse_conversations([turns, turns[1:]]) == [parsed, parsed[1:]]
    assert parse_conversations("hi") == parse_conversations(["hi"]) == [parsed[1:]]
    assert parse_conversations(["hi", turns]) == [parsed[1:], parsed]
    assert parse_conversations(({**turns[1], "name": None},)) == [parsed[1:]]


@pytest.mark.parametrize(
    ("conversations", "message"),
    [
        ([], "`conversations` is empty"),
        ([[]], "conversation 0 is empty"),
        (None, "must be a list of turns .* got NoneType"),
        ({"role": "user", "content": "hi"}, "must be a list of turns .* got dict"),
        ([["hi"]], "conversation 0, turn 0 must be {'role': ..., 'content': ...}, got str"),
        ([[{"role": "user", "content": "a"}], 7], "conversation 1 must be a list of turns .* got int"),
        ([{"role": "user"}], r"conversation 0, turn 0 has the keys \['role'\]; accepted are 'role' and 'content'"),
        ([{"role": "user", "content": "a", "tool_calls": [1]}], "'tool_calls'"),
        ([{"role": "tool", "content": "a"}], "`role` is 'tool'; accepted are 'system', 'user', 'assistant'"),
        ([{"role": "user", "content": ""}], r"conversation 0, turn 0 \(user\) is an empty text"),
        (["hi", ""], "conversation 1, turn 0 .* is an empty text"),
        ([{"role": "user", "content": ["a", {"type": "audio", "path": "b"}]}], r"turn 0 \(user\) has 2 parts"),
    ],
)
def test_bad_conversations(conversations, message):
    with pytest.raises(ValueError, match=message):
        parse_conversations(conversations)


def test_texts_and_recordings_in_place_of_conversations():
    user = [{"role": "user", "content": {"type": "text", "text": "hi"}}]
    spoken = [{"role": "user", "content": {"type": "audio", "audio": "a.wav"}}]
    assert conversations_of("given") == "given"
    assert conversations_of(None, "hi") == [user] and conversations_of(None, ["hi", "hi"]) == [user, user]
    assert conversations_of(None, audio="a.wav") == conversations_of(None, "", "a.wav") == [spoken]
    assert conversations_of(None, "", ["a.wav", "a.wav"]) == [spoken, spoken]
    assert conversations_of(None, ["hi", None], [None, "a.wav"]) == [user, spoken]
    for arguments, message in {
        (None,): "given is nothing of the latter",
        ("a", "b"): "give either `conversations`",
        (None, ""): "conversation 0 has neither",
        (None, "hi", "a.wav"): "conversation 0 has both `text` and `audio`",
        (None, ("a", "b", "c"), ("a", "b")): "`text` has 3 entries and `audio` 2",
    }.items():
        with pytest.raises(ValueError, match=message):
            conversations_of(*[list(a) if isinstance(a, tuple) else a for a in arguments])


def test_modalities():
    assert parse_modalities(None, 2) == ["text", "text"]
    assert parse_modalities("speech", 2) == parse_modalities(["audio", "speech"], 2) == ["audio", "audio"]
    assert parse_modalities(("text", None), 2) == ["text", "text"]
    with pytest.raises(ValueError, match="`output_modalities` has 1 entries for 2 conversations"):
        parse_modalities(["text"], 2)
    for wrong in ("video", ["video"], [["audio"]]):
        with pytest.raises(ValueError, match=r"video|audio.*; accepted are 'text' and 'audio'"):
            parse_modalities(wrong, 1)


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        found = self.path == "/a.wav"
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(b"samples" if found else b"")

    def log_message(self, *args):
        pass


def test_addresses_are_fetched(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = HTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = f"http://127.0.0.1:{server.server_port}"
    try:
        assert fetch(f"{place}/a.wav") == b"samples"
        with pytest.raises(ValueError, match=r"b.wav' cannot be read .*404"):
            fetch(f"{place}/b.wav")
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(ValueError, match=r"a\.wav' cannot be read"):
        fetch(f"{place}/a.wav")
    assert fetch("data:audio/wav;base64," + base64.b64encode(b"samples").decode()) == b"samples"
    for wrong in ("data:audio/wav,abc", "data:audio/wav;base64", "data:audio/wav;base64,???"):
        with pytest.raises(ValueError, match="a data URI that cannot be read"):
            fetch(wrong)
    assert fetch("a.wav") == "a.wav" and fetch(SAMPLES) is SAMPLES
