import pytest
import torch

from dualspeech.modeling import flow_streaming
from tests.fixture_checks import check

from .flow_cases import prompt, recorded_model, tiny_model


@pytest.fixture(scope="module")
def tiny():
    sizes = {"num_hidden_layers": 1, "num_upsampled_layers": 1, "estimator_num_layers": 1}
    return tiny_model(num_timesteps=2, estimator_num_mid_stages=1, **sizes)


@pytest.fixture(scope="module")
def recorded():
    return recorded_model()


def voice_of(model, length):
    voice = dict(zip(("prompt_codes", "prompt_mel"), prompt(model, length), strict=True))
    return voice | {"speaker_embeds": torch.randn(1, model.config.speaker_embedding_size)}


def run(stream, codes, feed):
    """All that a stream gives for `codes [N]` in pieces of `feed`."""
    return torch.cat([stream.step(piece) for piece in codes.split(feed)] + [stream.finish()], dim=-1)


@pytest.mark.parametrize("left", [None, 0, 4, 7])
@pytest.mark.parametrize("prompt_length", [0, 7, 10])
@pytest.mark.parametrize("chunk", [1, 3, 5, 25])
def test_equals_decoding_at_once(tiny, chunk, prompt_length, left):
    codes = torch.randint(27, (1, 31))
    voice, settings = voice_of(tiny, prompt_length), {"chunk_size": chunk, "left_context": left}
    expected = tiny.decode(codes, **voice, **settings, streaming=True)
    assert expected.std() > 0.1
    behind_prompt = tiny.stream(**voice, **settings)
    for feed in (1, 3, 5, 25, 31) if left is None else (4, 31):
        mel = run(behind_prompt.fork(), codes[0], feed)
        assert mel.shape == expected.shape and (mel - expected).abs().max() < 1e-4, feed


@pytest.mark.parametrize("left", [None, 3])
@pytest.mark.parametrize("sizes", [{"upsample_ratio": 2}, {"pre_lookahead": 0}, {"pre_lookahead": 6, "chunk_size": 2}])
def test_other_geometries(sizes, left):
    model = tiny_model(num_timesteps=2, **sizes).double()
    codes, voice = torch.randint(27, (1, 16)), voice_of(model, 4)
    expected = model.decode(codes, **voice, left_context=left, streaming=True)
    mel = run(model.stream(**voice, left_context=left), codes[0], 3)
    assert mel.dtype == torch.float64 and (mel - expected).abs().max() < 1e-10


@pytest.mark.parametrize("feed", [1, 3, 5, 25, 23])
def test_recorded(recorded, feed):
    model, tensors, meta = recorded
    stream = model.stream(tensors["prompt_codes"], tensors["prompt_mel"].transpose(1, 2), tensors["speaker"])
    check(run(stream, tensors["codes"][0], feed), "mel_streaming_final", tensors, meta)


def test_recorded_prefixes(recorded):
    """What the released code computes for each chunk, voice prompt and prefix included, comes out here once."""
    model, tensors, meta = recorded
    codes, mel = tensors["codes"][0], torch.zeros(1, 80, 0)
    stream = model.stream(tensors["prompt_codes"], tensors["prompt_mel"].transpose(1, 2), tensors["speaker"])
    for index, (start, end) in enumerate([(0, 11), (11, 16), (16, 21)]):
        mel = torch.cat([mel, stream.step(codes[start:end])], dim=-1)
        check(mel, f"mel_prefix.{index}", tensors, meta)


def test_frames_come_as_soon_as_their_chunk_can(tiny):
    voice = voice_of(tiny, 7)
    stream, emitted = tiny.stream(**voice), []
    assert stream.codes_decoded == 0 and stream.codes_waiting == 7  # the first chunk lacks one look-ahead code
    for code in torch.randint(27, (14, 1)):
        emitted.append(stream.step(code).shape[-1] // 4)
    assert emitted == [0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 5, 0, 0, 0]
    assert stream.codes_decoded + stream.codes_waiting == 21
    assert stream.finish().shape[-1] == 4 * 6


def test_each_frame_is_computed_once(tiny):
    """The cost of a chunk does not grow, apart from the attention to what is behind."""
    frames, keys = [], []
    hooks = [
        tiny.estimator.register_forward_pre_hook(lambda module, args: frames.append(args[0].shape[1])),
        tiny.encoder.layers[0].attention.register_forward_pre_hook(lambda module, args: keys.append(len(args[2]))),
    ]
    for left, expected in ((None, [5, 10, 15, 20, 25, 30, 35]), (8, [5, 10, 15, 20, 20, 20, 20])):
        stream = tiny.stream(**voice_of(tiny, 7), left_context=left)
        run(stream, torch.randint(27, (28,)), 4)
        assert frames == [20] * 2 * 7 and keys == expected
        frames.clear()
        keys.clear()
    for hook in hooks:
        hook.remove()


def test_many_codes_at_once_are_decoded_in_parts(tiny, monkeypatch):
    codes, voice = torch.randint(27, (1, 33)), voice_of(tiny, 17)
    expected = tiny.decode(codes, **voice, streaming=True)
    whole = tiny.stream(**voice)
    assert (run(whole, codes[0], 33) - expected).abs().max() < 1e-4
    for frames in (1, 45):
        monkeypatch.setattr(flow_streaming, "MAX_PASS_FRAMES", frames)
        assert (run(tiny.stream(**voice), codes[0], 33) - expected).abs().max() < 1e-4
        bounded = tiny.decode(codes, **voice, left_context=6, streaming=True)
        assert (run(tiny.stream(**voice, left_context=6), codes[0], 33) - bounded).abs().max() < 1e-4


def test_sessions_do_not_disturb_each_other(tiny):
    codes = torch.randint(27, (2, 23))
    voices = [voice_of(tiny, 7), voice_of(tiny, 3)]
    settings = [{}, {"left_context": 6, "chunk_size": 3, "num_timesteps": 3, "guidance_scale": 0.0}]
    streams = [tiny.stream(**voice, **kwargs) for voice, kwargs in zip(voices, settings, strict=True)]
    mels = [[], []]
    for column in codes.T:
        for stream, mel, code in zip(streams, mels, column, strict=True):
            mel.append(stream.step(code[None]))
    for index, stream in enumerate(streams):
        mel = torch.cat([*mels[index], stream.finish()], dim=-1)
        expected = tiny.decode(codes[index : index + 1], **voices[index], **settings[index], streaming=True)
        assert (mel - expected).abs().max() < 1e-4


@pytest.mark.parametrize("left", [None, 6])
def test_fork(tiny, left):
    """A voice is computed once; sessions, and continuations of one beginning, go on independently."""
    voice, codes = voice_of(tiny, 13), torch.randint(27, (3, 20))
    behind_prompt = tiny.stream(**voice, left_context=left)
    assert behind_prompt.codes_decoded == 10
    for row in codes:
        first = behind_prompt.fork()
        beginning = first.step(row[:11])
        second = first.fork()
        first.step(codes[0, 3:9])
        mel = torch.cat([beginning, second.step(row[11:]), second.finish()], dim=-1)
        assert (mel - tiny.decode(row[None], **voice, left_context=left, streaming=True)).abs().max() < 1e-4
        first.finish()
    assert behind_prompt.codes_decoded == 10


def test_half_precision_caches(tiny):
    """Rounding keys and values moves mel bins (of deviation 1.5 here) by about 1e-3 in fp16 and 1e-2 in bf16."""
    codes, voice = torch.randint(27, (1, 40)), voice_of(tiny, 7)
    expected, sizes = tiny.decode(codes, **voice, streaming=True), {}
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float16, 5e-3), (torch.bfloat16, 5e-2)):
        stream = tiny.stream(**voice, cache_dtype=dtype)
        mel = [stream.step(codes[0])]
        sizes[dtype] = stream.nbytes
        error = (torch.cat([*mel, stream.finish()], dim=-1) - expected).abs().max() / expected.std()
        assert error < tolerance, (dtype, error)
        assert dtype == torch.float32 or error > 1e-5
    assert sizes[torch.float16] == sizes[torch.bfloat16] < 0.6 * sizes[torch.float32]


def test_memory(tiny):
    """Keys and values of the estimator: branches x keys and values x steps x layers x inner size x 4 bytes a frame."""
    config, codes = tiny.config, torch.randint(27, (80,))
    layers = config.estimator_num_layers * (2 + config.estimator_num_mid_stages)
    per_frame = 2 * 2 * 2 * layers * config.estimator_num_heads * config.estimator_head_dim * 4
    per_code = 4 * per_frame + 2 * config.hidden_size * 4 * (
        config.num_hidden_layers + 4 * config.num_upsampled_layers
    )
    stream, unbounded, bounded = tiny.stream(), [], []
    for piece in codes.split(5):
        stream.step(piece)
        unbounded.append(stream.nbytes / max(1, stream.codes_decoded))
    assert per_code < unbounded[-1] < 1.25 * per_code
    stream = tiny.stream(**voice_of(tiny, 10), left_context=10)
    for piece in codes.split(5):
        stream.step(piece)
        bounded.append(stream.nbytes)
    assert len(set(bounded[1:])) == 1
    assert per_code * (10 + 10 + 5) < bounded[-1] < 1.1 * per_code * (10 + 10 + 5)
    stream.finish()
    assert stream.nbytes == 0


def test_no_codes(tiny):
    stream = tiny.stream()
    assert stream.step([]).shape == stream.finish().shape == (1, 6, 0)
    with_prompt = tiny.stream(**voice_of(tiny, 6))
    assert with_prompt.step(torch.zeros(0, dtype=torch.long)).shape == with_prompt.finish().shape == (1, 6, 0)


def test_after_the_end(tiny):
    stream = tiny.stream()
    stream.step([1, 2])
    stream.finish()
    for call in (lambda: stream.step([1]), stream.finish, stream.fork):
        with pytest.raises(ValueError, match="this stream is finished"):
            call()


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.ones(1, 3, dtype=torch.long), r"codes must have one dimension, got \(1, 3\)"),
        (torch.ones(3), "codes must be integers"),
        ([0.5], "codes must be integers"),
        ([1, 27], "codes must be between 0 and 26, got values from 1 to 27"),
        ([1] * 92, "together are 101, at most 100"),
    ],
)
def test_bad_codes_change_nothing(tiny, codes, message):
    voice, good = voice_of(tiny, 4), torch.randint(27, (9,))
    stream = tiny.stream(**voice)
    mel = [stream.step(good[:5])]
    with pytest.raises(ValueError, match=message):
        stream.step(codes)
    mel += [stream.step(good[5:]), stream.finish()]
    assert (torch.cat(mel, dim=-1) - tiny.decode(good[None], **voice, streaming=True)).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"chunk_size": 0}, "chunk_size must be a positive"),
        ({"left_context": 1.5}, "left_context must be"),
        ({"cache_dtype": torch.int8}, "cache_dtype must be one of"),
        ({"num_timesteps": -1}, "num_timesteps must be"),
        ({"guidance_scale": -1}, "guidance_scale must be"),
        ({"prompt_codes": torch.ones(2, 3, dtype=torch.long)}, r"prompt_codes: a stream has one row.*\(2, 3\)"),
        ({"prompt_codes": torch.ones(3, dtype=torch.long)}, "4 frames for each of the 3 codes"),
        ({"prompt_codes": torch.ones(101, dtype=torch.long), "prompt_mel": torch.zeros(6, 404)}, "at most 100"),
        ({"speaker_embeds": torch.zeros(4)}, "speaker_embeds must be"),
    ],
)
def test_bad_settings(tiny, kwargs, message):
    with pytest.raises(ValueError, match=message):
        tiny.stream(**kwargs)


def test_prompts_with_and_without_a_batch_dimension(tiny):
    voice, codes = voice_of(tiny, 6), torch.randint(27, (8,))
    flat = {name: value[0] for name, value in voice.items()}
    assert torch.equal(run(tiny.stream(**voice), codes, 8), run(tiny.stream(**flat), codes, 8))
