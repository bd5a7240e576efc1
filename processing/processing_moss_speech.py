"""Processor of MOSS-Speech: chats of text and recordings to rows of ids, generated rows back to text and sound."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, Unpack
from transformers.utils import PaddingStrategy, TensorType, cached_file

from ..configuration.configuration_split_layer_qwen3 import SplitLayerQwen3Config
from .audio import read_audio, save_audio
from .feature_extraction_moss_speech import MossSpeechFeatureExtractor
from .moss_speech_chat import ChatTemplate, Content, Turn, conversations_of, parse_conversations, parse_modalities
from .moss_speech_examples import MossSpeechExamplesMixin
from .moss_speech_recordings import fetch
from .moss_speech_replies import VOICE_FILE, MossSpeechRepliesMixin
from .moss_speech_rows import TOKEN_NAMES, RowBuilder, RowIds, pad_rows, settings_of_config
from .row_inputs import is_one_recording
from .size_checks import raise_on_difference

_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "token")


class MossSpeechTextKwargs(TypedDict, total=False):
    padding: bool | str | PaddingStrategy | None
    padding_side: Literal["left", "right"] | None
    max_length: int | None
    truncation: bool | None
    pad_to_multiple_of: int | None
    return_tensors: str | TensorType | None


class MossSpeechAudioKwargs(TypedDict, total=False):
    sampling_rate: int | None
    resample: bool


class MossSpeechProcessorKwargs(ProcessingKwargs, total=False):
    text_kwargs: MossSpeechTextKwargs
    audio_kwargs: MossSpeechAudioKwargs
    output_modality: str | list[str] | None
    add_generation_prompt: bool
    continue_final_message: bool
    add_system_prompt: bool
    return_assistant_tokens_mask: bool


class MossSpeechProcessor(MossSpeechExamplesMixin, MossSpeechRepliesMixin):
    """Text tokenizer and feature extractor of MOSS-Speech, with the codec at their side.

    A conversation becomes rows (text id, audio id). Each turn is wholly text or wholly speech; recordings are encoded by
    the codec (a [`MossSpeechCodecModel`]), which lives in the sub-folder `audio_tokenizer/` of the checkpoint, is loaded
    when it is first needed, and is saved and pushed with the processor. A default voice is kept in `voice.safetensors`.

    Ids and sizes must be those of the model: [`~MossSpeechProcessor.from_config`] takes them from it,
    [`~MossSpeechProcessor.check_model`] compares them. A folder laid out like the released model, with a tokenizer and
    without files of this processor, gives the ids of its `config.json` and the released defaults.

    The released chat template is not a Jinja file, and neither is the one here: `chat_template` is kept and not used.

    Args:
        feature_extractor ([`MossSpeechFeatureExtractor`]): checks recordings and makes the features of the codec.
        tokenizer (`PreTrainedTokenizerBase`): the text tokenizer, of Qwen3 in the release.
        vocab_size (`int`, *optional*, defaults to 151680): text ids of the model; labels of speech rows begin here.
        codebook_size (`int`, *optional*, defaults to 16384): number of codes.
        eosp_token_id (`int`, *optional*): audio id of the end of speech; `codebook_size` if not given.
        audio_pad_token_id (`int`, *optional*, defaults to 512): audio id of text rows, where nothing reads it.
        sosp_token (`str`, *optional*, defaults to `"<|object_ref_start|>"`): the text token that starts speech.
        modality_pad_token (`str`, *optional*, defaults to `"<think>"`): the text token of speech rows.
        pad_token (`str`, *optional*, defaults to `"<|endoftext|>"`): the text token of padding, and the end of a document.
        turn_start_token (`str`, *optional*, defaults to `"<|im_start|>"`): begins a turn.
        turn_end_token (`str`, *optional*, defaults to `"<|im_end|>"`): ends a turn and a reply.
        compat (`bool`, *optional*, defaults to `False`): do as the released processor does: the default system turn has
            another text and stands behind all turns; the first channel of a recording is taken, and any rate
            resampled; decoding drops the last row also where it is no stop row, and replaces `<|empty|>` by `.` and
            `<|end_empty|>` by `:`.
        audio_subfolder (`str`, *optional*): set in saved processors that have an audio tokenizer.
        chat_template (`str`, *optional*): not used.
        audio_tokenizer ([`MossSpeechCodecModel`], *optional*): needed for recordings and waveforms, not for codes.

    Raises:
        ValueError: a token that the tokenizer lacks, ids outside their vocabularies, a codec of other sizes.

    Example:

    ```python
    >>> processor = AutoProcessor.from_pretrained(checkpoint)
    >>> chat = [{"role": "user", "content": {"type": "audio", "path": "question.wav"}}]
    >>> inputs = processor([chat], ["audio"])
    >>> (result,) = processor.batch_decode(model.generate(**inputs))  # result.audio at result.sampling_rate
    >>> chat += [result.message(), {"role": "user", "content": "Thank you. Write it down, please."}]
    >>> processor.batch_decode(model.generate(**processor(chat, "text")))[0].text
    ```
    """

    valid_processor_kwargs = MossSpeechProcessorKwargs
    text_kwargs = {"padding": True, "return_tensors": "pt"}
    add_generation_prompt = True
    continue_final_message = False
    add_system_prompt = True
    return_assistant_tokens_mask = False
    optional_files = (VOICE_FILE,)

    def __init__(
        self,
        feature_extractor: MossSpeechFeatureExtractor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        vocab_size: int = 151680,
        codebook_size: int = 16384,
        eosp_token_id: int | None = None,
        audio_pad_token_id: int = 512,
        sosp_token: str = "<|object_ref_start|>",
        modality_pad_token: str = "<think>",
        pad_token: str = "<|endoftext|>",
        turn_start_token: str = "<|im_start|>",
        turn_end_token: str = "<|im_end|>",
        compat: bool = False,
        audio_subfolder: str | None = None,
        chat_template: str | None = None,
        audio_tokenizer: PreTrainedModel | None = None,
    ):
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)
        self.vocab_size = vocab_size
        self.codebook_size = codebook_size
        self.eosp_token_id = codebook_size if eosp_token_id is None else eosp_token_id
        self.audio_pad_token_id = audio_pad_token_id
        self.sosp_token = sosp_token
        self.modality_pad_token = modality_pad_token
        self.pad_token = pad_token
        self.turn_start_token = turn_start_token
        self.turn_end_token = turn_end_token
        self.compat = compat
        tokens = {name: getattr(self, name) for name in TOKEN_NAMES}
        self.row_ids = RowIds.find(
            tokenizer, tokens, vocab_size, codebook_size, self.eosp_token_id, audio_pad_token_id
        )
        self._set_audio_tokenizer(audio_tokenizer, audio_subfolder)

    @classmethod
    def from_config(
        cls,
        config: SplitLayerQwen3Config,
        tokenizer: PreTrainedTokenizerBase,
        feature_extractor: MossSpeechFeatureExtractor | None = None,
        audio_tokenizer: PreTrainedModel | None = None,
        **kwargs,
    ) -> "MossSpeechProcessor":
        """A processor with the ids of a model; further arguments as in `__init__`.

        Raises:
            ValueError: the tokenizer or the codec does not fit the model.
        """
        settings = settings_of_config(config, tokenizer)
        if audio_tokenizer is not None:
            settings["codebook_size"] = audio_tokenizer.codebook_size
        if feature_extractor is None:
            feature_extractor = MossSpeechFeatureExtractor(**_features_of(audio_tokenizer))
        processor = cls(feature_extractor, tokenizer, **settings | kwargs, audio_tokenizer=audio_tokenizer)
        processor.check_model(config)
        return processor

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask"]

    @property
    def template(self) -> ChatTemplate:
        """The pieces around a turn."""
        return ChatTemplate(self.turn_start_token, self.turn_end_token, self.sosp_token)

    @property
    def _builder(self) -> RowBuilder:
        return RowBuilder(self.tokenizer, self.row_ids, self.template, released_system_prompt=self.compat)

    # Prompts

    def __call__(
        self,
        conversations: Any = None,
        output_modalities: str | Sequence[str] | None = None,
        *,
        text: str | Sequence[str | None] | None = None,
        audio: Any = None,
        **kwargs: Unpack[MossSpeechProcessorKwargs],
    ) -> BatchFeature:
        """Inputs of `generate`.

        Args:
            conversations: one conversation or a list of them. A conversation is a list of turns
                `{"role": "system" | "user" | "assistant", "content": ...}`, or a string, the text of a user. The content
                is a string; `{"type": "text", "text": ...}`; `{"type": "audio", ...}` with one of `audio` (anything that
                [`~processing.audio.load_audio`] reads, also `(array, rate)`), `path`, `url` (a file or an http(s)
                address) and `codes` (a list of codes); `{"path": ..., "type": "audio/wav"}` or `{"filepath": ...}` as in
                the release; or a list with one of these. Turns of the assistant may be audio, too.
            output_modalities: `"text"` or `"audio"` (also `"speech"`), one for all or a list with one per conversation;
                text if not given. `output_modality` is another name of it.
            text, audio: instead of `conversations`, what a user writes or speaks: one or a list with one per conversation,
                with `None` or an empty text where the other is given.
            add_generation_prompt (`bool`, *optional*, defaults to `True`): end with the beginning of a reply, for a spoken
                one with the start of speech.
            continue_final_message (`bool`, *optional*, defaults to `False`): let the model go on with the last turn, of
                the assistant; then no reply is begun.
            add_system_prompt (`bool`, *optional*, defaults to `True`): begin a conversation without a system turn with the
                one of the official demo for the modality of the reply. A system turn that is given is used as it is.
            return_assistant_tokens_mask (`bool`, *optional*, defaults to `False`): also return `assistant_masks`.
            sampling_rate (`int`, *optional*): rate in Hz of bare arrays of samples.
            resample (`bool`, *optional*, defaults to `False`): convert recordings of another rate than the codec's;
                without it they are an error.
            padding, padding_side, max_length, pad_to_multiple_of, return_tensors: see [`~MossSpeechProcessor.pad`].
                Padded on the left, if not said otherwise.

        Returns:
            `input_ids` int64 `[B, L, 2]` (text id, audio id), `attention_mask` int64 `[B, L]`; when asked for,
            `assistant_masks` `[B, L]`, 1 where the assistant speaks (content and end of turn).

        Raises:
            ValueError: a turn that is not wholly text or wholly audio, an unknown role or modality, text that spells a
                control token, a bad recording, codes outside the codebook, or a conversation longer than `max_length`.
                Nothing is cut or left out.
        """
        annotations = MossSpeechProcessorKwargs.__annotations__
        own = {name for name in annotations if not name.endswith("_kwargs")}
        accepted = {*own, *MossSpeechTextKwargs.__annotations__, *MossSpeechAudioKwargs.__annotations__}
        # The any-to-any pipeline always passes `images` and `videos`.
        kwargs = {name: value for name, value in kwargs.items() if name in accepted or value is not None}
        if unknown := sorted(set(kwargs) - accepted - {"text_kwargs", "audio_kwargs", "common_kwargs"}):
            raise TypeError(f"unexpected arguments {unknown}; besides the inputs, accepted are {sorted(accepted)}")
        merged = self._merge_kwargs(self.valid_processor_kwargs, **kwargs)
        text_kwargs = merged["text_kwargs"]
        audio_kwargs = {k: v for k, v in merged["audio_kwargs"].items() if k in MossSpeechAudioKwargs.__annotations__}
        if text_kwargs.pop("truncation", None):
            raise ValueError("`truncation` is not supported: conversations are never cut; raise `max_length`")
        given = {name: value for name, value in text_kwargs.items() if value is not None or name == "return_tensors"}
        text_kwargs = {"padding_side": "left", **given}
        if merged.get("output_modality") is not None:
            if output_modalities is not None:
                raise ValueError("`output_modalities` and `output_modality` are the same; give one of them")
            output_modalities = merged["output_modality"]
        conversations = parse_conversations(conversations_of(conversations, text, audio))
        modalities = parse_modalities(output_modalities, len(conversations))
        with_mask = merged["return_assistant_tokens_mask"]
        builder, examples = self._builder, []
        for turns, modality in zip(self._encoded(conversations, **audio_kwargs), modalities, strict=True):
            rows, spoken = builder.prompt(
                turns,
                modality,
                add_generation_prompt=merged["add_generation_prompt"] and not merged["continue_final_message"],
                continue_final_message=merged["continue_final_message"],
                add_system_prompt=merged["add_system_prompt"],
            )
            examples.append({"input_ids": rows} | ({"assistant_masks": [int(i) for i in spoken]} if with_mask else {}))
        return self.pad(examples, **text_kwargs)

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        tools: Any = None,
        documents: Any = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_tensors: str | TensorType | None = "auto",
        return_dict: bool = False,
        output_modality: str | Sequence[str] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs,
    ) -> str | list[str] | torch.Tensor | BatchFeature:
        """The interface of transformers' chat templates; the template is the released one and not in Jinja.

        Args:
            conversation: one conversation or a list of them, see `__call__`.
            chat_template, tools, documents: must be `None`.
            add_generation_prompt (`bool`, *optional*, defaults to `False`): end with the beginning of a reply.
            continue_final_message (`bool`, *optional*, defaults to `False`): leave the last turn open.
            return_assistant_tokens_mask (`bool`, *optional*, defaults to `False`): with `return_dict`, also
                `assistant_masks`.
            tokenize (`bool`, *optional*, defaults to `False`): rows; otherwise a string, for conversations without audio.
            return_tensors (*optional*): see [`~MossSpeechProcessor.pad`]; `"auto"` is `"pt"`.
            return_dict (`bool`, *optional*, defaults to `False`): what `__call__` returns, and not its `input_ids` alone.
            output_modality: of the reply, see `__call__`.
            processor_kwargs, kwargs: further arguments of `__call__`.

        Returns:
            A string, or a list of them for a list of conversations; rows int64 `[B, L, 2]`; or a `BatchFeature`.
        """
        for name, value in {"chat_template": chat_template, "tools": tools, "documents": documents}.items():
            if value:
                raise ValueError(f"`{name}` is not supported: the model has one template, without tools and documents")
        if add_generation_prompt and continue_final_message:
            raise ValueError("`continue_final_message` and `add_generation_prompt` exclude each other")
        flags = {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
        kwargs = {**(processor_kwargs or {}), **kwargs}
        if output_modality is not None:
            kwargs["output_modality"] = output_modality
        if not tokenize:
            conversations = parse_conversations(conversation)
            modalities = parse_modalities(kwargs.get("output_modality"), len(conversations))
            flags["add_system_prompt"] = kwargs.get("add_system_prompt", self.add_system_prompt)
            pairs = zip(conversations, modalities, strict=True)
            texts = [self._builder.render(turns, modality, **flags) for turns, modality in pairs]
            return texts[0] if isinstance(conversation[0], Mapping) or isinstance(conversation, str) else texts
        if return_tensors != "auto":
            kwargs["return_tensors"] = return_tensors
        batch = self(conversation, return_assistant_tokens_mask=return_assistant_tokens_mask, **flags, **kwargs)
        return batch if return_dict else batch["input_ids"]

    def encode_audio(self, audio: Any, sampling_rate: int | None = None, resample: bool = False) -> list[np.ndarray]:
        """Codes of recordings, on the device of the codec, in pieces of 30 s that are encoded independently.

        Args:
            audio: one recording or a list.
            sampling_rate, resample: see `__call__`.

        Returns:
            Per recording int64 `[T]`, a code for each begun 80 ms of a piece.

        Raises:
            ValueError: a bad recording, or there is no codec.
        """
        model = self._required_audio_tokenizer("to read recordings; codes can be given instead")
        recordings = [fetch(recording) for recording in ([audio] if is_one_recording(audio) else audio)]
        if self.compat:
            recordings = [read_audio(recording, sampling_rate, channel=0) for recording in recordings]
        features = self.feature_extractor(
            recordings, sampling_rate=sampling_rate, resample=resample or self.compat, return_tensors="pt"
        )
        with torch.no_grad():
            encoded = model.encode(features["input_features"], features["attention_mask"], features["num_pieces"])
        return [
            codes[mask.bool()].cpu().numpy() for codes, mask in zip(encoded.codes, encoded.codes_mask, strict=True)
        ]

    def _encoded(
        self, conversations: list[list[Turn]], sampling_rate: int | None = None, resample: bool = False
    ) -> list[list[Turn]]:
        """The turns with codes in place of recordings."""
        contents = self._encoded_contents(
            [t.content for turns in conversations for t in turns], sampling_rate, resample
        )
        contents = iter(contents)
        return [[replace(turn, content=next(contents)) for turn in turns] for turns in conversations]

    def _encoded_contents(
        self, contents: list[Content], sampling_rate: int | None = None, resample: bool = False
    ) -> list[Content]:
        recordings = [content.audio for content in contents if content.audio is not None]
        codes = iter(self.encode_audio(recordings, sampling_rate, resample) if recordings else [])
        return [Content(codes=next(codes).tolist()) if content.audio is not None else content for content in contents]

    def pad(
        self,
        examples: Iterable[Mapping[str, Any]],
        padding: bool | str = True,
        padding_side: Literal["left", "right"] = "right",
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | TensorType | None = "pt",
    ) -> BatchFeature:
        """Pad examples to a batch. Other keys of the examples are not looked at.

        Args:
            examples: of [`~MossSpeechProcessor.build_examples`] or [`~MossSpeechProcessor.build_documents`].
            padding: `True` or `"longest"`, `"max_length"`, or `False`.
            padding_side: left for generation, right for training.
            max_length (`int`, *optional*): the longest accepted example in rows, and with `padding="max_length"` the
                length of all.
            pad_to_multiple_of (`int`, *optional*): round the length up.
            return_tensors: `"pt"`, `"np"`, or `None` for lists.

        Returns:
            `input_ids` `[B, L, 2]`, `attention_mask` `[B, L]`, and `labels` `[B, L]` where the examples have them.
        """
        return pad_rows(
            examples,
            self.row_ids.padding,
            padding=padding,
            padding_side=padding_side,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            return_tensors=return_tensors,
        )

    @staticmethod
    def save_audio(path: str | os.PathLike, audio: Any, sampling_rate: int) -> None:
        """Write a waveform, see [`~processing.audio.save_audio`]."""
        save_audio(path, audio, sampling_rate)

    # Codec and model

    def _check_audio_tokenizer(self, model: PreTrainedModel) -> None:
        theirs = {"codebook_size": model.codebook_size, **_features_of(model)}
        mine = {name: getattr(self.feature_extractor, name) for name in theirs if name != "codebook_size"}
        raise_on_difference("audio tokenizer", {"codebook_size": self.codebook_size, **mine}, theirs)
        self._check_voice(model)

    def check_model(self, model_or_config: PreTrainedModel | SplitLayerQwen3Config) -> None:
        """Raise a `ValueError` with both numbers where this processor and a model differ.

        `generate` and `Trainer` see ids only and cannot notice. Call it once wherever both are at hand; a
        [`~training.data_collator_moss_speech.MossSpeechDataCollator`] that is given the model does.
        """
        config = getattr(model_or_config, "config", model_or_config)
        names = ["vocab_size", "modality_pad_token_id", "sosp_token_id", "eosp_token_id", "audio_pad_token_id"]
        names += ["pad_token_id"] * (config.pad_token_id is not None)
        mine = {name: getattr(self.row_ids, name) for name in names}
        raise_on_difference("model", mine, {name: getattr(config, name) for name in names})
        ends = config.eos_token_id if isinstance(config.eos_token_id, (list, tuple)) else [config.eos_token_id]
        if self.row_ids.turn_end_id not in ends:
            raise ValueError(
                f"`turn_end_token` {self.turn_end_token!r} has the id {self.row_ids.turn_end_id}, but replies of the model end "
                f"with `eos_token_id` {config.eos_token_id}"
            )

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        """Feature extractor and tokenizer. The released model has no files of a processor: then the ids are those of its
        `config.json`, and the features the released ones."""
        processor_dict = {} if processor_dict is None else processor_dict
        location = {name: kwargs[name] for name in (*_HUB_ARGUMENTS, "subfolder") if kwargs.get(name) is not None}

        def has_file(name: str) -> bool:
            missing = {"_raise_exceptions_for_missing_entries": False}
            return cached_file(pretrained_model_name_or_path, name, **location, **missing) is not None

        tokenizer = cls._load_tokenizer_from_pretrained("tokenizer", pretrained_model_name_or_path, **kwargs)
        if "feature_extractor" in processor_dict or has_file("preprocessor_config.json"):
            feature_extractor = MossSpeechFeatureExtractor.from_pretrained(pretrained_model_name_or_path, **location)
        else:
            feature_extractor = MossSpeechFeatureExtractor()
        if "vocab_size" not in processor_dict and has_file("config.json"):
            values, _ = SplitLayerQwen3Config.get_config_dict(pretrained_model_name_or_path, **location)
            if values.get("model_type") == SplitLayerQwen3Config.model_type:
                # The caller goes on with this dictionary.
                settings = settings_of_config(SplitLayerQwen3Config.from_dict(values), tokenizer)
                processor_dict.update({**settings, **processor_dict})
        return [feature_extractor, tokenizer]


def _features_of(audio_tokenizer: PreTrainedModel | None) -> dict[str, int]:
    """Arguments of the feature extractor that a codec decides; none for one that only decodes."""
    config = None if audio_tokenizer is None else audio_tokenizer.config.encoder_config
    if config is None:
        return {}
    return {
        "feature_size": config.num_mel_bins,
        "sampling_rate": config.sampling_rate,
        "samples_per_code": config.samples_per_code,
        "chunk_length": config.max_samples // config.sampling_rate,
    }


__all__ = ["MossSpeechProcessor", "MossSpeechProcessorKwargs"]
