r"""Convert a released flow decoder (MOSS-Speech `flow.pt`, `flow-chunk-5.pt`, `flow-chunk-25.pt`; CosyVoice 2 `flow.pt`)
into [`FlowDecoderModel`].

    python -m dualspeech.modeling.conversion.convert_flow_decoder_to_hf \
        --checkpoint flow-chunk-25.pt --output_dir flow-decoder-chunk-25/

The sizes are read from the tensors; the chunk size is no tensor: it is taken from the name of the file
(`...chunk-25...`), otherwise it is 5 codes for MOSS-Speech and 25 for CosyVoice 2.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...configuration.configuration_flow_decoder import FlowDecoderConfig
from ..modeling_flow_decoder import FlowDecoderModel
from .checkpoint_io import (
    KeyRule,
    check_dimensions,
    check_output_dir,
    convert_keys,
    load_foreign_state_dict,
    load_strictly,
    save_converted,
)

TRAINING_ENTRIES = ("epoch", "step")  # what checkpoints written while training hold besides tensors
COSYVOICE2_RATIO = 2  # mel frames per code, by which its checkpoints differ from those of MOSS-Speech
MOSS_VOCAB, MOSS_CODES = 20480, 16384


def _to_linear(weight: Tensor) -> Tensor:
    """Weight `[out, in, kernel]` of a convolution as that of a product with joined frames, `[out, kernel * in]`."""
    out_channels, in_channels, kernel = weight.shape
    return weight.transpose(1, 2).reshape(out_channels, kernel * in_channels)


def _convolution(old: str, new: str) -> list[KeyRule]:
    return [KeyRule(f"{old}weight", f"{new}weight", _to_linear), KeyRule(f"{old}bias", f"{new}bias")]


def _rules() -> tuple[KeyRule, ...]:
    rules = [
        KeyRule(r"input_embedding\.weight", "code_embedding.weight"),
        KeyRule(r"spk_embed_affine_layer\.(weight|bias)", r"speaker_proj.\1"),
        KeyRule(r"encoder_proj\.(weight|bias)", r"encoder_proj.\1"),
        *_convolution(r"encoder\.pre_lookahead_layer\.(conv[12])\.", r"encoder.lookahead.\1."),
        *_convolution(r"encoder\.up_layer\.conv\.", "encoder.upsample.conv."),
        KeyRule(r"encoder\.after_norm\.(weight|bias)", r"encoder.norm.\1"),
    ]
    for old, new in (("embed", "embed"), ("up_embed", "upsampled_embed")):
        rules.append(KeyRule(rf"encoder\.{old}\.out\.0\.(weight|bias)", rf"encoder.{new}.linear.\1"))
        rules.append(KeyRule(rf"encoder\.{old}\.out\.1\.(weight|bias)", rf"encoder.{new}.norm.\1"))
    in_encoder_layer = {
        r"self_attn\.linear_([qkv])\.(weight|bias)": r"attention.\2_proj.\3",
        r"self_attn\.linear_out\.(weight|bias)": r"attention.o_proj.\2",
        r"self_attn\.linear_pos\.weight": "attention.pos_proj.weight",
        r"self_attn\.(pos_bias_[uv])": r"attention.\2",
        r"feed_forward\.w_([12])\.(weight|bias)": r"fc\2.\3",
        r"norm_mha\.(weight|bias)": r"attention_norm.\2",
        r"norm_ff\.(weight|bias)": r"mlp_norm.\2",
    }
    for old, new in (("encoders", "layers"), ("up_encoders", "upsampled_layers")):
        rules += [
            KeyRule(rf"encoder\.{old}\.(\d+)\.{inner}", rf"encoder.{new}.\1.{to}")
            for inner, to in in_encoder_layer.items()
        ]
    estimator = r"decoder\.estimator\."
    rules += [
        KeyRule(estimator + r"time_mlp\.linear_([12])\.(weight|bias)", r"estimator.time_embedding.linear\1.\2"),
        *_convolution(estimator + r"final_block\.block\.0\.", "estimator.final_block.conv."),
        KeyRule(estimator + r"final_block\.block\.2\.(weight|bias)", r"estimator.final_block.norm.\1"),
        *_convolution(estimator + r"final_proj\.", "estimator.out_proj."),
    ]
    in_stage = {
        r"0\.mlp\.1\.(?P<p>weight|bias)": r"resnet.time_proj.\g<p>",
        r"0\.block(?P<n>[12])\.block\.2\.(?P<p>weight|bias)": r"resnet.block\g<n>.norm.\g<p>",
        r"1\.(?P<n>\d+)\.norm1\.(?P<p>weight|bias)": r"layers.\g<n>.attention_norm.\g<p>",
        r"1\.(?P<n>\d+)\.norm3\.(?P<p>weight|bias)": r"layers.\g<n>.mlp_norm.\g<p>",
        r"1\.(?P<n>\d+)\.attn1\.to_(?P<q>[qkv])\.weight": r"layers.\g<n>.attention.\g<q>_proj.weight",
        r"1\.(?P<n>\d+)\.attn1\.to_out\.0\.(?P<p>weight|bias)": r"layers.\g<n>.attention.o_proj.\g<p>",
        r"1\.(?P<n>\d+)\.ff\.net\.0\.proj\.(?P<p>weight|bias)": r"layers.\g<n>.fc1.\g<p>",
        r"1\.(?P<n>\d+)\.ff\.net\.2\.(?P<p>weight|bias)": r"layers.\g<n>.fc2.\g<p>",
    }
    stages = {r"down_blocks\.0": "down", r"mid_blocks\.(?P<i>\d+)": r"mid.\g<i>", r"up_blocks\.0": "up"}
    for old, new in stages.items():
        prefix = rf"{estimator}{old}\."
        rules += _convolution(prefix + r"0\.block(?P<n>[12])\.block\.0\.", rf"estimator.{new}.resnet.block\g<n>.conv.")
        rules += _convolution(prefix + r"0\.res_conv\.", f"estimator.{new}.resnet.shortcut.")
        rules += _convolution(prefix + r"2\.", f"estimator.{new}.conv.")
        rules += [KeyRule(prefix + inner, f"estimator.{new}.{to}") for inner, to in in_stage.items()]
    return tuple(rules)


RULES = _rules()


def load_flow_state_dict(path: str, known_entries: tuple[str, ...] = TRAINING_ENTRIES) -> dict[str, Tensor]:
    """The tensors of a checkpoint as [`load_foreign_state_dict`] reads them, without the entries that training adds.

    Args:
        path: a file or folder.
        known_entries: names that are dropped. Any other entry that is no tensor is an error.
    """
    path = Path(path)
    if path.is_dir() or path.suffix == ".safetensors" or not path.is_file():
        state = load_foreign_state_dict(path)
    else:
        state = _without_entries(path, known_entries)
    return {key: value for key, value in state.items() if key not in known_entries}


def _without_entries(path: Path, known_entries: tuple[str, ...]) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # load_foreign_state_dict says what is wrong
        return load_foreign_state_dict(path)
    if not isinstance(content, Mapping):
        return load_foreign_state_dict(path)
    content = {key: value for key, value in content.items() if key not in known_entries}
    if others := [
        str(key) for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))
    ]:
        raise ValueError(
            f"checkpoint: {str(path)!r} must hold tensors and at most {', '.join(known_entries)} besides; it has other "
            f"entries: {', '.join(others)}."
        )
    return content


def convert_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A released state dict under the names of [`FlowDecoderModel`].

    Raises:
        ValueError: listing every key that is not understood.
    """
    return convert_keys(state, RULES)


def released_config(converted: Mapping[str, Tensor], **kwargs) -> FlowDecoderConfig:
    """The configuration of a converted state dict; `kwargs` set what no tensor tells (chunk size, size of a head of
    the estimator: 64 in all released models).

    Raises:
        ValueError: tensors from which sizes are read are missing or have another number of dimensions.
    """
    required = {
        "code_embedding.weight": 2,
        "speaker_proj.weight": 2,
        "encoder.lookahead.conv1.weight": 2,
        "encoder.upsample.conv.weight": 2,
        "encoder.upsampled_layers.0.attention.pos_bias_u": 2,
        "encoder.upsampled_layers.0.fc1.weight": 2,
        "estimator.down.layers.0.attention.q_proj.weight": 2,
    }
    check_dimensions(converted, required, "flow decoder")
    vocab_size, hidden_size = converted["code_embedding.weight"].shape
    num_mel_bins, speaker_embedding_size = converted["speaker_proj.weight"].shape
    inner, channels = converted["estimator.down.layers.0.attention.q_proj.weight"].shape
    head_dim = kwargs.get("estimator_head_dim", FlowDecoderConfig.estimator_head_dim)
    if head_dim < 1 or inner % head_dim:
        raise ValueError(f"checkpoint: {inner} channels in the estimator's attention are no heads of {head_dim}.")
    ratio = converted["encoder.upsample.conv.weight"].shape[-1] // hidden_size // 2
    sizes = {
        "vocab_size": vocab_size,
        "codebook_size": MOSS_CODES if vocab_size == MOSS_VOCAB else vocab_size,
        "num_mel_bins": num_mel_bins,
        "upsample_ratio": ratio,
        "pre_lookahead": converted["encoder.lookahead.conv1.weight"].shape[-1] // hidden_size - 1,
        "speaker_embedding_size": speaker_embedding_size,
        "hidden_size": hidden_size,
        "num_attention_heads": converted["encoder.upsampled_layers.0.attention.pos_bias_u"].shape[0],
        "intermediate_size": converted["encoder.upsampled_layers.0.fc1.weight"].shape[0],
        "num_hidden_layers": _count(converted, r"encoder\.layers\.(\d+)\..+"),
        "num_upsampled_layers": _count(converted, r"encoder\.upsampled_layers\.(\d+)\..+"),
        "estimator_channels": channels,
        "estimator_num_heads": inner // head_dim,
        "estimator_head_dim": head_dim,
        "estimator_num_layers": _count(converted, r"estimator\.down\.layers\.(\d+)\..+"),
        "estimator_num_mid_stages": _count(converted, r"estimator\.mid\.(\d+)\..+"),
    }
    build = FlowDecoderConfig.cosyvoice2 if ratio == COSYVOICE2_RATIO else FlowDecoderConfig
    return build(**(sizes | kwargs))


def build_model(state: Mapping[str, Tensor], **kwargs) -> FlowDecoderModel:
    """The model of a released state dict; `kwargs` override fields of its configuration.

    Raises:
        ValueError: listing every key that is not understood, missing, left over, or of another shape.
    """
    converted = convert_state(state)
    model = FlowDecoderModel(released_config(converted, **kwargs))
    load_strictly(model, converted)
    return model.eval()


def chunk_size_of(checkpoint: str) -> dict[str, int]:
    """`{"chunk_size": n}` when the name of the file says it, as in `flow-chunk-25.pt`."""
    match = re.search(r"chunk[-_]?(\d+)", Path(checkpoint).stem)
    return {"chunk_size": int(match[1])} if match else {}


def convert(checkpoint: str, output_dir: str, chunk_size: int | None = None) -> None:
    """Read, convert and save; nothing is written unless everything was understood.

    Args:
        checkpoint: a `.pt` or `.safetensors` file with the released names.
        output_dir: a new or empty folder.
        chunk_size: codes per chunk of the streaming masks; from the file name, or as released, when `None`.
    """
    check_output_dir(output_dir)
    settings = chunk_size_of(checkpoint) if chunk_size is None else {"chunk_size": chunk_size}
    save_converted(build_model(load_flow_state_dict(checkpoint), **settings), output_dir)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for key in state if (match := re.fullmatch(pattern, key))})


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="released file")
    parser.add_argument("--output_dir", required=True, help="new or empty folder")
    parser.add_argument("--chunk_size", type=int, help="codes; from the name of the file when omitted")
    convert(**vars(parser.parse_args(args)))


if __name__ == "__main__":
    main()

__all__ = [
    "build_model",
    "chunk_size_of",
    "convert",
    "convert_state",
    "load_flow_state_dict",
    "released_config",
]
