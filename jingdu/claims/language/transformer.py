"""The Transformer's claims, on Django's messages between every two of seven Romance languages."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import jingdu
from jingdu.data.draws import Draws
from jingdu.engine.training import open_source
from jingdu.lab import Lab, Outcome, Test, claim
from jingdu.lab.style import PALETTE, draw_curves
from jingdu.metrics.translation import TranslationScores
from jingdu.names import Call
from jingdu.papers.language.transformer import Pairs, Translation, recipes, translate

ROMANCE = ("ca", "es", "fr", "gl", "it", "pt", "ro")
VOCABULARY, STEPS = 1000, 1500
TRANSLATED = 300
"""Held-out pairs that are translated for chrF, at least."""

STAGE = replace(
    recipes["laptop"].stages[-1], system="transformer.Translation", lr=3e-3, schedule="inverse_sqrt(warmup=150)",
    save_every=100_000, keep=2,
)  # fmt: skip


def _data(lab: Lab) -> str:
    languages, longest = lab.budget(full=(ROMANCE, 40), smoke=(ROMANCE[:3], 12))
    of = f"catalogues(languages={languages!r}, pairs='all', longest={longest})"
    return f"transformer.pairs(of={of!r}, vocabulary={_words(lab)}, tokens=512)"


def _words(lab: Lab) -> int:
    return lab.budget(full=VOCABULARY, smoke=300)


def _transformer(lab: Lab, heads: int = 4, positions: str | None = "paper") -> str:
    """1,050,624 weights."""
    width, inner = lab.budget(full=(128, 512), smoke=(16, 24))
    sizes = f"vocabulary={_words(lab)}, width={width}, inner={inner}, heads={heads}, layers=2"
    return f"transformer_base_v37000({sizes}, positions={positions!r})"


def _gru(lab: Lab) -> str:
    """1,023,032 weights."""
    names = ("embedding", "hidden", "maxout_units", "rank")
    sizes = zip(names, lab.budget(full=(112, 208, 104, 64), smoke=(8, 8, 4, 4)), strict=True)
    words = f"source_vocabulary={_words(lab)}, target_vocabulary={_words(lab)}"
    return f"gru_phrases({words}, {', '.join(f'{name}={n}' for name, n in sizes)}, spread=None)"


def _step_seconds(networks: Sequence[str], data: Pairs, count: int) -> list[float]:
    """Seconds of the processor that a training step of each takes: the mean over the same batches, in turns.

    What other programs do meanwhile is not in it.
    """
    rows = np.linspace(0, len(data) - 1, count + 2).astype(np.int64)
    batches = [data.batch(rows[i : i + 1], Draws(0, 0, rows[i : i + 1])) for i in range(len(rows))]
    systems = []
    for text in networks:
        call = Call.parse(text)
        system = Translation(jingdu.create(call.name, **call.arguments)).train()
        systems.append((system, torch.optim.Adam(system.parameters(), 1e-4)))
    taken: list[list[float]] = [[] for _ in systems]
    for batch in [*batches[:2], *batches]:
        for times, (system, optimizer) in zip(taken, systems, strict=True):
            started = time.process_time()
            optimizer.zero_grad()
            system(batch, "loss")[0].backward()
            optimizer.step()
            times.append(time.process_time() - started)
    return [float(np.mean(times[2:])) for times in taken]


def _chrf(network: Any, data: Pairs, count: int) -> float:
    """Of the translations of some held-out pairs of all lengths, by four beams."""
    rows = np.linspace(0, len(data) - 1, max(len(data) * count // len(data.longest), 1)).astype(np.int64)
    batch, scores = data.batch(rows, Draws(0, 0, rows)), TranslationScores()
    for source, speller, reference in zip(batch["source"], batch["speller"], batch["reference"], strict=True):
        found = translate(network, [row[row != 0] for row in source], longer=20)
        scores.update([speller.text(best.tokens.tolist()) for best in found], reference)
    return scores.compute()["chrf"]


def _train(lab: Lab, seed: int, name: str, network: str, steps: int, **changes: Any) -> dict[str, float]:
    """One arm: its held-out loss at the end and at its lowest, and chrF."""
    every = max(steps // 5, 1)
    run = lab.train(
        STAGE, seed, networks={"network": network}, data=_data(lab), steps=steps, evaluate_every=every, **changes
    )
    at, losses = run.series("eval.loss")
    lab.curve(name, [100 * step / steps for step in at], losses, "training time (%)", "held-out loss (nats a token)")
    chrf = _chrf(run.system.network, open_source(_data(lab), "test", STAGE), lab.budget(full=TRANSLATED, smoke=8))
    return {"loss": run.metrics["loss"], "lowest": min(losses), "chrf": chrf, "steps": float(steps)}


# Margins of 2026-11-26, before the full run: 0.15 nats and any gain in chrF are the canon's. The GRU may stop where its
# held-out loss is lowest, which is not where its time is over. The first run, of 500 steps, had the sign under all seeds
# and was inconclusive (0.27 nats, 0.01 to 0.53), while the Transformer still fell steeply: 1,500 steps from 2026-11-26 on,
# the margins as they were. Then the loss holds (0.67, 0.43 to 0.90), and chrF (+6.3) does not clear its margin with three
# seeds, of which the GRU translates with one far worse than with the others.
@claim(
    "A Transformer translates messages that it has not seen better than a recurrent encoder-decoder of equal size after "
    "equal training time.",
    source="Table 2",
    tests=(
        Test("gru.lowest", "transformer.lowest", above=0.15, about="held-out loss at its lowest, nats a token"),
        Test("transformer.chrf", "gru.chrf", above=0.0, about="chrF of translations by 4 beams"),
    ),
    seeds=3,
    minutes=25.0,
    about="7 Romance languages of Django's messages, every two of them, 1.0 million weights each, in place of WMT 2014. The "
    "GRU encoder-decoder is that of Cho et al. 2014, without attention. Equal time: a step of both is timed in the same run, "
    "in seconds of the processor, and the GRU gets as many steps as the Transformer's seconds buy (to the nearest 50).",
)  # fmt: skip
def better_than_recurrence(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """Two networks, the same messages and seconds."""
    steps = lab.budget(full=STEPS, smoke=2)
    names = [_transformer(lab), _gru(lab)]
    step = _step_seconds(names, open_source(_data(lab), "train", STAGE), lab.budget(full=12, smoke=2))
    more = 50 * round(steps * step[0] / step[1] / 50) if not lab.smoke else 3
    lab.progress(f"  a step: {step[0]:.3f} s and {step[1]:.3f} s; {steps} and {more} steps")
    return {
        "transformer": {**_train(lab, seed, "Transformer", names[0], steps), "step_seconds": step[0]},
        "gru": {
            **_train(lab, seed, "GRU encoder-decoder", names[1], more, clip=1.0), "step_seconds": step[1],
        },
    }  # fmt: skip


@better_than_recurrence.figure
def draw_better(figure: Any, outcome: Outcome) -> None:
    """Held-out loss over the training time, and chrF at its end."""
    figure.set_size_inches(9.6, 4.2)
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    draw_curves(left, outcome)
    left.legend()
    left.set_title("held-out loss")
    _dots(right, outcome, {"transformer": "Transformer", "gru": "GRU"}, "chrf")
    right.set_title("chrF of translations")
    figure.suptitle("Equal size, equal training time, messages that neither has seen")


def _dots(axes: Any, outcome: Outcome, labels: dict[str, str], measure: str) -> None:
    """A column of points for each arm, one a seed, and their mean."""
    for place, name in enumerate(labels):
        values, colour = outcome.values[name][measure], PALETTE[place]
        axes.plot([place] * len(values), values, "o", color=colour, alpha=0.5)
        axes.plot([place - 0.25, place + 0.25], [np.mean(values)] * 2, color=colour)
        axes.annotate(f"{np.mean(values):.3g}", (place + 0.29, np.mean(values)), va="center", color=colour)
    axes.set_xticks(range(len(labels)), list(labels.values()))
    axes.set_xlim(-0.5, len(labels) - 0.3)
    axes.grid(axis="x", visible=False)


# Margins of 2026-11-26, before the full run: the canon asks for a sign and for "not better"; 0.05 nats is what counts as
# better. After 500 steps no network had learnt to use positions (0.06 nats better without): 1,500 steps from 2026-11-26 on.
@claim(
    "Without positions the Transformer is worse, and one head is no better than four.",
    source="Section 3.5, Table 3 (A)",
    tests=(
        Test("no_positions.loss", "transformer.loss", above=0.0, about="without positions the loss is higher"),
        Test("one_head.loss", "transformer.loss", above=-0.05, about="one head gains less than 0.05 nats"),
    ),
    seeds=3,
    minutes=12.0,
    about="The same messages, sizes and steps. The paper's heads cost 0.9 BLEU where there is one; its positions are compared "
    "with learned ones, not with none.",
)  # fmt: skip
def positions_and_heads(lab: Lab, seed: int) -> dict[str, dict[str, float]]:
    """The network of the first claim, and two that lack a part."""
    arms = {
        "no_positions": _transformer(lab, positions=None), "one_head": _transformer(lab, heads=1),
        "transformer": _transformer(lab),
    }  # fmt: skip
    steps = lab.budget(full=STEPS, smoke=2)
    return {name: _train(lab, seed, name.replace("_", " "), text, steps) for name, text in arms.items()}


@positions_and_heads.figure
def draw_parts(figure: Any, outcome: Outcome) -> None:
    """Held-out loss and chrF of the three."""
    figure.set_size_inches(9.6, 4.2)
    labels = {"transformer": "four heads", "one_head": "one head", "no_positions": "no positions"}
    titles = {"loss": "held-out loss (nats a token)", "chrf": "chrF of translations"}
    for axes, (measure, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        _dots(axes, outcome, labels, measure)
        axes.set_title(title)
    figure.suptitle("What positions and heads are worth")
