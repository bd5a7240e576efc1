"""Tiny random codecs, speech encoders and speaker encoders, for the tests of the replaceable parts."""

import torch
from transformers import (
    DacConfig,
    DacModel,
    EncodecConfig,
    EncodecModel,
    HubertConfig,
    HubertModel,
    MimiConfig,
    MimiModel,
    NeuCodecConfig,
    NeuCodecModel,
    WavLMConfig,
    WavLMForXVector,
    WavLMModel,
    Xcodec2Config,
    Xcodec2Model,
)

from dualspeech import (
    CamPPlusConfig,
    CamPPlusModel,
    UsTokenizerConfig,
    UsTokenizerModel,
    WavTokenizerConfig,
    WavTokenizerModel,
)

CONVOLUTIONS = {
    "conv_dim": [8, 8, 8],
    "conv_kernel": [10, 3, 3],
    "conv_stride": [5, 4, 4],
}  # 80 samples a frame: 200 Hz
ENCODER = dict(
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=24,
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=2,
    **CONVOLUTIONS,
)
SINGLE_BOOK = {
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "encoder_hidden_size": 2,
    "semantic_model_config": {
        "model_type": "wav2vec2-bert",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "feature_projection_input_dim": 160,
        "conv_depthwise_kernel_size": 3,
    },
    "quantization_dim": 48,
    "quantization_levels": [4, 4, 4],
}


SPREAD = ("codebook", "head.linear", "project_in", "fc_encoder", "acoustic_encoder.conv2", "semantic_adapter")


def spread(model):
    """Codebooks start at zero and output layers near it: draw them, so that codes and waveforms differ."""
    generator = torch.Generator().manual_seed(1)
    for name, values in model.state_dict().items():
        if values.is_floating_point() and any(part in name for part in SPREAD):
            values.copy_(torch.randn(values.shape, generator=generator) * 0.3)
        if name.endswith(("initialized", "cluster_usage")):
            values.fill_(1)
    return model.eval()


def encodec(**kwargs):
    config = {
        "hidden_size": 16,
        "num_filters": 4,
        "upsampling_ratios": [5, 4],
        "num_lstm_layers": 1,
        "codebook_size": 32,
        "target_bandwidths": [12.0, 24.0, 48.0],  # 2, 4 and 8 codebooks at 1200 Hz
    }
    return spread(EncodecModel(EncodecConfig(**{**config, **kwargs})))


def mimi(**kwargs):
    config = {
        "hidden_size": 16,
        "num_filters": 4,
        "upsampling_ratios": [5, 4],
        "codebook_size": 32,
        "codebook_dim": 8,
        "vector_quantization_hidden_dimension": 8,
        "num_quantizers": 4,
        "upsample_groups": 16,
        "num_hidden_layers": 1,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    return spread(MimiModel(MimiConfig(**{**config, **kwargs})))


def dac(**kwargs):
    config = {
        "encoder_hidden_size": 4,
        "downsampling_ratios": [4, 5],
        "decoder_hidden_size": 16,
        "n_codebooks": 3,
        "codebook_size": 16,
        "codebook_dim": 4,
        "quantizer_dropout": 0.5,
    }
    return spread(DacModel(DacConfig(**{**config, **kwargs})))


def xcodec2(**kwargs):
    return spread(Xcodec2Model(Xcodec2Config(**{**SINGLE_BOOK, **kwargs})))


def neucodec(**kwargs):
    return spread(NeuCodecModel(NeuCodecConfig(**{**SINGLE_BOOK, **kwargs})))


def wavtokenizer(**kwargs):
    config = {
        "upsampling_ratios": (6, 5, 4),
        "num_filters": 4,
        "hidden_size": 16,
        "codebook_size": 64,
        "codebook_dim": 16,
        "decoder_hidden_size": 32,
        "decoder_intermediate_size": 48,
        "decoder_num_layers": 2,
    }
    model = WavTokenizerModel(WavTokenizerConfig(**{**config, **kwargs})).eval()
    vectors = model.encoder(torch.randn(1, 1, 120 * model.config.codebook_size))[0].T.detach()
    model.quantizer.embed.copy_(vectors)  # codes near what the encoder makes
    model.quantizer.initialized.fill_(True)
    return model


def campplus(**kwargs):
    config = {
        "growth_rate": 4,
        "init_channels": 8,
        "head_channels": 4,
        "block_layers": (2, 2, 2),
        "embedding_size": 12,
    }
    model = CamPPlusModel(CamPPlusConfig(**{**config, **kwargs})).eval()
    for name, values in model.state_dict().items():
        if "running_var" in name:
            values.uniform_(0.5, 1.5)
        elif values.is_floating_point():
            values.copy_(torch.randn_like(values) * 0.3)
    return model


def us_tokenizer(**kwargs):
    encoder = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    config = {"encoder_config": encoder, "hidden_size": 16, "code_dim": 8, "codebook_size": 24}
    return UsTokenizerModel(UsTokenizerConfig(**{**config, **kwargs})).eval()


def hubert(**kwargs):
    return HubertModel(HubertConfig(**{**ENCODER, **kwargs})).eval()


def wavlm(**kwargs):
    return WavLMModel(WavLMConfig(**{**ENCODER, **kwargs})).eval()


def wavlm_xvector(**kwargs):
    config = dict(
        ENCODER, tdnn_dim=[12, 12, 20], tdnn_kernel=[5, 3, 1], tdnn_dilation=[1, 2, 1], xvector_output_dim=10
    )
    return WavLMForXVector(WavLMConfig(**{**config, **kwargs})).eval()


def waveforms(*lengths, scale=0.3, seed=0):
    """`([B, S] float, [B] lengths)`: noise, with NaN behind the end of each row, so that nothing may read it."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(len(lengths), max(lengths), generator=generator) * scale
    for row, length in zip(values, lengths, strict=True):
        row[length:] = torch.nan
    return values, torch.tensor(lengths)
