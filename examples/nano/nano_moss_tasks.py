"""Measures moss-speech-nano on chats of the test split, streaming, its codec alone, and the text models behind it."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from nano_listening import Answer, Corpus, Ears, Spoken, batches
from nano_recognizer import normalize
from nano_scores import Measure, bootstrap, median, share
from nano_voices import ASSISTANT
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer

from dualspeech.modeling.split_layer_streamers import SpeechStreamer

Measured = tuple[list[Measure], list[dict]]
# Form of a chat -> target for questions. Requests to repeat a sentence have none.
FORMS = {"speech_to_text": ">= 80", "speech_to_speech": ">= 60", "text_to_speech": ">= 60", "text_to_text": None}
# More rows than any reply of the corpus needs (4 s of speech are 50).
MAX_NEW_ROWS = 200
DIALOGUES = 20


class MossEvaluation:
    """
    Tasks of a checkpoint of MOSS-Speech. Each method of a task gives its measures and a line per row.

    Args:
        checkpoint: folder with the model and its processor, codec and voice included.
        corpus, ears, batch_size, seed: as for `DualSpeechEvaluation`.
    """

    def __init__(self, checkpoint: str | Path, corpus: Corpus, ears: Ears, batch_size: int = 16, seed: int = 0):
        self.corpus, self.ears, self.batch_size, self.seed = corpus, ears, batch_size, seed
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self.processor.check_model(self.model)
        self.codec = self.processor.audio_tokenizer
        limit = self.model.generation_config.max_new_tokens
        self.settings = {"max_new_tokens": MAX_NEW_ROWS if limit is None else limit, "text": {"do_sample": False}}

    def answers(self, rows: Sequence[dict]) -> list[Answer]:
        """Replies to the first turn of chat rows; a reply is spoken where that of the row is."""
        torch.manual_seed(self.seed)
        answers = []
        for batch in batches(rows, self.batch_size):
            modalities = [_modality(row) for row in batch]
            inputs = self.processor([_prompt(row) for row in batch], modalities, resample=True)
            output = self.model.generate(**inputs, **self.settings)
            for r in self.processor.batch_decode(output):
                failed = None if r.finish_reason == "eos" else r.finish_reason
                answers.append(Answer(r.text, r.audio, r.sampling_rate, failed))
        return answers

    def chats(self) -> Measured:
        rows = self.corpus.rows("chats", lambda row: (row["metadata"]["form"], row["metadata"]["about"] == "repeat"))
        measures, lines = [], []
        for form, target in FORMS.items():
            for kind in ("questions", "repeat"):
                chosen = [
                    row
                    for row in rows
                    if row["metadata"]["form"] == form and (row["metadata"]["about"] == "repeat") == (kind == "repeat")
                ]
                if not chosen:
                    continue
                found, said = self._chats(chosen, f"{form}, {kind}", target if kind == "questions" else None)
                measures += found
                lines += said
        return measures, lines

    def _chats(self, rows: list[dict], name: str, target: str | None) -> Measured:
        answers, texts = self.answers(rows), [row["metadata"]["answer_text"] for row in rows]
        if _modality(rows[0]) == "audio":
            rule = "sentence" if name.endswith("repeat") else "answer"
            originals = [row["messages"][-1]["content"]["path"] for row in rows]
            spoken = Spoken(self.ears, answers, texts, originals, rule)
            measures = spoken.right(target, name)
            if rule == "sentence":
                measures += [_named(m, f"{name}: {m.name}") for m in spoken.word_errors()]
                measures += [_named(m, f"{name}: {m.name}") for m in spoken.voices([ASSISTANT] * len(rows))]
            return measures, list(spoken.lines(rows))
        hits = [normalize(a.text or "") == normalize(text) for a, text in zip(answers, texts, strict=True)]
        failed = [answer.failed is not None for answer in answers]
        lines = [
            {
                "source": Path(row["source"]).name,
                "wanted": text,
                "said": answer.text,
                "failed": answer.failed,
                "metadata": row["metadata"],
            }
            for row, text, answer in zip(rows, texts, answers, strict=True)
        ]
        return [share(name, hits, failed, target=target, note="texts are equal, normalised")], lines

    def streaming(self) -> Measured:
        """
        Speech in, speech out, one dialogue after the other. Two threads: one generates, the other decodes. Each computes
        alone, as teams of threads of both would wait for each other.
        """
        rows = self.corpus.rows("chats", lambda row: row["metadata"]["form"])
        rows = [row for row in rows if row["metadata"]["form"] == "speech_to_speech"][:DIALOGUES]
        voice = self.processor.voice
        if voice is not None:
            voice = voice.trim(multiple_of=self.codec.config.flow_config.chunk_size)
        decoder, threads = self.codec.streaming_decoder(voice), torch.get_num_threads()
        torch.manual_seed(self.seed)
        torch.set_num_threads(1)
        try:
            for row in rows[:1]:  # the first call of everything is slower
                self._stream(row, decoder)
            timed = [self._stream(row, decoder) for row in rows]
        finally:
            torch.set_num_threads(threads)
        lines = [{"source": Path(row["source"]).name, **times} for row, times in zip(rows, timed, strict=True)]
        spoken = [times for times in timed if times["speech_seconds"]]
        first = [1000 * times["first_audio_seconds"] for times in spoken]
        factors = [times["seconds"] / times["speech_seconds"] for times in spoken]
        fields = {
            "failed": len(timed) - len(spoken),
            "note": "from the recording of the question; one thread generates, one decodes",
        }
        measures = [
            median("time to first audio, median", first, "ms", **fields),
            _worst("time to first audio, worst", first, "ms", **fields),
            median("real-time factor, median", factors, "", target="< 1", **fields),
            _worst("real-time factor, worst", factors, "", target="< 1", **fields),
            median("speech of an answer, median", [times["speech_seconds"] for times in spoken], "s"),
        ]
        return measures, lines

    def _stream(self, row: dict, decoder) -> dict[str, float]:
        """Seconds from the question to the first samples and to the last, and seconds of speech."""
        start = time.perf_counter()
        inputs = self.processor([_prompt(row)], ["audio"], resample=True)
        streamer, session = SpeechStreamer(self.model.config, chunk_size=1), decoder.new_session()
        streamer.start(self.model.generate, **inputs, **self.settings)
        first, samples, is_over = math.nan, 0, False
        for event in streamer:
            if event.channel == "text" or is_over:
                continue
            is_over = event.ends_speech
            pieces = [session.step(event.ids)] if len(event.ids) else []
            pieces += [session.finish()] if is_over else []
            for piece in pieces:
                first = time.perf_counter() - start if not samples and len(piece) else first
                samples += len(piece)
        seconds = time.perf_counter() - start
        return {
            "first_audio_seconds": first,
            "seconds": seconds,
            "speech_seconds": samples / self.codec.sampling_rate,
        }

    def codec_moss(self) -> Measured:
        """Recordings to codes, and back to speech with the voice of the recording, and with that of the assistant."""
        rows = self.corpus.rows("recordings")
        chunk = self.codec.config.flow_config.chunk_size
        sources = {voice: paths[0] for voice, paths in self.corpus.recordings_by_voice(1).items() if paths}
        voices = {name: self.processor.make_voice(path).trim(multiple_of=chunk) for name, path in sources.items()}
        codes = [self.processor.encode_audio([row["audio"]], resample=True)[0] for row in rows]
        measures, lines = [], []
        for what, names in (
            ("resynthesis in its voice", [row["speaker"] for row in rows]),
            ("resynthesis in the assistant's voice", [ASSISTANT] * len(rows)),
        ):
            own = what.endswith("its voice")
            answers = self._decoded(codes, [voices[name] if own else self.processor.voice for name in names])
            spoken = Spoken(self.ears, answers, [row["text"] for row in rows], [row["audio"] for row in rows])
            shares = spoken.voices([row["speaker"] for row in rows]) if own else self._assistant(answers)
            measures += spoken.word_errors(what=what) + [_named(m, f"{what}: {m.name}") for m in shares]
            lines += spoken.lines(rows)
        return measures, lines

    def _assistant(self, answers: list[Answer]) -> list[Measure]:
        hits = [self.ears.voice(answer) == ASSISTANT for answer in answers]
        return [share("nearest voice is the assistant's", hits, [answer.failed is not None for answer in answers])]

    def _decoded(self, codes: list[np.ndarray], voices: list) -> list[Answer]:
        answers = []
        for batch in batches(list(zip(codes, voices, strict=True)), self.batch_size):
            padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(c) for c, _ in batch], batch_first=True)
            mask = torch.arange(padded.shape[1]) < torch.tensor([[len(c)] for c, _ in batch])
            with torch.no_grad():
                waveforms = self.codec.decode(padded, mask, voice=[voice for _, voice in batch], seed=self.seed)
            for (row, _), waveform in zip(batch, waveforms[:, 0].float().numpy(), strict=True):
                answers.append(
                    Answer(audio=waveform[: len(row) * self.codec.hop_length], rate=self.codec.sampling_rate)
                )
        return answers


def _modality(row: dict) -> str:
    return "text" if isinstance(row["messages"][-1]["content"], str) else "audio"


def _prompt(row: dict) -> list[dict]:
    return row["messages"][:-1]


def _named(measure: Measure, name: str) -> Measure:
    return Measure(**{**vars(measure), "name": name})


def _worst(name: str, values: Sequence[float], unit: str, **fields) -> Measure:
    return Measure(name, float(max(values)) if len(values) else None, len(values), unit=unit, **fields)


# Stage -> target of its perplexity as a factor on that of the text model it came from.
STAGES = {"stage1": None, "stage2": 1.10, "moss": 1.10}


@torch.no_grad()
def perplexity(checkpoints: Mapping[str, str | Path], corpus: Corpus) -> Measured:
    """
    Perplexity of held-out documents of text, through the text head alone, in float32.

    Args:
        checkpoints: `"text_model"` (Qwen3) and stages of `STAGES` (split layers) with their folders; some may be missing.
        corpus: `texts` of its test split are read.

    Raises:
        ValueError: the checkpoints read the same text as other ids.
    """
    texts = [" ".join(row["chunks"]) for row in corpus.rows("texts")]
    measures, kept, ids, losses = [], {}, None, {}
    for name, folder in checkpoints.items():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        read = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        if ids is not None and read != ids:
            raise ValueError(f"`{name}` has another tokenizer than `{next(iter(checkpoints))}`: {str(folder)!r}")
        ids, model = read, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        logits = [_text_logits(model, torch.tensor(row)) for row in ids]
        losses[name] = np.array(
            [torch.nn.functional.cross_entropy(one[:-1], torch.tensor(row[1:]), reduction="sum").item()
             for one, row in zip(logits, ids, strict=True)]
        )  # fmt: skip
        if name in ("text_model", "stage1"):
            kept[name] = logits
    words = np.array([len(row) - 1 for row in ids])
    for name, sums in losses.items():
        measures.append(_perplexity(f"perplexity, {name}", sums, words))
        if name != "text_model" and "text_model" in losses:
            bound = STAGES[name]
            target = None if bound is None else f"<= {bound}"
            measures.append(
                _perplexity(f"perplexity, {name} by text_model", sums, words, losses["text_model"], target=target)
            )
    if len(kept) == 2:
        equal = [torch.equal(a, b) for a, b in zip(kept["text_model"], kept["stage1"], strict=True)]
        measures.append(share("logits of stage1 are those of text_model, bit for bit", equal, target="== 100"))
    lines = [
        {"text": text, "ids": int(n), **{name: float(sums[i]) for name, sums in losses.items()}}
        for i, (text, n) in enumerate(zip(texts, words, strict=True))
    ]
    return measures, lines


def _text_logits(model, ids: torch.Tensor) -> torch.Tensor:
    """`[length, vocabulary]` of one document."""
    if not hasattr(model.config, "audio_pad_token_id"):
        return model(ids[None]).logits[0]
    rows = torch.stack([ids, torch.full_like(ids, model.config.audio_pad_token_id)], dim=-1)
    return model(rows[None], branches=["text"]).text_logits[0]


def _perplexity(name: str, sums: np.ndarray, words: np.ndarray, base: np.ndarray | None = None, **fields) -> Measure:
    """The perplexity, or its quotient by that of `base` on the same documents."""

    def of(rows) -> float:
        return math.exp((sums[rows].sum() - (0 if base is None else base[rows].sum())) / words[rows].sum())

    value, interval = of(np.arange(len(sums))), bootstrap(of, len(sums))
    return Measure(name, value, len(sums), *interval, "bootstrap", unit="", **fields)


__all__ = ["FORMS", "STAGES", "MossEvaluation", "perplexity"]
