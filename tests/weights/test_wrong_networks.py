"""Row 14 of the promises: a checkpoint of ours in which one tensor is wrong is refused, a square transpose included.

Made from the cards, for every paper with networks. Its laptop recipe does one step, so that the checkpoint holds an
input; then the networks get random numbers everywhere, so that each tensor has something to say.
"""

import dataclasses
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jingdu import canon
from jingdu.engine import Stage, parity
from jingdu.engine.checkpoint import write_checkpoint
from jingdu.engine.state import read_tree, tree_bytes
from jingdu.engine.training import Training
from jingdu.errors import Refused
from jingdu.speed.references import randomise_

PAPERS = [
    card.key
    for card in canon.papers()
    if card.variants and "laptop" in card.load().recipes
    # A network that is made in passes over data has a test of its own beside its paper's: word2vec.
    if any(stage.method == "train" for stage in card.load().recipes["laptop"].stages)
]
SQUARES = 4
"""How many square tensors of each network are transposed, one at a time."""


def _checkpoints(key: str) -> Iterator[dict[str, bytes]]:
    """The files of a checkpoint of each stage of the laptop recipe that trains networks."""
    previous: dict[str, Any] = {}
    for stage in canon.paper(key).load().recipes["laptop"].stages:
        training = Training(_short(stage), torch.device("cpu"), previous)
        for _ in range(training.total if training.is_fit else 1):
            training.advance()
        training.stream.close()
        if not training.is_fit:
            generator = torch.Generator().manual_seed(11)
            for network in training.networks().values():
                randomise_(network, generator)
            yield training.files()
        previous[stage.name] = training.system


def _short(stage: Stage) -> Stage:
    few = min(stage.batch_size, 6) if stage.method == "train" else stage.batch_size
    steps = {"steps": 1, "epochs": None} if stage.method == "train" else {}
    return dataclasses.replace(stage, batch_size=few, ema=None, accumulate=1, **steps)


def _create(folder: Path, files: Mapping[str, bytes], variant: str) -> Any:
    """As a user does; the manifest is in order, so that only the keys and the outputs can tell."""
    (folder / "recipe.json").parent.mkdir(parents=True)
    (folder / "recipe.json").write_text("[]")
    write_checkpoint(folder / "checkpoints", 1, files, keep=2, about={})
    return canon.create(variant, weights=folder)


def _square(tensor: Tensor) -> Tensor | None:
    """Two axes of one length exchanged, where that changes anything."""
    for i in reversed(range(tensor.ndim)):
        for j in range(i):
            if tensor.shape[i] == tensor.shape[j] and not tensor.equal(turned := tensor.transpose(i, j)):
                return turned.contiguous()
    return None


def _changes(own: Mapping[str, Tensor], numbers: random.Random) -> Iterator[tuple[str, str, dict[str, Tensor]]]:
    """How, which, and what stands there instead."""
    for how in ("renamed", "dropped"):
        name = numbers.choice(sorted(own))
        yield how, name, {f"{name}_": own[name]} if how == "renamed" else {}
    oblong = [name for name, x in own.items() if x.ndim > 1 and x.shape[0] != x.shape[1]]
    if oblong:
        name = numbers.choice(oblong)
        yield "transposed", name, {name: own[name].transpose(0, 1).contiguous()}
    squares = [name for name, x in own.items() if _square(x) is not None]
    for name in numbers.sample(squares, min(SQUARES, len(squares))):
        yield "transposed square", name, {name: _square(own[name])}


@pytest.mark.parametrize("key", PAPERS)
def test_a_checkpoint_with_one_wrong_tensor_is_refused(key, tmp_path):
    done = 0
    for number, files in enumerate(_checkpoints(key)):
        model = tmp_path / f"{number}.safetensors"
        model.write_bytes(files["model.safetensors"])
        tensors = read_tree(model)
        networks = json.loads(files["model.json"])["networks"]
        assert parity.FILE in files, "no output of a network is kept: a transposed square would pass"
        for name, card in networks.items():
            own = {key: x for key, x in tensors.items() if key.startswith(f"{name}.")}
            _create(tmp_path / f"{number}-{name}", files, card["variant"])
            for how, which, instead in _changes(own, random.Random(f"{key} {number} {name}")):
                changed = {key: x for key, x in tensors.items() if key != which} | instead
                folder = tmp_path / f"{number}-{name}-{done}"
                with pytest.raises(Refused) as caught:
                    _create(folder, {**files, "model.safetensors": tree_bytes(changed)}, card["variant"])
                says = "not the network that was saved" if how == "transposed square" else which.partition(".")[2]
                assert says in str(caught.value), (how, which, str(caught.value))
                done += 1
    assert done
