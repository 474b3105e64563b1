"""To look at (Figures 2-4): an image, what of it is seen, and what the network makes of the rest."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from jingdu.data.images import expand_inputs, load_image, page, write_picture
from jingdu.data.preprocess import Preprocess
from jingdu.errors import UsageError
from jingdu.papers.vit.vit import ViT, own_preprocess
from jingdu.prediction import Prediction, origin_of

from .masking import EPS, patchify, unpatchify
from .model import MAE

__all__ = ["View", "describe", "reconstruct", "view"]

GREY = 0.5
"""Of hidden patches in a picture, from black to white."""


class View(NamedTuple):
    """Pictures in [0, 1], and which of their patches were hidden."""

    original: Float[Tensor, "batch channels height width"]
    masked: Float[Tensor, "batch channels height width"]
    """With hidden patches grey."""
    rebuilt: Float[Tensor, "batch channels height width"]
    """The predictions in place of the hidden patches, beside those that were seen."""
    mask: Float[Tensor, "batch patches"]
    error: Float[Tensor, " batch"]
    """Of each picture's hidden patches: the mean squared error of the target."""


@torch.no_grad()
def view(
    model: MAE,
    images: Float[Tensor, "batch channels height width"],
    preprocess: Preprocess,
    noise: Float[Tensor, "batch patches"] | None = None,
    masked: float | int | None = None,
) -> View:
    """What a network sees and makes of normalised images.

    Where targets are normalised, the network predicts a patch's pattern alone: its mean and deviation, which nothing
    predicts, are those of the original (as the authors' demonstration has them).

    Args:
        model: in evaluation mode or not.
        images: as the network takes them.
        preprocess: how they were normalised.
        noise, masked: see `MAE.forward`.
    """
    found = model(images, noise, masked)
    patches, predicted = patchify(images, model.patch), found.patches.to(images)
    target = patches
    if model.normalised:
        variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
        target, predicted = (patches - mean) * (variance + EPS).rsqrt(), predicted * (variance + EPS).sqrt() + mean
    hidden = found.mask[..., None].bool()
    error = ((found.patches.to(images) - target).square().mean(2) * found.mask).sum(1) / found.mask.sum(1)
    mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
    grid = model.encoder.grid

    def picture(x: Tensor) -> Tensor:
        return (unpatchify(x, model.patch, grid) * std + mean).clamp(0, 1)

    dark = unpatchify(hidden.expand_as(patches).to(images), model.patch, grid).bool()
    original = picture(patches)
    return View(
        original, original.masked_fill(dark, GREY), picture(torch.where(hidden, predicted, patches)), found.mask, error
    )


def reconstruct(model: MAE, inputs: Sequence[str], masked: float | None, seed: int, out: Path) -> Iterator[Prediction]:
    """One picture of all image files, a row each; and how much of each was hidden and how well it was rebuilt.

    Raises UsageError for no inputs or a share that cannot be hidden, BadInput for a file that is no image.
    """
    if not inputs:
        raise UsageError("there are no inputs: name image files, or folders of them")
    if masked is not None and not masked > 0:
        raise UsageError(f"masked is {masked:g}: nothing is rebuilt where nothing is hidden")
    preprocess = own_preprocess(model.encoder, origin_of(model).preprocess)
    place, generator = next(model.parameters()).device, torch.Generator().manual_seed(seed)
    patches = model.encoder.grid[0] * model.encoder.grid[1]
    model.eval()
    paths, views = expand_inputs(inputs), []
    for path in paths:
        images = load_image(path, preprocess)[None].to(place)
        noise = torch.rand(1, patches, generator=generator).to(place)
        views.append(view(model, images, preprocess, noise, masked))
    rows = [pictures for v in views for pictures in zip(v.original, v.masked, v.rebuilt, strict=True)]
    write_picture(page(rows), out)
    for path, found in zip(paths, views, strict=True):
        hidden, error = int(found.mask.sum()), float(found.error)
        unit = "of each patch's variance" if model.normalised else "of normalised pixels"
        text = f"{path}: {hidden} of {patches} patches hidden, squared error {error:.3f} {unit}"
        data = {"file": str(path), "patches": patches, "hidden": hidden, "error": error, "seed": seed}
        yield Prediction(str(path), text, data, (out,))


def describe(model: ViT, inputs: Sequence[str]) -> Iterator[Prediction]:
    """An encoder's vector of each image file, and its cosine with those of the others.

    Raises UsageError for no inputs, BadInput for a file that is no image.
    """
    if not inputs:
        raise UsageError("there are no inputs: name image files, or folders of them")
    preprocess = own_preprocess(model, origin_of(model).preprocess)
    model.eval()
    paths, place = expand_inputs(inputs), next(model.parameters()).device
    with torch.no_grad():
        vectors = torch.cat([model(load_image(path, preprocess)[None].to(place)) for path in paths]).float().cpu()
    cosines = F.normalize(vectors, dim=1) @ F.normalize(vectors, dim=1).T
    for i, path in enumerate(paths):
        others = [{"file": str(other), "cosine": float(cosines[i, j])} for j, other in enumerate(paths) if j != i]
        few = " ".join(f"{value:.3f}" for value in vectors[i, :6].tolist())
        lines = [f"{path}: {vectors.shape[1]} numbers: {few} ..."]
        lines += [f"  {other['cosine']:+.4f}  {other['file']}" for other in others]
        yield Prediction(
            str(path), "\n".join(lines), {"file": str(path), "vector": vectors[i].tolist(), "cosines": others}
        )
