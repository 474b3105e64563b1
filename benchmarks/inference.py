"""`optimize_for_inference` against the same steps by hand on torchvision's network: python -m benchmarks.inference."""

import copy
import sys
import time
import warnings

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

import jingdu
from benchmarks.paired import compare, save
from jingdu.speed.case import difference, inference, make_pair
from jingdu.speed.paired import alternate


def by_hand(network: nn.Module, x: torch.Tensor) -> dict[str, nn.Module]:
    """What a careful user of the reference would try, without our code: torch's own folding by its tracer."""
    folded = fuse(network)
    last = copy.deepcopy(folded).to(memory_format=torch.channels_last)
    half = copy.deepcopy(last).to(torch.bfloat16)
    frozen = {"dynamic": False, "options": {"freezing": True}}
    return {
        "folded": folded,
        "folded, channels-last": last,
        "folded, channels-last, bf16": half,
        "folded, channels-last, compiled": torch.compile(last, **frozen),
        "folded, channels-last, bf16, compiled": torch.compile(half, **frozen),
    }


def case(variant: str = "resnet50", batch: int = 8, rounds: int = 20) -> list[dict[str, object]]:
    """Ours against the quickest by hand, and against the reference as it is."""
    pair = make_pair(variant, "torchvision", batch)
    (x,) = pair.inputs
    started = time.perf_counter()
    ours = jingdu.optimize_for_inference(pair.ours, x, cache=False)
    took = time.perf_counter() - started
    print(ours.optimization)
    works = {}
    for name, network in by_hand(pair.reference, x).items():
        # The conversion of the input counts, as it does in ours.
        given = {"dtype": torch.bfloat16 if "bf16" in name else torch.float32, "memory_format": torch.channels_last}

        def once(network: nn.Module = network, given: dict[str, object] = given) -> torch.Tensor:
            with torch.inference_mode():
                return network(x.to(**given)).float()

        works[name] = once
    times = alternate(works, 6, warmup=2)
    best = min(times, key=lambda name: sorted(times[name])[3])
    title = f"{variant}, batch {batch}"
    plain = inference(pair.reference, pair.inputs)
    more = {"difference": difference(ours(x), plain()), "optimization": ours.optimization.as_json(), "seconds": took}
    return [
        compare(lambda: ours(x), works[best], f"{title}, optimised, against the best by hand ({best})", rounds) | more,
        compare(lambda: ours(x), plain, f"{title}, optimised, against plain float32", rounds) | more,
    ]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    batches = [int(word) for word in sys.argv[1:]] or [8]
    save([row for batch in batches for row in case(batch=batch)], "inference.json")
