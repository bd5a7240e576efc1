"""Callbacks that the training scripts of both language models share: samples at each evaluation, pushes to the Hub."""

from dataclasses import dataclass, field

from transformers import TrainerCallback

from dualspeech import PushToHubCallback, SamplesCallback
from dualspeech.training.validate_rows import read_rows


@dataclass
class CallbackArguments:
    sample_rows: str | None = field(
        default=None,
        metadata={"help": "raw rows (JSON Lines) that the model answers at each evaluation: text, WAV, mel picture"},
    )
    sample_new_tokens: int = field(default=400, metadata={"help": "ids at most of an answer of `sample_rows`"})
    push_checkpoints_to: str | None = field(
        default=None, metadata={"help": "Hub repository: each checkpoint is pushed with processor, code and card"}
    )


def callbacks(arguments: CallbackArguments, processor) -> list[TrainerCallback]:
    """What the arguments ask for."""
    found: list[TrainerCallback] = []
    if arguments.sample_rows is not None:
        rows = read_rows(arguments.sample_rows)
        found.append(SamplesCallback(processor, rows, max_new_tokens=arguments.sample_new_tokens))
    if arguments.push_checkpoints_to is not None:
        found.append(PushToHubCallback(arguments.push_checkpoints_to, processor=processor))
    return found
