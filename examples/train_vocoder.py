"""Train HiFT, the vocoder of MOSS-Speech and CosyVoice 2, against its discriminators with `transformers.Trainer`.

    python examples/train_vocoder.py --tiny --output_dir outputs/vocoder
    torchrun --nproc_per_node 8 examples/train_vocoder.py --recipe hift --output_dir outputs/vocoder \
        --train_data train.jsonl --eval_data eval.jsonl --f0_file train-f0.safetensors
    python examples/train_vocoder.py --recipe hift_small --output_dir outputs/small --train_data train.jsonl
    python examples/train_vocoder.py --recipe hift --vocoder path/to/vocoder --learning_rate 5e-5 --max_steps 20000 \
        --global_batch_size 20 --train_data voice.jsonl --output_dir outputs/voice

A row of a JSON Lines file has `audio`: a path. f0 of all recordings is found before the training, and kept in `--f0_file`
for the next time (and for other processes, each of which otherwise finds it again). All arguments of `TrainingArguments`
can be given; `--resume_from_checkpoint auto` goes on exactly where a training stopped. The vocoder alone, as
`AutoModel.from_pretrained` loads it, is the folder `vocoder` of the output and of every checkpoint.
"""

from contextlib import nullcontext
from dataclasses import asdict, dataclass, field

import numpy as np
from transformers import Trainer, TrainingArguments, set_seed

from dualspeech import HiFTConfig, HiFTModel
from dualspeech.training.codec_segments import DatasetEpochCallback
from dualspeech.training.configuration_hift_training import HiFTTrainingConfig
from dualspeech.training.example_checks import check_recording_rows
from dualspeech.training.fundamental_frequency import recordings_f0
from dualspeech.training.hift_training import HiFTForTraining
from dualspeech.training.loss_parts import LossPartsMixin
from dualspeech.training.recipe import parse_arguments
from dualspeech.training.trainer import LogBeforeSaving
from dualspeech.training.training_run import run
from dualspeech.training.validate_rows import check_rows, read_rows
from dualspeech.training.vocoder_segments import VocoderSegments


@dataclass
class VocoderArguments:
    vocoder: str | None = field(
        default=None, metadata={"help": "checkpoint to fine-tune instead of a new vocoder; the sizes are then its own"}
    )
    sampling_rate: int = field(default=24000, metadata={"help": "in Hz"})
    num_mel_bins: int = field(default=80, metadata={"help": "bins of the mel spectrogram"})
    upsample_rates: list[int] = field(
        default_factory=lambda: [8, 5, 3], metadata={"help": "their product times 4 is the samples per mel frame"}
    )
    upsample_kernel_sizes: list[int] = field(
        default_factory=lambda: [16, 11, 7], metadata={"help": "of the up-sampling; the rates plus even numbers"}
    )
    upsample_initial_channel: int = field(default=512, metadata={"help": "channels; every up-sampling halves them"})
    resblock_kernel_sizes: list[int] = field(
        default_factory=lambda: [3, 7, 11], metadata={"help": "of the parallel residual blocks"}
    )
    resblock_dilation_sizes: list[int] = field(
        default_factory=lambda: [1, 3, 5], metadata={"help": "inside every residual block"}
    )
    source_resblock_kernel_sizes: list[int] = field(
        default_factory=lambda: [7, 7, 11], metadata={"help": "of the residual blocks of the excitation, one per rate"}
    )
    f0_hidden_size: int = field(default=512, metadata={"help": "width of the f0 predictor"})


@dataclass
class LossArguments:
    periods: list[int] = field(
        default_factory=lambda: [2, 3, 5, 7, 11], metadata={"help": "of the period discriminators"}
    )
    period_channels: list[int] = field(
        default_factory=lambda: [32, 128, 512, 1024, 1024], metadata={"help": "of their convolutions"}
    )
    resolution_windows: list[int] = field(
        default_factory=lambda: [1024, 2048, 512], metadata={"help": "of the spectrogram discriminators"}
    )
    resolution_channels: int = field(default=64, metadata={"help": "of their convolutions"})
    dac_windows: list[int] = field(default_factory=list, metadata={"help": "of band discriminators of DAC; none"})
    dac_channels: int = field(default=32, metadata={"help": "of their convolutions"})
    mel_loss_windows: list[int] | None = field(
        default=None, metadata={"help": "of the mel spectrograms of the loss, in samples; four hops by default"}
    )
    mel_loss_bins: int = field(default=80, metadata={"help": "their bins"})
    mel_loss_weight: float = field(default=45.0, metadata={"help": "weight of the mel distance"})
    adversarial_loss_weight: float = field(default=1.0, metadata={"help": "weight of the adversarial loss"})
    feature_loss_weight: float = field(default=2.0, metadata={"help": "weight of the feature matching loss"})
    relativistic_loss_weight: float = field(default=1.0, metadata={"help": "weight of the relativistic loss"})
    relativistic_tau: float = field(default=0.04, metadata={"help": "where that loss is cut off"})
    f0_loss_weight: float = field(default=1.0, metadata={"help": "weight of the distance of f0 in Hz"})
    mel_warmup_steps: int = field(default=0, metadata={"help": "optimiser steps without discriminators"})
    target_f0_steps: int = field(default=0, metadata={"help": "optimiser steps with the true f0 in the excitation"})


@dataclass
class DataArguments:
    train_data: str | None = field(default=None, metadata={"help": "JSON Lines or Parquet of rows with `audio`"})
    eval_data: str | None = field(default=None, metadata={"help": "the same, for evaluation"})
    segment_frames: int = field(default=51, metadata={"help": "mel frames of a training segment"})
    max_frequency: float = field(default=8000.0, metadata={"help": "upper edge of the mel filters in Hz"})
    f0_file: str | None = field(default=None, metadata={"help": "safetensors file that keeps the f0 of train_data"})
    min_f0: float = field(default=65.0, metadata={"help": "lowest f0 that is looked for, in Hz"})
    max_f0: float = field(default=500.0, metadata={"help": "highest f0 that is looked for, in Hz"})
    resample: bool = field(default=False, metadata={"help": "convert recordings of other rates"})
    channel: int | None = field(default=None, metadata={"help": "channel to take of recordings with several"})
    check_audio: bool = field(
        default=True,
        metadata={"help": "decode every recording before the training; otherwise heads of files are read"},
    )
    tiny_rows: int = field(default=16, metadata={"help": "generated recordings with --tiny"})


TINY = {
    "sampling_rate": 16000,
    "upsample_rates": [5, 4, 4],
    "upsample_kernel_sizes": [11, 8, 8],
    "upsample_initial_channel": 32,
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [1, 3],
    "source_resblock_kernel_sizes": [3, 3, 3],
    "f0_hidden_size": 32,
    "periods": [2, 3],
    "period_channels": [4, 8, 16],
    "resolution_windows": [512],
    "resolution_channels": 4,
    "mel_warmup_steps": 0,
    "target_f0_steps": 10,
    "segment_frames": 12,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "learning_rate": 2e-3,
    "logging_steps": 5,
    "eval_strategy": "no",
    "eval_on_start": True,
    "save_strategy": "no",
    "dataloader_num_workers": 0,
    "bf16": False,
}


class VocoderTrainer(LossPartsMixin, Trainer):
    """The Trainer, with the parts of the loss in its logs."""


def tiny_rows(count: int, seed: int, sampling_rate: int) -> list[dict]:
    """Recordings of half a second: a gliding tone with overtones in front of noise."""
    draw, time = np.random.default_rng(seed), np.arange(sampling_rate // 2) / sampling_rate
    rows = []
    for _ in range(count):
        f0 = draw.uniform(100, 250) * (1 + draw.uniform(-0.3, 0.3) * time)
        phase = 2 * np.pi * np.cumsum(f0) / sampling_rate
        audio = 0.1 * sum(np.sin(h * phase) / h for h in range(1, 8)) * (time < 0.4)
        audio += draw.normal(size=len(time)) * np.where(time < 0.4, 0.001, 0.02)
        rows.append({"audio": {"array": audio.astype(np.float32), "sampling_rate": sampling_rate}})
    return rows


def load(vocoder: VocoderArguments, losses: LossArguments, accumulation: int) -> HiFTForTraining:
    """The vocoder, new or from a checkpoint, with new discriminators."""
    sizes, fields = asdict(vocoder), asdict(losses)
    path = sizes.pop("vocoder")
    for name in ("mel_warmup", "target_f0"):
        fields[f"{name}_batches"] = fields.pop(f"{name}_steps") * accumulation
    if path is not None:
        return HiFTForTraining.from_vocoder(HiFTModel.from_pretrained(path), **fields)
    return HiFTForTraining(HiFTTrainingConfig(vocoder_config=HiFTConfig(**sizes), **fields))


def main(arguments: list[str] | None = None) -> dict[str, float]:
    vocoder_arguments, loss_arguments, data, training_arguments, recipe = parse_arguments(
        "train_vocoder",
        (VocoderArguments, LossArguments, DataArguments, TrainingArguments),
        arguments,
        defaults={"report_to": "none", "max_grad_norm": 0.0},
        tiny=TINY,
    )
    set_seed(training_arguments.seed)
    if data.train_data is None and not recipe.tiny:
        raise ValueError("`train_data` is missing: give a file of rows, or --tiny for generated tones")
    model = load(vocoder_arguments, loss_arguments, training_arguments.gradient_accumulation_steps)
    config, least = model.config.vocoder_config, model.config.min_frames
    if data.segment_frames < least:
        raise ValueError(f"`segment_frames` must be at least {least} for these windows, got {data.segment_frames}")

    def segments(path: str | None, count: int, training: bool) -> VocoderSegments:
        seed, rate = training_arguments.seed, config.sampling_rate
        rows = tiny_rows(count, seed + (not training), rate) if path is None else read_rows(path)
        if path is not None:
            check_rows(rows, kind="recording")
        taken = {"resample": data.resample, "channel": data.channel}
        check_recording_rows(rows, rate, decode=data.check_audio, **taken)
        file = data.f0_file if training else None
        with training_arguments.main_process_first() if file else nullcontext():
            f0 = recordings_f0(rows, rate, config.hop_length, data.min_f0, data.max_f0, file=file, **taken)
        return VocoderSegments(
            rows, f0, data.segment_frames, config, data.max_frequency, training=training, seed=seed, **taken
        )

    has_evaluation = data.eval_data is not None or recipe.tiny
    trainer = VocoderTrainer(
        model=model,
        args=training_arguments,
        train_dataset=segments(data.train_data, data.tiny_rows, training=True),
        eval_dataset=segments(data.eval_data, 4, training=False) if has_evaluation else None,
        callbacks=[DatasetEpochCallback(), LogBeforeSaving()],
    )
    return run(trainer, recipe)


if __name__ == "__main__":
    main()
