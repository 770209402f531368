"""A spike train with one bit per neuron and timestep: what kernels write and read instead of int8 or float planes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int, Int32
from torch import Tensor

from ..errors import EncodingError
from .train import SpikeTrain, check_weights

WORD_BITS = 32
# Elements of a train that are packed or unpacked together in plain PyTorch.
_PORTION = 2**22


@dataclass(frozen=True)
class PackedTrain:
    """A `SpikeTrain` in machine words of 32 bits: bit j of word w belongs to channel 32 * w + j.

    A place fired if its bit in `fired` is 1; the spike is -1 if its bit in `negative` is 1 as well. Signs have as many
    planes as the code needs: none if it has no negative spikes, one if all spikes of a neuron have the same sign
    (ternary and bidirectional codes), T otherwise (signed digits, trains made by hand). The unused bits of the last
    word are 0, and so is the sign of a place that did not fire (of a neuron that never fired, where signs are shared).

    Attributes:
        fired: int32, [T, *tokens, words] with T >= 1 and words = ceil(num_channels / 32).
        negative: int32, [S, *tokens, words] with S = 0, 1 or T.
        timestep_weight: as in `SpikeTrain`, int64, [T].
        num_channels: channels of a token.
        zero_point: as in `SpikeTrain`.
    Raises:
        EncodingError: shapes, dtypes or devices do not match, or a bit is 1 that must be 0.

    >>> train = SpikeTrain(torch.tensor([[1, 0, -1], [1, 0, 0]], dtype=torch.int8), torch.tensor([2, 1]))
    >>> packed = PackedTrain.from_train(train)
    >>> packed.fired.tolist(), packed.negative.tolist()
    ([[5], [1]], [[4]])
    >>> torch.equal(packed.to_train().spikes, train.spikes)
    True
    """

    fired: Int32[Tensor, "timesteps *words"]
    negative: Int32[Tensor, "sign_planes *words"]
    timestep_weight: Int[Tensor, " timesteps"]
    num_channels: int
    zero_point: int = 0

    def __post_init__(self) -> None:
        self._check_shapes()
        check_weights("PackedTrain", self.num_timesteps, self.timestep_weight, self.zero_point)
        fired_at_all = or_over_time(self.fired)
        unused = ~_used_bits(self.num_channels, self.fired.device)
        if bool((fired_at_all & unused).any()):
            raise EncodingError(
                f"PackedTrain.fired: expected the bits from channel {self.num_channels} on to be 0 in the last word. "
                "Clear them, or give the number of channels."
            )
        may_be_negative = fired_at_all if len(self.negative) == 1 else self.fired
        if len(self.negative) and bool((self.negative & ~may_be_negative).any()):
            raise EncodingError("PackedTrain.negative: expected 0 where nothing fired. Use negative & fired.")

    def _check_shapes(self) -> None:
        fired, negative = self.fired, self.negative
        if fired.dtype != torch.int32 or fired.ndim < 2 or fired.shape[0] == 0:
            raise EncodingError(
                f"PackedTrain.fired: expected int32 of shape [T, ..., words] with T >= 1, got {fired.dtype} of shape "
                f"{tuple(fired.shape)}. PackedTrain.from_train packs a SpikeTrain."
            )
        if type(self.num_channels) is not int or self.num_channels < 0:
            raise EncodingError(f"PackedTrain.num_channels: expected an integer >= 0, got {self.num_channels!r}.")
        if fired.shape[-1] != num_words(self.num_channels):
            raise EncodingError(
                f"PackedTrain.fired: expected {num_words(self.num_channels)} words for {self.num_channels} channels, "
                f"got shape {tuple(fired.shape)}."
            )
        planes = (0, 1, fired.shape[0])
        if negative.dtype != torch.int32 or negative.shape[1:] != fired.shape[1:] or len(negative) not in planes:
            raise EncodingError(
                f"PackedTrain.negative: expected int32 of shape [S, {', '.join(map(str, fired.shape[1:]))}] with S one "
                f"of {planes}, got {negative.dtype} of shape {tuple(negative.shape)}."
            )
        if negative.device != fired.device:
            raise EncodingError(
                f"PackedTrain: fired is on {fired.device}, negative on {negative.device}. Move one of them."
            )

    @classmethod
    def unchecked(
        cls, fired: Tensor, negative: Tensor, timestep_weight: Tensor, num_channels: int, zero_point: int
    ) -> PackedTrain:
        """Build a train from the output of our own kernels without checking its values: a GPU would have to wait."""
        train = object.__new__(cls)
        values = (fired, negative, timestep_weight, num_channels, zero_point)
        for name, value in zip(cls.__dataclass_fields__, values, strict=True):
            object.__setattr__(train, name, value)
        return train

    @classmethod
    def from_train(cls, train: SpikeTrain, sign_planes: int | None = None) -> PackedTrain:
        """Pack any train, without loss: the plain reference of all kernels that pack.

        Args:
            train: spikes [T, *tokens, channels].
            sign_planes: S, planes of signs: 0, 1 or T; None for the fewest that hold this train.
        Raises:
            EncodingError: the train has no channel axis, or the signs do not fit into that number of planes.
        """
        spikes, num_timesteps = train.spikes, train.num_timesteps
        if spikes.ndim < 2:
            raise EncodingError(
                f"PackedTrain.from_train: expected spikes [T, ..., channels], got shape {tuple(spikes.shape)}. "
                "Add a channel axis with train.spikes[..., None]."
            )
        least = _fewest_sign_planes(spikes)
        planes = least if sign_planes is None else sign_planes
        if planes not in (0, 1, num_timesteps) or planes < least:
            raise EncodingError(
                f"PackedTrain.from_train: expected 0, 1 or {num_timesteps} sign planes, and {least} or more for these "
                f"spikes; got {planes}."
            )
        parts = _portions(spikes)
        fired = torch.cat([pack_bits(part != 0) for part in parts])
        if planes == 0:
            negative = fired[:0]
        elif planes == 1:
            negative = pack_bits((spikes < 0).any(0))[None]
        else:
            negative = torch.cat([pack_bits(part < 0) for part in parts])
        return cls(fired, negative, train.timestep_weight, spikes.shape[-1], train.zero_point)

    def to_train(self) -> SpikeTrain:
        """Unpack: the train that was packed, spike by spike."""
        spikes = torch.cat([unpack_bits(part, self.num_channels) for part in _portions(self.fired)])
        if len(self.negative):
            negative = _portions(self.negative.expand_as(self.fired) & self.fired)
            spikes -= 2 * torch.cat([unpack_bits(part, self.num_channels) for part in negative])
        return SpikeTrain(spikes, self.timestep_weight, self.zero_point)

    @property
    def num_timesteps(self) -> int:
        """T, the length of the train."""
        return self.fired.shape[0]

    @property
    def num_spikes(self) -> int:
        """Spikes of either sign in the whole train."""
        return sum(int(count_bits(part).sum()) for part in _portions(self.fired))

    @property
    def num_bytes(self) -> int:
        """Bytes of all planes."""
        return self.fired.nbytes + self.negative.nbytes


def num_words(num_channels: int) -> int:
    """Return how many words hold that many channels."""
    return -(-num_channels // WORD_BITS)


def pack_bits(bits: Tensor) -> Tensor:
    """Pack booleans [..., channels] into int32 [..., words]; unused bits are 0."""
    words = num_words(bits.shape[-1])
    padded = torch.nn.functional.pad(bits, (0, words * WORD_BITS - bits.shape[-1]))
    place = torch.arange(WORD_BITS, dtype=torch.int32, device=bits.device)
    # Each power of two occurs once at most, so that the sum is the union; bit 31 is the sign of int32.
    return (padded.unflatten(-1, (words, WORD_BITS)).to(torch.int32) << place).sum(-1, dtype=torch.int32)


def unpack_bits(words: Tensor, num_channels: int) -> Tensor:
    """Unpack int32 [..., words] into int8 of 0 and 1, [..., channels]."""
    place = torch.arange(WORD_BITS, dtype=torch.int32, device=words.device)
    return ((words[..., None] >> place) & 1).to(torch.int8).flatten(-2)[..., :num_channels]


def count_bits(words: Tensor) -> Tensor:
    """Return the number of ones in each int32.

    Source:
        H. S. Warren, Hacker's Delight, 2nd edition, section 5-1.
    """
    pairs = words - ((words >> 1) & 0x55555555)
    fours = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    bytes_ = (fours + (fours >> 4)) & 0x0F0F0F0F
    return (bytes_ * 0x01010101 >> 24) & 0x3F


def or_over_time(planes: Tensor) -> Tensor:
    """Return the union of the planes, [*tokens, words]: which channels fired at all."""
    while len(planes) > 1:
        half = (len(planes) + 1) // 2
        rest = len(planes) - half
        planes = torch.cat([planes[:rest] | planes[half:], planes[rest:half]])
    return planes[0]


def _portions(planes: Tensor) -> tuple[Tensor, ...]:
    """Split planes [T, ...] so that working on one takes little memory."""
    return planes.split(max(1, _PORTION // max(1, planes[0].numel())))


def _used_bits(num_channels: int, device: torch.device) -> Tensor:
    return pack_bits(torch.ones(num_channels, dtype=torch.bool, device=device))


def _fewest_sign_planes(spikes: Tensor) -> int:
    negative = (spikes < 0).any(0)
    if not bool(negative.any()):
        return 0
    return spikes.shape[0] if bool((negative & (spikes > 0).any(0)).any()) else 1
