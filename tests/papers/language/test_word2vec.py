"""word2vec: windows, objectives and steps against their definitions; files, runs, questions and answers."""

import heapq
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jingdu.errors import UsageError
from jingdu.papers.language import word2vec as w2v
from jingdu.papers.language.word2vec import Learner, Learning, Word2Vec, cut_windows, fit, huffman
from jingdu.papers.language.word2vec.learning import DRAWS, GROUP, Rows
from jingdu.papers.language.word2vec.network import spell
from jingdu.papers.language.word2vec.training import number


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(words: int = 23, dim: int = 7, **options: Any) -> Word2Vec:
    """Random vectors, counts that fall, words w0, w1, ..."""
    spelling = spell([f"w{i}" for i in range(words)])
    made = Word2Vec(words, dim, spelling=len(spelling), **{"output": True, **options})
    for table in made.parameters():
        table.data.copy_(torch.randn(table.shape, generator=generator()))
    made.spelling.copy_(spelling)
    made.counts.copy_(torch.arange(words, 0, -1) ** 2)
    return made


# Vocabulary ------------------------------------------------------------------------------------------


def test_counts_subsampling_and_noise() -> None:
    words, counts = w2v.sort_words(Counter("bbbaaacccccdee"), min_count=2)
    assert words == ["c", "a", "b", "e"] and counts.tolist() == [5, 3, 3, 2]
    counts, t = torch.tensor([5000, 900, 90, 10]), 1e-2
    f = counts / 6000
    assert torch.allclose(w2v.keep_probability(counts, t), (((f / t).sqrt() + 1) * t / f).clamp(max=1))
    assert torch.allclose(w2v.keep_probability(counts, t, "text"), (t / f).sqrt().clamp(max=1))
    assert w2v.keep_probability(counts, 0).tolist() == [1, 1, 1, 1]
    p = w2v.noise_distribution(torch.tensor([16, 1, 81, 0]))
    assert torch.allclose(p, torch.tensor([8, 1, 27, 0]).double() / 36)
    drawn = w2v.draw_noise(p.cumsum(0), 40_000, generator())
    assert torch.allclose(drawn.bincount(minlength=4) / 40_000, p.float(), atol=0.01)


@given(st.lists(st.integers(1, 60), min_size=2, max_size=40))
@settings(max_examples=40, deadline=None)
def test_the_tree_is_a_shortest_prefix_code(found: list[int]) -> None:
    """Against Huffman's algorithm on a heap: the same total length; and codes decode."""
    counts = torch.tensor(sorted(found, reverse=True))
    tree, heap, total = huffman(counts), sorted(found), 0
    while len(heap) > 1:
        heapq.heappush(heap, joined := heapq.heappop(heap) + heapq.heappop(heap))
        total += joined
    lengths = tree.valid.sum(1)
    assert int((lengths * counts).sum()) == total
    codes = ["".join("01"[bit] for bit in tree.bits[i][: lengths[i]].tolist()) for i in range(len(counts))]
    assert not any(a != b and b.startswith(a) for a in codes for b in codes) and len(set(codes)) == len(codes)
    # The nodes of a path are those of its code's prefixes, and the root is the last that was made.
    at: dict[str, int] = {}
    for i, code in enumerate(codes):
        for depth, node in enumerate(tree.nodes[i][: lengths[i]].tolist()):
            assert at.setdefault(code[:depth], node) == node
    assert at[""] == len(counts) - 2 and sorted(at.values()) == list(range(len(counts) - 1))
    assert not tree.nodes[~tree.valid].any() and not tree.bits[~tree.valid].any()


def test_the_rarer_half_is_the_positive_class() -> None:
    tree = huffman(torch.tensor([8, 4, 1]))
    assert tree.bits.tolist() == [[True, False], [False, True], [False, False]]
    assert tree.nodes.tolist() == [[1, 0], [1, 0], [1, 0]] and tree.valid.tolist()[0] == [True, False]
    with pytest.raises(UsageError, match="two words"):
        huffman(torch.tensor([3]))


def test_phrases_by_the_score() -> None:
    text = [["new", "york", "is", "new"], ["in", "new", "york"], ["is", "york"], ["new", "is"]]
    words, pairs = w2v.count_bigrams(text)
    assert words["new"] == 4 and pairs["new", "york"] == 2 and pairs["is", "new"] == 1
    score = (2 - 1) / (4 * 3) * 11
    assert w2v.find_phrases(words, pairs, threshold=score - 0.01, discount=1) == {("new", "york")}
    assert w2v.find_phrases(words, pairs, threshold=score, discount=1) == set()
    assert w2v.find_phrases(words, pairs, threshold=0, discount=4) == set()  # york is too rare
    phrases = {("new", "york"), ("york", "times"), ("new_york", "times")}
    once = w2v.join_phrases(["the", "new", "york", "times", "york", "times"], phrases)
    assert once == ["the", "new_york", "times", "york_times"]
    assert w2v.join_phrases(once, phrases) == ["the", "new_york_times", "york_times"]


# Windows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 3, 16])
def test_every_word_meets_its_window(block: int) -> None:
    """Over all blocks each word is a centre once, with all words of its sentence within a reach of 1 .. window."""
    window, count = 4, 211
    words = torch.arange(count, dtype=torch.int32)
    sentence = (torch.rand(count, generator=generator(1)) < 0.1).cumsum(0).int()
    near, pairs = cut_windows(words, sentence, window, block, generator(2))
    assert len(near) % GROUP == 0 and pairs.shape == (len(near), block, block + 2 * window)
    found: dict[int, set[int]] = {}
    for some, their in zip(near.tolist(), pairs.tolist(), strict=True):
        for i, row in enumerate(their):
            neighbours = {word for word, is_pair in zip(some, row, strict=True) if is_pair}
            assert sum(row) == len(neighbours)
            if neighbours:
                assert some[window + i] not in found
                found[some[window + i]] = neighbours
    reaches = set()
    for centre in range(count):
        reach = max((abs(centre - word) for word in found.get(centre, ())), default=0)
        own = {word for word in range(count) if sentence[word] == sentence[centre] and word != centre}
        assert found.get(centre, set()) == {word for word in own if abs(word - centre) <= reach}
        reaches.add(reach)
    assert reaches >= {1, 2, 3, 4} and max(reaches) <= window


def test_near_words_are_paired_more_often() -> None:
    """At distance k of a window of w: with probability (w - k + 1) / w. And no words give no pairs."""
    words = torch.arange(30_000, dtype=torch.int32)
    near, pairs = cut_windows(words, torch.zeros_like(words), 5, 16, generator(3))
    share = (near[:, None] - near[:, 5:-5, None]).abs()[pairs].bincount(minlength=6)[1:] / (2 * 30_000)
    assert torch.allclose(share, torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2]), atol=0.015)
    assert not cut_windows(words[:0], words[:0], 5)[1].any()


def test_unknown_words_are_left_out_before_windows() -> None:
    tokens, sentence = number([["a", "x", "b"], [], ["b"], ["x"], ["a"]], {"</s>": 1, "a": 2, "b": 3})
    assert tokens.tolist() == [0, 1, 1, 0]
    assert sentence[0] == sentence[1] and len(set(sentence.tolist())) == 3, sentence


# The step --------------------------------------------------------------------------------------------


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_one_pair_is_the_papers_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """2013b, Eq. 4 on NumPy's float64: u_o, u_n and v each move by the rate times their gradient at the old vectors."""
    model, noise, rate = network(), [], 0.03
    learner = Learner(model, window=1, negative=2)
    learner.share[:] = 1  # the noise below is never the centre word
    old = {name: table.detach().double().numpy().copy() for name, table in model.named_parameters()}
    text = torch.tensor([3, 5], dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    near, pairs = cut_windows(*text, 1, learner.block)

    def drawn(cumulative: Tensor, count: int, generator: Any = None) -> Tensor:
        rows = (torch.arange(count, dtype=torch.int32) % 7) + 11
        noise.append(rows.view(-1, DRAWS * 2))
        return rows

    monkeypatch.setattr("jingdu.papers.language.word2vec.learning.draw_noise", drawn)
    learner.step(near, pairs, rate)
    v, u = old["input"].copy(), old["output"].copy()
    assert len(noise) == 1 and len(near) == learner.batch and pairs.sum() == 2
    for block, centre, place in pairs.nonzero().tolist():
        o, i = int(near[block, 1 + centre]), int(near[block, place])
        found = [(o, rate * (1 - sigmoid(old["output"][o] @ old["input"][i])))]
        for n in noise[0][(place * len(near) + block) // GROUP].tolist():
            found.append((n, -rate / DRAWS * sigmoid(old["output"][n] @ old["input"][i])))
        for row, error in found:
            v[i] += error * old["output"][row]
            u[row] += error * old["input"][i]
    assert np.allclose(model.input.detach(), v, rtol=0, atol=1e-6)
    assert np.allclose(model.output.detach(), u, rtol=0, atol=1e-6)
    assert not np.allclose(old["input"][3], v[3], atol=1e-3)


def test_a_noise_word_that_is_the_target_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """In expectation over the noise, the centre term and the noise term together leave out n = o."""
    model = network(words=5, dim=3)
    learner, p = Learner(model, window=1, negative=3), w2v.noise_distribution(model.counts)
    v, softplus = model.input.detach()[2], torch.nn.functional.softplus
    x = (model.output.detach() @ v).double()
    monkeypatch.setattr("jingdu.papers.language.word2vec.learning.GROUP", 1)
    centre, _ = learner.negative_sampling(torch.full((1, 1), 1, dtype=torch.int32), torch.ones(1, 1, 1), generator())
    expected = float(centre.value(v.view(1, 1, -1))) - 3 * float((p * softplus(x)).sum())
    wanted = -softplus(-x[1]) - 3 * sum(p[n] * softplus(x[n]) for n in range(5) if n != 1)
    assert expected == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("architecture", ["skip-gram", "cbow"])
@pytest.mark.parametrize("kind", ["output", "tree", "both"])
def test_a_step_climbs_the_objectives_gradient(architecture: str, kind: str) -> None:
    """The step against autograd of the terms' values, with the same noise; in cbow neighbours move otherwise (below)."""
    model = network(output=kind != "tree", tree=kind != "output", dim=5)
    learner = Learner(model, architecture, window=2, negative=3)
    words = torch.randint(0, 23, (157,), generator=generator(1), dtype=torch.int32)
    near, pairs = cut_windows(words, torch.arange(157, dtype=torch.int32) // 11, 2, learner.block, generator(2))
    near, pairs = near[: learner.batch], pairs[: learner.batch]
    old = {name: table.detach().clone() for name, table in model.named_parameters()}
    tables = {name: table.clone().requires_grad_() for name, table in old.items()}
    for name, table in tables.items():
        getattr(learner, name).table = table
    v, chosen = learner.predictors(near.T, pairs)
    sum(term.value(v) for term in learner.terms(near, pairs, chosen, generator(4))).backward()

    rate = 1e-3  # nothing overshoots
    Learner(model, architecture, window=2, negative=3).step(near, pairs, rate, generator(4))
    for name, table in model.named_parameters():
        if architecture == "skip-gram" or name != "input":
            assert torch.allclose((table.detach() - old[name]) / rate, tables[name].grad, atol=2e-2, rtol=1e-2), name


def test_cbow_neighbours_take_the_whole_error() -> None:
    """One centre word with two neighbours: h is their mean, and both move by the gradient for h, as in the C code."""
    model = network(output=False, tree=True, dim=3)
    learner = Learner(model, "cbow", window=1)
    old, inner = model.input.detach().clone(), model.inner.detach().clone()
    pairs = torch.zeros(1, 4, 6, dtype=torch.bool)
    pairs[0, 0, [0, 2]] = True
    learner.step(torch.tensor([[4, 9, 6, 0, 0, 0]], dtype=torch.int32), pairs, 0.05)
    h, error = (old[4] + old[6]) / 2, torch.zeros(3)
    depth = int(learner.tree.valid[9].sum())
    for node, bit in zip(learner.tree.nodes[9][:depth].tolist(), learner.tree.bits[9][:depth].tolist(), strict=True):
        error += 0.05 * ((1 - bit) - torch.sigmoid(inner[node] @ h)) * inner[node]
    for word in (4, 6):
        assert torch.allclose(model.input[word], old[word] + error, atol=1e-6)
    assert torch.equal(model.input[9], old[9])


def test_many_pairs_of_a_word_do_not_overshoot() -> None:
    """Changes of one row whose bends add up to more than 1 are divided by their sum; three words alone stay bounded."""
    rows = Rows(torch.zeros(3, 2))
    bends = torch.tensor([[1.0, 1.0], [0.5, 2.0]])
    rows.add(torch.tensor([[1, 1], [2, 1]], dtype=torch.int32), torch.ones(2, 2, 2), bends)
    assert rows.table.tolist() == [[0, 0], [0.75, 0.75], [1, 1]] and not rows.total.any()
    text = [["a"] * 400 + ["b", "c"] * 50] * 20
    for options in ({}, {"architecture": "cbow"}, {"tree": True}):
        assert fit(text, dim=8, sample=0, epochs=3, **options).input.abs().max() < 10, options


def test_the_tree_is_a_distribution() -> None:
    """Over all words the probabilities of the hierarchical softmax sum to one; the loss is their logarithm."""
    model = network(words=13, dim=4, output=False, tree=True)
    learner, v = Learner(model, window=1), model.input.detach()[3].view(1, 1, -1)
    one = torch.ones(1, 1, 1)
    words = [torch.tensor([[word]], dtype=torch.int32) for word in range(13)]
    logs = [float(learner.hierarchical_softmax(word, one).value(v)) for word in words]
    assert sum(map(math.exp, logs)) == pytest.approx(1, rel=1e-5)


def test_loss_of_zero_output_vectors() -> None:
    """All dot products are 0: every pair costs (K + 1) log 2, less the noise that is the word itself."""
    learner = Learner(network(), negative=4)
    learner.output.table.zero_()
    words = torch.randint(0, 23, (300,), generator=generator(1), dtype=torch.int32)
    total, pairs = learner.loss(words, torch.zeros_like(words), generator())
    assert 1500 < pairs < 2100 and 4.6 * math.log(2) < total / pairs < 5 * math.log(2)


def test_learning_separates_what_the_text_separates() -> None:
    """The words nearest to each are those that share its neighbours; in all four ways."""
    rng = np.random.default_rng(0)
    text = [[f"{half}{i}" for i in rng.integers(0, 10, 9)] for half in rng.choice(["a", "b"], 1500)]
    for options in ({}, {"architecture": "cbow"}, {"tree": True}, {"tree": True, "architecture": "cbow"}):
        model = fit(text, dim=9, epochs=4, sample=0, **options)
        for word in model.words:
            assert {neighbour[0] for neighbour, _ in model.neighbours(word, 7)} == {word[0]}, (options, word)


@pytest.mark.parametrize("options", [
    {"architecture": "glove"}, {"window": 0}, {"negative": 0}, {"sample": -1}, {"subsampling": "none"}, {"epochs": 0},
    {"lr": 0}, {"min_count": 0}, {"phrases": (0,)},
])  # fmt: skip
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Learning(Word2Vec(0, 5, output=True), **options)


def test_too_little_text_is_an_error() -> None:
    with pytest.raises(UsageError, match="nothing to train"):
        Learning(Word2Vec(0, 5)).observe({"text": ["a b"]}, 0)
    with pytest.raises(UsageError, match="min_count"):
        fit([["a", "b"]])
