"""Prefill of one text by several processes: each has the whole model and a part of the tokens.

Parts are equal and in the order of the ranks. What a rank needs from those before it is passed on layer by layer:

- Linear attention: what each rank's tokens add to the state, and how they make it decay. All ranks gather both, [D, Dv]
  and [D] a head, and each works out the state before its own part (as in ZeCO, arXiv:2507.01004).
- Windows: the last columns of the ranks before, from the neighbour alone where a part is as long as the window.
- Full attention: all columns of all ranks before.

Communication is torch.distributed's: NCCL between GPUs, gloo between CPUs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor

from ...errors import InputError
from ..layers.ranks import answers_of_others, place_in
from .cache import SpikingBrainCache
from .causal_lm import SpikingBrainForCausalLM, check_spikingbrain
from .model import SpikingBrainOutput


class SequencePart:
    """The place of a rank in a text, and what it gets from the ranks before it.

    Args:
        group: the processes; None for all of torch.distributed.
    Attributes:
        rank: of this process in the group.
        size: of the group.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self.rank, self.size = place_in(group, "sequence_prefill")

    def state_before(self, added: Tensor, log_decay: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the state before this rank's tokens and the one after those of all ranks, float32 [B, Hk, D, Dv].

        Args:
            added: state after this rank's tokens, had it been zero before them.
            log_decay: sum of the log-decays of this rank's tokens, float32, [B, Hk, D].
            start: state before the text, the same on all ranks; None for zeros.
        """
        own = torch.cat([added, log_decay.float()[..., None]], -1).contiguous()
        parts = [torch.empty_like(own) for _ in range(self.size)]
        with self._reporting():
            dist.all_gather(parts, own, group=self._group)
        state = before = torch.zeros_like(added) if start is None else start.float().expand_as(added)
        for rank, part in enumerate(parts):
            if rank == self.rank:
                before = state
            state = part[..., -1:].exp() * state + part[..., :-1]
        return before, state

    def with_columns_before(self, columns: tuple[Tensor, ...], limit: int | None) -> tuple[Tensor, ...]:
        """Return this rank's columns after those of the ranks before it that its first token sees.

        Args:
            columns: tensors [B, Hk, L, .], L the same on all ranks.
            limit: columns that a token sees, itself included; None for all.
        """
        length = columns[0].shape[2]
        wanted = (self.size - 1) * length if limit is None else min(limit - 1, (self.size - 1) * length)
        received: list[tuple[Tensor, ...]] = []
        for hop in range(1, -(-wanted // length) + 1):
            num = min(wanted - (hop - 1) * length, length)
            received.insert(0, self._shift(columns, hop, num))
        found = [part for part in (*received, columns) if part[0].shape[2]]
        return columns if len(found) == 1 else tuple(torch.cat(parts, 2) for parts in zip(*found, strict=True))

    def _shift(self, columns: tuple[Tensor, ...], hop: int, num: int) -> tuple[Tensor, ...]:
        """Send the last columns to the rank `hop` after this one, and return those of the rank before, or none."""
        own = [x[:, :, x.shape[2] - num :] for x in columns]
        sent = torch.cat([x.contiguous().view(torch.uint8).flatten() for x in own])  # one message for all
        got, jobs = torch.empty_like(sent), []
        if self.rank >= hop:
            jobs.append(dist.P2POp(dist.irecv, got, self._global(self.rank - hop), self._group))
        if self.rank + hop < self.size:
            jobs.append(dist.P2POp(dist.isend, sent, self._global(self.rank + hop), self._group))
        if jobs:
            with self._reporting():
                for work in dist.batch_isend_irecv(jobs):
                    work.wait()
        if self.rank < hop:
            return tuple(x[:, :, :0] for x in columns)
        parts = got.split([x.numel() * x.element_size() for x in own])
        return tuple(part.clone().view(x.dtype).view(x.shape) for part, x in zip(parts, own, strict=True))

    def from_last(self, x: Tensor) -> Tensor:
        """Return the last rank's tensor, on all ranks."""
        x = x.contiguous()
        with self._reporting():
            dist.broadcast(x, self._global(self.size - 1), group=self._group)
        return x

    def _global(self, rank: int) -> int:
        return rank if self._group is None else dist.get_global_rank(self._group, rank)

    def _reporting(self) -> AbstractContextManager[None]:
        return answers_of_others(f"sequence_prefill: rank {self.rank} of {self.size}")


@torch.no_grad()
def sequence_prefill(
    model: SpikingBrainForCausalLM, input_ids: Int[Tensor, "B L"], group: dist.ProcessGroup | None = None
) -> SpikingBrainOutput:
    """Read a text with all processes of a group, and return the logits after its last token, on all of them.

    The result is that of `prefill` on one, up to the rounding of floats; spike counts and sums are exact everywhere.

    Args:
        model: the same on all ranks, on each one's own device.
        input_ids: the whole text, the same on all ranks, without padding.
        group: the processes; None for all.
    Returns:
        Logits, [B, 1, V]; and on the last rank the cache, from which it goes on. Other ranks have None.
    Raises:
        InputError: no process group, or a text that the ranks do not divide.
        RankError: another rank has ended or does not answer within the group's timeout.
    """
    check_spikingbrain("sequence_prefill", model)
    part = SequencePart(group)
    if input_ids.ndim != 2 or input_ids.shape[1] == 0 or input_ids.shape[1] % part.size:
        raise InputError(
            f"sequence_prefill.input_ids: expected [B, L] with L a multiple of {part.size}, the number of ranks, got "
            f"{tuple(input_ids.shape)}. Read the first tokens so, and the others with prefill on the last rank."
        )
    own = input_ids.chunk(part.size, 1)[part.rank].to(next(model.parameters()).device)
    cache = SpikingBrainCache(model.settings)
    cache.sequence = part
    found = model(own, cache=cache, use_cache=True, logits_to_keep=1)
    cache.sequence = None
    assert found.logits is not None
    logits = part.from_last(found.logits)
    return SpikingBrainOutput(logits=logits, cache=cache if part.rank == part.size - 1 else None)
