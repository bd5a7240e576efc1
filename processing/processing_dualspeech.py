"""Processor of DualSpeechLM: text and recordings to ids, ids back to text and recordings."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, Unpack
from transformers.utils import PaddingStrategy, TensorType

from ..configuration.configuration_dualspeech import DualSpeechConfig
from .audio import as_array, save_audio
from .feature_extraction_dualspeech import DualSpeechFeatureExtractor
from .generation_results import DualSpeechResult, add_audio, has_acoustic_codes, is_generate_output, text_results
from .processor_with_audio_tokenizer import ProcessorWithAudioTokenizer
from .row_encoding import check_speaker, encode_prompts, encode_targets, resolve_speakers
from .row_inputs import split_rows
from .sequence_builder import AcousticTargets, SequenceBuilder, pad_examples
from .size_checks import raise_on_difference, sizes_of_model
from .tokenization_dualspeech import speech_token_ids

SPEAKERS_FILE = "speakers.safetensors"
# What the audio tokenizer makes of a recording, and the attribute that is `None` where it cannot.
_OUTPUTS = {
    "us_codes": "semantic_codebook_size",
    "acoustic_codes": "acoustic_codebook_size",
    "speaker_embeds": "speaker_embedding_size",
}


class DualSpeechTextKwargs(TypedDict, total=False):
    padding: bool | str | PaddingStrategy | None
    padding_side: Literal["left", "right"] | None
    max_length: int | None
    truncation: bool | None
    pad_to_multiple_of: int | None
    return_tensors: str | TensorType | None


class DualSpeechAudioKwargs(TypedDict, total=False):
    sampling_rate: int | None
    resample: bool


class DualSpeechProcessorKwargs(ProcessingKwargs, total=False):
    text_kwargs: DualSpeechTextKwargs
    audio_kwargs: DualSpeechAudioKwargs


class DualSpeechProcessor(ProcessorWithAudioTokenizer):
    """Text tokenizer and feature extractor of DualSpeechLM, with the audio tokenizer at their side.

    The audio tokenizer (a [`DualTokenizerModel`]) lives in the sub-folder `audio_tokenizer/` of the checkpoint. It is
    loaded when it is first needed, and saved and pushed with the processor. Named speaker vectors (`speakers`) are kept
    in `speakers.safetensors`. A pickle (for the processes of `datasets.map` or of a data loader) holds the place of an
    audio tokenizer that came from a checkpoint, and each process loads it anew.

    Sizes and ids must be those of the model, which sees ids only and cannot notice: [`~DualSpeechProcessor.from_config`]
    takes them from it, and [`~DualSpeechProcessor.check_model`] compares them, also for
    `DualSpeechDataCollator(processor, model=model)`.

    Args:
        feature_extractor ([`DualSpeechFeatureExtractor`]): checks and batches recordings.
        tokenizer (`PreTrainedTokenizerBase`): a text tokenizer with the speech tokens (see
            [`~processing.tokenization_dualspeech.extend_tokenizer`]) and an end-of-sequence token.
        semantic_codebook_size (`int`, *optional*, defaults to 1024): number of USTokens.
        acoustic_codebook_size (`int`, *optional*, defaults to 4096): ids that AcousticGPT sees per codebook; `None` for
            a model without an acoustic stage.
        num_acoustic_codebooks (`int`, *optional*, defaults to 1): codes per position of AcousticGPT.
        speaker_embedding_size (`int`, *optional*, defaults to 512): width of speaker vectors; `None` for a model without
            a speaker token or without an acoustic stage.
        acoustic_none_token_id (`int`, *optional*): label "no speech"; `acoustic_codebook_size + 1` if not given.
        acoustic_eos_token_id (`int`, *optional*): label behind the last code; `acoustic_codebook_size + 3` if not given.
        audio_subfolder (`str`, *optional*): set in saved processors that have an audio tokenizer.
        chat_template (`str`, *optional*): unused by the eight tasks.
        audio_tokenizer ([`DualTokenizerModel`], *optional*): needed for recordings, not for ready codes.

    Example:

    ```python
    >>> processor = AutoProcessor.from_pretrained(checkpoint)
    >>> inputs = processor(task="asr", audio="speech.wav")
    >>> processor.batch_decode(model.generate(**inputs))[0].text

    >>> inputs = processor("Good morning.", task="tts", speaker="voice.wav")
    >>> result = processor.batch_decode(model.generate(**inputs))[0]  # result.audio at result.sampling_rate
    ```
    """

    valid_processor_kwargs = DualSpeechProcessorKwargs
    text_kwargs = {"padding": True, "return_tensors": "pt"}
    optional_files = (SPEAKERS_FILE,)

    def __init__(
        self,
        feature_extractor: DualSpeechFeatureExtractor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        semantic_codebook_size: int = 1024,
        acoustic_codebook_size: int | None = 4096,
        num_acoustic_codebooks: int = 1,
        speaker_embedding_size: int | None = 512,
        acoustic_none_token_id: int | None = None,
        acoustic_eos_token_id: int | None = None,
        audio_subfolder: str | None = None,
        chat_template: str | None = None,
        audio_tokenizer: PreTrainedModel | None = None,
    ):
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)
        if acoustic_codebook_size is None:
            # The speaker token is part of AcousticGPT's condition.
            num_acoustic_codebooks, speaker_embedding_size = 1, None
        else:
            # The layout of AcousticGPT's ids: codes, pad, none, start, end.
            if acoustic_none_token_id is None:
                acoustic_none_token_id = acoustic_codebook_size + 1
            if acoustic_eos_token_id is None:
                acoustic_eos_token_id = acoustic_codebook_size + 3
        self.semantic_codebook_size = semantic_codebook_size
        self.acoustic_codebook_size = acoustic_codebook_size
        self.num_acoustic_codebooks = num_acoustic_codebooks
        self.speaker_embedding_size = speaker_embedding_size or None
        self.acoustic_none_token_id = acoustic_none_token_id
        self.acoustic_eos_token_id = acoustic_eos_token_id
        self.speech_token_ids = speech_token_ids(tokenizer, semantic_codebook_size)
        self._speakers = {}
        self._set_audio_tokenizer(audio_tokenizer, audio_subfolder)

    @classmethod
    def from_config(
        cls,
        config: DualSpeechConfig,
        tokenizer: PreTrainedTokenizerBase,
        feature_extractor: DualSpeechFeatureExtractor | None = None,
        audio_tokenizer: PreTrainedModel | None = None,
    ) -> "DualSpeechProcessor":
        """A processor with the sizes of a model and, without a `feature_extractor`, the rates of `audio_tokenizer`.

        Raises:
            ValueError: the tokenizer or the audio tokenizer does not fit the model.
        """
        if feature_extractor is None:
            rates = {
                "sampling_rate": getattr(audio_tokenizer, "semantic_sampling_rate", None),
                "codec_sampling_rate": getattr(audio_tokenizer, "codec_sampling_rate", None),
            }
            feature_extractor = DualSpeechFeatureExtractor(**{name: rate for name, rate in rates.items() if rate})
        processor = cls(feature_extractor, tokenizer, **sizes_of_model(config), audio_tokenizer=audio_tokenizer)
        processor.check_model(config)
        return processor

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "task_type_ids", "speaker_embeds"]

    @property
    def pad_token_id(self) -> int:
        """The tokenizer's pad id, or its end-of-sequence id where it has none; padding is masked in either case."""
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    # Building batches

    def __call__(
        self,
        text: str | Sequence[str | None] | None = None,
        audio: Any = None,
        *,
        task: str | Sequence[str] | None = None,
        question: Any = None,
        speaker: Any = None,
        source_language: str | Sequence[str | None] | None = None,
        target_language: str | Sequence[str | None] | None = None,
        targets: Any = None,
        **kwargs: Unpack[DualSpeechProcessorKwargs],
    ) -> BatchFeature:
        """Inputs of `generate`, or with `targets` of `forward` in training.

        Every argument is one value or a list with one per row (`None` where a row's task does not take it); a single
        value is used in all rows whose task takes it. Tasks may be mixed. `task` is always needed: the any-to-any
        pipeline hands it on (`pipe(text="", audio=..., task="asr")`). An empty `text` counts as none.

        | task | takes | answers with |
        | --- | --- | --- |
        | asr, ser | audio | text |
        | s2tt | audio, source_language, target_language | text |
        | sqa | audio, question (text) | text |
        | tts | text, speaker | speech |
        | t2st | text, source_language, target_language, speaker | speech |
        | vc | audio, speaker | speech |
        | sc | audio, question (audio), speaker | speech |

        Args:
            text: what is spoken (tts) or translated (t2st).
            audio: a recording in any form that [`~processing.audio.load_audio`] reads, or a one-dimensional array or
                list of whole numbers: its USTokens.
            task: name of the task.
            question: of sqa (text) and sc (a recording, as `audio`).
            speaker: the voice of a spoken answer: a vector `[E]`, a recording, or a name in `self.speakers`.
            source_language, target_language: of the translation tasks, in words ("English").
            targets: the answers. A string (text tasks) or a dict with `text`; with `audio` and, for a bare array,
                `sampling_rate`; or with `us_codes` `[T]`, `acoustic_codes` `[A]` (`[A, K]`) and `speaker_embeds` `[E]`.
                Where `speaker` is not given, it is the target's. In vc, the answer's USTokens are those of the input
                unless `us_codes` are given.
            sampling_rate (`int`, *optional*): rate in Hz of bare arrays of samples.
            resample (`bool`, *optional*, defaults to `False`): convert recordings of another rate than needed (see
                [`DualSpeechFeatureExtractor`]); without it they are an error.
            padding, padding_side, max_length, pad_to_multiple_of, return_tensors: see [`~DualSpeechProcessor.pad`].
                Padded on the left for generation and on the right with `targets`, if not said otherwise.

        Returns:
            `input_ids`, `attention_mask` `[B, L]`, `task_type_ids` `[B]`, and where a row speaks `speaker_embeds` `[B, E]`
            (zeros on text rows). With `targets` also `labels`, `prompt_mask` `[B, L]`, `acoustic_labels` `[B, A]` or
            `[B, A, K]`.

        Raises:
            ValueError: an unknown task, a missing or superfluous input, text that spells speech or special tokens, a bad
                recording, codes outside the codebook, or a row longer than `max_length`. Nothing is cut or left out.
        """
        accepted = {*DualSpeechTextKwargs.__annotations__, *DualSpeechAudioKwargs.__annotations__}
        # The any-to-any pipeline always passes `images` and `videos`.
        kwargs = {name: value for name, value in kwargs.items() if name in accepted or value is not None}
        if unknown := sorted(set(kwargs) - accepted - {"text_kwargs", "audio_kwargs"}):
            raise TypeError(f"unexpected arguments {unknown}; besides the inputs, accepted are {sorted(accepted)}")
        merged = self._merge_kwargs(self.valid_processor_kwargs, **kwargs)
        audio_kwargs = {k: v for k, v in merged["audio_kwargs"].items() if k in DualSpeechAudioKwargs.__annotations__}
        text_kwargs = merged["text_kwargs"]
        if text_kwargs.pop("truncation", None):
            raise ValueError("`truncation` is not supported: rows are never cut; raise `max_length` or leave rows out")
        if text_kwargs.get("padding_side") is None:
            text_kwargs["padding_side"] = "left" if targets is None else "right"
        examples = self.build_examples(
            text,
            audio,
            task=task,
            question=question,
            speaker=speaker,
            source_language=source_language,
            target_language=target_language,
            targets=targets,
            **audio_kwargs,
        )
        return self.pad(examples, **text_kwargs)

    def build_examples(
        self,
        text: str | Sequence[str | None] | None = None,
        audio: Any = None,
        *,
        task: str | Sequence[str] | None = None,
        question: Any = None,
        speaker: Any = None,
        source_language: str | Sequence[str | None] | None = None,
        target_language: str | Sequence[str | None] | None = None,
        targets: Any = None,
        sampling_rate: int | None = None,
        resample: bool = False,
        max_length: int | None = None,
    ) -> list[dict[str, Any]]:
        """The rows of `__call__`, not padded: dicts of plain lists, what a data set stores after `map`.

        Recordings are encoded together, so several rows at a time are faster than one.

        Args:
            max_length (`int`, *optional*): the longest accepted row in ids. The released code drops rows of 2000 ids
                and more; 1999 is the same limit here, but an error.
            Others: see `__call__`.

        Returns:
            Per row `input_ids`, `task_type_ids` (`int`), `speaker_embeds` (`None` on text rows); with `targets` also
            `labels`, `prompt_mask` and, for a model with an acoustic stage, `acoustic_labels`.
        """
        fields = {
            "audio": audio,
            "question": question,
            "text": text,
            "source_language": source_language,
            "target_language": target_language,
        }
        acoustic, size = self._acoustic_targets, self.speaker_embedding_size
        rows = split_rows(task, fields, speaker, targets)
        encode_prompts(rows, self.encode_audio, sampling_rate, resample)
        if targets is not None:
            encode_targets(rows, self.encode_audio, sampling_rate, resample, acoustic is not None, size is not None)
        resolve_speakers(rows, self.encode_audio, self.speakers, size, resample)
        builder = SequenceBuilder(self.tokenizer, self.speech_token_ids)
        examples = []
        for i, row in enumerate(rows):
            example = builder.example(row.task, row.fields, row.target and row.target["answer"])
            if row.target is not None and acoustic is not None:
                example["acoustic_labels"] = acoustic.labels(row.target["acoustic_codes"])
            example["speaker_embeds"] = None if row.speaker is None else row.speaker.tolist()
            length = len(example["input_ids"])
            if max_length is not None and length > max_length:
                raise ValueError(f"row {i} ({row.task.name}) has {length} ids; `max_length` is {max_length}")
            examples.append(example)
        return examples

    def build_example(self, text: str | None = None, audio: Any = None, **kwargs) -> dict[str, Any]:
        """One row of [`~DualSpeechProcessor.build_examples`]."""
        examples = self.build_examples(text, audio, **kwargs)
        if len(examples) != 1:
            raise ValueError(f"`build_example` makes one row, the arguments describe {len(examples)}")
        return examples[0]

    def pad(
        self,
        examples: Iterable[Mapping[str, Any]],
        padding: bool | str = True,
        padding_side: Literal["left", "right"] = "right",
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | TensorType | None = "pt",
    ) -> BatchFeature:
        """Pad rows of [`~DualSpeechProcessor.build_examples`] to a batch. Other keys of the rows are not looked at.

        Args:
            examples: the rows.
            padding: `True` or `"longest"`, `"max_length"`, or `False`.
            padding_side: of the ids, their mask, labels and prompt mask; acoustic labels are always right-padded.
            max_length (`int`, *optional*): the longest accepted row, and with `padding="max_length"` the length of all.
            pad_to_multiple_of (`int`, *optional*): round the length up.
            return_tensors: `"pt"`, `"np"`, or `None` for lists.

        Returns:
            See `__call__`. Training batches of a model with a speaker token always have `speaker_embeds`.
        """
        return pad_examples(
            examples,
            pad_token_id=self.pad_token_id,
            speaker_embedding_size=self.speaker_embedding_size,
            padding=padding,
            padding_side=padding_side,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            return_tensors=return_tensors,
        )

    def encode_audio(
        self,
        audio: Any,
        sampling_rate: int | None = None,
        resample: bool = False,
        outputs: Sequence[str] | None = None,
    ) -> list[dict[str, np.ndarray]]:
        """Codes and speaker vectors of recordings, in one batch, on the device of the audio tokenizer.

        Args:
            audio: one recording or a list.
            sampling_rate, resample: see `__call__`.
            outputs (*optional*): some of `"us_codes"`, `"acoustic_codes"`, `"speaker_embeds"`; all that the audio
                tokenizer has parts for if not given.

        Returns:
            Per recording `us_codes` int64 `[T]`, `acoustic_codes` int64 `[A]` or `[A, K]`, `speaker_embeds` float32 `[E]`.
        """
        model = self._required_audio_tokenizer("to read recordings; codes can be given instead")
        if outputs is None:
            outputs = [name for name, size in _OUTPUTS.items() if getattr(model, size) is not None]
        features = self.feature_extractor(
            audio,
            sampling_rate=sampling_rate,
            resample=resample,
            return_input_values=any(name != "acoustic_codes" for name in outputs),
            return_codec_values="acoustic_codes" in outputs,
            return_tensors="pt",
        )
        with torch.no_grad():
            encoded = model.encode(**features.to(model.device), outputs=tuple(outputs))
        rows = [{} for _ in range(len(encoded[outputs[0]]))]
        for name in outputs:
            mask = encoded.get(f"{name}_mask")
            for i, row in enumerate(rows):
                value = encoded[name][i] if mask is None else encoded[name][i][mask[i].bool()]
                row[name] = value.float().cpu().numpy() if mask is None else value.cpu().numpy()
        return rows

    @property
    def _acoustic_targets(self) -> AcousticTargets | None:
        if self.acoustic_codebook_size is None:
            return None
        return AcousticTargets(
            self.acoustic_codebook_size,
            self.num_acoustic_codebooks,
            self.acoustic_none_token_id,
            self.acoustic_eos_token_id,
        )

    # Back to text and sound

    def batch_decode(
        self, output: Any, skip_special_tokens: bool | None = None, **kwargs
    ) -> list[DualSpeechResult] | list[str]:
        """The rows of a generation as text and waveforms; plain ids are decoded as the tokenizer does.

        Args:
            output ([`DualSpeechGenerateOutput`] or ids): what `generate` returned, or ids in any form that the
                tokenizer's `batch_decode` takes.
            skip_special_tokens (`bool`, *optional*): `True` for a generation and `False` for ids, if not given.
            kwargs: for the tokenizer's `decode`.

        Returns:
            Per row a [`~processing.generation_results.DualSpeechResult`]; per row a string for ids.

        Raises:
            ValueError: there are acoustic codes and no audio tokenizer.
        """
        if not is_generate_output(output):
            return self.tokenizer.batch_decode(output, skip_special_tokens=bool(skip_special_tokens), **kwargs)
        skip = skip_special_tokens is None or skip_special_tokens
        results = text_results(output, self.tokenizer, self.speech_token_ids, skip, **kwargs)
        if has_acoustic_codes(output):
            add_audio(results, output, self._required_audio_tokenizer("to decode acoustic codes"))
        return results

    def post_process_multimodal_output(
        self,
        generated_outputs: Any,
        skip_special_tokens: bool = True,
        generation_mode: str | None = None,
        **kwargs,
    ) -> list[str] | list[np.ndarray]:
        """What the any-to-any pipeline shows: texts (empty for rows that speak), or waveforms.

        Args:
            generated_outputs: what `generate` returned; ids are accepted for text.
            generation_mode (`str`, *optional*): `"text"` (as `None`) or `"audio"`.

        Raises:
            ValueError: another mode, or `"audio"` for a row that answers with text.
        """
        if generation_mode == "audio":
            results = self.batch_decode(generated_outputs, skip_special_tokens, **kwargs)
            for i, result in enumerate(results):
                if not isinstance(result, DualSpeechResult) or result.text is not None:
                    raise ValueError(f"`generation_mode='audio'`, but row {i} answers with text")
            silence = np.zeros(0, dtype=np.float32)
            return [silence if result.audio is None else result.audio for result in results]
        if generation_mode not in (None, "text"):
            raise ValueError(f"`generation_mode` is {generation_mode!r}; accepted are 'text' and 'audio'")
        if not is_generate_output(generated_outputs):
            return self.batch_decode(generated_outputs, skip_special_tokens, **kwargs)
        results = text_results(generated_outputs, self.tokenizer, self.speech_token_ids, skip_special_tokens, **kwargs)
        return [result.text or "" for result in results]

    @staticmethod
    def save_audio(path: str | os.PathLike, audio: Any, sampling_rate: int) -> None:
        """Write a waveform, see [`~processing.audio.save_audio`]."""
        save_audio(path, audio, sampling_rate)

    # Audio tokenizer and speakers

    def _check_audio_tokenizer(self, model: PreTrainedModel) -> None:
        mine = {
            "semantic_sampling_rate": self.feature_extractor.sampling_rate,
            "codec_sampling_rate": self.feature_extractor.codec_sampling_rate,
            "num_acoustic_codebooks": self.num_acoustic_codebooks,
            **{name: getattr(self, name) for name in _OUTPUTS.values()},
        }
        # A part may be missing on either side: codes and vectors can come from elsewhere.
        theirs = {name: getattr(model, name) for name in mine}
        shared = {name: value for name, value in mine.items() if None not in (value, theirs[name])}
        raise_on_difference("audio tokenizer", shared, theirs)

    @property
    def speakers(self) -> dict[str, np.ndarray]:
        """Named voices: name -> vector, float32 `[E]`. Assign a mapping or a [`PrecomputedSpeakers`]."""
        return self._speakers

    @speakers.setter
    def speakers(self, speakers: Any):
        size = self.speaker_embedding_size
        if size is None:
            raise ValueError("`speakers` are of no use: the model has no speaker token (`speaker_embedding_size`)")
        vectors = {name: as_array(v).astype(np.float32) for name, v in getattr(speakers, "vectors", speakers).items()}
        self._speakers = {name: check_speaker(f"speaker {name!r}", v, size) for name, v in vectors.items()}

    def check_model(self, model_or_config: PreTrainedModel | DualSpeechConfig) -> None:
        """Raise a `ValueError` with both numbers where this processor and a model differ.

        `generate` and `Trainer` see ids only and cannot notice. Call it once wherever both are at hand; a
        [`~training.data_collator.DualSpeechDataCollator`] that is given the model does.
        """
        config = getattr(model_or_config, "config", model_or_config)
        theirs = sizes_of_model(config)
        mine = {name: getattr(self, name) for name in theirs}
        for name in ("audio_start_token_id", "audio_end_token_id", "semantic_token_offset"):
            mine[name], theirs[name] = getattr(self.speech_token_ids, name), getattr(config, name)
        raise_on_difference("model", mine, theirs)
        vocab_size = config.get_text_config().vocab_size
        if len(self.tokenizer) > vocab_size:
            raise ValueError(f"the tokenizer has {len(self.tokenizer)} tokens, the model embeds {vocab_size}")

    def _save_optional_files(self, folder: Path) -> None:
        if self._speakers:
            vectors = {name: np.asarray(vector, dtype=np.float32) for name, vector in self._speakers.items()}
            save_file(vectors, folder / SPEAKERS_FILE)

    def _load_optional_file(self, path: Path) -> None:
        self.speakers = load_file(path)


__all__ = ["DualSpeechProcessor", "DualSpeechProcessorKwargs"]
