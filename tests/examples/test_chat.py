"""The chat script on the tiny checkpoint: files in and out, streaming, several turns, Ctrl-C, loudspeaker."""

import signal
import sys
import types

import numpy as np
import pytest
import soundfile
import torch

from tests.examples.running import load_example


@pytest.fixture(autouse=True)
def _ctrl_c():
    """A shell that starts the tests in the background switches the signal off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def script():
    return load_example("chat")


@pytest.fixture(scope="module")
def checkpoint(script, tmp_path_factory):
    return script.make_moss_checkpoint(tmp_path_factory.mktemp("chat") / "checkpoint")


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("recording") / "question.wav"
    soundfile.write(path, 0.3 * np.sin(np.arange(22050) / 30), 22050)
    return path


@pytest.fixture(scope="module")
def loaded(script, checkpoint):
    """Model and processor, loaded once for all tests but those that are about loading."""
    return script.load(script.parse(["--checkpoint", str(checkpoint), "--device", "cpu"]))


@pytest.fixture
def talk(script, loaded, tmp_path, monkeypatch):
    """`talk(*arguments)` runs the script with the tiny checkpoint, on the CPU, with a seed."""

    def run(*arguments, seed=0):
        fixed = ["--output-dir", tmp_path, "--device", "cpu", "--seed", seed, "--no-play"]
        return script.main([str(argument) for argument in [*fixed, *arguments]])

    monkeypatch.setattr(script, "load", lambda options: loaded)
    return run


def read(path):
    audio, rate = soundfile.read(path, dtype="float32")
    assert rate == 24000
    return audio


def streamed(codec, codes, voice, **settings):
    """One streaming pass over all codes; code by code where the vocoder does not wait until it can be exact."""
    chunk = settings.get("chunk_size") or codec.config.flow_config.chunk_size
    voice = voice and voice.trim(multiple_of=chunk)
    decoder = codec.streaming_decoder(voice, **settings)
    size = 1 if "lookahead_frames" in settings else len(codes)
    pieces = [decoder.step(piece) for piece in torch.from_numpy(codes).split(size)]
    return torch.cat([*pieces, decoder.finish()]).numpy()


def test_speech_in_speech_out(talk, loaded, recording, tmp_path, capsys):
    (answer,) = talk("--input-wav", recording)
    assert len(answer.codes) > 0 and len(answer.audio) == 1920 * len(answer.codes)
    codec = loaded[1].audio_tokenizer
    expected = codec.decode(torch.from_numpy(answer.codes)[None], voice=loaded[1].voice)[0, 0]
    assert np.allclose(read(tmp_path / "answer-1.wav"), expected.detach().numpy(), atol=2e-4)
    printed = capsys.readouterr().out
    assert "answer-1.wav: time to first audio" in printed and "real-time factor" in printed and "rows/s" in printed


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ([], {}),
        (["--chunk-size", 3], {"chunk_size": 3}),
        (["--left-context", 10, "--cache-dtype", "float64"], {"left_context": 10, "cache_dtype": torch.float64}),
        (["--lookahead-frames", 6, "--chunk-size", 2], {"lookahead_frames": 6, "chunk_size": 2}),
    ],
    ids=["default", "chunks of 3", "bounded", "lookahead"],
)
def test_stream_is_one_streaming_pass(talk, loaded, tmp_path, arguments, settings):
    (waiting,) = talk("--text", "Hello you")
    (answer,) = talk("--text", "Hello you", "--stream", *arguments)
    assert np.array_equal(answer.codes, waiting.codes) and len(answer.codes) > 8
    expected = streamed(loaded[1].audio_tokenizer, answer.codes, loaded[1].voice, **settings)
    assert len(answer.audio) == 1920 * len(answer.codes) and np.allclose(answer.audio, expected, atol=1e-4)
    assert np.allclose(read(tmp_path / "answer-1.wav"), expected, atol=2e-4)
    assert 0 < answer.first_audio <= answer.gapless <= answer.seconds


def test_pieces_are_written_as_they_come(script, talk, tmp_path, monkeypatch):
    lengths = []
    write = script.SpeechOutput.write

    def watched(self, samples):
        write(self, samples)
        if self.file is not None:
            lengths.append(soundfile.info(self.path).frames)

    monkeypatch.setattr(script.SpeechOutput, "write", watched)
    (answer,) = talk("--text", "Hello you", "--stream")
    assert len(set(lengths)) > 3 and lengths == sorted(lengths) and lengths[-1] == len(answer.audio)


def test_text_out(talk, capsys, tmp_path):
    (answer,) = talk("--text", "Hello", "--output", "text", "--max-new-tokens", 12)
    waiting = capsys.readouterr().out.splitlines()
    (again,) = talk("--text", "Hello", "--output", "text", "--max-new-tokens", 12, "--stream")
    streaming = capsys.readouterr().out.splitlines()
    assert answer.text and answer.text == again.text and answer.audio is None is again.audio
    assert waiting[:-1] == streaming[:-1] and waiting[0] == answer.text.splitlines()[0]
    assert answer.rows <= 12 and not list(tmp_path.glob("*.wav"))


def test_settings_override_the_generation_config(talk):
    short, long = (talk("--text", "a", "--max-new-tokens", rows)[0] for rows in (3, 6))
    assert short.rows <= 3 and short.finish_reason == "length" and long.rows <= 6
    assert np.array_equal(short.codes, long.codes[: len(short.codes)])
    greedy = [talk("--text", "a", "--greedy", seed=seed)[0].codes for seed in (1, 2)]
    assert np.array_equal(*greedy)
    sampled = [talk("--text", "a", "--temperature", 3.0, "--top-k", 0, seed=seed)[0].codes for seed in (1, 2, 1)]
    assert np.array_equal(sampled[0], sampled[2]) and not np.array_equal(sampled[0], sampled[1])


@pytest.mark.parametrize("output", ["audio", "text"])
def test_turns_of_a_conversation(script, talk, recording, tmp_path, monkeypatch, output):
    seen = []
    init = script.Chat.__init__
    monkeypatch.setattr(script.Chat, "__init__", lambda self, *args: (init(self, *args), seen.append(self))[0])
    turns = ["--text", "one", "--input-wav", recording, "--text", "two"]
    settings = ["--output", output, "--greedy", "--max-new-tokens", 14, "--system", "Be short."]
    waiting = talk(*turns, *settings)
    streaming = talk(*turns, *settings, "--stream")
    assert len(waiting) == len(streaming) == 3
    for a, b in zip(waiting, streaming, strict=True):
        assert a.text == b.text and (a.codes is None or np.array_equal(a.codes, b.codes))
    assert seen[0].conversation == seen[1].conversation
    roles = [turn["role"] for turn in seen[0].conversation]
    assert roles == ["system", *["user", "assistant"] * 3]
    contents = [turn["content"] for turn in seen[0].conversation]
    assert contents[1] == "one" and contents[3]["type"] == "audio" and len(contents[3]["codes"]) == 13
    if output == "audio":
        assert contents[2][0]["codes"] == waiting[0].codes.tolist()
        assert (tmp_path / "answer-3.wav").exists()


def test_voices(talk, loaded, recording, tmp_path):
    default = talk("--text", "a", "--stream")[0]
    other = talk("--text", "a", "--stream", "--voice", recording)[0]
    none = talk("--text", "a", "--stream", "--voice", "none")[0]
    assert np.array_equal(default.codes, other.codes)
    assert not np.allclose(default.audio, other.audio, atol=1e-4) and not np.allclose(
        none.audio, other.audio, atol=1e-4
    )
    assert np.allclose(none.audio, streamed(loaded[1].audio_tokenizer, none.codes, None), atol=1e-4)
    codec = loaded[1].audio_tokenizer
    codec.make_voice(torch.from_numpy(read_any(recording)), 22050).save(tmp_path / "me.safetensors")
    saved = talk("--text", "a", "--stream", "--voice", tmp_path / "me.safetensors")[0]
    assert np.allclose(saved.audio, other.audio, atol=1e-5)
    with pytest.raises(ValueError, match="missing"):
        talk("--text", "a", "--voice", "missing.wav")


def read_any(path):
    return soundfile.read(path, dtype="float32")[0]


def test_checkpoint_and_codec_of_another_folder(script, checkpoint, tmp_path):
    arguments = ["--checkpoint", checkpoint, "--output-dir", tmp_path, "--text", "a", "--device", "cpu", "--seed", 0]
    arguments = [str(argument) for argument in arguments]
    (here,) = script.main(arguments)
    (there,) = script.main([*arguments, "--codec", str(checkpoint / "audio_tokenizer"), "--dtype", "float64"])
    assert np.array_equal(here.codes, there.codes) and np.array_equal(here.audio, there.audio)


@pytest.mark.parametrize("after", [1, 20])
def test_ctrl_c_ends_an_answer(script, talk, monkeypatch, tmp_path, after):
    """The signal arrives while the answer is decoded: what was heard of it is kept, and the next turn is answered."""
    from dualspeech.modeling.moss_speech_streaming import MossSpeechStreamingDecoder

    seen, step, count = [], MossSpeechStreamingDecoder.step, [0]

    def interrupted(self, codes):
        count[0] += 1
        if count[0] == after:
            signal.raise_signal(signal.SIGINT)
        return step(self, codes)

    monkeypatch.setattr(MossSpeechStreamingDecoder, "step", interrupted)
    init = script.Chat.__init__
    monkeypatch.setattr(script.Chat, "__init__", lambda self, *args: (init(self, *args), seen.append(self))[0])
    first, second = talk("--text", "Hello you", "--text", "so", "--stream", "--greedy", "--max-new-tokens", 100)
    assert first.finish_reason == "cancelled" and first.rows < 100
    assert second.finish_reason in ("length", "eos") and len(second.codes) > 0
    written, conversation = tmp_path / "answer-1.wav", seen[0].conversation
    if first.audio is None:
        assert not written.exists() and len(first.codes) == 0
        assert [turn["content"] for turn in conversation[:1]] == ["so"]
    else:
        assert len(read(written)) == len(first.audio) and len(first.audio) // 1920 == len(first.codes) > 0
        assert conversation[1]["content"][0]["codes"] == first.codes.tolist()
    assert (first.audio is None) == (after == 1)


def test_ctrl_c_without_streaming(script, talk, monkeypatch, capsys):
    """The turn is dropped; nothing of it stays in the conversation."""
    wait, calls = script.Chat._wait, []

    def interrupted(self, *args):
        calls.append(len(self.conversation))
        if len(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return wait(self, *args)

    monkeypatch.setattr(script.Chat, "_wait", interrupted)
    assert len(talk("--text", "one", "--text", "two")) == 1
    assert calls == [0, 0] and "[cancelled]" in capsys.readouterr().out


def test_typed_conversation(script, talk, recording, monkeypatch, capsys):
    lines = iter(["Hello", f"@{recording}", "@missing.wav", "bye", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert len(talk("--output", "text", "--max-new-tokens", 5)) == 3
    assert "missing.wav" in capsys.readouterr().out

    def end(prompt):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", end)
    assert talk("--output", "text") == []
    with pytest.raises(ValueError, match=r"missing\.wav"):
        talk("--input-wav", "missing.wav")


def test_gapless_start(tmp_path, monkeypatch):
    """Pieces of 10 ms that come at 1.0, 1.005 and 1.05 s: the last one is 30 ms late for a start at 1.0."""
    module = load_example("speech_output")
    times = iter([1.0, 1.005, 1.05])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(times))
    output = module.SpeechOutput(tmp_path / "a.wav", 1000, play=False)
    assert output.first_time is output.gapless_time is output.audio is None
    for _ in range(3):
        output.write(torch.zeros(10))
    output.write(torch.zeros(0))
    output.close()
    assert output.first_time == 1.0 and output.gapless_time == pytest.approx(1.03) and len(output.audio) == 30


class LoudSpeaker:
    """Stands for `sounddevice.OutputStream`."""

    made: list["LoudSpeaker"] = []

    def __init__(self, samplerate, channels, dtype):
        self.settings, self.pieces = (samplerate, channels, dtype), []
        LoudSpeaker.made.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.closed = True

    def write(self, piece):
        self.pieces.append(piece)


def test_loudspeaker(script, loaded, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "load", lambda options: loaded)
    arguments = ["--output-dir", str(tmp_path), "--text", "a", "--stream", "--device", "cpu"]
    monkeypatch.setitem(sys.modules, "sounddevice", types.SimpleNamespace(OutputStream=LoudSpeaker))
    (answer,) = script.main(arguments)
    (speaker,) = LoudSpeaker.made
    assert speaker.settings == (24000, 1, "float32") and speaker.closed
    assert np.array_equal(np.concatenate(speaker.pieces)[:, 0], answer.audio)

    def broken(**kwargs):
        raise OSError("no default output device")

    monkeypatch.setitem(sys.modules, "sounddevice", types.SimpleNamespace(OutputStream=broken))
    (again,) = script.main(arguments)
    assert "no default output device" in capsys.readouterr().out and len(again.audio) > 0
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert len(script.main(arguments)[0].audio) > 0


def test_without_a_checkpoint(script, tmp_path):
    (answer,) = script.main(["--output-dir", str(tmp_path), "--text", "Hello", "--device", "cpu"])
    assert len(read(tmp_path / "answer-1.wav")) == len(answer.audio)
    load_example("tiny_moss_speech").main([str(tmp_path / "again")])
    assert (tmp_path / "again" / "voice.safetensors").exists()
