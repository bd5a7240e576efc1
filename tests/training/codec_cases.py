"""Tiny codecs in training, and recordings for them."""

import numpy as np
import torch

from dualspeech.training.configuration_wavtokenizer_training import WavTokenizerTrainingConfig
from dualspeech.training.wavtokenizer_training import WavTokenizerForTraining

CODEC = {"num_filters": 2, "hidden_size": 12, "codebook_dim": 12, "codebook_size": 16, "decoder_hidden_size": 32}
CODEC |= {"decoder_intermediate_size": 24, "decoder_num_layers": 1, "kmeans_iterations": 3}
CODEC |= {"upsampling_ratios": [5, 4, 3, 2]}
DISCRIMINATORS = {"periods": [2, 3], "period_channels": [4, 6], "resolution_windows": [128, 256]}
DISCRIMINATORS |= {"resolution_channels": 4, "dac_windows": [256], "dac_channels": 4}
DISCRIMINATORS |= {"mel_n_fft": 256, "mel_hop_length": 64, "num_mel_bins": 10}


def training_model(codec=None, **kwargs):
    """A model of 30 000 parameters whose classes make a difference."""
    torch.manual_seed(0)
    config = WavTokenizerTrainingConfig(codec_config={**CODEC, **(codec or {})}, **{**DISCRIMINATORS, **kwargs})
    model = WavTokenizerForTraining(config)
    with torch.no_grad():
        for part in (*model.discriminators.period, *model.discriminators.resolution):
            part.projection.classes.weight.normal_()
    return model


def segments(rows=3, samples=1200, seed=0):
    """Noise of changing loudness `[rows, 1, samples]`."""
    generator = torch.Generator().manual_seed(seed)
    return 0.3 * torch.randn(rows, 1, samples, generator=generator) * torch.rand(rows, 1, 1, generator=generator)


def recordings(count=6, rate=24000, seed=0):
    """Rows with tones of 0.03 to 0.1 s."""
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        time = np.arange(int(draw.uniform(0.03, 0.1) * rate)) / rate
        audio = 0.1 * np.sin(2 * np.pi * draw.uniform(100, 2000) * time).astype(np.float32)
        rows.append({"audio": {"array": audio, "sampling_rate": rate}})
    return rows
