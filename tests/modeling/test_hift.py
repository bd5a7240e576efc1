import json
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModel

from dualspeech import HiFTConfig, HiFTModel
from dualspeech.modeling import modeling_hift
from dualspeech.modeling.conversion.convert_hift_to_hf import build_model
from dualspeech.modeling.hift_convolutions import WholeSignal
from dualspeech.modeling.hift_source import HiFTSource, HiFTSourcePieces, sample_noise
from tests.fixture_checks import FIXTURES, check, load

from .hift_cases import GEOMETRIES, frames_for, lively_model

geometries = pytest.mark.parametrize("geometry", GEOMETRIES)


def check_rms(actual, name, tensors, meta):
    check(actual, name, tensors, meta)
    error = (actual - tensors[name]).pow(2).mean().sqrt()
    assert error <= meta["tolerances"][name]["rms"], float(error)


@pytest.fixture(scope="module")
def recorded():
    state, tensors, meta = load("moss_hift")
    return build_model(state), tensors, meta


@torch.no_grad()
def test_recorded_parts(recorded):
    model, tensors, meta = recorded
    for name in ("mel", "mel_batch"):
        f0 = model.f0_predictor(tensors[name], WholeSignal())
        check(f0, name.replace("mel", "f0"), tensors, meta)
        given = tensors[name.replace("mel", "given_source")]
        check(model.filter(tensors[name], given), name.replace("mel", "decoded"), tensors, meta)
        output = model(tensors[name], source=given)
        assert torch.equal(output.waveform, model.filter(tensors[name], given)) and torch.equal(output.source, given)
    f0 = tensors["given_f0"]
    noise = model.drawn_noise(1, 480 * f0.shape[1], torch.Generator().manual_seed(meta["config"]["rng_seed"]))
    check(model.m_source(f0, noise), "source", tensors, meta)


@torch.no_grad()
def test_recorded_whole(recorded):
    model, tensors, meta = recorded
    seed, state = meta["config"]["rng_seed"], torch.get_rng_state()
    output = model(tensors["mel"], generator=torch.Generator().manual_seed(seed))
    assert torch.equal(torch.get_rng_state(), state)
    check(output.f0, "f0", tensors, meta)
    check(output.source, "waveform_source", tensors, meta)
    check_rms(output.waveform, "waveform", tensors, meta)
    source = output.source.clone()
    source[..., :3840] = tensors["given_source"][..., :3840]
    check_rms(model(tensors["mel"], source=source).waveform, "waveform_cached_source", tensors, meta)
    torch.manual_seed(seed)
    assert torch.equal(model(tensors["mel"], generator=torch.default_generator).waveform, output.waveform)
    assert not torch.equal(torch.get_rng_state(), state)


def test_released_sizes():
    with torch.device("meta"):
        model = HiFTModel(HiFTConfig())
    layout = json.loads((FIXTURES / "layouts" / "moss_hift.json").read_text())
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == {
        key: tuple(shape) for key, shape in layout["keys"]
    }
    assert (len(layout["keys"]), model.num_parameters()) == (328, 20_821_295)
    config = model.config
    assert (config.hop_length, config.frame_rate, config.lookahead_frames) == (480, 50.0, 20)


def naive_source(source, f0, noise):
    """The released computation, in double precision: everything at every sample, down to frames and up again."""
    config, hop = source.config, source.config.hop_length
    samples = f0.double().repeat_interleave(hop, dim=1)[..., None]
    cycles = samples * torch.arange(1, config.num_harmonics + 1) / config.sampling_rate % 1
    frames = F.interpolate(cycles.mT, scale_factor=1 / hop, mode="linear")
    phase = F.interpolate(frames.cumsum(-1) * 2 * torch.pi * hop, scale_factor=hop, mode="linear").mT
    voiced = (samples > config.voiced_threshold).double()
    level = voiced * config.noise_amplitude + (1 - voiced) * config.sine_amplitude / 3
    mixed = config.sine_amplitude * phase.sin() * voiced + level * noise
    return torch.tanh(source.l_linear.double()(mixed)).mT


@geometries
@pytest.mark.parametrize("frames", [1, 2, 9])
@torch.no_grad()
def test_source_equals_the_released_computation(geometry, frames):
    source = HiFTSource(HiFTConfig(**GEOMETRIES[geometry]))
    f0 = torch.rand(2, frames) * 400
    f0[:, ::3] = 4.0
    noise = torch.randn(2, frames * source.config.hop_length, source.config.num_harmonics)
    actual = source(f0, noise)
    torch.testing.assert_close(actual.double(), naive_source(source, f0, noise), atol=1e-5, rtol=0)


@torch.no_grad()
def test_phase_is_exact_after_half_an_hour():
    config = HiFTConfig(**GEOMETRIES["one_stage"] | {"num_harmonics": 3, "istft_n_fft": 8, "istft_hop_length": 4})
    pieces, frames, hertz = HiFTSourcePieces(HiFTSource(config)), 90_000, 440.123
    for _ in range(9):
        phase, _ = pieces.step(torch.full((1, frames // 9), hertz, dtype=torch.float64), final=False)
    # the last certain sample lies half a sample in front of the centre of the last frame
    for harmonic in (1, 2, 3):
        per_sample = Fraction(hertz) * harmonic / config.sampling_rate
        expected = per_sample * ((frames - 1) * config.hop_length + config.hop_length - Fraction(1, 2)) % 1
        error = (float(phase[0, -1, harmonic - 1]) - float(expected) + 0.5) % 1 - 0.5
        assert abs(error) < 1e-7


@pytest.mark.parametrize("sizes", [{}, {"istft_n_fft": 20, "istft_hop_length": 5}, {"istft_n_fft": 8}])
def test_fourier_transforms_equal_torch(sizes):
    model = HiFTModel(HiFTConfig(**GEOMETRIES["released"], **sizes)).double()
    n_fft, hop = model.config.istft_n_fft, model.config.istft_hop_length
    options = {"n_fft": n_fft, "hop_length": hop, "window": torch.hann_window(n_fft, dtype=torch.float64)}
    source = torch.randn(2, 1, 30 * hop, dtype=torch.float64)
    expected = torch.stft(source[:, 0], **options, pad_mode="reflect", return_complex=True)
    actual = model._spectrum(source, WholeSignal())
    torch.testing.assert_close(actual, torch.cat([expected.real, expected.imag], dim=1), atol=1e-12, rtol=0)
    x = torch.randn(2, n_fft + 2, 31, dtype=torch.float64) * 3
    magnitude = x[:, : n_fft // 2 + 1].exp().clamp(max=100)
    expected = torch.istft(torch.polar(magnitude, x[:, n_fft // 2 + 1 :].sin()), **options)
    torch.testing.assert_close(model._waveform(x, WholeSignal()), expected, atol=1e-10, rtol=0)


@torch.no_grad()
def test_noise_is_a_function_of_seed_and_sample():
    state = torch.get_rng_state()
    whole = sample_noise(5, 0, 1000, 9, "cpu")
    parts = [sample_noise(5, start, min(77, 1000 - start), 9, "cpu") for start in range(0, 1000, 77)]
    # vector and scalar versions of the logarithm may differ in the last bit
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-6, rtol=0)
    assert sample_noise(5, 10, 0, 9, "cpu").shape == (1, 0, 9)
    assert torch.equal(torch.get_rng_state(), state)
    far = sample_noise(5, 24000 * 3600 * 100, 100, 9, "cpu")
    assert far.isfinite().all() and far.unique().numel() > 890


@pytest.mark.parametrize("seed", [0, 1, -3, 2**63, 123456789])
def test_noise_is_standard_normal_and_white(seed):
    noise = sample_noise(seed, 0, 50_000, 4, "cpu")[0].double()
    assert noise.mean(0).abs().max() < 0.02 and (noise.std(0) - 1).abs().max() < 0.02
    assert (noise.pow(4).mean(0) - 3).abs().max() < 0.25
    flat = torch.cat([noise.flatten(), sample_noise(seed + 1, 0, 50_000, 4, "cpu").flatten().double()])
    for lag in (1, 2, 3, 4, 8, 200_000 - 4, 200_000):
        assert (flat[lag:] * flat[:-lag]).mean().abs() < 0.012, lag
    within = (noise.abs() < 1).double().mean()
    assert abs(within - 0.6827) < 0.005


@torch.no_grad()
def test_noise_choices():
    model = lively_model()
    mel, hop = frames_for(model, 6, batch=2), model.config.hop_length
    state = torch.get_rng_state()
    default = model(mel).waveform
    assert torch.equal(model(mel, seed=0).waveform, default) and torch.equal(torch.get_rng_state(), state)
    assert not torch.allclose(model(mel, seed=1).waveform, default, atol=1e-4)
    noise = model.seeded_noise(0, 6 * hop)
    assert torch.equal(model(mel, noise=noise).waveform, default)
    assert torch.equal(model(mel, noise=noise.expand(2, -1, -1).double()).waveform, default)
    drawn = [model(mel, generator=torch.Generator().manual_seed(4)).waveform for _ in range(2)]
    assert torch.equal(*drawn) and not torch.allclose(drawn[0], default, atol=1e-4)
    assert not torch.equal(
        model.drawn_noise(2, 9, torch.Generator())[0], model.drawn_noise(2, 9, torch.Generator())[1]
    )
    model.train()
    torch.set_rng_state(state)
    first, second = model(mel).waveform, model(mel).waveform
    torch.set_rng_state(state)
    assert torch.equal(model(mel).waveform, first) and not torch.equal(second, first)
    assert torch.equal(model(mel, seed=0).waveform, default)


@geometries
@torch.no_grad()
def test_rows_equal_single_rows(geometry):
    model = lively_model(geometry).double()
    lengths = [3, 11, 1, 0, 3, 7]
    mel = frames_for(model, 11, batch=len(lengths)).double()
    mask = torch.arange(11) < torch.tensor(lengths)[:, None]
    mel = mel.masked_fill(~mask[:, None], torch.nan)
    hop, channels = model.config.hop_length, model.config.num_harmonics
    noise = torch.randn(len(lengths), 11 * hop, channels)
    for given in ({}, {"noise": noise}, {"source": torch.randn(len(lengths), 1, 11 * hop) * 0.1}):
        output = model(mel, mask.long(), **given)
        assert output.waveform.shape == (6, 11 * hop) and output.source.shape == (6, 1, 11 * hop)
        for row, length in enumerate(lengths):
            end = length * hop
            axis = {"noise": 1, "source": 2}
            own = {name: x[row : row + 1].narrow(axis[name], 0, end) for name, x in given.items()}
            single = model(mel[row : row + 1, :, :length], **own)
            torch.testing.assert_close(output.waveform[row, :end], single.waveform[0], atol=1e-9, rtol=0)
            torch.testing.assert_close(output.f0[row, :length], single.f0[0], atol=1e-9, rtol=0)
            assert not output.waveform[row, end:].any() and not output.f0[row, length:].any()
            assert not output.source[row, 0, end:].any()
    assert output.waveform[1].std() > 0.05


@geometries
def test_long_signals_are_computed_in_pieces(geometry, monkeypatch):
    """With and without gradients, which take the whole signal at once."""
    model = lively_model(geometry).double()
    mel = frames_for(model, 60).double()
    source = torch.randn(1, 1, 60 * model.config.hop_length, dtype=torch.float64) * 0.1
    for given in ({"seed": 3}, {"source": source}):
        whole = model(mel, **given)
        monkeypatch.setattr(modeling_hift, "PIECE_FRAMES", 7)
        with torch.no_grad():
            pieces = model(mel, **given)
        monkeypatch.undo()
        for name in ("waveform", "f0", "source"):
            torch.testing.assert_close(pieces[name], whole[name].detach(), atol=1e-9, rtol=1e-9)


@torch.no_grad()
def test_empty_input():
    model = lively_model()
    for batch, frames in ((1, 0), (3, 0), (0, 4)):
        output = model(frames_for(model, frames, batch))
        assert output.waveform.shape == (batch, frames * 480 if batch else 0)
        assert output.f0.shape[0] == output.source.shape[0] == batch


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, mel: m(mel[0]), r"mel must be \[batch, 8, frames\], got \(8, 5\)"),
        (lambda m, mel: m(mel[:, :7]), r"mel must be \[batch, 8, frames\], got \(1, 7, 5\)"),
        (lambda m, mel: m(mel.long()), "mel must be floating point, got torch.int64"),
        (lambda m, mel: m(mel.log()), r"`mel` holds NaN or infinite values in rows \[0\]"),
        (lambda m, mel: m(mel, torch.ones(1, 4)), r"attention_mask must be \(1, 5\), got \(1, 4\)"),
        (lambda m, mel: m(mel, torch.tensor([[0, 1, 1, 1, 1]])), "1 on the first frames"),
        (lambda m, mel: m(mel, source=torch.zeros(1, 1, 7)), r"source must be \[1, 1, 2400\], got \[1, 1, 7\]"),
        (lambda m, mel: m(mel, noise=torch.zeros(1, 2400, 3)), r"noise must be \[1, 2400, 9\], got \[1, 2400, 3\]"),
        (lambda m, mel: m(mel, noise=torch.full((1, 2400, 9), torch.nan)), "`noise` holds NaN"),
        (lambda m, mel: m(mel, seed=1, generator=torch.Generator()), r"only one of .* got \['seed', 'generator'\]"),
        (lambda m, mel: m(mel, seed=1.5), "seed must be an integer, got 1.5"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(lively_model(), -torch.rand(1, 8, 5))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"upsample_rates": (8, 5)}, "upsample_kernel_sizes must have one entry per stage, 2, got"),
        ({"upsample_kernel_sizes": (16, 10, 7)}, "plus even numbers"),
        ({"upsample_initial_channel": 20}, "must be a multiple of 8, got 20"),
        ({"istft_n_fft": 6}, "istft_n_fft must be even and at least two hops of 4 samples, got 6"),
        ({"istft_n_fft": 960}, "less than two mel frames"),
        ({"resblock_kernel_sizes": (4,)}, r"must hold odd kernels, got \[4\]"),
        ({"resblock_dilation_sizes": ()}, "must hold positive numbers"),
        ({"f0_kernel_size": 2}, "f0_kernel_size must be odd, got 2"),
        ({"num_harmonics": 0}, "num_harmonics must be positive, got 0"),
        ({"noise_amplitude": -1}, "noise_amplitude must not be negative, got -1"),
        ({"upsample_rates": (8, 5, 0)}, "must hold positive factors"),
    ],
)
def test_config_errors(values, message):
    with pytest.raises(Exception, match=message):
        HiFTConfig(**values)


@torch.no_grad()
def test_everything_stays_in_float32(tmp_path):
    model = lively_model()
    mel = frames_for(model, 8).bfloat16()
    expected = model(mel).waveform
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    for other in (loaded, loaded.half(), loaded.to(torch.bfloat16)):
        assert {parameter.dtype for parameter in other.parameters()} == {torch.float32}
        assert torch.equal(other(mel).waveform, expected)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(mel)
    assert torch.equal(output.waveform, expected) and output.waveform.dtype == output.f0.dtype == torch.float32
    assert model.double()(mel.double()).waveform.dtype == torch.float64


@pytest.mark.parametrize("folded", [False, True])
@torch.no_grad()
def test_save_and_load(tmp_path, folded):
    model = lively_model("odd_hop")
    mel = frames_for(model, 12)
    expected, tensors = model(mel).waveform, len(model.state_dict())
    if folded:
        assert model.fold_weight_norm() is model
        assert len(model.state_dict()) == tensors - len(model._normed_convolutions()) and not model.config.weight_norm
        torch.testing.assert_close(model(mel).waveform, expected, atol=2e-5, rtol=0)
        expected = model.fold_weight_norm()(mel).waveform
    model.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(loaded, HiFTModel) and not any(info.values()) and not loaded.training
    assert isinstance(AutoConfig.from_pretrained(tmp_path), HiFTConfig)
    assert torch.equal(loaded(mel).waveform, expected)


@pytest.mark.parametrize("dropped", ["original0", "original1", "alpha", "l_linear.weight", "source_downs.0.weight"])
def test_missing_weights_are_initialised(tmp_path, dropped):
    model = HiFTModel(HiFTConfig(**GEOMETRIES["odd_hop"]))
    state = {key: value for key, value in model.state_dict().items() if not key.endswith(dropped)}
    model.save_pretrained(tmp_path, state_dict=state)
    loaded, info = HiFTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] and all(key.endswith(dropped) for key in info["missing_keys"])
    assert all(parameter.isfinite().all() for parameter in loaded.parameters())
    assert loaded(frames_for(loaded, 4)).waveform.isfinite().all()


def test_fresh_weights_have_the_gain_of_their_direction():
    model = HiFTModel(HiFTConfig(**GEOMETRIES["two_stages"]))
    for conv in model._normed_convolutions():
        torch.testing.assert_close(conv.weight, conv.parametrizations.weight.original1)


def test_gradients():
    model = lively_model().train()
    output = model(frames_for(model, 6))
    output.waveform.square().mean().backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in model.f0_predictor.parameters())
    (output.f0 - 120).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_return_tuple():
    model = lively_model()
    mel = frames_for(model, 3)
    assert torch.equal(model(mel, return_dict=False)[0], model(mel).waveform)
