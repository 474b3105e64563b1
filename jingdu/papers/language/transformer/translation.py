"""Training a translator, translating with it, and averaging its checkpoints (Sections 5 and 6.1)."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from jingdu.engine.checkpoint import list_checkpoints, verify
from jingdu.engine.contracts import Batch, System
from jingdu.engine.state import read_tree
from jingdu.errors import Refused, UsageError, unknown
from jingdu.metrics.language import Perplexity
from jingdu.metrics.translation import TranslationScores

from .search import Hypothesis, Penalty, Until, beam_search, gnmt

__all__ = ["Translation", "average_checkpoints", "last_checkpoints", "noam_peak", "smoothed_cross_entropy", "translate"]

PAD = 0
"""What `Pairs` pads with."""

Over = Literal["others", "all"]


def smoothed_cross_entropy(
    logits: Float[Tensor, "tokens vocabulary"],
    targets: Int64[Tensor, " tokens"],
    smoothing: float = 0.1,
    over: Over | str = "others",
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    r"""Cross-entropy with a target that is not sure of itself (Sec. 5.4), and without: nats of each token.

    The true word has probability 1 - smoothing, and the rest is shared alike: by the V - 1 `others`, as in tensor2tensor
    (layers/common_layers.py, smoothing_cross_entropy, which takes the target's entropy off besides: a constant); or by
    `all` V words, the true one among them, as in fairseq and torch.
    """
    if over not in ("others", "all"):
        raise unknown("way of smoothing", over, ("others", "all"))
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    nats = -log_p.gather(1, targets[:, None]).squeeze(1)
    words = logits.shape[1]
    share = smoothing * words / (words - 1) if over == "others" else smoothing
    return (1 - share) * nats - share * log_p.mean(1), nats


def noam_peak(width: int, warmup: int = 4000) -> float:
    r"""The largest rate of Equation 3, $d^{-0.5} \min(s^{-0.5}, s\, w^{-1.5})$, which it has at step w.

    A stage with this `lr` and the schedule `inverse_sqrt(warmup=w)` has the rates of the equation.
    """
    return (width * warmup) ** -0.5


class Translation(System):
    """A network that maps source and target tokens to logits of the next target token, under smoothed targets.

    A batch is lists of `source` and `target` (see `Pairs`); the loss is the mean over its members, each of which is the
    mean over its target tokens. Evaluation gives loss, in nats a token and without smoothing, and perplexity; with
    `beams` also BLEU and chrF of translations by so many beams.

    Args:
        network: logits from (source, target, lengths of the sources): `Transformer`, or rnn's `EncoderDecoder`.
        smoothing: probability that is taken from the true word.
        over: who gets it: the `others`, or `all` (see `smoothed_cross_entropy`).
        beams: of the translations at evaluation; 0 is none of them.
    """

    def __init__(self, network: nn.Module, smoothing: float = 0.1, over: Over | str = "others", beams: int = 0):
        super().__init__()
        self.network, self.smoothing, self.over, self.beams = network, smoothing, over, beams
        self.perplexity, self.scores = Perplexity(), TranslationScores()

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        losses, nats, tokens = [], [], 0
        for source, target in zip(batch["source"], batch["target"], strict=True):
            following = target[:, 1:].flatten()
            logits = self.network(source, target[:, :-1], (source != PAD).sum(1)).flatten(0, 1)
            smoothed, plain = smoothed_cross_entropy(logits, following, self.smoothing, self.over)
            real = following != PAD  # weights: to cut the padding out would copy all logits
            count = real.sum()
            losses.append((smoothed * real).sum() / count)
            nats.append((plain.detach() * real).sum() / count)
            tokens += int(count)
        return torch.stack(losses).mean(), {"nats": torch.stack(nats).mean(), "tokens": tokens / len(losses)}

    def update(self, batch: Batch) -> None:
        for source, target in zip(batch["source"], batch["target"], strict=True):
            following = target[:, 1:]
            logits = self.network(source, target[:, :-1], (source != PAD).sum(1))
            self.perplexity.update(logits, following, following != PAD)
        if self.beams:
            for source, speller, reference in zip(batch["source"], batch["speller"], batch["reference"], strict=True):
                found = translate(self.network, [row[row != PAD] for row in source], beams=self.beams)
                self.scores.update([speller.text(best.tokens.tolist()) for best in found], reference)

    def compute(self) -> dict[str, float]:
        return {**self.perplexity.compute(), **(self.scores.compute() if self.beams else {})}


BEAM_TOKENS = 8192
"""Tokens that the beams of a batch may grow to in all: what bounds the memory of keys and values."""


@torch.no_grad()
def translate(
    network: Any,
    sources: Sequence[Sequence[int] | Int64[Tensor, "_"]],
    *,
    beams: int = 4,
    penalty: Penalty = gnmt,
    longer: int = 50,
    until: Until = "sure",
) -> list[Hypothesis]:
    """The best translation of each source that beam search finds, at most `longer` tokens longer than it (Sec. 6.1).

    Sources of similar length are translated together.

    Args:
        network: what has `reading(source, lengths)`, in eval mode. Padding, end and start are 0, 1, 0 where it has no
            `marks`.
        sources: tokens of each, the end included.
        beams, penalty, until: see `beam_search`.
        longer: than its source a translation may be.
    """
    pad, end, start = getattr(network, "marks", (0, 1, 0))
    place = next(network.parameters()).device
    rows = [torch.as_tensor(source, dtype=torch.int64, device=place) for source in sources]
    found: dict[int, Hypothesis] = {}
    waiting = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    while waiting:
        count = max(BEAM_TOKENS // (beams * (len(rows[waiting[0]]) + longer)), 1)
        now, waiting = waiting[:count], waiting[count:]
        source = pad_sequence([rows[i] for i in now], batch_first=True, padding_value=pad)
        starts = [torch.tensor([start], device=place)] * len(now)
        sizes = [len(rows[i]) for i in now]
        reader = network.reading(source, torch.tensor(sizes, device=place))
        limits = [size + longer for size in sizes]
        hypotheses = beam_search(reader, starts, limits, stop=end, beams=beams, penalty=penalty, until=until)
        found |= {i: best for i, (best, *_) in zip(now, hypotheses, strict=True)}
    return [found[i] for i in range(len(rows))]


# Averages of checkpoints ------------------------------------------------------------------------------


def last_checkpoints(checkpoint: Path, count: int) -> list[Path]:
    """The newest `count` checkpoints of a run up to one of its, newest first.

    Raises UsageError where there are fewer: a run keeps as many as its recipe's `keep` says.
    """
    everything = list_checkpoints(checkpoint.parent)
    found = [path for path in everything if int(path.name[5:]) <= int(checkpoint.name[5:])][:count]
    if len(found) < count or count < 1:
        raise UsageError(
            f"{checkpoint.parent}: {len(found)} checkpoints, {count} are to be averaged; train with --keep {count}"
        )
    return found


def average_checkpoints(network: nn.Module, checkpoints: Iterable[Path]) -> nn.Module:
    """Give a network the mean of its weights in several checkpoints (Sec. 6.1: the last 5 of base, 20 of big).

    Raises Refused for a checkpoint that is damaged or of another network.
    """
    total: dict[str, Tensor] = {}
    count = 0
    for path in checkpoints:
        verify(path)
        names = json.loads((path / "model.json").read_text("utf-8"))["networks"]
        tensors = read_tree(path / "model.safetensors")
        prefix = next(f"{name}." for name in names)
        own = {key.removeprefix(prefix): x.double() for key, x in tensors.items() if key.startswith(prefix)}
        if set(own) != set(network.state_dict()):
            raise Refused(f"{path}: it is not of this network")
        total = {key: total[key] + x if count else x for key, x in own.items()}
        count += 1
    network.load_state_dict({key: x / count for key, x in total.items()})
    return network
