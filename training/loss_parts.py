"""Logging of the parts of a loss by `transformers.Trainer`."""

from collections import defaultdict

import torch
from transformers.trainer_pt_utils import find_batch_size


class LossPartsMixin:
    """Log every output of the model that is called `*_loss`, and those of `logged_outputs`, beside the loss.

    Put it in front of the Trainer: `class LossPartsTrainer(LossPartsMixin, Trainer): ...`. A training entry holds the
    mean over the micro-batches since the last entry, an evaluation entry the mean over rows, of all processes; parts
    that a batch does not have do not count. In an evaluation they carry its prefix (`eval_commitment_loss`) and are
    among the metrics that `evaluate` returns (rows that pad the last batches of several processes count there). Parts
    must be means, as they are where `accepts_loss_kwargs` is false.
    """

    logged_outputs: tuple[str, ...] = ("perplexity",)

    def __init__(self, *args, **kwargs):
        # (training?) -> name -> [sum, weight]
        self._loss_parts = {True: defaultdict(lambda: [0.0, 0]), False: defaultdict(lambda: [0.0, 0])}
        super().__init__(*args, **kwargs)
        if self.label_smoother is not None:
            raise ValueError(
                f"`label_smoothing_factor` is {self.args.label_smoothing_factor}; only 0 is accepted: the Trainer would "
                "replace all parts of the loss by a cross-entropy of `logits` and `labels`"
            )

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        weight = 1 if model.training else find_batch_size(inputs)
        for name, value in outputs.items():
            is_part = name.endswith("_loss") or name in self.logged_outputs
            if is_part and isinstance(value, torch.Tensor):
                part = self._loss_parts[model.training][name]
                part[0] = part[0] + value.detach().float().mean() * weight
                part[1] += weight
        return (loss, outputs) if return_outputs else loss

    def log(self, logs, *args, **kwargs):
        if "loss" in logs:
            logs.update(self._take_loss_parts(True))
        else:
            prefix = next((key.removesuffix("loss") for key in logs if key.endswith("_loss")), None)
            if prefix is not None and prefix != "train_":  # "train_" marks the summary at the end of training
                logs.update({prefix + name: value for name, value in self._take_loss_parts(False).items()})
        super().log(logs, *args, **kwargs)

    def _take_loss_parts(self, training: bool) -> dict[str, float]:
        """Means over all processes, which need not have seen the same parts; starts anew."""
        parts = {name: (float(total), weight) for name, (total, weight) in self._loss_parts[training].items()}
        self._loss_parts[training].clear()
        gathered = [parts]
        if self.accelerator.num_processes > 1:
            gathered = [None] * self.accelerator.num_processes
            torch.distributed.all_gather_object(gathered, parts)
        names = sorted({name for process in gathered for name in process})
        sums = {name: [process[name] for process in gathered if name in process] for name in names}
        return {name: sum(t for t, _ in pairs) / sum(w for _, w in pairs) for name, pairs in sums.items()}


__all__ = ["LossPartsMixin"]
