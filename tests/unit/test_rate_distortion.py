from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from spikebrain import AdaptiveThreshold, RateDistortionThreshold, SignedDigit, SpikeLinear, record, spike_statistics
from spikebrain.errors import ActivationError, InputError
from spikebrain.neuro.rate_distortion import num_digits
from spikebrain.registry import from_dict, to_dict

# With these the threshold is 1, so that activations are ratios.
UNIT = {"k": 1e12, "floor": 1.0}


def digits(n):
    """Spikes of a count, digit by digit from the lowest: an odd n takes 1 or -1, which makes the rest even twice."""
    n, found = abs(n), 0
    while n:
        if n % 2:
            n -= 2 - n % 4
            found += 1
        n //= 2
    return found


def best(ratio, spike_price, read_price):
    """Try 0 and all counts up to 20 steps away, in exact fractions; the first of the smallest |n|, so ties go there."""
    size = abs(Fraction(ratio))
    nearest = round(size)
    candidates = [0, *range(max(1, nearest - 20), nearest + 21)]

    def cost(n):
        return (size - n) ** 2 + Fraction(spike_price) * digits(n) + (Fraction(read_price) if n else 0)

    n = min(candidates, key=cost)
    return -n if ratio < 0 else n


PRICES = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0]), st.floats(2.0**-20, 8.0))
READS = st.one_of(st.sampled_from([0.0, 0.5, 1.0, 6.0, 1000.0]), st.floats(2.0**-20, 1000.0))
RATIOS = st.one_of(
    st.floats(-40, 40, width=32),
    st.floats(-1100, 1100, width=32),
    st.floats(-(2.0**20), 2.0**20, width=32),
    st.integers(-9000, 9000).map(lambda n: n / 4),  # many of these cost the same on both sides
)


@settings(max_examples=400, deadline=None)
@given(st.lists(RATIOS, min_size=1, max_size=12), PRICES, READS)
@example([1023.5, 1024.0, 1024.5, 1025.5, -1024.25, 1027.0], 8.0, 0.0)
@example([2.0, -2.0, 1.0, 0.5, 0.0], 4.0, 0.0)
def test_is_the_best_of_all_counts(ratios, spike_price, read_price):
    neuron = RateDistortionThreshold(**UNIT, spike_price=spike_price, read_price=read_price)
    spikes = neuron(torch.tensor(ratios, dtype=torch.float32))
    assert spikes.threshold.tolist() == [1.0]
    assert spikes.count.tolist() == [best(ratio, spike_price, read_price) for ratio in ratios]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1024, 1024), min_size=1, max_size=12), PRICES, READS)
def test_float64_ratios_too(ratios, spike_price, read_price):
    neuron = RateDistortionThreshold(**UNIT, spike_price=spike_price, read_price=read_price)
    found = neuron(torch.tensor(ratios, dtype=torch.float64)).count.tolist()
    assert found == [best(ratio, spike_price, read_price) for ratio in ratios]


@settings(max_examples=300, deadline=None)
@given(st.lists(RATIOS, min_size=1, max_size=12), PRICES, READS)
@example([1023.5, 1024.0, 1024.5, 1025.5, -1024.25, 1027.0, 2.0**31 - 128], 8.0, 0.0)
@example([-0.0, 1e-38, 1024.0001], 0.0, 1000.0)
def test_the_compiled_choice_is_the_plain_one(ratios, spike_price, read_price):
    neuron, ratio = RateDistortionThreshold(spike_price=spike_price, read_price=read_price), torch.tensor(ratios)
    assert neuron._cheapest_compiled(ratio).tolist() == neuron._cheapest_plain(ratio).tolist()


def test_borders_worked_out():
    # Price 1: 0 and 1 cost r^2 and (r - 1)^2 + 1, equal at r = 1; 2 has one digit as 1, so 1.5 is between them. 3 has
    # two: from 2 at (9 + 2 - 4 - 1) / 2 = 3, to 4 at (16 + 1 - 9 - 2) / 2 = 3, so it is never better than both.
    x = torch.tensor([1.0, 1.001, 1.5, 1.501, 3.0, 3.001, -1.0, -1.001])
    assert RateDistortionThreshold(**UNIT, spike_price=1.0)(x).count.tolist() == [0, 1, 1, 2, 2, 4, 0, -1]
    # A read of 3 more: 1 at r > 2.5, but 2 at (4 + 4) / 4 = 2 already.
    assert RateDistortionThreshold(**UNIT, read_price=3.0, spike_price=1.0)(2 * x).count.tolist()[:2] == [0, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_without_prices_only_ties_differ(dtype):
    x = (torch.randn(30, 200) ** 3).to(dtype)
    plain, spikes = AdaptiveThreshold(4.0)(x), RateDistortionThreshold(4.0, spike_price=0.0)(x)
    assert torch.equal(spikes.threshold, plain.threshold)
    ratio = x.to(plain.threshold.dtype) / plain.threshold
    tie = (ratio - ratio.floor()) == 0.5
    assert torch.equal(spikes.count[~tie], plain.count[~tie])
    assert RateDistortionThreshold(**UNIT, spike_price=0.0)(torch.tensor([1.5, 2.5, -1.5])).count.tolist() == [1, 2, -1]


def test_digits_are_the_spikes_of_the_code():
    count = torch.arange(5000)
    assert num_digits(count).tolist() == [digits(n) for n in range(5000)]
    assert torch.equal(num_digits(count), SignedDigit().encode(count, 14).spikes.abs().sum(0).long())


@settings(deadline=None)
@given(PRICES, st.integers(0, 2**32), st.floats(0.5, 300))
def test_counts_stay_within_their_bounds(price, seed, k):
    x = torch.randn(4, 60, generator=torch.Generator().manual_seed(seed)) ** 3
    neuron = RateDistortionThreshold(k, spike_price=price)
    count, bounds = neuron(x).count.abs().double(), neuron.count_bounds(60)
    assert count.max() <= bounds.largest
    assert count.mean(-1).max() <= bounds.mean
    above = count - x.double().abs() / neuron(x).threshold
    assert above.max() <= bounds.mean - k + 1e-4 * k


def test_a_price_saves_spikes_and_reads():
    linear, x = nn.Linear(200, 30), torch.randn(50, 200)

    def statistics(price):
        layer = SpikeLinear.from_linear(
            linear, neuron=RateDistortionThreshold(4.0, spike_price=price), encoder="signed-digit"
        )
        with torch.no_grad(), record(layer) as recording:
            layer(x)
        return spike_statistics(recording.layers.values())

    cheap, dear = statistics(0.0), statistics(2.0)
    assert dear.mean_spikes < cheap.mean_spikes
    assert dear.silent_fraction > cheap.silent_fraction


def test_a_price_of_one_has_the_spikes_of_half_the_k_and_less_error():
    ratio = torch.rand(200_000) * 2000
    ratio = ratio[ratio != ratio.round()]  # ties of the rounding at half the k are odd ratios
    found = RateDistortionThreshold(**UNIT, spike_price=1.0)(ratio).count.long()
    coarse = (ratio / 2).round().long()
    assert torch.equal(num_digits(found), num_digits(coarse))
    # A step of 2 has a mean squared error of 2^2 / 12.
    assert float((2 * coarse - ratio).square().mean()) == pytest.approx(1 / 3, rel=0.01)
    assert float((found - ratio).square().mean()) < 0.26


def test_comparisons_are_those_of_a_binary_search():
    # Without prices all counts up to 1027 can be chosen: 1027 borders, 11 comparisons.
    assert RateDistortionThreshold(spike_price=0.0).compares_per_channel() == 11
    assert AdaptiveThreshold().compares_per_channel() == 0


def test_gradient_passes_straight_through_and_there_are_no_kernels_on_a_gpu():
    x, upstream = torch.randn(4, 9, requires_grad=True), torch.randn(4, 9)
    RateDistortionThreshold()(x).activation().backward(upstream)
    assert torch.equal(x.grad, upstream)
    neuron = RateDistortionThreshold()
    assert neuron.kernel_rule() is None
    # Layers that read the same input are compared by their rules, so equal settings have the same table.
    assert (
        neuron.cpu_rule() == RateDistortionThreshold().cpu_rule() != RateDistortionThreshold(read_price=1.0).cpu_rule()
    )
    layer = SpikeLinear.from_linear(nn.Linear(9, 3), neuron="rate-distortion").eval()
    layer(x).sum().backward()


def test_empty_not_finite_and_beyond_32_bits():
    assert RateDistortionThreshold()(torch.zeros(2, 0)).count.shape == (2, 0)
    assert RateDistortionThreshold()(torch.zeros(2, 3)).count.tolist() == [[0, 0, 0]] * 2
    with pytest.raises(ActivationError, match="RateDistortionThreshold: expected finite"):
        RateDistortionThreshold()(torch.tensor([1.0, float("nan")]))
    with pytest.raises(ActivationError, match="Lower k"):
        RateDistortionThreshold(**UNIT)(torch.tensor([3e9, 1.0]))
    largest = 2147483520.0
    assert RateDistortionThreshold(**UNIT)(torch.tensor([-largest, 1.0])).count[0] == -int(largest)


@pytest.mark.parametrize("name", ["spike_price", "read_price"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), 1001.0])
def test_bad_prices(name, value, as_users):
    with pytest.raises(InputError, match=rf"RateDistortionThreshold\.{name}: expected a number from 0 to \d+, in"):
        RateDistortionThreshold(**{name: value})
    with pytest.raises(InputError, match=rf"RateDistortionThreshold\.{name}: expected a number, got"):
        RateDistortionThreshold(**{name: "1"})


def test_is_saved_whole():
    neuron = RateDistortionThreshold(k=5.0, spike_price=0.3, read_price=2.0)
    assert to_dict(neuron)["name"] == "rate-distortion"
    assert from_dict(to_dict(neuron)) == neuron
