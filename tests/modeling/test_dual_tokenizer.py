"""DualTokenizerModel: composition of parts, codebook patterns, loading, and bad inputs."""

import subprocess
import sys

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    PocketTTSAudioTokenizerConfig,
    VibeVoiceAcousticTokenizerConfig,
    VibeVoiceAcousticTokenizerModel,
)

from dualspeech import DualTokenizerConfig, DualTokenizerModel, KMeansTokenizerModel
from dualspeech.modeling.codec_adapters import as_acoustic_codec

from . import tiny_audio_parts as tiny


def kmeans():
    return KMeansTokenizerModel.from_encoder(tiny.hubert(feat_extract_norm="layer"), codebook_size=11).eval()


SEMANTIC = {"kmeans": kmeans, "us_tokenizer": tiny.us_tokenizer}
CODECS = {name: getattr(tiny, name) for name in ("encodec", "mimi", "dac", "xcodec2", "neucodec", "wavtokenizer")}
SPEAKERS = {"wavlm": tiny.wavlm_xvector, "campplus": tiny.campplus}

# semantic tokenizer, codec, speaker encoder: the paper's first; every part of every kind; each part alone
COMBINATIONS = [
    ("us_tokenizer", "wavtokenizer", "campplus"),
    ("kmeans", "mimi", "wavlm"),
    ("us_tokenizer", "encodec", "wavlm"),
    ("kmeans", "dac", "campplus"),
    (None, "xcodec2", "campplus"),
    ("kmeans", "neucodec", None),
    ("us_tokenizer", None, None),
    (None, "wavtokenizer", None),
    (None, None, "campplus"),
]


def build(semantic=None, codec=None, speaker=None, **kwargs):
    return DualTokenizerModel.from_parts(
        SEMANTIC[semantic]() if semantic else None,
        CODECS[codec]() if codec else None,
        SPEAKERS[speaker]() if speaker else None,
        **kwargs,
    ).eval()


def inputs(model):
    """Two rows, a little over and under a second (a USTokenizer refuses less than one)."""
    given = {}
    if model.semantic_tokenizer is not None or model.speaker_encoder is not None:
        given["input_values"], given["num_samples"] = tiny.waveforms(17000, 16100)
    if model.acoustic_codec is not None:
        given["codec_values"], given["num_codec_samples"] = tiny.waveforms(2900, 2001, seed=1)
    return given


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if value.is_floating_point():
            torch.testing.assert_close(actual[name], value, atol=1e-5, rtol=1e-4)
        else:
            assert torch.equal(actual[name], value), name


@pytest.mark.parametrize("names", COMBINATIONS, ids=lambda names: "-".join(map(str, names)))
def test_every_combination_saves_and_loads(tmp_path, names):
    model = build(*names)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    encoded = model.encode(**inputs(model))
    expected_names = [("us_codes", "us_codes_mask"), ("acoustic_codes", "acoustic_codes_mask"), ("speaker_embeds",)]
    assert list(encoded) == [name for part, group in zip(names, expected_names, strict=True) if part for name in group]
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())

    model.save_pretrained(tmp_path / "audio_tokenizer")
    loaded, info = AutoModel.from_pretrained(
        tmp_path, subfolder="audio_tokenizer", device_map="cpu", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert type(loaded) is DualTokenizerModel and loaded.state_dict().keys() == state.keys()
    assert_equal(loaded.encode(**inputs(loaded)), encoded)
    if names[1]:
        assert_equal(
            loaded.decode(encoded.acoustic_codes, encoded.acoustic_codes_mask),
            model.decode(encoded.acoustic_codes, encoded.acoustic_codes_mask),
        )
    config = AutoConfig.from_pretrained(tmp_path, subfolder="audio_tokenizer")
    configs = (config.semantic_config, config.codec_config, config.speaker_config)
    assert [part is not None for part in configs] == [name is not None for name in names]
    assert [path.name for path in (tmp_path / "audio_tokenizer").iterdir() if path.suffix != ".json"] == [
        "model.safetensors"
    ]


@pytest.mark.parametrize("names", COMBINATIONS[:3], ids=str)
def test_rows_of_a_batch_equal_single_rows(names):
    model = build(*names)
    given = inputs(model)
    batch = model.encode(**given)
    for row in range(2):
        single = model.encode(
            input_values=given["input_values"][row : row + 1, : given["num_samples"][row]],
            codec_values=given["codec_values"][row : row + 1, : given["num_codec_samples"][row]],
        )
        for name in ("us_codes", "acoustic_codes"):
            length = single[name].shape[1]
            assert torch.equal(batch[name][row, :length], single[name][0]) and not batch[name][row, length:].any()
            assert batch[f"{name}_mask"][row].sum() == length and single[f"{name}_mask"].all()
        torch.testing.assert_close(batch.speaker_embeds[row], single.speaker_embeds[0], atol=1e-4, rtol=1e-3)


def test_parts_keep_their_weights_and_names():
    parts = {"semantic_tokenizer": kmeans(), "acoustic_codec": tiny.mimi(), "speaker_encoder": tiny.wavlm_xvector()}
    states = {name: {k: v.clone() for k, v in part.state_dict().items()} for name, part in parts.items()}
    implementations = {name: part.config._attn_implementation for name, part in parts.items()}
    encoder = parts["semantic_tokenizer"].encoder
    model = DualTokenizerModel.from_parts(**parts)
    composed = model.state_dict()
    assert composed.keys() == {f"{name}.{key}" for name, state in states.items() for key in state}
    for name, part in parts.items():
        assert getattr(model, name) is part
        assert all(torch.equal(composed[f"{name}.{key}"], value) for key, value in states[name].items())
        assert part.config._attn_implementation == implementations[name] is not None
    assert encoder.config._attn_implementation == "sdpa"
    assert model.config.codec_config is parts["acoustic_codec"].config


def test_a_part_moves_between_checkpoints(tmp_path):
    donor = build("us_tokenizer", "wavtokenizer", "campplus")
    donor.save_pretrained(tmp_path / "donor")
    weights = load_file(tmp_path / "donor" / "model.safetensors")
    codec = CODECS["wavtokenizer"]()
    codec.load_state_dict(
        {name.removeprefix("acoustic_codec."): v for name, v in weights.items() if name.startswith("acoustic_codec.")}
    )
    model = DualTokenizerModel.from_parts(kmeans(), codec)
    given = inputs(model)
    codes = model.encode(**given, outputs=["acoustic_codes"]).acoustic_codes
    assert torch.equal(codes, donor.encode(**given, outputs=["acoustic_codes"]).acoustic_codes)


def test_attributes():
    model = build("kmeans", "neucodec", "wavlm")
    assert (model.semantic_codebook_size, model.semantic_frame_rate, model.semantic_sampling_rate) == (
        11,
        200.0,
        16000,
    )
    assert (model.acoustic_codebook_size, model.num_acoustic_codebooks, model.acoustic_frame_rate) == (64, 1, 50.0)
    assert (model.codec_sampling_rate, model.output_sampling_rate) == (16000, 24000)
    assert model.codebook_pattern == "first" and model.speaker_embedding_size == 10

    paper = build("us_tokenizer", "wavtokenizer", "campplus")
    assert (paper.semantic_codebook_size, paper.semantic_frame_rate, paper.semantic_sampling_rate) == (24, 25.0, 16000)
    assert (paper.acoustic_codebook_size, paper.num_acoustic_codebooks, paper.acoustic_frame_rate) == (64, 1, 200.0)

    speaker = build(speaker="wavlm")
    assert speaker.semantic_sampling_rate == 16000 and speaker.speaker_embedding_size == 10
    for name in ("semantic_codebook_size", "semantic_frame_rate", "codebook_pattern", "acoustic_codebook_size"):
        assert getattr(speaker, name) is None
    for name in ("num_acoustic_codebooks", "acoustic_frame_rate", "codec_sampling_rate", "output_sampling_rate"):
        assert getattr(speaker, name) is None
    codec = build(codec="dac")
    assert codec.semantic_sampling_rate is None and codec.speaker_embedding_size is None


# codec, settings, pattern, books, AcousticGPT's codebook size, codebooks and rate
PATTERNS = [
    ("mimi", {}, "delay", 4, 32, 4, 600.0),
    ("mimi", {"num_codebooks": 3}, "delay", 3, 32, 3, 600.0),
    ("mimi", {"codebook_pattern": "flatten", "num_codebooks": 2}, "flatten", 2, 64, 1, 1200.0),
    ("mimi", {"codebook_pattern": "first"}, "first", 1, 32, 1, 600.0),
    ("encodec", {"num_codebooks": 3}, "delay", 3, 32, 3, 1200.0),
    ("encodec", {"codebook_pattern": "flatten"}, "flatten", 8, 256, 1, 9600.0),
    ("dac", {"num_codebooks": 1}, "first", 1, 16, 1, 800.0),
    ("dac", {"codebook_pattern": "flatten"}, "flatten", 3, 48, 1, 2400.0),
    ("wavtokenizer", {}, "first", 1, 64, 1, 200.0),
    ("xcodec2", {"codebook_pattern": "first", "num_codebooks": 1}, "first", 1, 64, 1, 50.0),
]


@pytest.mark.parametrize(("name", "settings", "pattern", "books", "size", "parallel", "rate"), PATTERNS)
def test_codebook_patterns(tmp_path, name, settings, pattern, books, size, parallel, rate):
    model = build(codec=name, **settings)
    assert model.codebook_pattern == pattern
    assert (model.acoustic_codebook_size, model.num_acoustic_codebooks) == (size, parallel)
    assert model.acoustic_frame_rate == rate
    values, lengths = tiny.waveforms(2900, 2001)
    encoded = model.encode(codec_values=values, num_codec_samples=lengths)
    codes, mask = encoded.acoustic_codes, encoded.acoustic_codes_mask
    codec = as_acoustic_codec(model.acoustic_codec, books)
    plain = codec.encode(values, lengths)
    frames = plain.codes.shape[2]
    if pattern == "flatten":
        assert codes.shape == mask.shape == (2, frames * books)
        expected = [
            book * codec.codebook_size + int(plain.codes[1, book, frame]) if plain.codes_mask[1, frame] else 0
            for frame in range(frames)
            for book in range(books)
        ]
        assert codes[1].tolist() == expected
        assert torch.equal(mask, plain.codes_mask.repeat_interleave(books, dim=1))
    else:
        expected = plain.codes.transpose(1, 2) if pattern == "delay" else plain.codes[:, 0]
        assert torch.equal(codes, expected) and torch.equal(mask, plain.codes_mask)
    decoded = model.decode(codes.masked_fill(~(mask if codes.dim() == 2 else mask[..., None]), -1), mask)
    assert torch.equal(decoded.audio_values, codec.decode(plain.codes, plain.codes_mask))
    assert decoded.num_samples.tolist() == (plain.codes_mask.sum(1) * codec.hop_length).tolist()
    assert decoded.audio_values.shape == (2, 1, int(decoded.num_samples.max()))

    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.codebook_pattern == pattern and loaded.acoustic_codebook_size == size
    assert_equal(loaded.decode(codes, mask), decoded)


def test_flattened_row_that_ends_inside_a_frame_keeps_its_whole_frames():
    model = build(codec="dac", codebook_pattern="flatten")
    codes = model.encode(codec_values=tiny.waveforms(400)[0]).acoustic_codes[:, :11]
    decoded = model.decode(codes, torch.ones_like(codes, dtype=torch.bool))
    assert decoded.num_samples.tolist() == [3 * 20]
    assert_equal(decoded, model.decode(codes[:, :9]))


def test_empty_rows_decode_to_nothing():
    model = build(codec="mimi")
    codes = torch.randint(32, (2, 5, 4))
    mask = torch.tensor([[True] * 5, [False] * 5])
    decoded = model.decode(codes, mask)
    assert decoded.num_samples.tolist() == [200, 0] and not decoded.audio_values[1].any()
    decoded = model.decode(codes[:, :0])
    assert decoded.audio_values.shape == (2, 1, 0) and decoded.num_samples.tolist() == [0, 0]


def test_outputs_restrict_and_forward_is_encode():
    model = build("kmeans", "dac", "wavlm")
    given = inputs(model)
    everything = model.encode(**given)
    assert_equal(model(**given), everything)
    assert list(model.encode(**given, outputs=("speaker_embeds",))) == ["speaker_embeds"]
    some = model.encode(**given, outputs=["us_codes", "acoustic_codes"])
    assert torch.equal(some.us_codes, everything.us_codes) and some.speaker_embeds is None
    only = model.encode(codec_values=given["codec_values"].nan_to_num())
    assert list(only) == ["acoustic_codes", "acoustic_codes_mask"]


def test_frozen_in_training_mode():
    model = build("kmeans", "dac", "campplus")
    given = inputs(model)
    expected = model.encode(**given)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = model.encode(**given)
    assert_equal(actual, expected)
    assert not actual.speaker_embeds.requires_grad and model.training and model.acoustic_codec.training
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())


def test_lower_precision_leaves_the_codec_in_float32(tmp_path):
    model = build("kmeans", "mimi", "wavlm")
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.acoustic_codec.parameters()} == {torch.float32}
    assert loaded.semantic_tokenizer.encoder.dtype == loaded.speaker_encoder.dtype == torch.bfloat16
    given = inputs(model)
    encoded, expected = loaded.encode(**given), model.encode(**given)
    assert torch.equal(encoded.acoustic_codes, expected.acoustic_codes)
    assert encoded.speaker_embeds.dtype == torch.bfloat16
    torch.testing.assert_close(encoded.speaker_embeds.float(), expected.speaker_embeds, atol=0.1, rtol=0.1)
    fresh = AutoModel.from_config(loaded.config)
    assert {parameter.dtype for parameter in fresh.acoustic_codec.parameters()} == {torch.float32}


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementation_is_for_the_parts_that_have_a_choice(tmp_path, implementation):
    model = build("kmeans", "dac", "campplus")
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, attn_implementation=implementation)
    assert loaded.semantic_tokenizer.encoder.config._attn_implementation == implementation
    given = inputs(model)
    torch.testing.assert_close(loaded.encode(**given).speaker_embeds, model.encode(**given).speaker_embeds)
    assert (loaded.encode(**given).us_codes == model.encode(**given).us_codes).float().mean() > 0.99


def test_built_from_a_config():
    model = AutoModel.from_config(build("kmeans", "encodec", "wavlm", num_codebooks=2).config)
    assert type(model) is DualTokenizerModel and model.num_acoustic_codebooks == 2
    assert all(value.isfinite().all() for value in model.state_dict().values())
    model.encode(**inputs(model))


def test_config_round_trip(tmp_path):
    config = DualTokenizerConfig(
        codec_config=tiny.mimi().config.to_dict(),
        num_codebooks=3,
        codebook_pattern="delay",
        speaker_do_normalize=False,
    )
    assert config.semantic_config is None and config.codec_config.model_type == "mimi"
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    for name in ("num_codebooks", "codebook_pattern", "speaker_do_normalize", "semantic_config", "speaker_config"):
        assert getattr(loaded, name) == getattr(config, name)
    assert loaded.codec_config.codebook_size == 32
    assert DualTokenizerConfig(codec_config={"num_filters": 4}).codec_config.model_type == "dualspeech_wavtokenizer"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"codebook_pattern": "parallel"}, "`codebook_pattern` must be one of"),
        ({"num_codebooks": 0}, "`num_codebooks` must be at least 1"),
        ({"codebook_pattern": "first", "num_codebooks": 2}, "'first' uses 1 codebook"),
        ({"codebook_pattern": "delay", "num_codebooks": 1}, "'delay' needs several codebooks"),
        ({"codec_config": PocketTTSAudioTokenizerConfig()}, "continuous latents"),
        ({"codec_config": VibeVoiceAcousticTokenizerConfig()}, "continuous latents"),
    ],
)
def test_bad_configs(settings, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        DualTokenizerConfig(**settings)


def test_continuous_codec_is_refused():
    codec = VibeVoiceAcousticTokenizerModel(
        VibeVoiceAcousticTokenizerConfig(num_filters=4, hidden_size=8, downsampling_ratios=[2, 2], depths=[1, 1, 1])
    )
    with pytest.raises(ValueError, match=r"'vibevoice_acoustic_tokenizer' has continuous latents"):
        DualTokenizerModel.from_parts(acoustic_codec=codec)


def test_parts_that_do_not_fit():
    with pytest.raises(ValueError, match="at least one of"):
        DualTokenizerModel.from_parts()
    with pytest.raises(ValueError, match="at least one of"):
        DualTokenizerModel(DualTokenizerConfig())
    with pytest.raises(ValueError, match="`semantic_tokenizer` of type 'hubert'"):
        DualTokenizerModel.from_parts(semantic_tokenizer=tiny.hubert())
    with pytest.raises(ValueError, match="`acoustic_codec` of type 'hubert'"):
        DualTokenizerModel.from_parts(acoustic_codec=tiny.hubert())
    with pytest.raises(ValueError, match="`speaker_encoder` of type 'hubert'"):
        DualTokenizerModel.from_parts(speaker_encoder=tiny.hubert())
    with pytest.raises(ValueError, match="`num_codebooks` must be from 1 to 3"):
        build(codec="dac", num_codebooks=4)
    with pytest.raises(ValueError, match="'delay' needs several codebooks"):
        build(codec="xcodec2", codebook_pattern="delay")
    narrow = KMeansTokenizerModel.from_encoder(tiny.hubert(), codebook_size=4, sampling_rate=8000)
    with pytest.raises(ValueError, match="got 8000 and 16000 Hz"):
        DualTokenizerModel.from_parts(narrow, speaker_encoder=tiny.campplus())


def test_encode_errors():
    model = build("kmeans", "dac")
    given = inputs(model)
    with pytest.raises(ValueError, match="no waveform given"):
        model.encode()
    with pytest.raises(ValueError, match=r"\['input_values'\] given; this tokenizer computes \['acoustic_codes'\]"):
        build(codec="dac").encode(input_values=given["input_values"], num_samples=given["num_samples"])
    with pytest.raises(ValueError, match=r"computes \['us_codes'\] from \['input_values'\]"):
        build("kmeans").encode(**given)
    with pytest.raises(ValueError, match="'speaker_embeds', but this tokenizer has no part"):
        model.encode(**given, outputs=["speaker_embeds"])
    with pytest.raises(ValueError, match="needs `codec_values`"):
        model.encode(input_values=torch.zeros(1, 800), outputs=["acoustic_codes"])
    for nothing in ((), []):
        with pytest.raises(ValueError, match="`outputs` is empty; give some of"):
            model.encode(**given, outputs=nothing)
    with pytest.raises(ValueError, match="got 'codes'"):
        model.encode(**given, outputs=["codes"])
    with pytest.raises(ValueError, match="`codec_values` must be a float tensor"):
        model.encode(codec_values=torch.zeros(1, 1, 800))
    with pytest.raises(ValueError, match="`input_values` holds NaN"):
        model.encode(input_values=given["input_values"])
    with pytest.raises(ValueError, match=r"`codec_values` \(2, 2900\) must have 1 to 2900 samples"):
        model.encode(codec_values=given["codec_values"], num_codec_samples=[2900, 2901])


def test_decode_errors():
    model = build(codec="dac")
    codes = torch.zeros(2, 5, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"must be \[batch, frames, 3\] under the codebook pattern 'delay'"):
        model.decode(codes[..., :2])
    with pytest.raises(ValueError, match=r"got \(2, 5\)"):
        model.decode(codes[..., 0])
    with pytest.raises(ValueError, match="`acoustic_codes` holds 16, codes from 0 to 15"):
        model.decode(codes + 16)
    with pytest.raises(ValueError, match="`acoustic_codes` holds -1"):
        model.decode(codes - 1)
    with pytest.raises(ValueError, match="must hold integers"):
        model.decode(codes.float())
    with pytest.raises(ValueError, match="right padding"):
        model.decode(codes, torch.tensor([[True] * 5, [False] + [True] * 4]))
    with pytest.raises(ValueError, match="`acoustic_codes_mask` must be"):
        model.decode(codes, torch.ones(2, 6))
    with pytest.raises(ValueError, match="no acoustic codec"):
        build("kmeans").decode(codes)
    flat = build(codec="dac", codebook_pattern="flatten")
    with pytest.raises(ValueError, match="whose turn it is"):
        flat.decode(torch.zeros(1, 6, dtype=torch.long))
    with pytest.raises(ValueError, match="codes from 0 to 47"):
        flat.decode(torch.full((1, 6), 48))


def test_importing_the_package_loads_no_codec():
    code = (
        "import sys, dualspeech; dualspeech.DualTokenizerConfig; "
        "names = ('mimi', 'encodec', 'dac', 'xcodec2', 'neucodec', 'wavlm', 'hubert'); "
        "loaded = [n for n in sys.modules if n.startswith('dualspeech.modeling.') or "
        "any(n.endswith(f'modeling_{name}') for name in names)]; assert not loaded, loaded; "
        "import dualspeech.modeling.modeling_dual_tokenizer; "
        "loaded = [n for n in sys.modules if any(n.endswith(f'.modeling_{name}') for name in names)]; "
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
