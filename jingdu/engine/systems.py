"""Ready systems for supervised papers, and how a stage's text becomes a System."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jingdu import canon
from jingdu.engine.contracts import Batch, Stage, System
from jingdu.errors import UsageError, unknown
from jingdu.metrics.classification import Accuracy
from jingdu.names import Call


class Classification(System):
    """Softmax cross-entropy of one network's logits; evaluation is error, top-5 error and loss."""

    def __init__(self, network: nn.Module, label_smoothing: float = 0.0):
        super().__init__()
        self.network = network
        self.label_smoothing = label_smoothing
        self.accuracy = Accuracy()

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        logits = self.network(batch["image"])
        loss = F.cross_entropy(logits.float(), batch["label"], label_smoothing=self.label_smoothing)
        return loss, {"error": (logits.detach().argmax(1) != batch["label"]).float().mean()}

    def update(self, batch: Batch) -> None:
        self.accuracy.update(self.network(batch["image"]).float(), batch["label"])

    def compute(self) -> dict[str, float]:
        return self.accuracy.compute()


READY: dict[str, type] = {"classification": Classification}


def resolve(name: str) -> Any:
    """The function or class `paper.name` of a paper's module."""
    key, dot, attribute = name.partition(".")
    if not dot:
        raise unknown("system", name, READY, "A paper's own is written paper.Class.")
    module = importlib.import_module(canon.paper(key).module)
    if not hasattr(module, attribute):
        raise unknown(f"name in {key}", attribute, getattr(module, "__all__", dir(module)))
    return getattr(module, attribute)


def _kind(stage: Stage) -> Any:
    name = Call.parse(stage.system).name
    return READY.get(name) or resolve(name)


def build_networks(stage: Stage, data: Any) -> dict[str, Any]:
    """The stage's networks, by name. A classifier takes its outputs and channels from the data."""
    networks = {}
    kind = _kind(stage)
    classifies = isinstance(kind, type) and issubclass(kind, Classification)
    for name, text in stage.networks.items():
        call = Call.parse(text)
        if classifies and getattr(data, "classes", None):
            call = call.with_defaults(num_classes=len(data.classes))
            if stage.preprocess.channels != 3:
                call = call.with_defaults(in_channels=stage.preprocess.channels)
        networks[name] = canon.create(call.name, **call.arguments)
    return networks


def build_system(stage: Stage, networks: Mapping[str, Any], previous: Mapping[str, Any] | None = None) -> Any:
    """The stage's System or Fitted around its networks.

    A class with an argument `previous` is given the finished systems of earlier stages by name.
    """
    call = Call.parse(stage.system)
    kind = _kind(stage)
    arguments = {**networks, **call.arguments}
    if "previous" in inspect.signature(kind).parameters:
        arguments["previous"] = dict(previous or {})
    try:
        inspect.signature(kind).bind(**arguments)
    except TypeError as error:
        raise UsageError(f"system {stage.system!r} with networks {list(networks)}: {error}") from None
    system = kind(**arguments)
    if isinstance(system, nn.Module) and stage.precision == "float64":
        system = system.to(torch.float64)
    return system
