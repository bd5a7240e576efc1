"""The Trainer of the training scripts: exact losses, their parts and the speed in the log, both sides evaluated."""

import time
from collections.abc import Collection, Iterable, Mapping

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import SaveStrategy

from ..processing.tasks import TASKS
from .callbacks import is_sharded
from .layerwise_unfreezing import LayerwiseUnfreezingMixin
from .loss_parts import LossPartsMixin
from .packing import PackedDataset, check_packing


class LogBeforeSaving(TrainerCallback):
    """A log entry in front of every checkpoint: what is logged behind it is then the same in a resumed run."""

    def on_step_end(self, args, state, control, **kwargs):
        # With the strategy "best" any evaluation may lead to a checkpoint.
        if control.should_save or (args.save_strategy == SaveStrategy.BEST and control.should_evaluate):
            control.should_log = True
        return control

    on_epoch_end = on_step_end


class SpeechTrainer(LossPartsMixin, LayerwiseUnfreezingMixin, Trainer):
    """
    `transformers.Trainer`, and

    - the loss of a step is the same however its rows are spread over micro-batches and processes, and its parts are
      logged ([`LossPartsMixin`]);
    - training entries hold `tokens_per_second`: positions that are no padding, of all processes, evaluation left out;
      `num_input_tokens_seen` counts them too (`include_num_input_tokens_seen`);
    - with an `eval_dataset` by name, every evaluation also has the means of both sides, `eval_understanding_loss` and
      `eval_speech_loss`: `metric_for_best_model` can name one;
    - a model that would mix packed examples is refused ([`check_packing`]);
    - with `unfreezing`, layers have schedules of their own ([`LayerwiseUnfreezingMixin`]).

    Args:
        sides (mapping, *optional*): for each mean (`"speech_loss"`) the metrics that it is taken over, all without the
            prefix `eval_` (`["tts_loss", "vc_loss"]`); metrics that an evaluation does not have are left out. By default
            the losses of the tasks with a text and with a speech answer, where `eval_dataset` has tasks of both.
        unfreezing ([`LayerwiseUnfreezing`], *optional*): gradual unfreezing.
        Others: those of `Trainer`.
    """

    def __init__(self, *args, sides: Mapping[str, Collection[str]] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        if sides is None:
            sides = task_sides(self.eval_dataset if isinstance(self.eval_dataset, dict) else ())
        if isinstance(self.train_dataset, PackedDataset) and not is_sharded(self.model):
            check_packing(self.model)
        self.sides = {name: tuple(metrics) for name, metrics in sides.items()}
        self.add_callback(LogBeforeSaving())
        self._tokens = torch.zeros((), dtype=torch.long)
        self._clock = None

    def training_step(self, model, inputs, *args, **kwargs):
        if self._clock is None:
            self._clock = time.perf_counter()
        return super().training_step(model, inputs, *args, **kwargs)

    def _track_num_input_tokens(self, inputs):
        self._tokens = self._tokens + count_tokens(inputs).to(self._tokens.device)

    def log(self, logs, *args, **kwargs):
        if ("loss" in logs or "total_flos" in logs) and self._clock is not None:  # the latter ends the training
            now, tokens = time.perf_counter(), self._tokens.to(self.args.device)[None]
            total = int(self.accelerator.gather(tokens).sum()) // self.get_tp_size()
            if total > 0 and "loss" in logs:
                logs["tokens_per_second"] = round(total / max(now - self._clock, 1e-9), 1)
            self.state.num_input_tokens_seen += total
            self._tokens, self._clock = torch.zeros((), dtype=torch.long), now
        super().log(logs, *args, **kwargs)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval"):
        started = time.perf_counter()
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if isinstance(self.eval_dataset if eval_dataset is None else eval_dataset, dict):
            found = {
                f"{metric_key_prefix}_{side}": [
                    metrics[key] for name in names if (key := f"{metric_key_prefix}_{name}") in metrics
                ]
                for side, names in self.sides.items()
            }
            means = {side: sum(values) / len(values) for side, values in found.items() if values}
            if means:
                super(LossPartsMixin, self).log(dict(means))
                metrics.update(means)
        if self._clock is not None and metric_key_prefix == "eval":
            self._clock += time.perf_counter() - started
        return metrics


def task_sides(names: Iterable[str]) -> dict[str, list[str]]:
    """`sides` of [`SpeechTrainer`] for data sets called as the eight tasks; empty unless both sides are there."""
    losses = {"text": [], "speech": []}
    for name in names:
        if name in TASKS:
            losses[TASKS[name].output].append(f"{name}_loss")
    return {"understanding_loss": losses["text"], "speech_loss": losses["speech"]} if all(losses.values()) else {}


def count_tokens(inputs) -> torch.Tensor:
    """Number of positions of a training batch that are no padding, int64 scalar; 0 if it has no ids."""
    if inputs.get("seq_idx") is not None:
        return (inputs["seq_idx"] >= 0).sum()
    mask, ids = inputs.get("attention_mask"), inputs.get("input_ids")
    if isinstance(mask, torch.Tensor):
        return mask.sum().long()
    return torch.tensor(0 if ids is None else ids.shape[0] * ids.shape[1])


__all__ = ["LogBeforeSaving", "SpeechTrainer", "count_tokens", "task_sides"]
