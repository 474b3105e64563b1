"""A little made-up language with planted relations, for experiments that take seconds.

Every noun is a concept (royalty, France, cat) in one of two forms (king and queen, France and Paris, cat and cats).
A word's neighbours in a sentence tell three things: mostly nothing (common words, by Zipf's law), sometimes the
concept, sometimes the form. So what king and queen share is the concept, and what king, man and father share is the
form: the regularity that analogies ask for, at a strength that is set here.
"""

from typing import Any, Literal

import numpy as np

from jingdu.data.base import Tensors
from jingdu.errors import UsageError

_PAIRS = {
    "gender": "man/woman king/queen prince/princess father/mother son/daughter brother/sister uncle/aunt nephew/niece "
    "husband/wife actor/actress waiter/waitress host/hostess god/goddess duke/duchess emperor/empress "
    "hero/heroine monk/nun wizard/witch widower/widow boy/girl grandfather/grandmother steward/stewardess "
    "tailor/seamstress baron/baroness",
    "plural": "cat dog horse bird river tree stone book house road ship song door lamp garden field letter window table "
    "chair coin hill cloud flower apple bridge village farmer sailor baker",
    "capital": "france/paris italy/rome spain/madrid germany/berlin england/london ireland/dublin portugal/lisbon "
    "austria/vienna hungary/budapest poland/warsaw norway/oslo sweden/stockholm finland/helsinki "
    "denmark/copenhagen greece/athens russia/moscow china/beijing japan/tokyo india/delhi egypt/cairo "
    "kenya/nairobi cuba/havana peru/lima chile/santiago canada/ottawa iran/tehran iraq/baghdad turkey/ankara "
    "nepal/kathmandu vietnam/hanoi",
}
RELATIONS = {
    relation: tuple(
        (first, second or f"{first}s") for first, _, second in (pair.partition("/") for pair in text.split())
    )
    for relation, text in _PAIRS.items()
}
"""Relation -> its pairs: the first form and the second."""


def pseudo_words(count: int, rng: np.random.Generator) -> list[str]:
    """Different made-up words of two to four syllables."""
    nouns = {word for pairs in RELATIONS.values() for pair in pairs for word in pair}
    found: dict[str, None] = {}
    while len(found) < count:
        onsets, vowels = rng.choice(list("bdfgklmnprstvz"), (count, 4)), rng.choice(list("aeiou"), (count, 4))
        syllables = np.char.add(onsets, vowels).tolist()
        words = ("".join(some[:n]) for some, n in zip(syllables, rng.integers(2, 5, count).tolist(), strict=True))
        found |= dict.fromkeys(word for word in words if word not in nouns)
    return list(found)[:count]


def zipf(count: int) -> np.ndarray:
    """Probabilities that fall as 1 / rank."""
    p = 1 / np.arange(1, count + 1)
    return p / p.sum()


def speak(
    count: int,
    seed: int,
    vocabulary: int = 2000,
    length: int = 12,
    concept: float = 0.08,
    form: float = 0.08,
    nouns: float = 0.5,
) -> list[list[str]]:
    """`count` sentences of the language that `seed` makes up.

    Args:
        vocabulary: words in all, the nouns included.
        length: words of a sentence.
        concept: share of a noun's neighbours that tell its concept.
        form: share of them that tell its form.
        nouns: share of the sentences that have a noun; the others are common words alone.
    """
    pairs = [(relation, *pair) for relation, found in RELATIONS.items() for pair in found]
    own, shared = 6, 12
    rng = np.random.default_rng([seed, 1])
    common = vocabulary - 2 * len(pairs) - own * len(pairs) - 2 * shared * len(RELATIONS)
    if common < 100:
        raise UsageError(f"vocabulary {vocabulary}: the language needs {vocabulary - common + 100} words or more")
    # Words by number: common ones, those of each concept, those of each form, and the nouns.
    words = [*pseudo_words(vocabulary - 2 * len(pairs), rng), *(word for _, *pair in pairs for word in pair)]
    of_concept = common + np.arange(own * len(pairs)).reshape(len(pairs), own)
    of_form = common + own * len(pairs) + np.arange(2 * shared * len(RELATIONS)).reshape(-1, 2, shared)
    nouns_from = vocabulary - 2 * len(pairs)
    relation_of = np.array([list(RELATIONS).index(relation) for relation, *_ in pairs])

    text = rng.choice(common, (count, length), p=zipf(common))
    frequency = np.sqrt(zipf(len(pairs)))
    which = rng.choice(rng.permutation(len(pairs)), count, p=frequency / frequency.sum())
    second, has = rng.integers(0, 2, count), rng.random(count) < nouns
    kind = np.where(has[:, None], rng.random((count, length)), 1.0)
    about = of_concept[which[:, None], rng.integers(0, own, (count, length))]
    marks = of_form[relation_of[which][:, None], second[:, None], rng.integers(0, shared, (count, length))]
    text = np.select([kind < concept, kind < concept + form], [about, marks], text)
    place = rng.integers(0, length, count)
    text[has, place[has]] = nouns_from + 2 * which[has] + second[has]
    return [[words[i] for i in line] for line in text.tolist()]


def planted_questions() -> list[tuple[str, str, str, str]]:
    """All questions a : b = c : d of the relations, both ways round."""
    found = []
    for pairs in RELATIONS.values():
        for a, b in pairs:
            found += [(a, b, c, d) for c, d in pairs if c != a] + [(b, a, d, c) for c, d in pairs if c != a]
    return found


def planted(split: Literal["train", "test"], count: int = 20_000, seed: int = 0, **language: Any) -> Tensors:
    """The language as data: `text`, documents of 1000 lines; for testing `analogy`, the questions.

    Args:
        count: sentences.
        language: arguments of `speak`.
    """
    if split == "test":
        return Tensors({"analogy": planted_questions()})
    lines = [" ".join(words) for words in speak(count, seed, **language)]
    return Tensors({"text": ["\n".join(lines[i : i + 1000]) for i in range(0, count, 1000)]})
