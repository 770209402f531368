import pytest
import torch

from spikebrain import AdaptiveThreshold, IntegrateAndFire
from spikebrain.errors import ActivationError, InputError
from spikebrain.neuro import NEURONS, NO_RULE


def test_worked_example():
    # mean|x| = (1 + 1 + 4 + 0) / 4 = 1.5; k = 3: threshold 0.5; x / threshold = 2, -2, 8, 0.
    spikes = AdaptiveThreshold(k=3.0)(torch.tensor([[1.0, -1.0, 4.0, 0.0]]))
    assert spikes.threshold.tolist() == [[0.5]]
    assert spikes.count.tolist() == [[2, -2, 8, 0]]
    assert spikes.count.dtype == torch.int32


def test_rounds_half_to_even():
    # mean|x| = 3 with k = 3 makes the threshold 1: 0.5 -> 0, 1.5 -> 2, 2.5 -> 2, -2.5 -> -2, 8 -> 8.
    x = torch.tensor([0.5, 1.5, 2.5, -2.5, 8.0])
    assert AdaptiveThreshold()(x).count.tolist() == [0, 2, 2, -2, 8]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7), (2, 0, 7), (0, 7), (3, 0)])
def test_dtypes_and_shapes(dtype, shape):
    x = torch.randn(shape).to(dtype)
    spikes = AdaptiveThreshold()(x)
    assert spikes.count.shape == x.shape
    assert spikes.threshold.shape == (*shape[:-1], 1)
    # The rule, worked in float64 from the same half-precision values; away from ties both agree.
    wide = x.double()
    threshold = (wide.abs().sum(-1, keepdim=True) / max(shape[-1], 1) / 3).clamp(1e-5, 1e4)
    ratio = wide / threshold
    clear = (ratio - ratio.floor() - 0.5).abs() > 1e-4
    assert torch.equal(spikes.count[clear], ratio.round().int()[clear])
    torch.testing.assert_close(spikes.threshold.double(), threshold, rtol=1e-6, atol=0)


def test_statistics_of_half_precision_are_taken_in_float32():
    # 4096 values of 100: their sum, 409600, overflows float16, and their mean needs more than its 11 bits.
    spikes = AdaptiveThreshold(k=1.0)(torch.full((4096,), 100.0, dtype=torch.float16))
    assert spikes.threshold.item() == 100.0
    assert spikes.count.unique().tolist() == [1]


def test_silence_in_silence_out():
    spikes = AdaptiveThreshold()(torch.zeros(2, 5))
    assert spikes.count.abs().sum() == 0
    assert torch.equal(spikes.threshold, torch.full((2, 1), 1e-5))


def test_floor_and_ceiling():
    neuron = AdaptiveThreshold(k=2.0, floor=0.5, ceiling=4.0)
    # Means 0.1 and 100 would give thresholds 0.05 and 50.
    assert neuron(torch.tensor([[0.1], [100.0]])).threshold.tolist() == [[0.5], [4.0]]
    assert neuron(torch.tensor([[0.1], [100.0]])).count.tolist() == [[0], [25]]


@pytest.mark.parametrize("k", [0.5, 2.0, 3.0, 8.0])
def test_counts_stay_within_their_bound(k):
    # One channel carries everything: |count| = k * N, the largest there can be (REFERENCE: k * N + 1/2).
    x = torch.zeros(1000)
    x[3] = -7.0
    assert AdaptiveThreshold(k=k)(x).count.min().item() == -round(k * 1000)
    assert AdaptiveThreshold(k=k).count_bounds(1000) == (k * 1000 + 1, k + 0.5)


def test_kernels_know_the_numbers_and_a_rule_of_their_own(as_users):
    rule = AdaptiveThreshold(k=2, floor=0.5, ceiling=4.0).kernel_rule()
    assert rule.parameters == (2.0, 0.5, 4.0)
    assert all(type(value) is float for value in rule.parameters)
    assert rule.threshold_range == (0.5, 4.0)
    rules = [NEURONS.create(name).kernel_rule() for name in NEURONS]
    assert NO_RULE.number not in [rule.number for rule in rules if rule is not None]
    assert IntegrateAndFire().kernel_rule() is None
    assert IntegrateAndFire().count_bounds(5) is None


def test_kernels_and_bounds_belong_to_the_step_they_were_made_for():
    class SameStep(AdaptiveThreshold):
        pass

    class OtherStep(SameStep):
        def step(self, x, state=None):
            return super().step(x + 1)

    class OtherCall(AdaptiveThreshold):
        def __call__(self, x):
            return super().__call__(x + 1)

    class Shifted:
        def step(self, x, state=None):
            return super().step(x + 1)

    class Mixed(Shifted, AdaptiveThreshold):
        pass

    class Own(OtherStep):
        def kernel_rule(self):
            return AdaptiveThreshold().kernel_rule()

    assert SameStep().kernel_rule() == AdaptiveThreshold().kernel_rule()
    assert SameStep().count_bounds(10) == AdaptiveThreshold().count_bounds(10)
    for neuron in (OtherStep(), OtherCall(), Mixed(), type("Child", (OtherStep,), {})()):
        assert neuron.kernel_rule() is None
        assert neuron.count_bounds(10) is None
    assert Own().kernel_rule() is not None
    assert Own().count_bounds(10) is None


def test_gradient_passes_straight_through():
    x = torch.randn(4, 9, requires_grad=True)
    upstream = torch.randn(4, 9)
    AdaptiveThreshold()(x).activation().backward(upstream)
    assert torch.equal(x.grad, upstream)


def test_no_graph_is_kept_without_gradients():
    x = torch.randn(4, requires_grad=True)
    with torch.no_grad():
        assert AdaptiveThreshold()(x).source is None
    assert AdaptiveThreshold()(x.detach()).source is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_finite(value):
    x = torch.zeros(2, 3, 4)
    x[1, 2, 3] = value
    with pytest.raises(ActivationError, match=r"finite.*\(1, 2, 3\).*1 of 24"):
        AdaptiveThreshold()(x)


def test_count_beyond_32_bits_raises():
    # At the ceiling of 1e4 a value of 3e13 would be 3e9 spikes.
    with pytest.raises(ActivationError, match=r"3e\+09 spikes"):
        AdaptiveThreshold()(torch.tensor([3e13, 1.0]))
    # Finite values whose float32 sum is not finite are the same case.
    with pytest.raises(ActivationError, match="32 bits"):
        AdaptiveThreshold()(torch.full((4,), 3e38))


def test_large_k_cannot_wrap_either():
    for k, x in ((1e10, [1e5, -1e5]), (1e9, [3e6, 0.0, 0.0]), (1e12, [1.0, -1.0])):
        with pytest.raises(ActivationError, match="Lower k"):
            AdaptiveThreshold(k=k, floor=1e-30)(torch.tensor(x))


@pytest.mark.parametrize("k", [0, -1.0, float("nan"), float("inf")])
def test_bad_k(k, as_users):
    with pytest.raises(InputError, match=r"AdaptiveThreshold\.k"):
        AdaptiveThreshold(k=k)


def test_bad_input(as_users):
    with pytest.raises(InputError, match="floating-point"):
        AdaptiveThreshold()(torch.ones(3, dtype=torch.int32))
    with pytest.raises(InputError, match="floor"):
        AdaptiveThreshold(floor=2.0, ceiling=1.0)


@pytest.mark.parametrize("field", ["k", "floor", "ceiling"])
@pytest.mark.parametrize("value", [1e-46, 1e300])
def test_numbers_that_float32_does_not_hold(field, value):
    limits = {"floor": min(value, 1e-5), "ceiling": max(value, 1e4)} if field != "k" else {}
    with pytest.raises(InputError, match=r"AdaptiveThreshold.*a number that float32 holds"):
        AdaptiveThreshold(**{**limits, field: value})
