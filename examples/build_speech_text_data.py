"""Speech-text data for MOSS-Speech, from recordings and texts (sections 3.1.1 and 3.2.1 of the paper).

    python examples/build_speech_text_data.py
    python examples/build_speech_text_data.py --recordings podcasts --asr openai/whisper-large-v3 \
        --aligner facebook/wav2vec2-large-960h-lv60-self --output_dir data/podcasts --num_workers 4
    python examples/build_speech_text_data.py --questions qa.jsonl --corpus web.jsonl --asr openai/whisper-large-v3 \
        --aligner facebook/wav2vec2-large-960h-lv60-self --chat_url http://localhost:8000/v1 --chat_model Qwen/Qwen3-32B

Recordings become interleaved documents (voice activity, recognition, alignment of words, chunks) and documents of speech
alone. A corpus of texts becomes documents of text alone, and synthesized interleaved ones. Questions and answers become
chats in four pairs of modalities (adaptation, synthesis, filter). Without arguments, all three are done in a tiny world
that the script makes by itself.

Each stage is a folder in `--output_dir`. The same command again goes on where it stopped; what was rejected, and why, stands
beside what was made. Speech comes from espeak-ng (`--voices`), or from any text-to-speech model of transformers (`--tts`).
"""

import argparse
import json
import shutil
from pathlib import Path

from datasets import Dataset, load_from_disk
from tiny_speech_text import CORPUS, QUESTIONS, SPEAK_COMMAND, RuleChat, make_recognizer, make_recordings

from dualspeech.training.data_steps.chat_backends import EndpointChat, TransformersChat
from dualspeech.training.data_steps.ctc_alignment import AlignWords
from dualspeech.training.data_steps.four_modalities import FourModalities
from dualspeech.training.data_steps.interleaving import (
    ChunkAndInterleave,
    FilterByScore,
    TextDocuments,
    UnsupervisedDocuments,
)
from dualspeech.training.data_steps.ray_runner import run_step_with_ray
from dualspeech.training.data_steps.row_sources import open_rows
from dualspeech.training.data_steps.runners import map_dataset, run_step
from dualspeech.training.data_steps.shards import load_rejected, load_rows
from dualspeech.training.data_steps.speech_backends import CommandBackend, TransformersBackend
from dualspeech.training.data_steps.speech_recognition import RecognizeSpeech
from dualspeech.training.data_steps.synthesis import SynthesizeSpeech
from dualspeech.training.data_steps.text_adaptation import AdaptForSpeech
from dualspeech.training.data_steps.transcript_filter import FilterByTranscript
from dualspeech.training.data_steps.voice_activity import EnergyVoiceActivity

AUDIO_ENDINGS = {".wav", ".flac", ".mp3", ".ogg"}


class Stages:
    """Runs steps one after the other; each result is a folder."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.summary = options, {}

    def run(self, name: str, step, rows):
        """Run `step` over `rows` (a list, a JSON Lines file, or what an earlier call returned) into the folder `name`."""
        folder, options = self.options.output_dir / name, self.options
        if options.runner == "datasets":
            made, rejected = self._map(step, rows, folder)
        else:
            settings = {"shard_size": options.shard_size, "progress": options.progress}
            if options.runner == "ray":
                run_step_with_ray(step, rows, folder, concurrency=max(options.num_workers, 1), **settings)
            else:
                run_step(step, rows, folder, num_workers=options.num_workers, **settings)
            made, rejected = load_rows(folder), load_rejected(folder)
        reasons = rejected["reason"][:] if len(rejected) else []
        self.summary[name] = {"rows": len(made), "rejected": len(rejected), "reasons": sorted(set(reasons))[:5]}
        print(f"{name:28} {len(made):6} rows, {len(rejected):6} rejected")
        return made if options.runner == "datasets" else folder

    def _map(self, step, rows, folder: Path) -> tuple[Dataset, Dataset]:
        # A folder is there as a whole or not at all: the second one is written last.
        places, manifest = (folder / "rejected", folder / "rows"), folder / "settings.json"
        # Without a fingerprint of a data set that has no rows: it differs from run to run.
        origin = [] if isinstance(rows, Dataset) and not len(rows) else open_rows(rows).fingerprint
        made_of = json.dumps({"step": step.settings(), "input": origin}, indent=1, sort_keys=True)
        if not manifest.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise ValueError(f"`output_dir`: {str(folder)!r} holds something else; choose another folder")
            manifest.write_text(made_of, encoding="utf-8")
        elif manifest.read_text(encoding="utf-8") != made_of:
            raise ValueError(
                f"`output_dir`: {str(folder)!r} was made of other rows or with other settings; choose another folder"
            )
        if not places[1].is_dir():
            for left in (places[0], *(place.with_suffix(".partial") for place in places)):
                shutil.rmtree(left, ignore_errors=True)
            num_proc = self.options.num_workers or None
            for dataset, place in zip(map_dataset(step, rows, num_proc)[::-1], places, strict=True):
                partial = place.with_suffix(".partial")
                partial.mkdir()
                if len(dataset):  # no rows cannot be loaded
                    dataset.save_to_disk(partial)
                partial.rename(place)
        loaded = [load_from_disk(place) if any(place.iterdir()) else Dataset.from_list([]) for place in places]
        return loaded[1], loaded[0]


def recordings_of(folder: Path) -> list[dict]:
    """A row for each recording in a folder and the folders in it."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_ENDINGS)
    if not paths:
        raise ValueError(f"`recordings`: {str(folder)!r} has no file that ends in {', '.join(sorted(AUDIO_ENDINGS))}")
    return [{"id": path.relative_to(folder).as_posix(), "audio": str(path)} for path in paths]


def build(options: argparse.Namespace) -> dict:
    """Run all stages that `options` ask for; returns the numbers of each."""
    stages, speech = Stages(options), str(options.output_dir / "speech")
    chunks = {"min_seconds": options.chunk_seconds[0], "max_seconds": options.chunk_seconds[1], "seed": options.seed}
    if options.recordings is not None:
        voiced = EnergyVoiceActivity(storage="segments", max_seconds=options.max_seconds)
        rows = stages.run("recordings/voice_activity", voiced, recordings_of(options.recordings))
        stages.run("recordings/unsupervised", UnsupervisedDocuments(), rows)
        rows = stages.run("recordings/recognition", RecognizeSpeech(options.asr, device=options.device), rows)
        aligned = AlignWords(options.aligner, max_seconds=options.max_seconds, device=options.device)
        rows = stages.run("recordings/alignment", aligned, rows)
        stages.run("recordings/interleaved", ChunkAndInterleave("segments", **chunks), rows)
    if options.corpus is not None:
        rows = stages.run("corpus/quality", FilterByScore(options.min_score), options.corpus)
        stages.run("corpus/text", TextDocuments(min_score=None), rows)
        spoken = SynthesizeSpeech(options.synthesizer, speech, speakers=options.voices, seed=options.seed)
        rows = stages.run("corpus/synthesis", spoken, rows)
        rows = stages.run("corpus/filter", FilterByTranscript(options.asr, device=options.device), rows)
        aligned = AlignWords(options.aligner, max_seconds=options.max_seconds, device=options.device)
        rows = stages.run("corpus/alignment", aligned, rows)
        stages.run("corpus/interleaved", ChunkAndInterleave("segments", **chunks), rows)
    if options.questions is not None:
        rows = stages.run("chats/adaptation", AdaptForSpeech(options.chat, math=options.math), options.questions)
        # Users have many voices, the assistant has one.
        for part, voices in (("question", options.voices), ("answer", [options.assistant_voice])):
            keys = {"text_key": part, "audio_key": f"{part}_audio"}
            spoken = SynthesizeSpeech(options.synthesizer, speech, **keys, speakers=voices, seed=options.seed)
            rows = stages.run(f"chats/{part}_synthesis", spoken, rows)
            checked = FilterByTranscript(options.asr, **keys, device=options.device)
            rows = stages.run(f"chats/{part}_filter", checked, rows)
        stages.run("chats/four_modalities", FourModalities(), rows)
    (options.output_dir / "summary.json").write_text(json.dumps(stages.summary, indent=1), encoding="utf-8")
    return stages.summary


def make_tiny_world(options: argparse.Namespace) -> None:
    """Everything that was not given, in `--output_dir`."""
    folder = options.output_dir / "tiny"
    options.recordings = make_recordings(folder / "recordings")
    options.asr = options.aligner = make_recognizer(folder / "recognizer")
    options.corpus, options.questions = folder / "corpus.jsonl", folder / "questions.jsonl"
    texts = [{"text": text, "score": score} for text, score in CORPUS]
    options.corpus.write_text("".join(json.dumps(row) + "\n" for row in texts), encoding="utf-8")
    pairs = [{"question": question, "answer": answer} for question, answer in QUESTIONS]
    options.questions.write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
    options.chat, options.synthesizer = RuleChat(), CommandBackend(SPEAK_COMMAND, default_speaker="soft")
    options.voices, options.assistant_voice = ["soft", "loud"], "loud"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=Path, help="folder of recordings (mono)")
    parser.add_argument(
        "--corpus", type=Path, help="JSON Lines with `text` and its quality `score`, as FineWeb-Edu has"
    )
    parser.add_argument("--questions", type=Path, help="JSON Lines with `question` and `answer`")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/speech_text_data"))
    parser.add_argument("--asr", help="recogniser: AutoModelForSpeechSeq2Seq, AutoModelForCTC, or DualSpeechLM")
    parser.add_argument("--aligner", help="AutoModelForCTC that gives words their times")
    parser.add_argument("--chat_model", help="chat model: folder or Hub id, or the name of one at `--chat_url`")
    parser.add_argument("--chat_url", help="address of an OpenAI-compatible server, up to /v1")
    parser.add_argument("--chat_key_variable", help="environment variable with the key of that server")
    parser.add_argument("--math", choices=["latex", "words"], default="words", help="what formulas become")
    parser.add_argument("--tts", help="text-to-speech model; espeak-ng by default")
    parser.add_argument(
        "--tts_speaker_parameter", help="argument of its forward that takes the voice, as `speaker_id`"
    )
    parser.add_argument("--voices", nargs="+", default=["en", "en+f3", "en+m3", "en-us"], help="of users and texts")
    parser.add_argument("--assistant_voice", default="en+f4")
    parser.add_argument("--max_seconds", type=float, default=30.0, help="longest stretch of speech")
    parser.add_argument("--chunk_seconds", type=float, nargs=2, default=[3.0, 6.0], help="of interleaved chunks")
    parser.add_argument("--min_score", type=float, default=3.0, help="lowest quality of texts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runner", choices=["process", "datasets", "ray"], default="process")
    parser.add_argument("--num_workers", type=int, default=0, help="processes; 0: this one")
    parser.add_argument("--shard_size", type=int, default=1000, help="rows per file of a stage")
    parser.add_argument("--device", help="of the models; a GPU where there is one")
    parser.add_argument("--progress", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args(arguments)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    if options.recordings is options.corpus is options.questions is None:
        make_tiny_world(options)
        return options
    if options.asr is None:
        parser.error("--asr is needed for data of your own")
    if options.aligner is None and (options.recordings or options.corpus):
        parser.error("--aligner is needed for recordings and corpora")
    if options.chat_model is None and options.questions:
        parser.error("--chat_model is needed for questions")
    if options.chat_url is not None:
        options.chat = EndpointChat(options.chat_url, options.chat_model, options.chat_key_variable)
    elif options.chat_model is not None:
        options.chat = TransformersChat(options.chat_model, device=options.device)
    options.synthesizer = CommandBackend()
    if options.tts is not None:
        options.synthesizer = TransformersBackend(options.tts, options.tts_speaker_parameter, device=options.device)
    return options


def main(arguments: list[str] | None = None) -> dict:
    return build(parse(arguments))


if __name__ == "__main__":
    main()
