"""MLP-Mixer's own parts."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

import jingdu
from jingdu.data.draws import Draws
from jingdu.errors import BadInput, UsageError
from jingdu.papers.cnn.nas import count_cost
from jingdu.papers.vit.mlp_mixer import (
    DIGITS,
    Across,
    MixerBlock,
    MLPMixer,
    enlarge,
    permute,
    permuted,
    predict,
    read_weights,
    shuffled,
    tiles,
)

SIZES = {
    "image_size": (24, 40), "patch": 8, "width": 14, "depth": 3, "num_classes": 5, "tokens": 11, "channels": 17,
}  # fmt: skip


def filled(network: torch.nn.Module) -> torch.nn.Module:
    """All weights are random numbers, the head's too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return network.eval()


def test_a_layer_across_tokens_is_a_linear_layer_of_columns() -> None:
    layer, x = Across(7, 11), torch.randn(3, 7, 5)
    for some in (x, x[:1]):
        assert torch.allclose(layer(some), F.linear(some.mT, layer.weight, layer.bias).mT, atol=1e-6)


def test_a_block_is_equation_1() -> None:
    block = filled(MixerBlock(7, 12, 5, 17, activation="gelu_tanh"))
    x = torch.randn(2, 7, 12)

    def mlp(layers: torch.nn.Module, y: torch.Tensor) -> torch.Tensor:
        inner = F.gelu(F.linear(y, layers.expand.weight, layers.expand.bias), approximate="tanh")
        return F.linear(inner, layers.contract.weight, layers.contract.bias)

    def norm(layer: torch.nn.Module, y: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(y, (12,), layer.weight, layer.bias, 1e-6)

    u = x + mlp(block.tokens, norm(block.norm1, x).mT).mT
    assert torch.allclose(block(x), u + mlp(block.channels, norm(block.norm2, u)), atol=1e-4)


def test_the_head_reads_the_mean_and_starts_at_zero() -> None:
    x = torch.randn(2, 3, 24, 40)
    assert not MLPMixer(**SIZES)(x).any()
    model = filled(MLPMixer(**{**SIZES, "num_classes": 0}))
    seen: list[torch.Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda m, i, o: seen.append(o))
    taps = model.features(x)
    assert len(taps) == 3 and all(a is b for a, b in zip(taps, seen, strict=True))
    assert torch.allclose(model(x), model.norm(taps[-1]).mean(1))


def test_what_one_picture_costs() -> None:
    """Linear in the patches: multiply-adds of the formula."""
    patches = 15
    block = 2 * patches * 11 * 14 + 2 * patches * 14 * 17
    cost = count_cost(MLPMixer(**SIZES), (3, 24, 40))
    assert cost.flops == patches * 14 * 3 * 64 + 3 * block + 14 * 5


def test_paths_are_dropped_in_training_alone() -> None:
    torch.manual_seed(0)
    block = filled(MixerBlock(5, 12, 7, 11, drop=0.5)).train()
    x = torch.randn(64, 5, 12)
    kept = (block(x) == x).flatten(1).all(1).float().mean().item()
    assert 0.1 < kept < 0.45  # a quarter skips both branches
    assert not (block.eval()(x) == x).flatten(1).all(1).any()
    assert [block.drop for block in MLPMixer(**SIZES, drop=0.2).blocks] == pytest.approx([0.0, 0.1, 0.2])


def test_sizes_that_do_not_fit_are_told() -> None:
    model = MLPMixer(**SIZES)
    with pytest.raises(UsageError, match="do not divide into patches of 8"):
        MLPMixer(**{**SIZES, "image_size": 30})
    with pytest.raises(UsageError, match="belong to the patches of 24 x 40: resize"):
        model(torch.randn(1, 3, 24, 48))
    with pytest.raises(UsageError, match=r"image_size=\[48, 80\] and tokens=44"):
        model(torch.randn(1, 3, 48, 80))
    with pytest.raises(UsageError, match="activation"):
        MLPMixer(**SIZES, activation="relu")
    with pytest.raises(UsageError, match="cannot be copied"):
        enlarge(torch.randn(11, 15), (5, 9), "expand.weight", 44)
    with pytest.raises(UsageError, match="tiles"):
        tiles((3, 4), 2)


def test_tiles_are_read_row_by_row() -> None:
    assert tiles((2, 4), 2).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert tiles((4, 4), 2)[1].tolist() == [2, 3, 6, 7]


def test_an_enlarged_network_is_the_old_one_on_each_tile(tmp_path: Path) -> None:
    """The head is linear: its answer is the mean of the tiles' answers."""
    sizes = {key: value for key, value in SIZES.items() if key not in ("image_size", "tokens")}
    small = filled(jingdu.create("mlp_mixer_b16", **sizes, image_size=(16, 24), tokens=11))
    save_file(small.state_dict(), tmp_path / "small.safetensors")
    large = jingdu.create(
        "mlp_mixer_b16", weights=tmp_path / "small.safetensors", **sizes, image_size=(48, 72), tokens=9 * 11
    )
    x = torch.randn(2, 3, 48, 72)
    parts = [small(x[:, :, i : i + 16, j : j + 24]) for i in range(0, 48, 16) for j in range(0, 72, 24)]
    with torch.inference_mode():
        assert torch.allclose(large(x), torch.stack(parts).mean(0), atol=1e-4)


def test_orders_of_patches_and_pixels() -> None:
    x = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    assert torch.equal(permute(x, 2), x)
    swapped = permute(x, 2, patches=torch.tensor([1, 0, 2, 3, 4, 5]))
    assert torch.equal(swapped[..., :2, :2], x[..., :2, 2:4]) and torch.equal(swapped[..., 2:, :], x[..., 2:, :])
    turned = permute(x, 2, pixels=torch.tensor([3, 2, 1, 0]))
    assert torch.equal(turned[..., :2, :2], x[..., :2, :2].flip(2, 3))


def test_a_permuted_network_sees_permuted_images_as_the_other() -> None:
    """Section 3.3: of each network there is one for which another order of patches and pixels makes no difference."""
    model = filled(MLPMixer(**SIZES))
    patches, pixels, x = torch.randperm(15), torch.randperm(64), torch.randn(2, 3, 24, 40)
    changed = permute(x, 8, patches, pixels)
    wanted = model(x)
    assert not torch.allclose(model(changed), wanted, atol=1e-3)
    assert torch.allclose(permuted(model, patches, pixels)(changed), wanted, atol=1e-4)
    assert torch.equal(permuted(model)(x), wanted)


@pytest.mark.parametrize("how", ["original", "patches", "pixels"])
def test_shuffled_digits(how: str) -> None:
    plain, data = shuffled("test", how="original"), shuffled("test", how=how, seed=7)
    rows = np.arange(13)
    found = data.batch(rows, Draws(0, 0, rows))
    source = jingdu.data.open_data("digits", "test", DIGITS).batch(data.rows[rows], Draws(0, 0, rows))
    assert len(data) == len(plain) == 450 and torch.equal(found["label"], source["label"])
    assert torch.equal(found["image"].flatten(1).sort().values, source["image"].flatten(1).sort().values)
    assert torch.equal(found["image"], source["image"]) == (how == "original")
    blocks = [F.unfold(x["image"], 2, stride=2).sort(1).values.sum(1).sort().values for x in (found, source)]
    assert torch.allclose(*blocks) == (how != "pixels")


def test_a_part_of_the_training_images() -> None:
    few, more = (shuffled("train", count=count, seed=3) for count in (17, 40))
    assert len(few) == 17 and set(few.rows) < set(more.rows)
    with pytest.raises(UsageError, match="1347"):
        shuffled("train", count=1348)
    with pytest.raises(UsageError, match="order"):
        shuffled("train", how="columns")


def test_the_recipe_runs(tmp_path: Path) -> None:
    jingdu.train("mlp_mixer", out=tmp_path / "run", epochs=0.1)
    picture = tmp_path / "digit.png"
    Image.fromarray(np.full((8, 8), 200, dtype=np.uint8)).save(picture)
    model = jingdu.create("mlp_mixer", weights=tmp_path / "run")
    (found,) = predict(model, [str(picture)], top=3)
    assert len(found.data["top"]) == 3 and model.origin.preprocess == DIGITS


def test_damaged_files_of_the_authors_are_refused(tmp_path: Path) -> None:
    assert read_weights(tmp_path / "a.safetensors") is None
    np.savez(tmp_path / "other.npz", **{"stem/kernel": np.zeros((2, 2, 3, 5))})
    with pytest.raises(BadInput, match=r"other\.npz"):
        read_weights(tmp_path / "other.npz")
