"""The active channels of each token with their counts: what an event-driven backend reads."""

from __future__ import annotations

from dataclasses import dataclass

import scipy.sparse
import torch
from jaxtyping import Int, Int32, Int64
from torch import Tensor

from .base import as_rows
from .kernels import active_kernels_for
from .packed import PackedTrain, or_over_time, unpack_bits

_INT32_MAX = torch.iinfo(torch.int32).max


@dataclass(frozen=True)
class ChannelEvents:
    """Active channels token by token, as the columns of a compressed sparse row matrix.

    The events of token i are those from indptr[i] to indptr[i + 1], channels ascending. A channel is active if it fired
    at any timestep; its count, the sum over t of timestep_weight[t] * spikes[t], can be 0 in a train made by hand.
    The zero point is not subtracted, since silent channels would then have counts as well.

    Attributes:
        indptr: int64, [tokens + 1].
        channel: int32, [events].
        count: int32, or int64 where the timestep weights add up to more than 32 bits hold; [events].
        shape: shape of the train without its time axis, (*tokens, channels).
        zero_point: of the train.

    >>> from spikebrain.coding import Ternary
    >>> events = ChannelEvents.from_packed(Ternary().pack(torch.tensor([[0, 2], [-1, 0]]), num_timesteps=2))
    >>> events.indptr.tolist(), events.channel.tolist(), events.count.tolist()
    ([0, 1, 2], [1, 0], [2, -1])
    """

    indptr: Int64[Tensor, " tokens_and_1"]
    channel: Int32[Tensor, " events"]
    count: Int[Tensor, " events"]
    shape: tuple[int, ...]
    zero_point: int = 0

    @classmethod
    def from_packed(cls, train: PackedTrain) -> ChannelEvents:
        """List the active channels on the device of the train, with compiled kernels where there are any."""
        kernels = active_kernels_for(train.fired.device)
        fired, negative = (planes.contiguous() for planes in as_rows(train))
        if kernels is None or fired.numel() == 0:
            return cls.from_packed_plainly(train)
        num_active = torch.empty(fired.shape[1], dtype=torch.int64, device=fired.device)
        kernels.count_active(fired, num_active)
        indptr = torch.nn.functional.pad(num_active.cumsum(0), (1, 0))
        num_events = int(indptr[-1])
        channel = torch.empty(num_events, dtype=torch.int32, device=fired.device)
        count = torch.empty(num_events, dtype=_count_dtype(train), device=fired.device)
        kernels.list_active(fired, negative, train.timestep_weight, indptr[:-1], channel, count)
        return cls(indptr, channel, count, _shape(train), train.zero_point)

    @classmethod
    def from_packed_plainly(cls, train: PackedTrain) -> ChannelEvents:
        """Do the same in plain PyTorch: the reference of the kernels."""
        fired, _ = as_rows(train)
        active = unpack_bits(or_over_time(fired), train.num_channels).bool()
        indptr = torch.nn.functional.pad(active.sum(1).cumsum(0), (1, 0))
        channel = active.nonzero()[:, 1].to(torch.int32)
        spikes = train.to_train().spikes.reshape(train.num_timesteps, *active.shape)
        count = torch.zeros(len(channel), dtype=torch.int64, device=fired.device)
        for weight, plane in zip(train.timestep_weight.tolist(), spikes, strict=True):
            count += weight * plane[active].to(torch.int64)
        return cls(indptr, channel, count.to(_count_dtype(train)), _shape(train), train.zero_point)

    def to_scipy(self) -> scipy.sparse.csr_array:
        """Return the counts as a sparse matrix on the CPU, [tokens, channels], for SciPy's and others' sparse tools.

        It shares its memory with events on a CPU. As in the events, the zero point is not subtracted.

        >>> from spikebrain.coding import Ternary
        >>> train = Ternary().pack(torch.tensor([[0, 2], [-1, 0]]), num_timesteps=2)
        >>> ChannelEvents.from_packed(train).to_scipy().toarray().tolist()
        [[0, 2], [-1, 0]]
        """
        arrays = (self.count.cpu().numpy(), self.channel.cpu().numpy(), self.indptr.cpu().numpy())
        return scipy.sparse.csr_array(arrays, shape=(len(self.indptr) - 1, self.shape[-1]))


def _count_dtype(train: PackedTrain) -> torch.dtype:
    return torch.int32 if int(train.timestep_weight.abs().sum()) <= _INT32_MAX else torch.int64


def _shape(train: PackedTrain) -> tuple[int, ...]:
    return (*train.fired.shape[1:-1], train.num_channels)
