"""Recordings as examples of the flow decoder: codes, speaker vector and mel spectrogram."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..configuration.configuration_flow_decoder import FlowDecoderConfig
from ..modeling.audio_features import resample as resampled
from ..modeling.audio_features import vocoder_log_mel
from ..modeling.speaker_adapters import as_speaker_encoder
from ..processing.audio import as_array, read_audio
from .example_checks import recording_sizes
from .example_columns import RowProblems

# A code that is not whole, and a frame that the resampling adds or loses.
MAX_LENGTH_DIFFERENCE = 2


@torch.no_grad()
def encode_recordings(
    rows: Sequence[Mapping[str, Any]],
    encoder: PreTrainedModel | None = None,
    speaker_encoder: PreTrainedModel | None = None,
    sampling_rate: int = 24000,
    resample: bool = False,
    channel: int | None = None,
    batch_size: int = 8,
) -> Iterator[dict[str, Any]]:
    """
    Recording rows with their `codes` and `speaker_embeds` (lists of numbers); rows that have one already keep it.

    As for the voices of the released MOSS-Speech codec: codes are made of the recording brought directly to the rate of
    the encoder, speaker vectors of the recording at `sampling_rate` brought to the rate of the speaker encoder.

    Args:
        rows: with `audio` each: what [`read_audio`] reads.
        encoder: frozen tokenizer with `encode_waveform`, such as [`WhisperVqModel`]; `None` if all rows have codes.
        speaker_encoder: CAM++ or another `AutoModelForAudioXVector`; `None` adds no speaker vectors.
        sampling_rate: of the mel spectrograms, in Hz.
        resample: take recordings of another rate instead of refusing them.
        channel: which channel to take of recordings that have several, instead of refusing them.
        batch_size: recordings that are encoded at a time.

    Raises:
        ValueError: a row that cannot be read or encoded, with its place.
    """
    speakers = None if speaker_encoder is None else as_speaker_encoder(speaker_encoder)
    for start in range(0, len(rows), batch_size):
        batch = [dict(row) for row in rows[start : start + batch_size]]
        audio: list[tuple[Tensor, int]] = []
        for number, row in enumerate(batch, start):
            samples, rate = _located(row, number, lambda row=row: _read(row, sampling_rate, resample, channel))
            audio.append((torch.from_numpy(samples), rate))
        missing = [i for i, row in enumerate(batch) if row.get("codes") is None]
        if missing and encoder is None:
            number = start + missing[0]
            raise ValueError(f"{_place(batch[missing[0]], number)}: the row has no `codes`, and there is no `encoder`")
        if missing:
            waveforms, lengths = _padded([resampled(*audio[i], encoder.sampling_rate) for i in missing])
            encoded = encoder.encode_waveform(waveforms.to(encoder.device), lengths)
            for i, codes, mask in zip(missing, encoded.codes, encoded.codes_mask, strict=True):
                batch[i]["codes"] = codes[mask].tolist()
        missing = [i for i, row in enumerate(batch) if row.get("speaker_embeds") is None]
        if missing and speakers is not None:
            waveforms, lengths = _padded(
                [
                    resampled(resampled(*audio[i], sampling_rate), sampling_rate, speakers.sampling_rate)
                    for i in missing
                ]
            )
            for i, vector in zip(missing, speakers.embed(waveforms, lengths).float().cpu(), strict=True):
                batch[i]["speaker_embeds"] = vector.tolist()
        yield from batch


class FlowDecoderCollator:
    """
    Rows with `audio`, `codes` and `speaker_embeds` (see [`encode_recordings`]) to the arguments of [`FlowDecoderModel`]:
    `codes`, `codes_mask`, `mel` and `speaker_embeds`. Codes and mel spectrogram are cut to the shorter of the two, by
    less than two codes.

    Args:
        config: of the model.
        max_frequency: upper edge of the last mel filter in Hz.
        n_fft: window of the mel spectrogram in samples; four hops by default.
        max_seconds: longest accepted recording.
        speaker: whether rows have `speaker_embeds`; without, the model gets zeros.
        resample: take recordings of another rate instead of refusing them.
        channel: which channel to take of recordings that have several, instead of refusing them.

    Raises:
        ValueError: a row without a needed entry, a recording that cannot be read or is too short or too long, codes that
            are outside the codebook or those of another recording by their number, or a speaker vector of another size.
    """

    def __init__(
        self,
        config: FlowDecoderConfig,
        max_frequency: float = 8000.0,
        n_fft: int | None = None,
        max_seconds: float = 30.0,
        speaker: bool = True,
        resample: bool = False,
        channel: int | None = None,
    ):
        self.config, self.max_frequency = config, max_frequency
        self.n_fft = 4 * config.hop_length if n_fft is None else n_fft
        self.max_seconds, self.speaker = max_seconds, speaker
        self.resample, self.channel = resample, channel

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        pairs = [_located(row, number, lambda row=row: self._example(row)) for number, row in enumerate(rows)]
        codes, lengths = _padded([codes for codes, _ in pairs])
        mel = torch.zeros(len(pairs), self.config.num_mel_bins, self.config.upsample_ratio * codes.shape[1])
        for row, (_, frames) in enumerate(pairs):
            mel[row, :, : frames.shape[1]] = frames
        mask = torch.arange(codes.shape[1]) < lengths[:, None]
        batch = {"codes": codes, "codes_mask": mask, "mel": mel}
        if self.speaker:
            batch["speaker_embeds"] = torch.tensor([row["speaker_embeds"] for row in rows], dtype=torch.float32)
        return batch

    def check(self, rows: Iterable[Mapping[str, Any]], encoded: bool = True, decode: bool = True) -> None:
        """
        Check all rows before a training.

        Args:
            rows: the rows; `source`, if any, names them in errors.
            encoded: whether each row must have `codes` and `speaker_embeds`; otherwise those are looked at that do.
            decode: read every recording whole instead of the heads of files.

        Raises:
            ValueError: with the first 20 of the rows that cannot be trained on and their number; or no rows at all.
        """
        problems = RowProblems("rows")
        for row, size in recording_sizes(rows, self.config.sampling_rate, self.resample, self.channel, decode):
            found = list(self._entry_problems(row, encoded))
            if isinstance(size, ValueError):
                found += [str(size)]
            elif not found:
                found += self._length_problems(row, *size)
            problems.add_row(row, found)
        problems.raise_if_any()

    def _entry_problems(self, row: Mapping[str, Any], encoded: bool = True) -> Iterator[str]:
        for name in ("codes", *(["speaker_embeds"] if self.speaker else [])) if encoded else ():
            if row.get(name) is None:
                yield f"the row has no `{name}`; it has {sorted(row)}"
        codes, vector = _numbers(row.get("codes")), _numbers(row.get("speaker_embeds"))
        if codes is not None:
            if codes.ndim != 1 or (codes.size and codes.dtype.kind not in "iu"):
                yield f"`codes` are {str(row['codes'])[:80]}; accepted is a list of whole numbers"
            elif codes.size and not 0 <= codes.min() <= codes.max() < self.config.codebook_size:
                place = int(np.argmax((codes < 0) | (codes >= self.config.codebook_size)))
                accepted = f"accepted are 0 to {self.config.codebook_size - 1}"
                yield f"`codes` hold {codes[place]} at position {place}; {accepted}"
        if self.speaker and vector is not None:
            size = self.config.speaker_embedding_size
            if vector.ndim != 1 or vector.dtype.kind not in "iuf":
                yield f"`speaker_embeds` are {str(row['speaker_embeds'])[:80]}; accepted is a list of numbers"
            elif len(vector) != size:
                yield f"`speaker_embeds` must have {size} numbers, got {len(vector)}"
            elif not np.isfinite(vector).all():
                yield "`speaker_embeds` hold NaN or infinite numbers"

    def _length_problems(self, row: Mapping[str, Any], num_samples: int, rate: int) -> Iterator[str]:
        """Of a recording of `num_samples` at `rate`, and of the codes of the row, if it has them."""
        config, margin = self.config, (self.n_fft - self.config.hop_length) // 2
        if num_samples > self.max_seconds * rate:
            yield (
                f"`audio`: {num_samples / rate:.2f} seconds; at most {self.max_seconds} are accepted. Cut it, or give "
                "`start` and `end`"
            )
            return
        at_rate = -(-num_samples * config.sampling_rate // rate)
        frames, ratio = at_rate // config.hop_length, config.upsample_ratio
        count = frames // ratio if row.get("codes") is None else len(row["codes"])
        if abs(count - frames / ratio) >= MAX_LENGTH_DIFFERENCE:
            yield (
                f"`codes`: {count} for a recording of {at_rate / config.sampling_rate:.2f} s; needed are about "
                f"{frames / ratio:.1f} ({config.frame_rate:g} per second)"
            )
        elif at_rate <= margin or not min(frames // ratio, count):
            yield f"`audio` has no whole code ({1 / config.frame_rate:g} s)"

    def _example(self, row: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Codes `[T]` and mel spectrogram `[num_mel_bins, upsample_ratio * T]` of one row."""
        config = self.config
        for problem in self._entry_problems(row):
            raise ValueError(problem)
        samples, rate = _read(row, config.sampling_rate, self.resample, self.channel)
        for problem in self._length_problems(row, len(samples), rate):
            raise ValueError(problem)
        waveform = resampled(torch.from_numpy(samples), rate, config.sampling_rate)
        mel = vocoder_log_mel(
            waveform, config.num_mel_bins, config.sampling_rate, self.n_fft, config.hop_length, self.max_frequency
        )
        codes, ratio = torch.as_tensor(row["codes"], dtype=torch.long), config.upsample_ratio
        length = min(mel.shape[1] // ratio, len(codes))
        return codes[:length], mel[:, : ratio * length]


def _numbers(values: Any) -> np.ndarray | None:
    """`values` as an array, of Python objects if they are of several kinds; `None` if there are none."""
    if values is None:
        return None
    try:
        return as_array(values)
    except (ValueError, OverflowError):  # lists of several lengths
        return np.array(None)


def _read(row: Mapping[str, Any], sampling_rate: int, resample: bool, channel: int | None) -> tuple[np.ndarray, int]:
    """The recording at its own rate, which is `sampling_rate` unless `resample` allows another."""
    if row.get("audio") is None:
        raise ValueError(f"the row has no `audio`; it has {sorted(row)}")
    samples, rate = read_audio(row["audio"], sampling_rate, channel)
    if rate != sampling_rate and not resample:
        raise ValueError(
            f"`sampling_rate` is {sampling_rate} Hz, but the recording has {rate} Hz; pass `resample=True` to convert it"
        )
    return samples, rate


def _padded(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """`[B, longest]`, zero behind the end of a row, and the lengths `[B]`."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True), lengths


def _place(row: Mapping[str, Any], number: int) -> str:
    return row.get("source", f"row {number}")


def _located(row: Mapping[str, Any], number: int, function):
    """`function()`, with the place of the row in front of its errors."""
    try:
        return function()
    except ValueError as error:
        raise ValueError(f"{_place(row, number)}: {error}") from error


__all__ = ["FlowDecoderCollator", "encode_recordings"]
