import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForAudioXVector

from dualspeech.configuration.configuration_campplus import CamPPlusConfig
from dualspeech.modeling.modeling_campplus import CamPPlusContextAwareMask, CamPPlusModel
from tests.fixture_checks import check, load


def tiny_config(**kwargs):
    sizes = {
        "num_mel_bins": 20,
        "embedding_size": 12,
        "growth_rate": 4,
        "bottleneck_multiplier": 2,
        "init_channels": 8,
    }
    sizes |= {"head_channels": 4, "block_layers": (2, 3), "block_dilations": (1, 2), "segment_length": 7}
    return CamPPlusConfig(**(sizes | kwargs))


def tiny_model(**kwargs):
    """A tiny model in which no batch norm is the identity."""
    model = CamPPlusModel(tiny_config(**kwargs)).eval()
    for name, tensor in model.state_dict().items():
        if "running_var" in name:
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point():
            tensor.copy_(torch.randn_like(tensor) * 0.3)
    return model


@pytest.fixture(scope="module")
def recorded():
    state, tensors, meta = load("campplus")
    model = CamPPlusModel(CamPPlusConfig(**meta["config"])).eval()
    model.load_state_dict(state)
    return model, tensors, meta


@pytest.mark.parametrize("case", range(5))
def test_recorded(recorded, case):
    model, tensors, meta = recorded
    seen = {}
    watched = {"statistics": model.xvector.stats, "head": model.head, "block1": model.xvector.block1.tdnnd12}
    hooks = [m.register_forward_hook(lambda m, i, o, n=n: seen.__setitem__(n, o)) for n, m in watched.items()]
    with torch.no_grad():
        check(model(tensors[f"features.{case}"]).embeddings, f"embeddings.{case}", tensors, meta)
    for hook in hooks:
        hook.remove()
    check(seen["statistics"], f"statistics.{case}", tensors, meta)
    for name in ("head", "block1"):
        if f"{name}.{case}" in tensors:
            check(seen[name][..., :16], f"{name}.{case}", tensors, meta)


@torch.no_grad()
def test_padded_recorded_batch_equals_singles(recorded):
    model, tensors, _ = recorded
    rows = [tensors[f"features.{case}"][0] for case in range(5)]
    batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=9.0)
    mask = torch.arange(batch.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    expected = torch.stack([tensors[f"embeddings.{case}"][0] for case in range(5)])
    torch.testing.assert_close(model(batch, mask).embeddings, expected, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("lengths", [(3, 4, 5, 6), (28, 29, 27, 14, 13), (40, 3), (57,)])
@torch.no_grad()
def test_padded_batch_equals_singles(lengths):
    model = tiny_model().double()
    rows = [torch.randn(length, 20, dtype=torch.float64) for length in lengths]
    batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=5.0)
    batch = torch.nn.functional.pad(batch, (0, 0, 0, 9), value=-3.0)
    mask = torch.arange(batch.shape[1]) < torch.tensor(lengths)[:, None]
    expected = torch.cat([model(row[None]).embeddings for row in rows])
    torch.testing.assert_close(model(batch, mask.long()).embeddings, expected)


@pytest.mark.parametrize("frames", [1, 6, 7, 8, 20])
def test_context_equals_ceil_mode_pooling(frames):
    layer = CamPPlusContextAwareMask(tiny_config(), dilation=1)
    hidden = torch.randn(2, 8, frames)
    pooled = torch.nn.functional.avg_pool1d(hidden, 7, stride=7, ceil_mode=True)
    expected = hidden.mean(-1, keepdim=True) + pooled
    torch.testing.assert_close(layer.context(hidden, torch.ones(2, 1, frames)), expected)


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForAudioXVector])
def test_save_and_load(tmp_path, auto_class):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    loaded, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and isinstance(loaded, CamPPlusModel)
    features = torch.randn(2, 9, 20)
    assert torch.equal(loaded.eval()(features).embeddings, model(features).embeddings)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), CamPPlusConfig)


def test_bfloat16_and_tuple():
    model, features = tiny_model(), torch.randn(2, 50, 20)
    expected = model(features).embeddings
    torch.testing.assert_close(model(features, return_dict=False)[0], expected)
    actual = model.bfloat16()(features).embeddings
    assert actual.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(actual.float(), expected).min() > 0.99


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant):
    model, features = tiny_model().train(), torch.randn(2, 21, 20, requires_grad=True)
    grads = []
    for enable in (False, True):
        if enable:
            model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
        model.zero_grad()
        model(features).embeddings.square().sum().backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert grads[0].keys() == grads[1].keys()
    torch.testing.assert_close(grads[0], grads[1])


def test_silent_channels_have_finite_gradients():
    model = tiny_model()
    torch.nn.init.constant_(model.xvector.out_nonlinear.batchnorm.bias, -100.0)
    model(torch.randn(1, 9, 20)).embeddings.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_anything_may_stand_behind_the_mask():
    features, mask = torch.randn(2, 9, 20), torch.ones(2, 9)
    mask[1, 5:] = 0
    features[1, 5:] = torch.nan
    model = tiny_model()
    assert torch.equal(model(features, mask).embeddings, model(features.nan_to_num(), mask).embeddings)


@pytest.mark.parametrize(
    ("features", "mask", "message"),
    [
        (torch.zeros(1, 9, 19), None, r"input_features must be \[batch, frames, 20\]"),
        (torch.zeros(9, 20), None, r"input_features must be \[batch, frames, 20\]"),
        (torch.zeros(1, 2, 20), None, "at least 3 frames, the shortest has 2"),
        (torch.zeros(2, 5, 20), torch.tensor([[1] * 5, [1, 1, 0, 0, 0]]), "at least 3 frames, the shortest has 2"),
        (torch.zeros(1, 5, 20), torch.tensor([[0, 1, 1, 1, 1]]), "attention_mask must be 1 on the first"),
        (torch.zeros(1, 5, 20), torch.ones(1, 4), r"attention_mask must be \(1, 5\)"),
        (torch.full((1, 5, 20), torch.nan), None, r"`input_features` holds NaN or infinite values in rows \[0\]"),
        (torch.full((1, 5, 20), torch.inf), torch.ones(1, 5), "`input_features` holds NaN or infinite"),
    ],
)
def test_refused_inputs(features, mask, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(features, mask)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"embedding_size": 0}, "embedding_size must be positive"),
        ({"block_layers": (2, 3, 4)}, "one entry per dense block"),
        ({"block_dilations": (1, 0)}, "block_dilations must hold positive"),
        ({"growth_rate": 3, "bottleneck_multiplier": 1}, "must be even"),
        ({"init_channels": 9}, "behind dense block 0"),
    ],
)
def test_refused_configurations(kwargs, message):
    with pytest.raises(Exception, match=message) as error:
        tiny_config(**kwargs)
    assert isinstance(error.value, ValueError) or isinstance(error.value.__cause__, ValueError)
