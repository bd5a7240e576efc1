"""Checks of data sets before training starts: everything that is wrong, with its place, in one error.

Token rows are looked at as columns of Arrow and NumPy, a hundred thousand rows of 500 ids in seconds.
"""

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile

from ..configuration.configuration_dualspeech import SPEECH_TASKS, TASK_IDS, DualSpeechConfig
from ..configuration.configuration_split_layer_qwen3 import SplitLayerQwen3Config
from ..configuration.configuration_us_tokenizer import UsTokenizerConfig, UsTokenizerForUnderstandingConfig
from ..processing.audio import read_audio
from .data_collator_us_tokenizer import PROMPTS, UsTokenizerCollator
from .example_columns import Column, RowProblems, tables_of

IGNORED = -100
# Rows whose recordings are read at a time.
_ROWS_AT_A_TIME = 1000
_SPEECH_TASK_IDS = np.array([TASK_IDS[name] for name in SPEECH_TASKS])
_TASK_IDS = np.array(sorted(TASK_IDS.values()))


def check_dualspeech_examples(
    dataset: Any,
    config: DualSpeechConfig,
    max_length: int | None = None,
    batch_size: int = 10_000,
    name: str = "dataset",
) -> None:
    """
    Check token rows of DualSpeechLM, as [`DualSpeechProcessor.build_examples`] makes them with `targets`.

    Looked at are: missing columns and columns of another kind; ids and labels outside the vocabulary; spans of speech
    that hold something else than codes or have no end; rows without anything to learn; acoustic labels outside the
    codebook, with another number of codebooks, without their end, or missing where the answer is spoken; speaker
    vectors that are missing, of another size or not finite; rows longer than `max_length`, or than the tables of
    AcousticGPT.

    Args:
        dataset: a `datasets.Dataset`, or a list of rows. Other columns than those of the model are not looked at, but
            `source` names the row in errors.
        config: of the model (or a model).
        max_length: the longest accepted row in ids.
        batch_size: rows looked at together.
        name: what the rows are called in errors, such as the file that holds them.

    Raises:
        ValueError: with the first 20 of the bad rows and their number; or no rows at all.
    """
    config = getattr(config, "config", config)
    problems = RowProblems(name)
    needed = ["input_ids", "labels", "prompt_mask", "task_type_ids"]
    if config.acoustic_config is not None:
        needed += ["acoustic_labels"]
        needed += ["speaker_embeds"] * (config.speaker_embedding_size is not None)
    for table in tables_of(dataset, needed, batch_size, problems):
        _check_dualspeech_table(table, config, max_length, problems)
    problems.raise_if_any()


def check_moss_speech_examples(
    dataset: Any,
    config: SplitLayerQwen3Config,
    max_length: int | None = None,
    batch_size: int = 10_000,
    name: str = "dataset",
) -> None:
    """
    Check token rows of MOSS-Speech, as `MossSpeechProcessor.build_examples` and `build_documents` make them.

    Looked at are: missing columns and columns of another kind; text ids and audio ids outside their vocabularies, or
    behind the end of speech; labels outside the flat ids, or that are the padding of a speech row; rows without
    anything to learn; rows longer than `max_length`.

    Args, Raises: see [`check_dualspeech_examples`].
    """
    config = getattr(config, "config", config)
    problems = RowProblems(name)
    for table in tables_of(dataset, ["input_ids", "labels"], batch_size, problems):
        _check_moss_speech_table(table, config, max_length, problems)
    problems.raise_if_any()


def check_us_tokenizer_rows(
    rows: Iterable[Mapping[str, Any]],
    config: UsTokenizerConfig | UsTokenizerForUnderstandingConfig,
    resample: bool = False,
    decode: bool = True,
    tasks: Sequence[str] = tuple(PROMPTS),
    collator: UsTokenizerCollator | None = None,
) -> None:
    """
    Check rows of the USTokenizer's training: task rows of `row_schema.json`, or rows of [`UsTokenizerCollator`], which
    have their answer as `text`.

    Args:
        rows: the rows; `source`, if any, names them in errors.
        config: of the model or of its tokenizer (or a model).
        resample: whether other rates are converted; without it they are errors.
        decode: read every recording whole. Otherwise only the heads of files are read, which is faster, but a file
            that is broken further behind is not noticed.
        tasks: accepted tasks.
        collator (*optional*): makes the sequences, which must not be longer than the `max_position_embeddings` of its text
            model. Each row is looked at alone, without the padding of a batch.

    Raises:
        ValueError: with the first 20 of the bad rows and their number: a recording that cannot be read, has another
            rate or several channels, or is empty or longer than `max_seconds`; an unknown task, a missing question, an
            empty answer, a sequence that is too long; or no rows at all.
    """
    config = getattr(config, "config", config)
    config = getattr(config, "us_tokenizer_config", config)
    problems = RowProblems("rows")
    for row, size in recording_sizes(rows, config.sampling_rate, resample, decode=decode):
        problems.add_row(row, _us_tokenizer_problems(row, size, config, tasks, collator))
    problems.raise_if_any()


def check_recording_rows(
    rows: Iterable[Mapping[str, Any]],
    sampling_rate: int,
    resample: bool = False,
    channel: int | None = None,
    decode: bool = True,
) -> None:
    """
    Check rows with `audio`, as [`CodecSegments`] takes them.

    Args:
        rows: the rows; `source`, if any, names them in errors.
        sampling_rate: wanted, in Hz.
        resample, decode: see [`check_us_tokenizer_rows`].
        channel: which channel is taken of recordings that have several; without it they are errors.

    Raises:
        ValueError: with the first 20 of the bad rows and their number: a recording that is missing, cannot be read, is
            empty, or has another rate or other channels; or no rows at all.
    """

    problems = RowProblems("rows")
    for row, size in recording_sizes(rows, sampling_rate, resample, channel, decode):
        problems.add_row(row, [str(size)] if isinstance(size, ValueError) else [])
    problems.raise_if_any()


def _check_dualspeech_table(
    table: pa.Table, config: DualSpeechConfig, max_length: int | None, problems: RowProblems
) -> None:
    ids = Column.of(table, "input_ids", 1, problems)
    labels = Column.of(table, "labels", 1, problems)
    mask = Column.of(table, "prompt_mask", 1, problems)
    tasks = Column.of(table, "task_type_ids", 0, problems)
    vocab_size = config.get_text_config().vocab_size
    _check_ids(ids, vocab_size, max_length, problems)
    _check_labels(labels, ids, vocab_size, problems)
    if mask is not None:
        problems.add_rows(mask.lengths != _lengths(ids, mask), "`prompt_mask` and `input_ids` differ in length")
        mask.report((mask.values != 0) & (mask.values != 1), "accepted are 0 and 1", problems)
    _check_spans(ids, config, problems)
    speaks = None
    if tasks is not None:
        tasks.report(~np.isin(tasks.values, _TASK_IDS), f"accepted are {_TASK_IDS.tolist()}", problems)
        speaks = np.isin(tasks.values, _SPEECH_TASK_IDS)
    acoustic = config.acoustic_config
    if acoustic is None:
        if "acoustic_labels" in table.column_names:
            values = Column.of(table, "acoustic_labels", 1, problems)
            if values is not None:
                values.report(values.values != IGNORED, "the model has no acoustic stage", problems)
        return
    codes = Column.of(table, "acoustic_labels", 1 if acoustic.num_codebooks == 1 else 2, problems)
    if codes is not None:
        _check_acoustic(codes, acoustic, speaks, problems)
    if ids is not None:
        # Of every row: the condition is as wide as the batch.
        room = acoustic.max_condition_positions - config.num_condition_tokens
        message = f"the row is longer than the {room} ids that AcousticGPT's `max_condition_positions` leave:"
        problems.add_rows(ids.lengths > room, message, ids.lengths)
    if config.speaker_embedding_size is not None:
        _check_speakers(Column.of(table, "speaker_embeds", 1, problems), config, speaks, problems)


def _check_ids(ids: Column | None, vocab_size: int, max_length: int | None, problems: RowProblems) -> None:
    if ids is None:
        return
    ids.report((ids.values < 0) | (ids.values >= vocab_size), f"accepted are 0 to {vocab_size - 1}", problems)
    _check_lengths(ids, max_length, problems)


def _check_lengths(ids: Column, max_length: int | None, problems: RowProblems) -> None:
    problems.add_rows(ids.lengths == 0, "`input_ids` is empty")
    if max_length is not None:
        long = ids.lengths > max_length
        problems.add_rows(long, f"the row is longer than `max_length` {max_length}:", ids.lengths)


def _check_labels(labels: Column | None, ids: Column | None, size: int, problems: RowProblems) -> None:
    if labels is None:
        return
    problems.add_rows(labels.lengths != _lengths(ids, labels), "`labels` and `input_ids` differ in length")
    learned = labels.values != IGNORED
    wrong = learned & ((labels.values < 0) | (labels.values >= size))
    labels.report(wrong, f"accepted are -100 and 0 to {size - 1}", problems)
    # The model shifts: nothing is predicted at the first position.
    learned[labels.starts[labels.lengths > 0]] = False
    problems.add_rows(~labels.any_per_row(learned), "nothing to learn: `labels` holds no target but -100")


def _check_spans(ids: Column | None, config: DualSpeechConfig, problems: RowProblems) -> None:
    """Between `<audio>` and `</audio>` stand codes, and codes stand nowhere else."""
    if ids is None or not len(ids.values):
        return
    values, offset = ids.values, config.semantic_token_offset
    starts, ends = values == config.audio_start_token_id, values == config.audio_end_token_id
    is_code = (values >= offset) & (values < offset + config.semantic_codebook_size)
    # Spans that are open behind each id, counted over the whole column: a row that begins at another count than 0
    # follows one that is reported itself.
    opened = np.cumsum(starts.astype(np.int8) - ends.astype(np.int8), dtype=np.int64)
    last = opened[(ids.starts + ids.lengths - 1)[ids.lengths > 0]]
    before = np.zeros(len(ids.lengths), dtype=np.int64)
    before[ids.lengths > 0] = np.concatenate([[0], last[:-1]])
    opened -= np.repeat(before, ids.lengths)
    balanced = np.ones(len(ids.lengths), dtype=bool)
    balanced[ids.lengths > 0] = opened[(ids.starts + ids.lengths - 1)[ids.lengths > 0]] == 0
    balanced &= ~ids.any_per_row((opened < 0) | (opened > 1))
    problems.add_rows(~balanced, "`input_ids` has a span of speech without its start or end")
    whole = np.repeat(balanced, ids.lengths)
    codes = f"a span of speech takes the codes {offset} to {offset + config.semantic_codebook_size - 1}"
    ids.report(whole & (opened == 1) & ~starts & ~is_code, codes, problems)
    ids.report(whole & (opened == 0) & is_code, "a code stands outside of a span of speech", problems)


def _check_acoustic(codes: Column, acoustic: Any, speaks: np.ndarray | None, problems: RowProblems) -> None:
    count, values = acoustic.num_codebooks, codes.values
    if count > 1:
        wrong = codes.inner_lengths != count
        codes.report_rows(wrong, f"positions need {count} codebooks", problems)
        if wrong.any():
            return
    none, end = acoustic.none_token_id, acoustic.eos_token_id
    last_of_row = codes.starts + codes.lengths - 1
    is_code = (values >= 0) & (values < acoustic.codebook_size)
    accepted = is_code | (values == none) | (values == end) | (values == IGNORED)
    codes.report(
        ~accepted, f"accepted are the codes 0 to {acoustic.codebook_size - 1}, {none} (none), {end} (end)", problems
    )
    if acoustic.interleaved_codebooks > 1:
        per_book = acoustic.codebook_size // acoustic.interleaved_codebooks
        turn = (np.arange(len(values)) - np.repeat(codes.starts, codes.lengths)) % acoustic.interleaved_codebooks
        message = f"the {acoustic.interleaved_codebooks} codebooks of {per_book} codes must take turns"
        codes.report(is_code & (values // per_book != turn), message, problems)
    room = acoustic.max_target_positions - count + 1
    long = codes.lengths > room
    problems.add_rows(long, f"`acoustic_labels` are longer than AcousticGPT's {room} positions:", codes.lengths)
    problems.add_rows(codes.lengths == 0, f"`acoustic_labels` is empty; rows with a text answer have [{none}, {end}]")
    if speaks is None:
        return
    spoken = codes.any_per_row(is_code)
    problems.add_rows(
        speaks & ~spoken & (codes.lengths > 0), "the answer is spoken, but `acoustic_labels` holds no codes"
    )
    problems.add_rows(~speaks & spoken, "the answer is text, but `acoustic_labels` holds codes")
    by_position = values.reshape(-1, count)
    is_end = (by_position == end).all(axis=1)
    ended = np.zeros(len(spoken), dtype=bool)
    ended[spoken] = is_end[last_of_row[spoken]]
    problems.add_rows(spoken & ~ended, f"`acoustic_labels` does not end with {end}, the end of speech")
    stops = ((by_position == end) | (by_position == none)).any(axis=1)
    stops[last_of_row[spoken]] = False
    within = spoken & codes.any_per_row(stops, inner=False)
    problems.add_rows(within, f"`acoustic_labels` holds {none} (none) or {end} (end) within the speech")


def _check_speakers(
    speakers: Column | None, config: DualSpeechConfig, speaks: np.ndarray | None, problems: RowProblems
) -> None:
    if speakers is None:
        return
    size = config.speaker_embedding_size
    given = speakers.lengths > 0
    wrong = given & (speakers.lengths != size)
    problems.add_rows(wrong, f"`speaker_embeds` needs {size} numbers, has", speakers.lengths)
    speakers.report(~np.isfinite(speakers.values), "accepted are finite numbers", problems)
    if speaks is not None:
        problems.add_rows(speaks & ~given, "the answer is spoken, but there are no `speaker_embeds`")


def _check_moss_speech_table(
    table: pa.Table, config: SplitLayerQwen3Config, max_length: int | None, problems: RowProblems
) -> None:
    ids = Column.of(table, "input_ids", 2, problems)
    labels = Column.of(table, "labels", 1, problems)
    vocab_size, end = config.vocab_size, config.eosp_token_id
    _check_labels(labels, ids, vocab_size + config.audio_vocab_size, problems)
    if labels is not None:
        values = labels.values
        unknown = (values > vocab_size + end) & (values < vocab_size + config.audio_vocab_size)
        labels.report(unknown, f"the last label of speech is {vocab_size + end}, its end", problems)
        silent = values == config.modality_pad_token_id
        labels.report(silent, "it marks rows of speech; their label is `vocab_size` + the audio id", problems)
    if ids is None:
        return
    _check_lengths(ids, max_length, problems)
    wrong = ids.inner_lengths != 2
    ids.report_rows(wrong, "rows need a text id and an audio id", problems)
    if wrong.any():
        return
    text, audio = ids.values[0::2], ids.values[1::2]
    speech = text == config.modality_pad_token_id
    of_text = f"accepted are the text ids 0 to {vocab_size - 1}"
    of_audio = f"accepted are the audio ids 0 to {config.audio_vocab_size - 1}, in rows of speech to {end}"
    for channel, accepted, bad in (
        (0, of_text, (text < 0) | (text >= vocab_size)),
        (1, of_audio, (audio < 0) | (audio >= config.audio_vocab_size) | (speech & (audio > end))),
    ):
        everywhere = np.zeros(len(ids.values), dtype=bool)
        everywhere[channel::2] = bad
        ids.report(everywhere, accepted, problems)


def _lengths(ids: Column | None, other: Column) -> np.ndarray:
    """The lengths that the rows of `other` should have; its own where `input_ids` cannot be read."""
    return other.lengths if ids is None else ids.lengths


def _us_tokenizer_problems(
    row: Mapping[str, Any],
    size: tuple[int, int] | ValueError,
    config: UsTokenizerConfig,
    tasks: Sequence[str],
    collator: UsTokenizerCollator | None,
) -> list[str]:
    found = []
    task = row.get("task")
    if task not in tasks:
        found += [f"`task` is {task!r}; accepted are {', '.join(map(repr, tasks))}"]
    elif "{}" in PROMPTS.get(task, "") and not row.get("question"):
        found += [f"task {task!r} needs `question`, a text that is not empty"]
    answer = row.get("targets", row.get("text"))
    answer = answer.get("text") if isinstance(answer, Mapping) else answer
    if not isinstance(answer, str) or not answer.strip():
        found += [f"the answer (`targets`, or `text`) is {answer!r}; accepted is a text that is not empty"]
    if isinstance(size, ValueError):
        return [*found, str(size)]
    num_samples, rate = size
    if not 0 < num_samples <= config.max_seconds * rate:
        found += [f"`audio` is {num_samples / rate:.3f} s long; accepted is more than 0 to {config.max_seconds} s"]
    if collator is not None and not found:
        length = collator.num_positions({**row, "text": answer}, -(-num_samples * config.sampling_rate // rate))
        longest = getattr(collator.config.text_config, "max_position_embeddings", None)
        if longest is not None and length > longest:
            found += [f"prompt, speech and answer have {length} positions; the text model has {longest}"]
    return found


def recording_sizes(
    rows: Iterable[Mapping[str, Any]],
    sampling_rate: int,
    resample: bool = False,
    channel: int | None = None,
    decode: bool = True,
) -> Iterator[tuple[Mapping[str, Any], tuple[int, int] | ValueError]]:
    """Each row with what [`recording_size`] gives or raises for it, several at a time."""

    def size_of(row: Mapping[str, Any]) -> tuple[int, int] | ValueError:
        try:
            return recording_size(row, sampling_rate, resample, channel, decode)
        except ValueError as error:
            return error

    rows = iter(rows)
    with ThreadPoolExecutor() as pool:  # decoding runs outside of Python's lock
        while batch := list(islice(rows, _ROWS_AT_A_TIME)):
            yield from zip(batch, pool.map(size_of, batch), strict=True)


def recording_size(
    row: Mapping[str, Any],
    sampling_rate: int,
    resample: bool = False,
    channel: int | None = None,
    decode: bool = True,
) -> tuple[int, int]:
    """
    Number of samples and rate in Hz of the recording of a row, from the samples, or without `decode` from the head of
    its file.

    Raises:
        ValueError: there is none, it cannot be read, or has another rate than `sampling_rate` without `resample`, or
            several channels without `channel`; see [`read_audio`].
    """
    source = row.get("audio")
    if source is None:
        raise ValueError("`audio` is missing")
    place = source if isinstance(source, Mapping) else {}
    file = source if isinstance(source, str | os.PathLike | bytes) else place.get("bytes") or place.get("path")
    if decode or file is None or place.get("array") is not None:
        samples, rate = read_audio(source, sampling_rate, channel)
        size = len(samples)
    else:
        size, rate = _size_in_head(file, place.get("start"), place.get("end"), channel)
    if rate != sampling_rate and not resample:
        raise ValueError(f"`audio` has {rate} Hz; accepted are {sampling_rate} Hz, others with `resample`")
    return size, rate


def _size_in_head(
    file: str | os.PathLike | bytes, start: float | None, end: float | None, channel: int | None
) -> tuple[int, int]:
    if not isinstance(file, bytes) and not os.path.isfile(file):
        raise ValueError(f"`audio`: the file {os.fspath(file)!r} does not exist")
    try:
        info = soundfile.info(io.BytesIO(file) if isinstance(file, bytes) else os.fspath(file))
    except soundfile.LibsndfileError as error:
        raise ValueError(f"`audio` cannot be read: {error}") from error
    if channel is None and info.channels != 1:
        raise ValueError(f"`audio` has {info.channels} channels; accepted is mono")
    if channel is not None and not 0 <= channel < info.channels:
        raise ValueError(f"`channel` is {channel}, but `audio` has {info.channels} channels")
    first = 0 if start is None else round(start * info.samplerate)
    last = info.frames if end is None else round(end * info.samplerate)
    if not 0 <= first < last <= info.frames:
        whole = info.frames / info.samplerate
        raise ValueError(f"`audio`: {start} to {end} s is no segment of a recording of {whole} s")
    return last - first, info.samplerate


__all__ = [
    "check_dualspeech_examples",
    "check_moss_speech_examples",
    "check_recording_rows",
    "check_us_tokenizer_rows",
    "recording_size",
    "recording_sizes",
]
