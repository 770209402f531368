import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spikebrain import AdaptiveThreshold, DeadZoneThreshold, SpikeLinear, SpikeSettings, record, to_spiking
from spikebrain.energy import count_operations
from spikebrain.errors import ActivationError, InputError
from spikebrain.registry import from_dict, to_dict


def test_worked_example():
    # mean|x| = (1 + 1 + 4 + 0) / 4 = 1.5; k = 3: threshold 0.5; x / threshold = 2, -2, 8, 0; a dead zone of 0.7 is
    # |x| < 1.05, or |x / threshold| < 2.1.
    x = torch.tensor([[1.0, -1.0, 4.0, 0.0]])
    spikes = DeadZoneThreshold(k=3.0, dead_zone=0.7)(x)
    assert spikes.threshold.tolist() == [[0.5]]
    assert spikes.count.tolist() == [[0, 0, 8, 0]]
    assert spikes.count.dtype == torch.int32
    assert DeadZoneThreshold(k=3.0, dead_zone=0.6)(x).count.tolist() == [[2, -2, 8, 0]]


def test_at_the_edge_it_fires_and_halves_go_to_the_even_neighbour():
    # mean|x| = 3 with k = 3 makes the threshold 1, and 1.5 / 3 the quiet ratio 1.5.
    x = torch.tensor([1.5, -1.5, 1.25, 2.5, 8.25])
    assert DeadZoneThreshold(k=3.0, dead_zone=0.5)(x).count.tolist() == [2, -2, 0, 2, 8]
    below = torch.nextafter(torch.tensor(1.5), torch.tensor(0.0))
    x[0], x[2] = below, x[2] + (1.5 - below)
    assert DeadZoneThreshold(k=3.0, dead_zone=0.5)(x).count.tolist() == [0, -2, 0, 2, 8]


@given(
    st.floats(0.1, 40),
    st.floats(0, 5),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    st.integers(0, 2**32),
)
def test_is_the_definition_in_float32(k, dead_zone, dtype, seed):
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(seed)).to(dtype)
    plain, spikes = AdaptiveThreshold(k)(x), DeadZoneThreshold(k, dead_zone=dead_zone)(x)
    assert torch.equal(spikes.threshold, plain.threshold)
    ratio = x.to(plain.threshold.dtype).numpy() / plain.threshold.numpy()
    silent = np.abs(ratio) < np.float32(k * dead_zone)
    assert np.array_equal(spikes.count.numpy(), np.where(silent, 0, plain.count.numpy()))


@pytest.mark.parametrize("dead_zone", [0, 0.0, 0.06, 0.0625])
def test_a_dead_zone_within_half_a_step_changes_nothing(dead_zone, as_users):
    x = torch.cat([torch.randn(40, 64) ** 3, torch.zeros(1, 64)])
    assert torch.equal(DeadZoneThreshold(k=8.0, dead_zone=dead_zone)(x).count, AdaptiveThreshold(k=8.0)(x).count)


def test_floor_and_silence():
    # The floor makes the threshold 2 where mean|x| / k would be 0.5, so ratios are 0.1 and 0.9: both below 1.
    neuron = DeadZoneThreshold(k=2.0, floor=2.0, dead_zone=0.5)
    assert neuron(torch.tensor([[0.2, 1.8], [0.0, 0.0], [2.0, 0.0]])).count.tolist() == [[0, 0], [0, 0], [1, 0]]


def test_kernels_get_the_edge_as_float32(as_users):
    neuron = DeadZoneThreshold(k=3, dead_zone=0.1)
    rule, plain = neuron.kernel_rule(), AdaptiveThreshold(k=3).kernel_rule()
    assert rule.quiet == float(np.float32(3 * 0.1)) != 3 * 0.1
    assert rule._replace(quiet=0.0) == plain
    assert plain.numbers == (*plain.parameters, 0.0)
    assert rule.numbers == (*plain.parameters, rule.quiet)
    assert neuron.count_bounds(10) == AdaptiveThreshold(k=3).count_bounds(10)


def test_another_step_has_no_kernels():
    class OtherStep(DeadZoneThreshold):
        def step(self, x, state=None):
            return super().step(x + 1)

    assert OtherStep().kernel_rule() is None
    assert OtherStep().count_bounds(10) is None


def test_gradient_passes_straight_through():
    x, upstream = torch.randn(4, 9, requires_grad=True), torch.randn(4, 9)
    spikes = DeadZoneThreshold(dead_zone=0.5)(x)
    assert (spikes.count == 0).any()
    spikes.activation().backward(upstream)
    assert torch.equal(x.grad, upstream)


def test_not_finite_and_beyond_32_bits():
    with pytest.raises(ActivationError, match="DeadZoneThreshold: expected finite"):
        DeadZoneThreshold()(torch.tensor([1.0, float("nan")]))
    with pytest.raises(ActivationError, match=r"3e\+09 spikes"):
        DeadZoneThreshold()(torch.tensor([3e13, 1.0]))


@pytest.mark.parametrize("dead_zone", [-0.1, float("nan"), float("inf"), 1e300, 2.7e8])
def test_bad_dead_zone(dead_zone, as_users):
    with pytest.raises(InputError, match=r"DeadZoneThreshold\.dead_zone: expected a number from 0 to 2\.68e\+08"):
        DeadZoneThreshold(dead_zone=dead_zone)


def test_bad_settings_name_the_class(as_users):
    for settings in ({"dead_zone": True}, {"dead_zone": "0.2"}, {"dead_zone": None}):
        with pytest.raises(InputError, match=r"DeadZoneThreshold\.dead_zone: expected a number, got"):
            DeadZoneThreshold(**settings)
    with pytest.raises(InputError, match=r"DeadZoneThreshold\.k"):
        DeadZoneThreshold(k=0)


def test_is_saved_whole():
    neuron = DeadZoneThreshold(k=5.0, dead_zone=0.3)
    assert to_dict(neuron)["name"] == "dead-zone"
    assert from_dict(to_dict(neuron)) == neuron != DeadZoneThreshold(k=5.0)


def test_by_name_in_settings():
    spiking = to_spiking(nn.Sequential(nn.Linear(8, 4)), SpikeSettings(neuron="dead-zone"))
    assert spiking[0].neuron == DeadZoneThreshold(k=8.0, dead_zone=0.2)


def test_energy_counts_a_comparison_a_channel_and_fewer_reads():
    linear, x = nn.Linear(50, 20), torch.randn(6, 50)

    def counts_of(neuron):
        layer = SpikeLinear.from_linear(linear, neuron=neuron)
        with torch.no_grad(), record(layer) as recording:
            layer(x)
        return count_operations(recording).layers[""].spiking

    plain, found = counts_of(AdaptiveThreshold(8.0)), counts_of(DeadZoneThreshold(8.0, dead_zone=0.5))
    assert found.num_encode_compare == plain.num_encode_compare + 6 * 50
    active = int((x.abs() >= 0.5 * x.abs().mean(-1, keepdim=True)).sum())  # no x lies on the edge
    assert found.weight_channel_bytes == 20 * active < plain.weight_channel_bytes
