"""DeiT's augmentation and mixed labels, which later papers train with."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from jingdu.data.base import Tensors
from jingdu.data.draws import Draws, permutation
from jingdu.data.preprocess import Preprocess
from jingdu.engine.contracts import Stage
from jingdu.engine.stream import Stream
from jingdu.errors import UsageError
from jingdu.papers.vit.deit import (
    OPERATIONS,
    MixedClassification,
    colour_jitter,
    cutmix,
    mixed_targets,
    mixup,
    rand_augment,
    random_erasing,
    soft_cross_entropy,
)

IMAGES = torch.rand(11, 3, 13, 17, generator=torch.Generator().manual_seed(0))


def draws(count: int = 11, epoch: int = 0) -> Draws:
    return Draws(1, epoch, np.arange(count))


@pytest.mark.parametrize("function", [rand_augment, random_erasing, colour_jitter])
def test_a_sample_does_not_depend_on_its_batch(function: Callable[..., torch.Tensor]) -> None:
    before = IMAGES.clone()
    options = {} if function is colour_jitter else {"p": 0.7}
    whole = function(IMAGES, draws(), **options)
    for chosen in ([4], [9, 4, 0], [10, 9, 8, 7, 6, 5, 4]):
        assert torch.equal(function(IMAGES[chosen], Draws(1, 0, chosen), **options), whole[chosen])
    assert not torch.equal(function(IMAGES, draws(epoch=1), **options), whole)
    assert torch.equal(IMAGES, before)
    assert whole.dtype == IMAGES.dtype and whole.shape == IMAGES.shape


def test_rand_augment_does_what_it_draws() -> None:
    """Of 4000 images each operation is drawn for about a fifteenth, and done for about half of these."""
    images = torch.rand(1, 3, 5, 7).expand(4000, -1, -1, -1)
    rounded = (images * 255).round() / 255
    once = rand_augment(images, draws(4000), operations=1)
    changed = (once != rounded).flatten(1).any(1).float().mean().item()
    assert 0.4 < changed < 0.52  # some operations change nothing of some images
    always = rand_augment(images, draws(4000), operations=1, p=1.0)
    assert 0.85 < (always != rounded).flatten(1).any(1).float().mean().item() <= 1
    assert torch.equal(rand_augment(images, draws(4000), p=0.0), rounded)
    inverted = ((1 - rounded) * 255).round() / 255
    share = (always == inverted).flatten(1).all(1).float().mean().item()
    assert abs(share - 1 / len(OPERATIONS)) < 0.02


def test_rand_augment_follows_its_level_and_fills_with_its_colour() -> None:
    images = torch.full((400, 3, 9, 11), 0.6)
    gentle = rand_augment(images, draws(400), magnitude=0, std=0.0, p=1.0)
    strong = rand_augment(images, draws(400), magnitude=10, std=0.0, p=1.0)
    assert (strong - images).abs().mean() > (gentle - images).abs().mean()
    painted = rand_augment(images, draws(400), operations=1, p=1.0, fill=(0.0, 1.0, 0.0))
    assert ((painted[:, 1] == 1) & (painted[:, 0] == 0) & (painted[:, 2] == 0)).any()
    grey = rand_augment(images[:, :1], draws(400), fill=0.0)
    assert grey.shape == (400, 1, 9, 11)
    with pytest.raises(UsageError, match="2 channels"):
        rand_augment(images[:, :2], draws(400))
    with pytest.raises(UsageError, match="1 channels, fill of 3"):
        rand_augment(images[:, :1], draws(400))


def test_erased_boxes_are_noise_of_the_asked_size() -> None:
    images = torch.full((900, 3, 30, 40), 2.0)
    erased = random_erasing(images, draws(900), p=0.5, mean=(0.5, 0.4, 0.3), std=0.1)
    hit = (erased != 2).all(1)
    share = hit.float().mean((1, 2))
    assert abs((share > 0).float().mean().item() - 0.5) < 0.06
    some = share[share > 0]
    assert some.min() > 0.015 and some.max() < 0.35 and 0.14 < some.mean() < 0.2
    for box in hit[share > 0][:50]:
        rows, columns = box.any(1), box.any(0)
        assert torch.equal(box, rows[:, None] & columns)  # one rectangle
    values = erased.permute(1, 0, 2, 3)[:, hit]
    assert torch.allclose(values.mean(1), torch.tensor((0.5, 0.4, 0.3)), atol=2e-3)
    assert torch.allclose(values.std(1), torch.full((3,), 0.1), atol=2e-3)


def test_jitter_stays_in_its_bounds() -> None:
    darker = colour_jitter(IMAGES, draws(), brightness=0.3, contrast=0, saturation=0)
    factor = (darker / IMAGES)[darker < 1]
    assert 0.699 < factor.min() < 0.9 and 1.1 < factor.max() < 1.301
    assert torch.allclose(colour_jitter(IMAGES, draws(), 0, 0, 0), IMAGES, atol=1e-6)
    grey = IMAGES[:, :1]
    assert torch.allclose(colour_jitter(grey, draws(), 0, 0, 0.9), grey, atol=1e-6)
    with pytest.raises(UsageError, match="2 channels"):
        colour_jitter(IMAGES[:, :2], draws())


def test_mixing_mixes_images_and_labels_alike() -> None:
    mixed = mixup(IMAGES, 0.3)
    for i in range(11):
        assert torch.allclose(mixed[i], 0.3 * IMAGES[i] + 0.7 * IMAGES[10 - i], atol=1e-6)
    cut, share = cutmix(IMAGES, 0.6, (0.5, 0.1))
    foreign = (cut != IMAGES).any(1)
    foreign[5] = foreign[4]  # the middle one is its own partner
    assert abs(foreign.float().mean().item() - (1 - share)) < 1e-6 and 0.6 < share < 1  # the border cuts the box
    assert torch.equal(cut.permute(1, 0, 2, 3)[:, foreign], IMAGES.flip(0).permute(1, 0, 2, 3)[:, foreign])
    targets = mixed_targets(torch.tensor([0, 2, 4]), 5, share=0.7, smoothing=0.1)
    assert torch.allclose(targets.sum(1), torch.ones(3))
    assert torch.allclose(targets[0], torch.tensor([0.63, 0, 0, 0, 0.27]) + 0.02)
    assert torch.allclose(targets[1], torch.tensor([0, 0, 0.9, 0, 0]) + 0.02)


def test_label_smoothing_is_torchs() -> None:
    logits, labels = torch.randn(7, 5), torch.arange(7) % 5
    ours = soft_cross_entropy(logits, mixed_targets(labels, 5, smoothing=0.2))
    assert torch.allclose(ours, F.cross_entropy(logits, labels, label_smoothing=0.2))


class Pixels(nn.Module):
    """Logits that are the image's mean colours, and what it was shown."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x
        return x.mean((2, 3))


def test_the_classifier_mixes_in_training_and_not_in_evaluation() -> None:
    torch.manual_seed(0)
    system = MixedClassification(Pixels(), mixup=0.8, cutmix=1.0)
    batch = {"image": IMAGES[:10], "label": torch.arange(10) % 3}
    mixes = cuts = 0
    for _ in range(60):
        loss, logged = system(batch, "loss")
        assert loss.isfinite() and set(logged) == {"error"}
        same = system.network.seen == IMAGES[:10]
        mixes, cuts = mixes + (not same.any()), cuts + bool(same.any() and not same.all())
    assert mixes + cuts >= 55 and 15 < cuts < 45
    system.eval().update(batch)
    assert torch.equal(system.network.seen, IMAGES[:10])
    assert set(system.compute()) == {"error", "loss"}


@pytest.mark.parametrize("options", [{"mixup": 0, "cutmix": 0}, {"p": 0.0}])
def test_a_classifier_without_mixing_smooths_alone(options: dict[str, float]) -> None:
    system = MixedClassification(Pixels(), **options, label_smoothing=0.2)
    batch = {"image": IMAGES, "label": torch.arange(11) % 3}
    wanted = F.cross_entropy(IMAGES.mean((2, 3)), batch["label"], label_smoothing=0.2)
    assert torch.allclose(system(batch, "loss")[0], wanted)


class Numbers(Tensors):
    """Images whose value is their number."""

    def __init__(self, count: int):
        super().__init__({"image": torch.arange(count).view(-1, 1, 1, 1) / count * torch.ones(1, 1, 3, 5)})


def stream(part: slice = slice(None), repeats: int = 3) -> Stream:
    noise = lambda images, draws: torch.cat((images, images + draws.uniform(1, 3, 5)), 1)  # noqa: E731
    return Stream(Numbers(1000), 256, 7, (noise,), Preprocess(), part=part, repeats=repeats)


@pytest.mark.parametrize("replicas", [1, 2, 4, 8])
def test_repeated_augmentation_takes_the_authors_batches(replicas: int) -> None:
    """facebookresearch/deit, samplers.py: an epoch's order with each sample three times, of which replica r has every
    replicas-th from the r-th on; an epoch ends after len // 256 * 256 of them."""
    order = permutation(7, 0, 1000)
    repeated = np.repeat(order, 3)
    own = [repeated[r::replicas][: 1000 // 256 * 256 // replicas] for r in range(replicas)]
    share = 256 // replicas
    ours = stream()
    assert ours.batches_per_epoch == len(own[0]) // share == 3
    for number in range(3):
        theirs = np.concatenate([samples[number * share : (number + 1) * share] for samples in own])
        epoch, found = ours.indices(number)
        assert epoch == 0 and sorted(found % 1000) == sorted(theirs)
        assert len(np.unique(found)) == 256  # no copy twice
    assert ours.indices(3)[0] == 1


def test_copies_are_augmented_apart_and_stand_in_other_parts() -> None:
    whole = stream().next()["image"]
    numbers = (whole[:, 0, 0, 0] * 1000).round().long()
    assert (numbers.bincount() == 3).sum() == 85  # 255 of 256 places
    for number in numbers.unique()[:9]:
        noises = (whole[:, 1] - whole[:, 0])[numbers == number]
        assert not any(torch.allclose(a, b) for i, a in enumerate(noises) for b in noises[i + 1 :])
    for rank in range(4):
        part = stream(part=slice(64 * rank, 64 * rank + 64)).next()["image"]
        assert torch.equal(part, whole[64 * rank : 64 * rank + 64])
        assert len((part[:, 0, 0, 0] * 1000).round().long().unique()) == 64
    once = (stream(repeats=1).next()["image"][:, 0, 0, 0] * 1000).round().long()
    assert once.tolist() == permutation(7, 0, 1000)[:256].tolist()


def test_repeats_are_for_training_by_gradient() -> None:
    with pytest.raises(UsageError, match="repeats"):
        Stage(method="fit", repeats=2)
    with pytest.raises(UsageError, match="repeats is 0"):
        Stage(repeats=0)
