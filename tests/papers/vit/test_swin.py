"""Swin's own parts."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jingdu
from jingdu.data.draws import Draws
from jingdu.engine.contracts import Objective
from jingdu.engine.optimise import make_optimizer
from jingdu.errors import UsageError
from jingdu.papers.vit.swin import (
    PatchMerging,
    Pyramid,
    Swin,
    WindowAttention,
    attention_cost,
    layout,
    matching,
    partition,
    relative_index,
    resize_bias,
    reverse,
)
from jingdu.papers.vit.swin.windows import KEPT

CPU = torch.device("cpu")
SIZES = {
    "image_size": (44, 60), "patch": 4, "width": 12, "depths": (2, 3), "heads": (3, 4), "window": 3, "num_classes": 5,
}  # fmt: skip


def by_definition(block: WindowAttention, x: Tensor, shift: int) -> Tensor:
    """Section 3.2 read aloud: pad, roll, cut, look in each window at tokens of its region, and go back."""
    _, height, width, channels = x.shape
    m, heads = block.window[0], block.heads
    padded = F.pad(x, (0, 0, 0, -width % m, 0, -height % m))
    rolled = padded.roll((-shift, -shift), (1, 2))
    down, across = rolled.shape[1:3]
    label = torch.zeros(down, across)
    if shift:
        slices = (slice(0, -m), slice(-m, -shift), slice(-shift, None))
        for i, rows in enumerate(slices):
            for j, columns in enumerate(slices):
                label[rows, columns] = 3 * i + j
    out = torch.zeros_like(rolled)
    for top in range(0, down, m):
        for left in range(0, across, m):
            tokens = rolled[:, top : top + m, left : left + m].flatten(1, 2)
            region = label[top : top + m, left : left + m].flatten()
            q, k, v = block.qkv(tokens).view(len(x), m * m, 3, heads, -1).permute(2, 0, 3, 1, 4)
            scores = q @ k.mT / q.shape[-1] ** 0.5
            for i in range(m * m):
                for j in range(m * m):
                    dy, dx = i // m - j // m, i % m - j % m
                    scores[:, :, i, j] += block.table[(dy + m - 1) * (2 * m - 1) + dx + m - 1]
            scores = scores + torch.where(region[:, None] == region, 0.0, -100.0)
            y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
            out[:, top : top + m, left : left + m] = block.project(y).view(len(x), m, m, channels)
    return out.roll((shift, shift), (1, 2))[:, :height, :width]


@pytest.mark.parametrize("shift", ["none", "cyclic"])
@pytest.mark.parametrize("size", [(9, 15), (7, 11)])
def test_attention_in_windows_is_its_definition(shift: str, size: tuple[int, int]) -> None:
    """By torch's kernel, and with a bias that learns."""
    torch.manual_seed(0)
    block = WindowAttention(8, 2, (3, 3), shift=shift)
    nn.init.normal_(block.table)
    x = torch.randn(2, *size, 8)
    wanted = by_definition(block, x, 1 if shift == "cyclic" else 0)
    assert torch.allclose(block(x), wanted, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(block(x), wanted, atol=1e-5)


@pytest.mark.parametrize("size, window", [((9, 15), (3, 5)), ((7, 11), (3, 4)), ((5, 13), (7, 5))])
@pytest.mark.parametrize("how", ["cyclic", "late", "padding"])
def test_windows_cover_the_map_once(size: tuple[int, int], window: tuple[int, int], how: str) -> None:
    shift = (window[0] // 2 if size[0] > window[0] else 0, window[1] // 2)
    where = layout(size, window, shift, how, CPU, torch.float32)
    x = torch.randn(3, *size, 2)
    windows = partition(x, where)
    assert windows.shape == (sum(where.counts) * 3 * window[0] * window[1], 2)
    assert sorted(where.order.tolist()) == list(range(where.padded[0] * where.padded[1]))
    assert torch.equal(reverse(windows, where, 3, size), x)
    assert where.masks is not None and len(where.masks) == len(where.counts)


def test_a_window_without_displacement_is_a_block_of_the_map() -> None:
    where = layout((6, 8), (3, 4), (0, 0), "cyclic", CPU, torch.float32)
    x = torch.arange(48.0).view(1, 6, 8, 1)
    assert where.masks is None and where.counts == (4,)
    assert torch.equal(partition(x, where).view(4, 3, 4)[1], x[0, :3, 4:, 0])


def test_padding_and_rolling_give_the_same() -> None:
    """Table 6 compares what they cost: the result is one."""
    x = torch.randn(2, 9, 11, 8)
    rolled, cut = (WindowAttention(8, 2, (4, 3), shift=shift).eval() for shift in ("cyclic", "padding"))
    cut.load_state_dict(rolled.state_dict())
    with torch.no_grad():
        assert torch.allclose(rolled(x), cut(x), atol=1e-5)
    counts = [sum(block.layout((9, 11), x).counts) for block in (rolled, cut)]
    assert counts == [3 * 4, 4 * 5]


def test_one_window_is_not_displaced() -> None:
    plain, shifted = WindowAttention(8, 2, (5, 5)).eval(), WindowAttention(8, 2, (5, 5), shift="cyclic").eval()
    shifted.load_state_dict(plain.state_dict())
    x = torch.randn(2, 5, 5, 8)
    assert torch.equal(plain(x), shifted(x))
    wide = torch.randn(2, 5, 10, 8)
    assert not torch.allclose(plain(wide), shifted(wide), atol=1e-4)


def test_displaced_windows_carry_across_a_border() -> None:
    """What one token changes: its window alone without displacement; with it, two blocks reach the next windows."""
    x = torch.randn(1, 3, 36, 36)
    changed = x.clone()
    changed[:, :, :4, 8:12] += 1  # the token (0, 2), the last of its window
    for shift, reached in (("none", 3), ("cyclic", 4)):
        torch.manual_seed(0)
        model = Swin(**{**SIZES, "image_size": 36, "depths": (2,), "heads": (3,)}, shift=shift).eval()
        moved = (model.features(x)[0] - model.features(changed)[0]).abs().amax((0, 1))[0] > 1e-7
        assert moved.nonzero().max() == reached - 1


def test_index_of_the_relative_positions() -> None:
    index = relative_index((2, 3), CPU)
    assert index.shape == (6, 6) and index.max() == 3 * 5 - 1 and index.min() == 0
    assert index.diagonal().unique().tolist() == [1 * 5 + 2]
    assert index[5, 0] == (1 + 1) * 5 + 2 + 2  # the query is a row below and two columns behind the key
    assert (index + index.T == 2 * (1 * 5 + 2)).all()


def test_a_resized_table_keeps_what_lies_near() -> None:
    rows, columns = torch.meshgrid(torch.arange(-6.0, 7), torch.arange(-6.0, 7), indexing="ij")
    table = (rows * 2 - columns).view(-1, 1)
    grown = resize_bias(table, (12, 12)).view(23, 23)
    # steps are one near the middle
    assert torch.allclose(grown[10:13, 10:13], table.view(13, 13)[5:8, 5:8], atol=0.25)
    assert torch.allclose(grown[0, 0], table[0, 0], atol=1e-3) and torch.allclose(
        grown[-1, 0], table[-13, 0], atol=1e-3
    )
    assert resize_bias(table, (7, 7)) is table
    assert resize_bias(torch.randn(3 * 5, 2), (4, 3), old=(2, 3)).shape == (7 * 5, 2)
    with pytest.raises(UsageError, match="old="):
        resize_bias(torch.randn(15, 2), (4, 4))


def test_merging_puts_columns_behind_rows() -> None:
    merge = PatchMerging(1)
    merge.norm, merge.reduction = nn.Identity(), nn.Identity()
    x = torch.tensor([[1.0, 2, 5], [3, 4, 6]]).view(1, 2, 3, 1)
    assert merge(x).tolist() == [[[[1, 3, 2, 4], [5, 6, 0, 0]]]]


def test_features_are_the_stages_outputs() -> None:
    model, seen = Swin(**SIZES).eval(), []
    for stage in model.stages:
        stage.register_forward_hook(lambda m, i, o: seen.append(o))
    maps = model.features(torch.randn(1, 3, 44, 60))
    assert [tuple(m.shape) for m in maps] == [(1, 12, 11, 15), (1, 24, 6, 8)]
    assert all(torch.equal(m.permute(0, 2, 3, 1), s) for m, s in zip(maps, seen, strict=True))
    pyramid = Pyramid(model, stages=(1,))
    norm = pyramid.norms["1"]
    nn.init.normal_(norm.weight)
    (only,) = pyramid(torch.randn(2, 3, 37, 50))
    assert only.shape == (2, 24, 5, 6)


def test_another_size_needs_no_other_weights() -> None:
    """A network for large images runs on small ones, whose maps are smaller than a window, and on odd ones."""
    model = Swin(**{**SIZES, "window": 5}).eval()
    for size in ((8, 9), (53, 31)):
        assert model(torch.randn(2, 3, *size)).shape == (2, 5)


def test_absolute_positions_are_for_one_size() -> None:
    model = Swin(**SIZES, positions=True)
    x = torch.randn(2, 3, 44, 60)
    wanted = model.patch_norm(model.patches(x)) + model.positions
    assert torch.equal(model.embed(x).flatten(1, 2), wanted)
    with pytest.raises(UsageError, match="image_size="):
        model(torch.randn(1, 3, 44, 56))


def test_what_an_evaluation_keeps_serves_training() -> None:
    """The layouts of windows are kept; under inference_mode they would be tensors that no gradient may pass."""
    KEPT.clear()
    model = Swin(**SIZES)
    x = torch.randn(2, 3, 44, 60)
    with torch.inference_mode():
        model(x)
    model(x).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_start_and_options() -> None:
    torch.manual_seed(0)
    model = Swin(**{**SIZES, "num_classes": 0}, drop=0.4, biases=False, ratio=2, relative=False)
    assert [block.drop for stage in model.stages for block in stage.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert not [name for name, _ in model.named_parameters() if "table" in name or name.endswith("qkv.bias")]
    assert model.stages[0].blocks[0].mlp.expand.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert model(torch.randn(2, 3, 44, 60)).shape == (2, 24)
    for wrong, word in (({"shift": "left"}, "shift"), ({"heads": (3,)}, "stages"), ({"image_size": 3}, "patch of 4")):
        with pytest.raises(UsageError, match=word):
            Swin(**{**SIZES, **wrong})
    with pytest.raises(UsageError, match="heads"):
        Swin(**{**SIZES, "heads": (5, 5)})
    with pytest.raises(UsageError, match="height"):
        Swin(**SIZES)(torch.randn(1, 3, 3, 60))


def test_tables_and_positions_do_not_decay() -> None:
    stage = jingdu.paper("swin").load().recipes["laptop"].stages[0]
    model = nn.ModuleDict({"network": Swin(**SIZES, positions=True)})
    optimizer = make_optimizer(stage, model, Objective("loss"))
    names = {p: name for name, p in model.named_parameters()}
    free = {names[p] for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    assert {"network.positions", "network.stages.1.blocks.2.attention.table", "network.norm.weight"} <= free
    assert "network.head.weight" not in free and "network.patches.projection.weight" not in free


def test_equations_1_and_2() -> None:
    assert attention_cost(56 * 56, 96) == 4 * 3136 * 96**2 + 2 * 3136**2 * 96
    assert attention_cost(56 * 56, 96, 7) == 4 * 3136 * 96**2 + 2 * 49 * 3136 * 96


def test_pictures_whose_label_no_window_sees() -> None:
    data = matching("train", window=4, others=5, pixels=7, count=64)
    indices = np.arange(64)
    batch = data.batch(indices, Draws(0, 0, indices))
    image, label = batch["image"], batch["label"]
    assert image.shape == (64, 3, 56, 56) and 0.3 < label.float().mean() < 0.7
    cells = data.cells(Draws(1, 0, indices))
    assert (cells[:, 0, 1] == 3).all() and torch.equal(cells[:, 1], cells[:, 0] + torch.tensor([0, 1]))
    numbers = cells[..., 0] * 8 + cells[..., 1]
    assert all(len(set(row)) == 7 for row in numbers.tolist())
    edge = 7 * cells + torch.tensor([3, 1])  # on the ring, and on a disc
    colours = image[torch.arange(64)[:, None], :, edge[..., 0], edge[..., 1]]
    alike = (colours[:, 0] - colours[:, 1]).abs().amax(1) < 0.25  # but for the tint, and the soft rim
    assert torch.equal(alike.long(), label)
    again = data.batch(indices[5:7], Draws(3, 2, indices[5:7]))
    assert torch.equal(again["image"], image[5:7])
    with pytest.raises(UsageError, match="no such pictures"):
        matching("train", colours=("red",))


def test_it_trains_and_predicts(tmp_path: Path) -> None:
    from PIL import Image

    run = jingdu.train(
        "swin", tmp_path / "run", quiet=True, steps=2, batch_size=6, data="swin.matching(count=14, test_count=7)"
    )
    assert 0 <= run.metrics["error"] <= 1
    model = jingdu.create("swin_mini", weights=tmp_path / "run")
    Image.fromarray(np.full((40, 48, 3), 99, np.uint8)).save(tmp_path / "a.png")
    (found,) = jingdu.paper("swin").load().predict(model, [str(tmp_path / "a.png")], top=2)
    assert len(found.data["top"]) == 2 and found.data["top"][0]["class"] in model.origin.classes
