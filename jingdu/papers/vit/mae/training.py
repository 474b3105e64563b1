"""Pre-training (Section 3): what is measured, and what is learned from."""

from typing import Any

from torch import Tensor, nn

from jingdu.engine.contracts import Batch, System
from jingdu.errors import UsageError

from .model import MAE

__all__ = ["PreTraining"]


class PreTraining(System):
    """The autoencoder's loss on pictures without labels. Evaluation gives `loss`, of other pictures.

    A loss of 1 is that of a network which predicts a patch's mean alone, where targets are normalised.

    Raises UsageError for a network that is no autoencoder.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        if not isinstance(network, MAE):
            raise UsageError(
                f"pre-training needs an autoencoder (mae_pretrain_base), and this is a {type(network).__name__}"
            )
        self.network: MAE = network
        self.sums = [0.0, 0.0]

    def _loss(self, batch: Batch) -> Tensor:
        return self.network.loss(batch["image"], self.network(batch["image"]))

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        return self._loss(batch), {}

    def update(self, batch: Batch) -> None:
        count = len(batch["image"])
        self.sums = [self.sums[0] + count * float(self._loss(batch).detach()), self.sums[1] + count]

    def compute(self) -> dict[str, float]:
        (total, count), self.sums = self.sums, [0.0, 0.0]
        return {"loss": total / count}
