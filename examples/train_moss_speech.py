"""Train MOSS-Speech: both stages of pre-training, their ablations, and supervised fine-tuning.

    python examples/train_moss_speech.py --output_dir outputs/moss --recipe moss_stage1 --tiny
    accelerate launch --config_file training/launch/fsdp2.yaml examples/train_moss_speech.py --recipe moss_stage1 \
        --output_dir stage1 --train_data speech=tokens/speech --eval_data speech=tokens/dev
    accelerate launch --config_file training/launch/fsdp2.yaml examples/train_moss_speech.py --recipe moss_stage2_full \
        --output_dir stage2 --checkpoint stage1 --train_data speech=tokens/speech,text=tokens/text
    python examples/train_moss_speech.py --output_dir sft --checkpoint stage2 --train_data chats.jsonl --freezing full \
        --packing --context_length 10240

The model is a checkpoint, or a new one made of a Qwen3 model (`--text_model`), or without both a tiny random one that
learns from tones. Data are chats (`messages`) or documents (`chunks`) in JSON Lines, checked and tokenized once, or folders
of token rows. `--weights speech=0.9,text=0.1` draws rows by weight; `--passes speech=2,text=0.1` says how often each part
is seen. All arguments of `TrainingArguments` can be given.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from run_callbacks import CallbackArguments, callbacks
from tiny_moss_speech import tiny_moss_model, tiny_moss_processor, tiny_moss_rows, tiny_moss_tokenizer
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer, TrainingArguments, set_seed

from dualspeech import (
    MossSpeechDataCollator,
    MossSpeechProcessor,
    SplitLayerQwen3ForCausalLM,
)
from dualspeech.training.example_checks import check_moss_speech_examples
from dualspeech.training.freezing import apply_freezing
from dualspeech.training.layerwise_unfreezing import LayerwiseUnfreezing
from dualspeech.training.mixtures import parse_weights
from dualspeech.training.recipe import parse_arguments
from dualspeech.training.trainer import SpeechTrainer
from dualspeech.training.training_data import DataArguments, encode_rows, join, load_source, packed, parse_sources
from dualspeech.training.training_run import run, without_evaluation


@dataclass
class ModelArguments:
    checkpoint: str | None = field(default=None, metadata={"help": "MOSS-Speech checkpoint to start from"})
    text_model: str | None = field(default=None, metadata={"help": "Qwen3 checkpoint to build a new model from"})
    num_modality_layers: int = field(
        default=4, metadata={"help": "layers of each branch of a new model; 0 for no split (NF-NoSplit)"}
    )
    vocab_size: int | None = field(default=None, metadata={"help": "text ids of a new model; all by default"})
    audio_vocab_size: int = field(default=16512, metadata={"help": "audio ids of a new model"})
    processor: str | None = field(
        default=None,
        metadata={"help": "processor; that of the checkpoint, or one made for the text model, by default"},
    )
    codec: str | None = field(
        default=None, metadata={"help": "codec that encodes recordings, when a new processor is made"}
    )
    text_loss_weight: float | None = field(default=None, metadata={"help": "of the targets of the text head"})
    audio_loss_weight: float | None = field(default=None, metadata={"help": "of the targets of the audio head"})
    dtype: str = field(default="float32", metadata={"help": "of the weights that are loaded"})
    attn_implementation: str | None = field(default=None, metadata={"help": "eager, sdpa, flash_attention_2, ..."})


@dataclass
class FreezingArguments:
    freezing: str = field(
        default="full",
        metadata={"help": "full, speech_only, shared, layerwise, or a regular expression of what trains"},
    )
    unfreeze_num_layers: int | None = field(
        default=None, metadata={"help": "N of the layerwise schedule; all shared layers by default"}
    )
    unfreeze_delay_steps: int = field(default=5000, metadata={"help": "k: steps from one layer to the one before"})
    unfreeze_warmup_steps: int = field(default=2000, metadata={"help": "w: warm-up of each layer"})
    unfreeze_total_steps: int | None = field(default=None, metadata={"help": "T: steps of the training by default"})
    unfreeze_min_ratio: float = field(default=0.1, metadata={"help": "r: last learning rate over the peak"})

    def schedule(self, num_layers: int) -> LayerwiseUnfreezing | None:
        """The schedule of `num_layers` shared layers, for the policy layerwise."""
        if self.freezing != "layerwise":
            return None
        return LayerwiseUnfreezing(
            num_layers if self.unfreeze_num_layers is None else self.unfreeze_num_layers,
            self.unfreeze_delay_steps,
            self.unfreeze_warmup_steps,
            self.unfreeze_total_steps,
            self.unfreeze_min_ratio,
        )


def load(arguments: ModelArguments, seed: int) -> tuple[SplitLayerQwen3ForCausalLM, MossSpeechProcessor]:
    """Model and processor, fitting each other."""
    processor = tokenizer = None
    if arguments.processor is not None or arguments.checkpoint is not None:
        processor = AutoProcessor.from_pretrained(arguments.processor or arguments.checkpoint)
    if arguments.checkpoint is not None:
        model = AutoModelForCausalLM.from_pretrained(arguments.checkpoint, dtype=arguments.dtype)
    elif arguments.text_model is not None:
        tokenizer = AutoTokenizer.from_pretrained(arguments.text_model)
        codec = arguments.codec and AutoModel.from_pretrained(arguments.codec)
        model = SplitLayerQwen3ForCausalLM.from_text_model(
            arguments.text_model,
            arguments.num_modality_layers,
            arguments.audio_vocab_size,
            arguments.vocab_size,
            arguments.dtype,
            **speech_ids(tokenizer, codec if processor is None else processor),
        )
    else:
        layers = min(arguments.num_modality_layers, 1)
        model = tiny_moss_model(tiny_moss_tokenizer(), seed, num_modality_layers=layers)
    if arguments.attn_implementation is not None:
        model.set_attn_implementation(arguments.attn_implementation)
    for name in ("text_loss_weight", "audio_loss_weight"):
        if getattr(arguments, name) is not None:
            setattr(model.config, name, getattr(arguments, name))
    if processor is None and tokenizer is not None:
        processor = MossSpeechProcessor.from_config(model.config, tokenizer, audio_tokenizer=codec)
    elif processor is None:
        processor = tiny_moss_processor(model.config)
    return model, processor


def speech_ids(tokenizer, codec) -> dict[str, int]:
    """The ids around speech for a model with this tokenizer and the codes of `codec` (or of a processor), as fields of
    its configuration."""
    tokens = {"sosp_token_id": "<|object_ref_start|>", "modality_pad_token_id": "<think>"}
    ids = dict(zip(tokens, tokenizer.convert_tokens_to_ids(list(tokens.values())), strict=True))
    return ids if codec is None else ids | {"eosp_token_id": codec.codebook_size}


def encode(rows: list[dict], processor: MossSpeechProcessor, resample: bool = False) -> list[dict]:
    """Examples of chat rows and document rows, in their order."""
    examples: list[Any] = [None] * len(rows)
    chats = [i for i, row in enumerate(rows) if "messages" in row]
    documents = [i for i, row in enumerate(rows) if "chunks" in row]
    if len(chats) + len(documents) < len(rows):
        raise ValueError("rows must have `messages` (chats) or `chunks` (documents)")
    made = []
    if chats:
        conversations = [rows[i]["messages"] for i in chats]
        modalities = [rows[i].get("output_modality") for i in chats]
        made += processor.build_examples(conversations, modalities, resample=resample)
    if documents:
        made += processor.build_documents([rows[i]["chunks"] for i in documents], resample=resample)
    for i, example in zip([*chats, *documents], made, strict=True):
        examples[i] = example
    return examples


def load_data(arguments: DataArguments, training: TrainingArguments, model, processor) -> tuple[Any, Any]:
    """Training data, mixed and packed, and evaluation data by name of the part (`None`: there are none)."""
    encoder = partial(encode, processor=processor, resample=arguments.resample)
    if arguments.context_length is None:
        arguments.context_length = model.config.max_position_embeddings
    check = partial(check_moss_speech_examples, config=model.config, max_length=arguments.context_length)
    if arguments.train_data is None:
        names = list(parse_weights(arguments.passes or arguments.weights or "chat=1"))
        parts, held_out = (
            {name: encode_rows(tiny_moss_rows(name, count, seed), encoder) for name in names}
            for count, seed in ((arguments.tiny_rows, training.seed), (8, training.seed + 1))
        )
        for data in (*parts.values(), *held_out.values()):
            check(data)
    else:
        parts, held_out = (
            {name: load_source(path, encoder, check=check) for name, path in sources.items()}
            for sources in (
                {} if text is None else parse_sources(text) for text in (arguments.train_data, arguments.eval_data)
            )
        )
    if not held_out:
        without_evaluation(training)
    train = join(parts, training.seed, arguments.weights, arguments.passes)
    return packed(train, arguments, training), held_out or None


def main(arguments: list[str] | None = None) -> dict[str, float]:
    model_arguments, freezing, data_arguments, extra, training, recipe = parse_arguments(
        "train_moss_speech",
        (ModelArguments, FreezingArguments, DataArguments, CallbackArguments, TrainingArguments),
        arguments,
        defaults={
            "eval_strategy": "steps",
            "eval_on_start": True,
            "eval_steps": 20,
            "logging_steps": 10,
            "max_steps": 60,
            "per_device_train_batch_size": 8,
            "learning_rate": 3e-3,
            "report_to": "none",
            "prediction_loss_only": True,  # logits of whole batches are large and nobody reads them
            "remove_unused_columns": False,
        },
        tiny={
            "text_model": None,
            "bf16": False,
            "context_length": 256,
            "learning_rate": 3e-3,
            "warmup_steps": 3,
            "unfreeze_num_layers": None,
            "unfreeze_delay_steps": 4,
            "unfreeze_warmup_steps": 3,
            "logging_steps": 5,
            "eval_steps": 20,
            "tiny_rows": 32,
        },
    )
    set_seed(training.seed)
    model, processor = load(model_arguments, training.seed)
    apply_freezing(model, freezing.freezing)
    train_data, eval_data = load_data(data_arguments, training, model, processor)
    trainer = SpeechTrainer(
        model=model,
        args=training,
        train_dataset=train_data,
        eval_dataset=eval_data,
        data_collator=MossSpeechDataCollator(
            processor, flatten_packs="flash" in (model_arguments.attn_implementation or ""), model=model
        ),
        sides={
            "understanding_loss": [f"{name}_text_loss" for name in eval_data or ()],
            "speech_loss": [f"{name}_audio_loss" for name in eval_data or ()],
        },
        callbacks=callbacks(extra, processor),
        unfreezing=freezing.schedule(model.config.num_shared_layers),
    )
    return run(trainer, recipe, processor)


if __name__ == "__main__":
    main()
