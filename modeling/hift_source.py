"""The excitation of the HiFT vocoder: sines at the multiples of f0 plus noise, in closed form from f0 per frame."""

import torch
from torch import Tensor, nn

from ..configuration.configuration_hift import HiFTConfig

PHASE_BITS = 40  # phases are whole multiples of 2^-40 cycles: their sums have no rounding, however long and cut
PHASE_MASK = 2**PHASE_BITS - 1
UNIFORM_BITS = 24  # of the uniform numbers behind the noise


def precise_dtype(device: torch.device) -> torch.dtype:
    """float64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def sample_noise(seed: int, start: int, length: int, channels: int, device: torch.device | str) -> Tensor:
    """Standard normal noise `[1, length, channels]`, float32, of the absolute samples `start ... start + length - 1`.

    Sample n has the same numbers whatever was asked for before, on every device (up to the rounding of the logarithm
    and cosine there), and no random generator is touched: a counter is hashed (SplitMix64) and mapped by Box-Muller.

    Raises:
        ValueError: the seed is no integer.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed must be an integer, got {seed!r}")
    counter = torch.arange(start * channels, (start + length) * channels, device=device)
    state = counter * _signed(0x9E3779B97F4A7C15) + _signed(_mixed(seed))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ _shifted(state, shift)) * _signed(factor)
    state = state ^ _shifted(state, 31)
    scale = 2.0**-UNIFORM_BITS
    radius = ((_shifted(state, 64 - UNIFORM_BITS) + 1).float() * scale).log().mul(-2).sqrt()
    angle = (state & (2**UNIFORM_BITS - 1)).float() * (2 * torch.pi * scale)
    return (radius * angle.cos()).view(1, length, channels)


def _signed(number: int) -> int:
    """The int64 with the same bits; products of int64 tensors wrap around as those of unsigned numbers do."""
    number %= 2**64
    return number - 2**64 if number >= 2**63 else number


def _mixed(seed: int) -> int:
    """A 64-bit number in which neighbouring seeds differ everywhere."""
    number = (seed + 1) * 0x9E3779B97F4A7C15 % 2**64
    number = (number ^ number >> 32) * 0xD6E8FEB86659FD93 % 2**64
    return number ^ number >> 32


def _shifted(state: Tensor, shift: int) -> Tensor:
    """Right shift of the bits of an int64 tensor, zeros coming in."""
    return (state >> shift) & (2 ** (64 - shift) - 1)


class HiFTSource(nn.Module):
    """
    Excitation of f0 (the sine generator of the released vocoder, in closed form).

    The release writes f0 at every sample, takes `h f0 / sampling_rate` modulo 1 cycles, brings that back to one value
    per frame, sums it up, multiplies by the hop and interpolates linearly to samples: the phase at the centre of frame
    i is the sum of `hop * (h f0_j / sampling_rate mod 1)` over j <= i, linear between two centres and constant before
    the first and behind the last one. Its random start phases reach no sample that is read, so they have no effect.

    Here whole cycles are dropped at every step, so that the phase is as exact after an hour as at the start. No
    gradient flows through the phase: f0 is trained by its own loss.
    """

    def __init__(self, config: HiFTConfig):
        super().__init__()
        self.config = config
        self.l_linear = nn.Linear(config.num_harmonics, 1)

    def phase_steps(self, f0: Tensor) -> tuple[Tensor, Tensor]:
        """`(cycles per sample, phase step per hop in units of 2^-40 cycles)`, `[B, F, num_harmonics]`, of f0 `[B, F]`."""
        harmonics = torch.arange(1, self.config.num_harmonics + 1, device=f0.device)
        cycles = (f0.detach().to(precise_dtype(f0.device))[..., None] * harmonics / self.config.sampling_rate) % 1.0
        return cycles, ((cycles * self.config.hop_length % 1.0) * 2**PHASE_BITS).round().long()

    def forward(self, f0: Tensor, noise: Tensor) -> Tensor:
        """f0 `[B, F]` in Hz and standard normal noise `[B or 1, F * hop, num_harmonics]` to `[B, 1, F * hop]`."""
        return self.mix(*HiFTSourcePieces(self).step(f0, final=True), noise)

    def segments(self, anchors: Tensor, cycles: Tensor) -> Tensor:
        """Phases in cycles `[B, N * hop, num_harmonics]` of N segments that start at the centres of frames.

        Args:
            anchors (`torch.Tensor`): `[B, N, num_harmonics]`, phase at the start, in units of 2^-40 cycles.
            cycles (`torch.Tensor`): `[B, N, num_harmonics]`, cycles per sample from there on.
        """
        hop = self.config.hop_length
        # the centre of an even hop lies between two samples
        offsets = torch.arange(hop, device=anchors.device, dtype=cycles.dtype) + (0 if hop % 2 else 0.5)
        moved = cycles[:, :, None] * offsets[:, None] % 1.0
        phase = moved + (anchors.to(cycles.dtype) * 2.0**-PHASE_BITS)[:, :, None]
        return phase.flatten(1, 2)

    def mix(self, phase: Tensor, f0: Tensor, noise: Tensor) -> Tensor:
        """Phases in cycles and noise `[B, N, num_harmonics]`, f0 of every sample `[B, N]`, to `[B, 1, N]`."""
        weight = self.l_linear.weight
        voiced = (f0 > self.config.voiced_threshold).to(weight.dtype).unsqueeze(-1)
        sines = self.config.sine_amplitude * torch.sin(2 * torch.pi * (phase % 1.0).to(weight.dtype))
        unvoiced_noise = self.config.sine_amplitude / 3
        amplitude = voiced * self.config.noise_amplitude + (1 - voiced) * unvoiced_noise
        return torch.tanh(self.l_linear(sines * voiced + amplitude * noise)).transpose(1, 2)


class HiFTSourcePieces:
    """`HiFTSource` for f0 that comes piece by piece; keeps the last frame and its phase."""

    def __init__(self, source: HiFTSource):
        self.source = source
        self.anchor: Tensor | None = None  # phase [B, 1, num_harmonics] at the centre of the last frame
        self.f0: Tensor | None = None  # [B, 1], of the last frame

    def copy(self) -> "HiFTSourcePieces":
        twin = HiFTSourcePieces(self.source)
        twin.anchor, twin.f0 = self.anchor, self.f0
        return twin

    @property
    def nbytes(self) -> int:
        return 0 if self.anchor is None else self.anchor.nbytes + self.f0.nbytes

    def step(self, f0: Tensor, final: bool) -> tuple[Tensor, Tensor]:
        """f0 of the next frames `[B, n]` to `(phase [B, m, num_harmonics], f0 [B, m])` of the samples that are certain.

        They end at the centre of the last frame, or at its end when `final`.
        """
        hop, first = self.source.config.hop_length, self.anchor is None
        half = hop // 2
        cycles, steps = self.source.phase_steps(f0)
        if first and not f0.shape[1]:
            return cycles, f0
        start = 0 if first else self.anchor
        anchors = (steps.cumsum(dim=1) + start) & PHASE_MASK
        known = f0 if first else torch.cat([self.f0, f0], dim=1)
        if first:
            anchors, cycles = (
                torch.cat([anchors[:, :1], anchors], dim=1),
                torch.cat([cycles[:, :1] * 0, cycles[:, 1:]], dim=1),
            )
        else:
            anchors = torch.cat([self.anchor, anchors], dim=1)
        self.anchor, self.f0 = anchors[:, -1:], known[:, -1:]
        if final:
            cycles = torch.cat([cycles, torch.zeros_like(anchors[:, :1], dtype=cycles.dtype)], dim=1)
        else:
            anchors = anchors[:, :-1]
        phase = self.source.segments(anchors, cycles)
        samples = known.repeat_interleave(hop, dim=1)
        # `phase` starts at the centre of a frame (half a frame in front of the first one), `samples` where that starts
        if first:
            phase = phase[:, hop - half :]
        else:
            samples = samples[:, half:]
        length = min(phase.shape[1], samples.shape[1])
        return phase[:, :length], samples[:, :length]


__all__ = ["HiFTSource", "HiFTSourcePieces", "precise_dtype", "sample_noise"]
