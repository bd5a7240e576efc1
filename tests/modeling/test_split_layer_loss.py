"""Loss of the split-layer model: target by target, with labels of both forms, weights, packing and accumulation."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from dualspeech.modeling.split_layer_loss import split_layer_loss
from dualspeech.modeling.split_layer_rows import flat_to_rows
from dualspeech.training.loss_parts import LossPartsMixin
from tests.modeling.split_layer_cases import left_padded, random_flat, tiny_config, tiny_model


def naive(output, labels, config):
    """`(loss of each target, is it audio?)` for all targets, one at a time."""
    losses = []
    for row, ids in enumerate(labels.tolist()):
        for place, label in enumerate(ids[1:]):
            if label == -100:
                continue
            text, audio = output.text_logits[row, place], output.audio_logits[row, place]
            if config.num_modality_layers == 0:
                scores, index = torch.cat([text, audio]), label
            elif label < config.vocab_size:
                scores, index = text, label
            else:
                scores, index = audio, label - config.vocab_size
            losses.append((-scores.log_softmax(0)[index], label >= config.vocab_size))
    return losses


def some_labels(config, flat):
    labels = flat.masked_fill(torch.rand(flat.shape) < 0.3, -100)
    labels[:, :2] = -100
    labels[:, 2], labels[:, 3] = 4, config.vocab_size + 9
    return labels


@pytest.mark.parametrize("shape", [{}, {"num_shared_layers": 2, "num_modality_layers": 0}])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 3), (0, 1)])
def test_target_by_target(shape, weights):
    model = tiny_model(text_loss_weight=weights[0], audio_loss_weight=weights[1], **shape)
    flat, mask = left_padded(model.config, random_flat(model.config, 3, 9), (9, 7, 8))
    labels = some_labels(model.config, flat)
    output = model(flat, attention_mask=mask, labels=labels)
    losses = naive(output, labels, model.config)
    text, audio = ([loss for loss, is_audio in losses if is_audio == wanted] for wanted in (False, True))
    torch.testing.assert_close(output.text_loss, torch.stack(text).mean())
    torch.testing.assert_close(output.audio_loss, torch.stack(audio).mean())
    torch.testing.assert_close(output.loss, (weights[0] * sum(text) + weights[1] * sum(audio)) / len(losses))
    rows = flat_to_rows(labels.clamp(min=0), model.config).masked_fill((labels == -100)[..., None], -100)
    for given in (rows, labels):
        again = model(flat_to_rows(flat, model.config), attention_mask=mask, labels=given)
        assert torch.equal(again.loss, output.loss)
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    given = model(flat, attention_mask=mask, labels=labels, shift_labels=shifted)
    assert torch.equal(given.loss, output.loss)


def test_no_cache_is_made_unless_asked_for():
    model = tiny_model()
    flat = random_flat(model.config, 1, 5)
    assert model(flat, labels=flat).past_key_values is None
    assert model(flat, labels=flat, use_cache=True).past_key_values is not None
    assert model(flat).past_key_values is not None


@pytest.mark.parametrize("kind", ["text", "audio", "none"])
def test_batch_without_targets_of_one_kind(kind):
    """The other part is 0, and every parameter still takes part (DDP waits for all of them)."""
    model = tiny_model().train()
    flat = random_flat(model.config, 2, 6)
    labels = torch.full_like(flat, -100)
    if kind != "none":
        labels[:, 2:5] = 3 if kind == "text" else model.config.vocab_size + 3
    output = model(flat, labels=labels)
    output.loss.backward()
    assert (output.text_loss.item() == 0) == (kind != "text")
    assert (output.audio_loss.item() == 0) == (kind != "audio")
    assert bool(output.loss.isfinite())
    heads = {"text": model.text_lm_head, "audio": model.audio_lm_head}
    for name, head in heads.items():
        assert bool((head.weight.grad != 0).any()) == (name == kind)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


def test_half_precision_is_summed_in_full():
    config = tiny_config()
    labels = random_flat(config, 2, 30)
    text, audio = torch.randn(2, 30, 33).bfloat16(), torch.randn(2, 30, 19).bfloat16()
    low = split_layer_loss(text, audio, labels, config)
    full = split_layer_loss(text.float(), audio.float(), labels, config)
    assert all(value.dtype == torch.float32 for value in low)
    assert all(torch.equal(a, b) for a, b in zip(low, full, strict=True))


def test_labels_of_another_length():
    model = tiny_model()
    flat = random_flat(model.config, 1, 5)
    with pytest.raises(ValueError, match=r"`labels` must be flat ids \[batch, 5\]"):
        model(flat, labels=flat[:, :4])


class Rows(torch.utils.data.Dataset):
    """Six sequences with very different numbers of targets of each kind."""

    def __init__(self, config, as_rows=False):
        torch.manual_seed(5)
        self.items = []
        for index in range(6):
            flat = random_flat(config, 1, 8, speech=index / 5)[0]
            labels = flat.clone()
            labels[: index + 1] = -100
            self.items.append({"input_ids": flat_to_rows(flat, config) if as_rows else flat, "labels": labels})

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class PartsTrainer(LossPartsMixin, Trainer):
    pass


def train(tmp_path, batch, steps, as_rows=False):
    model = tiny_model()
    arguments = TrainingArguments(
        tmp_path,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=2,
        gradient_accumulation_steps=steps,
        max_steps=3,
        learning_rate=1e-2,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        seed=3,
    )
    data = Rows(model.config, as_rows)
    trainer = PartsTrainer(model, arguments, train_dataset=data, eval_dataset=data)
    trainer.train()
    return trainer


def test_trainer_accumulates_exactly_and_logs_the_parts(tmp_path):
    plain = train(tmp_path, batch=6, steps=1)
    for accumulated in (train(tmp_path, batch=2, steps=3), train(tmp_path, batch=1, steps=6, as_rows=True)):
        for (name, ours), theirs in zip(accumulated.model.named_parameters(), plain.model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-4, msg=name)
    entries = [entry for entry in plain.state.log_history if "loss" in entry]
    assert len(entries) == 3
    assert all({"text_loss", "audio_loss"} <= entry.keys() for entry in entries)
    metrics = plain.evaluate()
    assert {"eval_loss", "eval_text_loss", "eval_audio_loss"} <= metrics.keys()
    predictions = plain.predict(plain.eval_dataset).predictions
    assert predictions.shape == (6, 8, 52)  # the flat logits alone
