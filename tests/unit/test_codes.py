"""Each code by hand, and exhaustively over all counts of 13 bits."""

import pytest
import torch
from made_codes import EXACT

from spikebrain import BidirectionalBitwise, Binary, Bitwise, SignedDigit, SpikeTrain, Ternary, TwosComplement, decode
from spikebrain.coding import ENCODERS
from spikebrain.coding.base import MAX_LOSSLESS_COUNT
from spikebrain.errors import EncodingError, InputError

ALL = torch.arange(-(2**12), 2**12 + 1, dtype=torch.int32)


def encode(encoder, counts, num_timesteps):
    return encoder.encode(torch.tensor(counts), num_timesteps)


@pytest.mark.parametrize(
    ("encoder", "counts", "num_timesteps", "spikes", "weights"),
    [
        (Binary(), [3, 1, 0], 3, [[1, 1, 0], [1, 0, 0], [1, 0, 0]], [1, 1, 1]),
        # Lifted by 2: 1, 0, 3.
        (Binary(zero_point=2), [-1, -2, 1], 3, [[1, 0, 1], [0, 0, 1], [0, 0, 1]], [1, 1, 1]),
        (Ternary(), [2, -3, 0], 3, [[1, -1, 0], [1, -1, 0], [0, -1, 0]], [1, 1, 1]),
        # 6 = 110, 1 = 001, most significant first.
        (Bitwise(), [6, 1, 0], 3, [[1, 0, 0], [1, 0, 0], [0, 1, 0]], [4, 2, 1]),
        # Lifted by 4: 1, 4, 7.
        (Bitwise(zero_point=4), [-3, 0, 3], 3, [[0, 1, 1], [0, 0, 1], [1, 0, 1]], [4, 2, 1]),
        (BidirectionalBitwise(), [6, -5, 0], 3, [[1, -1, 0], [1, 0, 0], [0, -1, 0]], [4, 2, 1]),
        # -4 = 100, -1 = 111, 3 = 011.
        (TwosComplement(), [-4, -1, 3], 3, [[1, 1, 0], [0, 1, 1], [0, 1, 1]], [-4, 2, 1]),
        # 7 = 8 - 1, -6 = -8 + 2, 5 = 4 + 1.
        (SignedDigit(), [7, -6, 5], 4, [[1, -1, 0], [0, 0, 1], [0, 1, 0], [-1, 0, 1]], [8, 4, 2, 1]),
    ],
    ids=lambda value: str(value) if hasattr(value, "encode") else "",
)
def test_by_hand(encoder, counts, num_timesteps, spikes, weights):
    train = encode(encoder, counts, num_timesteps)
    assert train.spikes.tolist() == spikes
    assert train.timestep_weight.tolist() == weights
    assert decode(train).tolist() == counts


@pytest.mark.parametrize("name", EXACT)
def test_every_count_of_13_bits(name):
    encoder, num_timesteps = ENCODERS.create(name).fitted(-(2**12), 2**12)
    assert torch.equal(decode(encoder.encode(ALL, num_timesteps)), ALL)


@pytest.mark.parametrize("name", EXACT)
def test_shortest_train_of_every_range(name):
    # Counts in [-c, c] fit the timesteps that the code asks for, for every c.
    for c in [*range(70), 127, 128, 255, 256, 1023, 1024]:
        encoder, num_timesteps = ENCODERS.create(name).fitted(-c, c)
        assert num_timesteps >= 1
        counts = torch.tensor([-c, c, 0])
        assert torch.equal(decode(encoder.encode(counts, num_timesteps)), counts.int())


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        # Timesteps for 0, 1, 7, 8, 3570: REFERENCE section 2.
        (Binary(), (1, 1, 7, 8, 3570)),
        (Ternary(), (1, 1, 7, 8, 3570)),
        (Bitwise(), (1, 1, 3, 4, 12)),
        (BidirectionalBitwise(), (1, 1, 3, 4, 12)),
        (TwosComplement(), (1, 2, 4, 5, 13)),
        (SignedDigit(), (1, 2, 4, 5, 13)),
        (Binary(zero_point=10), (10, 11, 17, 18, 3580)),
        (Bitwise(zero_point=10), (4, 4, 5, 5, 12)),
    ],
    ids=str,
)
def test_timesteps_for(encoder, expected):
    assert tuple(encoder.timesteps_for(c) for c in (0, 1, 7, 8, 3570)) == expected


def test_signed_digit_has_no_neighbours_and_the_fewest_spikes():
    spikes = SignedDigit().encode(ALL, 14).spikes
    assert not bool((spikes[1:] * spikes[:-1]).any())
    # REFERENCE section 2: popcount(c xor 3c) spikes.
    assert spikes.count_nonzero(0).tolist() == [(abs(c) ^ (3 * abs(c))).bit_count() for c in ALL.tolist()]
    bitwise = BidirectionalBitwise().encode(ALL, 13).spikes
    assert bool((spikes.count_nonzero(0) <= bitwise.count_nonzero(0)).all())


@pytest.mark.parametrize(
    ("encoder", "num_timesteps", "low", "high"),
    [
        (Binary(), 5, 0, 5),
        (Binary(zero_point=2), 5, -2, 3),
        (Ternary(), 5, -5, 5),
        (Bitwise(), 4, 0, 15),
        (Bitwise(zero_point=8), 4, -8, 7),
        (BidirectionalBitwise(), 4, -15, 15),
        (TwosComplement(), 4, -8, 7),
        (SignedDigit(), 4, -10, 10),  # 1010 = 10
    ],
    ids=str,
)
def test_a_count_that_does_not_fit_raises(encoder, num_timesteps, low, high):
    assert decode(encode(encoder, [low, high], num_timesteps)).tolist() == [low, high]
    for wrong in (low - 1, high + 1):
        counts = torch.zeros(2, 3, dtype=torch.int32)
        counts[1, 2] = wrong
        with pytest.raises(EncodingError, match=rf"{type(encoder).__name__}.*got {wrong} at index \(1, 2\)"):
            encoder.encode(counts, num_timesteps)


def test_the_error_names_a_way_out():
    with pytest.raises(EncodingError, match="num_timesteps >= 7"):
        encode(Ternary(), [0, 7], 4)
    with pytest.raises(EncodingError, match=r"Binary\(zero_point=3\) with 5 timesteps"):
        encode(Binary(), [-3, 2], 4)


def test_stateless():
    # Int2Spike keeps T of its first call, and 5, -4 after 2, -1 decode to 2, -2 there.
    for name in EXACT:
        encoder = ENCODERS.create(name)
        for counts in ([2, 1], [5, 4], [300, 0], [1, 1]):
            assert decode(encode(encoder, counts, encoder.timesteps_for(max(counts)))).tolist() == counts


def test_no_negative_count_and_no_spike_at_all():
    # The reference implementation raises on both.
    for name in EXACT:
        for counts in ([1, 2, 3], [0, 0, 0]):
            encoder, num_timesteps = ENCODERS.create(name).fitted(min(counts), max(counts))
            assert decode(encode(encoder, counts, num_timesteps)).tolist() == counts


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32]
)
def test_any_integer_dtype(dtype):
    for name in EXACT:
        encoder = ENCODERS.create(name)
        counts = torch.tensor([[5, 0, 127]], dtype=dtype)
        assert decode(encoder.encode(counts, encoder.timesteps_for(127))).tolist() == [[5, 0, 127]]


def test_longest_trains():
    # 62 bit planes keep 2^T within int64 (61 for signed digits, whose carry needs one more).
    for encoder, longest in (
        (Bitwise(), 62),
        (BidirectionalBitwise(), 62),
        (TwosComplement(), 62),
        (SignedDigit(), 61),
    ):
        assert decode(encode(encoder, [2**30, 1], longest)).tolist() == [2**30, 1]
        with pytest.raises(EncodingError, match=f"num_timesteps <= {longest}"):
            encode(encoder, [1], longest + 1)


def test_bad_input(as_users):
    for name in EXACT:
        encoder = ENCODERS.create(name)
        with pytest.raises(EncodingError, match="integer counts"):
            encoder.encode(torch.tensor([1.0]), 4)
        with pytest.raises(EncodingError, match="integer counts"):
            encoder.encode(torch.tensor([True]), 4)
        for num_timesteps in (0, -1):
            with pytest.raises(EncodingError, match="num_timesteps"):
                encoder.encode(torch.tensor([0]), num_timesteps)
    for cls in (Binary, Bitwise):
        with pytest.raises(InputError, match="zero_point"):
            cls(zero_point=-1)


@pytest.mark.parametrize(
    ("spikes", "weight", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([1, 1]), "int8"),
        (torch.zeros(0, 3, dtype=torch.int8), torch.zeros(0, dtype=torch.int64), "T >= 1"),
        (torch.zeros(2, 3, dtype=torch.int8), torch.tensor([1, 1, 1]), "timestep_weight"),
        (torch.zeros(2, 3, dtype=torch.int8), torch.tensor([1.0, 1.0]), "timestep_weight"),
        (torch.zeros(2, 3, dtype=torch.int8), torch.tensor([2**61, -(2**61)]), r"less than 2\^62"),
        (torch.tensor([[2, 0]], dtype=torch.int8), torch.tensor([1]), r"\[0, 2\]"),
        (torch.tensor([[-128, 0]], dtype=torch.int8), torch.tensor([1]), r"\[-128, 0\]"),
    ],
)
def test_malformed_trains(spikes, weight, message, as_users):
    with pytest.raises(EncodingError, match=message):
        SpikeTrain(spikes, weight)


@pytest.mark.parametrize("zero_point", [-1, 1.5, 2**32, True])
def test_bad_zero_points(zero_point, as_users):
    with pytest.raises(EncodingError, match="zero_point"):
        SpikeTrain(torch.zeros(1, 1, dtype=torch.int8), torch.tensor([1]), zero_point)


def test_messages_name_the_wrong_count_in_any_dtype():
    for dtype, counts, wrong in ((torch.uint8, [3, 200], 200), (torch.int8, [100, -1], -1)):
        with pytest.raises(EncodingError, match=rf"got {wrong} at index \(1,\)"):
            Binary().encode(torch.tensor(counts, dtype=dtype), 100)


def test_rate_codes_have_a_longest_train():
    with pytest.raises(EncodingError, match="use a bitwise code"):
        encode(Ternary(), [2**20 + 1], 2**20 + 1)


def test_decode_raises_beyond_32_bits():
    train = SpikeTrain(torch.ones(2, 1, dtype=torch.int8), torch.tensor([2**30, 2**30]))
    with pytest.raises(EncodingError, match=str(2**31)):
        decode(train)


def test_rates():
    # 3 spikes in 2 x 3 places; +1 and -1 do not cancel.
    train = SpikeTrain(torch.tensor([[1, -1, 0], [0, -1, 0]], dtype=torch.int8), torch.tensor([2, 1]))
    assert (train.num_timesteps, train.num_spikes, train.firing_rate) == (2, 3, 0.5)
    assert SpikeTrain(torch.zeros(2, 0, dtype=torch.int8), torch.tensor([2, 1])).firing_rate == 0


@pytest.mark.parametrize("name", EXACT)
def test_lossless_codes_carry_what_backends_rely_on(name):
    encoder = ENCODERS.create(name)
    assert encoder.lossless
    fitted, num_timesteps = encoder.fitted(-MAX_LOSSLESS_COUNT, MAX_LOSSLESS_COUNT)
    if fitted.has_kernels:  # a rate code would take seconds for its million timesteps
        code = fitted.unrolling(num_timesteps)
        assert code.low <= -MAX_LOSSLESS_COUNT
        assert code.high >= MAX_LOSSLESS_COUNT
    else:
        count = torch.tensor([-MAX_LOSSLESS_COUNT, 0, MAX_LOSSLESS_COUNT], dtype=torch.int32)
        assert torch.equal(decode(fitted.encode(count, num_timesteps)), count)


def test_what_a_class_says_about_its_code_is_not_inherited_by_another_code():
    class Renamed(Ternary):
        """The same code."""

    class OtherEncode(Ternary):
        def encode(self, count, num_timesteps):
            return super().encode(count.clamp(-1, 1), num_timesteps)

    class OtherLength(Binary):
        def timesteps_for(self, max_count):
            return 4

    class Lossless(OtherEncode):
        lossless = True

    assert Renamed.lossless
    assert Renamed.has_kernels
    assert not OtherEncode.lossless
    assert not OtherEncode.has_kernels
    assert not type("Child", (OtherEncode,), {}).lossless
    assert not type("Child", (OtherEncode,), {}).has_kernels
    assert not OtherLength.lossless
    assert OtherLength.has_kernels  # they encode what they are given
    assert Lossless.lossless
    assert not Lossless.has_kernels
