"""Tiny HiFT vocoders in training, and recordings for them."""

import numpy as np
import torch

from dualspeech.training.configuration_hift_training import HiFTTrainingConfig
from dualspeech.training.hift_training import HiFTForTraining

RATE, HOP = 8000, 40
VOCODER = {"num_mel_bins": 10, "sampling_rate": RATE, "upsample_initial_channel": 16, "upsample_rates": [5, 2]}
VOCODER |= {"upsample_kernel_sizes": [9, 4], "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [1]}
VOCODER |= {"source_resblock_kernel_sizes": [3, 3], "f0_hidden_size": 8, "num_f0_layers": 2, "num_harmonics": 3}
DISCRIMINATORS = {"periods": [2, 3], "period_channels": [4, 6], "resolution_windows": [128, 256]}
DISCRIMINATORS |= {"resolution_channels": 4, "mel_loss_windows": [160, 96], "mel_loss_bins": 10}


def training_model(**kwargs):
    torch.manual_seed(0)
    return HiFTForTraining(HiFTTrainingConfig(vocoder_config=VOCODER, **{**DISCRIMINATORS, **kwargs}))


def batch(rows=3, frames=20, seed=0):
    """Arguments of `forward`: noise, and f0 of which the first two thirds are voiced."""
    generator = torch.Generator().manual_seed(seed)
    f0 = 100 + 100 * torch.rand(rows, frames, generator=generator)
    f0[:, 2 * frames // 3 :] = 0
    return {
        "mel": torch.randn(rows, VOCODER["num_mel_bins"], frames, generator=generator) - 3,
        "f0": f0,
        "input_values": 0.1 * torch.randn(rows, 1, frames * HOP, generator=generator),
    }


def recordings(count=6, seed=0):
    """Rows of 0.15 to 0.3 s: a tone with overtones."""
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        time = np.arange(int(draw.uniform(0.15, 0.3) * RATE)) / RATE
        phase = 2 * np.pi * draw.uniform(100, 300) * time
        audio = 0.1 * sum(np.sin(h * phase) / h for h in range(1, 5))
        rows.append({"audio": {"array": audio.astype(np.float32), "sampling_rate": RATE}})
    return rows
