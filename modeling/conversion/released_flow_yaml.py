"""The settings file beside released flow decoders (`flow/config.yaml`, `cosyvoice2.yaml`), read as data.

Such a file is YAML with tags that name Python classes to build (`!new:`, `!name:`, `!apply:`) and references to other
entries (`!ref <name>`, also products). Nothing is imported or called here: tags are dropped, references resolved.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ...configuration.configuration_moss_speech_codec import MossSpeechCodecConfig

_REFERENCE = re.compile(r"<([^<>]+)>")


class _Reference(str):
    """What stands behind a tag `!ref`."""


class _DataLoader(yaml.SafeLoader):
    """YAML without the meaning of its tags."""


def _without_tag(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    text = loader.construct_scalar(node)
    return _Reference(text) if suffix == "ref" else text


_DataLoader.add_multi_constructor("!", _without_tag)


def read_flow_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """Entries of the file by their path (`"chunk_size"`, `"flow.vocab_size"`); references that are no name and no product
    of names are left out.

    Raises:
        ValueError: the file does not exist, is no YAML, or holds no mapping.
    """
    path = Path(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _DataLoader)  # a safe loader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"settings: {str(path)!r} cannot be read as YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"settings: {str(path)!r} holds a {type(content).__name__}, expected a mapping.")
    flat: dict[str, Any] = {}
    _flatten("", content, flat)
    resolved = {name: _resolve(value, flat) for name, value in flat.items()}
    return {name: value for name, value in resolved.items() if not isinstance(value, _Reference)}


def _flatten(prefix: str, content: Mapping, flat: dict[str, Any]) -> None:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            _flatten(f"{name}.", value, flat)
        else:
            flat[name] = value


def _resolve(value: Any, flat: Mapping[str, Any], depth: int = 0) -> Any:
    """A value, with references replaced by what they name: one entry, or a product of entries."""
    if not isinstance(value, _Reference) or depth > len(flat):
        return value
    product = None
    for factor in value.split("*"):
        match = _REFERENCE.fullmatch(factor.strip())
        if match is None or match[1] not in flat:
            return value
        factor = _resolve(flat[match[1]], flat, depth + 1)
        if product is not None and not all(isinstance(number, int | float) for number in (product, factor)):
            return value
        product = factor if product is None else product * factor
    return product


def check_flow_yaml(settings: Mapping[str, Any], config: MossSpeechCodecConfig) -> list[str]:
    """Compare a file with the configuration that was read from the tensors beside it.

    Args:
        settings: what [`read_flow_yaml`] returns.
        config: of the codec.

    Returns:
        The names of the settings that were compared.

    Raises:
        ValueError: settings that contradict the tensors (all are listed), or none that is known.
    """
    flow = config.flow_config
    common = {
        "spk_embed_dim": flow.speaker_embedding_size,
        "token_mel_ratio": flow.upsample_ratio,
        "pre_lookahead_len": flow.pre_lookahead,
    }
    expected = {
        "sample_rate": config.sampling_rate,
        "token_frame_rate": config.frame_rate,
        **common,
        **{f"flow.{name}": value for name, value in common.items()},
        "flow.input_frame_rate": config.frame_rate,
        "flow.input_size": flow.hidden_size,
        "flow.output_size": flow.num_mel_bins,
        "flow.vocab_size": flow.vocab_size,
    }
    compared = [name for name in expected if name in settings]
    if not compared:
        raise ValueError(
            f"settings: none of {', '.join(expected)} is in the file; it is no settings of a flow decoder."
        )
    different = [
        f"{name} {settings[name]} instead of {expected[name]}" for name in compared if settings[name] != expected[name]
    ]
    if different:
        raise ValueError(f"settings: they do not fit the checkpoint: {', '.join(different)}.")
    return compared


__all__ = ["check_flow_yaml", "read_flow_yaml"]
