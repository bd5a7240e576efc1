"""A tiny random MOSS-Speech codec with the rates of the released one, recordings and voices for it."""

import torch

from dualspeech import MossSpeechCodecConfig, MossSpeechCodecModel
from dualspeech.modeling.audio_features import log_mel_spectrogram

CODEBOOK = 27


def tiny_moss_config(**parts):
    """Sizes of a tiny codec: 27 codes at 12.5 Hz, 16 kHz in, 24 kHz out, 1920 samples per code, chunks of 5 codes.

    `parts` are fields of the configuration; a dict for a sub-configuration updates it, `None` leaves the part out.
    """
    sizes = {
        "encoder_config": {
            "d_model": 16,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 24,
            "num_mel_bins": 80,
            "quantize_vocab_size": CODEBOOK,
        },
        "flow_config": {
            "vocab_size": CODEBOOK + 3,
            "codebook_size": CODEBOOK,
            "num_mel_bins": 8,
            "speaker_embedding_size": 12,
            "hidden_size": 16,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_upsampled_layers": 1,
            "estimator_channels": 12,
            "estimator_num_heads": 2,
            "estimator_head_dim": 6,
            "estimator_num_layers": 1,
            "estimator_num_mid_stages": 1,
            "max_mel_frames": 2400,
            "num_timesteps": 3,
            "initializer_range": 0.2,
        },
        "vocoder_config": {
            "num_mel_bins": 8,
            "upsample_initial_channel": 16,
            "f0_hidden_size": 8,
            "initializer_range": 0.1,
        },
        "speaker_config": {
            "growth_rate": 4,
            "init_channels": 8,
            "head_channels": 4,
            "block_layers": (2, 2, 2),
            "embedding_size": 12,
        },
    }
    for name, value in parts.items():
        merge = isinstance(value, dict) and name in sizes
        sizes[name] = {**sizes[name], **value} if merge else value
    return MossSpeechCodecConfig(**sizes)


def tiny_moss_codec(seed=0, **parts):
    """A random `MossSpeechCodecModel` of `tiny_moss_config(**parts)` in which codes, voices and f0 matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        codec = MossSpeechCodecModel(tiny_moss_config(**parts)).eval()
        with torch.no_grad():
            for name, values in codec.named_parameters():
                if name.endswith("bias"):
                    values.add_(0.1 * torch.randn_like(values))
            if codec.speaker_encoder is not None:
                for name, values in codec.speaker_encoder.state_dict().items():
                    if "running_var" in name:
                        values.uniform_(0.5, 1.5)
                    elif values.is_floating_point():
                        values.copy_(torch.randn_like(values) * 0.3)
            # f0 between unvoiced and a few hundred Hz
            predictor = codec.vocoder.f0_predictor.classifier
            predictor.weight.copy_(torch.randn_like(predictor.weight) * 400)
            if codec.encoder is not None:
                spread_codes(codec.encoder)
    return codec


def spread_codes(encoder):
    """Make what is heard decide about the codes: loud weights, and a codebook of vectors that recordings have."""
    encoder.conv1.weight.mul_(20)
    encoder.conv2.weight.mul_(20)
    pieces = torch.stack([recording(3.0, seed=seed) for seed in range(8)])
    frames = log_mel_spectrogram(pieces, encoder.config.num_mel_bins, 300)
    vectors = encoder(frames).vectors.flatten(0, 1)
    chosen = torch.randperm(len(vectors))[: encoder.codebook_size]
    encoder.codebook.weight.copy_(vectors[chosen])
    encoder.ema_weight.copy_(vectors[chosen])


def recording(seconds, rate=16000, seed=0):
    """A syllable-like glide with gaps and a little noise: `[S]` float in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(round(seconds * rate)) / rate
    glides = [torch.sin(2 * torch.pi * (f * time + 90 * time.square())) for f in (180.0 + 60 * seed, 410.0, 1230.0)]
    loudness = torch.sin(2 * torch.pi * (1.7 + 0.3 * seed) * time).clamp(min=0)
    return 0.25 * loudness * sum(glides) + 0.02 * torch.randn(len(time), generator=generator)


def some_codes(*shape, seed=0, codebook=CODEBOOK):
    return torch.randint(codebook, shape, generator=torch.Generator().manual_seed(seed))
