"""What the engine trains, on what, and by which recipe: the contracts between papers and engine.

- `System`: networks and their objectives; a gradient trains it.
- `Fitted`: a model that passes over the data make (counts, centroids); no gradient.
- `Rollout`: a source of experience that depends on the system itself (reinforcement learning).
- `Stage`, `Recipe`: the frozen description of a run. Every field is a flag of `jingdu train`.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from jingdu.data.preprocess import Preprocess
from jingdu.errors import UsageError

Batch = dict[str, Any]
"""Named tensors and lists whose first axis is the sample: image [batch, channels, height, width]..."""


@dataclass(frozen=True)
class Objective:
    """One loss of a system: whose parameters it moves, and how often.

    Within a step the objectives run in the order in which the system lists them.
    """

    name: str
    parameters: tuple[str, ...] = ("",)
    """Prefixes of the names of the parameters that this objective updates; "" is all of them."""
    updates: int = 1
    """Updates in a row within one step (k discriminator updates)."""
    every: int = 1
    """Run on steps 0, n, 2n, ... (a lazy regulariser has every=16)."""
    fresh: bool = True
    """Draw a new batch for each update, or go on with the previous objective's last one."""


class System(nn.Module):
    """What trains: networks, their objectives, and how the result is evaluated.

    Subclasses set `objectives`, write `forward`, and, for evaluation, `update` and `compute`.
    The networks are attributes under the names that the recipe gives them.
    """

    objectives: Sequence[Objective] = (Objective("loss"),)

    def forward(self, batch: Batch, objective: str) -> tuple[Tensor, dict[str, Any]]:
        """The scalar loss of `objective` on `batch`, and values to log."""
        raise TypeError(f"{type(self).__name__} defines no forward(batch, objective)")

    def after_update(self, objective: str) -> None:
        """Called after each update by `objective`: momentum encoders, queues, memory banks.

        Where parameters are sharded over processes it sees the shards, which may be combined elementwise; buffers
        are whole in each process, and what it writes into them is the same in all.
        """

    def call(self, function: Callable[[], Any]) -> Any:
        """`function()`, as a method: sharded parameters are whole during one, so it may use the networks directly."""
        return function()

    def update(self, batch: Batch) -> None:
        """Take one evaluation batch into account (eval mode, no gradients)."""

    def compute(self) -> dict[str, float]:
        """The measures over all batches since the last `compute`; resets them."""
        return {}


@runtime_checkable
class Fitted(Protocol):
    """A model without gradients. `state_dict` may nest dicts and lists of tensors, numbers, text."""

    passes: int
    """How many times the data are read."""

    def observe(self, batch: Batch, number: int) -> dict[str, Any]:
        """Take one batch of pass `number` into account; returns values to log."""
        ...

    def end_pass(self, number: int) -> None:
        """Called when pass `number` (from 0) is over."""
        ...

    def update(self, batch: Batch) -> None: ...

    def compute(self) -> dict[str, float]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> Any: ...


@runtime_checkable
class Rollout(Protocol):
    """Experience instead of a data set: batches that the system's own play produces."""

    steps_per_epoch: int

    def play(self, system: nn.Module) -> Batch:
        """The next batch. All randomness and position is in the state."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> Any: ...


_TINY = math.ulp(0.0)
_BOUNDS: dict[str, tuple[float, float]] = {
    "workers": (0, 64),
    "batch_size": (1, math.inf),
    "repeats": (1, 64),
    "epochs": (_TINY, sys.float_info.max),
    "steps": (1, math.inf),
    "lr": (0, sys.float_info.max),
    "momentum": (0, 1),
    "eps": (0, 1),
    "weight_decay": (0, sys.float_info.max),
    "accumulate": (1, math.inf),
    "clip": (_TINY, math.inf),
    "ema": (0, 1),
    "seed": (0, 2**63 - 1),
    "evaluate_every": (1, math.inf),
    "save_every": (1, math.inf),
    "keep": (2, math.inf),
}
"""A stage's field -> its smallest and its largest value."""


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe. Names of networks, data and functions are calls written as text
    (`"resnet20_cifar(width=8)"`, `"alexnet.pca_colour_shift"`); see `jingdu.names`."""

    name: str = "train"
    method: Literal["train", "fit"] = "train"
    """train: by gradient; fit: passes over the data."""
    system: str = "classification"
    """A ready objective (classification, language_modelling) or a paper's class: gan.GAN(...)."""
    networks: Mapping[str, str] = field(default_factory=dict)
    """The system's networks: its argument name -> variant(overrides)."""

    data: str = "digits"
    """Embedded data by name, a folder, hf:OWNER/NAME, or a paper's Rollout."""
    eval_data: str | None = None
    """Data for evaluation; by default the test split of `data`."""
    preprocess: Preprocess = field(default_factory=Preprocess)
    """Size, crop and normalisation: saved with the weights."""
    crop: str | None = None
    """Per-image training crop while decoding: vgg.scale_jitter(low=256, high=480)."""
    augment: tuple[str, ...] = ()
    """Functions on training batches, in order: resnet.pad_crop(padding=4) flip."""
    on_corrupt: Literal["stop", "skip"] = "stop"
    """What a damaged image does: end the run with its path, or be left out with a warning."""
    workers: int = 0
    """Threads that prepare batches ahead. The batches do not depend on it."""

    batch_size: int = 128
    """Samples per update, over all accumulation parts."""
    repeats: int = 1
    """Copies of each image in a batch, each augmented in its own way (deit): as many steps an epoch, on fewer images."""
    epochs: float | None = None
    """Length as passes over the data; give this or `steps`."""
    steps: int | None = None
    """Length in steps."""

    optimizer: Literal["sgd", "adam", "adamw", "adadelta", "rmsprop", "lars"] = "sgd"
    lr: float = 0.1
    """The schedule's peak learning rate."""
    momentum: float = 0.9
    """SGD's, LARS' and RMSProp's momentum; Adadelta's rho."""
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's; the second is RMSProp's decay."""
    eps: float = 1e-8
    bias_correction: bool = True
    """Adam's and AdamW's averages are divided by what they lack in the first steps; BERT's released optimiser does not."""
    weight_decay: float = 0.0
    decay: Literal["all", "matrices", "dense"] = "matrices"
    """Which parameters decay: all, only those with two axes or more (no biases, no norms), or of these no depthwise kernels.

    Of matrices those are left out that their module calls `undecayed`."""
    schedule: str = "constant"
    """constant, step, multistep, cosine, onecycle, linear, inverse_sqrt, exponential, with their arguments."""
    per_objective: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Optimiser fields that differ for one objective: {"generator": {"lr": 1e-4}}."""

    precision: Literal["float32", "bf16", "float64"] = "float32"
    """bf16 is autocast: weights and optimiser stay float32."""
    accumulate: int = 1
    """Split each batch into this many parts and add their gradients."""
    clip: float | None = None
    """Largest norm of an objective's gradient."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, used for evaluation and prediction."""
    compile: bool = False
    checkpoint_activations: bool = False
    """Recompute the networks' blocks in the backward pass instead of storing them."""
    channels_last: bool = False

    seed: int = 0
    evaluate_every: int | None = None
    """Steps between evaluations; by default only at the end."""
    save_every: int = 500
    """Steps between checkpoints."""
    keep: int = 2
    """Complete checkpoints that stay on disk (at least 2)."""

    def __post_init__(self) -> None:
        """Raises UsageError for a value that no training can have."""
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                least = "above 0" if low == _TINY else f"at least {low:g}"
                wanted = f"from {low:g} to {high:g}" if high <= 64 else f"{least} and finite"
                raise UsageError(f"{name.replace('_', '-')} is {value}: it must be {wanted}")
        if self.repeats > 1 and self.method == "fit":
            raise UsageError("repeats are for training by gradient: passes over the data read each sample once")
        for objective, changes in self.per_objective.items():
            if strange := set(changes) - {field.name for field in fields(self)}:
                raise UsageError(f"per-objective {objective}: a stage has no field {sorted(strange)[0]!r}")


@dataclass(frozen=True)
class Recipe:
    """How to train a paper's system from nothing, and what to expect of it."""

    stages: tuple[Stage, ...]
    minutes: float
    """Wall time on `machine`."""
    expect: Mapping[str, tuple[float, float]]
    """Evaluation measure -> the interval in which it should end."""
    machine: str = "2 CPU cores"
    about: str = ""
