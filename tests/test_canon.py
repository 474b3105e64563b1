"""What holds for every paper, made from the cards."""

import ast
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import jingdu
from jingdu import canon
from jingdu.engine import Recipe
from jingdu.errors import UsageError
from jingdu.names import Call

PAPERS = canon.papers()
KEYS = [paper.key for paper in PAPERS]
VARIANTS = [(paper.key, variant) for paper in PAPERS for variant in paper.variants]
ROOT = Path(__file__).parent.parent
UNFINISHED: set[str] = set()
"""Papers in the making: their code is tested, and not all their proofs are there. Who has left this list stays out."""


def imported_papers(path: Path) -> set[str]:
    """The papers that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            parts = name.split(".")
            if parts[:2] == ["jingdu", "papers"] and len(parts) > 3:
                found.add(parts[3])
    return found


@pytest.mark.parametrize("key, variant", VARIANTS)
def test_parameter_count(key: str, variant: str) -> None:
    with torch.device("meta"):
        model = jingdu.create(variant)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count == canon.paper(key).variants[variant]


@pytest.mark.parametrize("key", [paper.key for paper in PAPERS if not paper.variants])
def test_papers_without_parameters_have_their_key(key: str) -> None:
    model = jingdu.create(key)
    assert model.origin.variant == key and not hasattr(model, "parameters")


@pytest.mark.parametrize("key", KEYS)
def test_variants_are_the_modules(key: str) -> None:
    paper = canon.paper(key)
    assert list(paper.variants) == list(getattr(paper.load(), "VARIANTS", {}))
    assert all(variant.startswith(key) for variant in paper.variants)


@pytest.mark.parametrize("key", KEYS)
def test_imports_are_citations(key: str) -> None:
    paper = canon.paper(key)
    imported = set().union(*map(imported_papers, paper.source_files))
    assert imported - {key} == set(paper.builds_on)
    for other in paper.builds_on:
        assert canon.paper(other).first <= paper.first, f"{key} imports {other}, which is newer"
    assert not set(paper.cites) & set(paper.builds_on)


@pytest.mark.parametrize("key", KEYS)
def test_papers_import_only_the_rooms_they_may(key: str) -> None:
    allowed = {"papers", "nn", "engine", "data", "metrics", "prediction", "errors", "names", "limits"}
    for path in canon.paper(key).source_files:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jingdu."):
                assert node.module.split(".")[1] in allowed, node.module


@pytest.mark.parametrize("key", KEYS)
def test_papers_export_only_their_own(key: str) -> None:
    module = canon.paper(key).load()
    for name in module.__all__:
        value = getattr(module, name)
        home = getattr(value, "__module__", module.__name__)
        assert f"{home}.".startswith(f"{module.__name__}."), f"{name} is re-exported"


@pytest.mark.parametrize("key", sorted(set(KEYS) - UNFINISHED))
def test_every_paper_is_whole(key: str) -> None:
    paper = canon.paper(key)
    module = paper.load()
    assert re.search("Differs from the paper in:", module.__doc__, re.I)
    assert {"laptop", "paper"} <= set(module.recipes)
    assert all(isinstance(recipe, Recipe) for recipe in module.recipes.values())
    assert callable(module.build) and callable(module.predict)
    assert canon.claims(paper), "no claims"
    assert (ROOT / "tests" / "parity" / f"test_{key}.py").exists()
    assert (ROOT / "tests" / "papers" / paper.area / f"test_{key}.py").exists()
    assert (ROOT / "benchmarks" / f"{key}.py").exists()
    for claim in canon.claims(paper):
        assert claim.report is not None, f"{claim.name} has no committed report"
        assert claim.report["smoke"] is False


@pytest.mark.parametrize("key", sorted(set(KEYS) - UNFINISHED))
def test_claims_read_from_source_are_the_modules(key: str) -> None:
    from jingdu.lab import Claim

    module = canon.claims_module(canon.paper(key))
    loaded = {name: value.text for name, value in vars(module).items() if isinstance(value, Claim)}
    assert loaded == {claim.name: claim.text for claim in canon.claims(canon.paper(key))}


@pytest.mark.parametrize("key", KEYS)
def test_recipes_name_things_that_exist(key: str) -> None:
    from jingdu.engine.optimise import make_schedule
    from jingdu.engine.systems import READY, resolve
    from jingdu.engine.training import functions

    for recipe in canon.paper(key).load().recipes.values():
        for stage in recipe.stages:
            functions([*stage.augment, *([stage.crop] if stage.crop else [])], "jingdu.data.augment")
            make_schedule(stage.schedule)
            name = Call.parse(stage.system).name
            assert name in READY or callable(resolve(name))
            for text in stage.networks.values():
                canon.resolve(Call.parse(text).name)
            assert recipe.minutes > 0 and recipe.expect


@pytest.mark.parametrize("paper", PAPERS, ids=KEYS)
def test_cards_hold_the_facts(paper: canon.Paper) -> None:
    assert re.fullmatch(r"\d{4}-\d{2}", paper.first)
    assert paper.title and paper.authors and paper.idea_en and paper.idea_zh and (paper.arxiv or paper.url)
    assert paper.bibtex().startswith("@misc{" + paper.key)
    for alias, target in paper.aliases.items():
        assert "/" in alias and Call.parse(target).name in paper.variants


def test_names_are_unique() -> None:
    names = [name for paper in PAPERS for name in (*paper.variants, *paper.aliases)]
    assert len(names) == len(set(names))


def test_unknown_names_suggest() -> None:
    with pytest.raises(UsageError, match="resnet50"):
        jingdu.create("resnet5O")
    with pytest.raises(UsageError, match="resnet"):
        jingdu.paper("resnte")
    with pytest.raises(UsageError, match="widht"):
        jingdu.create("resnet18", widht=3)


def test_public_functions() -> None:
    assert all(callable(getattr(jingdu, name)) for name in jingdu.__all__)
    assert isinstance(jingdu.create("resnet20_cifar"), nn.Module)
