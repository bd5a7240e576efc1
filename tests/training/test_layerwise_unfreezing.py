"""The schedule of appendix D, point by point, and what a Trainer makes of it."""

import math

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from dualspeech.training.layerwise_unfreezing import LayerwiseUnfreezing, LayerwiseUnfreezingMixin


def formula(s, i, N, k, w, T, peak, r):
    """Appendix D, written as it stands there."""
    d = (N - 1 - i) * k
    D = T - d - w
    low = r * peak
    u = s - d
    if u < 0:
        return 0
    if 0 <= u < w:
        return peak * u / w
    if w <= u <= w + D:
        return low + (peak - low) / 2 * (1 + math.cos(math.pi * (u - w) / D))
    return low


@pytest.mark.parametrize(
    ("N", "k", "w", "T", "r"), [(32, 5000, 2000, 200_000, 0.1), (4, 3, 2, 20, 0.1), (3, 0, 0, 7, 0)]
)
def test_formula_point_by_point(N, k, w, T, r):
    schedule = LayerwiseUnfreezing(N, k, w, T, r)
    optimizer = torch.optim.AdamW(
        [{"params": [nn.Parameter(torch.zeros(1))], "layer": layer} for layer in [*range(N), None]], lr=6e-5
    )
    made = schedule.scheduler(optimizer, 1)
    for step in sorted(
        {*range(0, T + 10, max(1, T // 97)), *(i * k + o for i in range(N) for o in (-1, 0, 1, w, w + 1))}
    ):
        if step < 0:
            continue
        rates = [6e-5 * function(step) for function in made.lr_lambdas]
        expected = [formula(step, i, N, k, w, T, 6e-5, r) for i in [*range(N), N - 1]]
        assert rates == pytest.approx(expected, rel=1e-12, abs=1e-20)


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared_block = nn.Module()
        self.shared_block.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.audio_lm_head = nn.Linear(4, 1)

    def forward(self, x, labels):
        for layer in self.shared_block.layers:
            x = x + layer(x).tanh()
        return {"loss": (self.audio_lm_head(x)[:, 0] - labels).square().mean()}


class LayerwiseTrainer(LayerwiseUnfreezingMixin, Trainer):
    """Keeps the parameters after every step."""

    def training_step(self, model, *args, **kwargs):
        self.history.append({name: value.detach().clone() for name, value in self.model.named_parameters()})
        return super().training_step(model, *args, **kwargs)


def trainer(folder, steps=10, model=None, **kwargs):
    torch.manual_seed(0)
    data = [{"x": torch.randn(4), "labels": torch.randn(())} for _ in range(16)]
    arguments = TrainingArguments(
        str(folder), max_steps=steps, learning_rate=0.05, weight_decay=0.1, per_device_train_batch_size=4,
        report_to="none", save_strategy="steps", save_steps=5, logging_steps=1, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    made = LayerwiseTrainer(model or Layers(), arguments, train_dataset=data, **kwargs)
    made.history = []
    return made


SCHEDULE = LayerwiseUnfreezing(num_layers=3, delay_steps=2, warmup_steps=1, total_steps=12)


def moved(before, after):
    return {name.rsplit(".", 1)[0] for name in before if not torch.equal(before[name], after[name])}


def test_exactly_the_layers_of_the_schedule_move(tmp_path):
    run = trainer(tmp_path, unfreezing=SCHEDULE)
    run.train()
    states = [*run.history, dict(run.model.named_parameters())]
    for step in range(10):
        expected = {f"shared_block.layers.{i}" for i in range(3) if SCHEDULE.multiplier(step, i) > 0}
        expected |= {"audio_lm_head"} if SCHEDULE.multiplier(step, 2) > 0 else set()
        assert moved(states[step], states[step + 1]) == expected, step
    assert moved(states[0], states[2]) == {"audio_lm_head", "shared_block.layers.2"}
    assert moved(states[3], states[4]) == {"audio_lm_head", "shared_block.layers.2", "shared_block.layers.1"}


def test_resuming_continues_exactly(tmp_path):
    whole = trainer(tmp_path / "whole", unfreezing=SCHEDULE)
    whole.train()
    again = trainer(tmp_path / "again", unfreezing=SCHEDULE)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    for name, value in whole.model.named_parameters():
        assert torch.equal(value, dict(again.model.named_parameters())[name]), name
    assert again.lr_scheduler.get_last_lr() == whole.lr_scheduler.get_last_lr()


def test_without_a_schedule_nothing_changes(tmp_path):
    run = trainer(tmp_path, steps=2)
    run.train()
    assert len(run.optimizer.param_groups) == 2


def test_decay_is_kept_per_group(tmp_path):
    run = trainer(tmp_path, unfreezing=SCHEDULE)
    groups = run.create_optimizer().param_groups
    assert [(group["layer"], group["weight_decay"]) for group in groups] == [
        (layer, decay) for decay in (0.1, 0.0) for layer in (None, 0, 1, 2)
    ]


def test_bad_values():
    for bad in (
        {"num_layers": 0},
        {"delay_steps": -1},
        {"warmup_steps": -1},
        {"min_ratio": 1.5},
        {"total_steps": 100},
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            LayerwiseUnfreezing(**bad)
    with pytest.raises(ValueError, match="`layer`"):
        SCHEDULE.multiplier(0, 3)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1)
    names = {optimizer.param_groups[0]["params"][0]: "shared_block.layers.7.weight"}
    with pytest.raises(ValueError, match="num_layers"):
        SCHEDULE.split_groups(optimizer, names)
