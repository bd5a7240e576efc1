import pytest
import torch

from .flow_cases import prompt, tiny_model


@pytest.fixture(scope="module")
def tiny():
    return tiny_model()


def run(stream, codes, feed):
    """All that a stream gives for `codes [N]` in pieces of `feed`."""
    return torch.cat([stream.step(piece) for piece in codes.split(feed)] + [stream.finish()], dim=-1)


@pytest.mark.parametrize("left", [None, 0, 4, 7])
@pytest.mark.parametrize("prompt_length", [0, 7, 10])
@pytest.mark.parametrize("chunk", [1, 3, 5, 25])
def test_equals_decoding_at_once(tiny, chunk, prompt_length, left):
    codes = torch.randint(27, (1, 31))
    voice = dict(zip(("prompt_codes", "prompt_mel"), prompt(tiny, prompt_length), strict=True))
    voice["speaker_embeds"] = torch.randn(1, 5)
    settings = {"chunk_size": chunk, "left_context": left}
    expected = tiny.decode(codes, **voice, **settings, streaming=True)
    assert expected.std() > 0.1
    for feed in (1, 3, 5, 25, 31):
        mel = run(tiny.stream(**voice, **settings), codes[0], feed)
        assert mel.shape == expected.shape and (mel - expected).abs().max() < 1e-4, feed
