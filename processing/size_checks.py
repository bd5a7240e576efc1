"""Whether a processor and what it works with have the same sizes and ids."""

from collections.abc import Mapping
from typing import Any

from ..configuration.configuration_dualspeech import DualSpeechConfig


def sizes_of_model(config: DualSpeechConfig) -> dict[str, int | None]:
    """The arguments of the processor that a model decides."""
    acoustic = config.acoustic_config
    if acoustic is None:
        sizes = {"acoustic_codebook_size": None, "num_acoustic_codebooks": 1, "speaker_embedding_size": None}
        return sizes | {"semantic_codebook_size": config.semantic_codebook_size}
    eos = acoustic.eos_token_id
    return {
        "semantic_codebook_size": config.semantic_codebook_size,
        "acoustic_codebook_size": acoustic.codebook_size,
        "num_acoustic_codebooks": acoustic.num_codebooks,
        "speaker_embedding_size": config.speaker_embedding_size,
        "acoustic_none_token_id": acoustic.none_token_id,
        "acoustic_eos_token_id": eos[0] if isinstance(eos, (list, tuple)) else eos,
    }


def raise_on_difference(other: str, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raise a `ValueError` that lists every entry of `mine` whose value in `theirs` is another one."""
    different = [
        f"`{name}`: processor {value}, {other} {theirs[name]}" for name, value in mine.items() if value != theirs[name]
    ]
    if different:
        raise ValueError(f"the processor and the {other} differ in " + "; ".join(different))


__all__ = ["raise_on_difference", "sizes_of_model"]
