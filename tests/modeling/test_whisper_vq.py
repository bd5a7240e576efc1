import json

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoModel

from dualspeech import WhisperVqConfig, WhisperVqModel
from dualspeech.modeling.audio_features import log_mel_spectrogram
from dualspeech.modeling.audio_parts import SemanticTokenizer
from tests.fixture_checks import FIXTURES, check, load

from .whisper_vq_cases import SIZES, recorded_model, recording, tiny_model

MODES = [
    {},
    {"attention_mode": "block", "quantize_causal_block_size": 16},
    {"attention_mode": "block", "quantize_causal_block_size": 10},
    {"attention_mode": "block", "quantize_causal_block_size": 200},
]
modes = pytest.mark.parametrize("mode", MODES, ids=lambda m: f"{m.get('quantize_causal_block_size', 'causal')}")


def naive_vectors(model, features, valid):
    """`[T, d]` of one row `[bins, F]` of which `valid` frames are no padding: every sum written out."""
    config = model.config
    mel = F.pad(features, (2, 0))
    first = F.gelu(
        torch.stack(
            [
                torch.einsum("oik,ik->o", model.conv1.weight, mel[:, t : t + 3]) + model.conv1.bias
                for t in range(features.shape[1])
            ],
            dim=1,
        )
    )
    first = F.pad(first, (2, 0))
    states = F.gelu(
        torch.stack(
            [
                torch.einsum("oik,ik->o", model.conv2.weight, first[:, t : t + 3]) + model.conv2.bias
                for t in range(0, features.shape[1], 2)
            ]
        )
    )
    states = states + model.embed_positions.weight[: len(states)]
    size, block = config.d_model // config.encoder_attention_heads, config.quantize_causal_block_size
    for layer in model.layers:
        normed = layer.self_attn_layer_norm(states)
        query, key, value = (getattr(layer.self_attn, f"{name}_proj")(normed) for name in "qkv")
        attended = torch.zeros_like(states)
        for head in range(config.encoder_attention_heads):
            part = slice(head * size, head * size + size)
            for i in range(len(states)):
                if config.attention_mode == "causal":
                    seen = list(range(i + 1))
                else:
                    seen = [j for j in range(len(states)) if (j <= i or i // block == j // block) and 2 * j < valid]
                weights = (key[seen, part] @ query[i, part] / size**0.5).softmax(0)
                attended[i, part] = weights @ value[seen, part]
        states = states + layer.self_attn.out_proj(attended)
        states = states + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(states))))
    group = config.pooling_kernel_size
    return torch.stack([states[t : t + group].sum(0) / group for t in range(0, len(states), group)])


def test_recorded_vectors_and_codes():
    model, tensors, meta = recorded_model()
    output = model(tensors["features"])
    check(output.vectors, "vectors", tensors, meta)
    check(output.codes, "codes", tensors, meta)
    check(model.encode(tensors["features"]).codes, "codes", tensors, meta)


def test_recorded_incomplete_group():
    model, tensors, meta = recorded_model()
    frames = 90  # the last group is one frame and three zeros
    output = model(tensors["features"][:1, :, :frames])
    check(output.vectors, "vectors_odd", tensors, meta)
    check(output.codes, "codes_odd", tensors, meta)


def test_recorded_waveforms():
    model, tensors, meta = recorded_model()
    names = sorted(name for name in tensors if name.startswith("waveform."))
    waveforms = [tensors[name] for name in names]
    for number, waveform in enumerate(waveforms):
        check(model.encode_waveform(waveform[None]).codes[0], f"waveform_codes.{number}", tensors, meta)
    lengths = [len(waveform) for waveform in waveforms]
    batch = model.encode_waveform(torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True), lengths)
    for number, (codes, mask) in enumerate(zip(batch.codes, batch.codes_mask, strict=True)):
        check(codes[mask], f"waveform_codes.{number}", tensors, meta)
        assert mask[: mask.sum()].all() and not codes[~mask].any()
    joint = model.encode_waveform(torch.nn.utils.rnn.pad_sequence(waveforms[:3], batch_first=True), lengths[:3])
    check(joint.codes_mask.sum(1), "joint_counts", tensors, meta)
    check(joint.codes[joint.codes_mask], "joint_codes", tensors, meta)


def test_recorded_features_of_the_model():
    """The features that `encode_waveform` takes, and what batching does to them in the release."""
    _, tensors, meta = load("whisper_features")
    bins, multiple = meta["config"]["feature_size"], meta["config"]["pad_to_multiple_of"]
    for number in (1, 3):
        waveform = tensors[f"waveform.{number}"]
        frames = -(-len(waveform) // multiple) * multiple // meta["config"]["hop_length"]
        check(log_mel_spectrogram(waveform, bins, frames), f"log_mel.{number}", tensors, meta)
    waveforms = [tensors[f"waveform.{number}"] for number in range(3)]
    frames = tensors["joint_frame_mask"].shape[1]
    features = log_mel_spectrogram(torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True), bins, frames)
    last = [max(0, -(-len(waveform) // 160) - 3) for waveform in waveforms]
    joint = torch.stack([row[:, start : start + 3] for row, start in zip(features, last, strict=True)])
    check(joint, "joint_last_frames", tensors, meta)
    alone = log_mel_spectrogram(waveforms[0], bins, len(waveforms[0]) // 160)[:, last[0] : last[0] + 3]
    assert (alone - joint[0]).abs().max() > 0.01


@modes
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_equals_the_sums(mode, attention):
    model = tiny_model(attn_implementation=attention, **mode)
    features = torch.randn(3, 16, 53)
    lengths = torch.tensor([53, 30, 1])
    output = model(features, torch.arange(53) < lengths[:, None])
    for row, length in enumerate(lengths.tolist()):
        count = -(-length // 8)
        expected = naive_vectors(model, features[row], length)[:count]
        torch.testing.assert_close(output.vectors[row, :count], expected, atol=1e-5, rtol=1e-4)
        distances = (expected[:, None] - model.codebook.weight).square().sum(-1)
        assert output.codes[row, :count].tolist() == distances.argmin(1).tolist()
        assert output.codes_mask[row].tolist() == [True] * count + [False] * (7 - count)
    assert torch.equal(model.encode(features, torch.arange(53) < lengths[:, None]).codes, output.codes)


@modes
def test_what_a_code_sees(mode):
    model = tiny_model(**mode)
    block = mode.get("quantize_causal_block_size")
    features = torch.randn(1, 16, 200)
    changed = features.clone()
    changed[..., 96:] += torch.randn(1, 16, 104)
    moved = (model(features).vectors - model(changed).vectors).abs().amax(-1)[0] > 1e-6
    first = 12 if block is None else 48 // block * block // 4  # frame 96 is the first one of code 12
    assert moved.tolist() == [False] * first + [True] * (25 - first)


@modes
def test_rows_of_a_batch_equal_single_ones(mode):
    model = tiny_model(**mode)
    lengths = [1280, 1, 1281, 12800, 32000, 32001, 64000, 70001]
    waveforms = [recording(length, seed) for seed, length in enumerate(lengths)]
    batch = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True, padding_value=torch.nan)
    output = model.encode_waveform(batch, lengths)
    for waveform, codes, mask in zip(waveforms, output.codes, output.codes_mask, strict=True):
        alone = model.encode_waveform(waveform[None]).codes[0]
        assert torch.equal(codes[mask], alone)
        assert len(alone) == sum(-(-len(piece) // 1280) for piece in waveform.split(model.config.max_samples))
    assert len(set(output.codes[output.codes_mask].tolist())) > 20


def test_pieces_are_independent():
    model = tiny_model()
    waveform = recording(70000)
    pieces = [model.encode_waveform(piece[None]).codes[0] for piece in waveform.split(32000)]
    assert torch.equal(model.encode_waveform(waveform[None]).codes[0], torch.cat(pieces))
    features = torch.randn(4, 16, 64)
    mask = torch.arange(64) < torch.tensor([64, 17, 64, 5])[:, None]
    separate, joined = model.encode(features, mask), model.encode(features, mask, num_pieces=[2, 1, 1])
    assert joined.codes_mask.sum(1).tolist() == [8 + 3, 8, 1]
    assert torch.equal(joined.codes[joined.codes_mask], separate.codes[separate.codes_mask])
    many = torch.randn(70, 16, 16)
    expected = torch.cat([model.encode(row[None]).codes for row in many])
    assert torch.equal(model.encode(many).codes, expected)


def test_lowest_index_wins_a_tie():
    model = tiny_model()
    features = torch.randn(1, 16, 80)
    codes = model.encode(features).codes
    with torch.no_grad():
        weight = torch.cat([model.codebook.weight[:100], model.codebook.weight[:100]])
        model.codebook.weight.copy_(weight)
    tied = model.encode(features).codes
    assert int(tied.max()) < 100 and torch.equal(tied[codes < 100], codes[codes < 100])


def test_released_size():
    layout = json.loads((FIXTURES / "layouts" / "moss_codec_encoder.json").read_text())
    with torch.device("meta"):
        model = WhisperVqModel(WhisperVqConfig())
    shapes = {f"encoder.{key}": list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == {key: shape for key, shape, *_ in layout["keys"]} and len(shapes) == layout["tensors"]
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == 343.6
    assert round(model.codebook.weight.numel() / 1e6, 1) == round(model.ema_weight.numel() / 1e6, 1) == 21.0
    config = model.config
    assert (config.samples_per_code, config.frame_rate, config.max_samples) == (1280, 12.5, 480000)


def test_saved_and_loaded(tmp_path):
    model = tiny_model(**MODES[1])
    assert isinstance(model, SemanticTokenizer)
    assert (model.codebook_size, model.frame_rate, model.sampling_rate) == (200, 12.5, 16000)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(loaded, WhisperVqModel) and not any(info.values())
    waveform = recording(20000)[None]
    assert torch.equal(loaded.eval().encode_waveform(waveform).codes, model.encode_waveform(waveform).codes)


def test_codebook_stays_in_fp32(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    for half in (AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16), tiny_model().to(torch.bfloat16)):
        for name, value in half.state_dict().items():
            kept = name.startswith(("codebook", "ema"))
            assert value.dtype == (torch.float32 if kept else torch.bfloat16), name
        assert torch.equal(half.codebook.weight, model.codebook.weight)
        codes = half.encode_waveform(recording(20000)[None]).codes
        assert codes.shape == (1, 16)
        assert half(torch.randn(2, 16, 40)).last_hidden_state.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        codes = model.encode_waveform(recording(20000)[None]).codes
    assert torch.equal(codes, model.encode_waveform(recording(20000)[None]).codes)


def test_encoding_leaves_training_mode_and_state_alone():
    model = tiny_model(dropout=0.5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    waveform = recording(9000)[None]
    codes = model.encode_waveform(waveform).codes
    assert model.training and torch.equal(codes, model.eval().encode_waveform(waveform).codes)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_training_step():
    model = tiny_model(quantize_vocab_size=30, quantize_ema_decay=0.9).train()
    features, mask = torch.randn(2, 16, 64), torch.arange(64) < torch.tensor([64, 20])[:, None]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    output = model(features, mask)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    quantized = model.codebook.weight[model.encode(features, mask).codes]
    distance = (output.vectors - quantized).square().mean(-1)[output.codes_mask].mean()
    torch.testing.assert_close(output.commitment_loss, distance)
    torch.testing.assert_close(output.loss, 2.5 * distance)
    valid = output.codes_mask
    expected = (quantized + model.embed_positions2.weight[:8])[valid]
    torch.testing.assert_close(output.last_hidden_state[valid], expected, atol=1e-5, rtol=1e-5)

    # straight through: the gradient of the quantised states arrives at the vectors as it is
    output.vectors.retain_grad()
    target = torch.randn_like(output.last_hidden_state)
    (output.last_hidden_state * target).sum().backward()
    torch.testing.assert_close(output.vectors.grad, target)
    assert model.conv1.weight.grad.any() and model.embed_positions2.weight.grad.any()
    assert model.codebook.weight.grad is None

    output = model(features, mask, update_codebook=True)
    vectors, codes = output.vectors[valid].detach(), output.codes[valid]
    count = torch.bincount(codes, minlength=30).float()
    sums = torch.zeros(30, 24).index_add_(0, codes, vectors)
    torch.testing.assert_close(model.ema_count, 0.9 * before["ema_count"] + 0.1 * count)
    torch.testing.assert_close(model.ema_weight, 0.9 * before["ema_weight"] + 0.1 * sums)
    torch.testing.assert_close(
        model.codebook.weight, model.ema_weight / model.ema_count[:, None], atol=1e-4, rtol=1e-4
    )
    unused = model.ema_count < 1
    assert 0 < unused.sum() < 30
    model(features, mask, update_codebook=True, restart_codes=True)
    assert (model.ema_count[unused] >= 1).any()


def test_gradient_checkpointing_and_outputs():
    model = tiny_model().train()
    features = torch.randn(2, 16, 64)
    model(features).loss.backward()
    expected = model.conv1.weight.grad.clone()
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(features).loss.backward()
    torch.testing.assert_close(model.conv1.weight.grad, expected)
    model = tiny_model(attn_implementation="eager")
    output = model(features, output_hidden_states=True, output_attentions=True)
    assert [tuple(states.shape) for states in output.hidden_states] == [(2, 32, 24)] * 3
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 3, 32, 32)] * 2
    assert not output.attentions[0].triu(1).any()


@pytest.mark.parametrize(
    ("features", "mask", "message"),
    [
        (torch.zeros(1, 15, 8), None, r"input_features: expected \[B, 16, F\].*got \(1, 15, 8\)"),
        (torch.zeros(16, 8), None, r"got \(16, 8\)"),
        (torch.zeros(0, 16, 8), None, "a row at least"),
        (torch.zeros(1, 16, 0), None, "F from 1 to 200 frames"),
        (torch.zeros(1, 16, 201), None, "F from 1 to 200 frames"),
        (torch.zeros(1, 16, 8, dtype=torch.long), None, "floating point, got torch.int64"),
        (torch.full((2, 16, 8), torch.nan), None, r"NaN or infinite values in rows \[0, 1\]"),
        (torch.zeros(1, 16, 8), torch.ones(1, 9), r"attention_mask: expected \(1, 8\).*got \(1, 9\)"),
        (torch.zeros(1, 16, 8), torch.zeros(1, 8), "1 on the first frames of each row"),
        (torch.zeros(1, 16, 8), torch.tensor([[1, 1, 0, 1, 1, 1, 1, 1]]), "1 on the first frames"),
    ],
)
def test_refused_features(features, mask, message):
    model = tiny_model()
    for method in (model.encode, model):
        with pytest.raises(ValueError, match=message):
            method(features, mask)


@pytest.mark.parametrize(
    ("waveforms", "num_samples", "message"),
    [
        (torch.zeros(100), None, r"float tensor \[batch, samples\]"),
        (torch.zeros(1, 100, dtype=torch.int16), None, "torch.int16"),
        (torch.zeros(2, 100), [100, 0], "must have 1 to 100 samples"),
        (torch.zeros(2, 100), [100, 101], "must have 1 to 100 samples"),
        (torch.zeros(1, 0), None, "must have 1 to 0 samples"),
        (torch.full((1, 100), torch.inf), None, r"NaN or infinite values in rows \[0\]"),
    ],
)
def test_refused_waveforms(waveforms, num_samples, message):
    with pytest.raises(ValueError, match=message):
        tiny_model().encode_waveform(waveforms, num_samples)


@pytest.mark.parametrize("num_pieces", [[1], [2, 2], [3, 0], [[3]]])
def test_refused_numbers_of_pieces(num_pieces):
    with pytest.raises(ValueError, match="num_pieces: expected positive numbers"):
        tiny_model().encode(torch.zeros(3, 16, 8), num_pieces=num_pieces)


def test_block_mode_has_no_flash_attention():
    model = tiny_model(**MODES[1])
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="accepted with attention_mode='block' are 'sdpa', 'eager'"):
        model.encode(torch.zeros(1, 16, 8))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention_mode": "full"}, "attention_mode must be 'causal' or 'block', got 'full'"),
        ({"pooling_type": "max"}, "pooling_type must be 'avg'"),
        ({"d_model": 25}, "d_model must be a multiple of encoder_attention_heads"),
        ({"max_source_positions": 99}, "max_source_positions must be a multiple of pooling_kernel_size"),
        ({"quantize_causal_block_size": 0}, "quantize_causal_block_size must be positive"),
        ({"quantize_ema_decay": 1.0}, r"quantize_ema_decay must be in \(0, 1\)"),
        ({"attention_dropout": 1.0}, r"attention_dropout must be in \[0, 1\)"),
    ],
)
def test_refused_configurations(fields, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        WhisperVqConfig(**(SIZES | fields))
