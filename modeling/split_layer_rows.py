"""Rows (text id, audio id) of the split-layer model and the same rows as one number each, its flat ids."""

import torch
from transformers.utils.import_utils import is_tracing

from ..configuration.configuration_split_layer_qwen3 import SplitLayerQwen3Config

IGNORED = -100


def rows_to_flat(rows: torch.LongTensor, config: SplitLayerQwen3Config, name: str = "input_ids") -> torch.LongTensor:
    """
    Flat ids `[...]` of rows `[..., 2]`: the text id of a text row, `config.vocab_size` + the audio id of a speech row
    (text id `config.modality_pad_token_id`). The audio id of a text row goes nowhere.

    Raises:
        ValueError: as `check_rows`.
    """
    check_rows(rows, config, name)
    text, audio = rows.unbind(-1)
    return torch.where(text == config.modality_pad_token_id, config.vocab_size + audio, text)


def flat_to_rows(flat: torch.LongTensor, config: SplitLayerQwen3Config) -> torch.LongTensor:
    """
    Rows `[..., 2]` of flat ids `[...]`; text rows get `config.audio_pad_token_id` as their audio id.

    Raises:
        ValueError: as `check_flat`.
    """
    check_flat(flat, config)
    is_audio = flat >= config.vocab_size
    text = torch.where(is_audio, config.modality_pad_token_id, flat)
    return torch.stack((text, torch.where(is_audio, flat - config.vocab_size, config.audio_pad_token_id)), dim=-1)


def labels_to_flat(labels: torch.LongTensor, config: SplitLayerQwen3Config, length: int) -> torch.LongTensor:
    """
    Labels as flat ids `[batch, length]`, with -100 where nothing is to be learnt, from that or from rows
    `[batch, length, 2]` with -100 in both cells there.

    Raises:
        ValueError: if `labels` are neither, have another length, hold -100 in one cell only, or as `check_flat`.
    """
    if labels.dim() not in (2, 3) or labels.shape[1] != length or (labels.dim() == 3 and labels.shape[2] != 2):
        raise ValueError(
            f"`labels` must be flat ids [batch, {length}] or rows [batch, {length}, 2], got shape {list(labels.shape)}"
        )
    ignored = labels == IGNORED
    if labels.dim() == 3:
        if _can_look(labels) and bool((ignored[..., 0] != ignored[..., 1]).any()):
            raise ValueError("`labels` as rows must have -100 in both cells of a row or in neither")
        ignored = ignored[..., 0]
        spoken = torch.where(ignored[..., None], config.audio_pad_token_id, labels)
        spoken[..., 0].masked_fill_(ignored, config.sosp_token_id)
        flat = rows_to_flat(spoken, config, name="labels")
    else:
        flat = labels
        check_flat(labels.masked_fill(ignored, config.sosp_token_id), config, name="labels")
    return flat.masked_fill(ignored, IGNORED)


def check_not_empty(values: torch.Tensor, name: str = "input_ids") -> None:
    """
    Raises:
        ValueError: if `values` are no tensor, or hold no rows.
    """
    if not isinstance(values, torch.Tensor):
        raise ValueError(f"`{name}` must be a tensor, got {type(values).__name__}")
    if 0 in values.shape:
        raise ValueError(f"`{name}` must hold at least one row, got shape {list(values.shape)}")


def check_rows(rows: torch.LongTensor, config: SplitLayerQwen3Config, name: str = "input_ids") -> None:
    """
    Raises:
        ValueError: if `rows` are no integers `[..., 2]`, or an id lies outside its vocabulary.
    """
    _check_integers(rows, name)
    if rows.dim() < 1 or rows.shape[-1] != 2:
        raise ValueError(
            f"`{name}` as rows must end in 2 cells (text id, audio id), got shape {list(rows.shape)}; flat ids are "
            "[batch, length]"
        )
    for channel, what, size in ((0, "text", config.vocab_size), (1, "audio", config.audio_vocab_size)):
        _check_range(rows[..., channel], size, name, f"{what} ids")


def check_flat(flat: torch.LongTensor, config: SplitLayerQwen3Config, name: str = "input_ids") -> None:
    """
    Raises:
        ValueError: if `flat` are no integers, an id lies outside both vocabularies, or one is
            `config.modality_pad_token_id`, which has no meaning alone.
    """
    _check_integers(flat, name)
    _check_range(flat, config.total_vocab_size, name, "flat ids")
    if _can_look(flat) and bool((flat == config.modality_pad_token_id).any()):
        raise ValueError(
            f"`{name}` hold {config.modality_pad_token_id} (`modality_pad_token_id`): a speech row as a flat id is "
            f"`vocab_size` ({config.vocab_size}) + its audio id; rows of two ids are [batch, length, 2]"
        )


def _check_integers(ids: torch.Tensor, name: str) -> None:
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"`{name}` must be integers, got {ids.dtype}")


def _check_range(ids: torch.Tensor, size: int, name: str, what: str) -> None:
    if _can_look(ids) and ids.numel() and bool(((ids < 0) | (ids >= size)).any()):
        raise ValueError(f"`{name}`: {what} must be 0 to {size - 1}, got {int(ids.min())} to {int(ids.max())}")


def _can_look(values: torch.Tensor) -> bool:
    """Whether values may steer the program: not while it is compiled, exported or recorded as a CUDA graph."""
    return values.device.type != "meta" and not is_tracing(values)


__all__ = ["IGNORED", "check_flat", "check_not_empty", "check_rows", "flat_to_rows", "labels_to_flat", "rows_to_flat"]
