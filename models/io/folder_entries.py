"""A tensor of a folder that is being written."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Entry(NamedTuple):
    """A tensor that is made when its shard is written, so that memory holds one shard.

    Attributes:
        name: in the folder.
        num_bytes: that it takes there.
        make: returns it.
    """

    name: str
    num_bytes: int
    make: Callable[[], Tensor]
