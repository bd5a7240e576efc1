import pytest
import torch
import torch.nn.functional as F

from dualspeech.modeling.conversion.convert_hift_to_hf import build_model
from dualspeech.modeling.hift_convolutions import SignalPieces, WholeSignal
from tests.fixture_checks import check, load

from .hift_cases import GEOMETRIES, frames_for, lively_model

geometries = pytest.mark.parametrize("geometry", GEOMETRIES)


def pieces_of(x, sizes, dim=-1):
    """`x` cut into pieces of `sizes`, again and again."""
    start, turn, pieces = 0, 0, []
    while start < x.shape[dim]:
        size = min(sizes[turn % len(sizes)], x.shape[dim] - start)
        pieces.append(x.narrow(dim, start, size))
        start, turn = start + size, turn + 1
    return pieces


def streamed(stream, mel, sizes):
    return torch.cat([*(stream.step(piece) for piece in pieces_of(mel, sizes)), stream.finish()], dim=1)


def in_pieces(x, sizes, operation):
    pieces, parts = SignalPieces(), pieces_of(x, sizes)
    outputs = []
    for i, part in enumerate(parts):
        pieces.final = i == len(parts) - 1
        outputs.append(operation(pieces, part))
    return torch.cat(outputs, dim=-1)


@pytest.mark.parametrize("sizes", [(1,), (2, 0, 5), (3,), (100,), (9, 1, 1)])
def test_operations_on_pieces_equal_those_on_the_whole(sizes):
    x, bias = torch.randn(2, 3, 31, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    operations = []
    for kernel, stride, padding, dilation in ((1, 1, 0, 1), (7, 1, 3, 1), (3, 1, 5, 5), (6, 3, 1, 1), (4, 2, 0, 1)):
        weight = torch.randn(4, 3, kernel, dtype=torch.float64)
        operations.append(lambda s, x, a=(weight, bias, stride, padding, dilation): s.conv1d("key", x, *a))
    for kernel, stride, padding in ((16, 8, 4), (7, 3, 2), (5, 5, 0), (12, 3, 6), (2, 2, 0), (1, 1, 0)):
        weight = torch.randn(3, 4, kernel, dtype=torch.float64)
        operations.append(lambda s, x, a=(weight, bias, stride, padding): s.conv_transpose1d("key", x, *a))
        operations.append(lambda s, x, a=(weight, None, stride, padding): s.conv_transpose1d("key", x, *a))
    for left, right in ((0, 0), (1, 0), (0, 3), (8, 8), (5, 30)):
        operations.append(lambda s, x, a=(left, right): s.reflect("key", x, *a))
    for operation in operations:
        torch.testing.assert_close(in_pieces(x, sizes, operation), operation(WholeSignal(), x))


def test_last_piece_may_be_empty():
    x, weight = torch.randn(1, 2, 9), torch.randn(2, 2, 5)
    for operation in (
        lambda s, x: s.conv1d("c", x, weight, padding=2),
        lambda s, x: s.conv_transpose1d("t", x, weight, stride=3, padding=1),
        lambda s, x: s.reflect("r", x, 2, 4),
    ):
        pieces = SignalPieces()
        first = operation(pieces, x)
        pieces.final = True
        joined = torch.cat([first, operation(pieces, x[..., :0])], dim=-1)
        torch.testing.assert_close(joined, operation(WholeSignal(), x))


def test_short_signal_cannot_be_mirrored():
    pieces = SignalPieces()
    assert pieces.reflect("r", torch.randn(1, 1, 3), 8, 8).shape == (1, 1, 0)
    pieces.final = True
    with pytest.raises(ValueError, match="5 positions cannot be mirrored by 8"):
        pieces.reflect("r", torch.randn(1, 1, 2), 8, 8)


@geometries
@pytest.mark.parametrize("sizes", [(1,), (4,), (12,), (20,), (100,), (3, 0, 31, 1, 1, 7)])
def test_stream_equals_one_pass(geometry, sizes):
    """To rounding in double precision, so that it is exact in structure."""
    model = lively_model(geometry).double()
    mel = frames_for(model, 61).double()
    whole = model(mel, seed=9).waveform.detach()  # with gradients: the whole signal at once
    assert whole.std() > 0.05 and model(mel).f0.max() > 100
    pieces = streamed(model.stream(seed=9), mel, sizes)
    assert pieces.shape == whole.shape == (1, 61 * model.config.hop_length)
    torch.testing.assert_close(pieces, whole, atol=1e-9, rtol=0)


@pytest.mark.parametrize("sizes", [(1,), (4,), (12,), (20,), (100,), (5, 0, 33, 1, 2)])
def test_stream_equals_one_pass_in_single_precision(sizes):
    state, tensors, _ = load("moss_hift")
    model, mel = build_model(state), tensors["stream_mel"]
    whole = model(mel, seed=2).waveform.detach()
    torch.testing.assert_close(streamed(model.stream(seed=2), mel, sizes), whole, atol=1e-5, rtol=0)


@geometries
@pytest.mark.parametrize("frames", [1, 2, 5, 19])
def test_short_utterances(geometry, frames):
    model = lively_model(geometry).double()
    mel = frames_for(model, frames, batch=2).double()
    whole = model(mel, seed=1).waveform.detach()
    for lookahead in (None, 0, 3):
        stream = model.stream(lookahead, seed=1)
        pieces = [stream.step(mel), stream.finish()]
        assert pieces[0].shape[1] == (
            max(model.config.final_samples(frames), 0) if stream.exact else pieces[0].shape[1]
        )
        assert sum(piece.shape[1] for piece in pieces) == whole.shape[1]
        torch.testing.assert_close(torch.cat(pieces, dim=1)[:, pieces[0].shape[1] :], whole[:, pieces[0].shape[1] :])


@geometries
def test_lookahead_is_the_reach_to_the_right(geometry):
    """Samples come as soon as they are certain, and not before."""
    model = lively_model(geometry).double()
    frames, hop, lookahead = model.config.lookahead_frames + 9, model.config.hop_length, model.config.lookahead_frames
    mel = frames_for(model, frames + 1).double()
    stream = model.stream()
    for frame in range(frames):
        stream.step(mel[..., frame : frame + 1])
        assert stream._given == max(model.config.final_samples(frame + 1), 0)
    assert frames * hop - lookahead * hop <= stream._given < frames * hop - (lookahead - 1) * hop
    # noise alone, so that the frame that is changed cannot change f0 by chance only
    with torch.no_grad():
        model.f0_predictor.classifier.bias.fill_(1000.0)
        before = model(mel).waveform
        mel[..., -1] += 3.0
        after = model(mel).waveform
    changed = (before != after).nonzero()[0, 1]
    assert stream._given <= changed < stream._given + 2 * hop


@pytest.mark.slow
@torch.no_grad()
def test_minute_in_single_precision():
    """Rounding does not add up along the utterance."""
    model = build_model(load("moss_hift")[0])
    mel = torch.randn(1, 80, 3000)
    with torch.enable_grad():
        whole = model(mel, seed=4).waveform.detach()
    error = (streamed(model.stream(seed=4), mel, (150,)) - whole).abs()
    assert error.max() < 1e-5, float(error.max())


@torch.no_grad()
def test_state_is_bounded_and_steps_cost_the_same():
    model = lively_model()
    stream, sizes = model.stream(), []
    for _ in range(30):
        assert stream.step(frames_for(model, 10)).shape[1] in (0, *range(4800 + 1))
        sizes.append(stream.nbytes)
    assert len(set(sizes[3:])) == 1
    long = model.stream()
    long.step(frames_for(model, 600))
    assert long.nbytes == sizes[-1]


@pytest.mark.parametrize("lookahead", [0, 3, 8, 14, 19])
@torch.no_grad()
def test_fewer_lookahead_frames(lookahead):
    state, tensors, _ = load("moss_hift")
    model, mel = build_model(state), tensors["stream_mel"]
    whole = model(mel).waveform
    stream = model.stream(lookahead_frames=lookahead)
    assert (stream.lookahead_frames, stream.exact) == (lookahead, False)
    pieces = [stream.step(piece) for piece in mel.split(20, dim=2)]
    assert [piece.shape[1] // 480 for piece in pieces] == [20 - lookahead] + [20] * 7
    joined = torch.cat([*pieces, stream.finish()], dim=1)
    assert joined.shape == whole.shape
    error = (joined - whole).pow(2).mean().sqrt() / whole.pow(2).mean().sqrt()
    assert error < {0: 1.0, 3: 0.5, 8: 0.03, 14: 1e-4, 19: 1e-5}[lookahead]
    # what was given out early leaves no trace: the first samples of every later piece but its end are exact
    start = 20 * 480 * 5
    assert (joined - whole)[0, start : start + 480].abs().max() < 1e-5


@torch.no_grad()
def test_sessions_do_not_disturb_each_other():
    model = lively_model()
    mels, seeds = frames_for(model, 50, batch=3).split(1), (1, 2, 3)
    alone = [streamed(model.stream(seed=seed), mel, (7,)) for mel, seed in zip(mels, seeds, strict=True)]
    streams, outputs = [model.stream(seed=seed) for seed in seeds], [[], [], []]
    for step in range(8):
        for stream, output, mel in zip(streams, outputs, mels, strict=True):
            output.append(stream.step(mel[..., step * 7 : step * 7 + 7]))
        model(mels[0])
    for stream, output, expected in zip(streams, outputs, alone, strict=True):
        assert torch.equal(torch.cat([*output, stream.finish()], dim=1), expected)


@torch.no_grad()
def test_rows_of_a_stream():
    model = lively_model().double()
    mel = frames_for(model, 40, batch=3).double()
    together = streamed(model.stream(), mel, (11,))
    for row in range(3):
        torch.testing.assert_close(streamed(model.stream(), mel[row : row + 1], (11,)), together[row : row + 1])


@torch.no_grad()
def test_reset_and_finish():
    model = lively_model()
    mel = frames_for(model, 40)
    for stream in (model.stream(), model.stream(8), model.overlap_stream()):
        assert stream.finish().shape == (1, 0)
        stream.reset()
        first = streamed(stream, mel, (9,))
        with pytest.raises(ValueError, match="finished"):
            stream.step(mel)
        with pytest.raises(ValueError, match="finished"):
            stream.finish()
        stream.reset()
        stream.step(mel[..., :21])
        stream.reset()
        assert torch.equal(streamed(stream, mel, (9,)), first)
        assert not first.requires_grad


@pytest.mark.parametrize("kind", ["stream", "overlap_stream"])
@torch.no_grad()
def test_bad_frames_leave_the_stream_as_it_was(kind):
    model = lively_model()
    mel = frames_for(model, 30)
    expected = streamed(getattr(model, kind)(), mel, (15,))
    stream = getattr(model, kind)()
    first = stream.step(mel[..., :15])
    for bad, message in (
        (mel[0], r"mel must be \[batch, 8, frames\]"),
        (mel[:, :3], r"got \(1, 3, 30\)"),
        (mel.long(), "floating point"),
        (mel / 0, "NaN or infinite"),
        (mel.expand(2, -1, -1), "1 rows as in the first step, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            stream.step(bad)
    assert stream.step(mel[..., :0]).shape == (1, 0)
    assert torch.equal(torch.cat([first, stream.step(mel[..., 15:]), stream.finish()], dim=1), expected)


def test_bad_settings():
    model = lively_model()
    with pytest.raises(ValueError, match=r"0 or more \(20 and more are exact\), got -1"):
        model.stream(-1)
    with pytest.raises(ValueError, match="seed must be an integer"):
        model.stream(seed="x").step(frames_for(model, 30))
    with pytest.raises(ValueError, match="overlap_frames must be positive, got 0"):
        model.overlap_stream(0)
    with pytest.raises(ValueError, match="window must be one of"):
        model.overlap_stream(window="hann")
    with pytest.raises(ValueError, match="only one of seed and generator"):
        model.overlap_stream(seed=1, generator=torch.Generator())


@pytest.mark.parametrize(
    ("part", "codes"), [("unvoiced", n) for n in (1, 3, 8, 11, 13, 23, 40)] + [("model", 11), ("model", 23)]
)
@torch.no_grad()
def test_recorded_overlap_protocol(part, codes):
    state, tensors, meta = load("moss_hift", part)
    settings, seed = meta["config"]["stream"], meta["config"]["rng_seed"]
    model, ratio = build_model(state), settings["mel_frames_per_code"]
    excitations, through_filter = [], model.filter
    model.filter = lambda mel, source: excitations.append(source) or through_filter(mel, source)
    generator = torch.Generator()
    stream = model.overlap_stream(settings["mel_cache_frames"], generator=generator)
    chunk, cursor, pieces = settings["chunk_codes"], 0, []
    hop = chunk + -settings["prompt_codes"] % chunk
    while codes - cursor >= hop + settings["lookahead"]:
        generator.manual_seed(seed + len(pieces))
        pieces.append(stream.step(tensors["stream_mel"][..., ratio * cursor : ratio * (cursor + hop)]))
        cursor, hop = cursor + hop, chunk
    generator.manual_seed(seed + len(pieces))
    pieces.append(stream.finish(tensors["stream_mel"][..., ratio * cursor : ratio * codes]))
    assert [piece.shape[1] for piece in pieces] == tensors[f"chunk_samples.{codes}"].tolist()
    for call, excitation in enumerate(excitations):
        if part == "unvoiced" and f"stream_excitation.{codes}.{call}" in tensors:
            check(excitation[0, 0], f"stream_excitation.{codes}.{call}", tensors, meta)
    name = f"stream_waveform{'_voiced' if part == 'model' else ''}.{codes}"
    waveform = torch.cat(pieces, dim=1)[0]
    check(waveform, name, tensors, meta)
    if rms := meta["tolerances"].get(name, {}).get("rms"):
        assert (waveform - tensors[name]).pow(2).mean().sqrt() <= rms


@geometries
@pytest.mark.parametrize("sizes", [(3,), (9, 2, 30), (25,)])
@torch.no_grad()
def test_overlap_stream(geometry, sizes):
    model, overlap = lively_model(geometry), 4
    mel, hop = frames_for(model, 50), model.config.hop_length
    for window in ("hamming", "raised_cosine"):
        stream = model.overlap_stream(overlap, window)
        received, given = 0, 0
        for piece in pieces_of(mel, sizes):
            received += piece.shape[2]
            given += stream.step(piece).shape[1]
            assert given == max(received - overlap, 0) * hop
            assert stream.nbytes <= 4 * overlap * (2 * hop + mel.shape[1])
        assert stream.finish().shape[1] == min(overlap, 50) * hop


@torch.no_grad()
def test_fades():
    model = lively_model()
    ones = torch.ones(1, 2 * 480)
    hamming = model.overlap_stream(2)._fade(ones, ones)
    assert abs(float(hamming.mean()) - 1.08) < 1e-3
    torch.testing.assert_close(model.overlap_stream(2, "raised_cosine")._fade(ones, ones), ones)
    fading = model.overlap_stream(2, "raised_cosine")._fade(ones, 0 * ones)
    assert (fading.diff() < 0).all() and F.relu(fading - 1).max() == 0
