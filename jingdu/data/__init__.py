"""Data by name.

Embedded, no network: `digits`, `faces`, `photos`, `scenes`, `stdlib`, `pydoc_topics`. The user's
own: a folder of images, `text('/path')`, `hf:OWNER/NAME` (Hugging Face datasets).
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from jingdu.data.base import Data, Tensors
from jingdu.data.preprocess import IMAGENET, Preprocess
from jingdu.errors import Refused, UsageError, unknown
from jingdu.names import Call

__all__ = ["EMBEDDED", "IMAGENET", "Data", "Preprocess", "Tensors", "open_data"]

EMBEDDED = {
    "digits": "jingdu.data.embedded",
    "faces": "jingdu.data.embedded",
    "photos": "jingdu.data.embedded",
    "stdlib": "jingdu.data.embedded",
    "pydoc_topics": "jingdu.data.embedded",
    "text": "jingdu.data.embedded",
    "scenes": "jingdu.data.scenes",
}
"""Data sets by name -> the module that makes them."""

Split = Literal["train", "test"]


def open_data(
    spec: str,
    split: Split,
    preprocess: Preprocess,
    crop: Callable[..., Any] | None = None,
    on_corrupt: Literal["stop", "skip"] = "stop",
) -> Data:
    """Open one split of the data that `spec` names.

    Args:
        spec: an embedded name with its arguments, an image folder, or `hf:` and a name or path.
        crop: the per-image training crop of a folder (`f(image, draws, preprocess)`).
        on_corrupt: what a damaged image of a folder does.

    Raises UsageError for an unknown name or argument, Missing for an absent extra or hub, and
    Refused or BadInput for data that cannot be read.
    """
    if spec.startswith("hf:"):
        from jingdu.data.hub import hub_data

        call = Call.parse(spec[3:])
        return hub_data(call.name, split, preprocess, **call.arguments)
    if Path(spec).is_dir():
        from jingdu.data.images import ImageFolder

        return ImageFolder(Path(spec), split, preprocess, crop, on_corrupt)
    call = Call.parse(spec)
    if call.name in EMBEDDED:
        function = getattr(import_module(EMBEDDED[call.name]), call.name)
        try:
            return function(split=split, **call.arguments)
        except TypeError as error:
            if "argument" not in str(error):
                raise
            raise UsageError(f"data {spec!r}: {error}") from None
    if "/" in spec or "\\" in spec or spec == "imagenet":
        raise Refused(
            f"{spec}: no such folder. Images go in FOLDER/train/CLASS/*.jpg and FOLDER/val/CLASS/*.jpg, "
            "or FOLDER/CLASS/*.jpg; give it with --data"
        )
    raise unknown("data set", spec, EMBEDDED, "A folder or hf:NAME works too.")
