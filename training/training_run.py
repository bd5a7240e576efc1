"""One run of a training script: what trains is shown before the start, then train, evaluate, save."""

import math
import os
import warnings
from collections.abc import Mapping
from typing import Any

from transformers import IntervalStrategy, Trainer, TrainingArguments
from transformers.processing_utils import ProcessorMixin

from .callbacks import is_sharded
from .checkpoints import resume_from
from .freezing import format_parameter_table, parameter_table
from .packing import PackedDataset, example_lengths
from .recipe import RecipeArguments


def without_evaluation(arguments: TrainingArguments) -> None:
    """Switch evaluation during training off, for a run without evaluation data.

    Raises:
        ValueError: the best checkpoint is asked for, which only an evaluation can tell.
    """
    if arguments.load_best_model_at_end:
        raise ValueError("`load_best_model_at_end` needs evaluation data (`eval_data`)")
    arguments.eval_strategy, arguments.eval_on_start = IntervalStrategy.NO, False


def steps_per_epoch(trainer: Trainer) -> int:
    """Optimiser steps of one pass over the training data; the last of an epoch may see fewer rows."""
    arguments = trainer.args
    batches = len(trainer.train_dataset) / (arguments.train_batch_size * arguments.world_size)
    batches = math.floor(batches) if arguments.dataloader_drop_last else math.ceil(batches)
    return max(1, math.ceil(batches / arguments.gradient_accumulation_steps))


def num_steps(trainer: Trainer) -> int:
    """Optimiser steps of the whole training."""
    arguments = trainer.args
    if arguments.max_steps > 0:
        return arguments.max_steps
    return math.ceil(arguments.num_train_epochs * steps_per_epoch(trainer))


def optimizer_groups(trainer: Trainer) -> list[dict[str, Any]]:
    """
    What the optimiser will hold, without making it: rows with `group`, `learning_rate` (the peak; 0 for frozen
    parameters), `weight_decay`, `parameters` (their number) and `start`, the step at which the group begins to learn.
    """
    arguments, model = trainer.args, trainer.model
    unfreezing = getattr(trainer, "unfreezing", None)
    decayed = set(trainer.get_decay_parameter_names(model))
    groups: dict[tuple, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            label, rate, decay, start = "frozen", 0.0, 0.0, None
        else:
            layer = None if unfreezing is None else unfreezing.layer_of(name)
            label = "trained" if layer is None else f"layer {layer}"
            rate, decay = arguments.learning_rate, arguments.weight_decay if name in decayed else 0.0
            start = 0 if layer is None else unfreezing.start_step(layer)
        row = groups.setdefault(
            (label, decay),
            {"group": label, "learning_rate": rate, "weight_decay": decay, "parameters": 0, "start": start},
        )
        row["parameters"] += parameter.numel()
    return sorted(groups.values(), key=lambda row: (row["start"] is None, row["start"] or 0, -row["weight_decay"]))


def num_tokens(data: Any) -> int | None:
    """Ids of a data set of token rows, packed or not; `None` for other data."""
    if isinstance(data, PackedDataset):
        return data.num_tokens
    columns = getattr(data, "column_names", None) or ()
    return int(example_lengths(data).sum()) if "input_ids" in columns else None


def describe_run(trainer: Trainer, recipe: RecipeArguments) -> str:
    """The recipe, what trains and how fast, and the numbers of the run, as text."""
    arguments = trainer.args
    lines = [f"recipe: {recipe.recipe or 'none'}{' (tiny)' if recipe.tiny else ''}"]
    depth = 4 if hasattr(trainer.model, "peft_config") else 2  # PEFT puts two names in front
    lines += [format_parameter_table(parameter_table(trainer.model, depth))]
    lines += [
        f"{'optimizer group':20} {'learning rate':>13} {'weight decay':>12} {'first step':>10} {'parameters':>15}"
    ]
    for row in optimizer_groups(trainer):
        start = "never" if row["start"] is None else row["start"]
        lines += [
            f"{row['group']:20} {row['learning_rate']:13.3g} {row['weight_decay']:12.3g} {start:>10} "
            f"{row['parameters']:15,}"
        ]
    accumulation = arguments.gradient_accumulation_steps
    rows = arguments.train_batch_size * arguments.world_size * accumulation
    lines += [
        f"global batch: {rows} = {arguments.train_batch_size} per device x {arguments.world_size} processes x "
        f"{accumulation} accumulated"
    ]
    data = trainer.train_dataset
    steps, size, unit = num_steps(trainer), len(data), "packs" if isinstance(data, PackedDataset) else "rows"
    epochs = steps / steps_per_epoch(trainer)
    lines += [f"steps: {steps:,} over {size:,} {unit} ({epochs:.2f} epochs), seed {arguments.seed}"]
    if size < rows:
        lines += [f"note: the data are fewer than a global batch; every step sees all {size} {unit}"]
    tokens = num_tokens(data)
    if tokens is not None:
        lines += [f"ids: {tokens * epochs / steps:,.0f} a step on average, {tokens * epochs:,.0f} in all"]
    return "\n".join(lines)


def evaluation_loss(data: Any, metrics: Mapping[str, float]) -> float | None:
    """`eval_loss` of an evaluation on `data`, for several data sets by name the mean of their losses."""
    if not isinstance(data, dict):
        return metrics.get("eval_loss")
    losses = [metrics.get(f"eval_{name}_loss") for name in data]
    return None if None in losses else sum(losses) / len(losses)


def save_merged(trainer: Trainer, processor: ProcessorMixin | None = None) -> None:
    """
    Save a model with LoRA also as a plain checkpoint, in the folder `merged` of the output: its adapter alone cannot be
    loaded where the base was made by this run. The model of the trainer is merged in place.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not hasattr(model, "merge_and_unload"):
        return
    if is_sharded(model):
        warnings.warn("a sharded model is not merged; load the adapter and call `merge_and_unload`", stacklevel=2)
    elif trainer.is_world_process_zero():
        folder = os.path.join(trainer.args.output_dir, "merged")
        model.merge_and_unload().save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)
        print(f"adapter in {trainer.args.output_dir}, merged model in {folder}")


def run(trainer: Trainer, recipe: RecipeArguments, processor: ProcessorMixin | None = None) -> dict[str, float]:
    """
    Show what trains, train (resumed if asked for), evaluate, and save model and processor; with LoRA also merged.

    Returns:
        The metrics of training and of the last evaluation; `eval_loss` is the mean over several data sets. With
        `eval_on_start`, also the first evaluation loss as `before`.
    """
    arguments, data = trainer.args, trainer.eval_dataset
    if trainer.is_world_process_zero():
        print(describe_run(trainer, recipe), flush=True)
    resumed = resume_from(arguments.resume_from_checkpoint, arguments.output_dir)
    if resumed is not None:
        arguments.eval_on_start = False  # that was before the interruption
    metrics = trainer.train(resume_from_checkpoint=resumed).metrics
    if data is not None:
        first = {
            name: value for entry in trainer.state.log_history if entry["step"] == 0 for name, value in entry.items()
        }
        metrics |= trainer.evaluate()
        metrics["eval_loss"] = evaluation_loss(data, metrics)
        if (before := evaluation_loss(data, first)) is not None:
            metrics["before"] = before
    trainer.save_model()
    save_merged(trainer, processor)
    if trainer.is_world_process_zero():
        if processor is not None:
            processor.save_pretrained(arguments.output_dir)
        if "before" in metrics:
            print(f"evaluation loss {metrics['before']:.3f} -> {metrics['eval_loss']:.3f}")
    return metrics


__all__ = [
    "describe_run",
    "evaluation_loss",
    "num_steps",
    "num_tokens",
    "optimizer_groups",
    "run",
    "save_merged",
    "steps_per_epoch",
    "without_evaluation",
]
