"""Gradual unfreezing of layers, from the last to the first (MOSS-Speech, appendix D)."""

import math
import re
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class LayerwiseUnfreezing:
    """A delayed warm-up and cosine decay of the learning rate for each layer.

    Layer `i` of `num_layers` starts `(num_layers - 1 - i) * delay_steps` steps after the last layer, warms up linearly,
    and decays along a cosine such that all layers reach the minimum at the step `total_steps`. All other parameters
    follow the schedule of the last layer.

    Args:
        num_layers: N of the paper.
        delay_steps: k.
        warmup_steps: w.
        total_steps: T; the number of training steps when `None`.
        min_ratio: r, the final learning rate over the peak.
        pattern: regular expression whose first group is the number of the layer in a parameter's name.
    """

    num_layers: int = 32
    delay_steps: int = 5000
    warmup_steps: int = 2000
    total_steps: int | None = None
    min_ratio: float = 0.1
    pattern: str = r"(?:^|\.)shared_block\.layers\.(\d+)\."

    def __post_init__(self):
        for name, least in (("num_layers", 1), ("delay_steps", 0), ("warmup_steps", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.min_ratio <= 1:
            raise ValueError(f"`min_ratio` must be from 0 to 1, got {self.min_ratio}")
        if self.total_steps is not None:
            self.check_total(self.total_steps)

    def check_total(self, total_steps: int) -> None:
        """Raise a `ValueError` unless the first layer, which starts last, has time to warm up."""
        needed = self.start_step(0) + self.warmup_steps
        if total_steps <= needed:
            raise ValueError(
                f"`total_steps` is {total_steps}, but the first of {self.num_layers} layers ends its warm-up at step "
                f"{needed}; give more steps, or a smaller `delay_steps` ({self.delay_steps}) or `warmup_steps`"
            )

    def start_step(self, layer: int) -> int:
        """Step at which `layer` (0 is the first) begins to warm up: d_i of the paper."""
        if not 0 <= layer < self.num_layers:
            raise ValueError(f"`layer` must be from 0 to {self.num_layers - 1}, got {layer}")
        return (self.num_layers - 1 - layer) * self.delay_steps

    def multiplier(self, step: int, layer: int, total_steps: int | None = None) -> float:
        """Learning rate of `layer` at `step`, over the peak learning rate."""
        total_steps = self.total_steps if total_steps is None else total_steps
        delay = self.start_step(layer)
        since = step - delay
        if since < 0:
            return 0.0
        if since < self.warmup_steps:
            return since / self.warmup_steps
        decay_steps = total_steps - delay - self.warmup_steps
        if since > self.warmup_steps + decay_steps:
            return self.min_ratio
        cosine = math.cos(math.pi * (since - self.warmup_steps) / decay_steps)
        return self.min_ratio + (1 - self.min_ratio) / 2 * (1 + cosine)

    def layer_of(self, name: str) -> int | None:
        """Number of the layer that the parameter `name` belongs to, `None` if it is in no such layer."""
        found = re.search(self.pattern, name)
        return None if found is None else int(found.group(1))

    def split_groups(self, optimizer: Optimizer, names: dict) -> None:
        """Split every parameter group of a fresh `optimizer` by layer; each new group has the entry `layer`.

        Args:
            names: parameter -> its name.

        Raises:
            ValueError: the layers found are not those from 0 to `num_layers - 1`.
        """
        groups, found = [], set()
        for group in optimizer.param_groups:
            by_layer = {}
            for parameter in group["params"]:
                by_layer.setdefault(self.layer_of(names[parameter]), []).append(parameter)
            found |= set(by_layer) - {None}
            order = sorted(by_layer, key=lambda layer: -1 if layer is None else layer)
            groups += [{**group, "params": by_layer[layer], "layer": layer} for layer in order]
        if found != set(range(self.num_layers)):
            raise ValueError(
                f"`num_layers` is {self.num_layers}, but the trainable parameters that match {self.pattern!r} are those "
                f"of the layers {sorted(found)}"
            )
        optimizer.param_groups[:] = groups

    def scheduler(self, optimizer: Optimizer, total_steps: int) -> LambdaLR:
        """The schedule of the groups made by `split_groups`."""
        total_steps = self.total_steps or total_steps
        self.check_total(total_steps)
        layers = [group["layer"] for group in optimizer.param_groups]
        layers = [self.num_layers - 1 if layer is None else layer for layer in layers]
        return LambdaLR(optimizer, [lambda step, at=layer: self.multiplier(step, at, total_steps) for layer in layers])


class LayerwiseUnfreezingMixin:
    """Trainer with a schedule per layer: `class MyTrainer(LayerwiseUnfreezingMixin, Trainer): ...`.

    Without `unfreezing` it changes nothing. The optimizer and the schedule are saved and resumed as usual.
    """

    def __init__(self, *args, unfreezing: LayerwiseUnfreezing | None = None, **kwargs):
        self.unfreezing = unfreezing
        super().__init__(*args, **kwargs)

    def create_optimizer(self, model=None):
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if self.unfreezing is not None and fresh:
            trained = self.model if model is None else model
            self.unfreezing.split_groups(optimizer, {value: name for name, value in trained.named_parameters()})
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.unfreezing is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = self.unfreezing.scheduler(optimizer or self.optimizer, num_training_steps)
        self._created_lr_scheduler = True
        return self.lr_scheduler


__all__ = ["LayerwiseUnfreezing", "LayerwiseUnfreezingMixin"]
