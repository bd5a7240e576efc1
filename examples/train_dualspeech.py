"""Train DualSpeechLM with `transformers.Trainer`: all eight tasks mixed, text and speech answers together.

    python examples/train_dualspeech.py --output_dir outputs/dualspeech
    python examples/train_dualspeech.py --output_dir outputs/dualspeech-lora --lora_r 8
    python examples/train_dualspeech.py --output_dir out --checkpoint my-dualspeech --train_file train.jsonl \
        --eval_file eval.jsonl --task_weights "tts=0.5,asr=0.5" --lora_r 16 --bf16 --max_steps 60000
    python examples/train_dualspeech.py --output_dir out --text_model microsoft/Phi-3.5-mini-instruct \
        --processor my-processor --train_file train.jsonl --eval_file eval.jsonl

Without a checkpoint or a text model, a tiny random model is trained on tones that the script makes. A row of a JSON Lines
file holds the arguments of the processor: `task`, its inputs (`audio` and `speaker` as paths), and `targets`; see
`DualSpeechProcessor`. Recordings are tokenized once, before training. All arguments of `TrainingArguments` can be given.
"""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, interleave_datasets
from tiny_dualspeech import tiny_model, tiny_processor, tiny_rows
from transformers import (
    AutoModelForMultimodalLM,
    AutoProcessor,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

from dualspeech import DualSpeechForConditionalGeneration
from dualspeech.configuration.configuration_dualspeech import TASK_IDS
from dualspeech.processing.tasks import TASK_NAMES
from dualspeech.training.data_collator import DualSpeechDataCollator
from dualspeech.training.lora import dualspeech_lora_config
from dualspeech.training.loss_parts import LossPartsMixin

# Sampling weights of the released recipe (they sum to 1.4 there; only their ratios count).
TASK_WEIGHTS = "asr=0.2,tts=0.2,vc=0.2,t2st=0.2,sc=0.1,sqa=0.2,s2tt=0.2,ser=0.1"


@dataclass
class ModelArguments:
    checkpoint: str | None = field(default=None, metadata={"help": "DualSpeech checkpoint to start from"})
    text_model: str | None = field(default=None, metadata={"help": "causal language model to build a new one around"})
    processor: str | None = field(default=None, metadata={"help": "processor, if not that of the checkpoint"})
    lora_r: int = field(default=0, metadata={"help": "rank of LoRA; 0 trains everything (the paper uses 16)"})


@dataclass
class DataArguments:
    train_file: str | None = field(default=None, metadata={"help": "JSON Lines of processor arguments"})
    eval_file: str | None = field(default=None, metadata={"help": "the same, for evaluation"})
    task_weights: str = field(default=TASK_WEIGHTS, metadata={"help": "task=weight, comma-separated"})
    max_length: int = field(default=1999, metadata={"help": "longest accepted row in ids; longer ones are errors"})
    resample: bool = field(default=False, metadata={"help": "convert recordings of other rates"})
    tiny_rows: int = field(default=64, metadata={"help": "rows of generated training data without `train_file`"})


class DualSpeechTrainer(LossPartsMixin, Trainer):
    """The Trainer, with text, semantic and acoustic loss in its logs."""


def load(arguments: ModelArguments, seed: int):
    """Model and processor, fitting each other."""
    if arguments.checkpoint is None and arguments.text_model is None:
        processor = tiny_processor()
        model = tiny_model(processor.tokenizer, seed=seed)
    else:
        processor = AutoProcessor.from_pretrained(arguments.processor or arguments.checkpoint)
        if arguments.checkpoint is not None:
            model = AutoModelForMultimodalLM.from_pretrained(arguments.checkpoint)
        else:
            model = DualSpeechForConditionalGeneration.from_text_model(
                arguments.text_model,
                processor.tokenizer,
                semantic_codebook_size=processor.semantic_codebook_size,
                speaker_embedding_size=processor.speaker_embedding_size,
                acoustic_config={
                    "codebook_size": processor.acoustic_codebook_size,
                    "num_codebooks": processor.num_acoustic_codebooks,
                },
            )
    processor.check_model(model)
    if arguments.lora_r > 0:
        from peft import get_peft_model

        model = get_peft_model(
            model, dualspeech_lora_config(model, r=arguments.lora_r, lora_alpha=2 * arguments.lora_r)
        )
    return model, processor


def read_rows(path: str | None, count: int, seed: int) -> list[dict]:
    """Rows of a JSON Lines file, or `count` generated ones."""
    if path is None:
        return tiny_rows(count, seed)
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def tokenize(rows: list[dict], processor, arguments: DataArguments) -> list[dict]:
    """The rows as ids, labels and codes; an error names the row."""
    examples = []
    for number, row in enumerate(rows, start=1):
        try:
            example = processor.build_example(**row, resample=arguments.resample, max_length=arguments.max_length)
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from error
        examples.append(example)
    return examples


def mix(examples: list[dict], weights: str, seed: int) -> Dataset:
    """Tasks drawn by weight until each has been seen completely."""
    table = {name: float(weight) for name, _, weight in (entry.partition("=") for entry in weights.split(","))}
    by_task = defaultdict(list)
    for example in examples:
        by_task[TASK_NAMES[example["task_type_ids"]]].append(example)
    if unknown := sorted(set(table) - set(TASK_IDS)):
        raise ValueError(f"`task_weights` has unknown tasks {unknown}; accepted are {sorted(TASK_IDS)}")
    if missing := sorted(set(by_task) - set(table)):
        raise ValueError(f"`task_weights` has no weight for {missing}, which the data hold")
    total = sum(table[name] for name in by_task)
    return interleave_datasets(
        [Dataset.from_list(rows) for rows in by_task.values()],
        probabilities=[table[name] / total for name in by_task],
        seed=seed,
        stopping_strategy="all_exhausted",
    )


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    parser.set_defaults(
        eval_strategy="steps",
        eval_steps=20,
        logging_steps=10,
        max_steps=60,
        per_device_train_batch_size=8,
        learning_rate=3e-3,
        report_to="none",
        prediction_loss_only=True,  # logits of whole batches are large and nobody reads them
        remove_unused_columns=False,  # the collator takes what the model needs, also behind a PEFT wrapper
        label_names=["labels"],
    )
    model_arguments, data_arguments, training_arguments = parser.parse_args_into_dataclasses(arguments)
    seed = training_arguments.seed
    set_seed(seed)
    model, processor = load(model_arguments, seed)
    train_rows = read_rows(data_arguments.train_file, data_arguments.tiny_rows, seed)
    eval_rows = read_rows(data_arguments.eval_file, 16, seed + 1)
    train_data = mix(tokenize(train_rows, processor, data_arguments), data_arguments.task_weights, seed)
    eval_data = tokenize(eval_rows, processor, data_arguments)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    print(
        f"{trainable:,} of {sum(p.numel() for p in model.parameters()):,} parameters train on {len(train_data)} rows"
    )

    trainer = DualSpeechTrainer(
        model=model,
        args=training_arguments,
        train_dataset=train_data,
        eval_dataset=eval_data,
        data_collator=DualSpeechDataCollator(processor),
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train(resume_from_checkpoint=training_arguments.resume_from_checkpoint)
    metrics = trainer.evaluate()
    trainer.save_model()
    processor.save_pretrained(training_arguments.output_dir)
    print(f"evaluation loss {before:.3f} -> {metrics['eval_loss']:.3f}")
    return {"before": before, **metrics}


if __name__ == "__main__":
    main()
