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

    If one of them ends with an error, torchrun ends the others, which may notice it before that.

    Args:
        device: "cuda": each process gets the GPU of its local rank, and they talk through NCCL; "cpu": through gloo.
    Raises:
        InputError: torchrun did not start this process, there are fewer GPUs than processes, or another process ended.
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
    except RuntimeError as error:
        # gloo has no error of its own.
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise InputError("parallel: another process ended, and its message says why.") from error
        raise
    finally:
        dist.destroy_process_group()
