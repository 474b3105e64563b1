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
from jingdu.metrics.language import Perplexity
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


class LanguageModelling(System):
    """Cross-entropy of each next token under one network: int64 tokens [batch, time] to logits [batch, time, vocabulary].

    A network may give (logits, state). A batch has `tokens` [batch, time + 1]; where it has `mask` (bool, the same
    shape), False is padding, which costs nothing; where it has `bytes` [batch], what the predicted tokens spell,
    evaluation gives bits a byte beside loss (nats a token) and perplexity.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.perplexity = Perplexity()

    def _logits(self, batch: Batch) -> Tensor:
        output = self.network(batch["tokens"][:, :-1])
        return output[0] if isinstance(output, tuple) else output

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        targets = batch["tokens"][:, 1:]
        if "mask" in batch:
            targets = targets.masked_fill(~batch["mask"][:, 1:], -100)  # cross_entropy's mark for what is left out
        return F.cross_entropy(self._logits(batch).float().flatten(0, 1), targets.flatten()), {}

    def update(self, batch: Batch) -> None:
        mask = batch["mask"][:, 1:] if "mask" in batch else None
        self.perplexity.update(self._logits(batch), batch["tokens"][:, 1:], mask, batch.get("bytes"))

    def compute(self) -> dict[str, float]:
        return self.perplexity.compute()


READY: dict[str, type] = {"classification": Classification, "language_modelling": LanguageModelling}


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
    """The stage's networks, by name.

    A classifier takes its outputs and channels from the data; a network over tokens its vocabulary, unless the stage
    says another (a multiple of 64, for speed).
    """
    networks = {}
    kind = _kind(stage)
    classifies = isinstance(kind, type) and issubclass(kind, Classification)
    for name, text in stage.networks.items():
        call = Call.parse(text)
        if classifies and getattr(data, "classes", None):
            call = call.with_defaults(num_classes=len(data.classes))
            if stage.preprocess.channels != 3:
                call = call.with_defaults(in_channels=stage.preprocess.channels)
        tokenizer = getattr(data, "tokenizer", None)
        if tokenizer is not None and "vocabulary" in _arguments(call.name):
            call = call.with_defaults(vocabulary=tokenizer.n_vocab)
        networks[name] = canon.create(call.name, **call.arguments)
    return networks


def _arguments(name: str) -> set[str]:
    """What a network's class can be told: the arguments of the class that its paper's `build` gives."""
    kind = inspect.signature(canon.resolve(name).paper.load().build).return_annotation
    return set(inspect.signature(kind).parameters) if inspect.isclass(kind) else set()


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
