"""Batches for the training of the USTokenizer with a frozen text model."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..configuration.configuration_us_tokenizer import UsTokenizerForUnderstandingConfig
from ..modeling.audio_features import log_mel_spectrogram
from ..processing.audio import load_audio

# What the released training asks, by task; `{}` is the question of the row. Its configuration always takes the last
# prompt of a task, which are these. Spaces at the end are part of them.
PROMPTS = {
    "asr": "Recognize the speech and give me the transcription.",
    "ser": "Please describe the emotion of the speaker in this speech. ",
    "sqa": "Based on the speech content, provide a text-based answer to the question. The question is: {} ",
    "zerospeech_recognition": "Listen the audio, judge whether the audio is mute or not. Answer Yes or No.",
}
PROMPTS["stqa"] = PROMPTS["sqa"]  # its name in the released data files

TEXT_BEFORE_SPEECH = "USER: <Speech>"
TEXT_BEHIND_SPEECH = "</Speech> {}\nASSISTANT:"

_IGNORED_LABEL = -100


class UsTokenizerCollator:
    """Rows to the arguments of [`UsTokenizerForUnderstanding`]: `input_features`, `num_samples`, `input_ids` (with
    `config.speech_placeholder_id` where the speech goes), `attention_mask` and `labels`.

    A row is a mapping with `audio` (whatever `load_audio` reads: a path, an array at the tokenizer's rate, a mapping
    with `array` and `sampling_rate`), `task`, `text` (the answer) and, for questions, `question`. One sequence is
    `bos`, "USER: <Speech>", speech, "</Speech> {prompt}\\nASSISTANT:", answer, end symbol; the answer and the end
    symbol are the targets. `<Speech>` is plain text. Audio shorter than `min_seconds` is filled with zeros up to it,
    as in the released training.

    Args:
        config: configuration of the model.
        tokenizer: tokenizer of the text model.
        prompts: prompt by task; those of the released training by default.
        end_symbol: written behind the answer; the tokenizer's `eos_token` by default.
        max_text_length: cut answers with their end symbol to this many ids; `None` keeps them whole. The released
            training cuts at 300.
        padding: `"right"` pads each sequence behind its end. `"middle"` is the released layout: each of the four
            parts is padded to the longest of its kind, so that padding (mask 0) stands inside the sequences.
        pad_to_multiple_of: round the width of a batch up, for `"right"`.
        resample: convert recordings of another rate instead of refusing them.

    Raises:
        ValueError: a row without a needed entry or with an unknown task; unreadable audio, audio at another rate, or
            longer than `max_seconds`; with the `source` of the row, if it has one.
    """

    def __init__(
        self,
        config: UsTokenizerForUnderstandingConfig,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Mapping[str, str] | None = None,
        end_symbol: str | None = None,
        max_text_length: int | None = None,
        padding: str = "right",
        pad_to_multiple_of: int | None = None,
        resample: bool = False,
    ):
        if padding not in ("right", "middle"):
            raise ValueError(f"padding: {padding!r} is not accepted; 'right' and 'middle' are.")
        self.config = config
        self.tokenizer = tokenizer
        self.prompts = dict(PROMPTS if prompts is None else prompts)
        self.end_symbol = tokenizer.eos_token if end_symbol is None else end_symbol
        if self.end_symbol is None:
            raise ValueError("end_symbol: the tokenizer has no `eos_token`; give what ends an answer.")
        self.max_text_length = max_text_length
        self.padding = padding
        self.pad_to_multiple_of = pad_to_multiple_of
        self.resample = resample

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """A training batch."""
        return self._batch(rows, answers=True, padding=self.padding)

    def for_generation(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """The same without answers and labels, padded on the left, for `generate`. Rows need no `text`."""
        return self._batch(rows, answers=False, padding="left")

    def num_positions(self, row: Mapping[str, Any], num_samples: int) -> int:
        """Ids of prompt, speech and answer of a row whose recording has `num_samples` at the tokenizer's rate."""
        config = self.config.us_tokenizer_config
        num_codes = config.num_codes(max(num_samples, config.min_samples))
        return sum(len(part) for part in self._sequence(row, num_codes, answers=True))

    def _batch(self, rows, answers: bool, padding: str) -> dict[str, torch.Tensor]:
        waveforms = [_located(row, self._waveform, row) for row in rows]
        num_samples = torch.tensor([len(waveform) for waveform in waveforms])
        encoder = self.config.us_tokenizer_config.encoder_config
        features = log_mel_spectrogram(
            torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True),
            encoder.num_mel_bins,
            2 * encoder.max_source_positions,
        )
        num_codes = self.config.us_tokenizer_config.num_codes(num_samples)
        if not self.config.us_tokenizer_config.mask_padding:
            num_codes = num_codes.max().expand(len(rows))
        sequences = [
            _located(row, self._sequence, row, codes, answers)
            for row, codes in zip(rows, num_codes.tolist(), strict=True)
        ]
        if padding == "middle":
            parts = [self._pad(part, "right") for part in zip(*sequences, strict=True)]
            ids, mask = (torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True))
            target_width = parts[-1][0].shape[1]
            targets = torch.arange(ids.shape[1]) >= ids.shape[1] - target_width
        else:
            ids, mask = self._pad([list(chain(*sequence)) for sequence in sequences], padding)
            prompt_lengths = torch.tensor([[sum(len(part) for part in sequence[:-1])] for sequence in sequences])
            targets = torch.arange(ids.shape[1]) >= prompt_lengths
        batch = {"input_features": features, "num_samples": num_samples, "input_ids": ids, "attention_mask": mask}
        if answers:
            batch["labels"] = ids.masked_fill(~(targets & mask.bool()), _IGNORED_LABEL)
        return batch

    def _waveform(self, row: Mapping[str, Any]) -> torch.Tensor:
        config = self.config.us_tokenizer_config
        if "audio" not in row:
            raise ValueError(f"rows: every row needs 'audio'; this one has {sorted(row)}.")
        samples, _ = load_audio(row["audio"], config.sampling_rate, resample=self.resample)
        if len(samples) > config.max_samples:
            raise ValueError(
                f"audio: {len(samples) / config.sampling_rate:.2f} seconds; at most {config.max_seconds} are accepted."
            )
        samples = torch.from_numpy(samples)
        return torch.nn.functional.pad(samples, (0, max(0, config.min_samples - len(samples))))

    def _sequence(self, row: Mapping[str, Any], num_codes: int, answers: bool) -> tuple[list[int], ...]:
        """Ids in front of the speech, of the speech, behind it, and of the answer."""
        prompt = self.prompts.get(row.get("task"))
        if prompt is None:
            raise ValueError(f"task: {row.get('task')!r} is not accepted; {sorted(self.prompts)} are.")
        if "{}" in prompt:
            if row.get("question") is None:
                raise ValueError(f"question: missing in a row of the task {row['task']!r}.")
            prompt = prompt.replace("{}", row["question"])
        bos = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        answer = []
        if answers:
            if row.get("text") is None:
                raise ValueError(f"text: missing in a row of the task {row['task']!r}.")
            answer = self._ids(row["text"] + self.end_symbol)[: self.max_text_length]
        before, behind = self._ids(TEXT_BEFORE_SPEECH), self._ids(TEXT_BEHIND_SPEECH.replace("{}", prompt))
        return bos + before, [self.config.speech_placeholder_id] * num_codes, behind, answer

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _pad(self, sequences: Sequence[list[int]], side: str) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Ids and mask `[B, width]`."""
        width = max(len(sequence) for sequence in sequences)
        if self.pad_to_multiple_of is not None and self.padding == "right":
            width = -(-width // self.pad_to_multiple_of) * self.pad_to_multiple_of
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0  # any id: it is masked
        ids = torch.full((len(sequences), width), pad)
        mask = torch.zeros(len(sequences), width, dtype=torch.long)
        for row, sequence in enumerate(sequences):
            place = slice(width - len(sequence), width) if side == "left" else slice(0, len(sequence))
            ids[row, place] = torch.tensor(sequence, dtype=torch.long)
            mask[row, place] = 1
        return ids, mask


def _located(row: Mapping[str, Any], function, *arguments):
    """`function(*arguments)`, with the place of the row in front of its errors."""
    try:
        return function(*arguments)
    except ValueError as error:
        if row.get("source") is None:
            raise
        raise ValueError(f"{row['source']}: {error}") from error


__all__ = ["PROMPTS", "TEXT_BEFORE_SPEECH", "TEXT_BEHIND_SPEECH", "UsTokenizerCollator"]
