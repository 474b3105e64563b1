"""The claims of the dark channel prior, on shipped photographs without haze and with haze laid over them."""

from typing import Any

from jingdu.lab import Lab, Outcome, Test, claim

PHOTOS = ("astronaut", "china", "coffee", "motorcycle", "rocket", "chelsea", "flower")
THICKNESS = (0.5, 1.0, 2.0)
LIGHT = (0.85, 0.88, 0.92)
"""The air's colour: a little blue."""


def _photos(lab: Lab, longest: int) -> dict[str, Any]:
    """Photographs [1, 3, height, width] by name, made smaller so that their longer side has `longest` pixels."""
    import numpy as np
    import torch.nn.functional as F

    from jingdu.data import Preprocess, open_data
    from jingdu.data.draws import Draws

    found = {}
    for split in ("train", "test"):
        data = open_data("photos(size=None)", split, Preprocess())
        indices = np.arange(len(data))
        batch = data.batch(indices, Draws(0, 0, indices))
        for name, image in zip(batch["name"], batch["image"], strict=True):
            share = longest / max(image.shape[1:])
            size = [round(side * share) for side in image.shape[1:]]
            found[name] = F.interpolate(image[None], size=size, mode="bilinear", antialias=True).clamp(0, 1)
    names = lab.budget(full=PHOTOS, smoke=PHOTOS[1:3])
    return {name: found[name] for name in names}


# Set on 2026-11-26, before the first full run.
@claim(
    "Photographs without haze have a dark channel that is nearly black, and haze makes it brighter.",
    source="Fig. 4, Sec. 3",
    tests=(
        Test(
            "all.least_difference", 0, above=0.0,
            about="the share of dark pixels is larger without haze, in every photograph and at each of three thicknesses",
        ),
    ),
    seeds=1,
    minutes=0.2,
    about="Seven shipped photographs, some of them not outdoors, 500 pixels long as the paper's; patches of 15 pixels; dark "
    "is below 25 of 255. The haze is synthetic, over a smooth random depth.",
)  # fmt: skip
def prior(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Shares of dark pixels of each photograph, clear and at three thicknesses of haze."""
    import torch

    from jingdu.papers.imaging.dark_channel import dark_channel, haze, smooth_depth

    values, differences, histogram = {}, [], torch.zeros(256)
    for name, clear in _photos(lab, 500).items():
        dark = dark_channel(clear)
        histogram += torch.histc((dark * 255).round(), 256, 0, 255) / dark.numel()
        depth = smooth_depth(1, *clear.shape[2:], torch.Generator().manual_seed(0))
        shares = {"clear": float((dark < 25 / 255).float().mean()), "zero": float((dark < 0.5 / 255).float().mean())}
        for thickness in THICKNESS:
            hazy = haze(clear, torch.exp(-thickness * depth), torch.tensor([LIGHT]))
            shares[f"haze_{thickness:g}"] = float((dark_channel(hazy) < 25 / 255).float().mean())
            differences.append(shares["clear"] - shares[f"haze_{thickness:g}"])
        values[name] = shares
    total = (histogram / histogram.sum()).cumsum(0)
    lab.curve(
        "clear", range(256), total.tolist(), "value of the dark channel (of 255)", "share of pixels that are darker"
    )
    return {**values, "all": {"least_difference": min(differences)}}


@prior.figure
def draw_prior(figure: Any, outcome: Outcome) -> None:
    """Shares of dark pixels by photograph, and how the dark channel is distributed."""
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    names = [name for name in outcome.values if name != "all"]
    arms = ["clear", *(f"haze_{thickness:g}" for thickness in THICKNESS)]
    colours = ("#0072B2", "#E0C9B8", "#D59A6A", "#D55E00")
    for number, (arm, colour) in enumerate(zip(arms, colours, strict=True)):
        places = [place + 0.2 * (number - 1.5) for place in range(len(names))]
        heights = [100 * outcome.values[name][arm][0] for name in names]
        left.bar(places, heights, width=0.19, color=colour, label="clear" if arm == "clear" else f"haze {arm[5:]}")
    left.set_xticks(range(len(names)), names, rotation=25, ha="right")
    left.set_ylabel("pixels of the dark channel\nbelow 25 of 255 (%)")
    left.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), columnspacing=1, handlelength=1)
    (xs, ys) = outcome.curves["clear"][0]
    right.plot(xs, [100 * y for y in ys], color="#0072B2")
    right.axvline(25, color="#666666", linestyle=(0, (4, 3)), linewidth=1)
    right.annotate(
        f"{100 * ys[24]:.0f} % below 25\n(paper: 90 %)",
        (25, 100 * ys[24]),
        xytext=(10, -26),
        textcoords="offset points",
    )
    right.set_ylim(0, 103)
    right.set_xlabel("value of the dark channel (of 255)")
    right.set_ylabel("pixels that are as dark (%)")
    right.set_title("all photographs, clear")
    figure.suptitle("Haze brightens what is darkest")


# The margins (3 dB; better than a constant; 0.05) were set on 2026-11-26, before the first full run: the canon's.
@claim(
    "One hazy picture is enough to find how much haze there is, its colour, and the scene behind it.",
    source="Sec. 4, Fig. 7-12",
    tests=(
        Test("guided.psnr", "hazy.psnr", above=3.0, about="with the guided filter the picture is nearer to the clear one (dB)"),
        Test("matting.psnr", "hazy.psnr", above=3.0, about="with soft matting too (dB)"),
        Test("guided.t_error", "constant.t_error", below=0.0, about="the transmission is nearer than the best constant one"),
        Test("matting.t_error", "constant.t_error", below=0.0, about="with soft matting too"),
        Test("airlight.error", 0, below=0.05, about="mean error of the airlight's colour"),
    ),
    seeds=3,
    minutes=2.0,
    about="Seven shipped photographs, 240 pixels long, under synthetic haze of optical thickness 0 to 2.5 over a smooth random "
    "depth, one for each photograph and seed. Patches and windows are in proportion: 7 and 29 pixels. Means over the photographs.",
)  # fmt: skip
def dehazing(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Lay haze over each photograph and take it off by both refinements."""
    import torch

    from jingdu.papers.imaging.dark_channel import DarkChannel, haze, psnr, smooth_depth

    generator = torch.Generator().manual_seed(1000 + seed)
    rows: dict[str, list[dict[str, float]]] = {arm: [] for arm in ("hazy", "guided", "matting", "constant", "airlight")}
    light = torch.tensor([LIGHT])
    for name, clear in _photos(lab, lab.budget(full=240, smoke=60)).items():
        t = torch.exp(-2.5 * smooth_depth(1, *clear.shape[2:], generator))
        hazy = haze(clear, t, light)
        rows["hazy"].append({"psnr": float(psnr(hazy, clear))})
        rows["constant"].append({"t_error": float((t - t.median()).abs().mean())})
        for refine in ("guided", "matting"):
            found = DarkChannel(patch=7, radius=14, refine=refine)(hazy)
            error = float((found.transmission - t).abs().mean())
            rows[refine].append({"psnr": float(psnr(found.clear, clear)), "t_error": error})
            if seed == 0 and name == "china":
                lab.image(f"clear by {refine}", found.clear[0])
                lab.image(f"transmission by {refine}", found.transmission[0])
        rows["airlight"].append({"error": float((found.light - light).abs().mean())})
        if seed == 0 and name == "china":
            lab.image("hazy", hazy[0])
            lab.image("transmission", t[0])
    return {
        arm: {measure: sum(row[measure] for row in found) / len(found) for measure in found[0]}
        for arm, found in rows.items()
    }


@dehazing.figure
def draw_dehazing(figure: Any, outcome: Outcome) -> None:
    """One of the photographs, its transmission, and the means."""
    from jingdu.lab.style import draw_image

    figure.set_size_inches(9.4, 4.4)
    panels = figure.subplots(2, 3)
    titles = {
        "hazy": "hazy", "clear by guided": "guided filter", "clear by matting": "soft matting",
        "transmission": "transmission", "transmission by guided": "found",
        "transmission by matting": "found",
    }  # fmt: skip
    means = {arm: sum(outcome.values[arm]["psnr"]) / len(outcome.seeds) for arm in ("hazy", "guided", "matting")}
    errors = {
        arm: sum(outcome.values[arm]["t_error"]) / len(outcome.seeds) for arm in ("guided", "matting", "constant")
    }
    for axes, (name, title) in zip(panels.flat, titles.items(), strict=True):
        arm = name.rpartition(" ")[2]
        if "transmission" in name:
            note = f"error {errors[arm]:.3f}" if arm in errors else f"a constant's {errors['constant']:.3f}"
        else:
            note = f"{means[arm]:.1f} dB"
        draw_image(axes, outcome, name, title=f"{title}: {note}")
    figure.suptitle(f"One of seven photographs; numbers are means of all, {len(outcome.seeds)} seeds")
