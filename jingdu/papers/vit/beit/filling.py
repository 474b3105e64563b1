"""To look at (Figure 1): an image, what the network sees of it, and the visual words that it puts in the gaps."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

import jingdu
from jingdu.data.images import decode, expand_inputs, normalise, page, prepare, write_picture
from jingdu.data.preprocess import IMAGENET, Preprocess
from jingdu.engine.checkpoint import newest_checkpoint
from jingdu.errors import UsageError
from jingdu.prediction import Prediction, origin_of

from .masking import hide
from .model import BEiT
from .tokenizer import Codebook
from .views import map_pixels, second_view, unmap_pixels

__all__ = ["Filled", "fill", "fill_in", "words_beside"]

GREY = 0.5
"""Of hidden patches in a picture, from black to white."""


def words_beside(model: BEiT | Codebook, run: Path | None = None) -> Codebook | None:
    """The codebook in a run, or in the one that the model's weights are of; None where that has none.

    Raises UsageError for a run that was named and has none.
    """
    if isinstance(model, Codebook):
        return model
    place = run or Path(origin_of(model).source or "")
    checkpoint = place if (place / "model.json").exists() else newest_checkpoint(place)
    if checkpoint is not None:
        for card in json.loads((checkpoint / "model.json").read_text("utf-8"))["networks"].values():
            if "codebook" in card["variant"]:
                return jingdu.create(card["variant"], weights=checkpoint)
    if run is not None:
        raise UsageError(f"{run}: no run with a codebook: jingdu train beit makes one as its stage tokenizer")
    return None


class Filled(NamedTuple):
    """What a network makes of one image with gaps."""

    named: Int64[Tensor, " hidden"]
    """The words that it names, patch by patch."""
    own: Int64[Tensor, " hidden"] | None
    """The tokenizer's, where there is one."""
    pictures: list[Tensor]
    """In [0, 1]: the image, what is seen of it, its words with those that are named in the gaps, and its own words."""


@torch.no_grad()
def fill(
    network: BEiT,
    image: Float[Tensor, "1 channels height width"],
    mask: Bool[Tensor, "1 down across"],
    preprocess: Preprocess,
    words: Codebook | None = None,
) -> Filled:
    """Ask a network in evaluation mode for the hidden patches of an image in [0, 1]."""
    place = network.class_token.device
    named = network(normalise(image, preprocess).to(place), mask.to(place)).argmax(1).cpu()
    seen = image[0].masked_fill(F.interpolate(mask[None].float(), image.shape[2:])[0].bool(), GREY)
    if words is None:
        return Filled(named, None, [image[0], seen])
    ids = words(map_pixels(second_view(image, network.grid[0] * words.stride)))
    filled = ids.clone()
    filled[mask] = named
    pictures = (unmap_pixels(words.decode(x))[0] for x in (filled, ids))
    return Filled(named, ids[mask], [image[0], seen, *pictures])


def _sized(preprocess: Preprocess | None, size: int | None, channels: int) -> Preprocess:
    """How pictures become the network's input: its own size, whatever else was said. A codebook takes any."""
    found = preprocess or IMAGENET
    if size is None:
        return found if found.size is not None else replace(found, size=IMAGENET.size, channels=channels)
    resize = size if preprocess is not None else None
    return found if found.size == size else replace(found, size=size, resize=resize, channels=channels)


def fill_in(
    model: BEiT | Codebook, inputs: Sequence[str], words: Codebook | None, hidden: int | None, how: str, seed: int,
    out: Path,
) -> Iterator[Prediction]:  # fmt: skip
    """What stands in the hidden patches of image files; one picture has a row for each.

    A row is the image, what is seen of it, its words with those in the gaps that the network names, and its own words.

    Args:
        model: a network with words; of a codebook, rows are the image and its own words.
        inputs: files and folders.
        words: the codebook; without one the words have no picture.
        hidden: patches; see `hide`.
        how: see `Masking`.
        seed: of the masks.
        out: the picture.

    Raises UsageError for no inputs, and a codebook with other words than the network's.
    """
    if not inputs:
        raise UsageError("there are no inputs: name image files, or folders of them")
    network = model if isinstance(model, BEiT) else None
    if network is not None and words is not None and words.words != network.words:
        raise UsageError(f"the network predicts one of {network.words} words, the codebook has {words.words}")
    model.eval()
    preprocess = _sized(
        origin_of(model).preprocess, None if network is None else network.image_size[0],
        model.channels if network is None else network.patches.projection.in_channels,
    )  # fmt: skip
    random, rows, found = Random(seed), [], []
    for path in expand_inputs(inputs):
        image = prepare(decode(path, preprocess.channels), preprocess)[None]
        data: dict[str, Any] = {"file": str(path)}
        if network is None:
            ids = model(map_pixels(second_view(image, image.shape[2] // model.stride * model.stride)))
            rows.append([image[0], unmap_pixels(model.decode(ids))[0]])
            data |= {"words": ids[0].tolist()}
            said = f"{len(ids.unique())} of {model.words} words"
        else:
            mask = hide(network.grid, random, hidden, how)[None]
            filled = fill(network, image, mask, preprocess, words)
            rows.append(filled.pictures)
            data |= {
                "patches": mask.numel(),
                "mask": mask[0].int().tolist(),
                "words": filled.named.tolist(),
                "seed": seed,
            }
            said = f"{int(mask.sum())} of {mask.numel()} patches hidden, "
            if filled.own is None:
                said += "words " + " ".join(map(str, data["words"][:8])) + (" ..." if len(filled.named) > 8 else "")
            else:
                right = int((filled.named == filled.own).sum())
                data |= {"true_words": filled.own.tolist(), "right": right}
                said += f"{right} of {len(filled.named)} words are the tokenizer's own"
        found.append(Prediction(str(path), f"{path}: {said}", data, (out,)))
    write_picture(page(rows), out)
    yield from found
