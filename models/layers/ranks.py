"""Processes that share the work through torch.distributed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from ...errors import InputError, RankError


def place_in(group: dist.ProcessGroup | None, where: str) -> tuple[int, int]:
    """Return the rank of this process in a group, and the size of the group.

    Args:
        group: the processes; None for all.
        where: start of the error message.
    Raises:
        InputError: torch.distributed has not been started.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise InputError(
            f"{where}: expected a process group. Start the program with torchrun, and call "
            "torch.distributed.init_process_group first."
        )
    return dist.get_rank(group), dist.get_world_size(group)


@contextmanager
def answers_of_others(where: str) -> Iterator[None]:
    """Turn what torch.distributed raises inside a `with` block into a RankError that starts with `where`."""
    try:
        yield
    except RuntimeError as error:
        raise RankError(
            f"{where} got no answer from another rank, which has ended or is too slow. Look at the first error of the "
            f"other ranks, and start all of them again. ({error})"
        ) from error
