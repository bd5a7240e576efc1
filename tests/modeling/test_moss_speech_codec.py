import copy
import dataclasses
import json
import warnings
from unittest.mock import patch

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoConfig, AutoModel, AutoModelForAudioTokenization

from dualspeech import (
    CamPPlusModel,
    DualTokenizerModel,
    FlowDecoderModel,
    HiFTModel,
    MossSpeechCodecConfig,
    MossSpeechCodecModel,
    WhisperVqModel,
)
from dualspeech.modeling.audio_features import centred_kaldi_fbank, resample, vocoder_log_mel
from dualspeech.modeling.audio_parts import SemanticTokenizer
from dualspeech.modeling.conversion.convert_flow_decoder_to_hf import build_model as build_flow
from dualspeech.modeling.moss_speech_voice import MossSpeechVoice
from tests.fixture_checks import check, load

from .moss_codec_cases import CODEBOOK, recording, some_codes, tiny_moss_codec, tiny_moss_config


@pytest.fixture(scope="module")
def codec():
    return tiny_moss_codec()


@pytest.fixture(scope="module")
def voice(codec):
    return codec.make_voice(recording(1.1, 44100), 44100)


def assert_same_audio(first, second):
    # reloaded weights lie elsewhere in memory, which can change the order of sums
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


def assert_same_weights(first, second):
    weights, others = first.state_dict(), second.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


# loading and saving


def test_attributes(codec):
    assert (codec.codebook_size, codec.frame_rate, codec.hop_length) == (CODEBOOK, 12.5, 1920)
    assert (codec.input_sampling_rate, codec.sampling_rate) == (16000, 24000)
    assert isinstance(codec.encoder, SemanticTokenizer)


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForAudioTokenization, MossSpeechCodecModel])
def test_save_and_load(tmp_path, codec, voice, auto_class):
    codec.save_pretrained(tmp_path)
    loaded, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(loaded) is MossSpeechCodecModel and not loaded.training
    assert_same_weights(loaded, codec)
    codes = some_codes(1, 6)
    assert_same_audio(loaded.decode(codes, voice=voice), codec.decode(codes, voice=voice))
    waveform = recording(0.7)[None]
    assert torch.equal(loaded.encode_waveform(waveform).codes, codec.encode_waveform(waveform).codes)
    assert loaded.identity == codec.identity
    # the configurations of the parts are those of the whole
    assert loaded.flow.config is loaded.config.flow_config


def test_loading_in_half_precision(tmp_path, codec, voice):
    codec.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.vocoder.parameters()} == {torch.float32}
    assert {p.dtype for p in loaded.speaker_encoder.parameters()} == {torch.float32}
    assert {p.dtype for p in loaded.flow.parameters()} == {torch.bfloat16}
    assert loaded.encoder.conv1.weight.dtype == torch.bfloat16
    assert loaded.encoder.codebook.weight.dtype == loaded.flow.noise.table.dtype == torch.float32
    assert torch.equal(loaded.flow.noise.table, codec.flow.noise.table)
    codes = some_codes(1, 12)
    audio, expected = loaded.decode(codes, voice=voice), codec.decode(codes, voice=voice)
    assert audio.dtype == torch.float32
    assert (audio - expected).square().mean() < 0.05 * expected.square().mean()
    made = loaded.make_voice(recording(1.1, 44100), 44100)
    assert torch.equal(made.prompt_mel, voice.prompt_mel)
    torch.testing.assert_close(made.speaker_embeds, voice.speaker_embeds)
    session = loaded.streaming_decoder(voice)
    pieces = [session.step(piece) for piece in codes[0].split(5)]
    assert torch.cat([*pieces, session.finish()]).shape == (12 * 1920,)
    # a cast after loading spares the vocoder too
    assert {p.dtype for p in copy.deepcopy(codec).to(torch.bfloat16).vocoder.parameters()} == {torch.float32}


def test_device_map(tmp_path, codec):
    codec.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, device_map="cpu")
    assert_same_weights(loaded, codec)
    assert torch.equal(loaded.flow.noise.table, codec.flow.noise.table)


@pytest.mark.parametrize("missing", ["encoder_config", "speaker_config"])
def test_optional_parts(tmp_path, missing):
    codec = tiny_moss_codec(**{missing: None})
    codec.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert getattr(loaded.config, missing) is None
    codes, audio = some_codes(1, 5), recording(0.5)
    assert_same_audio(loaded.decode(codes), codec.decode(codes))
    if missing == "speaker_config":
        with pytest.raises(ValueError, match=r"no speaker encoder: give .* `speaker_embeds`"):
            loaded.make_voice(audio, 16000)
        assert not loaded.make_voice(audio, 16000, use_speaker_embedding=False).speaker_embeds.any()
        given = loaded.make_voice(audio, 16000, speaker_embeds=torch.arange(12.0))
        assert torch.equal(given.speaker_embeds, torch.arange(12.0))
        return
    assert loaded.input_sampling_rate is None
    for call in (
        lambda: loaded.encode(torch.zeros(1, 80, 16)),
        lambda: loaded.encode_waveform(audio[None]),
        loaded.streaming_encoder,
    ):
        with pytest.raises(ValueError, match="no encoder"):
            call()
    with pytest.raises(ValueError, match="no encoder: give the codes of the recording as `prompt_codes`"):
        loaded.make_voice(audio, 16000)
    given = loaded.make_voice(audio, 16000, prompt_codes=torch.tensor([3, 4, 5, 6]))
    assert given.prompt_codes.tolist() == [3, 4, 5, 6] and given.prompt_mel.shape == (8, 16)


def test_from_parts(codec, voice):
    parts = {"encoder": codec.encoder, "speaker_encoder": codec.speaker_encoder}
    composed = MossSpeechCodecModel.from_parts(codec.flow, codec.vocoder, **parts)
    assert composed.flow is codec.flow and composed.identity == codec.identity
    codes = some_codes(1, 5)
    assert torch.equal(composed.decode(codes, voice=voice), codec.decode(codes, voice=voice))
    alone = MossSpeechCodecModel.from_parts(codec.flow, codec.vocoder)
    assert alone.config.encoder_config is None and alone.config.speaker_config is None
    assert torch.equal(alone.decode(codes), codec.decode(codes))
    other = tiny_moss_codec(flow_config={"num_mel_bins": 6}, vocoder_config={"num_mel_bins": 6})
    with pytest.raises(StrictDataclassClassValidationError, match=r"num_mel_bins of .* must be equal, got 6 and 8"):
        MossSpeechCodecModel.from_parts(other.flow, codec.vocoder)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"flow_config": {"codebook_size": 20}}, "codebook_size of encoder_config and flow_config .* 27 and 20"),
        ({"flow_config": {"upsample_ratio": 2}}, "codes per second of encoder_config and flow_config"),
        ({"flow_config": {"speaker_embedding_size": 9}}, "embedding_size of speaker_config .* 12 and 9"),
        ({"vocoder_config": {"sampling_rate": 16000}}, "sampling_rate of flow_config and vocoder_config"),
        ({"flow_config": {"hop_length": 240}}, "hop_length of flow_config and vocoder_config .* 240 and 480"),
        ({"prompt_n_fft": 333}, "prompt_n_fft"),
        ({"prompt_max_frequency": 12001}, "prompt_max_frequency"),
        ({"max_prompt_seconds": 0}, "max_prompt_seconds"),
    ],
)
def test_parts_that_do_not_fit(parts, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        tiny_moss_config(**parts)


def test_released_size():
    config = MossSpeechCodecConfig()
    with torch.device("meta"):
        codec = MossSpeechCodecModel(config)
    parts = {"encoder": 249, "flow": 1121, "vocoder": 328, "speaker_encoder": 937}
    keys = list(codec.state_dict())
    assert {part: sum(key.startswith(f"{part}.") for key in keys) for part in parts} == parts
    assert len(keys) == sum(parts.values())
    millions = {part: sum(p.numel() for p in getattr(codec, part).parameters()) / 1e6 for part in parts}
    assert millions["flow"] == pytest.approx(120.72, abs=0.01)
    assert millions["vocoder"] == pytest.approx(20.82, abs=0.01)
    assert millions["speaker_encoder"] == pytest.approx(6.85, abs=0.01)
    assert (config.codebook_size, config.frame_rate, config.hop_length) == (16384, 12.5, 1920)
    assert (config.speaker_embedding_size, config.num_mel_bins) == (192, 80)


def test_cosyvoice2_geometry():
    flow = {"upsample_ratio": 2, "chunk_size": 25}
    codec = tiny_moss_codec(encoder_config=None, flow_config=flow)
    assert (codec.frame_rate, codec.hop_length) == (25.0, 960)
    codes = some_codes(2, 40)
    assert codec.decode(codes).shape == (2, 1, 960 * 40)
    session = codec.streaming_decoder()
    streamed = torch.cat([session.step(piece) for piece in codes[0].split(7)] + [session.finish()])
    torch.testing.assert_close(streamed, codec.decode(codes[:1], streaming=True)[0, 0], atol=1e-4, rtol=0)


def test_config_of_a_part_and_auto_config(tmp_path):
    config = tiny_moss_config()
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, MossSpeechCodecConfig) and loaded.to_diff_dict() == config.to_diff_dict()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "moss_speech_codec"


# encoding


def test_encode_is_that_of_the_encoder(codec):
    waveforms = torch.stack([recording(1.0, seed=1), recording(1.0, seed=2)])
    encoded = codec.encode_waveform(waveforms, torch.tensor([16000, 9000]))
    expected = codec.encoder.encode_waveform(waveforms, torch.tensor([16000, 9000]))
    assert torch.equal(encoded.codes, expected.codes) and torch.equal(encoded.codes_mask, expected.codes_mask)
    assert encoded.codes_mask.sum(1).tolist() == [13, 8]
    assert len(encoded.codes.unique()) > 4  # the recordings make a difference
    features = torch.randn(3, 80, 40)
    mask = torch.ones(3, 40)
    mask[1, 20:] = 0
    for call in (codec.encode, codec):
        assert torch.equal(call(features, mask).codes, codec.encoder.encode(features, mask).codes)
        joined = call(features, num_pieces=torch.tensor([2, 1]))
        assert joined.codes.shape == (2, 10)


def test_streaming_encoder(codec):
    waveform = recording(1.3)
    stream = codec.streaming_encoder()
    codes = torch.cat([stream.step(piece) for piece in waveform.split(999)] + [stream.finish()])
    assert len(codes) == 17
    again = codec.streaming_encoder()
    assert torch.equal(codes, torch.cat([again.step(waveform), again.finish()]))


def test_encoder_as_a_part_of_a_dual_tokenizer(tmp_path, codec):
    """MOSS-Speech codes in place of USTokens."""
    tokenizer = DualTokenizerModel.from_parts(codec.encoder, speaker_encoder=codec.speaker_encoder)
    assert (tokenizer.semantic_codebook_size, tokenizer.semantic_frame_rate) == (CODEBOOK, 12.5)
    waveforms = torch.stack([recording(1.0, seed=1), recording(1.0, seed=2)])
    encoded = tokenizer.encode(waveforms, torch.tensor([16000, 9000]))
    assert torch.equal(encoded.us_codes, codec.encode_waveform(waveforms, torch.tensor([16000, 9000])).codes)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(waveforms).us_codes, codec.encode_waveform(waveforms).codes)


# decoding


def test_decode_is_flow_and_vocoder(codec, voice):
    codes = some_codes(1, 11)
    mel = codec.flow.decode(codes, None, voice.prompt_codes[None], voice.prompt_mel[None], voice.speaker_embeds[None])
    audio = codec.decode(codes, voice=voice)
    assert audio.shape == (1, 1, 1920 * 11)
    assert torch.equal(audio[:, 0], codec.vocoder(mel).waveform)
    plain = codec.flow.decode(codes)
    assert torch.equal(codec.decode(codes)[:, 0], codec.vocoder(plain).waveform)
    # everything matters
    outputs = [audio, codec.decode(codes), codec.decode(codes, voice=voice.trim(4)), codec.decode(codes, seed=3)]
    outputs.append(codec.decode(codes, voice=dataclasses.replace(voice, speaker_embeds=-voice.speaker_embeds)))
    outputs.append(codec.decode(codes, voice=voice, streaming=True))
    outputs.append(codec.decode(codes, voice=voice, streaming=True, chunk_size=3))
    outputs.append(codec.decode(codes, voice=voice, streaming=True, left_context=2))
    outputs.append(codec.decode(codes, voice=voice, num_timesteps=5))
    outputs.append(codec.decode(codes, voice=voice, guidance_scale=0.0))
    for i, first in enumerate(outputs):
        for second in outputs[:i]:
            assert (first - second).abs().max() > 1e-4


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_equal_alone(codec, voice, streaming):
    other = codec.make_voice(recording(0.6, seed=3), 16000)
    lengths = [9, 0, 4, 9, 2]
    voices = [voice, other, None, other, voice.trim(5)]
    codes = some_codes(5, 9)
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    codes[~mask] = -100  # not looked at
    with pytest.warns(UserWarning, match=r"rows \[1\] have no codes"):
        audio = codec.decode(codes, mask, voices, streaming=streaming)
    assert audio.shape == (5, 1, 1920 * 9)
    for row, length in enumerate(lengths):
        assert not audio[row, :, 1920 * length :].any()
        if length:
            alone = codec.decode(codes[row : row + 1, :length], voice=voices[row], streaming=streaming)
            torch.testing.assert_close(audio[row : row + 1, :, : 1920 * length], alone, atol=2e-5, rtol=0)


@pytest.mark.parametrize("streaming", [False, True])
def test_no_codes_are_silence_of_no_length(codec, voice, streaming):
    with pytest.warns(UserWarning, match="have no codes; their waveforms have length 0"):
        audio = codec.decode(torch.zeros(2, 0, dtype=torch.long), voice=voice, streaming=streaming)
    assert audio.shape == (2, 1, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codec.decode(some_codes(1, 1), voice=voice, streaming=streaming)


def test_global_generator_and_modes_are_left_alone(codec, voice):
    codec = copy.deepcopy(codec).train()
    state = torch.get_rng_state()
    codes = some_codes(1, 8)
    audio = codec.decode(codes, voice=voice)
    assert not audio.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(codec.decode(codes, voice=voice), audio)
    session = codec.streaming_decoder(voice)
    session.step(codes[0]), session.finish()
    codec.make_voice(recording(0.5), 16000)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in codec.modules() if not list(module.children()))
    assert torch.equal(codec.eval().decode(codes, voice=voice), audio)


@pytest.mark.parametrize(
    ("codes", "kwargs", "message"),
    [
        (torch.tensor([[0, CODEBOOK]]), {}, "between 0 and 26"),
        (torch.tensor([[-1, 3]]), {}, "between 0 and 26"),
        (torch.zeros(1, 2), {}, "integers"),
        (torch.zeros(2, dtype=torch.long), {}, r"\[batch, codes\]"),
        (torch.zeros(0, 2, dtype=torch.long), {}, "a row at least"),
        ([[1, 2]], {}, "must be a tensor"),
        (torch.zeros(1, 3, dtype=torch.long), {"codes_mask": torch.tensor([[0, 1, 1]])}, "codes_mask"),
        (torch.zeros(1, 3, dtype=torch.long), {"codes_mask": torch.ones(1, 2)}, "codes_mask"),
        (torch.zeros(1, 601, dtype=torch.long), {}, "together are 601, at most 600"),
        (torch.zeros(1, 3, dtype=torch.long), {"chunk_size": 5}, "streaming=True"),
        (torch.zeros(2, 3, dtype=torch.long), {"voice": [None]}, "2 rows, got 1 voices"),
    ],
)
def test_decode_refuses(codec, codes, kwargs, message):
    with pytest.raises(ValueError, match=message):
        codec.decode(codes, **kwargs)


def test_voices_of_several_types(codec, voice):
    codes = some_codes(3, 5)
    audio = codec.decode(codes, voice=(voice, voice.to(dtype=torch.bfloat16), voice.to(dtype=torch.float64)))
    single = codec.decode(codes[1:2], voice=voice)
    assert 0 < (audio[1:2] - single).square().mean() < 0.01 * single.square().mean()
    torch.testing.assert_close(audio[2:], codec.decode(codes[2:], voice=voice), atol=1e-5, rtol=0)
    session = codec.streaming_decoder(voice.to(dtype=torch.float64))
    pieces = [session.step(codes[2]), session.finish()]
    whole = codec.decode(codes[2:], voice=voice, streaming=True)[0, 0]
    torch.testing.assert_close(torch.cat(pieces), whole, atol=1e-5, rtol=0)


def test_voice_of_another_codec(codec, voice):
    other = tiny_moss_codec(encoder_config={"d_model": 32})
    for call in (
        lambda: other.decode(some_codes(1, 3), voice=voice),
        lambda: other.streaming_decoder(voice),
        lambda: other.streaming_decoder(voice, compat=True),
    ):
        with pytest.raises(ValueError, match="a voice of another codec: fingerprint"):
            call()
    variant = tiny_moss_codec(flow_config={"chunk_size": 25})  # the same but for the chunks of the flow
    variant.decode(some_codes(1, 3), voice=voice)


# the recorded parts together


def recorded_codec():
    """Flow, vocoder and CAM++ of the fixtures in one codec without an encoder, and their tensors."""
    from dualspeech.modeling.conversion.convert_hift_to_hf import build_model as build_hift

    state, tensors, meta = load("moss_flow")
    flow = build_flow(state, estimator_head_dim=meta["config"]["estimator"]["head_dim"])
    vocoder = build_hift(load("moss_hift")[0])
    return MossSpeechCodecModel.from_parts(flow, vocoder), tensors, meta


def recorded_voice(codec, tensors):
    return MossSpeechVoice(
        tensors["prompt_codes"][0], tensors["prompt_mel"][0].T, tensors["speaker"][0], codec.identity
    )


@pytest.mark.parametrize(
    ("name", "streaming", "with_voice"),
    [
        ("mel_offline", False, True),
        ("mel_streaming_final", True, True),
        ("mel_no_prompt_offline", False, False),
        ("mel_no_prompt_streaming", True, False),
    ],
)
def test_recorded_decoding(name, streaming, with_voice):
    codec, tensors, meta = recorded_codec()
    voice = recorded_voice(codec, tensors) if with_voice else None
    if name == "mel_no_prompt_streaming":  # recorded with the speaker vector, against what its description says
        voice = recorded_voice(codec, tensors).trim(max_codes=0)
    codes = tensors["codes"] if with_voice else tensors["codes"][:, : tensors[name].shape[-1] // 4]
    heard = []
    with patch.object(codec.vocoder, "forward", wraps=codec.vocoder.forward) as forward:
        audio = codec.decode(codes, voice=voice, streaming=streaming)
        heard.append(forward.call_args.args[0])
    check(heard[0], name, tensors, meta)
    with torch.no_grad():
        torch.testing.assert_close(audio[:, 0], codec.vocoder(tensors[name]).waveform, atol=0.02, rtol=0)


# voices


def test_make_voice_step_by_step(codec):
    audio, rate = recording(1.37, 44100), 44100
    voice = codec.make_voice(audio, rate)
    codes = codec.encoder.encode_waveform(resample(audio, rate, 16000)[None]).codes[0]
    mel = vocoder_log_mel(resample(audio, rate, 24000), num_mel_bins=8)
    assert (len(codes), mel.shape[1]) == (18, 68)
    assert torch.equal(voice.prompt_codes, codes[:17])
    assert torch.equal(voice.prompt_mel, mel[:, :68])
    features, mask = centred_kaldi_fbank(resample(resample(audio, rate, 24000), 24000, 16000)[None])
    with torch.no_grad():
        expected = codec.speaker_encoder(features, attention_mask=mask).embeddings[0]
    torch.testing.assert_close(voice.speaker_embeds, expected)
    assert voice.speaker_embeds.std() > 0.05


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 24000, 48000])
def test_make_voice_of_any_rate(codec, rate):
    audio = recording(0.83, rate)
    voice = codec.make_voice(audio.numpy(), rate)
    assert voice.num_codes == 10  # 0.83 s: 41 frames, 11 codes
    again = codec.make_voice(audio[None], rate)
    assert torch.equal(again.prompt_mel, voice.prompt_mel)
    assert torch.equal(codec.make_voice(audio.double(), rate).prompt_codes, voice.prompt_codes)


def test_parts_of_a_voice(codec):
    audio = recording(0.5)
    full = codec.make_voice(audio, 16000)
    speaker = codec.make_voice(audio, 16000, use_prompt_speech=False)
    assert speaker.num_codes == 0 and torch.equal(speaker.speaker_embeds, full.speaker_embeds)
    speech = codec.make_voice(audio, 16000, use_speaker_embedding=False)
    assert torch.equal(speech.prompt_mel, full.prompt_mel) and not speech.speaker_embeds.any()
    nothing = codec.make_voice(audio, 16000, use_prompt_speech=False, use_speaker_embedding=False)
    codes = some_codes(1, 3)
    assert torch.equal(codec.decode(codes, voice=nothing), codec.decode(codes))


def test_length_of_the_recording(codec):
    assert codec.make_voice(recording(0.08, 24000), 24000).num_codes == 1
    assert codec.make_voice(recording(30.0), 16000).num_codes == 375
    for seconds in (0.079, 30.001):
        with pytest.raises(ValueError, match=r"`audio` must have from 0\.08 to 30 s"):
            codec.make_voice(recording(seconds, 24000), 24000)


@pytest.mark.parametrize(
    ("audio", "rate", "message"),
    [
        (torch.zeros(2, 16000), 16000, "mono"),
        (torch.zeros(16000, dtype=torch.int16), 16000, "floating point"),
        (torch.zeros(0), 16000, "from 0.08"),
        (torch.full((16000,), torch.nan), 16000, "`audio` holds NaN"),
        (torch.zeros(16000), 16000.5, "`sampling_rate`"),
        (torch.zeros(16000), 0, "`sampling_rate`"),
        (torch.zeros(16000), True, "`sampling_rate`"),
    ],
)
def test_make_voice_refuses(codec, audio, rate, message):
    with pytest.raises(ValueError, match=message):
        codec.make_voice(audio, rate)


def test_parts_have_their_classes(codec):
    classes = (WhisperVqModel, FlowDecoderModel, HiFTModel, CamPPlusModel)
    assert tuple(map(type, (codec.encoder, codec.flow, codec.vocoder, codec.speaker_encoder))) == classes
