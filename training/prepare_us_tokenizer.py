"""Rows of asr, ser and sqa for the training of the USTokenizer, with their recordings read, checked and resampled once.

    python -m dualspeech.training.prepare_us_tokenizer rows.jsonl --output rows/train --num-workers 4 --resample

The USTokenizer trains on spectrograms, which are larger than recordings and quickly made of them: what is stored are the
recordings, as 16-bit FLAC at its rate. Rows that cannot be used end up in `rejected/` beside the shards, each with a
reason, and are counted at the end. An interrupted command goes on where it stopped when it is given again.
What is left are task rows again, without files beside them.
"""

import argparse
import sys
from collections.abc import Sequence

from .preparation import add_arguments, prepare


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m dualspeech.training.prepare_us_tokenizer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.add_argument("--sampling-rate", type=int, default=16000, help="in Hz (default: %(default)s)")
    parser.add_argument(
        "--max-seconds", type=float, default=30.0, help="longer recordings are rejected (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    from .data_steps.understanding_rows import PrepareUnderstanding

    step = PrepareUnderstanding(options.resample, options.sampling_rate, options.max_seconds, check_schema=True)
    return prepare(step, options, "task")


__all__ = ["main"]


if __name__ == "__main__":
    sys.exit(main())
