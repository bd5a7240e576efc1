r"""Convert a WavTokenizer checkpoint into [`WavTokenizerModel`].

Three layouts are read: the released Lightning file (entry `state_dict` with `feature_extractor.*`, `backbone.*`,
`head.*`, beside discriminators and an EnCodec decoder that nothing uses), and the two of transformers' own port
(`encoder.*`, `quantizer.codebook.*`, `backbone.*`, `head.linear.*`, the first two also below `encoder_model.`).

    python -m dualspeech.modeling.conversion.convert_wavtokenizer_to_hf \
        --checkpoint wavtokenizer_large_unify_600_24k.ckpt --output_dir wavtokenizer-40/

The sizes, strides included, are read from the tensors: models with 40 and with 75 codes per second need no option.
"""

import argparse
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ...configuration.configuration_wavtokenizer import WavTokenizerConfig
from ..modeling_wavtokenizer import WavTokenizerModel
from .checkpoint_io import (
    KeyRule,
    check_dimensions,
    check_output_dir,
    convert_keys,
    load_foreign_state_dict,
    load_strictly,
    save_converted,
)

RELEASED_ENCODER = r"feature_extractor\.encodec\.encoder\.model\.(\d+)\.((?:block\.\d+\.|shortcut\.)?)conv\.conv\."
RELEASED_CODEBOOK = r"feature_extractor\.encodec\.quantizer\.vq\.layers\.0\._codebook\."
PORT_ENCODER = r"(?:encoder_model\.)?encoder\.layers\.(\d+)\.((?:block\.\d+\.|shortcut\.)?)conv\."
PORT_CODEBOOK = r"(?:encoder_model\.)?quantizer\.codebook\."
DIRECTION = "parametrizations.weight.original1"


def _flag(inited: Tensor) -> Tensor:
    return inited.reshape(()).bool()


RULES = (
    *(
        rule
        for encoder in (RELEASED_ENCODER, PORT_ENCODER)
        for rule in (
            KeyRule(encoder + "bias", r"encoder.layers.\1.\2conv.bias"),
            KeyRule(
                encoder + r"(?:weight_g|parametrizations\.weight\.original0)",
                r"encoder.layers.\1.\2conv.parametrizations.weight.original0",
            ),
            KeyRule(
                encoder + r"(?:weight_v|parametrizations\.weight\.original1)",
                r"encoder.layers.\1.\2conv.parametrizations.weight.original1",
            ),
        )
    ),
    KeyRule(r"feature_extractor\.encodec\.encoder\.model\.(\d+)\.lstm\.(.+)", r"encoder.layers.\1.lstm.\2"),
    KeyRule(r"(?:encoder_model\.)?encoder\.layers\.(\d+)\.lstm\.(.+)", r"encoder.layers.\1.lstm.\2"),
    *(
        rule
        for codebook in (RELEASED_CODEBOOK, PORT_CODEBOOK)
        for rule in (
            KeyRule(codebook + "(embed|embed_avg|cluster_size)", r"quantizer.\1"),
            KeyRule(codebook + "inited", "quantizer.initialized", _flag),
        )
    ),
    KeyRule(r"backbone\.(.+)", r"backbone.\1"),
    KeyRule(r"head\.(?:out|linear)\.(weight|bias)", r"head.linear.\1"),
)
WINDOW = r"head\.(?:istft\.)?window"
UNUSED = (
    r"(?:multiperioddisc|multiresddisc|dac|dacdiscriminator|melspec_loss)\..+",
    r"feature_extractor\.encodec\.decoder\..+",
)


def convert_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict under our names, without discriminators and window.

    Raises:
        ValueError: keys that no layout has (all are listed), or another window than the periodic Hann window.
    """
    for key, window in state.items():
        if re.fullmatch(WINDOW, key):
            expected = torch.hann_window(window.numel(), dtype=torch.float32)
            if window.dim() != 1 or not torch.allclose(window.float(), expected, atol=1e-5):
                raise ValueError(f"checkpoint: {key!r} is not the periodic Hann window of {window.numel()} samples.")
    return convert_keys(state, RULES, ignore=(*UNUSED, WINDOW))


def released_config(state: Mapping[str, Tensor], **kwargs) -> WavTokenizerConfig:
    """The configuration of a converted state dict; `kwargs` set what no tensor tells (the sampling rate, say).

    Raises:
        ValueError: tensors are missing or have another number of dimensions, or the head does not have the size that the strides of the encoder ask for.
    """
    required = {
        "quantizer.embed": 2,
        "backbone.embed.weight": 3,
        "backbone.norm.scale.weight": 2,
        "backbone.convnext.0.pwconv1.weight": 2,
        "head.linear.weight": 2,
        f"encoder.layers.0.conv.{DIRECTION}": 3,
    }
    check_dimensions(state, required | {key: 3 for key in state if key.endswith(DIRECTION)}, "WavTokenizer")
    plain, residual = _encoder_shapes(state)
    layers = sorted(plain)
    first, *strided, last = (plain[layer] for layer in layers)
    if not strided or not residual:
        raise ValueError("checkpoint: the encoder has no strided convolution or no residual unit.")
    narrow, wide, residual_kernel = residual[min(residual)]
    sizes = {
        "num_filters": first[0],
        "kernel_size": first[2],
        "upsampling_ratios": [shape[2] // 2 for shape in reversed(strided)],
        "hidden_size": last[0],
        "last_kernel_size": last[2],
        "num_residual_layers": len(residual) // len(strided),
        "residual_kernel_size": residual_kernel,
        "compress": wide // narrow,
        "use_conv_shortcut": any(".shortcut." in key for key in state),
        "num_lstm_layers": sum(".lstm.weight_ih_l" in key for key in state),
        "codebook_size": state["quantizer.embed"].shape[0],
        "codebook_dim": state["quantizer.embed"].shape[1],
        "decoder_hidden_size": state["backbone.embed.weight"].shape[0],
        "decoder_intermediate_size": state["backbone.convnext.0.pwconv1.weight"].shape[0],
        "decoder_num_layers": sum(bool(re.fullmatch(r"backbone\.convnext\.\d+\.gamma", key)) for key in state),
        "adanorm_num_embeddings": state["backbone.norm.scale.weight"].shape[0],
    }
    config = WavTokenizerConfig(**(sizes | kwargs))
    n_fft = state["head.linear.weight"].shape[0] - 2
    if n_fft != config.n_fft:
        raise ValueError(
            f"checkpoint: its head has frames of {n_fft} samples, its encoder strides {sizes['upsampling_ratios']} "
            f"ask for {config.n_fft}."
        )
    return config


def _encoder_shapes(state: Mapping[str, Tensor]) -> tuple[dict[int, torch.Size], dict[int, torch.Size]]:
    """Shapes `(out, in, kernel)` by layer: of the plain convolutions, and of the first one of each residual unit."""
    plain, residual = {}, {}
    for key, value in state.items():
        match = re.fullmatch(rf"encoder\.layers\.(\d+)\.(block\.1\.)?conv\.{re.escape(DIRECTION)}", key)
        if match:
            (residual if match[2] else plain)[int(match[1])] = value.shape
    return plain, residual


def build_model(state: Mapping[str, Tensor], **kwargs) -> WavTokenizerModel:
    """The model of a state dict in any of the three layouts; `kwargs` override fields of its configuration.

    Raises:
        ValueError: listing every key that is not understood, missing, left over, or of another shape.
    """
    converted = convert_state(state)
    model = WavTokenizerModel(released_config(converted, **kwargs))
    load_strictly(model, converted)
    return model.eval()


def convert(checkpoint: str, output_dir: str, sampling_rate: int = 24000) -> None:
    """Read, convert and save; nothing is written unless everything was understood.

    Args:
        checkpoint: a `.ckpt`, `.pt`, `.bin` or `.safetensors` file, or a folder with weights.
        output_dir: a new or empty folder.
        sampling_rate: rate in Hz of the audio; all released models have 24000.
    """
    check_output_dir(output_dir)
    state = load_foreign_state_dict(checkpoint, entry="state_dict")
    save_converted(build_model(state, sampling_rate=sampling_rate), output_dir)


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="file or folder in one of the three layouts")
    parser.add_argument("--output_dir", required=True, help="new or empty folder")
    parser.add_argument("--sampling_rate", type=int, default=24000, help="Hz")
    convert(**vars(parser.parse_args(args)))


if __name__ == "__main__":
    main()

__all__ = ["build_model", "convert", "convert_state", "released_config"]
