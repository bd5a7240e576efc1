"""Recordings of the nano corpus: synthesizers, noise, human digits, and a corpus that is interrupted."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import make_corpus
import nano_audio
import nano_rows
import nano_voices
import numpy as np
import pytest
import soundfile
from nano_audio import Utterance, degrade, digit_takes, human_utterance, record
from nano_voices import EMOTIONAL_VOICES, EMOTIONS, LEVEL, PEAK, SAMPLING_RATE, UNSEEN_VOICES, VOICES, speak

from dualspeech.training.validate_rows import check_rows

from .corpora import make_takes

MISSING = [program for program in ("espeak-ng", "flite") if shutil.which(program) is None]
synthesizers = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
TEXT = "Linda carries eleven yellow bottles in the library."


def level(samples):
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def decibels(ratio):
    return 20 * np.log10(ratio)


def tones(seconds=4.0):
    """Loud in one half, as speech is not always there; nothing above 1 kHz."""
    time = np.arange(round(seconds * SAMPLING_RATE)) / SAMPLING_RATE
    samples = np.sin(2 * np.pi * 220 * time) + np.sin(2 * np.pi * 930 * time)
    samples[len(samples) // 2 :] *= 0.1
    return (samples * LEVEL / level(samples)).astype(np.float32)


def fake_speak(text, voice, emotion="neutral"):
    """Samples that tell text, voice and emotion apart, made in no time."""
    draw = np.random.default_rng([ord(letter) for letter in f"{text}|{voice}|{emotion}"])
    return (LEVEL * draw.standard_normal(800)).clip(-PEAK, PEAK).astype(np.float32)


@synthesizers
@pytest.mark.slow
@pytest.mark.parametrize("voice", [*VOICES, *UNSEEN_VOICES])
def test_voices(voice):
    samples = speak(TEXT, voice)
    assert samples.dtype == np.float32 and samples.ndim == 1 and np.array_equal(samples, speak(TEXT, voice))
    assert 2 < len(samples) / SAMPLING_RATE < 5
    assert abs(level(samples) - LEVEL) < 0.02 * LEVEL and np.abs(samples).max() < PEAK
    assert np.abs(samples[:300]).max() < 0.01 and np.abs(samples[-300:]).max() < 0.01  # silence around


@synthesizers
@pytest.mark.slow
def test_voices_and_emotions_differ():
    said = [speak("Tom has one cup.", voice) for voice in VOICES]
    said += [speak("Tom has one cup.", voice, emotion) for voice in EMOTIONAL_VOICES[:2] for emotion in list(EMOTIONS)[1:]]  # fmt: skip
    assert len({samples.tobytes() for samples in said}) == len(said)
    durations = {emotion: len(speak("Tom has one cup.", "us", emotion)) for emotion in EMOTIONS}
    assert durations["angry"] < durations["neutral"] < durations["sad"]
    # a shifted voice keeps the tempo
    assert abs(len(speak(TEXT, "slt_high")) / len(speak(TEXT, "slt")) - 1) < 0.1


def test_wrong_voices_are_named(monkeypatch):
    with pytest.raises(ValueError, match="`voice` is 'bob'; accepted are us, m3"):
        speak(TEXT, "bob")
    with pytest.raises(ValueError, match="`emotion` is 'bored'; accepted are neutral, happy"):
        speak(TEXT, "us", "bored")
    monkeypatch.setattr(nano_voices, "check_programs", lambda names: None)
    with pytest.raises(ValueError, match="voice 'slt' has no emotions; those that have are us"):
        speak(TEXT, "slt", "sad")
    monkeypatch.undo()
    monkeypatch.setattr(nano_voices.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed: sox; .*apt-get install espeak-ng flite"):
        nano_voices.check_programs(("sox",))


def test_degrade_is_the_same_for_a_key():
    samples = tones(1.0)
    first = degrade(samples, "a")
    assert first.dtype == np.float32 and np.array_equal(first, degrade(samples, "a"))
    assert not np.array_equal(first, degrade(samples, "b"))
    assert np.array_equal(samples, tones(1.0))  # the input is left alone


def test_degrade_keeps_to_its_ranges():
    samples, in_phone_band, ratios, gains = tones(), 0, [], []
    for i in range(60):
        noisy = degrade(samples, f"key {i}").astype(np.float64)
        gain = noisy @ samples / (samples @ samples)
        noise = noisy - gain * samples
        gains.append(decibels(gain))
        spectrum = np.abs(np.fft.rfft(noisy))
        is_phone = spectrum[np.fft.rfftfreq(len(noisy), 1 / SAMPLING_RATE) > 4100].max() < 1e-2
        in_phone_band += is_phone
        if not is_phone:  # that band takes noise away
            ratios.append(decibels(level(gain * samples) / level(noise)))
        assert np.abs(noisy).max() <= PEAK
    assert -15.3 < min(gains) < -10 and 0 < max(gains) < 3.3
    assert 7.5 < min(ratios) < 12 and 25 < max(ratios) < 30.5
    assert 10 <= in_phone_band <= 32  # a third of 60


def test_paths_tell_utterances_apart():
    given = [Utterance("a", "us"), Utterance("b", "us"), Utterance("a", "m3"), Utterance("a", "us", "sad"), Utterance("a", "us", variant=1)]  # fmt: skip
    assert len({utterance.path for utterance in given}) == 5
    assert Utterance("a", "us").path == "audio/us/46392bffc65fc60b.wav"


def test_human_digits(tmp_path):
    takes = make_takes(tmp_path)
    assert list(takes) == ["george", "jackson", "lucas"] and list(takes["lucas"]) == list(range(10))
    assert [path.name for path in takes["lucas"][7]][9:12] == ["7_lucas_9.wav", "7_lucas_10.wav", "7_lucas_11.wav"]
    for path, tone in zip((takes["george"][4][2], takes["george"][0][11]), (300, 700), strict=True):
        samples = 0.01 * np.sin(2 * np.pi * tone * np.arange(3200) / 8000)
        soundfile.write(path, samples, 8000)
    utterance, said = human_utterance([takes["george"][4][2], takes["george"][0][11]])
    assert said == "four zero" and utterance == Utterance("4_george_2 0_george_11", "human_george")
    record(utterance, tmp_path / "corpus", tmp_path)
    samples, rate = soundfile.read(tmp_path / "corpus" / utterance.path)
    assert rate == SAMPLING_RATE and 0.8 + 0.05 + 2 * 0.03 < len(samples) / rate < 0.8 + 0.05 + 2 * 0.15
    assert abs(level(samples) - LEVEL) < 0.02 * LEVEL
    spectrum = np.abs(np.fft.rfft(samples))
    frequencies = np.fft.rfftfreq(len(samples), 1 / rate)
    loud = [spectrum[(frequencies > tone - 20) & (frequencies < tone + 20)].max() for tone in (300, 700)]
    assert 0.8 < loud[0] / loud[1] < 1.25  # each take at the same level
    with pytest.raises(ValueError, match=r"`human_digits` .* has no files like 7_george_12[.]wav"):
        digit_takes(tmp_path / "corpus")
    for path in takes["lucas"][7][10:]:
        path.unlink()
    with pytest.raises(ValueError, match="has 10 takes of 7 by lucas; needed are 11 or more of each digit"):
        digit_takes(tmp_path)
    for path in tmp_path.glob("*_jackson_*.wav"):
        path.unlink()
    with pytest.raises(ValueError, match="has the speakers george, lucas; needed are jackson and another"):
        digit_takes(tmp_path)


@pytest.fixture
def small_corpus(monkeypatch, tmp_path):
    """`make()` makes a corpus of 2 x 12 references with made-up samples; returns its folder."""
    monkeypatch.setattr(nano_rows, "REFERENCES", 2)
    monkeypatch.setattr(nano_audio, "speak", fake_speak)
    monkeypatch.setattr(make_corpus, "check_programs", lambda: None)
    monkeypatch.setattr(make_corpus, "ProcessPoolExecutor", ThreadPoolExecutor)

    def make(name="corpus", **kwargs):
        make_corpus.make_corpus(tmp_path / name, scale=0.005, **kwargs)
        return tmp_path / name

    return make


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_same_command_same_corpus(small_corpus):
    first, again = contents(small_corpus("first")), contents(small_corpus("again", workers=1))
    assert first == again and len([path for path in first if path.suffix == ".wav"]) > 200
    assert not [path for path in first if path.suffix not in (".wav", ".jsonl")]


def test_rows_of_a_corpus_are_right_with_their_recordings(small_corpus):
    folder = small_corpus()
    named = set()
    for path in sorted((folder / "rows").rglob("*.jsonl")):
        check_rows(path, check_audio=True)
        named |= {part.rpartition("../")[2] for part in path.read_text().split('"') if part.endswith(".wav")}
    assert named == {str(path.relative_to(folder)) for path in (folder / "audio").rglob("*.wav")}
    for path in (folder / "audio").rglob("*.wav"):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype, info.format) == (SAMPLING_RATE, 1, "PCM_16", "WAV")


def test_an_interrupted_corpus_goes_on(small_corpus, monkeypatch):
    whole, made = small_corpus("whole"), []

    def stopping(path, *args, write=soundfile.write, **kwargs):
        made.append(path)
        write(path, *args, **kwargs)
        if len(made) > 20:
            with open(path, "r+b") as file:
                file.truncate(100)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(soundfile, "write", stopping)
        with pytest.raises(KeyboardInterrupt):
            small_corpus("broken", workers=1)
    broken = whole.parent / "broken"
    there = {path: path.stat().st_mtime_ns for path in broken.rglob("*.wav")}
    assert there and len(there) < len(list(whole.rglob("*.wav")))
    expected = contents(whole)
    assert all(path.read_bytes() == expected[path.relative_to(broken)] for path in there)
    assert list(broken.rglob("*.partial"))
    small_corpus("broken")
    assert contents(broken) == expected  # no partial file is left, none was taken for a whole one
    assert all(path.stat().st_mtime_ns == time for path, time in there.items())  # what was there was not made again


@synthesizers
@pytest.mark.slow
def test_a_spoken_corpus(monkeypatch, tmp_path):
    """A very small corpus of real voices, made twice, by two processes."""
    monkeypatch.setattr(nano_rows, "REFERENCES", 1)
    monkeypatch.setattr(nano_rows, "LEAST", dict.fromkeys(nano_rows.LEAST, 2))
    counts = make_corpus.make_corpus(tmp_path / "first", scale=1e-4)
    make_corpus.make_corpus(tmp_path / "again", scale=1e-4, workers=1)
    assert contents(tmp_path / "first") == contents(tmp_path / "again")
    assert counts["train/chats"] == 8 and counts["test/asr"] == 4
    longest = {"chats": 0.0, "tasks": 0.0}
    for path in (tmp_path / "first" / "rows").rglob("*.jsonl"):
        for line in path.read_text().splitlines():
            for part in line.split('"'):
                if part.endswith(".wav"):
                    samples, rate = soundfile.read(path.parent / part)
                    assert rate == SAMPLING_RATE and np.abs(samples).max() <= PEAK + 1e-4
                    assert LEVEL * 10 ** (-15.5 / 20) < level(samples) < LEVEL * 10 ** (3.5 / 20)
                    where = "chats" if path.stem in ("chats", "chat_transcripts") else "tasks"
                    longest[where] = max(longest[where], len(samples) / rate)
    assert longest["tasks"] < 5 and longest["chats"] < 10
    for row in map(json.loads, (tmp_path / "first/rows/train/tts.jsonl").read_text().splitlines()):
        assert (tmp_path / "first/rows/train" / row["targets"]["audio"]).is_file()
