"""What a machine can do at most, so that a time can be read as a share of it.

A network is bound by its matrix products or by the bytes that it must read. Both limits are measured in the same run
and with the same threads as the network, by the best library calls there are for them.
"""

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch

from jingdu.speed.paired import seconds

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
"""The precisions that a bench has, by their names on the command line."""

LONG = 0.2
"""Seconds of a product that is large enough."""


@dataclass(frozen=True)
class Limits:
    """A device's limits, as measured."""

    peak: dict[str, float]
    """Precision -> floating-point operations a second in a product of large square matrices."""
    bandwidth: float
    """Bytes a second of reading memory from end to end."""

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "units": {"peak": "FLOP/s", "bandwidth": "B/s"}}


def matrix_peak(dtype: torch.dtype, device: str | torch.device = "cpu", size: int = 0, repeats: int = 5) -> float:
    """Floating-point operations a second of a `size` x `size` matrix product, the best of some calls.

    A product of two n x n matrices is 2 n^3 operations. `size` 0: 8192 on an accelerator; on a CPU the best of sizes up
    to 2048, of which the larger are left out once a product takes long: a CPU without bf16 units emulates them.
    """
    on_cpu = torch.device(device).type == "cpu"
    best = 0.0
    for n in (size,) if size else (256, 512, 1024, 2048) if on_cpu else (8192,):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        out = torch.empty(n, n, device=device, dtype=dtype)
        took = min(seconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out)) for _ in range(repeats + 1))
        best = max(best, 2 * n**3 / took)
        if took > LONG:
            break
    return best


def read_bandwidth(device: str | torch.device = "cpu", mebibytes: int = 256, repeats: int = 5) -> float:
    """Bytes a second of adding up a float32 tensor that no cache holds, the best of some calls."""
    x = torch.ones(mebibytes * 2**18, device=device)
    return x.numel() * x.element_size() / min(seconds(x.sum) for _ in range(repeats + 1))


@cache
def limits(device: str | torch.device = "cpu") -> Limits:
    """A device, measured once in a process: about a second."""
    with torch.inference_mode():
        return Limits({name: matrix_peak(dtype, device) for name, dtype in DTYPES.items()}, read_bandwidth(device))
