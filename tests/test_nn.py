"""What no paper introduced."""

import pytest
import torch

from jingdu.nn import LARGE, Linear, linear, quick_layout


@pytest.mark.parametrize(("count", "quick"), [(1, False), (3, False), (4, True), (7, True)])
def test_layout_changes_the_order_of_memory_alone(count: int, quick: bool) -> None:
    x = torch.randn(count, 3, 5, 7)
    y = quick_layout(x)
    assert torch.equal(x, y) and y.is_contiguous(memory_format=torch.channels_last) == quick
    assert (y is x) != quick


@pytest.mark.parametrize("out", [1031, 1032, 3])
@pytest.mark.parametrize("shape", [(256,), (1, 256), (1, 1, 256), (3, 256)])
@pytest.mark.parametrize("bias", [False, True])
def test_one_row_is_a_batch_of_products(out: int, shape: tuple[int, ...], bias: bool) -> None:
    layer, x = Linear(256, out, bias=bias), torch.randn(shape)
    expected = torch.nn.functional.linear(x, layer.weight, layer.bias)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected.detach())
    assert torch.equal(layer(x), expected) and layer(x).requires_grad
    assert (layer.weight.numel() < LARGE) == (out == 3)
    with torch.no_grad():
        torch.testing.assert_close(linear(x.double(), layer.weight.double()), x.double() @ layer.weight.double().T)
