"""Discriminators and losses of codecs against naive formulas."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dualspeech.training import adversarial_losses as losses
from dualspeech.training.configuration_wavtokenizer_training import WavTokenizerTrainingConfig
from dualspeech.training.discriminators import (
    BandDiscriminator,
    CodecDiscriminators,
    Judgement,
    PeriodDiscriminator,
    SpectrogramDiscriminator,
)
from dualspeech.training.wavtokenizer_training import WavTokenizerForTraining


def millions(module):
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def test_released_sizes():
    with torch.device("meta"):
        discriminators = WavTokenizerForTraining(WavTokenizerTrainingConfig()).discriminators
    assert round(millions(discriminators.period), 1) == 41.1
    assert round(millions(discriminators.resolution), 1) == 0.6
    assert round(millions(discriminators.dac_period) + millions(discriminators.dac_band), 1) == 42.5


@torch.no_grad()
def test_period_discriminator_written_out():
    torch.manual_seed(0)
    model = PeriodDiscriminator(3, (4, 6), num_classes=2)
    audio = torch.randn(2, 1, 50)
    judgement = model(audio, torch.tensor([1, 0]))
    for row, class_id in enumerate((1, 0)):
        samples = [*audio[row, 0].tolist(), float(audio[row, 0, -2])]  # one sample is reflected: 51 = 17 * 3
        columns = torch.tensor([samples[start::3] for start in range(3)])  # [period, rows]
        features = []
        hidden = columns[:, None]  # every column is a signal of its own
        for layer, stride in zip(model.layers, (3, 1), strict=True):
            hidden = F.conv1d(hidden, layer.weight[..., 0], layer.bias, stride, padding=2)
            hidden = torch.where(hidden > 0, hidden, 0.1 * hidden)
            features.append(hidden)
        output = model.projection.output
        plain = F.conv1d(hidden, output.weight[..., 0], output.bias, padding=1)
        vector = model.projection.classes.weight[class_id]
        scores = plain[:, 0] + torch.einsum("pcn,c->pn", hidden, vector)
        for feature, naive in zip(judgement.features, [*features, plain], strict=True):
            assert torch.allclose(feature[row], naive.permute(1, 2, 0), atol=1e-5)
        assert torch.allclose(judgement.scores[row], scores.T.flatten(), atol=1e-5)


@torch.no_grad()
def test_spectrogram_and_band_discriminators():
    torch.manual_seed(0)
    audio = torch.randn(2, 1, 1000)
    model = SpectrogramDiscriminator(128, 4, num_classes=3)
    judgement = model(audio, torch.tensor(2))
    # 65 bins and 1 + 1000 // 32 frames; five strides of 2 over frequency, three over time
    assert [tuple(feature.shape[2:]) for feature in judgement.features] == [
        (33, 16),
        (17, 16),
        (9, 8),
        (5, 8),
        (3, 4),
        (3, 4),
    ]
    assert judgement.scores.shape == (2, 12)
    spectrum = torch.stft(audio[:, 0], 128, 32, window=torch.ones(128), return_complex=True).abs()
    first = F.leaky_relu(model.layers[0](spectrum[:, None]), 0.1)
    assert torch.equal(judgement.features[0], first)
    assert not torch.equal(model(audio, torch.tensor(0)).scores, judgement.scores)
    assert torch.equal(model(audio, torch.tensor(0)).features[-1], judgement.features[-1])

    bands = BandDiscriminator(128, 4)
    assert bands.bands == [(0, 6), (6, 16), (16, 32), (32, 49), (49, 65)]
    judgement = bands(audio)
    assert len(judgement.features) == 5 * 5 + 1 and judgement.features[0].shape == (2, 4, 32, 6)
    spectrum = torch.stft(audio[:, 0], 128, 32, window=torch.hann_window(128), return_complex=True)
    planes = torch.stack([spectrum.real, spectrum.imag], dim=1).mT
    assert torch.allclose(judgement.features[5], F.leaky_relu(bands.stacks[1][0](planes[..., 6:16]), 0.1), atol=1e-6)


@torch.no_grad()
def test_dac_judges_the_shape_and_not_the_level():
    torch.manual_seed(0)
    model = CodecDiscriminators((2,), (4, 4), (128,), 4, (128,), 4, 2)
    audio, class_id = torch.randn(2, 1, 600), torch.tensor(1)
    first, second = model(audio, class_id), model(0.1 * audio + 0.2, class_id)
    assert list(first) == ["period", "resolution", "dac"] and len(first["dac"]) == 2
    for a, b in zip(first["dac"], second["dac"], strict=True):
        assert torch.allclose(a.scores, b.scores, atol=1e-4)
    assert not torch.allclose(first["period"][0].scores, second["period"][0].scores, atol=1e-2)
    assert "dac" not in CodecDiscriminators((2,), (4, 4), (128,), 4, (), 4, 2)(audio, class_id)


def judgements(seed):
    generator = torch.Generator().manual_seed(seed)

    def one():
        tensors = [2 * torch.randn(2, 3, generator=generator) for _ in range(4)]
        return Judgement(tensors[0], tensors[1:])

    return {"period": [one(), one()], "resolution": [one(), one(), one()], "dac": [one(), one()]}


def test_losses_written_out():
    real, fake = judgements(0), judgements(1)

    def mean(function, tensor):
        return np.mean([function(value) for value in tensor.flatten().tolist()])

    judges = adversarial = matching = 0.0
    for kind, weight in (("period", 1 / 2), ("resolution", 0.3 / 3), ("dac", 1.0)):
        for a, b in zip(real[kind], fake[kind], strict=True):
            features = list(zip(a.features, b.features, strict=True))
            if kind == "dac":
                judges += mean(lambda x: (1 - x) ** 2, a.scores) + mean(lambda x: x**2, b.scores)
                adversarial += mean(lambda x: (1 - x) ** 2, b.scores)
                features = features[:-1]
            else:
                judges += weight * mean(lambda x: max(0, 1 - x), a.scores)
                judges += weight * mean(lambda x: max(0, 1 + x), b.scores)
                adversarial += weight * mean(lambda x: max(0, 1 - x), b.scores)
            matching += weight * sum(mean(abs, x - y) for x, y in features)
    assert losses.discriminator_loss(real, fake, 0.3).item() == pytest.approx(judges, rel=1e-5)
    assert [loss.item() for loss in losses.generator_losses(real, fake, 0.3)] == pytest.approx(
        [adversarial, matching], rel=1e-5
    )


def test_mel_spectrogram_written_out():
    audio = 0.1 * np.random.default_rng(0).standard_normal(1000)
    mel = losses.codec_log_mel(torch.tensor(audio, dtype=torch.float32)[None, None], 24000, 256, 64, 12)[0].numpy()
    padded = np.pad(audio, 128, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(256) / 256)
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 12000 / 700), 14) / 2595) - 1)
    frequencies = np.arange(129) * 24000 / 256
    assert mel.shape == (12, 16)
    for frame in range(16):
        magnitude = np.abs(np.fft.rfft(padded[64 * frame : 64 * frame + 256] * window))
        for i in range(12):
            left, centre, right = edges[i : i + 3]
            rising, falling = (frequencies - left) / (centre - left), (right - frequencies) / (right - centre)
            energy = np.maximum(0, np.minimum(rising, falling)) @ magnitude
            assert mel[i, frame] == pytest.approx(np.log(max(energy, 1e-7)), abs=2e-3)


def test_silence_has_finite_gradients():
    model = CodecDiscriminators((2,), (4, 4), (128,), 4, (128,), 4, 2)
    audio = torch.zeros(1, 1, 600, requires_grad=True)
    scores = [judgement.scores.sum() for kind in model(audio, torch.tensor(0)).values() for judgement in kind]
    (sum(scores) + losses.codec_log_mel(audio, n_fft=256, hop_length=64, num_mel_bins=10).sum()).backward()
    assert audio.grad.isfinite().all()
