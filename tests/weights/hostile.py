"""Files and folders that a reader of weights must survive: damaged, absurd, and malicious ones.

`make(folder)` writes them; run as a program, the module reads each entry of a folder and prints how that
went as JSON: the exception, the seconds, and the peak of resident memory in bytes above the start.
"""

import io
import json
import os
import pickle
import struct
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

MARKER = "EXECUTED"
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""How a file of torch.save began before torch 1.6."""


class Gadget:
    """Unpickled by a trusting reader, this calls `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def archive(pickled: bytes, data: bytes = b"\0" * 24, compress: bool = False, twice: bool = False) -> bytes:
    """A file as torch.save lays it out, around any pickle."""
    content = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(content, "w", kind) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/byteorder", b"little")
        file.writestr("archive/data/0", data)
        file.writestr("archive/version", b"3\n")
        if twice:
            import warnings

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                file.writestr("archive/data.pkl", pickled)
    return content.getvalue()


def overlapping(pickled: bytes, names: int) -> bytes:
    """An archive whose directory gives one stored record many names: small outside, large when all are read."""
    whole = archive(pickled, bytes(1 << 20))
    start = whole.index(b"PK\x01\x02")
    end = whole.index(b"PK\x05\x06")
    entries, rest = [], whole[start:end]
    while rest:
        size = 46 + sum(struct.unpack("<HHH", rest[28:34]))
        entries.append(rest[:size])
        rest = rest[size:]
    one = next(entry for entry in entries if entry[46:].startswith(b"archive/data/0"))
    entries += [one[:46] + b"archive/data/%c" % (ord("1") + i) + one[60:] for i in range(names)]
    directory = b"".join(entries)
    tail = struct.pack("<HHHHIIH", 0, 0, len(entries), len(entries), len(directory), start, 0)
    return whole[:start] + directory + b"PK\x05\x06" + tail


def with_zip64(content: bytes, size: int) -> bytes:
    """The same archive, whose end says in its 64-bit form that the directory has `size` bytes."""
    end = content.index(b"PK\x05\x06")
    record = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 4, 4, size, content.index(b"PK\x01\x02"))
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, end, 1)
    return (
        content[:end]
        + record
        + locator
        + b"PK\x05\x06"
        + struct.pack("<HHHHIIH", 0, 0, *[0xFFFF] * 2, *[0xFFFFFFFF] * 2, 0)
    )


def integer(value: int) -> bytes:
    """The instruction that makes a number, LONG1."""
    size = (value.bit_length() + 8) // 8
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def text(value: str) -> bytes:
    """The instruction that makes a text, BINUNICODE."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def tensor_pickle(size: tuple[int, ...], stride: tuple[int, ...], numel: int = 6, offset: int = 0) -> bytes:
    """{"x": tensor} whose storage has `numel` floats, but which claims another size."""

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(integer, values)) + b"t"

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + integer(numel) + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + integer(offset) + numbers(size) + numbers(stride)
    return b"\x80\x02}(" + text("x") + tensor + b"\x89ccollections\nOrderedDict\n)RtRu."


def make(folder: Path) -> list[str]:
    """Write the corpus; returns the names."""
    import torch

    marker = folder / MARKER
    one = {"x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    data = bytes(range(24))

    def entry(**changes: Any) -> bytes:
        return safetensors({"x": {**one["x"], **changes}}, data)

    files: dict[str, bytes] = {
        "empty.safetensors": b"",
        "text.safetensors": b"these are not weights, but a letter\n" * 9,
        "page.pth": b"<!DOCTYPE html><title>404</title>" + b" " * 99,
        "lfs.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n",
        "image.pth": b"\x89PNG\r\n\x1a\n" + os.urandom(200),
        "keras.bin": b"\x89HDF\r\n\x1a\n" + bytes(200),
        "noise.bin": b"\x07" + os.urandom(500),
        "header_2_63.safetensors": safetensors(one, data, length=1 << 63),
        "header_beyond.safetensors": safetensors(one, data, length=4000),
        "header_spaces.safetensors": safetensors(b"{" + b" " * 26_000_000 + b"}"),
        "header_utf8.safetensors": safetensors(b'{"\xff\xfe": 3}', data),
        "header_json.safetensors": safetensors(b"{not json}", data),
        "header_deep.safetensors": safetensors(b'{"x":' * 100_000 + b"1" + b"}" * 100_000, data),
        "header_list.safetensors": safetensors(b"{]", data),
        "shape_2_63.safetensors": entry(shape=[1 << 63, 2]),
        "shape_2_64.safetensors": entry(shape=[1 << 64]),
        "shape_overflow.safetensors": entry(shape=[1 << 32, 1 << 32, 1 << 32]),
        "shape_negative.safetensors": entry(shape=[-2, -3]),
        "shape_other.safetensors": entry(shape=[2, 4]),
        "dtype.safetensors": entry(dtype="F33"),
        "offsets_beyond.safetensors": entry(data_offsets=[0, 2400], shape=[200, 3]),
        "offsets_reversed.safetensors": entry(data_offsets=[24, 0]),
        "offsets_hole.safetensors": entry(data_offsets=[8, 24], shape=[4]),
        "offsets_overlap.safetensors": safetensors(
            {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, "b": one["x"]}, data
        ),
        "cut.safetensors": safetensors(one, data[:-1]),
        "longer.safetensors": safetensors(one, data + b"!"),
        "bare.pth": pickle.dumps(Gadget(os.system, f"touch {marker}"), 2),
        "protocol4.pth": archive(pickle.dumps({"x": Gadget(os.system, f"touch {marker}")}, 4)),
        "eval.pth": archive(pickle.dumps({"x": Gadget(eval, f"open({str(marker)!r}, 'w')")}, 2)),
        "exec.bin": archive(pickle.dumps(Gadget(exec, f"open({str(marker)!r}, 'w')"), 2)),
        "getattr.bin": archive(pickle.dumps({"x": Gadget(getattr, "text", "upper")}, 2)),
        "load.bin": archive(b"\x80\x02ctorch\nload\n(X\x04\x00\x00\x00/etctR."),
        "inst.pth": archive(b"(S'touch " + str(marker).encode() + b"'\nios\nsystem\n."),
        "set_bomb.pth": archive(b"\x80\x02" + b"\x8f" * 3_000_000 + b"."),
        "bytearray_bomb.pth": archive(
            b"\x80\x02]" + b"cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x01\x85R" * 400 + b"."
        ),
        "large_pickle.pth": archive(b"\x80\x02X" + struct.pack("<I", 5 << 20) + b"a" * (5 << 20) + b"."),
        "zip_bomb.pt": archive(pickle.dumps({}, 2), bytes(200 << 20), compress=True),
        "small_deflated.pt": archive(tensor_pickle((2, 3), (3, 1)), compress=True),
        "twice.pt": archive(tensor_pickle((2, 3), (3, 1)), twice=True),
        "stride_zero.pt": archive(tensor_pickle((1 << 20, 1 << 20), (0, 0))),
        "beyond_storage.pt": archive(tensor_pickle((1 << 17, 1 << 17), (1 << 17, 1))),
        "tensor_2_63.pt": archive(tensor_pickle((1 << 62, 1 << 62), (0, 0))),
        "storage_2_40.pt": archive(tensor_pickle((2, 3), (3, 1), numel=1 << 40)),
        "no_pickle.pt": b"PK\x03\x04" + bytes(60),
        "list.pt": archive(pickle.dumps([1, 2, 3], 2)),
        "text_inside.pt": archive(pickle.dumps("weights", 2)),
        "numbers.pt": archive(pickle.dumps({"epoch": 3, "x": 2.5}, 2)),
        "nothing.pt": archive(pickle.dumps({}, 2)),
        "stride_negative.pt": archive(tensor_pickle((2, 3), (-3, 1))),
        "offset_2_62.pt": archive(tensor_pickle((2, 3), (3, 1), offset=1 << 62)),
        "overlap.pt": overlapping(tensor_pickle((2, 3), (3, 1)), names=9),
        "directory_2_63.pt": with_zip64(archive(tensor_pickle((2, 3), (3, 1))), 1 << 63),
        "nested_load.pt": archive(
            b"\x80\x02}(" + text("x") + b"ctorch.storage\n_load_from_bytes\n(" + text("payload") + b"tRu."
        ),
        # Slow things: a codec whose time is the square of the length, and numbers that have one hash.
        "slow_codec.pth": archive(
            b"\x80\x02}("
            + text("x")
            + b"c_codecs\nencode\n("
            + text("".join(chr(0x100 + i) for i in range(40_000)))
            + text("punycode")
            + b"tRu."
        ),
        "one_hash.pth": archive(
            b"\x80\x02}(" + b"".join(integer(i * ((1 << 61) - 1)) + b"N" for i in range(1, 100_000)) + b"u."
        ),
        "one_hash_set.pth": archive(
            b"\x80\x02c__builtin__\nset\n(]("
            + b"".join(integer(i * ((1 << 61) - 1)) for i in range(1, 100_000))
            + b"etR."
        ),
        # Lengths and places that are not there: 4 GB of text, 2^62 bytes of it, the 2^31st remembered object.
        "text_4_gb.pth": archive(b"\x80\x02X\xff\xff\xff\xffabc."),
        "text_4_gb_old.pth": LEGACY + b"\x80\x02X\xff\xff\xff\xffabc.",
        "text_2_62.pth": archive(b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"abc."),
        "text_2_62_old.pth": LEGACY + b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"abc.",
        "memory_2_31.pth": archive(b"\x80\x02}r" + struct.pack("<I", 1 << 31) + b"."),
        "deep.pth": archive(b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."),
        "two_sets.pt": archive(pickle.dumps({"model": {}, "state_dict": {}}, 2)),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    bad = Gadget(os.system, f"touch {marker}")
    torch.save({"x": torch.ones(2), "y": bad}, folder / "system.pth")
    torch.save({"x": torch.ones(2), "y": bad}, folder / "system_old.pth", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(2, 3), folder / "module.pth")
    torch.save({"x": torch.eye(3).to_sparse()}, folder / "sparse.pth")
    torch.save({"x": torch.ones(2, device="meta")}, folder / "meta.pth")
    torch.save({3: torch.ones(2)}, folder / "number_as_name.pth")
    torch.save({"model": {"deep": {"x": torch.ones(2)}}}, folder / "nested.pth")
    torch.save({"x": torch.ones(99)}, folder / "whole.pth")
    whole = (folder / "whole.pth").read_bytes()
    (folder / "whole.pth").unlink()
    (folder / "cut.pth").write_bytes(whole[: len(whole) // 2])
    torch.save({"x": torch.ones(99)}, folder / "old.pth", _use_new_zipfile_serialization=False)
    old = (folder / "old.pth").read_bytes()
    (folder / "old.pth").unlink()
    (folder / "cut_old.pth").write_bytes(old[:-9])
    script = torch.jit.script(torch.nn.Linear(2, 3)) if sys.version_info < (3, 14) else None
    if script is not None:
        torch.jit.save(script, folder / "script.pt")
    _make_folders(folder)
    return sorted(path.name for path in folder.iterdir())


def _make_folders(folder: Path) -> None:
    """Folders of weights with something wrong beside the weights."""
    from safetensors.torch import save
    from torch import ones

    from jingdu.engine.checkpoint import MANIFEST, seal

    weights, index, config = "model.safetensors", "model.safetensors.index.json", "config.json"
    whole = save({"x": ones(2)})

    def make(name: str, **files: bytes | str) -> Path:
        """A folder with files, or with links where a text says where to."""
        place = folder / name
        place.mkdir()
        for key, content in files.items():
            path = place / {"weights": weights, "index": index, "config": config, "shard": "a.safetensors"}[key]
            path.symlink_to(content) if isinstance(content, str) else path.write_bytes(content)
        return place

    def naming(shard: str) -> bytes:
        return json.dumps({"weight_map": {"x": shard}}).encode()

    (folder / "secret.safetensors").write_bytes(whole + b"!")  # itself no weights either
    make("index_up", index=naming("../secret.safetensors"))
    make("index_absolute", index=naming("/etc/passwd"))
    make("index_backslash", index=naming("..\\secret.safetensors"))
    make("index_nul", index=naming("a\0.safetensors"))
    make("index_itself", index=naming(index))
    make("index_folder", index=naming("."))
    make("index_link", index=naming("a.safetensors"), shard="../secret.safetensors")
    make("index_link_absolute", index=naming("a.safetensors"), shard="/etc/passwd")
    make("index_device", index=naming("a.safetensors"), shard="/dev/zero")
    one = b",".join(b'"%x": "a.safetensors"' % i for i in range(600_000))
    make("index_wide", index=b'{"weight_map": {' + one + b"}}")
    (folder / "index_wide" / "a.safetensors").write_bytes(whole)
    many = b",".join(b'"%x": "%x.safetensors"' % (i, i) for i in range(500_000))
    make("index_names", index=b'{"weight_map": {' + many + b', "x": "../secret.safetensors"}}')
    make("index_large", index=b'{"weight_map": {"x": "' + b"a" * (17 << 20) + b'"}}')
    make("index_deep", index=b'{"weight_map": ' * 100_000 + b"}" * 100_000)
    make("index_number", index=b'{"weight_map": {"x": 1' + b"0" * 9_000_000 + b"}}")
    make("weights_device", weights="/dev/zero")
    make("config_device", weights=whole, config="/dev/zero")
    make("config_deep", weights=whole, config=b"[" * 1_000_000)
    os.mkfifo(make("weights_pipe") / weights)
    os.mkfifo(make("config_pipe", weights=whole) / config)
    os.mkfifo(make("shard_pipe", index=naming("a.safetensors")) / "a.safetensors")
    for name, file in (("run_up", "../secret.safetensors"), ("run_absolute", "/etc/passwd")):
        table = {"step": 1, "files": {file: {"sha256": "0" * 64, "bytes": 9}}}
        (make(name, weights=whole) / MANIFEST).write_bytes(seal(table))


def _read(path: Path) -> None:
    """What `create` does with a source before it has a network."""
    from jingdu.weights.files import read_file
    from jingdu.weights.filling import read
    from jingdu.weights.sources import locate

    if path.is_dir():
        located = locate(path, say=lambda _: None)
        _ = located.config, located.preprocessor
        read(located)
    else:
        read_file(path)


def _size(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files)


def _resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def main(folder: Path) -> None:
    import jingdu.engine.checkpoint
    import jingdu.weights.opening  # noqa: F401 (what a reader needs is there before it is measured)

    results = {}
    for path in sorted(folder.iterdir()):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        before, started = _resident("VmRSS"), time.perf_counter()
        try:
            _read(path)
            outcome, text, code = "nothing", "", 0
        except BaseException as error:
            outcome, text, code = type(error).__name__, str(error), getattr(error, "exit_code", 1)
        seconds = time.perf_counter() - started
        results[path.name] = (outcome, code, text, seconds, _resident("VmHWM") - before, _size(path))
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
