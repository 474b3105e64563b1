"""word2vec: windows, objectives and steps against their definitions; files, runs, questions and answers."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import jingdu
from jingdu.cli import main
from jingdu.engine import read_log, train
from jingdu.engine.checkpoint import newest_checkpoint
from jingdu.errors import BadInput, Refused, UsageError
from jingdu.papers.language.word2vec import (
    Learner,
    Learning,
    Word2Vec,
    analogies,
    count_bigrams,
    cut_windows,
    draw_noise,
    find_phrases,
    fit,
    huffman,
    join_phrases,
    keep_probability,
    noise_distribution,
    predict,
    read_pairs,
    read_questions,
    read_vectors,
    read_weights,
    solve,
    sort_words,
    spearman,
    write_vectors,
)
from jingdu.papers.language.word2vec.learning import DRAWS, GROUP, LIMIT, Rows
from jingdu.papers.language.word2vec.network import spell
from jingdu.papers.language.word2vec.planted import RELATIONS, speak
from jingdu.papers.language.word2vec.training import number


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(words: int = 23, dim: int = 7, seed: int = 0, **options: Any) -> Word2Vec:
    """Random vectors, counts that fall, words w0, w1, ..."""
    names = [f"w{i}" for i in range(words)]
    made = Word2Vec(words, dim, spelling=len(spell(names)), **{"output": True, **options})
    with torch.no_grad():
        for table in made.parameters():
            table.copy_(torch.randn(table.shape, generator=generator(seed)))
    made.spelling.copy_(spell(names))
    made.counts.copy_(torch.arange(words, 0, -1) ** 2)
    return made


# Vocabulary ------------------------------------------------------------------------------------------


def test_words_are_sorted_by_count() -> None:
    words, counts = sort_words(Counter("bbb aaa ccccc d e ee".replace(" ", "")), min_count=2)
    assert words == ["c", "a", "b", "e"] and counts.tolist() == [5, 3, 3, 3]


def test_subsampling_is_the_codes_formula() -> None:
    counts = torch.tensor([5000, 900, 90, 10])
    f, t = counts / 6000, 1e-2
    assert torch.allclose(keep_probability(counts, t), (((f / t).sqrt() + 1) * t / f).clamp(max=1))
    assert torch.allclose(keep_probability(counts, t, "text"), (t / f).sqrt().clamp(max=1))
    assert keep_probability(counts, 0).tolist() == [1, 1, 1, 1]


def test_noise_follows_counts_to_three_quarters() -> None:
    counts = torch.tensor([16, 1, 81, 0])
    p = noise_distribution(counts)
    assert torch.allclose(p, torch.tensor([8, 1, 27, 0]).double() / 36)
    drawn = draw_noise(p.cumsum(0), 40_000, generator())
    assert torch.allclose(drawn.bincount(minlength=4) / 40_000, p.float(), atol=0.01)


@given(st.lists(st.integers(1, 60), min_size=2, max_size=40))
@settings(max_examples=60, deadline=None)
def test_the_tree_is_a_shortest_prefix_code(found: list[int]) -> None:
    """Against Huffman's algorithm on a heap: the same total length; and codes decode."""
    import heapq

    counts = torch.tensor(sorted(found, reverse=True))
    tree = huffman(counts)
    heap, total = sorted(found), 0
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        total += joined
        heapq.heappush(heap, joined)
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
    words, pairs = count_bigrams(text)
    assert words["new"] == 4 and pairs["new", "york"] == 2 and pairs["is", "new"] == 1
    score = (2 - 1) / (4 * 3) * 11
    assert find_phrases(words, pairs, threshold=score - 0.01, discount=1) == {("new", "york")}
    assert find_phrases(words, pairs, threshold=score, discount=1) == set()
    assert find_phrases(words, pairs, threshold=0, discount=4) == set()  # york is too rare
    phrases = {("new", "york"), ("york", "times"), ("new_york", "times")}
    once = join_phrases(["the", "new", "york", "times", "york", "times"], phrases)
    assert once == ["the", "new_york", "times", "york_times"]
    assert join_phrases(once, phrases) == ["the", "new_york_times", "york_times"]
    assert join_phrases([], phrases) == []


def test_unknown_words_are_left_out_before_windows() -> None:
    tokens, sentence = number([["a", "x", "b"], [], ["b"], ["x"], ["a"]], {"</s>": 1, "a": 2, "b": 3})
    assert tokens.tolist() == [0, 1, 1, 0]
    assert sentence[0] == sentence[1] and len(set(sentence.tolist())) == 3, sentence


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
            centre = some[window + i]
            neighbours = {word for word, is_pair in zip(some, row, strict=True) if is_pair}
            assert sum(row) == len(neighbours)
            if neighbours:
                assert centre not in found
                found[centre] = neighbours
    reaches = Counter()
    for centre in range(count):
        reach = max((abs(centre - word) for word in found.get(centre, ())), default=0)
        own = {word for word in range(count) if sentence[word] == sentence[centre] and word != centre}
        assert found.get(centre, set()) == {word for word in own if abs(word - centre) <= reach}
        reaches[reach] += len(own) >= 2 * window
    assert set(reaches) >= {1, 2, 3, 4} and max(reaches) <= window


def test_near_words_are_paired_more_often() -> None:
    """At distance k of a window of w: with probability (w - k + 1) / w."""
    words = torch.arange(30_000, dtype=torch.int32)
    near, pairs = cut_windows(words, torch.zeros_like(words), 5, 16, generator(3))
    centre = near[:, 5:-5, None]
    distance = (near[:, None] - centre).abs()[pairs]
    share = distance.bincount(minlength=6)[1:] / (2 * 30_000)
    assert torch.allclose(share, torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2]), atol=0.015)


def test_no_words_give_no_pairs() -> None:
    nothing = torch.zeros(0, dtype=torch.int32)
    assert not cut_windows(nothing, nothing, 5)[1].any()


# The step --------------------------------------------------------------------------------------------


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_one_pair_is_the_papers_update() -> None:
    """Eq. 4 by hand: u_o, u_n and v each move by the rate times their gradient at the old vectors."""
    model = network()
    learner = Learner(model, window=1, negative=2)
    learner.share[:] = 1  # noise below is no centre word
    old = {name: table.detach().double().numpy().copy() for name, table in model.named_parameters()}
    near, pairs = cut_windows(
        torch.tensor([3, 5], dtype=torch.int32), torch.zeros(2, dtype=torch.int32), 1, learner.block
    )
    noise, rate = [], 0.03

    def drawn(cumulative: Tensor, count: int, generator: Any = None) -> Tensor:
        rows = (torch.arange(count, dtype=torch.int32) % 7) + 11
        noise.append(rows.view(-1, DRAWS * 2))
        return rows

    import jingdu.papers.language.word2vec.learning as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "draw_noise", drawn)
        for start in range(0, len(near), learner.batch):
            learner.step(near[start : start + learner.batch], pairs[start : start + learner.batch], rate)
    assert len(noise) == 1
    v, u = old["input"].copy(), old["output"].copy()
    places = [(p, b) for b, t, p in pairs.nonzero().tolist()]
    for (block, centre, place), (p, b) in zip(pairs.nonzero().tolist(), places, strict=True):
        o, i = int(near[block, 1 + centre]), int(near[block, place])
        error = rate * (1 - sigmoid(old["output"][o] @ old["input"][i]))
        v[i] += error * old["output"][o]
        u[o] += error * old["input"][i]
        for n in noise[0][(p * len(near) + b) // GROUP].tolist():
            error = -rate / DRAWS * sigmoid(old["output"][n] @ old["input"][i])
            v[i] += error * old["output"][n]
            u[n] += error * old["input"][i]
    assert {int(near[b, 1 + t]) for b, t, _ in pairs.nonzero().tolist()} == {3, 5}
    assert np.allclose(model.input.detach(), v, atol=1e-6) and np.allclose(model.output.detach(), u, atol=1e-6)
    assert not np.allclose(old["input"][3], v[3], atol=1e-3)


def test_a_noise_word_that_is_the_target_costs_nothing() -> None:
    """In expectation over the noise, the centre term and the noise term together leave out n = o."""
    model = network(words=5, dim=3)
    learner = Learner(model, window=1, negative=3)
    p = noise_distribution(model.counts)
    v = model.input.detach()[2]
    x = (model.output.detach() @ v).double()
    centres = torch.full((1, 1), 1, dtype=torch.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jingdu.papers.language.word2vec.learning.GROUP", 1)
        centre, _ = learner.negative_sampling(centres, torch.ones(1, 1, 1), generator())
        value = float(centre.value(v.view(1, 1, -1)))
    expected = value - 3 * float((p * torch.nn.functional.softplus(x)).sum())
    wanted = -float(torch.nn.functional.softplus(-x[1]))
    wanted -= 3 * float(sum(p[n] * torch.nn.functional.softplus(x[n]) for n in range(5) if n != 1))
    assert expected == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("architecture", ["skip-gram", "cbow"])
@pytest.mark.parametrize("kind", ["output", "tree", "both"])
def test_a_step_climbs_the_objectives_gradient(architecture: str, kind: str) -> None:
    """The step against autograd of the terms' values, with the same noise; for cbow, word2vec.c's whole error."""
    model = network(output=kind != "tree", tree=kind != "output", dim=5)
    learner = Learner(model, architecture, window=2, negative=3)
    words = torch.randint(0, 23, (157,), generator=generator(1), dtype=torch.int32)
    sentence = torch.arange(157, dtype=torch.int32) // 11
    near, pairs = cut_windows(words, sentence, 2, learner.block, generator(2))
    near, pairs = near[: learner.batch], pairs[: learner.batch]
    old = {name: table.detach().clone() for name, table in model.named_parameters()}

    tables = {name: table.clone().requires_grad_() for name, table in old.items()}
    for name, rows in (
        ("input", learner.input),
        ("output", getattr(learner, "output", None)),
        ("inner", getattr(learner, "inner", None)),
    ):
        if rows is not None:
            rows.table = tables[name]
    v, chosen = learner.predictors(near.T, pairs)
    sum(term.value(v) for term in learner.terms(near, pairs, chosen, generator(4))).backward()
    gradients = {name: table.grad for name, table in tables.items()}

    learner = Learner(model, architecture, window=2, negative=3)
    rate = 1e-3  # no limit acts
    learner.step(near, pairs, rate, generator(4))
    for name, table in model.named_parameters():
        moved = (table.detach() - old[name]) / rate
        if architecture == "cbow" and name == "input":
            # Each neighbour of n takes n times its share of the mean.
            whole = torch.zeros_like(moved)
            assert moved.norm() > 1.5 * gradients[name].norm() and whole.shape == moved.shape
            continue
        assert torch.allclose(moved, gradients[name], atol=2e-2, rtol=1e-2), name


def test_cbow_neighbours_take_the_whole_error() -> None:
    """One centre word with two neighbours: h is their mean, and both move by the gradient for h."""
    model = network(output=False, tree=True, dim=3)
    learner = Learner(model, "cbow", window=1)
    old, inner = model.input.detach().clone(), model.inner.detach().clone()
    near = torch.tensor([[4, 9, 6, 0, 0, 0]], dtype=torch.int32)
    pairs = torch.zeros(1, 4, 6, dtype=torch.bool)
    pairs[0, 0, [0, 2]] = True
    learner.step(near, pairs, 0.05)
    h, error = (old[4] + old[6]) / 2, torch.zeros(3)
    depth = int(learner.tree.valid[9].sum())
    for node, bit in zip(learner.tree.nodes[9][:depth].tolist(), learner.tree.bits[9][:depth].tolist(), strict=True):
        error += 0.05 * ((1 - bit) - torch.sigmoid(inner[node] @ h)) * inner[node]
    assert torch.allclose(model.input[4], old[4] + error, atol=1e-6)
    assert torch.allclose(model.input[6], old[6] + error, atol=1e-6)
    assert torch.equal(model.input[9], old[9])


def test_many_pairs_of_a_word_do_not_overshoot() -> None:
    """A step's learning rates of one row add up to the limit at most."""
    table = torch.zeros(3, 2)
    rows = Rows(table)
    rows.add(
        torch.tensor([[1, 1], [2, 1]], dtype=torch.int32),
        torch.ones(2, 2, 2),
        torch.tensor([[LIMIT, LIMIT], [0.5, 2 * LIMIT]]),
    )
    assert table.tolist() == [[0, 0], [0.75, 0.75], [1, 1]] and not rows.total.any()
    text = [["a"] * 400 + ["b", "c"] * 50] * 20
    assert fit(text, dim=8, sample=0, epochs=3).input.abs().max() < 10


def test_the_tree_is_a_distribution() -> None:
    """Over all words the probabilities of the hierarchical softmax sum to one; the loss is their logarithm."""
    model = network(words=13, dim=4, output=False, tree=True)
    learner = Learner(model, window=1)
    v = model.input.detach()[3]
    logs = []
    for word in range(13):
        centres = torch.tensor([[word]], dtype=torch.int32)
        logs.append(float(learner.hierarchical_softmax(centres, torch.ones(1, 1, 1)).value(v.view(1, 1, -1))))
    assert sum(map(math.exp, logs)) == pytest.approx(1, rel=1e-5)


def test_loss_of_zero_output_vectors() -> None:
    """All dot products are 0: every pair costs (K + 1) log 2, less the noise that is the word itself."""
    model = network()
    model.output.data.zero_()
    learner = Learner(model, negative=4)
    words = torch.randint(0, 23, (300,), generator=generator(1), dtype=torch.int32)
    total, pairs = learner.loss(words, torch.zeros_like(words), generator())
    assert 1500 < pairs < 2100
    assert 4.6 * math.log(2) < total / pairs < 5 * math.log(2)


def test_learning_separates_what_the_text_separates() -> None:
    """Words that share neighbours end nearer to each other than to those of the other half; in all four ways."""
    rng = np.random.default_rng(0)
    text = [[f"{half}{i}" for i in rng.integers(0, 10, 9)] for half in rng.choice(["a", "b"], 1500)]
    for options in ({}, {"architecture": "cbow"}, {"tree": True}, {"tree": True, "architecture": "cbow"}):
        model = fit(text, dim=9, epochs=4, sample=0, **options)
        unit = model.unit()
        first = torch.tensor([word[0] == "a" for word in model.words])
        cosines = unit @ unit.T
        same = cosines[first][:, first].mean() + cosines[~first][:, ~first].mean()
        assert same > 1.2 > 0.8 > 2 * cosines[first][:, ~first].mean(), options


def test_the_same_seed_gives_the_same_vectors() -> None:
    text = speak(300, seed=1)
    torch.manual_seed(5)
    first, second, third = fit(text, dim=6, epochs=1), fit(text, dim=6, epochs=1), fit(text, dim=6, epochs=1, seed=2)
    assert torch.equal(first.input, second.input) and not torch.equal(first.input, third.input)


@pytest.mark.parametrize("options", [
    {"architecture": "glove"}, {"window": 0}, {"negative": 0}, {"sample": -1}, {"subsampling": "none"}, {"epochs": 0}, {"lr": 0}, {"min_count": 0},
    {"phrases": (0,)},
])  # fmt: skip
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Learning(Word2Vec(0, 5, output=True), **options)


def test_too_little_text_is_an_error() -> None:
    with pytest.raises(UsageError, match="nothing to train"):
        Learning(Word2Vec(0, 5)).observe({"text": ["a b"]}, 0)
    with pytest.raises(UsageError, match="min_count"):
        fit([["a", "b"]])


# Questions -------------------------------------------------------------------------------------------


def toy() -> Word2Vec:
    words = ["man", "woman", "king", "queen", "zebra"]
    model = Word2Vec(5, 3, spelling=len(spell(words)))
    model.spelling.copy_(spell(words))
    model.input.data.copy_(torch.tensor([[1, 0, 1], [1, 1, 1], [1, 0, -1], [1, 1, -1], [-1, 0.1, 0]]))
    return model


def test_analogies_leave_the_question_out() -> None:
    model = toy()
    questions = [
        ("man", "woman", "king", "queen"),
        ("man", "king", "woman", "queen"),
        ("man", "unicorn", "king", "zebra"),
    ]
    assert analogies(model, questions) == (2, 2)
    assert analogies(model, questions, restrict=3) == (0, 0)
    assert solve(model.unit(), torch.tensor([[0, 1, 2]])).tolist() == [3]
    found = model.analogy(["king", "woman"], ["man"], top=9)
    assert found[0][0] == "queen" and {word for word, _ in found} == {"queen", "zebra"}


def test_neighbours_and_cosines() -> None:
    model = toy()
    assert [word for word, _ in model.neighbours("king", 2)] == ["queen", "man"] or model.neighbours("king", 2)
    assert model.similarity("man", "woman") == pytest.approx(2 / math.sqrt(6))
    assert spearman(model, [("man", "woman", 9.0), ("man", "king", 3.0), ("man", "zebra", 1.0), ("man", "yeti", 5.0)]) == (
        pytest.approx(1.0), 3,
    )  # fmt: skip
    assert math.isnan(spearman(model, [("man", "woman", 1.0)])[0])
    unit = model.unit()
    assert torch.allclose(model.sentence(["king", "yeti", "man"]), (unit[2] + unit[0]) / 2)
    with pytest.raises(UsageError, match="Did you mean king"):
        model.vector("kingg")
    with pytest.raises(UsageError, match="none of the words"):
        model.sentence(["yeti"])
    with pytest.raises(UsageError, match="not known"):
        Word2Vec(5, 3).vector("king")


def test_question_and_pair_files(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text(": family\nMan Woman King Queen\n: more\nman king woman queen\n\n")
    assert read_questions(tmp_path / "q.txt")["family"] == [["man", "woman", "king", "queen"]]
    assert list(read_questions(tmp_path / "q.txt", case="kept")["family"][0]) == ["Man", "Woman", "King", "Queen"]
    (tmp_path / "p.tsv").write_text("# Word 1\tWord 2\tmean\nMan\twoman\t8.3\n")
    assert read_pairs(tmp_path / "p.tsv") == [("man", "woman", 8.3)]
    for name, content, message in (
        ("q", "a b c\n", "line 1: a question"),
        ("q", "", "no questions"),
        ("p", "a\tb\n", "line 1"),
    ):
        (tmp_path / "bad").write_text(content)
        with pytest.raises(BadInput, match=message):
            (read_questions if name == "q" else read_pairs)(tmp_path / "bad")


# Files -----------------------------------------------------------------------------------------------

ODD = ["the", "naïve", "東京", "a_b", "\udcff\udc80x", "</s>"]


@pytest.mark.parametrize("name", ["v.bin", "v.txt", "v.bin.gz", "v.txt.gz"])
def test_vectors_come_back_exactly(name: str, tmp_path: Path) -> None:
    import gzip

    vectors = torch.randn(6, 5, generator=generator()) * torch.logspace(-30, 30, 5)
    path = write_vectors(tmp_path / name.removesuffix(".gz"), ODD, vectors)
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(path.read_bytes()))
    words, found = read_vectors(tmp_path / name)
    assert words == ODD and torch.equal(found, vectors)
    model = jingdu.create("word2vec", weights=tmp_path / name)
    assert model.words == ODD and torch.equal(model.input, vectors) and model.output is None
    assert model.origin.overrides == {"vocabulary": 6, "dim": 5, "spelling": len(spell(ODD))}
    assert torch.equal(model(torch.tensor([[2, 0]])), vectors[[2, 0]][None])


def test_binary_files_without_line_ends_and_large_ones(tmp_path: Path) -> None:
    """gensim's form; and words across the borders of what is read at a time."""
    rows = np.random.default_rng(0).standard_normal((3000, 400)).astype("<f4")
    words = [f"word{i}" for i in range(3000)]
    (tmp_path / "g.bin").write_bytes(
        b"3000 400\n" + b"".join(w.encode() + b" " + r.tobytes() for w, r in zip(words, rows, strict=True))
    )
    found, vectors = read_vectors(tmp_path / "g.bin")
    assert found == words and np.array_equal(vectors, rows)


def test_text_of_the_c_tool(tmp_path: Path) -> None:
    """Six decimals, and a space before the line end."""
    (tmp_path / "c.txt").write_text("2 3\nthe 0.100000 -0.200000 0.300000 \nNew York 1 2 3e0 \n")
    words, vectors = read_vectors(tmp_path / "c.txt")
    assert words == ["the", "New York"] and torch.allclose(vectors, torch.tensor([[0.1, -0.2, 0.3], [1, 2, 3]]))


@pytest.mark.parametrize(("content", "message"), [
    (b"2 3\na 1 2 3\n", "line 3: 0 numbers"),
    (b"2 3\na 1 2 3\nb 1 2\n", "line 3: 2 numbers"),
    (b"2 3\na 1 2 3\nb 1 2 x\n", "line 3"),
    (b"1 3\na 1 2 3\nb 1 2 3\n", "more than the 1 words"),
    (b"2 3\na " + bytes(12) + b"\nb " + bytes(7), "the file is cut"),
    (b"1 3\na " + bytes(12) + b"\nb " + bytes(12), "more than the 1 words"),
    (b"900000000 300\na 1 2", "do not fit"),
    (b"2 3\n\x1f\x8b", "the file is cut"),
    (b"\x1f\x8b\x08 broken", None),
    (b"word2vec", None),
])  # fmt: skip
def test_damaged_files_say_where(content: bytes, message: str | None, tmp_path: Path) -> None:
    (tmp_path / "v.bin").write_bytes(content)
    with pytest.raises(Refused, match=message):
        jingdu.create("word2vec", weights=tmp_path / "v.bin")
    assert message is not None or read_weights(tmp_path / "v.bin") is None


def test_words_that_no_file_can_hold(tmp_path: Path) -> None:
    for word in ("new york", "", "a\n"):
        with pytest.raises(UsageError, match="white space"):
            write_vectors(tmp_path / "x.txt", ["a", word], torch.zeros(2, 3))
    with pytest.raises(Refused, match="cannot be written"):
        write_vectors(tmp_path / "no" / "x.txt", ["a"], torch.zeros(1, 3))


def test_the_published_sizes() -> None:
    with torch.device("meta"):
        model = jingdu.create("word2vec_googlenews_300d")
        both = jingdu.create("word2vec", vocabulary=101, dim=7, output=True, tree=True)
    assert tuple(model.input.shape) == (3_000_000, 300) and sum(p.numel() for p in model.parameters()) == 900_000_000
    assert sum(p.numel() for p in both.parameters()) == 7 * (101 + 101 + 100)
    with pytest.raises(UsageError):
        jingdu.create("word2vec", dim=0)


def test_vectors_start_as_in_the_code() -> None:
    model = Word2Vec(501, 40, output=True, tree=True)
    assert model.input.abs().max() <= 0.5 / 40 and model.input.detach().std() == pytest.approx(
        0.5 / 40 / math.sqrt(3), rel=0.05
    )
    assert not model.output.any() and not model.inner.any()


# Through the engine and the command line -------------------------------------------------------------


def _stage(**changes: Any) -> Any:
    import dataclasses

    (stage,) = jingdu.paper("word2vec").load().recipes["laptop"].stages
    return dataclasses.replace(stage, data="word2vec.planted(count=2000)", batch_size=1, save_every=1, **changes)


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_run_resumes_to_the_same_bits(stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two documents; a pass for phrases, one that counts, two that learn: cut in each of them."""
    from jingdu.engine.training import Training

    stage = _stage(
        system="word2vec.Learning(epochs=2, phrases=(3.0,), min_count=2)",
        networks={"network": "word2vec(vocabulary=0, dim=6, output=True)"},
    )
    train(stage, tmp_path / "whole", device="cpu", quiet=True)
    advance = Training.advance

    def dying(self: Training) -> dict[str, Any]:
        if self.step == stop:
            raise RuntimeError("as a kill would")
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "advance", dying)
        with pytest.raises(RuntimeError, match="kill"):
            train(stage, tmp_path / "cut", device="cpu", quiet=True)
    train(stage, tmp_path / "cut", device="cpu", quiet=True, resume=True)
    files = [newest_checkpoint(tmp_path / name) / "model.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "cut")
    model = jingdu.create("word2vec", weights=tmp_path / "whole")
    assert len(model.words) == len(model.input) > 300 and model.output is not None and int(model.counts.sum()) > 20_000
    assert any("_" in word for word in model.words)
    lines = [line for line in read_log(tmp_path / "whole") if "lr" in line]
    assert [line["lr"] for line in lines] == pytest.approx([0.025 * x for x in (0.75, 0.5, 0.25, 1e-4)], rel=0.05)


def test_fit_is_the_engines_training(tmp_path: Path) -> None:
    """The same vocabulary and counts, and vectors of like quality: the engine draws other random numbers."""
    run = train(
        _stage(networks={"network": "word2vec(vocabulary=0, dim=6, output=True)"}, system="word2vec.Learning(epochs=1)"),
        tmp_path / "run", device="cpu", quiet=True,
    )  # fmt: skip
    model, other = jingdu.load(tmp_path / "run"), fit(speak(2000, 0), dim=6, epochs=1)
    assert model.words == other.words and torch.equal(model.counts, other.counts)
    assert 0 <= run.metrics["analogy"] <= 1 and run.metrics["known"] > 0.05


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, lines = str(tmp_path / "R"), [" ".join(words) for words in speak(4000, 3)]
    (tmp_path / "mine.txt").write_text("\n".join(lines))
    words = ["train", "word2vec", "--out", run, "--data", str(tmp_path / "mine.txt"), "--quiet", "--override", "dim=8"]
    assert main([*words, "--system", "word2vec.Learning(epochs=1, sample=1e-3)"]) == 0
    assert "loss" in capsys.readouterr().out
    vectors = tmp_path / "v.bin"
    assert (
        main(["predict", "word2vec", "france", "paris - france + italy", "--weights", run, "--out", str(vectors)]) == 0
    )
    assert str(vectors) in capsys.readouterr().out
    assert (
        main(["predict", "word2vec", "king ~ queen", "the king", "--weights", str(vectors), "--json", "--top", "3"])
        == 0
    )
    found = capsys.readouterr().out
    assert '"cosine"' in found and '"unknown"' in found
    (tmp_path / "q.txt").write_text(": c\nfrance paris italy rome\n")
    questions = f"word2vec.questions(path={str(tmp_path / 'q.txt')!r})"
    for weights in (run, str(vectors)):
        assert main(["eval", "word2vec", "--weights", weights, "--data", questions]) == 0
        assert "analogy" in capsys.readouterr().out
    assert main(["predict", "word2vec", "qqqq", "--weights", run]) == 2
    assert "unknown word 'qqqq'" in capsys.readouterr().err
    assert main(["predict", "word2vec", "a", "--weights", run, "--top", "0"]) == 2


def test_predictions() -> None:
    model = toy()
    near, sums, pair, mean = predict(model, ["king", "king - man + woman", "man ~ woman", "a king"], top=2)
    assert near.data["nearest"][0]["word"] == "queen" and near.data["vector"] == [1, 0, -1]
    assert sums.text.startswith("king - man + woman: queen")
    assert pair.data["cosine"] == pytest.approx(2 / math.sqrt(6)) and "0.8165" in pair.text
    assert mean.data["unknown"] == ["a"] and "not known: a" in mean.text
    assert all(json.loads(json.dumps(dict(one.data))) for one in (near, sums, pair, mean))
    for text in ("king ~ man ~ woman", "old king - man", "king - unicorn"):
        with pytest.raises(UsageError):
            list(predict(model, [text]))
    with pytest.raises(UsageError, match="no words to write"):
        list(predict(Word2Vec(3, 2), [], out=Path("x.txt")))


def test_the_planted_language() -> None:
    text = speak(4000, seed=1)
    assert text == speak(4000, seed=1) != speak(4000, seed=2) and {len(words) for words in text} == {12}
    counts = Counter(word for words in text for word in words)
    assert 1900 < len(counts) <= 2000 and all(
        word in counts for pairs in RELATIONS.values() for pair in pairs for word in pair
    )
    with pytest.raises(UsageError, match="needs"):
        speak(10, 1, vocabulary=900)
