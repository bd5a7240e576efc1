"""Recordings as batches of samples, at the rate of the semantic tokenizer and at the rate of the codec."""

import os
from typing import Any

import numpy as np
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import TensorType

from .audio import read_audio, resample_audio
from .row_inputs import is_one_recording


class DualSpeechFeatureExtractor(SequenceFeatureExtractor):
    """Checks recordings and pads them to batches for [`DualTokenizerModel`].

    Nothing is resampled silently: a recording at another rate than the needed one is an error unless `resample=True`.
    The one conversion that needs no flag is down from `codec_sampling_rate` to `sampling_rate`, as every target of
    speech output needs both.

    Args:
        feature_size (`int`, *optional*, defaults to 1): always 1, raw mono samples.
        sampling_rate (`int`, *optional*, defaults to 16000): rate in Hz that the semantic tokenizer and the speaker
            encoder read.
        padding_value (`float`, *optional*, defaults to 0.0): sample behind the end of a shorter recording.
        codec_sampling_rate (`int`, *optional*, defaults to 24000): rate in Hz that the codec reads.
        min_seconds (`float`, *optional*, defaults to 0.1): shorter recordings are refused. The released code pads
            everything to one second with silence instead, and encodes the silence.
        max_seconds (`float`, *optional*, defaults to 30.0): longer ones are refused; 30 s is what Whisper's encoder
            sees. The released code cuts them.
    """

    model_input_names = ["input_values", "num_samples"]

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 16000,
        padding_value: float = 0.0,
        codec_sampling_rate: int = 24000,
        min_seconds: float = 0.1,
        max_seconds: float = 30.0,
        **kwargs,
    ):
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        if not 0 < min_seconds <= max_seconds:
            raise ValueError(
                f"`min_seconds` and `max_seconds` must be 0 < min <= max, got {min_seconds} and {max_seconds}"
            )
        self.codec_sampling_rate = codec_sampling_rate
        self.min_seconds = min_seconds
        self.max_seconds = max_seconds

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        resample: bool = False,
        return_input_values: bool = True,
        return_codec_values: bool = False,
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | TensorType | None = None,
    ) -> BatchFeature:
        """
        Args:
            raw_speech: one recording or a list of them, each in any form that [`~processing.audio.load_audio`] reads.
            sampling_rate (`int`, *optional*): rate in Hz of the bare arrays among them; everything else says its own.
            resample (`bool`, *optional*, defaults to `False`): convert recordings that have another rate.
            return_input_values (`bool`, *optional*, defaults to `True`): samples at `self.sampling_rate`.
            return_codec_values (`bool`, *optional*, defaults to `False`): samples at `self.codec_sampling_rate`.
            padding, max_length, pad_to_multiple_of: as everywhere in transformers; lengths in samples.
            truncation: must not be true; nothing is cut.
            return_tensors (`str`, *optional*): `"pt"` or `"np"`.

        Returns:
            `input_values` float32 `[B, S]` and `num_samples` int `[B]`; `codec_values` `[B, Sc]` and
            `num_codec_samples` `[B]`, when asked for.

        Raises:
            ValueError: see [`~processing.audio.load_audio`]; also when a recording is too short or too long.
        """
        if truncation:
            raise ValueError("`truncation` is not supported: recordings are never cut")
        recordings = [raw_speech] if is_one_recording(raw_speech) else list(raw_speech)
        if not recordings:
            raise ValueError("`raw_speech` is an empty list; at least one recording is needed")
        accepted = self._accepted_rates(return_codec_values)
        sources, recordings = recordings, []
        for number, source in enumerate(sources):
            array, rate = read_audio(source, sampling_rate)
            name = f" {os.fspath(source)!r}" if isinstance(source, str | os.PathLike) else ""
            place = f" (recording {number} of {len(sources)})" if len(sources) > 1 else ""
            self._check_recording(f"`audio`{name}{place}", array, rate, None if resample else accepted)
            recordings.append((array, rate))
        wanted = {
            ("input_values", "num_samples"): (return_input_values, self.sampling_rate),
            ("codec_values", "num_codec_samples"): (return_codec_values, self.codec_sampling_rate),
        }
        data = {}
        for (values_name, lengths_name), (is_wanted, rate) in wanted.items():
            if not is_wanted:
                continue
            values = [resample_audio(array, old_rate, rate) for array, old_rate in recordings]
            data[lengths_name] = np.array([len(value) for value in values])
            data[values_name] = self.pad(
                BatchFeature({"input_values": values}),
                padding=padding,
                max_length=max_length,
                pad_to_multiple_of=pad_to_multiple_of,
                return_attention_mask=False,
            )["input_values"]
        return BatchFeature(data, tensor_type=return_tensors)

    def fetch_audio(self, audio: Any, sampling_rate: int | None = None) -> Any:
        """Leave recordings as they are (the pipelines call this): files are read, with all checks, by `__call__`."""
        return audio

    def _accepted_rates(self, needs_codec_values: bool) -> tuple[int, ...]:
        """Rates that need no `resample=True`: the needed ones, and down from the codec's."""
        if needs_codec_values:
            return (self.codec_sampling_rate,)
        return tuple(sorted({self.sampling_rate, max(self.sampling_rate, self.codec_sampling_rate)}))

    def _check_recording(self, name: str, array: np.ndarray, rate: int, accepted: tuple[int, ...] | None) -> None:
        seconds = len(array) / rate
        if not self.min_seconds <= seconds <= self.max_seconds:
            raise ValueError(
                f"{name} is {seconds:.3f} s long; accepted are {self.min_seconds} s to {self.max_seconds} s"
            )
        if accepted is not None and rate not in accepted:
            raise ValueError(
                f"{name} has a sampling rate of {rate} Hz; accepted are {' and '.join(map(str, accepted))} Hz here. Pass "
                "`resample=True` to convert it"
            )


__all__ = ["DualSpeechFeatureExtractor"]
