r"""Convert the released codec of MOSS-Speech into [`MossSpeechCodecModel`].

    python -m dualspeech.modeling.conversion.convert_moss_speech_codec_to_hf \
        --checkpoint MOSS-Speech-Codec/ --campplus campplus_cn_common.bin --output_dir moss-speech-codec/

The repository holds `config.json` and `model.safetensors` (of which the encoder up to its quantiser is used),
`flow/config.yaml`, `flow/hift.pt` and three flow decoders:

    flow.pt            for decoding at once, with full attention (the default here)
    flow-chunk-5.pt    for streaming in chunks of 5 codes (0.4 s)
    flow-chunk-25.pt   for streaming in chunks of 25 codes (2 s)

`--flow` chooses the one that becomes the flow of the codec; the chunk size follows the name of the file. With several
names a codec is written for each, into folders `flow`, `flow-chunk-5` and so on below `--output_dir`. They have the
same encoder, vocoder and speaker encoder, and share their voices.

The speaker encoder lies there as `campplus.onnx`, which folds batch norms and renames tensors and is not read: give the
torch weights of the same network (CAM++ with 192 numbers per voice, `campplus_cn_common.bin` of 3D-Speaker) with
`--campplus`, or leave it out with `--without_speaker_encoder`; voices then need a speaker vector from elsewhere.

Nothing is written unless everything was understood.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ...configuration.configuration_moss_speech_codec import MossSpeechCodecConfig
from ..modeling_campplus import CamPPlusModel
from ..modeling_flow_decoder import FlowDecoderModel
from ..modeling_hift import HiFTModel
from ..modeling_moss_speech_codec import MossSpeechCodecModel
from ..modeling_whisper_vq import WhisperVqModel
from .checkpoint_io import atomic_folder, check_output_dir, load_foreign_state_dict
from .convert_campplus_to_hf import build_model as build_campplus
from .convert_flow_decoder_to_hf import build_model as build_flow
from .convert_flow_decoder_to_hf import chunk_size_of, load_flow_state_dict
from .convert_hift_to_hf import build_model as build_hift
from .convert_whisper_vq_to_hf import build_model as build_encoder
from .convert_whisper_vq_to_hf import feature_extractor_of, read_released_config
from .released_flow_yaml import check_flow_yaml, read_flow_yaml

DEFAULT_FLOW = "flow.pt"
CAMPPLUS_SUFFIXES = (".bin", ".pt", ".safetensors")


def find_file(name: str, *folders: Path) -> Path:
    """The file `name`, a path or a name inside one of the folders.

    Raises:
        ValueError: there is none.
    """
    for path in (Path(name), *(folder / name for folder in folders)):
        if path.is_file():
            return path
    raise ValueError(f"checkpoint: there is no file {name!r}, also not in {', '.join(repr(str(f)) for f in folders)}.")


def load_speaker_encoder(campplus: str | None, without: bool, *folders: Path) -> CamPPlusModel | None:
    """CAM++ from the file `campplus`, or from one of that name in the folders; `None` when `without`.

    Raises:
        ValueError: there is none with torch weights, or it is not understood.
    """
    if without:
        if campplus is not None:
            raise ValueError("campplus: it is given, and `without_speaker_encoder` asks for none.")
        return None
    if campplus is None:
        found = sorted(path for folder in folders for path in folder.glob("campplus*"))
        readable = [path for path in found if path.suffix in CAMPPLUS_SUFFIXES]
        if len(readable) > 1:
            raise ValueError(f"campplus: there are several, choose one of {', '.join(map(str, readable))}.")
        campplus = str((readable or found or [None])[0])
    if campplus == "None" or Path(campplus).suffix == ".onnx":
        given = "no speaker encoder was found" if campplus == "None" else f"{campplus!r} is an ONNX export"
        raise ValueError(
            f"campplus: {given}. Give the torch weights of the same network (CAM++ with 192 numbers per voice, "
            "campplus_cn_common.bin of 3D-Speaker), or ask for a codec without a speaker encoder "
            "(without_speaker_encoder=True, --without_speaker_encoder)."
        )
    return build_campplus(load_foreign_state_dict(campplus))


def compose(
    flow_file: Path,
    vocoder: HiFTModel,
    encoder: WhisperVqModel | None = None,
    speaker_encoder: CamPPlusModel | None = None,
    settings: Path | None = None,
    **flow_fields,
) -> MossSpeechCodecModel:
    """A codec with the flow decoder of one file.

    Args:
        flow_file: released checkpoint.
        vocoder, encoder, speaker_encoder: the other parts.
        settings: the YAML file beside it; its values are compared with the tensors, and it tells the chunk size where
            the name of `flow_file` does not.
        flow_fields: fields of [`FlowDecoderConfig`] that no tensor tells.

    Raises:
        ValueError: a checkpoint that is not understood, settings that contradict it, parts that do not fit.
    """
    yaml_settings = None if settings is None else read_flow_yaml(settings)
    fields = {} if encoder is None else {"codebook_size": encoder.codebook_size}
    if yaml_settings and isinstance(yaml_settings.get("chunk_size"), int):
        fields["chunk_size"] = yaml_settings["chunk_size"]
    fields |= chunk_size_of(str(flow_file))
    flow: FlowDecoderModel = build_flow(load_flow_state_dict(str(flow_file)), **(fields | flow_fields))
    codec = MossSpeechCodecModel.from_parts(flow, vocoder, encoder, speaker_encoder)
    if yaml_settings is not None:
        check_flow_yaml(yaml_settings, codec.config)
    return codec


def check_preprocessor(path: Path, config: MossSpeechCodecConfig) -> None:
    """Raise a `ValueError` when a released `preprocessor_config.json` asks for other features than the encoder reads."""
    released, encoder = read_released_config(path), config.encoder_config
    expected = {
        "feature_size": encoder.num_mel_bins,
        "sampling_rate": encoder.sampling_rate,
        "hop_length": encoder.mel_hop_length,
        "n_samples": encoder.max_samples,
    }
    different = [
        f"{name} {released[name]} instead of {value}"
        for name, value in expected.items()
        if released.get(name, value) != value
    ]
    if different:
        raise ValueError(f"config: {str(path)!r} does not fit the encoder: {', '.join(different)}.")


def convert(
    checkpoint: str,
    output_dir: str,
    flow: str | Sequence[str] = DEFAULT_FLOW,
    campplus: str | None = None,
    without_speaker_encoder: bool = False,
    **flow_fields,
) -> list[str]:
    """Read, convert and save, with the feature extractor beside the model.

    Args:
        checkpoint: folder of the released repository.
        output_dir: a new or empty folder.
        flow: file name (in `checkpoint` or its folder `flow`) or path of the flow decoder. A sequence of several gives
            a codec for each, in folders named like them.
        campplus: torch weights of the speaker encoder; by default a file `campplus*` in the repository.
        without_speaker_encoder: convert without one.
        flow_fields: fields of [`FlowDecoderConfig`] that no tensor tells.

    Returns:
        The keys of `model.safetensors` that lie outside the encoder up to its quantiser.

    Raises:
        ValueError: files that are missing, damaged, not understood, or that do not fit together.
    """
    check_output_dir(output_dir)
    root = Path(checkpoint)
    folders = (root / "flow", root)
    names = [flow] if isinstance(flow, str) else list(flow)
    files = [find_file(name, *folders) for name in names]
    variants = [file.stem for file in files]
    if not files or len(set(variants)) != len(variants):
        raise ValueError(f"flow: expected one name or several that differ, got {names}.")
    vocoder = build_hift(load_flow_state_dict(str(find_file("hift.pt", *folders))))
    speaker_encoder = load_speaker_encoder(campplus, without_speaker_encoder, *folders)
    released = read_released_config(root / "config.json")
    encoder, left_out = build_encoder(load_foreign_state_dict(root), released)
    settings = next((path for path in (folder / "config.yaml" for folder in folders) if path.is_file()), None)
    with atomic_folder(output_dir) as folder:
        for file, variant in zip(files, variants, strict=True):
            codec = compose(file, vocoder, encoder, speaker_encoder, settings, **flow_fields)
            if (root / "preprocessor_config.json").is_file():
                check_preprocessor(root / "preprocessor_config.json", codec.config)
            target = folder if len(files) == 1 else folder / variant
            codec.save_pretrained(target)
            extractor = feature_extractor_of(encoder.config)
            if extractor is not None:
                extractor.save_pretrained(target)
    return left_out


def main(args: list[str] | None = None) -> None:
    """Command line of [`convert`]."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="folder of the released codec repository")
    parser.add_argument("--output_dir", required=True, help="new or empty folder")
    parser.add_argument(
        "--flow",
        nargs="+",
        default=[DEFAULT_FLOW],
        metavar="FILE",
        help="flow decoder: flow.pt (default, full attention), flow-chunk-5.pt or flow-chunk-25.pt (streaming); several "
        "names write several codecs into sub-folders of --output_dir",
    )
    parser.add_argument("--campplus", help="torch weights (.bin, .pt, .safetensors) of the speaker encoder")
    parser.add_argument("--without_speaker_encoder", action="store_true", help="convert without a speaker encoder")
    left_out = convert(**vars(parser.parse_args(args)))
    print(f"{len(left_out)} tensors outside the encoder up to its quantiser were left out")
    for key in left_out:
        print(f"  {key}")


if __name__ == "__main__":
    main()

__all__ = ["check_preprocessor", "compose", "convert", "find_file", "load_speaker_encoder"]
