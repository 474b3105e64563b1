r"""`optimize_for_decoding`: one token after the other as fast as this machine's memory gives the weights.

At batch 1 a token needs every weight once and does two operations with it, so the time of a step is that of reading the
weights. A library's matrix product is made for reuse and reads them at half of what memory can give; a compiled
multiply-and-sum does better, and weights in bf16 are half as many bytes. Here a whole step becomes one compiled program
over a state of fixed size, its products of a matrix and one vector by the kernel that is the quickest in a trial, and the
choice is kept in a file. Prompts, batches and longer texts go through the network as it was.

It uses the contract of generation alone (`init_state`, `step`; see docs/contracts.md), so any network that generates can
be given, as long as its state keeps its shapes from step to step where `lengths` are given.
"""

import copy
import dataclasses
import hashlib
import json
import os
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from jingdu.engine.checkpoint import write_whole
from jingdu.errors import UsageError
from jingdu.lab.machine import machine
from jingdu.nn import linear
from jingdu.speed.inference import AS_IT_WAS, ROUNDS, TOLERANCE
from jingdu.speed.paired import alternate
from jingdu.speed.peak import DTYPES

CAPACITY = 256
"""Tokens of prompt and continuation together that the compiled step has room for, unless told otherwise."""
NARROW = 1e-3
"""Tolerance from which on matrices in bf16 are tried: one of their roundings is 4e-3, and many together are less."""
CHECKED = 8
"""Steps whose logits are compared with the original's."""

Product = Callable[[Tensor, Tensor], Tensor]
"""(matrix [out, in], vector [in]) -> [out]."""


# The products of a matrix and one vector --------------------------------------------------------------


def _linear(matrix: Tensor, x: Tensor) -> Tensor:
    return F.linear(x[None].to(matrix.dtype), matrix)[0]


def _mv(matrix: Tensor, x: Tensor) -> Tensor:
    return torch.mv(matrix, x.to(matrix.dtype))


def _rows(together: int) -> Product:
    """Multiply and sum, for as many rows at the same time: the compiler keeps a sum of each, and more loads are under way."""

    def product(matrix: Tensor, x: Tensor) -> Tensor:
        x, share = x.float(), len(matrix) // together
        parts = [matrix[i * share : (i + 1) * share] for i in range(together)] + [matrix[together * share :]]
        return torch.cat([(part.float() * x).sum(1) for part in parts if len(part)])

    return product


KERNELS: Mapping[str, Product] = {
    "linear": _linear,
    "mv": _mv,
    "row by row": _rows(1),
    "4 rows": _rows(4),
    "8 rows": _rows(8),
}
"""What is tried. Those by rows are for the compiler; they add in float32, whatever the weights are."""


class _Products(TorchFunctionMode):
    """Inside, a linear layer's product with one vector is done by a kernel of ours.

    `instead` has a matrix of another precision by the id of the layer's; `seen` gathers the matrices. All else passes.
    """

    def __init__(self, kernel: Product | None = None, instead: Mapping[int, Tensor] | None = None):
        super().__init__()
        self.kernel, self.instead = kernel, instead or {}
        self.seen: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (F.linear, linear) and not kwargs and args[0].numel() == args[0].shape[-1] and args[1].ndim == 2:
            x, matrix = args[:2]
            self.seen[id(matrix)] = matrix
            if self.kernel is not None:
                y = self.kernel(self.instead.get(id(matrix), matrix), x.reshape(-1)).to(x.dtype)
                y = y if len(args) < 3 or args[2] is None else y + args[2]
                return y.view(*x.shape[:-1], -1)
        return func(*args, **kwargs)


def _watch(network: nn.Module, tokens: Tensor, state: Any) -> tuple[list[Tensor], Any]:
    """The matrices that one vector is multiplied by in a step, and the state after it."""
    with torch.no_grad(), _Products() as watch:
        _, after = network.step(tokens, state, None)
    return list(watch.seen.values()), after


def matrices_of(network: nn.Module) -> list[Tensor]:
    """What must be read for each token at batch 1: the matrices of one step."""
    device = next(network.parameters()).device
    return _watch(network, torch.zeros(1, 1, dtype=torch.int64, device=device), network.init_state(1, 2))[0]


# A state is any nesting of tensors --------------------------------------------------------------------


def _map(tree: Any, function: Callable[[Tensor], Any]) -> Any:
    """A state of the same form, its tensors (in a fixed order) replaced by what the function gives for each."""
    if isinstance(tree, Tensor):
        return function(tree)
    if dataclasses.is_dataclass(tree):
        return dataclasses.replace(
            tree, **{f.name: _map(getattr(tree, f.name), function) for f in dataclasses.fields(tree) if f.init}
        )
    if isinstance(tree, Mapping):
        return {name: _map(value, function) for name, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_map(value, function) for value in tree))
    return type(tree)(_map(value, function) for value in tree) if isinstance(tree, list | tuple) else tree


def _leaves(tree: Any) -> Iterator[Any]:
    """The tensors of a state, in the order of `_map`, and what else is in it."""
    if dataclasses.is_dataclass(tree):
        tree = [getattr(tree, f.name) for f in dataclasses.fields(tree) if f.init]
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        for value in tree:
            yield from _leaves(value)
    else:
        yield tree


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in _leaves(tree) if isinstance(x, Tensor)]


def _form(tree: Any) -> list[Any]:
    """All of a state but its tensors' values."""
    return [(x.shape, x.dtype, x.device) if isinstance(x, Tensor) else x for x in _leaves(tree)]


# One step as a program --------------------------------------------------------------------------------


class _Step(nn.Module):
    """A network whose call is its step, for `functional_call`."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.network.step(tokens, state)


def _compile(traced: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    """By inductor, without the checks of its inputs: there is one caller."""
    options = {"cpp.threads": torch.get_num_threads(), "size_asserts": False, "alignment_asserts": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch._inductor.compile(traced, inputs, options)


class _Program:
    """A compiled step for one token in a state of one form.

    Args:
        network: in evaluation mode.
        kernel: for its products.
        dtype: of the matrices that the kernel reads; the others, and all that is computed, stay float32.
        matrices: those that a step multiplies by.
        state: an example, which is overwritten.
        tokens: an example, int64 [1, 1].
    """

    def __init__(
        self, network: nn.Module, kernel: Product, dtype: torch.dtype, matrices: Sequence[Tensor], state: Any, tokens: Tensor
    ):  # fmt: skip
        from torch.fx.experimental.proxy_tensor import make_fx

        shell = _Step(network)
        named = dict((*shell.named_parameters(), *shell.named_buffers()))
        names, all_weights = list(named), [x.detach() for x in named.values()]
        number = {id(x): i for i, x in enumerate(named.values())}
        numbers = [number[id(matrix)] for matrix in matrices]
        other = [all_weights[i].to(dtype) for i in numbers] if dtype != torch.float32 else []
        self.changed: list[int] = []

        def step(*given: Tensor) -> list[Tensor]:
            weights, rest = given[: len(names)], given[len(names) :]
            narrow, (*held, token) = rest[: len(other)], rest[len(other) :]
            instead = {id(weights[i]): x for i, x in zip(numbers, narrow, strict=False)}
            parts = iter(held)
            with torch.no_grad(), _Products(kernel, instead):
                logits, after = torch.func.functional_call(
                    shell, dict(zip(names, weights, strict=True)), (token, _map(state, lambda _: next(parts)))
                )
            new = _tensors(after)
            self.changed = [i for i, (a, b) in enumerate(zip(held, new, strict=True)) if a is not b]
            return [logits, *(new[i] for i in self.changed)]

        self.fixed = [*all_weights, *other]
        example = [*self.fixed, *_tensors(state), tokens]
        traced = make_fx(step)(*example)
        # What the program does not read (a matrix that has a narrow copy) is no input of it.
        places = [node for node in traced.graph.nodes if node.op == "placeholder"]
        used = [bool(node.users) for node in places]
        for node, is_used in zip(places, used, strict=True):
            if not is_used:
                traced.graph.erase_node(node)
        traced.recompile()
        self.used = used[len(self.fixed) :]
        self.fixed = [x for x, is_used in zip(self.fixed, used, strict=False) if is_used]
        self.bytes = sum(x.numel() * x.element_size() for x in (other or matrices))
        self.run = _compile(traced, [x for x, is_used in zip(example, used, strict=True) if is_used])

    def __call__(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        held = _tensors(state)
        given = [x for x, is_used in zip((*held, tokens), self.used, strict=True) if is_used]
        logits, *new = self.run(*self.fixed, *given)
        for i, x in zip(self.changed, new, strict=True):
            held[i] = x
        parts = iter(held)
        return logits, _map(state, lambda _: next(parts))


class _Decoder:
    """`init_state` and `step` of a network with a program for single tokens."""

    def __init__(self, network: nn.Module, capacity: int, form: list[Any], program: _Program | None):
        self.network, self.capacity, self.form, self.program = network, capacity, form, program
        self.shapes = [entry[0] for entry in form if isinstance(entry, tuple)]

    def init_state(self, batch: int, capacity: int) -> Any:
        fits = self.program is not None and batch == 1 and capacity <= self.capacity
        return self.network.init_state(batch, self.capacity if fits else capacity)

    def step(self, tokens: Tensor, state: Any, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        if self.program is not None and lengths is None:
            if tokens.shape == (1, 1) and _form(state) == self.form:
                return self.program(tokens, state)
            if len(tokens) == 1 and [x.shape for x in _tensors(state)] == self.shapes:
                lengths = tokens.new_full((1,), tokens.shape[1])  # the state takes the form of the program's
        return self.network.step(tokens, state, lengths)


# The choice -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decoding:
    """What was chosen, and what was measured for it."""

    kernel: str
    """Of the products; "as it was" where nothing was quicker than the network."""
    dtype: str
    """Of the matrices."""
    capacity: int
    seconds: float
    """Median time of one step."""
    plain: float
    """The same of the original."""
    difference: float
    """Of the logits from the original's, relative to their largest value, over some steps."""
    tolerance: float
    bytes: int
    """Of the matrices that a step reads."""
    tried: Mapping[str, float | str] = field(default_factory=dict)
    """Precision and kernel -> seconds of all products of the commonest shape; or why it was not taken."""
    cached: bool = False
    """The choice was known: nothing but the difference was measured anew."""

    @property
    def times(self) -> float:
        """How many times as fast as the original."""
        return self.plain / self.seconds

    @property
    def bandwidth(self) -> float:
        """Bytes of matrices a second."""
        return self.bytes / self.seconds

    def as_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "times": self.times, "bandwidth": self.bandwidth}

    def __str__(self) -> str:
        return (
            f"{self.times:.2f} times as fast ({1 / self.plain:.3g} to {1 / self.seconds:.3g} tokens a second): {self.kernel}, "
            f"{self.dtype}, {self.bandwidth / 1e9:.3g} GB/s; logits differ by {self.difference:.2g} "
            f"(allowed {self.tolerance:g})"
        )


class _Trial:
    """One network and the programs that are tried for it."""

    def __init__(self, network: nn.Module, capacity: int, tolerance: float):
        self.network, self.capacity, self.tolerance = network, capacity, tolerance
        self.tried: dict[str, float | str] = {}
        self.difference = float("inf")
        device = next(network.parameters()).device
        self.tokens = torch.arange(CHECKED + 2, device=device)[None] % 2  # no vocabulary is smaller
        state = self.state()
        self.form = _form(state)
        self.matrices, after = _watch(network, self.tokens[:, 2:3], state)
        if _form(after) != self.form or not self.matrices:
            raise UsageError(
                f"{type(network).__name__}: its state changes its form from step to step, or nothing is multiplied"
            )

    def state(self) -> Any:
        """One that holds two tokens."""
        with torch.no_grad():
            state = self.network.init_state(1, self.capacity)
            return self.network.step(self.tokens[:, :2], state, self.tokens.new_full((1,), 2))[1]

    def rank(self, rounds: int) -> list[tuple[str, str]]:
        """Precisions and kernels, the quickest first, by the matrices of the shape that has the most bytes."""
        shapes: dict[Any, list[Tensor]] = {}
        for x in self.matrices:
            shapes.setdefault(x.shape, []).append(x.detach())
        most = max(shapes.values(), key=lambda group: sum(x.numel() for x in group))
        vector = torch.ones(most[0].shape[1], device=most[0].device) / most[0].shape[1]
        works: dict[str, Callable[[], Any]] = {}
        for name in DTYPES:
            if name == "bf16" and self.tolerance < NARROW:
                continue
            group = [x.to(DTYPES[name]) for x in most]
            for kernel, product in KERNELS.items():
                title = f"{name}, {kernel}"
                try:
                    works[title] = self._all(product, group, vector)
                    works[title]()
                except Exception as error:  # no compiler, no kernel: not for this machine
                    works.pop(title, None)
                    self.tried[title] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        times = alternate(works, rounds, warmup=1)
        found = {title: statistics.median(values) for title, values in times.items()}
        self.tried |= found
        return [tuple(title.split(", ")) for title in sorted(found, key=found.__getitem__)]  # type: ignore[misc]

    def _all(self, product: Product, group: Sequence[Tensor], vector: Tensor) -> Callable[[], Any]:
        """The products of all matrices of a shape; only sums need the compiler, in which the others stay what they are."""
        from torch.fx.experimental.proxy_tensor import make_fx

        def work(x: Tensor, *matrices: Tensor) -> list[Tensor]:
            return [product(matrix, x) for matrix in matrices]

        with torch.no_grad():
            run = work
            if product not in (_linear, _mv):
                run = _compile(make_fx(work)(vector, *group), [vector, *group])

        def once() -> Any:
            with torch.no_grad():
                return run(vector, *group)

        return once

    def enter(self, dtype: str, kernel: str) -> _Program | None:
        """The program, where it keeps to the tolerance."""
        title = f"{dtype}, {kernel}"
        try:
            program = _Program(
                self.network, KERNELS[kernel], DTYPES[dtype], self.matrices, self.state(), self.tokens[:, :1]
            )
            gap = self._gap(program)
        except Exception as error:
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            warnings.warn(f"optimize_for_decoding: {title} was left out ({reason})", RuntimeWarning, stacklevel=4)
            self.tried[title] = reason
            return None
        if not gap <= self.tolerance:
            self.tried[title] = f"logits differ by {gap:.2g}, more than {self.tolerance:g}"
            return None
        self.difference = gap
        return program

    def _gap(self, program: _Program) -> float:
        """The worst difference of logits over some steps, both given the same tokens."""
        worst, plain, ours = 0.0, self.state(), self.state()
        for i in range(2, CHECKED + 2):
            token = self.tokens[:, i : i + 1]
            with torch.no_grad():
                expected, plain = self.network.step(token, plain, None)
                found, ours = program(token, ours)
            gap = float((found.double() - expected.double()).abs().max() / expected.double().abs().max())
            worst = max(worst, gap if gap == gap else float("inf"))
        return worst

    def time(self, program: _Program | None, rounds: int) -> tuple[float, float]:
        """Seconds of one step by the program, and as it was: in a state without unused room."""
        fixed, exact = self.state(), self.network.init_state(1, CHECKED + 2)
        with torch.no_grad():
            exact = self.network.step(self.tokens[:, :CHECKED], exact, None)[1]
        token = self.tokens[:, :1]

        def plain() -> Any:
            with torch.no_grad():
                return self.network.step(token, exact, None)

        def ours() -> Any:
            with torch.no_grad():
                return program(token, fixed) if program else plain()

        times = alternate({"ours": ours, "plain": plain}, rounds, warmup=2)
        return statistics.median(times["ours"]), statistics.median(times["plain"])


def cache_file(network: nn.Module, capacity: int, tolerance: float) -> Path:
    """Where a choice is kept: $JINGDU_CACHE or ~/.cache/jingdu, `decoding`, and a hash of the network's structure (not its
    weights), the tolerance, torch, the machine and its threads."""
    device = next(network.parameters()).device
    made_of = {
        "network": [type(network).__module__, str(network)],
        "state": [(name, list(x.shape), str(x.dtype)) for name, x in network.state_dict().items()],
        "torch": torch.__version__,
        "machine": [machine(), torch.get_num_threads(), str(device)],
        "tolerance": [capacity, tolerance],
        "kernels": [*KERNELS],
    }
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:24]
    root = Path(os.environ.get("JINGDU_CACHE") or Path.home() / ".cache" / "jingdu").expanduser()
    return root / "decoding" / f"{key}.json"


def _known(path: Path) -> dict[str, Any] | None:
    """A choice that was kept; a file that says nothing is no choice."""
    try:
        table = json.loads(path.read_text("utf-8"))
        times = {name: float(table[name]) for name in ("seconds", "plain")}
        kept = {**times, "tried": dict(table["tried"]), "dtype": table["dtype"], "kernel": table["kernel"]}
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return kept if kept["dtype"] in DTYPES and kept["kernel"] in (*KERNELS, AS_IT_WAS) else None


def optimize_for_decoding(
    model: nn.Module,
    *,
    capacity: int = CAPACITY,
    tolerance: float = TOLERANCE,
    cache: bool = True,
    rounds: int = ROUNDS,
) -> nn.Module:
    """A copy of a network that makes one token after the other as fast as this machine allows.

    Args:
        model: a float32 network that generates; it stays as it is, and the copy shares its weights.
        capacity: tokens of prompt and continuation that the compiled step has room for. Attention looks at all of the
            room, so it should not be much more than is used; longer texts go on as they did.
        tolerance: largest difference of the logits from the original's, over their largest value. 0.02 lets weights in
            bf16 in (all else stays float32); 1e-4 keeps float32.
        cache: keep the choice, and use one that was kept for the same structure, torch and machine.
        rounds: steps that are timed.

    Returns a module of the same class whose `init_state` and `step` are quick for one row (`rnn.generate` and a paper's
    `predict` use them); `optimization` says what was chosen and measured. The prompt is read, and batches are made, by
    the original. Compilation takes some tens of seconds once, and a C++ compiler on a CPU. Raises UsageError for a
    network that does not generate or is not float32, and for numbers that make no sense.
    """
    if not 0 < tolerance < 1 or capacity <= CHECKED + 2:
        raise UsageError(
            f"capacity {capacity}, tolerance {tolerance}: room for more than {CHECKED + 2} tokens, and a share of the "
            "largest logit"
        )
    if not isinstance(model, nn.Module) or not hasattr(model, "init_state") or not hasattr(model, "step"):
        raise UsageError(
            f"a {type(model).__name__} does not make one token after the other: it has no init_state and step"
        )
    if hasattr(model, "optimization"):
        raise UsageError("this network is optimised already: give the original")
    if {x.dtype for x in model.parameters()} != {torch.float32}:
        raise UsageError("the network is not float32: give the float32 one, whose logits are what is kept to")
    capacity = min(capacity, getattr(model, "context", capacity))
    network = copy.copy(model).eval()
    path, trial = cache_file(network, capacity, tolerance), _Trial(network, capacity, tolerance)
    kept = _known(path) if cache else None
    program = trial.enter(kept["dtype"], kept["kernel"]) if kept and kept["kernel"] != AS_IT_WAS else None
    if kept and (program is not None or kept["kernel"] == AS_IT_WAS):
        found, trial.tried = kept, kept["tried"]
    else:
        kept, found, program = None, *_choose(trial, rounds)
        if cache:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, (json.dumps({**found, "tried": trial.tried}, indent=1) + "\n").encode())
    size = program.bytes if program else sum(x.numel() * x.element_size() for x in trial.matrices)
    decoder = _Decoder(network, capacity, trial.form, program)
    shell = copy.copy(network)  # shares its modules and tensors
    shell.init_state, shell.step = decoder.init_state, decoder.step
    shell.optimization = Decoding(
        found["kernel"],
        found["dtype"],
        capacity,
        found["seconds"],
        found["plain"],
        trial.difference if program else 0.0,
        tolerance,
        size,
        trial.tried,
        cached=kept is not None,
    )
    return shell


def _choose(trial: _Trial, rounds: int) -> tuple[dict[str, Any], _Program | None]:
    """The quickest program that keeps to the tolerance, if it is quicker than the network as it was."""
    for dtype, kernel in trial.rank(max(rounds // 2, 1)):
        # One that is out by its precision leaves no other of it.
        if any(
            name.startswith(f"{dtype}, ") and str(why).startswith("logits differ") for name, why in trial.tried.items()
        ):
            continue
        program = trial.enter(dtype, kernel)
        if program is not None:
            seconds, plain = trial.time(program, rounds)
            if seconds < plain:
                return {"dtype": dtype, "kernel": kernel, "seconds": seconds, "plain": plain}, program
            trial.tried[AS_IT_WAS] = plain
            break
    else:
        plain = trial.time(None, rounds)[1]
    return {"dtype": "float32", "kernel": AS_IT_WAS, "seconds": plain, "plain": plain}, None
