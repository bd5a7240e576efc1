"""From what a caller gives for a row to codes and vectors."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .audio import as_array, read_audio
from .row_inputs import Row, codes_of, vector_of

TARGET_KEYS = ("text", "audio", "sampling_rate", "us_codes", "acoustic_codes", "speaker_embeds")


def encode_prompts(rows: list[Row], encode_audio: Callable, sampling_rate: int | None, resample: bool) -> None:
    """Replace the recordings in the fields of `rows` by their USTokens, all in one batch.

    Args:
        encode_audio: as [`DualSpeechProcessor.encode_audio`]; called only if there are recordings.
    """
    recordings = []
    for row in rows:
        for name in row.task.speech_fields:
            codes = codes_of(row.fields[name], sampling_rate)
            if codes is None:
                recordings.append((row.fields, name))
            else:
                row.fields[name] = codes
    if recordings:
        audio = [fields[name] for fields, name in recordings]
        encoded = encode_audio(audio, sampling_rate, resample, outputs=("us_codes",))
        for (fields, name), result in zip(recordings, encoded, strict=True):
            fields[name] = result["us_codes"].tolist()


def encode_targets(
    rows: list[Row],
    encode_audio: Callable,
    sampling_rate: int | None,
    resample: bool,
    has_acoustic_stage: bool,
    has_speakers: bool,
) -> None:
    """Replace the target of each row by `{"answer": text or USTokens, "acoustic_codes": codes or None}`.

    A row that speaks and has no speaker gets the target's. The prompts must have been encoded.

    Raises:
        ValueError: a target that does not fit its task or lacks something.
    """
    spoken = [row for row in rows if row.task.output == "speech"]
    for row in rows:
        row.target = _checked_target(row)
    recorded = [row for row in spoken if row.target.get("audio") is not None]
    outputs = ["us_codes"] if any(row.task.name != "vc" for row in recorded) else []
    outputs += ["acoustic_codes"] * has_acoustic_stage + ["speaker_embeds"] * has_speakers
    if recorded and outputs:
        recordings = [
            read_audio(row.target["audio"], row.target.get("sampling_rate", sampling_rate)) for row in recorded
        ]
        for row, encoded in zip(recorded, encode_audio(recordings, None, resample, outputs), strict=True):
            if row.task.name == "vc":
                encoded.pop("us_codes", None)
            row.target = {**encoded, **row.target}
    for row in spoken:
        # Voice conversion repeats the USTokens of its input: the released training data pairs them so.
        repeated = row.fields["audio"] if row.task.name == "vc" else None
        answer = row.target.get("us_codes", repeated)
        needed = {"us_codes": answer}
        if has_acoustic_stage:
            needed["acoustic_codes"] = row.target.get("acoustic_codes")
        for name, value in needed.items():
            if value is None:
                raise ValueError(f"`targets` of task {row.task.name!r} lacks `{name}`: give it, or `audio`")
        if row.speaker is None and has_speakers:
            row.speaker = row.target.get("speaker_embeds")
        row.target = {"answer": _checked_us_codes(answer), "acoustic_codes": needed.get("acoustic_codes")}


def _checked_us_codes(codes: Any) -> list[int]:
    array = as_array(codes)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"`us_codes` has shape {list(array.shape)}; accepted is [codes], not empty")
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"`us_codes` must be whole numbers, got {array.dtype}")
    return array.tolist()


def _checked_target(row: Row) -> dict[str, Any]:
    """The target as a dict without empty entries; that of a text task in its final form."""
    target = {"text": row.target} if isinstance(row.target, str) else row.target
    speaks = row.task.output == "speech"
    needs = f"`targets` of task {row.task.name!r} needs " + (
        "a dict with `audio`, or with `us_codes` and `acoustic_codes`" if speaks else "a text that is not empty"
    )
    if not isinstance(target, Mapping):
        raise ValueError(f"{needs}, got {type(target).__name__}")
    target = {name: value for name, value in target.items() if value is not None}
    accepted = TARGET_KEYS[1:] if speaks else TARGET_KEYS[:1]
    if wrong := [name for name in target if name not in accepted]:
        raise ValueError(f"{needs}, got {', '.join(map(repr, wrong))}; accepted are {', '.join(map(repr, accepted))}")
    if speaks:
        return target
    if not isinstance(target.get("text"), str) or not target["text"]:
        raise ValueError(f"{needs}, got {target.get('text')!r}")
    return {"answer": target["text"], "acoustic_codes": None}


def resolve_speakers(
    rows: list[Row], encode_audio: Callable, speakers: Mapping[str, np.ndarray], size: int | None, resample: bool
) -> None:
    """Replace the speaker of each row that speaks by its vector, float32 `[size]`.

    Raises:
        ValueError: none given, an unknown name, a vector of another size; or one given and `size` is `None`, for a model
            without a speaker token.
    """
    names = ", ".join(map(repr, speakers)) or "empty"
    recordings = []
    for row in rows:
        if row.task.output != "speech" or (size is None and row.speaker is None):
            continue
        if size is None:
            raise ValueError("`speaker` is given, but the model has no speaker token (`speaker_embedding_size`)")
        if row.speaker is None:
            raise ValueError(
                f"task {row.task.name!r} needs `speaker`: a vector of {size} numbers, a recording, or a name in "
                f"`processor.speakers` ({names})"
            )
        if isinstance(row.speaker, str) and row.speaker in speakers:
            row.speaker = check_speaker(f"speaker {row.speaker!r}", vector_of(speakers[row.speaker]), size)
        elif isinstance(row.speaker, str) and not Path(row.speaker).is_file():
            raise ValueError(
                f"`speaker` {row.speaker!r} is neither a name in `processor.speakers` ({names}) nor an existing file"
            )
        elif (vector := vector_of(row.speaker)) is not None:
            row.speaker = check_speaker("`speaker`", vector, size)
        else:
            recordings.append(row)
    if recordings:
        encoded = encode_audio([row.speaker for row in recordings], None, resample, outputs=("speaker_embeds",))
        for row, result in zip(recordings, encoded, strict=True):
            row.speaker = result["speaker_embeds"]


def check_speaker(name: str, vector: np.ndarray, size: int) -> np.ndarray:
    """`vector`, or a `ValueError` that says why it cannot be a speaker vector."""
    if vector.shape != (size,) or not np.isfinite(vector).all():
        found = "NaN or infinite numbers" if vector.shape == (size,) else f"shape {list(vector.shape)}"
        raise ValueError(
            f"{name} has {found}; accepted is a vector of {size} finite numbers, or a recording with its rate"
        )
    return vector


__all__ = ["check_speaker", "encode_prompts", "encode_targets", "resolve_speakers"]
