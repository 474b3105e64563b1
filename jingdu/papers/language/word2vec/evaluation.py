"""How good vectors are: analogies (2013a, Sec. 4) and the similarity of word pairs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64
from torch import Tensor

from jingdu.data.base import Tensors
from jingdu.errors import BadInput

from .network import Word2Vec

Question = Sequence[str]
"""a, b, c, d: a is to b as c is to d."""


def solve(
    unit: Float32[Tensor, "words dim"], questions: Int64[Tensor, "questions three"]
) -> Int64[Tensor, " questions"]:
    """3CosAdd: for a, b, c the word whose vector has the largest cosine with b - a + c, and is none of the three."""
    a, b, c = questions.T
    scores = (unit[b] - unit[a] + unit[c]) @ unit.T
    return scores.scatter_(1, questions, -torch.inf).argmax(1)


def analogies(
    network: Word2Vec, questions: Sequence[Question], restrict: int | None = None, batch: int = 1024
) -> tuple[int, int]:
    """How many of the questions are answered right, and how many could be asked.

    Args:
        restrict: only the most frequent words are known, and are answers; compute-accuracy.c is run with 30,000.
        batch: questions at a time.
    """
    unit, index = network.unit(restrict), network.index
    known = [[index[word] for word in question] for question in questions if all(word in index for word in question)]
    rows = torch.tensor([numbers for numbers in known if max(numbers) < len(unit)], dtype=torch.int64).view(-1, 4)
    right = sum(int((solve(unit, part[:, :3]) == part[:, 3]).sum()) for part in rows.split(batch) if len(part))
    return right, len(rows)


def spearman(network: Word2Vec, pairs: Sequence[tuple[str, str, float]]) -> tuple[float, int]:
    """Spearman's correlation of cosines with what people said, and how many pairs are known; nan for less than two."""
    from scipy.stats import spearmanr

    known = [(network.number(a), network.number(b), score) for a, b, score in pairs if a in network and b in network]
    if len(known) < 2:
        return float("nan"), len(known)
    first, second, scores = zip(*known, strict=True)
    vectors = network.input.detach()
    cosines = F.cosine_similarity(vectors[list(first)], vectors[list(second)])
    return float(spearmanr(cosines.cpu(), scores).statistic), len(known)


# Files -----------------------------------------------------------------------------------------------


def _lines(path: str | Path) -> list[list[str]]:
    try:
        return [line.split() for line in Path(path).read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(path, f"cannot be read ({error})") from None


def read_questions(path: str | Path, case: Literal["kept", "lower"] = "lower") -> dict[str, list[Question]]:
    """Sections of a file in the format of questions-words.txt: lines of four words; `: name` begins a section.

    Raises BadInput, with the line.
    """
    sections: dict[str, list[Question]] = {}
    name = ""
    for number, fields in enumerate(_lines(path), start=1):
        if fields[:1] == [":"]:
            name = " ".join(fields[1:])
        elif len(fields) == 4:
            sections.setdefault(name, []).append([word.lower() if case == "lower" else word for word in fields])
        elif fields:
            raise BadInput(path, f"line {number}: a question has four words, not {len(fields)}")
    if not sections:
        raise BadInput(path, "it holds no questions")
    return sections


def read_pairs(path: str | Path, case: Literal["kept", "lower"] = "lower") -> list[tuple[str, str, float]]:
    """Pairs with their score of a file in the format of WordSim-353: word, word, number; # begins a comment.

    Raises BadInput, with the line.
    """
    found = []
    for number, fields in enumerate(_lines(path), start=1):
        if not fields or fields[0].startswith("#"):
            continue
        try:
            first, second, score = fields[0], fields[1], float(fields[2])
        except (ValueError, IndexError):
            raise BadInput(path, f"line {number}: give two words and a number") from None
        found.append((first.lower(), second.lower(), score) if case == "lower" else (first, second, score))
    return found


def questions(split: str, path: str, case: Literal["kept", "lower"] = "lower") -> Tensors:
    """A file of analogies as data for evaluation: `analogy`, one question a sample."""
    return Tensors({"analogy": [question for found in read_questions(path, case).values() for question in found]})
