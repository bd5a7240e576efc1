r"""Convert the decoder of CosyVoice 2 (flow and HiFT, with CAM++) into a [`MossSpeechCodecModel`] that only decodes.

    python -m dualspeech.modeling.conversion.convert_cosyvoice2_to_hf \
        --checkpoint CosyVoice2-0.5B/ --campplus campplus_cn_common.bin --output_dir cosyvoice2-decoder/

The repository holds `flow.pt`, `hift.pt` and `cosyvoice2.yaml`. Its codes (25 per second, 6561 of them) come from a
tokenizer that is not part of this package: the codec has no encoder, and `make_voice` wants the codes of the recording
as `prompt_codes`. The speaker encoder lies there as `campplus.onnx`; as for MOSS-Speech, give the torch weights of the
same network with `--campplus`, or `--without_speaker_encoder`.

Nothing is written unless everything was understood.
"""

import argparse
from pathlib import Path

from .checkpoint_io import check_output_dir, save_converted
from .convert_flow_decoder_to_hf import load_flow_state_dict
from .convert_hift_to_hf import build_model as build_hift
from .convert_moss_speech_codec_to_hf import compose, find_file, load_speaker_encoder

SETTINGS = "cosyvoice2.yaml"


def convert(
    checkpoint: str,
    output_dir: str,
    flow: str = "flow.pt",
    hift: str = "hift.pt",
    campplus: str | None = None,
    without_speaker_encoder: bool = False,
    **flow_fields,
) -> None:
    """Read, convert and save.

    Args:
        checkpoint: folder of the released repository.
        output_dir: a new or empty folder.
        flow, hift: file names in `checkpoint`, or paths.
        campplus: torch weights of the speaker encoder; by default a file `campplus*` in the repository.
        without_speaker_encoder: convert without one.
        flow_fields: fields of [`FlowDecoderConfig`] that no tensor tells.

    Raises:
        ValueError: files that are missing, damaged, not understood, or that do not fit together.
    """
    check_output_dir(output_dir)
    root = Path(checkpoint)
    flow_file = find_file(flow, root)
    vocoder = build_hift(load_flow_state_dict(str(find_file(hift, root))))
    speaker_encoder = load_speaker_encoder(campplus, without_speaker_encoder, root)
    settings = root / SETTINGS if (root / SETTINGS).is_file() else None
    codec = compose(flow_file, vocoder, speaker_encoder=speaker_encoder, settings=settings, **flow_fields)
    save_converted(codec, output_dir)


def main(args: list[str] | None = None) -> None:
    """Command line of [`convert`]."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="folder of the released repository")
    parser.add_argument("--output_dir", required=True, help="new or empty folder")
    parser.add_argument("--flow", default="flow.pt", help="flow decoder, flow.pt by default")
    parser.add_argument("--hift", default="hift.pt", help="vocoder, hift.pt by default")
    parser.add_argument("--campplus", help="torch weights (.bin, .pt, .safetensors) of the speaker encoder")
    parser.add_argument("--without_speaker_encoder", action="store_true", help="convert without a speaker encoder")
    convert(**vars(parser.parse_args(args)))


if __name__ == "__main__":
    main()

__all__ = ["convert"]
