"""Checks of what the flow decoder is given, each with a message that names the argument."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..configuration.configuration_flow_decoder import FlowDecoderConfig
from .audio_parts import check_finite


def check_code_values(config: FlowDecoderConfig, name: str, codes: Tensor, mask: Tensor | None = None) -> None:
    """Raise a `ValueError` unless `codes` are integers of the codebook wherever `mask` (on the CPU) is on."""
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise ValueError(f"{name} must be integers, got {codes.dtype}")
    if codes.device.type == "meta":
        return
    values = codes.cpu() if mask is None else codes.cpu()[mask]
    if values.numel() and (int(values.min()) < 0 or int(values.max()) >= config.codebook_size):
        raise ValueError(
            f"{name} must be between 0 and {config.codebook_size - 1}, got values from {int(values.min())} "
            f"to {int(values.max())}"
        )


def check_codes(config: FlowDecoderConfig, codes: Tensor, codes_mask: Tensor | None) -> Tensor:
    """The mask of `codes [B, T]` as bool on the CPU, after checking both."""
    if not isinstance(codes, Tensor) or codes.dim() != 2 or not len(codes):
        given = tuple(codes.shape) if isinstance(codes, Tensor) else type(codes)
        raise ValueError(f"codes must be [batch, codes] with a row at least, got {given}")
    mask = torch.ones(codes.shape, dtype=torch.bool)
    if codes_mask is not None:
        mask = right_padded("codes_mask", codes_mask, codes.shape)
    check_code_values(config, "codes", codes, mask)
    return mask


def right_padded(name: str, mask: Tensor, shape: Sequence[int]) -> Tensor:
    """`mask` of that shape as bool on the CPU, after checking that each row is true at its beginning only."""
    mask = torch.as_tensor(mask).cpu().bool()
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(f"{name} must be {tuple(shape)}, got {tuple(mask.shape)}")
    if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise ValueError(f"{name} must be 1 on the first positions of a row and 0 behind them")
    return mask


def check_length(config: FlowDecoderConfig, codes: int) -> None:
    """Raise a `ValueError` when `codes` of prompt and target together are too many."""
    if codes > config.max_codes:
        raise ValueError(
            f"codes: prompt and codes together are {codes}, at most {config.max_codes} "
            f"({config.max_codes / config.frame_rate:g} s) are accepted; decode longer audio in pieces"
        )


def check_prompt(
    config: FlowDecoderConfig, codes: Tensor | None, mel: Tensor | None, where: str = ""
) -> tuple[Tensor, Tensor]:
    """One prompt: codes `[P]` (long) and mel frames `[upsample_ratio * P, num_mel_bins]`; both empty when `None`.

    Args:
        config: of the model.
        codes: `[P]` or `None`.
        mel: `[num_mel_bins, upsample_ratio * P]` or `None`.
        where: which row, for the message.
    """
    codes = torch.zeros(0, dtype=torch.long) if codes is None else codes
    mel = torch.zeros(config.num_mel_bins, 0) if mel is None else mel
    for name, value in (("prompt_codes", codes), ("prompt_mel", mel)):
        if not isinstance(value, Tensor):
            raise ValueError(f"{name}{where} must be a tensor, got {type(value)}")
    shapes = tuple(codes.shape), tuple(mel.shape)
    if len(shapes[0]) != 1 or len(shapes[1]) != 2 or shapes[1][0] != config.num_mel_bins:
        raise ValueError(
            f"prompt_codes and prompt_mel{where} must be [P] and [{config.num_mel_bins}, {config.upsample_ratio} * P], "
            f"got {shapes[0]} and {shapes[1]}"
        )
    if mel.shape[1] != config.upsample_ratio * len(codes):
        raise ValueError(
            f"prompt_mel{where} must have {config.upsample_ratio} frames for each of the {len(codes)} codes of "
            f"prompt_codes, got {mel.shape[1]} frames; cut both to the shorter one"
        )
    check_code_values(config, f"prompt_codes{where}", codes)
    if not mel.is_floating_point():
        raise ValueError(f"prompt_mel{where} must be floating point, got {mel.dtype}")
    check_finite(f"prompt_mel{where}", mel[None])
    return codes.long(), mel.T


def check_prompts(
    config: FlowDecoderConfig,
    batch: int,
    prompt_codes: Tensor | Sequence[Tensor | None] | None,
    prompt_mel: Tensor | Sequence[Tensor | None] | None,
) -> list[tuple[Tensor, Tensor]]:
    """The prompt of each of `batch` rows, as [`check_prompt`] gives it; one row serves all."""

    def rows(name, values, dims):
        if values is None:
            return [None] * batch
        if not isinstance(values, Tensor | Sequence):
            raise ValueError(f"{name} must be a tensor or a list with a row each, got {type(values)}")
        if isinstance(values, Tensor) and values.dim() != dims:
            raise ValueError(f"{name} must have {dims} dimensions, got {tuple(values.shape)}")
        if len(values) not in (1, batch):
            raise ValueError(f"{name} must have a row for each of {batch} rows of codes, or one, got {len(values)}")
        return list(values) * (batch if len(values) == 1 else 1)

    pairs = zip(rows("prompt_codes", prompt_codes, 2), rows("prompt_mel", prompt_mel, 3), strict=True)
    where = [f" of row {row}" for row in range(batch)] if batch > 1 else [""]
    return [check_prompt(config, *pair, where=where[row]) for row, pair in enumerate(pairs)]


def check_speaker(config: FlowDecoderConfig, speaker_embeds: Tensor | None, batch: int) -> Tensor:
    """Speaker vectors `[B or 1, speaker_embedding_size]` after checking them, zeros when `None`."""
    size = config.speaker_embedding_size
    if speaker_embeds is None:
        return torch.zeros(1, size)
    shape = tuple(speaker_embeds.shape) if isinstance(speaker_embeds, Tensor) else type(speaker_embeds)
    if shape not in ((1, size), (batch, size)) or not speaker_embeds.is_floating_point():
        raise ValueError(f"speaker_embeds must be floating point [{batch}, {size}] or [1, {size}], got {shape}")
    check_finite("speaker_embeds", speaker_embeds)
    return speaker_embeds


__all__ = [
    "check_code_values",
    "check_codes",
    "check_length",
    "check_prompt",
    "check_prompts",
    "check_speaker",
    "right_padded",
]
