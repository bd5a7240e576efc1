"""Recordings with transcripts as features and labels, and error rates: data of the training of speech encoders."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import EvalPrediction
from transformers.trainer_pt_utils import get_length_grouped_indices

from ..processing.audio import load_audio
from .configuration_speech_encoder_training import BLANK_ID, SpeechEncoderForCtcConfig
from .example_checks import recording_sizes
from .example_columns import RowProblems
from .speech_augmentation import SpeechAugmentation
from .speech_encoder_training import IGNORED, ctc_text, encoder_features, min_predictions, pad_features
from .trainer import SpeechTrainer


def transcript_of(row: Mapping[str, Any]) -> str | None:
    """What a row of the task asr (`targets`) or a recording row (`text`) says, `None` if it does not tell."""
    text = row.get("targets", row.get("text"))
    text = text.get("text") if isinstance(text, Mapping) else text
    return text if isinstance(text, str) else None


def characters_of(rows: Iterable[Mapping[str, Any]], removed_characters: str = "") -> list[str]:
    """The vocabulary of the transcripts of `rows`, sorted."""
    normalize = SpeechEncoderForCtcConfig(removed_characters=removed_characters).normalize
    return sorted({character for row in rows for character in normalize(transcript_of(row) or "")})


def check_speech_recognition_rows(
    rows: Iterable[Mapping[str, Any]],
    config: SpeechEncoderForCtcConfig,
    resample: bool = False,
    decode: bool = True,
    fastest: float = 1.0,
) -> list[int]:
    """
    Check rows with `audio` and a transcript.

    Args:
        rows: the rows; `source`, if any, names them in errors.
        resample, decode: see [`check_us_tokenizer_rows`].
        fastest: speed at which each transcript must still fit into its predictions.

    Returns:
        The samples of each recording at 16 kHz.

    Raises:
        ValueError: with the first 20 of the bad rows and their number: a recording that is missing, cannot be read, has
            another rate or several channels, or is shorter or longer than the encoder takes; a transcript that is
            missing, has characters outside the vocabulary, or more than CTC can spell in that time; or no rows at all.
    """
    problems, lengths = RowProblems("rows"), []
    for row, size in recording_sizes(rows, config.sampling_rate, resample, decode=decode):
        found, text = [], transcript_of(row)
        num_samples = 0
        if isinstance(size, ValueError):
            found += [str(size)]
        else:
            num_samples = -(-size[0] * config.sampling_rate // size[1])
            if not config.min_samples <= num_samples <= config.max_samples:
                seconds = [count / config.sampling_rate for count in (config.min_samples, config.max_samples)]
                found += [f"`audio` is {size[0] / size[1]:.3f} s long; accepted are {seconds[0]} to {seconds[1]} s"]
        try:
            if text is None:
                raise ValueError("a transcript (`targets` or `text`) is missing")
            needed = min_predictions(config.label_ids(text))
            available = config.num_predictions(int(num_samples / fastest))
            if not found and needed > available:
                found += [f"the transcript needs {needed} predictions; the recording has {available}"]
        except ValueError as error:
            found += [str(error)]
        problems.add_row(row, found)
        lengths += [num_samples]
    problems.raise_if_any()
    return lengths


class SpeechRecognitionData(Dataset):
    """
    Rows with `audio` and a transcript (`targets` or `text`) as `input_features [bins, F]`, `num_samples` and `labels`.

    What is drawn for a recording follows from the seed, the epoch and the place of the row alone, whatever the number of
    workers and processes. Who trains tells the epoch with `set_epoch`; give the Trainer a [`DatasetEpochCallback`].

    Args:
        rows: the rows.
        config: of the model.
        augmentation (*optional*): what is drawn; none in evaluation.
        seed: of the draws.
        resample: convert recordings of another rate instead of refusing them.
        lengths (*optional*): samples of each recording, for batches of similar length.
        in_memory: read all recordings now, 64 kB a second; workers share them.

    Raises:
        ValueError: no rows; on access, a row that cannot be used, with its place.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        config: SpeechEncoderForCtcConfig,
        augmentation: SpeechAugmentation | None = None,
        seed: int = 0,
        resample: bool = False,
        lengths: Sequence[int] | None = None,
        in_memory: bool = False,
    ):
        if not len(rows):
            raise ValueError("`rows` must hold a recording at least, got none")
        self.rows, self.config, self.augmentation, self.seed = rows, config, augmentation, seed
        self.resample, self.lengths = resample, lengths
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()  # also seen by workers that live on
        self._waveforms = [self._read(index) for index in range(len(rows))] if in_memory else None

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw anew, as belongs to this epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        config = self.config
        waveform = self._read(index) if self._waveforms is None else self._waveforms[index]
        with _located(self.rows[index], index):
            text = transcript_of(self.rows[index])
            if text is None:
                raise ValueError("a transcript (`targets` or `text`) is missing")
            labels = config.label_ids(text)
        if self.augmentation is None:
            features = encoder_features(waveform, config)
        else:
            draw = np.random.default_rng([self.seed, self.epoch, index])
            waveform = self.augmentation.waveform(waveform, draw, config.sampling_rate, config.max_samples)
            num_frames = -(-2 * len(waveform) // config.min_samples)
            features = self.augmentation.features(encoder_features(waveform, config), draw, num_frames)
        return {"input_features": features, "num_samples": len(waveform), "labels": labels}

    def _read(self, index: int) -> torch.Tensor:
        row, config = self.rows[index], self.config
        with _located(row, index):
            if row.get("audio") is None:
                raise ValueError(f"a row needs 'audio'; this one has {sorted(row)}")
            audio, _ = load_audio(row["audio"], config.sampling_rate, self.resample)
            low, high = config.min_samples, config.max_samples
            if not low <= len(audio) <= high:
                raise ValueError(f"audio: {len(audio)} samples; {low} to {high} are accepted")
        return torch.from_numpy(audio)

    @staticmethod
    def collate(examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """The arguments of [`SpeechEncoderForCtc`] of several examples."""
        labels = [torch.tensor(example["labels"]) for example in examples]
        return {
            "input_features": pad_features([example["input_features"] for example in examples]),
            "num_samples": torch.tensor([example["num_samples"] for example in examples]),
            "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        }


@contextmanager
def _located(row: Mapping[str, Any], index: int):
    """Put the place of the row in front of errors."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{row.get('source', f'row {index}')}: {error}") from error


class LengthGroupedEpochs(Sampler):
    """Batches of similar length, in an order that follows from the seed and the epoch of the data alone: an interrupted
    training goes on exactly, which it does not with the sampler of the Trainer."""

    def __init__(self, data: SpeechRecognitionData, batch_size: int, seed: int):
        self.data, self.batch_size, self.seed = data, batch_size, seed

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self):
        seed = int(np.random.default_rng([self.seed, self.data.epoch]).integers(2**62))
        generator = torch.Generator().manual_seed(seed)
        return iter(get_length_grouped_indices(list(self.data.lengths), self.batch_size, generator=generator))


class SpeechRecognitionTrainer(SpeechTrainer):
    """[`SpeechTrainer`] for [`SpeechRecognitionData`], which knows the lengths of its recordings without reading them."""

    def _get_train_sampler(self, train_dataset=None):
        data = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or getattr(data, "lengths", None) is None:
            return super()._get_train_sampler(train_dataset)
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return LengthGroupedEpochs(data, batch_size, seed)

    def _get_eval_sampler(self, eval_dataset):
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None


def prediction_ids(outputs: Sequence[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """`preprocess_logits_for_metrics` of the Trainer: the most likely ids `[B, T]`, blanks behind the end of a row."""
    logits, num_predictions = outputs[:2]
    behind = torch.arange(logits.shape[1], device=logits.device) >= num_predictions[:, None]
    return logits.argmax(dim=-1).masked_fill(behind, BLANK_ID)


def error_rates(config: SpeechEncoderForCtcConfig) -> Callable[[EvalPrediction], dict[str, float]]:
    """`compute_metrics` of the Trainer for [`prediction_ids`]: `wer` and `cer`, errors per word and per character of the
    normalised transcripts of all rows."""

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        words = characters = word_errors = character_errors = 0
        for ids, labels in zip(prediction.predictions.tolist(), prediction.label_ids.tolist(), strict=True):
            text = "".join(config.vocabulary[label - BLANK_ID - 1] for label in labels if label != IGNORED)
            heard = ctc_text(ids, config.vocabulary)
            words, characters = words + len(text.split()), characters + len(text)
            word_errors += edit_distance(text.split(), heard.split())
            character_errors += edit_distance(text, heard)
        return {"wer": word_errors / words, "cer": character_errors / characters}

    return compute


def edit_distance(reference: Sequence, hypothesis: Sequence) -> int:
    """Fewest insertions, deletions and substitutions that turn one sequence into the other (Levenshtein)."""
    row = list(range(len(hypothesis) + 1))
    for i, wanted in enumerate(reference, start=1):
        diagonal, row[0] = row[0], i
        for j, given in enumerate(hypothesis, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (wanted != given))
    return row[-1]


__all__ = [
    "SpeechRecognitionData",
    "SpeechRecognitionTrainer",
    "characters_of",
    "check_speech_recognition_rows",
    "edit_distance",
    "error_rates",
    "prediction_ids",
    "transcript_of",
]
