"""Where streamed speech goes: a WAV file that grows, and the loudspeaker if the optional `sounddevice` is installed."""

import queue
import threading
import time
from pathlib import Path

import numpy as np
import soundfile
import torch


class Player:
    """Plays pieces of sound in a thread of its own; does nothing where there is no `sounddevice` or no loudspeaker."""

    def __init__(self, rate: int):
        self.pieces: queue.Queue = queue.Queue()
        self.thread = None
        try:
            import sounddevice  # also needs the PortAudio library

            self.stream = sounddevice.OutputStream(samplerate=rate, channels=1, dtype="float32")
        except ImportError:
            return
        except Exception as error:  # PortAudio missing, or no device: the file is written all the same
            print(f"[no sound: {error}]")
            return
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        with self.stream:
            while (piece := self.pieces.get()) is not None:
                self.stream.write(piece[:, None])

    def play(self, piece: np.ndarray):
        if self.thread is not None:
            self.pieces.put(piece)

    def close(self, at_once: bool = False):
        """Wait until everything is played; with `at_once` only for the piece that is playing."""
        if self.thread is None:
            return
        while at_once and not self.pieces.empty():
            self.pieces.get()
        self.pieces.put(None)
        self.thread.join()


class SpeechOutput:
    """Pieces of a waveform `[n]` at `rate` Hz, written to `path` (16-bit PCM, made with the first piece) and played.

    `first_time` is the `time.perf_counter()` of the first samples, and `gapless_time` the earliest one at which playing
    could have begun without running dry later, as far as is known; both are `None` before the first samples.
    """

    def __init__(self, path: Path, rate: int, play: bool = True):
        self.path, self.rate = path, rate
        self.player = Player(rate) if play else None
        self.pieces: list[np.ndarray] = []
        self.first_time: float | None = None
        self.gapless_time: float | None = None
        self.file: soundfile.SoundFile | None = None

    def write(self, samples: torch.Tensor):
        if not len(samples):
            return
        piece = samples.float().cpu().numpy()
        now = time.perf_counter()
        if self.file is None:
            self.first_time = self.gapless_time = now
            self.file = soundfile.SoundFile(self.path, "w", samplerate=self.rate, channels=1, subtype="PCM_16")
        self.gapless_time = max(self.gapless_time, now - sum(map(len, self.pieces)) / self.rate)
        if self.player is not None:
            self.player.play(piece)
        self.file.write(piece)
        self.file.flush()  # so that others can read along
        self.pieces.append(piece)

    @property
    def audio(self) -> np.ndarray | None:
        """Everything so far, float32 `[S]`; `None` before the first samples."""
        return np.concatenate(self.pieces) if self.pieces else None

    def close(self, at_once: bool = False):
        if self.file is not None:
            self.file.close()
        if self.player is not None:
            self.player.close(at_once)
