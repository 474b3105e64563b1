"""The names of ImageNet's 1,000 classes (ILSVRC 2012), in the order of all published classifiers."""

from functools import cache
from pathlib import Path


@cache
def class_names() -> tuple[str, ...]:
    """The first lemma of each class's WordNet 3.0 synset; where two classes share it, what tells them apart.

    The classes are sorted by their WordNet offsets, which the file holds as well.
    """
    lines = (Path(__file__).with_name("imagenet_classes.tsv")).read_text("utf-8").splitlines()
    return tuple(line.split("\t")[1] for line in lines)
