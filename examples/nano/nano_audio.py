"""Recordings of the nano corpus: what is spoken by whom, noise and level, and strings of recorded human digits."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nano_lexicon import DIGITS
from nano_voices import LEVEL, PEAK, SAMPLING_RATE, speak

# Of recorded digits: takes that are test data of every speaker, and the speaker who is test data altogether.
TEST_TAKES, TEST_SPEAKER = range(5), "jackson"
MIN_TAKES = 11  # five for the test, five for validation
NOISES = {"white": 0.0, "pink": 1.0, "brown": 2.0}  # power falls with this power of the frequency


@dataclass(frozen=True)
class Utterance:
    """
    A recording to be made. Equal ones are one file.

    Args:
        text: what is said. Of human digits: the file names of the takes, separated by spaces.
        voice: a voice of `nano_voices`, or `"human_"` and a speaker.
        emotion: an emotion of `nano_voices`.
        variant: 0: clean. Other numbers seed the noise and the level.
    """

    text: str
    voice: str
    emotion: str = "neutral"
    variant: int = 0

    @property
    def path(self) -> str:
        """Where it stands below the folder of the corpus."""
        key = f"{self.text}|{self.voice}|{self.emotion}|{self.variant}"
        return f"audio/{self.voice}/{hashlib.sha256(key.encode()).hexdigest()[:16]}.wav"


def degrade(samples: np.ndarray, key: str) -> np.ndarray:
    """
    `samples` with noise (8 to 30 dB below), another level (-15 to +3 dB), and in one of three cases the band of a
    telephone. `key` seeds what is drawn.
    """
    draw = np.random.default_rng(list(hashlib.sha256(key.encode()).digest()))
    spectrum = np.fft.rfft(draw.standard_normal(len(samples)))
    frequencies = np.fft.rfftfreq(len(samples), 1 / SAMPLING_RATE)
    slope = list(NOISES.values())[draw.integers(len(NOISES))]
    noise = np.fft.irfft(spectrum * np.maximum(frequencies, 50.0) ** (-slope / 2), len(samples))
    noise *= np.sqrt(np.mean(samples**2) / np.mean(noise**2)) * 10 ** (-draw.uniform(8, 30) / 20)
    samples = samples + noise
    if draw.random() < 1 / 3:
        spectrum = np.fft.rfft(samples)
        spectrum[frequencies > draw.uniform(3300, 4000)] = 0
        samples = np.fft.irfft(spectrum, len(samples))
    samples = samples * 10 ** (draw.uniform(-15, 3) / 20)
    return np.clip(samples, -PEAK, PEAK).astype(np.float32)


def digit_takes(folder: str | Path) -> dict[str, dict[int, list[Path]]]:
    """
    Recorded digits `{digit}_{speaker}_{take}.wav` as files by speaker and digit, in the order of their takes.

    Raises:
        ValueError: no such files, or too few of them for a split.
    """
    takes: dict[str, dict[int, list[tuple[int, Path]]]] = {}
    for path in Path(folder).glob("*_*_*.wav"):
        digit, speaker, take = path.stem.split("_")
        takes.setdefault(speaker, {}).setdefault(int(digit), []).append((int(take), path))
    if not takes:
        raise ValueError(f"`human_digits` {str(folder)!r} has no files like 7_george_12.wav")
    if TEST_SPEAKER not in takes or len(takes) < 2:
        raise ValueError(
            f"`human_digits` {str(folder)!r} has the speakers {', '.join(sorted(takes))}; needed are {TEST_SPEAKER} and another"
        )
    for speaker, digits in takes.items():
        counts = [len(digits.get(digit, ())) for digit in range(len(DIGITS))]
        if min(counts) < MIN_TAKES:
            raise ValueError(
                f"`human_digits` {str(folder)!r} has {min(counts)} takes of {counts.index(min(counts))} by {speaker}; needed "
                f"are {MIN_TAKES} or more of each digit"
            )
    return {
        speaker: {digit: [path for _, path in sorted(entries)] for digit, entries in sorted(digits.items())}
        for speaker, digits in sorted(takes.items())
    }


def human_utterance(paths: list[Path], variant: int = 0) -> tuple[Utterance, str]:
    """The recording of several takes of one speaker, and what they say together."""
    speaker = paths[0].stem.split("_")[1]
    said = " ".join(DIGITS[int(path.stem.split("_")[0])] for path in paths)
    return Utterance(" ".join(path.stem for path in paths), f"human_{speaker}", variant=variant), said


def _human(utterance: Utterance, folder: str) -> np.ndarray:
    import librosa
    import soundfile

    draw = np.random.default_rng(list(hashlib.sha256(utterance.text.encode()).digest()))
    parts = [np.zeros(int(0.05 * SAMPLING_RATE))]
    for stem in utterance.text.split():
        samples, rate = soundfile.read(str(Path(folder) / f"{stem}.wav"), dtype="float32")
        samples = librosa.resample(samples, orig_sr=rate, target_sr=SAMPLING_RATE)
        parts += [samples / max(1e-4, float(np.sqrt(np.mean(samples**2))))]
        parts += [np.zeros(int(draw.uniform(0.03, 0.15) * SAMPLING_RATE))]
    joined = np.concatenate(parts)
    return np.clip(joined * (LEVEL / np.sqrt(np.mean(joined**2))), -PEAK, PEAK).astype(np.float32)


def record(utterance: Utterance, folder: str, human_digits: str | None = None) -> None:
    """Make the file of `utterance` below `folder`, unless it is there."""
    import soundfile

    path = Path(folder) / utterance.path
    if path.is_file():
        return
    if utterance.voice.startswith("human_"):
        samples = _human(utterance, human_digits)
    else:
        samples = speak(utterance.text, utterance.voice, utterance.emotion)
    if utterance.variant:
        samples = degrade(samples, utterance.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    soundfile.write(str(partial), samples, SAMPLING_RATE, subtype="PCM_16", format="WAV")
    partial.replace(path)


__all__ = ["TEST_SPEAKER", "TEST_TAKES", "Utterance", "degrade", "digit_takes", "human_utterance", "record"]
