"""The contract of an encoder, and the one decode that all codes share."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Integer
from torch import Tensor

from ..errors import EncodingError, InputError
from ..neuro.base import overrides
from ..registry import Registry
from .kernels import kernels_for
from .packed import PackedTrain, num_words
from .train import SpikeTrain
from .unrolling import Unrolling


class Encoder(ABC):
    """Unrolls integer spike counts into a spike train.

    An encoder keeps nothing of its input: the number of timesteps comes with each call, and a count that does not
    fit raises. To add a code, write `encode` and `timesteps_for`; decode(encode(c)) == c must hold for every count
    that fits, unless the class says that it is `lossy` (`spikebrain.testing.check_encoder` tries it). A code that says
    it is `lossless` may run in the kernels of whole layers, one with an `unrolling` also in those that pack.
    """

    @abstractmethod
    def encode(self, count: Integer[Tensor, "*shape"], num_timesteps: int) -> SpikeTrain:
        """Unroll counts.

        Args:
            count: spike counts of any integer dtype and shape.
            num_timesteps: length of the train, in timesteps, at least 1.
        Returns:
            Train with int8 spikes of shape [num_timesteps, *shape].
        Raises:
            EncodingError: a count does not fit; the message names the first one and a length that fits.
        """

    @abstractmethod
    def timesteps_for(self, max_count: int) -> int:
        """Return the number of timesteps, at least 1, that hold every count this code can carry up to max_count.

        Args:
            max_count: largest |count|, >= 0.
        """

    def fitted(self, low: int, high: int) -> tuple[Encoder, int]:
        """Return an encoder and a number of timesteps that hold every count in [low, high].

        A signed code returns itself; an unsigned one with the zero point that lifts `low` to 0.
        """
        return self, self.timesteps_for(max(high, -low, 0))

    # Whether `unrolling` says in another way what `encode` does, so that kernels may run in its place.
    has_kernels: ClassVar[bool] = False
    # Whether decode(encode(c)) == c for every |c| <= MAX_LOSSLESS_COUNT with the encoder that `fitted` returns. Then
    # backends may add up the counts themselves, without unrolling them. A class says so in its own body.
    lossless: ClassVar[bool] = False
    # Whether decode(encode(c)) may be another number than c. Then sums are those of the train, not of the counts; it is
    # said wherever they are compared, and refused where counts have to be exact.
    lossy: ClassVar[bool] = False

    def __init_subclass__(cls, **options) -> None:
        """Let no class inherit what its parent says about methods that it has overridden."""
        super().__init_subclass__(**options)
        cls.has_kernels = cls.unrolling is not Encoder.unrolling and not overrides(cls, "unrolling", ("encode",))
        if overrides(cls, "lossless", ("encode", "fitted", "timesteps_for")):
            cls.lossless = False
        if cls.lossy and cls.lossless:
            raise InputError(f"{cls.__name__}: expected lossless or lossy, or neither of them; both are set.")

    def unrolling(self, num_timesteps: int) -> Unrolling:
        """Return this code in the form that kernels run; only a code that defines it beside `encode` has one.

        Raises:
            EncodingError: there is no train of that length.
        """
        raise NotImplementedError(f"{type(self).__name__} has no kernels: it encodes in plain PyTorch.")

    def pack(self, count: Integer[Tensor, "*tokens channels"], num_timesteps: int) -> PackedTrain:
        """Unroll counts into a packed train: what `encode` gives, packed.

        A code with an `unrolling` is encoded and packed in one pass by compiled kernels, without a tensor of
        [T, ...] places in between: numba in main memory, Triton on a CUDA GPU. Elsewhere, or without Triton,
        `encode` runs and its train is packed, more slowly, with the same result.

        Args:
            count: spike counts of any integer dtype, [*tokens, channels].
            num_timesteps: length of the train, in timesteps, at least 1.
        Raises:
            EncodingError: see `encode`; or the counts have no channel axis.
        """
        if count.ndim == 0:
            raise EncodingError(
                f"{type(self).__name__}.pack: expected counts [..., channels], got a single one. Use count[None]."
            )
        from .checks import checks_all, train_of  # noqa: PLC0415 - it imports this module

        if not self.has_kernels:
            return PackedTrain.from_train(train_of(self, count, num_timesteps))
        unrolling = cached_unrolling(self, num_timesteps)
        kernels = None if checks_all() else kernels_for(count.device)
        if kernels is None or count.dtype not in (torch.int32, torch.int64):
            # The dtype may be one that has no counts at all; the other integers are rare enough to be widened.
            count = checked_counts(self, count, num_timesteps, unrolling.low, unrolling.high)
        if kernels is None:
            return PackedTrain.from_train(train_of(self, count, num_timesteps), unrolling.sign_planes)
        train = empty_train(unrolling, count.shape, count.device)
        if count.numel():
            tokens = count.reshape(-1, count.shape[-1]).contiguous()
            low, high = kernels.pack_counts(tokens, unrolling, *as_rows(train))
            if low < unrolling.low or high > unrolling.high:
                checked_counts(self, count, num_timesteps, unrolling.low, unrolling.high)
        return train


ENCODERS: Registry[Encoder] = Registry("encoder", Encoder, "spikebrain.encoders")


def decode(train: SpikeTrain) -> Integer[Tensor, "*shape"]:
    """Fold a train back into counts: sum over t of timestep_weight[t] * spikes[t], minus the zero point.

    Args:
        train: a train of any code.
    Returns:
        Counts, int32, of the train's shape without the time axis.
    Raises:
        EncodingError: a value does not fit 32 bits.

    >>> decode(SpikeTrain(torch.tensor([[1], [0], [-1]], dtype=torch.int8), torch.tensor([4, 2, 1]))).tolist()
    [3]
    """
    value = torch.full(train.spikes.shape[1:], -train.zero_point, dtype=torch.int64, device=train.spikes.device)
    for weight, spikes in zip(train.timestep_weight.tolist(), train.spikes, strict=True):
        value += weight * spikes.to(torch.int64)
    limits = torch.iinfo(torch.int32)
    if value.numel() and not limits.min <= int(value.min()) <= int(value.max()) <= limits.max:
        raise EncodingError(
            f"decode: expected values that fit 32 bits, got [{int(value.min())}, {int(value.max())}]. "
            "Use smaller timestep weights."
        )
    return value.to(torch.int32)


def check_num_timesteps(encoder: Encoder, num_timesteps: int, most: int) -> None:
    """Raise an EncodingError unless 1 <= num_timesteps <= most."""
    if not 1 <= num_timesteps <= most:
        raise EncodingError(
            f"{type(encoder).__name__}.encode: expected 1 <= num_timesteps <= {most}, got {num_timesteps}. "
            "timesteps_for(max_count) gives a length that fits; for large counts use a bitwise code."
        )


def checked_counts(encoder: Encoder, count: Tensor, num_timesteps: int, low: int, high: int) -> Tensor:
    """Check that counts are integers in [low, high].

    Args:
        encoder: for the message.
        count: the counts to encode.
        num_timesteps: for the message.
        low: smallest count that fits.
        high: largest count that fits.
    Returns:
        The counts, in the narrowest of int32 and int64 that leaves room to add -low.
    Raises:
        EncodingError: they are not.
    """
    where = f"{type(encoder).__name__}.encode"
    if count.is_floating_point() or count.is_complex() or count.dtype == torch.bool:
        raise EncodingError(f"{where}: expected integer counts, got {count.dtype}. Round first, e.g. with a neuron.")
    dtype = torch.int32 if max(-low, high) < 2**30 else torch.int64
    if count.dtype not in (torch.int32, torch.int64):
        count = count.to(torch.int64)  # limits may not fit a narrow type, and PyTorch does little with uint16 to uint64
    if count.numel() == 0:
        return count.to(dtype)
    smallest, largest = (int(v) for v in count.aminmax())
    if low <= smallest and largest <= high:
        return count.to(dtype)
    index = tuple(((count < low) | (count > high)).nonzero()[0].tolist())
    suited, needed = encoder.fitted(smallest, largest)
    remedy = f"Use num_timesteps >= {needed}" if suited == encoder else f"Use {suited} with {needed} timesteps"
    raise EncodingError(
        f"{where}: expected {low} <= count <= {high} for num_timesteps = {num_timesteps}, got {int(count[index])} at "
        f"index {index}. {remedy}, or a higher threshold."
    )


def require_exact(encoder: Encoder, where: str, why: str) -> None:
    """Raise an InputError if a code is lossy where counts have to be exact; `why` goes on from "since"."""
    if encoder.lossy:
        raise InputError(f"{where}: expected an exact code, since {why}; got the lossy {encoder!r}. Take another code.")


@functools.lru_cache(maxsize=64)
def cached_unrolling(encoder: Encoder, num_timesteps: int) -> Unrolling:
    """Return `encoder.unrolling`, built once: building its masks takes longer than packing a token."""
    return encoder.unrolling(num_timesteps)


def empty_train(unrolling: Unrolling, shape: torch.Size, device: torch.device) -> PackedTrain:
    """Return a packed train for counts of that shape, for a kernel to fill."""
    words = (*shape[:-1], num_words(shape[-1]))
    fired = torch.empty(unrolling.num_timesteps, *words, dtype=torch.int32, device=device)
    negative = torch.empty(unrolling.sign_planes, *words, dtype=torch.int32, device=device)
    weight = unrolling.timestep_weight.to(device, copy=True)
    return PackedTrain.unchecked(fired, negative, weight, shape[-1], unrolling.zero_point)


def as_rows(train: PackedTrain) -> tuple[Tensor, Tensor]:
    """Return the planes as kernels see them: fired [T, tokens, words], negative [S, tokens, words]."""
    rows = (train.fired.shape[1:-1].numel(), train.fired.shape[-1])
    return train.fired.reshape(len(train.fired), *rows), train.negative.reshape(len(train.negative), *rows)


def bit_planes(magnitude: Tensor, num_timesteps: int) -> Tensor:
    """Return the binary digits of nonnegative magnitudes as int8, most significant first: [T, *shape]."""
    planes = torch.empty((num_timesteps, *magnitude.shape), dtype=torch.int8, device=magnitude.device)
    for t in range(num_timesteps):
        planes[t] = (magnitude >> (num_timesteps - 1 - t)) & 1
    return planes


def powers_of_two(num_timesteps: int) -> Tensor:
    """Return the weights of bit planes, 2^(T-1-t), int64, [T]."""
    return 2 ** torch.arange(num_timesteps - 1, -1, -1, dtype=torch.int64)


def rate_planes(magnitude: Tensor, num_timesteps: int) -> Tensor:
    """Return one spike in each of the first `magnitude` timesteps, int8: [T, *shape]."""
    planes = torch.empty((num_timesteps, *magnitude.shape), dtype=torch.int8, device=magnitude.device)
    for t in range(num_timesteps):
        planes[t] = magnitude > t
    return planes


# Longest train of a code of bit planes: keeps every weight and range within int64. Counts have 32 bits.
MAX_BIT_PLANES = 62
# Longest train of a rate code: a count beyond this is better unrolled into digits.
MAX_RATE_TIMESTEPS = 2**20
# Largest |count| that every lossless code carries: a rate code with a zero point needs twice as many timesteps.
MAX_LOSSLESS_COUNT = MAX_RATE_TIMESTEPS // 2
