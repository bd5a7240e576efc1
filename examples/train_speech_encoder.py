"""Train a speech encoder from scratch by speech recognition: CTC over the characters of transcripts.

    python examples/train_speech_encoder.py --tiny --output_dir outputs/encoder
    python examples/train_speech_encoder.py --recipe speech_encoder --output_dir outputs/whisper \
        --train_data train.jsonl --eval_data eval.jsonl
    python examples/train_speech_encoder.py --recipe speech_encoder_vq --output_dir outputs/whisper_vq \
        --train_data train.jsonl --eval_data eval.jsonl --resume_from_checkpoint auto

`--encoder whisper` is the encoder that `train_us_tokenizer.py` takes as `--whisper outputs/whisper/encoder`;
`--encoder whisper_vq` the speech tokenizer of MOSS-Speech, in the folder `encoder` of the output too. A row of a JSON
Lines file has `audio` (a path) and what it says, as `targets` (rows of the task asr) or `text` (recording rows). With
`metadata.voice` in the rows for evaluation, each voice has error rates of its own. All arguments of `TrainingArguments`
can be given.
"""

from dataclasses import asdict, dataclass, field

import numpy as np
from tiny_dualspeech import WORDS, tone_speech
from transformers import TrainingArguments, set_seed

from dualspeech.training.codec_segments import DatasetEpochCallback
from dualspeech.training.configuration_speech_encoder_training import SpeechEncoderForCtcConfig
from dualspeech.training.recipe import parse_arguments
from dualspeech.training.speech_augmentation import SpeechAugmentation
from dualspeech.training.speech_encoder_training import SpeechEncoderForCtc
from dualspeech.training.speech_recognition_data import (
    SpeechRecognitionData,
    SpeechRecognitionTrainer,
    characters_of,
    check_speech_recognition_rows,
    error_rates,
    prediction_ids,
)
from dualspeech.training.training_data import parse_sources, recording_seconds
from dualspeech.training.training_run import run, without_evaluation
from dualspeech.training.validate_rows import check_rows, read_rows


@dataclass
class EncoderArguments:
    encoder: str = field(default="whisper", metadata={"help": "architecture", "choices": ["whisper", "whisper_vq"]})
    checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "output of this script to go on from; sizes and vocabulary are its own, but a Whisper encoder takes "
            "max_source_positions: first short recordings, which cost less, then all"
        },
    )
    d_model: int = field(default=192, metadata={"help": "width"})
    encoder_layers: int = field(default=4, metadata={"help": "number of layers"})
    encoder_attention_heads: int = field(default=4, metadata={"help": "heads of each"})
    encoder_ffn_dim: int = field(default=768, metadata={"help": "inner width of their feed-forward parts"})
    num_mel_bins: int = field(default=80, metadata={"help": "bins of the log-mel features"})
    max_source_positions: int | None = field(
        default=None,
        metadata={
            "help": "50 per second, 400 by default; the longest recording. Whisper computes all for each recording"
        },
    )
    dropout: float = field(default=0.1, metadata={"help": "of the layers"})
    head_layers: int = field(default=0, metadata={"help": "layers between encoder and predictions, thrown away later"})
    frames_per_output: int | None = field(
        default=None, metadata={"help": "predictions for each vector; as many as give 50 per second when omitted"}
    )
    vocabulary: str | None = field(
        default=None, metadata={"help": "characters that are learned; those of the training data when omitted"}
    )
    removed_characters: str = field(default="", metadata={"help": "characters left out of transcripts: '.,!?'"})


@dataclass
class QuantizerArguments:
    """Only for `whisper_vq`."""

    codebook_size: int = field(default=512, metadata={"help": "number of codes"})
    pooling_kernel_size: int = field(default=4, metadata={"help": "frames of 20 ms per code"})
    attention_mode: str = field(default="causal", metadata={"help": "or block", "choices": ["causal", "block"]})
    quantize_ema_decay: float = field(default=0.99, metadata={"help": "of the averages behind the codebook"})
    quantize_commit_coefficient: float = field(default=0.25, metadata={"help": "weight of the commitment loss"})
    quantize_loss_scale: float = field(default=1.0, metadata={"help": "a factor on it"})
    quantize_restart_interval: int = field(default=100, metadata={"help": "batches between restarts of unused codes"})
    quantize_restart_share: float = field(
        default=0.05, metadata={"help": "share of the mean use below which codes are restarted; 0 never restarts"}
    )
    quantize_start_steps: int = field(default=1000, metadata={"help": "optimiser steps without codebook"})
    quantize_buffer_size: int = field(default=16384, metadata={"help": "vectors for the start of the codebook"})
    kmeans_iterations: int = field(default=20, metadata={"help": "of this start"})


@dataclass
class DataArguments:
    train_data: str | None = field(default=None, metadata={"help": "files of rows, comma-separated"})
    eval_data: str | None = field(default=None, metadata={"help": "the same, for evaluation"})
    max_seconds: float | None = field(
        default=None, metadata={"help": "leave longer recordings out of training and evaluation; they are counted"}
    )
    resample: bool = field(default=False, metadata={"help": "convert recordings of other rates"})
    in_memory: bool = field(default=False, metadata={"help": "read all recordings at the start, 64 kB a second"})
    check_audio: bool = field(
        default=True,
        metadata={"help": "decode every recording before the training; otherwise heads of files are read"},
    )
    tiny_rows: int = field(default=64, metadata={"help": "generated recordings without train_data"})


TINY = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "max_source_positions": 100,
    "codebook_size": 16,
    "quantize_start_steps": 10,
    "quantize_buffer_size": 512,
    "quantize_restart_interval": 5,
    "dropout": 0.0,
    "head_layers": 0,
    "per_device_train_batch_size": 8,
    "learning_rate": 3e-3,
    "warmup_steps": 2,
    "logging_steps": 5,
    "eval_steps": 20,
    "dataloader_num_workers": 0,
    "bf16": False,
}


def tiny_rows(count: int, seed: int) -> list[dict]:
    """Recording rows of one to three words, a tone each, by three voices."""
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        words = [list(WORDS)[j] for j in draw.integers(len(WORDS), size=draw.integers(1, 4))]
        voice = int(draw.integers(1, 4))
        audio = {"array": tone_speech(words, voice, rate=16000), "sampling_rate": 16000}
        rows.append({"audio": audio, "text": " ".join(words), "metadata": {"voice": f"voice{voice}"}})
    return rows


def load(
    encoder: EncoderArguments, quantizer: QuantizerArguments, vocabulary: list[str], accumulation: int = 1
) -> SpeechEncoderForCtc:
    """A new model, or that of a checkpoint."""
    if encoder.checkpoint is not None:
        model = SpeechEncoderForCtc.from_pretrained(encoder.checkpoint)
        if encoder.max_source_positions is not None:
            model.resize_positions(encoder.max_source_positions)
        return model
    fields = asdict(encoder)
    fields["max_source_positions"] = encoder.max_source_positions or 400
    kind = fields.pop("encoder")
    head = {name: fields.pop(name) for name in ("head_layers", "frames_per_output", "removed_characters")}
    del fields["checkpoint"], fields["vocabulary"]
    if kind == "whisper_vq":
        values = asdict(quantizer)
        head["quantize_start_batches"] = max(1, values.pop("quantize_start_steps") * accumulation)
        names = ("quantize_restart_share", "quantize_buffer_size", "kmeans_iterations")
        head |= {name: values.pop(name) for name in names}
        fields |= {"quantize_vocab_size": values.pop("codebook_size"), **values}
    config = SpeechEncoderForCtcConfig(encoder_config={"model_type": kind, **fields}, vocabulary=vocabulary, **head)
    return SpeechEncoderForCtc(config)


def read(text: str | None, count: int, seed: int) -> list[dict]:
    """Rows of files, or `count` generated ones."""
    rows = tiny_rows(count, seed) if text is None else []
    for path in [] if text is None else parse_sources(text).values():
        check_rows(path)
        rows += read_rows(path)
    return rows


def shorter(rows: list[dict], max_seconds: float | None) -> list[dict]:
    """`rows` without recordings of more than `max_seconds`."""
    if max_seconds is None:
        return rows
    kept = [row for row in rows if recording_seconds(row["audio"]) <= max_seconds]
    print(f"left out: {len(rows) - len(kept)} of {len(rows)} recordings, longer than {max_seconds} s")
    return kept


def main(arguments: list[str] | None = None) -> dict[str, float]:
    encoder, quantizer, augmentation, data_arguments, training, recipe = parse_arguments(
        "train_speech_encoder",
        (EncoderArguments, QuantizerArguments, SpeechAugmentation, DataArguments, TrainingArguments),
        arguments,
        defaults={
            "eval_strategy": "steps",
            "eval_steps": 500,
            "logging_steps": 50,
            "max_steps": 5000,
            "per_device_train_batch_size": 32,
            "per_device_eval_batch_size": 32,
            "learning_rate": 1e-3,
            "warmup_steps": 500,
            "report_to": "none",
            "remove_unused_columns": False,  # rows are read as they are asked for
        },
        tiny=TINY,
    )
    set_seed(training.seed)
    if data_arguments.train_data is None and not recipe.tiny:
        raise ValueError("`train_data` is missing: give a file of rows, or --tiny for generated tones")
    train_rows = read(data_arguments.train_data, data_arguments.tiny_rows, training.seed)
    vocabulary = sorted(set(encoder.vocabulary or characters_of(train_rows, encoder.removed_characters)))
    train_rows = shorter(train_rows, data_arguments.max_seconds)
    model = load(encoder, quantizer, vocabulary, training.gradient_accumulation_steps)
    resample = data_arguments.resample

    def data_of(rows: list[dict], is_training: bool = False) -> SpeechRecognitionData:
        lengths = check_speech_recognition_rows(
            rows,
            model.config,
            resample,
            decode=data_arguments.check_audio,
            fastest=augmentation.fastest if is_training else 1.0,
        )
        changes = {"augmentation": augmentation, "seed": training.seed} if is_training else {}
        in_memory = data_arguments.in_memory
        return SpeechRecognitionData(
            rows, model.config, resample=resample, lengths=lengths, in_memory=in_memory, **changes
        )

    by_voice: dict[str, list[dict]] = {}
    if recipe.tiny or data_arguments.eval_data is not None:
        for row in shorter(read(data_arguments.eval_data, 24, training.seed + 1), data_arguments.max_seconds):
            by_voice.setdefault(str((row.get("metadata") or {}).get("voice", "unknown")), []).append(row)
    else:
        without_evaluation(training)
    voices = {voice: data_of(rows) for voice, rows in sorted(by_voice.items())}
    trainer = SpeechRecognitionTrainer(
        model=model,
        args=training,
        train_dataset=data_of(train_rows, is_training=True),
        eval_dataset=(next(iter(voices.values())) if len(voices) == 1 else voices) or None,
        data_collator=SpeechRecognitionData.collate,
        compute_metrics=error_rates(model.config),
        preprocess_logits_for_metrics=prediction_ids,
        sides={name: [f"{voice}_{name}" for voice in voices] for name in ("wer", "cer")},
        callbacks=[DatasetEpochCallback()],
    )
    return run(trainer, recipe)


if __name__ == "__main__":
    main()
