"""How well a language model predicts text."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from jingdu.errors import Refused

__all__ = ["Perplexity"]


class Perplexity:
    """Mean cross-entropy of the next token, its exponential, and bits a byte, by which vocabularies can be compared.

    The sum is over tokens in float64, so that batch sizes and the lengths of windows change nothing.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self.nats, self.tokens, self.bytes = 0.0, 0, 0

    def update(
        self,
        logits: Float[Tensor, "batch time vocabulary"],
        targets: Int64[Tensor, "batch time"],
        mask: Bool[Tensor, "batch time"] | None = None,
        spelled: Int64[Tensor, " batch"] | None = None,
    ) -> None:
        """Take one batch into account: `mask` False is padding; `spelled` is how many bytes a row's targets spell."""
        nats = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
        kept = torch.ones_like(targets, dtype=torch.bool) if mask is None else mask
        self.add(nats[kept], spelled)

    def add(self, nats: Float[Tensor, "..."], spelled: Int64[Tensor, " batch"] | None = None) -> None:
        """Take tokens into account whose cross-entropy in nats is known; `spelled` is how many bytes each row spells."""
        self.nats += float(nats.detach().cpu().double().sum())
        self.tokens += nats.numel()
        self.bytes += int(spelled.sum()) if spelled is not None else 0

    def compute(self) -> dict[str, float]:
        """loss in nats a token, perplexity, and bits_per_byte where the data say how many bytes there were; then forgets.

        Raises Refused where there was nothing.
        """
        if self.tokens == 0:
            raise Refused("nothing to evaluate: the evaluation data gave no tokens")
        loss = self.nats / self.tokens
        values = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        if self.bytes:
            values["bits_per_byte"] = self.nats / math.log(2) / self.bytes
        self.reset()
        return values
