"""word2vec against gensim: counts, tree and noise, single updates, files both ways, questions, and quality on one text."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jingdu
from jingdu.papers.language import word2vec as w2v
from jingdu.papers.language.word2vec import Learner, Word2Vec
from jingdu.papers.language.word2vec.network import spell
from jingdu.papers.language.word2vec.planted import planted_questions, speak

gensim = pytest.importorskip("gensim")
Theirs, Vectors = gensim.models.Word2Vec, gensim.models.KeyedVectors

WORDS = ["the", "naïve", "東京", "new_york", "e", "f", "g"]
COUNTS = [64, 32, 16, 8, 4, 2, 1]
"""So different that only one Huffman tree is the shortest, and ties play no part."""
TEXT = [[word] for word, count in zip(WORDS, COUNTS, strict=True) for _ in range(count)]


def pair_of_networks(dim: int = 11, **options: Any) -> tuple[Any, Word2Vec]:
    """Theirs, with random vectors everywhere, and ours with the same."""
    theirs = Theirs(vector_size=dim, min_count=1, workers=1, **options)
    theirs.build_vocab(TEXT)
    rng, tables = np.random.default_rng(5), {}
    for name, table in (
        ("input", theirs.wv.vectors), ("output", getattr(theirs, "syn1neg", None)), ("inner", getattr(theirs, "syn1", None)),
    ):  # fmt: skip
        if table is not None:
            table[:] = rng.standard_normal(table.shape)
            tables[name] = torch.from_numpy(table[: len(WORDS) - (name == "inner")].copy())
    ours = Word2Vec(len(WORDS), dim, "output" in tables, "inner" in tables, len(spell(WORDS)))
    ours.load_state_dict({**tables, "counts": torch.tensor(COUNTS), "spelling": spell(WORDS)})
    return theirs, ours


def test_vocabulary_subsampling_and_noise() -> None:
    theirs, _ = pair_of_networks(sample=0.02)
    words, counts = w2v.sort_words({word: count for word, count in zip(WORDS, COUNTS, strict=True)}, min_count=1)
    assert words == theirs.wv.index_to_key
    keep = theirs.wv.expandos["sample_int"] / (2**32 - 1)
    assert np.allclose(w2v.keep_probability(counts, 0.02), keep, rtol=0, atol=1e-7) and keep.min() < 0.3
    noise = w2v.noise_distribution(counts).cumsum(0)
    assert np.allclose(noise, theirs.cum_table / (2**31 - 1), rtol=0, atol=1e-9)


def test_the_tree() -> None:
    theirs, ours = pair_of_networks(hs=1, negative=0)
    tree = w2v.huffman(ours.counts)
    for word in range(len(WORDS)):
        length = int(tree.valid[word].sum())
        assert tree.nodes[word][:length].tolist() == theirs.wv.get_vecattr(word, "point").tolist()
        assert tree.bits[word][:length].int().tolist() == theirs.wv.get_vecattr(word, "code").tolist()


@pytest.mark.parametrize("architecture", ["skip-gram", "cbow"])
@pytest.mark.parametrize("kind", ["output", "tree"])
def test_updates(architecture: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, one pair after the other as they go: equal, but for their table of the sigmoid in steps of 0.012."""
    from gensim.models import word2vec_inner as inner

    skip = architecture == "skip-gram"
    theirs, ours = pair_of_networks(
        window=1, sg=int(skip), hs=int(kind == "tree"), negative=int(kind == "output"), sample=0
    )
    before, noise, rate, sentence = ours.input.detach().clone(), 6, 0.05, [2, 4, 0]
    if kind == "output":  # their draws are all one word
        theirs.cum_table[:] = [0] * noise + [2**31 - 1] * (len(WORDS) - noise)
    work, total = np.zeros(11, np.float32), np.zeros(11, np.float32)
    text = [[WORDS[word] for word in sentence]]
    if skip:
        inner.train_batch_sg(theirs, text, rate, work, False)
    else:
        inner.train_batch_cbow(theirs, text, rate, work, total, False)

    learner = Learner(ours, architecture, window=1, negative=1)
    if kind == "output":
        learner.share[:] = 1
        monkeypatch.setattr(
            "jingdu.papers.language.word2vec.learning.draw_noise",
            lambda cumulative, count, generator=None: torch.full((count,), noise, dtype=torch.int32),
        )
    near = torch.zeros(learner.batch, learner.block + 2, dtype=torch.int32)
    near[0, 1:4] = torch.tensor(sentence)
    for centre, places in [(0, [2]), (1, [1, 3]), (2, [2])]:
        for some in [[place] for place in places] if skip else [places]:
            pairs = torch.zeros(learner.batch, learner.block, learner.block + 2, dtype=torch.bool)
            pairs[0, centre, some] = True
            learner.step(near, pairs, rate)
    table = ours.output if kind == "output" else ours.inner
    reference = theirs.syn1neg if kind == "output" else theirs.syn1[:-1]
    assert (ours.input - before).abs().max() > 30 * 1e-3 and not torch.equal(ours.input[2], before[2])
    bound = rate * 0.003 * 4 * 4  # table x largest vector's numbers x updates of a row
    assert np.abs(ours.input.detach() - theirs.wv.vectors).max() < bound
    assert np.abs(table.detach() - reference).max() < bound


@pytest.mark.parametrize("binary", [False, True])
def test_files_both_ways(binary: bool, tmp_path: Path) -> None:
    theirs, ours = pair_of_networks()
    for name in ("a.bin" if binary else "a.txt", "b.gz"):
        theirs.wv.save_word2vec_format(tmp_path / name, binary=binary)
        read = jingdu.create("word2vec", weights=tmp_path / name)
        assert read.words == theirs.wv.index_to_key and np.array_equal(read.input.detach(), theirs.wv.vectors)
    path = w2v.write_vectors(tmp_path / "ours", ours.words, ours.input, binary=binary)
    back = Vectors.load_word2vec_format(path, binary=binary)
    assert back.index_to_key == ours.words and np.array_equal(back.vectors, ours.input.detach())


def test_vectors_of_the_authors() -> None:
    """Twenty words of published vectors, 300 numbers each, that gensim ships."""
    path = Path(gensim.__file__).parent / "test/test_data/EN.1-10.cbow1_wind5_hs0_neg10_size300_smpl1e-05.txt"
    ours, theirs = jingdu.create("word2vec", weights=path), Vectors.load_word2vec_format(path)
    assert tuple(ours.input.shape) == (20, 300) and np.array_equal(ours.input.detach(), theirs.vectors)
    assert ours.neighbours("one", 3) == [(w, pytest.approx(s, abs=1e-6)) for w, s in theirs.most_similar("one", topn=3)]


def test_questions(tmp_path: Path) -> None:
    """Neighbours, sums, cosines, analogies and rank correlation of random vectors."""
    theirs, ours = pair_of_networks(dim=3)

    def close(found: list[tuple[str, float]]) -> list[tuple[str, Any]]:
        return [(word, pytest.approx(score, abs=1e-6)) for word, score in found]

    assert ours.neighbours("e", 5) == close(theirs.wv.most_similar("e", topn=5))
    asked = {"positive": ["e", "the"], "negative": ["g"]}
    assert ours.analogy(["e", "the"], ["g"], 4) == close(theirs.wv.most_similar(**asked, topn=4))
    assert ours.similarity("e", "f") == pytest.approx(float(theirs.wv.similarity("e", "f")), abs=1e-6)
    mean = theirs.wv.get_mean_vector(["e", "東京"], pre_normalize=True)
    assert np.allclose(ours.sentence(["e", "東京"]), mean, atol=1e-6)
    rng = np.random.default_rng(1)
    lines = [": one", *(" ".join(rng.permutation(WORDS)[:4]) for _ in range(200))]
    (tmp_path / "q.txt").write_text("\n".join(lines), "utf-8")
    score, sections = theirs.wv.evaluate_word_analogies(tmp_path / "q.txt", case_insensitive=False)
    questions = w2v.read_questions(tmp_path / "q.txt", case="kept")["one"]
    assert w2v.analogies(ours, questions) == (len(sections[0]["correct"]), 200) and 0.1 < score < 0.9
    pairs = [(a, b, float(rng.random())) for a in WORDS for b in WORDS if a < b]
    (tmp_path / "p.tsv").write_text("\n".join(f"{a}\t{b}\t{score}" for a, b, score in pairs), "utf-8")
    _, (correlation, _), _ = theirs.wv.evaluate_word_pairs(tmp_path / "p.tsv", case_insensitive=False)
    assert w2v.spearman(ours, w2v.read_pairs(tmp_path / "p.tsv", case="kept")) == (pytest.approx(correlation), 21)


def test_quality_on_one_text() -> None:
    """The same planted language, settings and size of first values: about as many analogies are answered."""
    text, settings = speak(6_000, 2, concept=0.2, form=0.2, nouns=1.0), {"epochs": 4, "window": 5, "negative": 5}
    ours = w2v.fit(text, dim=32, sample=1e-3, **settings)
    theirs = Theirs(vector_size=32, sg=1, sample=1e-3, workers=1, min_alpha=2.5e-6, **settings)
    theirs.build_vocab(text)
    theirs.wv.vectors *= 0.5  # theirs begin within 1/d, the C code's and ours within 0.5/d
    theirs.train(text, total_examples=len(text), epochs=4)
    spelling = spell(theirs.wv.index_to_key)
    again = Word2Vec(len(theirs.wv), 32, spelling=len(spelling))
    again.input.data.copy_(torch.from_numpy(theirs.wv.vectors))
    again.spelling.copy_(spelling)
    assert set(again.words) == set(ours.words)
    (right, asked), (their_right, _) = (w2v.analogies(model, planted_questions()) for model in (ours, again))
    assert right > 0.65 * their_right and their_right > 0.08 * asked, (right, their_right, asked)
