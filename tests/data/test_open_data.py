import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch

from jingdu.data import EMBEDDED, open_data
from jingdu.data.draws import Draws
from jingdu.data.preprocess import Preprocess
from jingdu.errors import Refused, UsageError

GREY = Preprocess(channels=1)


def first(spec, split="train", preprocess=GREY):
    return open_data(spec, split, preprocess).batch(np.arange(3), Draws(0, 0, np.arange(3)))


def test_names_and_arguments():
    assert first("digits")["image"].shape == (3, 1, 8, 8)
    assert first("digits(size=11)")["image"].shape == (3, 1, 11, 11)
    assert first("scenes(size=17, max_shapes=2)", preprocess=Preprocess())["image"].shape == (3, 3, 17, 17)
    assert len(open_data("scenes(count=7)", "train", Preprocess())) == 7


def test_size_and_channels_come_from_preprocess():
    assert first("digits", preprocess=Preprocess())["image"].shape == (3, 3, 8, 8)
    assert first("scenes", preprocess=Preprocess(size=23, channels=1))["image"].shape == (3, 1, 23, 23)
    assert first("digits(size=23)", preprocess=Preprocess(size=23, channels=1))["image"].shape == (3, 1, 23, 23)


@pytest.mark.parametrize("spec", ["digits(size=9)", "digits(channels=3)"])
def test_text_that_contradicts_preprocess_is_refused(spec):
    with pytest.raises(UsageError, match="make them equal"):
        open_data(spec, "train", Preprocess(size=23, channels=1))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "unknown data set 'digit'. Did you mean digits"),
        ("cifar", r"unknown data set 'cifar'.*Known: affine_digits, catalogues, digits.*hf:OWNER/NAME"),
        ("digits(sise=3)", "unknown argument of digits 'sise'. Did you mean size"),
        ("digits(3)", "cannot read"),
        ("digits(size=__import__('os'))", "cannot read"),
        ("text", "missing a required argument: 'path'"),
        ("hf:a/b(colums=1)", "unknown argument of hf: 'colums'"),
    ],
)
def test_unknown_names_say_what_there_is(spec, message):
    with pytest.raises(UsageError, match=message):
        open_data(spec, "train", Preprocess())


@pytest.mark.parametrize("spec", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "imagenet", "../digits"])
def test_a_missing_folder_is_named_with_the_layout(spec):
    with pytest.raises(Refused, match=r"no such folder.*FOLDER/train/CLASS"):
        open_data(spec, "train", Preprocess())


def test_an_embedded_name_wins_over_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert len(open_data("digits", "test", GREY)) == 450
    with pytest.raises(Refused, match="no image files and no class folders"):
        open_data("./digits", "test", GREY)


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "images.zip").write_bytes(b"PK")
    with pytest.raises(Refused, match="a file, not a folder"):
        open_data(str(tmp_path / "images.zip"), "train", Preprocess())


def test_crop_needs_image_files():
    with pytest.raises(UsageError, match="digits has none"):
        open_data("digits", "train", GREY, crop=lambda image, draws, preprocess: torch.zeros(1, 8, 8))


def test_every_embedded_set_opens_by_its_name(tmp_path):
    (tmp_path / "a.txt").write_text("one line\n" * 30)
    specs = {name: name for name in EMBEDDED} | {"text": f"text(path={str(tmp_path / 'a.txt')!r})"}
    pair = [tmp_path / "line.txt", tmp_path / "ligne.txt"]
    for path in pair:
        path.write_text("\n".join(f"{path.stem} {i}" for i in range(30)))
    specs["parallel"] = f"parallel(source={str(pair[0])!r}, target={str(pair[1])!r}, share=0.5)"
    for name, spec in specs.items():
        for split in ("train", "test"):
            data = open_data(spec, split, Preprocess())
            assert len(data) >= 1
            indices = np.array([len(data) - 1, 0])
            batch = data.batch(indices, Draws(0, 0, indices))
            assert all(len(values) == 2 for values in batch.values()), name
            if "image" in batch:
                assert batch["image"].shape[1] == 3
            assert ("label" in batch) == (data.classes is not None)


def test_the_table_of_names_needs_no_torch():
    code = "import sys, jingdu.data, jingdu.data.preprocess; sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_argument_is_documented():
    from importlib import import_module

    for name, module in EMBEDDED.items():
        function = inspect.unwrap(getattr(import_module(module), name))
        parameters = [p for p in inspect.signature(function).parameters if p != "split"]
        if len(parameters) > 1:
            assert all(f"{p}: " in function.__doc__ for p in parameters), name
