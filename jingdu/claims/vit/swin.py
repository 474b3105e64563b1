"""Swin's claims: what displaced windows and the relative bias are worth, and how the cost grows with the image."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from jingdu.data.preprocess import Preprocess
from jingdu.engine.contracts import Stage
from jingdu.lab import Lab, Outcome, Test, claim

BATCH = 64
PIXELS = Preprocess(mean=(0.4,) * 3, std=(0.2,) * 3)
NETWORK = "swin_mini(image_size=36, patch=6, window=3, width=32, depths=(2,), heads=(2,), num_classes=2{})"
SWIN, STILL, UNBIASED = "", ", shift='none'", ", relative=False"
"""What the network is made without."""


def _train(lab: Lab, seed: int, arms: dict[str, str], data: str, steps: int) -> dict[str, dict[str, float]]:
    """Train all arms alike: test error and weights of each."""
    values = {}
    for name, change in arms.items():
        stage = Stage(
            networks={"network": NETWORK.format(change)},
            data=data,
            preprocess=PIXELS,
            batch_size=BATCH,
            steps=lab.budget(full=steps, smoke=2),
            optimizer="adamw",
            lr=4e-3,
            weight_decay=0.02,
            schedule="cosine(warmup=30)",
            clip=1.0,
        )
        run = lab.train(stage, seed=seed)
        log = [line for line in run.log if "loss" in line]
        lab.curve(name, [line["step"] for line in log], [line["error"] for line in log], "step", "training error")
        weights = sum(parameter.numel() for parameter in run.system.network.parameters())
        values[name] = {"error": run.metrics["error"], "weights": float(weights)}
    return values


def _pictures(lab: Lab, asks: str, others: int) -> None:
    """Three test pictures of each label, a row a label, the borders between the windows drawn in."""
    import numpy as np
    import torch

    from jingdu.data.draws import Draws
    from jingdu.papers.vit.swin import matching

    rows, columns, zoom = 2, 3, 4
    indices = np.arange(40)
    batch = matching("test", asks=asks, others=others).batch(indices, Draws(0, 0, indices))
    chosen = torch.cat([(batch["label"] == label).nonzero()[:columns, 0] for label in range(rows)])
    tiles = []
    for picture in batch["image"][chosen]:
        shown = picture.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2).clone()
        middle = shown.shape[1] // 2
        shown[:, middle - 1 : middle + 1], shown[:, :, middle - 1 : middle + 1] = 1, 1
        tiles.append(torch.nn.functional.pad(shown, (6, 6, 6, 6), value=1.0))
    grid = torch.stack(tiles).unflatten(0, (rows, columns))  # [rows, columns, 3, height, width]
    lab.image("pictures", grid.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2))


def _draw(figure: Any, outcome: Outcome, labels: dict[str, str], above: str) -> None:
    """What is asked, the learning, and the test errors."""
    import numpy as np

    from jingdu.lab.style import PALETTE, draw_dots, draw_image, smooth

    figure.set_size_inches(12.5, 4.4)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
    draw_image(left, outcome, "pictures", title=above)
    for place, (name, label) in enumerate(labels.items()):
        curves = [smooth(ys, 25) for _, ys in outcome.curves[name]]
        steps = np.arange(len(curves[0])) + 1
        for ys in curves:
            middle.plot(steps, 100 * ys, color=PALETTE[place], alpha=0.25, linewidth=1)
        middle.plot(steps, 100 * np.mean(curves, 0), color=PALETTE[place], label=label.replace("\n", " "))
    middle.set(xlabel="step", ylabel="training error (%), mean of 25 steps", ylim=(0, 62))
    middle.legend(loc="lower left")
    middle.set_title("learning")
    draw_dots(right, outcome, labels, "error", scale=100)
    right.set_ylabel("test error (%)")
    right.set_ylim(0, 62)


# Set on 2026-11-26, before the first full run: 3 points. Tried before it, one seed: two touching discs among two others, which
# Swin told in 85 % of the pictures, and with ten others, where 450 steps taught it next to nothing.
@claim(
    "Windows that are displaced in every second block let neighbouring windows be compared, at no weight more.",
    source="Sec. 3.2, Tab. 4",
    tests=(
        Test("not_displaced.error", "displaced.error", above=0.03, about="without displacement more errors"),
        Test(
            "not_displaced.weights", "displaced.weights", below=1.001, ratio=True, about="displacement adds no weights"
        ),
    ),
    seeds=3,
    minutes=4.0,
    about="Pictures of 36x36 pixels, 6x6 patches in 2x2 windows: a ring at the border of a window, right of it, in the next one, "
    "a disc, and two more discs, all red or blue. Have the ring and the disc right of it one colour? Half have. One stage of two "
    "blocks, 32 channels; 450 steps of AdamW with 64 new pictures, alike for both. In one stage nothing can know what no window "
    "sees: the paper's networks still merge patches, and lose 1.1 points on ImageNet.",
)
def displacement(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Train both alike; keep some pictures."""
    values = _train(
        lab, seed, {"displaced": SWIN, "not_displaced": STILL}, "swin.matching(asks='match', others=2)", 450
    )
    if seed == 0:
        _pictures(lab, "match", 2)
    return values


@displacement.figure
def draw_displacement(figure: Any, outcome: Outcome) -> None:
    """What is asked, the learning, and the test errors."""
    labels = {"displaced": "displaced windows", "not_displaced": "windows that\nstay in place"}
    _draw(figure, outcome, labels, "above: they differ; below: they match")
    figure.suptitle("Does the ring match the disc on its right, behind the border of its window?")


# Set on 2026-11-26, before the first full run: better at all. Tried before it, one seed: with the question of the claim above
# and two or four other discs the network without the bias makes 20 and 15 % errors, and with it 15 and 22: it can do without.
@claim(
    "A bias learned for each relative position makes attention in windows better.",
    source="Sec. 3.2, Tab. 4",
    tests=(Test("without_bias.error", "with_bias.error", above=0.0, about="without the relative bias more errors"),),
    seeds=3,
    minutes=3.0,
    about="The pictures of `displacement` with ten more discs: which colour has the disc right of the ring? One stage of two "
    "blocks, 32 channels, no absolute positions; 300 steps of AdamW with 64 new pictures, alike for both. The bias adds 50 "
    "numbers a block.",
)
def relative_bias(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Train both alike; keep some pictures."""
    values = _train(
        lab, seed, {"with_bias": SWIN, "without_bias": UNBIASED}, "swin.matching(asks='colour', others=10)", 300
    )
    if seed == 0:
        _pictures(lab, "colour", 10)
    return values


@relative_bias.figure
def draw_bias(figure: Any, outcome: Outcome) -> None:
    """What is asked, the learning, and the test errors."""
    labels = {"with_bias": "with the\nrelative bias", "without_bias": "without it"}
    _draw(figure, outcome, labels, "above: red; below: blue")
    figure.suptitle("Which colour has the disc on the right of the ring?")


SIDES = (112, 224, 448, 896, 1792)
"""Of the images, in pixels."""
ROUNDS = 6
"""Timed runs of each network at each size; the quickest counts."""
SWIN_SIZES = {"width": 24, "depths": (2, 2, 2, 2), "heads": (1, 2, 4, 8), "num_classes": 10}
GLOBAL_SIZES = {"width": 64, "depth": 2, "heads": 2, "patch": 16, "num_classes": 10}


def _quickest(works: dict[Any, Callable[[], Any]], rounds: int) -> dict[Any, float]:
    """Processor time in seconds of each work's quickest run. They take turns, so that what else the machine does meets all."""
    import gc
    import time

    times: dict[Any, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            gc.collect()
            start = time.process_time()
            work()
            if turn:  # the first is to get warm
                times[name].append(time.process_time() - start)
    return {name: min(found) for name, found in times.items()}


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Of the straight line through points on logarithmic axes, by least squares."""
    import numpy as np

    return float(np.polyfit(np.log(xs), np.log(ys), 1)[0])


def swin_multiplications(network: Any, side: int) -> int:
    """Of a Swin on one square image: its layers, and the products of queries, keys and values in its windows."""
    from jingdu.papers.cnn.nas import count_cost
    from jingdu.papers.vit.swin import attention_cost

    total = count_cost(network, (3, side, side)).flops
    tokens = side // network.patches.patch
    for number, stage in enumerate(network.stages):
        width, places = network.channels[number], math.ceil(tokens / 2**number) ** 2
        for block in stage.blocks:
            total += attention_cost(places, width, block.attention.window[0]) - 4 * places * width**2
    return total


def global_multiplications(network: Any, side: int) -> int:
    """Of a ViT on one square image, likewise."""
    from jingdu.papers.cnn.nas import count_cost
    from jingdu.papers.vit.swin import attention_cost

    tokens = 1 + (side // network.patches.patch) ** 2
    products = attention_cost(tokens, network.width) - 4 * tokens * network.width**2
    return count_cost(network, (3, side, side)).flops + len(network.blocks) * products


# Set on 2026-11-26, before the first full run: slopes of at most 1.15 and at least 1.5 over the three largest sizes. The same
# day the full run, inconclusive: slopes of time of 1.10 [0.78, 1.42] and 1.84 [1.32, 2.36], by the clock, one size after the
# other, beside other programs. It is processor time since, and the sizes take turns: 1.11 [1.04, 1.19] and 1.76 [1.73, 1.79],
# inconclusive with three seeds, and six since: 1.15 [1.13, 1.17]. Multiplications grow by 1.00; the rest is memory, since the
# maps of the largest image do not stay in the cache. The margins stand.
@claim(
    "The work of attention in windows grows in proportion to the image's pixels, that of attention over all patches faster.",
    source="Sec. 3.2, Eq. 1 and 2",
    tests=(
        Test("swin.slope_of_time", 0, below=1.15, about="Swin's time: slope on logarithmic axes"),
        Test("global.slope_of_time", 0, above=1.5, about="global attention's time: slope on logarithmic axes"),
        Test("swin.slope_of_products", 0, below=1.15, about="Swin's multiplications: slope"),
        Test("global.slope_of_products", 0, above=1.5, about="global attention's multiplications: slope"),
    ),
    seeds=6,
    minutes=6.0,
    about="One image of 112 to 1,792 pixels a side, float32, one thread: a Swin of four stages of two blocks (24 to 192 "
    "channels, patches of 4, windows of 7) and a ViT of two blocks (64 channels, patches of 16, up to 12,545 tokens, whose "
    "attention stores no matrix). A seed is six runs of each, in turns, the quickest of which counts, in processor time; slopes "
    "are over the pixels of the three largest sizes.",
)
def linear_time(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Time and count both at all sizes; the slopes of their logarithms."""
    import torch

    from jingdu.papers.vit.swin import Swin
    from jingdu.papers.vit.vit import ViT

    sides, rounds = lab.budget(full=(SIDES, ROUNDS), smoke=((28, 56, 112), 1))
    products: dict[str, list[int]] = {"swin": [], "global": []}
    works: dict[Any, Callable[[], Any]] = {}
    for side in sides:
        torch.manual_seed(seed)
        networks = {
            "swin": Swin(image_size=side, **SWIN_SIZES).eval(),
            "global": ViT(image_size=side - side % GLOBAL_SIZES["patch"], **GLOBAL_SIZES).eval(),
        }
        for name, network in networks.items():
            images = torch.randn(1, 3, *network.image_size)

            def once(network: Any = network, images: torch.Tensor = images) -> None:
                with torch.inference_mode():
                    network(images)

            works[name, side] = once
        products["swin"].append(swin_multiplications(networks["swin"], side))
        products["global"].append(global_multiplications(networks["global"], networks["global"].image_size[0]))
    found = _quickest(works, rounds)
    seconds = {name: [found[name, side] for side in sides] for name in products}
    pixels = [side**2 for side in sides]
    values = {}
    for name in seconds:
        lab.curve(f"{name} time", pixels, seconds[name], "pixels", "seconds of processor time")
        lab.curve(f"{name} products", pixels, products[name], "pixels", "multiplications")
        values[name] = {
            "slope_of_time": slope(pixels[-3:], seconds[name][-3:]),
            "slope_of_products": slope(pixels[-3:], products[name][-3:]),
            "seconds_at_the_largest": seconds[name][-1],
            "multiplications_at_the_largest": float(products[name][-1]),
        }
    return values


@linear_time.figure
def draw_time(figure: Any, outcome: Outcome) -> None:
    """Seconds and multiplications over the pixels, on logarithmic axes, with the slopes at the largest sizes."""
    import numpy as np

    from jingdu.lab.style import PALETTE

    labels = {"swin": "Swin: windows of 7x7", "global": "ViT: all patches"}
    for axes, kind, measure, title in zip(
        figure.subplots(1, 2), ("time", "products"), ("slope_of_time", "slope_of_products"),
        ("seconds of processor time, one image", "multiplications of one image"), strict=True,
    ):  # fmt: skip
        for place, (name, label) in enumerate(labels.items()):
            xs = np.asarray(outcome.curves[f"{name} {kind}"][0][0])
            seeds = np.asarray([ys for _, ys in outcome.curves[f"{name} {kind}"]])
            mean = np.exp(np.log(seeds).mean(0))
            for ys in seeds:
                axes.plot(xs, ys, color=PALETTE[place], linewidth=0.9, alpha=0.4)
            found = float(np.mean(outcome.values[name][measure]))
            axes.plot(xs, mean, color=PALETTE[place], marker="o", label=f"{label}, slope {found:.2f}")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(xs, [f"{math.isqrt(int(x))}²" for x in xs])
        axes.minorticks_off()
        axes.set_xlabel("pixels")
        axes.set_title(title)
        axes.legend(loc="upper left", title="slopes of the three largest sizes", alignment="left")
    figure.suptitle("Attention in windows costs in proportion to the pixels")
