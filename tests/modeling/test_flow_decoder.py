import math

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, FastSpeech2ConformerConfig
from transformers.models.fastspeech2_conformer.modeling_fastspeech2_conformer import (
    FastSpeech2ConformerAttention,
    FastSpeech2ConformerRelPositionalEncoding,
)

from dualspeech import FlowDecoderModel
from dualspeech.modeling import flow_encoder
from dualspeech.modeling.flow_encoder import FlowEncoderAttention, sinusoids
from dualspeech.modeling.flow_masks import ChunkGrid, attention_bias
from dualspeech.modeling.flow_sampler import FlowConditions, sample, time_steps
from tests.fixture_checks import check

from .flow_cases import prompt, recorded_model, tiny_config, tiny_model


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


def test_attention_equals_that_of_fastspeech2_conformer():
    """The same scores without the decomposition of angles: a table of distances that is projected and shifted."""
    attention = FlowEncoderAttention(tiny_config())
    reference_config = FastSpeech2ConformerConfig(hidden_size=16)
    sizes = {"num_attention_heads": 2, "attention_dropout_rate": 0.0}
    reference = FastSpeech2ConformerAttention(reference_config, sizes)
    renamed = {"linear_pos": "pos_proj", "linear_out": "o_proj"} | {f"linear_{n}": f"{n}_proj" for n in "qkv"}
    attention.config._attn_implementation = "sdpa"
    for parameter in (*attention.parameters(), *reference.parameters()):
        torch.nn.init.normal_(parameter, std=0.3)
    state = reference.state_dict()
    for old, new in renamed.items():
        state = {key.replace(old, new): value for key, value in state.items()}
    attention.load_state_dict(state)
    attention.eval()
    hidden_states = torch.randn(2, 23, 16)
    encoding = FastSpeech2ConformerRelPositionalEncoding(reference_config, {"positional_dropout_rate": 0.0})
    expected = reference.eval()(hidden_states, pos_emb=encoding(hidden_states)[1])[0]
    table = sinusoids(torch.arange(23), 16)
    for start in (0, 3000):  # only differences of positions count
        table = sinusoids(torch.arange(start, start + 23), 16)
        output = attention(hidden_states, table, torch.cat(table, dim=-1), None)
        assert torch.allclose(output, expected, atol=2e-5)


def test_long_attention_is_computed_in_blocks(monkeypatch):
    model = tiny_model()
    codes = torch.randint(27, (2, 19))
    mask = torch.arange(19) < torch.tensor([19, 11])[:, None]
    expected = model.decode(codes, mask, streaming=True)
    monkeypatch.setattr(flow_encoder, "MAX_SCORES", 100)
    assert torch.allclose(model.decode(codes, mask, streaming=True), expected, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 5])
@pytest.mark.parametrize("left", [None, 0, 2, 3, 7])
@pytest.mark.parametrize("pinned", [0, 4])
def test_what_frames_see(chunk, left, pinned):
    """Against the definition, position by position."""

    def sees(query, key):
        start = query // chunk * chunk
        return key < start + chunk and (left is None or key >= start - left or key < pinned)

    expected = torch.tensor([[sees(query, key) for key in range(17)] for query in range(17)])
    frames = torch.arange(17)
    assert torch.equal(ChunkGrid(chunk, left, pinned).visible(frames, frames), expected)
    rows = ChunkGrid(chunk, left, torch.tensor([pinned, 17])).visible(frames, frames)
    assert torch.equal(rows.expand(2, -1, -1)[0], expected)


@pytest.mark.parametrize("model", [{}, {"upsample_ratio": 2, "pre_lookahead": 0}], indirect=True)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"finalize": False},
        {"streaming": True},
        {"streaming": True, "finalize": False, "chunk_size": 3},
        {"streaming": True, "left_context": 4},
    ],
    ids=str,
)
def test_batch_rows_are_as_alone(model, settings):
    ratio, lookahead = model.config.upsample_ratio, model.config.pre_lookahead
    lengths, prompts = [9, 0, 4, 12, 2], [3, 5, 0, 7, 0]
    codes = torch.randint(27, (5, 12))
    mask = torch.arange(12) < torch.tensor(lengths)[:, None]
    codes[~mask] = -7  # anything may stand there
    speakers = torch.randn(5, 5)
    pairs = [prompt(model, length, seed) if length else (None, None) for seed, length in enumerate(prompts)]
    prompt_codes = [None if codes is None else codes[0] for codes, _ in pairs]
    prompt_mel = [None if mel is None else mel[0] for _, mel in pairs]
    mel = model.decode(codes, mask, prompt_codes, prompt_mel, speakers, **settings)
    following = 0 if settings.get("finalize", True) else lookahead
    assert mel.shape == (5, 6, ratio * (12 - following)) and mel.dtype == torch.float32
    for row, length in enumerate(lengths):
        expected = model.decode(codes[row : row + 1, :length], None, *pairs[row], speakers[row : row + 1], **settings)
        frames = ratio * max(0, length - following)
        assert expected.shape[-1] == frames and (mel[row, :, frames:] == 0).all()
        assert torch.allclose(mel[row, :, :frames], expected[0], atol=1e-4), row


@pytest.fixture(scope="module")
def model(request):
    return tiny_model(**getattr(request, "param", {}))


def test_one_prompt_for_all_rows(model):
    codes, (prompt_codes, prompt_mel) = torch.randint(27, (2, 5)), prompt(model, 4)
    once = model.decode(codes, prompt_codes=prompt_codes, prompt_mel=prompt_mel)
    twice = model.decode(codes, prompt_codes=prompt_codes.expand(2, -1), prompt_mel=prompt_mel.expand(2, -1, -1))
    assert torch.equal(once, twice) and not torch.allclose(once, model.decode(codes), atol=0.1)


def test_no_codes(model):
    assert model.decode(torch.zeros(2, 0, dtype=torch.long)).shape == (2, 6, 0)
    assert model.decode(torch.zeros(2, 2, dtype=torch.long), finalize=False).shape == (2, 6, 0)
    nothing = model.decode(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3))
    assert nothing.shape == (2, 6, 12) and not nothing.any()


@pytest.mark.parametrize("scale", [0.0, 0.7, 2.5])
@pytest.mark.parametrize("steps", [1, 3])
@torch.no_grad()
def test_sampler(model, scale, steps):
    """Against one call for each branch and step, written out."""
    codes, speakers = torch.randint(27, (2, 5)), torch.randn(2, 5)
    mu = model.encoder_proj(model.encoder(model.code_embedding(codes)))
    speaker = model.speaker_proj(speakers / speakers.norm(dim=1, keepdim=True))
    frames = torch.randn(1, 6, 400, generator=torch.Generator().manual_seed(0))[:, :, :20].mT.expand(2, -1, -1)
    nothing = torch.zeros_like(mu)
    for step in range(steps):
        start, end = (1 - math.cos(math.pi / 2 * k / steps) for k in (step, step + 1))
        times = torch.full((2,), start)
        with_conditions = model.estimator(frames, mu, speaker, nothing, times)
        without = model.estimator(frames, nothing, torch.zeros_like(speaker), nothing, times)
        frames = frames + (end - start) * ((1 + scale) * with_conditions - scale * without)
    mel = model.decode(codes, speaker_embeds=speakers, num_timesteps=steps, guidance_scale=scale)
    assert torch.allclose(mel, frames.mT, atol=1e-3)  # times are computed in single precision there


def test_settings_come_from_the_configuration():
    model, codes = tiny_model(), torch.randint(27, (1, 9))
    assert torch.equal(model.decode(codes), model.decode(codes, num_timesteps=4, guidance_scale=0.7))
    other = tiny_model(num_timesteps=2, guidance_scale=0.1, chunk_size=2)
    assert torch.equal(other.decode(codes), model.decode(codes, num_timesteps=2, guidance_scale=0.1))
    settings = {"num_timesteps": 2, "guidance_scale": 0.1, "chunk_size": 2, "streaming": True}
    assert torch.equal(other.decode(codes, streaming=True), model.decode(codes, **settings))
    uniform = tiny_model(time_schedule="uniform").decode(codes)
    assert not torch.allclose(uniform, model.decode(codes), atol=1e-3)


def test_decoding_leaves_training_mode_and_generators_alone():
    model, codes = tiny_model(), torch.randint(27, (1, 9))
    expected, state = model.decode(codes), torch.get_rng_state()
    model.train()
    model.encoder.layers[0].eval()
    assert torch.equal(model.decode(codes), expected) and not expected.requires_grad
    assert model.training and not model.encoder.layers[0].training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.3), (torch.float64, 1e-4)])
def test_other_precisions(dtype, tolerance):
    model, codes = tiny_model(), torch.randint(27, (1, 9))
    expected = model.decode(codes)
    other = tiny_model().to(dtype)
    mel = other.decode(codes)
    assert mel.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert other.noise.table.dtype != torch.bfloat16
    assert 0 < (mel - expected).abs().max() < tolerance * expected.std()


def test_loading(tmp_path):
    model, codes = tiny_model(), torch.randint(27, (1, 9))
    model.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(loaded, FlowDecoderModel) and not any(info.values())
    assert torch.equal(loaded.decode(codes), model.decode(codes))
    half = FlowDecoderModel.from_pretrained(tmp_path, dtype=torch.float16)
    assert half.dtype == torch.float16 and torch.equal(half.noise.table, model.noise.table)
    assert "noise.table" not in model.state_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": [[1, 2]]}, "codes must be .*list"),
        ({"codes": torch.ones(3, dtype=torch.long)}, r"codes must be \[batch, codes\].*\(3,\)"),
        ({"codes": torch.ones(0, 3, dtype=torch.long)}, r"with a row at least, got \(0, 3\)"),
        ({"codes": torch.ones(1, 3)}, "codes must be integers, got torch.float32"),
        ({"codes": torch.tensor([[1, 27]])}, "codes must be between 0 and 26, got values from 1 to 27"),
        ({"codes": torch.tensor([[-1, 2]])}, "got values from -1 to 2"),
        ({"codes": torch.ones(1, 101, dtype=torch.long)}, r"together are 101, at most 100 \(8 s\)"),
        ({"codes_mask": torch.ones(1, 4)}, r"codes_mask must be \(1, 3\)"),
        ({"codes_mask": torch.tensor([[0, 1, 1]])}, "codes_mask must be 1 on the first"),
        ({"prompt_codes": torch.ones(1, 2, dtype=torch.long)}, "4 frames for each of the 2 codes.*got 0 frames"),
        ({"prompt_mel": torch.zeros(1, 6, 4)}, "each of the 0 codes.*got 4 frames"),
        (
            {"prompt_codes": torch.ones(1, 2, dtype=torch.long), "prompt_mel": torch.zeros(1, 7, 8)},
            r"\[6, 4 \* P\], got \(2,\) and \(7, 8\)",
        ),
        ({"prompt_codes": torch.ones(2, dtype=torch.long)}, r"prompt_codes must have 2 dimensions, got \(2,\)"),
        ({"codes": None}, "codes must be .*NoneType"),
        ({"prompt_codes": [[1, 2]], "prompt_mel": torch.zeros(1, 6, 8)}, "prompt_codes must be a tensor, got .*list"),
        ({"prompt_mel": 3}, "prompt_mel must be a tensor or a list"),
        ({"prompt_codes": [None, None]}, "prompt_codes must have a row for each of 1 rows"),
        (
            {"prompt_codes": torch.tensor([[27]]), "prompt_mel": torch.zeros(1, 6, 4)},
            "prompt_codes must be between 0 and 26",
        ),
        (
            {"prompt_codes": torch.tensor([[2]]), "prompt_mel": torch.full((1, 6, 4), torch.nan)},
            "prompt_mel` holds NaN",
        ),
        (
            {"prompt_codes": torch.tensor([[2]]), "prompt_mel": torch.zeros(1, 6, 4, dtype=torch.long)},
            "prompt_mel must be floating point",
        ),
        ({"speaker_embeds": torch.zeros(1, 6)}, r"speaker_embeds must be .*\[1, 5\].*got \(1, 6\)"),
        ({"speaker_embeds": torch.full((1, 5), torch.inf)}, "speaker_embeds` holds NaN or infinite"),
        ({"chunk_size": 4}, "give streaming=True"),
        ({"streaming": True, "chunk_size": 0}, "chunk_size must be a positive"),
        ({"streaming": True, "left_context": -1}, "left_context must be a number of codes"),
        ({"num_timesteps": 0}, "num_timesteps must be a positive"),
        ({"num_timesteps": 2.0}, "num_timesteps must be a positive"),
        ({"guidance_scale": -0.1}, "guidance_scale must be a number of at least 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a number"),
    ],
)
def test_bad_input(model, change, message):
    with pytest.raises(ValueError, match=message):
        model.decode(**({"codes": torch.ones(1, 3, dtype=torch.long)} | change))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"chunk_size": 0}, "chunk_size must be positive, got 0"),
        ({"pre_lookahead": -1}, "pre_lookahead must not be negative"),
        ({"codebook_size": 31}, "codebook_size must be at most vocab_size, got 31 and 30"),
        ({"hidden_size": 18}, "twice num_attention_heads"),
        ({"max_mel_frames": 3}, "max_mel_frames must hold a code"),
        ({"time_schedule": "linear"}, "time_schedule must be 'cosine' or 'uniform', got 'linear'"),
        ({"dropout": 1.5}, "dropout must be between 0 and 1"),
        ({"sigma_min": 1.0}, "sigma_min must be in"),
    ],
)
def test_bad_configuration(field, message):
    with pytest.raises(Exception, match=message):
        tiny_config(**field)
