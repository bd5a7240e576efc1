import copy

import pytest
import torch

from tests.fixture_checks import check, load

from .moss_codec_cases import CODEBOOK, recording, some_codes, tiny_moss_codec
from .test_moss_speech_codec import recorded_codec, recorded_voice

FEEDS = [1, 3, 5, 7, 25]
CODES = 38


@pytest.fixture(scope="module")
def codec():
    return tiny_moss_codec()


@pytest.fixture(scope="module")
def voice(codec):
    return codec.make_voice(recording(0.6, 44100), 44100)  # 7 codes: no whole number of chunks


def feed(session, codes, size):
    return [session.step(piece) for piece in codes.split(size)] + [session.finish()]


def assert_same_audio(first, second, atol=1e-5):
    # the waveforms have a root mean square of about 0.04
    torch.testing.assert_close(first, second, atol=atol, rtol=0)


# exact


@pytest.mark.parametrize("size", FEEDS)
@pytest.mark.parametrize("prompt", [None, 0, 5, 7])
def test_joined_pieces_are_one_pass(codec, voice, size, prompt):
    voice = None if prompt is None else voice.trim(max_codes=prompt)
    codes = some_codes(CODES)
    whole = codec.decode(codes[None], voice=voice, streaming=True)[0, 0]
    assert whole.std() > 0.02
    pieces = feed(codec.streaming_decoder(voice), codes, size)
    assert all(piece.dim() == 1 and piece.dtype == torch.float32 for piece in pieces)
    assert_same_audio(torch.cat(pieces), whole)


@pytest.mark.parametrize("chunk_size", [1, 3, 5, 25])
def test_chunk_sizes(codec, voice, chunk_size):
    codes = some_codes(CODES)
    whole = codec.decode(codes[None], voice=voice, streaming=True, chunk_size=chunk_size)[0, 0]
    for size in (2, chunk_size):
        pieces = feed(codec.streaming_decoder(voice, chunk_size=chunk_size), codes, size)
        assert_same_audio(torch.cat(pieces), whole)


@pytest.mark.parametrize("left_context", [0, 4, 10, 100])
def test_bounded_left_context(codec, voice, left_context):
    codes = some_codes(CODES)
    whole = codec.decode(codes[None], voice=voice, streaming=True, left_context=left_context)[0, 0]
    pieces = feed(codec.streaming_decoder(voice, left_context=left_context), codes, 4)
    assert_same_audio(torch.cat(pieces), whole)
    unbounded = codec.decode(codes[None], voice=voice, streaming=True)[0, 0]
    assert ((whole - unbounded).abs().max() < 1e-5) == (left_context == 100)


def test_memory_and_cache_dtype(codec, voice):
    codes = some_codes(90)

    def memory(**kwargs):
        session, sizes = codec.streaming_decoder(voice, **kwargs), []
        for piece in codes.split(5):
            session.step(piece)
            sizes.append(session.nbytes)
        return sizes

    exact, half, bounded = memory(), memory(cache_dtype=torch.float16), memory(left_context=10)
    assert exact[-1] > 2 * exact[4]
    assert half[-1] < 0.65 * exact[-1]
    assert bounded[-1] == bounded[6] < 0.5 * exact[-1]
    whole = codec.decode(codes[None], voice=voice, streaming=True)[0, 0]
    pieces = feed(codec.streaming_decoder(voice, cache_dtype=torch.float16), codes, 5)
    assert 0 < (torch.cat(pieces) - whole).abs().max() < 0.02


@pytest.mark.parametrize(
    ("kwargs", "prompt", "expected"),
    [
        ({}, 5, [(8, 120), (13, 9600), (18, 9600)]),
        ({}, 7, [(11, 5880), (16, 9600)]),
        ({"lookahead_frames": 8}, 5, [(8, 5760), (13, 9600), (18, 9600)]),
        ({"lookahead_frames": 0}, 5, [(8, 9600), (13, 9600), (18, 9600)]),
    ],
)
def test_when_sound_comes(codec, voice, kwargs, prompt, expected):
    """After a chunk of the grid and three codes, less the mel frames that the vocoder waits for (20 to be exact)."""
    session = codec.streaming_decoder(voice.trim(max_codes=prompt), **kwargs)
    lengths = [len(session.step(code[None])) for code in some_codes(20)]
    assert [(i + 1, length) for i, length in enumerate(lengths) if length] == expected


@pytest.mark.parametrize("lookahead_frames", [0, 8, 20, 40])
def test_fewer_frames_of_lookahead(codec, voice, lookahead_frames):
    codes = some_codes(CODES)
    whole = codec.decode(codes[None], voice=voice, streaming=True)[0, 0]
    joined = torch.cat(feed(codec.streaming_decoder(voice, lookahead_frames=lookahead_frames), codes, 5))
    assert joined.shape == whole.shape
    if lookahead_frames >= 20:
        assert_same_audio(joined, whole)
    elif lookahead_frames == 8:
        assert (joined - whole).square().mean().sqrt() < 0.05 * whole.square().mean().sqrt()


def test_seed(codec):
    codes = some_codes(12)
    pieces = feed(codec.streaming_decoder(seed=5), codes, 3)
    assert_same_audio(torch.cat(pieces), codec.decode(codes[None], streaming=True, seed=5)[0, 0])
    assert (torch.cat(pieces) - codec.decode(codes[None], streaming=True)[0, 0]).abs().max() > 1e-4


# both kinds of sessions

KINDS = pytest.mark.parametrize("kind", [{}, {"compat": True}], ids=["exact", "compat"])


@KINDS
def test_sessions_take_turns(codec, voice, kind):
    other = codec.make_voice(recording(0.5, seed=2), 16000)
    utterances = [(some_codes(23, seed=1), voice), (some_codes(31, seed=2), None), (some_codes(17, seed=3), other)]
    alone = [torch.cat(feed(codec.streaming_decoder(v, **kind), codes, 4)) for codes, v in utterances]
    sessions = [codec.streaming_decoder(v, **kind) for _, v in utterances]
    pieces = [[] for _ in sessions]
    for start in range(0, 31, 4):
        for (codes, _), session, out in zip(utterances, sessions, pieces, strict=True):
            out.append(session.step(codes[start : start + 4]))
    codec.decode(some_codes(2, 5), voice=other)
    for session, out, expected in zip(sessions, pieces, alone, strict=True):
        assert torch.equal(torch.cat([*out, session.finish()]), expected)


@KINDS
def test_reset(codec, voice, kind):
    codes = some_codes(19)
    session = codec.streaming_decoder(voice, **kind)
    first = torch.cat(feed(session, codes, 4))
    assert session.finished
    session.reset()
    assert not session.finished
    session.step(some_codes(11, seed=4))
    session.reset()
    assert torch.equal(torch.cat(feed(session, codes, 4)), first)


def test_new_sessions_share_the_prompt(codec, voice):
    codes = some_codes(19)
    first = codec.streaming_decoder(voice)
    expected = torch.cat(feed(codec.streaming_decoder(voice), codes, 4))
    first.step(codes[:9])
    with torch.random.fork_rng():
        computed = []
        handle = codec.flow.code_embedding.register_forward_hook(lambda *args: computed.append(1))
        second = first.new_session()
        handle.remove()
    assert not computed
    assert second.flow is first.flow and not second.finished
    assert torch.equal(torch.cat(feed(second, codes, 4)), expected)
    rest = [first.step(codes[9:]), first.finish()]
    third = first.new_session()
    assert torch.equal(torch.cat(feed(third, codes, 4)), expected)
    assert len(torch.cat(rest)) > 0 and first.finished and third.finished


@KINDS
def test_after_the_end(codec, voice, kind):
    session = codec.streaming_decoder(voice, **kind)
    session.step(some_codes(3))
    session.finish()
    for call in (lambda: session.step(some_codes(3)), lambda: session.step(some_codes(0))):
        with pytest.raises(ValueError, match="after `finish`"):
            call()
    with pytest.raises(ValueError, match="`finish` was called before"):
        session.finish()


@KINDS
def test_no_codes(codec, voice, kind):
    for chosen in (None, voice):
        session = codec.streaming_decoder(chosen, **kind)
        assert session.step(some_codes(0)).shape == (0,)
        assert session.finish().shape == (0,)


@KINDS
@pytest.mark.parametrize("codes", [1, 2, 3, 4])
def test_fewer_codes_than_a_chunk(codec, voice, kind, codes):
    codes = some_codes(codes)
    pieces = feed(codec.streaming_decoder(voice, **kind), codes, 1)
    assert sum(map(len, pieces)) == 1920 * len(codes)
    whole = codec.decode(codes[None], voice=voice, streaming=not kind)[0, 0]
    assert_same_audio(torch.cat(pieces), whole)


@KINDS
@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.tensor([1, CODEBOOK]), "between 0 and 26"),
        (torch.tensor([-1]), "between 0 and 26"),
        (torch.zeros(3), "integers"),
        (torch.zeros(1, 3, dtype=torch.long), r"tensor \[codes\] of one utterance, got \[1, 3\]"),
        (torch.tensor(3), "of one utterance"),
        ([3, 4], "of one utterance"),
        (torch.zeros(600, dtype=torch.long), "at most 600"),
    ],
)
def test_refused_codes_leave_a_session_as_it_was(codec, voice, kind, codes, message):
    good = some_codes(14)
    expected = torch.cat(feed(codec.streaming_decoder(voice, **kind), good, 7))
    session = codec.streaming_decoder(voice, **kind)
    pieces = [session.step(good[:7])]
    with pytest.raises(ValueError, match=message):
        session.step(codes)
    pieces += [session.step(good[7:]), session.finish()]
    assert torch.equal(torch.cat(pieces), expected)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"chunk_size": 0}, "chunk_size"),
        ({"left_context": -1}, "left_context"),
        ({"cache_dtype": torch.int8}, "cache_dtype"),
        ({"lookahead_frames": -1}, "lookahead_frames"),
        ({"compat": True, "chunk_size": 0}, "chunk_size"),
        ({"compat": True, "left_context": 3}, "left_context"),
        ({"compat": True, "cache_dtype": torch.float16, "lookahead_frames": 8}, "cache_dtype', 'lookahead_frames"),
    ],
)
def test_settings_that_are_refused(codec, kwargs, message):
    with pytest.raises(ValueError, match=message):
        codec.streaming_decoder(**kwargs)


@KINDS
def test_modes_and_autocast_do_not_matter(codec, voice, kind):
    codes = some_codes(17)
    expected = torch.cat(feed(codec.streaming_decoder(voice, **kind), codes, 5))
    training = copy.deepcopy(codec).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pieces = feed(training.streaming_decoder(voice, **kind), codes, 5)
    assert torch.equal(torch.cat(pieces), expected) and not expected.requires_grad


# the released protocol


def test_hops_and_samples_of_the_release(codec, voice):
    """P = 7, C = 5: the first hop is 8 codes; the vocoder holds back 3840 samples until the end."""
    assert voice.num_codes == 7
    pieces = feed(codec.streaming_decoder(voice, compat=True), some_codes(23), 1)
    assert [len(piece) for piece in pieces if len(piece)] == [11520, 9600, 9600, 13440]
    first = next(i for i, piece in enumerate(pieces) if len(piece))
    assert first + 1 == 8 + 3  # codes fed
    trimmed = feed(codec.streaming_decoder(voice.trim(multiple_of=5), compat=True), some_codes(23), 1)
    assert len(trimmed[7]) == 5760 and not any(map(len, trimmed[:7]))
    pieces = feed(codec.streaming_decoder(None, chunk_size=25, compat=True), some_codes(30), 1)
    assert len(pieces[27]) == 44160 and not any(map(len, pieces[:27]))


@pytest.mark.parametrize("count", [1, 3, 8, 11, 13, 23, 40])
@pytest.mark.parametrize("size", [1, 4, 40])
def test_recorded_ledger(codec, voice, count, size):
    """Feed sizes change when pieces come, not what they are."""
    _, tensors, meta = load("moss_hift")
    stream = meta["config"]["stream"]
    assert (stream["chunk_codes"], stream["prompt_codes"], stream["lookahead"]) == (5, 7, 3)
    session = codec.streaming_decoder(voice, compat=True)
    step, finish, emitted = session._sound.step, session._sound.finish, []
    session._sound.step = lambda mel: emitted.append(step(mel)) or emitted[-1]
    session._sound.finish = lambda mel: emitted.append(finish(mel)) or emitted[-1]
    pieces = feed(session, some_codes(count), size)
    assert [piece.shape[1] for piece in emitted] == tensors[f"chunk_samples.{count}"].tolist()
    assert torch.equal(torch.cat(pieces), torch.cat(emitted, dim=1)[0]) and sum(map(len, pieces)) == 1920 * count


def test_recorded_prefix_series():
    """The mel frames that go into the vocoder are those recorded for the prefix calls and the final call."""
    codec, tensors, meta = recorded_codec()
    session = codec.streaming_decoder(recorded_voice(codec, tensors), compat=True)
    step, finish, heard = session._sound.step, session._sound.finish, []
    session._sound.step = lambda mel: heard.append(mel) or step(mel)
    session._sound.finish = lambda mel: heard.append(mel) or finish(mel)
    pieces = feed(session, tensors["codes"][0], 3)
    assert sum(map(len, pieces)) == 1920 * tensors["codes"].shape[1]
    cursors = [0, 8, 13, 18]
    assert [mel.shape[-1] // 4 for mel in heard] == [8, 5, 5, 5]
    for i, mel in enumerate(heard[:-1]):
        recorded = {f"mel_prefix.{i}": tensors[f"mel_prefix.{i}"][..., 4 * cursors[i] :]}
        check(mel, f"mel_prefix.{i}", recorded, meta)
    check(heard[-1], "mel_offline", {"mel_offline": tensors["mel_offline"][..., 4 * cursors[-1] :]}, meta)


@pytest.mark.parametrize("part", ["unvoiced", "model"])
@pytest.mark.parametrize("count", [11, 13, 23, 40])
def test_recorded_waveforms(part, count):
    """Hops, overlaps and fades together, with recorded mel frames and the draws of the release."""
    from dualspeech.modeling.conversion.convert_hift_to_hf import build_model as build_hift

    state, tensors, meta = load("moss_hift", part)
    name = f"stream_waveform{'_voiced' if part == 'model' else ''}.{count}"
    if name not in tensors:
        pytest.skip("not recorded")
    codec, flow_tensors, _ = recorded_codec()
    codec.vocoder = build_hift(state)
    session = codec.streaming_decoder(recorded_voice(codec, flow_tensors), compat=True)
    generator, calls = torch.Generator(), []
    session._sound = codec.vocoder.overlap_stream(generator=generator)

    def recorded_mel(codes, finalize=True, **kwargs):
        generator.manual_seed(meta["config"]["rng_seed"] + len(calls))
        calls.append(finalize)
        end = len(codes) - (0 if finalize else 3)
        return tensors["stream_mel"][..., 4 * session._cursor : 4 * end]

    session._mel = recorded_mel
    codes = torch.zeros(count, dtype=torch.long)
    pieces = [piece for piece in feed(session, codes, 2) if len(piece)]
    assert [len(piece) for piece in pieces] == tensors[f"chunk_samples.{count}"].tolist()
    assert calls == [False] * (len(pieces) - 1) + [True]
    check(torch.cat(pieces), name, tensors, meta)
