"""Masked image modelling (Section 2.3): the words of the hidden patches, from all that is seen."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jingdu.engine.contracts import Batch, System
from jingdu.engine.loop import load_system
from jingdu.errors import UsageError
from jingdu.metrics.classification import Accuracy

from .model import BEiT

__all__ = ["PreTraining", "trained_tokenizer"]


def trained_tokenizer(start: str, previous: Mapping[str, Any]) -> nn.Module:
    """The tokenizer of an earlier stage, or of a run. Raises UsageError for neither."""
    if start in previous:
        return previous[start].tokenizer
    if not (Path(start) / "recipe.json").exists():
        raise UsageError(
            f"no earlier stage {start!r} with a tokenizer, and no run folder: there are {sorted(previous)}"
        )
    return load_system(Path(start)).tokenizer


class PreTraining(System):
    r"""Equation 2: the mean of $-\log p(z_i \mid x^M)$ over the hidden patches, $z$ being the tokenizer's words.

    A batch is one of `Views`. Evaluation gives word_loss (nats) and word_error; chance_error is that of always naming
    the most frequent word of these data.

    Args:
        network: a BEiT with words.
        tokenizer: a `VisualTokenizer`. It is not trained.
        words_of: the stage, or the run, whose tokenizer this one becomes; None: as it is.
        previous: the finished stages, by name.

    Raises UsageError where the network and the tokenizer differ in the number of words.
    """

    def __init__(
        self, network: BEiT, tokenizer: nn.Module, words_of: str | None = None,
        previous: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        super().__init__()
        if network.words != tokenizer.words:
            raise UsageError(f"the network predicts one of {network.words} words, the tokenizer has {tokenizer.words}")
        self.network, self.tokenizer = network, tokenizer.requires_grad_(False)
        if words_of is not None:
            tokenizer.load_state_dict(trained_tokenizer(words_of, previous or {}).state_dict())
        self.accuracy = Accuracy()
        self.seen = torch.zeros(tokenizer.words, dtype=torch.int64)

    def _ask(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits and words of the hidden patches."""
        mask = batch["mask"]
        # In full precision whatever the network has: words are nearest neighbours (engine_for_pretraining.py).
        with torch.no_grad(), torch.autocast(mask.device.type, enabled=False):
            ids = self.tokenizer(batch["view"])
        if ids.shape != mask.shape:
            raise UsageError(
                f"the tokenizer gives {ids.shape[1]} x {ids.shape[2]} words, the network has {mask.shape[1]} x "
                f"{mask.shape[2]} patches: change the second view's size, or the tokenizer's stride"
            )
        return self.network(batch["image"], mask).float(), ids[mask]

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        logits, words = self._ask(batch)
        return F.cross_entropy(logits, words), {"word_error": (logits.detach().argmax(1) != words).float().mean()}

    def update(self, batch: Batch) -> None:
        logits, words = self._ask(batch)
        self.accuracy.update(logits, words)
        self.seen += words.bincount(minlength=len(self.seen)).to(self.seen.device)

    def compute(self) -> dict[str, float]:
        found = self.accuracy.compute()
        chance = 1 - float(self.seen.max() / self.seen.sum())
        self.seen.zero_()
        return {"word_loss": found["loss"], "word_error": found["error"], "chance_error": chance}
