"""What holds for every registered encoder and neuron, on random shapes and counts; spikebrain.testing says it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebrain import AdaptiveThreshold, IntegrateAndFire, SpikeTrain
from spikebrain.coding import ENCODERS, Delta, Latency, Poisson, WeightedPhase
from spikebrain.neuro import NEURONS
from spikebrain.testing import check_encoder, check_neuron

LOSSY = [Poisson(step=3, seed=7), Delta(step=3, threshold=2), WeightedPhase(step=3)]
LOSSY += [Latency(step, curve) for step in (1, 3) for curve in ("linear", "log", "charge")]


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder(name):
    check_encoder(name, examples=3 if ENCODERS.create(name).lossy else 8)  # lossy trains are long


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [*map(ENCODERS.create, ENCODERS), *LOSSY], ids=repr)
def test_every_encoder_with_more_examples(encoder):
    check_encoder(encoder, examples=25 if encoder.lossy else 100)  # lossy trains are long


@pytest.mark.parametrize("name", NEURONS)
def test_every_neuron(name):
    check_neuron(name, examples=40)


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
