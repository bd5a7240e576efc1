"""Checkpoints of a training run on disk: which one to resume from."""

import os
import re
from pathlib import Path

from transformers.trainer import OPTIMIZER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

_STEP = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)$")


def last_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """
    The last checkpoint of `output_dir` that can be resumed from, `None` if there is none. A folder that a killed run
    left half written is passed over: the Trainer writes its state last.
    """
    folder = Path(output_dir)
    if not folder.is_dir():
        return None
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _STEP.search(path.name))]
    for _, path in sorted(found, reverse=True):
        if is_complete(path):
            return str(path)
    return None


def is_complete(checkpoint: str | os.PathLike) -> bool:
    """Whether a checkpoint has everything that resuming needs: Trainer state, optimizer and random states."""
    folder = Path(checkpoint)
    has_optimizer = (
        (folder / OPTIMIZER_NAME).is_file() or any(folder.glob("optimizer_*")) or any(folder.glob("global_step*"))
    )
    return (folder / TRAINER_STATE_NAME).is_file() and has_optimizer and any(folder.glob("rng_state*.pth"))


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
