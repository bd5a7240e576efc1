"""From generated rows of MOSS-Speech to text and sound."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .audio import as_array
from .moss_speech_chat import RELEASED_REPLACEMENTS
from .moss_speech_rows import Row, RowIds


@dataclass
class MossSpeechSegment:
    """A stretch of a reply that is wholly text or wholly speech.

    Attributes:
        text: of a text segment, else `None`.
        codes: of a speech segment, int64 `[T]`, else `None`; empty when speech was started and ended at once.
        audio: of a speech segment, float32 `[S]`; `None` when it was not asked for.
    """

    text: str | None = None
    codes: np.ndarray | None = None
    audio: np.ndarray | None = None


@dataclass
class MossSpeechResult:
    """What one row of a generation says.

    Attributes:
        text: all that is written, `None` for a reply that is only spoken.
        audio: all that is spoken, float32 `[S]`; `None` for a reply without speech, or when it was not asked for.
        sampling_rate: of `audio`, in Hz.
        codes: all that is spoken as codes, int64 `[T]`; `None` for a reply without speech.
        finish_reason: `"eos"`, `"length"` or `"cancelled"`.
        segments: text and speech in their order; a reply of the model may hold both.
    """

    text: str | None = None
    audio: np.ndarray | None = None
    sampling_rate: int | None = None
    codes: np.ndarray | None = None
    finish_reason: str | None = None
    segments: list[MossSpeechSegment] = field(default_factory=list)

    def message(self) -> dict[str, Any]:
        """The reply as a turn of the conversation, to go on with. Speech keeps its codes and is not encoded anew.

        Raises:
            ValueError: a reply of text and speech, which a turn cannot hold, or an empty one.
        """
        if self.text is not None and self.codes is not None:
            raise ValueError("the reply holds text and speech, and a turn of a conversation is wholly one of them")
        if self.codes is not None and len(self.codes):
            return {"role": "assistant", "content": [{"type": "audio", "codes": self.codes.tolist()}]}
        if self.text:
            return {"role": "assistant", "content": [{"type": "text", "text": self.text}]}
        raise ValueError("the reply is empty, and a turn of a conversation is not")


def split_reply(rows: Iterable[Row], ids: RowIds, stop_ids: Iterable[int]) -> tuple[list[tuple[str, list[int]]], bool]:
    """Generated rows as segments `("text", text ids)` and `("audio", codes)`, and whether a stop id ended them.

    A code is the audio id of a row whose text id is `ids.modality_pad_token_id`; `ids.sosp_token_id` opens a stretch of
    speech and `ids.eosp_token_id` closes it. The stop id is the last of its text segment; rows behind it are padding.

    Raises:
        ValueError: a speech row that holds neither a code nor the end of speech, a text id outside its vocabulary.
    """
    segments, stop_ids, is_open = [], set(stop_ids), False
    for number, (text_id, audio_id) in enumerate(rows):
        if text_id == ids.modality_pad_token_id or text_id == ids.sosp_token_id:
            starts = text_id == ids.sosp_token_id
            if starts or not is_open:
                segments.append(("audio", []))
            is_open = starts or audio_id != ids.eosp_token_id
            if starts or not is_open:
                continue
            if not 0 <= audio_id < ids.codebook_size:
                raise ValueError(
                    f"row {number} holds the audio id {audio_id}; accepted are the codes 0 to {ids.codebook_size - 1} and "
                    f"the end of speech {ids.eosp_token_id}"
                )
            segments[-1][1].append(audio_id)
            continue
        check_text_ids([text_id], ids, f"row {number}")
        if not segments or segments[-1][0] == "audio":
            segments.append(("text", []))
        is_open = False
        segments[-1][1].append(text_id)
        if text_id in stop_ids:
            return segments, True
    return segments, False


def check_text_ids(values: Any, ids: RowIds, place: str = "`output`") -> None:
    """
    Raises:
        ValueError: one of the text ids `values`, nested in any way, lies outside the vocabulary.
    """
    values = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(values, Mapping | str) or not isinstance(values, Iterable):
        values = [values]
    for value in values:
        if hasattr(value, "tolist") or isinstance(value, list | tuple):
            check_text_ids(value, ids, place)
        elif not isinstance(value, int) or not 0 <= value < ids.vocab_size:
            raise ValueError(f"{place} holds the text id {value!r}; accepted are 0 to {ids.vocab_size - 1}")


def reply_of(
    rows: Sequence[Row],
    ids: RowIds,
    stop_ids: Iterable[int],
    tokenizer: PreTrainedTokenizerBase,
    skip_special_tokens: bool = True,
    released: bool = False,
    finish_reason: str | None = None,
    **decode_kwargs,
) -> MossSpeechResult:
    """The result of one row of a generation, without sound.

    Args:
        rows: what was generated, perhaps with padding behind it.
        ids, stop_ids: see `split_reply`.
        tokenizer: the text tokenizer.
        skip_special_tokens: leave special tokens out of the text; also those of the stop row.
        released: drop the last row whatever it is, and replace two strings of the text, as the released processor does.
        finish_reason: by default `"eos"` with a stop row, else `"length"`.
        decode_kwargs: for `tokenizer.decode`.
    """
    stop_ids = set(stop_ids)
    segments, stopped = split_reply(rows, ids, stop_ids)
    if released:
        length = next((i for i, row in enumerate(rows) if row[0] in stop_ids), len(rows) - 1)
        segments, _ = split_reply(rows[:length], ids, stop_ids)
    result = MossSpeechResult(finish_reason=finish_reason or ("eos" if stopped else "length"))
    for kind, values in segments:
        if kind == "audio":
            result.segments.append(MossSpeechSegment(codes=np.array(values, dtype=np.int64)))
            continue
        shown = [token_id for token_id in values if token_id not in stop_ids] if skip_special_tokens else values
        text = tokenizer.decode(shown, skip_special_tokens=skip_special_tokens, **decode_kwargs)
        if not text:
            continue
        for old, new in RELEASED_REPLACEMENTS.items() if released else ():
            text = text.replace(old, new)
        result.segments.append(MossSpeechSegment(text=text))
    written = [segment.text for segment in result.segments if segment.text is not None]
    spoken = [segment.codes for segment in result.segments if segment.codes is not None]
    result.text = "".join(written) if written or not spoken else None
    result.codes = np.concatenate(spoken) if spoken else None
    return result


def add_audio(
    results: Sequence[MossSpeechResult], audio_tokenizer: PreTrainedModel, voices: Sequence[Any], **decode_kwargs
) -> None:
    """Decode the codes of `results` in one batch and put the waveforms into them.

    Args:
        results: of `reply_of`.
        audio_tokenizer ([`MossSpeechCodecModel`]): the codec.
        voices: one per result, [`MossSpeechVoice`] or `None`.
        decode_kwargs: for its `decode`.
    """
    silence = np.zeros(0, dtype=np.float32)
    spoken, spoken_voices = [], []
    for number, (result, voice) in enumerate(zip(results, voices, strict=True)):
        for segment in result.segments:
            if segment.codes is None:
                continue
            if len(segment.codes):
                spoken.append(segment)
                spoken_voices.append(voice)
            else:
                warnings.warn(f"row {number} speaks without a single code: its audio has length 0", stacklevel=3)
                segment.audio = silence
    if spoken:
        lengths = torch.tensor([len(segment.codes) for segment in spoken])
        codes = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(s.codes) for s in spoken], batch_first=True)
        mask = torch.arange(codes.shape[1]) < lengths[:, None]
        device = audio_tokenizer.device
        with torch.no_grad():
            waveforms = audio_tokenizer.decode(codes.to(device), mask.to(device), voice=spoken_voices, **decode_kwargs)
        waveforms = waveforms[:, 0].float().cpu().numpy()
        for segment, waveform in zip(spoken, waveforms, strict=True):
            segment.audio = waveform[: len(segment.codes) * audio_tokenizer.hop_length].copy()
    for result in results:
        if result.codes is not None:
            result.audio = np.concatenate([s.audio for s in result.segments if s.codes is not None])
            result.sampling_rate = audio_tokenizer.sampling_rate


def rows_of(grid: Any) -> list[Row] | None:
    """`grid` `[L, 2]` as a list of rows, or `None` for plain ids, which have no rows.

    Raises:
        ValueError: two dimensions and another width, or no whole numbers.
    """
    array = as_array(grid)
    if array.ndim < 2:
        return None
    if array.ndim != 2 or array.shape[1] != 2 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"rows must be whole numbers [L, 2] (text id, audio id), got {array.dtype} {list(array.shape)}"
        )
    return array.tolist()


def is_generate_output(output: Any) -> bool:
    """Whether `output` is a [`SplitLayerGenerateOutput`]; pipelines hand it on as a plain mapping."""
    return isinstance(output, Mapping) and "generated_rows" in output


def generated_rows(output: Any) -> tuple[list[list[Row]], list[str | None]] | None:
    """The new rows of each row of a generation and how it ended (`None` where that is not known), or `None` for ids."""
    if is_generate_output(output):
        lengths = output["generated_lengths"].tolist()
        grids = [rows[:length].tolist() for rows, length in zip(output["generated_rows"], lengths, strict=True)]
        return grids, list(output["finish_reason"])
    grids = [rows_of(grid) for grid in output]
    if all(grid is None for grid in grids):
        return None
    if any(grid is None for grid in grids):
        raise ValueError("`output` holds both rows [L, 2] and plain ids; accepted is one of them")
    return grids, [None] * len(grids)


def written_texts(grids: Any, ids: RowIds, tokenizer: PreTrainedTokenizerBase, **decode_kwargs) -> list[str]:
    """The text of all text rows of `[B, L, 2]`, of prompts also; plain ids are decoded as they are."""
    rows = [rows_of(grid) for grid in grids]
    if any(grid is None for grid in rows):
        check_text_ids(grids, ids)
        return tokenizer.batch_decode(grids, **decode_kwargs)
    written = [[text for text, _ in grid if text != ids.modality_pad_token_id] for grid in rows]
    check_text_ids(written, ids)
    return [tokenizer.decode(token_ids, **decode_kwargs) for token_ids in written]


__all__ = [
    "MossSpeechResult",
    "MossSpeechSegment",
    "add_audio",
    "check_text_ids",
    "generated_rows",
    "is_generate_output",
    "reply_of",
    "rows_of",
    "split_reply",
    "written_texts",
]
