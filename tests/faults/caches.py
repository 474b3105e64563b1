"""What the children of row 9 do: read the embedded data, and use what the caches hold after a byte of it was flipped.

As a program (`python -m tests.faults.caches digits:train`) it reads a data set, in a process that begins from nothing.
"""

import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from jingdu.data import EMBEDDED, Preprocess, open_data
from jingdu.data.draws import Draws
from jingdu.errors import JingduError, Missing


def _read(data: str) -> None:
    name, _, split = data.partition(":")
    opened = open_data(name, split, Preprocess())
    indices = np.arange(min(len(opened), 3))
    opened.batch(indices, Draws(0, 0, indices))


def read_by_embedded() -> int:
    """Print, as JSON, [file, data] of each file of an installed package, other than code and its settings, that the embedded data read."""
    found: dict[str, str] = {}
    reading = ""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event != "open" or not reading or not isinstance(arguments[0], str):
            return
        path = Path(arguments[0])
        is_code = path.suffix in (".ini", ".py", ".pyc", ".pyi", ".so") or any(
            p.endswith(".dist-info") for p in path.parts
        )
        if {"site-packages", "dist-packages"} & set(path.parts) and not is_code:
            found.setdefault(str(path), reading)

    sys.addaudithook(hook)
    for name in EMBEDDED:
        for split in ("train", "test"):
            reading = f"{name}:{split}" if name not in ("text", "parallel") else ""  # the user's own
            if reading:
                _read(reading)
    print(json.dumps(sorted(found.items())))
    return 0


def _say(ok: bool, seconds: float, what: str) -> None:
    print("case " + json.dumps([bool(ok), seconds, what]))


def _flips(files: list[Path], count: int, seed: float) -> Iterator[Path]:
    """Each file in turn, with one bit of it flipped; as it was afterwards."""
    numbers = random.Random(seed)
    for number in range(max(count, len(files))):
        path = files[number % len(files)]
        content = path.read_bytes()
        place = numbers.randrange(len(content))
        damaged = bytearray(content)
        damaged[place] ^= 1 << numbers.randrange(8)
        path.write_bytes(damaged)
        yield path
        path.write_bytes(content)


def lab(folder: str, count: int, seed: float) -> int:
    """Trained parts: an entry of which a file has changed is not used, and is made again, with a warning."""
    from jingdu.lab import cache
    from tests.faults import work

    os.environ["JINGDU_CACHE"] = folder
    recipe = work.recipe_of("resnet", {"steps": 3})
    said: list[str] = []
    cache.say = said.append
    made = cache.trained(recipe)
    files = sorted(path for path in made.folder.rglob("*") if path.is_file())
    for path in _flips(files, count, seed):
        started = time.monotonic()
        found = cache.read_entry(made.folder)
        _say(found is None, time.monotonic() - started, path.name)
    assert cache.trained(recipe).cached and not said
    path = files[-1]
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    _say(not cache.trained(recipe).cached and "changed" in said[0] and cache.trained(recipe).cached, 0.0, "made again")
    return 0


def url(folder: str, count: int, seed: float) -> int:
    """A fetched file: the damaged copy is removed, with a warning, and fetched again."""
    from jingdu.weights.download import fetch_url
    from tests.weights.server import serving

    os.environ["JINGDU_CACHE"] = folder
    content = os.urandom(60_013)
    digest = hashlib.sha256(content).hexdigest()
    with serving() as server:
        server.files["/w.pth"] = content
        get = lambda say: fetch_url(f"{server.url}/w.pth", digest, offline=False, deadline=5.0, licence="MIT", say=say)  # noqa: E731
        path = get(lambda _: None)
        for _ in _flips([path], count // 2, seed):
            said: list[str] = []
            again = get(said.append)
            _say(again.read_bytes() == content and "damaged" in said[0], 0.0, f"{said}")
    return 0


def hub(folder: str, count: int, seed: float) -> int:
    """A snapshot of the hub: the damaged file is removed, with a warning; without a connection that is all."""
    from tests.weights.server import add_repository, serving

    for name in [name for name in os.environ if name.startswith("HF_") or name.lower().endswith("_proxy")]:
        del os.environ[name]
    os.environ.pop("TRANSFORMERS_OFFLINE", None)
    os.environ |= {"HF_HOME": f"{folder}/hf", "JINGDU_CACHE": folder}
    import huggingface_hub.constants
    from safetensors.torch import save

    huggingface_hub.constants.HF_HUB_OFFLINE = False  # it may have been imported before
    from jingdu.weights import locate, read

    shards = {f"model-{i}.safetensors": save({f"x{i}": torch.arange(3001.0) + i}) for i in (1, 2)}
    index = json.dumps({"weight_map": {f"x{i}": f"model-{i}.safetensors" for i in (1, 2)}}).encode()
    files = {"config.json": b'{"model_type": "resnet"}', "model.safetensors.index.json": index, **shards}
    with serving() as server:
        os.environ["HF_ENDPOINT"] = server.url
        add_repository(server, "lab/net", files)
        get: Callable[..., object] = lambda said, offline: locate(  # noqa: E731
            "hf:lab/net", deadline=5.0, say=said.append, offline=offline
        )
        found = get([], False)
        wanted = {name: x.clone() for name, x in read(found).items()}  # what is read is mapped from the file
        paths = [(found.path / name).resolve() for name in files]
        for path in _flips(paths, count // 2, seed):
            said: list[str] = []
            try:
                get(said, True)
                ok = False
            except Missing:
                ok = len(said) == 1 and "damaged" in said[0] and not path.exists()
            again = read(get(said, False))
            _say(ok and all(torch.equal(again[k], wanted[k]) for k in wanted), 0.0, f"{path.name}: {said}")
    return 0


def main(data: str) -> int:
    try:
        _read(data)
    except JingduError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
