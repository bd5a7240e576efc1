"""Speech to codes while it is being spoken: features and codes that equal those of the whole recording."""

import math
import numbers

import numpy as np
import torch
from torch import Tensor, nn

from .audio_features import WHISPER_HOP_LENGTH, WHISPER_N_FFT, scale_whisper_log_mel, whisper_log_mel
from .audio_parts import evaluating, length_mask

HALF_WINDOW = WHISPER_N_FFT // 2  # samples in front of and behind the middle of a frame


class WhisperFeatureStream:
    """
    Samples in chunks of any length to the log-mel frames that the pieces of the whole recording have.

    A frame needs the 200 samples behind its middle, so that the last one of a group of 8 is complete 40 samples (2.5
    ms) after the 80 ms that it stands for. Both ends of a piece are reflected as in the whole recording. Up to the
    clamp every frame equals the one of `log_mel_spectrogram`, whatever the chunks.

    The clamp is not causal: it lifts everything to 8 log10 units below the maximum of the whole piece. Here that is the
    maximum of the piece so far, up to the end of each group of frames, or the fixed `maximum`. Codes can differ from
    those of the whole piece only while the loudest frame is yet to come, in bins that it will lift.

    Args:
        num_mel_bins (`int`): bins of the features.
        frames_per_group (`int`): frames that come out together and share a running maximum.
        samples_per_code (`int`): the end of a recording is padded with zeros to a multiple of it.
        max_samples (`int`): samples of a piece; then everything starts anew.
        maximum (`float`, *optional*): log10 of the largest mel power, when the caller knows or chooses it.
    """

    def __init__(
        self,
        num_mel_bins: int,
        frames_per_group: int,
        samples_per_code: int,
        max_samples: int,
        maximum: float | None = None,
    ):
        if maximum is not None and not (isinstance(maximum, numbers.Real) and math.isfinite(maximum)):
            raise ValueError(f"maximum: expected a finite number, log10 of a mel power, or None, got {maximum!r}")
        self.num_mel_bins = num_mel_bins
        self.frames_per_group = frames_per_group
        self.samples_per_code = samples_per_code
        self.max_samples = max_samples
        self.maximum = maximum
        self.reset()

    def reset(self) -> None:
        """Forget everything that was fed."""
        self._start_piece()

    def step(self, samples: Tensor) -> Tensor:
        """The frames `[1, num_mel_bins, n]` (n may be 0) that `samples [S]` completed, float32."""
        features = [samples.new_zeros(1, self.num_mel_bins, 0, dtype=torch.float32)]
        while len(samples):
            room = self.max_samples - self._received
            features.append(self._advance(samples[:room]))
            samples = samples[room:]
        return torch.cat(features, dim=-1)

    def finish(self) -> tuple[Tensor, int]:
        """The remaining frames, and how many frames of the last piece, from its start, begin inside the recording."""
        received = self._received
        if not received:
            return torch.zeros(1, self.num_mel_bins, 0), 0
        padding = self._buffer.new_zeros(-received % self.samples_per_code)
        return self._advance(padding, is_end=True), -(-received // WHISPER_HOP_LENGTH)

    def _start_piece(self) -> None:
        self._buffer = None  # samples from the first one that the next frame sees
        self._received = 0
        self._frames = 0
        self._loudest = -math.inf

    def _advance(self, samples: Tensor, is_end: bool = False) -> Tensor:
        self._buffer = samples if self._buffer is None else torch.cat([self._buffer, samples])
        before, self._received = self._received, self._received + len(samples)
        if before <= HALF_WINDOW < self._received:
            self._buffer = torch.cat([self._buffer[1 : HALF_WINDOW + 1].flip(0), self._buffer])
        is_end = is_end or self._received == self.max_samples
        if is_end:
            behind = HALF_WINDOW - WHISPER_HOP_LENGTH
            self._buffer = torch.cat([self._buffer, self._buffer[-behind - 1 : -1].flip(0)])
        frames = 1 + (len(self._buffer) - WHISPER_N_FFT) // WHISPER_HOP_LENGTH if self._received > HALF_WINDOW else 0
        frames = frames if is_end else frames // self.frames_per_group * self.frames_per_group
        if frames <= 0:
            return samples.new_zeros(1, self.num_mel_bins, 0, dtype=torch.float32)
        used = (frames - 1) * WHISPER_HOP_LENGTH + WHISPER_N_FFT
        log_mel = whisper_log_mel(self._buffer[None, :used], self.num_mel_bins).float()
        self._buffer = self._buffer[frames * WHISPER_HOP_LENGTH :].clone()
        features = self._scale(log_mel)
        if is_end:
            self._start_piece()
        return features

    def _scale(self, log_mel: Tensor) -> Tensor:
        if self.maximum is not None:
            return scale_whisper_log_mel(log_mel, self.maximum)
        groups = []
        for group in log_mel.split(self.frames_per_group, dim=-1):
            self._loudest = max(self._loudest, float(group.max()))
            groups.append(scale_whisper_log_mel(group, self._loudest))
        return torch.cat(groups, dim=-1)


class WhisperVqStream:
    """
    One recording on its way through a [`WhisperVqModel`]: samples in, codes out. It holds all state of the recording,
    so any number of them can share a model.

    A code is final when it comes out. In the mode `"causal"` that is 2.5 ms after the end of its 80 ms; in the mode
    `"block"` the codes of a block (4 s) come together at its end. Every 30 s (`config.max_samples`) a new piece
    starts, as when the whole recording is encoded. The cost of a step is bounded by that, and so is the memory: see
    [`WhisperVqState`], about 250 MB at the end of a piece at the released size in fp32.

    For the same features the codes are those of [`WhisperVqModel.encode`]. See [`WhisperFeatureStream`] for the one
    thing in which features, computed from samples, can differ: the maximum.

    Feed it samples with `step` or features with `step_features`, not both.

    Args:
        model ([`WhisperVqModel`]): the encoder; never changed.
        maximum (`float`, *optional*): fixed maximum for the clamp of the features, instead of the running one.
    """

    def __init__(self, model: nn.Module, maximum: float | None = None):
        config = model.config
        self.model = model
        self._group = config.frames_per_code
        if config.attention_mode == "block":
            self._group = 2 * config.quantize_causal_block_size
        self._features = WhisperFeatureStream(
            config.num_mel_bins, self._group, config.samples_per_code, config.max_samples, maximum
        )
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next chunk is the first one of another recording."""
        self._features.reset()
        self._fed = None
        self._is_finished = False
        self._pending = self.model.conv1.weight.new_zeros(1, self.model.config.num_mel_bins, 0, dtype=torch.float32)
        self._start_piece()

    def step(self, samples: Tensor | np.ndarray) -> Tensor:
        """
        Args:
            samples: the next samples `[S]`, floating point in [-1, 1], mono at 16 kHz; S is any number.

        Returns:
            `torch.LongTensor`: `[n]`, the codes that became final; n may be 0.

        Raises:
            ValueError: another shape or dtype, NaN or infinite samples, a stream that is finished or fed with features.
        """
        samples = torch.as_tensor(samples)
        if samples.dim() != 1 or not samples.is_floating_point():
            raise ValueError(
                f"samples: expected floating point [samples] of mono audio, got {samples.dtype} {tuple(samples.shape)}"
            )
        if not bool(samples.isfinite().all()):
            raise ValueError("samples: NaN or infinite values")
        self._check_feeding("samples")
        with evaluating(self.model):
            return self._encode(self._features.step(samples.detach().to(self._pending)))

    def step_features(self, features: Tensor) -> Tensor:
        """
        Args:
            features: the next frames `[1, num_mel_bins, 8 n]` of log-mel features.

        Returns:
            `torch.LongTensor`: the codes that became final; in the mode `"causal"` n of them.

        Raises:
            ValueError: another shape or dtype, NaN or infinite features, a stream that is finished or fed with samples.
        """
        config = self.model.config
        size = config.frames_per_code
        expected = features.dim() == 3 and tuple(features.shape[:2]) == (1, config.num_mel_bins)
        if not expected or features.shape[2] % size or not features.is_floating_point():
            raise ValueError(
                f"features: expected floating point [1, {config.num_mel_bins}, a multiple of {size}], got "
                f"{features.dtype} {tuple(features.shape)}"
            )
        if not bool(features.isfinite().all()):
            raise ValueError("features: NaN or infinite values")
        self._check_feeding("features")
        with evaluating(self.model):
            return self._encode(features.detach().to(self._pending))

    def finish(self) -> Tensor:
        """The codes of what is left; a started code is completed with silence, as at the end of a whole recording.

        Raises:
            ValueError: the stream is finished already.
        """
        self._check_feeding(None)
        self._is_finished = True
        with evaluating(self.model):
            if self._fed == "features":
                return self._encode(self._pending[..., :0], valid_frames=self._encoded + self._pending.shape[-1])
            features, valid_frames = self._features.finish()
            return self._encode(features.to(self._pending), valid_frames)

    def _check_feeding(self, kind: str | None) -> None:
        if self._is_finished:
            raise ValueError("the stream is finished; call `reset()` to start another recording")
        if kind is not None:
            if self._fed not in (None, kind):
                raise ValueError(f"{kind}: this stream is fed with {self._fed}; a stream takes one kind only")
            self._fed = kind

    def _start_piece(self) -> None:
        self._state = self.model.initial_state()
        self._encoded = 0  # mel frames of this piece that went through the layers
        self._hidden = None  # outputs of the last layer that do not make a code yet

    def _encode(self, features: Tensor, valid_frames: int | None = None) -> Tensor:
        """Codes of the complete groups of frames; of all frames at the end, where `valid_frames` is given."""
        max_frames = self.model.config.max_frames
        self._pending = torch.cat([self._pending, features], dim=-1)
        codes = [torch.zeros(0, dtype=torch.long, device=self._pending.device)]
        while self._pending.shape[-1]:
            room, frames = max_frames - self._encoded, self._pending.shape[-1]
            if frames < room and valid_frames is None:
                frames = frames // self._group * self._group
            if not frames:
                break
            codes.append(self._encode_frames(min(frames, room), valid_frames))
        if valid_frames is not None and self._hidden is not None and self._hidden.shape[1]:
            codes.append(self.model.codes_of(self._hidden)[0])
        return torch.cat(codes)

    def _encode_frames(self, frames: int, valid_frames: int | None) -> Tensor:
        config = self.model.config
        chunk, self._pending = self._pending[..., :frames], self._pending[..., frames:].clone()
        self._encoded += frames
        mask = None
        if valid_frames is not None:
            mask = length_mask(torch.tensor([-(-valid_frames // 2)], device=chunk.device), self._encoded // 2)
        hidden_states, self._state = self.model.encode_frames(chunk, self._state, mask)
        if self._hidden is not None:
            hidden_states = torch.cat([self._hidden, hidden_states], dim=1)
        complete = hidden_states.shape[1] // config.pooling_kernel_size * config.pooling_kernel_size
        self._hidden = hidden_states[:, complete:].clone()
        if self._encoded == config.max_frames:
            self._start_piece()
        return self.model.codes_of(hidden_states[:, :complete])[0]


__all__ = ["WhisperFeatureStream", "WhisperVqStream"]
