"""Tiny Whisper-VQ encoders and recordings for the tests of it."""

import copy
import functools

import torch

from dualspeech import WhisperVqConfig, WhisperVqModel
from dualspeech.modeling.audio_features import log_mel_spectrogram
from tests.fixture_checks import load

SIZES = {
    "d_model": 24,
    "encoder_layers": 2,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 40,
    "num_mel_bins": 16,
    "max_source_positions": 100,  # pieces of 2 s
    "quantize_vocab_size": 200,
    "init_std": 0.3,
}


def tiny_model(**fields):
    """A random model whose codebook holds vectors that it makes itself, so that inputs get many different codes."""
    return copy.deepcopy(_tiny_model(tuple(fields.items())))


@functools.lru_cache
def _tiny_model(fields):
    torch.manual_seed(1)
    model = WhisperVqModel(WhisperVqConfig(**(SIZES | dict(fields)))).eval()
    bins, frames = model.config.num_mel_bins, model.config.max_frames
    waveforms = torch.stack([recording(160 * frames, seed) for seed in range(30)])
    features = torch.cat([torch.randn(30, bins, frames), log_mel_spectrogram(waveforms, bins, frames)])
    with torch.no_grad():
        vectors = model(features).vectors.flatten(0, 1)
        model.codebook.weight.copy_(vectors[torch.randperm(len(vectors))[: model.codebook_size]])
        model.ema_weight.copy_(model.codebook.weight)
    return model


def recorded_model():
    """`(model, tensors, meta)` of the recorded encoder."""
    state, tensors, meta = load("moss_codec_encoder")
    sizes = meta["config"]
    config = WhisperVqConfig(
        encoder_layers=sizes["num_layers"],
        quantize_vocab_size=sizes["codebook_size"],
        **{
            name: sizes[name]
            for name in (
                "d_model",
                "encoder_attention_heads",
                "encoder_ffn_dim",
                "num_mel_bins",
                "max_source_positions",
                "pooling_kernel_size",
                "attention_mode",
            )
        },
    )
    model = WhisperVqModel(config).eval()
    model.load_state_dict({key.removeprefix("encoder."): value for key, value in state.items()}, strict=True)
    return model, tensors, meta


def released_config(model, **fields):
    """The `config.json` of a release that has the encoder `model` in it."""
    config = model.config
    names = ("d_model", "encoder_attention_heads", "encoder_ffn_dim", "num_mel_bins", "max_source_positions")
    names += ("pooling_kernel_size", "pooling_type", "quantize_vocab_size", "quantize_causal_block_size")
    names += ("quantize_ema_decay", "quantize_restart_interval", "activation_function", "init_std")
    causal = config.attention_mode == "causal"
    return {
        "model_type": "whisper",
        "architectures": ["WhisperVQEncoder"],
        **{name: getattr(config, name) for name in names},
        "encoder_layers": 2 * config.encoder_layers,
        "quantize_position": config.encoder_layers,
        "pooling_position": config.encoder_layers,
        "quantize_encoder_only": True,
        "quantize_causal_encoder": causal,
        "encoder_causal_attention": causal,
        "encoder_causal_convolution": True,
        "scale_embedding": False,
        "decoder_layers": 32,
        **fields,
    }


def recording(samples, seed=0, quiet=True):
    """Noise `[samples]`, with a stretch of digital silence and one of a very quiet tone when `quiet`."""
    generator = torch.Generator().manual_seed(seed)
    wave = torch.randn(samples, generator=generator) * 0.1
    wave *= 1 + torch.sin(torch.arange(samples) / 500) * torch.sin(
        torch.arange(samples) / 7
    )  # louder and higher at times
    if quiet:
        wave[samples // 3 : samples // 2] = 0
        tail = wave[samples // 2 : 2 * samples // 3]
        tail.copy_(1e-4 * torch.sin(torch.arange(len(tail)) * 0.3))
    return wave
