"""Codes to sound while the codes are being produced: the exact session of the MOSS-Speech codec."""

import torch
from torch import Tensor

from .audio_parts import evaluating
from .flow_inputs import check_code_values, check_length
from .flow_masks import ChunkGrid
from .modeling_flow_decoder import FlowDecoderModel
from .modeling_hift import HiFTModel
from .moss_speech_voice import MossSpeechVoice


class StreamingDecoder:
    """What the sessions of the codec share: `step`, `finish`, `reset`, and refusing codes after the end.

    A subclass gives `_start`, `_step` and `_finish`. Sessions hold all state of an utterance, so any number of them can
    share a model; a code that is refused leaves a session as it was.
    """

    def __init__(self, flow: FlowDecoderModel, vocoder: HiFTModel, voice: MossSpeechVoice):
        self.flow, self.vocoder, self.voice = flow, vocoder, voice
        self._finished = False

    @property
    def finished(self) -> bool:
        """Whether `finish` was called."""
        return self._finished

    @property
    def sampling_rate(self) -> int:
        """Rate of the waveform in Hz."""
        return self.vocoder.sampling_rate

    @torch.no_grad()
    def step(self, codes: Tensor) -> Tensor:
        """Sound that the next codes made final.

        Args:
            codes (`torch.LongTensor`): `[T]`, the next codes of the utterance; T may be 0.

        Returns:
            `torch.FloatTensor`: `[S]` at `sampling_rate`; S is 0 while codes of the chunk or the look-ahead are missing.

        Raises:
            ValueError: after `finish`, another shape, codes outside the codebook, more than 300 s with the prompt.
        """
        if self._finished:
            raise ValueError("`codes` came after `finish`; start the next utterance with `reset`")
        if not isinstance(codes, Tensor) or codes.dim() != 1:
            given = list(codes.shape) if isinstance(codes, Tensor) else type(codes)
            raise ValueError(f"`codes` must be a tensor [codes] of one utterance, got {given}")
        if not len(codes):
            return self._silence()
        check_code_values(self.flow.config, "codes", codes)
        with evaluating(self.flow), evaluating(self.vocoder):
            return self._step(codes.long())

    @torch.no_grad()
    def finish(self) -> Tensor:
        """The rest of the utterance, `[S]`; nothing when there were no codes.

        Raises:
            ValueError: `finish` was called before.
        """
        if self._finished:
            raise ValueError("`finish` was called before; start the next utterance with `reset`")
        with evaluating(self.flow), evaluating(self.vocoder):
            waveform = self._finish()
        self._finished = True
        return waveform

    def reset(self) -> None:
        """Forget the utterance; the next code is the first one of a new utterance in the same voice."""
        self._start()
        self._finished = False

    def _silence(self) -> Tensor:
        return torch.zeros(0, device=self.vocoder.device)


class MossSpeechStreamingDecoder(StreamingDecoder):
    """
    A session whose waveforms, joined, are those of `decode(..., streaming=True)`, however the codes are fed.

    Flow and vocoder carry caches: a chunk costs the same wherever it stands (attention over the past grows slowly; a
    bounded `left_context` makes it constant), and nothing is played twice or faded. Sound comes when a chunk and the
    look-ahead of three codes behind it are there, less the mel frames that the vocoder waits for.

    The voice prompt is computed once, when the session is made; `reset` starts from there, and so do the independent
    sessions that `new_session` gives.

    ```python
    >>> first = codec.streaming_decoder(voice)
    >>> second = first.new_session()  # the same voice, nothing computed again
    >>> audio = torch.cat([first.step(codes) for codes in chunks] + [first.finish()])
    ```

    Args:
        flow, vocoder (`FlowDecoderModel`, `HiFTModel`): parts of the codec.
        voice (`MossSpeechVoice`): the voice, which may be empty.
        chunk_size, left_context, cache_dtype, lookahead_frames, seed (*optional*): see
            [`MossSpeechCodecModel.streaming_decoder`].
    """

    def __init__(
        self,
        flow: FlowDecoderModel,
        vocoder: HiFTModel,
        voice: MossSpeechVoice,
        chunk_size: int | None = None,
        left_context: int | None = None,
        cache_dtype: torch.dtype | None = None,
        lookahead_frames: int | None = None,
        seed: int | None = None,
    ):
        super().__init__(flow, vocoder, voice)
        self._vocoder_settings = {"lookahead_frames": lookahead_frames, "seed": seed}
        with evaluating(flow):
            self._behind_prompt = flow.stream(
                prompt_codes=voice.prompt_codes[None],
                prompt_mel=voice.prompt_mel[None],
                speaker_embeds=voice.speaker_embeds[None],
                chunk_size=chunk_size,
                left_context=left_context,
                cache_dtype=cache_dtype,
            )
        self._start()

    def _start(self) -> None:
        self._frames = self._behind_prompt.fork()
        self._sound = self.vocoder.stream(**self._vocoder_settings)

    def _step(self, codes: Tensor) -> Tensor:
        mel = self._frames.step(codes)
        return self._sound.step(mel)[0] if mel.shape[-1] else self._silence()

    def _finish(self) -> Tensor:
        mel = self._frames.finish()
        return torch.cat([self._sound.step(mel)[0], self._sound.finish()[0]])

    def new_session(self) -> "MossSpeechStreamingDecoder":
        """A session for another utterance in the same voice, independent of this one. What the prompt left in the caches
        is shared until it is added to."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.reset()
        return other

    @property
    def nbytes(self) -> int:
        """Bytes of all caches, those of the voice prompt included (shared ones are counted in every session)."""
        return self._frames.nbytes + self._sound.nbytes


class MossSpeechOverlapDecoder(StreamingDecoder):
    """
    The released protocol: the flow is run over the whole prefix for each chunk, the vocoder over each chunk with 8 mel
    frames of the one before, and the waveforms are cross-faded over these 160 ms.

    With P prompt codes and chunks of C codes the first chunk has C + (-P mod C) codes and later ones C; each waits for
    a look-ahead of three codes. The last call decodes all codes with full attention, which does not continue exactly
    what was played. The cost of a chunk grows with the utterance and the prompt. All in all 1920 samples per code come
    out.

    Difference from the release: the noise of the vocoder is a function of the seed and the place in the utterance.
    """

    def __init__(
        self,
        flow: FlowDecoderModel,
        vocoder: HiFTModel,
        voice: MossSpeechVoice,
        chunk_size: int | None = None,
        seed: int | None = None,
    ):
        super().__init__(flow, vocoder, voice)
        self.chunk_size = ChunkGrid.of(flow.config, chunk_size).chunk
        self.seed = seed
        self._start()

    def _start(self) -> None:
        self._codes = torch.zeros(0, dtype=torch.long, device=self.flow.device)
        self._cursor = 0
        self._sound = self.vocoder.overlap_stream(seed=self.seed)

    def _step(self, codes: Tensor) -> Tensor:
        together = torch.cat([self._codes, codes.to(self._codes.device)])
        check_length(self.flow.config, self.voice.num_codes + len(together))
        self._codes = together
        lookahead, pieces = self.flow.config.pre_lookahead, [self._silence()]
        while len(together) >= (end := self._cursor + self._hop + lookahead):
            mel = self._mel(together[:end], streaming=True, finalize=False, chunk_size=self.chunk_size)
            pieces.append(self._sound.step(mel)[0])
            self._cursor = end - lookahead
        return torch.cat(pieces)

    def _finish(self) -> Tensor:
        if not len(self._codes):
            return self._silence()
        return self._sound.finish(self._mel(self._codes))[0]

    @property
    def _hop(self) -> int:
        """Codes of the next chunk."""
        return self.chunk_size + (0 if self._cursor else -self.voice.num_codes % self.chunk_size)

    def _mel(self, codes: Tensor, **kwargs) -> Tensor:
        """Mel frames `[1, bins, n]` behind the cursor."""
        voice = self.voice
        mel = self.flow.decode(
            codes[None],
            prompt_codes=voice.prompt_codes[None],
            prompt_mel=voice.prompt_mel[None],
            speaker_embeds=voice.speaker_embeds[None],
            **kwargs,
        )
        return mel[..., self.flow.config.upsample_ratio * self._cursor :]

    @property
    def nbytes(self) -> int:
        """Bytes of the state."""
        return self._codes.nbytes + self._sound.nbytes


__all__ = ["MossSpeechOverlapDecoder", "MossSpeechStreamingDecoder", "StreamingDecoder"]
