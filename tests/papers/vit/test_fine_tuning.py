"""BEiT's fine-tuning: rates by layer, and what is taken from a pre-trained network."""

import pytest
import torch
from torch import nn

from jingdu.engine.contracts import Objective, Stage
from jingdu.engine.optimise import apply_schedule, make_optimizer
from jingdu.errors import UsageError
from jingdu.papers.vit.beit.finetuning import FineTuning, layer_depths, layer_rates, take_trained
from jingdu.papers.vit.vit import ViT

SIZES = {"image_size": 24, "patch": 8, "width": 12, "depth": 3, "heads": 3, "num_classes": 5}


def test_depths_of_a_vit() -> None:
    depths = layer_depths(ViT(**SIZES))
    assert {depths[name] for name in ("class_token", "positions", "patches.projection.weight")} == {0}
    assert [depths[f"blocks.{i}.mlp.expand.weight"] for i in range(3)] == [1, 2, 3]
    assert {depths[name] for name in ("norm.weight", "head.weight")} == {4}
    rates = layer_rates(depths, 0.5)
    assert rates["head.bias"] == 1 and rates["blocks.2.norm1.bias"] == 0.5 and rates["positions"] == 0.5**4


def test_a_network_says_itself_how_deep_it_is() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(2, 3), nn.Linear(3, 2)

    with pytest.raises(UsageError, match="no blocks"):
        layer_depths(Other())
    Other.layer_depth = lambda self, name: int(name.startswith("second"))
    assert layer_depths(Other()) == {"first.weight": 0, "first.bias": 0, "second.weight": 1, "second.bias": 1}


def test_rates_reach_the_optimiser_and_stay_under_the_schedule() -> None:
    system = FineTuning(ViT(**SIZES), layer_decay=0.5)
    stage = Stage(optimizer="adamw", lr=0.01, weight_decay=0.05)
    optimizer = make_optimizer(stage, system, Objective("loss"))
    apply_schedule(optimizer, {"lr": 0.25}, stage.lr)
    found = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, wanted in (
        ("head.weight", 1),
        ("norm.bias", 1),
        ("blocks.1.norm2.weight", 0.25),
        ("class_token", 0.0625),
    ):
        assert found[system.network.get_parameter(name)] == pytest.approx(0.0025 * wanted)
    assert len(found) == len(list(system.parameters()))
    assert len(make_optimizer(stage, FineTuning(ViT(**SIZES)), Objective("loss")).param_groups) == 2


def test_all_but_the_fresh_parts_are_taken() -> None:
    trained, network = ViT(**SIZES), ViT(**{**SIZES, "image_size": 32, "num_classes": 7})
    for p in trained.parameters():
        nn.init.normal_(p)
    before = network.norm.weight.clone()
    take_trained(network, trained)
    assert torch.equal(network.blocks[1].mlp.expand.weight, trained.blocks[1].mlp.expand.weight)
    assert torch.equal(network.positions, network.resized["positions"](trained.positions))
    assert torch.equal(network.norm.weight, before)
    with pytest.raises(UsageError, match=r"head\.weight.* another shape"):
        take_trained(network, trained, fresh=())
    with pytest.raises(UsageError, match=r"no blocks\.3"):
        take_trained(ViT(**{**SIZES, "depth": 4}), trained)


def test_an_earlier_stage_or_nothing_is_started_from() -> None:
    trained = FineTuning(ViT(**SIZES))
    nn.init.normal_(trained.network.class_token)
    network = ViT(**SIZES)
    system = FineTuning(network, start="before", frozen=True, paper="vit", previous={"before": trained})
    assert torch.equal(network.class_token, trained.network.class_token)
    assert {n for n, p in system.named_parameters() if p.requires_grad} == {
        f"network.{part}.{kind}" for part in ("norm", "head") for kind in ("weight", "bias")
    }
    with pytest.raises(UsageError, match="no earlier stage 'other'"):
        FineTuning(ViT(**SIZES), start="other", paper="vit", previous={"before": trained})
    with pytest.raises(UsageError, match="layer-decay is 0"):
        FineTuning(ViT(**SIZES), layer_decay=0)
