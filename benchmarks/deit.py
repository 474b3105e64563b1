"""DeiT against timm, networks and augmented training: python -m benchmarks.deit [networks | training]."""

import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

import jingdu
from benchmarks.paired import compare, save
from jingdu.data.draws import Draws
from jingdu.data.images import normalise
from jingdu.data.preprocess import IMAGENET
from jingdu.papers.vit.deit import MixedClassification, rand_augment, random_erasing
from jingdu.speed.references import import_library


def networks(rounds: int = 12) -> list[dict[str, Any]]:
    """The same weights and input in eager float32: one image, eight, and a training step."""
    return [
        jingdu.bench("deit_tiny_distilled", "timm", batch=batch, train=train, rounds=rounds)
        for batch, train in ((1, False), (8, False), (8, True))
    ]


def pictures(count: int, size: int) -> list[Image.Image]:
    """Smooth noise: as good as photos for operations that look at no content."""
    noise = np.random.default_rng(0).integers(0, 256, (count, size // 8, size // 8, 3), dtype=np.uint8)
    return [Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC) for one in noise]


def their_preparation(batch: list[Image.Image]) -> Callable[[], torch.Tensor]:
    """timm's transforms behind the crop, one image after the other, as its loader's workers do it."""
    import_library("timm")
    from timm.data import auto_augment
    from timm.data.random_erasing import RandomErasing

    # Pillow 13 refuses to keep 0 bits, which level 10 asks for.
    plain = auto_augment.posterize
    for name in ("Posterize", "PosterizeIncreasing"):
        auto_augment.NAME_TO_OP[name] = lambda image, bits, **_: plain(image, max(bits, 1))
    options = {"img_mean": (124, 116, 104), "interpolation": Image.Resampling.BICUBIC}
    augment = auto_augment.rand_augment_transform("rand-m9-mstd0.5-inc1", options)
    erase = RandomErasing(0.25, mode="pixel", device="cpu")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))

    def once() -> torch.Tensor:
        found = []
        for image in batch:
            pixels = torch.from_numpy(np.array(augment(image))).permute(2, 0, 1).contiguous().float().div_(255)
            found.append(erase(pixels.sub_(mean).div_(std)))
        return torch.stack(found)

    return once


def our_preparation(batch: list[Image.Image]) -> Callable[[], torch.Tensor]:
    """The engine's way: images to tensors, then functions on the batch."""
    epoch = [0]

    def once() -> torch.Tensor:
        epoch[0] += 1
        draws = Draws(0, epoch[0], range(len(batch)))
        arrays = (torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in batch)
        images = torch.stack([pixels.contiguous().float().div_(255) for pixels in arrays])
        return normalise(random_erasing(rand_augment(images, draws), draws), IMAGENET)

    return once


def training(rounds: int = 8, count: int = 16) -> list[dict[str, Any]]:
    """Augmentation alone at two sizes; and a step of DeiT-Ti with RandAugment, erasing, mixup and CutMix."""
    random.seed(0)
    np.random.seed(0)
    rows = []
    for size, many in ((224, 32), (32, 128)):
        batch = pictures(many, size)
        rows.append(
            compare(
                our_preparation(batch), their_preparation(batch), f"RandAugment and erasing at {size}", rounds,
                work=f"{many} images of 3x{size}x{size} from Pillow to a normalised batch",
            )
        )  # fmt: skip
    batch, labels = pictures(count, 224), torch.arange(count)
    ours, reference = jingdu.create("deit_tiny"), import_library("timm").create_model("deit_tiny_patch16_224")
    from timm.data.mixup import Mixup
    from timm.loss import SoftTargetCrossEntropy

    system, mix, criterion = MixedClassification(ours), Mixup(0.8, 1.0, num_classes=1000), SoftTargetCrossEntropy()
    first, second = our_preparation(batch), their_preparation(batch)
    updates = [torch.optim.AdamW(network.parameters(), 1e-6, foreach=True) for network in (ours, reference)]

    def our_step() -> None:
        updates[0].zero_grad()
        system({"image": first(), "label": labels}, "loss")[0].backward()
        updates[0].step()

    def their_step() -> None:
        updates[1].zero_grad()
        images, targets = mix(second(), labels)
        criterion(reference(images), targets).backward()
        updates[1].step()

    ours.train(), reference.train()
    rows.append(
        compare(our_step, their_step, "deit_tiny, a training step with augmentation", rounds, work=f"{count} images")
    )
    return rows


if __name__ == "__main__":
    for part in sys.argv[1:] or ("networks", "training"):
        save({"networks": networks, "training": training}[part](), f"deit-{part}.json")
