"""Generated rows of MOSS-Speech as replies: texts, and waveforms in a voice."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..modeling.moss_speech_voice import CodecIdentity, MossSpeechVoice
from .audio import read_audio
from .moss_speech_recordings import fetch
from .moss_speech_results import (
    MossSpeechResult,
    add_audio,
    check_text_ids,
    generated_rows,
    is_generate_output,
    reply_of,
    rows_of,
    written_texts,
)
from .processor_with_audio_tokenizer import ProcessorWithAudioTokenizer

VOICE_FILE = "voice.safetensors"


class MossSpeechRepliesMixin(ProcessorWithAudioTokenizer):
    """The part of [`MossSpeechProcessor`] that reads what `generate` returns, and keeps the voice to speak with."""

    _voice: MossSpeechVoice | None = None

    def batch_decode(
        self,
        output: Any,
        voice: Any = "default",
        skip_special_tokens: bool | None = None,
        return_audio: bool = True,
        audio_kwargs: Mapping[str, Any] | None = None,
        **kwargs,
    ) -> list[MossSpeechResult] | list[str]:
        """Generated rows as text and waveforms; plain ids are decoded as the tokenizer does.

        Codes are the audio ids of speech rows until the end of speech. The last row is left out only if it ends the
        reply, so a reply that was cut by its length loses nothing. All codes of a call are decoded in one batch.

        Args:
            output: what `generate` returned; rows `[B, L, 2]`, or a list of `[L, 2]`, as generated; or plain text ids in
                any form that the tokenizer's `batch_decode` takes.
            voice: a [`MossSpeechVoice`] for all, a list with one (or `None`) per row, `None` for none; by default
                `self.voice`.
            skip_special_tokens (`bool`, *optional*): `True` for rows and `False` for plain ids, if not given.
            return_audio (`bool`, *optional*, defaults to `True`): decode codes to waveforms.
            audio_kwargs (*optional*): further arguments of the codec's `decode`.
            kwargs: for the tokenizer's `decode`.

        Returns:
            Per row a [`~processing.moss_speech_results.MossSpeechResult`]; per row a string for plain ids.

        Raises:
            ValueError: audio ids that are neither codes nor the end of speech, text ids outside the vocabulary, a voice of
                another codec, or there are codes to decode and no codec.
        """
        generated = generated_rows(output)
        if generated is None:
            check_text_ids(output, self.row_ids)
            return self.tokenizer.batch_decode(output, skip_special_tokens=bool(skip_special_tokens), **kwargs)
        skip = skip_special_tokens is None or skip_special_tokens
        settings = {"skip_special_tokens": skip, "released": self.compat, **kwargs}
        results = [
            reply_of(rows, self.row_ids, self.row_ids.stop_ids, self.tokenizer, finish_reason=reason, **settings)
            for rows, reason in zip(*generated, strict=True)
        ]
        if return_audio and any(result.codes is not None for result in results):
            model = self._required_audio_tokenizer("to decode codes; without it pass `return_audio=False`")
            add_audio(results, model, self._voices(voice, len(results)), **(audio_kwargs or {}))
        return results

    def decode(self, output: Any, *args, **kwargs) -> MossSpeechResult | str:
        """One row of [`~MossSpeechProcessor.batch_decode`]: a grid `[L, 2]`, or plain ids as the tokenizer decodes them."""
        if rows_of(output) is None:
            check_text_ids(output, self.row_ids)
            return self.tokenizer.decode(output, *args, **kwargs)
        return self.batch_decode([output], *args, **kwargs)[0]

    def post_process_multimodal_output(
        self,
        generated_outputs: Any,
        skip_special_tokens: bool = True,
        generation_mode: str | None = None,
        **kwargs,
    ) -> list[str] | list[np.ndarray]:
        """What the any-to-any pipeline shows: texts (empty for spoken replies), or waveforms.

        Args:
            generated_outputs: what `generate` returned; for text also rows `[B, L, 2]`, of prompts too, and plain ids.
            generation_mode (`str`, *optional*): `"text"` (as `None`) or `"audio"`.

        Raises:
            ValueError: another mode, or `"audio"` for a reply without speech.
        """
        if generation_mode not in (None, "text", "audio"):
            raise ValueError(f"`generation_mode` is {generation_mode!r}; accepted are 'text' and 'audio'")
        if generation_mode == "audio":
            results = self.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)
            for i, result in enumerate(results):
                if not isinstance(result, MossSpeechResult) or result.audio is None:
                    raise ValueError(
                        f"`generation_mode='audio'`, but row {i} does not speak; ask for speech with "
                        "`output_modality='audio'`"
                    )
            return [result.audio for result in results]
        if not is_generate_output(generated_outputs):
            return written_texts(
                generated_outputs, self.row_ids, self.tokenizer, skip_special_tokens=skip_special_tokens, **kwargs
            )
        settings = {"skip_special_tokens": skip_special_tokens, "return_audio": False, **kwargs}
        return [result.text or "" for result in self.batch_decode(generated_outputs, **settings)]

    @property
    def voice(self) -> MossSpeechVoice | None:
        """
        The default voice of `batch_decode`, saved with the processor; assign one, or `None`.

        Raises:
            ValueError: it is assigned something else, or a voice of another codec than `audio_tokenizer`. A codec that
                has to be fetched from the Hub first is compared when it gets loaded.
        """
        return self._voice

    @voice.setter
    def voice(self, voice: MossSpeechVoice | None):
        if voice is not None and not isinstance(voice, MossSpeechVoice):
            raise ValueError(
                f"`voice` must be a MossSpeechVoice or None, got {type(voice).__name__}; make one with `make_voice`"
            )
        config = self._audio_tokenizer.config_at_hand()
        if voice is not None and config is not None:
            voice.check_identity(CodecIdentity.of(config))
        self._voice = voice

    def _check_voice(self, model: PreTrainedModel) -> None:
        """Raise a `ValueError` if the default voice is one of another codec than `model`."""
        if self._voice is not None:
            self._voice.check_identity(CodecIdentity.of(model.config), "processor.voice")

    def make_voice(self, audio: Any, sampling_rate: int | None = None, **kwargs) -> MossSpeechVoice:
        """A voice for `batch_decode`, of one recording at the rate it has.

        Args:
            audio: a recording, see `__call__`.
            sampling_rate (`int`, *optional*): of a bare array, in Hz.
            kwargs: for the codec's `make_voice`.
        """
        model = self._required_audio_tokenizer("to make a voice")
        samples, rate = read_audio(fetch(audio), sampling_rate, 0 if self.compat else None)
        with torch.no_grad():
            return model.make_voice(samples, rate, **kwargs)

    def _voices(self, voice: Any, count: int) -> list[MossSpeechVoice | None]:
        if isinstance(voice, str):
            if voice != "default":
                raise ValueError(f"`voice` is {voice!r}; accepted are MossSpeechVoice objects, None and 'default'")
            voice = self.voice
        voices = list(voice) if isinstance(voice, (list, tuple)) else [voice] * count
        if len(voices) != count:
            raise ValueError(f"`voice` has {len(voices)} entries for {count} rows; give one per row, or one for all")
        return voices

    def _save_optional_files(self, folder: Path) -> None:
        if self.voice is not None:
            self.voice.save(folder / VOICE_FILE)

    def _load_optional_file(self, path: Path) -> None:
        self.voice = MossSpeechVoice.load(path)


__all__ = ["VOICE_FILE", "MossSpeechRepliesMixin"]
