import math

import numpy as np
import pytest
import torch

from dualspeech.modeling.audio_features import log_mel_spectrogram, whisper_log_mel
from dualspeech.modeling.whisper_vq_streaming import WhisperFeatureStream
from tests.fixture_checks import check

from .whisper_vq_cases import recorded_model, recording, tiny_model

BLOCK = {"attention_mode": "block", "quantize_causal_block_size": 16}
MODES = [{}, BLOCK, BLOCK | {"quantize_causal_block_size": 10}, BLOCK | {"quantize_causal_block_size": 30}]
modes = pytest.mark.parametrize("mode", MODES, ids=lambda m: f"{m.get('quantize_causal_block_size', 'causal')}")
LENGTHS = [1, 200, 201, 1280, 1281, 1320, 5000, 31999, 32000, 32001, 70001]  # pieces have 32000 samples
VERY_QUIET = -99.0  # a maximum that clamps nothing


def in_chunks(step, values, sizes, dim=-1):
    """What `step` gives for the consecutive chunks of `values`; the last size repeats."""
    outputs, position, sizes = [], 0, list(sizes)
    while position < values.shape[dim]:
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        size = min(size, values.shape[dim] - position)
        outputs.append(step(values.narrow(dim, position, size)))
        position += size
    return outputs


def chunkings(samples):
    yield [1280]
    yield [777]
    yield [3, 0, 1277, 1, 40, 5000, 161]
    yield [samples]
    if samples < 1500:
        yield [1]


def feature_stream(maximum=None, frames_per_group=8, max_samples=32000):
    return WhisperFeatureStream(16, frames_per_group, 1280, max_samples, maximum)


def loudest_first(samples, piece=32000):
    """A recording whose pieces all begin with their loudest frame."""
    wave = recording(samples)
    for start in range(0, samples, piece):
        wave[start] = 40.0
    return wave


def offline_log_mel(waveform, piece=32000):
    """Frames in front of the clamp, piece by piece, from samples that are reflected by hand."""
    frames = []
    for part in waveform.split(piece):
        padded = torch.cat([part, torch.zeros(-len(part) % 1280)])
        reflected = torch.cat([padded[1:201].flip(0), padded, padded[-201:-1].flip(0)])
        frames.append(whisper_log_mel(reflected[None], 16)[..., :-1])
    return torch.cat(frames, dim=-1)


@pytest.mark.parametrize("samples", LENGTHS)
def test_frames_in_front_of_the_clamp_equal_those_of_the_whole_recording(samples):
    waveform = recording(samples)
    expected = (offline_log_mel(waveform) + 4) / 4
    for sizes in chunkings(samples):
        stream = feature_stream(VERY_QUIET)
        frames = in_chunks(stream.step, waveform, sizes)
        rest, valid = stream.finish()
        actual = torch.cat([*frames, rest], dim=-1)
        torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-5)
        assert valid == math.ceil((samples % 32000) / 160)


@pytest.mark.parametrize("samples", [1, 1280, 5000, 32000])
def test_frames_equal_the_offline_features_with_their_maximum(samples):
    waveform = recording(samples)
    frames = -(-samples // 1280) * 8
    expected = log_mel_spectrogram(waveform, 16, frames)
    stream = feature_stream(maximum=float(offline_log_mel(waveform).max()))
    actual = torch.cat([*in_chunks(stream.step, waveform, [500]), stream.finish()[0]], dim=-1)[0]
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("group", [8, 20])
def test_running_maximum_does_not_depend_on_the_chunks(group):
    waveform = recording(33000, quiet=False)
    waveform[:3000] *= 1e-5
    results = []
    for sizes in ([700], [33000], [40, 16000]):
        stream = feature_stream(frames_per_group=group)
        results.append(torch.cat([*in_chunks(stream.step, waveform, sizes), stream.finish()[0]], dim=-1))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], atol=2e-5, rtol=1e-5)
    before = offline_log_mel(waveform)
    expected, loudest = [], -math.inf
    for piece in before.split(200, dim=-1):  # frames of a piece
        loudest = -math.inf
        for frames in piece.split(group, dim=-1):
            loudest = max(loudest, float(frames.max()))
            expected.append((frames.clamp(min=loudest - 8) + 4) / 4)
    torch.testing.assert_close(results[0], torch.cat(expected, dim=-1), atol=2e-5, rtol=1e-5)


def test_a_group_of_frames_needs_40_samples_more():
    stream = feature_stream()
    waveform = recording(4000)
    assert stream.step(waveform[:1319]).shape[-1] == 0
    assert stream.step(waveform[1319:1320]).shape[-1] == 8
    assert stream.step(waveform[1320:2599]).shape[-1] == 0
    assert stream.step(waveform[2599:2600]).shape[-1] == 8


@modes
@pytest.mark.parametrize("samples", LENGTHS)
def test_codes_equal_those_of_the_whole_recording(mode, samples):
    model = tiny_model(**mode)
    waveform = loudest_first(samples)
    expected = model.encode_waveform(waveform[None]).codes[0]
    for sizes in chunkings(samples):
        stream = model.streaming_encoder()
        codes = in_chunks(stream.step, waveform, sizes)
        codes.append(stream.finish())
        assert torch.equal(torch.cat(codes), expected)
    assert samples < 10000 or len(set(expected.tolist())) > 5


@modes
def test_codes_with_the_maximum_of_the_recording(mode):
    model = tiny_model(**mode)
    waveform = recording(31000)
    waveform[:9000] *= 1e-5  # with a running maximum the first codes know of no clamp
    expected = model.encode_waveform(waveform[None]).codes[0]
    maximum = float(offline_log_mel(waveform).max())
    for given in (maximum, None):
        stream = model.streaming_encoder(maximum=given)
        codes = torch.cat([*in_chunks(stream.step, waveform, [1280]), stream.finish()])
        assert torch.equal(codes, expected) == (given is not None)


@modes
@pytest.mark.parametrize("frames", [8, 64, 192, 200, 440])
def test_features_in_steps_equal_one_pass(mode, frames):
    model = tiny_model(**mode)
    features = torch.randn(1, 16, frames)
    expected = torch.cat([model.encode(piece).codes[0] for piece in features.split(200, dim=-1)])
    for sizes in ([8], [24], [16, 8, 48, 0, 8], [frames]):
        stream = model.streaming_encoder()
        codes = in_chunks(stream.step_features, features, sizes)
        if not mode:
            lengths = [chunk.shape[-1] for chunk in in_chunks(lambda chunk: chunk, features, sizes)]
            assert [8 * len(part) for part in codes] == lengths
        assert torch.equal(torch.cat([*codes, stream.finish()]), expected)


def test_recorded_steps():
    model, tensors, meta = recorded_model()
    stream = model.streaming_encoder()
    codes = [stream.step_features(chunk) for chunk in tensors["features"][:1].split(8, dim=-1)]
    assert all(len(part) == 1 for part in codes)
    check(torch.cat(codes)[None], "streamed_codes.8", tensors, meta)
    state, states = model.initial_state(), []
    with torch.no_grad():
        for chunk in tensors["features"][:1].split(8, dim=-1):
            hidden_states, state = model.encode_frames(chunk, state)
            states.append(hidden_states.mean(dim=1))
    check(torch.stack(states, dim=1), "streamed_vectors.8", tensors, meta)


def test_recorded_waveforms_in_chunks():
    model, tensors, meta = recorded_model()
    for number in range(5):
        waveform = tensors[f"waveform.{number}"]
        maximum = float(offline_whole(waveform, 128).max())
        stream = model.streaming_encoder(maximum)
        codes = torch.cat([*in_chunks(stream.step, waveform, [1280]), stream.finish()])
        check(codes, f"waveform_codes.{number}", tensors, meta)


def offline_whole(waveform, bins):
    padded = torch.nn.functional.pad(waveform, (0, -len(waveform) % 1280))[None]
    return whisper_log_mel(torch.nn.functional.pad(padded, (200, 200), mode="reflect"), bins)[..., :-1]


def test_one_code_every_80_ms():
    stream = tiny_model().streaming_encoder()
    waveform = recording(12800 + 40)
    assert len(stream.step(waveform[:40])) == 0
    assert [len(stream.step(chunk)) for chunk in waveform[40:].split(1280)] == [1] * 10
    assert len(stream.finish()) == 1  # the 40 samples that began another code


def test_blocks_come_at_their_end():
    stream = tiny_model(
        **BLOCK
    ).streaming_encoder()  # blocks of 0.32 s, 5120 samples; the last one of a piece is shorter
    waveform = recording(32000)
    counts = [len(stream.step(chunk)) for chunk in waveform.split(1280)]
    assert counts == [0, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 5]
    assert len(stream.finish()) == 0


def test_interleaved_streams_are_independent():
    model = tiny_model()
    waveforms = [loudest_first(40000), loudest_first(36000).flip(0).roll(1), loudest_first(33333)]
    for waveform in waveforms:
        waveform[::32000] = 40.0
    expected = [model.encode_waveform(waveform[None]).codes[0] for waveform in waveforms]
    streams = [model.streaming_encoder() for _ in waveforms]
    codes = [[] for _ in waveforms]
    for start in range(0, 40000, 1000):
        for stream, waveform, found in zip(streams, waveforms, codes, strict=True):
            found.append(stream.step(waveform[start : start + 1000]))
        model.encode_waveform(recording(2000)[None])
    for stream, found, whole in zip(streams, codes, expected, strict=True):
        assert torch.equal(torch.cat([*found, stream.finish()]), whole)


def test_finish_and_reset():
    model = tiny_model()
    stream = model.streaming_encoder()
    assert len(stream.finish()) == 0
    for call in (
        stream.finish,
        lambda: stream.step(torch.zeros(1)),
        lambda: stream.step_features(torch.zeros(1, 16, 8)),
    ):
        with pytest.raises(ValueError, match="finished; call `reset"):
            call()
    waveform = loudest_first(5000)
    expected = model.encode_waveform(waveform[None]).codes[0]
    for _ in range(2):
        stream.reset()
        codes = in_chunks(stream.step, waveform, [900])
        assert torch.equal(torch.cat([*codes, stream.finish()]), expected)
    stream.reset()
    stream.step(waveform)
    stream.reset()  # in the middle
    features = torch.randn(1, 16, 40)
    assert torch.equal(stream.step_features(features), model.encode(features).codes[0])


def test_state_is_bounded():
    model = tiny_model()
    stream = model.streaming_encoder()
    largest = 0
    for chunk in recording(5 * 32000).split(1280):
        stream.step(chunk)
        cache = stream._state.cache
        largest = max(largest, cache.get_seq_length())
        assert stream._pending.shape[-1] < 8
        assert stream._features._buffer is None or len(stream._features._buffer) < 2000
        rooms = {id(room) for layer in cache.layers if layer.is_initialized for room in layer._room}
        if stream._encoded == 8:
            first = rooms  # allocated once per piece
        elif stream._encoded:
            assert rooms == first
    assert largest <= model.config.max_source_positions


def test_inputs_and_modes():
    model = tiny_model(dropout=0.5).train()
    waveform = loudest_first(4000)
    expected = model.encode_waveform(waveform[None]).codes[0]
    stream = model.streaming_encoder()
    codes = torch.cat([stream.step(waveform.double().numpy()[:2000]), stream.step(np.float32(waveform[2000:]))])
    codes = torch.cat([codes, stream.finish()])
    assert torch.equal(codes, expected) and codes.dtype == torch.long
    assert model.training
    half = tiny_model().to(torch.bfloat16).streaming_encoder()
    assert len(half.step(waveform)) == 3 and len(half.finish()) == 1
    stream.reset()
    assert not stream.step(waveform.clone().requires_grad_()).is_floating_point()
    assert not stream._state.mel.requires_grad


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (torch.zeros(1, 10), r"floating point \[samples\].*\(1, 10\)"),
        (torch.zeros(10, dtype=torch.int16), "torch.int16"),
        (torch.tensor([0.0, torch.nan]), "NaN or infinite"),
        (np.array([np.inf]), "NaN or infinite"),
    ],
)
def test_refused_samples(samples, message):
    model = tiny_model()
    stream = model.streaming_encoder()
    waveform = loudest_first(3000)
    codes = [stream.step(waveform[:1000])]
    with pytest.raises(ValueError, match=message):
        stream.step(samples)
    codes += [stream.step(waveform[1000:]), stream.finish()]  # as if nothing had happened
    assert torch.equal(torch.cat(codes), model.encode_waveform(waveform[None]).codes[0])


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(1, 16, 9), "a multiple of 8"),
        (torch.zeros(2, 16, 8), r"got torch.float32 \(2, 16, 8\)"),
        (torch.zeros(16, 8), r"\[1, 16, a multiple of 8\]"),
        (torch.zeros(1, 16, 8, dtype=torch.long), "torch.int64"),
        (torch.full((1, 16, 8), torch.nan), "NaN or infinite"),
    ],
)
def test_refused_features(features, message):
    with pytest.raises(ValueError, match=message):
        tiny_model().streaming_encoder().step_features(features)


def test_samples_and_features_do_not_mix():
    stream = tiny_model().streaming_encoder()
    stream.step(torch.zeros(10))
    with pytest.raises(ValueError, match="features: this stream is fed with samples"):
        stream.step_features(torch.zeros(1, 16, 8))
    stream.reset()
    stream.step_features(torch.zeros(1, 16, 8))
    with pytest.raises(ValueError, match="samples: this stream is fed with features"):
        stream.step(torch.zeros(10))


@pytest.mark.parametrize("maximum", [math.inf, math.nan, "loud"])
def test_refused_maximum(maximum):
    with pytest.raises(ValueError, match="maximum: expected a finite number"):
        tiny_model().streaming_encoder(maximum=maximum)
