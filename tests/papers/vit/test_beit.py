"""BEiT's own parts."""

import math
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import jingdu
from jingdu.data.draws import Draws
from jingdu.data.preprocess import Preprocess
from jingdu.engine import Recipe, train
from jingdu.engine.contracts import Fitted
from jingdu.errors import UsageError
from jingdu.papers.vit.beit import (
    BEiT,
    Clustering,
    Codebook,
    PreTraining,
    Pyramid,
    RelativeBias,
    VisualTokenizer,
    block_mask,
    few,
    hide,
    index_with_class,
    map_pixels,
    plus_plus,
    recipes,
    resize_table,
    second_view,
    take_trained,
    two_views,
    unmap_pixels,
    views,
)
from jingdu.verbs import change

SIZES = {"image_size": (24, 40), "patch": 8, "width": 12, "depth": 3, "heads": 3, "num_classes": 5}
GRID = (3, 5)


def test_every_pair_of_places_has_its_row() -> None:
    index = index_with_class(GRID, torch.device("cpu"))
    rows = 5 * 9
    assert index.shape == (16, 16)
    assert set(index[0, 1:].tolist()) == {rows} and set(index[1:, 0].tolist()) == {rows + 1} and index[0, 0] == rows + 2
    places = [(r, c) for r in range(3) for c in range(5)]
    for i, (r, c) in enumerate(places):
        for j, (other_r, other_c) in enumerate(places):
            assert index[1 + i, 1 + j] == (r - other_r + 2) * 9 + (c - other_c + 4)
    assert set(index.flatten().tolist()) == set(range(rows + 3))
    with torch.device("meta"):
        assert BEiT(patch=16, num_classes=0).blocks[0].attention.bias.table.shape == (732, 12)


def test_a_bias_is_added_for_its_distance_alone() -> None:
    """One number for one distance: the query looks more at the patch that is there, and at no other."""
    bias = RelativeBias(2, GRID)
    with torch.no_grad():
        bias.table[(0 + 2) * 9 + (-1 + 4), 1] = 7.0  # the key stands one to the right
    found = bias()
    assert found.shape == (1, 2, 16, 16) and not found[0, 0].any()
    wanted = torch.zeros(16, 16)
    for row in range(3):
        for column in range(4):
            wanted[1 + row * 5 + column, 1 + row * 5 + column + 1] = 7.0
    assert torch.equal(found[0, 1], wanted)


def test_a_grown_table_keeps_the_rows_of_the_class_token() -> None:
    table = torch.randn(7 * 7 + 3, 2)
    grown = resize_table(table, (6, 4))
    assert grown.shape == (11 * 7 + 3, 2) and torch.equal(grown[-3:], table[-3:])
    assert torch.equal(resize_table(table, (4, 4)), table)
    assert torch.allclose(grown[5 * 7 + 3], table[3 * 7 + 3])  # no distance
    with pytest.raises(UsageError, match="say which"):
        resize_table(torch.randn(44, 2), (4, 4))


def test_one_table_for_all_blocks_or_one_for_each() -> None:
    own, shared = BEiT(**SIZES).eval(), BEiT(**SIZES, words=7).eval()
    assert len([name for name in own.state_dict() if name.endswith("bias.table")]) == 3
    assert [name for name in shared.state_dict() if name.endswith("bias.table")] == ["bias.table"]
    x = torch.randn(2, 3, 24, 40)
    nn.init.normal_(shared.bias.table)
    take_trained(own, shared)
    assert all(torch.equal(block.attention.bias.table, shared.bias.table) for block in own.blocks)
    assert torch.allclose(own.features(x)[-1], shared.features(x)[-1], atol=1e-6)
    nn.init.zeros_(shared.bias.table)
    assert not torch.allclose(own.features(x)[-1], shared.features(x)[-1], atol=1e-6)


def test_a_larger_network_takes_the_shared_table_resized() -> None:
    shared = BEiT(**{**SIZES, "image_size": 24}, words=7)
    nn.init.normal_(shared.bias.table)
    large = BEiT(**{**SIZES, "image_size": 40})
    take_trained(large, shared)
    assert torch.equal(large.blocks[2].attention.bias.table, resize_table(shared.bias.table, (5, 5)))
    assert large.norm.weight.sum() == 12 and not torch.equal(large.head.weight[:, 0], shared.head.weight[:5, 0])


def test_hidden_patches_are_not_seen() -> None:
    model = BEiT(**SIZES, words=7).eval()
    nn.init.normal_(model.bias.table)
    x, mask = torch.randn(2, 3, 24, 40), torch.zeros(2, *GRID, dtype=torch.bool)
    mask[0, 1, 2] = mask[1, 0, :3] = True
    changed = x.clone()
    changed[0, :, 8:16, 16:24] = changed[1, :, :8, :24] = 9.0
    assert torch.equal(model(x, mask), model(changed, mask)) and model(x, mask).shape == (4, 7)
    assert torch.allclose(model(x, mask), model.word_logits(x, mask)[mask], atol=1e-6)
    assert not torch.allclose(model.word_logits(x), model.word_logits(changed), atol=1e-3)
    assert model(x).shape == (30, 7) and torch.allclose(model(x), model.word_logits(x).flatten(0, 2), atol=1e-6)
    tokens = model.embed(x, mask)
    assert torch.equal(tokens[0, 1 + 7], model.mask_token[0, 0]) and tokens.shape == (2, 16, 12)


def test_what_a_mask_needs() -> None:
    x = torch.randn(2, 3, 24, 40)
    with pytest.raises(UsageError, match="words="):
        BEiT(**SIZES)(x, torch.ones(2, *GRID, dtype=torch.bool))
    with pytest.raises(UsageError, match="wanted \\[2, 3, 5\\]"):
        BEiT(**SIZES, words=7)(x, torch.ones(2, 5, 3, dtype=torch.bool))
    with pytest.raises(UsageError, match="pool"):
        BEiT(**SIZES, pool="max")


@pytest.mark.parametrize("pool", ["mean", "token"])
def test_what_the_head_reads(pool: str) -> None:
    model = BEiT(**SIZES, pool=pool).eval()
    nn.init.normal_(model.norm.weight)
    x = torch.randn(2, 3, 24, 40)
    tokens = model.features(x)[-1]
    read = model.norm(tokens[:, 1:].mean(1)) if pool == "mean" else model.norm(tokens[:, 0])
    assert torch.allclose(model(x), model.head(read), atol=1e-6)
    seen: list[torch.Tensor] = []
    model.blocks[1].register_forward_hook(lambda m, i, o: seen.append(o))
    assert model.features(x)[1] is seen[0]


def test_where_weights_start() -> None:
    torch.manual_seed(0)
    model = BEiT(**{**SIZES, "width": 96, "image_size": 24}, scale=1e-5).requires_grad_(False)
    assert model.blocks[0].attention.qkv.weight.abs().max() <= 0.02
    assert model.blocks[2].scale1.unique().tolist() == pytest.approx([1e-5])
    for number, block in enumerate(model.blocks, 1):
        for layer in (block.attention.project, block.mlp.contract):
            assert layer.weight.abs().max() == pytest.approx(0.02 / math.sqrt(2 * number), rel=0.01)
        assert not block.attention.bias.table.any() and block.attention.qkv.bias is None
    assert model.head.weight.abs().max() == pytest.approx(2e-5, rel=0.02)
    assert BEiT(**SIZES, scale=None).blocks[0].scale1 is None


def test_masks_are_rectangles_of_the_papers_size() -> None:
    def together(mask: torch.Tensor) -> float:
        """Of hidden patches, how many have a hidden one on their right."""
        return float((mask[:, :, :-1] & mask[:, :, 1:]).sum() / mask[:, :, :-1].sum())

    random = Random(0)
    masks = torch.stack([block_mask((14, 14), 75, 16, random) for _ in range(200)])
    counts = masks.sum((1, 2))
    assert counts.max() == 75 and counts.float().mean() > 72 and together(masks) > 0.75
    scattered = torch.stack([hide((14, 14), random, how="scattered") for _ in range(200)])
    assert set(scattered.sum((1, 2)).tolist()) == {75} and together(scattered) == pytest.approx(75 / 196, abs=0.02)
    # One rectangle: neither longer nor thinner than allowed, and never across the whole image.
    single = [block_mask((14, 14), 16, 16, Random(seed)) for seed in range(60)]
    sides = [(int(mask.any(1).sum()), int(mask.any(0).sum()), int(mask.sum())) for mask in single]
    whole = [(height, width) for height, width, count in sides if height * width == count]
    assert len(whole) > 15 and all(
        1 / 4.5 < height / width < 4.5 and max(height, width) < 14 for height, width in whole
    )
    assert int(hide((8, 8), Random(1), hidden=9).sum()) <= 9
    assert torch.equal(hide((8, 8), Random(3)), hide((8, 8), Random(3)))
    with pytest.raises(UsageError, match="scatered"):
        hide((8, 8), Random(0), how="scatered")
    with pytest.raises(UsageError, match="65 patches"):
        hide((8, 8), Random(0), hidden=65)


def test_each_patch_is_hidden_about_as_often() -> None:
    random = Random(0)
    share = sum(block_mask((8, 10), 31, 6, random).float() for _ in range(600)) / 600
    assert share.min() > 0.05 and share.max() < 0.7 and abs(float(share.mean()) - 31 / 80) < 0.03


def test_pixels_go_there_and_back() -> None:
    x = torch.rand(2, 3, 5, 7)
    assert torch.allclose(map_pixels(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([0.1, 0.5, 0.9]))
    assert torch.allclose(unmap_pixels(map_pixels(x)), x, atol=1e-6)
    assert unmap_pixels(torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]


def test_two_views_are_of_one_crop() -> None:
    """A picture whose colours say where they are: both views show the same part of it."""
    down, across = np.mgrid[0:90, 0:120]
    image = Image.fromarray(np.stack((down, across, 0 * down), 2).astype(np.uint8))
    for seed in range(5):
        packed = two_views(image, Draws(seed, 0, [0]), Preprocess(size=46, interpolation="bicubic"), 23)
        assert packed.shape == (3, 46 * 46 + 23 * 23, 1)
        first = packed[:, : 46 * 46, 0].view(3, 46, 46)
        second = packed[:, 46 * 46 :, 0].view(3, 23, 23)
        assert (torch.nn.functional.avg_pool2d(first, 2) - second).abs().max() < 0.02
    assert torch.equal(second_view(torch.ones(2, 1, 6, 6), 3), torch.ones(2, 1, 3, 3))


def test_views_of_embedded_images() -> None:
    """The tokenizer's view is of the same image, mirrored with it; the sample does not depend on its batch."""
    data = views("train", of='scenes(size=16, count=40, fields=("image",))', size=16, patch=4)
    rows = np.arange(12)
    batch = data.batch(rows, Draws(5, 0, rows))
    assert batch["image"].shape == (12, 3, 16, 16) and batch["view"].shape == (12, 3, 8, 8)
    assert batch["mask"].shape == (12, 4, 4) and batch["mask"].sum((1, 2)).max() <= 6
    wanted = map_pixels(second_view(batch["image"], 8))
    assert torch.allclose(batch["view"], wanted, atol=1e-6)
    plain = views("train", of='scenes(size=16, count=40, fields=("image",))', size=16, patch=4, mirror=False)
    straight = plain.batch(rows, Draws(5, 0, rows))["image"]
    turned = (batch["image"] != straight).flatten(1).any(1)
    assert 0 < turned.sum() < 12 and torch.equal(batch["image"][turned], straight[turned].flip(3))
    again = data.batch(rows[7:9], Draws(5, 0, rows[7:9]))
    assert all(torch.equal(again[name], batch[name][7:9]) for name in batch)
    coloured = views("train", of='scenes(size=16, count=40, fields=("image",))', size=16, patch=4, jitter=0.4)
    found = coloured.batch(rows, Draws(5, 0, rows))
    assert not torch.equal(found["image"], batch["image"])
    assert (map_pixels(second_view(found["image"], 8)) - found["view"]).abs().mean() < 0.01
    bare = views("train", of='scenes(size=16, count=40, fields=("image",))', size=16, patch=4, masking=None)
    assert set(bare.batch(rows, Draws(5, 0, rows))) == {"image", "view"}
    with pytest.raises(UsageError, match="do not divide"):
        views("train", of="scenes(size=16)", size=16, patch=5)


def test_few_labels_are_the_first() -> None:
    data, held_out = few("train", of="digits", count=30, channels=1), few("test", of="digits", count=30)
    assert len(data) == 30 and len(held_out) == 450 and data.classes == held_out.classes
    rows = np.arange(30)
    batch = data.batch(rows, Draws(0, 0, rows))
    assert batch["label"].bincount().min() > 0 and batch["image"].shape == (30, 1, 8, 8)
    with pytest.raises(UsageError, match="5000 samples"):
        few("train", of="digits", count=5000)


def test_views_of_photos(tmp_path: Path) -> None:
    for i in range(12):
        noise = np.random.default_rng(i).integers(0, 256, (50 + i, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
    data = views("train", of=f"{tmp_path}/", size=32, second=14, patch=16)
    rows = np.arange(4)
    batch = data.batch(rows, Draws(0, 0, rows))
    assert batch["image"].shape == (4, 3, 32, 32) and batch["view"].shape == (4, 3, 14, 14)
    held_out = views("test", of=f"{tmp_path}/", size=32, second=14, patch=16)
    a, b = (held_out.batch(rows[:1], Draws(seed, 0, rows[:1])) for seed in (0, 1))
    assert torch.equal(a["image"], b["image"]) and torch.equal(a["view"], b["view"])


def test_a_codebook_names_the_nearest_patch() -> None:
    book = Codebook(words=5, stride=2, channels=1)
    assert isinstance(book, VisualTokenizer)
    book.patches.copy_(torch.linspace(0, 1, 5)[:, None].expand(-1, 4))
    ids = torch.randint(5, (2, 3, 4))
    picture = book.decode(ids)
    assert picture.shape == (2, 1, 6, 8)
    assert torch.equal(book(picture + 0.1 * (torch.rand_like(picture) - 0.5)), ids)
    with pytest.raises(UsageError, match="sides that 2 divides"):
        book(torch.rand(1, 1, 5, 4))


def test_k_means_finds_the_clusters() -> None:
    torch.manual_seed(0)
    centres = torch.randn(6, 4)
    points = centres.repeat_interleave(50, 0) + 0.01 * torch.randn(300, 4)
    assert len({int((centres - row).square().sum(1).argmin()) for row in plus_plus(points, 6)}) == 6
    clustering = Clustering(Codebook(words=6, stride=2, channels=1), passes=3)
    assert isinstance(clustering, Fitted)
    view = points.view(10, 30, 1, 2, 2).permute(0, 2, 3, 1, 4).reshape(10, 1, 2, 60)
    clustering.sample = 64 * 200
    for number in range(3):
        for part in view.split(4):
            clustering.observe({"view": part}, number)
        clustering.end_pass(number)
    book = clustering.tokenizer.patches
    assert torch.cdist(centres, book).min(1).values.max() < 0.02
    clustering.update({"view": view})
    measures = clustering.compute()
    assert measures["error"] == pytest.approx(1e-4, rel=0.3) and measures["perplexity"] == pytest.approx(6, rel=0.01)
    with pytest.raises(UsageError, match="passes is 1"):
        Clustering(Codebook(words=6, stride=2), passes=1)


def test_k_means_goes_on_where_it_was() -> None:
    """In the middle of either kind of pass, through the state as it is stored."""
    views_ = torch.rand(6, 3, 8, 12, generator=torch.Generator().manual_seed(0))

    def run(cut: int | None) -> torch.Tensor:
        torch.manual_seed(1)
        clustering = Clustering(Codebook(words=5, stride=4), passes=3, sample=500)
        for step in range(9):
            number, place = divmod(step, 3)
            if step == cut:
                state = clustering.state_dict()
                clustering = Clustering(Codebook(words=5, stride=4), passes=3, sample=500)
                clustering.load_state_dict(state)
            clustering.observe({"view": views_[2 * place : 2 * place + 2]}, number)
            if place == 2:
                clustering.end_pass(number)
        return clustering.tokenizer.patches

    assert torch.equal(run(2), run(None)) and torch.equal(run(4), run(None))


def test_a_word_without_patches_starts_anew() -> None:
    clustering = Clustering(Codebook(words=3, stride=1, channels=1), passes=2)
    clustering.tokenizer.patches.copy_(torch.tensor([[0.2], [0.3], [9.0]]))
    clustering.observe({"view": torch.tensor([0.1, 0.2, 0.24, 0.8]).view(1, 1, 2, 2)}, 1)
    clustering.end_pass(1)
    assert clustering.tokenizer.patches[0, 0] == pytest.approx(0.54 / 3)
    assert clustering.tokenizer.patches[2, 0] == pytest.approx(0.8)


def test_the_loss_is_of_hidden_patches_alone() -> None:
    network = BEiT(**{**SIZES, "image_size": 24}, words=6)
    book = Codebook(words=6, stride=4)
    nn.init.uniform_(book.patches)
    system = PreTraining(network, book).eval()
    mask = torch.zeros(2, 3, 3, dtype=torch.bool)
    mask[0, 0, :2] = mask[1, 2, 1] = True
    batch = {"image": torch.randn(2, 3, 24, 24), "view": torch.rand(2, 3, 12, 12), "mask": mask}
    loss, values = system(batch, "loss")
    logits, ids = network.word_logits(batch["image"], mask), book(batch["view"])
    picked = [-logits[b, r, c].log_softmax(0)[ids[b, r, c]] for b, r, c in mask.nonzero().tolist()]
    assert (
        loss.item() == pytest.approx(torch.stack(picked).sum().item() / 3, rel=1e-5) and 0 <= values["word_error"] <= 1
    )
    system.update(batch)
    measures = system.compute()
    assert measures["word_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert measures["chance_error"] == pytest.approx(1 - float(ids[mask].bincount().max()) / 3)
    assert not any(p.requires_grad for p in book.parameters())
    with pytest.raises(UsageError, match="6 words, the tokenizer has 5"):
        PreTraining(network, Codebook(words=5))
    with pytest.raises(UsageError, match="second view"):
        system({**batch, "view": torch.rand(2, 3, 8, 12)}, "loss")


def test_the_pyramid_has_four_sizes() -> None:
    network = BEiT(**{**SIZES, "depth": 4})
    maps = Pyramid(12)(network, torch.randn(2, 3, 24, 40))
    assert [tuple(m.shape[2:]) for m in maps] == [(12, 20), (6, 10), (3, 5), (1, 2)]
    with pytest.raises(UsageError, match="3 blocks"):
        Pyramid(12)(network, torch.randn(1, 3, 24, 40), blocks=(0, 1, 2))


# The recipe, and what comes of it ------------------------------------------------------------------------

SMALL = 'scenes(size=16, count=60, test_count=20, fields=("image",))'
LABELLED = "scenes(size=16, count=40, test_count=20)"
NETWORK = "image_size=16, width=12, depth=2, heads=2, in_channels=3"


def small_recipe() -> Recipe:
    words, reading, naming = recipes["laptop"].stages
    data = f"beit.views(of='{SMALL}', size=16, patch=4)"
    return Recipe(
        (
            change(words, system="beit.Clustering(passes=2)", networks={"tokenizer": "beit_codebook_mini(words=11, channels=3)"},
                   data=data, batch_size=30),
            change(reading, networks={"network": f"beit_mini_mim({NETWORK}, words=11)",
                                      "tokenizer": "beit_codebook_mini(words=11, channels=3)"},
                   data=data, batch_size=20, steps=3, preprocess=Preprocess(16, 16, (0.4,) * 3, (0.2,) * 3)),
            change(naming, networks={"network": f"beit_mini({NETWORK})"}, data=LABELLED, batch_size=20, steps=2,
                   preprocess=Preprocess(16, 16, (0.4,) * 3, (0.2,) * 3)),
        ),
        minutes=0,
        expect={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("beit") / "run"
    assert train(small_recipe(), out, quiet=True).metrics["error"] <= 1
    return out


def test_stages_hand_on_what_they_made(run: Path) -> None:
    words = jingdu.create("beit_codebook_mini", weights=run / "tokenizer")
    read = jingdu.create("beit_mini_mim", weights=run / "pre-training")
    beside = jingdu.create("beit_codebook_mini", weights=run / "pre-training")
    assert torch.equal(words.patches, beside.patches) and len(words.patches.unique(dim=0)) > 5
    named = jingdu.create("beit_mini", weights=run)
    before, after = read.blocks[0].mlp.expand.weight, named.blocks[0].mlp.expand.weight
    # Two steps, and the lowest block's at 0.75^2 of the rate.
    assert 0 < (before - after).abs().max() < 2 * 2e-3 and read.words == 11


def pictures(folder: Path, count: int = 2) -> list[str]:
    for i in range(count):
        array = np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(array).save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(count)]


def test_predict_names_classes(run: Path, tmp_path: Path) -> None:
    found = list(jingdu.predict("beit_mini", pictures(tmp_path), weights=run, top=3))
    assert [len(one.data["top"]) for one in found] == [3, 3]


def test_predict_fills_gaps(run: Path, tmp_path: Path) -> None:
    files = pictures(tmp_path)

    def ask(out: str, **options: Any) -> list[Any]:
        where = {"weights": run / "pre-training", "out": tmp_path / out}
        return list(jingdu.predict("beit_mini_mim", files, **{**where, **options}))

    found = ask("a.png")
    with Image.open(tmp_path / "a.png") as picture:
        size = picture.size
    assert size == (4 * 196 + 4, 2 * 196 + 4) and found[0].files == (tmp_path / "a.png",)
    data = found[1].data
    mask = np.array(data["mask"])
    assert mask.shape == (4, 4) and mask.sum() == len(data["words"]) == len(data["true_words"])
    assert data["right"] == sum(a == b for a, b in zip(data["words"], data["true_words"], strict=True))
    assert "are the tokenizer's own" in found[0].text
    assert [one.data for one in ask("b.png")] == [one.data for one in found]
    assert ask("c.png", hidden=3, masking="scattered", seed=4)[0].data["mask"] != found[0].data["mask"]
    # The words of a network whose tokenizer is not at hand have numbers, and no picture.
    alone = jingdu.create("beit_mini_mim", weights=run / "pre-training")
    jingdu.export(alone, "jingdu", tmp_path / "alone.safetensors")
    (one, _) = ask("d.png", weights=tmp_path / "alone.safetensors")
    assert "words " in one.text and "right" not in one.data
    with Image.open(tmp_path / "d.png") as picture:
        assert picture.size[0] == 2 * 196 + 4
    (one, _) = ask("e.png", weights=tmp_path / "alone.safetensors", tokenizer=run / "tokenizer")
    assert one.data["right"] == found[0].data["right"]
    with pytest.raises(UsageError, match="no run with a codebook"):
        ask("f.png", tokenizer=tmp_path)
    with pytest.raises(UsageError, match="choose another --out"):
        ask("f.nothing")


def test_predict_draws_in_words(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "words.png"
    files = pictures(tmp_path, 1)
    (found,) = jingdu.predict("beit_codebook_mini", files, weights=run / "tokenizer", out=out)
    assert "of 11 words" in found.text and np.array(found.data["words"]).ndim == 2 and out.exists()
    with pytest.raises(UsageError, match="no inputs"):
        list(jingdu.predict("beit_codebook_mini", [], weights=run / "tokenizer"))
