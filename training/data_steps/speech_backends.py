"""Speech synthesizers behind one small interface: a command, a model of transformers, or DualSpeechLM."""

import errno
import hashlib
import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor, pipeline

from ...processing.audio import load_audio
from .model_step import default_device, load_model, loaded


class SpeechBackend(ABC):
    """
    A synthesizer: text and speaker to a waveform. A dataclass of JSON values, as a step is; `setup` loads what cannot be
    pickled.
    """

    # Fields that do not change what is spoken.
    not_settings: tuple[str, ...] = ("device",)

    def setup(self) -> None:  # noqa: B027  (optional)
        """Load what cannot be pickled. Called once in each process."""

    @abstractmethod
    def synthesize(self, text: str, speaker: str | None) -> tuple[np.ndarray, int]:
        """
        The waveform of `text`, float32 `[S]`, and its rate in Hz. The same text and speaker give the same waveform, as
        far as that is in the hands of the backend (some voices of espeak-ng have noise of their own).

        Raises:
            ValueError: a text or speaker that cannot be spoken.
        """

    def settings(self) -> dict[str, Any]:
        """What decides how it speaks, as JSON values."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        kept = {name: value for name, value in values.items() if name not in self.not_settings}
        return {"backend": type(self).__name__, **kept}

    def __getstate__(self) -> dict[str, Any]:
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}


@dataclass
class CommandBackend(SpeechBackend):
    """
    Any program that writes an audio file, espeak-ng by default.

    Args:
        command (`list[str]`, *optional*): program and arguments, run without a shell. `{text}`, `{speaker}` and
            `{output}` (the path of a WAV file) are filled in; without `{text}` the text comes on the standard input.
        default_speaker (`str`, *optional*, defaults to `"en"`): for texts without a speaker.
        timeout_seconds (`float`, *optional*, defaults to 120.0): of one call.
    """

    command: list[str] = field(
        default_factory=lambda: ["espeak-ng", "-v", "{speaker}", "-w", "{output}", "--", "{text}"]
    )
    default_speaker: str | None = "en"
    timeout_seconds: float = 120.0

    not_settings = ("timeout_seconds",)

    def setup(self) -> None:
        if not any("{output}" in argument for argument in self.command):
            raise ValueError(f"`command` must have an argument with '{{output}}', got {self.command}")
        if shutil.which(self.command[0]) is None:
            raise ValueError(f"`command`: the program {self.command[0]!r} is not installed")

    def synthesize(self, text: str, speaker: str | None) -> tuple[np.ndarray, int]:
        speaker = self.default_speaker if speaker is None else speaker
        if speaker is None and any("{speaker}" in argument for argument in self.command):
            raise ValueError("`command` asks for a speaker, but there is neither one nor a `default_speaker`")
        if "\0" in text:
            raise ValueError(f"`text` has a null character: {text!r:.80}")
        with tempfile.TemporaryDirectory() as folder:
            output = str(Path(folder) / "speech.wav")
            # One pass per argument: a text may itself contain "{speaker}".
            values = {"{text}": text, "{speaker}": speaker or "", "{output}": output}
            command = [_filled(argument, values) for argument in self.command]
            given = None if any("{text}" in argument for argument in self.command) else text.encode()
            try:
                done = subprocess.run(command, input=given, capture_output=True, timeout=self.timeout_seconds)
            except subprocess.TimeoutExpired as error:
                raise ValueError(f"{self.command[0]!r} took more than {self.timeout_seconds} s") from error
            except OSError as error:
                if error.errno != errno.E2BIG:
                    raise
                raise ValueError(
                    f"`text` of {len(text)} characters is too long for an argument of a program"
                ) from error
            said = done.stderr.decode("utf-8", "replace").strip()
            if done.returncode or not Path(output).is_file():
                raise ValueError(f"{self.command[0]!r} ended with {done.returncode} and no recording: {said:.300}")
            return load_audio(output)


def _filled(argument: str, values: dict[str, str]) -> str:
    """`argument` with its placeholders filled in."""
    for name, value in values.items():
        if name in argument:
            before, _, behind = argument.partition(name)
            return _filled(before, values) + value + _filled(behind, values)
    return argument


@dataclass
class TransformersBackend(SpeechBackend):
    """
    Any model of the text-to-audio pipeline: an `AutoModelForTextToWaveform` such as VITS or Bark.

    Args:
        checkpoint (`str`): folder or Hub id.
        speaker_parameter (`str`, *optional*): the argument of the model's `forward` that takes the speaker, such as
            `"speaker_id"` of VITS; whole numbers are passed as such. Without it, rows with a speaker are refused.
        forward_params (`dict`, *optional*): further arguments of `forward`, or of `generate` where there is one.
        seed (`int`, *optional*, defaults to 0): what is drawn follows from it, the text and the speaker.
        device, dtype: see [`ModelStep`].
    """

    checkpoint: str
    speaker_parameter: str | None = None
    forward_params: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str | None = None
    dtype: str = "auto"

    _pipeline = None

    def setup(self) -> None:
        device = default_device(self.device)
        self._pipeline = pipeline("text-to-audio", self.checkpoint, device=device, dtype=self.dtype)

    def synthesize(self, text: str, speaker: str | None) -> tuple[np.ndarray, int]:
        speak, parameters = loaded(self._pipeline, self), dict(self.forward_params)
        if speaker is not None:
            if self.speaker_parameter is None:
                raise ValueError(f"the speaker {speaker!r} needs `speaker_parameter`, which is not given")
            parameters[self.speaker_parameter] = int(speaker) if speaker.isdecimal() else speaker
        with _seeded(self.seed, text, speaker):
            output = speak(text, forward_params=parameters)
        return _checked_waveform(np.atleast_1d(output["audio"])), int(output["sampling_rate"])


@dataclass
class DualSpeechBackend(SpeechBackend):
    """
    The task tts of a DualSpeechLM with its processor and audio tokenizer.

    Args:
        checkpoint (`str`): folder or Hub id.
        default_speaker (`str`, *optional*): for texts without a speaker. A speaker is the path of a recording, or the
            name of one of the processor's.
        generation (`dict`, *optional*): arguments of `generate`.
        seed (`int`, *optional*, defaults to 0): what is drawn follows from it, the text and the speaker.
        device, dtype: see [`ModelStep`].
    """

    checkpoint: str
    default_speaker: str | None = None
    generation: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str | None = None
    dtype: str = "auto"

    _model = None

    def setup(self) -> None:
        self._model = load_model(AutoModelForMultimodalLM, self.checkpoint, self.device, self.dtype)
        self._processor = AutoProcessor.from_pretrained(self.checkpoint)
        self._processor.load_audio_tokenizer(device=str(self._model.device))

    def synthesize(self, text: str, speaker: str | None) -> tuple[np.ndarray, int]:
        model = loaded(self._model, self)
        speaker = self.default_speaker if speaker is None else speaker
        inputs = self._processor(text, task="tts", speaker=speaker, resample=True).to(model.device)
        with _seeded(self.seed, text, speaker):
            output = model.generate(**inputs, **self.generation)
        result = self._processor.batch_decode(output)[0]
        if result.audio is None or result.finish_reason != "eos":
            raise ValueError(f"the speech did not come to its end (finish reason {result.finish_reason!r})")
        return _checked_waveform(result.audio), result.sampling_rate


@contextmanager
def _seeded(*values: Any) -> Iterator[None]:
    """Within, draws of torch follow from the given values; outside, nothing has been drawn."""
    seed = int.from_bytes(hashlib.sha256(repr(values).encode()).digest()[:8], "big") >> 1
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _checked_waveform(waveform: Any) -> np.ndarray:
    waveform = np.asarray(waveform, dtype=np.float32)
    if waveform.ndim != 1 or not len(waveform) or not np.isfinite(waveform).all():
        raise ValueError(f"the model gave no finite mono waveform, but {list(waveform.shape)}")
    return waveform


__all__ = ["CommandBackend", "DualSpeechBackend", "SpeechBackend", "TransformersBackend"]
