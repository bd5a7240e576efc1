"""USTokenizer against recorded outputs; batches against single items; state, errors, saving, precision."""

import pytest
import torch
from torch import nn
from transformers import AutoModel, WhisperConfig, WhisperFeatureExtractor, WhisperModel

from dualspeech import UsTokenizerConfig, UsTokenizerModel
from dualspeech.modeling.us_tokenizer_codec import UsTokenizerAdapter
from tests.fixture_checks import check
from tests.modeling.us_tokenizer_cases import (
    recorded_codec,
    recorded_full,
    spread_codebook,
    tiny_batch,
    tiny_config,
    tiny_model,
)


@pytest.fixture(scope="module")
def codec():
    return recorded_codec()


@pytest.fixture(scope="module")
def full():
    return recorded_full()


def speech_forward(model, features):
    """Everything behind the speech encoder, for features `[B, F, D]` of one length."""
    vectors = model.codec_encoder(features.transpose(1, 2)).transpose(1, 2)
    quantizer = model.quantizer(vectors)
    reconstruction = model.codec_decoder(quantizer.quantized.transpose(1, 2)).transpose(1, 2)
    length = min(reconstruction.shape[1], features.shape[1])
    loss = (reconstruction[:, :length] - features[:, :length]).pow(2).mean()
    return vectors, quantizer, reconstruction, loss


@pytest.mark.parametrize("case", range(7))
def test_codec_equals_the_recorded_one(codec, case):
    model, adapter_state, tensors, meta = codec
    vectors, quantizer, reconstruction, loss = speech_forward(model, tensors[f"features.{case}"])
    adapter = UsTokenizerAdapter(16, 20)
    adapter.load_state_dict(adapter_state)
    actual = {
        "z": vectors,
        "quantized": quantizer.quantized,
        "codes": quantizer.codes,
        "commitment_loss": quantizer.commitment_loss,
        "perplexity": quantizer.perplexity,
        "reconstruction": reconstruction,
        "reconstruction_loss": loss,
        "adapter": adapter(quantizer.quantized),
    }
    for name, value in actual.items():
        check(value, f"{name}.{case}", tensors, meta)


def test_codec_gradients_equal_the_recorded_ones():
    model, adapter_state, tensors, meta = recorded_codec()
    adapter = UsTokenizerAdapter(16, 20)
    adapter.load_state_dict(adapter_state)
    _, quantizer, _, reconstruction_loss = speech_forward(model, tensors["features.3"])
    loss = quantizer.commitment_loss + 45 * reconstruction_loss
    loss = loss + (adapter(quantizer.quantized) * tensors["adapter_cotangent"]).sum()
    check(loss, "grad_loss", tensors, meta)
    loss.backward()
    encoder, decoder = model.codec_encoder, model.codec_decoder
    gradients = {
        "downsampling_conv.conv.weight": encoder.downsample.weight,
        "downsampling_conv.conv.bias": encoder.downsample.bias,
        "codec_encoder.conv.conv.weight": encoder.conv_in.weight,
        "speech_llama_conv_proj.conv.weight": encoder.conv_out.weight,
        "codec_decoder.conv1.conv.weight": decoder.conv_in.weight,
        "llama_linear.weight": adapter.linear.weight,
        "upsampling_conv.deconv.weight": decoder.upsample.weight,
    }
    for name, parameter in gradients.items():
        check(parameter.grad, f"grad.{name}", tensors, meta)


def recorded_waveform(tensors, case):
    """The waveform, filled up to the shortest accepted second as the reference does."""
    waveform = tensors[f"waveform.{case}"]
    return torch.nn.functional.pad(waveform, (0, max(0, 16000 - len(waveform))))


@pytest.mark.parametrize("case", range(6))
def test_encoding_equals_the_recorded_one(full, case):
    model, tensors, meta = full
    tokenizer, waveform = model.us_tokenizer, recorded_waveform(tensors, case)
    features = WhisperFeatureExtractor()(waveform.numpy(), sampling_rate=16000, return_tensors="pt")["input_features"]
    if case != 4:
        end = tensors[f"log_mel.{case}"].shape[1]
        check(features[0, :, :end], f"log_mel.{case}", tensors, meta)
        tolerance = meta["tolerances"].get(f"log_mel_fill.{case}", meta["tolerances"]["default"])["atol"]
        assert (features[0, :, end:] - tensors[f"log_mel_fill.{case}"]).abs().max() < tolerance
    num_samples = torch.tensor([len(waveform)])
    encoded = tokenizer.encode(features, num_samples, output_vectors=True)
    check(encoded.vectors, f"z.{case}", tensors, meta)
    check(encoded.codes, f"codes.{case}", tensors, meta)
    assert encoded.codes_mask.all()
    assert torch.equal(tokenizer.encode_waveform(waveform[None]).codes, encoded.codes)
    with torch.no_grad():
        output = tokenizer(features, num_samples)
        speech = tokenizer.encoder(features).last_hidden_state[:, : len(waveform) // 320]
    if case == 4:
        check(speech[:, ::10], "speech_features_every_10th.4", tensors, meta)
    else:
        check(speech, f"speech_features.{case}", tensors, meta)
        check(output.reconstruction, f"reconstruction.{case}", tensors, meta)
        check(tokenizer.decode_features(encoded.codes), f"reconstruction.{case}", tensors, meta)
    for name in ("commitment_loss", "reconstruction_loss", "perplexity"):
        check(getattr(output, name), f"{name}.{case}", tensors, meta)


def naive_losses(model, features, num_samples):
    """Losses of a batch from its single items, weighted by their numbers of elements."""
    commitment, reconstruction, codes, frames = 0, 0, [], []
    for row, length in zip(features, num_samples, strict=True):
        output = model(row[None], length[None])
        count = output.codes.shape[1]
        frame_count = min(int(length) // model.config.hop_length, model.config.downsample * (count - 1) + 1)
        commitment += output.commitment_loss * count
        reconstruction += output.reconstruction_loss * frame_count
        codes.append(output.codes[0])
        frames.append(frame_count)
    histogram = torch.bincount(torch.cat(codes), minlength=model.codebook_size) / len(torch.cat(codes))
    perplexity = torch.special.entr(histogram).sum().exp()
    return codes, commitment / len(torch.cat(codes)), reconstruction / sum(frames), perplexity


@pytest.mark.parametrize(
    "overrides", [{}, {"downsample": 3, "kernel_size": 5, "dilations": [1, 2, 4], "num_residual_units": 3}]
)
def test_a_batch_equals_its_single_items(overrides):
    model = tiny_model(**overrides)
    config = model.config
    features, num_samples = tiny_batch(config, [9600, 320, 16000, 4799, 641])
    output = model(features, num_samples)
    assert len(output.codes[output.codes_mask].unique()) > 5
    codes, commitment, reconstruction, perplexity = naive_losses(model, features, num_samples)
    for row, single in enumerate(codes):
        assert output.codes_mask[row].sum() == len(single) == -(-(int(num_samples[row]) // 320) // config.downsample)
        assert torch.equal(output.codes[row, : len(single)], single)
        assert not output.codes[row, len(single) :].any()
        frames = config.downsample * (len(single) - 1) + 1
        alone = model(features[row, None], num_samples[row, None]).reconstruction[0]
        torch.testing.assert_close(output.reconstruction[row, :frames], alone, rtol=1e-5, atol=1e-6)
        assert not output.reconstruction[row, frames:].any()
    torch.testing.assert_close(output.commitment_loss, commitment)
    torch.testing.assert_close(output.reconstruction_loss, reconstruction)
    torch.testing.assert_close(output.perplexity, perplexity)
    loss = config.commitment_loss_weight * commitment + config.reconstruction_loss_weight * reconstruction
    torch.testing.assert_close(output.loss, loss)
    decoded = model.decode_features(output.codes.masked_fill(~output.codes_mask, -1), output.codes_mask)
    torch.testing.assert_close(decoded, output.reconstruction)


def test_masked_batch_moves_the_codebook_like_the_valid_vectors_alone():
    model = tiny_model(dead_code_threshold=0.0).train()
    features, num_samples = tiny_batch(model.config, [9600, 1000, 16000])
    encoded = model.encode(features, num_samples, output_vectors=True)
    expected = type(model.quantizer)(17, 10)
    expected.load_state_dict(model.quantizer.state_dict())
    expected(encoded.vectors[encoded.codes_mask][None], update_codebook=True)
    model(features, num_samples)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(model.quantizer.state_dict()[name], value)


def test_released_padding_gives_every_row_the_frames_of_the_longest():
    model = tiny_model(mask_padding=False)
    features, num_samples = tiny_batch(model.config, [9600, 320])
    encoded = model.encode(features, num_samples)
    longest = model.encode(features, torch.tensor([9600, 9600]))
    assert encoded.codes_mask.all() and torch.equal(encoded.codes, longest.codes)
    masked = UsTokenizerModel(tiny_config()).eval()
    masked.load_state_dict(model.state_dict())
    assert torch.equal(masked.encode(features[:1], num_samples[:1]).codes, encoded.codes[:1])


def test_waveforms_equal_features_whatever_stands_behind_them():
    model = tiny_model(encoder_config={"num_mel_bins": 80})
    waveforms = 0.1 * torch.randn(2, 20000)
    num_samples = torch.tensor([16000, 5000])
    batch = model.encode_waveform(waveforms, num_samples)
    for row in range(2):
        single = model.encode_waveform(waveforms[row, None, : num_samples[row]])
        assert torch.equal(batch.codes[row, batch.codes_mask[row]], single.codes[0])


@pytest.mark.parametrize("training", [True, False])
def test_encoding_never_changes_state(training):
    model = tiny_model(encoder_config={"dropout": 0.5}).train(training)
    features, num_samples = tiny_batch(model.config, [9600, 16000])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    codes = model.encode(features, num_samples).codes
    assert torch.equal(model.encode(features, num_samples).codes, codes)
    with torch.no_grad():
        model(features, num_samples)
    model.decode_features(codes)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.encoder.training == training
    model.encoder.layers[0].train(not training)
    flags = [module.training for module in model.modules()]
    model.encode(features, num_samples)
    assert [module.training for module in model.modules()] == flags
    model(features, num_samples)
    assert torch.equal(model.quantizer.embed, before["quantizer.embed"]) != training


def test_save_and_load_without_missing_or_unexpected_keys(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    loaded, info = UsTokenizerModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    features, num_samples = tiny_batch(model.config, [9600, 16000])
    automatic = AutoModel.from_pretrained(tmp_path)
    assert type(automatic) is UsTokenizerModel
    expected = model.encode(features, num_samples).codes
    for other in (loaded, automatic):
        assert torch.equal(other.encode(features, num_samples).codes, expected)
    assert loaded.config.to_dict() == automatic.config.to_dict()


def test_missing_tensors_are_initialised(tmp_path):
    model = UsTokenizerModel(tiny_config())
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("quantizer.")}
    model.save_pretrained(tmp_path, state_dict=state)
    loaded = UsTokenizerModel.from_pretrained(tmp_path)
    assert loaded.quantizer.initialized and loaded.quantizer.cluster_size.eq(1).all()
    assert loaded.quantizer.embed.std() == pytest.approx(1, abs=0.3)
    assert torch.equal(loaded.quantizer.embed, loaded.quantizer.embed_avg)


def test_released_geometry_is_the_default():
    with torch.device("meta"):
        model = UsTokenizerModel(UsTokenizerConfig())
    assert (model.codebook_size, model.frame_rate, model.sampling_rate) == (1024, 25.0, 16000)
    assert sum(p.numel() for p in model.codec_encoder.parameters()) == pytest.approx(32.5e6, rel=0.01)
    assert sum(p.numel() for p in model.codec_decoder.parameters()) == pytest.approx(32.5e6, rel=0.01)
    assert sum(p.numel() for p in model.encoder.parameters()) == pytest.approx(307e6, rel=0.01)
    output = model(torch.empty(2, 80, 3000, device="meta"))
    assert output.codes.shape == (2, 750) and output.reconstruction.shape == (2, 1499, 1024)


def test_from_whisper_takes_the_encoder(tmp_path):
    sizes = {"d_model": 12, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 8, "num_mel_bins": 8}
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 8, "vocab_size": 9}
    special = {"pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 2}
    whisper = WhisperModel(WhisperConfig(**sizes, **decoder, **special, max_source_positions=50)).eval()
    whisper.save_pretrained(tmp_path)
    model = UsTokenizerModel.from_whisper(tmp_path, codebook_size=7, max_seconds=1.0).eval()
    assert (model.codebook_size, model.config.hidden_size) == (7, 12)
    features = torch.randn(1, 8, 100)
    expected = whisper.encoder(features).last_hidden_state
    torch.testing.assert_close(model.encoder(features).last_hidden_state, expected)


def test_gradient_checkpointing_of_the_speech_encoder_changes_no_gradient():
    gradients = {}
    config = tiny_config()
    state = tiny_model().state_dict()
    features, num_samples = tiny_batch(config, [9600, 16000])
    for checkpointing in (False, True):
        model = UsTokenizerModel(config).train()
        model.load_state_dict(state)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
            assert model.encoder.layers[0].gradient_checkpointing
        model(features, num_samples).loss.backward()
        gradients[checkpointing] = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert "encoder.layers.0.fc1.weight" in gradients[False]
    assert gradients[False].keys() == gradients[True].keys()
    for key, value in gradients[False].items():
        torch.testing.assert_close(gradients[True][key], value, rtol=1e-5, atol=1e-6)


def test_a_frozen_encoder_gets_no_gradient_and_stays_in_evaluation_mode():
    model = UsTokenizerModel(tiny_config())
    model.freeze_encoder()
    model.train()
    assert model.training and model.codec_encoder.training and not model.encoder.training
    model(*tiny_batch(model.config, [9600])).loss.backward()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert model.codec_encoder.downsample.weight.grad is not None


def test_attention_implementations_agree():
    eager = spread_codebook(UsTokenizerModel._from_config(tiny_config(), attn_implementation="eager")).eval()
    sdpa = UsTokenizerModel._from_config(tiny_config(), attn_implementation="sdpa").eval()
    sdpa.load_state_dict(eager.state_dict())
    assert eager.encoder.config._attn_implementation == "eager"
    assert sdpa.encoder.config._attn_implementation == "sdpa"
    features, num_samples = tiny_batch(eager.config, [9600, 16000])
    first, second = eager(features, num_samples, output_attentions=True), sdpa(features, num_samples)
    assert len(first.attentions) == 2
    torch.testing.assert_close(first.reconstruction, second.reconstruction, rtol=1e-4, atol=1e-5)
    assert torch.equal(first.codes, second.codes)


def test_bf16_keeps_the_quantiser_in_fp32(tmp_path):
    model = UsTokenizerModel(tiny_config())
    model.save_pretrained(tmp_path)
    half = UsTokenizerModel.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert half.encoder.conv1.weight.dtype == torch.bfloat16
    assert torch.equal(half.quantizer.embed, model.quantizer.embed)
    features, num_samples = tiny_batch(model.config, [9600, 16000])
    output = half(features, num_samples)
    assert output.loss.dtype == torch.float32 and output.quantized.dtype == torch.bfloat16
    assert torch.equal(half.encode(features, num_samples).codes, output.codes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_keeps_the_codebook_in_fp32(dtype):
    model = tiny_model()
    before = {name: buffer.clone() for name, buffer in model.quantizer.named_buffers()}
    nn.ModuleList([model]).to(dtype)  # also as a part of another model
    assert model.encoder.conv1.weight.dtype == dtype
    assert UsTokenizerModel._from_config(model.config, dtype=dtype).quantizer.embed.dtype == torch.float32
    for name, buffer in model.quantizer.named_buffers():
        assert buffer.dtype == before[name].dtype and torch.equal(buffer, before[name])
    output = model(*tiny_batch(model.config, [9600, 16000]))
    assert output.quantized.dtype == dtype and output.reconstruction.isfinite().all()


def test_encoding_under_autocast_quantises_in_fp32():
    model = tiny_model()
    features, num_samples = tiny_batch(model.config, [9600, 16000])
    quantized = []
    model.quantizer.register_forward_pre_hook(lambda module, inputs: quantized.append(inputs[0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoded = model.encode(features, num_samples)
        output = model(features, num_samples)
    assert torch.equal(encoded.codes, model.encode(features, num_samples).codes)
    (vectors,) = quantized
    assert vectors.dtype == torch.bfloat16
    nearest = torch.cdist(vectors.double(), model.quantizer.embed.double()[None]).argmin(dim=-1)
    assert torch.equal(output.codes[output.codes_mask], nearest[output.codes_mask])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_samples": [9600, 0]}, "num_samples: 0 samples are outside the accepted 320 to 16000"),
        ({"num_samples": [9600, 319]}, "num_samples: 319 samples"),
        ({"num_samples": [9600, 16001]}, "num_samples: 16001 samples"),
        ({"num_samples": [9600]}, "num_samples: expected 2 integers"),
        ({"num_samples": [0.5, 0.6]}, "num_samples: expected 2 integers"),
        ({"shape": (2, 9, 100)}, r"input_features: expected \[B, 8, 100\].*, got \(2, 9, 100\)"),
        ({"shape": (2, 8, 99)}, r"got \(2, 8, 99\)"),
        ({"shape": (8, 100)}, r"got \(8, 100\)"),
        ({"shape": (0, 8, 100), "num_samples": []}, r"with a row at least, got \(0, 8, 100\)"),
        ({"value": float("nan")}, r"`input_features` holds NaN or infinite values in rows \[1\]"),
        ({"value": float("inf")}, "NaN or infinite"),
    ],
)
@pytest.mark.parametrize("method", ["encode", "forward"])
def test_bad_inputs_are_refused(change, message, method):
    model = UsTokenizerModel(tiny_config()).eval()
    features, num_samples = tiny_batch(model.config, [9600, 16000])
    features = torch.zeros(change["shape"]) if "shape" in change else features
    features[-1:, -1] = change.get("value", 0.0)
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(features, torch.tensor(change.get("num_samples", num_samples.tolist())))


def test_bad_waveforms_and_codes_are_refused():
    model = UsTokenizerModel(tiny_config(encoder_config={"num_mel_bins": 80})).eval()
    with pytest.raises(ValueError, match=r"waveforms: expected floating point \[B, S\]"):
        model.encode_waveform(torch.zeros(4000))
    with pytest.raises(ValueError, match="waveforms: expected floating point"):
        model.encode_waveform(torch.zeros(1, 4000, dtype=torch.int16))
    with pytest.raises(ValueError, match=r"with a row at least, got torch.float32 \(0, 4000\)"):
        model.encode_waveform(torch.zeros(0, 4000))
    with pytest.raises(ValueError, match="16001 samples are outside"):
        model.encode_waveform(torch.zeros(1, 16001))
    with pytest.raises(ValueError, match="num_samples: 5000 is more than the 4000"):
        model.encode_waveform(torch.zeros(1, 4000), torch.tensor([5000]))
    with pytest.raises(ValueError, match="`waveforms` holds NaN"):
        model.encode_waveform(torch.full((1, 4000), float("nan")))
    with pytest.raises(ValueError, match="codes: must be between 0 and 16"):
        model.decode_features(torch.tensor([[0, 17]]))
    with pytest.raises(ValueError, match=r"codes: must be integers, got torch\.float32"):
        model.decode_features(torch.tensor([[0.0, 1.0]]))
    for codes in (torch.zeros(1, 0, dtype=torch.long), torch.zeros(3, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"codes: expected \[B, T\] with a code at least"):
            model.decode_features(codes)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 13),
        ("kernel_size", 2),
        ("dilations", [1]),
        ("codebook_size", 0),
        ("vq_decay", 1.0),
        ("vq_eps", 0.0),
        ("dead_code_threshold", -1.0),
        ("reconstruction_loss_weight", -1),
        ("min_seconds", 0.0),
        ("max_seconds", 1.5),
    ],
)
def test_bad_configurations_are_refused(field, value):
    with pytest.raises(Exception, match=f"`{field}` is"):
        tiny_config(**{field: value})
