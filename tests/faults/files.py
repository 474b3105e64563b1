"""Rows 6, 9 and 14: files that attack, files that changed, and weights whose keys are not the network's."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from jingdu import canon
from jingdu.engine.checkpoint import MANIFEST, newest_checkpoint, verify, write_checkpoint
from jingdu.engine.loop import load_system
from jingdu.engine.state import pack, read_tree, tree_bytes
from jingdu.errors import JingduError, Refused
from jingdu.weights import export
from jingdu.weights.tables import OWN, tables
from tests.faults.case import Case
from tests.faults.nursery import ROOT, call
from tests.faults.work import FAMILIES
from tests.weights import hostile

# Files that attack ------------------------------------------------------------------------------------


def attacks(count: int, numbers: random.Random, folder: Path) -> Iterator[Case]:
    """Row 6: `jingdu predict --weights FILE` for each file of the corpus: one message, exit 4, nothing runs or swells."""
    corpus, image = folder / "corpus", folder / "x.png"
    corpus.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        hostile.make(corpus)
    Image.new("RGB", (9, 9)).save(image)
    sources = sorted(corpus.iterdir())
    for path in _some(sources, count, numbers):
        started = time.monotonic()
        child = call("work:hostile", str(path), str(image), output=folder / "said.txt")
        seconds, said = time.monotonic() - started, child.said
        size = sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
        peak = int(re.findall(r"^peak (\d+)$", said, re.M)[-1]) if "peak " in said else 0
        lines = [line for line in said.splitlines() if not line.startswith("peak ")]
        ran = (corpus / hostile.MARKER).exists()
        ok = child.code == 4 and len(lines) == 1 and path.name in lines[0] and "a fault of ours" not in lines[0]
        ok = ok and not ran and seconds <= 5 and 0 < peak <= 2 * size + 200e6
        yield Case(ok, seconds, f"{path.name}: exit {child.code}, ran: {ran}, {seconds:.1f} s, {peak:,}: {said[-300:]}")
        (folder / "said.txt").unlink()


def _some(places: list[Any], count: int, numbers: random.Random) -> list[Any]:
    return places if count >= len(places) else numbers.sample(places, count)


# Files that changed -------------------------------------------------------------------------------------


def silent_damage(count: int, numbers: random.Random, folder: Path) -> Iterator[Case]:
    """Row 9: one byte is flipped in each file that an installed package ships or that a cache holds."""
    shipped = _shipped(folder)
    yield Case(len(shipped) >= 9, what=f"only {len(shipped)} shipped files are read: {shipped}")
    checks: list[Callable[[], Case]] = [lambda path=path, data=data: _damaged_package(path, data, numbers, folder)
                                        for path, data in shipped]  # fmt: skip
    for check in _some(checks, count // 4, numbers):
        yield check()
    for kind in ("lab", "url", "hub"):
        child = call(f"caches:{kind}", str(folder / kind), count, numbers.random(), output=folder / f"{kind}.txt")
        rows = re.findall(r"^case (.*)$", child.said, re.M)
        yield Case(child.code == 0 and bool(rows), what=f"{kind}: exit {child.code}: {child.said[-400:]}")
        for row in rows:
            ok, seconds, what = json.loads(row)
            yield Case(ok, seconds, f"{kind}: {what}")


def _shipped(folder: Path) -> list[tuple[Path, str]]:
    """Every file of an installed package that the embedded data read, and the data that read it first."""
    child = call("caches:read_by_embedded", output=folder / "read.txt")
    assert child.code == 0, child.said
    return [(Path(path), data) for path, data in json.loads(child.said.splitlines()[-1])]


def _damaged_package(path: Path, data: str, numbers: random.Random, folder: Path) -> Case:
    """A process that finds the package at a place of ours, where all is a link but this file, reads the data."""
    packages = next(parent for parent in path.parents if parent.name in ("site-packages", "dist-packages"))
    parts, site = path.relative_to(packages).parts, folder / "site"
    for depth in range(len(parts)):
        here = site.joinpath(*parts[:depth])
        here.mkdir()
        for entry in packages.joinpath(*parts[:depth]).iterdir():
            family = parts[0].replace("skimage", "scikit_image").replace("sklearn", "scikit_learn")
            if entry.name != parts[depth] and (depth or entry.name.startswith(family)):
                (here / entry.name).symlink_to(entry)
    content = bytearray(path.read_bytes())
    place = numbers.randrange(len(content))
    said = []
    for flip in (0, 1 << numbers.randrange(8)):  # unchanged it must be read
        content[place] ^= flip
        site.joinpath(*parts).write_bytes(content)
        environment = {**os.environ, "PYTHONPATH": f"{site}:{ROOT}", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults.caches", data],
            env=environment,
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        said.append((done.returncode, done.stderr[-300:]))
    shutil.rmtree(site)
    (before, _), (after, text) = said
    ok = before == 0 and after == 4 and path.name in text and "sha256" in text
    return Case(ok, what=f"{path.name}, byte {place}: {said}")


# Weights whose keys are not the network's -----------------------------------------------------------------


@dataclass(frozen=True)
class _Model:
    """Weights of one network: the file, and what becomes of the network when it is loaded."""

    title: str
    tensors: dict[str, Tensor]
    load: Callable[[dict[str, Tensor]], Any]
    """Load weights with these tensors. Raises what a user would get."""
    knows_values: bool
    """Written by us, with a parity sample."""
    optional: Callable[[str], bool] = lambda name: False


TRAINED = {"resnet": 8, "alexnet": 6, "vgg": 6, "gan": 6}
"""Steps after which every layer has something to say: residual branches start at zero."""


def wrong_keys(count: int, numbers: random.Random, folder: Path) -> Iterator[Case]:
    """Row 14: one tensor is renamed, dropped, transposed: refused, a square one too where the weights are ours."""
    cases = []
    for model in [*_own(folder), *_foreign(folder)]:
        model.load(model.tensors)  # whole, it is loaded
        for name, tensor in model.tensors.items():
            for how, changed in _changes(name, tensor):
                same_shape = how.startswith("transposed") and changed[name].shape == tensor.shape
                if (same_shape and not model.knows_values) or (how == "dropped" and model.optional(name)):
                    continue
                cases.append((model, name, how, changed))
    for model, name, how, changed in _some(cases, count, numbers):
        tensors = {key: value for key, value in model.tensors.items() if key != name} | changed
        try:
            model.load(tensors)
            yield Case(False, what=f"{model.title}: {name} {how}: loaded")
        except JingduError as error:
            yield Case(
                isinstance(error, Refused) and error.exit_code == 4, what=f"{model.title}: {name} {how}: {error}"
            )


def _changes(name: str, tensor: Tensor) -> Iterator[tuple[str, dict[str, Tensor]]]:
    yield "renamed", {f"{name}_1": tensor}
    yield "dropped", {}
    for axes in ((0, 1), (-1, -2)) if tensor.ndim > 2 else ((0, 1),) if tensor.ndim == 2 else ():
        turned = tensor.transpose(*axes).contiguous()
        if turned.shape != tensor.shape or not turned.equal(tensor):
            yield f"transposed {axes}", {name: turned}


def _own(folder: Path) -> Iterator[_Model]:
    """Checkpoints of runs, by each way in which they are loaded; the manifest is written anew, so bytes say nothing."""
    for family in ("resnet", "alexnet", "vgg", "gan", "ngram"):
        run, changed = folder / family, folder / f"{family}-changed"
        changes = {"steps": TRAINED[family], "save_every": 100} if family in TRAINED else {}
        assert (child := call("work:fresh", family, str(run), changes, output=folder / "own.txt")).code == 0, child.said
        newest = newest_checkpoint(run)
        file = "ema.safetensors" if (newest / "ema.safetensors").exists() else "model.safetensors"
        tree = read_tree(newest / file)
        tensors, _ = pack(tree)

        def store(
            tensors: dict[str, Tensor], run: Path = run, changed: Path = changed, file: str = file, tree: Any = tree
        ) -> Path:
            shutil.rmtree(changed, ignore_errors=True)
            newest = newest_checkpoint(run)
            files = {path.name: path.read_bytes() for path in newest.iterdir() if path.name != MANIFEST}
            files[file] = tree_bytes(_with(tree, tensors))
            about = {key: value for key, value in verify(newest).items() if key not in ("files", "sha256", "step")}
            write_checkpoint(changed / "checkpoints", int(newest.name[5:]), files, 2, about)
            shutil.copy(run / "recipe.json", changed / "recipe.json")
            return changed

        networks = [re.match(r"[\w]+", text)[0] for text in FAMILIES[family].networks.values()]
        prefixes = list(FAMILIES[family].networks)
        for network, prefix in zip(networks, prefixes, strict=True):
            own = {name: x for name, x in tensors.items() if name.startswith(f"{prefix}.")}
            others = {name: x for name, x in tensors.items() if name not in own}
            make = lambda t, n=network, s=store, o=others: canon.create(n, weights=s({**o, **t}))  # noqa: E731
            yield _Model(f"create({network})", own, make, family != "ngram")
        yield _Model(f"load_system({family})", tensors, lambda t, s=store: load_system(s(t)), family != "ngram")


def _with(tree: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """A tree of state with these tensors by their paths; one that is there as PATH_1 has been renamed."""
    if isinstance(tree, list):
        return [_with(value, tensors, f"{path}.{i}" if path else str(i)) for i, value in enumerate(tree)]
    if not isinstance(tree, dict):
        return tree
    found = {}
    for key, value in tree.items():
        place = f"{path}.{key}" if path else str(key)
        if not isinstance(value, Tensor):
            found[key] = _with(value, tensors, place)
        elif place in tensors:
            found[key] = tensors[place]
        elif f"{place}_1" in tensors:
            found[f"{key}_1"] = tensors[f"{place}_1"]
    return found


FOREIGN = {
    "resnet": ("resnet20_cifar", {"width": 4, "depths": (1, 1), "num_classes": 10}),
    "alexnet": ("alexnet_one_weird_trick", {"widths": (4, 6, 6, 6, 8, 12, 12), "num_classes": 5}),
    "vgg": ("vgg11_bn", {"widths": (4, 4, 6, 6, 8, 12, 12), "num_classes": 5}),
}


def _foreign(folder: Path) -> Iterator[_Model]:
    """Files of other libraries: they hold no answers, so what has the right shape is believed."""
    for family, (variant, overrides) in FOREIGN.items():
        torch.manual_seed(3)
        network = canon.create(variant, **overrides)
        for library, table in tables(family).items():
            # timm's table of VGG states the whole shapes of the dense layers.
            if (
                library == OWN
                or (table.variants and variant not in table.variants)
                or (family, library) == ("vgg", "timm")
            ):
                continue
            file = folder / f"{family}-{library}.safetensors"

            def load(tensors: dict[str, Tensor], file: Path = file, variant: str = variant,
                     overrides: dict[str, Any] = overrides) -> Any:  # fmt: skip
                file.write_bytes(save(tensors))
                return canon.create(variant, weights=file, **overrides)

            optional = lambda name, table=table: table.ignores(name)  # noqa: E731
            yield _Model(f"{variant} of {library}", export(network, library, family=family), load, False, optional)
