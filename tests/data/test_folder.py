import warnings

import numpy as np
import pytest
import torch

from jingdu.data import open_data
from jingdu.data.draws import Draws
from jingdu.data.images import ImageFolder, decode, load_image, prepare, to_tensor
from jingdu.data.preprocess import Preprocess
from jingdu.errors import BadInput, Refused
from tests.data.files import folder, save

SMALL = Preprocess(size=11, resize=12)


def fetch(data, indices, draws=None):
    indices = np.asarray(indices)
    return data.batch(indices, draws or Draws(0, 0, indices))


# Layouts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("held_out", ["val", "test", "validation", "valid"])
def test_divided(tmp_path, held_out):
    folder(tmp_path, {"train/zebra": 2, "train/ant/deep": 3, f"{held_out}/zebra": 1, f"{held_out}/ant": 2})
    train, test = (open_data(str(tmp_path), split, SMALL) for split in ("train", "test"))
    assert train.classes == test.classes == ("ant", "zebra")
    assert fetch(train, range(5))["label"].tolist() == [0, 0, 0, 1, 1]
    assert fetch(test, range(3))["label"].tolist() == [0, 0, 1]
    path = tmp_path / held_out / "zebra" / "0.png"
    assert torch.equal(fetch(test, [2])["image"][0], prepare(decode(path), SMALL))


def test_validation_wins_over_an_unlabelled_test_folder(tmp_path):
    folder(tmp_path, {"train/a": 1, "train/b": 1, "val/a": 1, "val/b": 1, "test": 5})
    assert len(ImageFolder(tmp_path, "test", SMALL)) == 2


def test_undivided_a_tenth_of_each_class_is_held_out(tmp_path):
    folder(tmp_path, {"ant": 60, "bee": 40, "cow": 2})
    train, test = (ImageFolder(tmp_path, split, SMALL) for split in ("train", "test"))
    files = [path for path, _ in train.files + test.files]
    assert len(files) == len(set(files)) == 102
    assert 3 <= len(test) <= 22
    assert {label for _, label in test.files} == {label for _, label in train.files} == {0, 1, 2}
    kept = {path for path, _ in test.files}
    (tmp_path / "ant" / "0.png").unlink()
    save(tmp_path / "bee" / "new.png")
    later = {path for path, _ in ImageFolder(tmp_path, "test", SMALL).files}
    assert later - {tmp_path / "bee" / "new.png"} == kept - {tmp_path / "ant" / "0.png"}


def test_train_alone_is_divided_like_any_folder(tmp_path):
    folder(tmp_path, {"train/a": 20, "train/b": 20})
    train, test = (ImageFolder(tmp_path, split, SMALL) for split in ("train", "test"))
    assert len(train) + len(test) == 40 and len(test) >= 2
    assert not {path for path, _ in train.files} & {path for path, _ in test.files}


def test_images_without_classes(tmp_path):
    folder(tmp_path, {".": 30})
    train, test = (ImageFolder(tmp_path, split, SMALL) for split in ("train", "test"))
    assert train.classes is None and len(train) + len(test) == 30 and len(test) >= 1
    assert set(fetch(train, [0, 1])) == {"image"}


def test_an_evaluation_folder_alone(tmp_path):
    folder(tmp_path, {"val/a": 2, "val/b": 3})
    assert len(ImageFolder(tmp_path, "test", SMALL)) == 5
    with pytest.raises(Refused, match="has val but no train"):
        ImageFolder(tmp_path, "train", SMALL)


def test_links_to_class_folders_are_followed(tmp_path):
    folder(tmp_path / "store", {"x": 2, "y": 2})
    (tmp_path / "data").mkdir()
    for name in ("x", "y"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "store" / name)
    assert len(ImageFolder(tmp_path / "data", "train", SMALL)) == 2


@pytest.mark.parametrize(
    ("layout", "split", "message"),
    [
        ({}, "train", "no image files and no class folders"),
        ({"a": 3}, "train", "one class only"),
        ({"train/a": 3, "val/a": 3}, "train", "one class only"),
        ({"a": 3, "b": 0}, "train", "b: no image files"),
        ({"train/a": 1, "train/b": 1, "val/a": 1, "val/b": 0}, "test", "b: no image files"),
        ({"train/a": 1, "train/b": 1, "val/a": 1, "val/c": 1}, "test", "c: no training images have this class"),
        ({"train/a": 1, "train/b": 1, "val": 3}, "test", "no class folders"),
        ({"a": 1, "b": 1}, "test", "too few images"),
    ],
)
def test_other_layouts_are_refused(tmp_path, layout, split, message):
    with pytest.raises(Refused, match=message):
        ImageFolder(folder(tmp_path, layout), split, SMALL)


# Batches ----------------------------------------------------------------------------------------


def test_a_batch_is_what_load_image_gives_before_normalising(tmp_path):
    folder(tmp_path, {"a": 9, "b": 8}, sizes=((19, 13), (17, 31), (40, 41)))
    data = ImageFolder(tmp_path, "train", SMALL)
    batch = fetch(data, [3, 0, 7])
    assert batch["image"].shape == (3, 3, 11, 11) and batch["image"].dtype == torch.float32
    for image, index in zip(batch["image"], (3, 0, 7), strict=True):
        assert torch.equal(image, load_image(data.files[index][0], SMALL))
    assert "rows" not in batch


def jitter(image, draws, preprocess):
    """A crop that draws a varying number of times."""
    for _ in range(1 + int(draws.integers(3))):
        left, top = draws.integers(5, 2)[0].tolist()
    return to_tensor(image.crop((left, top, left + 7, top + 7)))


def test_crops_depend_on_their_own_draws_alone(tmp_path):
    folder(tmp_path, {"a": 9, "b": 8})
    data = ImageFolder(tmp_path, "train", Preprocess(), crop=jitter)
    indices = np.arange(len(data))
    whole = data.batch(indices, Draws(2, 5, indices))["image"]
    assert torch.equal(data.batch(np.array([7, 2]), Draws(2, 5, [7, 2]))["image"], whole[[7, 2]])
    assert not torch.equal(data.batch(indices, Draws(2, 6, indices))["image"], whole)


def test_crops_leave_the_draws_of_the_augmentation_alone(tmp_path):
    folder(tmp_path, {"a": 5, "b": 5})
    seen = []

    def remember(image, draws, preprocess):
        seen.append(float(draws.uniform()))
        return to_tensor(image)

    data = ImageFolder(tmp_path, "train", Preprocess(), crop=remember)
    indices = np.arange(4)
    draws, fresh = Draws(0, 0, indices), Draws(0, 0, indices)
    data.batch(indices, draws)
    after = draws.uniform()
    assert torch.equal(after, fresh.uniform())
    assert not set(seen) & set(after.tolist()), "a crop and an augmentation must not share numbers"


def test_the_test_split_is_not_cropped_at_random(tmp_path):
    folder(tmp_path, {"a": 20, "b": 20})
    test = ImageFolder(tmp_path, "test", SMALL, crop=jitter)
    assert fetch(test, [0])["image"].shape == (1, 3, 11, 11)


def test_grey(tmp_path):
    folder(tmp_path, {"a": 3, "b": 3})
    assert fetch(ImageFolder(tmp_path, "train", Preprocess(channels=1)), [0])["image"].shape == (1, 1, 13, 19)


def test_images_of_different_sizes_need_a_size(tmp_path):
    folder(tmp_path, {"a": 9, "b": 8}, sizes=((19, 13), (17, 31)))
    with pytest.raises(Refused, match=r"differ in size: .*png gives .* set --preprocess.size"):
        fetch(ImageFolder(tmp_path, "train", Preprocess()), range(6))


# Damage -----------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path):
    folder(tmp_path, {"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1})
    whole = (tmp_path / "train/a/1.png").read_bytes()
    (tmp_path / "train/a/1.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path


def test_a_damaged_image_stops_with_its_path(damaged):
    with pytest.raises(BadInput, match=r"train/a/1\.png: ") as caught:
        fetch(ImageFolder(damaged, "train", SMALL), range(6))
    assert caught.value.path == damaged / "train/a/1.png"


def test_a_damaged_image_is_left_out_with_one_warning(damaged):
    data = ImageFolder(damaged, "train", SMALL, on_corrupt="skip")
    with pytest.warns(UserWarning, match=r"left out: .*train/a/1\.png") as caught:
        batch = fetch(data, [5, 1, 0])
    assert len(caught) == 1
    assert batch["label"].tolist() == [1, 0] and batch["rows"].tolist() == [0, 2]
    assert len(batch["image"]) == 2
    assert torch.equal(batch["image"][1], load_image(damaged / "train/a/0.png", SMALL))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fetch(data, [1, 2])["rows"].tolist() == [1]
    assert data.skipped == {str(damaged / "train/a/1.png")}


def test_rows_say_whose_draws_are_left(damaged):
    with pytest.warns(UserWarning):
        batch = fetch(ImageFolder(damaged, "train", SMALL, on_corrupt="skip"), [5, 1, 0])
    draws = Draws(0, 0, [5, 1, 0])
    left = draws.take(batch["rows"])
    assert torch.equal(left.uniform(), Draws(0, 0, [5, 0]).uniform())


def test_a_batch_in_which_nothing_is_left_is_refused(damaged):
    data = ImageFolder(damaged, "train", SMALL, on_corrupt="skip")
    with pytest.warns(UserWarning, match="left out"), pytest.raises(Refused, match="every image of a batch is damaged"):
        fetch(data, [1, 1])


def test_a_fault_of_a_crop_is_not_blamed_on_the_image(tmp_path):
    folder(tmp_path, {"a": 3, "b": 3})

    def broken(image, draws, preprocess):
        raise ZeroDivisionError("a fault in the crop")

    with pytest.raises(ZeroDivisionError):
        fetch(ImageFolder(tmp_path, "train", SMALL, crop=broken, on_corrupt="skip"), [0])
