"""Measure the nano checkpoints on the test split of the nano corpus.

    pip install -r examples/nano/requirements.txt && pip install --no-deps resemblyzer
    python examples/nano/evaluate.py --corpus outputs/nano/corpus --dualspeech model_cards/dualspeech-nano \\
        --moss model_cards/moss-speech-nano --output outputs/nano/results.json
    python examples/nano/evaluate.py ... --tasks asr,tts --limit 20        # a part, with 20 rows of each group

Speech is heard by recognisers that are not ours (pocketsphinx with a grammar, resemblyzer), beside the synthesizer's own
recordings of the same sentences. Texts are decoded by beam search or greedily, speech as the checkpoint says, with a seed.
The file is written task by task; a task that is in it, for the same checkpoint and rows, is not run again. What was said in
each row is in `results/<task>.jsonl` beside it.
"""

import argparse
import platform
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import transformers
from nano_dualspeech_tasks import DualSpeechEvaluation
from nano_listening import Corpus, Ears
from nano_moss_tasks import MossEvaluation, perplexity
from nano_results import TASKS, TEXT_STAGES, Results, checkpoint_digest, digest, plain_table, table_cells


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path("outputs/nano/corpus"), help="folder of make_corpus.py")
    parser.add_argument("--dualspeech", help="folder of dualspeech-nano; without it, its tasks are left out")
    parser.add_argument("--moss", help="folder of moss-speech-nano; without it, its tasks are left out")
    parser.add_argument("--text_model", help="folder of the Qwen3 text model, for the perplexity")
    parser.add_argument("--stage1", help="folder of stage 1, for the perplexity")
    parser.add_argument("--stage2", help="folder of stage 2, for the perplexity")
    parser.add_argument("--tasks", help=f"some of {','.join(TASKS)}; all by default")
    parser.add_argument("--limit", type=int, help="rows of each group; all by default")
    parser.add_argument("--output", type=Path, default=Path("outputs/nano/results.json"))
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0, help="of sampled speech")
    parser.add_argument("--again", action="store_true", help="run tasks that are in the file, too")
    options = parser.parse_args(arguments)
    options.tasks = chosen_tasks(options)
    for name in ("limit", "batch_size"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}; at least 1 is needed")
    return options


def chosen_tasks(options: argparse.Namespace) -> list[str]:
    """
    The tasks to run, in the order of `TASKS`.

    Raises:
        ValueError: an unknown task, or one whose checkpoint is not given.
    """
    possible = [task for task, (name, _) in TASKS.items() if getattr(options, name)]
    if any(getattr(options, name) for name in TEXT_STAGES) and "perplexity" not in possible:
        possible.append("perplexity")
    named = possible if options.tasks is None else options.tasks.split(",")
    if unknown := [task for task in named if task not in TASKS]:
        raise ValueError(f"`tasks` has {', '.join(unknown)}; accepted are {', '.join(TASKS)}")
    if missing := [task for task in named if task not in possible]:
        raise ValueError(f"`tasks` has {', '.join(missing)}, which need --{TASKS[missing[0]][0]}")
    if not named:
        raise ValueError("there is nothing to measure: give --dualspeech, --moss or --text_model")
    return [task for task in TASKS if task in named]


def checkpoints_of(task: str, options: argparse.Namespace) -> dict[str, str]:
    """Name and folder of the checkpoints of a task."""
    names = TEXT_STAGES if task == "perplexity" else (TASKS[task][0],)
    return {name: getattr(options, name) for name in names if getattr(options, name)}


def main(arguments: list[str] | None = None) -> Results:
    options = parse(arguments)
    corpus, results = Corpus(options.corpus, options.limit), Results(options.output)
    ears, fingerprint = Ears(corpus), cache(checkpoint_digest)

    @cache
    def evaluation(name: str) -> DualSpeechEvaluation | MossEvaluation:
        kind = {"dualspeech": DualSpeechEvaluation, "moss": MossEvaluation}[name]
        return kind(getattr(options, name), corpus, ears, options.batch_size, options.seed)

    def measure(task: str) -> Callable:
        if task == "perplexity":
            return lambda: perplexity(checkpoints_of(task, options), corpus)
        return getattr(evaluation(TASKS[task][0]), task)

    for task in options.tasks:
        inputs = {
            "checkpoints": {name: fingerprint(folder) for name, folder in checkpoints_of(task, options).items()},
            "rows": digest(corpus.file(name) for name in TASKS[task][1]),
            "limit": options.limit,
            "seed": options.seed,
        }
        if results.is_done(task, inputs) and not options.again:
            print(f"{task}: is in {options.output}", flush=True)
            continue
        start = time.perf_counter()
        measures, rows = measure(task)()
        seconds = time.perf_counter() - start
        results.add(task, inputs, measures, rows, seconds, about(options))
        print(f"{task}: {len(rows)} rows in {seconds:.0f} s", flush=True)
    print(plain_table(table_cells({task: results.measures(task) for task in options.tasks})))
    return results


def about(options: argparse.Namespace) -> dict:
    """What the numbers were measured with."""
    versions = (
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    return {"batch_size": options.batch_size, "versions": versions}


if __name__ == "__main__":
    main()
