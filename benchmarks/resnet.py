"""ResNet-18 and -50 against torchvision: python -m benchmarks.resnet."""

import torch

import jingdu
from benchmarks.paired import compare, save
from tests.parity.references import import_torchvision


def cases(rounds: int = 20) -> list[dict[str, object]]:
    """Inference and training step in float32, same shapes, alternating."""
    models = import_torchvision().models
    rows = []
    for variant, batch in (("resnet18", 8), ("resnet50", 4)):
        ours, theirs = jingdu.create(variant), getattr(models, variant)(weights=None)
        x, labels = torch.randn(batch, 3, 224, 224), torch.arange(batch)

        def infer(model: torch.nn.Module, x: torch.Tensor = x) -> torch.Tensor:
            with torch.inference_mode():
                return model.eval()(x)

        def step(model: torch.nn.Module, x: torch.Tensor = x, labels: torch.Tensor = labels) -> None:
            model.train().zero_grad()
            torch.nn.functional.cross_entropy(model(x), labels).backward()

        for name, work in (("inference", infer), ("training step", step)):
            title = f"{variant}, batch {batch}, {name}"
            rows.append(compare(lambda: work(ours), lambda: work(theirs), title, rounds=rounds))  # noqa: B023
    return rows


if __name__ == "__main__":
    save(cases(), "results/benchmarks/resnet.json")
