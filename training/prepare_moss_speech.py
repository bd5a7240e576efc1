"""Chats or documents to token rows for MOSS-Speech: recordings are encoded once, before training.

    python -m dualspeech.training.prepare_moss_speech chats.jsonl --processor my-moss-speech --output tokens/chats
    python -m dualspeech.training.prepare_moss_speech documents.jsonl --processor my-moss-speech --output tokens/documents \
        --kind document --num-workers 4 --resample --device cuda

Rows are described in `row_schema.json`; paths of recordings may be relative to the file. Rows that cannot be used end up
in `rejected/` beside the shards, each with a reason, and are counted at the end. An interrupted command goes on where it
stopped when it is given again. `load_token_rows(["tokens/chats", "tokens/documents"])` is the data set to train on.
"""

import argparse
import sys
from collections.abc import Sequence

from .preparation import add_arguments, add_processor_arguments, prepare, processor_arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m dualspeech.training.prepare_moss_speech",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    add_processor_arguments(parser, None)
    parser.add_argument(
        "--kind", choices=("chat", "document"), default="chat", help="of the rows (default: %(default)s)"
    )
    parser.add_argument(
        "--no-system-prompt", action="store_true", help="chats without a system turn get none, see `build_examples`"
    )
    parser.add_argument(
        "--learn-start-of-speech", action="store_true", help="of chats: also learn what starts a spoken answer"
    )
    options = parser.parse_args(arguments)
    if options.kind == "document" and (options.no_system_prompt or options.learn_start_of_speech):
        parser.error("--no-system-prompt and --learn-start-of-speech are for chats")
    from .data_steps.tokenization import TokenizeChats, TokenizeDocuments

    common = processor_arguments(options)
    if options.kind == "document":
        step = TokenizeDocuments(**common)
    else:
        step = TokenizeChats(
            **common,
            add_system_prompt=not options.no_system_prompt,
            learn_start_of_speech=options.learn_start_of_speech,
        )
    return prepare(step, options, options.kind)


__all__ = ["main"]


if __name__ == "__main__":
    sys.exit(main())
