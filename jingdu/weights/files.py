"""Reading tensors from files that may be damaged or hostile.

safetensors has no code in it; its header is checked by its library. A `.pth`, `.pt` or `.bin` is a pickle,
a program: it is looked through before it runs, runs only as `torch.load(weights_only=True)`, and what comes
out must be plain tensors no larger than the file. An `.npz` of NumPy is read where it holds plain numbers and is not
packed. Everything else is refused. Tensors are mapped from
the file where that is possible, so reading takes little memory.
"""

import io
import itertools
import json
import os
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from jingdu.errors import BadInput, Refused
from jingdu.limits import DIRECTORY_BYTES, HEADER_BYTES, LARGE_NUMBERS, PICKLE_BYTES, PICKLE_OPCODES
from jingdu.weights.folders import regular
from jingdu.weights.report import printable

_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The first pickle of a .pth file from before torch 1.6: its magic number (torch/serialization.py)."""

_OTHERS = {
    b"version https://git-lfs": "this is a Git LFS pointer, not the file itself: run `git lfs pull`",
    b"<": "this is a web page, not weights: the download gave an error page",
    b"\x89HDF": "this is an HDF5 file (Keras): convert it to safetensors",
    b"GGUF": "this is a GGUF file: convert it to safetensors",
    b"\x93NUMPY": "this is a NumPy array: convert it to safetensors",
    b"\x1f\x8b": "this is a gzip archive: unpack it first",
}

_ALLOWED = {
    "collections.OrderedDict",
    "collections.Counter",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
    "torch.serialization._get_layout",
    "torch.Size",
    "torch.device",
    "torch.storage.TypedStorage",
    "torch.storage.UntypedStorage",
    "__builtin__.set",
    "builtins.set",
}
"""What a pickle of tensors and plain values names, beside storage types and dtypes. Narrower than what
torch itself allows: nothing here makes large objects out of a few bytes, or takes long over them (as a codec may)."""

_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model")
"""Names under which training programs put the weights beside other things."""


def kind_of(path: Path) -> str:
    """safetensors, zip, numpy or legacy, by content. Raises BadInput for anything else, with what it is if known."""
    try:
        size = regular(path).st_size
        with open(path, "rb") as file:
            head = file.read(64)
    except (OSError, ValueError) as error:
        raise BadInput(path, f"cannot be read ({error})") from None
    if not head:
        raise BadInput(path, "the file is empty")
    if head.startswith(b"PK\x03\x04"):
        return "numpy" if path.suffix == ".npz" else "zip"
    if head.startswith(_LEGACY):
        return "legacy"
    if len(head) > 8 and head[8:9] == b"{":
        (length,) = struct.unpack("<Q", head[:8])
        if length > HEADER_BYTES:
            raise BadInput(path, f"its header claims {length:,} bytes (at most {HEADER_BYTES:,} are read)")
        if length + 8 > size:
            raise BadInput(path, f"the file is cut: its header has {length:,} bytes, the file {size:,}")
        return "safetensors"
    for start, what in _OTHERS.items():
        if head.lstrip().startswith(start):
            raise BadInput(path, what)
    if head.startswith(b"\x80"):
        raise BadInput(path, "this is a bare pickle: only files of torch.save and safetensors are read")
    raise BadInput(path, "this is no weights file: neither safetensors nor a file of torch.save")


def read_metadata(path: Path) -> dict[str, str]:
    """The text that a safetensors file carries; nothing for other files. Raises BadInput."""
    if kind_of(path) != "safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except Exception as error:  # the library's own kind, and those of its parsers
        raise BadInput(path, f"damaged safetensors ({_first_line(error)})") from None


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by name, on the CPU. Raises BadInput, and no other exception."""
    kind = kind_of(path)
    try:
        if kind == "safetensors":
            with safe_open(path, framework="pt", device="cpu") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no __iter__)
        if kind == "numpy":
            return _read_numpy(path)
        if path.suffix == ".safetensors":  # torch.load goes by this name
            raise BadInput(path, "this is a file of torch.save under a name of safetensors: rename it to .pth")
        records = _check_archive(path) if kind == "zip" else _check_legacy(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "zip")
        return _flat(path, content, records)
    except BadInput:
        raise
    except Exception as error:  # a foreign parser on a damaged file may raise anything
        name = kind if kind in ("safetensors", "numpy") else "torch"
        raise BadInput(path, f"damaged {name} file ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0])


def _directory_bytes(path: Path) -> int:
    """Size of a zip's central directory, as its end record states it (APPNOTE.TXT 4.3.14 and 4.3.16)."""
    with open(path, "rb") as file:
        size = file.seek(0, io.SEEK_END)
        start = max(0, size - 22 - 65535 - 20)
        file.seek(start)
        tail = file.read()
        end = tail.rfind(b"PK\x05\x06")
        if end < 0 or len(tail) < end + 22:
            raise BadInput(path, "the file is cut: its archive has no end")
        locator = tail[end - 20 : end] if end >= 20 else b""
        if locator.startswith(b"PK\x06\x07"):
            file.seek(min(struct.unpack("<Q", locator[8:16])[0], size))
            record = file.read(56)
            if record.startswith(b"PK\x06\x06") and len(record) == 56:
                return struct.unpack("<Q", record[40:48])[0]
        return struct.unpack("<I", tail[end + 12 : end + 16])[0]


def _read_numpy(path: Path) -> dict[str, Tensor]:
    """The arrays of an .npz file, as the papers of JAX have them: paths of parts become names with dots."""
    if _directory_bytes(path) > DIRECTORY_BYTES:
        raise BadInput(path, f"its archive's directory has more than {DIRECTORY_BYTES:,} bytes")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or (
            sum(entry.file_size for entry in entries) > path.stat().st_size
        ):
            raise BadInput(path, "its arrays are packed: write them with numpy.savez, which does not compress")
    found: dict[str, Tensor] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            array = arrays[name]
            if array.dtype.kind not in "fiub":
                raise BadInput(path, f"its {printable(name)} holds {array.dtype}, not numbers")
            key = name.replace("/", ".")
            if key in found:
                raise BadInput(path, f"it holds {printable(key)} twice")
            found[key] = torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))))
    return found


def _check_archive(path: Path) -> set[int] | None:
    """Refuse archives that are larger inside than outside, and pickles that ask for more than tensors.

    Returns the sizes of the stored numbers, in bytes.
    """
    if _directory_bytes(path) > DIRECTORY_BYTES:
        raise BadInput(path, f"its archive's directory has more than {DIRECTORY_BYTES:,} bytes")
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if any("/code/" in name or name.endswith("constants.pkl") for name in names):
            raise BadInput(path, "this is a TorchScript program: only tensors are read, from its state_dict()")
        inside = sum(entry.file_size for entry in entries)
        if inside > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise BadInput(path, f"its archive is packed ({inside:,} bytes from {size:,}); torch.save never compresses")
        if len(set(names)) != len(names):
            raise BadInput(path, "its archive has several entries of one name")
        pickles = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise BadInput(path, "this archive is not a file of torch.save")
        if pickles[0].file_size > PICKLE_BYTES:
            raise BadInput(path, f"it holds {pickles[0].file_size:,} bytes beside tensors (at most {PICKLE_BYTES:,})")
        _check_pickle(path, io.BytesIO(archive.read(pickles[0])))
    return {0, *(entry.file_size for entry in entries if "/data/" in entry.filename)}


def _check_legacy(path: Path) -> set[int] | None:
    """The old format is five pickles in a row, and then the numbers, whose sizes torch compares itself."""
    with open(path, "rb") as file:
        for _ in range(5):
            _check_pickle(path, file)
    return None


def _check_pickle(path: Path, stream: io.BufferedIOBase) -> None:
    """Read through a pickle without running it; refuse what is more than tensors and plain values."""
    start, large = stream.tell(), 0
    for number, (opcode, argument, _) in enumerate(itertools.islice(pickletools.genops(stream), PICKLE_OPCODES + 1)):
        if number == PICKLE_OPCODES or stream.tell() - start > PICKLE_BYTES:
            raise BadInput(path, "it holds too many objects beside its tensors: save the state_dict alone")
        if isinstance(argument, int) and abs(argument) >= 1 << 60:
            large += 1  # numbers beyond 61 bits can be made to have one hash, and a dict of them takes for ever
            if large > LARGE_NUMBERS:
                raise BadInput(
                    path, f"it holds more than {LARGE_NUMBERS:,} numbers of over 60 bits: save the state_dict alone"
                )
        if opcode.name == "GLOBAL":
            name = ".".join(str(argument).split(" "))
            if not (name in _ALLOWED or _is_type_of_torch(name)):
                raise BadInput(
                    path,
                    f"it asks to run {printable(name)}, and nothing was run: only plain tensors are read (if it "
                    "is yours, save its state_dict() as safetensors in the program that wrote it)",
                )
        elif opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
            raise BadInput(path, f"its pickle uses {opcode.name}, which files of torch.save do not")


def _is_type_of_torch(name: str) -> bool:
    """Whether `torch.X` is a dtype or a storage type."""
    module, _, last = name.rpartition(".")
    kind = getattr(torch, last, None) if module == "torch" else None
    return isinstance(kind, torch.dtype) or (module == "torch" and last.endswith("Storage"))


def _flat(path: Path, content: Any, records: set[int] | None) -> dict[str, Tensor]:
    """The one flat dict of tensors in what was loaded; each stands on all of one stored record."""
    if isinstance(content, Mapping) and not _is_state(content):
        wrapped = [name for name in _WRAPPERS if isinstance(content.get(name), Mapping)]
        if len(wrapped) > 1:
            raise BadInput(path, f"it holds several sets of weights ({', '.join(wrapped)}): save one alone")
        if wrapped:
            content = content[wrapped[0]]
    if not isinstance(content, Mapping):
        raise BadInput(path, f"it holds a {type(content).__name__}, not tensors by name: save a state_dict()")
    size = path.stat().st_size
    if any(isinstance(value, Tensor) for value in content.values()):
        # Notes beside the tensors, such as the values of masks in Pytorch-UNet's files, are no part of a network.
        content = {name: value for name, value in content.items() if not _is_note(value)}
    for name, value in content.items():
        if not isinstance(name, str):
            raise BadInput(
                path, f"its entry {printable(name)} has a {type(name).__name__} as its name: save a state_dict()"
            )
        if type(value) not in (Tensor, nn.Parameter):
            raise BadInput(
                path, f"its entry {printable(name)!r} is {type(value).__name__}, no tensor: save a state_dict()"
            )
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise BadInput(path, f"its entry {printable(name)!r} is no plain tensor (sparse, quantised, no data)")
        if value.numel() * value.element_size() > size:
            raise BadInput(path, f"its entry {printable(name)!r} of shape {list(value.shape)} is larger than the file")
        if records is not None and value.untyped_storage().nbytes() not in records:
            raise BadInput(path, f"its entry {printable(name)!r} claims other numbers than the file holds")
    if not content:
        raise BadInput(path, "it holds no tensors")
    return {name: value.detach() for name, value in content.items()}


def _is_note(value: Any) -> bool:
    """A number or a text, or a list of them."""
    plain = (bool, int, float, str)
    return type(value) in plain or (type(value) in (list, tuple) and all(type(part) in plain for part in value))


def _is_state(content: Mapping[Any, Any]) -> bool:
    return all(isinstance(value, Tensor) for value in content.values())


def save(state: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Write weights as safetensors, whole or not at all.

    Args:
        state: tensors by name, as `network.state_dict()` gives them.
        path: the file to write; an old one is replaced at the end.
        metadata: variant, overrides, classes, preprocess (plain JSON values), read back with the weights.

    Raises Refused for the keys of a wrapped network (torch.compile, DataParallel) or where there is no room.
    """
    wrapped = [key for key in state if "_orig_mod" in key.split(".") or key.startswith("module.")]
    if wrapped:
        raise Refused(
            f"{path}: not written, these are keys of a wrapper ({printable(wrapped[0])}): save the network inside "
            "(network.compile() keeps keys clean; .module is inside DataParallel)"
        )
    header = {"format": "pt"} | ({"jingdu": json.dumps(dict(metadata))} if metadata is not None else {})
    content = _apart(state)
    write_aside(Path(path), lambda aside: save_file(content, aside, header))


def save_theirs(state: Mapping[str, Tensor], path: Path) -> None:
    """Write weights under another library's names, as it reads them: safetensors, else by torch.save. Raises Refused."""
    content = _apart(state)
    if path.suffix == ".safetensors":
        write_aside(path, lambda aside: save_file(content, aside, {"format": "pt"}))
    else:
        write_aside(path, lambda aside: torch.save(content, aside))


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share memory are stored apart: a reader gets back every name."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def write_aside(path: Path, write: Callable[[Path], Any]) -> None:
    """Make one file, whole or not at all: `write` gets another name for it. Raises Refused."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(aside)
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    except Exception as error:  # safetensors has its own error for a full disk
        aside.unlink(missing_ok=True)
        raise Refused(f"{path}: could not be written ({_first_line(error)}); an older file is intact") from None
