"""Counting, estimating and scoring trigrams against nltk.lm on the same words: python -m benchmarks.ngram."""

from typing import Any

from benchmarks.paired import compare, save
from jingdu.papers.language.ngram import NGram, sentences

ORDER, DISCOUNT = 3, 0.75


def corpus(sentence_count: int) -> list[list[str]]:
    """Sentences of Python's help topics."""
    from jingdu.data.draws import Draws
    from jingdu.data.embedded import pydoc_topics

    data = pydoc_topics("train")
    rows = list(range(len(data)))
    texts = data.batch(rows, Draws(0, 0, rows))["text"]
    return [sentence for text in texts for sentence in sentences(text)][:sentence_count]


def cases(rounds: int = 6, sentence_count: int = 3000, scored: int = 20) -> list[dict[str, Any]]:
    """Interpolated Kneser-Ney with one discount, of order 3, in both; scoring is of `scored` sentences."""
    from nltk.lm import KneserNeyInterpolated
    from nltk.lm.preprocessing import padded_everygram_pipeline

    train = corpus(sentence_count)

    def our_fit() -> NGram:
        return NGram(ORDER, "kneser-ney", min_count=1, tokens="spaces", discount=DISCOUNT).fit(train)

    def their_fit() -> Any:
        model = KneserNeyInterpolated(ORDER, discount=DISCOUNT)
        model.fit(*padded_everygram_pipeline(ORDER, train))
        return model

    ours, theirs = our_fit(), their_fit()
    texts = train[:scored]
    lines = "\n".join(map(" ".join, texts))

    def their_score() -> float:
        total = 0.0
        for sentence in texts:
            padded = ["<s>"] * (ORDER - 1) + sentence + ["</s>"]
            for i in range(ORDER - 1, len(padded)):
                total += theirs.logscore(padded[i], padded[i - ORDER + 1 : i])
        return total

    words = sum(map(len, train))
    return [
        compare(our_fit, their_fit, f"ngram, {words:,} words counted and estimated, nltk", rounds=rounds),
        compare(lambda: ours.score(lines), their_score, f"ngram, {scored} sentences scored, nltk", rounds=rounds),
    ]


if __name__ == "__main__":
    save(cases(), "ngram.json")
