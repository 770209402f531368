"""INT8 by a token's largest magnitude: the codes of plain quantisation, and their trains of a sign and seven planes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spikebrain import AdaptiveThreshold, BidirectionalBitwise, LargestMagnitude, SpikeSettings, record, to_spiking
from spikebrain.errors import ActivationError, InputError
from spikebrain.models.spikingbrain.int8 import quantize_tokens
from spikebrain.neuro import NEURONS
from spikebrain.registry import from_dict, to_dict


def test_worked_example():
    # max|x| = 2.54: the threshold is 0.02, and x / threshold is 127, -63.5 (to the even neighbour), 0.4 and 0.
    spikes = LargestMagnitude()(torch.tensor([[2.54, -1.27, 0.008, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(spikes.threshold, torch.tensor([[0.02]], dtype=torch.float64))
    assert spikes.count.tolist() == [[127, -64, 0, 0]]
    assert spikes.count.dtype == torch.int32
    assert LargestMagnitude(levels=7)(torch.tensor([[7.0, -3.4, 0.6]])).count.tolist() == [[7, -3, 1]]


@given(
    st.integers(1, 1000),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    st.floats(1e-3, 1e3),
    st.integers(0, 2**32),
)
def test_is_the_definition(levels, dtype, scale, seed):
    x = (torch.randn(3, 50, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)
    spikes = LargestMagnitude(levels)(x)
    wide = x.double().numpy() if dtype == torch.float64 else x.float().numpy()
    largest = np.abs(wide).max(-1, keepdims=True)
    threshold = np.clip(largest / largest.dtype.type(levels), largest.dtype.type(1e-5), largest.dtype.type(1e4))
    assert np.array_equal(spikes.threshold.numpy(), threshold)
    assert np.array_equal(spikes.count.numpy(), np.rint(wide / threshold))
    assert int(spikes.count.abs().max()) <= LargestMagnitude(levels).count_bounds(50).largest


@given(st.integers(0, 2**32), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_counts_are_the_int8_codes_of_activations(seed, dtype):
    x = torch.randn(4, 33, generator=torch.Generator().manual_seed(seed)).to(dtype)
    codes, scale = quantize_tokens(x)
    spikes = LargestMagnitude()(x)
    assert torch.equal(spikes.count.to(torch.int8), codes)
    assert torch.equal(spikes.threshold, scale)


@given(st.integers(0, 2**32), st.integers(1, 5))
def test_trains_have_a_sign_and_seven_planes(seed, tokens):
    x = torch.randn(tokens, 40, generator=torch.Generator().manual_seed(seed))
    count = LargestMagnitude()(x).count
    code, length = BidirectionalBitwise().fitted(int(count.min()), int(count.max()))
    train = code.encode(count, length)
    assert (train.num_timesteps, train.zero_point) == (7, 0)
    planes = torch.stack([(count.abs() >> (6 - t)) & 1 for t in range(7)]) * count.sign()
    assert torch.equal(train.spikes.int(), planes.int())


@given(st.floats(1e-3, 1e3), st.integers(0, 2**32))
def test_counts_do_not_depend_on_the_unit(exponent, seed):
    x = torch.randn(3, 20, generator=torch.Generator().manual_seed(seed))
    factor = 2.0 ** round(np.log2(exponent))
    neuron = LargestMagnitude(floor=1e-12)  # binds for none of these; the usual one does for the smallest
    assert torch.equal(neuron(x * factor).count, neuron(x).count)


def test_an_outlier_costs_the_others_their_precision():
    x = torch.ones(1, 200)
    x[0, 0] = 1000.0
    assert LargestMagnitude()(x).count[0, :2].tolist() == [127, 0]
    assert AdaptiveThreshold(k=127.0)(x).count[0, :2].tolist() == [21184, 21]


def test_silence_floor_and_ceiling():
    assert LargestMagnitude()(torch.zeros(2, 3)).count.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert LargestMagnitude()(torch.zeros(2, 0)).count.shape == (2, 0)
    assert LargestMagnitude(floor=0.5)(torch.tensor([[1.0, -0.5]])).count.tolist() == [[2, -1]]
    assert LargestMagnitude(ceiling=0.5)(torch.tensor([[100.0, -0.5]])).count.tolist() == [[200, -1]]
    with pytest.raises(ActivationError, match="fit 32 bits"):
        LargestMagnitude(ceiling=1e-4)(torch.tensor([[1e9]]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_named(bad):
    x = torch.ones(2, 3)
    x[1, 2] = bad
    with pytest.raises(
        ActivationError, match=r"LargestMagnitude: expected finite activations, got .* at index \(1, 2\)"
    ):
        LargestMagnitude()(x)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"levels": 0}, "levels: expected an integer from 1 to 1048576, got 0"),
        ({"levels": 127.0}, "levels: expected an integer"),
        ({"floor": 0.0}, "LargestMagnitude: expected 0 < floor"),
        ({"ceiling": "1"}, "LargestMagnitude.ceiling: expected a number"),
    ],
)
def test_values_that_cannot_be(fields, message, as_users):
    with pytest.raises(InputError, match=message):
        LargestMagnitude(**fields)


def test_gradients_pass_straight_through():
    x = torch.randn(2, 5, requires_grad=True)
    LargestMagnitude()(x).activation().sum().backward()
    assert torch.equal(x.grad, torch.ones(2, 5))


def test_named_saved_and_recorded(tiny_llama):
    assert NEURONS.create("largest-magnitude") == LargestMagnitude()
    assert from_dict(to_dict(LargestMagnitude(levels=63))) == LargestMagnitude(levels=63)
    spiking = to_spiking(tiny_llama, SpikeSettings(neuron="largest-magnitude"))
    with torch.no_grad(), record(spiking) as recording:
        spiking(torch.arange(3, 12)[None])
    for layer in recording.layers.values():
        assert layer.num_timesteps == 7
        assert max(map(abs, layer.count_histogram)) == 127
