"""Error of classifiers."""

import torch.nn.functional as F
from torch import Tensor


class Accuracy:
    """Top-1 error, top-5 error (from ten classes on) and mean cross-entropy over batches."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.count = self.wrong = self.wrong5 = self.classes = 0
        self.loss = 0.0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Take logits [batch, classes] and labels [batch] into account."""
        self.classes = logits.shape[1]
        self.count += len(labels)
        best = logits.topk(min(5, self.classes), dim=1).indices
        hits = best == labels[:, None]
        self.wrong += int((~hits[:, 0]).sum())
        self.wrong5 += int((~hits.any(1)).sum())
        self.loss += float(F.cross_entropy(logits.double(), labels, reduction="sum"))

    def compute(self) -> dict[str, float]:
        """The measures, as shares of the samples seen; resets."""
        n = max(self.count, 1)
        values = {"error": self.wrong / n, "loss": self.loss / n}
        if self.classes >= 10:
            values["top5_error"] = self.wrong5 / n
        self.reset()
        return values


