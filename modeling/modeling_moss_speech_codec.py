"""The codec of MOSS-Speech (arXiv 2510.00499): speech to 12.5 codes per second, and back in a given voice."""

import copy
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.modeling_utils import PreTrainedAudioTokenizerBase, PreTrainedModel
from transformers.utils import can_return_tuple

from ..configuration.configuration_moss_speech_codec import MossSpeechCodecConfig
from .audio_features import resample, vocoder_log_mel
from .audio_parts import AudioCodes, check_finite, evaluating
from .modeling_campplus import CamPPlusModel
from .modeling_flow_decoder import FlowDecoderModel
from .modeling_hift import HiFTModel
from .modeling_whisper_vq import WhisperVqModel
from .moss_speech_streaming import MossSpeechOverlapDecoder, MossSpeechStreamingDecoder
from .moss_speech_voice import CodecIdentity, MossSpeechVoice, voices_of_rows
from .speaker_adapters import CamPPlusSpeakerEncoder

# One entry per part, in one order.
PART_CONFIGS = ("encoder_config", "flow_config", "vocoder_config", "speaker_config")
MIN_SPEAKER_SECONDS = 0.045  # three frames of filter banks


class MossSpeechCodecModel(PreTrainedAudioTokenizerBase):
    """
    Encoder, flow decoder, vocoder and speaker encoder as one frozen audio tokenizer.

    `encode` and `encode_waveform` make codes, `decode` makes waveforms of them, in the voice that `make_voice` took
    from a recording. `streaming_encoder` and `streaming_decoder` give objects that do the same piece by piece; all
    state is in these objects.

    The parts are the children `encoder` (`None` in a codec that only decodes), `flow`, `vocoder` and `speaker_encoder`
    (or `None`), each a model of its own. They are trained apart and run here in evaluation mode, without gradients and
    autocast. Vocoder and speaker encoder stay in float32 when the codec is loaded in a lower precision. No random
    generator is touched: the noise of flow and vocoder is a function of the place in the utterance.

    Example:

    ```python
    >>> codec = AutoModel.from_pretrained("path/to/converted-codec")
    >>> codes = codec.encode_waveform(waveforms).codes  # [B, S] at 16 kHz -> [B, T]
    >>> voice = codec.make_voice(recording, sampling_rate=44100)
    >>> audio = codec.decode(codes, voice=voice)  # [B, 1, 1920 * T] at 24 kHz
    ```
    """

    config: MossSpeechCodecConfig
    base_model_prefix = "moss_speech_codec"
    main_input_name = "input_features"
    input_modalities = ("audio",)
    output_modalities = ("audio",)
    _supports_sdpa = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["vocoder", "speaker_encoder"]

    def __init__(
        self,
        config: MossSpeechCodecConfig,
        encoder: WhisperVqModel | None = None,
        flow: FlowDecoderModel | None = None,
        vocoder: HiFTModel | None = None,
        speaker_encoder: CamPPlusModel | None = None,
    ):
        super().__init__(config)
        self.encoder = _build(encoder, WhisperVqModel, config.encoder_config)
        self.flow = _build(flow, FlowDecoderModel, config.flow_config)
        self.vocoder = _build(vocoder, HiFTModel, config.vocoder_config)
        self.speaker_encoder = _build(speaker_encoder, CamPPlusModel, config.speaker_config, dtype=torch.float32)
        for name, part in self._parts().items():
            setattr(config, name, part.config)  # one object
        self.post_init()

    def _parts(self) -> dict[str, PreTrainedModel]:
        parts = (self.encoder, self.flow, self.vocoder, self.speaker_encoder)
        return {name: part for name, part in zip(PART_CONFIGS, parts, strict=True) if part is not None}

    @classmethod
    def from_parts(
        cls,
        flow: FlowDecoderModel,
        vocoder: HiFTModel,
        encoder: WhisperVqModel | None = None,
        speaker_encoder: CamPPlusModel | None = None,
        **kwargs,
    ) -> "MossSpeechCodecModel":
        """Compose ready models. They become the children of the codec and are not copied.

        Args:
            flow, vocoder, encoder, speaker_encoder: the parts; the last two may be missing.
            kwargs: other fields of [`MossSpeechCodecConfig`].

        Raises:
            ValueError: parts that do not fit together.
        """
        parts = (encoder, flow, vocoder, speaker_encoder)
        # a composite configuration sets the attention implementation of its parts: it gets copies
        configs = [None if part is None else copy.deepcopy(part.config) for part in parts]
        return cls(MossSpeechCodecConfig(**dict(zip(PART_CONFIGS, configs, strict=True)), **kwargs), *parts).eval()

    @property
    def codebook_size(self) -> int:
        """Codes are 0 to `codebook_size - 1`."""
        return self.config.codebook_size

    @property
    def frame_rate(self) -> float:
        """Codes per second."""
        return self.config.frame_rate

    @property
    def hop_length(self) -> int:
        """Samples of decoded audio per code."""
        return self.config.hop_length

    @property
    def input_sampling_rate(self) -> int | None:
        """Rate in Hz of the audio that is encoded; `None` without an encoder."""
        return self.config.input_sampling_rate

    @property
    def sampling_rate(self) -> int:
        """Rate in Hz of decoded audio."""
        return self.config.sampling_rate

    @property
    def identity(self) -> CodecIdentity:
        """Which voices this codec can use."""
        return CodecIdentity.of(self.config)

    def encode(
        self, input_features: Tensor, attention_mask: Tensor | None = None, num_pieces: Tensor | None = None
    ) -> AudioCodes:
        """Codes of log-mel features.

        Args:
            input_features (`torch.Tensor`): `[P, bins, F]` float at 100 frames per second, at most 30 s, as
                `MossSpeechFeatureExtractor` gives them.
            attention_mask (`torch.Tensor`, *optional*): `[P, F]`, 1 on the frames of a row, 0 on padding behind them.
            num_pieces (`torch.Tensor`, *optional*): `[B]`, how many rows, one after the other, are pieces of one
                recording; each row is a recording when omitted.

        Returns:
            [`AudioCodes`]: `codes [B, T]`, ceil(frames / 8) for each piece, and `codes_mask [B, T]`.

        Raises:
            ValueError: no encoder, wrong shapes, NaN or infinite features, a mask that is not right-padded.
        """
        return self._encoder().encode(input_features.to(self.device), attention_mask, num_pieces)

    def encode_waveform(self, waveforms: Tensor, num_samples: Tensor | None = None) -> AudioCodes:
        """Codes of waveforms, taken in pieces of 30 s that know nothing of each other.

        Args:
            waveforms (`torch.Tensor`): `[B, S]` float, mono at `input_sampling_rate` (16 kHz), samples in [-1, 1].
            num_samples (`torch.Tensor`, *optional*): `[B]`, samples of each row, at least 1; all S when omitted.

        Returns:
            [`AudioCodes`]: `codes [B, T]` and `codes_mask [B, T]`; each row has the codes that it has alone.

        Raises:
            ValueError: no encoder, wrong shapes or lengths, NaN or infinite samples.
        """
        return self._encoder().encode_waveform(waveforms, num_samples)

    @can_return_tuple
    def forward(
        self, input_features: Tensor, attention_mask: Tensor | None = None, num_pieces: Tensor | None = None, **kwargs
    ) -> AudioCodes:
        """The same as [`~MossSpeechCodecModel.encode`]."""
        return self.encode(input_features, attention_mask, num_pieces)

    def decode(
        self,
        codes: Tensor,
        codes_mask: Tensor | None = None,
        voice: MossSpeechVoice | Sequence[MossSpeechVoice | None] | None = None,
        streaming: bool = False,
        chunk_size: int | None = None,
        left_context: int | None = None,
        num_timesteps: int | None = None,
        guidance_scale: float | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Waveforms of codes.

        The released offline path by default: full attention over prompt and codes, then the vocoder once. With
        `streaming=True` the flow runs in chunks, in one pass: what `streaming_decoder` gives piece by piece.

        Args:
            codes (`torch.LongTensor`): `[B, T]`; what stands where the mask is off is not looked at. T may be 0.
            codes_mask (`torch.Tensor`, *optional*): `[B, T]`, 1 on the codes of a row, 0 on padding behind them.
            voice (`MossSpeechVoice` or list, *optional*): one for all rows, or one (or `None`) per row. Without a
                voice the prompt is empty and the speaker vector zero.
            streaming (`bool`): chunks instead of full attention.
            chunk_size, left_context (`int`, *optional*): with `streaming`, codes per chunk and codes of the past that a
                chunk sees besides the prompt; as the flow is configured, and all of them, by default.
            num_timesteps (`int`, *optional*), guidance_scale (`float`, *optional*): of the sampler.
            seed (`int`, *optional*), generator (`torch.Generator`, *optional*): noise of the vocoder, see [`HiFTModel`].

        Returns:
            `torch.FloatTensor`: `[B, 1, hop_length * T]` (1920 T) at `sampling_rate`, zero behind the end of a row.

        Raises:
            ValueError: wrong shapes, codes outside the codebook, a mask that is not right-padded, voices of another
                codec or another number of them, prompt and codes of more than 300 s.
        """
        if not isinstance(codes, Tensor) or codes.dim() != 2 or not len(codes):
            given = list(codes.shape) if isinstance(codes, Tensor) else type(codes)
            raise ValueError(f"`codes` must be a tensor [batch, codes] with a row at least, got {given}")
        voices = voices_of_rows(voice, len(codes), self.identity)
        with evaluating(self):
            mel = self.flow.decode(
                codes,
                codes_mask,
                prompt_codes=[one.prompt_codes for one in voices],
                prompt_mel=[one.prompt_mel for one in voices],
                speaker_embeds=torch.stack([one.speaker_embeds.float().cpu() for one in voices]),
                streaming=streaming,
                chunk_size=chunk_size,
                left_context=left_context,
                num_timesteps=num_timesteps,
                guidance_scale=guidance_scale,
            )
            mask = torch.ones_like(codes) if codes_mask is None else torch.as_tensor(codes_mask)
            lengths = mask.bool().sum(dim=1)
            if empty := (lengths == 0).nonzero()[:, 0].tolist():
                warnings.warn(f"`codes`: rows {empty} have no codes; their waveforms have length 0", stacklevel=2)
            frame_mask = None
            if bool((lengths < codes.shape[1]).any()):
                frame_mask = mask.repeat_interleave(self.config.frames_per_code, dim=1)
            waveform = self.vocoder(mel, frame_mask, seed=seed, generator=generator).waveform
        return waveform[:, None]

    def make_voice(
        self,
        audio: Tensor,
        sampling_rate: int,
        use_prompt_speech: bool = True,
        use_speaker_embedding: bool = True,
        prompt_codes: Tensor | None = None,
        speaker_embeds: Tensor | None = None,
    ) -> MossSpeechVoice:
        """The voice of a recording.

        As released: codes from the recording brought directly to 16 kHz; the mel spectrogram and, from it brought to 16
        kHz again, the speaker vector from the recording at 24 kHz; codes and mel cut to the shorter of the two.

        Args:
            audio (`torch.Tensor` or `numpy.ndarray`): `[S]` or `[1, S]`, mono, floating point in [-1, 1]; from 80 ms to
                `config.max_prompt_seconds` (30 s). 3 to 5 s are enough, and cheaper; see [`MossSpeechVoice.trim`].
            sampling_rate (`int`): rate of the recording in Hz.
            use_prompt_speech (`bool`): keep codes and mel spectrogram; otherwise the prompt is empty.
            use_speaker_embedding (`bool`): keep the speaker vector; otherwise it is zero.
            prompt_codes (`torch.LongTensor`, *optional*): `[P]`, codes of the recording from elsewhere, which a codec
                without an encoder needs.
            speaker_embeds (`torch.Tensor`, *optional*): `[speaker_embedding_size]`, a speaker vector from elsewhere.

        Returns:
            [`MossSpeechVoice`], on the CPU.

        Raises:
            ValueError: several channels, integers, NaN or infinite samples, a recording that is too short or too long,
                or a part that is needed and missing.
        """
        audio, rate = self._check_recording(audio, sampling_rate), self.sampling_rate
        voice = MossSpeechVoice.empty(self.identity)
        codes, mel, speaker = voice.prompt_codes, voice.prompt_mel, voice.speaker_embeds
        if not use_prompt_speech and not use_speaker_embedding:
            return voice
        with evaluating(self):
            resampled = resample(audio, sampling_rate, rate)
            if use_prompt_speech:
                codes = self._codes_of_recording(audio, sampling_rate, prompt_codes)
                mel = vocoder_log_mel(
                    resampled,
                    self.config.num_mel_bins,
                    rate,
                    self.config.prompt_n_fft,
                    self.vocoder.hop_length,
                    self.config.prompt_max_frequency,
                ).cpu()
                ratio = self.config.frames_per_code
                length = min(mel.shape[1] // ratio, len(codes))
                codes, mel = codes[:length].clone(), mel[:, : ratio * length].clone()
            if use_speaker_embedding:
                speaker = self._speaker_of_recording(resampled, speaker_embeds)
        return MossSpeechVoice(codes, mel, speaker, self.identity)

    def streaming_encoder(self, **kwargs):
        """A stream that takes samples at 16 kHz as they come and gives one code per 80 ms; see
        `WhisperVqModel.streaming_encoder`."""
        return self._encoder().streaming_encoder(**kwargs)

    def streaming_decoder(
        self,
        voice: MossSpeechVoice | None = None,
        chunk_size: int | None = None,
        left_context: int | None = None,
        cache_dtype: torch.dtype | None = None,
        lookahead_frames: int | None = None,
        compat: bool = False,
        seed: int | None = None,
    ) -> "MossSpeechStreamingDecoder | MossSpeechOverlapDecoder":
        """A session that turns codes into sound while they are being produced.

        Args:
            voice (`MossSpeechVoice`, *optional*): the voice. A prompt of a whole number of chunks
                (`voice.trim(multiple_of=chunk_size)`) gives the first sound earliest.
            chunk_size (`int`, *optional*): codes per chunk, those that the flow was trained with by default.
            left_context (`int`, *optional*): codes of the past, besides the prompt, that a chunk sees; all of them by
                default. Bounds memory and time per chunk; the result is then `decode(..., left_context=...)`.
            cache_dtype (`torch.dtype`, *optional*): of the cached keys and values, that of the flow by default.
            lookahead_frames (`int`, *optional*): mel frames that the vocoder waits for. By default as many as it takes
                to be exact.
            compat (`bool`): the released protocol instead: everything recomputed for each chunk, cross-fades in the
                waveform, and full attention in the last call. It takes none of the three settings before.
            seed (`int`, *optional*): noise of the vocoder.

        Returns:
            An object with `step(codes)`, `finish()` and `reset()`; see [`MossSpeechStreamingDecoder`].

        Raises:
            ValueError: a voice of another codec, settings out of range or not accepted together.
        """
        (voice,) = voices_of_rows(voice, 1, self.identity)
        if not compat:
            return MossSpeechStreamingDecoder(
                self.flow, self.vocoder, voice, chunk_size, left_context, cache_dtype, lookahead_frames, seed
            )
        refused = {"left_context": left_context, "cache_dtype": cache_dtype, "lookahead_frames": lookahead_frames}
        if given := [name for name, value in refused.items() if value is not None]:
            raise ValueError(f"the released protocol (`compat=True`) has no {given}")
        return MossSpeechOverlapDecoder(self.flow, self.vocoder, voice, chunk_size, seed)

    def _encoder(self) -> WhisperVqModel:
        if self.encoder is None:
            raise ValueError("this codec has no encoder (`encoder_config` is None): it only decodes")
        return self.encoder

    def _check_recording(self, audio: Tensor, sampling_rate: int) -> Tensor:
        """The recording `[S]` in float32 on our device."""
        audio = torch.as_tensor(audio)
        if audio.dim() == 2 and len(audio) == 1:
            audio = audio[0]
        if audio.dim() != 1 or not audio.is_floating_point():
            raise ValueError(
                "`audio` must be mono and floating point in [-1, 1], [samples] or [1, samples]; choose one channel of "
                f"several; got {audio.dtype} {list(audio.shape)}"
            )
        if not isinstance(sampling_rate, int) or isinstance(sampling_rate, bool) or sampling_rate < 1:
            raise ValueError(f"`sampling_rate` must be a positive whole number of Hz, got {sampling_rate!r}")
        margin = (self.config.prompt_n_fft - self.vocoder.hop_length) // 2
        shortest = max(self.hop_length, margin + 1) / self.sampling_rate
        shortest, longest = max(shortest, MIN_SPEAKER_SECONDS), self.config.max_prompt_seconds
        if not shortest <= len(audio) / sampling_rate <= longest:
            raise ValueError(
                f"`audio` must have from {shortest:g} to {longest:g} s, got {len(audio) / sampling_rate:g} s "
                f"({len(audio)} samples at {sampling_rate} Hz)"
            )
        check_finite("audio", audio[None])
        return audio.to(self.device, torch.float32)

    def _codes_of_recording(self, audio: Tensor, sampling_rate: int, prompt_codes: Tensor | None) -> Tensor:
        if prompt_codes is not None:
            return torch.as_tensor(prompt_codes).cpu()
        if self.encoder is None:
            raise ValueError(
                "this codec has no encoder: give the codes of the recording as `prompt_codes`, or "
                "`use_prompt_speech=False`"
            )
        resampled = resample(audio, sampling_rate, self.encoder.sampling_rate)
        return self.encoder.encode_waveform(resampled[None]).codes[0].cpu()

    def _speaker_of_recording(self, audio: Tensor, speaker_embeds: Tensor | None) -> Tensor:
        if speaker_embeds is not None:
            return torch.as_tensor(speaker_embeds).float().cpu()
        if self.speaker_encoder is None:
            raise ValueError(
                "this codec has no speaker encoder: give the speaker vector as `speaker_embeds`, or "
                "`use_speaker_embedding=False`"
            )
        encoder = CamPPlusSpeakerEncoder(self.speaker_encoder)
        return encoder.embed(resample(audio, self.sampling_rate, encoder.sampling_rate)[None])[0].float().cpu()


def _build(part, model_class, config, **kwargs):
    """`part`, or a new model of `config`, or `None` when there is neither."""
    return part if part is not None or config is None else model_class._from_config(config, **kwargs)


__all__ = ["MossSpeechCodecModel"]
