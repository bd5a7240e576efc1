"""The voices of the micro-language: espeak-ng and flite, at 16 kHz, with the prosody of four emotions.

    apt-get install espeak-ng flite

Nothing is random: the same text in the same voice gives the same samples on every machine with the same versions.
"""

import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from subprocess import run

import numpy as np

SAMPLING_RATE = 16000
# Level of every recording (root of the mean square) and the highest sample.
LEVEL, PEAK = 0.08, 0.95


@dataclass(frozen=True)
class Voice:
    """
    A voice of a synthesizer.

    Args:
        program: `"espeak-ng"` or `"flite"`.
        name: voice of the program.
        shift: factor on all frequencies, pitch and formants alike; another throat. The tempo stays.
    """

    program: str
    name: str
    shift: float = 1.0


# One voice of the release is the assistant of MOSS-Speech.
ASSISTANT = "slt"
VOICES = {
    "us": Voice("espeak-ng", "en-us"),
    "m3": Voice("espeak-ng", "en-us+m3"),
    "f2": Voice("espeak-ng", "en-us+f2"),
    "f4": Voice("espeak-ng", "en-us+f4"),
    "john": Voice("espeak-ng", "en-us+john"),
    "gene": Voice("espeak-ng", "en-us+Gene"),
    "kal": Voice("flite", "kal16"),
    "kal_high": Voice("flite", "kal16", 1.15),
    "rms": Voice("flite", "rms"),
    "rms_low": Voice("flite", "rms", 0.86),
    "slt": Voice("flite", "slt"),
    "slt_high": Voice("flite", "slt", 1.17),
}
# Nothing that these say is in any training.
UNSEEN_VOICES = {
    "awb": Voice("flite", "awb"),
    "croak": Voice("espeak-ng", "en-us+croak"),
    "rp": Voice("espeak-ng", "en-gb-x-rp+f3"),
    "gb": Voice("espeak-ng", "en-gb+m1"),
}


@dataclass(frozen=True)
class Prosody:
    """Settings of espeak-ng: words per minute, steps of 0 to 99 above the voice's own pitch, pitch range (SSML)."""

    speed: int = 150
    pitch: int = 0
    range: str = "medium"


EMOTIONS = {
    "neutral": Prosody(),
    "happy": Prosody(speed=165, pitch=25, range="x-high"),
    "sad": Prosody(speed=120, pitch=-20, range="x-low"),
    "angry": Prosody(speed=210, pitch=-5, range="x-high"),
}
# The voices that express emotions: those of espeak-ng.
EMOTIONAL_VOICES = tuple(name for name, voice in VOICES.items() if voice.program == "espeak-ng")


@cache
def check_programs(names: tuple[str, ...] = ("espeak-ng", "flite")) -> None:
    """A `ValueError` that names the synthesizers that are not installed."""
    if missing := [name for name in names if shutil.which(name) is None]:
        raise ValueError(f"not installed: {', '.join(missing)}; on Debian and Ubuntu: apt-get install espeak-ng flite")


def speak(text: str, voice: str, emotion: str = "neutral") -> np.ndarray:
    """
    `text` in a voice of `VOICES` or `UNSEEN_VOICES`: float32 `[S]` at 16 kHz, without silence around it, at `LEVEL`.

    Raises:
        ValueError: an unknown voice or emotion, an emotion that the voice has not, or a program that is missing.
    """
    known = VOICES | UNSEEN_VOICES
    if voice not in known:
        raise ValueError(f"`voice` is {voice!r}; accepted are {', '.join(known)}")
    if emotion not in EMOTIONS:
        raise ValueError(f"`emotion` is {emotion!r}; accepted are {', '.join(EMOTIONS)}")
    chosen = known[voice]
    check_programs((chosen.program,))
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "speech.wav")
        if chosen.program == "espeak-ng":
            command = _espeak(text, chosen, EMOTIONS[emotion], path)
        elif emotion == "neutral":
            stretch = f"duration_stretch={chosen.shift}"
            command = ["flite", "-voice", chosen.name, "--setf", stretch, "-t", text, "-o", path]
        else:
            raise ValueError(f"voice {voice!r} has no emotions; those that have are {', '.join(EMOTIONAL_VOICES)}")
        run(command, check=True, capture_output=True)
        return _normalized(*_read(path), chosen.shift)


def _espeak(text: str, voice: Voice, prosody: Prosody, path: str) -> list[str]:
    pitch = str(50 + prosody.pitch)
    command = ["espeak-ng", "-v", voice.name, "-s", str(prosody.speed), "-p", pitch, "-w", path]
    if prosody.range == "medium":
        return [*command, "--", text]
    return [*command, "-m", "--", f'<speak><prosody range="{prosody.range}">{text}</prosody></speak>']


def _read(path: str) -> tuple[np.ndarray, int]:
    import soundfile

    return soundfile.read(path, dtype="float32")


def _normalized(samples: np.ndarray, rate: int, shift: float) -> np.ndarray:
    import librosa

    samples = librosa.resample(samples, orig_sr=round(rate * shift), target_sr=SAMPLING_RATE)
    samples, _ = librosa.effects.trim(samples, top_db=45, frame_length=640, hop_length=160)
    samples = np.pad(samples, SAMPLING_RATE // 25)  # 40 ms of silence around what is said
    samples = samples * (LEVEL / np.sqrt(np.mean(samples**2)))
    return np.clip(samples, -PEAK, PEAK).astype(np.float32)


__all__ = [
    "ASSISTANT",
    "EMOTIONAL_VOICES",
    "EMOTIONS",
    "LEVEL",
    "SAMPLING_RATE",
    "UNSEEN_VOICES",
    "VOICES",
    "Prosody",
    "Voice",
    "check_programs",
    "speak",
]
