"""Steps from rows of data to token rows, what the language models train on."""

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from ...processing.moss_speech_chat import parse_conversations
from ...processing.processing_dualspeech import DualSpeechProcessor
from ...processing.processing_moss_speech import MossSpeechProcessor
from ...processing.processor_with_audio_tokenizer import AUDIO_SUBFOLDER, ProcessorWithAudioTokenizer
from .model_step import ModelStep, default_device, loaded
from .row_audio import decode_bytes, map_recordings
from .row_checks import check_row
from .step import Outcome, Rejection, Row

# Inputs of a task row that `DualSpeechProcessor.build_examples` takes.
_TASK_INPUTS = ("text", "audio", "question", "speaker", "source_language", "target_language", "targets")
# Files that make a processor, among others in the folder of a checkpoint.
_PROCESSOR_FILES = (
    "*processor_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "spiece.model",
)


@dataclass
class TokenizeStep(ModelStep):
    """
    Base of the steps that make token rows: what the processor makes of a row, with its `source` (else its `id`) and its
    `length` in ids. Recordings of a batch are encoded together. A row that the processor refuses is rejected.

    Args:
        processor: checkpoint of the processor, a folder or a Hub repository.
        resample: convert recordings of other rates instead of rejecting them.
        max_length: the longest accepted row in ids; longer ones are rejected, never cut.
        check_schema: also reject rows that `row_schema.json` does not allow, such as those with unknown keys.
        revision: of the Hub repository.
        batch_size: rows that are encoded together, 16 by default.
        device, dtype: of the audio tokenizer, see [`ModelStep`].
    """

    kind = ""  # of rows, see `validate_rows`
    processor_class = ProcessorWithAudioTokenizer
    _processor = None

    processor: str
    resample: bool = False
    max_length: int | None = None
    check_schema: bool = False
    revision: str | None = None
    batch_size: int = field(default=16, kw_only=True)

    def setup(self) -> None:
        hub_arguments = {} if self.revision is None else {"revision": self.revision}
        self._processor = self.processor_class.from_pretrained(self.processor, **hub_arguments)
        if self._processor.audio_subfolder is not None:
            self._processor.load_audio_tokenizer(default_device(self.device), self.dtype)

    def settings(self) -> dict[str, Any]:
        version = checkpoint_version(self.processor, self.revision, self.processor_class.optional_files)
        return {**super().settings(), "processor_version": version}

    def process(self, rows: Sequence[Row]) -> list[Outcome]:
        outcomes: list[Outcome | None] = [None] * len(rows)
        prepared = {}
        for place, row in enumerate(rows):
            try:
                prepared[place] = self.prepare(map_recordings(row, decode_bytes))
            except ValueError as error:
                outcomes[place] = Rejection(str(error))
        examples = self.examples(list(prepared.values())) if prepared else []
        for (place, row), example in zip(prepared.items(), examples, strict=True):
            length = len(example["input_ids"])
            if self.max_length is not None and length > self.max_length:
                outcomes[place] = Rejection(f"the row has {length} ids; `max_length` is {self.max_length}")
            else:
                source = row.get("source") or row.get("id")
                outcomes[place] = [{**example, "source": source, "length": length}]
        return outcomes

    def prepare(self, row: Row) -> Row:
        """What can be checked without its recordings.

        Raises:
            ValueError: the row is bad.
        """
        if self.check_schema:
            check_row(row, self.kind)
        return row

    @abstractmethod
    def examples(self, rows: list[Row]) -> list[dict[str, Any]]:
        """The examples of rows, in one batch.

        Raises:
            ValueError: one of the rows is bad.
        """


@dataclass
class TokenizeTasks(TokenizeStep):
    """
    Task rows to the rows of [`DualSpeechProcessor.build_examples`], for [`DualSpeechDataCollator`].

    ```python
    >>> step = TokenizeTasks("my-dualspeech", resample=True, max_length=1999)
    >>> run_step(step, "rows.jsonl", "tokens")
    >>> dataset = load_rows("tokens")
    ```
    """

    name = "tokenize_tasks"
    kind = "task"
    processor_class = DualSpeechProcessor

    def examples(self, rows: list[Row]) -> list[dict[str, Any]]:
        columns = {name: [row.get(name) for row in rows] for name in ("task", *_TASK_INPUTS)}
        return loaded(self._processor, self).build_examples(**columns, resample=self.resample)


@dataclass
class TokenizeChats(TokenizeStep):
    """
    Chat rows to the rows of [`MossSpeechProcessor.build_examples`], for [`MossSpeechDataCollator`].

    Args:
        add_system_prompt, learn_start_of_speech: see [`~MossSpeechProcessor.build_examples`].
        Others: see [`TokenizeStep`].
    """

    name = "tokenize_chats"
    kind = "chat"
    processor_class = MossSpeechProcessor

    add_system_prompt: bool = True
    learn_start_of_speech: bool = False

    def prepare(self, row: Row) -> Row:
        row = super().prepare(row)
        (turns,) = parse_conversations([row.get("messages")])
        return {**row, "output_modality": row.get("output_modality") or turns[-1].content.modality}

    def examples(self, rows: list[Row]) -> list[dict[str, Any]]:
        return loaded(self._processor, self).build_examples(
            [row["messages"] for row in rows],
            [row["output_modality"] for row in rows],
            resample=self.resample,
            add_system_prompt=self.add_system_prompt,
            learn_start_of_speech=self.learn_start_of_speech,
        )


@dataclass
class TokenizeDocuments(TokenizeStep):
    """Document rows to the rows of [`MossSpeechProcessor.build_documents`], for [`MossSpeechDataCollator`]; the arguments
    are those of [`TokenizeStep`]."""

    name = "tokenize_documents"
    kind = "document"
    processor_class = MossSpeechProcessor

    def prepare(self, row: Row) -> Row:
        row = super().prepare(row)
        if not isinstance(row.get("chunks"), list):
            raise ValueError(f"a document row needs `chunks`, a list; the row has {sorted(row)}")
        return row

    def examples(self, rows: list[Row]) -> list[dict[str, Any]]:
        return loaded(self._processor, self).build_documents([row["chunks"] for row in rows], resample=self.resample)


def checkpoint_version(checkpoint: str, revision: str | None = None, optional_files: Sequence[str] = ()) -> str | None:
    """What changes when a processor does: a digest of its files in a folder, or the commit of a Hub repository."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        return extract_commit_hash(cached_file(checkpoint, "processor_config.json", revision=revision), None)
    digest = hashlib.sha256()
    patterns = (*_PROCESSOR_FILES, *optional_files, f"{AUDIO_SUBFOLDER}/**/*")
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}):
        digest.update(f"{path.relative_to(folder)}\0".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


__all__ = ["TokenizeChats", "TokenizeDocuments", "TokenizeStep", "TokenizeTasks", "checkpoint_version"]
