"""What is said, and kept, when a number or the memory gives out: the message names the cause and the remedy.

A NaN or an infinity in loss or gradient ends the run before anything is updated. RUN/trouble/step-N then holds
the weights, the batch and the place in the run that all random numbers follow from: `jingdu doctor FOLDER` does that
step again and names the first module whose output is not finite.
"""

import dataclasses
import resource
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jingdu.engine.checkpoint import newest_checkpoint, verify, write_checkpoint
from jingdu.engine.state import read_tree, tree_bytes
from jingdu.errors import JingduError, Refused, TrainingFailed, is_out_of_memory
from jingdu.limits import MEMORY_SHARE, TROUBLE_KEPT


def explain(training: Any, folder: Path, error: Exception) -> JingduError | None:
    """The error to raise instead of `error`, if it is of a kind that is known here."""
    if isinstance(error, FloatingPointError):
        return _not_finite(training, folder, error)
    if is_out_of_memory(error):
        return _out_of_memory(training, folder, error)
    return None


def _said(training: Any, text: str) -> TrainingFailed:
    failed = TrainingFailed(text)
    failed.silent = not training.world.first
    return failed


def _last_good(folder: Path) -> str:
    try:
        return f"Last good checkpoint: {newest_checkpoint(folder, warn=lambda _: None) or 'none yet'}."
    except Refused as error:
        return f"No good checkpoint: {error}."


# Numbers that are not finite -----------------------------------------------------------------------


def _not_finite(training: Any, folder: Path, error: FloatingPointError) -> TrainingFailed:
    """Nothing was updated by it and no checkpoint was rotated."""
    position = getattr(training.stream, "position", None)
    where = f", batch {position - 1}" if position is not None else ""
    if training.current is None:  # a pass over the data, or the weights that were to be saved
        return _said(training, f"step {training.step}{where}: {error}. It was not saved. {_last_good(folder)}")
    try:
        kept = f"Look with `jingdu doctor {training.world.from_first(_dump(training, folder))}`. "
    except Refused as problem:
        kept = f"The step could not be kept ({problem}). "
    return _said(
        training,
        f"step {training.step + 1}{where}: {error}. Nothing was updated. {_last_good(folder)} {kept}"
        "Lower --lr, use --clip, or look at that batch",
    )


def _dump(training: Any, folder: Path) -> Any:
    """What writes weights, batch and place; every process of a job gives its share of the batch."""
    objective, batch, whole, place = training.current
    # NCCL and gloo both send bytes; a step's batches are small beside what they were trained with.
    batches = training.world.gather(tree_bytes(batch))
    weights = training.world.whole(training.system.state_dict())
    about = {
        "stage": dataclasses.asdict(training.stage),
        "objective": objective.name,
        "samples": whole,
        "place": list(place),
        "step": training.step,
    }

    def write() -> str:
        files = {f"batch-{rank}.safetensors": content for rank, content in enumerate(batches)}
        files["model.safetensors"] = tree_bytes(weights)
        return str(write_checkpoint(folder / "trouble", training.step + 1, files, TROUBLE_KEPT, about))

    return write


def check_finite(training: Any) -> None:
    """Before a checkpoint is written: raises FloatingPointError for weights that are not finite."""
    bad = _first_bad(training.system.named_parameters())
    if training.world.any(bad is not None):
        raise FloatingPointError(f"after the update, the weights of {bad or 'another process'} are not finite")


def _first_bad(named: Iterable[tuple[str, Tensor]]) -> str | None:
    from jingdu.engine.distribute import local

    named = [(name, local(x.detach())) for name, x in named]
    if not named or bool(torch.stack([x.abs().sum().isfinite() for _, x in named]).all()):
        return None
    # The sum of finite numbers may overflow: only now is every one looked at.
    return next((name for name, x in named if not x.isfinite().all()), None)


def replay(folder: Path, device: str = "cpu") -> str:
    """Do the step of RUN/trouble/step-N again; says what is not finite there first.

    Raises Refused for a folder that is no such thing or was changed.
    """
    from jingdu.engine.loop import load_earlier, stage_from_json
    from jingdu.engine.training import Training, to_device

    about = verify(folder)
    if "objective" not in about:
        raise Refused(f"{folder}: this is no folder of a step that failed (RUN/trouble/step-N)")
    names = sorted((n for n in about["files"] if n.startswith("batch-")), key=lambda n: int(n[6:].partition(".")[0]))
    batches = [read_tree(folder / name) for name in names]
    batch = {k: _join([part[k] for part in batches]) for k in batches[0]}
    stage = stage_from_json(about["stage"])
    # The parts of several processes are done one after the other: the same samples with the same random numbers.
    stage = dataclasses.replace(stage, accumulate=stage.accumulate * len(batches), compile=False, workers=0)
    training = Training(stage, torch.device(device), load_earlier(folder.parents[1], stage, torch.device(device)))
    training.system.load_state_dict(read_tree(folder / "model.safetensors"))
    training.system.train()
    training.step = about["step"]
    objective = next(o for o in training.system.objectives if o.name == about["objective"])
    lines = [f"step {training.step + 1}, objective {objective.name}, {about['samples']} samples"]
    lines += [f"the batch's {k}: {_bad(v)}" for k, v in batch.items() if isinstance(v, Tensor) and _bad(v)]
    if name := _first_bad(training.system.named_parameters()):
        lines.append(f"the weights of {name} are not finite already")
    first: list[str] = []
    for name, module in training.system.named_modules():
        module.register_forward_hook(lambda _m, x, y, name=name: first.append(name) if _any_bad(y) else None)
    try:
        training._update(
            objective, to_device(batch, torch.device(device), stage), about["samples"], tuple(about["place"])
        )
        lines.append("this time everything is finite: the cause is not in weights, batch or random numbers")
    except FloatingPointError as error:
        gradients = ((name, p.grad) for name, p in training.system.named_parameters() if p.grad is not None)
        where = f"the first output that is not finite: {first[0] or 'the loss'}" if first else None
        lines.append(where or f"every output is finite; the first gradient that is not: {_first_bad(gradients)}")
        lines.append(str(error))
    finally:
        training.stream.close()
    return "\n".join(lines)


def _join(parts: list[Any]) -> Any:
    return torch.cat(parts) if isinstance(parts[0], Tensor) else [x for part in parts for x in part]


def _bad(x: Tensor) -> str:
    rows = (~x.isfinite()).flatten(1).any(1).nonzero().flatten().tolist() if x.ndim > 1 else []
    count = int((~x.isfinite()).sum())
    return f"{count} of {x.numel()} values are not finite (rows {', '.join(map(str, rows[:8]))})" if count else ""


def _any_bad(output: Any) -> bool:
    from torch.utils._pytree import tree_leaves

    return any(isinstance(x, Tensor) and x.is_floating_point() and not x.isfinite().all() for x in tree_leaves(output))


# Memory ----------------------------------------------------------------------------------------------


def _out_of_memory(training: Any, folder: Path, error: Exception) -> TrainingFailed:
    """The batch is never changed for the user; what fits is found out by trying smaller parts of it."""
    stage, current, peak = training.stage, training.current, _peak(training.device)
    problem = (str(error).strip().splitlines() or ["out of memory"])[0]
    # Frames of the failed step hold its activations.
    traceback.clear_frames(error.__traceback__)
    error.__traceback__ = None
    text = f"step {training.step + 1}: out of memory on {training.device} ({problem}). Peak {_size(peak)}"
    if not training.is_fit:
        text += f"; model {_size(_model_bytes(training))} with gradients and optimiser state"
    advice = "give it more memory, or fewer --workers"
    if current is not None:
        part = -(-current[2] // (stage.accumulate * training.world.size))
        each = _release_and_measure(training)
        if each is not None:
            text += f"; activations about {_size(each * part)} for {part} samples at a time, {_size(each)} each"
        fits = _fitting(training, part, each)
        if fits:
            parts = -(-current[2] // (fits * training.world.size))
            advice = (
                f"{fits} samples at a time fit: --resume --accumulate {parts} goes on in parts (batch norm then sees "
                f"each part alone), or start a new run with --batch-size {fits * training.world.size}"
            )
    return _said(training, f"{text}. {_last_good(folder)} {advice[0].upper()}{advice[1:]}")


def _model_bytes(training: Any) -> int:
    """Weights, buffers, averages, gradients, and optimiser state (its final size, before the first step too)."""
    modules = [m for m in (training.system, training.average) if m is not None]
    fixed = sum(_bytes(x) for m in modules for x in (*m.parameters(), *m.buffers()))
    moved = [p for o in training.system.objectives for p in training._moved_by(o)]
    copies = {"sgd": 1 if training.stage.momentum else 0}.get(training.stage.optimizer, 2)
    return fixed + (1 + copies) * sum(map(_bytes, moved))


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _release_and_measure(training: Any) -> float | None:
    """Let the failed step go; then the bytes that the forward pass of one sample keeps for the backward pass."""
    objective, batch, _, _ = training.current
    training.system.zero_grad(set_to_none=True)
    if training.device.type == "cuda":
        torch.cuda.empty_cache()
    if training.world.size > 1:  # the others are not here to answer
        return None
    rows = {k: v[:2] for k, v in batch.items()}
    own = {x.untyped_storage().data_ptr() for x in (*training.system.parameters(), *training.system.buffers())}
    seen: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return x

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = training.system(rows, objective.name)[0]
        del loss
    except (RuntimeError, MemoryError, ValueError, IndexError):  # not even two samples, or it takes no two
        return None
    return sum(seen.values()) / len(next(iter(rows.values())))


def _fitting(training: Any, part: int, each: float | None) -> int:
    """The most samples at a time, by halving, with which a step goes through; 0 where not even one does."""
    _, batch, _, place = training.current
    size = part // 2
    if training.world.size > 1:
        return size
    free = _free(training.device)
    if each and free is not None:  # without a limit of its own the system would rather kill us than say no
        size = min(size, max(int(MEMORY_SHARE * free / (2 * each)), 1))
    training.stage = dataclasses.replace(training.stage, accumulate=1)
    while size:
        rows = {k: v[:size] for k, v in batch.items()}
        try:
            for o in training.system.objectives:
                training._update(o, rows, size, place)
            return size
        except FloatingPointError:  # this one is about memory
            return size
        except (RuntimeError, MemoryError, ValueError) as error:
            traceback.clear_frames(error.__traceback__)
            training.system.zero_grad(set_to_none=True)
            size //= 2
    return 0


def _peak(device: torch.device) -> int:
    """Most bytes in use so far: on the device, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _free(device: torch.device) -> int | None:
    """Bytes that can still be had, where that is known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            free = min(free, limit - used)
        return max(free, 0)
    except (OSError, ValueError, KeyError):
        return None


def _size(count: float) -> str:
    """Bytes for people: 1.5 GB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
