"""Train a small text model and its tokenizer on the texts of the nano corpus.

    python examples/nano/train_text_model.py --architecture llama --train_data outputs/nano/corpus/rows/train \
        --eval_data outputs/nano/corpus/rows/validation --output_dir outputs/nano/text_llama
    python examples/nano/train_text_model.py --architecture qwen3 ...

`llama` is for DualSpeechLM, `qwen3` for MOSS-Speech. The output loads with `AutoModelForCausalLM` and `AutoTokenizer`.
All arguments of `TrainingArguments` can be given; `--resume_from_checkpoint auto` goes on where a training stopped.
"""

from dataclasses import dataclass, field

from nano_texts import CHAT_TOKENS, TextExample, chat_examples, task_examples
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)

from dualspeech.training.recipe import parse_arguments
from dualspeech.training.training_run import run

EXAMPLES = {"llama": task_examples, "qwen3": chat_examples}


@dataclass
class TextModelArguments:
    train_data: str = field(default="", metadata={"help": "folder of the rows of the training split"})
    eval_data: str = field(default="", metadata={"help": "the same, for evaluation"})
    architecture: str = field(default="llama", metadata={"help": "llama or qwen3", "choices": list(EXAMPLES)})
    vocab_size: int = field(default=1400, metadata={"help": "tokens at most, special ones included"})
    hidden_size: int = field(default=192, metadata={"help": "width"})
    intermediate_size: int = field(default=512, metadata={"help": "inner width of the feed-forward parts"})
    num_hidden_layers: int = field(default=6, metadata={"help": "layers"})
    num_attention_heads: int = field(default=6, metadata={"help": "heads"})


def train_tokenizer(examples: list[TextExample], architecture: str, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of up to `vocab_size` tokens with the special tokens of the architecture."""
    special = list(CHAT_TOKENS) if architecture == "qwen3" else ["<pad>", "<s>", "</s>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((part for example in examples for part in example if part), trainer)
    if architecture == "qwen3":
        names = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
        return PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=special[1:], **names)
    ids = [(name, backend.token_to_id(name)) for name in ("<s>",)]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def new_model(arguments: TextModelArguments, tokenizer: PreTrainedTokenizerFast):
    """A model of the sizes of `arguments` with tied embeddings."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = {name: getattr(arguments, name) for name in names}
    fields = {
        **sizes,
        "num_key_value_heads": arguments.num_attention_heads,
        "head_dim": arguments.hidden_size // arguments.num_attention_heads,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if arguments.architecture == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**fields))
    return LlamaForCausalLM(LlamaConfig(**fields))


def encode(examples: list[TextExample], tokenizer: PreTrainedTokenizerFast) -> list[dict[str, list[int]]]:
    """Ids and labels; the answer and the end of the sequence are learned."""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    rows = []
    for prompt, answer in examples:
        asked = start + tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else start
        learned = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        rows.append({"input_ids": asked + learned, "labels": [-100] * len(asked) + learned})
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
            "max_steps": 1600,
            "weight_decay": 0.01,
            "train_sampling_strategy": "group_by_length",
            "eval_strategy": "steps",
            "eval_steps": 400,
            "logging_steps": 50,
            "save_steps": 200,
            "save_total_limit": 2,
            "report_to": "none",
            "prediction_loss_only": True,
        },
    )
    set_seed(training.seed)
    examples = EXAMPLES[model_arguments.architecture]
    train = list(examples(model_arguments.train_data, training.seed))
    tokenizer = train_tokenizer(train, model_arguments.architecture, model_arguments.vocab_size)
    trainer = Trainer(
        model=new_model(model_arguments, tokenizer),
        args=training,
        train_dataset=encode(train, tokenizer),
        eval_dataset=encode(list(examples(model_arguments.eval_data, training.seed)), tokenizer),
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
        processing_class=tokenizer,
    )
    return run(trainer, recipe)


if __name__ == "__main__":
    main()
