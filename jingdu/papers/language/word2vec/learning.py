r"""How text changes the vectors: windows, the two architectures, the two objectives, and one step on a batch.

Letters: b blocks of T centre words; a block's S = T + 2w words are the centres and w words on either side;
P predictors; K noise words a pair; d numbers of a vector.

word2vec.c takes one pair of words after the other. Here a step takes many at once, so that its work is products of
matrices: all pairs of a block are one product, and noise words are drawn for a group of predictors together. Three
things keep this near to one pair at a time:

- Blocks are short, and those of a step come from all over the text: words repeat near each other, and a step adds up
  the gradients of a word that all were computed at its old vector.
- The predictors that share noise words come from different blocks.
- Where a word still has so many pairs in one step that their sum could overshoot, its step is made shorter.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float32, Int32
from torch import Tensor

from jingdu.errors import UsageError, unknown

from .network import Word2Vec
from .vocabulary import Subsampling, draw_noise, huffman, keep_probability, noise_distribution

Architecture = Literal["skip-gram", "cbow"]

CENTRES = 1024
"""Centre words of a step."""
BLOCK, TREE_BLOCK = 16, 4
"""T for negative sampling, and where there is a tree: a path's nodes meet the words of other windows in vain."""
GROUP = 64
"""Predictors that share noise words. Steps have a multiple of it in blocks."""
DRAWS = 8
"""Noise words that a group draws for each of the K that a pair asks for."""


def cut_windows(
    words: Int32[Tensor, " tokens"],
    sentence: Int32[Tensor, " tokens"],
    window: int,
    block: int = BLOCK,
    generator: torch.Generator | None = None,
) -> tuple[Int32[Tensor, "blocks span"], Bool[Tensor, "blocks block span"]]:
    """Text as blocks of words, in random order, and which words of a block are pairs.

    Around each centre word the window is cut to 1 .. `window` words at random, so that near words are paired more
    often than far ones (2013a, Sec. 3.2). It does not leave the sentence.

    Args:
        words: by number; words that subsampling discards are gone already.
        sentence: the number of each word's sentence.

    Returns each block's words, `window` on either side included, and [centre, word]: are they a pair.
    """
    blocks = -(-max(len(words), 1) // (block * GROUP)) * GROUP  # a whole number of groups
    span, margins = block + 2 * window, (window, window + blocks * block - len(words))
    order = torch.randperm(blocks, generator=generator)
    near = F.pad(words, margins).unfold(0, span, block)[order]
    home = F.pad(sentence, margins, value=-1).unfold(0, span, block)[order]
    reach = torch.randint(1, window + 1, (blocks, block, 1), generator=generator, dtype=torch.int8)
    distance = (torch.arange(span) - window - torch.arange(block)[:, None]).abs().to(torch.int8)
    distance[distance == 0] = window + 1  # a word is no neighbour of itself
    centre = home[:, window : window + block, None]
    return near, (distance <= reach) & (home[:, None] == centre) & (centre >= 0)


class Rows:
    """A table of vectors that a step reads, and adds to, at many places."""

    def __init__(self, table: Tensor):
        self.table, self.total = table, table.new_zeros(len(table))

    def __getitem__(self, rows: Int32[Tensor, "..."]) -> Float32[Tensor, "... dim"]:
        return self.table.index_select(0, rows.flatten()).view(*rows.shape, -1)

    def add(self, rows: Int32[Tensor, "..."], change: Float32[Tensor, "... dim"], bend: Float32[Tensor, "..."]) -> None:
        """Add each change to its row; where a row's changes have a `bend` above 1 in all, divided by it.

        A change is the rate times a gradient, and its bend the rate times the largest curvature there can be: with a
        sum above 1 the row could go past the minimum of its part of the loss.
        """
        flat, change = rows.flatten().long(), change.flatten(0, -2)
        self.total.index_add_(0, flat, bend.flatten())
        change /= self.total[flat].clamp_(min=1)[:, None]
        self.total[flat] = 0
        self.table.index_add_(0, flat, change)


@dataclass(frozen=True)
class Term:
    """A part of the objective: sums over outputs u and predictors v of rate (label x - share softplus(x)), x = u.v.

    With a share of 1 that is rate x log sigma(x) for the label 1, and rate x log sigma(-x) for the label 0.
    """

    table: Rows
    rows: Int32[Tensor, "n outputs"]
    """Which vectors of the table the u are."""
    view: Callable[[Tensor], Tensor]
    """[predictors, blocks, ...] as [n, own, ...]: which predictors meet the outputs of a row."""
    rate: Float32[Tensor, "n outputs own"] | Float32[Tensor, "n 1 own"]
    label: Float32[Tensor, "n outputs 1"] | float
    share: Float32[Tensor, "n outputs 1"] | float = 1.0

    def logits(self, v: Float32[Tensor, "predictors blocks dim"]) -> Float32[Tensor, "n outputs own"]:
        return self.table[self.rows] @ self.view(v).mT

    def value(self, v: Float32[Tensor, "predictors blocks dim"]) -> Float32[Tensor, ""]:
        x = self.logits(v)
        return (self.rate * (self.label * x - self.share * F.softplus(x))).sum()

    def gradients(
        self, v: Float32[Tensor, "predictors blocks dim"]
    ) -> tuple[tuple[Float32[Tensor, "n outputs dim"], Tensor], tuple[Float32[Tensor, "n own dim"], Tensor]]:
        """Of `value`, for the u and for the v; each with its bend (see `Rows.add`): softplus'' is 1/4 at most."""
        u, v = self.table[self.rows], self.view(v)
        error = self.rate * (self.label - self.share * torch.sigmoid(u @ v.mT))
        of_u = (self.rate * v.square().sum(2)[:, None]).sum(2) / 4
        of_v = (self.rate * u.square().sum(2)[..., None]).sum(1) / 4
        return (error @ v, of_u.expand(self.rows.shape)), (error.mT @ u, of_v)


class Learner:
    """A network with counted words, and how it learns from text.

    Args:
        network: its `output` vectors are trained by negative sampling, its `inner` ones by the hierarchical softmax;
            with both, by the sum of the two.
        architecture: skip-gram predicts a word from each of its neighbours, cbow from their mean.
        window: the largest distance of a pair.
        negative: K: noise words for each pair.
        sample: the threshold of subsampling; 0 keeps all words.
        subsampling: by the formula of the code or of the text (see `keep_probability`).
    """

    def __init__(
        self, network: Word2Vec, architecture: Architecture | str = "skip-gram", window: int = 5, negative: int = 5,
        sample: float = 1e-3, subsampling: Subsampling | str = "code",
    ):  # fmt: skip
        for name, value, known in (
            ("architecture", architecture, Architecture), ("subsampling", subsampling, Subsampling)
        ):  # fmt: skip
            if value not in get_args(known):
                raise unknown(name, value, get_args(known))
        if not (1 <= window <= 100 and negative >= 1 and sample >= 0):
            raise UsageError(
                f"window {window}, negative {negative}, sample {sample}: windows are 1 to 100 words, noise words 1 or more"
            )
        if network.output is None and network.inner is None:
            raise UsageError("this network has nothing to train against: give it output=True or tree=True")
        self.network, self.architecture, self.window, self.negative = network, architecture, window, negative
        self.block = BLOCK if network.inner is None else TREE_BLOCK
        self.batch = CENTRES // self.block
        self.keep = keep_probability(network.counts, sample, subsampling)
        self.input = Rows(network.input.data)
        if network.output is not None:
            noise = noise_distribution(network.counts)
            self.output, self.cumulative = Rows(network.output.data), noise.cumsum(0)
            self.share = (1 - negative * noise).clamp(min=0).float()
        if network.inner is not None:
            self.tree, self.inner = huffman(network.counts), Rows(network.inner.data)

    # The objectives --------------------------------------------------------------------------------

    def negative_sampling(
        self, centres: Int32[Tensor, "blocks block"], rates: Float32[Tensor, "blocks block predictors"],
        generator: torch.Generator | None,
    ) -> list[Term]:  # fmt: skip
        """log sigma(u_o.v), and the sum over K noise words n of log sigma(-u_n.v) (2013b, Eq. 4), for every pair.

        The predictors of a group share noise words: they take the mean over its draws, times K. word2vec.c skips a
        draw that is the word o itself; here what it adds to the mean, K P_n(o) log sigma(-u_o.v), is taken back (all of
        it unless o is more than 1/K of the noise, as in texts of a few different words).
        """
        of_noise = _groups(rates.sum(1).T)[:, None] / DRAWS
        noise = draw_noise(self.cumulative, len(of_noise) * DRAWS * self.negative, generator).view(len(of_noise), -1)
        return [
            Term(self.output, centres, _blocks, rates, 1.0, self.share[centres][..., None]),
            Term(self.output, noise, _groups, of_noise, 0.0),
        ]

    def hierarchical_softmax(
        self, centres: Int32[Tensor, "blocks block"], rates: Float32[Tensor, "blocks block predictors"]
    ) -> Term:
        """log p(o | v): the sum over the path to o of log sigma(+-u.v), + where its code is 0 (2013b, Eq. 3)."""
        valid = self.tree.valid[centres]  # [blocks, block, depth]
        depth = int(valid.sum(2).max())
        nodes, bits, valid = (x[..., :depth] for x in (self.tree.nodes[centres], self.tree.bits[centres], valid))
        along = (rates[:, :, None] * valid[..., None]).flatten(1, 2)
        return Term(self.inner, nodes.flatten(1), _blocks, along, (~bits).float().flatten(1)[..., None])

    def predictors(
        self, near: Int32[Tensor, "span blocks"], pairs: Bool[Tensor, "blocks block span"]
    ) -> tuple[Float32[Tensor, "predictors blocks dim"], Float32[Tensor, "blocks block predictors"]]:
        """What predicts the centre words, and which predictor is whose: 1, else 0.

        Skip-gram: every word by itself. CBOW: for each centre word the mean of its neighbours. Predictors that lie next
        to each other in memory are of different blocks.
        """
        v, chosen = self.input[near], pairs.float()
        if self.architecture == "skip-gram":
            return v, chosen
        mean = chosen / chosen.sum(2, keepdim=True).clamp_(min=1)
        return (mean @ v.transpose(0, 1)).transpose(0, 1).contiguous(), torch.diag_embed(pairs.any(2).float())

    def terms(self, near: Tensor, pairs: Tensor, rates: Tensor, generator: torch.Generator | None) -> list[Term]:
        centres = near[:, self.window : -self.window]
        found = self.negative_sampling(centres, rates, generator) if self.network.output is not None else []
        return [*found, self.hierarchical_softmax(centres, rates)] if self.network.inner is not None else found

    # Learning --------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(
        self, near: Int32[Tensor, "blocks span"], pairs: Bool[Tensor, "blocks block span"], rate: float,
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        """Move all vectors that a batch of blocks is about, each by its gradients at the old vectors."""
        v, chosen = self.predictors(near.T, pairs)
        terms = self.terms(near, pairs, rate * chosen, generator)
        change, bend = torch.zeros_like(v), v.new_zeros(v.shape[:2])
        moves = []
        for term in terms:
            of_outputs, of_predictors = term.gradients(v)
            moves.append((term.table, term.rows, *of_outputs))
            for total, part in zip((change, bend), of_predictors, strict=True):
                term.view(total).add_(part)
        if self.architecture == "cbow":
            # As in word2vec.c, every neighbour takes the whole error, and not its share of the mean.
            change = (pairs.float().mT @ change.transpose(0, 1)).transpose(0, 1)
            bend = (pairs.float().mT @ bend.T[..., None])[..., 0].T
        for table, rows, moved, its_bend in (*moves, (self.input, near.T, change, bend)):
            table.add(rows, moved, its_bend)

    def learn(
        self, words: Int32[Tensor, " tokens"], sentence: Int32[Tensor, " tokens"], first: float, last: float,
        generator: torch.Generator | None = None,
    ) -> int:  # fmt: skip
        """Learn from text; the learning rate goes from `first` to `last`. Returns how many words were kept."""
        kept = torch.rand(len(words), generator=generator) < self.keep[words]
        near, pairs = cut_windows(words[kept], sentence[kept], self.window, self.block, generator)
        for start in range(0, len(near), self.batch):
            rate = first + (last - first) * start / len(near)
            self.step(near[start : start + self.batch], pairs[start : start + self.batch], rate, generator)
        return int(kept.sum())

    @torch.no_grad()
    def loss(
        self, words: Int32[Tensor, " tokens"], sentence: Int32[Tensor, " tokens"],
        generator: torch.Generator | None = None,
    ) -> tuple[float, int]:  # fmt: skip
        """Minus the objective, in nats, summed over the pairs of a text (all of its words), and how many they are."""
        near, pairs = cut_windows(words, sentence, self.window, self.block, generator)
        total, count = 0.0, 0.0
        for some, their in zip(near.split(self.batch), pairs.split(self.batch), strict=True):
            v, chosen = self.predictors(some.T, their)
            total -= sum(float(term.value(v)) for term in self.terms(some, their, chosen, generator))
            count += float(chosen.sum())
        return total, round(count)


def _blocks(x: Tensor) -> Tensor:
    """[predictors, blocks, ...] -> [blocks, predictors, ...]: a block's outputs meet its own predictors."""
    return x.transpose(0, 1)


def _groups(x: Tensor) -> Tensor:
    """[predictors, blocks, ...] -> [groups, GROUP, ...]: predictors at the same place in GROUP different blocks."""
    return x.flatten(0, 1).unflatten(0, (-1, GROUP))
