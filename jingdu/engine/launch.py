"""Start a few processes on this machine that work as one group: for tests, claims and `predict`.

`torchrun` is for training on a cluster; this is for a function of ours that needs several processes for a while.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from jingdu.engine.distribute import start_group


def launch(function: Callable[..., Any], size: int, *arguments: Any) -> list[Any]:
    """Run `function(*arguments)` in `size` processes of one process group; their results, by rank.

    A result is what JSON can hold.

    The function is importable by name, as it is sent to other processes. Raises what the first failing process
    raised (torch.multiprocessing's ProcessRaisedException), or says which one was killed (ProcessExitedException).
    """
    with tempfile.TemporaryDirectory(prefix="jingdu-") as folder:
        # A fork server has torch imported once; forking this process itself is not safe once it has threads.
        processes.set_forkserver_preload(["jingdu.engine.distribute", "torch.distributed.fsdp"])
        processes.start_processes(_work, (size, folder, function, arguments), nprocs=size, start_method="forkserver")
        return [json.loads((Path(folder) / str(rank)).read_text()) for rank in range(size)]


def _work(rank: int, size: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    start_group(rank, size, dist.FileStore(f"{folder}/store", size))
    try:
        (Path(folder) / str(rank)).write_text(json.dumps(function(*arguments)))
    finally:
        dist.destroy_process_group()
