"""Whose voice is it? The nearest of the voices of the micro-language, by speaker vectors that are not ours (resemblyzer)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from nano_recognizer import at_rate
from nano_voices import SAMPLING_RATE


def load_encoder() -> Any:
    """
    The speaker encoder of resemblyzer, on the CPU.

    Raises:
        ImportError: it, or what it needs, is not installed; the message says what to install.
    """
    try:
        from resemblyzer import VoiceEncoder
    except ImportError as error:
        # webrtcvad, which resemblyzer asks for, needs pkg_resources, which newer versions of setuptools have not.
        raise ImportError(
            f"speaker vectors need resemblyzer, with webrtcvad-wheels in place of webrtcvad ({error}): "
            "pip install webrtcvad-wheels librosa scipy && pip install --no-deps resemblyzer"
        ) from error
    return VoiceEncoder("cpu", verbose=False)


class SpeakerId:
    """
    Nearest voice by cosine to the mean vector of recordings of each voice.

    Args:
        references: per voice some recordings, float `[S]` at `rate` Hz.
        rate: of the references.
        encoder: gives a vector for samples at 16 kHz with `embed_utterance`; that of resemblyzer by default.

    Raises:
        ValueError: no voices, or one without recordings.
        ImportError: resemblyzer is not installed.
    """

    def __init__(self, references: Mapping[str, Sequence[np.ndarray]], rate: int = SAMPLING_RATE, encoder: Any = None):
        if empty := [voice for voice, recordings in references.items() if not len(recordings)]:
            raise ValueError(f"`references` has no recordings of {', '.join(empty)}")
        if not references:
            raise ValueError("`references` is empty; recordings of at least one voice are needed")
        self.encoder = load_encoder() if encoder is None else encoder
        means = {
            voice: np.mean([self.embed(samples, rate) for samples in recordings], axis=0)
            for voice, recordings in references.items()
        }
        self.centres = {voice: mean / np.linalg.norm(mean) for voice, mean in means.items()}

    def embed(self, samples: np.ndarray, rate: int = SAMPLING_RATE) -> np.ndarray:
        """The vector of a recording, float32 `[256]`, of length 1."""
        samples = at_rate(samples, rate)
        peak = np.abs(samples).max(initial=0)
        return self.encoder.embed_utterance(samples * (0.9 / peak) if peak else samples)

    def __call__(self, samples: np.ndarray, rate: int = SAMPLING_RATE) -> str:
        """The name of the nearest voice."""
        vector = self.embed(samples, rate)
        return max(self.centres, key=lambda voice: float(self.centres[voice] @ vector))


__all__ = ["SpeakerId", "load_encoder"]
