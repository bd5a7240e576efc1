"""Batches of rows for the split-layer model, and training with a plain Trainer."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from dualspeech import MossSpeechDataCollator, SplitLayerQwen3ForCausalLM
from dualspeech.training.freezing import apply_freezing
from dualspeech.training.loss_parts import LossPartsMixin
from tests.examples.running import load_example

tiny = load_example("tiny_moss_speech")


@pytest.fixture(scope="module")
def parts():
    tokenizer = tiny.tiny_moss_tokenizer()
    model = tiny.tiny_moss_model(tokenizer)
    return model, tiny.tiny_moss_processor(model.config, tokenizer)


def conversations():
    """The four pairs of modalities, several turns, and answers of different lengths."""
    codes = {"type": "audio", "codes": [1, 5, 5, 9, 30, 2]}
    asked, answered = {"role": "user", "content": "one red house"}, {"role": "assistant", "content": "two"}
    spoken, speaks = {"role": "user", "content": codes}, {"role": "assistant", "content": codes}
    return [[asked, answered], [asked, speaks], [spoken, answered], [spoken, speaks, asked, answered]]


def test_batch(parts):
    model, processor = parts
    examples = processor.build_examples(conversations())
    batch = MossSpeechDataCollator(processor, model=model, pad_to_multiple_of=8)(
        [{**example, "other": "column"} for example in examples]
    )
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    rows, length = batch["input_ids"].shape[:2]
    assert rows == 4 and length % 8 == 0
    for row, example in enumerate(examples):
        size = len(example["input_ids"])
        assert batch["input_ids"][row, :size].tolist() == [list(pair) for pair in example["input_ids"]]
        assert batch["labels"][row, :size].tolist() == example["labels"]
        assert (batch["labels"][row, size:] == -100).all()
        assert batch["attention_mask"][row].tolist() == [1] * size + [0] * (length - size)


def test_loss_of_a_batch_is_that_of_its_rows(parts):
    model, processor = parts
    examples = processor.build_examples(conversations())
    collate = MossSpeechDataCollator(processor)
    with torch.no_grad():
        together = model(**collate(examples)).loss
        alone = [model(**collate([example])).loss for example in examples]
    counts = torch.tensor([sum(label != -100 for label in example["labels"]) for example in examples])
    torch.testing.assert_close(together, (torch.stack(alone) * counts).sum() / counts.sum())


def test_bad_examples(parts):
    _, processor = parts
    example = processor.build_examples(conversations())[0]
    with pytest.raises(ValueError, match="labels"):
        MossSpeechDataCollator(processor)([{"input_ids": example["input_ids"]}])
    with pytest.raises(ValueError, match="max_length"):
        MossSpeechDataCollator(processor, max_length=4)([example])
    other = tiny.tiny_moss_model(processor.tokenizer, audio_pad_token_id=3)
    with pytest.raises(ValueError, match="audio_pad_token_id"):
        MossSpeechDataCollator(processor, model=other)


class LossPartsTrainer(LossPartsMixin, Trainer):
    pass


@pytest.mark.parametrize("trainer_class", [Trainer, LossPartsTrainer])
def test_stage_1_with_the_trainer(parts, tmp_path, trainer_class):
    _, processor = parts
    model = tiny.tiny_moss_model(processor.tokenizer)
    apply_freezing(model, "speech_only")
    before = {name: value.clone() for name, value in model.named_parameters()}
    examples = processor.build_examples(conversations())
    examples += processor.build_documents([["one red", {"type": "audio", "codes": [3, 4, 4, 8]}, "house"]])
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=12,
        learning_rate=0.01,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        eval_strategy="steps",
        eval_steps=6,
        logging_steps=2,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    collator = MossSpeechDataCollator(processor, model=model)
    trainer = trainer_class(model, arguments, train_dataset=examples, eval_dataset=examples, data_collator=collator)
    first = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.9 * first
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name, value in model.named_parameters() if value.requires_grad}
    assert not [name for name in moved if "text" in name or "shared" in name or "embed_tokens" in name]
    if trainer_class is LossPartsTrainer:
        logs = [entry for entry in trainer.state.log_history if "audio_loss" in entry]
        assert logs and all("text_loss" in entry for entry in logs)
    trainer.save_model(tmp_path / "model")
    again = SplitLayerQwen3ForCausalLM.from_pretrained(tmp_path / "model")
    for name, value in again.named_parameters():
        assert torch.equal(value, dict(model.named_parameters())[name]), name
