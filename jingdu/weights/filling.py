"""Weights into a network and out of it: strict, whole, and told in one sentence where they do not fit."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from jingdu.errors import BadInput, Refused, UsageError, unknown
from jingdu.weights.files import read_file
from jingdu.weights.report import printable, shapes_message, some
from jingdu.weights.sources import Located
from jingdu.weights.tables import Fit, KeyTable, detect, tables


def read(located: Located) -> dict[str, Tensor]:
    """All tensors of located weights, under the names they have there. Raises BadInput (a Refused)."""
    tensors: dict[str, Tensor] = {}
    for path, wanted in located.files.items():
        found = read_file(path)
        if wanted is not None and wanted != set(found):
            odd = sorted(wanted ^ set(found))
            raise BadInput(path, f"it differs from the index of shards in {len(odd)} tensors: {some(odd)}")
        tensors.update(found)
    return tensors


def _network_state(network: nn.Module) -> dict[str, Tensor]:
    state = network.state_dict()
    wrapped = next((key for key in state if "_orig_mod" in key.split(".") or key.startswith("module.")), None)
    if wrapped is not None:
        raise UsageError(f"this network is wrapped ({wrapped}): give the one inside to load or export weights")
    return state


def _check(
    fit: Fit, tensors: Mapping[str, Tensor], state: Mapping[str, Tensor],
    resized: Mapping[str, Callable[[Tensor], Tensor]],
) -> dict[str, Tensor]:  # fmt: skip
    """Our tensors by our names, each of the network's shape and kind. Raises Refused."""
    ready: dict[str, Tensor] = {}
    shapes, kinds = [], []
    for entry in fit.entries:
        theirs = [tensors[name] for name in entry.theirs]
        try:
            ours = entry.transform.load(theirs)
        except (ValueError, RuntimeError, IndexError, TypeError):
            shapes += [(name, state[name].shape, theirs[0].shape) for name in entry.ours]
            continue
        for name, tensor in zip(entry.ours, ours, strict=True):
            want = state[name]
            if tensor.shape != want.shape and name in resized:
                with suppress(UsageError, RuntimeError, IndexError):  # told below as what it is, another shape
                    tensor = resized[name](tensor)
            if tensor.shape != want.shape:
                shapes.append((name, want.shape, tensor.shape))
            elif tensor.is_complex() != want.is_complex() or (
                # One number may change its kind (a counter stored as float); integers as weights are a code.
                tensor.numel() > 1 and tensor.is_floating_point() != want.is_floating_point()
            ):
                kinds.append(f"{name} (the network has {want.dtype}, the file {tensor.dtype})")
            ready[name] = tensor
    problems = [shapes_message(shapes)] if shapes else []
    problems += [f"{len(kinds)} of another kind: {', '.join(kinds[:4])}"] if kinds else []
    if problems:
        raise Refused(f"the weights do not fit, read as {fit.table.name}: {'; '.join(problems)}")
    return ready


def fill_network(network: nn.Module, tensors: Mapping[str, Tensor], fit: Fit) -> None:
    """Copy tensors into a network after all of them have been checked; dtypes become the network's.

    What a network's `resized` names may have another size, and goes through the function given there: a vision
    transformer's positions of images of another size.
    """
    state = _network_state(network)
    ready = _check(fit, tensors, state, getattr(network, "resized", {}))
    with torch.no_grad():
        for name, tensor in ready.items():
            state[name].copy_(tensor)


def fill(
    network: nn.Module, located: Located, *, family: str, variant: str | None = None, library: str | None = None
) -> None:
    """Load located weights (a file or a folder) into a network, strictly.

    Args:
        network: what `build` gave.
        located: from `locate`.
        family: the paper's key.
        variant: the network's variant, where tables differ between variants.
        library: the format, from a qualified name; else it is detected (see `tables.detect`).

    Raises Refused with all missing, unexpected and mis-shaped tensors in one message; then nothing was loaded.
    Numbers that are not finite are loaded as they are.
    """
    tensors = read(located)
    expected = _network_state(network)
    try:
        fit = detect(tensors, located.config, family, library or located.library, expected, variant)
        fill_network(network, tensors, fit)
    except Refused as error:
        raise Refused(f"{located.description}: {error}") from None


def own_fit(tensors: Mapping[str, Tensor], network: nn.Module) -> Fit:
    """The fit of weights in our own format. Raises Refused."""
    fit = KeyTable.identity().fit(tensors, _network_state(network))
    if not fit.exact:
        raise Refused(f"the weights do not fit: {fit.message()}")
    return fit


def export(network: nn.Module, library: str, *, family: str | None = None) -> dict[str, Tensor]:
    """A network's weights under another library's names, as its `load_state_dict` takes them.

    Args:
        network: one of ours, made by `create` where the names differ between variants.
        library: torchvision, timm, transformers, ...: a table of the network's family.
        family: the paper's key; by default from the network's module (jingdu.papers.<area>.<key>).

    Raises UsageError where there is no such table, or it has no name for one of our tensors.
    """
    if family is None:
        parts = type(network).__module__.split(".")
        if parts[:2] != ["jingdu", "papers"] or len(parts) < 4:
            raise UsageError(f"{type(network).__name__} is not of a paper's module: give family=")
        family = parts[3]
    known = tables(family)
    if library not in known:
        raise unknown(f"format of {family} weights", library, known)
    state = _network_state(network)
    table = known[library].of(getattr(getattr(network, "origin", None), "variant", None))
    result: dict[str, Tensor] = {}
    for key in state:
        entry = table.from_ours(key)
        if entry is None and table.ignores(key):
            continue
        if entry is None or any(name not in state for name in entry.ours):
            raise UsageError(f"{library} has no name for {key}: this network is not one of {library}'s")
        if entry.ours[0] == key:
            theirs = entry.transform.export([state[name].detach() for name in entry.ours])
            result.update({name: x.contiguous() for name, x in zip(entry.theirs, theirs, strict=True)})
    if table.bare and table.outside and not any(name.startswith(table.outside) for name in result):
        return {name.removeprefix(table.prefix): x for name, x in result.items()}  # nothing stands above the encoder
    return result


def load_plain(model: Any, tree: Any, name: str, where: str) -> None:
    """Give a plain object (counts, tables) its state from a run. Raises Refused."""
    state = tree
    if isinstance(tree, Mapping):
        state = tree.get(name, tree.get("model", tree))
    try:
        model.load_state_dict(state)
    except Exception as error:  # each paper's object reads its own state, and a foreign one breaks it anyhow
        raise Refused(f"{where}: not the state of a {type(model).__name__} ({printable(error)})") from None
