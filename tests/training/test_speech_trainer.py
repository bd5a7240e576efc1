"""SpeechTrainer: losses that do not depend on how rows are spread, what it logs, both sides evaluated."""

import math

import pytest
import torch
from transformers import TrainingArguments

from dualspeech.training.packing import PackedDataset
from dualspeech.training.trainer import SpeechTrainer, count_tokens
from tests.modeling.dualspeech_cases import tiny_config, tiny_model, training_batch
from tests.training.test_packing import packed

PARTS = ("text_loss", "semantic_loss", "acoustic_loss")


class Batches(torch.utils.data.Dataset):
    """Rows of a padded batch, or packs of them; `collate` makes a batch of any of them."""

    def __init__(self, batch, size=None):
        self.batch = batch
        self.size = len(batch["input_ids"]) if size is None else size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return index

    def collate(self, numbers):
        return {name: tensor[torch.tensor(numbers)] for name, tensor in self.batch.items()}

    def collate_packed(self, numbers):
        return packed(self.batch, [[2 * number, 2 * number + 1] for number in numbers])


def arguments(folder, **kwargs):
    return TrainingArguments(
        folder,
        **{
            "max_steps": 3,
            "learning_rate": 1e-2,
            "optim": "sgd",
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "remove_unused_columns": False,
            "label_names": ["labels"],
            "dataloader_pin_memory": False,
            **kwargs,
        },
    )


def train(folder, model, data, collate, **kwargs):
    trainer = SpeechTrainer(model, arguments(folder, **kwargs), collate, train_dataset=data)
    trainer.train()
    return trainer


def entries(trainer, *names):
    return [[entry[name] for name in names] for entry in trainer.state.log_history if "loss" in entry]


TASKS = ("asr", "tts", "vc", "sqa", "tts", "ser", "sc", "asr")


@pytest.mark.parametrize("kind", ["four micro-batches", "eight micro-batches", "packed", "packed micro-batches"])
def test_the_loss_is_that_of_one_large_batch(tmp_path, kind):
    def model():
        return tiny_model(scale=2.0, coc_probabilities=(0, 0, 1))  # no draws, which follow the order of batches

    batch = training_batch(model().config, TASKS)
    rows = Batches(batch)
    plain = train(tmp_path / "plain", model(), rows, rows.collate, per_device_train_batch_size=8)
    if "packed" in kind:
        data, collate = Batches(batch, size=4), rows.collate_packed
        sizes = {"packed": (4, 1), "packed micro-batches": (2, 2)}[kind]
    else:
        data, collate, sizes = rows, rows.collate, {"four": (2, 4), "eight": (1, 8)}[kind.split()[0]]
    kwargs = {"per_device_train_batch_size": sizes[0], "gradient_accumulation_steps": sizes[1]}
    spread = train(tmp_path / "spread", model(), data, collate, **kwargs)
    for (name, ours), theirs in zip(spread.model.named_parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4, msg=name)
    found, expected = entries(spread, "loss", *PARTS), entries(plain, "loss", *PARTS)
    assert len(found) == 3
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-4, rtol=1e-4)
    tokens = int(batch["attention_mask"].sum())
    for trainer in (plain, spread):
        assert trainer.state.num_input_tokens_seen == 3 * tokens
        assert all(speed > 0 for [speed] in entries(trainer, "tokens_per_second"))


def test_without_counts_it_is_the_mean_of_micro_batches(tmp_path):
    """What the exact loss corrects: the plain Trainer's loss depends on how rows are spread."""
    model = tiny_model(coc_probabilities=(0, 0, 1))
    batch = training_batch(model.config, TASKS)
    singles = [model.train()(**{name: value[row, None] for name, value in batch.items()}).loss for row in range(8)]
    assert not torch.isclose(torch.stack(singles).mean(), model(**batch).loss, rtol=1e-2)


def test_both_sides_are_evaluated_and_either_selects_the_best_model(tmp_path):
    model = tiny_model()
    batch = training_batch(model.config, TASKS)
    rows = Batches(batch)
    evaluation = {
        task: torch.utils.data.Subset(rows, [i for i, name in enumerate(TASKS) if name == task])
        for task in ("asr", "sqa", "tts", "vc")
    }
    options = arguments(
        tmp_path,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="best",
        metric_for_best_model="eval_speech_loss",
        greater_is_better=False,
        save_only_model=True,
    )
    trainer = SpeechTrainer(model, options, rows.collate, train_dataset=rows, eval_dataset=evaluation)
    trainer.train()
    metrics = trainer.evaluate()
    for side, names in (("understanding", ("asr", "sqa")), ("speech", ("tts", "vc"))):
        mean = sum(metrics[f"eval_{name}_loss"] for name in names) / 2
        assert math.isclose(metrics[f"eval_{side}_loss"], mean)
        logged = [entry[f"eval_{side}_loss"] for entry in trainer.state.log_history if f"eval_{side}_loss" in entry]
        assert len(logged) == 4 and logged[-1] == metrics[f"eval_{side}_loss"]
    assert trainer.state.best_metric == min(
        entry["eval_speech_loss"] for entry in trainer.state.log_history[:-6] if "eval_speech_loss" in entry
    )
    assert {"eval_tts_acoustic_loss", "eval_tts_semantic_loss", "eval_asr_text_loss"} <= metrics.keys()
    assert "eval_asr_acoustic_loss" not in metrics


def test_evaluated_parts_are_means_over_all_targets(tmp_path):
    model = tiny_model()
    batch = training_batch(model.config, TASKS)
    rows = Batches(batch)
    whole = model.eval()(**batch)
    for size in (1, 3, 8):
        options = arguments(tmp_path, per_device_eval_batch_size=size)
        trainer = SpeechTrainer(model, options, rows.collate, train_dataset=rows, eval_dataset=rows)
        trainer.predict(rows)  # leaves nothing behind
        metrics = trainer.evaluate(metric_key_prefix="train")
        assert math.isclose(metrics["train_loss"], whole.loss.item(), rel_tol=1e-5)
        metrics = trainer.evaluate()
        for name in ("loss", *PARTS):
            assert math.isclose(metrics[f"eval_{name}"], whole[name].item(), rel_tol=1e-5)


@pytest.mark.parametrize("strategy", ["steps", "epoch", "best"])
def test_every_checkpoint_has_a_log_entry_in_front(tmp_path, strategy):
    model = tiny_model()
    rows = Batches(training_batch(model.config, TASKS))
    kwargs = {"max_steps": 4, "logging_steps": 3, "save_strategy": strategy, "save_steps": 2, "save_only_model": True}
    kwargs |= {"per_device_train_batch_size": 4}  # two steps are an epoch
    if strategy == "best":
        kwargs |= {"metric_for_best_model": "loss", "eval_strategy": "steps", "eval_steps": 2}
    options = arguments(tmp_path, **kwargs)
    trainer = SpeechTrainer(model, options, rows.collate, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [2, 3, 4]


def test_tokens_of_the_last_steps_count(tmp_path):
    model = tiny_model()
    batch = training_batch(model.config, TASKS)
    rows = Batches(batch)
    trainer = train(tmp_path, model, rows, rows.collate, max_steps=2, logging_steps=50)
    assert trainer.state.num_input_tokens_seen == 2 * int(batch["attention_mask"].sum())


@pytest.mark.parametrize("model_type", ["opt", "llama"])
def test_language_models_that_mix_packed_examples_are_refused(tmp_path, model_type):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 57}
    more = {"opt": {"ffn_dim": 16, "word_embed_proj_dim": 16}, "llama": {"intermediate_size": 16}}[model_type]
    text_config = {"model_type": model_type, **sizes, **more, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = tiny_config()
    config = type(config)(**{**config.to_dict(), "text_config": text_config})
    model = type(tiny_model())(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    data = PackedDataset([{"input_ids": [1, 2]}], 8)
    if model_type == "llama":
        SpeechTrainer(model, arguments(tmp_path), train_dataset=data)
        return
    with pytest.raises(ValueError, match="`packing` is not possible with this language model: what stands in one"):
        SpeechTrainer(model, arguments(tmp_path), train_dataset=data)


def test_tokens_are_positions_that_are_no_padding():
    idx = torch.tensor([[0, 0, 1, -1]])
    assert count_tokens({"seq_idx": idx, "input_ids": idx}) == 3
    assert count_tokens({"attention_mask": torch.tensor([[1, 1, 0]]), "input_ids": torch.zeros(1, 3, 2)}) == 2
    assert count_tokens({"input_ids": torch.zeros(2, 5, 2)}) == 10
    assert count_tokens({"input_features": idx}) == 0


def test_label_smoothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`label_smoothing_factor` is 0\.1; only 0 is accepted"):
        SpeechTrainer(tiny_model(), arguments(tmp_path, label_smoothing_factor=0.1))
