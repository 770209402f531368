"""Processes that torchrun started, as one group."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from ..errors import InputError


@contextmanager
def processes(device: str) -> Iterator[tuple[int, int]]:
    """Yield the rank of this process and their number; inside the `with` block torch.distributed works.

    If one of them ends with an error, torchrun ends the others.

    Args:
        device: "cuda": each process gets the GPU of its local rank, and they talk through NCCL; "cpu": through gloo.
    Raises:
        InputError: torchrun did not start this process, or there are fewer GPUs than processes.
    """
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        raise InputError(
            "parallel: expected to be started by torchrun, got one process on its own. Start it by torchrun, "
            "as the help of `parallel` shows."
        )
    if device == "cuda":
        local, num_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= num_gpus:
            raise InputError(
                f"parallel: expected a GPU for each process, got {num_gpus} for process {local} of this machine. Start "
                "fewer processes, or choose the device cpu."
            )
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()
