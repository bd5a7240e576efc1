"""Train the flow decoder, which turns speech codes into mel spectrograms, with `transformers.Trainer`.

    python examples/train_flow_decoder.py --tiny --output_dir outputs/flow
    python examples/train_flow_decoder.py --recipe flow_decoder --codec path/to/moss-speech-codec \
        --train_data voice.jsonl --eval_data held_out.jsonl --output_dir outputs/voice
    torchrun --nproc_per_node 8 examples/train_flow_decoder.py --recipe flow_decoder --variant cosyvoice2 \
        --train_data encoded.parquet --output_dir outputs/flow --learning_rate 1e-4

A row has `audio`; codes are made of it by the frozen encoder and speaker vectors by the frozen CAM++ of `--codec` (or
`--encoder` and `--speaker_encoder`), unless the row has `codes` and `speaker_embeds`. `--encoded_file encoded.parquet`
keeps them for the next time. With `--codec` its own flow decoder is trained on (the speech output of MOSS-Speech learns
your data), and the whole codec stands in `codec` of the output. All arguments of `TrainingArguments` can be given.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tiny_dualspeech import WORDS, tone_speech
from tiny_moss_speech import tiny_moss_codec
from transformers import AutoModel, PreTrainedModel, Trainer, TrainingArguments, set_seed

from dualspeech import FlowDecoderConfig, FlowDecoderModel
from dualspeech.training.flow_examples import FlowDecoderCollator, encode_recordings
from dualspeech.training.freezing import apply_freezing
from dualspeech.training.loss_parts import LossPartsMixin
from dualspeech.training.recipe import fields_of, parse_arguments
from dualspeech.training.seeded_evaluation import SeededEvaluationMixin
from dualspeech.training.trainer import LogBeforeSaving
from dualspeech.training.training_run import run
from dualspeech.training.validate_rows import check_rows, read_rows

VARIANTS = {"moss_speech": FlowDecoderConfig, "cosyvoice2": FlowDecoderConfig.cosyvoice2}
OVERRIDES = (
    "chunk_size",
    "streaming_probability",
    "conditioning_dropout",
    "prompt_probability",
    "max_prompt_fraction",
)


@dataclass
class ModelArguments:
    codec: str | None = field(default=None, metadata={"help": "MOSS-Speech codec whose flow decoder is trained"})
    flow_decoder: str | None = field(default=None, metadata={"help": "checkpoint to start from instead"})
    encoder: str | None = field(default=None, metadata={"help": "tokenizer that makes the codes; of codec by default"})
    speaker_encoder: str | None = field(default=None, metadata={"help": "CAM++; that of codec by default"})
    variant: str = field(default="moss_speech", metadata={"help": f"a new decoder's sizes: {', '.join(VARIANTS)}"})
    flow_config: str | None = field(
        default=None, metadata={"help": "fields in which a new decoder differs, as JSON or as a mapping of a recipe"}
    )
    freezing: str = field(default="full", metadata={"help": "regular expression in names of parameters that train"})
    chunk_size: int | None = field(default=None, metadata={"help": "codes per chunk of the streaming masks"})
    streaming_probability: float | None = field(default=None, metadata={"help": "of a batch with streaming masks"})
    conditioning_dropout: float | None = field(default=None, metadata={"help": "of a row without conditions"})
    prompt_probability: float | None = field(default=None, metadata={"help": "of a row with its beginning as prompt"})
    max_prompt_fraction: float | None = field(default=None, metadata={"help": "largest part of a row as prompt"})


@dataclass
class DataArguments:
    train_data: str | None = field(default=None, metadata={"help": "JSON Lines or Parquet of rows with `audio`"})
    eval_data: str | None = field(default=None, metadata={"help": "the same, for evaluation"})
    encoded_file: str | None = field(default=None, metadata={"help": "Parquet file for the encoded training rows"})
    max_seconds: float = field(default=30.0, metadata={"help": "longest accepted recording"})
    max_frequency: float = field(default=8000.0, metadata={"help": "upper edge of the mel filters in Hz"})
    speaker: bool = field(default=True, metadata={"help": "train with speaker vectors"})
    resample: bool = field(default=False, metadata={"help": "convert recordings of other rates"})
    channel: int | None = field(default=None, metadata={"help": "channel to take of recordings with several"})
    check_audio: bool = field(
        default=True,
        metadata={"help": "decode every recording before the training; otherwise heads of files are read"},
    )
    tiny_rows: int = field(default=16, metadata={"help": "generated recordings with --tiny"})


TINY = {
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "learning_rate": 3e-3,
    "logging_steps": 5,
    "eval_strategy": "no",
    "eval_on_start": True,
    "save_strategy": "no",
    "dataloader_num_workers": 0,
    "bf16": False,
}


class FlowTrainer(SeededEvaluationMixin, LossPartsMixin, Trainer):
    """The Trainer; the loss is the mean over all frames of a step, and every evaluation draws the same noise."""


def tiny_rows(count: int, seed: int) -> list[dict]:
    """Recordings of two words, a tone each."""
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        words = [list(WORDS)[j] for j in draw.integers(len(WORDS), size=2)]
        rows.append({"audio": {"array": tone_speech(words, int(draw.integers(1, 4))), "sampling_rate": 24000}})
    return rows


def load(arguments: ModelArguments, tiny: bool) -> tuple[FlowDecoderModel, dict[str, PreTrainedModel | None]]:
    """The decoder to train, and the frozen models around it: `codec`, `encoder`, `speaker_encoder`."""
    if arguments.variant not in VARIANTS:
        raise ValueError(f"`variant` must be one of {sorted(VARIANTS)}, got {arguments.variant!r}")
    paths = {name: getattr(arguments, name) for name in ("codec", "encoder", "speaker_encoder")}
    parts = {
        name: None if path is None else AutoModel.from_pretrained(path, dtype=torch.float32)
        for name, path in paths.items()
    }
    if parts["codec"] is None and tiny:
        parts["codec"] = tiny_moss_codec()
    for name in ("encoder", "speaker_encoder"):
        if parts[name] is None and parts["codec"] is not None:
            parts[name] = getattr(parts["codec"], name)
    if arguments.flow_decoder is not None:
        model = FlowDecoderModel.from_pretrained(arguments.flow_decoder, dtype=torch.float32)
    else:
        codec = parts["codec"]
        fields = fields_of("flow_config", arguments.flow_config)
        if codec is not None and fields:
            raise ValueError("`flow_config` is for a new decoder; that of `codec` has its own sizes")
        model = codec.flow if codec is not None else FlowDecoderModel(VARIANTS[arguments.variant](**fields))
    for name in OVERRIDES:
        if getattr(arguments, name) is not None:
            setattr(model.config, name, getattr(arguments, name))
    model.config.validate()
    encoder = parts["encoder"]
    if encoder is not None and encoder.codebook_size != model.codebook_size:
        raise ValueError(
            f"`encoder` has {encoder.codebook_size} codes, but the flow decoder reads {model.codebook_size}"
        )
    return model, parts


def encode(rows: list[dict], parts: dict, data: DataArguments, device: torch.device, rate: int) -> list[dict]:
    """Rows with codes and speaker vectors; every process encodes its share."""
    encoder, speaker_encoder = parts["encoder"], parts["speaker_encoder"] if data.speaker else None
    for part in (encoder, speaker_encoder):
        if part is not None:
            part.to(device)
    state = PartialState()
    share = rows[state.process_index :: state.num_processes]
    encoded = list(encode_recordings(share, encoder, speaker_encoder, rate, data.resample, data.channel))
    if state.num_processes == 1:
        return encoded
    joined = gather_object(list(zip(range(state.process_index, len(rows), state.num_processes), encoded, strict=True)))
    return [row for _, row in sorted(joined, key=lambda pair: pair[0])]


def main(arguments: list[str] | None = None) -> dict[str, float]:
    model_arguments, data, training_arguments, recipe = parse_arguments(
        "train_flow_decoder",
        (ModelArguments, DataArguments, TrainingArguments),
        arguments,
        defaults={"report_to": "none", "remove_unused_columns": False},  # the collator reads the rows
        tiny=TINY,
    )
    set_seed(training_arguments.seed)
    if data.train_data is None and not recipe.tiny:
        raise ValueError("`train_data` is missing: give a file of rows, or --tiny for generated tones")
    model, parts = load(model_arguments, recipe.tiny)
    apply_freezing(model, model_arguments.freezing)

    collator = FlowDecoderCollator(
        model.config,
        max_frequency=data.max_frequency,
        max_seconds=data.max_seconds,
        speaker=data.speaker,
        resample=data.resample,
        channel=data.channel,
    )

    def rows_of(path: str | None, count: int, seed: int) -> list[dict]:
        rows = tiny_rows(count, seed) if path is None else read_rows(path)
        if path is not None:
            extra = ("codes", "speaker_embeds")
            check_rows([{name: row[name] for name in row if name not in extra} for row in rows], kind="recording")
        collator.check(rows, encoded=False, decode=data.check_audio)
        rows = encode(rows, parts, data, training_arguments.device, model.config.sampling_rate)
        collator.check(rows, decode=False)  # the codes too
        return rows

    train_rows = rows_of(data.train_data, data.tiny_rows, training_arguments.seed)
    has_evaluation = data.eval_data is not None or recipe.tiny
    eval_rows = rows_of(data.eval_data, 8, training_arguments.seed + 1) if has_evaluation else None
    if data.encoded_file is not None and training_arguments.process_index == 0:
        from datasets import Dataset

        Dataset.from_list(train_rows).to_parquet(data.encoded_file)
    trainer = FlowTrainer(
        model=model,
        args=training_arguments,
        data_collator=collator,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        callbacks=[LogBeforeSaving()],
    )
    metrics = run(trainer, recipe)
    if parts["codec"] is not None and trainer.is_world_process_zero():
        parts["codec"].flow, parts["codec"].config.flow_config = model, model.config
        parts["codec"].save_pretrained(Path(training_arguments.output_dir) / "codec")
    return metrics


if __name__ == "__main__":
    main()
