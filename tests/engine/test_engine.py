"""The engine beyond the papers: stages, rollouts, cadence, exactness, faults."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import jingdu
from jingdu.data.preprocess import Preprocess
from jingdu.engine import Recipe, Stage, System, load_system, read_log, train
from jingdu.engine import systems as engine_systems
from jingdu.engine.checkpoint import newest_checkpoint, verify, write_checkpoint
from jingdu.engine.optimise import make_schedule
from jingdu.engine.run import locked
from jingdu.engine.state import read_tree, tree_bytes
from jingdu.engine.training import average, checkpoint_activations
from jingdu.errors import Interrupted, Refused, TrainingFailed, UsageError
from tests.engine import systems

GREY = Preprocess(channels=1)
BASE = Stage(
    networks={"network": "resnet20_cifar(width=4, depths=(1, 1), num_classes=10, in_channels=1)"},
    preprocess=GREY, batch_size=64, steps=7, lr=0.05, save_every=2, augment=("flip",),
)  # fmt: skip
QUIET = {"device": "cpu", "quiet": True}


@pytest.fixture(autouse=True)
def _ready(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (systems.Encoder, systems.Head, systems.Reinforce, systems.Cadence, systems.Broken):
        monkeypatch.setitem(engine_systems.READY, kind.__name__.lower(), kind)


def stage(**changes: object) -> Stage:
    return dataclasses.replace(BASE, **changes)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(newest_checkpoint(run) / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    equal = first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    return equal and (a / "log.jsonl").read_bytes() == (b / "log.jsonl").read_bytes()


class _Stop(Exception):
    pass


def stop_at(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Die in the middle of step `count`, as a kill would: nothing is saved."""
    from jingdu.engine.training import Training

    original, done = Training.advance, [0]

    def advance(self: Training) -> dict[str, object]:
        done[0] += 1
        if done[0] == count:
            raise _Stop
        return original(self)

    monkeypatch.setattr(Training, "advance", advance)


@pytest.mark.parametrize("options", [
    {"optimizer": "adamw", "ema": 0.9, "schedule": "cosine(warmup=2)", "weight_decay": 0.1},
    {"precision": "bf16", "accumulate": 3, "clip": 0.1, "schedule": "onecycle", "workers": 2, "repeats": 3},
    {"nesterov": True, "channels_last": True, "checkpoint_activations": True, "epochs": 0.3, "steps": None},
])  # fmt: skip
def test_stopped_anywhere_resumes_to_the_same_bits(
    options: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(stage(**options), tmp_path / "whole", **QUIET)
    for count in range(1, 7):
        out = tmp_path / f"cut{count}"
        with monkeypatch.context() as patch:
            stop_at(patch, count)
            with pytest.raises(_Stop):
                train(stage(**options), out, **QUIET)
        again = train(stage(**options), out, resume=True, **QUIET)
        assert same(tmp_path / "whole", out) and again.metrics == whole.metrics


def test_two_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(
        (stage(name="encoder", system="encoder", steps=60, lr=1.0), stage(name="head", system="head", steps=90, lr=1.0)),
        minutes=1, expect={},
    )  # fmt: skip
    run = train(recipe, tmp_path / "R", **QUIET)
    assert run.metrics["accuracy"] > 0.3
    first = load_system(tmp_path / "R" / "encoder")
    assert torch.equal(load_system(tmp_path / "R").encode.weight, first.encode.weight)
    for count in (30, 100):  # in the first stage, and in the second
        out = tmp_path / f"cut{count}"
        with monkeypatch.context() as patch:
            stop_at(patch, count)
            with pytest.raises(_Stop):
                train(recipe, out, **QUIET)
        train(recipe, out, resume=True, **QUIET)
        assert same(tmp_path / "R", out)


def test_rollout_learns_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import jingdu.engine.training as training

    monkeypatch.setattr(training, "open_source", lambda text, split, s, crop=None: systems.Corridor(s.seed))
    play = stage(system="reinforce", steps=80, lr=2.0, augment=(), save_every=7)
    run = train(play, tmp_path / "R", **QUIET)
    assert run.metrics["right"] > 0.7
    with monkeypatch.context() as patch:
        stop_at(patch, 33)
        with pytest.raises(_Stop):
            train(play, tmp_path / "cut", **QUIET)
    train(play, tmp_path / "cut", resume=True, **QUIET)
    assert same(tmp_path / "R", tmp_path / "cut")
    state = read_tree(newest_checkpoint(tmp_path / "R") / "state.safetensors")
    assert state["stream"]["played"] == 80 * 32


def test_cadence_and_freshness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[systems.Cadence] = []
    monkeypatch.setitem(
        engine_systems.READY, "cadence", lambda network: made.append(systems.Cadence(network)) or made[0]
    )
    train(stage(system="cadence", steps=4, lr=0.01, momentum=0.0), tmp_path / "R", **QUIET)
    order = [name for name, _ in made[0].seen]
    assert order == ["first", "first", "second", "first", "first", "first", "first", "first", "first", "second"]
    sums = [value for _, value in made[0].seen]
    assert sums[0] != sums[1] and sums[1] == sums[2]  # fresh for each update, then the last one again
    assert made[0].counts.tolist() == [8, 2]
    assert made[0].a.requires_grad and made[0].b.requires_grad
    log = read_log(tmp_path / "R")
    assert "second.loss" in log[0] and "second.loss" not in log[1]


def test_accumulation_equals_one_batch(tmp_path: Path) -> None:
    # Batch norm sees parts, so the comparison is on a system without it.
    for name, parts in (("one", 1), ("five", 5)):
        train(stage(system="encoder", precision="float64", accumulate=parts), tmp_path / name, **QUIET)
    a, b = weights(tmp_path / "one"), weights(tmp_path / "five")
    for key in a:
        assert torch.allclose(a[key], b[key], rtol=1e-12, atol=1e-14), key


def test_activation_checkpointing_changes_nothing() -> None:
    x = torch.randn(5, 3, 16, 16)
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = jingdu.create("resnet20_cifar", width=4)
        keys = list(model.state_dict())
        if recompute:
            assert checkpoint_activations(model) == 9
        model(x).square().sum().backward()
        assert list(model.state_dict()) == keys
        results.append([*(p.grad for p in model.parameters()), *model.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_average_is_exponential() -> None:
    mean, moving = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    before = mean.weight.detach().clone()
    average(mean.requires_grad_(False), moving, 0.75)
    assert torch.allclose(mean.weight, 0.75 * before + 0.25 * moving.weight)


def test_nan_stops_before_the_update(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match=r"step 4.*Last good"):
        train(stage(system="broken", save_every=1, lr=1.0, momentum=0.0), tmp_path / "R", **QUIET)
    assert newest_checkpoint(tmp_path / "R").name == "step-000000003"
    assert weights(tmp_path / "R")["a"].tolist() == [-2.0, -2.0]


def test_compile_keeps_keys(tmp_path: Path) -> None:
    model = jingdu.create("resnet20_cifar", width=4)
    keys = list(model.state_dict())
    model.compile()
    assert list(model.state_dict()) == keys


# Checkpoints ------------------------------------------------------------------------------------


def test_damaged_checkpoint_is_refused_and_the_one_before_used(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = {"a.bin": rng.bytes(1000), "b.json": b"{}"}
    for step in (1, 2):
        write_checkpoint(tmp_path / "checkpoints", step, files, 2, {})
    newest = tmp_path / "checkpoints" / "step-000000002"
    warned: list[str] = []
    for _ in range(60):
        name = rng.choice(["a.bin", "b.json"])
        content = bytearray(files[name])
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        (newest / name).write_bytes(bytes(content))
        with pytest.raises(Refused):
            verify(newest)
        assert newest_checkpoint(tmp_path, warned.append).name == "step-000000001"
        (newest / name).write_bytes(files[name])
    assert len(warned) == 60 and newest_checkpoint(tmp_path, warned.append) == newest
    for path in (tmp_path / "checkpoints").glob("*/a.bin"):
        path.write_bytes(b"")
    with pytest.raises(Refused, match="none of its 2"):
        newest_checkpoint(tmp_path, warned.append)


def test_numbers_not_names_order_checkpoints(tmp_path: Path) -> None:
    for step in (9, 10, 1_000_000_000):
        write_checkpoint(tmp_path / "checkpoints", step, {"a": b"x"}, 3, {})
    assert newest_checkpoint(tmp_path).name == "step-1000000000"
    (tmp_path / "checkpoints" / "step-2000000000.tmp").mkdir()
    assert newest_checkpoint(tmp_path).name == "step-1000000000"


def test_only_one_writer(tmp_path: Path) -> None:
    with locked(tmp_path):
        code = f"from pathlib import Path; from jingdu.engine.run import locked\nwith locked(Path({str(tmp_path)!r})): pass"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 1 and "another process" in done.stderr
    with locked(tmp_path):
        pass


def test_trees_come_back(tmp_path: Path) -> None:
    tree = {"a": [torch.arange(3), {"b": 1.5, 7: None}], "c": "text", "t": torch.zeros(2, dtype=torch.bool)}
    (tmp_path / "t.safetensors").write_bytes(tree_bytes(tree))
    back = read_tree(tmp_path / "t.safetensors")
    assert back["a"][1] == tree["a"][1] and back["c"] == "text"
    assert torch.equal(back["a"][0], tree["a"][0]) and torch.equal(back["t"], tree["t"])
    with pytest.raises(TypeError, match=r"a\.0"):
        tree_bytes({"a": [object()]})


def test_signal_is_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import signal

    from jingdu.engine.training import Training

    original = Training.advance

    def advance(self: Training) -> dict[str, object]:
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    monkeypatch.setattr(Training, "advance", advance)
    with pytest.raises(Interrupted, match="--resume"):
        train(stage(save_every=1000), tmp_path / "R", **QUIET)
    assert newest_checkpoint(tmp_path / "R").name == "step-000000003"


# Schedules --------------------------------------------------------------------------------------


def test_onecycle_is_torchs() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=97, cycle_momentum=False)
    ours = make_schedule("onecycle")
    for step in range(97):
        assert 0.1 * ours(step, 97, 10)["lr"] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        if step < 96:
            reference.step()


def test_schedules_by_hand() -> None:
    def at(text: str, step: int) -> float:
        return make_schedule(text)(step, 100, 10)["lr"]

    assert [at("step(every=3)", s) for s in (0, 29, 30, 60)] == pytest.approx([1, 1, 0.1, 0.01])
    assert [at("step(every=3, warmup=40)", s) for s in (0, 29, 59)] == pytest.approx([1 / 40, 0.75, 0.1])
    assert [at("multistep(at=(0.5, 0.75))", s) for s in (49, 50, 75)] == pytest.approx([1, 0.1, 0.01])
    assert [at("cosine(warmup=10)", s) for s in (0, 4, 10, 55)] == pytest.approx([0.1, 0.5, 1, 0.5])
    assert [at("inverse_sqrt(warmup=4)", s) for s in (0, 3, 15)] == pytest.approx([0.25, 1, 0.5])
    assert at("exponential(factor=2)", 3) == pytest.approx(1 / 8)
    assert at("constant", 50) == 1
    momentum = make_schedule("exponential(factor=1, momentum_start=0.5, momentum_end=0.7, momentum_epochs=4)")
    assert momentum(25, 100, 10)["momentum"] == pytest.approx(0.6)
    for bad in ("cosin", "step", "constant(warm=3)", "step(every=1"):
        with pytest.raises(UsageError):
            make_schedule(bad)


def test_decay_groups(tmp_path: Path) -> None:
    from jingdu.engine.contracts import Objective
    from jingdu.engine.optimise import make_optimizer

    model = jingdu.create("resnet20_cifar", width=4)
    split = make_optimizer(stage(weight_decay=0.3), model, Objective("loss"))
    decayed, free = split.param_groups
    assert all(p.ndim >= 2 for p in decayed["params"]) and all(p.ndim < 2 for p in free["params"])
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    assert len(make_optimizer(stage(weight_decay=0.3, decay="all"), model, Objective("loss")).param_groups) == 1
    with pytest.raises(UsageError, match="nothing"):
        make_optimizer(stage(), model, Objective("x", parameters=("nothing",)))


def test_log_and_tensorboard(tmp_path: Path) -> None:
    train(stage(evaluate_every=3), tmp_path / "R", tensorboard=True, **QUIET)
    log = read_log(tmp_path / "R")
    assert [line["step"] for line in log if "loss" in line] == list(range(1, 8))
    assert [line["step"] for line in log if "eval" in line] == [3, 6, 7]
    assert all(math.isfinite(line["loss"]) for line in log if "loss" in line)
    assert list((tmp_path / "R" / "tensorboard").iterdir())
    assert json.loads((tmp_path / "R" / "result.json").read_text())["steps"] == 7


def test_contracts_speak_up() -> None:
    class Silent(System):
        pass

    with pytest.raises(TypeError, match="Silent"):
        Silent()({}, "loss")
