import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioTokenization,
    EncodecFeatureExtractor,
    PreTrainedModel,
)

from dualspeech.configuration.configuration_wavtokenizer import WavTokenizerConfig
from dualspeech.modeling.conversion.convert_wavtokenizer_to_hf import build_model
from dualspeech.modeling.modeling_wavtokenizer import MAX_SAMPLES, WavTokenizerISTFTHead, WavTokenizerModel
from tests.fixture_checks import check, load


def tiny_config(**kwargs):
    sizes = {"num_filters": 2, "hidden_size": 10, "codebook_dim": 10, "codebook_size": 19, "upsampling_ratios": (3, 5)}
    sizes |= {"decoder_hidden_size": 12, "decoder_intermediate_size": 20, "decoder_num_layers": 2}
    sizes |= {"decoder_attention_num_groups": 3, "adanorm_num_embeddings": 2, "initializer_range": 0.3}
    return WavTokenizerConfig(**(sizes | kwargs))


def tiny_model(**kwargs):
    """A tiny model whose codes vary and whose conditioning ids differ."""
    model = WavTokenizerModel(tiny_config(**kwargs)).eval()
    with torch.no_grad():
        last = model.encoder.layers[-1]
        grouped = model.config.norm_type == "time_group_norm"
        (last.norm.weight if grouped else last.conv.parametrizations.weight.original0).mul_(20)
        for name, parameter in model.named_parameters():
            if ".shift." in name or ".scale." in name:
                parameter.add_(torch.randn_like(parameter))
    return model


def padded(rows, fill=7.0):
    batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)
    mask = torch.arange(batch.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    return batch[:, None], mask


@pytest.fixture(scope="module")
def recorded():
    state, tensors, meta = load("wavtokenizer")
    return build_model(state), tensors, meta


@pytest.mark.parametrize("case", range(8))
@torch.no_grad()
def test_recorded(recorded, case):
    model, tensors, meta = recorded
    waveform = tensors[f"waveform.{case}"][None, None]
    check(model.encoder(waveform), f"z.{case}", tensors, meta)
    encoded = model.encode(waveform)
    check(encoded.audio_codes, f"codes.{case}", tensors, meta)
    assert encoded.audio_codes_mask.all() and encoded.audio_codes_mask.shape[1] == -(-waveform.shape[-1] // 120)
    check(model.quantizer.decode(encoded.audio_codes[:, 0]).mT, f"features.{case}", tensors, meta)
    for id_ in (0, 2):
        if f"decoded.{case}.bandwidth{id_}" in tensors:
            decoded = model.decode(encoded.audio_codes, bandwidth_id=id_).audio_values
            check(decoded[:, 0], f"decoded.{case}.bandwidth{id_}", tensors, meta)
        if f"backbone.{case}.bandwidth{id_}" in tensors:
            vectors = model.quantizer.decode(encoded.audio_codes[:, 0])
            check(model.backbone(vectors, torch.tensor([id_])), f"backbone.{case}.bandwidth{id_}", tensors, meta)


@torch.no_grad()
def test_recorded_batch(recorded):
    model, tensors, meta = recorded
    codes = model.encode(tensors["batch_waveform"][:, None]).audio_codes
    check(codes.transpose(0, 1), "batch_codes", tensors, meta)
    check(model.decode(codes).audio_values[:, 0], "batch_decoded", tensors, meta)
    given = tensors["given_codes"].reshape(1, 1, -1)
    check(model.decode(given).audio_values.reshape(tensors["decoded_given"].shape), "decoded_given", tensors, meta)


@pytest.mark.parametrize(
    "kwargs", [{}, {"upsampling_ratios": (2, 3, 2), "num_residual_layers": 2}, {"use_causal_conv": True}]
)
@torch.no_grad()
def test_padded_batch_equals_singles(kwargs):
    model = tiny_model(**kwargs)
    hop = model.config.hop_length
    rows = [torch.randn(n) for n in (1, hop, 5 * hop + 1, 9 * hop, hop - 1, 5 * hop + 1)]
    waveforms, mask = padded(rows)
    encoded = model.encode(waveforms, mask.long())
    ids = torch.tensor([0, 1, 0, 1, 1, 0])
    codes = encoded.audio_codes.masked_fill(~encoded.audio_codes_mask[:, None], -1)
    decoded = model.decode(codes, encoded.audio_codes_mask, bandwidth_id=ids).audio_values
    assert encoded.audio_codes_mask.sum(1).tolist() == [1, 1, 6, 9, 1, 6]
    assert len(encoded.audio_codes.unique()) > 4
    for i, row in enumerate(rows):
        single = model.encode(row[None, None]).audio_codes
        n = single.shape[-1]
        assert torch.equal(encoded.audio_codes[i, :, :n], single[0]) and not encoded.audio_codes[i, :, n:].any()
        expected = model.decode(single, bandwidth_id=int(ids[i])).audio_values
        torch.testing.assert_close(decoded[i, :, : n * hop], expected[0], atol=1e-6, rtol=1e-5)
        assert not decoded[i, :, n * hop :].any()
    assert torch.equal(model.encode(waveforms, mask[:, None]).audio_codes, encoded.audio_codes)


@torch.no_grad()
def test_transformers_feature_extractor_fits():
    model, rows = tiny_model(), [torch.randn(40).numpy(), torch.randn(100).numpy()]
    inputs = EncodecFeatureExtractor(sampling_rate=24000)(rows, sampling_rate=24000, return_tensors="pt")
    assert model.encode(**inputs).audio_codes_mask.sum(1).tolist() == [3, 7]


@pytest.mark.parametrize(("ratios", "frames"), [((3, 5), 1), ((2, 3), 4), ((7,), 5)])
def test_head_equals_the_sum_over_frames(ratios, frames):
    config = tiny_config(upsampling_ratios=ratios)
    head, (hop, n_fft) = WavTokenizerISTFTHead(config).double(), (config.hop_length, config.n_fft)
    hidden = torch.randn(1, frames, 12, dtype=torch.float64) * 9
    log_magnitude, phase = head.linear(hidden)[0].split(n_fft // 2 + 1, dim=-1)
    spectrum = torch.polar(log_magnitude.exp().clamp(max=100), phase)
    window, total = torch.hann_window(n_fft, dtype=torch.float64), (frames - 1) * hop + n_fft
    signal, weight = torch.zeros(total, dtype=torch.float64), torch.zeros(total, dtype=torch.float64)
    for i in range(frames):
        signal[i * hop : i * hop + n_fft] += torch.fft.irfft(spectrum[i]) * window
        weight[i * hop : i * hop + n_fft] += window**2
    start = (n_fft - hop) // 2
    expected = (signal / weight)[start : start + frames * hop]
    torch.testing.assert_close(head(hidden)[0], expected, atol=1e-6, rtol=1e-5)  # the window is kept in float32


@torch.no_grad()
def test_sdpa_equals_eager():
    model, codes = tiny_model(), torch.randint(0, 19, (2, 1, 30))
    assert model.config._attn_implementation == "sdpa"
    expected = model.decode(codes).audio_values
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model.decode(codes).audio_values, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForAudioTokenization])
@torch.no_grad()
def test_save_and_load(tmp_path, auto_class):
    model = tiny_model(norm_type="time_group_norm" if auto_class is AutoModel else "weight_norm")
    model.save_pretrained(tmp_path)
    loaded, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(loaded, WavTokenizerModel) and not any(info.values())
    assert isinstance(AutoConfig.from_pretrained(tmp_path), WavTokenizerConfig)
    waveforms = torch.randn(1, 1, 100)
    codes = model.encode(waveforms).audio_codes
    assert torch.equal(loaded.eval().encode(waveforms).audio_codes, codes)
    assert torch.equal(loaded.decode(codes).audio_values, model.decode(codes).audio_values)


@pytest.mark.parametrize("dropped", ["original0", "original1", "embed", "gamma", "scale", "linear.weight"])
def test_missing_tensors_are_initialised(tmp_path, dropped):
    model = tiny_model()
    state = {key: value for key, value in model.state_dict().items() if dropped not in key}
    loaded = WavTokenizerModel.from_pretrained(None, config=model.config, state_dict=state)
    assert all(tensor.isfinite().all() for tensor in loaded.state_dict().values())
    assert loaded.eval()(torch.randn(1, 1, 99)).audio_values.isfinite().all()


class TestFloat32:
    waveforms = torch.randn(1, 1, 500, generator=torch.Generator().manual_seed(0))

    def same(self, model, other):
        assert {tensor.dtype for tensor in other.state_dict().values()} <= {torch.float32, torch.bool}
        assert other.head.window.dtype == torch.float32
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            encoded = other.encode(self.waveforms.to(torch.float64))
            decoded = other.decode(encoded.audio_codes).audio_values
        codes = model.encode(self.waveforms).audio_codes
        assert torch.equal(encoded.audio_codes, codes)
        assert torch.equal(decoded, model.decode(codes).audio_values)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    def test_loading(self, tmp_path, dtype):
        model = tiny_model()
        model.save_pretrained(tmp_path)
        self.same(model, WavTokenizerModel.from_pretrained(tmp_path, dtype=dtype).eval())

    def test_casting(self):
        model, other = tiny_model(), tiny_model()
        other.load_state_dict(model.state_dict())
        for cast in (other.to, other.half, other.bfloat16, torch.nn.ModuleList([other]).half):
            cast(torch.bfloat16) if cast == other.to else cast()
            self.same(model, other)
        assert other.double().dtype == torch.float64 and other.float().dtype == torch.float32

    def test_part_of_another_model(self, tmp_path):
        class Whole(PreTrainedModel):
            config: WavTokenizerConfig
            _supports_sdpa = True

            def __init__(self, config):
                super().__init__(config)
                self.codec, self.linear = WavTokenizerModel(config), torch.nn.Linear(2, 2)
                self.post_init()

        model = tiny_model()
        whole = Whole(model.config)
        whole.codec.load_state_dict(model.state_dict())
        whole.save_pretrained(tmp_path)
        whole = Whole.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
        assert whole.linear.weight.dtype == torch.bfloat16
        self.same(model, whole.codec)

    def test_from_config(self):
        model = AutoModel.from_config(tiny_config(), dtype=torch.bfloat16).eval()
        self.same(model, model)


def test_forward_trains_encoder_and_decoder():
    model = tiny_model().train()
    rows = [torch.randn(44), torch.randn(80)]
    waveforms, mask = padded(rows, fill=0.0)
    output = model(waveforms, mask, bandwidth_id=1)
    assert output.audio_values.shape == waveforms.shape
    assert torch.equal(output.audio_codes, model.encode(waveforms, mask).audio_codes)
    assert output.audio_codes.shape == (2, 1, 6) and not output.audio_codes[0, :, 3:].any()
    (output.audio_values.square().mean() + output.commitment_loss).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    with torch.no_grad():
        vectors, _ = model._encode_vectors(waveforms, mask)
        codes = torch.cat([model.encode(row[None, None]).audio_codes[0, 0] for row in rows])
        valid = torch.cat([vectors[0, :3], vectors[1]])
    expected = (valid - model.quantizer.decode(codes)).square().mean()
    torch.testing.assert_close(output.commitment_loss.detach(), expected)


def test_only_an_update_changes_the_codebook():
    model = tiny_model(kmeans_init=False).train()
    waveforms = torch.randn(2, 1, 300)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.encode(waveforms)
    model(waveforms)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    model(waveforms, update_codebook=True)
    assert not torch.equal(before["quantizer.embed"], model.quantizer.embed)


def test_what_stands_behind_the_mask_reaches_neither_codes_nor_codebook():
    model = tiny_model(kmeans_init=False)
    waveforms, mask = padded([torch.randn(44), torch.randn(80)], fill=torch.nan)
    expected = model.encode(waveforms.nan_to_num(), mask).audio_codes
    assert torch.equal(model.encode(waveforms, mask).audio_codes, expected)
    model.train()(waveforms, mask, update_codebook=True)
    assert all(buffer.isfinite().all() for buffer in model.quantizer.buffers())


def test_quantizer_settings():
    model = tiny_model(vq_decay=0.5, dead_code_threshold=1.5, kmeans_iterations=3, vq_eps=1e-3)
    quantizer = model.quantizer
    settings = (quantizer.decay, quantizer.dead_code_threshold, quantizer.kmeans_iterations, quantizer.eps)
    assert settings == (0.5, 1.5, 3, 1e-3) and quantizer.kmeans_init
    model.train()(torch.randn(1, 1, 600), update_codebook=True)
    assert quantizer.initialized


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant):
    model, waveforms = tiny_model(decoder_dropout=0.0).train(), torch.randn(2, 1, 75)
    grads = []
    for enable in (False, True):
        if enable:
            model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
        model.zero_grad()
        model(waveforms).audio_values.square().sum().backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters()})
    torch.testing.assert_close(grads[0], grads[1])


def test_loud_spectra_have_finite_gradients():
    model = tiny_model()
    torch.nn.init.constant_(model.head.linear.bias, 1000.0)
    model.decode(torch.zeros(1, 1, 4, dtype=torch.long)).audio_values.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.head.parameters())


@torch.no_grad()
def test_return_tuple_and_empty_rows():
    model = tiny_model()
    codes, mask = model.encode(torch.randn(2, 1, 31), return_dict=False)
    assert codes.shape == (2, 1, 3) and mask.dtype == torch.bool
    mask = torch.tensor([[0, 0, 0], [1, 1, 1]])
    decoded = model.decode(codes, mask, return_dict=False)[0]
    assert not decoded[0].any() and torch.equal(decoded[1:], model.decode(codes[1:]).audio_values)
    assert model.decode(codes[..., :0]).audio_values.shape == (2, 1, 0)


@pytest.mark.parametrize(
    ("values", "mask", "message"),
    [
        (torch.zeros(1, 2, 50), None, r"input_values must be mono, \[batch, 1, samples\], got \(1, 2, 50\)"),
        (torch.zeros(1, 50), None, "input_values must be mono"),
        (torch.zeros(1, 1, 50, dtype=torch.int16), None, "floating point"),
        (torch.zeros(1, 1, 0), None, "1 to .* samples, got rows of 0 to 0"),
        (torch.zeros(2, 1, 3), torch.tensor([[1, 1, 1], [0, 0, 0]]), "got rows of 0 to 3"),
        (torch.zeros(1).expand(1, 1, MAX_SAMPLES + 1), None, f"1 to {MAX_SAMPLES} samples"),
        (torch.zeros(1, 1, 3), torch.tensor([[0, 1, 1]]), "padding_mask must be 1 on the first positions"),
        (torch.zeros(1, 1, 3), torch.ones(1, 4), r"padding_mask must be \(1, 3\), got \(1, 4\)"),
        (
            torch.tensor([[[0.0, 0.0]], [[0.0, torch.nan]]]),
            None,
            r"`input_values` holds NaN or infinite .* rows \[1\]",
        ),
        (torch.tensor([[[-torch.inf, 0.0]]]), torch.tensor([[1, 0]]), "`input_values` holds NaN or infinite"),
    ],
)
def test_refused_waveforms(values, mask, message):
    model = tiny_model()
    for method in (model.encode, model):
        with pytest.raises(ValueError, match=message):
            method(values, mask)


@pytest.mark.parametrize(
    ("codes", "kwargs", "message"),
    [
        (torch.zeros(1, 4, dtype=torch.long), {}, r"audio_codes must be \[batch, 1, codes\], got \(1, 4\)"),
        (torch.zeros(1, 2, 4, dtype=torch.long), {}, "audio_codes must be"),
        (torch.zeros(1, 1, 4), {}, "audio_codes must be integers"),
        (torch.full((1, 1, 4), 19), {}, "between 0 and 18"),
        (torch.full((1, 1, 4), -1), {}, "between 0 and 18"),
        (torch.zeros(1, 1, 2, dtype=torch.long), {"audio_codes_mask": torch.tensor([[0, 1]])}, "audio_codes_mask"),
        (torch.zeros(1, 1, 2, dtype=torch.long), {"audio_codes_mask": torch.ones(2, 2)}, r"must be \(1, 2\)"),
        (torch.zeros(1, 1, 2, dtype=torch.long), {"bandwidth_id": 2}, "bandwidth_id must be between 0 and 1, got 2"),
        (torch.zeros(1, 1, 2, dtype=torch.long), {"bandwidth_id": torch.tensor([0, 0])}, r"\[1\] integers"),
    ],
)
def test_refused_codes(codes, kwargs, message):
    with pytest.raises(ValueError, match=message):
        tiny_model().decode(codes, **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"codebook_dim": 11}, "codebook_dim must equal hidden_size"),
        ({"decoder_attention_num_groups": 5}, "must be a multiple of decoder_attention_num_groups"),
        ({"audio_channels": 2}, "audio_channels must be 1"),
        ({"upsampling_ratios": (3, 0)}, "upsampling_ratios must hold positive strides"),
        ({"norm_type": "layer_norm"}, "norm_type must be"),
        ({"pad_mode": "zero"}, "pad_mode must be"),
        ({"decoder_num_layers": 0}, "decoder_num_layers must be positive"),
        ({"vq_decay": 1.0}, "vq_decay must be in"),
        ({"decoder_dropout": 1.0}, "decoder_dropout must be in"),
    ],
)
def test_refused_configurations(kwargs, message):
    with pytest.raises(Exception, match=message) as error:
        tiny_config(**kwargs)
    assert isinstance(error.value, ValueError) or isinstance(error.value.__cause__, ValueError)
