"""Checkpoints of a training run on disk: which one to resume from."""

import json
import os
import re
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

_STEP = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
# Patterns of files and folders, whole or in the shards of FSDP and DeepSpeed.
_NEEDED = {
    "weights": ("*.safetensors", "*.bin", "pytorch_model_fsdp_*", "global_step*"),
    "optimizer": ("optimizer.pt", "optimizer_*", "optimizer.bin", "global_step*"),
    "random states": ("rng_state*.pth",),
}


def last_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """
    The last checkpoint of `output_dir` that can be resumed from, `None` if there is none. A folder that a killed run
    left half written is passed over: the Trainer writes its state last.
    """
    folder = Path(output_dir)
    if not folder.is_dir():
        return None
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _STEP.fullmatch(path.name))]
    for _, path in sorted(found, reverse=True):
        if is_complete(path):
            return str(path)
    return None


def is_complete(checkpoint: str | os.PathLike) -> bool:
    """Whether a checkpoint has everything that resuming needs: weights, optimizer, random states, and a Trainer state
    that can be read (it is written last, and a killed run may have written half of it)."""
    folder = Path(checkpoint)
    try:
        json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    found = {name: any(any(folder.glob(pattern)) for pattern in patterns) for name, patterns in _NEEDED.items()}
    return all(found.values())


def resume_from(resume: str | bool | None, output_dir: str | os.PathLike) -> str | None:
    """
    What to give `Trainer.train` as `resume_from_checkpoint`: `"auto"` (or true) means the last complete checkpoint of
    `output_dir`, or a fresh start without one; a path means itself.

    Raises:
        ValueError: a path that is no complete checkpoint.
    """
    if resume in (None, False, "", "no", "false", "False"):
        return None
    if resume in (True, "auto", "true", "True"):
        return last_checkpoint(output_dir)
    if not is_complete(resume):
        raise ValueError(
            f"`resume_from_checkpoint` {resume!r} is no complete checkpoint (Trainer state, optimizer, random states); "
            f"'auto' takes the last complete one of `output_dir`, here {last_checkpoint(output_dir)!r}"
        )
    return str(resume)


__all__ = ["is_complete", "last_checkpoint", "resume_from"]
