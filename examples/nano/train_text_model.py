"""Train the small text model of both designs, and its tokenizer, on the texts of the nano corpus.

    python examples/nano/train_text_model.py --drills_only --max_steps 1200 --train_data outputs/nano/corpus/rows/train \
        --eval_data outputs/nano/corpus/rows/validation --output_dir outputs/nano/text_drills
    python examples/nano/train_text_model.py --checkpoint outputs/nano/text_drills \
        --train_data outputs/nano/corpus/rows/train --eval_data outputs/nano/corpus/rows/validation \
        --output_dir outputs/nano/text_model

Copying from a prompt is learned first, by drills alone: among other texts it takes several times as long. It is a Qwen3, which MOSS-Speech needs and DualSpeechLM takes as any other, and loads with `AutoModelForCausalLM` and
`AutoTokenizer`. All arguments of `TrainingArguments` can be given; `--resume_from_checkpoint auto` goes on where a training
stopped.
"""

from dataclasses import dataclass, field

from nano_texts import CHAT_TOKENS, START_TOKEN, TextExample, chat_examples, drill_examples, task_examples
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)

from dualspeech.training.recipe import parse_arguments
from dualspeech.training.training_run import run


@dataclass
class TextModelArguments:
    train_data: str = field(default="", metadata={"help": "folder of the rows of the training split"})
    eval_data: str = field(default="", metadata={"help": "the same, for evaluation"})
    drills_only: bool = field(default=False, metadata={"help": "learn to copy and to read, no sentences"})
    checkpoint: str | None = field(default=None, metadata={"help": "go on with this model and its tokenizer"})
    vocab_size: int = field(default=1400, metadata={"help": "tokens at most, special ones included"})
    hidden_size: int = field(default=192, metadata={"help": "width"})
    intermediate_size: int = field(default=512, metadata={"help": "inner width of the feed-forward parts"})
    num_hidden_layers: int = field(default=6, metadata={"help": "layers"})
    num_attention_heads: int = field(default=6, metadata={"help": "heads"})


def examples_of(folder: str, seed: int, drills_only: bool = False) -> list[TextExample]:
    """What is learned from the rows of a split."""
    drills = [*drill_examples(folder, seed)]
    return drills if drills_only else [*drills, *task_examples(folder, seed), *chat_examples(folder, seed)]


def train_tokenizer(examples: list[TextExample], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of at most `vocab_size` tokens with the special tokens of Qwen3 that are needed."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*CHAT_TOKENS, START_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((part for example in examples for part in example[:2] if part), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|endoftext|>",
        bos_token=START_TOKEN,
        eos_token="<|im_end|>",
        additional_special_tokens=list(CHAT_TOKENS[1:]),
    )


def new_model(arguments: TextModelArguments, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A model of the sizes of `arguments` with tied embeddings."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = Qwen3Config(
        **{name: getattr(arguments, name) for name in names},
        num_key_value_heads=arguments.num_attention_heads,
        head_dim=arguments.hidden_size // arguments.num_attention_heads,
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def encode(examples: list[TextExample], tokenizer: PreTrainedTokenizerFast) -> list[dict[str, list[int]]]:
    """Ids and labels. Prompts are learned as well: answers alone are too few tokens for a model to find out how to copy."""
    rows = []
    for prompt, answer, starts in examples:
        ids = [tokenizer.bos_token_id] if starts else []
        # apart from each other, as processors encode them
        for part in (prompt, answer):
            ids += tokenizer(part, add_special_tokens=False)["input_ids"] if part else []
        ids.append(tokenizer.eos_token_id)
        rows.append({"input_ids": ids, "labels": list(ids)})
    return rows


def main(arguments: list[str] | None = None) -> dict[str, float]:
    model_arguments, training, recipe = parse_arguments(
        "train_text_model",
        (TextModelArguments, TrainingArguments),
        arguments,
        defaults={
            "per_device_train_batch_size": 32,
            "learning_rate": 2e-3,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 100,
            "max_steps": 2600,
            "weight_decay": 0.01,
            "train_sampling_strategy": "group_by_length",
            "eval_strategy": "steps",
            "eval_steps": 1000,
            "logging_steps": 50,
            "save_steps": 200,
            "save_total_limit": 2,
            "report_to": "none",
            "prediction_loss_only": True,
        },
    )
    set_seed(training.seed)
    folders = (model_arguments.train_data, model_arguments.eval_data)
    train, held_out = (examples_of(folder, training.seed, model_arguments.drills_only) for folder in folders)
    if model_arguments.checkpoint is None:
        tokenizer = train_tokenizer(examples_of(folders[0], training.seed), model_arguments.vocab_size)
        model = new_model(model_arguments, tokenizer)
    else:
        tokenizer = AutoTokenizer.from_pretrained(model_arguments.checkpoint)
        model = AutoModelForCausalLM.from_pretrained(model_arguments.checkpoint)
    trainer = Trainer(
        model=model,
        args=training,
        train_dataset=encode(train, tokenizer),
        eval_dataset=encode(held_out, tokenizer),
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
        processing_class=tokenizer,
    )
    return run(trainer, recipe)


if __name__ == "__main__":
    main()
