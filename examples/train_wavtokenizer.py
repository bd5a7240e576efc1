"""Train WavTokenizer, the acoustic codec of DualSpeechLM, against its discriminators with `transformers.Trainer`.

    python examples/train_wavtokenizer.py --tiny --output_dir outputs/wavtokenizer
    torchrun --nproc_per_node 8 examples/train_wavtokenizer.py --recipe wavtokenizer_40 --output_dir outputs/codec \
        --train_data train.jsonl --eval_data eval.jsonl
    python examples/train_wavtokenizer.py --recipe wavtokenizer_40 --codec path/to/codec --freeze_encoder \
        --learning_rate 5e-5 --max_steps 20000 --global_batch_size 40 --train_data voice.jsonl --output_dir outputs/voice

A row of a JSON Lines file has `audio`: a path. The third command teaches a trained codec a new voice or room and keeps
the codes of every recording, so that language models trained on its codes still fit. All arguments of
`TrainingArguments` can be given; `--resume_from_checkpoint auto` goes on exactly where a training stopped. The codec
alone, as `AutoModel.from_pretrained` loads it, is the folder `codec` of the output and of every checkpoint.
"""

from dataclasses import asdict, dataclass, field

import numpy as np
from tiny_dualspeech import WORDS, tone_speech
from transformers import Trainer, TrainingArguments, set_seed

from dualspeech import WavTokenizerConfig, WavTokenizerModel
from dualspeech.training.codec_segments import CodecSegments, DatasetEpochCallback
from dualspeech.training.configuration_wavtokenizer_training import WavTokenizerTrainingConfig
from dualspeech.training.example_checks import check_recording_rows
from dualspeech.training.loss_parts import LossPartsMixin
from dualspeech.training.recipe import parse_arguments
from dualspeech.training.trainer import LogBeforeSaving
from dualspeech.training.training_run import run
from dualspeech.training.validate_rows import check_rows, read_rows
from dualspeech.training.wavtokenizer_training import WavTokenizerForTraining


@dataclass
class CodecArguments:
    codec: str | None = field(
        default=None, metadata={"help": "checkpoint to fine-tune instead of a new codec; the sizes are then its own"}
    )
    freeze_encoder: bool = field(default=False, metadata={"help": "keep encoder and codebook; train the decoder only"})
    encoder_initialization: str = field(
        default="released",
        metadata={
            "help": "of a new encoder: as released, whose vectors hardly differ at the start (large batches sort that "
            "out), or he, with vectors of size 3 that differ; then commitment_loss_weight is to be near 1",
            "choices": ["released", "he"],
        },
    )
    sampling_rate: int = field(default=24000, metadata={"help": "in Hz"})
    upsampling_ratios: list[int] = field(
        default_factory=lambda: [6, 5, 5, 4], metadata={"help": "strides; their product is the samples per code"}
    )
    num_filters: int = field(default=32, metadata={"help": "channels of the first encoder convolution"})
    hidden_size: int = field(default=512, metadata={"help": "of the encoder's output and of the codebook"})
    codebook_size: int = field(default=4096, metadata={"help": "number of codes"})
    kmeans_iterations: int = field(default=200, metadata={"help": "of the start of the codebook"})
    vq_decay: float = field(default=0.99, metadata={"help": "of the averages behind the codebook"})
    dead_code_threshold: float = field(default=2.0, metadata={"help": "count below which codes are restarted"})
    decoder_hidden_size: int = field(default=768, metadata={"help": "width of the decoder"})
    decoder_intermediate_size: int = field(default=2304, metadata={"help": "inner width of its ConvNeXt blocks"})
    decoder_num_layers: int = field(default=12, metadata={"help": "ConvNeXt blocks"})


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
    dac_windows: list[int] = field(
        default_factory=lambda: [2048, 1024, 512], metadata={"help": "of the band discriminators of DAC"}
    )
    dac_channels: int = field(default=32, metadata={"help": "of their convolutions"})
    dac_discriminators: bool = field(default=True, metadata={"help": "train against the discriminators of DAC too"})
    mel_loss_weight: float = field(default=45.0, metadata={"help": "weight of the mel distance"})
    commitment_loss_weight: float = field(default=1000.0, metadata={"help": "weight of the commitment loss"})
    adversarial_loss_weight: float = field(default=1.0, metadata={"help": "weight of the adversarial loss"})
    feature_loss_weight: float = field(default=1.0, metadata={"help": "weight of the feature matching loss"})
    resolution_loss_weight: float = field(default=1.0, metadata={"help": "weight of the spectrogram discriminators"})
    mel_n_fft: int = field(default=1024, metadata={"help": "window of the mel spectrogram in samples"})
    mel_hop_length: int = field(default=256, metadata={"help": "its shift in samples"})
    num_mel_bins: int = field(default=100, metadata={"help": "its bins"})
    mel_warmup_steps: int = field(default=0, metadata={"help": "optimiser steps without discriminators"})


@dataclass
class DataArguments:
    train_data: str | None = field(default=None, metadata={"help": "JSON Lines or Parquet of rows with `audio`"})
    eval_data: str | None = field(default=None, metadata={"help": "the same, for evaluation"})
    segment_samples: int = field(default=72000, metadata={"help": "samples of a training segment"})
    resample: bool = field(default=False, metadata={"help": "convert recordings of other rates"})
    channel: int | None = field(default=None, metadata={"help": "channel to take of recordings with several"})
    check_audio: bool = field(
        default=True,
        metadata={"help": "decode every recording before the training; otherwise heads of files are read"},
    )
    tiny_rows: int = field(default=24, metadata={"help": "generated recordings with --tiny"})


TINY = {
    "num_filters": 4,
    "hidden_size": 24,
    "codebook_size": 48,
    "kmeans_iterations": 10,
    "decoder_hidden_size": 64,
    "decoder_intermediate_size": 96,
    "decoder_num_layers": 2,
    "periods": [2, 3],
    "period_channels": [4, 8, 16],
    "resolution_windows": [512],
    "resolution_channels": 4,
    "dac_windows": [256],
    "dac_channels": 4,
    "mel_warmup_steps": 0,
    "segment_samples": 4800,
    "per_device_train_batch_size": 2,
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


class CodecTrainer(LossPartsMixin, Trainer):
    """The Trainer, with the parts of the loss in its logs."""


def tiny_rows(count: int, seed: int) -> list[dict]:
    """Recordings of one to three words, a tone each."""
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        words = [list(WORDS)[j] for j in draw.integers(len(WORDS), size=draw.integers(1, 4))]
        rows.append({"audio": {"array": tone_speech(words, int(draw.integers(1, 4))), "sampling_rate": 24000}})
    return rows


def load(codec: CodecArguments, losses: LossArguments, accumulation: int) -> WavTokenizerForTraining:
    """The codec, new or from a checkpoint, with new discriminators."""
    sizes, fields = asdict(codec), asdict(losses)
    path, freeze_encoder = sizes.pop("codec"), sizes.pop("freeze_encoder")
    initialization = sizes.pop("encoder_initialization")
    if not fields.pop("dac_discriminators"):
        fields["dac_windows"] = []
    fields["mel_warmup_batches"] = fields.pop("mel_warmup_steps") * accumulation
    if path is not None:
        model = WavTokenizerModel.from_pretrained(path)
        return WavTokenizerForTraining.from_codec(model, freeze_encoder=freeze_encoder, **fields)
    if freeze_encoder:
        raise ValueError("`freeze_encoder` needs a trained codec; give one with `codec`")
    config = WavTokenizerConfig(codebook_dim=codec.hidden_size, **sizes)
    if initialization == "he":
        return WavTokenizerForTraining.from_codec(WavTokenizerModel(config), **fields)
    return WavTokenizerForTraining(WavTokenizerTrainingConfig(codec_config=config, **fields))


def main(arguments: list[str] | None = None) -> dict[str, float]:
    codec_arguments, loss_arguments, data_arguments, training_arguments, recipe = parse_arguments(
        "train_wavtokenizer",
        (CodecArguments, LossArguments, DataArguments, TrainingArguments),
        arguments,
        defaults={"report_to": "none", "max_grad_norm": 0.0},
        tiny=TINY,
    )
    set_seed(training_arguments.seed)
    if data_arguments.train_data is None and not recipe.tiny:
        raise ValueError("`train_data` is missing: give a file of rows, or --tiny for generated tones")
    model = load(codec_arguments, loss_arguments, training_arguments.gradient_accumulation_steps)

    def segments(path: str | None, count: int, training: bool) -> CodecSegments:
        seed = training_arguments.seed
        rows = tiny_rows(count, seed + (not training)) if path is None else read_rows(path)
        if path is not None:
            check_rows(rows, kind="recording")
        rate = model.config.codec_config.sampling_rate
        taken = {"resample": data_arguments.resample, "channel": data_arguments.channel}
        check_recording_rows(rows, rate, decode=data_arguments.check_audio, **taken)
        return CodecSegments(rows, data_arguments.segment_samples, rate, training=training, seed=seed, **taken)

    has_evaluation = data_arguments.eval_data is not None or recipe.tiny
    trainer = CodecTrainer(
        model=model,
        args=training_arguments,
        train_dataset=segments(data_arguments.train_data, data_arguments.tiny_rows, training=True),
        eval_dataset=segments(data_arguments.eval_data, 8, training=False) if has_evaluation else None,
        callbacks=[DatasetEpochCallback(), LogBeforeSaving()],
    )
    return run(trainer, recipe)


if __name__ == "__main__":
    main()
