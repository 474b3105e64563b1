"""`jingdu bench`: our network and a reference's, with the same weights and the same input, in one paired run."""

import contextlib
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from jingdu import canon
from jingdu.errors import Refused, UsageError, unknown
from jingdu.speed.inference import optimize_for_inference
from jingdu.speed.paired import FEWEST, compare
from jingdu.speed.peak import DTYPES, limits
from jingdu.speed.references import build_reference, randomise_, save_reference, their_name

FLOOR = 0.97
"""A network whose whole interval lies below is slower than the reference; one against itself gives 0.98 to 1.05."""
SAME = 1e-3
"""Largest relative difference of outputs at which two float32 networks still do the same work."""
LEARNING_RATE = 1e-6
"""Of the training step's update: the work of one, and weights that stay where they are."""


def example_of(found: canon.Resolved, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Inputs of a network's `forward`: what its module's `example(variant, batch)` gives, or normal noise in the shape
    of the pictures that its `paper` recipe trains on.

    Raises UsageError where there is neither.
    """
    module = found.paper.load()
    if hasattr(module, "example"):
        given = module.example(found.variant, batch)
        return (given,) if isinstance(given, Tensor) else tuple(given)
    preprocess = module.recipes["paper"].stages[-1].preprocess
    if preprocess is None or preprocess.size is None:
        raise UsageError(f"{found.paper.key} says nothing of its inputs: its module needs example(variant, batch)")
    shape = (batch, preprocess.channels, preprocess.size, preprocess.size)
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)),)


def main_output(output: Any) -> Tensor:
    """The logits of what a network gives, or its first tensor. Raises UsageError where there is none."""
    if isinstance(output, Tensor):
        return output
    if getattr(output, "logits", None) is not None:
        return output.logits
    for value in output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ():
        with contextlib.suppress(UsageError):
            return main_output(value)
    raise UsageError(f"no tensor to compare in a {type(output).__name__}")


def difference(ours: Tensor, reference: Tensor) -> float:
    """Largest absolute difference over the reference's largest absolute value."""
    return float((ours.double() - reference.double()).abs().max() / reference.double().abs().max())


def inference(network: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
    """The work of one inference."""
    network.eval()

    def once() -> Any:
        with torch.inference_mode():
            return network(*inputs)

    return once


def training_step(network: nn.Module, inputs: tuple[Tensor, ...], dtype: str = "float32") -> Callable[[], Any]:
    """The work of one training step: forward, the outputs' mean square, backward, an update by SGD; bf16 is autocast."""
    network.train()
    update = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE)

    def once() -> None:
        update.zero_grad()
        with torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=dtype == "bf16"):
            output = network(*inputs)
        main_output(output).float().square().mean().backward()
        update.step()

    return once


@dataclass(frozen=True)
class Pair:
    """Our network and a reference's, with the same random weights and running statistics, and one input for both."""

    found: canon.Resolved
    alias: str
    """The reference's qualified name."""
    ours: nn.Module
    reference: nn.Module
    inputs: tuple[Tensor, ...]
    difference: float
    """Of their outputs, relative: they do the same work."""


def make_pair(name: str, against: str | None = None, batch: int = 4, device: str | torch.device = "cpu") -> Pair:
    """Build both networks of a comparison and check that they give the same.

    The reference is made first, with random weights; ours takes them as it takes any file of that library.

    Raises UsageError where no reference has the network, Missing where the library is not installed, Refused where
    the outputs differ by more than 1e-3.
    """
    found = canon.resolve(name)
    alias = their_name(found, against)
    generator = torch.Generator().manual_seed(0)
    reference = randomise_(build_reference(found.paper, alias, canon.create(name)), generator).eval()
    with tempfile.TemporaryDirectory() as folder:
        ours = canon.create(alias, weights=save_reference(reference, Path(folder)))
    inputs = tuple(x.to(device) for x in example_of(found, batch))
    ours, reference = ours.to(device), reference.to(device)
    a, b = (main_output(inference(network, inputs)()) for network in (ours, reference))
    if a.shape != b.shape or not (gap := difference(a, b)) <= SAME:
        raise Refused(f"{alias} and ours differ with the same weights: there is nothing to compare")
    return Pair(found, alias, ours, reference, inputs, gap)


def _flops(work: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def _bytes(network: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """What must be read at least: every parameter, buffer and input once."""
    return sum(x.numel() * x.element_size() for x in (*network.parameters(), *network.buffers(), *inputs))


def bench(
    name: str,
    against: str | None = None,
    *,
    batch: int = 4,
    train: bool = False,
    dtype: str = "float32",
    optimize: bool = False,
    rounds: int = 20,
    device: str = "auto",
) -> dict[str, Any]:
    """Time our network against a reference's: same weights, same input, alternating runs in eager torch.

    Args:
        name: a variant, a paper's key, or LIBRARY/NAME.
        against: torchvision, timm or transformers; None: the first that has the network.
        batch: inputs at once.
        train: a training step in place of an inference.
        dtype: float32 or bf16 (inference: the whole network; training: autocast).
        optimize: ours goes through `optimize_for_inference`; the reference stays as it is.
        rounds: pairs of runs that count; at least 6.
        device: auto, cpu, cuda.

    Returns what `compare` gives (ratio: reference time / ours, so that above 1 ours is faster; interval; ours and
    reference in seconds), and: reaches (the interval's upper end is at least 0.97); flops of one run (by torch's
    counter) and share_of_peak, their share of the machine's matrix product in the precision that ours runs in; bytes
    (weights and inputs, read once) and share_of_bandwidth; difference of the outputs; what was compared; limits. Prints
    a line. Raises UsageError, Missing or Refused.
    """
    from jingdu.engine.training import device_of

    if dtype not in DTYPES:
        raise unknown("precision", dtype, DTYPES)
    if batch < 1 or rounds < FEWEST:
        raise UsageError(
            f"batch {batch}, rounds {rounds}: a bench takes 1 or more at once, and {FEWEST} rounds or more"
        )
    if optimize and (train or dtype != "float32"):
        raise UsageError(
            "--optimize is inference, and compares with the reference's plain float32: leave --train and --dtype"
        )
    place = device_of(device)
    pair = make_pair(name, against, batch, place)
    ours, reference, inputs = pair.ours, pair.reference, pair.inputs
    flops, size = _flops(inference(ours, inputs)), _bytes(ours, inputs)
    runs_in, steps = dtype, None
    if optimize:
        ours = optimize_for_inference(ours, inputs)
        runs_in, steps = ours.optimization.dtype, ours.optimization.as_json()
    if dtype == "bf16" and not train:
        ours, reference = ours.to(torch.bfloat16), reference.to(torch.bfloat16)
        inputs = tuple(x.to(torch.bfloat16) if x.is_floating_point() else x for x in inputs)
        size = _bytes(ours, inputs)
    if train:
        works = [training_step(network, inputs, dtype) for network in (ours, reference)]
        flops = _flops(works[0])
    else:
        works = [inference(network, inputs) for network in (ours, reference)]
    measured = limits(place)
    mode = "training step" if train else "optimised inference" if optimize else "inference"
    title = f"{pair.found.variant} against {pair.alias.partition('/')[0]}, batch {batch}, {dtype}, {mode}"
    row = compare(*works, title, rounds=rounds)
    row |= {
        "reaches": row["interval"][1] >= FLOOR,
        "variant": pair.found.variant,
        "against": pair.alias,
        "mode": mode,
        "dtype": dtype,
        "batch": batch,
        "inputs": [list(x.shape) for x in inputs],
        "device": str(place),
        "difference": pair.difference,
        "flops": flops,
        "share_of_peak": flops / row["ours"] / measured.peak["bf16" if runs_in == "bf16" else "float32"],
        "bytes": size,
        "share_of_bandwidth": size / row["ours"] / measured.bandwidth,
        "limits": measured.as_json(),
        **({"optimization": steps} if steps else {}),
    }
    print(
        f"  {flops / row['ours'] / 1e9:.0f} GFLOP/s, {row['share_of_peak']:.0%} of this machine's {runs_in} matrix product; "
        f"weights and input are {row['share_of_bandwidth']:.1%} of what it can read in that time"
        + ("" if row["reaches"] else f"; the interval does not reach {FLOOR}")
    )
    return row


def bench_all(names: Sequence[str], quiet: bool = False, **options: Any) -> list[dict[str, Any]]:
    """`bench` for several networks; `quiet` prints to the standard error. A wrong name ends it before anything is timed."""
    for name in names:
        their_name(canon.resolve(name), options.get("against"))
    with contextlib.redirect_stdout(sys.stderr) if quiet else contextlib.nullcontext():
        return [bench(name, **options) for name in names]
