"""Which parameters of a model train: named policies, and a table of what they leave trainable."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

# Everything of a split model that speaks only speech (paper 3.1, Stage 1; the norm of the branch belongs to it).
_SPEECH = r"(^|\.)(audio_embed|audio_block|audio_norm|audio_lm_head)\."
_SHARED = r"(^|\.)shared_block\."


@dataclass(frozen=True)
class FreezingPolicy:
    """
    Args:
        trainable: regular expression searched in the name of each parameter; those that it finds train.
        source: where the policy comes from.
    """

    trainable: str
    source: str


POLICIES: Mapping[str, FreezingPolicy] = {
    "full": FreezingPolicy("", "MOSS-Speech 3.1, Stage 2, configuration 1 (FP-Full); NF; supervised fine-tuning"),
    "speech_only": FreezingPolicy(_SPEECH, "MOSS-Speech 3.1, Stage 1: all parameters of the text backbone are frozen"),
    "shared": FreezingPolicy(
        f"{_SPEECH}|{_SHARED}",
        "MOSS-Speech 3.1, Stage 2, configuration 2 (FP-Shared): text embeddings, text layers and text head stay frozen",
    ),
    "layerwise": FreezingPolicy(
        f"{_SPEECH}|{_SHARED}",
        "MOSS-Speech 3.1, Stage 2, configuration 3 (FP-Layerwise), with the schedule of appendix D for the shared layers",
    ),
}


def apply_freezing(model: nn.Module, policy: str) -> None:
    """Set `requires_grad` of every parameter of `model` as `policy` says.

    Args:
        model: any module.
        policy: a name of `POLICIES`, or a regular expression: parameters in whose names it is found train.

    Raises:
        ValueError: the policy leaves no parameter trainable, or is no valid expression.
    """
    pattern = _pattern(policy)
    trainable = [name for name, _ in model.named_parameters() if pattern.search(name)]
    if not trainable:
        raise ValueError(
            f"`policy` {policy!r} leaves no parameter of {type(model).__name__} trainable; accepted are "
            f"{', '.join(POLICIES)} (for split models) or a regular expression found in parameter names"
        )
    names = set(trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def _pattern(policy: str) -> re.Pattern:
    try:
        return re.compile(POLICIES[policy].trainable if policy in POLICIES else policy)
    except re.error as error:
        raise ValueError(
            f"`policy` {policy!r} is neither one of {', '.join(POLICIES)} nor a regular expression ({error})"
        ) from None


def parameter_table(model: nn.Module, depth: int = 2) -> list[dict[str, int | str]]:
    """Parameters per module, trainable and frozen, in the order of the model.

    Args:
        model: any module.
        depth: how many parts of the dotted name make a group.

    Returns:
        Rows with `group`, `trainable`, `frozen` (numbers of parameters); shared parameters count once.
    """
    rows: dict[str, dict[str, int | str]] = {}
    for name, parameter in model.named_parameters():
        group = ".".join(name.split(".")[:-1][:depth]) or name
        row = rows.setdefault(group, {"group": group, "trainable": 0, "frozen": 0})
        row["trainable" if parameter.requires_grad else "frozen"] += parameter.numel()
    return list(rows.values())


def format_parameter_table(rows: list[dict[str, int | str]]) -> str:
    """`parameter_table` as text, one line a group and the sum at the end."""
    total = {"group": "total", **{kind: sum(row[kind] for row in rows) for kind in ("trainable", "frozen")}}
    width = max(len(row["group"]) for row in [*rows, total])
    lines = [f"{'parameters':{width}} {'trainable':>15} {'frozen':>15}"]
    lines += [f"{row['group']:{width}} {row['trainable']:>15,} {row['frozen']:>15,}" for row in [*rows, total]]
    return "\n".join(lines)


__all__ = ["POLICIES", "FreezingPolicy", "apply_freezing", "format_parameter_table", "parameter_table"]
