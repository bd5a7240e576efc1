"""The linear layer for CPU inference against `nn.functional.linear`."""

import pytest
import torch
from torch import nn

from dualspeech.modeling.onednn_linear import OneDnnLinear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (1, 24), (3, 1, 24), (2, 7, 24), (0, 24)])
def test_equals_linear(shape, bias):
    torch.manual_seed(0)
    layer, input = OneDnnLinear(24, 37, bias=bias), torch.randn(*shape)
    with torch.no_grad():
        output = layer(input)
    expected = nn.functional.linear(input, layer.weight, layer.bias)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    assert output.shape == expected.shape


def test_inputs_that_are_not_contiguous():
    torch.manual_seed(0)
    layer, input = OneDnnLinear(6, 5), torch.randn(4, 6, 9)
    for view in (
        input[:, :, 1:7],
        input.transpose(0, 1)[..., ::2][..., :3].repeat(1, 1, 2),
        input[:, :, :6].transpose(1, 2),
    ):
        with torch.no_grad():
            torch.testing.assert_close(layer(view), nn.functional.linear(view, layer.weight, layer.bias))


def test_gradients_and_other_dtypes_take_the_usual_path():
    torch.manual_seed(0)
    layer, input = OneDnnLinear(6, 5), torch.randn(2, 6)
    layer(input).sum().backward()
    assert torch.allclose(layer.weight.grad, input.sum(0).expand(5, 6))
    with torch.no_grad():
        for dtype in (torch.float64, torch.bfloat16):
            assert layer.to(dtype)(input.to(dtype)).dtype == dtype
        layer.to(torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(input).dtype == torch.bfloat16
        with pytest.raises(RuntimeError):
            layer(torch.randn(2, 7))


def test_is_a_linear_layer_for_everybody_else():
    layer = OneDnnLinear(6, 5)
    assert isinstance(layer, nn.Linear) and set(layer.state_dict()) == {"weight", "bias"}
