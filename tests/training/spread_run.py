"""Started by `test_two_processes.py`, alone or under `torch.distributed.run`: trains a tiny model for some steps.

python -m tests.training.spread_run FOLDER dualspeech|moss|us_tokenizer single|ddp|fsdp [CHECKPOINT]

All ways see the same global batches; the results are `FOLDER/log.json`, the weights in `FOLDER/model`, and a checkpoint of
the Trainer half-way where it can write one. CHECKPOINT is resumed from.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, TrainingArguments

from dualspeech.training.trainer import SpeechTrainer
from tests.modeling.dualspeech_cases import tiny_model as tiny_dualspeech
from tests.modeling.dualspeech_cases import training_batch
from tests.modeling.split_layer_cases import random_flat
from tests.modeling.split_layer_cases import tiny_model as tiny_split_layer
from tests.modeling.test_us_tokenizer_understanding import understanding_batch
from tests.modeling.us_tokenizer_cases import tiny_understanding
from tests.training.test_speech_trainer import TASKS, Batches

STEPS, ROWS = 4, 8


def dualspeech():
    # Without draws, which every process makes for itself.
    model = tiny_dualspeech(scale=2.0, coc_probabilities=(0, 0, 1))
    return model, training_batch(model.config, TASKS), AutoModelForMultimodalLM


def moss():
    model = tiny_split_layer()
    torch.manual_seed(1)
    lengths = torch.tensor([12, 3, 9, 5, 12, 7, 4, 10])
    ids = random_flat(model.config, ROWS, 12)
    mask = (torch.arange(12) < lengths[:, None]).long()
    labels = ids.masked_fill(mask == 0, -100)
    labels[::3, :3] = -100
    return model, {"input_ids": ids, "attention_mask": mask, "labels": labels}, AutoModelForCausalLM


def us_tokenizer():
    torch.manual_seed(0)
    model = tiny_understanding(understanding_loss_weight=2.5)
    torch.manual_seed(1)
    lengths = [9600, 16000, 4000, 12000, 700, 8000, 16000, 5000]
    return model, understanding_batch(model, lengths, [4, 1, 6, 2, 3, 5, 1, 2]), None


def main(folder: Path, kind: str, way: str, checkpoint: str | None = None) -> None:
    model, batch, auto_class = {"dualspeech": dualspeech, "moss": moss, "us_tokenizer": us_tokenizer}[kind]()
    world = 1 if way == "single" else 2
    if way == "fsdp":
        from torch import distributed
        from transformers.distributed import DistributedConfig

        distributed.init_process_group("gloo")
        if distributed.get_rank() == 0:
            model.save_pretrained(folder / "fresh")
        distributed.barrier()
        model = auto_class.from_pretrained(folder / "fresh", distributed_config=DistributedConfig(fsdp_size=world))
    rows = Batches(batch)
    arguments = TrainingArguments(
        folder,
        max_steps=STEPS,
        per_device_train_batch_size=ROWS // 2 // world,
        gradient_accumulation_steps=1 if kind == "us_tokenizer" else 2,
        learning_rate=1e-2,
        max_grad_norm=0.5,
        logging_steps=1,
        save_strategy="no" if way == "fsdp" else "steps",
        save_steps=STEPS // 2,
        report_to="none",
        use_cpu=True,
        ddp_backend="gloo" if world > 1 else None,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=False,
    )
    trainer = SpeechTrainer(model, arguments, rows.collate, train_dataset=rows)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.model.save_pretrained(folder / "model")
    if trainer.is_world_process_zero():
        (folder / "log.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
