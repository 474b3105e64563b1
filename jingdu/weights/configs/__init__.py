"""What the files beside the weights say: which variant, of which sizes, with which classes and preprocessing.

A family's file here is `<family>.py`, as its keys are `keys/<family>.toml`. In it are, where a library has the network,

- `read(config)`: the variant and the overrides of `build` that a transformers `config.json` asks for;
- `write(model)`: the way back, the name of transformers' class and the values of its configuration;
- `TIMM`: timm's arguments and ours.
"""

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from jingdu.data.preprocess import Preprocess
from jingdu.errors import Refused, UsageError
from jingdu.names import Call
from jingdu.weights.configs.common import Config, Sizes, Timm, need
from jingdu.weights.report import printable
from jingdu.weights.tables import library_of

__all__ = ["Sizes", "family_of", "preprocess_from", "preprocess_of", "preprocessor_of", "sizes", "timm_config"]


def family_of(family: str) -> ModuleType | None:
    """The file about a family's configurations; None where no library has any."""
    name = f"{__name__}.{family}"
    return None if importlib.util.find_spec(name) is None else import_module(name)


def _timm(config: Config, family: str, variants: Sequence[str], aliases: Mapping[str, str]) -> Sizes:
    """timm's config.json (timm/models/_hub.py): an architecture, arguments, and the pretrained_cfg."""
    name, _, tag = str(config["architecture"]).partition(".")
    tag = tag or (config.get("pretrained_cfg") or {}).get("tag") or ""
    # One architecture may be the networks of several papers, which a tag tells apart: vit_base_patch16_224.mae
    call = Call.parse(aliases.get(f"timm/{name}.{tag}") or aliases.get(f"timm/{name}", name))
    if variants and call.name not in variants:
        raise Refused(
            f"config.json says that these are weights of timm's {name}, which is none of {family}'s variants "
            f"({', '.join(variants)})"
        )
    rules = getattr(family_of(family), "TIMM", Timm({}))
    arguments = dict(config.get("model_args") or {})
    for key, wanted in rules.needs.items():
        need(config, key, wanted)
        need(arguments, key, wanted)
        arguments.pop(key, None)
    meanings = rules.arguments
    inner = config.get("pretrained_cfg") or {}
    if "num_classes" in meanings and isinstance(count := config.get("num_classes", inner.get("num_classes")), int):
        arguments["num_classes"] = count
    unknown = set(arguments) - set(meanings)
    if unknown:
        raise Refused(f"config.json: timm's {', '.join(sorted(unknown))} for {name} mean nothing to our {family}")
    overrides = {**call.arguments, **{meanings[key]: value for key, value in arguments.items()}}
    names = config.get("label_names")
    if isinstance(names, Mapping):
        names = [names[key] for key in sorted(names, key=int)]
    about = config.get("label_descriptions") or {}
    classes = tuple(str(about.get(name, name)) for name in names) if isinstance(names, list) else None
    if classes is not None and len(classes) != arguments.get("num_classes", len(classes)):
        classes = None
    return Sizes(call.name, overrides, classes, _timm_preprocess(inner))


_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers for the interpolations that we have (PIL.Image.Resampling)."""


def _timm_preprocess(config: Config) -> Preprocess | None:
    """The evaluation transform of a pretrained_cfg (timm/data/transforms_factory.py); None if we have none like it."""
    channels, height, width = config.get("input_size", (0, 0, 0))
    ours = config.get("interpolation") in _RESAMPLE.values() and config.get("crop_mode", "center") == "center"
    if not ours or height != width or channels not in (1, 3):
        return None
    return Preprocess(
        size=height,
        resize=math.floor(height / config.get("crop_pct", 0.875)),
        mean=tuple(config.get("mean", (0.0,))),
        std=tuple(config.get("std", (1.0,))),
        interpolation=config["interpolation"],
        channels=channels,
    )


def timm_config(
    name: str, family: str, overrides: Mapping[str, Any], classes: Sequence[str] | None, preprocess: Preprocess | None
) -> dict[str, Any]:
    """timm's config.json for a network of ours: what `_timm` reads. `overrides`: of `build`, beyond the architecture's."""
    config: dict[str, Any] = {"architecture": name}
    inner: dict[str, Any] = {}
    rules = getattr(family_of(family), "TIMM", Timm({}))
    theirs = {ours: theirs for theirs, ours in rules.arguments.items()}
    arguments = {theirs[key]: value for key, value in overrides.items() if key in theirs}
    if "num_classes" in arguments:
        config["num_classes"] = inner["num_classes"] = arguments.pop("num_classes")
    if preprocess is not None and preprocess.size is not None and preprocess.shorter_side is not None:
        size, resize = preprocess.size, preprocess.shorter_side
        share = size / resize
        inner |= {
            "input_size": [preprocess.channels, size, size],
            # Divided, multiplied and rounded down it must be the same shorter side again.
            "crop_pct": share if math.floor(size / share) == resize else math.nextafter(share, 0),
            "crop_mode": "center",
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "interpolation": preprocess.interpolation,
        }
    if arguments:
        config["model_args"] = arguments
    if classes is not None:
        config["label_names"] = list(classes)
    return {**config, "pretrained_cfg": inner}


def preprocessor_of(preprocess: Preprocess | None) -> dict[str, Any] | None:
    """A transformers preprocessor_config.json: what `preprocess_of` reads. None where transformers has none like it.

    Its crop rounds an odd margin down, and ours as torchvision's to the even pixel: they may lie one pixel apart.
    """
    if preprocess is None or preprocess.size is None or preprocess.channels != 3:
        return None
    (resample,) = (number for number, name in _RESAMPLE.items() if name == preprocess.interpolation)
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": preprocess.shorter_side},
        "resample": resample,
        "do_center_crop": True,
        "crop_size": {"height": preprocess.size, "width": preprocess.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }


def preprocess_of(config: Config | None) -> Preprocess | None:
    """A transformers preprocessor_config.json as a Preprocess; None where it does something else.

    ConvNextImageProcessor below 384 pixels resizes to size / crop_pct and crops; the CLIP kind names both sizes.
    Squashing an image into a square is not what `Preprocess` does.
    """
    if not config or not config.get("do_resize", True) or not config.get("do_rescale", True):
        return None
    if not math.isclose(config.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-4):
        return None
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    size, crop = config.get("size"), config.get("crop_size")
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else size
    interpolation = _RESAMPLE.get(config.get("resample", -1))
    if not isinstance(edge, int) or interpolation is None:
        return None
    if kind.startswith("ConvNext"):
        if edge >= 384:
            return None
        side, resize = edge, int(edge / config.get("crop_pct", 224 / 256))
    elif config.get("do_center_crop"):
        height, width = (crop.get("height"), crop.get("width")) if isinstance(crop, Mapping) else (crop, crop)
        if not isinstance(height, int) or height != width:
            return None
        side, resize = height, edge
    else:
        return None
    normalise = config.get("do_normalize", True) and "image_mean" in config and "image_std" in config
    mean = tuple(config["image_mean"]) if normalise else (0.0,)
    std = tuple(config["image_std"]) if normalise else (1.0,)
    return Preprocess(side, resize, mean, std, interpolation)  # type: ignore[arg-type]


def _is_side(value: Any) -> bool:
    return value is None or (isinstance(value, int) and 0 < value <= 1 << 14)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) in (1, 3) and all(isinstance(x, int | float) for x in value)


_PREPROCESS: Mapping[str, Callable[[Any], bool]] = {
    "size": _is_side,
    "resize": _is_side,
    "mean": _are_numbers,
    "std": lambda value: _are_numbers(value) and all(value),
    "interpolation": lambda value: value in _RESAMPLE.values(),
    "channels": lambda value: value in (1, 3),
}
"""What each field of a Preprocess may be."""


def preprocess_from(plain: Any) -> Preprocess | None:
    """A Preprocess from JSON, as our own files hold it. Raises Refused for one that it cannot be."""
    if plain is None:
        return None
    if not isinstance(plain, Mapping) or any(name not in _PREPROCESS for name in plain):
        raise Refused(f"the preprocessing saved with the weights cannot be read: {printable(plain)}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
    wrong = [name for name, value in values.items() if not _PREPROCESS[name](value)]
    if wrong:
        raise Refused(f"the preprocessing saved with the weights has {wrong[0]} = {printable(values[wrong[0]])}")
    return Preprocess(**values)


def sizes(
    config: Config | None,
    family: str,
    *,
    preprocessor: Config | None = None,
    variants: Sequence[str] = (),
    aliases: Mapping[str, str] | None = None,
) -> Sizes:
    """What the configuration beside some weights says of their network.

    Args:
        config: the content of config.json, if there is one.
        family: the paper's key.
        preprocessor: the content of preprocessor_config.json, if there is one.
        variants: the family's variants: another architecture is refused.
        aliases: other libraries' names for them, as on the paper's card.

    Raises Refused for a network that the paper does not have, or values that are no configuration.
    """
    library = library_of(config)
    try:
        found = Sizes()
        if library == "timm" and config is not None:
            found = _timm(config, family, variants, aliases or {})
        elif library == "transformers" and config is not None and hasattr(files := family_of(family), "read"):
            found = files.read(config)
        preprocess = preprocess_of(preprocessor) or found.preprocess
    except UsageError as error:
        raise Refused(f"config.json: {error}") from None
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError, ZeroDivisionError) as error:
        raise Refused(f"config.json holds a value of the wrong kind ({error})") from None
    return Sizes(found.variant, found.overrides, found.classes, preprocess)
