"""Task rows to token rows for DualSpeechLM: recordings are encoded once, before training.

    python -m dualspeech.training.prepare_dualspeech rows.jsonl --processor my-dualspeech --output tokens/train
    python -m dualspeech.training.prepare_dualspeech rows.jsonl --processor my-dualspeech --output tokens/train \
        --num-workers 4 --batch-size 16 --resample --device cuda

Rows are described in `row_schema.json`; paths of recordings may be relative to the file. Rows that cannot be used end up
in `rejected/` beside the shards, each with a reason, and are counted at the end. An interrupted command goes on where it
stopped when it is given again. `load_token_rows("tokens/train")` is the data set to train on.
"""

import argparse
import sys
from collections.abc import Sequence

from .preparation import add_arguments, add_processor_arguments, prepare, processor_arguments

# The released code drops rows of 2000 ids and more.
_MAX_LENGTH = 1999


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m dualspeech.training.prepare_dualspeech",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    add_processor_arguments(parser, _MAX_LENGTH)
    options = parser.parse_args(arguments)
    from .data_steps.tokenization import TokenizeTasks

    return prepare(TokenizeTasks(**processor_arguments(options)), options, "task")


__all__ = ["main"]


if __name__ == "__main__":
    sys.exit(main())
