"""Speaking texts: commands, models, pieces of long texts, speakers."""

import pickle
import shutil
import sys

import numpy as np
import pytest
import torch
from transformers import VitsConfig, VitsModel, VitsTokenizer

from dualspeech.training.data_steps.row_recordings import read_recording
from dualspeech.training.data_steps.speech_backends import (
    CommandBackend,
    DualSpeechBackend,
    SpeechBackend,
    TransformersBackend,
)
from dualspeech.training.data_steps.step import Rejection, apply_step
from dualspeech.training.data_steps.synthesis import SynthesizeSpeech
from tests.examples.running import load_example

# Writes 10 ms of sound per character, louder for the speaker "loud".
SPEAK = """
import sys, wave
text, speaker, output = sys.argv[1:4]
text = text or sys.stdin.buffer.read().decode()
if text.startswith("fail"):
    sys.exit("cannot say " + text)
level = {"loud": 20000}.get(speaker, 2000)
with wave.open(output, "wb") as file:
    file.setnchannels(1); file.setsampwidth(2); file.setframerate(8000)
    file.writeframes(level.to_bytes(2, "little") * 80 * len(text))
"""


@pytest.fixture
def command(tmp_path):
    script = tmp_path / "speak.py"
    script.write_text(SPEAK)
    return CommandBackend([sys.executable, str(script), "{text}", "{speaker}", "{output}"], default_speaker="soft")


def test_command(command):
    backend = pickle.loads(pickle.dumps(command))
    backend.setup()
    for text in ("one red house", "--help", "a {speaker} {output} 'x' \"y\" $HOME; 今天"):
        waveform, rate = backend.synthesize(text, None)
        assert rate == 8000 and len(waveform) == 80 * len(text) and waveform.dtype == np.float32
        assert waveform == pytest.approx(2000 / 32768, abs=1e-4)
    assert backend.synthesize("a", "loud")[0] == pytest.approx(20000 / 32768, abs=1e-4)
    with pytest.raises(ValueError, match=r"ended with 1 .*cannot say fail"):
        backend.synthesize("fail now", None)
    backend.command[2] = ""  # the text on the standard input
    assert len(backend.synthesize("今天 ok", None)[0]) == 80 * 5


def test_wrong_commands(command, tmp_path):
    with pytest.raises(ValueError, match=r"'\{output\}'"):
        CommandBackend(["espeak-ng", "{text}"]).setup()
    with pytest.raises(ValueError, match="'no-such-program' is not installed"):
        CommandBackend(["no-such-program", "{output}"]).setup()
    command.default_speaker = None
    with pytest.raises(ValueError, match="`default_speaker`"):
        command.synthesize("a", None)
    slow = CommandBackend([sys.executable, "-c", "import time; time.sleep(60)", "{output}"], timeout_seconds=0.5)
    with pytest.raises(ValueError, match=r"more than 0\.5 s"):
        slow.synthesize("a", None)
    quiet = CommandBackend([sys.executable, "-c", "pass", "{output}"])
    with pytest.raises(ValueError, match="ended with 0 and no recording"):
        quiet.synthesize("a", None)


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_espeak():
    step = SynthesizeSpeech(CommandBackend(), speakers=["en", "en+f3"])
    step.setup()
    rows = [{"text": "-- One red house.", "id": str(number)} for number in range(6)]
    recordings = {}
    for (made,), row in zip(step.process(rows), rows, strict=True):
        samples, rate = read_recording(made)
        assert rate == 22050 and 0.5 < len(samples) / rate < 3 and np.abs(samples).max() > 0.1
        recordings.setdefault(made["metadata"]["audio_speaker"], []).append(samples)
        ((again,),) = step.process([row])
        assert again["metadata"] == made["metadata"] and len(read_recording(again)[0]) == len(samples)
    assert set(recordings) == {"en", "en+f3"}
    first, second = recordings["en"][0], recordings["en+f3"][0]
    assert len(first) != len(second) or np.abs(first - second).max() > 0.05


def test_pieces_and_files(command, tmp_path):
    step = SynthesizeSpeech(command, str(tmp_path / "speech"), max_characters=20, pause_seconds=0.5)
    step = pickle.loads(pickle.dumps(step))
    step.setup()
    row = {"text": "One red house. Two blue trees. No.", "id": "a/1", "source": "x:1"}
    ((made,),) = step.process([row])
    samples, _rate = read_recording(made)
    # two pieces (14 and 19 characters) with half a second between them
    assert len(samples) == 80 * (14 + 19) + 4000
    assert not samples[80 * 14 : 80 * 14 + 4000].any() and samples[: 80 * 14].all()
    assert made["audio"].startswith(str(tmp_path / "speech")) and made["audio"].endswith(".flac")
    assert made["text"] == row["text"] and made["source"] == "x:1" and "metadata" not in made
    assert step.process([row]) == [[made]]


def test_speakers(command):
    rows = [{"question": "a", "answer": "b", "source": f"a:{i}", "voice": None} for i in range(30)]
    user = SynthesizeSpeech(
        command, text_key="question", audio_key="question_audio", speakers=["soft", "loud"], speaker_key="voice"
    )
    outcomes = user.process(rows[:12])
    drawn = [made["metadata"]["question_audio_speaker"] for (made,) in outcomes]
    assert set(drawn) == {"soft", "loud"}
    for (made,), speaker in zip(outcomes, drawn, strict=True):
        loud = np.abs(read_recording(made, "question_audio")[0]).max() > 0.3
        assert loud == (speaker == "loud")
    assert [made for (made,) in user.process(rows[3:5])] == [made for (made,) in outcomes[3:5]]
    ((own,),) = user.process([{**rows[0], "voice": "loud"}])
    assert own["metadata"]["question_audio_speaker"] == "loud"
    # an answer after a question keeps both
    answer = SynthesizeSpeech(command, text_key="answer", audio_key="answer_audio", speakers=["loud"])
    ((both,),) = answer.process([outcomes[0][0]])
    assert set(both["metadata"]) == {"question_audio_speaker", "answer_audio_speaker"}
    assert {"question_audio", "answer_audio"} <= set(both)


def test_rows_of_one_key_keep_their_own_recordings(command, tmp_path):
    rows = [{"text": "a" * (1 + number), "source": "CCI3"} for number in range(12)]
    step = SynthesizeSpeech(command, str(tmp_path), speakers=["soft", "loud"])
    made = [row for (row,) in step.process(rows)]
    assert [len(read_recording(row)[0]) for row in made] == [80 * (1 + number) for number in range(12)]
    assert {row["metadata"]["audio_speaker"] for row in made} == {"soft", "loud"}


def test_failures_of_the_machine_end_the_run(command, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match=r"file"):
        apply_step(SynthesizeSpeech(command, str(tmp_path / "file" / "speech")), [{"text": "a"}])
    with pytest.raises(FileNotFoundError):
        apply_step(SynthesizeSpeech(CommandBackend(["no-such-program", "{output}"])), [{"text": "a"}])


def test_rejections(command):
    step = SynthesizeSpeech(command)
    outcomes = apply_step(step, [{"text": ""}, {"text": "fail"}, {"other": 1}, {"text": "fine"}])
    assert [isinstance(outcome, Rejection) for outcome in outcomes] == [True, True, True, False]
    assert "cannot say fail" in outcomes[1].reason and "no `text`" in outcomes[2].reason


def test_settings_hold_the_backend(command):
    settings = SynthesizeSpeech(command, seed=1).settings()
    assert settings["step"] == "synthesize_speech" and settings["seed"] == 1
    assert settings["backend"]["backend"] == "CommandBackend" and "timeout_seconds" not in settings["backend"]
    other = SynthesizeSpeech(TransformersBackend("a", device="cuda"), seed=1).settings()
    assert other["backend"] == TransformersBackend("a", device="cpu").settings()


def vits_checkpoint(folder):
    (folder / "vocab.json").write_text(
        '{"<pad>": 0, ' + ", ".join(f'"{c}": {i + 1}' for i, c in enumerate("abcdehnorstu ")) + "}"
    )
    tokenizer = VitsTokenizer(
        str(folder / "vocab.json"),
        phonemize=False,
        is_uroman=False,
        add_blank=True,
        normalize=False,
        pad_token="<pad>",
        unk_token="<pad>",
    )
    torch.manual_seed(0)
    config = VitsConfig(
        vocab_size=14,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=16,
        flow_size=16,
        spectrogram_bins=9,
        posterior_encoder_num_wavenet_layers=1,
        prior_encoder_num_flows=2,
        prior_encoder_num_wavenet_layers=1,
        duration_predictor_num_flows=2,
        duration_predictor_filter_channels=16,
        depth_separable_channels=2,
        depth_separable_num_layers=1,
        upsample_initial_channel=16,
        upsample_rates=[4, 4],
        upsample_kernel_sizes=[8, 8],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        num_speakers=3,
        speaker_embedding_size=8,
    )
    VitsModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_transformers_model(tmp_path):
    backend = TransformersBackend(vits_checkpoint(tmp_path), speaker_parameter="speaker_id", device="cpu")
    backend.setup()
    backend = pickle.loads(pickle.dumps(backend))
    with pytest.raises(RuntimeError, match="setup"):
        backend.synthesize("a", None)
    backend.setup()
    waveform, rate = backend.synthesize("one red house", "2")
    assert rate == 16000 and waveform.ndim == 1 and waveform.dtype == np.float32 and len(waveform) > 100
    # the same whatever was drawn before
    state = torch.random.get_rng_state()
    again = backend.synthesize("one red house", "2")[0]
    assert np.array_equal(again, waveform)
    assert torch.equal(state, torch.random.get_rng_state())
    other = backend.synthesize("one red house", "1")[0]
    assert len(other) != len(waveform) or np.abs(other - waveform).max() > 0
    # the model does what it does without a backend
    backend.seed = 1
    assert len(backend.synthesize("one red house", "2")[0]) != len(waveform)
    backend.speaker_parameter = None
    with pytest.raises(ValueError, match="`speaker_parameter`"):
        backend.synthesize("a", "2")
    assert backend.synthesize("a", None)[1] == 16000


def test_dualspeech(tmp_path):
    tiny = load_example("tiny_dualspeech")
    tokenizer = tiny.tiny_tokenizer()
    processor = tiny.tiny_processor(tokenizer)
    model = tiny.tiny_model(tokenizer).eval()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    voice = tmp_path / "voice.wav"
    processor.save_audio(str(voice), tiny.tone_speech(["one", "red"]), 24000)
    backend = DualSpeechBackend(str(tmp_path), default_speaker=str(voice), device="cpu")
    backend.setup()
    for backend.seed in range(40):  # noise does not always come to its end
        try:
            waveform, rate = backend.synthesize("one red house", None)
            break
        except ValueError as error:
            assert "did not come to its end" in str(error)
    assert rate == 24000 and waveform.dtype == np.float32 and np.isfinite(waveform).all()
    assert np.array_equal(backend.synthesize("one red house", None)[0], waveform)


class Beeps(SpeechBackend):
    """A backend of a user: another rate for each length."""

    def synthesize(self, text, speaker):
        return np.ones(100, np.float32), 8000 + len(text)


def test_pieces_of_one_rate():
    (outcome,) = apply_step(SynthesizeSpeech(Beeps(), max_characters=10), [{"text": "One red. Two blue."}])
    assert "different rates: [8008, 8009] Hz" in outcome.reason or "different rates" in outcome.reason
