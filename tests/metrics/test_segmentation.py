"""Overlap of segmentations."""

import numpy as np
import pytest
import torch

from jingdu.errors import Refused
from jingdu.metrics.segmentation import Overlap, merged


def test_iou_is_over_all_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    found, truth = (torch.randint(3, (5, 7, 11), generator=generator) for _ in range(2))
    overlap = Overlap()
    overlap.update(found[:2], truth[:2])
    overlap.update(found[2:], truth[2:])
    values = overlap.compute()
    ious = [((found == k) & (truth == k)).sum() / ((found == k) | (truth == k)).sum() for k in range(3)]
    assert values["iou"] == pytest.approx(float(torch.stack(ious).mean()), rel=1e-6)
    assert values["pixel_error"] == pytest.approx(float((found != truth).float().mean()), rel=1e-6)
    assert "merged" not in values
    with pytest.raises(Refused, match="nothing to evaluate"):
        overlap.compute()


def test_classes_that_do_not_occur_do_not_count() -> None:
    overlap = Overlap()
    overlap.update(torch.zeros(1, 3, 5, dtype=torch.int64), torch.zeros(1, 3, 5, dtype=torch.int64))
    overlap.update(torch.full((1, 3, 5), 4), torch.full((1, 3, 5), 4))
    assert overlap.compute() == {"iou": 1.0, "pixel_error": 0.0}


def test_merged_cells() -> None:
    cells = np.zeros((6, 13), dtype=np.int64)
    cells[1:5, 1:4], cells[1:5, 5:8], cells[1:5, 9:12] = 3, 7, 8
    assert merged(cells > 0, cells) == (0, 3)
    bridge = cells > 0
    bridge[2, 4] = True
    assert merged(bridge, cells) == (2, 3)
    assert merged(np.zeros_like(bridge), cells) == (0, 3)
    lost = bridge.copy()
    lost[2:5, 1:4] = False  # a quarter of the first cell is found: it belongs to nothing
    lost[1, 4] = True
    assert merged(lost, cells) == (0, 3)
    overlap = Overlap()
    overlap.update(
        torch.from_numpy(bridge)[None].long(), (torch.from_numpy(cells) > 0)[None].long(), torch.from_numpy(cells)[None]
    )
    assert overlap.compute()["merged"] == pytest.approx(2 / 3)
