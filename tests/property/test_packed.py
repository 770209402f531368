"""What holds for packed trains of every registered encoder, and of trains made by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebrain import AdaptiveThreshold, ChannelEvents, PackedTrain, SpikeTrain, decode, pack_activations
from spikebrain.coding import ENCODERS
from spikebrain.testing.encoders import check_packing

CHANNELS = [0, 1, 31, 32, 33, 63, 64, 100, 577]
DIGITS = [name for name in ENCODERS if ENCODERS.get(name).has_kernels and name not in ("binary", "ternary")]
leading = st.lists(st.integers(0, 3), max_size=3).map(tuple)


def same(a, b):
    tensors = ("fired", "negative", "timestep_weight")
    assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in tensors)
    assert (a.num_channels, a.zero_point) == (b.num_channels, b.zero_point)


@st.composite
def counts(draw, largest=(0, 1, 7, 8, 300)):
    shape = (*draw(leading), draw(st.sampled_from(CHANNELS)))
    limit = draw(st.sampled_from(largest))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from([torch.int32, torch.int64]))
    count = torch.randint(-limit, limit + 1, shape, generator=generator, dtype=dtype)
    if draw(st.booleans()) and count.ndim > 1 and len(count):
        count[0] = 0  # silent tokens
    return count


def fit(name, count, extra=0):
    low, high = (int(count.min()), int(count.max())) if count.numel() else (0, 0)
    encoder, num_timesteps = ENCODERS.create(name).fitted(low, high)
    return encoder, num_timesteps + extra


def check_events(packed):
    events, plain = ChannelEvents.from_packed(packed), ChannelEvents.from_packed_plainly(packed)
    for name in ("indptr", "channel", "count"):
        assert torch.equal(getattr(events, name), getattr(plain, name))
        assert getattr(events, name).dtype == getattr(plain, name).dtype
    assert (events.shape, events.zero_point) == (plain.shape, plain.zero_point)
    train = packed.to_train()
    tokens = decode(train).reshape(len(events.indptr) - 1, packed.num_channels).long() + packed.zero_point
    rebuilt = torch.zeros_like(tokens)
    token = torch.repeat_interleave(torch.arange(len(tokens)), events.indptr.diff())
    rebuilt[token, events.channel.long()] = events.count.long()
    assert torch.equal(rebuilt, tokens)
    assert (events.to_scipy().toarray() == tokens.numpy()).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
@settings(deadline=None, max_examples=40)
@given(count=counts(), extra=st.integers(0, 3))
def test_pack_is_encode_packed(name, count, extra):
    encoder, num_timesteps = fit(name, count, extra)
    check_events(check_packing(encoder, count, num_timesteps))


@pytest.mark.slow
@pytest.mark.parametrize("name", DIGITS)
@settings(deadline=None, max_examples=25)
@given(count=counts(largest=(3570, 2**15, 2**20, 2**29, 2**30, 2**31 - 1)), extra=st.integers(0, 40))
def test_extreme_counts_in_digits(name, count, extra):
    encoder, num_timesteps = fit(name, count)
    check_packing(encoder, count, min(num_timesteps + extra, 61))


@pytest.mark.parametrize("name", ["binary", "ternary"])
def test_extreme_counts_in_rates(name):
    count = torch.tensor([[3570, -3570, 0], [1, 0, -1]])
    encoder, num_timesteps = fit(name, count)
    check_packing(encoder, count, num_timesteps)


@pytest.mark.slow
@settings(deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(0, 3), st.sampled_from(CHANNELS)),
    only=st.sampled_from([(-1, 2), (0, 2), (-1, 1), (0, 1)]),
    zero_point=st.integers(0, 9),
    seed=st.integers(0, 2**32),
)
def test_any_train(shape, only, zero_point, seed):
    generator = torch.Generator().manual_seed(seed)
    spikes = torch.randint(*only, shape, generator=generator, dtype=torch.int8)
    weight = torch.randint(-9, 10, shape[:1], generator=generator)
    train = SpikeTrain(spikes, weight, zero_point)
    packed = PackedTrain.from_train(train)
    back = packed.to_train()
    assert torch.equal(back.spikes, spikes)
    assert torch.equal(back.timestep_weight, weight)
    assert back.zero_point == zero_point
    assert packed.num_spikes == train.num_spikes
    check_events(packed)


@pytest.mark.parametrize("name", ENCODERS)
@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(0, 3), st.sampled_from(CHANNELS)),
    k=st.floats(0.25, 8),
    scale=st.sampled_from([1e-7, 1.0, 1e4]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    extra=st.sampled_from([None, 0, 2]),
    seed=st.integers(0, 2**32),
)
def test_pack_activations_is_neuron_and_pack(name, shape, k, scale, dtype, extra, seed):
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)
    neuron = AdaptiveThreshold(k=k)
    spikes = neuron(x)
    encoder, num_timesteps = fit(name, spikes.count, extra or 0)
    given_length = None if extra is None else num_timesteps
    packed, threshold = pack_activations(x, neuron, encoder, given_length)
    same(packed, encoder.pack(spikes.count, num_timesteps))
    assert torch.equal(threshold, spikes.threshold)


@pytest.mark.slow
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_threads_and_blocks_do_not_matter(num_threads):
    x = torch.randn(900, 400)
    x[17] = 0
    neuron, before = AdaptiveThreshold(), torch.get_num_threads()
    spikes = neuron(x)
    encoder, num_timesteps = fit("signed-digit", spikes.count)
    expected = PackedTrain.from_train(encoder.encode(spikes.count, num_timesteps), num_timesteps)
    try:
        torch.set_num_threads(num_threads)
        same(encoder.pack(spikes.count, num_timesteps), expected)
        same(encoder.pack(spikes.count.t().contiguous().t(), num_timesteps), expected)
        for length in (None, num_timesteps):
            packed, threshold = pack_activations(x, neuron, encoder, length)
            same(packed, expected)
            assert torch.equal(threshold, spikes.threshold)
    finally:
        torch.set_num_threads(before)
