"""What a script shows before training, and the run itself, on a small regression."""

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import Trainer, TrainingArguments

from dualspeech.training.layerwise_unfreezing import LayerwiseUnfreezing
from dualspeech.training.packing import PackedDataset
from dualspeech.training.recipe import RecipeArguments
from dualspeech.training.trainer import SpeechTrainer
from dualspeech.training.training_run import (
    describe_run,
    evaluation_loss,
    num_steps,
    num_tokens,
    optimizer_groups,
    run,
    without_evaluation,
)


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared_block = nn.Module()
        self.shared_block.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        self.head = nn.Linear(4, 1)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, x, labels):
        for layer in self.shared_block.layers:
            x = layer(x).tanh()
        loss = (self.head(self.frozen(x))[:, 0] - labels).square().mean()
        return {"loss": loss}


def rows(count=20):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, generator=generator)
    return [{"x": row, "labels": row.sum()} for row in x]


def trainer(folder, eval_dataset=None, **kwargs):
    torch.manual_seed(0)
    unfreezing = kwargs.pop("unfreezing", None)
    settings = {
        "max_steps": 12, "learning_rate": 0.05, "weight_decay": 0.1, "per_device_train_batch_size": 4, "report_to": "none",
        "save_steps": 4, "logging_steps": 4, "use_cpu": True, "disable_tqdm": True, "eval_on_start": True,
    }  # fmt: skip
    arguments = TrainingArguments(str(folder), **{**settings, **kwargs})
    return SpeechTrainer(
        Regression(), arguments, train_dataset=rows(), eval_dataset=eval_dataset or rows(6), unfreezing=unfreezing
    )


def test_steps_are_those_of_the_trainer(tmp_path):
    for settings in (
        {"max_steps": -1, "num_train_epochs": 3, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 3},
        {"max_steps": -1, "num_train_epochs": 1.5, "gradient_accumulation_steps": 2},
        {"max_steps": 3},
    ):
        made = trainer(tmp_path, save_strategy="no", eval_on_start=False, **settings)
        expected = num_steps(made)
        made.train()
        assert made.state.global_step == expected


def test_groups_are_those_of_the_optimizer(tmp_path):
    schedule = LayerwiseUnfreezing(num_layers=2, delay_steps=3, warmup_steps=1, total_steps=12)
    made = trainer(tmp_path, unfreezing=schedule)
    shown = optimizer_groups(made)
    assert [(row["group"], row["weight_decay"], row["start"], row["parameters"]) for row in shown] == [
        ("layer 1", 0.1, 0, 16),
        ("trained", 0.1, 0, 4),
        ("layer 1", 0.0, 0, 4),
        ("trained", 0.0, 0, 1),
        ("layer 0", 0.1, 3, 16),
        ("layer 0", 0.0, 3, 4),
        ("frozen", 0.0, None, 20),
    ]
    actual = {
        (group["layer"], group["weight_decay"]): sum(value.numel() for value in group["params"])
        for group in made.create_optimizer().param_groups
    }
    layers = {"layer 0": 0, "layer 1": 1, "trained": None}
    assert actual == {(layers[row["group"]], row["weight_decay"]): row["parameters"] for row in shown[:-1]}


def test_description(tmp_path):
    made = trainer(tmp_path, gradient_accumulation_steps=2)
    text = describe_run(made, RecipeArguments(recipe="moss_stage1", tiny=True))
    assert text.startswith("recipe: moss_stage1 (tiny)\n")
    assert "global batch: 8 = 4 per device x 1 processes x 2 accumulated" in text
    assert "steps: 12 over 20 rows (4.00 epochs), seed 42" in text
    assert "total" in text and "frozen" in text and "ids:" not in text
    data = Dataset.from_dict({"input_ids": [[1] * 3] * 10, "labels": [[1] * 3] * 10})
    made.train_dataset = PackedDataset(data, 6)
    assert num_tokens(data) == num_tokens(made.train_dataset) == 30
    text = describe_run(made, RecipeArguments())
    assert text.startswith("recipe: none\n") and "over 5 packs" in text
    assert "note: the data are fewer than a global batch; every step sees all 5 packs" in text
    assert "ids: 30 a step on average, 360 in all" in text


def test_run_and_resume(tmp_path, capsys):
    data = {"asr": rows(6), "tts": rows(4)}
    settings = {"eval_dataset": data, "lr_scheduler_type": "constant"}
    whole = trainer(tmp_path / "whole", **settings)
    metrics = run(whole, RecipeArguments())
    assert metrics["eval_loss"] == pytest.approx((metrics["eval_asr_loss"] + metrics["eval_tts_loss"]) / 2)
    assert metrics["eval_loss"] < 0.9 * metrics["before"]
    assert f"evaluation loss {metrics['before']:.3f} -> {metrics['eval_loss']:.3f}" in capsys.readouterr().out
    trainer(tmp_path / "half", max_steps=8, **settings).train()
    (tmp_path / "half" / "checkpoint-10").mkdir()  # of a run that was killed
    again = trainer(tmp_path / "half", resume_from_checkpoint="auto", **settings)
    assert run(again, RecipeArguments())["before"] == metrics["before"]
    assert again.state.global_step == 12
    for (name, value), other in zip(whole.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(value, other), name


def test_auto_starts_anew_without_a_checkpoint(tmp_path):
    made = trainer(tmp_path / "new", resume_from_checkpoint="auto", max_steps=1)
    assert run(made, RecipeArguments())["before"] > 0
    with pytest.raises(ValueError, match="no complete checkpoint"):
        run(trainer(tmp_path / "new", resume_from_checkpoint=str(tmp_path / "absent")), RecipeArguments())


def test_evaluation_can_be_left_out(tmp_path):
    arguments = TrainingArguments(tmp_path, eval_strategy="steps", eval_steps=2, eval_on_start=True, use_cpu=True,
                                  report_to="none", max_steps=2, save_strategy="no", disable_tqdm=True)  # fmt: skip
    without_evaluation(arguments)
    metrics = run(Trainer(Regression(), arguments, train_dataset=rows()), RecipeArguments())
    assert "eval_loss" not in metrics and "before" not in metrics and metrics["train_loss"] > 0
    arguments.load_best_model_at_end = True
    with pytest.raises(ValueError, match="needs evaluation data"):
        without_evaluation(arguments)
    assert evaluation_loss({"a": [], "b": []}, {"eval_a_loss": 1.0}) is None
