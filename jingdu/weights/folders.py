"""Folders in the style of transformers and timm: a configuration, and weights in one file or in shards."""

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jingdu.errors import BadInput, Missing
from jingdu.limits import JSON_BYTES

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
"""Names under which weights are looked for, best first: safetensors before pickle."""

CONFIG_FILES = ("config.json", "preprocessor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt")
"""How text becomes tokens: tokenizers' own file, the two of a BPE, and BERT's list."""


def regular(path: Path) -> os.stat_result:
    """What the system says of a file. Raises OSError for a folder, and for a pipe or a device, which never end."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is no regular file")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file. Raises BadInput for anything else."""
    try:
        size = regular(path).st_size
        if size > JSON_BYTES:
            raise BadInput(path, f"{size:,} bytes are too many for a configuration (at most {JSON_BYTES:,})")
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(path, f"no readable JSON ({error})") from None
    if not isinstance(value, dict):
        raise BadInput(path, f"an object was expected, not a {type(value).__name__}")
    return value


def read_index(path: Path) -> Mapping[str, str]:
    """Which shard holds which tensor. Shards are plain file names: a path is refused (BadInput)."""
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise BadInput(path, "it has no weight_map from tensors to files")
    for name in set(shards.values()):
        if os.path.basename(name) != name or "\\" in name or "\0" in name or name in ("", ".", ".."):
            raise BadInput(path, f"it names the shard {name!r}: only files in the same folder are read")
    return shards


def shard_paths(index: Path) -> Mapping[Path, set[str]]:
    """The files of an index with the tensors that each must hold.

    Raises Missing for a shard that is not there, BadInput for one that is a link to outside the folder (or,
    in the hub's cache, to outside its blobs).
    """
    folder = index.parent.resolve()
    allowed = [folder]
    if folder.parent.name == "snapshots":  # the hub library's cache: per repository, and shared by all
        allowed += [folder.parents[1] / "blobs", folder.parents[2] / "blobs"]
    keys: dict[str, set[str]] = {}
    for key, name in read_index(index).items():
        keys.setdefault(name, set()).add(key)
    for name in keys:
        path = index.parent / name
        if not path.exists():
            raise Missing(f"{path} is not there, but {index.name} names it: fetch all its shards")
        if not any(path.resolve().is_relative_to(place) for place in allowed):
            raise BadInput(path, "this shard is a link that leads out of its folder")
    return {index.parent / name: wanted for name, wanted in keys.items()}
