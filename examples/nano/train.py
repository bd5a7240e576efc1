"""Train both nano checkpoints: every stage with the project's own scripts and the recipes in this folder.

    python examples/nano/train.py --human_digits free-spoken-digit-dataset/recordings
    python examples/nano/train.py --list                        # the stages and their commands
    python examples/nano/train.py --stages codec,speech_encoder # these alone

A stage that is complete is skipped, and an interrupted one goes on where its last checkpoint stands, so the same command
can be given until it is done. Everything stands in `--folder`, the checkpoints in `dualspeech-nano` and `moss-speech-nano`
below it. Each command can also be run by hand.
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
EXAMPLES = HERE.parent
TASKS = ("asr", "s2tt", "ser", "sqa", "tts", "t2st", "vc", "sc")


@dataclass(frozen=True)
class Stage:
    """One command; `needs` are the stages that it builds on."""

    name: str
    command: list[str]
    needs: tuple[str, ...] = ()


def script(name: str, recipe: str | None, output: str, *arguments: str) -> list[str]:
    """A training script of the project with a recipe of this folder."""
    command = [str((HERE if name == "train_text_model" else EXAMPLES) / f"{name}.py")]
    command += ["--recipe", str(HERE / f"{recipe}.yaml")] if recipe else []
    return [*command, *arguments, "--output_dir", output, "--resume_from_checkpoint", "auto"]


def stages(folder: str, human_digits: str | None = None, scale: float = 1.0) -> list[Stage]:
    """All stages, in an order in which they can be run."""

    def at(name: str) -> str:
        return f"{folder}/{name}"

    def rows(split: str, *names: str) -> str:
        return ",".join(at(f"corpus/rows/{split}/{name}.jsonl") for name in names)

    def both(*names: str) -> tuple[str, ...]:
        return "--train_data", rows("train", *names), "--eval_data", rows("validation", *names)

    def assemble(what: str, output: str, **parts: str) -> list[str]:
        given = [text for name, path in parts.items() for text in (f"--{name}", path)]
        return [str(HERE / "assemble.py"), what, *given, "--output", output]

    def prepare(kind: str, processor: str, split: str, name: str, *more: str) -> list[str]:
        module = f"dualspeech.training.prepare_{kind}"
        output = at(f"tokens_{kind}/{split}/{name}")
        return ["-m", module, rows(split, name), "--processor", processor, "--output", output, *more]

    texts = ("--train_data", at("corpus/rows/train"), "--eval_data", at("corpus/rows/validation"))
    drills = ("--lr_scheduler_type", "constant_with_warmup", "--max_steps")
    corpus = [str(HERE / "make_corpus.py"), "--output", at("corpus"), "--scale", str(scale)]
    made = [
        Stage("corpus", corpus + (["--human_digits", human_digits] if human_digits else [])),
        Stage(
            "text_copying",
            script("train_text_model", None, at("text_copying"), *texts, "--texts", "copying", *drills, "300"),
            ("corpus",),
        ),
        Stage(
            "text_reading",
            script(
                *("train_text_model", None, at("text_reading"), *texts, "--texts", "reading", *drills, "800"),
                *("--checkpoint", at("text_copying")),
            ),
            ("text_copying",),
        ),
        Stage(
            "text_model",
            script("train_text_model", None, at("text_model"), *texts, "--checkpoint", at("text_reading")),
            ("text_reading",),
        ),
        Stage(
            "speech_encoder_short",
            script("train_speech_encoder", "speech_encoder_short", at("speech_encoder_short"), *both("transcripts")),
            ("corpus",),
        ),
        Stage(
            "speech_encoder",
            script(
                *("train_speech_encoder", "speech_encoder", at("speech_encoder"), *both("transcripts")),
                *("--checkpoint", at("speech_encoder_short")),
            ),
            ("speech_encoder_short",),
        ),
        Stage(
            "us_tokenizer",
            script(
                *("train_us_tokenizer", "us_tokenizer", at("us_tokenizer"), "--whisper", at("speech_encoder/encoder")),
                *("--text_model", at("text_model"), *both("asr", "sqa", "ser")),
            ),
            ("text_model", "speech_encoder"),
        ),
        Stage("codec", script("train_wavtokenizer", "wavtokenizer", at("codec"), *both("recordings")), ("corpus",)),
        Stage(
            "speaker_encoder",
            script("train_speaker_encoder", "speaker_encoder", at("speaker_encoder"), *both("recordings")),
            ("corpus",),
        ),
        Stage(
            "dual_tokenizer",
            assemble(
                "dual_tokenizer",
                at("dual_tokenizer"),
                us_tokenizer=at("us_tokenizer"),
                codec=at("codec/codec"),
                speaker_encoder=at("speaker_encoder/speaker_encoder"),
            ),
            ("us_tokenizer", "codec", "speaker_encoder"),
        ),
        Stage(
            "dualspeech_processor",
            assemble(
                "dualspeech_processor",
                at("dualspeech_processor"),
                text_model=at("text_model"),
                codec=at("dual_tokenizer"),
            ),
            ("dual_tokenizer",),
        ),
    ]
    tokens = [
        Stage(
            f"tokens_dualspeech_{split}_{name}",
            prepare("dualspeech", at("dualspeech_processor"), split, name),
            ("dualspeech_processor",),
        )
        for split in ("train", "validation")
        for name in TASKS
    ]
    train, held_out = (
        ",".join(at(f"tokens_dualspeech/{split}/{name}") for name in TASKS) for split in ("train", "validation")
    )
    made += [
        *tokens,
        Stage(
            "dualspeech",
            script(
                *("train_dualspeech", "dualspeech", at("dualspeech"), "--text_model", at("text_model")),
                *("--processor", at("dualspeech_processor"), "--train_data", train, "--eval_data", held_out),
            ),
            tuple(stage.name for stage in tokens),
        ),
        Stage(
            "dualspeech-nano",
            assemble("checkpoint", at("dualspeech-nano"), model=at("dualspeech"), max_new_tokens="200"),
            ("dualspeech",),
        ),
    ]
    return made + _moss_stages(at, both, assemble, prepare)


def _moss_stages(at, both, assemble, prepare) -> list[Stage]:
    clips = "recordings"
    made = [
        Stage(
            "speech_encoder_vq",
            script(
                *("train_speech_encoder", "speech_encoder_vq", at("speech_encoder_vq")),
                *both("transcripts", "chat_transcripts"),
            ),
            ("corpus",),
        ),
        Stage(
            "vocoder",
            script(
                *("train_vocoder", "vocoder", at("vocoder"), *both(clips)),
                *("--f0_file", at("f0.safetensors")),
            ),
            ("corpus",),
        ),
        Stage(
            "flow_decoder",
            script(
                *("train_flow_decoder", "flow_decoder", at("flow_decoder"), *both(clips)),
                *("--encoder", at("speech_encoder_vq/encoder")),
                *("--speaker_encoder", at("speaker_encoder/speaker_encoder")),
            ),
            ("speech_encoder_vq", "speaker_encoder"),
        ),
        Stage(
            "moss_codec",
            assemble(
                "moss_codec",
                at("moss_codec"),
                encoder=at("speech_encoder_vq/encoder"),
                flow=at("flow_decoder"),
                vocoder=at("vocoder/vocoder"),
                speaker_encoder=at("speaker_encoder/speaker_encoder"),
            ),
            ("flow_decoder", "vocoder"),
        ),
        Stage(
            "moss_processor",
            assemble(
                "moss_processor",
                at("moss_processor"),
                text_model=at("text_model"),
                codec=at("moss_codec"),
                voice=str(EXAMPLES / "samples" / "voice_slt.wav"),
            ),
            ("moss_codec", "text_model"),
        ),
    ]
    kinds = {"documents": ("--kind", "document"), "texts": ("--kind", "document"), "chats": ()}
    tokens = [
        Stage(
            f"tokens_moss_speech_{split}_{name}",
            prepare("moss_speech", at("moss_processor"), split, name, *more),
            ("moss_processor",),
        )
        for split in ("train", "validation")
        for name, more in kinds.items()
    ]

    def data(*names: str) -> list[str]:
        train, held_out = (
            ",".join(f"{name}={at(f'tokens_moss_speech/{split}/{name}')}" for name in names)
            for split in ("train", "validation")
        )
        return ["--train_data", train, "--eval_data", held_out]

    start = ("--text_model", at("text_model"), "--processor", at("moss_processor"))
    return [
        *made,
        *tokens,
        Stage(
            "moss_stage1",
            script("train_moss_speech", "moss_stage1", at("moss_stage1"), *start, *data("documents")),
            tuple(stage.name for stage in tokens),
        ),
        Stage(
            "moss_stage2",
            script(
                *("train_moss_speech", "moss_stage2", at("moss_stage2"), "--checkpoint", at("moss_stage1")),
                *data("documents", "texts"),
            ),
            ("moss_stage1",),
        ),
        Stage(
            "moss_sft",
            script(
                *("train_moss_speech", "moss_sft", at("moss_sft"), "--checkpoint", at("moss_stage2")),
                *data("chats", "documents", "texts"),
            ),
            ("moss_stage2",),
        ),
        Stage(
            "moss-speech-nano",
            assemble("checkpoint", at("moss-speech-nano"), model=at("moss_sft"), max_new_tokens="150"),
            ("moss_sft",),
        ),
    ]


def run_stage(stage: Stage, folder: Path, cpu: bool, max_steps: int | None = None) -> None:
    """Run a stage unless it is complete; what it prints goes to `logs/<stage>.log`.

    Raises:
        RuntimeError: the command failed.
    """
    done = folder / "logs" / f"{stage.name}.done"
    if done.is_file():
        return
    done.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, *stage.command]
    if "--resume_from_checkpoint" in command:
        command += ["--disable_tqdm", "true", *(["--use_cpu"] if cpu else [])]
        command += [] if max_steps is None else ["--max_steps", str(max_steps)]
    print(f"{time.strftime('%H:%M:%S')} {stage.name}", flush=True)
    start = time.monotonic()
    with open(done.with_suffix(".log"), "a", encoding="utf-8") as log:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode
    if code:
        raise RuntimeError(f"stage {stage.name!r} ended with {code}; see {done.with_suffix('.log')}")
    done.write_text(f"{time.monotonic() - start:.0f} s\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="outputs/nano")
    parser.add_argument("--human_digits", help="folder of recorded digits for the corpus")
    parser.add_argument("--stages", help="names, separated by commas; all by default")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the size of the corpus")
    parser.add_argument(
        "--max_steps", type=int, help="steps of each training instead of those of its recipe, to try it out"
    )
    parser.add_argument("--gpu", action="store_true", help="use a GPU where there is one")
    parser.add_argument("--list", action="store_true", help="print the commands and run nothing")
    options = parser.parse_args(arguments)
    every = {stage.name: stage for stage in stages(options.folder, options.human_digits, options.scale)}
    chosen = list(every) if options.stages is None else options.stages.split(",")
    if unknown := [name for name in chosen if name not in every]:
        parser.error(f"unknown stages {unknown}; accepted are {', '.join(every)}")
    for name in chosen:
        stage = every[name]
        if options.list:
            print(f"{name}:\n    python {' '.join(stage.command)}")
            continue
        missing = [n for n in stage.needs if not (Path(options.folder) / "logs" / f"{n}.done").is_file()]
        if missing:
            parser.error(f"stage {name} needs {', '.join(missing)}, which are not complete")
        run_stage(stage, Path(options.folder), not options.gpu, options.max_steps)


if __name__ == "__main__":
    main()
