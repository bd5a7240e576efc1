"""The flow-matching loss."""

import math

import pytest
import torch

from dualspeech.modeling import flow_sampler
from dualspeech.modeling.flow_masks import attention_bias

from .flow_cases import tiny_config, tiny_model

SURE = {"conditioning_dropout": 0.0, "prompt_probability": 0.0, "dropout": 0.0}


def batch(lengths=(6, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(27, (len(lengths), max(lengths)), generator=generator)
    return {
        "codes": codes,
        "codes_mask": torch.arange(max(lengths)) < torch.tensor(lengths)[:, None],
        "mel": torch.randn(len(lengths), 6, 4 * max(lengths), generator=generator),
        "speaker_embeds": torch.randn(len(lengths), 5, generator=generator),
    }


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("schedule", ["cosine", "uniform"])
@torch.no_grad()
def test_loss_written_out(streaming, schedule):
    """Row by row, without padding, with the same draws."""
    config = {"prompt_probability": 0.5, "conditioning_dropout": 0.4, "sigma_min": 0.01}
    model = tiny_model(**config, max_prompt_fraction=0.6, training_time_schedule=schedule)
    lengths = (6, 4, 5, 6, 3, 6)
    inputs = batch(lengths)
    output = model(**inputs, streaming=streaming, generator=generator(4))
    draws = generator(4)
    uniform = torch.rand(5, 6, generator=draws)
    noise = torch.randn(6, 24, 6, generator=draws)
    total, seen = 0.0, set()
    for row, length in enumerate(lengths):
        time = float(uniform[0, row])
        time = 1 - math.cos(time * math.pi / 2) if schedule == "cosine" else time
        mel, z = inputs["mel"][row : row + 1, :, : 4 * length].mT, noise[row : row + 1, : 4 * length]
        conditioning = model(codes=inputs["codes"][row : row + 1, :length], streaming=streaming).conditioning.mT
        assert torch.allclose(output.conditioning[row, :, : 4 * length], conditioning[0].mT, atol=1e-5)
        speaker = model._speaker(inputs["speaker_embeds"][row : row + 1], 1)
        known, prompt = torch.zeros_like(mel), 0
        if uniform[2, row] < 0.5:
            prompt = int(0.6 * uniform[3, row] * 4 * length)
            known[:, :prompt] = mel[:, :prompt]
        keep = float(uniform[1, row] >= 0.4)
        seen.add((prompt > 0, keep))
        path = (1 - 0.99 * time) * z + time * mel
        grid = model.chunk_grid().upsampled(4) if streaming else None
        bias = attention_bias(path.shape[1], None, grid, path)
        velocity = model.estimator(
            path, keep * conditioning, keep * speaker, keep * known, torch.tensor([time]), bias=bias
        )
        total += float((velocity - (mel - 0.99 * z)).square().sum())
    assert len(seen) > 2  # the draws of this seed cover rows with and without prompt and conditions
    assert math.isclose(float(output.loss), total / (sum(lengths) * 4 * 6), rel_tol=1e-4)


@torch.no_grad()
def test_padding_and_masks():
    model, inputs = tiny_model(**SURE), batch()
    loss = model(**inputs, generator=generator()).loss
    disturbed = {name: value.clone() for name, value in inputs.items()}
    disturbed["codes"][1, 4:], disturbed["mel"][1, :, 16:] = 99, torch.nan
    assert torch.equal(model(**disturbed, generator=generator()).loss, loss)
    frames = torch.arange(24) < torch.tensor([24, 13])[:, None]
    shorter = model(**inputs, mel_mask=frames, generator=generator()).loss
    disturbed["mel"][1, :, 13:] = torch.inf
    assert torch.equal(model(**disturbed, mel_mask=frames, generator=generator()).loss, shorter)
    assert not torch.equal(shorter, loss)


def test_draws():
    config = tiny_config(conditioning_dropout=0.2, prompt_probability=0.5, streaming_probability=0.3)
    mel = torch.zeros(4000, 1, 6)
    draws = flow_sampler.draw(config, mel, generator())
    assert abs(float(draws.keep.mean()) - 0.8) < 0.03
    fractions = draws.prompt_fraction
    assert abs(float((fractions > 0).float().mean()) - 0.5) < 0.03
    assert 0.28 < float(fractions.max()) <= 0.3 and abs(float(fractions[fractions > 0].mean()) - 0.15) < 0.01
    assert abs(float(draws.times.mean()) - (1 - 2 / math.pi)) < 0.02  # of 1 - cos(pi t / 2)
    streaming = [flow_sampler.draw(config, mel[:1], generator(seed)).streaming for seed in range(300)]
    assert 60 < sum(streaming) < 120
    always = tiny_config(streaming_probability=1.0)
    assert all(flow_sampler.draw(always, mel[:1], generator(seed)).streaming for seed in range(50))


def test_generator_decides():
    model, inputs = tiny_model(dropout=0.0).train(), batch()
    losses = [model(**inputs, generator=generator(seed)).loss.item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    torch.manual_seed(5)
    first = model(**inputs).loss.item()
    torch.manual_seed(5)
    assert model(**inputs).loss.item() == first


@pytest.mark.parametrize("checkpointing", [False, True])
def test_everything_gets_a_gradient(checkpointing):
    model = tiny_model(**SURE).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model(**batch(), generator=generator()).loss.backward()
    without = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert not without
    gradient = model.estimator.down.layers[0].fc1.weight.grad
    plain = tiny_model(**SURE).train()
    plain(**batch(), generator=generator()).loss.backward()
    assert torch.allclose(gradient, plain.estimator.down.layers[0].fc1.weight.grad, atol=1e-6)


@pytest.mark.parametrize(
    ("steps", "repeats", "channels", "limit"),
    [(100, 8, 24, 0.25), pytest.param(600, 16, 64, 0.01, marks=pytest.mark.slow)],
)
def test_learns_a_tiny_case(steps, repeats, channels, limit):
    """Decoding two utterances then gives their mel spectrograms: without the noise after enough steps."""
    sizes = {"num_hidden_layers": 1, "num_upsampled_layers": 1, "estimator_num_layers": 1}
    sizes |= {"estimator_num_mid_stages": 1, "estimator_channels": channels, "guidance_scale": 0.0}
    model = tiny_model(**SURE, **sizes).train()
    places = torch.linspace(0, 2, 16)
    rows = [(places * (bin + 1) / 2 + row).sin() for row in range(2) for bin in range(6)]
    inputs = {
        "codes": torch.randint(27, (2, 4)),
        "codes_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
        "mel": 4 * torch.stack(rows).view(2, 6, 16),
    }
    optimizer = torch.optim.Adam(model.parameters(), 1e-2 if steps == 100 else 5e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    draws, repeated = generator(), {name: torch.cat([value] * repeats) for name, value in inputs.items()}
    for _ in range(steps):
        optimizer.zero_grad()
        model(**repeated, generator=draws).loss.backward()
        optimizer.step()
        schedule.step()
    mel = model.eval().decode(inputs["codes"], inputs["codes_mask"], streaming=True)
    valid = inputs["codes_mask"].repeat_interleave(4, dim=1)[:, None]
    error = ((mel - inputs["mel"]).square() * valid).sum() / (inputs["mel"].square() * valid).sum()
    assert error < limit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mel": torch.zeros(2, 6, 23)}, r"mel must be floating point \(2, 6, 24\), 4 frames for each code.*23"),
        ({"mel": torch.zeros(2, 7, 24)}, r"got torch.float32 \(2, 7, 24\)"),
        ({"mel": torch.zeros(2, 6, 24, dtype=torch.long)}, "mel must be floating point"),
        ({"mel": torch.full((2, 6, 24), torch.nan)}, "`mel` holds NaN or infinite values in rows .0, 1."),
        ({"mel_mask": torch.ones(2, 23)}, r"mel_mask must be \(2, 24\)"),
        ({"mel_mask": torch.zeros(2, 24)}, "leave no frame to learn from"),
        ({"mel_mask": torch.tensor([[0.0, 1.0]]).repeat(2, 12)}, "mel_mask must be 1 on the first"),
        ({"mel": None, "mel_mask": torch.ones(2, 24)}, "mel_mask is given without mel"),
        ({"codes": torch.full((2, 6), 27)}, "codes must be between 0 and 26"),
        ({"speaker_embeds": torch.zeros(3, 5)}, "speaker_embeds must be"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(**(batch() | change))
