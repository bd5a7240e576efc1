"""Measures the eight tasks of dualspeech-nano, and its codec alone, on rows of the test split."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from nano_listening import Answer, Corpus, Ears, Spoken, batches
from nano_recognizer import normalize
from nano_scores import Measure, WordErrors, bleu, share
from nano_voices import UNSEEN_VOICES, VOICES
from transformers import AutoModelForMultimodalLM, AutoProcessor

from dualspeech.processing.tasks import TASKS

# Beam search without sampling, with as many beams as the checkpoint says; speech as the checkpoint says.
TEXT_SETTINGS = {"do_sample": False}
Measured = tuple[list[Measure], list[dict]]


def listener_group(row: dict) -> str:
    """Which recordings a row of speech recognition belongs to."""
    voice, takes = row["metadata"]["voice"], row["metadata"].get("takes")
    if takes is not None:
        return f"human {takes}"
    return "known" if voice in VOICES else "unseen" if voice in UNSEEN_VOICES else voice


# Group of recordings -> name and target of its word error rate.
ASR_GROUPS = {
    "known": ("WER, known voices", "<= 5"),
    "unseen": ("WER, unseen voices", "<= 15"),
    "human unseen": ("WER, human digits, unseen speaker", "<= 10"),
    "human known": ("WER, human digits, known speakers, unseen takes", None),
}


class DualSpeechEvaluation:
    """
    Tasks of a checkpoint of DualSpeechLM. Each method of a task gives its measures and a line per row.

    Args:
        checkpoint: folder with the model and its processor, audio tokenizer included.
        corpus: the rows.
        ears: who listens to what is spoken.
        batch_size, seed: of generation.
    """

    def __init__(self, checkpoint: str | Path, corpus: Corpus, ears: Ears, batch_size: int = 16, seed: int = 0):
        self.corpus, self.ears, self.batch_size, self.seed = corpus, ears, batch_size, seed
        self.model = AutoModelForMultimodalLM.from_pretrained(checkpoint).eval()
        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self.processor.check_model(self.model)

    def answers(self, rows: Sequence[dict]) -> list[Answer]:
        """What the model makes of task rows of one kind of answer, in batches."""
        torch.manual_seed(self.seed)
        answers = []
        for batch in batches(rows, self.batch_size):
            examples, refused = self._examples(batch)
            made = iter(self._generated([example for example in examples if example is not None]))
            for example, reason in zip(examples, refused, strict=True):
                answers.append(Answer(failed=f"refused: {reason}") if example is None else next(made))
        return answers

    def _examples(self, rows: Sequence[dict]) -> tuple[list[dict | None], list[str | None]]:
        """Prompts; `None` and the reason for those that the processor refuses, a recording that is too long, say."""
        fields = {name for row in rows for name in (*TASKS[row["task"]].fields, "speaker")}
        given = {name: [row.get(name) for row in rows] for name in sorted(fields)}
        try:
            made = self.processor.build_examples(task=[row["task"] for row in rows], resample=True, **given)
            return made, [None] * len(rows)
        except ValueError as error:
            if len(rows) == 1:
                return [None], [str(error)]
        single = [self._examples([row]) for row in rows]
        return [examples[0] for examples, _ in single], [reasons[0] for _, reasons in single]

    def _generated(self, examples: list[dict]) -> list[Answer]:
        if not examples:
            return []
        speaks = TASKS_BY_ID[examples[0]["task_type_ids"]].output == "speech"
        inputs = self.processor.pad(examples, padding_side="left")
        output = self.model.generate(**inputs, **({} if speaks else TEXT_SETTINGS))
        return [
            Answer(r.text, r.audio, r.sampling_rate, None if r.finish_reason == "eos" else r.finish_reason)
            for r in self.processor.batch_decode(output)
        ]

    def _understood(self, name: str, group: Callable[[dict], str] = lambda row: "") -> tuple[list[dict], list[Answer]]:
        rows = self.corpus.rows(name, group)
        return rows, self.answers(rows)

    def asr(self) -> Measured:
        rows, answers = self._understood("asr", listener_group)
        measures = [
            self._word_errors(rows, answers, name, lambda row, key=key: listener_group(row) == key, target)
            for key, (name, target) in ASR_GROUPS.items()
        ]
        for voice in dict.fromkeys(row["metadata"]["voice"] for row in rows):
            name = f"WER, voice {voice}"
            measures.append(
                self._word_errors(rows, answers, name, lambda row, key=voice: row["metadata"]["voice"] == key)
            )
        return [measure for measure in measures if measure.n], _lines(rows, answers)

    def _word_errors(self, rows, answers, name, chosen, target=None) -> Measure:
        kept = [(row, answer) for row, answer in zip(rows, answers, strict=True) if chosen(row)]
        counted = WordErrors.count(
            [row["targets"] for row, _ in kept],
            [answer.text or "" for _, answer in kept],
            [answer.failed is not None for _, answer in kept],
        )
        return counted.rate(name, target=target)

    def s2tt(self) -> Measured:
        rows, answers = self._understood("s2tt")
        said, failed = [answer.text or "" for answer in answers], [answer.failed is not None for answer in answers]
        wanted = [row["targets"] for row in rows]
        equal = [normalize(a) == normalize(b) for a, b in zip(said, wanted, strict=True)]
        measures = [
            bleu("BLEU-4, English to German", wanted, said, failed, target=">= 60"),
            share("translation word for word", equal, failed),
        ]
        return measures, _lines(rows, answers)

    def ser(self) -> Measured:
        return self._exact("ser", "accuracy", ">= 80", lambda row: row["targets"])

    def sqa(self) -> Measured:
        return self._exact("sqa", "exact match", ">= 80")

    def _exact(self, task: str, name: str, target: str, part: Callable[[dict], str] | None = None) -> Measured:
        rows, answers = self._understood(task)
        hits = [normalize(a.text or "") == normalize(row["targets"]) for a, row in zip(answers, rows, strict=True)]
        failed = [answer.failed is not None for answer in answers]
        measures = [share(name, hits, failed, target=target)]
        for value in dict.fromkeys(map(part, rows)) if part else ():
            kept = [i for i, row in enumerate(rows) if part(row) == value]
            measures.append(share(f"{name}, {value}", [hits[i] for i in kept], [failed[i] for i in kept]))
        return measures, _lines(rows, answers)

    def _spoken(self, task: str, rule: str = "sentence") -> tuple[list[dict], Spoken]:
        rows = self.corpus.rows(task)
        answers = self.answers(rows)
        texts, originals = [row["metadata"]["target_text"] for row in rows], [row["targets"]["audio"] for row in rows]
        return rows, Spoken(self.ears, answers, texts, originals, rule)

    def _speech_task(self, task: str) -> Measured:
        rows, spoken = self._spoken(task)
        voices = [row["metadata"]["voice"] for row in rows]
        measures = spoken.word_errors("<= 10") + spoken.voices(voices, ">= 80")
        return measures, list(spoken.lines(rows))

    def tts(self) -> Measured:
        return self._speech_task("tts")

    def vc(self) -> Measured:
        return self._speech_task("vc")

    def t2st(self) -> Measured:
        return self._speech_task("t2st")

    def sc(self) -> Measured:
        rows, spoken = self._spoken("sc", "answer")
        voices = [row["metadata"]["voice"] for row in rows]
        return spoken.right(">= 60") + spoken.voices(voices), list(spoken.lines(rows))

    def codec_dualspeech(self) -> Measured:
        """Recordings to codes and back, without a language model."""
        rows = self.corpus.rows("recordings")
        answers = [self._resynthesis(row["audio"]) for row in rows]
        spoken = Spoken(self.ears, answers, [row["text"] for row in rows], [row["audio"] for row in rows])
        measures = spoken.word_errors(what="resynthesis") + spoken.voices([row["speaker"] for row in rows])
        return measures, list(spoken.lines(rows))

    def _resynthesis(self, path: str) -> Answer:
        codec = self.processor.audio_tokenizer
        try:
            (row,) = self.processor.encode_audio([path], resample=True, outputs=("acoustic_codes",))
        except ValueError as error:
            return Answer(failed=f"refused: {error}")
        with torch.no_grad():
            samples = codec.decode(torch.from_numpy(row["acoustic_codes"])[None]).audio_values[0, 0]
        return Answer(audio=samples.float().numpy(), rate=codec.output_sampling_rate)


TASKS_BY_ID = {task.id: task for task in TASKS.values()}


def _lines(rows: Sequence[dict], answers: Sequence[Answer]) -> list[dict]:
    return [
        {
            "source": Path(row["source"]).name,
            "wanted": row["targets"],
            "said": answer.text,
            "failed": answer.failed,
            "metadata": row.get("metadata"),
        }
        for row, answer in zip(rows, answers, strict=True)
    ]


__all__ = ["ASR_GROUPS", "DualSpeechEvaluation", "Measured", "listener_group"]
