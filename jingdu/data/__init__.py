"""Data by name.

Embedded, no network: `digits`, `affine_digits`, `faces`, `photos`, `scenes`, `stdlib`, `pydoc_topics`, `catalogues`. The
user's own: a folder of images, a .txt file, `text(path="...")`, `parallel(source="...", target="...")`, `hf:OWNER/NAME` or
`hf:/PATH` (Hugging Face `datasets`).

Reading order: `base` (the contract), `draws` (random numbers that belong to samples), `preprocess`,
`images`, `augment`, `embedded`, `catalogues`, `parallel`, `scenes`, `hub`.
"""

import inspect
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from jingdu.data.preprocess import IMAGENET, Preprocess
from jingdu.errors import UsageError, unknown
from jingdu.names import Call

__all__ = ["EMBEDDED", "IMAGENET", "Data", "Preprocess", "Tensors", "open_data"]

EMBEDDED = {
    "affine_digits": "jingdu.data.embedded",
    "catalogues": "jingdu.data.catalogues",
    "digits": "jingdu.data.embedded",
    "faces": "jingdu.data.embedded",
    "parallel": "jingdu.data.parallel",
    "photos": "jingdu.data.embedded",
    "pydoc_topics": "jingdu.data.embedded",
    "scenes": "jingdu.data.scenes",
    "stdlib": "jingdu.data.embedded",
    "text": "jingdu.data.embedded",
}
"""Data sets by name -> the module whose function of that name opens them: function(split, **arguments)."""


def open_data(
    spec: str,
    split: Literal["train", "test"],
    preprocess: Preprocess,
    crop: Callable[..., Any] | None = None,
    on_corrupt: Literal["stop", "skip"] = "stop",
) -> "jingdu.data.base.Data":
    """Open one split of the data that `spec` names.

    Images come out in [0, 1] with the channels and, where it is set, the size of `preprocess`; normalising them is
    `images.normalise`. Embedded sets are made at that size. Their text may give size and channels as well, but
    not other ones: the weights are saved with `preprocess`, and would be fed something else afterwards.

    Args:
        spec: an embedded name with its arguments, an image folder, a .txt file, or `hf:` and a name or path. A folder that has
            the name of an embedded set is written with its path, `./digits`.
        split: what to train on, or what is held out.
        preprocess: size and channels of images.
        crop: the per-image training crop of files, `crop(image, draws, preprocess)`.
        on_corrupt: what a damaged image file does.

    Raises:
        UsageError: an unknown name or argument.
        Missing: an extra, a package's data or a hub that is not there.
        Refused: data that are laid out otherwise or cannot be read (BadInput names the file).
    """
    if spec.startswith("hf:"):
        from jingdu.data.hub import open_hub

        return open_hub(spec.removeprefix("hf:"), split, preprocess, crop, on_corrupt)
    name = spec.partition("(")[0].strip()
    path = Path(spec).expanduser()
    if path.suffix == ".txt" and path.is_file():
        return _embedded(Call("text", {"path": spec}), split, preprocess, crop)
    if name not in EMBEDDED and (path.exists() or name == "imagenet" or _is_path(name)):
        from jingdu.data.images import ImageFolder

        return ImageFolder(path, split, preprocess, crop, on_corrupt)
    return _embedded(Call.parse(spec), split, preprocess, crop)


def _is_path(text: str) -> bool:
    return text.startswith((".", "~")) or any(mark in text for mark in (os.sep, "/", "\\"))


def _embedded(call: Call, split: str, preprocess: Preprocess, crop: Callable[..., Any] | None) -> Any:
    if call.name not in EMBEDDED:
        raise unknown("data set", call.name, EMBEDDED, "A folder (./NAME) or hf:OWNER/NAME works too.")
    if crop is not None:
        raise UsageError(f"crop works on image files, and {call.name} has none: leave it out, or use augment")
    function = getattr(import_module(EMBEDDED[call.name]), call.name)
    parameters = [name for name in inspect.signature(function).parameters if name != "split"]
    for name, wanted in (("size", preprocess.size), ("channels", preprocess.channels)):
        if name not in parameters or wanted is None:
            continue
        if call.arguments.get(name, wanted) != wanted:
            raise UsageError(
                f"{call} has {name}={call.arguments[name]}, but preprocess.{name} is {wanted}: make them equal, "
                "because the weights are saved with preprocess"
            )
        call = call.with_arguments(**{name: wanted})
    if strange := [name for name in call.arguments if name not in parameters]:
        raise unknown(f"argument of {call.name}", strange[0], parameters)
    try:
        inspect.signature(function).bind(split, **call.arguments)
    except TypeError as error:
        raise UsageError(f"data {call}: {error}") from None
    return function(split, **call.arguments)


def __getattr__(name: str) -> Any:
    # `base` imports torch; the names of data sets and the type Preprocess do not need it.
    if name in ("Data", "Tensors"):
        return getattr(import_module("jingdu.data.base"), name)
    raise AttributeError(f"module 'jingdu.data' has no attribute {name!r}")
