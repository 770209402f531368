"""Which weights a run needed: as rows, as blocks of memory, and shared by several tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from ...errors import InputError


@dataclass
class WeightReads:
    """How many rows and blocks of integer weights were needed, each counted once per group of tokens.

    The weights lie in memory as `SpikeLinear` keeps them: the out_features weights of input channel 0, then those of
    channel 1, and so on; a byte each, or of 4 or 2 bits several to a byte. The first byte is the first of a block. A
    row is needed if its channel has a spike for any token of the group. A block is read as a whole if any of its bytes
    belongs to such a row.

    A group is `shared_tokens` consecutive tokens of one `Step`. The last group of a step may be smaller; a call has
    several steps if its spikes take more than 64 MiB.

    Attributes:
        block_bytes: size of a block.
        shared_tokens: consecutive tokens that share a read.
        num_groups: groups of tokens.
        num_rows: rows needed, over all groups.
        num_blocks: blocks read, over all groups.
    """

    block_bytes: int
    shared_tokens: int = 1
    num_groups: int = 0
    num_rows: int = 0
    num_blocks: int = 0

    def __post_init__(self) -> None:
        for name in ("block_bytes", "shared_tokens"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(f"record.{name}: expected integers >= 1, got {value!r}.")

    def add(self, active: Bool[Tensor, "tokens channels"], num_bytes: int) -> None:
        """Add the tokens of one step.

        Args:
            active: whether a channel has a spike.
            num_bytes: bytes of a row.
        """
        groups = active
        if self.shared_tokens > 1:
            groups = torch.stack([part.any(0) for part in active.split(self.shared_tokens)])
        self.num_groups += len(groups)
        self.num_rows += int(groups.count_nonzero())
        self.num_blocks += blocks_needed(groups, num_bytes, self.block_bytes)


def row_bytes(out_features: int, weight_bits: int) -> int:
    """Return the bytes of a row of weights: a row of less than 8 bits a weight begins with a byte of its own.

    >>> row_bytes(7, 8), row_bytes(7, 4)
    (7, 4)
    """
    return -(-out_features * weight_bits // 8)


def blocks_needed(active: Bool[Tensor, "tokens channels"], row_bytes: int, block_bytes: int) -> int:
    """Return how many blocks hold a byte of an active row, summed over tokens.

    Args:
        active: rows that are needed.
        row_bytes: bytes of a row; rows follow each other without gaps, and the first begins a block.
        block_bytes: bytes of a block.

    >>> blocks_needed(torch.tensor([[True, False, True]]), row_bytes=6, block_bytes=4)  # bytes 0-5 and 12-17
    4
    """
    num_channels = active.shape[1]
    if num_channels == 0 or row_bytes == 0:
        return 0
    if row_bytes % block_bytes == 0:  # every block belongs to one row
        return int(active.count_nonzero()) * (row_bytes // block_bytes)
    start = torch.arange(num_channels, device=active.device) * row_bytes
    first, last = start // block_bytes, (start + row_bytes - 1) // block_bytes
    if row_bytes >= block_bytes:
        # A block then has bytes of two rows at most: count the blocks of each row, less those that two rows share.
        num_blocks = int((active.sum(0) * (last - first + 1)).sum())
        begins_inside = first[1:] == last[:-1]
        return num_blocks - int((active[:, 1:] & active[:, :-1] & begins_inside).count_nonzero())
    # A block holds several rows: from the first row that ends in it or later to the last that begins in it or earlier.
    block = torch.arange(int(last[-1]) + 1, device=active.device)
    low = torch.searchsorted(last, block)
    high = torch.searchsorted(first, block, right=True)
    before = torch.nn.functional.pad(active.cumsum(1, dtype=torch.int32), (1, 0))
    return int((before[:, high] > before[:, low]).count_nonzero())
