r"""Convert the speech encoder of MOSS-Speech's codec, or the tokenizer of GLM-4-Voice, into [`WhisperVqModel`].

    python -m dualspeech.modeling.conversion.convert_whisper_vq_to_hf \
        --checkpoint MOSS-Speech-Codec/ --output_dir moss-speech-encoder/

Both repositories hold a `config.json` of Whisper's kind and safetensors. In MOSS-Speech's the tensors are those of a
whole training module: only keys with the prefix `encoder.` count, and of its layers only those in front of the
quantiser. What these two rules leave out is reported; any other surplus key is an error.
"""

import argparse
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING

from ...configuration.configuration_whisper_vq import WhisperVqConfig
from ..modeling_whisper_vq import WhisperVqModel
from .checkpoint_io import check_output_dir, load_foreign_state_dict, load_strictly, save_converted

PREFIX = "encoder."
BEHIND_QUANTIZER = re.compile(r"layers\.(\d+)\..+|layer_norm\.(?:weight|bias)")

# names of fields that both configurations have
SAME_FIELDS = (
    "d_model",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "num_mel_bins",
    "max_source_positions",
    "pooling_kernel_size",
    "pooling_type",
    "quantize_vocab_size",
    "quantize_causal_block_size",
    "quantize_ema_decay",
    "quantize_restart_interval",
    "quantize_commit_coefficient",
    "quantize_loss_scale",
    "activation_function",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "init_std",
)
REQUIRED_FIELDS = (
    *SAME_FIELDS[:8],
    "encoder_layers",
    "quantize_position",
    "encoder_causal_attention",
    "encoder_causal_convolution",
)
# what the model is built for
FIXED_VALUES = {"encoder_causal_convolution": True, "quantize_encoder_only": True, "scale_embedding": False}


def config_from_released(released: Mapping) -> WhisperVqConfig:
    """The configuration that the content of a released `config.json` describes.

    `encoder_layers` counts the layers of the Whisper model it came from; `quantize_position` of them exist.

    Raises:
        ValueError: fields that are missing, or an architecture that [`WhisperVqModel`] is not.
    """
    if missing := [name for name in REQUIRED_FIELDS if released.get(name) is None]:
        raise ValueError(f"config: it lacks {', '.join(missing)}; expected the config.json of a released encoder.")
    for name, accepted in FIXED_VALUES.items():
        if released.get(name, accepted) != accepted:
            raise ValueError(f"config: {name} must be {accepted}, got {released[name]}.")
    layers, causal = released["quantize_position"], released["encoder_causal_attention"]
    if not 1 <= layers <= released["encoder_layers"]:
        raise ValueError(
            f"config: quantize_position must be between 1 and encoder_layers={released['encoder_layers']}, got {layers}."
        )
    if released.get("pooling_position", layers) != layers:
        raise ValueError(
            f"config: pooling_position must equal quantize_position={layers}, got {released['pooling_position']}."
        )
    if released.get("quantize_causal_encoder", causal) != causal:
        raise ValueError(
            f"config: quantize_causal_encoder must equal encoder_causal_attention={causal}, "
            f"got {released['quantize_causal_encoder']}."
        )
    if not causal and released.get("quantize_causal_block_size") is None:
        raise ValueError("config: it lacks quantize_causal_block_size, which an encoder that is not causal needs.")
    fields = {name: released[name] for name in SAME_FIELDS if released.get(name) is not None}
    return WhisperVqConfig(encoder_layers=layers, attention_mode="causal" if causal else "block", **fields)


def select_keys(state: Mapping[str, Tensor], released: Mapping) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the encoder under our names, and the keys that were left out by rule.

    Left out are, where any key has the prefix `encoder.`, all keys without it (decoder, output layer), and the part of
    the encoder behind the quantiser (layers from `quantize_position` to `encoder_layers`, the final norm). All else is
    kept, also what is not understood.
    """
    is_module = any(key.startswith(PREFIX) for key in state)
    selected, left_out = {}, []
    for key, value in state.items():
        name = key.removeprefix(PREFIX) if is_module else key
        match = BEHIND_QUANTIZER.fullmatch(name)
        is_behind = match and (
            match[1] is None or released["quantize_position"] <= int(match[1]) < released["encoder_layers"]
        )
        if (is_module and not key.startswith(PREFIX)) or is_behind:
            left_out.append(key)
        else:
            selected[name] = value
    return selected, left_out


def build_model(state: Mapping[str, Tensor], released: Mapping) -> tuple[WhisperVqModel, list[str]]:
    """The model of a released state dict, in evaluation mode, and the keys that were left out by rule.

    Args:
        state: foreign key -> tensor, of the whole codec file or of the tokenizer of GLM-4-Voice.
        released: content of the `config.json` beside it.

    Raises:
        ValueError: see [`config_from_released`]; listing every key that is missing, not understood or of another shape.
    """
    model = WhisperVqModel(config_from_released(released))
    selected, left_out = select_keys(state, released)
    load_strictly(model, selected)
    return model.eval(), left_out


def read_released_config(path: str | os.PathLike) -> dict:
    """The content of a `config.json`.

    Raises:
        ValueError: there is no such file, or it holds something else than a JSON object.
    """
    try:
        released = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"config: {str(path)!r} cannot be read: {error}") from error
    if not isinstance(released, dict):
        raise ValueError(f"config: {str(path)!r} holds a {type(released).__name__}, expected an object.")
    return released


def convert(checkpoint: str, output_dir: str, config: str | None = None) -> list[str]:
    """Read, convert and save, with the feature extractor beside the model; nothing is written unless all fits.

    Args:
        checkpoint: the folder of a released repository, or a file with its tensors.
        output_dir: a new or empty folder.
        config: the released `config.json`; by default the one in the folder of the checkpoint.

    Returns:
        The keys that were left out by rule.
    """
    check_output_dir(output_dir)
    path = Path(checkpoint)
    released = read_released_config(config or (path if path.is_dir() else path.parent) / "config.json")
    model, left_out = build_model(load_foreign_state_dict(path), released)
    save_converted(model, output_dir, feature_extractor_of(model.config))
    return left_out


def feature_extractor_of(config: WhisperVqConfig):
    """The registered feature extractor for such a model, or `None` where its pieces are no whole seconds."""
    seconds, rest = divmod(config.max_samples, config.sampling_rate)
    if rest:
        return None
    return FEATURE_EXTRACTOR_MAPPING[type(config)](
        feature_size=config.num_mel_bins, chunk_length=seconds, samples_per_code=config.samples_per_code
    )


def main(args: list[str] | None = None) -> None:
    """Command line of [`convert`]."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="folder of a released repository, or a file with tensors")
    parser.add_argument("--output_dir", required=True, help="new or empty folder")
    parser.add_argument("--config", help="released config.json, where it is not beside the checkpoint")
    left_out = convert(**vars(parser.parse_args(args)))
    print(f"{len(left_out)} tensors outside the encoder up to its quantiser were left out")
    for key in left_out:
        print(f"  {key}")


if __name__ == "__main__":
    main()

__all__ = [
    "build_model",
    "config_from_released",
    "convert",
    "feature_extractor_of",
    "read_released_config",
    "select_keys",
]
