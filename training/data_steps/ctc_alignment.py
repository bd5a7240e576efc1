"""CTC forced alignment, and the step that gives each word of a transcript its place in the recording."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ...torchaudio_guard import torchaudio_or_none
from .ctc_models import CtcModel
from .model_step import ModelStep, loaded
from .row_recordings import read_recording, text_of
from .spoken_text import split_words
from .step import Outcome, Rejection, Row


class TokenSpan(NamedTuple):
    """One token of an alignment: frames `start` to `end` (not included), and its mean log probability there."""

    token: int
    start: int
    end: int
    score: float


def forced_align(
    log_probs: Tensor,
    targets: Tensor | Sequence[int],
    blank: int = 0,
    backend: Literal["auto", "torch", "torchaudio"] = "auto",
) -> tuple[Tensor, Tensor]:
    """
    The most probable CTC path of `targets` (Viterbi).

    The result is that of `torchaudio.functional.forced_align`, unless several paths are equally probable.

    Args:
        log_probs: `[T, V]`, floating point, log probabilities of the tokens in each frame.
        targets: `[L]`, ids of tokens; may be empty.
        blank: id of the blank token.
        backend: `"auto"` takes torchaudio where it is installed and loads, `"torch"` never.

    Returns:
        `path [T]` int64, the token of each frame, and `scores [T]`, its log probabilities.

    Raises:
        ValueError: other shapes, an id outside the vocabulary, a target that holds the blank token, or more targets
            (and blanks between equal ones) than frames; no path of finite probability; `backend="torchaudio"` where it
            does not load.
    """
    targets = torch.as_tensor(targets, dtype=torch.long, device=log_probs.device)
    _check_alignment(log_probs, targets, blank)
    torchaudio = None if backend == "torch" else torchaudio_or_none()
    if torchaudio is None and backend not in ("auto", "torch"):
        raise ValueError(f"`backend` is {backend!r}, which is not installed or does not load; accepted is 'torch'")
    if torchaudio is not None and len(targets):
        path = torchaudio.functional.forced_align(log_probs[None], targets[None], blank=blank)[0][0].long()
    else:
        path = _viterbi(log_probs, targets, blank)
    scores = log_probs.gather(1, path[:, None])[:, 0]
    if not scores.isfinite().all():
        raise ValueError("no path of `targets` has a finite probability in `log_probs`")
    return path, scores


def _check_alignment(log_probs: Tensor, targets: Tensor, blank: int) -> None:
    if log_probs.ndim != 2 or not log_probs.is_floating_point() or not len(log_probs):
        raise ValueError(
            f"`log_probs` must be floating point [frames, tokens] with at least one frame, got {log_probs.dtype} "
            f"{list(log_probs.shape)}"
        )
    num_frames, num_tokens = log_probs.shape
    if not 0 <= blank < num_tokens:
        raise ValueError(f"`blank` is {blank}; accepted is 0 to {num_tokens - 1}")
    if targets.ndim != 1:
        raise ValueError(f"`targets` must be [tokens], got {list(targets.shape)}")
    if ((targets < 0) | (targets >= num_tokens)).any():
        raise ValueError(f"`targets` has ids outside 0 to {num_tokens - 1}: {targets.tolist()}")
    if (targets == blank).any():
        raise ValueError(f"`targets` holds the blank token {blank}, which stands between targets")
    needed = len(targets) + int((targets[1:] == targets[:-1]).sum())
    if needed > num_frames:
        raise ValueError(
            f"`targets` needs {needed} frames ({len(targets)} tokens, and a blank between equal ones), but `log_probs` "
            f"has {num_frames}"
        )


def _viterbi(log_probs: Tensor, targets: Tensor, blank: int) -> Tensor:
    """`path [T]` over the states blank, target 0, blank, target 1, ..., blank."""
    num_frames, num_states = len(log_probs), 2 * len(targets) + 1
    states = targets.new_full((num_states,), blank)
    states[1::2] = targets
    emissions = log_probs[:, states]
    # From a target the blank in front of it may be skipped, unless the target before it is the same.
    may_skip = torch.zeros(num_states, dtype=torch.bool, device=log_probs.device)
    may_skip[3::2] = targets[1:] != targets[:-1]
    minus_infinity = log_probs.new_full((2,), -torch.inf)

    best = log_probs.new_full((num_states,), -torch.inf)
    best[:2] = emissions[0, :2]
    moves = torch.zeros((num_frames, num_states), dtype=torch.int8, device=log_probs.device)
    for frame in range(1, num_frames):
        padded = torch.cat([minus_infinity, best])
        step, skip = padded[1:-1], padded[:-2].where(may_skip, minus_infinity[0])
        moves[frame] = (step > best).to(torch.int8)
        best = torch.maximum(best, step)
        moves[frame].masked_fill_(skip > best, 2)
        best = torch.maximum(best, skip) + emissions[frame]

    state = num_states - 1
    if num_states > 1 and not best[-1] > best[-2]:
        state -= 1
    path, moves = [], moves.tolist()
    for frame in range(num_frames - 1, -1, -1):
        path.append(state)
        state -= moves[frame][state]
    return states[path[::-1]]


def merge_tokens(path: Tensor, scores: Tensor, blank: int = 0) -> list[TokenSpan]:
    """The tokens of an alignment in order, one per target: runs of equal frames of `path [T]`, without blanks."""
    tokens, lengths = torch.unique_consecutive(path, return_counts=True)
    ends = lengths.cumsum(0).tolist()
    return [
        TokenSpan(token, end - length, end, float(scores[end - length : end].mean()))
        for token, length, end in zip(tokens.tolist(), lengths.tolist(), ends, strict=True)
        if token != blank
    ]


def word_spans(
    spans: Sequence[TokenSpan], token_counts: Sequence[int], seconds_per_frame: float, duration: float
) -> list[tuple[float, float]]:
    """
    Start and end of each word in seconds.

    Args:
        spans: of the tokens of all words, without those between words.
        token_counts: tokens of each word. A word without any (digits, say, in a vocabulary of letters) gets the time
            between its neighbours; several of them in a row share it equally.
        seconds_per_frame, duration: of the log probabilities, and of the recording.

    Raises:
        ValueError: the counts do not add up to the number of spans.
    """
    if sum(token_counts) != len(spans):
        raise ValueError(f"`token_counts` adds up to {sum(token_counts)}, but there are {len(spans)} spans")
    times: list[tuple[float, float] | None] = []
    position = 0
    for count in token_counts:
        own = spans[position : position + count]
        position += count
        times.append((own[0].start * seconds_per_frame, own[-1].end * seconds_per_frame) if own else None)
    place = 0
    while place < len(times):
        behind = place
        while behind < len(times) and times[behind] is None:
            behind += 1
        start = times[place - 1][1] if place else 0.0
        end = times[behind][0] if behind < len(times) else duration
        share = (end - start) / max(behind - place, 1)
        for number in range(behind - place):
            times[place + number] = (start + number * share, start + (number + 1) * share)
        place = behind + 1
    return times


@dataclass
class AlignWords(ModelStep):
    """
    Adds to a recording with a transcript the times of its words, from any CTC model (section 3.1.1 of the MOSS-Speech
    paper): `words`, a list of `{"text", "start", "end"}` in seconds, and `alignment_score` in `metadata`, the mean log
    probability of the aligned tokens.

    Words are what stands between white space, with their punctuation, and single Chinese or Japanese characters.

    Args:
        checkpoint (`str`): an `AutoModelForCTC` with its processor.
        text_key, audio_key (`str`): names of the transcript and the recording in a row.
        min_score (`float`, *optional*): alignments with a lower score are rejected: the transcript does not fit.
        max_seconds (`float`, *optional*, defaults to 60.0): longer recordings are rejected; the memory of most models
            grows with the square of the length.
    """

    name = "align_words"
    checkpoint: str
    text_key: str = "text"
    audio_key: str = "audio"
    min_score: float | None = None
    max_seconds: float = field(default=60.0)

    _model = None

    def setup(self) -> None:
        self._model = CtcModel(self.checkpoint, self.device, self.dtype)

    def process(self, rows: Sequence[Row]) -> list[Outcome]:
        model = loaded(self._model, self)
        recordings = [read_recording(row, self.audio_key, model.sampling_rate)[0] for row in rows]
        texts = [text_of(row, self.text_key) for row in rows]
        for recording in recordings:
            if len(recording) > self.max_seconds * model.sampling_rate:
                seconds = len(recording) / model.sampling_rate
                raise ValueError(f"the recording has {seconds:.1f} s; `max_seconds` is {self.max_seconds}")
        return [
            self._align(row, text, len(recording) / model.sampling_rate, log_probs)
            for row, text, recording, log_probs in zip(
                rows, texts, recordings, model.log_probs(recordings), strict=True
            )
        ]

    def _align(self, row: Row, text: str, duration: float, log_probs: Tensor) -> Outcome:
        model, words = self._model, split_words(text)
        tokens = [model.tokens_of(word) for word in words]
        targets, is_delimiter = [], []
        for word in filter(None, tokens):
            if targets and model.delimiter_id is not None:
                targets.append(model.delimiter_id)
                is_delimiter.append(True)
            targets += word
            is_delimiter += [False] * len(word)
        if not targets:
            return Rejection(f"the model has no token for {text!r:.80}")
        spans = merge_tokens(*forced_align(log_probs, targets, model.blank_id), model.blank_id)
        spans = [span for span, skipped in zip(spans, is_delimiter, strict=True) if not skipped]
        score = sum(span.score for span in spans) / len(spans)
        if self.min_score is not None and score < self.min_score:
            return Rejection(f"the alignment has a score of {score:.3f}; `min_score` is {self.min_score}")
        times = word_spans(spans, [len(word) for word in tokens], duration / len(log_probs), duration)
        aligned = [{"text": word, "start": start, "end": end} for word, (start, end) in zip(words, times, strict=True)]
        metadata = {**(row.get("metadata") or {}), "alignment_score": score}
        return [{**row, "words": aligned, "metadata": metadata}]


__all__ = ["AlignWords", "TokenSpan", "forced_align", "merge_tokens", "word_spans"]
