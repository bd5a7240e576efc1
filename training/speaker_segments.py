"""Recordings of known speakers as crops of one length with noise: the training data of speaker encoders."""

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from ..configuration.configuration_campplus import CamPPlusConfig
from ..modeling.audio_features import centred_kaldi_fbank
from .example_checks import recording_sizes
from .example_columns import RowProblems
from .recording_segments import RecordingSegments, load_row
from .speech_augmentation import coloured_noise

TRAINING_PEAK = (-20.0, -1.0)  # dB of full scale
NOISE_TILT = (0.0, 2.0)  # power falls with this power of the frequency: from white to brown
MIN_SECONDS = 0.045  # three frames of 25 ms every 10 ms, the least that CAM++ takes


def speaker_names(rows: Iterable[Mapping[str, Any]], known: Sequence[str] = ()) -> list[str]:
    """The names of the speakers of `rows`: first those of `known`, then the others, sorted."""
    return [*known, *sorted({row["speaker"] for row in rows} - set(known))]


def check_speaker_rows(
    rows: Sequence[Mapping[str, Any]],
    sampling_rate: int = 16000,
    min_seconds: float = 0.5,
    resample: bool = False,
    channel: int | None = None,
    decode: bool = True,
    pairs: bool = False,
) -> None:
    """
    Check rows with `audio` and the name of a `speaker`, as [`SpeakerSegments`] takes them.

    Args:
        rows: the rows; `source`, if any, names them in errors.
        sampling_rate: wanted, in Hz.
        min_seconds: length of the shortest accepted recording.
        resample, channel, decode: see [`~training.example_checks.check_recording_rows`].
        pairs: whether there must be pairs of one speaker and pairs of two, as the equal error rate needs them.

    Raises:
        ValueError: with the first 20 of the bad rows and their number: a recording that is missing, cannot be read, is
            too short, or has another rate or other channels; a speaker that is missing or no name. Or fewer than two
            speakers, no rows at all, or no `pairs`.
    """
    problems, counts = RowProblems("rows"), Counter()
    for row, size in recording_sizes(rows, sampling_rate, resample, channel, decode):
        found = []
        if isinstance(size, ValueError):
            found.append(str(size))
        elif size[0] / size[1] < min_seconds:
            found.append(
                f"`audio` has {size[0] / size[1]:.3f} s; at least {min_seconds} s (`min_seconds`) are accepted"
            )
        speaker = row.get("speaker")
        if not isinstance(speaker, str) or not speaker.strip() or os.path.isfile(speaker):
            found.append(f"`speaker` must be the name of who speaks (a text that is no file), got {speaker!r:.80}")
        else:
            counts[speaker] += 1
        problems.add_row(row, found)
    problems.raise_if_any()
    if len(counts) < 2:
        raise ValueError(f"`rows` must hold two speakers at least, got {sorted(counts)}")
    if pairs and max(counts.values()) < 2:
        raise ValueError("`rows` hold one recording of each speaker; the equal error rate needs pairs of one speaker")


class SpeakerSegments(RecordingSegments):
    """
    Recording rows as `input_features [F, bins]`, as [`KaldiFbankFeatureExtractor`] makes them, and `labels []`; put
    together by `collate_speakers`.

    In training a random crop of `num_samples` is cut out (a shorter recording is repeated); to some crops noise is added
    at a random ratio, a crop of one of `noise_rows` or, without any, noise with a spectrum of random slope; then the
    crop is scaled so that its peak lies at a random level from -20 to -1 dB of full scale. In evaluation recordings are
    whole and as they are.

    What is drawn can be repeated: see [`RecordingSegments`].

    Args:
        rows: with `audio`, what [`load_audio`] reads, and `speaker`, a name.
        config: of the encoder, with the rate of the recordings.
        speakers: names in the order of their labels; all of `rows` among them, see `speaker_names`.
        num_samples: of a crop; `None` for evaluation.
        min_seconds: length of the shortest accepted recording.
        noise_probability: of a crop.
        snr: lowest and highest ratio of speech to noise in dB.
        noise_rows: recordings of noise, with `audio` each.
        seed: of the draws.
        resample: convert recordings of another rate instead of refusing them.
        channel: which channel to take of recordings that have several, instead of refusing them.

    Raises:
        ValueError: no rows, an unknown speaker, an argument out of range; on access, a row that cannot be read or is too
            short, with its place.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        config: CamPPlusConfig,
        speakers: Sequence[str],
        num_samples: int | None = None,
        min_seconds: float = 0.5,
        noise_probability: float = 0.5,
        snr: tuple[float, float] = (0.0, 15.0),
        noise_rows: Sequence[Mapping[str, Any]] | None = None,
        seed: int = 0,
        resample: bool = False,
        channel: int | None = None,
    ):
        super().__init__(rows, config.sampling_rate, num_samples is not None, seed, resample, channel)
        least = math.ceil(MIN_SECONDS * config.sampling_rate)
        if num_samples is not None and num_samples < least:
            raise ValueError(f"`num_samples` must be at least {least}, got {num_samples}")
        if min_seconds < MIN_SECONDS:
            raise ValueError(f"`min_seconds` must be at least {MIN_SECONDS}, got {min_seconds}")
        if not 0 <= noise_probability <= 1:
            raise ValueError(f"`noise_probability` must be from 0 to 1, got {noise_probability}")
        if not snr[0] <= snr[1]:
            raise ValueError(f"`snr` must be the lowest and the highest ratio in dB, got {snr}")
        labels = {name: label for label, name in enumerate(speakers)}
        if unknown := {row.get("speaker") for row in rows} - set(labels):
            raise ValueError(f"`speakers` must hold all of `rows`; {sorted(map(str, unknown))[:10]} are missing")
        self.labels = [labels[row["speaker"]] for row in rows]
        self.num_mel_bins = config.num_mel_bins
        self.noise_rows, self.num_samples, self.min_seconds = noise_rows, num_samples, min_seconds
        self.noise_probability, self.snr = noise_probability, snr

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        audio = self.load(index)
        if len(audio) < self.min_seconds * self.sampling_rate:
            raise ValueError(
                f"{self.rows[index].get('source', f'row {index}')}: `audio` has {len(audio) / self.sampling_rate:.3f} s; at "
                f"least {self.min_seconds} s (`min_seconds`) are accepted"
            )
        if self.training:
            draw = self.generator(index)
            audio = self._augmented(_crop(audio, self.num_samples, draw), draw)
        waveform = torch.from_numpy(audio)[None]
        features, _ = centred_kaldi_fbank(waveform, None, self.num_mel_bins, self.sampling_rate)
        return {"input_features": features[0], "labels": torch.tensor(self.labels[index])}

    def _augmented(self, crop: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        level = draw.uniform(*TRAINING_PEAK)
        if draw.random() < self.noise_probability:
            ratio = draw.uniform(*self.snr)
            noise = self._noise(len(crop), draw)
            power = np.square(noise).mean()
            scale = (np.square(crop).mean() / power / 10 ** (ratio / 10)) ** 0.5 if power > 0 else 0.0
            crop = crop + np.float32(scale) * noise
        peak = np.abs(crop).max()
        return crop * np.float32(10 ** (level / 20) / peak if peak > 0 else 1.0)

    def _noise(self, num_samples: int, draw: np.random.Generator) -> np.ndarray:
        if self.noise_rows is not None:
            place = int(draw.integers(len(self.noise_rows)))
            noise = load_row(self.noise_rows[place], place, self.sampling_rate, self.resample, self.channel)
            return _crop(noise, num_samples, draw)
        return coloured_noise(num_samples, draw.uniform(*NOISE_TILT), draw).numpy()


def _crop(audio: np.ndarray, num_samples: int, draw: np.random.Generator) -> np.ndarray:
    start = int(draw.integers(max(0, len(audio) - num_samples) + 1))
    # a recording that is too short starts again
    return np.resize(audio, num_samples) if len(audio) < num_samples else audio[start : start + num_samples]


def collate_speakers(examples: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Rows of [`SpeakerSegments`] as a batch for [`SpeakerEncoderForTraining`]: `input_features [B, F, bins]`, zero behind
    the end of shorter rows, `attention_mask [B, F]` and `labels [B]`."""
    features = [example["input_features"] for example in examples]
    ones = [torch.ones(len(feature), dtype=torch.long) for feature in features]
    return {
        "input_features": pad_sequence(features, batch_first=True),
        "attention_mask": pad_sequence(ones, batch_first=True),
        "labels": torch.stack([example["labels"] for example in examples]),
    }


__all__ = ["SpeakerSegments", "check_speaker_rows", "collate_speakers", "speaker_names"]
