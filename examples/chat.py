"""Talk with a MOSS-Speech checkpoint: WAV or text in, WAV or text out.

    python examples/chat.py --text "What is the capital of France?"
    python examples/chat.py --checkpoint my-model --input-wav question.wav --voice me.wav --stream
    python examples/chat.py --checkpoint my-model --codec my-codec --input-wav first.wav --text "And in short?" \
        --output text --dtype bfloat16 --device cuda
    python examples/chat.py --checkpoint my-model --stream          # asks for turns: a text, or @recording.wav

Without `--checkpoint` a tiny random model is made: all calls are real, the answers are noise. Several inputs are the turns
of one conversation, in their order. With `--stream` an answer is decoded while it is generated: written piece by piece,
played if `sounddevice` is installed, and Ctrl-C ends it (what was heard of it stays in the conversation). Without, it is
decoded at once with full attention, which sounds a little different.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from speech_output import SpeechOutput
from tiny_moss_speech import make_moss_checkpoint
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor

from dualspeech import MossSpeechVoice
from dualspeech.modeling.split_layer_streamers import SpeechStreamer

SAMPLING = {"max_new_tokens": int, "temperature": float, "top_p": float, "top_k": int, "repetition_penalty": float}


@dataclass
class Answer:
    """`text` and `codes` of a reply (`None` when there are none), samples `audio` at `rate` Hz, and what it took."""

    text: str | None
    codes: np.ndarray | None
    audio: np.ndarray | None
    rate: int
    rows: int
    finish_reason: str
    seconds: float = 0.0  # from the question to the end of the answer
    first_audio: float | None = None  # from the question to the first samples
    gapless: float | None = None  # from the question to when playing can begin without running dry later

    def __str__(self):
        parts = [f"{self.rows / self.seconds:.1f} rows/s"]
        if self.first_audio is not None:
            spoken = len(self.audio) / self.rate
            first, gapless = round(1000 * self.first_audio), round(1000 * self.gapless)
            parts.insert(0, f"time to first audio {first} ms (without gaps {gapless} ms)")
            parts.append(f"real-time factor {self.seconds / spoken:.2f} for {spoken:.2f} s of speech")
        return ", ".join([*parts, self.finish_reason])


class Chat:
    """A conversation. `ask` takes a turn and gives an [`Answer`], and keeps both."""

    def __init__(self, model, processor, options: argparse.Namespace):
        self.model, self.processor, self.options = model, processor, options
        self.codec = processor.audio_tokenizer
        self.conversation = [{"role": "system", "content": options.system}] if options.system else []
        given = {name: getattr(options, name) for name in SAMPLING}
        self.sampling = {name: value for name, value in given.items() if value is not None}
        if options.greedy:
            self.sampling["do_sample"] = False
        self.voice = self._voice(options.voice)
        if options.stream:
            names = ("chunk_size", "left_context", "lookahead_frames")
            settings = {name: getattr(options, name) for name in names}
            cache_dtype = getattr(torch, options.cache_dtype) if options.cache_dtype else None
            # The prompt of the voice is computed here, once for all answers.
            self.decoder = self.codec.streaming_decoder(self.voice, cache_dtype=cache_dtype, **settings)

    def _voice(self, source: str | None) -> MossSpeechVoice | None:
        if source == "none":
            return None
        if source is None:
            voice = self.processor.voice
        elif source.endswith(".safetensors"):
            voice = MossSpeechVoice.load(source)
        else:
            voice = self.processor.make_voice(source)
        if voice is None or not self.options.stream:
            return voice
        chunk = self.options.chunk_size or self.codec.config.flow_config.chunk_size
        return voice.trim(multiple_of=chunk)  # else the first piece of an answer waits for more codes than the others

    def ask(self, kind: str, value: str, path: Path) -> Answer:
        """The answer to a text (`kind` "text") or to a recording ("audio"); speech is written to `path`."""
        start = time.perf_counter()
        content = value
        if kind == "audio":  # encoded once, and not again in later turns
            codes = self.processor.encode_audio([value], resample=True)[0]
            content = {"type": "audio", "codes": codes.tolist()}
        turn = {"role": "user", "content": content}
        inputs = self.processor([[*self.conversation, turn]], [self.options.output]).to(self.model.device)
        reply = self._stream if self.options.stream else self._wait
        result, answer = reply(inputs, path, start)
        spoken = result.codes is not None and len(result.codes) > 0
        if spoken and (self.options.output == "audio" or not result.text):
            result.text = None  # a turn of a conversation holds one of both
        else:
            result.codes = None
        if spoken or result.text:
            self.conversation += [turn, result.message()]
        return answer

    def _wait(self, inputs, path: Path, start: float):
        output = self.model.generate(**inputs, **self.sampling)
        result = self.processor.batch_decode(output, voice=self.voice)[0]
        seconds = time.perf_counter() - start
        audio = result.audio if result.audio is not None and len(result.audio) else None
        if audio is not None:
            self.processor.save_audio(path, audio, result.sampling_rate)
        if result.text is not None:
            print(result.text)
        return result, self._answer(result, output, audio, seconds, *[None if audio is None else seconds] * 2)

    def _stream(self, inputs, path: Path, start: float):
        streamer = SpeechStreamer(self.model.config, chunk_size=1)  # the decoder collects codes by itself
        decoder = self.decoder.new_session()
        speech = SpeechOutput(path, self.codec.sampling_rate, play=not self.options.no_play)
        text_ids, written, cancelled = [], "", False
        try:
            streamer.start(self.model.generate, **inputs, **self.sampling)
            for event in streamer:
                if event.channel == "text":
                    text_ids += event.ids.tolist()
                    shown = self.processor.tokenizer.decode(text_ids, skip_special_tokens=True)
                    if not shown.endswith("\ufffd"):  # in the middle of a character
                        print(shown[len(written) :], end="", flush=True)
                        written = shown
                    continue
                if len(event.ids):
                    speech.write(decoder.step(event.ids))
                if event.ends_speech:
                    speech.write(decoder.finish())
                    decoder.reset()
        except KeyboardInterrupt:
            cancelled = True
            streamer.cancel()
            for _ in streamer:  # until the generation has stopped
                pass
        finally:
            streamer.cancel()  # no effect on what is over
            seconds = time.perf_counter() - start
            speech.close(at_once=cancelled)  # waits for the loudspeaker
        print(end="\n" if written else "")
        result = self.processor.batch_decode(streamer.result, return_audio=False)[0]
        if cancelled and result.codes is not None:  # only what was heard counts as said
            heard = 0 if speech.audio is None else len(speech.audio) // self.codec.hop_length
            result.codes = result.codes[:heard]
        times = [None if at is None else at - start for at in (speech.first_time, speech.gapless_time)]
        return result, self._answer(result, streamer.result, speech.audio, seconds, *times)

    def _answer(self, result, output, audio: np.ndarray | None, *times: float | None) -> Answer:
        rows, rate = int(output.generated_lengths[0]), self.codec.sampling_rate
        return Answer(result.text, result.codes, audio, rate, rows, result.finish_reason, *times)


class AppendTurn(argparse.Action):
    """`--text` and `--input-wav` in one list, in the order in which they were given."""

    def __call__(self, parser, namespace, value, option_string=None):
        kind = "text" if option_string == "--text" else "audio"
        namespace.turns = [*(namespace.turns or []), (kind, value)]


def next_turns(turns: list[tuple[str, str]] | None):
    """The given turns, or those that somebody types."""
    if turns is not None:
        yield from turns
        return
    print("A text, or @recording.wav; an empty line ends the conversation.")
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if not line:
            return
        yield ("audio", line[1:]) if line.startswith("@") else ("text", line)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.allow_abbrev = False  # the order of the turns is told by the whole names
    parser.add_argument("--checkpoint", help="folder or Hub id; a tiny random model by default")
    parser.add_argument("--codec", help="folder or Hub id of the codec, if it is not in the checkpoint")
    for name, what in (("--text", "TEXT"), ("--input-wav", "FILE")):
        parser.add_argument(name, dest="turns", action=AppendTurn, metavar=what, help="a turn; can be repeated")
    parser.add_argument("--output", choices=("audio", "text"), default="audio", help="what answers are made of")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/chat"), help="for answer-1.wav, ...")
    parser.add_argument("--voice", help="recording, or voice.safetensors, or `none`; that of the processor by default")
    parser.add_argument("--system", help="system prompt; that of the release for the kind of output by default")
    for name, kind in SAMPLING.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="instead of that of the generation config")
    parser.add_argument("--greedy", action="store_true", help="no sampling")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--stream", action="store_true", help="decode the answer while it is generated")
    parser.add_argument("--no-play", action="store_true", help="only write the file")
    parser.add_argument("--chunk-size", type=int, help="codes per piece; as the codec was trained by default")
    parser.add_argument("--left-context", type=int, help="codes of the past that a piece sees; all by default")
    parser.add_argument("--lookahead-frames", type=int, help="frames the vocoder waits for; as it takes to be exact")
    parser.add_argument("--cache-dtype", help="of the decoder's caches, for example float16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="auto", help="of the language model, for example bfloat16")
    return parser.parse_args(arguments)


def load(options: argparse.Namespace):
    """Model and processor of the checkpoint, the codec at its side."""
    checkpoint = options.checkpoint or make_moss_checkpoint(options.output_dir / "checkpoint")
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=options.dtype).to(options.device)
    processor = AutoProcessor.from_pretrained(checkpoint)
    if options.codec:
        processor.audio_tokenizer = AutoModel.from_pretrained(options.codec).eval().to(options.device)
    else:
        processor.load_audio_tokenizer(device=options.device)
    processor.check_model(model)
    return model, processor


def main(arguments: list[str] | None = None) -> list[Answer]:
    options = parse(arguments)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    model, processor = load(options)
    if options.seed is not None:
        torch.manual_seed(options.seed)
    chat, answers = Chat(model, processor, options), []
    for number, (kind, value) in enumerate(next_turns(options.turns), start=1):
        path = options.output_dir / f"answer-{number}.wav"
        try:
            answers.append(chat.ask(kind, value, path))
        except (ValueError, KeyboardInterrupt) as error:  # a file that does not exist, ...
            if options.turns is not None and isinstance(error, ValueError):
                raise
            print(error if isinstance(error, ValueError) else "[cancelled]")  # and the conversation goes on
            continue
        spoken = f"{path}: " if answers[-1].audio is not None else ""
        print(f"[{spoken}{answers[-1]}]")
    return answers


if __name__ == "__main__":
    main()
