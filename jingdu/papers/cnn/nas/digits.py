"""The small problem on which searches are compared: 576 networks, few training digits, little training.

`python -m jingdu.papers.cnn.nas.digits` trains all of them again (some five minutes of one core) and writes the table
that ships beside this file.
"""

from jingdu.data.draws import Draws
from jingdu.data.embedded import digits

from .chain import digits_space
from .evaluation import DIGITS_TABLE, Evaluator, Examples, Training, measure, split_off

IMAGES, BUDGET = 240, Training(steps=64, batch_size=16, lr=0.1, checks=1)
"""Training images, and how they are used: little enough that architectures differ."""


def examples(split: str) -> Examples:
    """All digits of a split, normalised."""
    import numpy as np

    data = digits(split)
    rows = np.arange(len(data))
    batch = data.batch(rows, Draws(0, 0, rows))
    return Examples((batch["image"] - 0.305) / 0.376, batch["label"])


def problem(seed: int = 0) -> tuple[Evaluator, Examples]:
    """The evaluator of the table (240 digits to train, 600 to validate) and the 450 test digits."""
    rest, valid = split_off(examples("train"), share=600 / 1347, seed=seed)
    few, _ = split_off(rest, share=1 - IMAGES / len(rest), seed=seed + 1)
    return Evaluator(digits_space(), few, valid, BUDGET, seed), examples("test")


if __name__ == "__main__":
    evaluator, test = problem()
    table = measure(evaluator, test, list(evaluator.space.codes()))
    print(f"{len(table.rows)} networks, the best {table.optimum:.4f}: {table.write(DIGITS_TABLE)}")
