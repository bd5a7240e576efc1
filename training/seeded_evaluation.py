"""Evaluation with draws that are the same every time, for losses that hold random numbers in evaluation mode too."""

import random

import numpy as np
import torch
from transformers import set_seed


class SeededEvaluationMixin:
    """
    Start the random generators of an evaluation from the seed of the training, and leave those of the training alone:
    losses of different checkpoints are then comparable, and evaluating changes no training.

    Put it in front of the Trainer: `class FlowTrainer(SeededEvaluationMixin, Trainer): ...`.
    """

    def evaluation_loop(self, *args, **kwargs):
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        python, numpy = random.getstate(), np.random.get_state()
        try:
            with torch.random.fork_rng(devices=devices):
                set_seed(self.args.seed)
                return super().evaluation_loop(*args, **kwargs)
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


__all__ = ["SeededEvaluationMixin"]
