"""Examples of MOSS-Speech to learn from: answers of chats, and interleaved documents."""

from collections.abc import Mapping, Sequence
from typing import Any

from .moss_speech_chat import parse_content, parse_conversations, parse_modalities
from .processor_with_audio_tokenizer import ProcessorWithAudioTokenizer


class MossSpeechExamplesMixin(ProcessorWithAudioTokenizer):
    """The part of [`MossSpeechProcessor`] that makes examples for training."""

    def build_examples(
        self,
        conversations: Any,
        output_modalities: str | Sequence[str] | None = None,
        *,
        sampling_rate: int | None = None,
        resample: bool = False,
        add_system_prompt: bool = True,
        learn_start_of_speech: bool = False,
        max_length: int | None = None,
    ) -> list[dict[str, list]]:
        """Rows to learn the answers of the assistant from, not padded: dicts of plain lists, as a data set stores them.

        Learned is what the assistant says in all of its turns: texts, codes, ends of speech and ends of turns. Questions
        and answers may be text or audio in any combination. Recordings are encoded together.

        Args:
            conversations: one or a list, see `__call__`; each ends with a turn of the assistant.
            output_modalities: chooses the default system turn; by default the modality of the last turn.
            sampling_rate, resample, add_system_prompt: see `__call__`.
            learn_start_of_speech (`bool`, *optional*, defaults to `False`): also learn the row that starts a spoken
                answer. It is part of the prompt in the release.
            max_length (`int`, *optional*): the longest accepted example in rows; a longer one is an error.

        Returns:
            Per conversation `input_ids` rows `[L][2]` and `labels` flat ids `[L]`, at the rows that they name (the model
            shifts): a text id, `vocab_size` + an audio id, -100 where nothing is learned.
        """
        conversations = parse_conversations(conversations)
        if output_modalities is None:
            output_modalities = [turns[-1].content.modality for turns in conversations]
        modalities = parse_modalities(output_modalities, len(conversations))
        builder = self._builder
        return _checked_length(
            [
                builder.example(turns, modality, add_system_prompt, learn_start_of_speech)
                for turns, modality in zip(
                    self._encoded(conversations, sampling_rate, resample), modalities, strict=True
                )
            ],
            max_length,
        )

    def build_example(self, conversation: Any, output_modality: str | None = None, **kwargs) -> dict[str, list]:
        """The example of one conversation, see [`~MossSpeechProcessor.build_examples`]."""
        return _only(self.build_examples(conversation, output_modality, **kwargs), "build_example")

    def build_documents(
        self,
        documents: Sequence[Sequence[Any]],
        *,
        sampling_rate: int | None = None,
        resample: bool = False,
        max_length: int | None = None,
    ) -> list[dict[str, list]]:
        """Rows of documents for pre-training, not padded; everything in them is learned.

        Args:
            documents: each is a list of chunks, texts and stretches of speech in any order. A chunk is what the content
                of a turn may be. A stretch of speech gets its start and end; behind the last chunk stands `pad_token`.
            sampling_rate, resample, max_length: see [`~MossSpeechProcessor.build_examples`].

        Returns:
            As [`~MossSpeechProcessor.build_examples`].
        """
        parsed = []
        for number, chunks in enumerate(documents):
            if isinstance(chunks, (str, Mapping)) or not len(chunks):
                raise ValueError(f"document {number} must be a list of chunks, not empty")
            places = [f"document {number}, chunk {i}" for i in range(len(chunks))]
            parsed.append([parse_content(chunk, place) for chunk, place in zip(chunks, places, strict=True)])
        contents = self._encoded_contents([chunk for chunks in parsed for chunk in chunks], sampling_rate, resample)
        contents, builder = iter(contents), self._builder
        return _checked_length([builder.document([next(contents) for _ in chunks]) for chunks in parsed], max_length)

    def build_document(self, chunks: Sequence[Any], **kwargs) -> dict[str, list]:
        """The rows of one document, see [`~MossSpeechProcessor.build_documents`]."""
        return _only(self.build_documents([chunks], **kwargs), "build_document")


def _checked_length(examples: list[dict[str, list]], max_length: int | None) -> list[dict[str, list]]:
    for number, example in enumerate(examples):
        length = len(example["input_ids"])
        if max_length is not None and length > max_length:
            raise ValueError(f"example {number} has {length} rows; `max_length` is {max_length}, and nothing is cut")
    return examples


def _only(examples: list[dict[str, list]], method: str) -> dict[str, list]:
    if len(examples) != 1:
        raise ValueError(f"`{method}` makes one example, {len(examples)} were given")
    return examples[0]


__all__ = ["MossSpeechExamplesMixin"]
