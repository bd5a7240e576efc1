"""Tiny flow decoders, and the recorded one."""

import torch

from dualspeech import FlowDecoderConfig, FlowDecoderModel
from dualspeech.modeling.conversion.convert_flow_decoder_to_hf import build_model
from tests.fixture_checks import load


def tiny_config(**kwargs):
    sizes = {"vocab_size": 30, "codebook_size": 27, "num_mel_bins": 6, "speaker_embedding_size": 5, "hidden_size": 16}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 2, "num_upsampled_layers": 2}
    sizes |= {"estimator_channels": 12, "estimator_num_heads": 3, "estimator_head_dim": 5, "estimator_num_layers": 2}
    sizes |= {"estimator_num_mid_stages": 2, "max_mel_frames": 400, "num_timesteps": 4, "initializer_range": 0.2}
    return FlowDecoderConfig(**(sizes | kwargs))


def tiny_model(**kwargs):
    """A tiny model in which every part matters to the result."""
    torch.manual_seed(0)
    model = FlowDecoderModel(tiny_config(**kwargs)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def recorded_model():
    """`(model, tensors, meta)` of the fixture."""
    state, tensors, meta = load("moss_flow")
    return build_model(state, estimator_head_dim=meta["config"]["estimator"]["head_dim"]), tensors, meta


def prompt(model, codes, seed=1):
    """`prompt_codes [1, codes]`, `prompt_mel [1, bins, frames]`."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    return (
        torch.randint(config.codebook_size, (1, codes), generator=generator),
        torch.randn(1, config.num_mel_bins, config.upsample_ratio * codes, generator=generator),
    )
