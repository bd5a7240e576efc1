"""Every task of DualSpeechLM once, from a checkpoint on disk, on the CPU, offline.

    python examples/quickstart.py
    python examples/quickstart.py --checkpoint my-model --audio question.wav --voice me.wav --text "Good morning"

Without `--checkpoint` a tiny random model is made, saved and loaded again: all calls are real, the answers are noise.
"""

import argparse
import time
from pathlib import Path

import torch
from tiny_dualspeech import tiny_model, tiny_processor, tone_speech
from transformers import AutoModelForMultimodalLM, AutoProcessor

from dualspeech.processing.audio import load_audio, save_audio


def make_checkpoint(folder: Path) -> None:
    """Save a tiny random model and its processor, audio tokenizer included."""
    processor = tiny_processor()
    model = tiny_model(processor.tokenizer)
    model.generation_config.text = {"num_beams": 4, "max_tokens": 40}  # noise would not end by itself
    processor.save_pretrained(folder)
    model.save_pretrained(folder)


def requests(audio, voice, text: str) -> list[dict]:
    """One request per task, in the processor's arguments."""
    languages = {"source_language": "English", "target_language": "German"}
    return [
        {"task": "asr", "audio": audio},
        {"task": "s2tt", "audio": audio, **languages},
        {"task": "ser", "audio": audio},
        {"task": "sqa", "audio": audio, "question": "What is the first word?"},
        {"task": "tts", "text": text, "speaker": voice},
        {"task": "t2st", "text": text, "speaker": voice, **languages},
        {"task": "vc", "audio": audio, "speaker": voice},
        {"task": "sc", "audio": audio, "question": audio, "speaker": voice},
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="folder or Hub id; a tiny random model by default")
    parser.add_argument("--audio", help="speech to understand or convert (mono file)")
    parser.add_argument("--voice", help="recording of the voice to speak with (mono file)")
    parser.add_argument("--text", default="one red house", help="sentence to speak")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/quickstart"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    options.output_dir.mkdir(parents=True, exist_ok=True)
    checkpoint = options.checkpoint
    if checkpoint is None:
        checkpoint = options.output_dir / "checkpoint"
        make_checkpoint(checkpoint)
    model = AutoModelForMultimodalLM.from_pretrained(checkpoint)
    processor = AutoProcessor.from_pretrained(checkpoint)
    audio = load_audio(options.audio) if options.audio else (tone_speech(["one", "red", "house"]), 24000)
    voice = load_audio(options.voice) if options.voice else (tone_speech(["tree", "two"], voice=3), 24000)

    torch.manual_seed(options.seed)
    print(f"{'task':5} {'seconds':>7} {'speech':>7} {'finish':9} answer")
    for request in requests(audio, voice, options.text):
        start = time.perf_counter()
        output = model.generate(**processor(**request, resample=True))
        result = processor.batch_decode(output)[0]
        seconds = time.perf_counter() - start
        if result.audio is None:
            answer, spoken = repr(result.text), ""
        else:
            answer = options.output_dir / f"{request['task']}.wav"
            save_audio(answer, result.audio, result.sampling_rate)
            spoken = f"{len(result.audio) / result.sampling_rate:.2f} s"
        print(f"{request['task']:5} {seconds:7.2f} {spoken:>7} {result.finish_reason:9} {answer}")


if __name__ == "__main__":
    main()
