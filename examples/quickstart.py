"""Every task of both models once, on the CPU, offline.

    python examples/quickstart.py
    python examples/quickstart.py --audio my.wav --voice me.wav --text "Anna has two red cups at home."
    python examples/quickstart.py --dualspeech my-dualspeech --moss my-moss-speech       # other folders, or Hub ids

DualSpeechLM transcribes and translates a recording, names an emotion, answers questions in writing and aloud, reads aloud,
converts a voice, and translates a text into speech; MOSS-Speech answers a recording with speech, and with text. A row is
printed for each; the answers, and figure.png (which needs matplotlib), are written to `--output_dir`.

Without `--dualspeech` and `--moss`, the trained checkpoints in model_cards are taken, and where they are missing tiny random
ones, which are made in `--output_dir`: all calls are real, the answers are noise.
"""

import argparse
import importlib.util
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quickstart_figure import Panel, draw
from tiny_dualspeech import make_dualspeech_checkpoint
from tiny_moss_speech import make_moss_checkpoint
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor

from dualspeech.processing.audio import load_audio, save_audio

EXAMPLES = Path(__file__).resolve().parent
SAMPLES, CARDS = EXAMPLES / "samples", EXAMPLES.parent / "model_cards"
# Not in the training of the checkpoints, as the samples.
TEXT, GERMAN = "David has four blue shirts in the library.", "Sarah trägt am Samstag zwei gelbe Flaschen."
TO_GERMAN = {"source_language": "English", "target_language": "German"}
TO_ENGLISH = {"source_language": "German", "target_language": "English"}


@dataclass
class Recording:
    """A file: samples `[S]` with their rate in Hz, and what is said where that is known."""

    name: str
    source: tuple[np.ndarray, int]
    said: str = ""

    @property
    def seconds(self) -> float:
        return len(self.source[0]) / self.source[1]


@dataclass
class Answer:
    """`text`; or `audio` at `rate` Hz, `None` if nothing was said, and the `codes` of what was said."""

    text: str | None
    audio: np.ndarray | None
    rate: int | None
    codes: np.ndarray | None
    finish_reason: str


class Quickstart:
    """Two models that are asked, and the table of what they say."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        rows = [json.loads(line) for line in (SAMPLES / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
        samples = [Recording(row["audio"], load_audio(SAMPLES / row["audio"]), row["text"]) for row in rows]
        self.sentence, self.question, self.angry, self.turn, *self.voices = samples
        self.heard = self.sentence
        if options.audio is not None:
            self.heard = self.turn = self._read(options.audio)
        if options.voice is not None:
            self.voices[0] = self._read(options.voice)
        self.dualspeech, self.processor = _load("dualspeech", options.dualspeech, AutoModelForMultimodalLM)
        self._check(options.audio, self.heard, "us_codes")
        self._check(options.voice, self.voices[0], "speaker_embeds")
        self.moss, self.moss_processor = _load("moss", options.moss, AutoModelForCausalLM)
        self.moss_voice = self.moss_processor.voice
        if options.voice is not None:
            self.moss_voice = self.moss_processor.make_voice(self.voices[0].source)

    def _read(self, path: str) -> Recording:
        return Recording(Path(path).name, load_audio(path, channel=self.options.channel))

    def _check(self, path: str | None, recording: Recording, needed: str) -> None:
        """Try a recording of the user's before anything is generated."""
        if path is None:
            return
        rate, wanted = recording.source[1], self.processor.feature_extractor.sampling_rate
        if rate != wanted:
            print(f"{path} has {rate} Hz; it is converted to {wanted} Hz where that is needed (resample=True)")
        try:
            self.processor.encode_audio(recording.source, resample=True, outputs=[needed])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def run(self) -> None:
        """Ask everything; write the figure."""
        for sample in (self.sentence, self.question, self.angry, self.turn):
            print(f"{sample.name:13} {sample.said}")
        print(f"\n{'task':36} {'seconds':>7} {'speech':>7} {'factor':>6}  input -> answer")
        transcript = self.ask("asr", "transcribe", audio=self.heard).text
        self.ask("s2tt", "translate to German", audio=self.heard, **TO_GERMAN)
        self.ask("ser", "name the emotion", audio=self.angry)
        self.ask("sqa", "answer in writing", audio=self.sentence, question=self.question.said)
        sentence, (first, second) = self.options.text, self.voices
        read = [
            self.ask("tts", "read aloud", f"tts_{i}.wav", text=sentence, speaker=voice)
            for i, voice in enumerate(self.voices, start=1)
        ]
        self.ask("t2st", "speak in English", "t2st.wav", text=GERMAN, speaker=first, **TO_ENGLISH)
        converted = self.ask("vc", "convert", "vc.wav", audio=self.heard, speaker=first)
        self.ask("sc", "answer", "sc.wav", audio=self.sentence, question=self.question, speaker=second)
        reply = self.chat("audio", "MOSS-Speech: answer in speech", "moss.wav")
        written = self.chat("text", "MOSS-Speech: answer in writing").text
        print("\nspeech: seconds that were made, or heard for an answer in writing; factor: seconds / speech")
        if self.options.no_figure:
            return
        rate = self.processor.audio_tokenizer.semantic_frame_rate
        codes = self.processor.encode_audio(self.heard.source, resample=True, outputs=["us_codes"])[0]["us_codes"]
        moss_rate = self.moss_processor.audio_tokenizer.frame_rate
        moss_codes = self.moss_processor.encode_audio(self.turn.source, resample=True)[0]
        draw(
            {
                "DualSpeechLM: voice conversion": [
                    Panel(
                        self.heard.name, f"transcript: {transcript}", *self.heard.source, codes, rate, is_input=True
                    ),
                    _panel(f"with the voice of {first.name}", transcript, converted, rate),
                ],
                "DualSpeechLM: text to speech": [
                    _panel(f"with the voice of {voice.name}", sentence, answer, rate)
                    for voice, answer in zip(self.voices, read, strict=True)
                ],
                "MOSS-Speech: speech to speech": [
                    Panel(self.turn.name, self.turn.said, *self.turn.source, moss_codes, moss_rate, is_input=True),
                    _panel("spoken answer", f"in writing: {written}", reply, moss_rate),
                ],
            },
            self.options.output_dir / "figure.png",
        )

    def ask(self, task: str, what: str, file: str | None = None, **request: Any) -> Answer:
        """One task of DualSpeechLM."""
        sources = {name: v.source if isinstance(v, Recording) else v for name, v in request.items()}
        torch.manual_seed(self.options.seed)
        start = time.perf_counter()
        output = self.dualspeech.generate(**self.processor(task=task, **sources, resample=True))
        result = self.processor.batch_decode(output)[0]
        seconds = time.perf_counter() - start
        answer = Answer(result.text, result.audio, result.sampling_rate, result.semantic_codes, result.finish_reason)
        inputs = [request[name] for name in ("text", "audio", "question") if name in request]
        voice = f" as {Path(request['speaker'].name).stem}" if "speaker" in request else ""
        self._report(f"{task}: {what}{voice}", inputs, answer, seconds, file)
        return answer

    def chat(self, modality: str, what: str, file: str | None = None) -> Answer:
        """A turn of MOSS-Speech, answered with `"audio"` or `"text"`."""
        content = {"type": "audio", "audio": self.turn.source}
        torch.manual_seed(self.options.seed)
        start = time.perf_counter()
        inputs = self.moss_processor([[{"role": "user", "content": content}]], [modality], resample=True)
        result = self.moss_processor.batch_decode(self.moss.generate(**inputs), voice=self.moss_voice)[0]
        seconds = time.perf_counter() - start
        audio = result.audio if modality == "audio" and result.audio is not None and len(result.audio) else None
        text = result.text if modality == "text" else None
        answer = Answer(text, audio, result.sampling_rate, result.codes, result.finish_reason)
        self._report(what, [self.turn], answer, seconds, file)
        return answer

    def _report(self, task: str, inputs: list, answer: Answer, seconds: float, file: str | None) -> None:
        """Print a row; save what was spoken."""
        given = " + ".join(each.name if isinstance(each, Recording) else repr(each) for each in inputs)
        speech = sum(each.seconds for each in inputs if isinstance(each, Recording))
        shown = repr(answer.text)
        if file is not None:
            shown, speech = "no speech", 0.0
            if answer.audio is not None:
                shown, speech = file, len(answer.audio) / answer.rate
                save_audio(self.options.output_dir / file, answer.audio, answer.rate)
        factor = f"{seconds / speech:.2f}" if speech else ""
        cut = " (stopped at the length limit)" if answer.finish_reason == "length" else ""
        print(f"{task:36} {seconds:7.2f} {speech:7.2f} {factor:>6}  {given} -> {shown}{cut}", flush=True)


def _panel(title: str, caption: str, answer: Answer, code_rate: float) -> Panel:
    return Panel(title, caption, answer.audio, answer.rate, answer.codes, code_rate)


def _default(card: str, folder: Path, make) -> str:
    """The trained checkpoint of this repository, or a tiny random one that `make` makes in `folder`."""
    if (CARDS / card / "config.json").is_file():
        return str(CARDS / card)
    print(f"model_cards/{card} is missing; a tiny random checkpoint in {folder} answers with noise")
    make(folder)
    return str(folder)


def _load(option: str, checkpoint: str, auto_class: type) -> tuple[Any, Any]:
    """A model and its processor, with the audio tokenizer, which is otherwise loaded when it is first needed."""
    processor = AutoProcessor.from_pretrained(checkpoint)
    if processor.audio_tokenizer is None:
        raise ValueError(f"`--{option}`: {checkpoint} has no audio tokenizer, which reads and makes speech")
    return auto_class.from_pretrained(checkpoint), processor


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dualspeech", help="checkpoint of DualSpeechLM, a folder or Hub id")
    parser.add_argument("--moss", help="checkpoint of MOSS-Speech, a folder or Hub id")
    parser.add_argument("--audio", help="recording to transcribe, translate, convert, and give to MOSS-Speech")
    parser.add_argument("--voice", help="recording of the voice to speak with, also of MOSS-Speech")
    parser.add_argument("--channel", type=int, help="which channel of recordings that have several; else an error")
    parser.add_argument("--text", default=TEXT, help="sentence to read aloud")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/quickstart"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no_figure", action="store_true", help="do not draw figure.png")
    options = parser.parse_args(arguments)
    if not options.no_figure and importlib.util.find_spec("matplotlib") is None:
        print('figure.png is not drawn, it needs matplotlib: pip install ".[audio]"')
        options.no_figure = True
    start = time.perf_counter()
    try:
        options.output_dir.mkdir(parents=True, exist_ok=True)
        folder = options.output_dir
        if options.dualspeech is None:
            options.dualspeech = _default("dualspeech-nano", folder / "checkpoint", make_dualspeech_checkpoint)
        if options.moss is None:
            options.moss = _default("moss-speech-nano", folder / "moss_checkpoint", make_moss_checkpoint)
        Quickstart(options).run()
    except (OSError, ValueError) as error:  # all of them are about what was given
        sys.exit(f"quickstart.py: {error}")
    print(f"{time.perf_counter() - start:.0f} s in all. Files: {options.output_dir}")


if __name__ == "__main__":
    main()
