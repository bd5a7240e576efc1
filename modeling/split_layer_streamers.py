"""Rows as they are generated: what streamers of the split-layer model get, and one that hands out speech in chunks."""

import threading
from collections.abc import Callable
from queue import Queue
from typing import NamedTuple

import torch
from transformers.generation import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from ..configuration.configuration_split_layer_qwen3 import SplitLayerQwen3Config
from .split_layer_logits import speaks_next
from .split_layer_rows import flat_to_rows, rows_to_flat


class RowStreamer(BaseStreamer):
    """
    Base of streamers that read rows. `generate()` calls `put` first with the prompts, `[batch, length, 2]`, then with
    the new rows of every step, `[batch, steps, 2]` (several steps at once only in assisted decoding), and `end` at
    last. Finished rows of a batch are padded. Any streamer with `accepts_rows = True` is treated in this way.
    """

    accepts_rows = True


class FlatIdStreamer(BaseStreamer):
    """
    Between transformers' loop, which streams flat ids, and the streamer of the caller: rows for a [`RowStreamer`]; for
    every other streamer (transformers' `TextStreamer`, ...) the text ids of a single row as they are spoken, and
    nothing while it speaks.

    Raises:
        ValueError: a batch for a streamer of text ids.
    """

    def __init__(self, streamer: BaseStreamer, config: SplitLayerQwen3Config):
        self.streamer, self.config = streamer, config
        self.accepts_rows = getattr(streamer, "accepts_rows", False)
        self.is_prompt = True

    def put(self, value: torch.LongTensor):
        is_prompt, self.is_prompt = self.is_prompt, False
        flat = value if value.dim() == 2 else value[:, None]
        if self.accepts_rows:
            self.streamer.put(flat_to_rows(flat, self.config))
            return
        if len(flat) != 1:
            raise ValueError(
                f"`streamer` gets the text ids of one row, not of {len(flat)}; one with `accepts_rows = True` gets rows"
            )
        text = flat[0, flat[0] < self.config.vocab_size]
        if is_prompt or len(text):
            self.streamer.put(text)

    def end(self):
        self.streamer.end()


class StreamEvent(NamedTuple):
    """
    A piece of an answer: `channel` is `"text"` or `"audio"`, `ids` (`[n]`, int64) its text ids or its speech codes.
    `ends_speech` marks the last piece of a speech turn, which may hold no code.
    """

    channel: str
    ids: torch.LongTensor
    ends_speech: bool = False


class _Stop(StoppingCriteria):
    def __init__(self, event: threading.Event):
        self.event = event

    def __call__(self, input_ids, scores, **kwargs) -> torch.BoolTensor:
        return torch.full(input_ids.shape[:1], self.event.is_set(), device=input_ids.device)


class SpeechStreamer(RowStreamer):
    """
    Iterator over an answer while it is generated: every text id as it comes, and speech codes in chunks that a
    streaming codec can decode at once.

    ```python
    >>> streamer = SpeechStreamer(model.config, chunk_size=25)
    >>> streamer.start(model.generate, **inputs, max_new_tokens=500)  # in a thread of its own
    >>> for event in streamer:
    ...     if event.channel == "audio":
    ...         play(decoder.step(event.ids))
    ...         if event.ends_speech:
    ...             play(decoder.finish())
    >>> streamer.result.finish_reason
    ```

    Args:
        config (`SplitLayerQwen3Config`): ids and vocabulary sizes.
        chunk_size (`int`): codes in a piece of speech (80 ms each in the released codec); the last may be shorter.
        first_chunk_size (`int`, *optional*): codes in the first piece of each speech turn, for an early start; the
            chunk size when omitted.
        timeout (`float`, *optional*): seconds to wait for the next piece before `queue.Empty` is raised.

    Raises:
        ValueError: a chunk size below 1, a batch of several rows.
    """

    def __init__(
        self,
        config: SplitLayerQwen3Config,
        chunk_size: int = 25,
        first_chunk_size: int | None = None,
        timeout: float | None = None,
    ):
        first_chunk_size = chunk_size if first_chunk_size is None else first_chunk_size
        if chunk_size < 1 or first_chunk_size < 1:
            raise ValueError(
                f"`chunk_size` and `first_chunk_size` are {chunk_size} and {first_chunk_size}; at least 1"
            )
        self.config, self.chunk_size, self.first_chunk_size, self.timeout = (
            config,
            chunk_size,
            first_chunk_size,
            timeout,
        )
        self.result = None
        self._events: Queue = Queue()
        self._codes: list[int] = []
        self._speaks = False
        self._size = first_chunk_size
        self._is_prompt = True
        self._is_over = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def put(self, value: torch.LongTensor):
        if len(value) != 1:
            raise ValueError(f"a SpeechStreamer follows one row, not {len(value)}")
        flat = rows_to_flat(value[0], self.config)
        if self._is_prompt:
            self._is_prompt = False
            self._speaks = bool(speaks_next(flat[-1], self.config))
            return
        for index in flat.tolist():
            self._put_id(index)

    def _put_id(self, index: int):
        config = self.config
        if index >= config.vocab_size:
            self._speaks = True
            if index == config.vocab_size + config.eosp_token_id:
                self._flush()
            else:
                self._codes.append(index - config.vocab_size)
                if len(self._codes) == self._size:
                    self._emit(ends_speech=False)
            return
        if self._speaks:  # speech that was left without its end
            self._flush()
        self._events.put(StreamEvent("text", torch.tensor([index])))
        self._speaks = index == config.sosp_token_id

    def _emit(self, ends_speech: bool):
        self._events.put(StreamEvent("audio", torch.tensor(self._codes, dtype=torch.long), ends_speech))
        self._codes, self._size = [], self.chunk_size

    def _flush(self):
        self._emit(ends_speech=True)
        self._speaks, self._size = False, self.first_chunk_size

    def end(self):
        if self._speaks:
            self._flush()
        self._is_prompt = True
        self._events.put(None)

    def start(self, generate: Callable, *args, **kwargs) -> threading.Thread:
        """Run `generate(*args, streamer=self, **kwargs)` in a thread. Its result is `self.result` when the iteration
        is over; what it raises is raised by the iteration."""
        criteria = kwargs.pop("stopping_criteria", None) or []
        criteria = [criteria] if isinstance(criteria, StoppingCriteria) else list(criteria)
        self._stop.clear()
        self._is_over, self._error, self.result = False, None, None
        self._events = Queue()

        def run():
            try:
                self.result = generate(
                    *args, streamer=self, stopping_criteria=[*criteria, _Stop(self._stop)], **kwargs
                )
            except BaseException as error:  # handed to the thread that reads
                self._error = error
                self._events.put(None)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        return self._thread

    def cancel(self):
        """Stop what `start` began; its `finish_reason` is `"cancelled"`. May be called from any thread."""
        self._stop.set()

    def __iter__(self):
        return self

    def __next__(self) -> StreamEvent:
        if self._is_over:
            raise StopIteration
        event = self._events.get(timeout=self.timeout)
        if event is not None:
            return event
        self._is_over = True
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        raise StopIteration


__all__ = ["FlatIdStreamer", "RowStreamer", "SpeechStreamer", "StreamEvent"]
