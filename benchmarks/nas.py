"""NASNet-A against timm, and a search's own speed: python -m benchmarks.nas [PART].

Parts: `timm` is the whole NASNet-A (6 @ 4032) in inference, and the same network with NASNet-A mobile's widths in inference
and training (a training step of the whole one takes minutes here); `search` is what an ask and a child cost.
"""

import sys
import time
from typing import Any

import torch

import jingdu
from benchmarks.paired import compare, save
from jingdu.papers.cnn.nas import ALGORITHMS, Evaluator, Training, digits_space, search
from jingdu.papers.cnn.nas.digits import problem
from jingdu.speed.case import inference, training_step
from jingdu.speed.references import import_library, randomise_
from jingdu.weights.tables import tables


def large(rounds: int = 6) -> list[dict[str, Any]]:
    """The published network, one picture of 331x331."""
    return [jingdu.bench("timm/nasnetalarge", "timm", batch=1, rounds=rounds)]


def narrow(rounds: int = 6, batch: int = 2, side: int = 192) -> list[dict[str, Any]]:
    """timm's class with 1056 channels before the classifier in place of 4032, and ours with the same weights."""
    timm = import_library("timm")
    reference = timm.models.nasnet.NASNetALarge(stem_size=32, num_features=1056, pad_type="same")
    randomise_(reference, torch.Generator().manual_seed(0)).eval()
    ours = jingdu.create("timm/nasnetalarge", width=44, stem=32).eval()
    table, theirs = tables("nas")["timm"], reference.state_dict()
    ours.load_state_dict({key: theirs[table.from_ours(key).theirs[0]] for key in ours.state_dict()})
    rows = []
    for count in (1, batch):
        x = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))
        a, b = inference(ours, (x,)), inference(reference, (x,))
        gap = float((a() - b()).abs().max() / b().abs().max())
        rows.append(compare(a, b, f"NASNet-A 6 @ 1056, batch {count}, inference, timm", rounds=rounds, warmup=1))
        rows[-1]["difference"] = gap
    works = [training_step(network, (x,)) for network in (ours, reference)]
    rows.append(compare(*works, f"NASNet-A 6 @ 1056, batch {batch}, training step, timm", rounds=6, warmup=1))
    return rows


def children(evaluations: int = 16) -> list[dict[str, Any]]:
    """Ageing evolution over the chains of digits with early stopping and kept results, against a loop that has neither."""
    base, _ = problem()

    def run(kept: bool) -> float:
        how = Training(32, 16, 0.1, checks=4, median=kept)
        evaluator = Evaluator(digits_space(), base.train, base.valid, how)
        algorithm = ALGORITHMS["ageing"](evaluator.space, seed=1, population=4, sample=2, fresh=False)
        if kept:
            return max(search(algorithm, evaluator, evaluations).scores)
        return max(search(algorithm, lambda code: evaluator.trained(code)[0], evaluations).scores)

    title = f"{evaluations} children of ageing evolution: stopped at the median and kept, a plain loop"
    return [compare(lambda: run(True), lambda: run(False), title, rounds=6, warmup=0)]


def overhead(evaluations: int = 100) -> list[dict[str, Any]]:
    """Milliseconds of one ask and tell, without any training."""
    rows = []
    for name in ALGORITHMS:
        options = {"population": 20, "sample": 5} if name == "ageing" else {}
        best = float("inf")
        for seed in range(3):
            algorithm = ALGORITHMS[name](digits_space(), seed=seed, **options)
            started = time.perf_counter()
            search(algorithm, lambda code: 0.5 + 0.05 * sum(code), evaluations)
            best = min(best, (time.perf_counter() - started) / evaluations)
        print(f"{name}: {1000 * best:.2f} ms for one ask and tell, of {evaluations}")
        rows.append({"name": f"ask and tell, {name}", "seconds": best, "evaluations": evaluations})
    return rows


PARTS = {"timm": lambda: large() + narrow(), "search": lambda: overhead() + children()}

if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        save(PARTS[part](), f"nas-{part}.json")
