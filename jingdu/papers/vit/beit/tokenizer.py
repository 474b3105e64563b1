"""Visual words (Section 2.1): a tokenizer turns an image into a grid of numbers, and numbers into an image.

The published networks learned from the tokenizer of DALL-E (Ramesh et al. 2021), a discrete VAE of stride 8 with 8,192
words. Here is a smaller one that is learned in seconds: the nearest of some patches, found by k-means.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from jingdu.engine.contracts import Batch
from jingdu.errors import UsageError

__all__ = ["Clustering", "Codebook", "VisualTokenizer", "plus_plus"]


@runtime_checkable
class VisualTokenizer(Protocol):
    """What pre-training asks of a tokenizer: one word for each of the network's patches."""

    words: int
    """How many there are."""
    stride: int
    """Pixels of its view that are one word, along each axis."""

    def __call__(self, view: Tensor) -> Tensor:
        """Words, int64 [batch, down, across], of a view [batch, channels, height, width] as `views` gives it."""
        ...

    def decode(self, ids: Tensor) -> Tensor:
        """The view that words stand for."""
        ...


class Codebook(nn.Module):
    """The word of a patch is the nearest of `words` patches.

    Args:
        words: how many.
        stride: side of a patch.
        channels: of the views.
    """

    def __init__(self, words: int = 256, stride: int = 4, channels: int = 3):
        super().__init__()
        self.words, self.stride, self.channels = words, stride, channels
        self.register_buffer("patches", torch.full((words, channels * stride**2), 0.5))

    def cut(self, view: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch patches pixels"]:
        """Its patches, row by row. Raises UsageError for a view of other channels, or that they do not divide."""
        if view.shape[1] != self.channels or any(side % self.stride for side in view.shape[2:]):
            wanted = f"{self.channels} channels and sides that {self.stride} divides"
            raise UsageError(f"a view has shape {list(view.shape)}: this tokenizer needs {wanted}")
        return F.unfold(view, self.stride, stride=self.stride).transpose(1, 2)

    def nearest(self, x: Float[Tensor, "*rows pixels"]) -> Int64[Tensor, "*rows"]:
        """The words of patches."""
        # |x - c|^2 without |x|^2, which is the same for all words.
        return (self.patches.square().sum(1) - 2 * x @ self.patches.T).argmin(-1)

    def forward(self, view: Float[Tensor, "batch channels height width"]) -> Int64[Tensor, "batch down across"]:
        across = view.shape[3] // self.stride
        return self.nearest(self.cut(view)).unflatten(1, (-1, across))

    def decode(self, ids: Int64[Tensor, "batch down across"]) -> Float[Tensor, "batch channels height width"]:
        """The patches of the words, side by side."""
        size = tuple(side * self.stride for side in ids.shape[1:])
        return F.fold(self.patches[ids.flatten(1)].transpose(1, 2), size, self.stride, stride=self.stride)


def plus_plus(x: Float[Tensor, "rows pixels"], count: int) -> Float[Tensor, "{count} pixels"]:
    """First centres of k-means: each row with a probability in proportion to its squared distance from those before.

    (Arthur and Vassilvitskii 2007, "k-means++".) Draws from torch's global generator.
    """
    chosen = [int(torch.randint(len(x), ()))]
    distance = (x - x[chosen[0]]).square().sum(1)
    for _ in range(count - 1):
        # Where all rows are taken any will do.
        weight = distance if bool((distance > 0).any()) else torch.ones_like(distance)
        chosen.append(int(weight.multinomial(1)))
        distance = torch.minimum(distance, (x - x[chosen[-1]]).square().sum(1))
    return x[chosen]


class Clustering:
    """Makes a codebook by k-means over the patches of all views; the first pass over the data finds where it starts.

    Args:
        tokenizer: a codebook.
        passes: over the data.
        sample: patches of the first pass that starting points are chosen from.
    """

    def __init__(self, tokenizer: Codebook, passes: int = 6, sample: int = 8192):
        if passes < 2 or sample < tokenizer.words:
            raise UsageError(
                f"passes is {passes}, sample {sample}: at least 2, and {tokenizer.words} for as many words"
            )
        self.tokenizer, self.passes, self.sample = tokenizer, passes, sample
        self.first: list[Tensor] = []
        self._forget()

    def _forget(self) -> None:
        self.sums = torch.zeros_like(self.tokenizer.patches)
        self.counts = torch.zeros(self.tokenizer.words, dtype=torch.float64)
        # The patches farthest from their words, behind their distances
        self.farthest = self.sums.new_zeros(0, 1 + self.sums.shape[1])
        self.squares, self.seen = 0.0, 0

    def observe(self, batch: Batch, number: int) -> dict[str, Any]:
        """Keep patches in the first pass; in later ones add each to the sum of its word."""
        x = self.tokenizer.cut(batch["view"]).flatten(0, 1)
        if number == 0:
            # A few of each batch, so that the sample is of all data however large they are.
            self.first.append(x[torch.randperm(len(x))[: max(self.sample // 64, 1)]])
            return {"patches": float(sum(map(len, self.first)))}
        ids = self.tokenizer.nearest(x)
        apart = (x - self.tokenizer.patches[ids]).square().sum(1)
        self.sums.index_add_(0, ids, x)
        self.counts += ids.bincount(minlength=self.tokenizer.words)
        self.squares, self.seen = self.squares + float(apart.sum()), self.seen + x.numel()
        far = torch.cat((self.farthest, torch.cat((apart[:, None], x), 1)))
        self.farthest = far[far[:, 0].topk(min(self.tokenizer.words, len(far))).indices]
        return {"error": float(apart.mean() / x.shape[1])}

    def end_pass(self, number: int) -> None:
        """Words become the means of their patches; one without any starts anew at a patch that is far from all."""
        if number == 0:
            self.tokenizer.patches.copy_(plus_plus(torch.cat(self.first)[: self.sample], self.tokenizer.words))
            self.first = []
        else:
            used = self.counts > 0
            self.tokenizer.patches[used] = (self.sums[used] / self.counts[used, None]).to(self.sums.dtype)
            unused = (~used).nonzero()[: len(self.farthest), 0]
            self.tokenizer.patches[unused] = self.farthest[: len(unused), 1:]
        self._forget()

    def update(self, batch: Batch) -> None:
        self.observe(batch, 1)

    def compute(self) -> dict[str, float]:
        """The mean squared error of a pixel, and how many words are used, weighted by how often: exp of their entropy."""
        share = self.counts / self.counts.sum()
        measures = {"error": self.squares / self.seen, "perplexity": float(torch.special.entr(share).sum().exp())}
        self._forget()
        return measures

    def state_dict(self) -> dict[str, Any]:
        names = ("first", "sums", "counts", "farthest", "squares", "seen")
        return {"tokenizer": self.tokenizer.state_dict(), **{name: getattr(self, name) for name in names}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.tokenizer.load_state_dict(state["tokenizer"])
        for name, value in state.items():
            if name != "tokenizer":
                setattr(self, name, value)
