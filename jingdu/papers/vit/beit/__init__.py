r"""BEiT: BERT Pre-Training of Image Transformers. Bao, Dong, Piao, Wei. 2021. https://arxiv.org/abs/2106.08254

**Problem.** A ViT is hungrier for data than a convolutional network. Text has the cure, to predict hidden words (BERT), but
an image has no words: to predict the pixels of a hidden patch is to spend the network on short-range dependencies and
high-frequency details.

**Idea.** Give images words. A tokenizer turns each image $x$ into a grid of visual words $z$ from a fixed vocabulary; the
network sees the image with blocks of patches $M$ hidden ($x^M$), and names the words of those:

$$ \max \sum_{x} \mathbb{E}_M \Big[ \sum_{i \in M} \log p(z_i \mid x^M) \Big] $$

Then the head is exchanged for one of the task, and all is trained on, lower layers at lower rates.

**Showed.** On ImageNet-1k alone the base size reaches 83.2 %, where the same network from nothing has 81.8 %; pre-training
helps the large one more, 86.3 % at 384 pixels (Tab. 1). Words are better than pixels, and blocks than scattered patches (Tab. 4).

Differs from the paper in:
- Its tokenizer is DALL-E's discrete VAE; here one is a codebook of patches, found by k-means (`tokenizer`), behind the
  same interface. The path to it, a second view of half the size by Lanczos, is the authors' (`views`).
- As in the authors' code, q and v alone have biases, positions are relative, and branches are scaled (`gamma`).
- The colours of both views are changed after the crop is taken, the authors' before.
- Tables of relative positions grow to other images by linear interpolation in geometric progression, as timm's; the
  authors interpolate by cubic splines there (run_class_finetuning.py).

Reading order: `bias` (relative positions), `model` (the network), `masking`, `views` (what is hidden and seen), `tokenizer`
(visual words), `pretraining`, `finetuning` (rates by layer), `pyramid` (to segmentation), `filling` (words to a picture).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from jingdu.data.preprocess import IMAGENET, Preprocess
from jingdu.engine.contracts import Recipe, Stage
from jingdu.papers.cnn.alexnet import classify
from jingdu.prediction import Prediction

from .bias import RelativeBias, index_with_class, resize_table
from .filling import Filled, fill, fill_in, words_beside
from .finetuning import FineTuning, layer_depths, layer_rates, take_trained, trained_network
from .masking import block_mask, hide, scattered_mask
from .model import BEiT
from .pretraining import PreTraining, trained_tokenizer
from .pyramid import Pyramid
from .tokenizer import Clustering, Codebook, VisualTokenizer, plus_plus
from .views import Few, Views, few, map_pixels, second_view, two_views, unmap_pixels, views

__all__ = [
    "VARIANTS", "BEiT", "Clustering", "Codebook", "Few", "Filled", "FineTuning", "PreTraining", "Pyramid", "RelativeBias", "Views",
    "VisualTokenizer", "block_mask", "build", "example", "few", "fill", "fill_in", "hide", "index_with_class", "layer_depths",
    "layer_rates", "map_pixels", "plus_plus", "predict", "resize_table", "scattered_mask", "second_view", "take_trained",
    "trained_network", "trained_tokenizer", "two_views", "unmap_pixels", "views", "words_beside",
]  # fmt: skip

LARGE = {"width": 1024, "depth": 24, "heads": 16, "scale": 1e-5}
MINI = {
    "width": 64, "depth": 4, "heads": 2, "patch": 4, "image_size": 20, "in_channels": 1, "scale": 1.0, "std": 0.07,
}  # fmt: skip

VARIANTS: dict[str, dict[str, Any]] = {
    # Table 1, and the sizes of the released weights. First is what `create("beit")` gives.
    "beit_base_224": {},
    "beit_base_384": {"image_size": 384},
    "beit_large_224": LARGE,
    "beit_large_384": {**LARGE, "image_size": 384},
    "beit_large_512": {**LARGE, "image_size": 512},
    # Pre-training, with DALL-E's words
    "beit_base_mim": {"words": 8192},
    "beit_large_mim": {**LARGE, "words": 8192},
    # Ours, for grey digits of 20x20 pixels. Narrow and shallow, they start from larger weights and unscaled branches
    "beit_mini": {**MINI, "num_classes": 10},
    "beit_mini_mim": {**MINI, "words": 64},
    # Tokenizers
    "beit_codebook": {"words": 8192, "stride": 8},
    "beit_codebook_mini": {"words": 64, "stride": 2, "channels": 1},
}


def build(variant: str, **overrides: Any) -> BEiT | Codebook:
    """A variant's network, or tokenizer; overrides are the arguments of `BEiT` and of its blocks, or of `Codebook`."""
    kind: type[BEiT] | type[Codebook] = Codebook if "codebook" in variant else BEiT
    return kind(**{**VARIANTS[variant], **overrides})


def example(variant: str, batch: int) -> Tensor:
    """Noise in the shape of the variant's images, or of a tokenizer's views."""
    options = VARIANTS[variant]
    size = 14 * options["stride"] if "stride" in options else options.get("image_size", 224)
    channels = options.get("channels", options.get("in_channels", 3))
    return torch.randn((batch, channels, size, size), generator=torch.Generator().manual_seed(0))


HALF = Preprocess(size=224, resize=256, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic")
"""The authors' preprocessing where they pre-train on more than ImageNet-1k: pixels from -1 to 1."""
DIGITS = Preprocess(size=20, resize=20, mean=(0.143,), std=(0.265,), channels=1)

_DIGITS = "beit.views(of='affine_digits', size=20, patch=4, channels=1, mirror=False)"
_IMAGENET = "beit.views(of='imagenet', jitter=0.4)"


def _tokenizer(networks: str, data: str, batch_size: int = 256) -> Stage:
    unmasked = data.removesuffix(")") + ", masking=None)"
    return Stage(
        name="tokenizer", method="fit", system="beit.Clustering", networks={"tokenizer": networks}, data=unmasked,
        batch_size=batch_size,
    )  # fmt: skip


def _pretraining(networks: str, tokenizer: str, data: str, preprocess: Preprocess, **options: Any) -> Stage:
    return Stage(
        name="pre-training", system="beit.PreTraining(words_of='tokenizer')",
        networks={"network": networks, "tokenizer": tokenizer}, data=data, preprocess=preprocess, optimizer="adamw",
        weight_decay=0.05, clip=3.0, **options,
    )  # fmt: skip


_LEARNING = (
    _tokenizer("beit_codebook_mini", _DIGITS),
    _pretraining(
        "beit_mini_mim", "beit_codebook_mini", _DIGITS, DIGITS, batch_size=64, steps=300, lr=3e-3,
        schedule="cosine(warmup=30)",
    ),
)  # fmt: skip

recipes = {
    "laptop": Recipe(
        stages=(
            *_LEARNING,
            Stage(
                name="fine-tuning",
                system="beit.FineTuning(start='pre-training', layer_decay=0.75)",
                networks={"network": "beit_mini"},
                data="beit.few(of='affine_digits(size=20)', count=300, channels=1)",
                preprocess=DIGITS,
                batch_size=50,
                steps=200,
                optimizer="adamw",
                lr=2e-3,
                weight_decay=0.05,
                schedule="cosine(warmup=20)",
                clip=1.0,
            ),
        ),
        minutes=2,
        expect={"error": (0.6, 0.8)},
        about="a codebook, a BEiT of 0.2 million weights that fills gaps in digits, and from 300 labels begins to name them: "
        "72 % error, and 81 % from nothing",
    ),
    "pre-training": Recipe(
        stages=_LEARNING,
        minutes=1.5,
        expect={"word_error": (0.4, 0.6)},
        about="the same without the last part: predict then fills hidden patches of a picture",
    ),
    "paper": Recipe(
        stages=(
            _tokenizer("beit_codebook", _IMAGENET),
            _pretraining(
                "beit_base_mim(drop=0.1)", "beit_codebook", _IMAGENET, IMAGENET, batch_size=2048, epochs=800,
                lr=1.5e-3, schedule="cosine(warmup=6250, end=0.00667)", precision="bf16", workers=8, save_every=2000,
            ),
            Stage(
                name="fine-tuning",
                system="beit.FineTuning(start='pre-training', layer_decay=0.65, mixup=0.8, cutmix=1.0, label_smoothing=0.1)",
                networks={"network": "beit_base_224(drop=0.1)"},
                data="imagenet",
                preprocess=IMAGENET,
                crop="googlenet.scale_and_aspect",
                augment=("flip", "deit.rand_augment", "deit.random_erasing"),
                batch_size=1024,
                epochs=100,
                optimizer="adamw",
                lr=4e-3,
                weight_decay=0.05,
                schedule="cosine(warmup=25000, end=0.00025)",
                precision="bf16",
                workers=8,
                save_every=2000,
            ),
        ),
        minutes=5 * 24 * 60,
        expect={"error": (0.16, 0.2)},
        machine="16 GPUs of 32 GB",
        about="Section 3.1 on an ImageNet folder (--data): 800 epochs of pre-training, 100 of fine-tuning; large has "
        "layer_decay=0.75, a rate of 1e-3 and 50 epochs. The tokenizer is k-means', in place of DALL-E's",
    ),
}  # fmt: skip


def predict(
    model: BEiT | Codebook,
    inputs: Sequence[str],
    *,
    top: int = 5,
    hidden: int | None = None,
    masking: Literal["blocks", "scattered"] = "blocks",
    seed: int = 0,
    tokenizer: Path | None = None,
    out: Path = Path("words.png"),
) -> Iterator[Prediction]:
    """A classifier names image files; a pre-trained network hides patches of them and says what stands there.

    It draws the image, what the network saw, the image in words with those that it names in the gaps, and the image in its
    own words: the best that words can do. A codebook alone draws images in its words.

    Args:
        top: how many of the most probable classes.
        hidden: patches to hide; by default 75 of 196.
        masking: blocks, or scattered.
        seed: of the mask.
        tokenizer: the run whose codebook the words are of, where none lies beside the weights.
        out: the picture, with a row for each image.
    """
    if isinstance(model, BEiT) and model.words is None:
        return classify(model, inputs, top=top)
    return fill_in(model, inputs, words_beside(model, tokenizer), hidden, masking, seed, out)
