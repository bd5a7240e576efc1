"""Kaldi filter banks of 16 kHz speech, the input of the speaker encoder CAM++."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import BatchFeature
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.utils import PaddingStrategy, TensorType

from ..modeling.audio_features import centred_kaldi_fbank, num_kaldi_frames


class KaldiFbankFeatureExtractor(SequenceFeatureExtractor):
    """
    Turns waveforms into log mel filter banks (25 ms every 10 ms, no dither), minus their mean over the utterance.

    The mean is subtracted before padding, so a batch holds the features of the single utterances.

    Args:
        feature_size (`int`): number of mel bins.
        sampling_rate (`int`): rate in Hz that the audio must have; mel bins reach from 20 Hz to half of it.
        padding_value (`float`): value behind the end of shorter rows.
    """

    model_input_names = ["input_features", "attention_mask"]

    def __init__(
        self, feature_size: int = 80, sampling_rate: int = 16000, padding_value: float = 0.0, **kwargs
    ) -> None:
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)

    def __call__(
        self,
        raw_speech: np.ndarray | torch.Tensor | Sequence,
        sampling_rate: int | None = None,
        padding: bool | str | PaddingStrategy = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | TensorType | None = None,
    ) -> BatchFeature:
        """
        Args:
            raw_speech: one mono waveform `[S]`, or a batch as `[B, S]` or as a sequence of waveforms: floating point
                arrays, tensors or lists with samples in [-1, 1].
            sampling_rate (`int`): rate of the waveforms in Hz; must be given, and be that of the extractor.
            padding, max_length, truncation, pad_to_multiple_of, return_attention_mask: as in
                [`~transformers.SequenceFeatureExtractor.pad`], in frames of 10 ms.
            return_tensors (`str`, *optional*): `"pt"` or `"np"`.

        Returns:
            `BatchFeature`: `input_features [B, F, feature_size]` float32 and `attention_mask [B, F]`.

        Raises:
            ValueError: another sampling rate, several channels, less than one frame (25 ms), integer samples, samples
                that are not finite.
        """
        if sampling_rate != self.sampling_rate:
            raise ValueError(
                f"sampling_rate must be given and be {self.sampling_rate} Hz, got {sampling_rate}; resample the audio first"
            )
        features = [self._features(waveform, row) for row, waveform in enumerate(self._rows(raw_speech))]
        return self.pad(
            BatchFeature({"input_features": features}),
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=return_attention_mask,
            return_tensors=return_tensors,
        )

    @staticmethod
    def _rows(raw_speech) -> list:
        if isinstance(raw_speech, (np.ndarray, torch.Tensor)):
            return [raw_speech] if raw_speech.ndim == 1 else list(raw_speech)
        if len(raw_speech) == 0:
            raise ValueError("raw_speech is empty; give a waveform or a batch of waveforms")
        return [raw_speech] if np.ndim(raw_speech[0]) == 0 else list(raw_speech)

    def _features(self, waveform, row: int) -> np.ndarray:
        waveform = torch.as_tensor(waveform).detach().cpu()
        if waveform.ndim != 1:
            raise ValueError(f"raw_speech[{row}] must be mono, [samples], got shape {tuple(waveform.shape)}")
        if num_kaldi_frames(len(waveform), self.sampling_rate) == 0:
            raise ValueError(
                f"raw_speech[{row}] has {len(waveform)} samples; one frame of 25 ms is the least accepted"
            )
        if not waveform.is_floating_point():
            raise ValueError(f"raw_speech[{row}] must be floating point in [-1, 1], got {waveform.dtype}")
        if not bool(waveform.isfinite().all()):
            raise ValueError(f"raw_speech[{row}] has NaN or infinite samples")
        features, _ = centred_kaldi_fbank(waveform.float()[None], None, self.feature_size, self.sampling_rate)
        return features[0].numpy()


__all__ = ["KaldiFbankFeatureExtractor"]
