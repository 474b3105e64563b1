r"""Masked Autoencoders Are Scalable Vision Learners. He, Chen, Xie, Li, Dollár, Girshick. 2021.
https://arxiv.org/abs/2111.06377

**Problem.** Filling gaps taught BERT language from text alone. Of images the same had not worked as well: their gaps can be
filled from what lies around them, without knowing what is shown; an encoder of convolutions has no place for gaps; and a
decoder that makes pixels, unlike one that names words, says little of meaning, so what its encoder learns hangs on it.

**Idea.** Hide three quarters of the patches, so that no neighbour tells what is missing. The encoder $f$ sees the others
alone, a quarter of the tokens; a small decoder $g$ gets its tokens $z$, and for each hidden patch one learned token $m$, all
with their positions $p$, and rebuilds the pixels $x_i$, each patch normalised by its own mean and deviation:

$$ z = f(\{E x_i + p_i\}_{i \notin M}), \quad \hat x = g([z; m, \dots, m] + p'), \quad
   L = \frac{1}{|M|} \sum_{i \in M} \frac{1}{n} \Big\| \hat x_i - \frac{x_i - \mu_i}{\sigma_i} \Big\|^2 $$

Then the decoder is thrown away, and the encoder learns a task from all patches.

**Showed.** On ImageNet alone ViT-B, L and H reach 83.6, 85.9 and 86.9 % (H at 448 pixels 87.8), where ViT-L trained for the
task from the beginning has 82.6 (Tab. 3). Hiding 75 % is best, for linear probes by far (Fig. 5); and an encoder that never
sees mask tokens is more accurate and takes about a third of the time (Tab. 1c, 2).

Differs from the paper in:
- Positions are the released code's: the column's channels come first, and those of other sizes are interpolated.
- The fine-tuned network reads the mean of the patches, as the published ones; `pool="token"` is the paper's.
- Mixup, cutmix and random erasing in the preset `fine-tuning` are DeiT's, as the paper says.
- A probe reads the class token behind the encoder's norm, as the released command does (`--cls_token`).

Reading order: `positions`, `masking`, `model` (the autoencoder), `training`, `probing`, `viewing`.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jingdu.data.preprocess import Preprocess
from jingdu.engine.contracts import Recipe, Stage
from jingdu.papers.cnn.alexnet import classify
from jingdu.papers.vit.vit import ViT
from jingdu.prediction import Prediction

from .masking import Masking, patchify, pixel_loss, pixel_target, random_masking, unpatchify, visible
from .model import MAE, Decoder, Rebuilt, fine_tuned
from .positions import sincos_positions
from .probing import FewLabels, PartialFineTuning, few_labels, freeze_lower, linear_probe
from .training import PreTraining
from .viewing import View, describe, reconstruct, view

__all__ = [
    "MAE", "VARIANTS", "Decoder", "FewLabels", "Masking", "PartialFineTuning", "PreTraining", "Rebuilt", "View", "build",
    "describe", "example", "few_labels", "fine_tuned", "freeze_lower", "linear_probe", "patchify", "pixel_loss",
    "pixel_target", "predict", "random_masking", "reconstruct", "sincos_positions", "unpatchify", "view", "visible",
]  # fmt: skip

LARGE = {"width": 1024, "depth": 24, "heads": 16}
HUGE = {"width": 1280, "depth": 32, "heads": 16, "patch": 14}
NO_HEAD = {"num_classes": 0}
MINI = {"image_size": 16, "patch": 4, "width": 64, "depth": 2, "heads": 4, "in_channels": 1}

VARIANTS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    # Section 4: ViT-B, -L and -H, with a decoder; first is what `create("mae")` gives.
    "mae_pretrain_base": (MAE, {}),
    "mae_pretrain_large": (MAE, LARGE),
    "mae_pretrain_huge": (MAE, HUGE),
    # What is kept of them
    "mae_encoder_base": (ViT, NO_HEAD),
    "mae_encoder_large": (ViT, {**LARGE, **NO_HEAD}),
    "mae_encoder_huge14": (ViT, {**HUGE, **NO_HEAD}),
    # Appendix A.1: end to end, and linear probes
    "mae_finetune_base": (fine_tuned, {}),
    "mae_finetune_large": (fine_tuned, LARGE),
    "mae_finetune_huge14": (fine_tuned, HUGE),
    "mae_probe_base": (linear_probe, {}),
    "mae_probe_large": (linear_probe, LARGE),
    "mae_probe_huge14": (linear_probe, HUGE),
    # Ours, for digits of 16x16 pixels
    "mae_mini": (MAE, {**MINI, "decoder": (48, 1, 3)}),
    "mae_finetune_mini": (fine_tuned, {**MINI, "num_classes": 10}),
    "mae_probe_mini": (linear_probe, {**MINI, "num_classes": 10}),
}


def build(variant: str, **overrides: Any) -> nn.Module:
    """The network of a variant; overrides are the arguments of `MAE`, of `ViT`, and of their blocks."""
    make, arguments = VARIANTS[variant]
    return make(**{**arguments, **overrides})


def example(variant: str, batch: int) -> Tensor | tuple[Tensor, Tensor]:
    """Noise in the shape of the variant's images; for an autoencoder also that which shuffles the patches."""
    make, arguments = VARIANTS[variant]
    size, patch = arguments.get("image_size", 224), arguments.get("patch", 16)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((batch, arguments.get("in_channels", 3), size, size), generator=generator)
    return (images, torch.rand((batch, (size // patch) ** 2), generator=generator)) if make is MAE else images


PIXELS = Preprocess(
    size=224, resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bicubic"
)
"""The released code's preprocessing."""
DIGITS = Preprocess(size=16, mean=(0.3,), std=(0.3,), channels=1)
CROPS = "googlenet.scale_and_aspect(area=(0.2, 1))"

recipes = {
    "laptop": Recipe(
        stages=(
            Stage(
                name="pre-training",
                system="mae.PreTraining",
                networks={"network": "mae_mini"},
                data="digits",
                preprocess=DIGITS,
                batch_size=64,
                steps=1500,
                optimizer="adamw",
                lr=2e-3,
                betas=(0.9, 0.95),
                weight_decay=0.05,
                schedule="cosine(warmup=20)",
            ),
        ),
        minutes=2,
        expect={"loss": (0.1, 0.6)},
        about="an autoencoder of 0.13 million weights rebuilds digits of which it sees 4 of 16 patches; what it has learned "
        "goes on in the presets laptop-tuning and laptop-probing",
    ),
    "laptop-tuning": Recipe(
        stages=(
            Stage(
                name="fine-tuning",
                system="beit.FineTuning(start='runs/mae-laptop', layer_decay=0.75)",
                networks={"network": "mae_finetune_mini"},
                data="mae.few_labels(of='digits', count=100, size=16, channels=1)",
                preprocess=DIGITS,
                batch_size=50,
                steps=120,
                optimizer="adamw",
                lr=2e-3,
                weight_decay=0.05,
                schedule="cosine(warmup=20)",
            ),
        ),
        minutes=0.3,
        expect={"error": (0.1, 0.45)},
        about='100 labelled digits for the network of the preset laptop; from another run: --system "beit.FineTuning('
        "start='RUN', layer_decay=0.75)\"",
    ),
    "laptop-probing": Recipe(
        stages=(
            Stage(
                name="probing",
                system="beit.FineTuning(start='runs/mae-laptop', fresh=('head',), frozen=True)",
                networks={"network": "mae_probe_mini"},
                data="digits",
                preprocess=DIGITS,
                batch_size=256,
                steps=100,
                optimizer="lars",
                lr=5.0,
                weight_decay=0.0,
                schedule="cosine(warmup=10)",
            ),
        ),
        minutes=0.3,
        expect={"error": (0.05, 0.3)},
        about="a linear classifier of what the network of the preset laptop knows; from another run: --system "
        "\"beit.FineTuning(start='RUN', fresh=('head',), frozen=True)\"",
    ),
    "paper": Recipe(
        stages=(
            Stage(
                name="pre-training",
                system="mae.PreTraining",
                networks={"network": "mae_pretrain_base"},
                data="imagenet",
                preprocess=PIXELS,
                crop=CROPS,
                augment=("flip",),
                batch_size=4096,
                epochs=1600,
                optimizer="adamw",
                lr=2.4e-3,
                betas=(0.9, 0.95),
                weight_decay=0.05,
                schedule="cosine(warmup=12500)",
                precision="bf16",
                save_every=5000,
                workers=10,
            ),
        ),
        minutes=84 * 60,
        expect={"loss": (0.35, 0.5)},
        machine="64 V100 GPUs",
        about="Tab. 8, from an ImageNet folder (--data): 40 of 1600 epochs of warm-up, a rate of 1.5e-4 for 256 images",
    ),
    "fine-tuning": Recipe(
        stages=(
            Stage(
                name="fine-tuning",
                system="beit.FineTuning(start='hf:facebook/vit-mae-base', layer_decay=0.65, mixup=0.8, cutmix=1.0, "
                "label_smoothing=0.1)",
                networks={"network": "mae_finetune_base(drop=0.1)"},
                data="imagenet",
                preprocess=PIXELS,
                crop=CROPS,
                augment=("flip", "deit.rand_augment", "deit.random_erasing"),
                batch_size=1024,
                epochs=100,
                optimizer="adamw",
                lr=2e-3,
                weight_decay=0.05,
                schedule="cosine(warmup=6250, end=0.0005)",
                precision="bf16",
                save_every=1000,
                workers=10,
            ),
        ),
        minutes=430,
        expect={"error": (0.16, 0.17)},
        machine="32 V100 GPUs",
        about="Tab. 9 for ViT-B, from published weights or a run of yours; L and H have 1e-3 for 256 images, a decay of 0.75, "
        "50 epochs and drop paths of 0.2 and 0.3",
    ),
    "probing": Recipe(
        stages=(
            Stage(
                name="probing",
                system="beit.FineTuning(start='hf:facebook/vit-mae-base', fresh=('head',), frozen=True)",
                networks={"network": "mae_probe_base"},
                data="imagenet",
                preprocess=PIXELS,
                crop="googlenet.scale_and_aspect",
                augment=("flip",),
                batch_size=16384,
                epochs=90,
                optimizer="lars",
                lr=6.4,
                momentum=0.9,
                weight_decay=0.0,
                schedule="cosine(warmup=780)",
                precision="bf16",
                save_every=500,
                workers=10,
            ),
        ),
        minutes=140,
        expect={"error": (0.31, 0.33)},
        machine="32 V100 GPUs",
        about="Tab. 10: a linear classifier of the published ViT-B's class token; L and H take 50 epochs",
    ),
}


def predict(
    model: nn.Module,
    inputs: Sequence[str],
    *,
    top: int = 5,
    masked: float | None = None,
    seed: int = 0,
    out: Path = Path("reconstruction.png"),
) -> Iterator[Prediction]:
    """An autoencoder draws image files, what it sees of them, and what it makes of the rest; a classifier names them; an
    encoder gives their vectors.

    Args:
        top: how many classes a classifier gives.
        masked: share of the patches that is hidden; by default the network's.
        seed: of which patches they are.
        out: the picture to write: a row an image, with the original, what is seen, and the reconstruction.
    """
    if isinstance(model, MAE):
        return reconstruct(model, inputs, masked, seed, Path(out))
    if isinstance(model, ViT) and isinstance(model.head, nn.Identity):
        return describe(model, inputs)
    return classify(model, inputs, top=top)
