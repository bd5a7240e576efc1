"""Mel frames to waveform piece by piece: exactly, or by the overlap protocol of the released code."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from transformers.utils.generic import maybe_autocast

from .hift_convolutions import SignalPieces
from .hift_source import HiFTSourcePieces, precise_dtype

OVERLAP_WINDOWS = ("hamming", "raised_cosine")


class HiFTProgress:
    """How far the network has come: what its convolutions keep, the phase of the excitation, samples of the latter.

    Args:
        model (`HiFTModel`): only read.
        noise (`Callable`): `(start, length)` to the noise `[B or 1, length, num_harmonics]` from sample `start` on.
    """

    def __init__(self, model, noise: Callable[[int, int], Tensor]):
        self.model, self.noise = model, noise
        self.signal, self.source, self.excited = SignalPieces(), HiFTSourcePieces(model.m_source), 0

    def copy(self) -> "HiFTProgress":
        """A twin that can be carried on without touching this one."""
        twin = HiFTProgress(self.model, self.noise)
        twin.signal, twin.source, twin.excited = self.signal.copy(), self.source.copy(), self.excited
        return twin

    @property
    def nbytes(self) -> int:
        """Memory of what is kept, in bytes."""
        return self.signal.nbytes + self.source.nbytes

    def advance(self, mel: Tensor, final: bool, source: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """What became certain with the frames `mel [B, num_mel_bins, n]`, their excitation being `source` if given.

        Returns:
            waveform `[B, m]`, f0 `[B, k]` and excitation `[B, 1, l]`, each going on where it ended before.
        """
        self.signal.final = final
        f0 = self.model.f0_predictor(mel, self.signal)
        if source is None:
            phase, sample_f0 = self.source.step(f0, final)
            length = phase.shape[1]
            source = self.model.m_source.mix(phase, sample_f0, self.noise(self.excited, length).to(mel))
            self.excited += length
        return self.model.filter(mel, source, self.signal), f0, source


class _Session:
    """What both kinds of streams check."""

    def __init__(self, model):
        self.model = model
        self._finished, self._batch = False, None

    def _frames(self, mel: Tensor) -> Tensor:
        if self._finished:
            raise ValueError("mel: the stream is finished; `reset()` starts the next utterance")
        self.model.check_mel(mel)
        if self._batch not in (None, mel.shape[0]):
            raise ValueError(f"mel must have {self._batch} rows as in the first step, got {mel.shape[0]}")
        self._batch = mel.shape[0]
        return mel.to(self.model.device, self.model.conv_pre.bias.dtype)

    def _no_frames(self) -> Tensor:
        bias = self.model.conv_pre.bias
        return bias.new_zeros(self._batch or 1, self.model.config.num_mel_bins, 0)

    def _finish(self) -> None:
        if self._finished:
            raise ValueError("the stream is finished already; `reset()` starts the next utterance")
        self._finished = True


class HiFTStream(_Session):
    """
    One utterance (or several of the same length, row by row) whose mel frames come in pieces of any sizes.

    Each convolution keeps the few positions that the next piece needs, so nothing is computed twice, the cost of a
    frame does not depend on what came before, and the joined pieces equal `model(mel, seed=seed)` up to rounding.
    Samples come when they are certain, `config.lookahead_frames` (20 by default, 0.4 s) behind the frames.

    With fewer `lookahead_frames`, what is not yet certain is computed as if the last frame went on, and given out; the
    pieces that follow are not affected by it. The price is the time for so many frames more at each step, and an error
    in front of the joints: over recorded speech in pieces of 20 frames, with random weights, 13 % of the root mean
    square for 4 frames, 0.8 % for 8 and 0.02 % for 12 (most of it is f0; 2 %, 0.1 % and 3e-6 where all is unvoiced).

    The state is this object; the model is only read, and may serve any number of streams.

    Args:
        model (`HiFTModel`): for short pieces, fold its weight norm first (`model.fold_weight_norm()`). On a CPU pieces of
            20 frames and more are cheapest; shorter ones read all weights for few samples.
        lookahead_frames (`int`, *optional*): frames that must follow a frame before its samples are given out; as many
            as they need to be certain by default.
        seed (`int`, *optional*): of the noise, 0 by default.

    Example:

    ```python
    >>> import torch
    >>> from dualspeech import HiFTConfig, HiFTModel

    >>> model = HiFTModel(HiFTConfig(upsample_initial_channel=32, f0_hidden_size=32)).eval()
    >>> stream = model.stream()
    >>> pieces = [stream.step(mel) for mel in torch.randn(1, 80, 50).split(12, dim=2)] + [stream.finish()]
    >>> sum(piece.shape[1] for piece in pieces)
    24000
    ```
    """

    def __init__(self, model, lookahead_frames: int | None = None, seed: int | None = None):
        super().__init__(model)
        exact = model.config.lookahead_frames
        if lookahead_frames is not None and lookahead_frames < 0:
            raise ValueError(
                f"lookahead_frames must be 0 or more ({exact} and more are exact), got {lookahead_frames}"
            )
        self.exact = lookahead_frames is None or lookahead_frames >= exact
        self.lookahead_frames = exact if self.exact else lookahead_frames
        self.seed = 0 if seed is None else seed
        self.reset()

    def reset(self) -> None:
        """Start another utterance."""
        self._progress = HiFTProgress(self.model, functools.partial(self.model.seeded_noise, seed=self.seed))
        self._finished, self._batch = False, None
        self._received = 0  # frames
        self._made = self._given = 0  # certain samples; samples given out, which may be more

    @property
    def nbytes(self) -> int:
        """Memory of the state in bytes; it does not grow with the utterance."""
        return self._progress.nbytes

    @torch.no_grad()
    def step(self, mel: Tensor) -> Tensor:
        """
        Args:
            mel (`torch.Tensor`): `[B, num_mel_bins, n]`, the next frames; n may be 0.

        Returns:
            `torch.Tensor`: `[B, m]`, the next samples; m may be 0.

        Raises:
            ValueError: another shape or number of rows, integers, NaN or infinite numbers, a step behind `finish`. The
                stream is then as before.
        """
        mel = self._frames(mel)
        if not mel.shape[2]:
            return mel.new_zeros(mel.shape[0], 0)
        self._received += mel.shape[2]
        with maybe_autocast(mel.device.type, enabled=False):
            pieces = [self._advance(mel, final=False)]
            end = (self._received - self.lookahead_frames) * self.model.config.hop_length
            if not self.exact and end > self._given:
                missing = self.model.config.lookahead_frames - self.lookahead_frames
                tail = self._progress.copy().advance(mel[..., -1:].expand(-1, -1, missing), final=False)[0]
                pieces.append(tail[:, self._given - self._made : end - self._made])
                self._given = end
        return torch.cat(pieces, dim=1)

    @torch.no_grad()
    def finish(self) -> Tensor:
        """The remaining samples `[B, m]`; in total there are `frames * hop_length`."""
        self._finish()
        mel = self._no_frames()
        if not self._received:
            return mel.new_zeros(mel.shape[0], 0)
        with maybe_autocast(mel.device.type, enabled=False):
            return self._advance(mel, final=True)

    def _advance(self, mel: Tensor, final: bool) -> Tensor:
        certain, _, _ = self._progress.advance(mel, final)
        known = max(self._given - self._made, 0)  # given out before they were certain
        self._made += certain.shape[1]
        self._given = max(self._given, self._made)
        return certain[:, known:]


class HiFTOverlapStream(_Session):
    """
    The overlap protocol of the released code: every piece is vocoded for itself, behind the last frames of the piece in
    front, whose excitation is taken over, and faded into it. What comes out depends on the sizes of the pieces.

    Kept for comparison with the release; [`HiFTStream`] is exact, cheaper and has no fades. The halves of the Hamming
    window of the release add up to 1.08, a bump of 0.7 dB at each joint that may exceed `config.audio_limit`; those of
    `"raised_cosine"` add up to 1.

    Args:
        model (`HiFTModel`): the vocoder.
        overlap_frames (`int`): frames that are kept and faded, 8 in the release (0.16 s).
        window (`str`): `"hamming"` or `"raised_cosine"`.
        seed (`int`, *optional*), generator (`torch.Generator`, *optional*): noise, see `HiFTModel.forward`; with a
            generator each step draws what a call of the release draws.
    """

    def __init__(
        self,
        model,
        overlap_frames: int = 8,
        window: str = "hamming",
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__(model)
        if overlap_frames < 1:
            raise ValueError(f"overlap_frames must be positive, got {overlap_frames}")
        if window not in OVERLAP_WINDOWS:
            raise ValueError(f"window must be one of {OVERLAP_WINDOWS}, got {window!r}")
        if seed is not None and generator is not None:
            raise ValueError("only one of seed and generator can be given")
        self.overlap_frames, self.window = overlap_frames, window
        self.seed, self.generator = (0 if seed is None and generator is None else seed), generator
        self.reset()

    def reset(self) -> None:
        """Start another utterance."""
        self._finished, self._batch = False, None
        self._received = 0
        self._mel = self._source = self._tail = None  # the last frames, their excitation and their samples

    @property
    def nbytes(self) -> int:
        """Memory of the state in bytes."""
        return sum(kept.nbytes for kept in (self._mel, self._source, self._tail) if kept is not None)

    @torch.no_grad()
    def step(self, mel: Tensor) -> Tensor:
        """Frames `[B, num_mel_bins, n]` to samples `[B, m]`; the last `overlap_frames` of the signal are held back.

        Raises:
            ValueError: as for [`HiFTStream.step`].
        """
        mel = self._frames(mel)
        return self._vocode(mel, final=False) if mel.shape[2] else mel.new_zeros(mel.shape[0], 0)

    @torch.no_grad()
    def finish(self, mel: Tensor | None = None) -> Tensor:
        """The remaining samples `[B, m]`.

        Args:
            mel (`torch.Tensor`, *optional*): the last frames, vocoded without holding anything back, as the release does;
                without them, the samples that were held back come as they are.
        """
        mel = self._no_frames() if mel is None else self._frames(mel)
        self._finish()
        if mel.shape[2]:
            return self._vocode(mel, final=True)
        return mel.new_zeros(mel.shape[0], 0) if self._tail is None else self._tail

    def _vocode(self, mel: Tensor, final: bool) -> Tensor:
        model, hop = self.model, self.model.config.hop_length
        new, kept = mel.shape[2], 0 if self._mel is None else self._mel.shape[2]
        if kept:
            mel = torch.cat([self._mel, mel], dim=2)
        with maybe_autocast(mel.device.type, enabled=False):
            if self.generator is None:
                noise = model.seeded_noise((self._received - kept) * hop, mel.shape[2] * hop, self.seed)
            else:
                noise = model.drawn_noise(mel.shape[0], mel.shape[2] * hop, self.generator)
            source = model.excitation(mel, noise.to(mel))
            if kept:
                source[..., : kept * hop] = self._source
            waveform = model.filter(mel, source)
        if kept:
            waveform[:, : kept * hop] = self._fade(self._tail, waveform[:, : kept * hop])
        self._received += new
        held = min(self.overlap_frames, mel.shape[2])
        self._mel = mel[..., -held:].clone()
        self._source, self._tail = source[..., -held * hop :].clone(), waveform[:, -held * hop :].clone()
        return waveform if final else waveform[:, : -held * hop]

    def _fade(self, falling: Tensor, rising: Tensor) -> Tensor:
        length = rising.shape[1]
        if self.window == "hamming":
            weights = torch.hamming_window(2 * length, periodic=False, dtype=torch.float64)
            rise, fall = weights[:length], weights[length:]
        else:
            rise = 0.5 - 0.5 * torch.cos(torch.pi * (torch.arange(length, dtype=torch.float64) + 0.5) / length)
            fall = 1 - rise
        rise, fall = (half.to(rising.device, precise_dtype(rising.device)) for half in (rise, fall))
        return (rising * rise + falling * fall).to(rising.dtype)


__all__ = ["HiFTOverlapStream", "HiFTProgress", "HiFTStream", "OVERLAP_WINDOWS"]
