r"""Convert the vocoder of MOSS-Speech or CosyVoice 2 (`hift.pt`) into [`HiFTModel`].

Our parameter names are the released ones. Weight norm is read under the names of its parametrisation or the older
`weight_g` / `weight_v`, or not at all where it was folded; a prefix `generator.` and the entries `epoch` and `step` of
training checkpoints are understood.

    python -m dualspeech.modeling.conversion.convert_hift_to_hf --checkpoint hift.pt --output_dir hift/

The sizes are read from the tensors; what no tensor tells (rates in Hz, dilations, amplitudes) has the released value.
"""

import argparse
import re
from collections.abc import Mapping

from torch import Tensor

from ...configuration.configuration_hift import HiFTConfig
from ..modeling_hift import HiFTModel
from .checkpoint_io import (
    KeyRule,
    check_dimensions,
    check_output_dir,
    convert_keys,
    load_strictly,
    save_converted,
)
from .convert_flow_decoder_to_hf import load_flow_state_dict

DIRECTION = "parametrizations.weight.original1"
CONVOLUTION = r"(conv_pre|conv_post|ups\.\d+|(?:source_)?resblocks\.\d+\.convs[12]\.\d+|f0_predictor\.condnet\.\d+)\."
RULES = (
    KeyRule(
        rf"(?:generator\.)?{CONVOLUTION}(?:weight_g|parametrizations\.weight\.original0)",
        r"\1.parametrizations.weight.original0",
    ),
    KeyRule(
        rf"(?:generator\.)?{CONVOLUTION}(?:weight_v|parametrizations\.weight\.original1)",
        r"\1.parametrizations.weight.original1",
    ),
    KeyRule(rf"(?:generator\.)?{CONVOLUTION}(weight|bias)", r"\1.\2"),
    KeyRule(
        r"(?:generator\.)?((?:m_source\.l_linear|source_downs\.\d+|f0_predictor\.classifier)\.(?:weight|bias))", r"\1"
    ),
    KeyRule(r"(?:generator\.)?((?:source_)?resblocks\.\d+\.activations[12]\.\d+\.alpha)", r"\1"),
)


def convert_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict under our names.

    Raises:
        ValueError: keys that the vocoder does not have; all are listed.
    """
    return convert_keys(state, RULES)


def released_config(state: Mapping[str, Tensor], **kwargs) -> HiFTConfig:
    """The configuration of a converted state dict; `kwargs` set what no tensor tells (dilations, say).

    Raises:
        ValueError: tensors are missing or have another number of dimensions, or they contradict each other about the
            factors of the up-sampling.
    """
    folded = "conv_pre.weight" in state
    name = "weight" if folded else DIRECTION
    stages, branches = _count(state, r"ups\.(\d+)\..+"), _count(state, r"resblocks\.(\d+)\..+")
    required = {"m_source.l_linear.weight": 2, f"conv_pre.{name}": 3, f"f0_predictor.condnet.0.{name}": 3}
    for stage in range(max(stages, 1)):
        required |= {f"ups.{stage}.{name}": 3, f"source_downs.{stage}.weight": 3}
        required |= {f"source_resblocks.{stage}.convs1.0.{name}": 3}
    per_stage = branches // max(stages, 1)
    required |= {f"resblocks.{block}.convs1.0.{name}": 3 for block in range(max(per_stage, 1))}
    check_dimensions(state, required, "HiFT vocoder")
    channels, num_mel_bins, kernel = state[f"conv_pre.{name}"].shape
    f0_size, _, f0_kernel = state[f"f0_predictor.condnet.0.{name}"].shape
    n_fft = state["source_downs.0.weight"].shape[1] - 2
    up_kernels = [state[f"ups.{stage}.{name}"].shape[2] for stage in range(stages)]
    sizes = {
        "num_mel_bins": num_mel_bins,
        "upsample_initial_channel": channels,
        "upsample_rates": [kernel // 2 for kernel in up_kernels],  # in all released vocoders
        "upsample_kernel_sizes": up_kernels,
        "resblock_kernel_sizes": [state[f"resblocks.{block}.convs1.0.{name}"].shape[2] for block in range(per_stage)],
        "source_resblock_kernel_sizes": [
            state[f"source_resblocks.{stage}.convs1.0.{name}"].shape[2] for stage in range(stages)
        ],
        "conv_kernel_size": kernel,
        "istft_n_fft": n_fft,
        "istft_hop_length": n_fft // 4,
        "f0_hidden_size": f0_size,
        "f0_kernel_size": f0_kernel,
        "num_f0_layers": _count(state, r"f0_predictor\.condnet\.(\d+)\..+"),
        "num_harmonics": state["m_source.l_linear.weight"].shape[1],
        "weight_norm": not folded,
    }
    config = HiFTConfig(**(sizes | kwargs))
    found = [state[f"source_downs.{stage}.weight"].shape[2] for stage in range(stages)]
    if found != config.source_kernel_sizes:
        raise ValueError(
            f"checkpoint: the branches of its excitation have kernels {found}, the up-sampling by "
            f"{list(config.upsample_rates)} asks for {config.source_kernel_sizes}."
        )
    return config


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """Different numbers in a place of the keys."""
    return len({match[1] for key in state if (match := re.fullmatch(pattern, key))})


def build_model(state: Mapping[str, Tensor], **kwargs) -> HiFTModel:
    """The model of a released state dict; `kwargs` override fields of its configuration.

    Raises:
        ValueError: listing every key that is not understood, missing, left over, or of another shape.
    """
    converted = convert_state(state)
    model = HiFTModel(released_config(converted, **kwargs))
    load_strictly(model, converted)
    return model.eval()


def convert(checkpoint: str, output_dir: str, sampling_rate: int = 24000, fold_weight_norm: bool = False) -> None:
    """Read, convert and save; nothing is written unless everything was understood.

    Args:
        checkpoint: a `.pt` or `.safetensors` file, or a folder with weights.
        output_dir: a new or empty folder.
        sampling_rate: rate in Hz of the audio; MOSS-Speech and CosyVoice 2 have 24000.
        fold_weight_norm: write one weight per convolution, for inference only.
    """
    check_output_dir(output_dir)
    model = build_model(load_flow_state_dict(checkpoint), sampling_rate=sampling_rate)
    save_converted(model.fold_weight_norm() if fold_weight_norm else model, output_dir)


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="hift.pt, or another file or folder with its tensors")
    parser.add_argument("--output_dir", required=True, help="new or empty folder")
    parser.add_argument("--sampling_rate", type=int, default=24000, help="Hz")
    parser.add_argument(
        "--fold_weight_norm", action="store_true", help="one weight per convolution, for inference only"
    )
    convert(**vars(parser.parse_args(args)))


if __name__ == "__main__":
    main()

__all__ = ["build_model", "convert", "convert_state", "released_config"]
