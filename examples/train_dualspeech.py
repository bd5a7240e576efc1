"""Train DualSpeechLM: all eight tasks mixed, text and speech answers together.

    python examples/train_dualspeech.py --output_dir outputs/dualspeech --tiny
    python examples/train_dualspeech.py --output_dir outputs/dualspeech --recipe dualspeech --tiny
    accelerate launch --config_file training/launch/multi_gpu.yaml examples/train_dualspeech.py --recipe dualspeech \
        --output_dir out --train_data tokens/train --eval_data tokens/dev --resume_from_checkpoint auto
    python examples/train_dualspeech.py --output_dir out --checkpoint my-dualspeech --train_data train.jsonl \
        --eval_data eval.jsonl --weights "tts=0.5,asr=0.5" --lora_r 16 --bf16 --max_steps 60000

Without a checkpoint or a text model, a tiny random model is trained on tones that the script makes. A row of a JSON Lines
file holds the arguments of the processor: `task`, its inputs (`audio` and `speaker` as paths), and `targets`; see
`DualSpeechProcessor`. Rows are checked and tokenized once, before training; folders of token rows are read as they are.
All arguments of `TrainingArguments` can be given. The recipes say how each model of the paper is trained.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from datasets import Dataset
from run_callbacks import CallbackArguments, callbacks
from tiny_dualspeech import tiny_audio_tokenizer, tiny_model, tiny_rows, tiny_tokenizer
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
    TrainingArguments,
    set_seed,
)

from dualspeech import DualSpeechForConditionalGeneration, DualSpeechProcessor
from dualspeech.processing.tasks import TASK_NAMES, TASKS
from dualspeech.training.codec_rows import with_codec_codes
from dualspeech.training.data_collator import DualSpeechDataCollator
from dualspeech.training.dualspeech_variants import get_variant, parity_fields, variant_fields, variant_processor
from dualspeech.training.example_checks import check_dualspeech_examples
from dualspeech.training.lora import dualspeech_lora_config
from dualspeech.training.mixtures import mix_datasets, parse_weights
from dualspeech.training.recipe import fields_of, parse_arguments
from dualspeech.training.trainer import SpeechTrainer
from dualspeech.training.training_data import (
    DataArguments,
    encode_rows,
    join,
    load_source,
    packed,
    parse_sources,
    split_by,
)
from dualspeech.training.training_run import run, without_evaluation

# Sampling weights of the released recipe (they sum to 1.4 there; only their ratios count).
TASK_WEIGHTS = "asr=0.2,tts=0.2,vc=0.2,t2st=0.2,sc=0.1,sqa=0.2,s2tt=0.2,ser=0.1"


@dataclass
class ModelArguments:
    checkpoint: str | None = field(default=None, metadata={"help": "DualSpeech checkpoint to start from"})
    text_model: str | None = field(default=None, metadata={"help": "causal language model to build a new one around"})
    processor: str | None = field(
        default=None,
        metadata={"help": "processor; that of the checkpoint, or one made for the text model, by default"},
    )
    audio_tokenizer: str | None = field(
        default=None, metadata={"help": "dual tokenizer that encodes recordings, when a new processor is made"}
    )
    variant: str = field(
        default="ustoken", metadata={"help": "ustoken, hubert, baseline_acoustic or baseline_semantic of the paper"}
    )
    condition_attention: str | None = field(
        default=None, metadata={"help": "of a new AcousticGPT: bidirectional (as released) or causal (paper)"}
    )
    acoustic_config: str | None = field(
        default=None,
        metadata={"help": "fields of AcousticGPTConfig for a new one, as JSON or as a mapping of a recipe"},
    )
    text_loss_weight: float | None = field(default=None, metadata={"help": "of text answers"})
    semantic_loss_weight: float | None = field(default=None, metadata={"help": "lambda; 0 is the paper's ablation"})
    acoustic_loss_weight: float | None = field(default=None, metadata={"help": "xi"})
    coc_probabilities: list[float] | None = field(
        default=None, metadata={"help": "Chain-of-Condition: prompt, answer, both; 0 0 1 is the paper's ablation"}
    )
    official_parity: bool = field(
        default=False, metadata={"help": "as the released code, see `DualSpeechConfig.official_parity`"}
    )
    lora_r: int = field(default=0, metadata={"help": "rank of LoRA; 0 trains everything (the paper uses 16)"})
    lora_alpha: int | None = field(default=None, metadata={"help": "twice the rank by default"})
    lora_dropout: float = field(default=0.05, metadata={"help": "dropout of LoRA"})
    dtype: str = field(default="float32", metadata={"help": "of the weights that are loaded"})
    attn_implementation: str | None = field(default=None, metadata={"help": "eager, sdpa, flash_attention_2, ..."})


def load(arguments: ModelArguments, seed: int) -> tuple[DualSpeechForConditionalGeneration, DualSpeechProcessor, Any]:
    """Model, processor, and the audio tokenizer of a variant that reads codes of the codec."""
    variant = get_variant(arguments.variant)
    parity = arguments.official_parity
    attention = "bidirectional" if parity else arguments.condition_attention or "bidirectional"
    audio_tokenizer = arguments.audio_tokenizer and AutoModel.from_pretrained(arguments.audio_tokenizer)
    if arguments.processor is not None or arguments.checkpoint is not None:
        if audio_tokenizer is not None and variant.semantic != "codec":
            raise ValueError("`audio_tokenizer` is for a new processor; that of the checkpoint has its own")
        processor = AutoProcessor.from_pretrained(arguments.processor or arguments.checkpoint)
    elif arguments.text_model is not None:
        processor = variant_processor(variant, AutoTokenizer.from_pretrained(arguments.text_model), audio_tokenizer)
    else:
        audio_tokenizer = tiny_audio_tokenizer(semantic=variant.semantic)
        processor = variant_processor(variant, tiny_tokenizer(None), audio_tokenizer)
    loading = {"dtype": arguments.dtype, "attn_implementation": arguments.attn_implementation}
    if arguments.checkpoint is not None:
        model = AutoModelForMultimodalLM.from_pretrained(arguments.checkpoint, **loading)
        if arguments.condition_attention not in (None, model.config.acoustic_config.condition_attention):
            raise ValueError(
                f"`condition_attention` {arguments.condition_attention!r} is not that of the checkpoint, whose weights "
                f"depend on it; give --condition_attention {model.config.acoustic_config.condition_attention}"
            )
    else:
        own = fields_of("acoustic_config", arguments.acoustic_config)
        fields = variant_fields(variant, processor, attention, **own)
        if arguments.text_model is None:
            model = tiny_model(processor.tokenizer, seed=seed, **fields)
        else:
            text_model = AutoModelForCausalLM.from_pretrained(arguments.text_model, **loading)
            model = DualSpeechForConditionalGeneration.from_text_model(text_model, processor.tokenizer, **fields)
    processor.check_model(model)
    for name in ("text_loss_weight", "semantic_loss_weight", "acoustic_loss_weight", "coc_probabilities"):
        if getattr(arguments, name) is not None:
            setattr(model.config, name, getattr(arguments, name))
    model.config.update(parity_fields() if parity else {})
    model.config.validate()
    if arguments.lora_r > 0:
        from peft import get_peft_model

        alpha = arguments.lora_alpha or 2 * arguments.lora_r
        config = dualspeech_lora_config(model, arguments.lora_r, alpha, arguments.lora_dropout)
        model = get_peft_model(model, config)
    return model, processor, audio_tokenizer if variant.semantic == "codec" else None


def encode(rows: list[dict], processor, resample: bool = False, codec=None) -> list[dict]:
    """Examples of raw rows, all recordings in one batch; with `codec`, its codes are what is read and written."""
    if codec is not None:
        rows = with_codec_codes(rows, codec, processor.feature_extractor, resample)
    names = ("task", "audio", "text", "question", "source_language", "target_language", "speaker", "targets")
    columns = {name: [row.get(name) for row in rows] for name in names}
    columns = {name: values for name, values in columns.items() if any(value is not None for value in values)}
    return processor.build_examples(**columns, resample=resample)


def mix(data: Dataset, weights: str | None, seed: int, passes: str | None = None) -> Dataset:
    """Tasks drawn by weight until each has been seen completely, or each as often as `passes` says."""
    if passes is not None:
        return join(split_by(data, "task_type_ids", TASK_NAMES), seed, passes=passes)
    table = parse_weights(weights or TASK_WEIGHTS)
    if unknown := sorted(set(table) - set(TASKS)):
        raise ValueError(f"`weights` has unknown tasks {unknown}; accepted are {sorted(TASKS)}")
    return mix_datasets(split_by(data, "task_type_ids", TASK_NAMES), table, seed)


def load_data(arguments: DataArguments, training: TrainingArguments, model, processor, codec) -> tuple[Any, Any]:
    """Mixed (and packed) training data, and evaluation data by task (`None`: there are none)."""
    encoder = partial(encode, processor=processor, resample=arguments.resample, codec=codec)
    check = partial(check_dualspeech_examples, config=model.config, max_length=arguments.context_length)

    def read(text: str) -> Dataset:
        sources = parse_sources(text).items()
        return join({name: load_source(path, encoder, "task", check) for name, path in sources}, training.seed)

    if arguments.train_data is None:
        train, held_out = (
            encode_rows(tiny_rows(count, seed), encoder)
            for count, seed in ((arguments.tiny_rows, training.seed), (16, training.seed + 1))
        )
        for data in (train, held_out):
            check(data)
    else:
        train, held_out = read(arguments.train_data), arguments.eval_data and read(arguments.eval_data)
    if held_out is None:
        without_evaluation(training)
    by_task = held_out and split_by(held_out, "task_type_ids", TASK_NAMES)
    mixed = mix(train, arguments.weights, training.seed, arguments.passes)
    return packed(mixed, arguments, training), by_task


def main(arguments: list[str] | None = None) -> dict[str, float]:
    model_arguments, data_arguments, extra, training, recipe = parse_arguments(
        "train_dualspeech",
        (ModelArguments, DataArguments, CallbackArguments, TrainingArguments),
        arguments,
        defaults={
            "context_length": 1999,
            "eval_strategy": "steps",
            "eval_on_start": True,
            "eval_steps": 20,
            "logging_steps": 10,
            "max_steps": 60,
            "per_device_train_batch_size": 8,
            "learning_rate": 3e-3,
            "report_to": "none",
            "prediction_loss_only": True,  # logits of whole batches are large and nobody reads them
            "remove_unused_columns": False,  # the collator takes what the model needs, also behind a PEFT wrapper
            "label_names": ["labels"],
        },
        tiny={
            "text_model": None,
            "bf16": False,
            "per_device_train_batch_size": 8,
            "learning_rate": 3e-3,
            "warmup_steps": 3,
            "logging_steps": 5,
            "eval_steps": 20,
            "context_length": 256,
            "tiny_rows": 32,
        },
    )
    set_seed(training.seed)
    model, processor, codec = load(model_arguments, training.seed)
    train_data, eval_data = load_data(data_arguments, training, model, processor, codec)
    flattens = "flash" in (model_arguments.attn_implementation or "")
    trainer = SpeechTrainer(
        model=model,
        args=training,
        train_dataset=train_data,
        eval_dataset=eval_data,
        data_collator=DualSpeechDataCollator(processor, flatten_packs=flattens, model=model.config),
        callbacks=callbacks(extra, processor),
    )
    return run(trainer, recipe, processor)


if __name__ == "__main__":
    main()
