"""Small vocoders of several geometries whose weights make f0, excitation and samples vary."""

import torch
from torch import nn

from dualspeech import HiFTConfig, HiFTModel

GEOMETRIES = {
    "released": {"upsample_initial_channel": 16, "f0_hidden_size": 8, "num_mel_bins": 8},
    # two stages as in GLM-4-Voice, hop 256
    "two_stages": {
        "upsample_initial_channel": 8,
        "f0_hidden_size": 8,
        "num_mel_bins": 6,
        "sampling_rate": 22050,
        "upsample_rates": (8, 8),
        "upsample_kernel_sizes": (16, 16),
        "source_resblock_kernel_sizes": (7, 11),
    },
    # an odd hop of 45 samples, and no size as released
    "odd_hop": {
        "upsample_initial_channel": 8,
        "f0_hidden_size": 6,
        "f0_kernel_size": 5,
        "num_f0_layers": 2,
        "num_mel_bins": 5,
        "num_harmonics": 4,
        "sampling_rate": 8000,
        "upsample_rates": (3, 5),
        "upsample_kernel_sizes": (5, 11),
        "resblock_kernel_sizes": (5, 3),
        "resblock_dilation_sizes": (2, 1),
        "source_resblock_kernel_sizes": (3, 5),
        "conv_kernel_size": 5,
        "istft_n_fft": 12,
        "istft_hop_length": 3,
    },
    "one_stage": {
        "upsample_initial_channel": 4,
        "f0_hidden_size": 6,
        "num_f0_layers": 1,
        "num_mel_bins": 4,
        "num_harmonics": 1,
        "upsample_rates": (6,),
        "upsample_kernel_sizes": (6,),
        "resblock_kernel_sizes": (1, 3, 7),
        "source_resblock_kernel_sizes": (3,),
        "istft_n_fft": 8,
        "istft_hop_length": 4,
    },
}


@torch.no_grad()
def lively_model(geometry="released", **kwargs):
    """A model of `GEOMETRIES`, changed by `kwargs`, with f0 between 0 and some hundred Hz and samples around 0.3."""
    model = HiFTModel(HiFTConfig(**(GEOMETRIES[geometry] | kwargs))).eval()
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            module.bias.normal_(std=0.05)
            if "parametrizations" in dict(module.named_children()):
                gain = 2.0 if "ups" in name else 1.6 if "f0" in name else 0.6 if "resblocks" in name else 1.0
                module.parametrizations.weight.original0.normal_(gain, 0.1 * gain)
            else:
                module.weight.normal_(std=(module.in_channels * module.kernel_size[0] / 2) ** -0.5)
    for name, parameter in model.named_parameters():
        if name.endswith("alpha"):
            parameter.normal_(1.0, 0.2)
    model.m_source.l_linear.weight.normal_(std=0.6)
    model.f0_predictor.classifier.weight.normal_(std=65 * model.config.f0_hidden_size**-0.5)
    model.f0_predictor.classifier.bias.fill_(25.0)
    return model


def frames_for(model, frames, batch=1):
    return torch.randn(batch, model.config.num_mel_bins, frames)


__all__ = ["GEOMETRIES", "frames_for", "lively_model"]
