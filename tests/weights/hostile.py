"""Files that a reader of weights must survive: damaged, absurd, and malicious ones.

`make(folder)` writes them; run as a program, the module reads each file of a folder and prints how that
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


def tensor_pickle(size: tuple[int, ...], stride: tuple[int, ...], numel: int = 6) -> bytes:
    """{"x": tensor} whose storage has `numel` floats, but which claims another size."""

    def integer(value: int) -> bytes:
        size = (value.bit_length() + 8) // 8
        return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(integer, values)) + b"t"

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + integer(numel) + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + integer(0) + numbers(size) + numbers(stride)
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
    return sorted(path.name for path in folder.iterdir())


def _resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def main(folder: Path) -> None:
    from jingdu.weights.files import read_file

    results = {}
    for path in sorted(folder.iterdir()):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        before, started = _resident("VmRSS"), time.perf_counter()
        try:
            read_file(path)
            outcome, text, code = "nothing", "", 0
        except BaseException as error:
            outcome, text, code = type(error).__name__, str(error), getattr(error, "exit_code", 1)
        seconds = time.perf_counter() - started
        results[path.name] = (outcome, code, text, seconds, _resident("VmHWM") - before, path.stat().st_size)
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
