"""MAE's training step against transformers', and the fine-tuned network against timm's: python -m benchmarks.mae [optimized]."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import jingdu
from benchmarks.paired import compare, save
from jingdu.speed.case import LEARNING_RATE, difference, inference, training_step
from jingdu.speed.references import import_library, randomise_

BASE = {"norm_pix_loss": True, "layer_norm_eps": 1e-6}
"""What the published networks have, and transformers' defaults have not."""


def _pretraining_step(network: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Forward, the loss of the hidden patches, backward, an update by AdamW as in the paper's recipe."""
    network.train()
    moved = [p for p in network.parameters() if p.requires_grad]
    update = torch.optim.AdamW(moved, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.05)

    def once() -> None:
        update.zero_grad()
        loss().backward()
        update.step()

    return once


def pretraining(rounds: int = 7, batch: int = 1) -> dict[str, Any]:
    """The same weights, pictures and hidden patches in eager float32; losses are compared first."""
    transformers = import_library("transformers")
    reference = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**BASE))
    randomise_(reference, torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        ours = jingdu.create("mae", weights=folder)
    images, noise = jingdu.paper("mae").load().example("mae_pretrain_base", batch)

    def our_loss() -> Tensor:
        return ours.loss(images, ours(images, noise))

    def their_loss() -> Tensor:
        return reference(images, noise=noise).loss

    with torch.inference_mode():
        gap = abs(float(our_loss() / their_loss()) - 1)
    assert gap < 1e-4, gap
    work = f"{batch} image of 3x224x224, a training step of pre-training"
    row = compare(
        _pretraining_step(ours, our_loss), _pretraining_step(reference, their_loss),
        f"mae_pretrain_base against transformers: {work}", rounds, 1, work,
    )  # fmt: skip
    return {**row, "difference": gap, "variant": "mae_pretrain_base", "against": "transformers"}


def _fine_tuned() -> tuple[nn.Module, nn.Module]:
    """timm's network that reads the mean of the patches, with random weights, and ours with the same."""
    reference = import_library("timm").create_model("vit_base_patch16_224", global_pool="avg")
    randomise_(reference, torch.Generator().manual_seed(0)).eval()
    with tempfile.TemporaryDirectory() as folder:
        save_file(reference.state_dict(), Path(folder) / "model.safetensors")
        return jingdu.create("mae_finetune_base", weights=Path(folder) / "model.safetensors"), reference


def fine_tuned(train: bool, rounds: int = 7, batch: int = 1) -> dict[str, Any]:
    """The same weights and pictures in eager float32."""
    ours, reference = _fine_tuned()
    inputs = (jingdu.paper("mae").load().example("mae_finetune_base", batch),)
    gap = difference(inference(ours, inputs)(), inference(reference, inputs)())
    assert gap < 1e-3, gap
    make, what = (training_step, "a training step") if train else (inference, "inference")
    work = f"{batch} image of 3x224x224, {what}"
    row = compare(
        make(ours, inputs), make(reference, inputs), f"mae_finetune_base against timm: {work}", rounds, 1, work
    )
    return {**row, "difference": gap, "variant": "mae_finetune_base", "against": "timm"}


def optimized(rounds: int = 8, batch: int = 1) -> dict[str, Any]:
    """What `jingdu.optimize_for_inference` reaches against timm's plain float32."""
    ours, reference = _fine_tuned()
    inputs = (jingdu.paper("mae").load().example("mae_finetune_base", batch),)
    fast = jingdu.optimize_for_inference(ours, inputs[0])
    work = f"{batch} image of 3x224x224, inference, optimised ({fast.optimization.steps})"
    row = compare(
        lambda: fast(*inputs), inference(reference, inputs), f"mae_finetune_base against timm: {work}", rounds, 1, work
    )
    return {**row, "variant": "mae_finetune_base", "against": "timm"}


if __name__ == "__main__":
    if sys.argv[1:] == ["optimized"]:
        save([optimized()], "mae-optimized.json")
    else:
        save([pretraining(), fine_tuned(train=False), fine_tuned(train=True)], "mae.json")
