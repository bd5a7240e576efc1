"""Log-mel features of 30-second pieces, the input of the speech encoder of MOSS-Speech and of GLM-4-Voice."""

import os
from typing import Any

import numpy as np
import torch
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import PaddingStrategy, TensorType

from ..modeling.audio_features import WHISPER_HOP_LENGTH, WHISPER_N_FFT, WHISPER_SAMPLING_RATE, log_mel_spectrogram
from .audio import read_audio, resample_audio
from .row_inputs import is_one_recording


class MossSpeechFeatureExtractor(SequenceFeatureExtractor):
    """
    Cuts recordings into pieces of 30 s and takes the features that `WhisperFeatureExtractor(feature_size=128)` takes of
    each piece, padded with zeros to a whole number of codes.

    The released code pads the waveforms of a batch to the longest one first, so that the last frames of a recording of
    a whole number of codes depend on the batch (zeros or reflected samples behind it). Here every piece has the
    features that it has alone. Nothing is resampled silently: a recording at another rate is an error unless
    `resample=True`. Released preprocessor files of both systems can be loaded.

    Args:
        feature_size (`int`, *optional*, defaults to 128): number of mel bins.
        sampling_rate (`int`, *optional*, defaults to 16000): rate in Hz of the samples; only 16000.
        padding_value (`float`, *optional*, defaults to 0.0): feature behind the end of a shorter piece, masked.
        chunk_length (`int`, *optional*, defaults to 30): seconds of a piece.
        samples_per_code (`int`, *optional*, defaults to 1280): samples that the model turns into one code.
        hop_length, n_fft (`int`, *optional*): samples between frames and of a frame; only 160 and 400.
        dither (`float`, *optional*): only 0.0.

    Example:

    ```python
    >>> import numpy as np
    >>> from dualspeech import MossSpeechFeatureExtractor

    >>> batch = MossSpeechFeatureExtractor()([np.zeros(16000), np.zeros(500000)], sampling_rate=16000)
    >>> batch["input_features"].shape, batch["num_pieces"].tolist()
    ((3, 128, 3000), [1, 2])
    ```
    """

    model_input_names = ["input_features", "attention_mask"]

    def __init__(
        self,
        feature_size: int = 128,
        sampling_rate: int = WHISPER_SAMPLING_RATE,
        padding_value: float = 0.0,
        chunk_length: int = 30,
        samples_per_code: int = 1280,
        hop_length: int = WHISPER_HOP_LENGTH,
        n_fft: int = WHISPER_N_FFT,
        dither: float = 0.0,
        **kwargs,
    ):
        for name in ("n_samples", "nb_max_frames"):  # in released files, and derived from the rest
            kwargs.pop(name, None)
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        fixed = {
            "sampling_rate": (sampling_rate, WHISPER_SAMPLING_RATE),
            "hop_length": (hop_length, WHISPER_HOP_LENGTH),
            "n_fft": (n_fft, WHISPER_N_FFT),
            "dither": (dither, 0.0),
            "padding_side": (self.padding_side, "right"),
        }
        for name, (given, accepted) in fixed.items():
            if given != accepted:
                raise ValueError(f"`{name}` must be {accepted!r}, got {given!r}")
        if samples_per_code <= 0 or samples_per_code % hop_length:
            raise ValueError(f"`samples_per_code` must be a positive multiple of {hop_length}, got {samples_per_code}")
        if chunk_length <= 0 or chunk_length * sampling_rate % samples_per_code:
            raise ValueError(
                f"`chunk_length` must be positive seconds that hold a whole number of codes of {samples_per_code} "
                f"samples at {sampling_rate} Hz, got {chunk_length}"
            )
        self.chunk_length = chunk_length
        self.samples_per_code = samples_per_code
        self.hop_length = hop_length
        self.n_fft = n_fft
        self.dither = dither

    @property
    def max_samples(self) -> int:
        """Samples of a whole piece."""
        return int(self.chunk_length * self.sampling_rate)

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        resample: bool = False,
        padding: bool | str | PaddingStrategy = True,
        max_length: int | None = None,
        truncation: bool | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | TensorType | None = None,
    ) -> BatchFeature:
        """
        Args:
            raw_speech: one recording or a list of them, each in any form that [`~processing.audio.load_audio`] reads.
            sampling_rate (`int`, *optional*): rate in Hz of the bare arrays among them; everything else says its own.
            resample (`bool`, *optional*, defaults to `False`): convert recordings that have another rate than 16 kHz.
            padding, max_length, pad_to_multiple_of: as everywhere in transformers, in frames of 10 ms; with
                `padding="max_length"` every piece gets the frames of a whole one.
            truncation: must not be true; nothing is cut off.
            return_tensors (`str`, *optional*): `"pt"` or `"np"`.

        Returns:
            `input_features` float32 `[P, feature_size, F]` and `attention_mask` `[P, F]` (1 on frames that begin inside
            the recording) of the P pieces of all recordings, one after the other; `num_pieces [B]` and `num_samples [B]`
            (at 16 kHz) of each recording. The model's `encode` takes the first three.

        Raises:
            ValueError: another rate, several channels, no samples, samples that are NaN or infinite; `truncation`.
        """
        if truncation:
            raise ValueError("`truncation` is not supported: recordings are never cut off")
        recordings = [raw_speech] if is_one_recording(raw_speech) else list(raw_speech)
        if not recordings:
            raise ValueError("`raw_speech` is an empty list; at least one recording is needed")
        pieces, num_pieces, num_samples = [], [], []
        for number, source in enumerate(recordings):
            place = f" (recording {number} of {len(recordings)})" if len(recordings) > 1 else ""
            samples = torch.from_numpy(self._read(source, sampling_rate, resample, place))
            parts = samples.split(self.max_samples)
            pieces.extend(parts)
            num_pieces.append(len(parts))
            num_samples.append(len(samples))
        padded = self.pad(
            BatchFeature({"input_features": [self._features(piece) for piece in pieces]}),
            padding=padding,
            max_length=self.max_samples // self.hop_length if max_length is None else max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=False,
        )["input_features"]
        masks = [
            (np.arange(len(rows)) < -(-len(piece) // self.hop_length)).astype(np.int64)
            for rows, piece in zip(padded, pieces, strict=True)
        ]
        features = [np.ascontiguousarray(np.asarray(rows, dtype=np.float32).T) for rows in padded]
        if len({len(mask) for mask in masks}) == 1:
            features, masks = np.stack(features), np.stack(masks)
        data = {
            "input_features": features,
            "attention_mask": masks,
            "num_pieces": np.array(num_pieces),
            "num_samples": np.array(num_samples),
        }
        return BatchFeature(data, tensor_type=return_tensors)

    def fetch_audio(self, audio: Any, sampling_rate: int | None = None) -> Any:
        """Leave recordings as they are (the pipelines call this): files are read, with all checks, by `__call__`."""
        return audio

    def _read(self, source: Any, array_rate: int | None, resample: bool, place: str) -> np.ndarray:
        array, rate = read_audio(source, array_rate)
        if rate != self.sampling_rate and not resample:
            name = f" {os.fspath(source)!r}" if isinstance(source, str | os.PathLike) else ""
            raise ValueError(
                f"`audio`{name}{place} has a sampling rate of {rate} Hz; accepted is {self.sampling_rate} Hz here. Pass "
                "`resample=True` to convert it"
            )
        return resample_audio(array, rate, self.sampling_rate)

    def _features(self, piece: torch.Tensor) -> np.ndarray:
        """`[frames, feature_size]` of one piece, the frames of a whole number of codes."""
        frames = -(-len(piece) // self.samples_per_code) * (self.samples_per_code // self.hop_length)
        return log_mel_spectrogram(piece, self.feature_size, frames).T.numpy()


__all__ = ["MossSpeechFeatureExtractor"]
