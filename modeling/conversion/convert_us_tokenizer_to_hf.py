"""Convert a USTokenizer checkpoint of the released training code (`checkpoint_*.pth`).

    python -m dualspeech.modeling.conversion.convert_us_tokenizer_to_hf \\
        --checkpoint checkpoint_best.pth --whisper openai/whisper-medium --output_dir us_tokenizer

The file holds the trained part only, so the speech encoder comes from `--whisper`, unless it was trained and the file
has it. Without `--text_model` a `UsTokenizerModel` is written; with it a `UsTokenizerForUnderstanding`, which keeps
the adapter. A `WhisperFeatureExtractor` is saved beside the model.
"""

import argparse
import re

import torch
from transformers import AutoConfig, PreTrainedModel, WhisperConfig, WhisperFeatureExtractor, WhisperModel

from ...configuration.configuration_us_tokenizer import (
    UsTokenizerConfig,
    UsTokenizerForUnderstandingConfig,
    whisper_encoder_config,
)
from ..modeling_us_tokenizer import UsTokenizerModel
from ..modeling_us_tokenizer_understanding import UsTokenizerForUnderstanding
from .checkpoint_io import (
    check_dimensions,
    check_output_dir,
    convert_keys,
    load_foreign_state_dict,
    load_strictly,
    save_converted,
)

_BLOCK = r"codec_(encoder|decoder)\.conv_blocks\.(\d+)"

RULES = (
    (r"speech_encoder\.(.+)", r"encoder.\1"),
    (r"downsampling_conv\.conv\.(weight|bias)", r"codec_encoder.downsample.\1"),
    (r"codec_encoder\.conv\.conv\.weight", "codec_encoder.conv_in.weight"),
    (rf"{_BLOCK}\.conv\.conv\.(weight|bias)", r"codec_\1.blocks.\2.conv.\3"),
    (rf"{_BLOCK}\.res_units\.(\d+)\.conv1\.conv\.weight", r"codec_\1.blocks.\2.residual_units.\3.conv1.weight"),
    (rf"{_BLOCK}\.res_units\.(\d+)\.conv2\.weight", r"codec_\1.blocks.\2.residual_units.\3.conv2.weight"),
    (r"speech_llama_conv_proj\.conv\.weight", "codec_encoder.conv_out.weight"),
    # stored as [code_dim, codebook_size]; both are 1024 as released, so no shape check would notice
    (r"vq\.codebook\.layers\.0\.(embed|embed_avg)", r"quantizer.\1", lambda table: table.T.contiguous()),
    (r"vq\.codebook\.layers\.0\.cluster_size", "quantizer.cluster_size"),
    (r"codec_decoder\.conv1\.conv\.weight", "codec_decoder.conv_in.weight"),
    (r"codec_decoder\.conv2\.conv\.weight", "codec_decoder.conv_out.weight"),
    (r"upsampling_conv\.deconv\.(weight|bias)", r"codec_decoder.upsample.\1"),
    (r"llama_linear\.(weight|bias)", r"adapter.linear.\1"),
    (r"llama_conv\.conv\.(weight|bias)", r"adapter.conv.\1"),
)
# tensors that tell sizes, and their numbers of dimensions
SIZES = {"codec_encoder.downsample.weight": 3, "codec_encoder.conv_in.weight": 3, "quantizer.embed": 2}
# the frozen text model, in files that were not stripped of it
IGNORED = (r"llama_model\..+",)


def convert_state_dict(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Released keys to those of `UsTokenizerModel`, and `adapter.*`.

    Raises:
        ValueError: keys that are not understood; tensors without which the sizes are unknown.
    """
    converted = convert_keys(state, RULES, ignore=IGNORED)
    check_dimensions(converted, SIZES, "USTokenizer")
    converted["quantizer.initialized"] = torch.tensor(True)
    return converted


def infer_config(state: dict[str, torch.Tensor], encoder_config: WhisperConfig, **kwargs) -> UsTokenizerConfig:
    """The sizes of converted tensors. Dilations leave no trace in them; the released ones are all 1.

    Audio may be as long as the encoder sees, but not longer than 30 s as released.
    """

    def count(pattern):
        return 1 + max((int(match[1]) for key in state if (match := re.match(pattern, key))), default=-1)

    seconds = encoder_config.max_source_positions * UsTokenizerConfig.hop_length / UsTokenizerConfig.sampling_rate
    num_residual_units = count(r"codec_encoder\.blocks\.0\.residual_units\.(\d+)\.")
    codebook_size, code_dim = state["quantizer.embed"].shape
    return UsTokenizerConfig(
        encoder_config=encoder_config,
        hidden_size=state["codec_encoder.downsample.weight"].shape[0],
        downsample=(state["codec_encoder.downsample.weight"].shape[2] + 1) // 2,
        kernel_size=state["codec_encoder.conv_in.weight"].shape[2],
        code_dim=code_dim,
        codebook_size=codebook_size,
        num_blocks=count(r"codec_encoder\.blocks\.(\d+)\."),
        num_residual_units=num_residual_units,
        dilations=[1] * num_residual_units,
        **{"max_seconds": min(UsTokenizerConfig.max_seconds, seconds), **kwargs},
    )


def convert(checkpoint: str, whisper: str, output_dir: str, text_model: str | None = None) -> PreTrainedModel:
    """Convert the file `checkpoint`, write the result to `output_dir` (new or empty) and return it.

    Args:
        checkpoint: the released `.pth`, or a file with nothing but its tensors.
        whisper: folder or Hub id of the Whisper model whose encoder was used.
        output_dir: written completely or not at all.
        text_model: folder or Hub id of the text model of the training; keeps the adapter.

    Raises:
        ValueError: keys that are not understood, tensors that are missing or of another size than the rest; a Whisper
            of another width, or whose window is not a whole number of seconds.
    """
    check_output_dir(output_dir)
    state = convert_state_dict(load_foreign_state_dict(checkpoint, entry="model"))
    whisper_model = WhisperModel.from_pretrained(whisper, dtype=torch.float32)
    encoder_config = whisper_encoder_config(whisper_model.config)
    width = state["codec_encoder.downsample.weight"].shape[1]
    if width != encoder_config.d_model:
        raise ValueError(f"whisper: {whisper!r} has width {encoder_config.d_model}, the checkpoint {width}.")
    if not any(key.startswith("encoder.") for key in state):
        state.update({f"encoder.{key}": value for key, value in whisper_model.encoder.state_dict().items()})
    config = infer_config(state, encoder_config)
    seconds, rest = divmod(encoder_config.max_source_positions * config.hop_length, config.sampling_rate)
    if rest:
        raise ValueError(
            f"whisper: {whisper!r} has {encoder_config.max_source_positions} positions; a multiple of "
            f"{config.sampling_rate // config.hop_length} is accepted, as its feature extractor counts whole seconds."
        )
    adapter = {key: value for key, value in state.items() if key.startswith("adapter.")}

    if text_model is None:
        model = UsTokenizerModel(config)
        load_strictly(model, {key: value for key, value in state.items() if key not in adapter})
    else:
        text_config = AutoConfig.from_pretrained(text_model).get_text_config()
        model = UsTokenizerForUnderstanding(
            UsTokenizerForUnderstandingConfig(
                us_tokenizer_config=config, text_config=text_config, text_model_name_or_path=text_model
            )
        )
        load_strictly(model, {key if key in adapter else f"us_tokenizer.{key}": state[key] for key in state})
    features = WhisperFeatureExtractor(feature_size=encoder_config.num_mel_bins, chunk_length=seconds)
    save_converted(model, output_dir, features)
    return model


def main() -> None:
    """Command line of [`convert`]."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="released .pth file")
    parser.add_argument("--whisper", required=True, help="folder or Hub id of the Whisper model")
    parser.add_argument("--output_dir", required=True, help="new or empty folder")
    parser.add_argument("--text_model", help="folder or Hub id of the text model; keeps the adapter")
    arguments = parser.parse_args()
    convert(**vars(arguments))


if __name__ == "__main__":
    main()

__all__ = ["IGNORED", "RULES", "SIZES", "convert", "convert_state_dict", "infer_config"]
