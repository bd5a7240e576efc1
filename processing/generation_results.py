"""From what `generate` returns to text and sound."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .tasks import TASK_NAMES, TASKS
from .tokenization_dualspeech import SpeechTokenIds


@dataclass
class DualSpeechResult:
    """What one row of a generation says.

    Attributes:
        task: name of the task, if the output has task ids.
        text: the answer of a text task, else `None`.
        audio: the answer of a speech task, float32 `[S]`; `None` when no acoustic code was generated.
        sampling_rate: of `audio`, in Hz.
        finish_reason: `"eos"`, `"length"` or `"cancelled"`.
        semantic_codes: the USTokens of a speech answer, int64 `[T]`.
    """

    task: str | None = None
    text: str | None = None
    audio: np.ndarray | None = None
    sampling_rate: int | None = None
    finish_reason: str | None = None
    semantic_codes: np.ndarray | None = None


def is_generate_output(output: Any) -> bool:
    """Whether `output` has the fields of [`DualSpeechGenerateOutput`]; pipelines hand it on as a plain mapping."""
    return isinstance(output, Mapping) and "generated_ids" in output


def text_results(
    output: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    speech: SpeechTokenIds,
    skip_special_tokens: bool = True,
    **decode_kwargs,
) -> list[DualSpeechResult]:
    """The rows of a generation without sound; `decode_kwargs` go to `tokenizer.decode`."""
    results = []
    for i, (ids, length) in enumerate(zip(output["generated_ids"], output["generated_lengths"].tolist(), strict=True)):
        result = DualSpeechResult(finish_reason=output["finish_reason"][i])
        semantic_length = int(output["semantic_lengths"][i])
        if output.get("task_type_ids") is not None:
            result.task = TASK_NAMES[int(output["task_type_ids"][i])]
        if semantic_length or (result.task is not None and TASKS[result.task].output == "speech"):
            result.semantic_codes = output["semantic_codes"][i, :semantic_length].cpu().numpy()
        else:
            # A converted tokenizer may have speech tokens that are not special ones.
            words = [word for word in ids[:length].tolist() if not (skip_special_tokens and word in speech)]
            result.text = tokenizer.decode(words, skip_special_tokens=skip_special_tokens, **decode_kwargs)
        results.append(result)
    return results


def add_audio(results: list[DualSpeechResult], output: Mapping[str, Any], audio_tokenizer: PreTrainedModel) -> None:
    """Decode the acoustic codes of `output` in one batch and put the waveforms into `results`."""
    lengths = output["acoustic_lengths"]
    rows = lengths.nonzero()[:, 0]
    codes, lengths = output["acoustic_codes"][rows], lengths[rows]
    mask = torch.arange(codes.shape[1], device=codes.device) < lengths[:, None]
    with torch.no_grad():
        decoded = audio_tokenizer.decode(codes.to(audio_tokenizer.device), mask.to(audio_tokenizer.device))
    waveforms = decoded.audio_values[:, 0].float().cpu().numpy()
    for row, waveform, num_samples in zip(rows.tolist(), waveforms, decoded.num_samples.tolist(), strict=True):
        results[row].audio = waveform[:num_samples].copy()
        results[row].sampling_rate = audio_tokenizer.output_sampling_rate


def has_acoustic_codes(output: Mapping[str, Any]) -> bool:
    """Whether any row of `output` has acoustic codes."""
    return output.get("acoustic_codes") is not None and bool((output["acoustic_lengths"] > 0).any())


__all__ = ["DualSpeechResult", "add_audio", "has_acoustic_codes", "is_generate_output", "text_results"]
