"""Train the USTokenizer of DualSpeechLM with `transformers.Trainer`: a frozen text model reads its quantised speech.

    python examples/train_us_tokenizer.py --output_dir outputs/us_tokenizer
    python examples/train_us_tokenizer.py --output_dir out --whisper openai/whisper-medium \
        --text_model meta-llama/Llama-3.2-1B --train_file train.jsonl --eval_file eval.jsonl --bf16 \
        --per_device_train_batch_size 4 --max_steps 500000 --learning_rate 3e-5 --weight_decay 0.05 \
        --warmup_steps 3000 --lr_scheduler_type constant_with_warmup

Without `--whisper` and `--text_model` a tiny model is trained on tones that the script makes; its text model first
learns for some seconds to answer in writing. A row of a JSON Lines file has `audio` (a path), `task` (asr, ser, sqa), `text` (the
answer) and, for sqa, `question`. All arguments of `TrainingArguments` can be given. `--padding middle
--official_parity` trains as the released code does.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tiny_dualspeech import EMOTIONS, WORDS, tiny_tokenizer, tone_speech
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)

from dualspeech import UsTokenizerConfig, UsTokenizerForUnderstanding, UsTokenizerModel
from dualspeech.training.data_collator_us_tokenizer import (
    PROMPTS,
    TEXT_BEFORE_SPEECH,
    TEXT_BEHIND_SPEECH,
    UsTokenizerCollator,
)
from dualspeech.training.loss_parts import LossPartsMixin


@dataclass
class ModelArguments:
    whisper: str | None = field(default=None, metadata={"help": "Whisper checkpoint whose encoder is used"})
    text_model: str | None = field(default=None, metadata={"help": "causal language model that reads the speech"})
    us_tokenizer: str | None = field(default=None, metadata={"help": "USTokenizer checkpoint to start from instead"})
    kmeans_init: bool = field(default=False, metadata={"help": "start the codebook with k-means on the first batch"})
    train_encoder: bool = field(default=False, metadata={"help": "train the speech encoder too"})
    official_parity: bool = field(default=False, metadata={"help": "no masking of padding, no restart of dead codes"})
    understanding_loss_weight: float = field(default=5.0, metadata={"help": "beta; 0 is the paper's ablation"})
    reconstruction_loss_weight: float = field(default=45.0, metadata={"help": "gamma; 0 is the paper's ablation"})


@dataclass
class DataArguments:
    train_file: str | None = field(default=None, metadata={"help": "JSON Lines of rows"})
    eval_file: str | None = field(default=None, metadata={"help": "the same, for evaluation"})
    padding: str = field(default="right", metadata={"help": "right, or middle as in the released code"})
    max_text_length: int | None = field(default=None, metadata={"help": "cut answers to this many ids"})
    resample: bool = field(default=False, metadata={"help": "convert recordings of other rates"})
    tiny_rows: int = field(default=480, metadata={"help": "rows of generated training data without `train_file`"})


class UsTokenizerTrainer(LossPartsMixin, Trainer):
    """The Trainer, with the three losses and the perplexity of the codes in its logs."""


def tiny_rows(count: int, seed: int) -> list[dict]:
    """Recordings of two words, one tone each: what was said, how loud it was, which word came first."""
    draw = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        words = [list(WORDS)[j] for j in draw.integers(len(WORDS), size=2)]
        emotion = str(draw.choice(list(EMOTIONS)))
        audio = tone_speech(words, voice=int(draw.integers(1, 4)), rate=16000, emotion=emotion)
        audio = {"array": audio + 0.01 * draw.standard_normal(len(audio)), "sampling_rate": 16000}
        row = (
            {"task": "asr", "text": " ".join(words)},
            {"task": "ser", "text": emotion},
            {"task": "sqa", "question": "What is the first word?", "text": words[0]},
        )[i % 3]
        rows.append({"audio": audio, "content": " ".join([emotion, *words]), **row})
    return rows


def tiny_text_model(tokenizer, rows: list[dict], steps: int = 120) -> LlamaForCausalLM:
    """A character model of 70 000 parameters that answers when the content is written where the speech goes."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        batch = [rows[(24 * step + i) % len(rows)] for i in range(24)]
        prompts = [PROMPTS[row["task"]].replace("{}", row.get("question", "")) for row in batch]
        lines = [
            f"<s>{TEXT_BEFORE_SPEECH}{row['content']}{TEXT_BEHIND_SPEECH.replace('{}', prompt)}{row['text']}</s>"
            for row, prompt in zip(batch, prompts, strict=True)
        ]
        inputs = tokenizer(lines, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=False)
        labels = inputs["input_ids"].clone()
        for row, label in zip(batch, labels, strict=True):
            label[: -len(row["text"]) - 1] = -100  # one id per character
        model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model


def tiny_us_tokenizer(**kwargs) -> UsTokenizerModel:
    """A tokenizer of 60 000 parameters for recordings of at most one second."""
    encoder = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
    config = UsTokenizerConfig(
        encoder_config={**encoder, "max_source_positions": 50},
        **{"hidden_size": 32, "code_dim": 24, "codebook_size": 40, "min_seconds": 0.1, "max_seconds": 1.0, **kwargs},
    )
    model = UsTokenizerModel(config)
    with torch.no_grad():
        model.encoder.conv1.weight.mul_(20)  # a random encoder; so that its output follows the sound
        model.encoder.conv2.weight.mul_(20)
    return model


def load(arguments: ModelArguments):
    """Model, with its text model attached, and the tokenizer of the text model."""
    if arguments.text_model is None:
        tokenizer = tiny_tokenizer()
        text_model = tiny_text_model(tokenizer, tiny_rows(480, seed=0))
    else:
        tokenizer = AutoTokenizer.from_pretrained(arguments.text_model)
        text_model = AutoModelForCausalLM.from_pretrained(arguments.text_model)
    fields = {
        "kmeans_init": arguments.kmeans_init,
        "reconstruction_loss_weight": arguments.reconstruction_loss_weight,
        **({"mask_padding": False, "dead_code_threshold": 0.0} if arguments.official_parity else {}),
    }
    if arguments.us_tokenizer is not None:
        us_tokenizer = UsTokenizerModel.from_pretrained(arguments.us_tokenizer)
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


def read_rows(path: str | None, count: int, seed: int) -> list[dict]:
    """Rows of a JSON Lines file, or `count` generated ones."""
    if path is None:
        return tiny_rows(count, seed)
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    parser.set_defaults(
        eval_strategy="steps",
        eval_steps=100,
        logging_steps=25,
        max_steps=300,
        per_device_train_batch_size=12,
        learning_rate=3e-3,
        report_to="none",
        remove_unused_columns=False,  # the collator reads the rows
    )
    model_arguments, data_arguments, training_arguments = parser.parse_args_into_dataclasses(arguments)
    set_seed(training_arguments.seed)
    train_rows = read_rows(data_arguments.train_file, data_arguments.tiny_rows, training_arguments.seed)
    eval_rows = read_rows(data_arguments.eval_file, 24, training_arguments.seed + 1)
    model, tokenizer = load(model_arguments)
    collator = UsTokenizerCollator(
        model.config,
        tokenizer,
        padding=data_arguments.padding,
        max_text_length=data_arguments.max_text_length,
        resample=data_arguments.resample,
    )
    trainer = UsTokenizerTrainer(
        model=model,
        args=training_arguments,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        data_collator=collator,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train(resume_from_checkpoint=training_arguments.resume_from_checkpoint)
    metrics = trainer.evaluate()
    trainer.save_model()
    print(f"evaluation loss {before:.3f} -> {metrics['eval_loss']:.3f}")

    batch = collator.for_generation(eval_rows[:6])
    ids = model.eval().generate(**{key: value.to(model.device) for key, value in batch.items()}, max_new_tokens=20)
    for row, text in zip(eval_rows, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=False):
        print(f"{row['task']}: {text!r} for {row['text']!r}")
    return {"before": before, **metrics}


if __name__ == "__main__":
    main()
