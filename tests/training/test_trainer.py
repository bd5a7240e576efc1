"""The plain Trainer of transformers, without any setting of ours."""

import pytest
from transformers import Trainer, TrainingArguments

from dualspeech import DualSpeechDataCollator
from tests.examples.running import load_example


@pytest.mark.parametrize("acoustic_config", [{}, None], ids=["acoustic", "baseline"])
@pytest.mark.parametrize("tasks", [("asr", "tts"), ("asr",), ("tts",)])
def test_plain_trainer_trains_evaluates_and_keeps_the_best(tmp_path, acoustic_config, tasks):
    tiny = load_example("tiny_dualspeech")
    processor = tiny.tiny_processor()
    kwargs = {} if acoustic_config is not None else {"acoustic_config": None}
    model = tiny.tiny_model(processor.tokenizer, **kwargs)
    if acoustic_config is None:
        processor = type(processor).from_config(
            model.config, processor.tokenizer, processor.feature_extractor, processor.audio_tokenizer
        )
    rows = [row for row in tiny.tiny_rows(16) if row["task"] in tasks]
    data = processor.build_examples(
        task=[row["task"] for row in rows],
        audio=[row.get("audio") for row in rows],
        text=[row.get("text") for row in rows],
        targets=[row["targets"] for row in rows],
    )
    arguments = TrainingArguments(
        tmp_path,
        max_steps=4,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        load_best_model_at_end=True,
        report_to="none",
    )
    trainer = Trainer(model, arguments, DualSpeechDataCollator(processor, model=model), data, data)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    assert trainer.predict(data).metrics["test_loss"] < before
