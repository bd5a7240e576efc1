"""Write the measured numbers into the model cards of the nano checkpoints.

    python examples/nano/write_cards.py outputs/nano/results.json --dualspeech model_cards/dualspeech-nano \\
        --moss model_cards/moss-speech-nano --commit 0123abc --seeds "text model 42, encoder 1, dualspeech 1"

The card is `README.md` of a checkpoint folder, from the template of the library; `push_to_hub` publishes the folder with it.
Numbers of another checkpoint than the one in the folder are refused.
"""

import argparse
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult
from nano_lexicon import LANGUAGES
from nano_results import TASKS, Results, checkpoint_digest, markdown_table, table_cells
from nano_scores import Measure
from nano_voices import UNSEEN_VOICES, VOICES
from transformers import AutoConfig

import dualspeech  # noqa: F401  (registers the classes)
from dualspeech.hub import create_model_card

# Task -> type of task on the Hub.
TASK_TYPES = {
    "asr": "automatic-speech-recognition",
    "s2tt": "translation",
    "ser": "audio-classification",
    "sqa": "question-answering",
    "tts": "text-to-speech",
    "vc": "audio-to-audio",
    "codec_dualspeech": "audio-to-audio",
    "codec_moss": "audio-to-audio",
    "perplexity": "text-generation",
}
DESCRIPTIONS = {
    "dualspeech": "DualSpeechLM of a few million parameters that recognises, translates, answers, speaks and converts "
    "voices in a micro-language",
    "moss": "MOSS-Speech of a few million parameters that answers questions in a micro-language, in text or in speech, "
    "without text in between",
}
LIMITATIONS = (
    "It knows the sentences of a micro-language and nothing else: {names} voices of espeak-ng and flite, about 150 English "
    "words and their German, Spanish and French translations, recorded digits. It is for tests and demonstrations on a CPU."
)


def measured(results: Results, name: str, folder: str | Path) -> dict[str, list[Measure]]:
    """
    The measures of the tasks of a checkpoint.

    Raises:
        ValueError: there are none, or they are of other weights than those in `folder`.
    """
    checkpoints = {task: found["inputs"]["checkpoints"] for task, found in results.tasks.items()}
    tasks = [task for task in TASKS if name in checkpoints.get(task, {})]
    mine = checkpoint_digest(folder)
    for task in tasks:
        if (theirs := checkpoints[task][name]) != mine:
            raise ValueError(f"{task} was measured on the checkpoint {theirs}, but {str(folder)!r} is {mine}")
    if not tasks:
        raise ValueError(f"{str(results.path)!r} has no numbers of --{name}")
    return {task: results.measures(task) for task in tasks}


def evaluation_results(measures: dict[str, list[Measure]]) -> list[EvalResult]:
    """Numbers that have a target, as metadata of a card."""
    return [
        EvalResult(
            task_type=TASK_TYPES.get(task, "any-to-any"),
            dataset_type="nano",
            dataset_name="nano corpus",
            metric_type=_metric_type(m),
            metric_value=round(m.value, 2),
            task_name=task,
            dataset_split="test",
            metric_name=f"{m.name}{f' ({m.unit})' if m.unit else ''}",
        )
        for task, found in measures.items()
        for m in found
        if m.target is not None and m.value is not None
    ]


def _metric_type(measure: Measure) -> str:
    if "WER" in measure.name:
        return "wer"
    if measure.unit == "BLEU":
        return "bleu"
    return "accuracy" if measure.interval == "Wilson" else measure.name.split(",")[0].replace(" ", "_")


def training_text(measures: dict[str, list[Measure]], about: dict[str, Any], commit: str, seeds: str) -> str:
    """How it was trained, and the table of all numbers."""
    notes = [f"- {task}, {m.name}: {m.note}." for task, found in measures.items() for m in found if m.note]
    lines = [
        f"By the scripts and recipes in `examples/nano/` at commit `{commit}`; seeds: {seeds}.",
        "",
        "### Measured numbers",
        "",
        f"`python examples/nano/evaluate.py`, test split, {about['versions']}, seed {about['inputs']['seed']}, batches of "
        f"{about['batch_size']}"
        + (f", the first {about['inputs']['limit']} rows of each group" if about["inputs"]["limit"] else "")
        + ". Rows that were cut by their length, do not speak, or were refused are errors, and are counted as failed. "
        "Intervals are of 95 %: Wilson's for shares, the bootstrap over rows for the others.",
        "",
        markdown_table(table_cells(measures)),
    ]
    return "\n".join([*lines, *(["", *dict.fromkeys(notes)] if notes else [])])


def limitations_text(measures: dict[str, list[Measure]]) -> str:
    missed = [
        f"{task}: {m.name} ({m.target})" for task, found in measures.items() for m in found if m.reached is False
    ]
    text = LIMITATIONS.format(names=f"{len(VOICES)} known and {len(UNSEEN_VOICES)} unseen")
    return f"{text}\n\nTargets that were not reached: {'; '.join(missed) if missed else 'none'}."


def write_card(folder: str | Path, name: str, results: Results, model_id: str, commit: str, seeds: str) -> Path:
    """Write `README.md` of a checkpoint; returns its path."""
    measures = measured(results, name, folder)
    abouts = [results.tasks[task] for task in measures]
    if different := [key for key in ("seed", "limit") if len({about["inputs"][key] for about in abouts}) > 1]:
        raise ValueError(f"the tasks were measured with several values of {', '.join(different)}; run them alike")
    card = create_model_card(
        model_id,
        config=AutoConfig.from_pretrained(folder),
        language=list(LANGUAGES) if name == "dualspeech" else "en",
        tags=["nano"],
        results=evaluation_results(measures),
        description=f"{DESCRIPTIONS[name]}. Trained from nothing on synthetic speech and recorded digits.",
        training=training_text(measures, abouts[0], commit, seeds),
        limitations=limitations_text(measures),
    )
    path = Path(folder) / "README.md"
    card.save(path)
    return path


def main(arguments: list[str] | None = None) -> list[Path]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", help="file of evaluate.py")
    parser.add_argument("--dualspeech", help="folder of dualspeech-nano")
    parser.add_argument("--moss", help="folder of moss-speech-nano")
    parser.add_argument("--owner", default="dualspeech", help="of the repositories on the Hub")
    parser.add_argument("--commit", required=True, help="commit of the scripts that trained them")
    parser.add_argument("--seeds", required=True, help="seeds of the trainings, in words")
    options = parser.parse_args(arguments)
    if not Path(options.results).is_file():
        parser.error(f"{options.results} does not exist")
    results, written = Results(options.results), []
    for name in ("dualspeech", "moss"):
        if folder := getattr(options, name):
            model_id = f"{options.owner}/{Path(folder).resolve().name}"
            written.append(write_card(folder, name, results, model_id, options.commit, options.seeds))
            print(f"{written[-1]}: {len(table_cells(measured(results, name, folder)))} numbers")
    if not written:
        parser.error("give --dualspeech, --moss, or both")
    return written


if __name__ == "__main__":
    main()

__all__ = ["evaluation_results", "limitations_text", "main", "measured", "training_text", "write_card"]
