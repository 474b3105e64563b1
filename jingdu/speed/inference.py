"""`optimize_for_inference`: the usual steps by which a trained network answers faster, tried on this machine.

The steps: batch norms folded into the layers before them; channels-last memory, in which convolutions need no
reordering; bf16, where its outputs stay within a tolerance; compilation with frozen weights, which fuses what follows a
convolution into it; on CUDA also TF32 and CUDA graphs, which launch all kernels at once. Which of them pay depends on
the network and the machine, so they are timed, and the choice is kept in a file for the next time.
"""

import contextlib
import copy
import hashlib
import inspect
import json
import os
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from jingdu.engine.checkpoint import write_whole
from jingdu.errors import UsageError
from jingdu.lab.machine import machine
from jingdu.speed.fold import fold_batch_norms
from jingdu.speed.paired import alternate

TOLERANCE = 0.02
"""Largest difference from the original's outputs, over their largest value. bf16 holds 8 bits: 0.4 % a rounding."""
ROUNDS = 9
"""Calls of each candidate that are timed."""
AS_IT_WAS = "as it was"
"""The original among what was timed."""
Example = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


@dataclass(frozen=True)
class Steps:
    """What is done to a network besides folding its batch norms."""

    dtype: Literal["float32", "tf32", "bf16"] = "float32"
    channels_last: bool = False
    compiled: bool = False
    graph: bool = False
    """A CUDA graph."""

    def __str__(self) -> str:
        said = [name.replace("_", "-") for name in ("channels_last", "compiled", "graph") if getattr(self, name)]
        return ", ".join([self.dtype, *said])


@dataclass(frozen=True)
class Optimization:
    """What was chosen, and what was measured for it."""

    steps: Steps
    folded: int
    """Batch norms that are gone."""
    seconds: float
    """Median time of one call on the example."""
    plain: float
    """The same of the original network."""
    difference: float
    """Of the outputs from the original's, relative to their largest value."""
    tolerance: float
    tried: Mapping[str, float | str] = field(default_factory=dict)
    """Steps -> seconds, or why they were not taken."""
    cached: bool = False
    """The choice was known: nothing but the difference was measured anew."""

    @property
    def dtype(self) -> str:
        return self.steps.dtype

    @property
    def times(self) -> float:
        """How many times as fast as the original."""
        return self.plain / self.seconds

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "times": self.times}

    def __str__(self) -> str:
        return (
            f"{self.times:.2f} times as fast ({1000 * self.plain:.3g} ms to {1000 * self.seconds:.3g} ms): {self.steps}, "
            f"{self.folded} batch norms folded; outputs differ by {self.difference:.2g} (allowed {self.tolerance:g})"
        )


# One candidate ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _tf32(on: bool) -> Iterator[None]:
    """Matrix products and convolutions on CUDA with 10 bits of mantissa, inside the block alone."""
    if not on:
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _graphed(call: Callable[..., Any], inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """The call as a CUDA graph over inputs of exactly these shapes; its outputs are copies."""
    held = [x.clone() for x in inputs]
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # libraries allocate their workspaces in the first calls, which no graph may hold
        for _ in range(3):
            call(*held)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call(*held)

    def replay(*given: Tensor) -> Any:
        for place, value in zip(held, given, strict=True):
            place.copy_(value)
        graph.replay()
        return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, output)

    return replay


class _Call:
    """An optimised network's `forward`: checks its inputs, brings them into the chosen form, and the outputs back.

    Inputs of the example's shapes take the compiled path or the graph; others run as they are, folded and in the chosen
    precision, so that a new shape costs no compilation.
    """

    def __init__(self, network: nn.Module, steps: Steps, args: Sequence[Tensor], kwargs: Mapping[str, Tensor]):
        self.network, self.steps = network, steps
        self.signature = inspect.signature(network.forward)
        self.by_position = len(self.signature.bind(*args, **kwargs).args)
        example = self._bound(args, kwargs)
        self.like = {name: (x.ndim, x.dtype, x.device) for name, x in example.items()}
        self.shapes = [x.shape for x in example.values()]
        ready = [self._ready(x) for x in example.values()]
        self.fast: Callable[..., Any] = self._plain
        with torch.inference_mode(), _tf32(steps.dtype == "tf32"):
            if steps.compiled:
                # Frozen weights are constants of the compiled program, and stored as its kernels read them.
                self.fast = torch.compile(
                    self._plain, dynamic=False, options={"freezing": ready[0].device.type == "cpu"}
                )
            if steps.graph:
                self.fast = _graphed(self.fast, ready)
            self.fast(*ready)

    def _bound(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs by name, those that may be given by position first and in their order."""
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise UsageError(f"{type(self.network).__name__}: {error}") from None
        names = [*self.signature.parameters][: len(bound.args)]
        names += [f"input {i}" for i in range(len(names), len(bound.args))]
        return dict(zip((*names, *bound.kwargs), (*bound.args, *bound.kwargs.values()), strict=True))

    def _plain(self, *inputs: Tensor) -> Any:
        """The network on inputs in the order of the example's."""
        n = self.by_position
        return self.network(*inputs[:n], **dict(zip([*self.like][n:], inputs[n:], strict=True)))

    def _ready(self, x: Tensor) -> Tensor:
        if x.is_floating_point() and self.steps.dtype == "bf16":
            x = x.to(torch.bfloat16)
        return x.contiguous(memory_format=torch.channels_last) if self.steps.channels_last and x.ndim == 4 else x

    def _checked(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        kind, given = type(self.network).__name__, self._bound(args, kwargs)
        if [*given] != [*self.like]:
            raise UsageError(f"{kind} was optimised for {', '.join(self.like)}, and was given {', '.join(given)}")
        for (name, x), (ndim, dtype, device) in zip(given.items(), self.like.values(), strict=True):
            if not isinstance(x, Tensor):
                raise UsageError(f"{name} is a {type(x).__name__}: give a tensor")
            if (x.ndim, x.dtype, x.device) != (ndim, dtype, device):
                raise UsageError(
                    f"{name} has {x.ndim} axes, {x.dtype}, on {x.device}: {kind} was optimised for {ndim} axes, "
                    f"{dtype}, on {device}"
                )
        return [*given.values()]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = self._checked(args, kwargs)
        known = [x.shape for x in given] == self.shapes
        with torch.inference_mode(), _tf32(self.steps.dtype == "tf32"):
            ready = [self._ready(x) for x in given]
            try:
                output = (self.fast if known else self._plain)(*ready)
            except RuntimeError as error:
                if known:
                    raise
                shapes, wanted = (
                    " and ".join(str(tuple(s)) for s in found) for found in ([x.shape for x in given], self.shapes)
                )
                reason = str(error).splitlines()[0]
                raise UsageError(
                    f"{type(self.network).__name__} takes no input of {shapes} ({reason}); it was optimised for {wanted}"
                ) from None
            if self.steps.dtype != "bf16":
                return output
            return tree_map(lambda x: x.float() if isinstance(x, Tensor) and x.dtype == torch.bfloat16 else x, output)


def apply_steps(
    folded: nn.Module, steps: Steps, args: Sequence[Tensor], kwargs: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """A network in which the steps are done, of the same class and with the same call.

    Args:
        folded: in evaluation mode; it is copied.
        steps: what is done.
        args: an example of its inputs; compilation and graphs are for these shapes.
        kwargs: more of them, by name.
    """
    network = copy.deepcopy(folded)
    if steps.dtype == "bf16":
        network.to(torch.bfloat16)
    if steps.channels_last:
        network.to(memory_format=torch.channels_last)
    call = _Call(network, steps, args, kwargs or {})
    shell = copy.copy(network)  # shares its modules and tensors: the network itself is what `call` runs
    shell.forward = call
    shell.train = lambda mode=True: _stays(shell, mode)
    return shell


def _stays(network: nn.Module, mode: bool) -> nn.Module:
    if mode:
        raise UsageError("a network optimised for inference cannot be trained: train the original")
    return network


# The choice ---------------------------------------------------------------------------------------


def candidates(device: torch.device, images: bool) -> list[Steps]:
    """What is tried without compilation; `compiled` follows in the precision that won.

    `images`: some input has four axes, so that channels-last means something.
    """
    if device.type == "cuda":
        return [Steps(dtype, images, graph=graph) for dtype in ("float32", "tf32", "bf16") for graph in (False, True)]
    plain = [Steps("float32", last) for last in ((False, True) if images else (False,))]
    return [*plain, Steps("bf16", images)]


def _outputs(output: Any) -> list[Tensor]:
    return [x.double() for x in tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point()]


def _difference(output: Any, plain: Any) -> float:
    """Largest difference over the largest value, of the worst tensor of an output; infinite where one is not finite."""
    pairs = list(zip(_outputs(output), _outputs(plain), strict=True))
    if not pairs:
        raise UsageError("the network gives no floating-point tensor: there is nothing to compare")
    worst = max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs)
    return worst if worst == worst else float("inf")


def cache_file(
    model: nn.Module, args: Sequence[Tensor], kwargs: Mapping[str, Tensor], tolerance: float, compile: bool
) -> Path:
    """Where a choice is kept: $JINGDU_CACHE or ~/.cache/jingdu, `inference`, and a hash of the network's structure (not
    its weights), the inputs' shapes, the tolerance, torch, the machine and its threads."""
    tensors = [*args, *kwargs.values()]
    device = tensors[0].device
    made_of = {
        "network": [type(model).__module__, str(model)],
        "state": [(name, list(x.shape), str(x.dtype)) for name, x in model.state_dict().items()],
        "inputs": [(list(x.shape), str(x.dtype), x.stride()) for x in tensors] + sorted(kwargs),
        "torch": torch.__version__,
        "machine": [machine(), torch.get_num_threads(), str(device)],
        "cuda": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "tolerance": tolerance,
        "candidates": [*map(str, candidates(device, True)), compile],
    }
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:24]
    root = Path(os.environ.get("JINGDU_CACHE") or Path.home() / ".cache" / "jingdu").expanduser()
    return root / "inference" / f"{key}.json"


def _known(path: Path) -> dict[str, Any] | None:
    """A choice that was kept; a file that says nothing is no choice."""
    try:
        table = json.loads(path.read_text("utf-8"))
        times = {name: float(table[name]) for name in ("seconds", "plain")}
        return {**times, "tried": dict(table["tried"]), "steps": Steps(**table["steps"])}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _inputs(model: nn.Module, example: Example) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    args = (example,) if isinstance(example, Tensor) else () if isinstance(example, Mapping) else tuple(example)
    kwargs = dict(example) if isinstance(example, Mapping) else {}
    tensors = [*args, *kwargs.values()]
    if not tensors or not all(isinstance(x, Tensor) for x in tensors):
        raise UsageError("example: give a tensor, several, or a mapping of names to tensors, as the network takes them")
    if hasattr(model, "optimization"):
        raise UsageError("this network is optimised already: give the original")
    first = next(model.parameters(), None)
    for x in tensors:
        if first is not None and x.device != first.device:
            raise UsageError(f"example is on {x.device}, the network on {first.device}: bring them together")
        if first is not None and x.is_floating_point() and x.dtype != first.dtype:
            raise UsageError(f"example is {x.dtype}, the network {first.dtype}: give it what it takes")
    if first is not None and first.dtype != torch.float32:
        raise UsageError(f"the network is {first.dtype}: give the float32 one, whose outputs are what is kept to")
    return args, kwargs


class _Trial:
    """One network, its example, and the candidates that stand."""

    def __init__(self, model: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], tolerance: float):
        self.args, self.kwargs, self.tolerance = args, kwargs, tolerance
        self.plain = copy.deepcopy(model).eval()
        self.folded, self.count = fold_batch_norms(self.plain, args, kwargs)
        self.expected = self.run(self.plain)
        if not all(bool(x.isfinite().all()) for x in _outputs(self.expected)):
            raise UsageError("the network's outputs on the example are not finite: there is nothing to keep to")
        if (gap := _difference(self.run(self.folded), self.expected)) > 1e-4:
            warnings.warn(
                f"folding batch norms changes the outputs by {gap:.2g}: they stay", RuntimeWarning, stacklevel=4
            )
            self.folded, self.count = self.plain, 0
        self.standing: dict[Steps, nn.Module] = {}
        self.differences: dict[Steps, float] = {}
        self.tried: dict[str, float | str] = {}

    def run(self, network: nn.Module) -> Any:
        with torch.inference_mode():
            return network(*self.args, **self.kwargs)

    def enter(self, steps: Steps) -> bool:
        """Do the steps and look at the outputs; says whether the candidate stands."""
        try:
            network = apply_steps(self.folded, steps, self.args, self.kwargs)
            gap = _difference(self.run(network), self.expected)
        except UsageError:
            raise
        except Exception as error:  # no compiler, no kernel: the steps are not for this machine
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            warnings.warn(f"optimize_for_inference: {steps} was left out ({reason})", RuntimeWarning, stacklevel=4)
            self.tried[str(steps)] = reason
            return False
        if gap > self.tolerance:
            self.tried[str(steps)] = f"outputs differ by {gap:.2g}, more than {self.tolerance:g}"
            return False
        self.standing[steps], self.differences[steps] = network, gap
        return True

    def time(self, rounds: int) -> Steps:
        """Time all that stand, and the original; gives the quickest."""
        works = {str(steps): lambda network=network: self.run(network) for steps, network in self.standing.items()}
        times = alternate({AS_IT_WAS: lambda: self.run(self.plain), **works}, rounds, warmup=2)
        self.tried |= {name: statistics.median(values) for name, values in times.items()}
        return min(self.standing, key=lambda steps: self.tried[str(steps)])

    def choose(self, compile: bool) -> Steps:
        """Try all candidates. Raises UsageError where none keeps the outputs."""
        inputs = (*self.args, *self.kwargs.values())
        images = any(x.ndim == 4 for x in inputs)
        for steps in candidates(inputs[0].device, images):
            self.enter(steps)
        if not self.standing:
            raise UsageError(f"no step keeps the outputs within {self.tolerance:g}: {self.tried}")
        if compile:
            self.enter(replace(self.time(3), channels_last=images, compiled=True))
        return self.time(ROUNDS)


def optimize_for_inference(
    model: nn.Module, example: Example, *, tolerance: float = TOLERANCE, compile: bool = True, cache: bool = True
) -> nn.Module:
    """A copy of a network that answers as fast as this machine allows, by the steps that pay here.

    Args:
        model: a float32 network; it stays as it is.
        example: its inputs, of the shapes that it will mostly get: a tensor, several in order, or by name.
        tolerance: largest difference of the outputs from the original's, over their largest value, on the example.
            0.02 lets bf16 in; 1e-4 keeps float32.
        compile: try compilation too, which takes some tens of seconds, and a C++ compiler on a CPU.
        cache: keep the choice, and use one that was kept, for the same structure, shapes, torch and machine; whether
            the outputs are within the tolerance is always measured.

    Returns a module of the same class and call: inputs are checked and brought into the chosen form, outputs are float32
    without gradients. Other shapes than the example's run too, without the compiled part. Methods other than the call
    see the folded network in its own precision. `optimization` says what was chosen and measured. While it tries, about
    six copies of the weights are in memory; the result keeps one (two where it is compiled).

    Raises UsageError for an example or, later, inputs that do not fit, and for training it.
    """
    if not 0 < tolerance < 1:
        raise UsageError(f"tolerance {tolerance}: give a share of the largest output, between 0 and 1")
    args, kwargs = _inputs(model, example)
    path = cache_file(model, args, kwargs, tolerance, compile)
    trial = _Trial(model, args, kwargs, tolerance)
    kept = _known(path) if cache else None
    if kept is not None and trial.enter(kept["steps"]):
        steps, found = kept["steps"], kept
    else:
        kept, steps = None, trial.choose(compile)
        found = {"seconds": trial.tried[str(steps)], "plain": trial.tried[AS_IT_WAS], "tried": trial.tried}
        if cache:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, (json.dumps({"steps": asdict(steps), **found}, indent=1) + "\n").encode())
    network = trial.standing[steps]
    network.optimization = Optimization(
        steps,
        trial.count,
        found["seconds"],
        found["plain"],
        trial.differences[steps],
        tolerance,
        found["tried"],
        cached=kept is not None,
    )
    return network
