"""Train CAM++, the speaker encoder, to tell speakers apart with `transformers.Trainer`.

    python examples/train_speaker_encoder.py --tiny --output_dir outputs/speakers
    python examples/train_speaker_encoder.py --recipe campplus_small --use_cpu --output_dir outputs/speakers \
        --train_data train.jsonl --eval_data eval.jsonl
    torchrun --nproc_per_node 4 examples/train_speaker_encoder.py --recipe campplus --output_dir outputs/speakers \
        --train_data train.jsonl --eval_data eval.jsonl --noise_data musan.jsonl

A row of a JSON Lines file has `audio`, a path, and `speaker`, a name. The evaluation takes whole recordings, several of a
speaker: `eval_equal_error_rate` is measured over all pairs of them, also where their speakers are not those of the training
data, `eval_accuracy` over those that are. All arguments of `TrainingArguments` can be given; `--resume_from_checkpoint
auto` goes on exactly where a training stopped. The encoder alone, as `AutoModel.from_pretrained` loads it, is the folder
`speaker_encoder` of the output and of every checkpoint.
"""

from dataclasses import asdict, dataclass, field

import numpy as np
from tiny_dualspeech import WORDS, tone_speech
from transformers import TrainingArguments, set_seed

from dualspeech import CamPPlusConfig, CamPPlusModel
from dualspeech.training.configuration_speaker_training import SpeakerTrainingConfig
from dualspeech.training.example_checks import check_recording_rows
from dualspeech.training.recipe import parse_arguments
from dualspeech.training.speaker_segments import SpeakerSegments, check_speaker_rows, speaker_names
from dualspeech.training.speaker_trainer import SpeakerTrainer
from dualspeech.training.speaker_training import SpeakerEncoderForTraining
from dualspeech.training.training_run import num_steps, run, without_evaluation
from dualspeech.training.validate_rows import check_rows, read_rows


@dataclass
class EncoderArguments:
    speaker_encoder: str | None = field(
        default=None, metadata={"help": "checkpoint to train on instead of a new encoder; the sizes are then its own"}
    )
    sampling_rate: int = field(default=16000, metadata={"help": "in Hz"})
    num_mel_bins: int = field(default=80, metadata={"help": "of the features"})
    embedding_size: int = field(default=512, metadata={"help": "of the speaker vectors"})
    growth_rate: int = field(default=32, metadata={"help": "channels that each dense layer appends"})
    bottleneck_multiplier: int = field(default=4, metadata={"help": "width of a dense layer in units of growth_rate"})
    init_channels: int = field(default=128, metadata={"help": "channels in front of the dense blocks"})
    head_channels: int = field(default=32, metadata={"help": "channels of the two-dimensional convolutions"})
    block_layers: list[int] = field(default_factory=lambda: [12, 24, 16], metadata={"help": "layers per dense block"})
    block_dilations: list[int] = field(
        default_factory=lambda: [1, 2, 2], metadata={"help": "dilation per dense block"}
    )
    segment_length: int = field(default=100, metadata={"help": "frames of 20 ms that share a local context"})
    batch_norm_momentum: float = field(default=0.1, metadata={"help": "weight of a batch in the running statistics"})


@dataclass
class LossArguments:
    scale: float = field(default=32.0, metadata={"help": "of the cosines"})
    margin: float = field(default=0.2, metadata={"help": "in radians"})
    margin_start: float = field(default=0.2, metadata={"help": "part of the training before the margin grows"})
    margin_full: float = field(default=0.4, metadata={"help": "part of the training before it is whole"})

    def __post_init__(self):
        if not 0 <= self.margin_start <= self.margin_full <= 1:
            raise ValueError(
                "`margin_start` and `margin_full` must be parts of the training, from 0 to 1 and in this order, "
                f"got {self.margin_start} and {self.margin_full}"
            )


@dataclass
class DataArguments:
    train_data: str | None = field(
        default=None, metadata={"help": "JSON Lines or Parquet of rows with `audio` and `speaker`"}
    )
    eval_data: str | None = field(default=None, metadata={"help": "the same, for evaluation"})
    noise_data: str | None = field(
        default=None, metadata={"help": "rows with `audio`: recorded noise; generated noise by default"}
    )
    noise_probability: float = field(default=0.5, metadata={"help": "of a crop with noise"})
    min_snr: float = field(default=0.0, metadata={"help": "lowest ratio of speech to noise in dB"})
    max_snr: float = field(default=15.0, metadata={"help": "highest ratio of speech to noise in dB"})
    crop_seconds: float = field(default=3.0, metadata={"help": "of a training crop; shorter recordings are repeated"})
    min_seconds: float = field(default=0.5, metadata={"help": "of the shortest accepted recording"})
    resample: bool = field(default=False, metadata={"help": "convert recordings of other rates"})
    channel: int | None = field(default=None, metadata={"help": "channel to take of recordings with several"})
    check_audio: bool = field(
        default=True,
        metadata={"help": "decode every recording before the training; otherwise heads of files are read"},
    )
    tiny_rows: int = field(default=64, metadata={"help": "generated recordings with --tiny"})


TINY = {
    "num_mel_bins": 40,
    "embedding_size": 32,
    "growth_rate": 16,
    "bottleneck_multiplier": 2,
    "init_channels": 16,
    "head_channels": 4,
    "block_layers": [2, 2, 2],
    "batch_norm_momentum": 0.4,
    "crop_seconds": 0.8,
    "min_seconds": 0.2,
    "noise_probability": 0.25,
    "min_snr": 15.0,
    "max_snr": 30.0,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "optim": "adamw_torch",
    "optim_args": None,
    "learning_rate": 1e-2,
    "weight_decay": 0.0,
    "warmup_steps": 0,
    "logging_steps": 5,
    "eval_strategy": "no",
    "eval_on_start": True,
    "save_strategy": "no",
    "dataloader_num_workers": 0,
    "bf16": False,
}
TINY_VOICES = (1, 2, 4)
UNSEEN_VOICE = 8


def tiny_rows(count: int, seed: int, voices: tuple[int, ...]) -> list[dict]:
    """Recordings of two to four words with pauses, by speakers with different numbers of harmonics, in turns."""
    draw = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        words = [list(WORDS)[j] for j in draw.integers(len(WORDS), size=draw.integers(2, 5))]
        voice = voices[number % len(voices)]
        # without a pause, the mean over the recording takes a lasting tone away
        spoken = [np.pad(tone_speech([word], voice, 16000), (0, 1600)) for word in words]
        audio = {"array": np.concatenate(spoken), "sampling_rate": 16000}
        rows.append({"audio": audio, "speaker": f"harmonics {voice}"})
    return rows


def load(encoder: EncoderArguments, losses: LossArguments, speakers: list[str]) -> SpeakerEncoderForTraining:
    """The encoder, new or from a checkpoint, with new directions of the speakers."""
    sizes, fields = asdict(encoder), {"scale": losses.scale, "margin": losses.margin, "speakers": speakers}
    path, fields["batch_norm_momentum"] = sizes.pop("speaker_encoder"), sizes.pop("batch_norm_momentum")
    if path is not None:
        return SpeakerEncoderForTraining.from_encoder(CamPPlusModel.from_pretrained(path), **fields)
    return SpeakerEncoderForTraining(SpeakerTrainingConfig(encoder_config=CamPPlusConfig(**sizes), **fields))


def main(arguments: list[str] | None = None) -> dict[str, float]:
    encoder_arguments, loss_arguments, data_arguments, training_arguments, recipe = parse_arguments(
        "train_speaker_encoder",
        (EncoderArguments, LossArguments, DataArguments, TrainingArguments),
        arguments,
        defaults={"report_to": "none", "dataloader_drop_last": True},
        tiny=TINY,
    )
    set_seed(training_arguments.seed)
    if data_arguments.train_data is None and not recipe.tiny:
        raise ValueError("`train_data` is missing: give a file of rows, or --tiny for generated tones")
    rate = encoder_arguments.sampling_rate
    if encoder_arguments.speaker_encoder is not None:
        rate = CamPPlusConfig.from_pretrained(encoder_arguments.speaker_encoder).sampling_rate
    taken = {"resample": data_arguments.resample, "channel": data_arguments.channel}

    def rows_of(path: str | None, count: int, training: bool) -> list[dict]:
        voices = TINY_VOICES if training else (*TINY_VOICES, UNSEEN_VOICE)
        rows = tiny_rows(count, training_arguments.seed + (not training), voices) if path is None else read_rows(path)
        if path is not None:
            check_rows(rows, kind="recording")
        checked = {"min_seconds": data_arguments.min_seconds, "decode": data_arguments.check_audio}
        check_speaker_rows(rows, rate, pairs=not training, **checked, **taken)
        return rows

    rows, eval_rows, noise_rows = rows_of(data_arguments.train_data, data_arguments.tiny_rows, True), None, None
    if data_arguments.eval_data is not None or recipe.tiny:
        eval_rows = rows_of(data_arguments.eval_data, 16, False)
    else:
        without_evaluation(training_arguments)
    if data_arguments.noise_data is not None:
        noise_rows = read_rows(data_arguments.noise_data)
        check_rows(noise_rows, kind="recording")
        check_recording_rows(noise_rows, rate, decode=data_arguments.check_audio, **taken)
    speakers = speaker_names(rows)
    model = load(encoder_arguments, loss_arguments, speakers)
    config = model.config.encoder_config
    taken |= {"min_seconds": data_arguments.min_seconds, "seed": training_arguments.seed}
    crops = SpeakerSegments(
        rows,
        config,
        speakers,
        round(data_arguments.crop_seconds * rate),
        noise_probability=data_arguments.noise_probability,
        snr=(data_arguments.min_snr, data_arguments.max_snr),
        noise_rows=noise_rows,
        **taken,
    )
    whole = (
        None if eval_rows is None else SpeakerSegments(eval_rows, config, speaker_names(eval_rows, speakers), **taken)
    )
    trainer = SpeakerTrainer(
        model=model,
        args=training_arguments,
        train_dataset=crops,
        eval_dataset=whole,
    )
    batches = num_steps(trainer) * training_arguments.gradient_accumulation_steps
    model.config.margin_full_batches = round(loss_arguments.margin_full * batches)
    model.config.margin_start_batches = round(loss_arguments.margin_start * batches)
    metrics = run(trainer, recipe)
    if trainer.is_world_process_zero() and whole is not None:
        print(f"equal error rate {100 * metrics['eval_equal_error_rate']:.2f} %")
    return metrics


if __name__ == "__main__":
    main()
