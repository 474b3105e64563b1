"""Trained parts: when they are trained, when they are found, and that neither changes anything else."""

import dataclasses
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jingdu.engine import Recipe, Run, Stage
from jingdu.errors import Interrupted, TrainingFailed, UsageError
from jingdu.lab import Lab, Test, cache, claim
from jingdu.lab.cache import cache_folder, key_of, made_of, named_papers, sources
from jingdu.lab.run import run_claim
from jingdu.papers.cnn.resnet import recipes

LAPTOP = recipes["laptop"]
TINY = dataclasses.replace(
    LAPTOP.stages[0], networks={"network": "resnet20_cifar(width=2)"}, epochs=None, steps=2, batch_size=23
)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """The recipes that were really trained."""
    done: list[Recipe] = []
    train = cache.run_recipe

    def counted(recipe: Recipe, out: Path, **options: Any) -> Run:
        done.append(recipe)
        return train(recipe, out, **options)

    monkeypatch.setattr(cache, "run_recipe", counted)
    return done


def weights(system: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in system.parameters()])


def key(stage: Stage) -> str:
    return key_of(made_of(Recipe((stage,), minutes=0.0, expect={})))


def test_a_laptop_recipe_is_trained_once(trainings: list[Recipe]) -> None:
    said: list[str] = []
    lab = Lab(progress=said.append)
    first = lab.train(LAPTOP, seed=3, steps=4)
    again = Lab().train(LAPTOP.stages[0], seed=3, steps=4)
    assert len(trainings) == 1 and trainings[0].stages[0].seed == 3
    assert (trainings[0].stages[0].steps, trainings[0].stages[0].epochs) == (4, None)
    assert not first.cached and again.cached
    assert first.metrics == again.metrics and 0 <= first.metrics["error"] <= 1
    assert first.seconds > 0 and again.seconds == pytest.approx(first.seconds, abs=1e-3)
    assert first.folder == again.folder and first.folder.parent == cache_folder()
    assert not first.system.training and torch.equal(weights(first.system), weights(again.system))
    assert [line["step"] for line in first.log if "loss" in line] == [1, 2, 3, 4]
    assert first.log[-1]["eval"] == first.metrics
    assert lab.parts == [first] and "resnet20_cifar(width=8), seed 3: trained in" in said[0]
    # What is kept: one checkpoint, the log, the recipe, the result and the entry; no training folder.
    names = {p.relative_to(first.folder).as_posix() for p in first.folder.rglob("*") if p.is_file()}
    assert {n.split("/")[0] for n in names} == {"checkpoints", "entry.json", "log.jsonl", "recipe.json", "result.json"}
    assert {Path(n).parent.name for n in names if n.startswith("check")} == {"step-000000004"}
    assert list(cache_folder().iterdir()) == [first.folder]


def test_the_system_is_that_of_the_end(trainings: list[Recipe]) -> None:
    part = Lab().train(TINY, seed=0)
    from jingdu.engine import evaluate_system

    assert evaluate_system(part.system, TINY, torch.device("cpu")) == pytest.approx(part.metrics)


def test_series(trainings: list[Recipe]) -> None:
    part = Lab().train(TINY, seed=0, evaluate_every=1)
    steps, losses = part.series("loss")
    assert steps == [1, 2] and losses == [line["loss"] for line in part.log if "loss" in line]
    steps, errors = part.series("eval.error")
    assert steps == [1, 2] and errors[-1] == part.metrics["error"]
    for name in ("accuracy", "eval.accuracy"):
        with pytest.raises(UsageError, match=rf"no '{name}'; it logged error"):
            part.series(name)


def test_global_randomness_is_left_alone(trainings: list[Recipe]) -> None:
    drawn = []
    for _ in range(2):  # trained, then out of the cache
        torch.manual_seed(5), np.random.seed(5)
        _ = Lab().train(TINY, seed=1).system
        drawn.append((torch.rand(3).tolist(), np.random.rand()))
    torch.manual_seed(5), np.random.seed(5)
    drawn.append((torch.rand(3).tolist(), np.random.rand()))
    assert len(trainings) == 1 and drawn[0] == drawn[1] == drawn[2]


def test_pythons_own_randomness_is_left_alone_too() -> None:
    state = random.getstate()  # not around a training: beartype draws from it to choose what to check
    with cache.same_randomness():
        random.random()
    assert random.getstate() == state


@pytest.mark.parametrize("name", ["log.jsonl", "result.json", "recipe.json", "checkpoints", "entry.json", "more"])
def test_a_damaged_entry_is_trained_again(name: str, trainings: list[Recipe]) -> None:
    first = Lab().train(TINY, seed=0)
    before, metrics = weights(first.system), dict(first.metrics)
    path = first.folder / name
    if name == "checkpoints":
        path = next(path.rglob("model.safetensors"))
        content = bytearray(path.read_bytes())
        content[-7] ^= 1  # one bit of the last weights
        path.write_bytes(content)
    elif name == "more":
        path.write_text("a file that the entry does not name")
    else:
        path.write_bytes(path.read_bytes()[:-3])
    again = Lab().train(TINY, seed=0)
    assert len(trainings) == 2 and not again.cached and again.folder == first.folder
    assert again.metrics == metrics and torch.equal(weights(again.system), before)
    assert Lab().train(TINY, seed=0).cached
    assert list(cache_folder().iterdir()) == [first.folder]


def test_a_recipe_of_two_stages(trainings: list[Recipe]) -> None:
    stages = (dataclasses.replace(TINY, name="first"), dataclasses.replace(TINY, name="second", steps=3))
    part = Lab().train(Recipe(stages, minutes=0.0, expect={}), seed=2)
    assert [stage.seed for stage in trainings[0].stages] == [2, 2]
    assert len(part.series("loss")[0]) == 3
    assert (part.folder / "first" / "result.json").exists() and not list(part.folder.rglob("lock"))
    again = Lab().train(Recipe(stages, minutes=0.0, expect={}), seed=2)
    assert again.cached and torch.equal(weights(again.system), weights(part.system))


# What the key depends on --------------------------------------------------------------------------


def test_all_that_matters_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    base = key(TINY)
    assert key(dataclasses.replace(TINY)) == base
    changes: list[dict[str, Any]] = [
        {"seed": 1}, {"steps": 3}, {"lr": 0.11}, {"data": "digits(size=16)"}, {"augment": ()},
        {"networks": {"network": "resnet20_cifar(width=3)"}}, {"per_objective": {"loss": {"lr": 0.2}}},
        {"preprocess": dataclasses.replace(TINY.preprocess, std=(0.5,))},
    ]  # fmt: skip
    keys = {key(dataclasses.replace(TINY, **change)) for change in changes} | {base}
    assert len(keys) == len(changes) + 1
    # How often it saves changes nothing that it learns.
    assert key(dataclasses.replace(TINY, save_every=7, keep=5)) == base
    monkeypatch.setattr(torch, "get_num_threads", lambda: 17)
    assert key(TINY) not in keys
    monkeypatch.undo()
    monkeypatch.setattr(torch, "__version__", "0.0.1")
    assert key(TINY) not in keys
    monkeypatch.undo()
    monkeypatch.setattr(cache, "_sources", lambda modules: {"nn.py": "another"})
    assert key(TINY) not in keys


def test_the_users_own_data_are_in_the_key(tmp_path: Path) -> None:
    def of(data: str) -> Any:
        return made_of(Recipe((dataclasses.replace(TINY, data=data),), minutes=0.0, expect={}))["files"]

    assert of("digits") == [[], []]
    (tmp_path / "a.txt").write_text("one")
    before = of(str(tmp_path))
    assert of(str(tmp_path)) == before and of(f"hf:{tmp_path}") == before and len(before[0]) == 1
    (tmp_path / "b.txt").write_text("two")
    assert of(str(tmp_path)) != before


def test_papers_are_found_by_every_name() -> None:
    def papers(**changes: Any) -> set[str]:
        modules = named_papers([dataclasses.replace(Stage(), **changes)]).values()
        return {module.rpartition(".")[2] for module in modules}

    assert papers() == set()
    assert papers(networks={"network": "resnet50(num_classes=7)"}) == {"resnet"}
    assert papers(networks={"network": "torchvision/resnet18"}) == {"resnet"}
    assert papers(networks={"network": "resnet"}) == {"resnet"}
    assert papers(crop="vgg.scale_jitter(low=8, high=9)", augment=("flip", "resnet.pad_crop")) == {"vgg", "resnet"}
    assert papers(system="alexnet.Something(teacher='vgg16')") == {"alexnet", "vgg"}
    assert papers(data="resnet.Rollout(size=3)") == {"resnet"}


def test_the_real_closure_is_the_papers_and_their_rooms() -> None:
    found = set(sources(["jingdu.papers.cnn.resnet"]))
    assert {"papers/cnn/resnet.py", "papers/cnn/alexnet.py", "engine/loop.py", "data/draws.py", "nn.py"} <= found
    assert not any(name.startswith(("lab/", "claims/", "papers/language", "cli")) for name in found)
    assert not any("__pycache__" in name for name in found)


def _package(root: Path, files: dict[str, str]) -> Callable[..., dict[str, str]]:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return lambda *modules: sources(modules, package=root)


def test_sources_follow_imports_between_papers(tmp_path: Path) -> None:
    base = {
        "engine/loop.py": "import torch", "engine/__pycache__/loop.pyc": "x", "data/base.py": "", "data/table.csv": "1",
        "metrics/__init__.py": "", "nn.py": "", "names.py": "", "cli.py": "",
        "papers/x/new.py": "from jingdu.papers.x.middle import block\nfrom jingdu.nn import each",
        "papers/x/middle.py": "def f():\n    import jingdu.papers.y.folder.part as part\n    return part",
        "papers/y/folder/__init__.py": "", "papers/y/folder/part.py": "from jingdu.papers.x import oldest",
        "papers/y/folder/other.py": "", "papers/x/oldest.py": "import numpy", "papers/x/unrelated.py": "",
    }  # fmt: skip
    found = _package(tmp_path, base)
    rooms = {"engine/loop.py", "data/base.py", "data/table.csv", "metrics/__init__.py", "nn.py", "names.py"}
    folder = {"papers/y/folder/__init__.py", "papers/y/folder/part.py", "papers/y/folder/other.py"}
    middle = {"papers/x/middle.py", "papers/x/oldest.py"} | folder
    assert set(found()) == rooms
    assert set(found("jingdu.papers.x.oldest")) == rooms | {"papers/x/oldest.py"}
    assert set(found("jingdu.papers.x.middle")) == rooms | middle
    assert set(found("jingdu.papers.x.new")) == rooms | middle | {"papers/x/new.py"}
    before = found("jingdu.papers.x.new")
    (tmp_path / "papers/x/unrelated.py").write_text("changed = 1")
    (tmp_path / "cli.py").write_text("changed = 1")
    assert found("jingdu.papers.x.new") == before
    for name in ("papers/x/oldest.py", "papers/y/folder/other.py", "engine/loop.py", "data/table.csv", "nn.py"):
        (tmp_path / name).write_text("# changed")
        after = found("jingdu.papers.x.new")
        assert {n for n in after if after[n] != before.get(n)} == {name}
        before = after


# What may go wrong --------------------------------------------------------------------------------


def test_another_process_may_be_first(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Lab().train(TINY, seed=0)
    kept = other.folder.with_name("kept")
    shutil.copytree(other.folder, kept)
    shutil.rmtree(other.folder)
    train = cache.run_recipe

    def slow(recipe: Recipe, out: Path, **options: Any) -> Run:
        run = train(recipe, out, **options)
        os.rename(kept, other.folder)
        return run

    monkeypatch.setattr(cache, "run_recipe", slow)
    part = Lab().train(TINY, seed=0)
    assert part.folder == other.folder and part.metrics == other.metrics
    assert list(cache_folder().iterdir()) == [other.folder]


@pytest.mark.parametrize("error", [Interrupted, TrainingFailed, KeyboardInterrupt])
def test_a_training_that_ends_early_leaves_nothing(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(recipe: Recipe, out: Path, **options: Any) -> Run:
        out.mkdir()
        (out / "log.jsonl").write_text("half a li")
        torch.manual_seed(99)
        raise error("stopped at step 3")

    monkeypatch.setattr(cache, "run_recipe", stopped)
    before = torch.get_rng_state()
    with pytest.raises(error, match="parts that were trained are kept" if error is Interrupted else "step 3"):
        Lab().train(TINY, seed=0)
    assert list(cache_folder().iterdir()) == []
    assert torch.equal(torch.get_rng_state(), before)


def test_what_killed_processes_left_is_removed_after_days(trainings: list[Recipe]) -> None:
    cache_folder().mkdir(parents=True)
    old, young = cache_folder() / "training-old", cache_folder() / "training-young"
    old.mkdir(), young.mkdir()
    os.utime(old, (1, 1))
    part = Lab().train(TINY, seed=0)
    assert set(cache_folder().iterdir()) == {part.folder, young}


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JINGDU_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="set JINGDU_CACHE"):
        Lab().train(TINY, seed=0)


def test_the_cache_is_in_the_users_folder_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JINGDU_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "jingdu" / "lab"
    monkeypatch.setenv("JINGDU_CACHE", "~/elsewhere")
    assert cache_folder() == tmp_path / "elsewhere" / "lab"


def test_unknown_fields_are_named() -> None:
    with pytest.raises(UsageError, match="stepz"):
        Lab().train(TINY, seed=0, stepz=3)


def test_a_claim_counts_the_time_that_the_cache_saved(tmp_path: Path, trainings: list[Recipe]) -> None:
    def measure(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
        lab.train(TINY, seed=0)  # the same part for every seed
        return {"a": {"x": lab.train(TINY, seed=seed, steps=lab.budget(full=2, smoke=1)).metrics["error"] + 1}}

    made = claim("t", source="s", tests=(Test("a.x", 0, above=0),))(measure)
    first = run_claim(made, out=tmp_path)
    assert len(trainings) == 3 and first.minutes_cached == 0 and first.minutes == sum(first.seconds) / 60
    again = run_claim(made, out=tmp_path)
    assert len(trainings) == 3 and again.values == first.values
    trained = sum(Lab().train(TINY, seed=seed).seconds for seed in range(3))
    assert again.minutes_cached == pytest.approx(trained / 60)
    assert again.minutes == pytest.approx(sum(again.seconds) / 60 + again.minutes_cached)
    run_claim(made, out=tmp_path / "smoke", smoke=True)
    assert [recipe.stages[0].steps for recipe in trainings[3:]] == [1, 1]
