"""Error of classifiers."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from jingdu.errors import Refused

__all__ = ["Accuracy"]


class Accuracy:
    """Top-1 error, top-5 error (from ten classes on; with fewer it says little) and mean cross-entropy.

    A label's rank is the number of classes with a larger logit; of equal logits the first counts as larger, as
    argmax has it. So a network that gives all classes the same is right only about class 0, and one that gives NaN
    is wrong. Counts are whole numbers and the loss is summed in float64: batch sizes change nothing.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self.count = self.wrong = self.wrong5 = self.classes = 0
        self.loss = 0.0

    def update(self, logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, " batch"]) -> None:
        """Take one batch into account."""
        # On the processor, because some accelerators have no float64.
        logits, labels = logits.detach().cpu().double(), labels.cpu()
        own = logits.gather(1, labels[:, None])
        before = torch.arange(logits.shape[1]) < labels[:, None]
        # "Not smaller or equal" rather than "larger": a comparison with NaN is never true.
        rank = (~(logits <= own) | ((logits == own) & before)).sum(1)
        self.classes = logits.shape[1]
        self.count += len(labels)
        self.wrong += int((rank >= 1).sum())
        self.wrong5 += int((rank >= 5).sum())
        self.loss += float(F.cross_entropy(logits, labels, reduction="sum"))

    def compute(self) -> dict[str, float]:
        """error, loss in nats and, from ten classes on, top5_error over all batches; then forgets them.

        Raises Refused where there were none.
        """
        if self.count == 0:
            raise Refused("nothing to evaluate: the evaluation data gave no labelled samples")
        values = {"error": self.wrong / self.count, "loss": self.loss / self.count}
        if self.classes >= 10:
            values["top5_error"] = self.wrong5 / self.count
        self.reset()
        return values
