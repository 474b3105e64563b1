"""The dark channel's filters against OpenCV's on one photograph: python -m benchmarks.dark_channel.

One thread each. The minimum filter against erode, the guided filter against ximgproc.guidedFilter, both exact and with the
coefficients of every fourth pixel. Soft matting has no reference of its own speed; its time stands beside.
"""

import time
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.paired import compare, save
from jingdu.data.embedded import photos
from jingdu.papers.imaging.dark_channel import DarkChannel, coarse_transmission, dark_channel, guided_filter


def cases(rounds: int = 15) -> list[dict[str, Any]]:
    """On scikit-learn's photograph of a temple, 640x427 pixels, float32."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    whole = photos("train", size=None)
    image = next(x for x, name in zip(whole.fields["image"], whole.fields["name"], strict=True) if name == "china")[
        None
    ]
    pixels = np.ascontiguousarray(image[0].permute(1, 2, 0).numpy())
    bright = 255 * pixels
    square, x = np.ones((15, 15), np.uint8), coarse_transmission(image, torch.ones(1, 3))
    plain = x[0, 0].numpy()

    def erode() -> Any:
        return cv2.erode(pixels.min(2), square, borderType=cv2.BORDER_REPLICATE)

    def guided(radius: int = 30, scale: float = 1.0) -> Any:
        return cv2.ximgproc.guidedFilter(bright, plain, radius, 1e-3 * 255**2, None, -1, scale)

    works = {
        "minimum filter, erode": (lambda: dark_channel(image), erode),
        "guided filter, guidedFilter": (lambda: guided_filter(image, x), guided),
        "fast guided filter, guidedFilter at a quarter": (
            lambda: guided_filter(image, x, subsample=4),
            lambda: guided(8, 0.25),
        ),
    }
    assert np.array_equal(dark_channel(image)[0, 0].numpy(), erode())
    assert np.abs(guided_filter(image, x)[0, 0].numpy() - guided())[62:-62, 62:-62].max() < 1e-3
    assert np.abs(guided_filter(image, x, subsample=4)[0, 0].numpy() - guided(8, 0.25))[62:-62, 62:-62].mean() < 1e-2
    rows = []
    for name, (ours, theirs) in works.items():
        row = compare(ours, theirs, f"dark_channel, {name} of OpenCV", rounds, 2, "a photograph of 640x427 pixels")
        rows.append(row | {"megapixels_per_second": image[0, 0].numel() / row["ours"] / 1e6})
    return rows


def matting_seconds() -> float:
    """Of the whole method with soft matting, once, on a photograph of half that length."""
    small = torch.nn.functional.avg_pool2d(photos("train", size=None).fields["image"][1][None], 2)
    started = time.perf_counter()
    DarkChannel(refine="matting")(0.3 + 0.6 * small)
    return time.perf_counter() - started


if __name__ == "__main__":
    save(cases(), "dark_channel.json", soft_matting_seconds_320x213=matting_seconds())
