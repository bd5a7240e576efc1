"""Put trained parts of the nano pipeline together.

    python examples/nano/assemble.py dual_tokenizer --us_tokenizer outputs/nano/us_tokenizer \
        --codec outputs/nano/codec/codec --speaker_encoder outputs/nano/speaker_encoder/speaker_encoder \
        --output outputs/nano/dual_tokenizer
    python examples/nano/assemble.py moss_codec --encoder outputs/nano/speech_encoder_vq/encoder \
        --flow outputs/nano/flow_decoder --vocoder outputs/nano/vocoder/vocoder \
        --speaker_encoder outputs/nano/speaker_encoder/speaker_encoder --output outputs/nano/moss_codec
    python examples/nano/assemble.py checkpoint --model outputs/nano/dualspeech --max_new_tokens 200 \
        --output outputs/nano/dualspeech-nano

The last command copies a model and its processor (audio tokenizer and default voice included) as a checkpoint to publish:
weights are stored in half precision, and load and compute in float32.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
)

from dualspeech import (
    DualTokenizerModel,
    MossSpeechCodecModel,
    MossSpeechFeatureExtractor,
    MossSpeechProcessor,
    UsTokenizerForUnderstanding,
)
from dualspeech.processing.processor_with_audio_tokenizer import AUDIO_SUBFOLDER
from dualspeech.training.dualspeech_variants import get_variant, variant_processor


def dual_tokenizer(options: argparse.Namespace) -> None:
    """The audio tokenizer of DualSpeechLM: USTokenizer, codec, speaker encoder."""
    semantic = UsTokenizerForUnderstanding.from_pretrained(options.us_tokenizer).us_tokenizer
    codec, speaker = (AutoModel.from_pretrained(path) for path in (options.codec, options.speaker_encoder))
    DualTokenizerModel.from_parts(semantic, codec, speaker).eval().save_pretrained(options.output)


def dualspeech_processor(options: argparse.Namespace) -> None:
    """The processor of DualSpeechLM, for data preparation before the model exists."""
    tokenizer, audio = AutoTokenizer.from_pretrained(options.text_model), AutoModel.from_pretrained(options.codec)
    variant_processor(get_variant("ustoken"), tokenizer, audio).save_pretrained(options.output)


def moss_processor(options: argparse.Namespace) -> None:
    """The processor of MOSS-Speech, with a recording of the assistant as its voice."""
    tokenizer, codec = AutoTokenizer.from_pretrained(options.text_model), AutoModel.from_pretrained(options.codec)
    extractor = MossSpeechFeatureExtractor(**codec_features(codec))
    sizes = {"vocab_size": len(tokenizer), "codebook_size": codec.codebook_size}
    sizes["audio_pad_token_id"] = min(512, codec.codebook_size - 1)  # as in the release, where there are so many codes
    processor = MossSpeechProcessor(extractor, tokenizer, **sizes, audio_tokenizer=codec)
    processor.voice = processor.make_voice(options.voice).trim(multiple_of=codec.config.flow_config.chunk_size)
    processor.save_pretrained(options.output)


def codec_features(codec: MossSpeechCodecModel) -> dict[str, int]:
    """Arguments of the feature extractor that the encoder of `codec` decides."""
    encoder = codec.config.encoder_config
    return {
        "feature_size": encoder.num_mel_bins,
        "sampling_rate": encoder.sampling_rate,
        "samples_per_code": encoder.samples_per_code,
        "chunk_length": encoder.max_samples // encoder.sampling_rate,
    }


def moss_codec(options: argparse.Namespace) -> None:
    """The codec of MOSS-Speech: encoder, flow decoder, vocoder, speaker encoder."""
    names = ("flow", "vocoder", "encoder", "speaker_encoder")
    parts = {name: AutoModel.from_pretrained(getattr(options, name)) for name in names}
    rate = parts["vocoder"].config.sampling_rate
    # The window of the mel spectrogram is four hops, as in the release (1920 samples at 24 kHz).
    fields = {"prompt_n_fft": 4 * parts["vocoder"].config.hop_length, "prompt_max_frequency": min(8000, rate / 2)}
    parts["vocoder"].fold_weight_norm()
    MossSpeechCodecModel.from_parts(**parts, **fields).save_pretrained(options.output)


def checkpoint(options: argparse.Namespace) -> None:
    """A model with its processor, stored in half precision."""
    processor = AutoProcessor.from_pretrained(options.model)
    has_audio = hasattr(processor, "audio_tokenizer")  # a text model has a tokenizer here
    model = (AutoModelForMultimodalLM if has_audio else AutoModelForCausalLM).from_pretrained(options.model)
    parts = {Path(options.output): model}
    if has_audio and processor.audio_tokenizer is not None:
        parts[Path(options.output) / AUDIO_SUBFOLDER] = processor.audio_tokenizer
    for part in parts.values():
        if part.dtype != torch.float32:
            raise ValueError(f"`model` {options.model!r} holds weights in {part.dtype}; accepted is torch.float32")
    if options.max_new_tokens is not None:
        model.generation_config.max_new_tokens = options.max_new_tokens
    processor.save_pretrained(options.output)
    model.save_pretrained(options.output)
    for folder, part in parts.items():
        halve(part, folder)


def halve(model: PreTrainedModel, folder: Path) -> None:
    """
    Store the float32 parameters of `model`, saved in `folder`, in float16. Codebooks and buffers stay as they are: rounded
    vectors are other codes, counts and variances can be too small for float16; and so do values beyond its range.
    """
    exact = {name for name, _ in model.named_buffers()}
    exact |= {name for name, _ in model.named_parameters() if "codebook" in name}
    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_file(path)
        if not tensors.keys() & model.state_dict().keys():
            continue  # the voice of a processor
        for name, tensor in tensors.items():
            if tensor.dtype == torch.float32 and tensor.numel() and name not in exact:
                fits = tensor.abs().max() <= torch.finfo(torch.float16).max
                tensors[name] = tensor.half() if fits else tensor
        partial = path.with_suffix(".partial")
        save_file(tensors, partial, metadata={"format": "pt"})
        partial.replace(path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for function, names in (
        (dual_tokenizer, ("us_tokenizer", "codec", "speaker_encoder")),
        (dualspeech_processor, ("text_model", "codec")),
        (moss_processor, ("text_model", "codec", "voice")),
        (moss_codec, ("encoder", "flow", "vocoder", "speaker_encoder")),
        (checkpoint, ("model",)),
    ):
        command = commands.add_parser(function.__name__, help=function.__doc__)
        command.set_defaults(function=function)
        for name in (*names, "output"):
            command.add_argument(f"--{name}", required=True)
        if function is checkpoint:
            command.add_argument("--max_new_tokens", type=int, help="limit of an answer where the user gives none")
    options = parser.parse_args(arguments)
    options.function(options)


if __name__ == "__main__":
    main()
