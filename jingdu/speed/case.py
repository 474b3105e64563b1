"""`jingdu bench`: our network and a reference's, with the same weights and the same input, in one paired run."""

import contextlib
import copy
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
from jingdu.speed.decoding import matrices_of, optimize_for_decoding
from jingdu.speed.inference import TOLERANCE, optimize_for_inference
from jingdu.speed.paired import FEWEST, alternate, compare, told
from jingdu.speed.peak import DTYPES, limits
from jingdu.speed.references import build_reference, randomise_, save_reference, their_name

FLOOR = 0.97
"""A network whose whole interval lies below is slower than the reference; one against itself gives 0.98 to 1.05."""
SAME = 1e-3
"""Largest relative difference of outputs at which two float32 networks still do the same work."""
PROMPT, LENGTH = 32, 64
"""Tokens that are read, and made one after the other, in the comparison of decoding."""
SHORT = 24
"""Tokens that both make beforehand: to be warm, and to see whether they are the same."""
EXACT = 1e-4
"""Tolerance of logits in a float32 comparison of decoding; in bf16 it is that of `optimize_for_inference`."""
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


def makes_text(name: str, alias: str) -> bool:
    """Whether a network and its reference make one token after the other."""
    with torch.device("meta"):
        ours = canon.create(name)
    return hasattr(ours, "init_state") and hasattr(ours, "step") and alias.startswith("transformers/")


def bench_decoding(
    name: str, against: str | None = None, *, dtype: str = "float32", length: int = LENGTH, rounds: int = FEWEST,
    device: str = "auto",
) -> list[dict[str, Any]]:  # fmt: skip
    """Time the making of text, greedily at batch 1, against a reference's `generate`: same weights and prompt.

    Args:
        name: as in `bench`.
        against: as in `bench`.
        dtype: float32 or bf16, of both networks. Our compiled step takes bf16 for the matrices alone.
        length: new tokens.
        rounds: pairs of runs that count; at least 6.
        device: auto, cpu, cuda.

    Returns two rows: ours eager, then by `optimize_for_decoding`. Beside what `bench` has, tokens_per_second, same_tokens
    (the first 24; in bf16 near ties fall either way), and share_of_bandwidth: of the matrices that a token needs, read once
    for each, in the whole time with the prompt. Raises as `bench`, and UsageError where one of them makes no text.
    """
    from jingdu.engine.training import device_of

    if not makes_text(name, their_name(canon.resolve(name), against)):
        raise UsageError(f"{name} makes no text, or its reference does not: there is nothing to compare")
    generate, place = canon.paper("rnn").load().generate, device_of(device)
    pair = make_pair(name, against, 1, place)
    prompt, kind = pair.inputs[0][0, :PROMPT], DTYPES[dtype]
    quick = optimize_for_decoding(
        pair.ours, capacity=PROMPT + length, tolerance=TOLERANCE if dtype == "bf16" else EXACT
    )
    theirs = pair.reference.to(kind)
    plain = pair.ours.to(kind) if kind == torch.float32 else copy.deepcopy(pair.ours).to(kind)

    def text(network: nn.Module, length: int = length) -> Tensor:
        with torch.inference_mode():
            return generate(network, [prompt], length)[0]

    def their_text(length: int = length) -> Tensor:
        return theirs.generate(
            prompt[None], attention_mask=torch.ones_like(prompt)[None], max_new_tokens=length, min_new_tokens=length,
            do_sample=False, pad_token_id=0, eos_token_id=None,
        )[0, PROMPT:]  # fmt: skip

    few = min(SHORT, length)
    expected = their_text(few)
    same = {
        "decoding": torch.equal(text(plain, few), expected),
        "compiled decoding": torch.equal(text(quick, few), expected),
    }
    works = {"decoding": lambda: text(plain), "compiled decoding": lambda: text(quick), "reference": their_text}
    times = alternate(works, rounds, warmup=0)
    measured, rows = limits(place), []
    size = sum(x.numel() for x in matrices_of(plain)) * torch.empty(0, dtype=kind).element_size()
    for mode, network, read in (
        ("decoding", plain, size),
        ("compiled decoding", quick, quick.optimization.bytes),
    ):
        title = f"{pair.found.variant} against {pair.alias.partition('/')[0]}, {length} tokens after {PROMPT}, {dtype}, {mode}"
        row = told(times[mode], times["reference"], title)
        rows.append(row | {
            "reaches": row["interval"][1] >= FLOOR,
            "variant": pair.found.variant,
            "against": pair.alias,
            "mode": mode,
            "dtype": dtype,
            "batch": 1,
            "prompt": PROMPT,
            "length": length,
            "device": str(place),
            "difference": pair.difference,
            "same_tokens": same[mode],
            "tokens_per_second": length / row["ours"],
            "their_tokens_per_second": length / row["reference"],
            "bytes": read,
            "share_of_bandwidth": read * length / row["ours"] / measured.bandwidth,
            "limits": measured.as_json(),
            **({"optimization": quick.optimization.as_json()} if network is quick else {}),
        })  # fmt: skip
        print(
            f"  {length / row['ours']:.3g} tokens a second, theirs {length / row['reference']:.3g}; the matrices of each token are "
            f"{rows[-1]['share_of_bandwidth']:.0%} of what this machine can read in that time"
            + (f"; {quick.optimization}" if network is quick else "")
        )
    return rows


def bench_all(names: Sequence[str], quiet: bool = False, decode: bool = False, **options: Any) -> list[dict[str, Any]]:
    """`bench` for several networks, and `bench_decoding` for those that make text, or with `decode` that alone.

    `quiet` prints to the standard error. A wrong name ends it before anything is timed.
    """
    for name in names:
        their_name(canon.resolve(name), options.get("against"))
    rows: list[dict[str, Any]] = []
    with contextlib.redirect_stdout(sys.stderr) if quiet else contextlib.nullcontext():
        for name in names:
            if not decode:
                rows.append(bench(name, **options))
            alias = their_name(canon.resolve(name), options.get("against"))
            if decode or (not options.get("train") and makes_text(name, alias)):
                few = max(options.get("rounds", 0) // 3, FEWEST)
                chosen = {key: options[key] for key in ("against", "dtype", "device") if key in options}
                rows += bench_decoding(name, **chosen, rounds=few)
    return rows
