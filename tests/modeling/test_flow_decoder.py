import pytest
import torch
import torch.nn.functional as F

from dualspeech.modeling.flow_masks import ChunkGrid, attention_bias
from dualspeech.modeling.flow_sampler import FlowConditions, sample, time_steps
from tests.fixture_checks import check

from .flow_cases import recorded_model


@pytest.fixture(scope="module")
def recorded():
    return recorded_model()


MODES = pytest.mark.parametrize(("mode", "grid"), [("offline", None), ("streaming", ChunkGrid(5))])


@MODES
@torch.no_grad()
def test_recorded_encoder(recorded, mode, grid):
    model, tensors, meta = recorded
    check(model.encoder(tensors["encoder_input"], grid=grid), f"encoder_{mode}", tensors, meta)
    followed = torch.cat([tensors["encoder_input"], tensors["encoder_lookahead"]], dim=1)
    output = model.encoder(followed, grid=grid, following=3)
    output = output if grid else model.encoder_proj(output)
    check(output, f"encoder_lookahead_{mode}", tensors, meta)


@MODES
@torch.no_grad()
def test_recorded_encoder_batch(recorded, mode, grid):
    model, tensors, meta = recorded
    inputs = tensors["encoder_batch_input"]
    valid = torch.arange(inputs.shape[1]) < tensors["encoder_batch_lengths"][:, None]
    # the reference lets what stands behind the end of a row into its look-ahead, so that a row differs from itself
    # alone; `FlowEncoder.forward` puts zeros there, and is left out here
    encoder = model.encoder
    hidden_states = encoder.lookahead(F.pad(encoder.embed(inputs), (0, 0, 0, 3)))
    hidden_states = encoder._run(encoder.layers, hidden_states, valid, grid, None)
    hidden_states = encoder.upsampled_embed(encoder.upsample(hidden_states))
    valid, grid = valid.repeat_interleave(4, dim=1), grid and grid.upsampled(4)
    hidden_states = encoder.norm(encoder._run(encoder.upsampled_layers, hidden_states, valid, grid, None))
    check(valid, "encoder_batch_mask", tensors, meta)
    check(model.encoder_proj(hidden_states) * valid[..., None], f"encoder_batch_{mode}", tensors, meta)


@MODES
@torch.no_grad()
def test_encoder_rows_are_as_alone(recorded, mode, grid):
    model, tensors, _ = recorded
    inputs, lengths = tensors["encoder_batch_input"], tensors["encoder_batch_lengths"]
    valid = torch.arange(inputs.shape[1]) < lengths[:, None]
    output = model.encoder(inputs, valid, grid)
    for row, length in enumerate(lengths):
        alone = model.encoder(inputs[row : row + 1, :length], grid=grid)[0]
        assert torch.allclose(output[row, : 4 * length], alone, atol=1e-5)


@MODES
@pytest.mark.parametrize("masked", ["", "masked_"])
@torch.no_grad()
def test_recorded_estimator(recorded, mode, grid, masked):
    model, tensors, meta = recorded
    noisy, mu, cond = (tensors[f"estimator.{name}"].transpose(1, 2) for name in ("x", "mu", "cond"))
    valid = tensors["estimator.mask"][:, 0].bool() if masked else None
    bias = attention_bias(noisy.shape[1], valid, grid and grid.upsampled(4), noisy)
    output = model.estimator(noisy, mu, tensors["estimator.spks"], cond, tensors["estimator.t"], valid, bias)
    check(output.transpose(1, 2), f"estimator_{masked}{mode}", tensors, meta)


@MODES
@torch.no_grad()
def test_recorded_sampler(recorded, mode, grid):
    model, tensors, meta = recorded
    mu, cond = (tensors[f"estimator.{name}"][:1].transpose(1, 2) for name in ("mu", "cond"))
    steps = time_steps(model.config, meta["config"]["steps"])
    bias = attention_bias(mu.shape[1], None, grid and grid.upsampled(4), mu)
    conditions = FlowConditions(mu, tensors["estimator.spks"][:1], cond)
    output = sample(model.estimator, model.noise(0, 46), conditions, steps, meta["config"]["guidance"], bias=bias)
    check(output.transpose(1, 2), f"sampler_{mode}", tensors, meta)


@torch.no_grad()
def test_recorded_noise_and_speaker(recorded):
    model, tensors, meta = recorded
    check(model.noise.table[:, :64], "noise_first64", tensors, meta)
    check(model.noise.table[:, -4:], "noise_last4", tensors, meta)
    check(model._speaker(tensors["speaker"], 1), "speaker_projected", tensors, meta)
    expected = torch.tensor([-1.1258398, -1.1523602, -0.2505786, -0.4338788, -0.9826010, -0.0832934])
    assert torch.allclose(torch.cat([model.noise.table[0, :4], model.noise.table[79, -2:]]), expected, atol=1e-6)


def test_recorded_mel(recorded):
    model, tensors, meta = recorded
    voice = {
        "prompt_codes": tensors["prompt_codes"],
        "prompt_mel": tensors["prompt_mel"].transpose(1, 2),
        "speaker_embeds": tensors["speaker"],
    }
    codes = tensors["codes"]
    check(model.decode(codes, **voice), "mel_offline", tensors, meta)
    check(model.decode(codes, **voice, streaming=True), "mel_streaming_final", tensors, meta)
    check(model.decode(codes[:, :6]), "mel_no_prompt_offline", tensors, meta)
    # recorded with the speaker vector, against what its description says
    spoken = model.decode(codes[:, :6], speaker_embeds=tensors["speaker"], streaming=True)
    check(spoken, "mel_no_prompt_streaming", tensors, meta)
    for index, (cursor, hop) in enumerate([(0, 8), (8, 5), (13, 5)]):
        output = model.decode(codes[:, : cursor + hop + 3], **voice, streaming=True, finalize=False)
        check(output, f"mel_prefix.{index}", tensors, meta)
