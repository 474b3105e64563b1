"""Training against gensim's single worker, from lists of words to vectors: python -m benchmarks.word2vec."""

import statistics
from typing import Any

import torch

from benchmarks.paired import compare, save
from jingdu.papers.language.word2vec import (
    Word2Vec,
    analogies,
    fit,
    shipped_questions,
    shipped_similarities,
    spearman,
    wikipedia,
)
from jingdu.papers.language.word2vec.network import spell

DIM, WINDOW = 100, 5
CASES = {
    "skip-gram, 5 noise words, t = 1e-4": ({"sample": 1e-4}, {"sample": 1e-4, "sg": 1}),
    "skip-gram, 5 noise words, all words": ({"sample": 0}, {"sample": 0, "sg": 1}),
    "cbow, 5 noise words, all words": (
        {"sample": 0, "architecture": "cbow"}, {"sample": 0, "sg": 0, "alpha": 0.05, "min_alpha": 5e-6},
    ),
    "skip-gram, tree, all words": ({"sample": 0, "tree": True}, {"sample": 0, "sg": 1, "hs": 1, "negative": 0}),
}  # fmt: skip
"""Name -> options of `fit`, and of gensim."""


def ours(text: list[list[str]], epochs: int, seed: int = 0, **options: Any) -> Word2Vec:
    return fit(text, DIM, seed=seed, epochs=epochs, window=WINDOW, **options)


def theirs(text: list[list[str]], epochs: int, seed: int = 0, **options: Any) -> Any:
    """gensim 4 begins within 1/d, the C code and ours within 0.5/d: its first vectors are halved."""
    from gensim.models import Word2Vec as Theirs

    settings = {"alpha": 0.025, "min_alpha": 2.5e-6, "negative": 5, **options}
    model = Theirs(vector_size=DIM, window=WINDOW, epochs=epochs, seed=seed, workers=1, **settings)
    model.build_vocab(text)
    model.wv.vectors *= 0.5
    model.train(text, total_examples=len(text), epochs=epochs)
    return model.wv


def as_ours(vectors: Any) -> Word2Vec:
    """gensim's vectors as our network."""
    spelling = spell(vectors.index_to_key)
    network = Word2Vec(*vectors.vectors.shape, spelling=len(spelling))
    network.input.data.copy_(torch.from_numpy(vectors.vectors))
    network.spelling.copy_(spelling)
    return network


def quality(network: Word2Vec) -> dict[str, float]:
    """Spearman's correlation on WordSim-353, and the share of paper 1's analogies that is answered."""
    questions = [question for section in shipped_questions().values() for question in section]
    right, asked = analogies(network, questions)
    return {"spearman": spearman(network, shipped_similarities())[0], "analogy": right / asked}


def cases(
    rounds: int = 6, lines: int = 10_000, epochs: int = 4, seeds: int = 3
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Times of one epoch of `lines` sentences, and what skip-gram of the whole text, at a rate of 0.05, is worth."""
    torch.set_num_threads(1)
    text = [line.split() for page in wikipedia("train").fields["text"] for line in page.splitlines()]
    some, rows = text[:lines], []
    words = sum(map(len, some))
    for name, (mine, other) in CASES.items():
        rows.append(
            compare(
                lambda mine=mine: ours(some, 1, **mine), lambda other=other: theirs(some, 1, **other),
                f"word2vec, {name}, gensim", rounds=rounds, warmup=1, work=f"{words:,} words, {DIM} numbers each",
            )
        )  # fmt: skip
    mine, other = {"sample": 1e-4, "lr": 0.05}, {"sample": 1e-4, "sg": 1, "alpha": 0.05, "min_alpha": 5e-6}
    found = {
        "ours": [quality(ours(text, epochs, seed, **mine)) for seed in range(seeds)],
        "gensim": [quality(as_ours(theirs(text, epochs, seed, **other))) for seed in range(seeds)],
    }
    for side, values in found.items():
        means = {name: statistics.mean(value[name] for value in values) for name in values[0]}
        print(f"{side}, {epochs} epochs, mean of {seeds} seeds: {means}")
    return rows, {"epochs": epochs, **found}


if __name__ == "__main__":
    times, worth = cases()
    save(times, "word2vec.json", quality=worth)
