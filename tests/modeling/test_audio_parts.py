"""The protocols of the replaceable parts, and the adapters to real codecs and speaker encoders of transformers."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    DacFeatureExtractor,
    EncodecFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
)

from dualspeech import KaldiFbankFeatureExtractor
from dualspeech.modeling.audio_parts import (
    AcousticCodec,
    AudioCodes,
    SemanticTokenizer,
    SpeakerEncoder,
    check_waveforms,
    evaluating,
    normalize_waveforms,
    rows_by_length,
    samples_for_frames,
)
from dualspeech.modeling.codec_adapters import as_acoustic_codec, semantic_features
from dualspeech.modeling.speaker_adapters import PrecomputedSpeakers, as_speaker_encoder

from . import tiny_audio_parts as tiny

# codec, its codebooks, their size, samples per frame in and out, sampling rates in and out
CODECS = {
    "encodec": (tiny.encodec, 8, 32, 20, 20, 24000, 24000),
    "mimi": (tiny.mimi, 4, 32, 40, 40, 24000, 24000),
    "dac": (tiny.dac, 3, 16, 20, 20, 16000, 16000),
    "xcodec2": (tiny.xcodec2, 1, 64, 320, 320, 16000, 16000),
    "neucodec": (tiny.neucodec, 1, 64, 320, 480, 16000, 24000),
    "wavtokenizer": (tiny.wavtokenizer, 1, 64, 120, 120, 24000, 24000),
}


@pytest.fixture(params=CODECS)
def codec(request):
    return as_acoustic_codec(CODECS[request.param][0]())


@pytest.mark.parametrize("name", CODECS)
def test_codec_attributes(name):
    make, books, size, _, hop_out, rate_in, rate_out = CODECS[name]
    codec = as_acoustic_codec(make())
    assert isinstance(codec, AcousticCodec)
    assert (codec.num_codebooks, codec.codebook_size, codec.hop_length) == (books, size, hop_out)
    assert (codec.input_sampling_rate, codec.sampling_rate) == (rate_in, rate_out)
    assert codec.frame_rate == rate_out / hop_out and not codec.supports_streaming


@pytest.mark.parametrize("name", CODECS)
def test_codec_batch_equals_singles(name):
    make, books, size, hop_in, hop_out, *_ = CODECS[name]
    codec = as_acoustic_codec(make())
    values, lengths = tiny.waveforms(1999, 1333, 640, 1333)
    batch = codec.encode(values, lengths)
    assert batch.codes.shape[:2] == (4, books) and batch.codes.dtype == torch.long
    assert batch.codes.unique().numel() > 5  # not degenerate
    assert int(batch.codes.max()) < size and not batch.codes.masked_fill(batch.codes_mask[:, None], 0).any()
    audio = codec.decode(batch.codes, batch.codes_mask)
    assert audio.shape == (4, 1, batch.codes.shape[2] * hop_out) and audio.dtype == torch.float32
    assert float(audio.std()) > 1e-3
    for row, length in enumerate(lengths.tolist()):
        single = codec.encode(values[row : row + 1, :length])
        frames = single.codes.shape[2]
        assert single.codes_mask.all() and frames in (length // hop_in, -(-length // hop_in), length // hop_in + 1)
        assert torch.equal(batch.codes_mask[row].nonzero()[:, 0], torch.arange(frames))
        assert torch.equal(batch.codes[row, :, :frames], single.codes[0])
        alone = codec.decode(single.codes)[0]
        torch.testing.assert_close(audio[row, :, : alone.shape[-1]], alone, atol=1e-5, rtol=1e-4)
        assert not audio[row, :, frames * hop_out :].any()


@pytest.mark.parametrize("name", ["encodec", "mimi", "dac"])
@pytest.mark.parametrize("books", [1, 2, 3])
def test_fewer_codebooks_are_the_first_ones(name, books):
    model = CODECS[name][0]()
    values, lengths = tiny.waveforms(500, 320)
    everything = as_acoustic_codec(model).encode(values, lengths)
    codec = as_acoustic_codec(model, books)
    codes = codec.encode(values, lengths).codes
    assert codec.num_codebooks == books
    assert torch.equal(codes, everything.codes[:, :books])
    assert codec.decode(codes).isfinite().all()


@pytest.mark.parametrize("name", ["encodec", "dac"])
def test_codes_equal_the_documented_use_of_the_model(name):
    model = CODECS[name][0]()
    values = tiny.waveforms(1010)[0]
    codes = as_acoustic_codec(model).encode(values).codes
    with torch.no_grad():
        if name == "dac":
            extractor = DacFeatureExtractor(sampling_rate=16000, hop_length=20)
            inputs = extractor(values[0].numpy(), sampling_rate=16000, return_tensors="pt")
            expected = model.encode(inputs["input_values"]).audio_codes
            audio = model.decode(audio_codes=expected).audio_values[:, None]
        else:
            extractor = EncodecFeatureExtractor(sampling_rate=24000)
            inputs = extractor(values[0].numpy(), sampling_rate=24000, return_tensors="pt")
            outputs = model(inputs["input_values"], inputs["padding_mask"], bandwidth=48.0)
            expected = outputs.audio_codes[0]
            audio = model.decode(outputs.audio_codes, [None])[0]
    assert torch.equal(codes, expected)
    decoded = as_acoustic_codec(model).decode(codes)
    torch.testing.assert_close(decoded[..., : audio.shape[-1]], audio[..., : decoded.shape[-1]])


@pytest.mark.parametrize(("name", "frames"), [("xcodec2", 51), ("neucodec", 50)])
def test_frames_of_one_second(name, frames):
    codec = as_acoustic_codec(CODECS[name][0]())
    assert codec.encode(tiny.waveforms(16000)[0]).codes.shape == (1, 1, frames)


def test_semantic_features_equal_the_numpy_extractor():
    values = tiny.waveforms(5040)[0]
    extractor = SeamlessM4TFeatureExtractor(padding_value=1.0)
    expected = extractor(values[0].numpy(), sampling_rate=16000, return_tensors="pt")["input_features"]
    torch.testing.assert_close(semantic_features(values), expected, atol=2e-3, rtol=1e-3)


def test_frozen_use_of_a_codec(codec):
    """Training mode, gradients and autocast change neither the codes nor the model."""
    values, lengths = tiny.waveforms(800, 700)
    expected = codec.encode(values, lengths).codes
    before = {name: value.clone() for name, value in codec.model.state_dict().items()}
    codec.model.train()
    next(codec.model.children()).eval()
    flags = [module.training for module in codec.model.modules()]
    rng = torch.get_rng_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = codec.encode(values, lengths).codes
        audio = codec.decode(codes)
    assert torch.equal(codes, expected) and audio.dtype == torch.float32 and not audio.requires_grad
    assert flags == [module.training for module in codec.model.modules()] and torch.equal(rng, torch.get_rng_state())
    after = codec.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_decode_ignores_what_is_masked_and_takes_empty_rows(codec):
    codes = torch.randint(codec.codebook_size, (3, codec.num_codebooks, 7))
    mask = torch.arange(7) < torch.tensor([[7], [4], [0]])
    audio = codec.decode(codes.masked_fill(~mask[:, None], -1), mask)
    torch.testing.assert_close(
        audio[1, :, : 4 * codec.hop_length], codec.decode(codes[1:2, :, :4])[0], atol=1e-5, rtol=1e-4
    )
    assert not audio[2].any()
    assert codec.decode(codes[2:], mask[2:]).shape == (1, 1, 7 * codec.hop_length)


def test_codec_errors(codec):
    with pytest.raises(ValueError, match="NaN"):
        codec.encode(tiny.waveforms(800, 700)[0])
    codes = torch.zeros(2, codec.num_codebooks, 5, dtype=torch.long)
    with pytest.raises(ValueError, match=f"holds {codec.codebook_size}"):
        codec.decode(codes + codec.codebook_size)
    with pytest.raises(ValueError, match="integer"):
        codec.decode(codes.float())
    with pytest.raises(ValueError, match="right padding"):
        codec.decode(codes, torch.arange(5).expand(2, 5) > 2)
    with pytest.raises(ValueError, match=r"must be \[2, 5\]"):
        codec.decode(codes, torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="`num_codebooks` must be from 1 to"):
        as_acoustic_codec(codec.model, 99)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_precision_is_refused(dtype):
    codec = as_acoustic_codec(tiny.dac().to(dtype))
    message = rf"must be in float32 \(another precision changes its codes\), got {dtype}"
    with pytest.raises(ValueError, match=message):
        codec.encode(tiny.waveforms(800)[0])
    with pytest.raises(ValueError, match=message):
        codec.decode(torch.zeros(1, 3, 5, dtype=torch.long))


def test_neucodec_needs_one_hop():
    codec = as_acoustic_codec(tiny.neucodec())
    assert codec.encode(tiny.waveforms(320)[0]).codes.shape[2] == 1
    with pytest.raises(ValueError, match="at least 320"):
        codec.encode(tiny.waveforms(319)[0])


@pytest.mark.parametrize(
    "config", [{"audio_channels": 2}, {"normalize": True}, {"chunk_length_s": 1.0, "overlap": 0.01}]
)
def test_encodec_with_side_inputs_is_refused(config):
    with pytest.raises(ValueError, match=next(iter(config))):
        as_acoustic_codec(tiny.encodec(**config))


def test_a_model_without_adapter_must_satisfy_the_protocol():
    with pytest.raises(ValueError, match="'hubert' is not supported"):
        as_acoustic_codec(tiny.hubert())
    with pytest.raises(ValueError, match="'hubert' is not supported"):
        as_speaker_encoder(tiny.hubert())

    class OwnCodec(nn.Module):
        codebook_size, num_codebooks, frame_rate, hop_length = 8, 2, 100.0, 160
        input_sampling_rate = sampling_rate = 16000
        supports_streaming = False
        config = tiny.hubert().config

        def encode(self, waveforms, num_samples):
            return AudioCodes()

        def decode(self, codes, codes_mask=None):
            return codes

    own = OwnCodec()
    assert as_acoustic_codec(own) is own is as_acoustic_codec(own, 2)
    with pytest.raises(ValueError, match="`num_codebooks` must be 2"):
        as_acoustic_codec(own, 1)
    assert not isinstance(own, SemanticTokenizer) and not isinstance(own, SpeakerEncoder)


def test_campplus_batch_equals_singles_and_the_feature_extractor():
    model = tiny.campplus()
    encoder = as_speaker_encoder(model)
    assert isinstance(encoder, SpeakerEncoder)
    assert (encoder.embedding_size, encoder.sampling_rate) == (12, 16000)
    values, lengths = tiny.waveforms(8000, 5003, 720)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    embeds = encoder.embed(values, lengths)
    model.eval()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())  # batch statistics
    extractor = KaldiFbankFeatureExtractor()
    for row, length in enumerate(lengths.tolist()):
        inputs = extractor(values[row, :length].numpy(), sampling_rate=16000, return_tensors="pt")
        with torch.no_grad():
            torch.testing.assert_close(embeds[row], model(**inputs).embeddings[0], atol=1e-4, rtol=1e-3)
    with pytest.raises(ValueError, match="at least 720"):
        encoder.embed(values[:, :719].nan_to_num())


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("do_normalize", [True, False])
def test_xvector_batch_equals_singles_and_the_model(norm, do_normalize):
    model = tiny.wavlm_xvector(feat_extract_norm=norm)
    encoder = as_speaker_encoder(model, do_normalize)
    assert isinstance(encoder, SpeakerEncoder)
    assert (encoder.embedding_size, encoder.sampling_rate) == (10, 16000)
    values, lengths = tiny.waveforms(4000, 2500, 4000, scale=0.05)
    model.train()
    embeds = encoder.embed(values, lengths)
    assert model.training and embeds.shape == (3, 10) and not embeds.requires_grad
    model.eval()
    extractor = Wav2Vec2FeatureExtractor(do_normalize=do_normalize)
    for row, length in enumerate(lengths.tolist()):
        inputs = extractor(values[row, :length].numpy(), sampling_rate=16000, return_tensors="pt")["input_values"]
        with torch.no_grad():
            torch.testing.assert_close(embeds[row], model(inputs).embeddings[0], atol=1e-5, rtol=1e-4)


def test_xvector_shortest_waveform():
    model = tiny.wavlm_xvector()
    encoder = as_speaker_encoder(model)
    shortest = samples_for_frames(model.config, 4 + 4 + 2)
    assert encoder.embed(tiny.waveforms(shortest)[0]).isfinite().all()
    with pytest.raises(ValueError, match=f"at least {shortest}"):
        encoder.embed(tiny.waveforms(shortest - 1)[0])


def test_samples_for_frames():
    model = tiny.hubert()
    for frames in (1, 2, 7):
        samples = samples_for_frames(model.config, frames)
        assert int(model._get_feat_extract_output_lengths(torch.tensor(samples))) == frames
        assert int(model._get_feat_extract_output_lengths(torch.tensor(samples - 1))) == frames - 1


def test_normalize_waveforms():
    values, lengths = check_waveforms("x", *tiny.waveforms(300, 200, 40))
    result = normalize_waveforms(values + 0.7, lengths)
    for row, length in enumerate(lengths.tolist()):
        expected = (values[row, :length] - values[row, :length].mean()) / values[row, :length].std(correction=0)
        torch.testing.assert_close(result[row, :length], expected, atol=1e-4, rtol=1e-4)
        assert not result[row, length:].any()


def test_rows_by_length():
    groups = {length: rows.tolist() for rows, length in rows_by_length(torch.tensor([5, 3, 5, 9]))}
    assert groups == {3: [1], 5: [0, 2], 9: [3]}


def test_evaluating_restores_after_an_error():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model[0].eval()
    with pytest.raises(RuntimeError), evaluating(model):
        assert not any(module.training for module in model.modules()) and not torch.is_grad_enabled()
        raise RuntimeError
    assert [module.training for module in model.modules()] == [True, False, True] and torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("values", "lengths", "message"),
    [
        (torch.zeros(5), None, r"float tensor \[batch, samples\]"),
        (torch.zeros(1, 1, 5), None, "mono"),
        (torch.zeros(1, 5, dtype=torch.int16), None, "int16"),
        ([[0.0]], None, "list"),
        (torch.zeros(0, 5), None, "1 to 5 samples"),
        (torch.zeros(2, 5), [5], r"must be \[2\]"),
        (torch.zeros(2, 5), [5, 0], "1 to 5 samples"),
        (torch.zeros(2, 5), [6, 1], "1 to 5 samples"),
        (torch.full((1, 5), torch.inf), None, "infinite"),
    ],
)
def test_bad_waveforms(values, lengths, message):
    with pytest.raises(ValueError, match=message):
        check_waveforms("values", values, lengths)


def test_precomputed_speakers(tmp_path):
    vectors = {"anna": torch.randn(6), "ben": torch.randn(6)}
    save_file(vectors, tmp_path / "s.safetensors")
    np.savez(tmp_path / "s.npz", **{name: vector.numpy() for name, vector in vectors.items()})
    np.save(tmp_path / "rows.npy", torch.stack(list(vectors.values())).numpy())
    np.save(tmp_path / "carl.npy", vectors["anna"].double().numpy())
    for file in ("s.safetensors", "s.npz"):
        speakers = PrecomputedSpeakers.from_file(tmp_path / file)
        assert speakers.embedding_size == 6 and set(speakers.names) == {"anna", "ben"}
        assert torch.equal(speakers.embed(["ben", "anna", "ben"])[0], vectors["ben"])
        assert torch.equal(speakers.embed("anna"), vectors["anna"][None])
    rows = PrecomputedSpeakers.from_file(str(tmp_path / "rows.npy"))
    assert torch.equal(rows.embed(["1"])[0], vectors["ben"])
    assert torch.equal(PrecomputedSpeakers.from_file(tmp_path / "carl.npy").embed("carl")[0], vectors["anna"])

    with pytest.raises(ValueError, match=r"unknown speakers \['dora'\]"):
        rows.embed(["0", "dora"])
    with pytest.raises(ValueError, match="must end in"):
        PrecomputedSpeakers.from_file("speakers.pt")
    with pytest.raises(ValueError, match="'b'"):
        PrecomputedSpeakers({"a": torch.zeros(3), "b": torch.zeros(4)})
    with pytest.raises(ValueError, match="finite"):
        PrecomputedSpeakers({"a": torch.tensor([1.0, torch.nan])})
    with pytest.raises(ValueError, match="at least one"):
        PrecomputedSpeakers({})
