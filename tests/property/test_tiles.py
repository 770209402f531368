"""The tile kernels beside plain numpy: integers exactly, floats bit for bit, for any shape, group, width and count."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spikebrain import AdaptiveThreshold, Cpu, SpikeLinear
from spikebrain.backends.base import ScaleUnits
from spikebrain.backends.cpu import tiles
from spikebrain.backends.cpu.digits import list_digits, room_for_digits
from spikebrain.backends.cpu.plain import rescaled, sums_of_groups
from spikebrain.backends.cpu.projection import LISTED, PROJECTION, project
from spikebrain.backends.cpu.simd import has_halves
from spikebrain.coding.base import MAX_LOSSLESS_COUNT
from spikebrain.compiled import compiled
from spikebrain.models.layers.observing import observing
from spikebrain.models.layers.rescale import rescale_in_units


@compiled
def run(projection, x, threshold, count, digits, start, stop, y):
    sums, totals = np.empty(tiles.MOST_OUTPUTS, np.int32), np.empty(len(y), np.int32)
    project(projection[0], x, threshold, count, digits, np.zeros(LISTED, np.int64), start, stop, sums, totals, y)


# What small counts read: pairs (edge, dropped bits).
READS = [(), ((1, 2),), ((2, 1),), ((100_000, 3),), ((2, 6), (9, 4)), ((1, 3), (2, 1)), ((3, 4), (4, 2))]


@st.composite
def layers(draw):
    """Weights, scale, minimum, group size, bits and counts."""
    bits, has_minimum = draw(st.sampled_from([(2, True), (2, False), (4, True), (4, False), (8, False), (8, True)]))
    num_inputs, num_outputs = draw(st.integers(1, 130)), draw(st.integers(1, 600))
    group_size = draw(st.sampled_from([32, 16, 7, 100] if bits < 8 else [None, 32, 16, 7, 100]))
    low = -128 if bits == 8 else 0 if has_minimum else -(2 ** (bits - 1))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # Extreme weights and counts now and then, so that sums of places and of blocks are as large as can be.
    weight = rng.integers(low, low + 2**bits, (num_outputs, num_inputs))
    if draw(st.booleans()):
        weight[:] = draw(st.sampled_from([low, low + 2**bits - 1]))
    largest = draw(st.sampled_from([1, 4, 20, 300, 40_000]))
    count = rng.integers(-largest, largest + 1, num_inputs)
    if draw(st.booleans()):
        count[:] = largest * draw(st.sampled_from([-1, 1]))
    groups = -(-num_inputs // (group_size or num_inputs))
    scale, minimum = rng.normal(size=(2, num_outputs, groups)).astype(np.float32)
    if draw(st.booleans()):  # numbers that float16 has, down to its smallest
        exponent = draw(st.sampled_from([0, -20, 13]))
        scale, minimum = (np.ldexp(one, exponent).astype(np.float16).astype(np.float32) for one in (scale, minimum))
    return weight.astype(np.int8), scale, minimum if has_minimum else None, group_size, bits, count.astype(np.int32)


def compacted(scale, minimum, bits):
    """Return integers and units in the place of scales and minima, and these themselves as floats."""
    steps = [None if one is None else np.rint(40 * one).clip(-127, 127) for one in (scale, minimum)]
    units = [None if one is None else np.abs(one[:, 0]) + np.float32(0.1) for one in (scale, minimum)]
    parts = [None if one is None else torch.from_numpy(one.astype(np.int8)) for one in steps]
    of_outputs = [None if one is None else torch.from_numpy(one) for one in units]
    most_charge = (2**31 - 1) // (127 * 2 * (128 if bits == 8 else 2**bits - 1))
    return ScaleUnits(parts[0], of_outputs[0], parts[1], of_outputs[1], most_charge)


@given(layers(), st.integers(0, 2), st.sampled_from(READS), st.booleans())
@settings(max_examples=200, deadline=None)
def test_sums_are_exact_and_outputs_equal_to_the_last_bit(layer, start_tile, upper, are_compact):
    weight, scale, minimum, group_size, bits, count = layer
    memory = [None if one is None else torch.from_numpy(one) for one in (weight.T.copy().T, scale, minimum)]
    are_compact = are_compact and group_size is not None
    units = compacted(scale, minimum, bits) if are_compact else None
    rows = tiles.Rows(*memory, group_size, bits, units)
    if are_compact:  # beyond it, the separate steps run
        limit = rows.most_charge
        while np.abs(count.astype(np.int64)).sum() > limit:
            count //= 2
    projection = np.zeros(1, PROJECTION)
    for name, value in rows.fields.items():
        projection[name] = value
    projection["rule"] = 1
    upper = [pair for pair in upper if pair[1] < bits] if bits > 2 else []
    for name, value in tiles.reading(upper).items():
        projection[name] = value
    seen = np.zeros((scale.shape[1], len(weight)), np.int32)
    projection["seen_sums"] = seen.ctypes.data
    start = start_tile * tiles.MOST_OUTPUTS
    if start >= len(weight):
        start = 0
    threshold = np.float32(0.37)
    y = np.full(len(weight) - start + 64, np.nan, np.float32)
    digits = room_for_digits(len(count), rows.fields["block"])
    x = np.zeros(len(count), np.float32)
    run(projection, x, threshold, count, digits, start, len(weight), y)
    sums, totals = sums_of_groups(weight, count, group_size, upper)
    assert np.array_equal(seen[:, start:], sums[:, start:])
    if group_size is not None or minimum is not None:
        blocks = len(totals)
        assert np.array_equal(digits.total[:blocks], totals)
        if units is None:
            expected = rescaled(sums, totals, scale, minimum, threshold, are_twice=len(upper) > 0)
        else:
            units = units._replace(unit=units.unit / 2) if upper else units
            of_token = torch.from_numpy(sums)[None], units, torch.tensor([[threshold]])
            expected = rescale_in_units(*of_token, torch.from_numpy(totals)[None])[0].numpy()
        assert np.array_equal(y[: len(weight) - start], expected[start:])


@pytest.mark.parametrize(
    ("scale", "minimum", "size"),
    [
        (0.1, None, 4),
        (0.125, None, 2),
        (0.125, 0.1, 4),
        (0.125, -(2.0**-24), 2),
        (2.0**-25, None, 4),
        (65536.0, None, 4),
    ],
)
def test_scales_that_float16_has_exactly_are_kept_in_it(scale, minimum, size):
    scales = [None if one is None else torch.full((8, 2), one) for one in (scale, minimum)]
    rows = tiles.Rows(torch.ones(64, 8, dtype=torch.int8).t(), *scales, 32, 4)
    assert rows.fields["scale_bytes"] == (size if has_halves() else 4)


@given(
    st.lists(st.integers(-MAX_LOSSLESS_COUNT, MAX_LOSSLESS_COUNT), min_size=1, max_size=80),
    st.sampled_from([5, 32, 40]),
    st.sampled_from([3, 17]),
    st.sampled_from([(0, 0), (1, 0), (1, 3), (1000, 2000)]),
)
@example([MAX_LOSSLESS_COUNT, -MAX_LOSSLESS_COUNT, 0, 1, -1, 3, -3], 5, 17, (1, 3))
@settings(max_examples=100, deadline=None)
def test_listed_digits_are_the_counts(counts, block, longest_run, edges):
    count = np.array(counts, np.int32)
    digits = room_for_digits(len(count), block)
    list_digits(count, block, longest_run, 0, edges, (8, 12, 15), 17, digits)
    event = 0
    for b in range(-(-len(count) // block)):
        found = np.zeros(block, np.int64)
        for run_number in range(digits.first[b], digits.first[b + 1]):
            assert event < digits.end[run_number] <= event + longest_run
            while event < digits.end[run_number]:
                channel = digits.channel[event]
                found[channel] += 1 if digits.flip[event] == 0 else -1
                if edges[0] > 0:
                    magnitude = abs(count[b * block + channel])
                    mask = 8 if magnitude <= edges[0] else 12 if magnitude <= edges[1] else 15
                    assert digits.mask[event] == mask | mask << 4
                event += 1
            found <<= digits.shift[run_number]
        expected = count[b * block : (b + 1) * block]
        assert np.array_equal(found[: len(expected)], expected)
    neighbours = np.abs(count.astype(np.int64))
    assert event == sum(bin(3 * int(c) ^ int(c)).count("1") for c in neighbours)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 96, 130), (5, 70, 64), (2, 33, 1)])
@pytest.mark.parametrize("settings", [{"weight_bits": 4}, {"group_size": 16}, {"group_size": 200}], ids=str)
def test_whole_layers_equal_the_separate_steps(dtype, shape, settings):
    num_tokens, num_inputs, num_outputs = shape
    linear = torch.nn.Linear(num_inputs, num_outputs).to(dtype)
    layer = SpikeLinear.from_linear(linear, backend=Cpu(), neuron=AdaptiveThreshold(2.0), **settings)
    x = torch.randn(2, num_tokens, num_inputs).to(dtype)
    with torch.no_grad():
        whole = layer.run_fused(x)
        with observing([layer], lambda *_: None):
            stepwise = layer(x)
    assert whole is not None
    assert whole.dtype == dtype
    assert torch.equal(whole, stepwise)
    x[0, 0, 0] = torch.nan
    assert layer.run_fused(x) is None
