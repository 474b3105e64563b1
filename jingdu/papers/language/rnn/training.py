"""Back-propagation through time over text that does not end: the state is carried, the gradient is cut."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jingdu.engine.contracts import Batch, System
from jingdu.metrics.language import Perplexity

from .models import masked_nats
from .scan import Hidden


class Stateful(System):
    """Truncated back-propagation through time: a batch goes on where the last one ended, from a state that is a constant.

    A batch has `tokens` [rows, time + 1], `row` (which stream) and `start` (whether the stream begins here), as
    `Streams` gives it. The states are buffers, so a resumed run has them.

    Args:
        network: a `LanguageModel`.
        batch: how many streams there are.
    """

    def __init__(self, network: nn.Module, batch: int):
        super().__init__()
        self.network = network
        for name in ("trained", "evaluated"):
            for number, x in enumerate(network.init_state(batch, 0)):
                self.register_buffer(f"{name}{number}", x.detach().clone(), persistent=name == "trained")
        self.parts = number + 1
        self.own: Tensor | None = None
        self.perplexity = Perplexity()

    def _carried(self, name: str) -> list[Tensor]:
        return [getattr(self, f"{name}{number}") for number in range(self.parts)]

    def _read(self, name: str, batch: Batch) -> Tensor:
        """Nats [rows, time]; the states of the batch's streams become those after it."""
        tokens, row, start = batch["tokens"], batch["row"], batch["start"]
        carried, state = self._carried(name), None
        if not bool(start.all()):
            state = Hidden(x[:, row].masked_fill(start[None, :, None], 0) for x in carried)
        nats, state = self.network(tokens[:, :-1], state, tokens[:, 1:])
        with torch.no_grad():
            for x, new in zip(carried, state, strict=True):
                x[:, row] = new.detach().to(x.dtype)
        return nats

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        self.own = batch["row"] if self.own is None else torch.cat([self.own, batch["row"]])
        return self._read("trained", batch).mean(), {}

    def after_update(self, objective: str) -> None:
        """Where several processes have read a share of the streams each, every one gets the states of all."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 and self.own is not None:
            for x in self._carried("trained"):
                mine = torch.zeros_like(x)
                mine[:, self.own] = x[:, self.own]
                dist.all_reduce(mine)
                x.copy_(mine)
        self.own = None

    def update(self, batch: Batch) -> None:
        self.perplexity.add(self._read("evaluated", batch), batch.get("bytes"))

    def compute(self) -> dict[str, float]:
        return self.perplexity.compute()


class Translation(System):
    """Cross-entropy of each symbol of the target, given the source and the symbols before it, under an encoder-decoder.

    A batch has `source` [batch, source] with `lengths`, and `target` [batch, time + 1] with `mask`, False on padding.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.perplexity = Perplexity()

    def _nats(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = self.network(batch["source"], batch["target"][:, :-1], batch["lengths"])
        mask = batch["mask"][:, 1:]
        return masked_nats(logits, batch["target"][:, 1:], mask), mask

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        nats, mask = self._nats(batch)
        return nats.sum() / mask.sum(), {}

    def update(self, batch: Batch) -> None:
        nats, mask = self._nats(batch)
        self.perplexity.add(nats[mask])

    def compute(self) -> dict[str, float]:
        return self.perplexity.compute()
