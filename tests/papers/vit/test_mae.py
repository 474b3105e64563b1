"""MAE's own parts."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import jingdu
import jingdu.papers.vit.mae
from jingdu.cli import main
from jingdu.data.draws import Draws
from jingdu.engine.contracts import Objective, Stage
from jingdu.engine.optimise import LARS, make_optimizer
from jingdu.errors import UsageError
from jingdu.papers.vit.mae import (
    MAE,
    PartialFineTuning,
    PreTraining,
    few_labels,
    fine_tuned,
    freeze_lower,
    linear_probe,
    patchify,
    pixel_loss,
    pixel_target,
    random_masking,
    sincos_positions,
    unpatchify,
    view,
    visible,
)
from jingdu.papers.vit.vit import ViT, resize_positions

SIZES = {"image_size": (24, 40), "patch": 8, "width": 12, "depth": 3, "heads": 3, "decoder": (8, 2, 2)}
CLASSIFIER = {"image_size": 16, "patch": 8, "width": 12, "depth": 4, "heads": 3, "num_classes": 5}


# Positions, masks, targets ---------------------------------------------------------------------------------


def test_positions_by_their_formula() -> None:
    table = sincos_positions(20, (3, 7))
    assert table.shape == (1, 1 + 21, 20) and not table[0, 0].any()
    row, column, quarter = 2, 5, 5
    waves = [10000 ** (-i / quarter) for i in range(quarter)]
    wanted = [f(place * w) for place in (column, row) for f in (math.sin, math.cos) for w in waves]
    assert torch.allclose(table[0, 1 + row * 7 + column], torch.tensor(wanted), atol=1e-6)
    with pytest.raises(UsageError, match="four"):
        sincos_positions(18, (3, 7))


def test_masks_hide_the_share_and_are_undone() -> None:
    noise = torch.rand(5, 13, generator=torch.Generator().manual_seed(0))
    found = random_masking(noise, 0.7)
    kept = int(13 * (1 - 0.7))  # rounded down
    assert found.keep.shape == (5, kept) and (found.mask.sum(1) == 13 - kept).all()
    x = torch.randn(5, 13, 2)
    seen = x.gather(1, found.keep[..., None].expand(-1, -1, 2))
    shuffled, where = torch.cat((seen, torch.full((5, 13 - kept, 2), 9.0)), 1), found.restore[..., None]
    back = shuffled.gather(1, where.expand(-1, -1, 2))
    assert torch.equal(back, torch.where(found.mask[..., None].bool(), 9.0, x))
    # The patches with the least noise are seen.
    assert (noise.masked_fill(found.mask.bool(), -1).amax(1) < noise.masked_fill(~found.mask.bool(), 2).amin(1)).all()


def test_every_patch_is_hidden_as_often() -> None:
    mask = random_masking(torch.rand(4000, 9, generator=torch.Generator().manual_seed(1)), 2 / 3).mask
    assert torch.allclose(mask.mean(0), torch.full((9,), 2 / 3), atol=0.03)


@pytest.mark.parametrize("share", [-0.1, 1.0, 0.95])
def test_shares_that_cannot_be_hidden(share: float) -> None:
    with pytest.raises(UsageError, match="cannot be hidden"):
        visible(9, share)
    assert visible(196, 0.75) == 49 and visible(9, 0) == 9


def test_patches_are_pixels_with_their_channels_side_by_side() -> None:
    images = torch.randn(2, 3, 8, 20)
    patches = patchify(images, 4)
    assert patches.shape == (2, 2 * 5, 48)
    assert torch.equal(patches[1, 7].view(4, 4, 3), images[1, :, 4:8, 8:12].permute(1, 2, 0))
    assert torch.equal(unpatchify(patches, 4, (2, 5)), images)


def test_targets_have_a_mean_of_0_and_an_unbiased_variance_of_1() -> None:
    patches = torch.randn(2, 7, 48, dtype=torch.float64) * 3 + 5
    target = pixel_target(patches, True)
    assert torch.allclose(target.mean(2), torch.zeros(2, 7, dtype=torch.float64), atol=1e-9)
    wanted = patches[0, 3].var(unbiased=True)
    assert torch.allclose(target[0, 3].var(unbiased=True), wanted / (wanted + 1e-6))
    assert pixel_target(patches, False) is patches
    assert not pixel_target(torch.ones(1, 2, 48), True).any()  # a flat patch


def test_the_loss_is_of_hidden_patches_alone() -> None:
    predicted, target, mask = torch.randn(2, 5, 3), torch.randn(2, 5, 3), torch.zeros(2, 5)
    mask[0, 1] = mask[0, 4] = mask[1, 2] = 1
    errors = [((predicted[i, j] - target[i, j]) ** 2).mean() for i, j in ((0, 1), (0, 4), (1, 2))]
    assert torch.allclose(pixel_loss(predicted, target, mask), torch.stack(errors).mean())
    predicted[0, 0] += 100
    assert torch.allclose(pixel_loss(predicted, target, mask), torch.stack(errors).mean())


# The autoencoder -----------------------------------------------------------------------------------------


def test_what_is_hidden_is_not_seen() -> None:
    """Hidden patches may change: predictions stay; a seen one may not."""
    torch.manual_seed(0)
    model, x, noise = MAE(**SIZES).eval(), torch.randn(2, 3, 24, 40), torch.rand(2, 15)
    before = model(x, noise)
    hidden = unpatchify(before.mask[..., None].expand(-1, -1, 192), 8, (3, 5)).bool()
    changed = torch.where(hidden, torch.randn_like(x), x)
    assert torch.equal(model(changed, noise).patches, before.patches)
    changed = torch.where(hidden, x, torch.randn_like(x))
    assert not torch.allclose(model(changed, noise).patches, before.patches, atol=1e-4)
    assert before.patches.shape == (2, 15, 192) and before.mask.sum(1).tolist() == [12, 12]


def test_the_encoder_sees_few_tokens_in_any_order() -> None:
    """As many as are kept, and the class token; and what is predicted does not depend on how they are shuffled."""
    torch.manual_seed(0)
    model, x, noise = MAE(**SIZES).eval(), torch.randn(2, 3, 24, 40), torch.rand(2, 15)
    sizes = []
    model.encoder.blocks[0].register_forward_hook(lambda m, i, o: sizes.append(o.shape[1]))
    a = model(x, noise)
    order = noise.argsort(1)
    swapped = noise.clone()
    swapped.scatter_(1, order[:, :1], noise.gather(1, order[:, 1:2]))
    swapped.scatter_(1, order[:, 1:2], noise.gather(1, order[:, :1]))
    b = model(x, swapped)
    assert sizes == [1 + 3, 1 + 3] and torch.equal(a.mask, b.mask)
    assert torch.allclose(a.patches, b.patches, atol=1e-5)


def test_mask_tokens_in_the_encoder() -> None:
    torch.manual_seed(0)
    model, x, noise = MAE(**SIZES, mask_tokens="encoder").eval(), torch.randn(2, 3, 24, 40), torch.rand(2, 15)
    seen = []
    model.encoder.blocks[0].register_forward_hook(lambda m, i, o: seen.append(i[0]))
    found = model(x, noise)
    wanted = torch.where(
        found.mask[..., None].bool(), model.mask_token + model.encoder.positions[:, 1:], model.encoder.embed(x)[:, 1:]
    )
    assert torch.equal(seen[0][:, 1:], wanted) and model.mask_token.shape == (1, 1, 12)
    with pytest.raises(UsageError, match="mask_tokens"):
        MAE(**SIZES, mask_tokens="both")


def test_how_it_starts() -> None:
    torch.manual_seed(0)
    model = MAE(image_size=32, patch=8, width=64, depth=2, heads=2, decoder=(32, 1, 2))
    projection = model.encoder.patches.projection.weight.detach()
    bound = math.sqrt(6 / (64 + 3 * 64))
    assert projection.abs().max() <= bound and float(projection.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    qkv = model.encoder.blocks[0].attention.qkv
    assert qkv.weight.abs().max() <= math.sqrt(6 / (4 * 64)) and not qkv.bias.any()
    assert 0.01 < model.mask_token.std() < 0.03 and 0.01 < model.encoder.class_token.std() < 0.03
    fixed = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert fixed == ["encoder.positions", "decoder.positions"]
    assert torch.equal(model.encoder.positions, sincos_positions(64, (4, 4)))
    tuned = fine_tuned(**CLASSIFIER)
    assert tuned.positions.requires_grad and 0 < tuned.head.weight.abs().max() <= 1e-4


def test_weights_of_another_size_bring_their_positions(tmp_path: Path) -> None:
    small = jingdu.create("mae_mini")
    with torch.no_grad():
        small.encoder.positions.normal_()
    jingdu.export(small, "jingdu", tmp_path / "small.safetensors")
    large = jingdu.create("mae_mini", weights=tmp_path / "small.safetensors", image_size=(24, 32))
    assert torch.equal(large.encoder.positions, resize_positions(small.encoder.positions, (6, 8)))
    assert torch.equal(large.decoder.positions, resize_positions(small.decoder.positions, (6, 8)))
    assert large(torch.randn(1, 1, 24, 32)).patches.shape == (1, 48, 16)


def test_every_parameter_learns_but_the_positions() -> None:
    system = PreTraining(MAE(**SIZES))
    loss, _ = system({"image": torch.randn(3, 3, 24, 40)}, "loss")
    loss.backward()
    for name, p in system.named_parameters():
        assert (p.grad is not None and bool(p.grad.any())) == ("positions" not in name), name
    system.update({"image": torch.randn(3, 3, 24, 40)})
    assert system.compute()["loss"] > 0
    with pytest.raises(UsageError, match="autoencoder"):
        PreTraining(ViT(**{**CLASSIFIER, "num_classes": 0}))


def test_features_are_the_encoders_blocks() -> None:
    model, seen = MAE(**SIZES).eval(), []
    for block in model.encoder.blocks:
        block.register_forward_hook(lambda m, i, o: seen.append(o))
    taps = model.features(torch.randn(1, 3, 24, 40))
    assert len(taps) == 3 and all(a is b for a, b in zip(taps, seen, strict=True)) and taps[0].shape == (1, 16, 12)


def test_bad_sizes_are_told() -> None:
    with pytest.raises(UsageError, match="nothing is to be predicted"):
        MAE(**SIZES, masked=0)
    with pytest.raises(UsageError, match="one at least"):
        MAE(**SIZES, masked=0.99)
    with pytest.raises(UsageError, match="image_size="):
        MAE(**SIZES)(torch.randn(1, 3, 24, 32))


class _Largest(TorchDispatchMode):
    """The most numbers that one tensor has which is made meanwhile."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = (x.untyped_storage().nbytes() // x.element_size() for x in tree_leaves(out) if isinstance(x, Tensor))
        self.numbers = max(self.numbers, *sizes, 0)
        return out


@pytest.mark.parametrize("kind", ["autoencoder", "fine-tuned"])
def test_no_attention_matrix_is_stored(kind: str) -> None:
    """1,600 tokens, forth and back: nothing comes near the square of their number."""
    sizes = {"image_size": 80, "patch": 2, "width": 8, "depth": 1, "heads": 2}
    x = torch.randn(1, 3, 80, 80)
    if kind == "autoencoder":
        system = PreTraining(MAE(**sizes, decoder=(8, 1, 2), masked=0.1))
        with _Largest() as largest:
            system({"image": x}, "loss")[0].backward()
    else:
        network = jingdu.create("mae_finetune_base", **sizes, num_classes=3)
        with _Largest() as largest:
            network(x).sum().backward()
    assert 1600 * 8 <= largest.numbers < 1440**2 / 20


# Probes and partial fine-tuning ---------------------------------------------------------------------------


def test_a_probe_reads_normalised_features() -> None:
    probe = linear_probe(**CLASSIFIER).train()
    norm, linear = probe.head
    assert not list(norm.parameters()) and norm.eps == 1e-6 and 0.005 < linear.weight.std() < 0.02
    x = torch.randn(7, 3, 16, 16)
    read = probe.norm(probe.features(x)[-1])[:, 0]
    wanted = (read - read.mean(0)) / (read.var(0, unbiased=False) + 1e-6).sqrt()
    assert torch.allclose(probe(x), linear(wanted), atol=1e-4)
    with pytest.raises(UsageError, match="classes"):
        linear_probe(num_classes=0)


@pytest.mark.parametrize(
    "blocks, trained", [(0, set()), (0.5, {"3.mlp", "3.norm2"}), (2, {"2", "3"}), (2.5, {"2", "3", "1.mlp", "1.norm2"})]
)
def test_the_last_blocks_are_trained(blocks: float, trained: set[str]) -> None:
    network = ViT(**CLASSIFIER)
    freeze_lower(network, blocks)
    for name, p in network.named_parameters():
        inside = name.removeprefix("blocks.")
        wanted = name.startswith(("norm.", "head.")) or (
            name != inside and any(inside.startswith(f"{part}.") for part in trained)
        )
        assert p.requires_grad == wanted, name
    with pytest.raises(UsageError, match="halves"):
        freeze_lower(network, 1.3)
    with pytest.raises(UsageError, match="of 4 blocks"):
        freeze_lower(network, 5)


def test_partial_fine_tuning_is_beits_with_the_rest_frozen() -> None:
    system = PartialFineTuning(ViT(**CLASSIFIER), blocks=1, layer_decay=0.5)
    loss, _ = system({"image": torch.randn(3, 3, 16, 16), "label": torch.tensor([0, 4, 2])}, "loss")
    loss.backward()
    learning = {name for name, p in system.named_parameters() if p.grad is not None}
    assert learning == {n for n, _ in system.named_parameters() if n.startswith(("network.blocks.3.", "network.norm.", "network.head."))}  # fmt: skip
    assert system.rates["network.blocks.3.norm1.weight"] == 0.5


def test_few_labels_are_some_of_the_data() -> None:
    whole = few_labels("train", "digits", 1347, size=16, channels=1)
    few, others = (few_labels("train", "digits", 40, fold=fold, size=16, channels=1) for fold in (0, 1))
    assert len(few) == 40 and few.classes == whole.classes and set(few.rows) != set(others.rows)
    rows = np.array([3, 17])
    batch = few.batch(rows, Draws(0, 0, rows))
    assert batch["image"].shape == (2, 1, 16, 16)
    assert torch.equal(batch["label"], whole.batch(few.rows[rows], Draws(0, 0, rows))["label"])
    assert len(few_labels("test", "digits", 40)) == 450
    with pytest.raises(UsageError, match="which has 1347"):
        few_labels("train", "digits", 1348)


def test_lars_by_its_formula() -> None:
    """Two steps: matrices at a rate of their own length over their gradient's, biases as SGD."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    stage = Stage(optimizer="lars", lr=0.7, momentum=0.6, weight_decay=0.2)
    optimizer = make_optimizer(stage, layer, Objective("loss"))
    assert isinstance(optimizer, LARS)
    w, b = layer.weight.detach().clone(), layer.bias.detach().clone()
    kept_w, kept_b = torch.zeros_like(w), torch.zeros_like(b)
    for seed in range(2):
        gw, gb = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed)), torch.full((2,), 0.5)
        layer.weight.grad, layer.bias.grad = gw.clone(), gb.clone()
        optimizer.step()
        gw = gw + 0.2 * w
        kept_w = 0.6 * kept_w + 0.001 * w.norm() / gw.norm() * gw
        kept_b = 0.6 * kept_b + gb
        w, b = w - 0.7 * kept_w, b - 0.7 * kept_b
        assert torch.allclose(layer.weight, w, atol=1e-6) and torch.allclose(layer.bias, b, atol=1e-6)
    zero = nn.Parameter(torch.zeros(2, 2))
    zero.grad = torch.ones(2, 2)
    LARS([zero], lr=0.1).step()
    assert torch.allclose(zero, torch.full((2, 2), -0.1))  # nothing to scale by


# Views and the command line --------------------------------------------------------------------------------


@pytest.mark.parametrize("normalised", [True, False])
def test_a_view_pastes_predictions_over_hidden_patches(normalised: bool) -> None:
    """A network that predicts the target itself gives the original back."""
    model, x = MAE(**SIZES, normalised=normalised).eval(), torch.rand(2, 3, 24, 40)
    perfect = pixel_target(patchify(x, 8), normalised)
    model.decoder.forward = lambda *args: perfect
    found = view(model, x, jingdu.data.Preprocess(), torch.rand(2, 15))
    assert torch.allclose(found.original, x) and torch.allclose(found.rebuilt, x, atol=1e-5)
    assert found.error.max() < 1e-9
    hidden = unpatchify(found.mask[..., None].expand(-1, -1, 192), 8, (3, 5)).bool()
    assert (found.masked[hidden] == 0.5).all() and torch.equal(found.masked[~hidden], x[~hidden])


def test_pretrain_then_tune_and_probe_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--override", "width=12", "depth=2", "heads=2"]
    data = "mae.few_labels(of='digits', count=12, size=16, channels=1)"
    common = ["--quiet", "--batch-size", "6", "--steps", "2", "--data", data, "--device", "cpu"]
    start = tmp_path / "pre"
    decoder = [*small, "decoder=(8, 1, 2)"]
    assert main(["train", "mae", "--out", str(start), *decoder, *common]) == 0
    before = jingdu.load(start)
    assert isinstance(before, MAE)
    system = "beit.FineTuning(start={start!r}, layer_decay=0.5)"
    tuned = ["train", "mae", "--preset", "laptop-tuning", "--out", str(tmp_path / "tuned"), *small, *common]
    assert main([*tuned, "--system", system.format(start=str(start)), "--lr", "0"]) == 0
    after = jingdu.load(tmp_path / "tuned")
    assert torch.equal(after.blocks[1].mlp.expand.weight, before.encoder.blocks[1].mlp.expand.weight)
    assert torch.equal(after.positions, before.encoder.positions)
    probe = ["train", "mae", "--preset", "laptop-probing", "--out", str(tmp_path / "probe"), *small, *common]
    assert main([*probe, "--system", f"beit.FineTuning(start={str(start)!r}, fresh=('head',), frozen=True)"]) == 0
    probed = jingdu.load(tmp_path / "probe")
    assert torch.equal(probed.norm.weight, before.encoder.norm.weight)
    assert torch.equal(probed.blocks[0].attention.qkv.weight, before.encoder.blocks[0].attention.qkv.weight)
    assert probed.head[0].running_mean.any()

    Image.effect_noise((50, 40), 60).convert("RGB").save(tmp_path / "photo.png")
    capsys.readouterr()
    out = tmp_path / "views" / "seen.png"
    assert main(["predict", "mae", str(tmp_path / "photo.png"), "--weights", str(start), "--out", str(out)]) == 0
    assert "12 of 16 patches hidden" in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.size == (4 + 3 * (192 + 4), 4 + 192 + 4)
    named = ["predict", "mae_finetune_mini", str(tmp_path / "photo.png"), "--weights", str(tmp_path / "tuned")]
    assert main(named) == 0
    assert "  0.1000  " in capsys.readouterr().out


def test_an_encoder_gives_vectors(tmp_path: Path) -> None:
    for number in range(2):
        Image.effect_noise((40, 50), 60 + number).convert("RGB").save(tmp_path / f"{number}.png")
    model = jingdu.create("mae_encoder_base", image_size=32, patch=8, width=12, depth=1, heads=2)
    first, _ = jingdu.papers.vit.mae.predict(model, [str(tmp_path)])
    assert len(first.data["vector"]) == 12 and -1 <= first.data["cosines"][0]["cosine"] <= 1
    with pytest.raises(UsageError, match="no inputs"):
        next(jingdu.papers.vit.mae.predict(model, []))
