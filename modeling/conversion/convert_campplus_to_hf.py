r"""Convert a released CAM++ checkpoint (3D-Speaker, `.bin` or `.pt`) into [`CamPPlusModel`].

    python -m dualspeech.modeling.conversion.convert_campplus_to_hf \
        --checkpoint campplus_voxceleb.bin --output_dir campplus-512/

Names stay as they are; the sizes, and with them the 512 or 192 numbers per voice, are read from the tensors. An ONNX
export is not read: it folds batch norms and renames tensors. The feature extractor of every such model is
`KaldiFbankFeatureExtractor()`.
"""

import argparse
import re
from collections.abc import Mapping

from torch import Tensor

from ...configuration.configuration_campplus import CamPPlusConfig
from ..modeling_campplus import CamPPlusModel
from .checkpoint_io import (
    check_dimensions,
    check_output_dir,
    convert_keys,
    load_foreign_state_dict,
    load_strictly,
    save_converted,
)

RULES = ((r"((?:head|xvector)\..+)", r"\1"),)


def released_config(state: Mapping[str, Tensor], **kwargs) -> CamPPlusConfig:
    """The configuration of a released state dict; `kwargs` set what no tensor tells (dilations, segment length).

    The number of mel bins is known up to a multiple of 8 and taken to be one.

    Raises:
        ValueError: tensors from which sizes are read are missing or have another number of dimensions.
    """
    first_layer = "xvector.block1.tdnnd1."
    required = {
        "head.conv1.weight": 4,
        "xvector.tdnn.linear.weight": 3,
        "xvector.dense.linear.weight": 3,
        first_layer + "linear1.weight": 3,
        first_layer + "cam_layer.linear_local.weight": 3,
    }
    check_dimensions(state, required, "CAM++")
    layers: dict[int, int] = {}
    for key in state:
        if match := re.fullmatch(r"xvector\.block(\d+)\.tdnnd\d+\.linear1\.weight", key):
            layers[int(match[1])] = layers.get(int(match[1]), 0) + 1
    head_channels = state["head.conv1.weight"].shape[0]
    init_channels, in_channels, _ = state["xvector.tdnn.linear.weight"].shape
    growth_rate = state[first_layer + "cam_layer.linear_local.weight"].shape[0]
    sizes = {
        "num_mel_bins": in_channels // head_channels * 8,
        "embedding_size": state["xvector.dense.linear.weight"].shape[0],
        "growth_rate": growth_rate,
        "bottleneck_multiplier": state[first_layer + "linear1.weight"].shape[0] // growth_rate,
        "init_channels": init_channels,
        "head_channels": head_channels,
        "block_layers": [layers[block] for block in sorted(layers)],
    }
    return CamPPlusConfig(**(sizes | kwargs))


def build_model(state: Mapping[str, Tensor], **kwargs) -> CamPPlusModel:
    """The model of a released state dict; `kwargs` override fields of its configuration.

    Raises:
        ValueError: listing every key that is not understood, missing, left over, or of another shape.
    """
    converted = convert_keys(state, RULES)
    model = CamPPlusModel(released_config(converted, **kwargs))
    load_strictly(model, converted)
    return model.eval()


def convert(checkpoint: str, output_dir: str) -> None:
    """Read, convert and save; nothing is written unless everything was understood.

    Args:
        checkpoint: a `.bin`, `.pt` or `.safetensors` file with the released names.
        output_dir: a new or empty folder.
    """
    check_output_dir(output_dir)
    save_converted(build_model(load_foreign_state_dict(checkpoint)), output_dir)


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="released file")
    parser.add_argument("--output_dir", required=True, help="new or empty folder")
    convert(**vars(parser.parse_args(args)))


if __name__ == "__main__":
    main()

__all__ = ["build_model", "convert", "released_config"]
