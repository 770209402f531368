"""Layers with groups, minima and 4-bit integers equal an emulation in numpy's integers, in every code."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_codes import EXACT

from spikebrain import AdaptiveThreshold, Reference, SpikeLinear
from spikebrain.analysis.exactness import ExactnessCheck
from spikebrain.coding import ENCODERS

RANGES = {(8, False): (-128, 127), (8, True): (-128, 127), (4, False): (-8, 7), (4, True): (0, 15)}


@st.composite
def layers(draw):
    """Return a layer's tensors and activations: integers of either width, scales of either sign."""
    num_in, num_out = draw(st.integers(1, 13)), draw(st.integers(1, 4))
    size = draw(st.sampled_from([None, 1, 3, 4, 32]))
    bits, has_minimum = draw(st.sampled_from(sorted(RANGES)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    low, high = RANGES[bits, has_minimum]
    groups = 1 if size is None else -(-num_in // size)
    scale, minimum = (rng.normal(size=(num_out, groups)).astype(np.float32) for _ in range(2))
    x = (rng.normal(size=(draw(st.integers(1, 4)), num_in)) * rng.choice([0, 1, 1, 40], size=num_in)).astype(np.float32)
    weight = rng.integers(low, high + 1, (num_out, num_in)).astype(np.int8)
    bias = rng.normal(size=num_out).astype(np.float32) if draw(st.booleans()) else None
    return weight, scale, minimum if has_minimum else None, bias, size, bits, x


def emulated(weight, scale, minimum, bias, size, x):
    """Return the outputs: counts and sums in Python's integers, floats of 32 bits one operation at a time."""
    y = np.empty((len(x), len(weight)), np.float32)
    counts, thresholds = AdaptiveThreshold(3.0).step(torch.from_numpy(x))[0], None
    thresholds = counts.threshold.numpy().reshape(-1).astype(np.float32)
    for token, count in enumerate(counts.count.tolist()):
        for output, row in enumerate(weight.tolist()):
            total = None
            for g in range(scale.shape[1]):
                inputs = range(len(row))[slice(None) if size is None else slice(g * size, (g + 1) * size)]
                term = np.float32(sum(count[i] * row[i] for i in inputs)) * scale[output, g]
                if minimum is not None:
                    term = term + np.float32(sum(count[i] for i in inputs)) * minimum[output, g]
                total = term if total is None else total + term
            y[token, output] = total * thresholds[token] + (np.float32(0) if bias is None else bias[output])
    return y


@pytest.mark.parametrize("encoder", EXACT)
@settings(deadline=None, max_examples=20)
@given(case=layers())
@torch.no_grad()
def test_equals_an_emulation_in_integers(encoder, case):
    weight, scale, minimum, bias, size, bits, x = case
    tensors = [None if value is None else torch.from_numpy(value) for value in (weight, scale, bias, minimum)]
    layer = SpikeLinear(
        *tensors[:3],
        minimum=tensors[3],
        group_size=size,
        weight_bits=bits,
        neuron=AdaptiveThreshold(3.0),
        encoder=ENCODERS.create(encoder),
        backend=Reference(),
    )
    check = ExactnessCheck()
    with check.watch(layer):
        stepwise = layer(torch.from_numpy(x))
    expected = emulated(weight, scale, minimum, bias, size, x)
    # As numbers, since a zero of either sign is the same.
    assert (stepwise.numpy() == expected).all()
    assert check.sums.num_checked > 0
    assert check.sums.num_mismatches == check.fused.num_mismatches == 0
    for backend in ("auto", "cpu"):
        layer.backend = backend
        assert torch.equal(layer(torch.from_numpy(x)), stepwise)


@given(case=layers())
@settings(deadline=None, max_examples=40)
def test_weights_as_floats_are_integer_times_scale_plus_minimum(case):
    weight, scale, minimum, bias, size, bits, x = case
    tensors = [None if value is None else torch.from_numpy(value) for value in (weight, scale, bias, minimum)]
    layer = SpikeLinear(*tensors[:3], minimum=tensors[3], group_size=size, weight_bits=bits)
    groups = np.arange(weight.shape[1]) // (size or weight.shape[1])
    expected = weight.astype(np.float32) * scale[:, groups]
    expected = expected if minimum is None else expected + minimum[:, groups]
    assert np.array_equal(layer.dequantized_weight().numpy(), expected)
    given = torch.from_numpy(x).requires_grad_()
    layer(given).sum().backward()
    assert torch.allclose(given.grad, torch.from_numpy(expected.sum(0)).expand_as(given), rtol=1e-4, atol=1e-3)
