"""A synthesizer for a tiny world, in which every letter, and the space too, is a tone of its own. It starts in a moment.

python examples/tiny_letter_speech.py "one red house" soft speech.wav
"""

import sys

import numpy as np
import soundfile

RATE = 16000
SYMBOLS = "abcdefghijklmnopqrstuvwxyz "
PITCHES = 500 * 1.1 ** np.arange(len(SYMBOLS))  # in Hz
TONE_SECONDS, GAP_SECONDS = 0.08, 0.063
VOICES = {"soft": 0.15, "loud": 0.3}  # amplitudes of a tone
BLANK = 0  # the token between tones; that of a symbol is its place, from 1


def letter_speech(text: str, voice: str = "soft") -> tuple[np.ndarray, np.ndarray]:
    """Mono float32 samples at 16 kHz, and the token of each sample. What is no symbol is not spoken."""
    time = np.arange(round(TONE_SECONDS * RATE)) / RATE
    fade = np.minimum(1.0, np.minimum(time, time[::-1]) / 0.01)
    gap = np.zeros(round(GAP_SECONDS * RATE))
    samples, tokens = [gap], [np.full(len(gap), BLANK)]
    for symbol in text.lower():
        if symbol in SYMBOLS:
            place = SYMBOLS.index(symbol)
            samples += [VOICES[voice] * fade * np.sin(2 * np.pi * PITCHES[place] * time), gap]
            tokens += [np.full(len(time), place + 1), np.full(len(gap), BLANK)]
    return np.concatenate(samples).astype(np.float32), np.concatenate(tokens)


if __name__ == "__main__":
    soundfile.write(sys.argv[3], letter_speech(*sys.argv[1:3])[0], RATE)
