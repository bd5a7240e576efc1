"""Train the USTokenizer of DualSpeechLM: a frozen text model reads its quantised speech.

    python examples/train_us_tokenizer.py --output_dir outputs/us_tokenizer
    python examples/train_us_tokenizer.py --output_dir outputs/us_tokenizer --recipe us_tokenizer --tiny
    accelerate launch --config_file training/launch/multi_gpu.yaml examples/train_us_tokenizer.py --recipe us_tokenizer \
        --output_dir out --train_data train.jsonl --eval_data eval.jsonl --resume_from_checkpoint auto

Without `--whisper` and `--text_model` a tiny model is trained on tones that the script makes; its text model first
learns for some seconds to answer in writing. A row of a JSON Lines file is a row of the tasks asr, ser or sqa: `task`,
`audio` (a path), `targets` (the answer) and, for sqa, `question`. All arguments of `TrainingArguments` can be given.
`--official_parity` trains as the released code does.
"""

from dataclasses import dataclass, field

import torch
from datasets import Dataset
from tiny_dualspeech import tiny_tokenizer
from tiny_us_tokenizer import tiny_rows, tiny_text_model, tiny_us_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments, set_seed

from dualspeech import UsTokenizerForUnderstanding, UsTokenizerModel
from dualspeech.training.data_collator_us_tokenizer import UsTokenizerCollator
from dualspeech.training.example_checks import check_us_tokenizer_rows
from dualspeech.training.recipe import fields_of, parse_arguments
from dualspeech.training.trainer import SpeechTrainer
from dualspeech.training.training_data import dataset_of, parse_sources, recording_seconds
from dualspeech.training.training_run import run, without_evaluation
from dualspeech.training.validate_rows import check_rows, read_rows


@dataclass
class ModelArguments:
    whisper: str | None = field(default=None, metadata={"help": "Whisper checkpoint whose encoder is used"})
    text_model: str | None = field(default=None, metadata={"help": "causal language model that reads the speech"})
    us_tokenizer: str | None = field(default=None, metadata={"help": "USTokenizer checkpoint to start from instead"})
    us_tokenizer_config: str | None = field(
        default=None,
        metadata={"help": "fields of UsTokenizerConfig for a new one, as JSON or as a mapping of a recipe"},
    )
    kmeans_init: bool = field(default=False, metadata={"help": "start the codebook with k-means on the first batch"})
    train_encoder: bool = field(default=False, metadata={"help": "train the speech encoder too"})
    official_parity: bool = field(
        default=False,
        metadata={
            "help": "as the released code: padding not masked and inside the sequences, no restart of unused codes, at "
            "least one second of audio, answers cut at 300 ids"
        },
    )
    commitment_loss_weight: float = field(default=1.0, metadata={"help": "alpha"})
    understanding_loss_weight: float = field(default=5.0, metadata={"help": "beta; 0 is the paper's ablation"})
    reconstruction_loss_weight: float = field(default=45.0, metadata={"help": "gamma; 0 is the paper's ablation"})


@dataclass
class DataArguments:
    train_data: str | None = field(
        default=None, metadata={"help": "files of task rows, comma-separated", "aliases": ["--train_file"]}
    )
    eval_data: str | None = field(
        default=None, metadata={"help": "the same, for evaluation", "aliases": ["--eval_file"]}
    )
    padding: str | None = field(default=None, metadata={"help": "right, or middle as in the released code"})
    max_text_length: int | None = field(default=None, metadata={"help": "cut answers to this many ids"})
    resample: bool = field(default=False, metadata={"help": "convert recordings of other rates"})
    check_audio: bool = field(
        default=True,
        metadata={"help": "decode every recording before the training; otherwise heads of files are read"},
    )
    tiny_rows: int = field(default=480, metadata={"help": "rows of generated training data without `train_data`"})


def load(arguments: ModelArguments, text_steps: int = 120):
    """Model, with its text model attached, and the tokenizer of the text model; a tiny one learns for `text_steps`."""
    if arguments.text_model is None:
        tokenizer = tiny_tokenizer()
        text_model = tiny_text_model(tokenizer, tiny_rows(480, seed=0), text_steps)
    else:
        tokenizer = AutoTokenizer.from_pretrained(arguments.text_model)
        text_model = AutoModelForCausalLM.from_pretrained(arguments.text_model)
    fields = {name: getattr(arguments, name) for name in ("commitment_loss_weight", "reconstruction_loss_weight")}
    if arguments.official_parity:
        fields |= {"mask_padding": False, "dead_code_threshold": 0.0, "min_seconds": 1.0}
    fields["kmeans_init"] = arguments.kmeans_init
    fields |= fields_of("us_tokenizer_config", arguments.us_tokenizer_config)
    if arguments.us_tokenizer is not None:
        us_tokenizer = UsTokenizerModel.from_pretrained(arguments.us_tokenizer, dtype=torch.float32, **fields)
    elif arguments.whisper is not None:
        us_tokenizer = UsTokenizerModel.from_whisper(arguments.whisper, **fields)
    else:
        us_tokenizer = tiny_us_tokenizer(**fields)
    model = UsTokenizerForUnderstanding.from_parts(
        us_tokenizer,
        text_model,
        freeze_encoder=not arguments.train_encoder,
        understanding_loss_weight=arguments.understanding_loss_weight,
    )
    return model, tokenizer


def load_rows(text: str | None, count: int, seed: int, collator: UsTokenizerCollator, decode: bool) -> list[dict]:
    """Checked task rows of files, or `count` generated ones, as the collator takes them."""
    rows = tiny_rows(count, seed) if text is None else []
    for path in [] if text is None else parse_sources(text).values():
        check_rows(path, kind="task")
        rows += read_rows(path)
    check_us_tokenizer_rows(rows, collator.config, collator.resample, decode, collator=collator)
    targets = [row.pop("targets") for row in rows]
    return [{**row, "text": t["text"] if isinstance(t, dict) else t} for row, t in zip(rows, targets, strict=True)]


def with_lengths(rows: list[dict]) -> Dataset:
    """`rows` as a data set with a column `length` (encoder frames), in which the samplers look."""
    return dataset_of([{**row, "length": round(50 * recording_seconds(row["audio"]))} for row in rows])


def main(arguments: list[str] | None = None) -> dict[str, float]:
    model_arguments, data_arguments, training, recipe = parse_arguments(
        "train_us_tokenizer",
        (ModelArguments, DataArguments, TrainingArguments),
        arguments,
        defaults={
            "eval_strategy": "steps",
            "eval_on_start": True,
            "eval_steps": 100,
            "logging_steps": 25,
            "max_steps": 300,
            "per_device_train_batch_size": 12,
            "learning_rate": 3e-3,
            "report_to": "none",
            "prediction_loss_only": True,  # logits of whole batches are large and nobody reads them
            "remove_unused_columns": False,  # the collator reads the rows
        },
        tiny={
            "whisper": None,
            "text_model": None,
            "kmeans_init": True,
            "bf16": False,
            "per_device_train_batch_size": 8,
            "learning_rate": 3e-3,
            "warmup_steps": 3,
            "logging_steps": 5,
            "eval_steps": 20,
            "dataloader_num_workers": 0,
            "tiny_rows": 96,
        },
    )
    set_seed(training.seed)
    model, tokenizer = load(model_arguments, text_steps=20 if recipe.tiny else 120)
    parity = model_arguments.official_parity
    collator = UsTokenizerCollator(
        model.config,
        tokenizer,
        padding=data_arguments.padding or ("middle" if parity else "right"),
        max_text_length=data_arguments.max_text_length or (300 if parity else None),
        resample=data_arguments.resample,
    )
    checks = {"collator": collator, "decode": data_arguments.check_audio}
    train_rows = load_rows(data_arguments.train_data, data_arguments.tiny_rows, training.seed, **checks)
    eval_rows = []
    if data_arguments.train_data is None or data_arguments.eval_data is not None:
        eval_rows = load_rows(data_arguments.eval_data, 24, training.seed + 1, **checks)
    else:
        without_evaluation(training)
    by_length = training.train_sampling_strategy != "random"
    by_task = {task: [row for row in eval_rows if row["task"] == task] for task in ("asr", "ser", "sqa")}
    by_task = {task: with_lengths(rows) if by_length else rows for task, rows in by_task.items() if rows}
    trainer = SpeechTrainer(
        model=model,
        args=training,
        train_dataset=with_lengths(train_rows) if by_length else train_rows,
        eval_dataset=by_task or None,
        data_collator=collator,
    )
    metrics = run(trainer, recipe)
    if training.world_size > 1 or not eval_rows:
        return metrics
    batch = collator.for_generation(eval_rows[:6])
    ids = model.eval().generate(**{key: value.to(model.device) for key, value in batch.items()}, max_new_tokens=20)
    for row, text in zip(eval_rows, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=False):
        print(f"{row['task']}: {text!r} for {row['text']!r}")
    return metrics


if __name__ == "__main__":
    main()
