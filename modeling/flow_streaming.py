"""Streaming for the flow decoder: codes in as they come, mel frames out, each frame computed once.

In streaming mode nothing that was decoded depends on later chunks, so the work of a prefix can be kept: the ends of the
causal convolutions, and keys and values of every attention layer: of the encoder, and of the estimator for each Euler
step and both branches of the guidance. A frame starts from the noise of its absolute position. The released code
decodes the whole prefix, voice prompt included, again for every chunk.

Memory, almost all of it keys and values of the estimator, per mel frame:
2 branches x 2 (keys, values) x steps x layers x heads x head size x bytes. At the released size (56 layers of 8 x 64,
10 steps) that is 4.6 MB in fp32, or 229 MB per second of audio, voice prompt included; half of it with
`cache_dtype=torch.float16` (which moves a mel bin by less than 1e-3 of their standard deviation, bfloat16 by less than
1e-2, with random weights). With `left_context=n` it is bounded: P + n + chunk_size codes of 80 ms (18.4 MB each at the
released size) for a prompt of P codes, however long the session.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .audio_parts import evaluating
from .flow_encoder import at_least_float32
from .flow_inputs import check_code_values, check_length, check_prompt, check_speaker
from .flow_masks import ChunkGrid, additive
from .flow_sampler import FlowConditions, guidance, sample, time_steps
from .flow_state import FlowState

CACHE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAX_PASS_FRAMES = 2048  # mel frames that are computed at once when many codes come together


class FlowStream:
    """
    One session of [`FlowDecoderModel`], made by [`FlowDecoderModel.stream`].

    `step(codes)` takes any number of codes and returns the frames of the chunks that became complete: those that are
    followed by `pre_lookahead` codes. Chunks are counted from the start of the prompt, so that the first one is
    shorter when the prompt is no multiple of the chunk. `finish()` returns the rest. Together they are what
    `decode(..., streaming=True)` gives for all codes at once (with the same `chunk_size` and `left_context`), whatever
    the pieces were. The released code decodes the end with full attention, which does not fit what was played before.

    The model is only read: any number of sessions may take turns.

    Example:

    ```python
    >>> import torch
    >>> from dualspeech import FlowDecoderConfig, FlowDecoderModel

    >>> sizes = dict(hidden_size=32, num_attention_heads=2, intermediate_size=64, num_hidden_layers=1)
    >>> sizes |= dict(estimator_channels=16, estimator_num_mid_stages=1, estimator_num_layers=1, num_upsampled_layers=1)
    >>> stream = FlowDecoderModel(FlowDecoderConfig(**sizes)).eval().stream()
    >>> codes = torch.randint(16384, (12,))
    >>> [stream.step(piece).shape[-1] for piece in codes.split(4)] + [stream.finish().shape[-1]]
    [0, 20, 0, 28]
    ```
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompt_codes: Tensor | None = None,
        prompt_mel: Tensor | None = None,
        speaker_embeds: Tensor | None = None,
        chunk_size: int | None = None,
        left_context: int | None = None,
        cache_dtype: torch.dtype | None = None,
        num_timesteps: int | None = None,
        guidance_scale: float | None = None,
    ):
        config = model.config
        if cache_dtype is not None and cache_dtype not in CACHE_DTYPES:
            raise ValueError(f"cache_dtype must be one of {', '.join(map(str, CACHE_DTYPES))}, got {cache_dtype!r}")
        grid = ChunkGrid.of(config, chunk_size, left_context)
        codes, mel = check_prompt(config, _row("prompt_codes", prompt_codes, 1), _row("prompt_mel", prompt_mel, 2))
        check_length(config, len(codes))
        speaker = _row("speaker_embeds", speaker_embeds, 1)
        speaker = check_speaker(config, None if speaker is None else speaker[None], 1)
        self.model = model
        self.times, self.scale = time_steps(config, num_timesteps), guidance(config, guidance_scale)
        self.grid = ChunkGrid(grid.chunk, grid.left, len(codes))
        mel_grid = self.grid.upsampled(config.upsample_ratio)
        self._encoder = (FlowState(self.grid, cache_dtype), FlowState(mel_grid, cache_dtype))
        self._steps = [FlowState(mel_grid, cache_dtype) for _ in self.times[1:]]
        self._prompt_mel = mel.to(model.device, model.dtype)
        self._waiting = codes.cpu()  # not decoded yet
        self._finished = False
        with torch.no_grad(), evaluating(model):
            self._speaker = model._speaker(speaker, 1)
        self._decode(final=False)

    @property
    def codes_decoded(self) -> int:
        """Codes whose frames have been computed, prompt included."""
        return self._encoder[0].frames

    @property
    def codes_waiting(self) -> int:
        """Codes that wait for the rest of their chunk, or for those behind it."""
        return len(self._waiting)

    @property
    def nbytes(self) -> int:
        """Bytes of all states, spare room included (up to an eighth, for quick growing)."""
        return sum(state.nbytes for state in (*self._encoder, *self._steps))

    def step(self, codes: Tensor | Sequence[int]) -> Tensor:
        """Mel frames `[1, num_mel_bins, n]` in fp32 that the next `codes [m]` complete; m and n may be 0.

        Raises:
            ValueError: another shape or dtype, codes outside the codebook, more codes than fit into `max_mel_frames`,
                a call after `finish`. Nothing is changed then.
        """
        self._check_open()
        if not isinstance(codes, Tensor):
            codes = torch.tensor(codes) if len(codes) else torch.zeros(0, dtype=torch.long)
        if codes.dim() != 1:
            raise ValueError(f"codes must have one dimension, got {tuple(codes.shape)}")
        check_code_values(self.model.config, "codes", codes)
        check_length(self.model.config, self.codes_decoded + len(self._waiting) + len(codes))
        self._waiting = torch.cat([self._waiting, codes.long().cpu()])
        return self._decode(final=False)

    def finish(self) -> Tensor:
        """The last mel frames `[1, num_mel_bins, n]`; n may be 0. The session is over then.

        Raises:
            ValueError: at a second call.
        """
        self._check_open()
        self._finished = True
        mel = self._decode(final=True)
        self._encoder, self._steps = (FlowState(self.grid), FlowState(self.grid)), []
        return mel

    def fork(self) -> "FlowStream":
        """An independent session with the same past. Keys and values are shared until one of the two goes on."""
        self._check_open()
        other = object.__new__(FlowStream)
        other.__dict__.update(self.__dict__)
        other._encoder = tuple(state.fork() for state in self._encoder)
        other._steps = [state.fork() for state in self._steps]
        return other

    def _check_open(self) -> None:
        if self._finished:
            raise ValueError("this stream is finished; make a new one")

    def _pieces(self, final: bool) -> list[int]:
        """How many codes to decode in each of the next passes."""
        chunk, start, waiting = self.grid.chunk, self.codes_decoded, len(self._waiting)
        ready = waiting if final else max(0, waiting - self.model.config.pre_lookahead) // chunk * chunk
        at_once = max(1, MAX_PASS_FRAMES // (chunk * self.model.config.upsample_ratio)) * chunk
        pieces = []
        while ready:
            size = at_once
            if self.grid.left is not None:  # chunk by chunk, but all of the prompt is seen by all that follows
                size = min(at_once, max(chunk, (self.grid.pinned - start) // chunk * chunk))
            pieces.append(min(size, ready))
            start, ready = start + pieces[-1], ready - pieces[-1]
        return pieces

    @torch.no_grad()
    def _decode(self, final: bool) -> Tensor:
        model = self.model
        mel = [torch.zeros(1, model.config.num_mel_bins, 0, dtype=at_least_float32(model.dtype), device=model.device)]
        with evaluating(model):
            for size in self._pieces(final):
                first, prompt = self.codes_decoded, self.grid.pinned
                frames = self._pass(size)
                dropped = model.config.upsample_ratio * min(size, max(0, prompt - first))
                mel.append(frames[:, dropped:].transpose(1, 2))
                self._waiting = self._waiting[size:]
        return torch.cat(mel, dim=2)

    def _pass(self, size: int) -> Tensor:
        """Mel frames `[1, upsample_ratio * size, num_mel_bins]` of the next `size` codes."""
        model, config = self.model, self.model.config
        following = min(config.pre_lookahead, len(self._waiting) - size)
        codes = self._waiting[: size + following].to(model.device)
        states = model.encoder(model.code_embedding(codes[None]), following=following, states=self._encoder)
        mu = model.encoder_proj(states)
        start = self._steps[0].frames
        end = start + mu.shape[1]
        known = torch.zeros_like(mu)
        prompt = self._prompt_mel[start:end]
        known[0, : len(prompt)] = prompt
        noise = model.noise(start, end).to(at_least_float32(mu.dtype))
        _, _, mask = self._steps[0].positions(mu.shape[1], mu.device)
        bias = None if mask is None else additive(mask, mu)
        conditions = FlowConditions(mu, self._speaker, known)
        return sample(model.estimator, noise, conditions, self.times, self.scale, bias=bias, states=self._steps)


def _row(name: str, values: Tensor | None, dims: int) -> Tensor | None:
    """`values` of `dims` dimensions, from one with that many or with one more of size 1 in front."""
    if values is None or (isinstance(values, Tensor) and values.dim() == dims):
        return values
    if not isinstance(values, Tensor) or values.dim() != dims + 1 or len(values) != 1:
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values)
        raise ValueError(
            f"{name}: a stream has one row, expected {dims} dimensions or one more of size 1, got {shape}"
        )
    return values[0]


__all__ = ["FlowStream"]
