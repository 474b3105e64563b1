"""State on disk without pickle: a nested tree of tensors and plain values as one safetensors file.

Tensors are stored under dotted paths; everything else is JSON in the file's metadata.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from jingdu.errors import Refused

_TENSOR = "__tensor__"


def pack(tree: Any, path: str = "") -> tuple[dict[str, Tensor], Any]:
    """Split a tree of dicts, lists, tensors and plain values into tensors by path and JSON."""
    if isinstance(tree, Tensor):
        return {path: tree.detach().contiguous().cpu()}, {_TENSOR: path}
    if isinstance(tree, Mapping):
        pairs = [(key, pack(value, f"{path}.{key}" if path else str(key))) for key, value in tree.items()]
        tensors = {name: tensor for _, (found, _) in pairs for name, tensor in found.items()}
        # JSON has text keys only; optimiser states have numbers, so the type is kept beside the key.
        return tensors, {"items": [[key, plain] for key, (_, plain) in pairs]}
    if isinstance(tree, list | tuple):
        parts = [pack(value, f"{path}.{i}" if path else str(i)) for i, value in enumerate(tree)]
        return {name: tensor for found, _ in parts for name, tensor in found.items()}, [plain for _, plain in parts]
    if tree is None or isinstance(tree, bool | int | float | str):
        return {}, tree
    raise TypeError(f"state at {path!r} is a {type(tree).__name__}: use tensors, numbers, text, lists and dicts")


def unpack(tensors: Mapping[str, Tensor], plain: Any) -> Any:
    """The inverse of `pack` (tuples come back as lists)."""
    if isinstance(plain, dict):
        if _TENSOR in plain:
            return tensors[plain[_TENSOR]]
        return {key: unpack(tensors, value) for key, value in plain["items"]}
    if isinstance(plain, list):
        return [unpack(tensors, value) for value in plain]
    return plain


def tree_bytes(tree: Any) -> bytes:
    """A tree as the bytes of a safetensors file. Tensors that share memory are stored apart."""
    tensors, plain = pack(tree)
    return save({name: tensor.clone() for name, tensor in tensors.items()}, {"tree": json.dumps(plain)})


def read_tree(path: Path) -> Any:
    """Read a tree written by `tree_bytes`; a file without our metadata is a flat dict of tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            plain = (file.metadata() or {}).get("tree")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no __iter__)
    except (SafetensorError, OSError, ValueError) as error:
        raise Refused(f"{path}: no readable safetensors file ({error})") from None
    try:
        return tensors if plain is None else unpack(tensors, json.loads(plain))
    except KeyError as error:
        raise Refused(f"{path}: the tensor {error} is not there, though the file's own description names it") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise Refused(f"{path}: its description cannot be read ({error})") from None
