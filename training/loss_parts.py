"""Parts of a loss: exact over micro-batches and processes, and logged by `transformers.Trainer`."""

from collections import defaultdict

import torch
from transformers.trainer_pt_utils import find_batch_size
from transformers.trainer_utils import unwrap_peft_model


class LossPartsMixin:
    """Train on the exact mean of each part of the loss, and log the parts.

    Put it in front of the Trainer: `class LossPartsTrainer(LossPartsMixin, Trainer): ...`.

    **Exact.** A model with `loss_item_counts(**batch)` (number of items of each part of its loss) is given the counts
    of the whole optimiser step as `num_items_in_batch`, summed over micro-batches and processes. The loss is then that of
    one process with one large batch, however the rows are spread. Without that method, or with `torch.nn.DataParallel`,
    it is the Trainer's own: a mean over micro-batches.

    **Logged.** Every output of the model that is called `*_loss` (a mean), and those of `logged_outputs`, stand beside the
    loss: in a training entry the mean over all items since the last entry, in an evaluation entry over the whole data
    set, of all processes. With `loss_of_parts(parts, counts)` of the model, the loss of an evaluation is made of them, and
    does not depend on its batches either. Parts that nothing was learnt or measured of are left out. In an evaluation they carry its prefix (`eval_commitment_loss`) and are among
    the metrics that `evaluate` returns (rows that pad the last batches of several processes count there). Without counts,
    training entries weight micro-batches, and evaluation entries rows, alike.
    """

    logged_outputs: tuple[str, ...] = ("perplexity",)

    def __init__(self, *args, **kwargs):
        # (training?) -> name -> [sum, weight]
        self._loss_parts = {True: defaultdict(lambda: [0.0, 0]), False: defaultdict(lambda: [0.0, 0])}
        self._counts_items = self._predicts = False
        super().__init__(*args, **kwargs)
        if self.label_smoother is not None:
            raise ValueError(
                f"`label_smoothing_factor` is {self.args.label_smoothing_factor}; only 0 is accepted: the Trainer would "
                "replace all parts of the loss by a cross-entropy of `logits` and `labels`"
            )
        if self.args.n_gpu <= 1 and hasattr(self._plain_model(), "loss_item_counts"):
            self._counts_items = self.model_accepts_loss_kwargs = True

    def _plain_model(self):
        return unwrap_peft_model(self.accelerator.unwrap_model(self.model))

    def _item_counts(self, inputs) -> dict[str, torch.Tensor]:
        return self._plain_model().loss_item_counts(**inputs) if self._counts_items else {}

    def _get_num_items_in_batch(self, batch_samples, device):
        if not self._counts_items:
            return super()._get_num_items_in_batch(batch_samples, device)
        if self._predicts:  # batches are means of their own: processes may have different numbers of them
            return None
        sums: dict[str, torch.Tensor] = {}
        for batch in batch_samples:
            for name, count in self._item_counts(batch).items():
                sums[name] = sums.get(name, 0) + count.to(device)
        if sums and self.args.average_tokens_across_devices and self.args.world_size > 1:
            counts = self.accelerator.gather(torch.stack(list(sums.values()))[None]).sum(dim=0)
            # Ranks of tensor, context and sequence parallelism hold the same rows.
            copies = self.get_tp_size() * self.get_cp_size() * self.get_sp_size()
            sums = dict(zip(sums, counts / copies, strict=True))
        return sums or None

    def prediction_step(self, *args, **kwargs):
        self._predicts = True
        try:
            return super().prediction_step(*args, **kwargs)
        finally:
            self._predicts = False

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        counts = self._item_counts(inputs)
        default = 1 if model.training else find_batch_size(inputs)
        for name, value in outputs.items():
            is_part = name.endswith("_loss") or name in self.logged_outputs
            if is_part and isinstance(value, torch.Tensor):
                weight = counts.get(name, default)
                part = self._loss_parts[model.training][name]
                part[0] = part[0] + value.detach().float().mean() * weight
                part[1] = part[1] + weight
        return (loss, outputs) if return_outputs else loss

    def log(self, logs, *args, **kwargs):
        if "loss" in logs:
            logs.update(self._take_loss_parts(True)[0])
        elif "total_flos" not in logs:  # the summary at the end of training
            prefix = next((key.removesuffix("loss") for key in logs if key.endswith("_loss")), None)
            if prefix is not None:
                parts, counts = self._take_loss_parts(False)
                logs.update({prefix + name: value for name, value in parts.items()})
                model = self._plain_model()
                if self._counts_items and parts and hasattr(model, "loss_of_parts"):
                    logs[f"{prefix}loss"] = model.loss_of_parts(parts, counts)
        super().log(logs, *args, **kwargs)

    def get_eval_dataloader(self, *args, **kwargs):
        # `dataloader_drop_last` is for training; an evaluation is of all rows
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last

    def evaluation_loop(self, *args, **kwargs):
        self._loss_parts[False].clear()  # of a `predict`, which logs nothing
        return super().evaluation_loop(*args, **kwargs)

    def _take_loss_parts(self, training: bool) -> tuple[dict[str, float], dict[str, float]]:
        """Means over all processes, which need not have seen the same parts, and their weights; starts anew."""
        parts = {name: (float(total), float(weight)) for name, (total, weight) in self._loss_parts[training].items()}
        self._loss_parts[training].clear()
        gathered = [parts]
        if self.accelerator.num_processes > 1:
            gathered = [None] * self.accelerator.num_processes
            torch.distributed.all_gather_object(gathered, parts)
        names = sorted({name for process in gathered for name in process})
        sums = {name: [process[name] for process in gathered if name in process] for name in names}
        totals = {name: tuple(map(sum, zip(*pairs, strict=True))) for name, pairs in sums.items()}
        totals = {name: pair for name, pair in totals.items() if pair[1] > 0}
        return {name: total / weight for name, (total, weight) in totals.items()}, {
            name: weight for name, (_, weight) in totals.items()
        }


__all__ = ["LossPartsMixin"]
