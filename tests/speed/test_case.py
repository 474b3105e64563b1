"""`jingdu bench`: the same weights, the numbers and their keys, the messages."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import jingdu
from jingdu import canon
from jingdu.cli import main
from jingdu.errors import Missing, Refused, UsageError
from jingdu.speed import case, references
from jingdu.speed.case import bench, difference, main_output, make_pair
from jingdu.speed.peak import Limits
from jingdu.speed.references import import_library, their_name

KEYS = {
    "name", "ratio", "interval", "ours", "reference", "rounds", "threads", "torch", "reaches", "variant", "against",
    "mode", "dtype", "batch", "inputs", "device", "difference", "flops", "share_of_peak", "bytes",
    "share_of_bandwidth", "limits",
}  # fmt: skip
LIMITS = Limits({"float32": 1e11, "bf16": 2e11}, 2e10)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of 32x32 and given limits, so that a bench takes a second."""
    monkeypatch.setattr(case, "example_of", lambda found, batch: (torch.randn(batch, 3, 32, 32),))
    monkeypatch.setattr(case, "limits", lambda device: LIMITS)


def test_the_verb_and_its_json(small: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "b.json"
    words = ["bench", "resnet18", "--batch", "2", "--rounds", "6", "--json", "--out", str(out)]
    assert main(words) == 0
    said = capsys.readouterr()
    (row,) = json.loads(said.out)
    assert set(row) == KEYS and f"wrote {out}" in said.err
    assert row["against"] == "torchvision/resnet18" and row["inputs"] == [[2, 3, 32, 32]]
    low, high = row["interval"]
    assert 0 < low <= row["ratio"] <= high and row["reaches"] == (high >= 0.97)
    assert row["share_of_peak"] == pytest.approx(row["flops"] / row["ours"] / 1e11)
    assert row["share_of_bandwidth"] == pytest.approx(row["bytes"] / row["ours"] / 2e10)
    # 11,689,512 parameters, 9,600 running statistics, 20 counters of 8 bytes, and the input.
    assert row["bytes"] == 4 * (11_689_512 + 9_600 + 2 * 3 * 32 * 32) + 8 * 20
    saved = json.loads(out.read_text())
    assert saved["rows"] == [row] and {"date", "machine", "versions"} < set(saved)


def test_a_training_step_is_three_times_the_work(small: None, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [bench("resnet18", "timm", batch=2, train=train, rounds=6) for train in (False, True)]
    assert rows[1]["mode"] == "training step" and rows[1]["against"] == "timm/resnet18"
    # Backward is two products for each one, but the first layer's input needs no gradient.
    assert 2.5 < rows[1]["flops"] / rows[0]["flops"] < 3
    assert "GFLOP/s" in capsys.readouterr().out


def test_bf16_is_both_sides(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    once = case.inference
    monkeypatch.setattr(
        case, "inference", lambda net, x: seen.append((next(net.parameters()).dtype, x[0].dtype)) or once(net, x)
    )
    row = bench("resnet18", "torchvision", batch=1, dtype="bf16", rounds=6)
    assert seen[-2:] == [(torch.bfloat16, torch.bfloat16)] * 2
    assert row["share_of_peak"] == pytest.approx(row["flops"] / row["ours"] / 2e11)


def test_optimised_against_plain(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    real = jingdu.optimize_for_inference
    monkeypatch.setattr(case, "optimize_for_inference", lambda net, x: real(net, x, compile=False))
    row = bench("resnet18", batch=2, optimize=True, rounds=6)
    assert row["mode"] == "optimised inference" and row["optimization"]["folded"] == 20
    with pytest.raises(UsageError, match="--optimize"):
        bench("resnet18", optimize=True, train=True)


def test_both_networks_have_the_same_weights(small: None) -> None:
    pair = make_pair("resnet18", "transformers", batch=2)
    assert pair.alias == "transformers/resnet18" and pair.difference < 1e-5
    assert torch.equal(pair.ours.fc.weight, pair.reference.classifier[1].weight)
    assert pair.ours.bn1.running_mean.abs().min() > 0


def test_networks_that_differ_are_not_timed(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    original = case.build_reference

    def halved(*arguments: object) -> nn.Module:
        network = original(*arguments)
        network.avgpool.register_forward_hook(lambda module, inputs, output: output / 2)
        return network

    monkeypatch.setattr(case, "build_reference", halved)
    with pytest.raises(Refused, match="torchvision/resnet18 and ours differ"):
        make_pair("resnet18", "torchvision", batch=2)


def test_names_of_references() -> None:
    assert their_name(canon.resolve("resnet50")) == "torchvision/resnet50"
    assert their_name(canon.resolve("timm/resnet50")) == "timm/resnet50"
    assert their_name(canon.resolve("timm/resnet50"), "transformers") == "transformers/resnet50"
    with pytest.raises(UsageError, match=r"our resnet20_cifar has no equal in torchvision, .*benchmarks/resnet.py"):
        their_name(canon.resolve("resnet20_cifar"))
    with pytest.raises(UsageError, match="torchvision"):
        their_name(canon.resolve("resnet50"), "torchvison")


def test_a_missing_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(references, "_import", absent)
    for library in ("timm", "torchvision"):
        with pytest.raises(Missing, match=rf"comparing with {library} needs torchvision: pip install torchvision"):
            import_library(library)
    with pytest.raises(UsageError, match="reference library 'keras'"):
        import_library("keras")


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["resnte"],
        ["resnet18", "--against", "keras"],
        ["resnet18", "--dtype", "fp8"],
        ["resnet18", "--batch", "0"],
        ["resnet18", "--rounds", "5"],
        ["resnet20_cifar"],
    ):
        assert main(["bench", *words]) == 2
        assert capsys.readouterr().err.startswith("jingdu: ")


def test_the_tensor_that_is_compared() -> None:
    x = torch.ones(2)
    assert all(main_output(given) is x for given in (x, (x, 1), {"a": "b", "c": [x]}))
    with pytest.raises(UsageError, match="no tensor"):
        main_output({"a": 1})
    assert difference(torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0])) == 0.25
