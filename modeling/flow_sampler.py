"""Flow matching on mel spectrograms: the sampler that follows the velocity, and the loss that teaches it.

A path leads from noise z at time 0 to the mel spectrogram x at time 1: y_t = (1 - (1 - sigma_min) t) z + t x, with the
velocity x - (1 - sigma_min) z. All sequences are `[B, F, num_mel_bins]`.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..configuration.configuration_flow_decoder import FlowDecoderConfig
from .flow_estimator import FlowEstimator
from .flow_state import FlowState


class FlowConditions(NamedTuple):
    """What the velocity depends on besides the frames themselves."""

    mu: Tensor  # [B, F, num_mel_bins], the encoder's prediction
    speaker: Tensor  # [B, num_mel_bins]
    known: Tensor  # [B, F, num_mel_bins], mel frames of the prompt, zeros elsewhere

    def scaled(self, keep: Tensor) -> "FlowConditions":
        """All conditions of row b times `keep [B]`."""
        return FlowConditions(
            self.mu * keep[:, None, None], self.speaker * keep[:, None], self.known * keep[:, None, None]
        )

    def guided(self, scale: float) -> "FlowConditions":
        """The rows with their conditions, and once more without any, unless `scale` makes these superfluous."""
        if not scale:
            return self
        return FlowConditions(*(torch.cat([values, torch.zeros_like(values)]) for values in self))


def warp(times: Tensor, schedule: str) -> Tensor:
    """Times 0 to 1 as `schedule` spaces them: `"uniform"`, or `"cosine"`, 1 - cos(pi t / 2), denser near the noise."""
    return 1 - torch.cos(times * (0.5 * math.pi)) if schedule == "cosine" else times


def time_steps(config: FlowDecoderConfig, num_timesteps: int | None = None) -> list[float]:
    """Times of the Euler steps, from 0 to 1, after checking their number."""
    steps = config.num_timesteps if num_timesteps is None else num_timesteps
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"num_timesteps must be a positive number of steps, got {steps!r}")
    return warp(torch.linspace(0, 1, steps + 1, dtype=torch.float32), config.time_schedule).tolist()


def guidance(config: FlowDecoderConfig, guidance_scale: float | None = None) -> float:
    """s of v = (1 + s) v(conditional) - s v(without conditions), after checking it."""
    scale = config.guidance_scale if guidance_scale is None else guidance_scale
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale) or scale < 0:
        raise ValueError(f"guidance_scale must be a number of at least 0, got {scale!r}")
    return float(scale)


def sample(
    estimator: FlowEstimator,
    noise: Tensor,
    conditions: FlowConditions,
    times: Sequence[float],
    scale: float,
    valid: Tensor | None = None,
    bias: Tensor | None = None,
    states: Sequence[FlowState] | None = None,
) -> Tensor:
    """Euler steps from the noise with classifier-free guidance; rows with and without conditions run as one batch.

    Args:
        estimator: of the velocity.
        noise: `[B, F, num_mel_bins]`; the steps are summed in its dtype.
        conditions: of B rows.
        times: n + 1 times from 0 to 1.
        scale: see [`guidance`].
        valid: `[B, F]` bool, true on the frames of a row; `None` without padding.
        bias: `[B or 1, 1, F or 1, K]`, added to the attention scores; `None` when all frames see all.
        states: for frames that continue those of earlier calls, one state for each of the n steps.

    Returns:
        `[B, F, num_mel_bins]` in the dtype of the noise.
    """
    dtype = conditions.mu.dtype
    conditions = conditions.guided(scale)
    rows = len(conditions.mu) // len(noise)
    valid = None if valid is None else valid.repeat(rows, 1)
    bias = bias if bias is None or len(bias) == 1 else bias.repeat(rows, 1, 1, 1)
    frames = noise
    for step, (start, end) in enumerate(itertools.pairwise(times)):
        state = None if states is None else states[step]
        if state is not None:
            state.advance(noise.shape[1])
        at = torch.full((len(conditions.mu),), start, device=noise.device, dtype=torch.float32)
        velocity = estimator(frames.to(dtype).repeat(rows, 1, 1), *conditions, at, valid, bias, state).to(noise.dtype)
        if scale:
            with_conditions, without = velocity.chunk(2)
            velocity = (1.0 + scale) * with_conditions - scale * without
        frames = frames + (end - start) * velocity
    return frames


class FlowDraws(NamedTuple):
    """What is drawn for a training batch of B rows and F frames."""

    times: Tensor  # [B], 0 to 1
    noise: Tensor  # [B, F, num_mel_bins]
    keep: Tensor  # [B], 0 where all conditions are dropped
    prompt_fraction: Tensor  # [B], part of the row that is given as prompt
    streaming: bool  # whether the masks are those of streaming


def draw(config: FlowDecoderConfig, mel: Tensor, generator: torch.Generator | None = None) -> FlowDraws:
    """Times, noise, dropped conditions, prompts and masks for `mel [B, F, num_mel_bins]`.

    They are drawn on the device of `generator`; on that of `mel`, from the global generator, when `None`.
    """
    batch = len(mel)
    where = {"device": mel.device if generator is None else generator.device, "generator": generator}
    uniform = torch.rand(5, batch, **where).to(mel.device)
    noise = torch.randn(mel.shape, **where).to(mel.device)
    prompted = (uniform[2] < config.prompt_probability).float()
    return FlowDraws(
        times=warp(uniform[0], config.training_time_schedule),
        noise=noise,
        keep=(uniform[1] >= config.conditioning_dropout).float(),
        prompt_fraction=prompted * uniform[3] * config.max_prompt_fraction,
        streaming=bool(uniform[4, 0] < config.streaming_probability),
    )


def velocity_loss(
    estimator: FlowEstimator,
    mel: Tensor,
    mu: Tensor,
    speaker: Tensor,
    valid: Tensor,
    bias: Tensor | None,
    draws: FlowDraws,
    sigma_min: float,
) -> Tensor:
    """Mean squared error of the velocity over the valid frames and all bins, in fp32.

    Args:
        estimator: of the velocity.
        mel: `[B, F, num_mel_bins]`, zeros where `valid` is off.
        mu: `[B, F, num_mel_bins]`.
        speaker: `[B, num_mel_bins]`.
        valid: `[B, F]` bool.
        bias: attention bias of these frames.
        draws: see [`draw`].
        sigma_min: see the head of this module.
    """
    mel, times = mel.float(), draws.times[:, None, None]
    path = (1 - (1 - sigma_min) * times) * draws.noise + times * mel
    target = mel - (1 - sigma_min) * draws.noise
    prompt_frames = (draws.prompt_fraction * valid.sum(dim=1)).long()
    in_prompt = torch.arange(mel.shape[1], device=mel.device) < prompt_frames[:, None]
    known = (mel * in_prompt[..., None]).to(mu.dtype)
    conditions = FlowConditions(mu, speaker, known).scaled(draws.keep.to(mu.dtype))
    velocity = estimator(path.to(mu.dtype), *conditions, draws.times, valid, bias)
    error = (velocity.float() - target).square() * valid[..., None]
    return error.sum() / (valid.sum() * mel.shape[-1])


__all__ = ["FlowConditions", "FlowDraws", "draw", "guidance", "sample", "time_steps", "velocity_loss", "warp"]
