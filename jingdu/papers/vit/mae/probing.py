"""What a frozen encoder knows: linear probes (Appendix A.1) and the fine-tuning of its last blocks (Section 4.3)."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from torch import nn

from jingdu.data.base import Batch, Data
from jingdu.data.draws import Draws, permutation
from jingdu.data.preprocess import Preprocess
from jingdu.engine.contracts import Stage
from jingdu.engine.training import open_source
from jingdu.errors import UsageError
from jingdu.papers.vit.beit.finetuning import FineTuning
from jingdu.papers.vit.vit import ViT

__all__ = ["FewLabels", "PartialFineTuning", "few_labels", "freeze_lower", "linear_probe"]


def linear_probe(num_classes: int = 1000, **arguments: Any) -> ViT:
    """The encoder, and a classifier behind a batch norm without weights, which stands for a choice of scales of features.

    What is read is the class token behind the encoder's own norm. The classifier starts at N(0, 0.01).

    Raises UsageError without classes.
    """
    if num_classes < 1:
        raise UsageError(f"a probe names classes: num_classes cannot be {num_classes}")
    network = ViT(num_classes=num_classes, **arguments)
    nn.init.trunc_normal_(network.head.weight, std=0.01)  # main_linprobe.py
    network.head = nn.Sequential(nn.BatchNorm1d(network.width, affine=False, eps=1e-6), network.head)
    return network


def freeze_lower(network: ViT, blocks: float | int) -> None:
    """Leave the last blocks, the norm and the head to be trained, and freeze all else.

    Args:
        network: a ViT.
        blocks: how many; a half is the MLP of the block before, with its norm (Figure 9).

    Raises UsageError where there are not so many, or for another part of a block than a half.
    """
    depth = len(network.blocks)
    if not 0 <= blocks <= depth or blocks % 0.5:
        raise UsageError(f"{blocks:g} of {depth} blocks cannot be trained: give 0 to {depth}, in halves")
    network.requires_grad_(False)
    whole = int(blocks)
    trained: list[nn.Module] = [network.norm, network.head, *network.blocks[depth - whole :]]
    if blocks != whole:
        block = network.blocks[depth - whole - 1]
        trained += [block.norm2, block.mlp]
    for module in trained:
        module.requires_grad_(True)


class PartialFineTuning(FineTuning):
    """BEiT's fine-tuning of the last blocks alone.

    Args:
        network: a ViT.
        start: as `FineTuning` has it.
        blocks: how many are trained; see `freeze_lower`.
        options: what `FineTuning` takes further.
        previous: the finished stages, by name.
    """

    def __init__(
        self, network: ViT, start: str | None = None, blocks: float | int = 4, previous: Mapping[str, Any] | None = None,
        **options: Any,
    ):  # fmt: skip
        super().__init__(network, start, previous=previous, **options)
        freeze_lower(network, blocks)


class FewLabels:
    """Some samples of other data."""

    def __init__(self, source: Data, rows: np.ndarray):
        self.source, self.rows, self.classes = source, rows, source.classes

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: np.ndarray, draws: Draws) -> Batch:
        return self.source.batch(self.rows[indices], draws)


def few_labels(
    split: Literal["train", "test"], of: str, count: int, fold: int = 0, size: int | None = None,
    channels: Literal[1, 3] = 3,
) -> FewLabels:  # fmt: skip
    """Training data of which few are labelled: `count` samples of the data `of`, and all of its test split.

    Args:
        split: train or test.
        of: the data: "digits", a folder of images.
        count: samples to learn from.
        fold: which ones.
        size: side of the images in pixels, as the stage's `preprocess` has it; None as they are.
        channels: 3, or 1 for grey, likewise.

    Raises UsageError where there are not so many.
    """
    source = open_source(of, split, Stage(preprocess=Preprocess(size=size, channels=channels)))
    if split == "test":
        return FewLabels(source, np.arange(len(source)))
    if not 1 <= count <= len(source):
        raise UsageError(f"few_labels: {count} samples of {of}, which has {len(source)}")
    return FewLabels(source, np.sort(permutation(fold, 0, len(source))[:count]))
