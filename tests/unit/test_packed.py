"""Packed trains by hand: layout, signs, errors; what `pack` does with codes of users and where kernels are missing."""

from dataclasses import dataclass

import pytest
import torch
from made_codes import EXACT

from spikebrain import (
    AdaptiveThreshold,
    BidirectionalBitwise,
    Binary,
    Bitwise,
    ChannelEvents,
    Encoder,
    PackedTrain,
    SignedDigit,
    SpikeTrain,
    Ternary,
    pack_activations,
)
from spikebrain.backends import Reference
from spikebrain.coding import ENCODERS, kernels
from spikebrain.errors import ActivationError, EncodingError, InputError


def train_of(spikes, weights=None, zero_point=0):
    spikes = torch.tensor(spikes, dtype=torch.int8)
    return SpikeTrain(spikes, torch.tensor(weights or [1] * len(spikes)), zero_point)


def same(a, b):
    tensors = ("fired", "negative", "timestep_weight")
    assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in tensors)
    assert (a.num_channels, a.zero_point) == (b.num_channels, b.zero_point)


def test_layout():
    # 33 channels: channel 31 is bit 31 of word 0 (the sign of an int32), channel 32 is bit 0 of word 1.
    count = torch.zeros(33, dtype=torch.int32)
    count[[0, 31, 32]] = torch.tensor([3, -2, -1], dtype=torch.int32)
    packed = BidirectionalBitwise().pack(count, 2)
    # 3 = 11, 2 = 10, 1 = 01, most significant first.
    assert packed.fired.tolist() == [[1 - 2**31, 0], [1, 1]]
    assert packed.negative.tolist() == [[-(2**31), 1]]
    assert (packed.num_timesteps, packed.num_channels, packed.num_spikes, packed.num_bytes) == (2, 33, 4, 24)


@pytest.mark.parametrize(
    ("spikes", "sign_planes"),
    [
        ([[1, 0], [1, 1]], 0),
        ([[1, -1], [0, -1]], 1),  # each neuron has one sign
        ([[1, -1], [-1, 0]], 2),  # the first has both
        ([[-1, 1]], 1),
    ],
)
def test_any_train_takes_the_fewest_sign_planes(spikes, sign_planes):
    train = train_of(spikes, zero_point=3)
    packed = PackedTrain.from_train(train)
    assert len(packed.negative) == sign_planes
    back = packed.to_train()
    assert back.spikes.tolist() == spikes
    assert back.zero_point == 3
    same(PackedTrain.from_train(back, len(spikes)), PackedTrain.from_train(train, len(spikes)))
    with pytest.raises(EncodingError, match="sign planes"):
        PackedTrain.from_train(train, sign_planes - 1)


def test_sizes_against_floats():
    # The bidirectional code needs T + 1 bits a channel, where a float32 train needs 32 T.
    packed = BidirectionalBitwise().pack(torch.zeros(4, 64, dtype=torch.int32), 5)
    assert packed.num_bytes == 4 * 64 * 6 // 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fired": torch.zeros(2, 3, 1, dtype=torch.int64)}, "fired: expected int32"),
        ({"fired": torch.zeros(2, dtype=torch.int32)}, "fired: expected int32"),
        ({"fired": torch.zeros(0, 3, 1, dtype=torch.int32)}, "T >= 1"),
        ({"num_channels": 33}, "expected 2 words for 33 channels"),
        ({"num_channels": -1}, "num_channels"),
        ({"num_channels": True}, "num_channels"),
        ({"negative": torch.zeros(3, 3, 1, dtype=torch.int32)}, r"one of \(0, 1, 2\)"),
        ({"negative": torch.zeros(1, 2, 1, dtype=torch.int32)}, "negative: expected int32"),
        ({"negative": torch.zeros(1, 3, 1, dtype=torch.int32, device="meta")}, "is on"),
        ({"timestep_weight": torch.tensor([1])}, "PackedTrain.timestep_weight"),
        ({"zero_point": -1}, "PackedTrain.zero_point"),
        ({"fired": torch.full((2, 3, 1), 4, dtype=torch.int32)}, "from channel 2 on to be 0"),
        ({"negative": torch.ones(1, 3, 1, dtype=torch.int32)}, "0 where nothing fired"),
        ({"negative": torch.ones(2, 3, 1, dtype=torch.int32)}, "0 where nothing fired"),
    ],
)
def test_malformed(changes, message, as_users):
    good = {
        "fired": torch.zeros(2, 3, 1, dtype=torch.int32),
        "negative": torch.zeros(1, 3, 1, dtype=torch.int32),
        "timestep_weight": torch.tensor([2, 1]),
        "num_channels": 2,
    }
    PackedTrain(**good)
    with pytest.raises(EncodingError, match=message):
        PackedTrain(**good | changes)


def test_a_channel_axis_is_needed(as_users):
    with pytest.raises(EncodingError, match="channels"):
        PackedTrain.from_train(train_of([1, 0]))
    with pytest.raises(EncodingError, match="channels"):
        Ternary().pack(torch.tensor(1), 1)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64, torch.uint32])
def test_a_count_that_does_not_fit_raises_as_encode_does(name, dtype, as_users):
    encoder = ENCODERS.create(name)
    counts = torch.zeros(2, 40, dtype=dtype)
    counts[1, 39] = 100
    with pytest.raises(EncodingError) as expected:
        encoder.encode(counts, 3)
    with pytest.raises(EncodingError) as found:
        encoder.pack(counts, 3)
    assert str(found.value) == str(expected.value)
    assert "(1, 39)" in str(found.value)
    with pytest.raises(EncodingError, match="integer counts"):
        encoder.pack(torch.zeros(2, 3), 3)
    with pytest.raises(EncodingError, match="num_timesteps"):
        encoder.pack(counts, 0)


@dataclass(frozen=True)
class Doubled(Encoder):
    """A code of a user: one timestep of weight 2, counts -2, 0 and 2."""

    def encode(self, count, num_timesteps):
        return SpikeTrain((count // 2).to(torch.int8)[None], torch.tensor([2]))

    def timesteps_for(self, max_count):
        return 1


@dataclass(frozen=True)
class Reversed(Bitwise):
    """A user's variant of a built-in code: least significant digit first. The kernels of its parent are not its own."""

    def encode(self, count, num_timesteps):
        train = super().encode(count, num_timesteps)
        return SpikeTrain(train.spikes.flip(0), train.timestep_weight.flip(0), train.zero_point)


@pytest.mark.parametrize(("encoder", "num_timesteps"), [(Doubled(), 1), (Reversed(), 3)])
def test_codes_of_users(encoder, num_timesteps):
    count = torch.tensor([[2, 0, 2]])
    same(encoder.pack(count, num_timesteps), PackedTrain.from_train(encoder.encode(count, num_timesteps)))
    packed, _ = pack_activations(torch.tensor([[2.0, 0.0, 2.0]]), AdaptiveThreshold(k=4 / 3), encoder, num_timesteps)
    assert packed.to_train().spikes.tolist() == encoder.encode(count, num_timesteps).spikes.tolist()


@pytest.mark.parametrize("name", EXACT)
def test_without_kernels(name, monkeypatch):
    count = torch.randint(-9, 10, (3, 33))
    encoder, num_timesteps = ENCODERS.create(name).fitted(-9, 9)
    with_kernels = encoder.pack(count, num_timesteps)
    monkeypatch.setattr("spikebrain.coding.base.kernels_for", lambda device: None)
    same(encoder.pack(count, num_timesteps), with_kernels)


def test_which_kernels(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert kernels.kernels_for(torch.device("cpu")).__name__.endswith("packing_numba")
    assert kernels.active_kernels_for(torch.device("cpu")).__name__.endswith("active_numba")
    assert kernels.kernels_for(torch.device("meta")) is None
    assert kernels.active_kernels_for(torch.device("meta")) is None
    assert "not for meta" in kernels.why_plain(torch.device("meta"))
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    assert kernels.kernels_for(torch.device("cuda")) is None
    assert "pip install triton" in kernels.why_plain(torch.device("cuda"))
    assert kernels.why_plain(torch.device("cpu")) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("x", "num_timesteps", "error", "message"),
    [
        (torch.tensor([[1.0, float("nan")]]), 4, ActivationError, r"\(0, 1\)"),
        (torch.tensor([[1.0, 2.0], [float("inf"), 0.0]]), None, ActivationError, r"\(1, 0\)"),
        (torch.tensor([[1.0, 1e30]]), None, ActivationError, "fit 32 bits"),
        (torch.tensor([[1.0, 1e30]]), 62, ActivationError, "fit 32 bits"),
        (torch.tensor(1.0), None, InputError, "channel axis"),
        (torch.tensor([[1, 2]]), None, InputError, "floating-point"),
        # Counts 0 and 6, and three bits for the first.
        (torch.tensor([[0.0, 1.0], [0.0, 0.0]]), 2, EncodingError, r"got 6 at index \(0, 1\)"),
    ],
)
def test_bad_activations(x, num_timesteps, error, message, as_users):
    with pytest.raises(error, match=message):
        pack_activations(x, AdaptiveThreshold(), BidirectionalBitwise(), num_timesteps)


def test_activations_at_ties_and_far_out():
    # Threshold 1: the floor binds. Halves go to the even neighbour, also where float32 has no smaller steps than 1/2.
    x = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 4194304.5, 4194305.5, 8388607.0, -4194305.5, 2147483520.0, 0.0]])
    neuron = AdaptiveThreshold(k=1e12, floor=1.0)
    packed, threshold = pack_activations(x, neuron, BidirectionalBitwise(), 31)
    assert threshold.tolist() == [[1.0]]
    expected = [0, 2, 2, 0, -2, 4194304, 4194306, 8388607, -4194306, 2147483520, 0]
    same(packed, BidirectionalBitwise().pack(torch.tensor([expected]), 31))


def test_backends_take_packed_trains():
    count = torch.randint(-9, 10, (2, 3, 40))
    weight = torch.randint(-127, 128, (5, 40), dtype=torch.int8)
    for encoder, num_timesteps in ((Binary(9), 18), (SignedDigit(), 5)):
        expected = Reference().accumulate(encoder.encode(count, num_timesteps), weight)
        assert torch.equal(Reference().accumulate(encoder.pack(count, num_timesteps), weight), expected)


def test_channel_events_by_hand():
    # A silent token, a channel whose spikes cancel (listed, count 0), and a zero point that is not subtracted.
    train = train_of([[[0, 0, 0], [1, 0, -1]], [[0, 0, 0], [-1, 0, 1]]], [1, 1], zero_point=4)
    events = ChannelEvents.from_packed(PackedTrain.from_train(train))
    assert events.indptr.tolist() == [0, 0, 2]
    assert events.channel.tolist() == [0, 2]
    assert events.count.tolist() == [0, 0]
    assert (events.shape, events.zero_point) == ((2, 3), 4)


def test_channel_events_widen_where_counts_could_leave_32_bits():
    train = PackedTrain.from_train(train_of([[[1]], [[1]]], [2**31, 2**31]))
    for events in (ChannelEvents.from_packed(train), ChannelEvents.from_packed_plainly(train)):
        assert events.count.tolist() == [2**32]
    assert ChannelEvents.from_packed(PackedTrain.from_train(train_of([[[1]]]))).count.dtype == torch.int32
