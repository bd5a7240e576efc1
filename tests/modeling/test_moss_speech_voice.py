import dataclasses
import json
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dualspeech import MossSpeechCodecConfig
from dualspeech.modeling.moss_speech_voice import CodecIdentity, MossSpeechVoice, voices_of_rows

from .moss_codec_cases import tiny_moss_config

IDENTITY = CodecIdentity(
    codebook_size=9, frames_per_code=3, frame_rate=12.5, num_mel_bins=4, speaker_embedding_size=5, fingerprint="f"
)


def make(codes=7, seed=0, identity=IDENTITY):
    generator = torch.Generator().manual_seed(seed)
    return MossSpeechVoice(
        torch.randint(identity.codebook_size, (codes,), generator=generator),
        torch.randn(identity.num_mel_bins, identity.frames_per_code * codes, generator=generator),
        torch.randn(identity.speaker_embedding_size, generator=generator),
        identity,
    )


def same(first, second):
    names = ("prompt_codes", "prompt_mel", "speaker_embeds")
    return first.identity == second.identity and all(
        torch.equal(getattr(first, name), getattr(second, name)) for name in names
    )


@pytest.mark.parametrize("codes", [0, 1, 7])
def test_save_and_load(tmp_path, codes):
    voice = make(codes)
    voice.save(tmp_path / "voice.safetensors")
    assert same(MossSpeechVoice.load(str(tmp_path / "voice.safetensors")), voice)
    assert same(pickle.loads(pickle.dumps(voice)), voice)
    with safe_open(tmp_path / "voice.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["identity"]) == dataclasses.asdict(IDENTITY)
    assert voice.seconds == codes / 12.5


def test_files_that_are_no_voices(tmp_path):
    voice, path = make(), tmp_path / "voice.safetensors"
    with pytest.raises(ValueError, match=r"must end in .safetensors"):
        voice.save(tmp_path / "voice.pt")
    with pytest.raises(ValueError, match="does not exist"):
        MossSpeechVoice.load(path)
    path.write_bytes(b"RIFF1234WAVE" * 10)
    with pytest.raises(ValueError, match="damaged or no voice"):
        MossSpeechVoice.load(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="is no voice; it holds"):
        MossSpeechVoice.load(path)
    voice.save(path)
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file(tensors, path, metadata=metadata | {"identity": '{"codebook_size": 9}'})
    with pytest.raises(ValueError, match="damaged or no voice"):
        MossSpeechVoice.load(path)
    save_file(tensors | {"prompt_mel": tensors["prompt_mel"][:, :-1].contiguous()}, path, metadata=metadata)
    with pytest.raises(ValueError, match="`prompt_mel` must be"):
        MossSpeechVoice.load(path)


@pytest.mark.parametrize(
    ("multiple_of", "max_codes", "kept"),
    [(1, None, 7), (5, None, 5), (7, None, 7), (8, None, 0), (1, 3, 3), (2, 5, 4), (5, 20, 5), (1, 0, 0)],
)
def test_trim(multiple_of, max_codes, kept):
    voice = make(7)
    short = voice.trim(multiple_of, max_codes)
    assert short.num_codes == kept
    assert torch.equal(short.prompt_codes, voice.prompt_codes[7 - kept :])
    assert torch.equal(short.prompt_mel, voice.prompt_mel[:, 3 * (7 - kept) :])
    assert torch.equal(short.speaker_embeds, voice.speaker_embeds)
    short.prompt_mel.fill_(5.0)  # a copy
    assert not (voice.prompt_mel == 5.0).any()


@pytest.mark.parametrize(("kwargs", "name"), [({"multiple_of": 0}, "multiple_of"), ({"max_codes": -1}, "max_codes")])
def test_trim_refuses(kwargs, name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least"):
        make().trim(**kwargs)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("prompt_codes", torch.zeros(1, 7, dtype=torch.long), "must be integers"),
        ("prompt_codes", torch.zeros(7), "must be integers"),
        ("prompt_codes", torch.tensor([0, 1, 2, 3, 4, 5, 9]), "from 0 to 8, got 0 to 9"),
        ("prompt_codes", torch.tensor([0, -1, 2, 3, 4, 5, 6]), "got -1 to 6"),
        ("prompt_mel", torch.zeros(4, 20), r"must be floating point \[4, 21\] beside 7 prompt codes"),
        ("prompt_mel", torch.full((4, 21), torch.nan), "NaN"),
        ("speaker_embeds", torch.zeros(6), r"must be floating point \[5\]"),
        ("speaker_embeds", torch.zeros(5, dtype=torch.long), "floating point"),
        ("speaker_embeds", torch.full((5,), torch.inf), "NaN or infinite"),
    ],
)
def test_what_does_not_go_together(name, value, message):
    with pytest.raises(ValueError, match=f"`{name}`.*{message}"):
        dataclasses.replace(make(), **{name: value})


def test_to_and_empty():
    voice = make().to(dtype=torch.bfloat16)
    assert (voice.prompt_mel.dtype, voice.speaker_embeds.dtype) == (torch.bfloat16,) * 2
    assert voice.prompt_codes.dtype == torch.long
    empty = MossSpeechVoice.empty(IDENTITY)
    assert (empty.num_codes, empty.prompt_mel.shape) == (0, (4, 0))
    assert not empty.speaker_embeds.any()


def test_identity_follows_what_makes_a_voice():
    base = CodecIdentity.of(tiny_moss_config())
    assert base == CodecIdentity.of(tiny_moss_config())
    # the flow's chunks and widths, the vocoder's widths
    assert base == CodecIdentity.of(tiny_moss_config(flow_config={"chunk_size": 25, "hidden_size": 32}))
    assert base == CodecIdentity.of(tiny_moss_config(vocoder_config={"f0_hidden_size": 4}))
    for parts in (
        {"encoder_config": {"d_model": 32}},
        {"encoder_config": None},
        {"speaker_config": {"growth_rate": 8}},
        {"prompt_n_fft": 960},
        {"speaker_config": {"embedding_size": 6}, "flow_config": {"speaker_embedding_size": 6}},
    ):
        assert base != CodecIdentity.of(tiny_moss_config(**parts)), parts


def test_identity_survives_saving(tmp_path):
    config = MossSpeechCodecConfig(speaker_config={"block_layers": (12, 24, 8)})
    config.save_pretrained(tmp_path)
    assert CodecIdentity.of(MossSpeechCodecConfig.from_pretrained(tmp_path)) == CodecIdentity.of(config)
    assert CodecIdentity.of(config) != CodecIdentity.of(MossSpeechCodecConfig())


def test_voices_of_rows():
    voice, other = make(), make(3, seed=1)
    assert voices_of_rows(voice, 2, IDENTITY) == [voice, voice]
    first, second, third = voices_of_rows([voice, None, other], 3, IDENTITY)
    assert (first, third, second.num_codes) == (voice, other, 0)
    assert [one.num_codes for one in voices_of_rows(None, 2, IDENTITY)] == [0, 0]
    with pytest.raises(ValueError, match="2 rows, got 1 voices"):
        voices_of_rows([voice], 2, IDENTITY)
    with pytest.raises(ValueError, match="must hold MossSpeechVoice objects or None, got str"):
        voices_of_rows(["anna.safetensors"], 1, IDENTITY)
    foreign = dataclasses.replace(IDENTITY, fingerprint="g", frame_rate=25.0)
    with pytest.raises(ValueError, match=r"`voice\[1\]` is a voice of another codec: frame_rate 12.5 instead of 25.0"):
        voices_of_rows([None, voice], 2, foreign)
