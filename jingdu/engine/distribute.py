"""Several processes train one system: each takes a share of every batch, and gradients are averaged.

A global batch is cut into size x accumulate parts of neighbouring samples; process r takes the r-th run of parts. A
part's random numbers are a function of (seed, step, objective, update, part), so that N processes with A parts
each do the same work as one process with N x A parts.

`ddp` keeps the whole system in every process (torch's DistributedDataParallel); `fsdp` shards parameters,
gradients and optimiser state (FSDP2, `fully_shard`). `torchrun -m jingdu train ...` starts the processes;
`jingdu.engine.launch` does so for tests, claims and `predict`.
"""

import inspect
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jingdu.errors import Interrupted, JingduError, UsageError
from jingdu.limits import GROUP_SECONDS, SAVE_SECONDS

Parallel = Literal["ddp", "fsdp"]


class World:
    """This process among its equals; alone, every method is a plain local one."""

    def __init__(self, rank: int = 0, size: int = 1, parallel: Parallel = "ddp", device: str = "auto"):
        self.rank, self.size, self.device = rank, size, device
        self.shard = size > 1 and parallel == "fsdp"
        self.parallel: Parallel = parallel
        self.first = rank == 0
        if size > 1:
            # While the first process writes a checkpoint, the others wait here and not in a reduction.
            self._patient = dist.new_group(backend="gloo", timeout=timedelta(seconds=SAVE_SECONDS))
            self._peers = self.gather((os.uname().nodename, os.getpid()))

    # What the processes tell each other -----------------------------------------------------------

    def gather(self, value: Any) -> list[Any]:
        """Every process's small plain value, by rank."""
        found = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(found, value)
        return found

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """The sums over the processes, in float64."""
        if self.size == 1:
            return list(numbers)
        vector = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(vector)
        return vector.tolist()

    def any(self, value: bool) -> bool:
        """Whether it is true in some process."""
        return self.sum([float(value)])[0] > 0

    def wait(self) -> None:
        """Until every process is here; a slow disk may take its time."""
        if self.size > 1:
            dist.barrier(self._patient)

    def together(self, function: Callable[[], Any]) -> Any:
        """What `function` gives here, once it has ended well everywhere. Its error stops all; the lowest rank speaks."""
        result, problem = None, None
        try:
            result = function()
        except JingduError as error:
            problem = error
        found = self.gather(problem and (str(problem), problem.exit_code))
        failed = [rank for rank, entry in enumerate(found) if entry is not None]
        if not failed:
            return result
        if problem is None:
            text, code = found[failed[0]]
            problem = JingduError(f"rank {failed[0]}: {text}")
            problem.exit_code = code
        problem.silent = self.rank != failed[0]
        raise problem

    def from_first(self, function: Callable[[], Any]) -> Any:
        """What `function` gives in the first process, which alone runs it: a small plain value."""
        return self.gather(self.together(function if self.first else lambda: None))[0]

    # How the system is divided --------------------------------------------------------------------

    def share(self, count: int) -> slice:
        """This process's part of `count` samples."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def prepare(self, system: nn.Module) -> None:
        """Shard the system in place: every block of a Sequential or ModuleList, then the rest."""
        if not self.shard:
            return
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        scalars = {p for p in system.parameters() if p.ndim == 0}  # FSDP2 cannot cut a scalar: each process keeps it
        for block in reversed(blocks(system)):  # inner ones first
            if any(p not in scalars for p in block.parameters()):
                fully_shard(block, ignored_params=scalars)
        fully_shard(system, ignored_params=scalars)
        register_fsdp_forward_method(system, "call")

    def wrap(self, system: nn.Module, mine: Sequence[Tensor]) -> nn.Module:
        """The system as its objective calls it: a backward pass leaves averaged gradients in the parameters `mine`."""
        if self.size == 1 or self.shard:
            return system
        with only(mine, system):
            kind = nn.parallel.DistributedDataParallel
            ids = [mine[0].device.index] if mine[0].is_cuda else None
            # Buffers are ours to keep equal; the argument's first name is deprecated.
            newer = "forward_sync_buffers" in inspect.signature(kind).parameters
            quiet = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
            return kind(system, device_ids=ids, find_unused_parameters=True, gradient_as_bucket_view=True, **quiet)

    @contextmanager
    def backward(self, wrapped: nn.Module, mine: Sequence[Tensor], last: bool) -> Iterator[None]:
        """Around forward and backward of one part: gradients are exchanged with the last one alone."""
        if self.shard:
            wrapped.set_requires_gradient_sync(last)
        quiet = self.size > 1 and not self.shard and not last
        with wrapped.no_sync() if quiet else nullcontext():
            yield
        if self.shard and last:
            for p in mine:
                if p.ndim == 0 and p.grad is not None:
                    dist.all_reduce(p.grad)
                    p.grad /= self.size

    def owner(self, system: nn.Module, mine: Sequence[Tensor]) -> AbstractContextManager[None]:
        """While one of several players moves: the others' weights get no gradient."""
        return _cleared(mine, system) if self.shard else only(mine, system)

    def norm(self, grads: Sequence[Tensor]) -> float:
        """The 2-norm of all gradients together."""
        if not self.shard:
            return torch.nn.utils.get_total_norm(grads).item()
        norms = [local(g).double().square().sum().item() for g in grads]
        whole = sum(value for value, g in zip(norms, grads, strict=True) if g.ndim == 0)
        cut = sum(value for value, g in zip(norms, grads, strict=True) if g.ndim > 0)
        return (self.sum([cut])[0] + whole) ** 0.5

    def average_statistics(self, system: nn.Module) -> None:
        """The running averages of batch norms, which each process took of its own parts, become their mean."""
        if self.size == 1:
            return
        norms = [m for m in system.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        found = [t for m in norms for t in (m.running_mean, m.running_var) if t is not None]
        if found:
            flat = torch.cat([t.flatten() for t in found])
            dist.all_reduce(flat)
            for t, mean in zip(found, (flat / self.size).split([t.numel() for t in found]), strict=True):
                t.copy_(mean.view_as(t))

    def call(self, system: nn.Module, function: Callable[[], Any]) -> Any:
        """`function()`, which uses the system's networks directly and not through its forward."""
        if not self.shard:
            return function()
        from torch.distributed.fsdp import FSDPModule

        try:
            return system.call(function)
        finally:
            for module in system.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    def whole(self, tree: Any) -> Any:
        """A tree of state with every sharded tensor put together; all processes must ask at once."""
        if isinstance(tree, Mapping):
            return {key: self.whole(value) for key, value in tree.items()}
        if isinstance(tree, list | tuple):
            return [self.whole(value) for value in tree]
        return tree.full_tensor() if is_sharded(tree) else tree


def is_sharded(value: Any) -> bool:
    """Whether a value is one process's shard of a tensor (a DTensor)."""
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that is in this process."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def shard_like(value: Any, parameter: Tensor | None) -> Any:
    """A whole tensor cut as the parameter is; anything of another shape stays."""
    if not (is_sharded(parameter) and isinstance(value, Tensor) and value.shape == parameter.shape):
        return value
    from torch.distributed.tensor import distribute_tensor

    value = value.to(parameter.device)
    # Every process has read the same file: nothing needs to be sent.
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def blocks(system: nn.Module) -> list[nn.Module]:
    """The units that are recomputed or sharded: children of a Sequential or ModuleList that have children themselves."""
    inside = [m for m in system.modules() if isinstance(m, nn.Sequential | nn.ModuleList)]
    return [child for m in inside for child in m.children() if any(True for _ in child.children())]


@contextmanager
def only(mine: Sequence[Tensor], system: nn.Module) -> Iterator[None]:
    """Only `mine` of the system's parameters require gradients; the others' backward work is saved."""
    owned = set(map(id, mine))
    others = [p for p in system.parameters() if id(p) not in owned and p.requires_grad]
    for p in others:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in others:
            p.requires_grad_(True)


@contextmanager
def _cleared(mine: Sequence[Tensor], system: nn.Module) -> Iterator[None]:
    """As `only`, where a parameter's requires_grad may not change: what the others were given is thrown away."""
    yield
    owned = set(map(id, mine))
    for p in system.parameters():
        if id(p) not in owned:
            p.grad = None


# Entering and leaving -------------------------------------------------------------------------------


_kept: list[Any] = []
"""The groups of the last job. A group waits for its threads when it goes, and one of those may wait for Python's lock:
Python lets go of the lock then, but a DDP wrapper that outlives `join` and holds the last reference would not."""


@contextmanager
def join(parallel: str | None = None, device: str = "auto") -> Iterator[World]:
    """The world that torchrun's environment describes, or the group that is there already; else one process.

    A process that dies ends the others within seconds, with its rank named (Interrupted).
    Raises UsageError for an unknown `parallel`, or more processes than GPUs.
    """
    if parallel not in (None, "ddp", "fsdp"):
        raise UsageError(f"parallel is {parallel!r}: it must be ddp or fsdp")
    mode: Parallel = "fsdp" if parallel == "fsdp" else "ddp"
    inside = dist.is_available() and dist.is_initialized()
    if not inside and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World(parallel=mode, device=device)
        return
    try:
        with _ends_at_once():
            if not inside:
                start_group(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
            world = World(dist.get_rank(), dist.get_world_size(), mode, _own_device(device))
            _kept[:] = [dist.group.WORLD, world]
        with _watch(world):
            yield world
            world.wait()  # the first process may hold the store that the others still need
    finally:
        if not inside and dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _ends_at_once() -> Iterator[None]:
    """While the processes meet, and nothing has begun, SIGINT and SIGTERM end this one in the middle of its wait.

    A handler of Python's would be called only when the others have come, or after the group's time is up. Raises
    Interrupted where they do not come.
    """
    old: dict[int, Any] = {}
    with suppress(ValueError):  # not in the main thread: the caller owns the signals
        for number in (signal.SIGINT, signal.SIGTERM):
            old[number] = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    except RuntimeError as error:
        if not _is_connection(error):
            raise
        first = (str(error).strip().splitlines() or [""])[0]
        raise Interrupted(f"the processes of the job did not all come ({first}); go on with --resume") from error
    finally:
        for number, handler in old.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def start_group(rank: int, size: int, store: Any = None) -> None:
    """Join the process group: gloo between CPUs, NCCL between GPUs; on one machine, over its loopback alone."""
    alone = store is not None or os.environ.get("LOCAL_WORLD_SIZE") == str(size)
    if alone and os.path.exists("/sys/class/net/lo"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if alone and store is None and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # The launcher's store outlives a restart, and would give out the addresses of the processes before it.
        whole = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", whole)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=size, store=store, timeout=timedelta(seconds=GROUP_SECONDS))


def _own_device(device: str) -> str:
    """This process's device: its own GPU where GPUs are asked for or found."""
    number = int(os.environ.get("LOCAL_RANK", dist.get_rank()))
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        if number >= torch.cuda.device_count():
            raise UsageError(f"process {number} has no GPU of its own: {torch.cuda.device_count()} here; start fewer")
        torch.cuda.set_device(number)
        return f"cuda:{number}"
    return device


@contextmanager
def _watch(world: World) -> Iterator[None]:
    """Turns a broken connection into the name of the process that broke it."""
    with _Watcher(world) as watcher:
        try:
            yield
        except RuntimeError as error:  # gloo's and NCCL's errors
            if not _is_connection(error):
                raise
            with suppress(ValueError):  # the launcher asks the others to end, which this one is about to do
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            gone = watcher.gone()
            alive = [rank for rank in range(world.size) if rank not in gone]
            names = ", ".join(f"rank {rank} ({what})" for rank, what in gone.items()) or "a process on another machine"
            stop = Interrupted(f"{names}: the other processes cannot go on without it; go on with --resume")
            stop.silent = world.rank != min(alive)
            time.sleep(_LEAVE_SECONDS)
            raise stop from error


_TOGETHER_SECONDS, _LEAVE_SECONDS = 0.2, 0.4
"""Processes that end this soon after the first one are named with it; who noticed leaves later than that."""


class _Watcher:
    """Hears, in a thread, which processes on this machine end first: the others end because of them.

    A process may notice by the end of one that noticed before it, so afterwards it is too late to look.
    """

    def __init__(self, world: World):
        here = os.uname().nodename
        self.pids = {r: pid for r, (machine, pid) in enumerate(world._peers) if machine == here and r != world.rank}
        self._first: list[int] = []
        self._heard = threading.Event()
        self._awake, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._listen, daemon=True, name="jingdu-peers")

    def __enter__(self) -> "_Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._wake)
        self._thread.join()

    def _listen(self) -> None:
        poll, ranks = select.poll(), {}
        poll.register(self._awake, select.POLLHUP)
        try:
            for rank, pid in self.pids.items():
                try:
                    ranks[descriptor := os.pidfd_open(pid)] = rank
                    poll.register(descriptor, select.POLLIN)
                except ProcessLookupError:
                    self._first.append(rank)
                except (AttributeError, OSError):  # not on this system
                    continue
            if not self._first and self._awake in dict(poll.poll()):
                return
            time.sleep(_TOGETHER_SECONDS)
            self._first += [ranks[descriptor] for descriptor, _ in poll.poll(0) if descriptor in ranks]
            self._heard.set()
        finally:
            for descriptor in (*ranks, self._awake):
                os.close(descriptor)

    def gone(self) -> dict[int, str]:
        """The processes on this machine that hang or have died first, by rank; one that was killed may take a moment."""
        if stopped := [rank for rank, pid in self.pids.items() if _is_stopped(pid)]:
            return {rank: f"process {self.pids[rank]} is stopped" for rank in stopped}
        self._heard.wait(1.0)
        return {rank: f"process {self.pids[rank]} was killed or has died" for rank in sorted(self._first)}


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False


def _is_connection(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        word in text for word in ("connection", "timed out", "pair closure", "gloo", "peer", "nccl")
    )
