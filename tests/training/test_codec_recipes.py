"""The recipes of codec, vocoder and flow decoder: accepted by their scripts, in the sizes that they name."""

import pytest
import torch
from transformers import TrainingArguments

from dualspeech import HiFTConfig
from dualspeech.training.recipe import parse_arguments, read_recipe
from tests.examples.running import load_example


def parsed(script, *groups, recipe):
    module = load_example(script)
    groups = (*(getattr(module, name) for name in groups), TrainingArguments)
    return module, parse_arguments(script, groups, ["--recipe", recipe, "--output_dir", "out", "--use_cpu", "true"])


@pytest.mark.parametrize(
    ("name", "hop", "codec_size", "discriminator_size"),
    [("40", 600, 72.1, 84.2), ("75", 320, 71.75, 84.2), ("small", 600, 3.5, 0.8)],
)
def test_codec_recipes(name, hop, codec_size, discriminator_size):
    groups = ("CodecArguments", "LossArguments", "DataArguments")
    module, (codec, losses, data, training, _) = parsed("train_wavtokenizer", *groups, recipe=f"wavtokenizer_{name}")
    with torch.device("meta"):
        model = module.load(codec, losses, training.gradient_accumulation_steps)
    assert model.config.codec_config.hop_length == hop and data.segment_samples % hop == 0
    for part, size in ((model.codec, codec_size), (model.discriminators, discriminator_size)):
        assert sum(parameter.numel() for parameter in part.parameters()) / 1e6 == pytest.approx(size, abs=0.06)
    assert training.learning_rate == 2e-4 and training.lr_scheduler_type == "cosine"
    assert model.config.mel_warmup_batches == losses.mel_warmup_steps * training.gradient_accumulation_steps


@pytest.mark.parametrize(
    ("name", "rate", "hop", "vocoder_size", "discriminator_size"),
    [("hift", 24000, 480, 20.8, 41.7), ("hift_small", 16000, 320, 0.75, 0.05)],
)
def test_vocoder_recipes(name, rate, hop, vocoder_size, discriminator_size):
    groups = ("VocoderArguments", "LossArguments", "DataArguments")
    module, (vocoder, losses, data, training, _) = parsed("train_vocoder", *groups, recipe=name)
    with torch.device("meta"):
        model = module.load(vocoder, losses, training.gradient_accumulation_steps)
    config = model.config.vocoder_config
    assert (config.sampling_rate, config.hop_length) == (rate, hop) and data.segment_frames >= model.config.min_frames
    for part, size in ((model.vocoder, vocoder_size), (model.discriminators, discriminator_size)):
        assert sum(parameter.numel() for parameter in part.parameters()) / 1e6 == pytest.approx(size, abs=0.06)
    steps = training.gradient_accumulation_steps
    assert model.config.mel_warmup_batches == losses.mel_warmup_steps * steps
    assert model.config.target_f0_batches == losses.target_f0_steps * steps
    if name == "hift":
        assert config.to_diff_dict() == HiFTConfig().to_diff_dict() and data.segment_frames * hop == 24480
        assert model.config.mel_loss_windows == [1920] and training.learning_rate == 2e-4


def test_flow_recipe():
    _, (model, data, training, _) = parsed(
        "train_flow_decoder", "ModelArguments", "DataArguments", recipe="flow_decoder"
    )
    assert training.gradient_accumulation_steps == 8 and training.max_grad_norm == 5.0
    assert model.streaming_probability == 1.0 and data.max_frequency == 8000.0


def test_recipes_do_not_fit_other_scripts():
    with pytest.raises(ValueError, match=r"examples/train_wavtokenizer.py"):
        read_recipe("wavtokenizer_40", "train_flow_decoder")
