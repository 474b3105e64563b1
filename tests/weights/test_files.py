import ast
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import jingdu
from jingdu.errors import BadInput, Refused
from jingdu.limits import DIRECTORY_BYTES, PICKLE_OPCODES
from jingdu.weights import save
from jingdu.weights.files import kind_of, read_file, read_metadata
from tests.weights import hostile

STATE = {"a.weight": torch.arange(15.0).reshape(3, 5), "a.bias": torch.tensor([1.0, -2.0, 7.0]), "n": torch.tensor(4)}


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        names = hostile.make(folder)
    done = subprocess.run(
        [sys.executable, "-m", "tests.weights.hostile", str(folder)],
        capture_output=True,
        text=True,
        cwd=Path(jingdu.__file__).parents[1],
        check=True,
    )
    assert not (folder / hostile.MARKER).exists(), "a file was executed"
    results = json.loads(done.stdout)
    assert sorted(results) == names and len(names) >= 90
    return results


def test_every_hostile_file_is_refused_by_one_exception(outcomes):
    for name, (outcome, code, text, *_) in outcomes.items():
        assert outcome in ("BadInput", "Refused") and code == 4, (name, outcome, text)
        assert name in text and "\n" not in text and len(text) < 600, (name, text)


def test_hostile_files_take_little_time_and_memory(outcomes):
    for name, (_, _, _, seconds, peak, size) in outcomes.items():
        assert seconds < 5, (name, seconds)
        assert peak <= 2 * size + 200e6, (name, peak)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("system.pth", "asks to run (posix|nt).system, and nothing was run"),
        ("system_old.pth", "asks to run (posix|nt).system"),
        ("module.pth", "asks to run torch.nn.modules.linear.Linear"),
        ("bare.pth", "bare pickle"),
        ("zip_bomb.pt", "never compresses"),
        ("lfs.safetensors", "git lfs pull"),
        ("page.pth", "web page"),
        ("empty.safetensors", "empty"),
        ("text.safetensors", "no weights file"),
        ("script.pt", "TorchScript"),
        ("stride_zero.pt", "larger than the file"),
        ("nested.pth", "'deep' is dict"),
        ("two_sets.pt", "several sets"),
        ("set_bomb.pth", "too many objects"),
        ("sparse.pth", "_rebuild_sparse_tensor"),
        ("nested_load.pt", "asks to run torch.storage._load_from_bytes"),
        ("slow_codec.pth", "asks to run _codecs.encode"),
        ("one_hash.pth", "numbers of over 60 bits"),
        ("one_hash_set.pth", "numbers of over 60 bits"),
        ("overlap.pt", "packed"),
        ("directory_2_63.pt", "directory has more than"),
        ("index_up", "only files in the same folder"),
        ("index_link", "leads out of its folder"),
        ("index_device", "leads out of its folder"),
        ("index_wide", "differs from the index of shards in 600,001|600001 tensors"),
        ("index_names", "only files in the same folder"),
        ("weights_pipe", "no regular file"),
        ("config_device", "no regular file"),
        ("run_up", "no such file in the checkpoint"),
    ],
)
def test_the_refusal_says_why(outcomes, name, says):
    assert re.search(says, outcomes[name][2]), outcomes[name][2]


def test_reads_what_safetensors_and_torch_write(tmp_path):
    save_file(STATE, tmp_path / "a.safetensors")
    torch.save(STATE, tmp_path / "a.pth")
    torch.save(STATE, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": STATE, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "wrapped.pt")
    torch.save({"model": torch.nn.Linear(5, 3).state_dict(), "args": None}, tmp_path / "model.pt")
    torch.save({"x": torch.nn.Parameter(torch.ones(2))}, tmp_path / "parameter.pt")
    torch.save({"x": torch.ones(3, 7).T, "y": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "view.pt")
    for name, kind in (("a.safetensors", "safetensors"), ("a.pth", "zip"), ("old.bin", "legacy")):
        assert kind_of(tmp_path / name) == kind
        assert same(read_file(tmp_path / name), STATE)
    assert same(read_file(tmp_path / "wrapped.pt"), STATE)
    assert set(read_file(tmp_path / "model.pt")) == {"weight", "bias"}
    assert not read_file(tmp_path / "parameter.pt")["x"].requires_grad
    assert read_file(tmp_path / "view.pt")["x"].shape == (7, 3)


def test_notes_beside_the_tensors_are_left_out(tmp_path):
    """Pytorch-UNet keeps the values of its masks among the weights."""
    notes = {"mask_values": [0, 255], "epoch": 7, "name": "unet", "done": True, "sizes": (3, 4.5)}
    torch.save({**STATE, **notes}, tmp_path / "m.pth")
    assert same(read_file(tmp_path / "m.pth"), STATE)
    torch.save({**STATE, "masks": [torch.zeros(3)]}, tmp_path / "list.pth")
    with pytest.raises(BadInput, match=r"'masks' is list, no tensor"):
        read_file(tmp_path / "list.pth")
    torch.save(notes, tmp_path / "notes.pth")
    with pytest.raises(BadInput, match=r"no tensor"):
        read_file(tmp_path / "notes.pth")


def test_the_format_is_told_by_content_not_by_name(tmp_path):
    save_file(STATE, tmp_path / "wrong.pth")
    assert same(read_file(tmp_path / "wrong.pth"), STATE)
    torch.save(STATE, tmp_path / "wrong.safetensors")
    with pytest.raises(BadInput, match=r"torch\.save.*rename it"):
        read_file(tmp_path / "wrong.safetensors")


def test_reading_maps_the_file_instead_of_copying_it(tmp_path):
    torch.save({"x": torch.zeros(16 << 20)}, tmp_path / "large.pth")
    code = (
        "import resource, sys; from pathlib import Path; from jingdu.weights.files import read_file\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); x = read_file(Path(sys.argv[1]))['x']; print(peak() - before, x.numel())"
    )
    root = Path(jingdu.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "large.pth")], capture_output=True, text=True, cwd=root, check=True
    )
    kilobytes, count = map(int, done.stdout.split())
    assert count == 16 << 20 and kilobytes < 20_000


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0.0, 1.0, exclude_max=True), name=st.sampled_from(["a.safetensors", "a.pth", "old.pth"]))
def test_a_cut_file_is_always_refused(tmp_path_factory, share, name):
    folder = tmp_path_factory.mktemp("cut")
    if name == "a.safetensors":
        save_file(STATE, folder / name)
    else:
        torch.save(STATE, folder / name, _use_new_zipfile_serialization=name == "a.pth")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(BadInput, match=name):
        read_file(folder / name)


@settings(max_examples=150, deadline=None)
@given(
    places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=8),
    name=st.sampled_from(["a.safetensors", "a.pth", "old.pth"]),
)
def test_damage_gives_tensors_or_the_one_exception(tmp_path_factory, places, name):
    folder = tmp_path_factory.mktemp("flip")
    if name == "a.safetensors":
        save_file(STATE, folder / name)
    else:
        torch.save(STATE, folder / name, _use_new_zipfile_serialization=name == "a.pth")
    content = bytearray((folder / name).read_bytes())
    for where, change in places:
        content[int(where * len(content))] ^= change
    (folder / name).write_bytes(bytes(content))
    try:
        found = read_file(folder / name)
    except BadInput:
        return
    assert all(isinstance(key, str) and type(value) is torch.Tensor for key, value in found.items())


def test_limits_leave_room_for_the_largest_honest_files():
    assert PICKLE_OPCODES >= 40 * 12_000
    assert DIRECTORY_BYTES >= 60 * 60_000


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.pth"):
        with pytest.raises(BadInput, match="cannot be read"):
            read_file(path)


def test_save_is_whole_keeps_shared_tensors_and_describes(tmp_path):
    shared = torch.ones(4, 3)
    path = tmp_path / "deep" / "w.safetensors"
    save({"a": shared, "b": shared, "c": shared.T}, path, {"variant": "x", "classes": ["猫", "dog"]})
    found = read_file(path)
    assert torch.equal(found["a"], found["b"]) and found["c"].shape == (3, 4)
    assert json.loads(read_metadata(path)["jingdu"]) == {"variant": "x", "classes": ["猫", "dog"]}
    assert [one.name for one in path.parent.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("key", ["_orig_mod.a", "network._orig_mod.a", "module.a"])
def test_save_refuses_keys_of_a_wrapper(tmp_path, key):
    with pytest.raises(Refused, match=r"wrapper.*" + re.escape(key)):
        save({key: torch.ones(1)}, tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())


def test_save_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save({"a": torch.ones(2)}, path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jingdu.weights.files.save_file", full)
    with pytest.raises(Refused, match=r"No space left.*intact"):
        save({"a": torch.zeros(2)}, path)
    assert torch.equal(read_file(path)["a"], torch.ones(2))
    assert [one.name for one in tmp_path.iterdir()] == ["w.safetensors"]


FORBIDDEN = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
"""Modules that run what they read."""


def trusting(text: str) -> list[str]:
    """What in some code would run a file that it reads."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in FORBIDDEN]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in FORBIDDEN:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            if options.get("weights_only", "True") != "True" or options.get("allow_pickle", "False") != "False":
                found.append(name)
            if name == "torch.load" and "weights_only" not in options:
                found.append(name)
            if name in ("eval", "exec", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter"):
                found.append(name)
    return found


def test_no_code_of_the_library_trusts_a_file():
    for path in Path(jingdu.__file__).parent.rglob("*.py"):
        assert not trusting(path.read_text("utf-8")), path


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import load",
        "import joblib.numpy_pickle",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)",
        "exec(text)",
        "torch.jit.load(path)",
    ],
)
def test_what_trusts_a_file_is_found(line):
    assert trusting(line) and not trusting("torch.load(path, weights_only=True); model.eval(); pickletools.genops(x)")


def test_arrays_of_numpy(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    arrays = {"net/kernel": np.arange(6.0, dtype=">f4").reshape(2, 3), "net/bias": np.arange(3)}
    np.savez(path, **arrays)
    found = read_file(path)
    assert set(found) == {"net.kernel", "net.bias"} and found["net.kernel"].dtype == torch.float32
    assert found["net.kernel"].tolist() == arrays["net/kernel"].tolist()


@pytest.mark.parametrize("kind, message", [
    ("packed", "savez, which does not"), ("objects", "damaged numpy"), ("text", "not numbers"), ("cut", "numpy|cut"),
    ("twice", "twice"),
])  # fmt: skip
def test_arrays_that_are_refused(kind: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    content = {
        "objects": {"a": np.array([{}, []], dtype=object)}, "text": {"a": np.array(["x"])},
        "twice": {"a/b": np.zeros(2), "a.b": np.zeros(2)},
    }.get(kind, {"a": np.zeros(1000)})  # fmt: skip
    (np.savez_compressed if kind == "packed" else np.savez)(path, **content)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BadInput, match=message):
        read_file(path)
