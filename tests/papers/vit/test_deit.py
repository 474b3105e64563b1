"""DeiT's two tokens, and what they learn from a teacher."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import jingdu
from jingdu.engine import Stage, train
from jingdu.engine.contracts import Objective, Recipe
from jingdu.engine.optimise import make_optimizer
from jingdu.errors import UsageError
from jingdu.papers.vit.deit import (
    DeiT,
    Distillation,
    hard_distillation,
    recipes,
    soft_distillation,
    token_similarity,
)
from jingdu.papers.vit.vit import ViT

SIZES = {"image_size": (24, 40), "patch": 8, "width": 12, "depth": 3, "heads": 3, "num_classes": 5}


def images(count: int = 7) -> torch.Tensor:
    return torch.randn(count, 3, 24, 40, generator=torch.Generator().manual_seed(count))


def test_the_tokens_come_first_and_have_positions() -> None:
    model, x = DeiT(**SIZES, distilled=True), images(2)
    tokens = model.embed(x)
    assert tokens.shape == (2, 2 + 3 * 5, 12)
    for place, token in enumerate((model.class_token, model.distillation_token)):
        wanted = (token + model.positions[:, place : place + 1])[:, 0]
        assert torch.allclose(tokens[:, place], wanted.expand(2, -1))
    assert torch.allclose(tokens[:, 2:], model.patches(x) + model.positions[:, 2:])
    with pytest.raises(UsageError, match="image_size="):
        model(x[:, :, :16])


def test_training_gives_both_heads_and_use_their_mean() -> None:
    model, x = DeiT(**SIZES, distilled=True), images(2)
    logits, distilled = model(x)
    tokens = model.norm(model.features(x)[-1])
    assert torch.allclose(logits, model.head(tokens[:, 0]), atol=1e-6)
    assert torch.allclose(distilled, model.distillation_head(tokens[:, 1]), atol=1e-6)
    assert torch.allclose(model.eval()(x), (logits + distilled) / 2, atol=1e-6)


def test_without_the_token_it_is_a_vit() -> None:
    ours, theirs = DeiT(**SIZES), ViT(**SIZES)
    theirs.load_state_dict(ours.state_dict())
    x = images(2)
    assert torch.equal(ours(x), theirs(x)) and torch.equal(ours.both(x)[1], ours(x))
    assert isinstance(ours.train()(x), torch.Tensor)


def test_weights_start_in_a_narrow_normal() -> None:
    model = DeiT(**{**SIZES, "width": 48}, distilled=True)
    for name in ("blocks.0.attention.qkv.weight", "head.weight", "distillation_head.weight", "positions"):
        assert model.get_parameter(name).std().item() == pytest.approx(0.02, rel=0.15)
    assert not model.blocks[1].mlp.expand.bias.any()
    assert [block.drop for block in DeiT(**SIZES, drop=0.1).blocks] == pytest.approx([0, 0.05, 0.1])


def test_tokens_and_positions_do_not_decay() -> None:
    model = DeiT(**SIZES, distilled=True)
    stage = Stage(optimizer="adamw", weight_decay=0.3)
    optimizer = make_optimizer(stage, model, Objective("loss"))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    kept = {name for name, p in model.named_parameters() if decays[id(p)] == 0}
    assert {"class_token", "distillation_token", "positions", "norm.weight", "head.bias"} <= kept
    assert "patches.projection.weight" not in kept and "head.weight" not in kept
    everything = make_optimizer(dataclasses.replace(stage, decay="all"), model, Objective("loss"))
    assert [group["weight_decay"] for group in everything.param_groups] == [0.3]


def test_similarity_is_of_the_two_tokens() -> None:
    model, x = DeiT(**SIZES, distilled=True).eval(), images(3)
    found = token_similarity(model, x)
    last = model.features(x)[-1]
    assert found.shape == (3,) and found[-1].item() == pytest.approx(
        F.cosine_similarity(last[:, 0], last[:, 1]).mean().item(), abs=1e-6
    )
    with pytest.raises(UsageError, match="distillation token"):
        token_similarity(DeiT(**SIZES), x)


def test_lessons_are_equations_2_and_3() -> None:
    ours, theirs = torch.randn(7, 5), torch.randn(7, 5)
    p, q = (theirs / 3).softmax(1), (ours / 3).softmax(1)
    divergence = (p * (p.log() - q.log())).sum(1).mean()
    assert torch.allclose(soft_distillation(ours, theirs, 3.0), 9 * divergence / 5)
    assert torch.allclose(hard_distillation(ours, theirs), -ours.log_softmax(1)[range(7), theirs.argmax(1)].mean())


class Teacher(nn.Module):
    """Logits by a fixed map of the mean colours, and what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 5)
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x
        return self.norm(self.map(x.mean((2, 3))))


@pytest.mark.parametrize("distilled", [True, False])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_the_student_learns_from_labels_and_teacher(kind: str, distilled: bool) -> None:
    torch.manual_seed(0)
    student, teacher = DeiT(**SIZES, distilled=distilled), Teacher()
    shown = []
    student.patches.register_forward_pre_hook(lambda m, inputs: shown.append(inputs[0]))
    system = Distillation(
        student, teacher, kind=kind, alpha=0.3, tau=2.0, cutmix=0, mixup=0, label_smoothing=0.1
    ).train()
    batch = {"image": images(), "label": torch.arange(7) % 5}
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    loss, logged = system(batch, "loss")
    loss.backward()
    said = student(batch["image"])
    logits, other = said if distilled else (said, said)
    taught = teacher(batch["image"])
    lesson = hard_distillation(other, taught) if kind == "hard" else soft_distillation(other, taught, 2.0)
    wanted = 0.7 * F.cross_entropy(logits, batch["label"], label_smoothing=0.1) + 0.3 * lesson
    assert torch.allclose(loss, wanted, atol=1e-6) and set(logged) == {"error", "disagreement"}
    assert not teacher.training and student.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())
    mixing = Distillation(student, teacher, mixup=0.8, cutmix=1.0)
    mixing(batch, "loss")
    assert torch.equal(teacher.seen, shown[-1]) and not torch.equal(teacher.seen, batch["image"])


def test_evaluation_is_of_both_heads() -> None:
    torch.manual_seed(0)
    student = DeiT(**SIZES, distilled=True)
    system = Distillation(student, Teacher()).eval()
    batch = {"image": images(), "label": torch.arange(7) % 5}
    system.update(batch)
    found = system.compute()
    both = student.both(batch["image"])
    for name, logits in zip(("class_error", "distillation_error"), both, strict=True):
        assert found[name] == pytest.approx((logits.argmax(1) != batch["label"]).float().mean().item())
    assert found["error"] == pytest.approx((sum(both).argmax(1) != batch["label"]).float().mean().item())
    alone = Distillation(DeiT(**SIZES), Teacher()).eval()
    alone.update(batch)
    assert set(alone.compute()) == {"error", "loss"}


def test_a_student_needs_a_teacher_and_a_known_lesson() -> None:
    with pytest.raises(UsageError, match="needs a teacher"):
        Distillation(DeiT(**SIZES))
    with pytest.raises(UsageError, match="kind"):
        Distillation(DeiT(**SIZES), Teacher(), kind="firm")


def test_the_laptop_recipe_trains_a_teacher_and_its_student(tmp_path: Path) -> None:
    small = "scenes(size=24, count=20, test_count=9, max_shapes=1)"
    stages = tuple(
        dataclasses.replace(stage, steps=2, batch_size=8, data=small, save_every=10)
        for stage in recipes["laptop"].stages
    )
    stages = (
        *stages[:-1],
        dataclasses.replace(stages[-1], ema=0.5, repeats=2, augment=recipes["paper"].stages[0].augment),
    )
    run = train(Recipe(stages, minutes=1, expect={}), tmp_path / "run", device="cpu", quiet=True)
    assert {"error", "class_error", "distillation_error"} <= set(run.metrics)
    Image.new("RGB", (37, 29), "red").save(tmp_path / "a.png")
    (found,) = jingdu.predict("deit", [str(tmp_path / "a.png")], tmp_path / "run", top=2)
    assert (len(found.data["top"]) == 2 and found.data["top"][0]["class"] in ("circle", "square", "triangle")) or found
