"""A callback that publishes the checkpoints of a training run."""

import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .hub import link_or_copy, push_to_hub

# What a checkpoint holds for resuming and nobody needs who loads the model.
_FOR_RESUMING = (
    *("optimizer*", "scheduler.pt", "scaler.pt", "rng_state*", "trainer_state.json", "training_args.bin"),
    *("global_step*", "latest", "zero_to_fp32.py", "pytorch_model_fsdp*"),
)


class PushToHubCallback(TrainerCallback):
    """
    Publishes each checkpoint that the Trainer saves in one commit: weights, processor, code and card, without the states
    of optimizer and random numbers. It pushes the whole weights that the Trainer wrote to disk. What cannot be pushed (no
    network, weights saved in shards) is reported with a warning, and training goes on.

    Args:
        repo_id: the repository, created if it does not exist.
        processor (*optional*): saved beside the model.
        card ([`huggingface_hub.ModelCard`], *optional*): by default one made from the configuration.
        every: push every n-th checkpoint of this process.
        push_kwargs: further arguments of [`push_to_hub`]: `private`, `token`, `bundle_code`.
    """

    def __init__(
        self, repo_id: str, processor: Any = None, card: ModelCard | None = None, every: int = 1, **push_kwargs
    ):
        if every < 1:
            raise ValueError(f"`every` must be at least 1, got {every}")
        self.repo_id = repo_id
        self.processor = processor
        self.card = card
        self.every = every
        self.push_kwargs = push_kwargs
        self._saved = 0

    def on_save(self, args, state, control, **kwargs):
        self._saved += 1
        if not state.is_world_process_zero or self._saved % self.every:
            return
        checkpoint = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        try:
            self._push(checkpoint, state.global_step)
        except Exception as error:  # a run of days must not end because of a push, whatever failed
            warnings.warn(f"step {state.global_step} was not pushed to {self.repo_id}: {error}", stacklevel=2)

    def _push(self, checkpoint: Path, step: int) -> None:
        with tempfile.TemporaryDirectory(dir=checkpoint.parent) as temporary:
            staging = Path(temporary) / "checkpoint"
            shutil.copytree(checkpoint, staging, ignore=shutil.ignore_patterns(*_FOR_RESUMING), copy_function=_copy)
            if not any(staging.glob("*.safetensors")):
                raise ValueError(
                    "the checkpoint has no safetensors (its weights are sharded); let FSDP or ZeRO save whole weights"
                )
            if self.processor is not None:
                self.processor.save_pretrained(staging)
            kwargs = {"commit_message": f"Checkpoint of step {step}", **self.push_kwargs}
            if not (staging / "config.json").exists():  # an adapter, which comes with the code of its base
                kwargs["bundle_code"] = False
            push_to_hub(staging, self.repo_id, card=self.card, **kwargs)


def _copy(source: str, target: str) -> None:
    """Weights get a second name where the file system can; what may be written again is copied."""
    if source.endswith(".safetensors"):
        link_or_copy(source, target)
    else:
        shutil.copy2(source, target)


__all__ = ["PushToHubCallback"]
