"""The verbs as functions: what the command line does, for programs."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jingdu import canon
from jingdu.engine import Recipe, Run, Stage, evaluate_system, load_system, read_recipe
from jingdu.engine import train as run_recipe
from jingdu.engine.checkpoint import newest_checkpoint
from jingdu.errors import Refused, UsageError, unknown
from jingdu.names import Call
from jingdu.prediction import Prediction, origin_of


def recipe(key: str, preset: str = "laptop") -> Recipe:
    """A paper's recipe. Raises UsageError for an unknown paper or preset."""
    recipes = canon.paper(key).load().recipes
    if preset not in recipes:
        raise unknown(f"preset of {key}", preset, recipes)
    return recipes[preset]


def with_variant(stage: Stage, variant: str) -> Stage:
    """The stage with another variant as its (first) network; the network's overrides stay."""
    card = canon.resolve(variant)
    name = next(iter(stage.networks))
    old = Call.parse(stage.networks[name])
    return dataclasses.replace(stage, networks={**stage.networks, name: str(Call(card.variant, old.arguments))})


def with_overrides(stage: Stage, overrides: Mapping[str, Any]) -> Stage:
    """The stage with other arguments of its (first) network's `build`."""
    name = next(iter(stage.networks))
    call = Call.parse(stage.networks[name]).with_arguments(**overrides)
    return dataclasses.replace(stage, networks={**stage.networks, name: str(call)})


def change(stage: Stage, **changes: Any) -> Stage:
    """A stage with changed fields; giving `epochs` removes `steps` and the other way round."""
    known = {field.name for field in dataclasses.fields(Stage)}
    for name in changes:
        if name not in known:
            raise unknown("recipe field", name, known)
    if changes.get("epochs") is not None and "steps" not in changes:
        changes["steps"] = None
    if changes.get("steps") is not None and "epochs" not in changes:
        changes["epochs"] = None
    return dataclasses.replace(stage, **changes)


def train(
    key: str,
    out: str | Path,
    preset: str = "laptop",
    variant: str | None = None,
    *,
    device: str = "auto",
    resume: bool = False,
    quiet: bool = False,
    tensorboard: bool = False,
    **changes: Any,
) -> Run:
    """Train a paper's recipe into the folder `out`; `changes` are fields of its (only) stage.

    Raises UsageError for what does not exist, and what `jingdu.engine.train` raises.
    """
    chosen = recipe(key, preset)
    if variant or changes:
        stages = [change(stage, **changes) for stage in chosen.stages]
        if variant:
            stages[-1] = with_variant(stages[-1], variant)
        chosen = dataclasses.replace(chosen, stages=tuple(stages))
    return run_recipe(chosen, Path(out), device=device, resume=resume, quiet=quiet, tensorboard=tensorboard)


def load(run: str | Path) -> Any:
    """The first network of a run folder, trained, in eval mode, with its `origin`."""
    checkpoint = newest_checkpoint(Path(run))
    if checkpoint is None:
        raise Refused(f"{run}: no run folder with a checkpoint")
    networks = json.loads((checkpoint / "model.json").read_text("utf-8"))["networks"]
    return canon.create(next(iter(networks.values()))["variant"], weights=run)


def predict(
    name: str, inputs: Sequence[str], weights: str | Path | None = None, *, optimize: bool = False, **options: Any
) -> Iterator[Prediction]:
    """Run a paper's `predict` on inputs (files, texts; none for a sampler).

    `optimize`: of a network that makes one token after the other, compile that step first (`optimize_for_decoding`).
    """
    found = canon.resolve(name)
    if weights is None and not found.paper.variants and not getattr(model := canon.create(name), "needs_weights", True):
        return found.paper.load().predict(model, list(inputs), **options)
    if weights is None:
        published = "; the card names published ones (--weights default)" if found.paper.weights else ""
        raise UsageError(
            f"{name} needs weights: a run folder (jingdu train {found.paper.key} --out RUN, then --weights RUN), "
            f"a file, hf:OWNER/NAME or URL#sha256=...{published}"
        )
    model = canon.create(name, weights=weights)
    if optimize:
        from jingdu.speed.decoding import optimize_for_decoding

        model = optimize_for_decoding(model)
    return found.paper.load().predict(model, list(inputs), **options)


def show_attention(
    name: str, inputs: Sequence[str], weights: str | Path | None, out: str | Path
) -> Iterator[Prediction]:
    """Where a network looks in images, as a picture: what a paper's `show_attention` draws.

    Raises UsageError for a paper without one, and without weights.
    """
    found = canon.resolve(name)
    draw = getattr(found.paper.load(), "show_attention", None)
    if draw is None:
        raise UsageError(f"{found.paper.key} draws no attention: vit does")
    if weights is None:
        raise UsageError(f"{name} needs weights to look at an image: --weights RUN, a file, hf:OWNER/NAME or default")
    return draw(canon.create(name, weights=weights), list(inputs), Path(out))


def evaluate(
    name: str, weights: str | Path, data: str | None = None, *, batch_size: int | None = None, device: str = "auto"
) -> dict[str, float]:
    """The measures of weights on data: a run on its own test split, any weights on data of yours.

    Raises UsageError where data are needed and not given, Refused where they do not fit.
    """
    from jingdu.engine.training import device_of

    place = device_of(device)
    found = canon.resolve(name)
    if (Path(weights) / "recipe.json").exists():
        stage = read_recipe(Path(weights))[-1]
        # The name must be one of the run's networks: a run of another paper is refused by `create`.
        model = canon.create(name, weights=weights)
        system = load_system(Path(weights))
    else:
        if data is None:
            raise UsageError("these weights say nothing of data: give --data FOLDER, a data set's name or hf:NAME")
        model = canon.create(name, weights=weights)
        preprocess = origin_of(model).preprocess
        default = found.paper.load().recipes["paper"].stages[-1]
        stage = dataclasses.replace(default, preprocess=preprocess or default.preprocess, precision="float32")
        from jingdu.engine.systems import build_system

        system = build_system(stage, {next(iter(stage.networks)): model})
    if data is not None:
        if data.endswith(".txt") and Path(data).is_file():  # all of it: nothing is trained on it here
            data = str(Call("text", {"path": data, "share": 1}))
        stage = dataclasses.replace(stage, eval_data=_as_trained(data, stage, model))
        _check_classes(stage, model)
    if batch_size is not None:
        stage = dataclasses.replace(stage, batch_size=batch_size)
    if hasattr(system, "to"):
        system.to(place)
    return evaluate_system(system, stage, place)


def _as_trained(data: str, stage: Stage, network: Any) -> str:
    """Text data for a network over tokens, through the data function that it was trained by and its own tokenizer."""
    call = Call.parse(stage.data)
    paper = call.name.partition(".")[0]
    if paper == call.name or "of" not in call.arguments or data.startswith(f"{paper}."):
        return data
    tokenizer = origin_of(network).tokenizer
    if tokenizer is None:
        raise UsageError(
            "these weights have no tokenizer beside them: give --data with one, as the paper's recipe does"
        )
    return str(call.with_arguments(of=data, vocabulary=str(tokenizer)))


def _check_classes(stage: Stage, network: Any) -> None:
    """Labels are compared by number, so the two lists of names must agree where both exist."""
    from jingdu.engine.training import open_source

    origin = getattr(network, "origin", None)
    classes = getattr(open_source(stage.eval_data or stage.data, "test", stage), "classes", None)
    if origin is None or origin.classes is None or classes is None:
        return
    if tuple(origin.classes) != tuple(classes):
        raise Refused(
            f"{stage.eval_data}: its classes {list(classes)[:5]}... are not the network's {list(origin.classes)[:5]}..."
        )


def reproduce(
    key: str,
    claim: str | None = None,
    *,
    seeds: int | None = None,
    out: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
    smoke: bool = False,
) -> list[Any]:
    """Test a paper's claims again; writes a report folder for each and returns the outcomes."""
    from jingdu.lab import Claim
    from jingdu.lab.run import run_claim

    card = canon.paper(key)
    module = canon.claims_module(card)
    found = {name: value for name, value in vars(module).items() if isinstance(value, Claim)}
    if claim is not None and claim not in found:
        raise unknown(f"claim of {key}", claim, found)
    if seeds is not None and seeds < 1:
        raise UsageError(f"seeds {seeds}: give 1 or more")
    root = Path(out) if out is not None else Path("results") / card.area / key
    chosen = [found[claim]] if claim else list(found.values())
    return [run_claim(c, seeds=seeds, out=root / c.name, smoke=smoke, progress=progress) for c in chosen]
