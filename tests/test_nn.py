"""What no paper introduced."""

import pytest
import torch

from jingdu.nn import quick_layout


@pytest.mark.parametrize(("count", "quick"), [(1, False), (3, False), (4, True), (7, True)])
def test_layout_changes_the_order_of_memory_alone(count: int, quick: bool) -> None:
    x = torch.randn(count, 3, 5, 7)
    y = quick_layout(x)
    assert torch.equal(x, y) and y.is_contiguous(memory_format=torch.channels_last) == quick
    assert (y is x) != quick
