import ast
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from jingdu.data import embedded
from jingdu.data.draws import Draws
from jingdu.data.embedded import affine_digits, digits, faces, photos, pydoc_topics, stdlib, text
from jingdu.errors import BadInput, Missing, UsageError


def everything(data):
    return data.batch(np.arange(len(data)), Draws(0, 0, np.arange(len(data))))


# Images -----------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_divided_once_and_for_all():
    train, test = everything(digits("train")), everything(digits("test"))
    assert (len(train["label"]), len(test["label"])) == (1347, 450)
    bunch = load_digits()
    ours = torch.cat((train["image"], test["image"])).flatten(1) * 16
    labels = torch.cat((train["label"], test["label"]))
    both = {(*row, label) for row, label in zip(ours.int().tolist(), labels.tolist(), strict=True)}
    theirs = {(*row, label) for row, label in zip(bunch.data.astype(int).tolist(), bunch.target.tolist(), strict=True)}
    assert both == theirs and len(labels) == len(bunch.target)
    shares = torch.bincount(test["label"]) / torch.bincount(labels)
    assert float((shares - 0.25).abs().max()) < 0.01
    assert torch.equal(everything(digits("test"))["image"], test["image"])


def test_few_digits_are_the_first_and_of_all_classes():
    few = everything(digits("train", count=47))
    assert torch.equal(few["image"], everything(digits("train"))["image"][:47])
    assert few["label"].bincount(minlength=10).min() >= 2
    assert len(digits("test", count=47)) == 450
    for count in (0, 1348):
        with pytest.raises(UsageError, match="1,347"):
            digits("train", count=count)


def test_digits_at_another_size_in_colour_and_flat():
    plain = everything(digits("test"))["image"]
    large = everything(digits("test", size=19, channels=3))["image"]
    assert large.shape == (450, 3, 19, 19)
    assert torch.equal(large[:, 0], large[:, 2])
    assert float((large.mean((1, 2, 3)) - plain.mean((1, 2, 3))).abs().max()) < 0.05
    flat = everything(digits("test", flat=True))
    assert "image" not in flat and torch.equal(flat["features"], plain.flatten(1))


def test_affine_digits_are_new_in_every_epoch_and_fixed_for_testing():
    train, test = affine_digits("train"), affine_digits("test", size=23, copies=3, channels=3)
    assert (len(train), len(test), train.classes) == (1347, 3 * 450, digits("train").classes)
    rows = np.array([5, 1300, 17])
    first, later = (train.batch(rows, Draws(0, epoch, rows)) for epoch in (0, 1))
    assert first["image"].shape == (3, 1, 20, 20) and not torch.equal(first["image"], later["image"])
    assert torch.equal(train.batch(rows[1:], Draws(0, 0, rows[1:]))["image"], first["image"][1:])
    assert torch.equal(first["label"], digits("train").fields["label"][rows])
    copies = np.array([7, 457, 907])  # of the same digit
    one, other = (test.batch(copies, Draws(seed, 0, copies)) for seed in (0, 1))
    assert torch.equal(one["image"], other["image"]) and one["image"].shape == (3, 3, 23, 23)
    assert len(set(one["label"].tolist())) == 1
    assert not torch.equal(one["image"][0], one["image"][1]) and not torch.equal(one["image"][1], one["image"][2])
    assert torch.equal(one["image"][:, 0], one["image"][:, 2])
    assert float(one["image"].min()) >= 0 and float(one["image"].max()) <= 1


def test_affine_digits_stay_legible():
    """They keep most of their ink: little of it leaves the picture."""
    ink = everything(affine_digits("test", copies=1))["image"].sum((1, 2, 3))
    whole = everything(digits("test", size=20))["image"].sum((1, 2, 3))
    share = ink / whole  # scales of 0.5 to 0.9 are areas of 0.25 to 0.81
    assert float(share.min()) > 0.15 and float(share.max()) < 0.85
    assert abs(float(share.mean()) - 0.48) < 0.04
    with pytest.raises(UsageError, match="whole numbers"):
        affine_digits("test", copies=0)


def test_faces_are_the_patches_of_the_package():
    from skimage.data import lfw_subset

    train, test = faces("train"), faces("test")
    assert train.classes == ("face", "other")
    assert torch.bincount(train.fields["label"]).tolist() == [75, 75]
    assert torch.bincount(test.fields["label"]).tolist() == [25, 25]
    patches = torch.from_numpy(lfw_subset()).float().flatten(1)
    for part in (train, test):
        exact = "donot_use_mm_for_euclid_dist"
        distances = torch.cdist(part.fields["image"].flatten(1), patches, compute_mode=exact)
        assert float(distances.min(1).values.max()) == 0
        assert torch.equal(distances.argmin(1) // 100, part.fields["label"])


def test_photos_that_are_held_out_are_others():
    train, test = everything(photos("train", size=None)), everything(photos("test", size=None))
    assert not set(train["name"]) & set(test["name"])
    assert len(train["image"]) == 5 and len(test["image"]) == 2
    for image in train["image"] + test["image"]:
        assert image.shape[0] == 3 and min(image.shape[1:]) >= 300
        assert float(image.min()) >= 0 and float(image.max()) <= 1


def test_training_windows_are_functions_of_seed_epoch_and_index():
    data = photos("train", size=17, count=31)
    assert len(data) == 31
    whole = data.batch(np.arange(31), Draws(0, 3, np.arange(31)))
    part = data.batch(np.array([19, 4]), Draws(0, 3, [19, 4]))
    assert torch.equal(part["image"], whole["image"][[19, 4]])
    assert part["name"] == [whole["name"][19], whole["name"][4]]
    later = data.batch(np.arange(31), Draws(0, 4, np.arange(31)))
    assert not torch.equal(later["image"], whole["image"])
    assert whole["image"].shape == (31, 3, 17, 17)
    assert float(whole["image"].min()) >= 0 and float(whole["image"].max()) <= 1


def test_test_windows_are_fixed():
    data = photos("test", size=17, test_count=13)
    first = data.batch(np.arange(13), Draws(0, 0, np.arange(13)))
    again = data.batch(np.arange(13), Draws(8, 5, np.arange(13)))
    assert torch.equal(first["image"], again["image"])
    assert set(first["name"]) <= {"chelsea", "flower"}


def test_windows_at_scale_one_are_the_photographs_own_pixels():
    data = photos("test", size=23, scale=(1, 1), test_count=5)
    batch = everything(data)
    wholes = dict(zip(*(everything(photos("test", size=None))[key] for key in ("name", "image")), strict=True))
    for window, name in zip(batch["image"], batch["name"], strict=True):
        corners = wholes[name].unfold(1, 23, 1).unfold(2, 23, 1)[:, :, :, 0, 0]
        places = (corners == window[:, 0, 0, None, None]).all(0).nonzero().tolist()
        assert any(torch.equal(wholes[name][:, y : y + 23, x : x + 23], window) for y, x in places)


@pytest.mark.parametrize("arguments", [{"size": 301}, {"size": 0}, {"scale": (0.5, 2.0)}, {"scale": (3.0, 2.0)}])
def test_windows_that_do_not_fit_are_refused(arguments):
    with pytest.raises(UsageError, match="photos"):
        photos("test", **arguments)


def test_nothing_is_ever_downloaded():
    """Every picture that we open lies in the installed packages, as their own lists of files say."""
    from importlib.metadata import files

    shipped = {path.name for path in files("scikit-image") or []}
    wanted = {"astronaut.png", "coffee.png", "motorcycle_left.png", "motorcycle_right.png", "motorcycle_disp.npz",
              "rocket.jpg", "chelsea.png", "lfw_subset.npy"}  # fmt: skip
    assert wanted <= shipped
    assert {"china.jpg", "flower.jpg"} <= {path.name for path in files("scikit-learn") or []}


def test_without_scikit_image_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(Missing, match=r"pip install 'jingdu\[laptop\]'"):
        faces("train")


def test_a_distribution_without_the_file_is_told_so():
    with pytest.raises(Missing, match=r"eagle.png: scikit-image .* is installed without it"):
        embedded._shipped("eagle", "eagle.png")


# Text -------------------------------------------------------------------------------------------


def test_stdlib_is_source_code():
    train, test = stdlib("train"), stdlib("test")
    assert not set(train.names) & set(test.names)
    assert len(train) > 300 and 0.05 < len(test) / (len(train) + len(test)) < 0.15
    assert train.names == sorted(train.names)
    assert {"argparse.py", "json/decoder.py"} <= set(train.names) | set(test.names)
    assert not {"test", "tests", "site-packages"} & {part for name in train.names for part in name.split("/")}
    assert not any("sysconfigdata" in name for name in train.names + test.names)
    batch = everything(train)
    assert batch["name"] == train.names
    assert all(text.strip() for text in batch["text"])
    assert sum(map(len, batch["text"])) > 4_000_000
    ast.parse(batch["text"][train.names.index("argparse.py")] if "argparse.py" in train.names else batch["text"][0])


def test_modules_that_cannot_be_read_are_left_out(tmp_path):
    (tmp_path / "package" / "tests").mkdir(parents=True)
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "good.py").write_text("x = 1\n")
    (tmp_path / "empty.py").write_text("\n")
    (tmp_path / "_sysconfigdata_x.py").write_text("y = 2\n")
    (tmp_path / "package" / "latin.py").write_bytes("# coding: latin-1\nname = 'é'\n".encode("latin-1"))
    (tmp_path / "package" / "broken.py").write_bytes(b"name = '\xe9'\n")
    (tmp_path / "package" / "lost.py").write_bytes(b"# coding: klingon\n")
    (tmp_path / "package" / "tests" / "test_x.py").write_text("pass\n")
    (tmp_path / "site-packages" / "other.py").write_text("z = 3\n")
    assert embedded._modules(tmp_path, "library") == ("good.py", "package/latin.py")
    assert embedded._modules(tmp_path, "tests") == ("package/tests/test_x.py",)
    assert "é" in embedded._read_source(tmp_path / "package" / "latin.py")


def test_a_python_without_sources_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(Missing, match="no sources"):
        stdlib("train")


def test_pydoc_topics_are_prose():
    train, test = everything(pydoc_topics("train")), everything(pydoc_topics("test"))
    names = train["name"] + test["name"]
    assert len(set(names)) == len(names) > 50 and len(test["name"]) >= 3
    assert "the" in train["text"][0].split()


def test_text_of_a_folder(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text(f"document {number}", "utf-8")
    train, test = everything(text("train", str(tmp_path))), everything(text("test", str(tmp_path)))
    assert sorted(train["text"] + test["text"]) == sorted(f"document {number}" for number in range(40))
    assert 1 <= len(test["text"]) <= 10
    (tmp_path / "0.txt").unlink()
    again = everything(text("test", str(tmp_path)))
    assert set(again["name"]) == set(test["name"]) - {"0.txt"}, "removing a document moves no other"


def test_text_of_a_divided_folder_and_of_one_file(tmp_path):
    for split, words in (("train", "à droite"), ("test", "à gauche")):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.txt").write_text(words, "utf-8")
    assert everything(text("train", str(tmp_path)))["text"] == ["à droite"]
    assert everything(text("test", str(tmp_path)))["text"] == ["à gauche"]
    book = tmp_path / "book.txt"
    book.write_text("".join(f"line {number}\n" for number in range(100)))
    first, last = (everything(text(split, str(book)))["text"][0] for split in ("train", "test"))
    assert first + last == book.read_text() and last.startswith("line 9") and 5 < last.count("\n") < 11


def test_text_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        text("train", str(tmp_path / "nothing"))
    with pytest.raises(BadInput, match=r"too few \.txt files"):
        text("train", str(tmp_path))
    (tmp_path / "latin.txt").write_bytes("naïve\n".encode("latin-1") * 30)
    with pytest.raises(BadInput, match="not UTF-8"):
        text("train", str(tmp_path / "latin.txt"))
    (tmp_path / "short.txt").write_text("one line")
    with pytest.raises(BadInput, match="too few lines"):
        text("train", str(tmp_path / "short.txt"))
