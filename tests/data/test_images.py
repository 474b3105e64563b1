import random
import warnings
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from jingdu import limits
from jingdu.data import images as module
from jingdu.data.images import (
    decode,
    expand_inputs,
    load_image,
    normalise,
    prepare,
    resize_shorter,
    to_channels,
    to_tensor,
)
from jingdu.data.preprocess import IMAGENET, Preprocess
from jingdu.errors import BadInput, Refused, UsageError
from tests.data.files import encoded, picture, png_header, save

# Sound files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_grey_or_colour(tmp_path, mode, channels):
    image = picture(19, 13)
    path = save(tmp_path / "a.png", image.convert(mode))
    result = decode(path, channels)
    assert result.mode == ("L" if channels == 1 else "RGB") and result.size == (19, 13)
    difference = np.abs(np.asarray(result, float) - np.asarray(image.convert(result.mode), float)).mean()
    assert difference < {"1": 130, "P": 20}.get(mode, 90)
    if mode == result.mode:
        assert difference == 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_formats_are_known_by_content(tmp_path, kind):
    path = tmp_path / "picture.txt"
    path.write_bytes(encoded(kind))
    difference = np.abs(np.asarray(decode(path), float) - np.asarray(picture(41, 29), float))
    assert difference.mean() < 8


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "ICO", "EPS"])
def test_other_formats_are_refused_whatever_their_name(tmp_path, kind):
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(kind))
    with pytest.raises(BadInput, match="not a sound JPEG, PNG, WEBP image"):
        decode(path)


def test_cmyk_jpeg(tmp_path):
    image = picture(23, 17)
    path = save(tmp_path / "a.jpg", image.convert("CMYK"), quality=95)
    with Image.open(path) as stored:
        assert stored.mode == "CMYK"
    assert np.abs(np.asarray(decode(path), float) - np.asarray(image, float)).mean() < 6


def test_sixteen_bits_of_grey_are_scaled_not_cut(tmp_path):
    values = np.arange(17 * 13, dtype=np.uint16).reshape(13, 17) * 296
    path = save(tmp_path / "a.png", Image.fromarray(values))
    assert np.array_equal(np.asarray(decode(path, 1)), values >> 8)
    assert decode(path, 3).mode == "RGB"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_transparent_parts_become_white(tmp_path, mode):
    image = Image.new("RGBA", (17, 13), (0, 0, 0, 0))
    image.paste((200, 0, 0, 255), (0, 0, 5, 13))
    if mode == "P":
        image = image.convert("RGB").quantize(4)
        path = save(tmp_path / "a.png", image, transparency=image.getpixel((10, 5)))
    elif mode in ("L", "RGB"):
        image = image.convert(mode)
        path = save(tmp_path / "a.png", image, transparency=image.getpixel((10, 5)))
    else:
        path = save(tmp_path / "a.png", image.convert(mode))
    result = decode(path)
    assert result.getpixel((10, 5)) == (255, 255, 255)
    assert result.getpixel((2, 5)) == ((200, 0, 0) if mode in ("RGBA", "P", "RGB") else (60, 60, 60))
    assert decode(path, 1).getpixel((10, 5)) == 255


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_exif_orientation(tmp_path, orientation, kind):
    """Top left is dark, top right is bright, whatever way the camera was held."""
    upright = Image.new("L", (24, 16), 100)
    upright.paste(0, (0, 0, 12, 8))
    upright.paste(250, (12, 0, 24, 8))
    stored = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # the inverse turn, by Pillow's numbers
    image = upright if stored is None else upright.transpose(Image.Transpose(stored))
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = decode(save(tmp_path / f"a.{kind}", image, exif=exif), 1)
    assert result.size == (24, 16)
    assert abs(result.getpixel((6, 4)) - 0) < 9 and abs(result.getpixel((18, 4)) - 250) < 9
    assert abs(result.getpixel((6, 12)) - 100) < 9


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # as the module has it; pytest's own come first
def test_damaged_exif_does_not_spoil_a_sound_picture(tmp_path):
    for damage in (b"Exif\x00\x00", b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x12", b"Exif\x00\x00MM\x00*junk"):
        path = save(tmp_path / "a.jpg", exif=damage)
        assert decode(path).size == (19, 13)


def test_an_open_file_and_its_name():
    assert decode(BytesIO(encoded("PNG"))).size == (41, 29)
    with pytest.raises(BadInput, match=r"^row 7: not a sound") as caught:
        decode(BytesIO(b"nothing"), name="row 7")
    assert str(caught.value.path) == "row 7"


# Bad files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a sound"),
        (b"hello", "not a sound"),
        (b"\xff\xd8\xff\xe0", "not a sound"),
        (png_header(8000, 8000), "8000 x 8000 pixels, more than 50,000,000"),
        (png_header(60_000, 60_000), "more than 50,000,000 pixels"),
        (png_header(100, 100), "damaged image|not a sound"),
    ],
)
def test_bad_content_is_named(tmp_path, content, message):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message) as caught:
        decode(path)
    assert caught.value.path == path


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        decode(tmp_path / "nothing.jpg")
    with pytest.raises(BadInput, match="a folder"):
        decode(tmp_path)


def test_the_cap_is_checked_before_anything_is_decoded(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", picture(40, 30))
    monkeypatch.setattr(limits, "MAX_PIXELS", 1199)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(BadInput, match="40 x 30 pixels"):
        decode(path)


def test_pillows_own_bomb_warning_is_an_error_too(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(10_000, 10_000))  # above Pillow's warning, below its error
    for action in ("error", "default", "ignore"):
        with warnings.catch_warnings(record=True):
            warnings.simplefilter(action)
            with pytest.raises(BadInput, match="more than 50,000,000"):
                decode(path)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damage_is_bad_input_or_a_picture_and_nothing_else(kind):
    """Truncated and overwritten files: no other exception, and the right size if anything."""
    rng = random.Random(kind)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    whole = encoded(kind, exif=exif)
    refused = 0
    for trial in range(200):
        damaged = bytearray(whole)
        if trial % 2:
            del damaged[rng.randrange(len(damaged)) :]
        for _ in range(rng.randrange(1, 9) if damaged else 0):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            result = decode(BytesIO(bytes(damaged)), name="damaged")
        except BadInput as error:
            assert str(error).startswith("damaged: ")
            refused += 1
        else:
            assert result.mode == "RGB" and result.width * result.height <= limits.MAX_PIXELS
    assert refused > 60


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_files_are_refused(kind, share):
    whole = encoded(kind)
    with pytest.raises(BadInput):
        decode(BytesIO(whole[: int(len(whole) * share)]))


# Tensors ----------------------------------------------------------------------------------------


def test_to_tensor():
    image = picture(7, 5)
    tensor = to_tensor(image)
    assert tensor.shape == (3, 5, 7) and tensor.is_contiguous()
    assert torch.equal(tensor[1, 4], torch.tensor(np.asarray(image)[4, :, 1] / np.float32(255)))
    assert to_tensor(image.convert("L")).shape == (1, 5, 7)


def test_prepare_without_a_size_keeps_the_image():
    assert torch.equal(prepare(picture(7, 5), Preprocess()), to_tensor(picture(7, 5)))


@pytest.mark.parametrize(("width", "height"), [(1, 60_000), (60_000, 1)])
def test_long_thin_images_do_not_explode(tmp_path, width, height):
    path = tmp_path / "thin.png"
    path.write_bytes(encoded("PNG", Image.new("L", (width, height))))
    with pytest.raises(BadInput, match=r"thin\.png: .* become .* more than 50,000,000"):
        load_image(path, IMAGENET)


def test_resize_shorter_truncates():
    assert resize_shorter(picture(101, 67), 50).size == (75, 50)  # 75.37
    assert resize_shorter(picture(67, 101), 50).size == (50, 75)
    image = picture(67, 101)
    assert resize_shorter(image, 67) is image


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 3, 5, 7), (4, 2, 3, 5, 7)])
def test_normalise(shape):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    preprocess = Preprocess(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    result = normalise(images, preprocess)
    for channel in range(3):
        expected = (images.select(-3, channel) - preprocess.mean[channel]) / preprocess.std[channel]
        assert torch.allclose(result.select(-3, channel), expected)
    one = normalise(images, Preprocess(mean=(0.4,), std=(0.5,)))
    assert torch.allclose(one, (images - 0.4) / 0.5)
    assert torch.equal(normalise(images, Preprocess()), images)


def test_normalise_refuses_numbers_of_other_channels():
    with pytest.raises(UsageError, match="mean has 3 numbers, but the images have 1 channels"):
        normalise(torch.zeros(2, 1, 5, 7), IMAGENET)


def test_to_channels_is_pillows_grey():
    image = picture(31, 23)
    grey = to_channels(to_tensor(image), 1)
    assert float((grey - to_tensor(image.convert("L"))).abs().max()) <= 1.01 / 255
    three = to_channels(grey[None], 3)
    assert three.shape == (1, 3, 23, 31) and torch.equal(three[:, 0], three[:, 2])
    assert to_channels(three, 3) is three


def test_load_image_is_what_the_network_sees(tmp_path):
    path = save(tmp_path / "a.jpg", picture(300, 270))
    expected = normalise(prepare(decode(path), IMAGENET), IMAGENET)
    assert torch.equal(load_image(path, IMAGENET), expected) and expected.shape == (3, 224, 224)


def test_decoding_in_threads_leaves_the_warning_filters_alone(tmp_path):
    path = save(tmp_path / "a.png")
    before = list(warnings.filters)
    list(module._pool().map(lambda _: decode(path), range(50)))
    assert warnings.filters == before


# Inputs -----------------------------------------------------------------------------------------


def test_expand_inputs(tmp_path):
    for name in ("b.JPG", "a.png", "sub/c.webp", "sub/deep/d.jpeg", "._a.png", ".hidden/e.png"):
        save(tmp_path / name) if not name.startswith("._") else (tmp_path / name).write_bytes(b"finder")
    (tmp_path / "notes.txt").write_text("no image")
    found = expand_inputs([tmp_path])
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a.png", "b.JPG", "sub/c.webp", "sub/deep/d.jpeg"]
    assert expand_inputs([str(tmp_path / "notes.txt"), tmp_path / "sub"]) == [tmp_path / "notes.txt", *found[2:]]
    assert expand_inputs([]) == []


def test_expand_inputs_names_what_is_missing(tmp_path):
    with pytest.raises(BadInput, match=r"nothing\.jpg: no such file or folder"):
        expand_inputs([tmp_path / "nothing.jpg"])
    with pytest.raises(BadInput, match="no image files"):
        expand_inputs([tmp_path])


def test_bad_input_is_refused():
    assert issubclass(BadInput, Refused)
