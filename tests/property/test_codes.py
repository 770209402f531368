"""What holds for every registered encoder, on random shapes and counts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebrain import AdaptiveThreshold, AEREvents, IntegrateAndFire, SpikeTrain, decode
from spikebrain.coding import ENCODERS
from spikebrain.neuro import NEURONS

shapes = st.lists(st.integers(0, 5), min_size=0, max_size=4).map(tuple)


@st.composite
def counts(draw):
    shape = draw(shapes)
    largest = draw(st.sampled_from([0, 1, 7, 8, 100, 3570]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    return torch.randint(-largest, largest + 1, shape, generator=generator, dtype=torch.int32)


def fit(name, count):
    low, high = (int(count.min()), int(count.max())) if count.numel() else (0, 0)
    return ENCODERS.create(name).fitted(low, high)


@pytest.mark.parametrize("name", ENCODERS)
@settings(deadline=None)
@given(count=counts(), extra=st.integers(0, 3))
def test_decode_inverts_encode(name, count, extra):
    encoder, num_timesteps = fit(name, count)
    train = encoder.encode(count, num_timesteps + extra)
    assert train.spikes.shape == (num_timesteps + extra, *count.shape)
    assert train.spikes.dtype == torch.int8
    assert torch.equal(decode(train), count)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
@settings(deadline=None)
@given(count=counts())
def test_rate_and_events(name, count):
    encoder, num_timesteps = fit(name, count)
    train = encoder.encode(count, num_timesteps)
    assert 0 <= train.firing_rate <= 1
    events = AEREvents.from_train(train)
    assert len(events) == train.num_spikes == int((train.spikes != 0).sum())
    back = events.to_train()
    assert torch.equal(back.spikes, train.spikes)
    assert (back.zero_point, back.timestep_weight.tolist()) == (train.zero_point, train.timestep_weight.tolist())


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
@settings(deadline=None)
@given(count=counts().filter(lambda c: c.ndim > 0), seed=st.integers(0, 2**32))
def test_permuted_neurons_give_permuted_trains(name, count, seed):
    encoder, num_timesteps = fit(name, count)
    order = torch.randperm(count.shape[-1], generator=torch.Generator().manual_seed(seed))
    train, permuted = encoder.encode(count, num_timesteps), encoder.encode(count[..., order], num_timesteps)
    assert torch.equal(train.spikes[..., order], permuted.spikes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
@settings(deadline=None)
@given(count=counts().filter(lambda c: c.ndim > 0 and c.shape[-1] > 0))
def test_a_neuron_does_not_see_its_neighbours(name, count):
    # Shape, memory layout and company leave a neuron's train as it is.
    encoder, num_timesteps = fit(name, count)
    train = encoder.encode(count, num_timesteps)
    alone = encoder.encode(count[..., -1:].contiguous(), num_timesteps)
    assert torch.equal(train.spikes[..., -1:], alone.spikes)
    strided = encoder.encode(count.unsqueeze(-1).expand(*count.shape, 2)[..., 0], num_timesteps)
    assert torch.equal(train.spikes, strided.spikes)


@pytest.mark.slow
@settings(deadline=None)
@given(count=counts())
def test_silent_neurons_of_signed_codes_are_silent(count):
    for name in ("ternary", "bitwise-bidirectional", "signed-digit", "twos-complement"):
        encoder, num_timesteps = fit(name, count)
        train = encoder.encode(count, num_timesteps)
        assert train.spikes[:, count == 0].count_nonzero() == 0


@pytest.mark.parametrize("name", NEURONS)
@settings(deadline=None)
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple))
def test_neurons_are_silent_in_silence(name, shape):
    spikes = NEURONS.create(name)(torch.zeros(shape))
    assert spikes.count.count_nonzero() == 0
    assert spikes.activation().count_nonzero() == 0


@settings(deadline=None)
@given(
    x=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20),
    k=st.floats(0.25, 8),
    factor=st.sampled_from([0.25, 0.5, 2.0, 64.0]),
)
def test_adaptive_threshold_scales_with_its_input(x, k, factor):
    # A power of two changes no rounding: the counts stay, the threshold scales, as long as no limit binds.
    neuron = AdaptiveThreshold(k=k, floor=1e-30, ceiling=1e30)
    x = torch.tensor(x)
    a, b = neuron(x), neuron(x * factor)
    if float(x.abs().max()) > 1e-3:
        assert torch.equal(a.count, b.count)
        assert torch.equal(a.threshold * factor, b.threshold)
        # The sum of the counts is near k for each channel: REFERENCE section 1.
        assert int(a.count.abs().sum()) <= k * len(x) + len(x) / 2 + 1e-3
        # No value is further than half a threshold from what its spikes carry.
        assert float((a.activation() - x).abs().max()) <= float(a.threshold) * 0.5001 + 1e-6


@pytest.mark.slow
@settings(deadline=None)
@given(
    count=st.integers(-60, 60),
    fraction=st.floats(-0.49, 0.49),
    threshold=st.sampled_from([0.125, 1.0, 8.0]),
)
def test_unrolled_neuron_gives_the_ternary_train(count, fraction, threshold):
    x = torch.zeros(64, 1, dtype=torch.float64)
    x[0] = (count + fraction) * threshold
    neuron = IntegrateAndFire(threshold=threshold, v_initial=threshold / 2, negative_threshold=0.0)
    spikes = neuron.unroll(x)[0].count
    expected = ENCODERS.create("ternary").encode(torch.tensor([count]), 64)
    assert isinstance(expected, SpikeTrain)
    assert torch.equal(spikes, expected.spikes.int())
