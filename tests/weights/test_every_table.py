"""What holds for every key table, made from the files in jingdu/weights/keys: a new one is covered by being there.

Networks are built on the meta device, so that all variants are affordable: names and shapes, no numbers.
"""

import random
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

from jingdu import canon
from jingdu.errors import Refused, UsageError
from jingdu.speed.references import LIBRARIES, build_reference
from jingdu.weights import detect, export
from jingdu.weights.filling import fill_network, own_fit
from jingdu.weights.tables import KEYS, OWN, Fit, tables

FAMILIES = sorted(path.stem for path in KEYS.glob("*.toml"))
OPTIONS: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("nas", "timm"): {"width": 8, "repeats": 2},
    **{(family, "torch-one-bias"): {"biases": 1} for family in ("rnn", "lstm", "gru")},
    **{
        ("transformer", format): {"vocabulary": 307, "layers": (1, 2)}
        for format in ("transformers", "fsmt", "fsmt-untied")
    },
}
"""(family, library) -> the arguments of `build` for which a table is meant, where it is not for the variants as they are,
or with which its variants are small enough to be filled."""


def variants(family: str, library: str) -> tuple[str, ...]:
    return tables(family)[library].variants or tuple(canon.paper(family).variants)


def smallest(family: str, library: str) -> str:
    """The table's network with the fewest parameters."""
    return min(variants(family, library), key=lambda variant: canon.paper(family).variants[variant])


TABLES = [(family, library) for family in FAMILIES for library in tables(family) if library != OWN]
CASES = [(family, library, variant) for family, library in TABLES for variant in variants(family, library)]
NETWORKS = [variant for paper in canon.papers() for variant in paper.variants]
ALIASES = [
    alias
    for paper in canon.papers()
    for alias in paper.aliases
    if (library := alias.partition("/")[0]) in LIBRARIES and library in tables(paper.key)
]


@pytest.fixture(autouse=True)
def _without_types(monkeypatch):
    """The types of arguments are checked by the other tests; here that would take nine tenths of the time."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@cache
def _built(name: str, overrides: tuple[tuple[str, Any], ...] = ()) -> nn.Module:
    with torch.device("meta"):
        return canon.create(name, **dict(overrides))


def network_of(family: str, library: str, variant: str) -> nn.Module:
    return _built(variant, tuple(OPTIONS.get((family, library), {}).items()))


def fit_of(tensors: Mapping[str, Tensor], network: nn.Module, family: str, library: str) -> Fit:
    """As `fill` decides it."""
    if library == OWN:
        return own_fit(tensors, network)
    return detect(tensors, None, family, library, network.state_dict(), network.origin.variant)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_table_is_of_a_paper_and_its_variants(family):
    card = canon.paper(family)
    for library, table in tables(family).items():
        assert library == OWN or table.rules or table.variants, library
        assert set(table.variants) <= set(card.variants), library


@pytest.mark.parametrize(("family", "library", "variant"), CASES)
def test_names_and_shapes_go_there_and_back(family, library, variant):
    network = network_of(family, library, variant)
    state = network.state_dict()
    theirs = export(network, library, family=family)
    fit = fit_of(theirs, network, family, library)  # which goes each way and compares, or says where it led
    assert fit.exact and fit.entries
    ours_seen: list[str] = []
    theirs_seen: list[str] = []
    for entry in fit.entries:
        ours_seen += entry.ours
        theirs_seen += entry.theirs
        there = entry.transform.load([theirs[name] for name in entry.theirs])
        assert [x.shape for x in there] == [state[key].shape for key in entry.ours], entry
        back = entry.transform.export(there)
        assert [x.shape for x in back] == [theirs[name].shape for name in entry.theirs], entry
    assert len(set(ours_seen)) == len(ours_seen) and len(set(theirs_seen)) == len(theirs_seen)
    assert {key for key in state if not fit.table.ignores(key)} <= set(ours_seen) <= set(state)
    assert set(theirs_seen) == set(theirs)
    fill_network(network, theirs, fit)


@pytest.mark.parametrize(("family", "library"), TABLES)
def test_numbers_go_there_and_back(family, library):
    variant = smallest(family, library)
    ours = canon.create(variant, **OPTIONS.get((family, library), {}))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in ours.state_dict().values():
            tensor.copy_(torch.randint(1, 10_000, tensor.shape, generator=generator))
    theirs = export(ours, library, family=family)
    again = canon.create(variant, **OPTIONS.get((family, library), {}))
    fit = fit_of(theirs, again, family, library)
    fill_network(again, theirs, fit)
    filled = {key for entry in fit.entries for key in entry.ours}
    assert all(
        torch.equal(again.state_dict()[key], tensor) for key, tensor in ours.state_dict().items() if key in filled
    )


@pytest.mark.parametrize("alias", ALIASES)
def test_our_names_are_those_of_the_librarys_own_network(alias):
    library, network = alias.partition("/")[0], _built(alias)
    card = canon.resolve(alias).paper
    try:
        theirs = _reference(card, alias, network)
    except UsageError as error:
        pytest.skip(str(error))
    exported = export(network, library, family=card.key)
    table = fit_of(exported, network, card.key, library).table

    def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        return {name: tuple(x.shape) for name, x in state.items() if not table.ignores(name)}

    assert shapes(exported) == shapes(theirs.state_dict())


def _reference(card: canon.Paper, alias: str, network: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                return build_reference(card, alias, network)
        except (RuntimeError, NotImplementedError):  # it asks for the value of a number that meta has not
            return build_reference(card, alias, network)


# One tensor that is wrong ----------------------------------------------------------------------------


def _turned(tensor: Tensor) -> Tensor | None:
    """Two axes of different length exchanged; None where there are none."""
    for i in range(tensor.ndim):
        for j in range(i):
            if tensor.shape[i] != tensor.shape[j]:
                return tensor.transpose(i, j)
    return None


def _broken(theirs: Mapping[str, Tensor], fit: Fit, how: str, numbers: random.Random) -> tuple[str, dict[str, Tensor]]:
    """Which tensor is wrong, and all of them."""
    needed = {name: entry for entry in fit.entries for name in entry.theirs}
    names = [name for name, entry in needed.items() if not fit.table.ignores(name, *entry.ours)]
    if how == "transposed":
        names = [name for name in names if _turned(theirs[name]) is not None]
    name = numbers.choice(names)
    changed = {key: x for key, x in theirs.items() if key != name}
    if how == "renamed":
        changed[f"{name}_"] = theirs[name]
    elif how == "transposed":
        changed[name] = _turned(theirs[name])
    return name, changed


def _check_refusals(family: str, library: str, variant: str) -> None:
    network = network_of(family, library, variant)
    theirs = export(network, library, family=family)
    fit = fit_of(theirs, network, family, library)
    for how in ("renamed", "dropped", "transposed"):
        name, changed = _broken(theirs, fit, how, random.Random(f"{variant} {library} {how}"))
        with pytest.raises(Refused) as caught:
            fill_network(network, changed, fit_of(changed, network, family, library))
        said = str(caught.value)
        assert name in said or any(key in said for key in fit.table.from_theirs(name).ours), (how, said)


@pytest.mark.parametrize("variant", NETWORKS)
def test_one_wrong_tensor_is_refused(variant):
    """Row 14 of the promises: renamed, dropped or transposed, in the weights of every network."""
    _check_refusals(canon.resolve(variant).paper.key, OWN, variant)


@pytest.mark.parametrize(("family", "library"), TABLES)
def test_one_wrong_tensor_is_refused_in_every_format(family, library):
    variant = smallest(family, library)
    _check_refusals(family, library, variant)
    # Nor are they taken for another format.
    network = network_of(family, library, variant)
    theirs = export(network, library, family=family)
    fit = fit_of(theirs, network, family, library)
    for how in ("renamed", "dropped", "transposed"):
        _, changed = _broken(theirs, fit, how, random.Random(how))
        with pytest.raises((Refused, UsageError)):
            fill_network(network, changed, detect(changed, None, family, None, network.state_dict(), variant))
