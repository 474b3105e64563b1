"""The way out: a network's weights in files that another library reads as its own.

`filling.export` gives the tensors their names. What is added here is the check that the other library has a network
that is the same as ours, options included, and the configuration beside the weights.
"""

import dataclasses
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jingdu import canon
from jingdu.errors import UsageError
from jingdu.names import Call
from jingdu.prediction import Origin, origin_of
from jingdu.weights.configs import preprocessor_of, sizes, timm_config
from jingdu.weights.files import save, save_theirs, write_aside
from jingdu.weights.filling import export as their_tensors
from jingdu.weights.folders import CONFIG_FILES, WEIGHT_FILES
from jingdu.weights.report import some
from jingdu.weights.tables import OWN, tables

FILES = (".safetensors", ".pth", ".pt", ".bin")
"""Names that are files; others are folders."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    files: tuple[Path, ...]
    network: str | None
    """The other library's network, "timm/resnet50", where the paper's card names it."""


@dataclass(frozen=True)
class _Theirs:
    """The network of another library that ours is."""

    name: str | None
    found: Mapping[str, Any]
    """Arguments of `build` that its name and configuration amount to."""
    config: Mapping[str, Any] | None = None


def export(model: Any, to: str, path: str | Path) -> Exported:
    """Write a network's weights as another library reads them.

    Args:
        model: from `jingdu.create` or `jingdu.load`.
        to: torchvision, timm, transformers, or another format of the paper's key tables; "jingdu" is one file of
            ours, which brings its variant, classes and preprocessing.
        path: a .safetensors, .pth, .pt or .bin file, which is replaced; or for timm and transformers a folder
            (new, empty, or of an earlier export), which gets a config.json as well.

    Raises UsageError where that library has no network that is the same as this one, or parts of this one were
    exchanged since it was made; Missing where transformers is needed for its configuration and is not installed;
    Refused where nothing can be written.
    """
    origin, path = origin_of(model), Path(path).expanduser()
    card = canon.resolve(origin.variant).paper
    if not isinstance(model, nn.Module):
        raise UsageError(f"{card.key} has no tensors that other libraries know")
    _check_unchanged(model, origin)
    is_file = path.suffix in FILES
    if to == OWN:
        if path.suffix != ".safetensors":
            raise UsageError(f"{path}: a file of ours is safetensors: name it .safetensors")
        about = {
            **dataclasses.asdict(origin),
            "preprocess": origin.preprocess and dataclasses.asdict(origin.preprocess),
        }
        save(model.state_dict(), path, {key: about[key] for key in ("variant", "overrides", "classes", "preprocess")})
        return Exported((path,), None)
    tensors = their_tensors(model, to, family=card.key)
    theirs = _theirs(model, origin, card, to, is_file)
    if is_file:
        save_theirs(tensors, path)
        return Exported((path,), theirs.name)
    if theirs.config is None:
        raise UsageError(f"{path}: {to} has no configuration to put in a folder: name a file, {path}.safetensors")
    beside = {CONFIG_FILES[0]: theirs.config}
    if to == "transformers" and (preprocessor := preprocessor_of(origin.preprocess)):
        beside[CONFIG_FILES[1]] = preprocessor
    _check_folder(path)
    save_theirs(tensors, path / WEIGHT_FILES[0])
    for name, content in beside.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_aside(path / name, lambda aside, text=text: aside.write_text(text, "utf-8"))
    return Exported((path / WEIGHT_FILES[0], *(path / name for name in beside)), theirs.name)


def _check_unchanged(model: nn.Module, origin: Origin) -> None:
    """A network whose parts were exchanged by hand is none that its origin, or a configuration, can describe."""
    with torch.device("meta"):
        made = canon.create(origin.variant, **origin.overrides).state_dict()
    state = model.state_dict()
    odd = [name for name in sorted({*made, *state}) if name not in made or name not in state]
    odd += [name for name in made if name in state and made[name].shape != state[name].shape]
    if odd:
        raise UsageError(
            f"this network was changed since it was made as {origin.variant}: {some(odd)}; pass such changes to "
            "jingdu.create, or save its state_dict() yourself"
        )


def _check_folder(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file: name a new folder, or a file that ends in {', '.join(FILES)}")
    others = {one.name for one in path.iterdir()} - {WEIGHT_FILES[0], *CONFIG_FILES} if path.exists() else set()
    if others:
        raise UsageError(f"{path}: not empty ({some(sorted(others))}): name a new folder")


def _theirs(model: nn.Module, origin: Origin, card: canon.Paper, library: str, is_file: bool) -> _Theirs:
    """The library's network that is the same as ours. Raises UsageError where it has none."""
    variants = tables(card.key)[library].variants
    named = {alias: Call.parse(text) for alias, text in card.aliases.items() if alias.startswith(f"{library}/")}
    aliases = {alias: call for alias, call in named.items() if call.name == origin.variant}
    if (named and not aliases) or (variants and origin.variant not in variants):
        raise UsageError(f"{library} has no network that is our {origin.variant}; as {OWN!r} it can be written")
    # Of a format without names on the card, the table of keys is all that is known.
    calls = aliases or {None: Call(origin.variant, origin.overrides)}
    candidates = [_candidate(model, origin, card, library, is_file, alias, call) for alias, call in calls.items()]
    odd = [_different(theirs.found, model, origin, card) for theirs in candidates]
    same = f"{library}/{origin.variant}"
    best = min(range(len(odd)), key=lambda i: (len(odd[i]), candidates[i].name != same))
    if odd[best]:
        raise UsageError(
            f"{library} has no network that is our {origin.variant} with its {some(sorted(odd[best]))}; as {OWN!r} it "
            "can be written"
        )
    return candidates[best]


def _candidate(
    model: nn.Module, origin: Origin, card: canon.Paper, library: str, is_file: bool, alias: str | None, call: Call
) -> _Theirs:
    config = None
    if library == "timm" and alias is not None:
        more = {key: value for key, value in origin.overrides.items() if key not in call.arguments}
        config = timm_config(alias.partition("/")[2], card.key, more, origin.classes, origin.preprocess)
    elif library == "transformers" and not is_file:
        config = _transformers_config(model, card.key, origin.classes)
    if config is not None:
        found = sizes(config, card.key, variants=tuple(card.variants), aliases=card.aliases)
        if found.variant == origin.variant:
            return _Theirs(alias, found.overrides, config)
    # A name says what it stands for, and every library lets a user choose the number of classes.
    classes = {key: value for key, value in origin.overrides.items() if key == "num_classes"}
    return _Theirs(alias, {**call.arguments, **classes}, config)


def _transformers_config(model: nn.Module, family: str, classes: tuple[str, ...] | None) -> dict[str, Any]:
    from jingdu.speed.references import transformers_config

    network, config = transformers_config(family, model)
    config.architectures = [network.__name__]
    if classes is not None:
        config.id2label = dict(enumerate(classes))
        config.label2id = {name: number for number, name in enumerate(classes)}
    return json.loads(config.to_json_string(use_diff=True))


def _different(found: Mapping[str, Any], model: nn.Module, origin: Origin, card: canon.Paper) -> list[str]:
    """The options in which a network with the arguments `found` is another one than ours."""
    made = card.load().VARIANTS[origin.variant]
    # A variant is the arguments of the network's class, or of a function that stands beside them.
    maker, arguments = made if isinstance(made, tuple) else (type(model), made)
    defaults = {
        name: one.default for name, one in inspect.signature(maker).parameters.items() if one.default is not one.empty
    }
    defaults |= arguments
    theirs = {**defaults, **found}
    plain = {key: _plain(value) for key, value in theirs.items()}
    odd = [key for key, value in origin.overrides.items() if key not in plain or plain[key] != _plain(value)]
    rest = [key for key in found if key not in origin.overrides and key in defaults]
    return odd + [key for key in rest if _plain(defaults[key]) != plain[key]]


def _plain(value: Any) -> Any:
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value
