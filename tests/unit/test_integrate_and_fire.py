"""Among others the proof by execution that the adaptive-threshold neuron collapses an integrate-and-fire neuron."""

import pytest
import torch

from spikebrain import AdaptiveThreshold, IntegrateAndFire, LeakyIntegrateAndFire, Ternary
from spikebrain.errors import ActivationError, InputError


def spikes_of(neuron, inputs):
    return neuron.unroll(torch.tensor(inputs, dtype=torch.float64)[:, None])[0].count.flatten().tolist()


def then_silence(x, num_steps):
    """Present x at the first step and zero after it."""
    return torch.cat([x[None], torch.zeros(num_steps - 1, *x.shape, dtype=x.dtype)])


def test_soft_reset_by_hand():
    # v: 0.8; 0.4 + 0.8 = 1.2 fires; 0.6 - 1 + 0.8 = 0.4; 0.2 + 0.8 = 1.0 fires at the threshold.
    assert spikes_of(LeakyIntegrateAndFire(decay=0.5), [0.8, 0.8, 0.8, 0.8]) == [0, 1, 0, 1]


def test_hard_reset_by_hand():
    # v: 0.8; 0.4 + 0.8 = 1.2 fires; v_reset 0.25 + 0.8 = 1.05 fires; 0.25 + 0.1 = 0.35; 0.175 + 0.1.
    neuron = LeakyIntegrateAndFire(decay=0.5, reset="hard", v_reset=0.25)
    assert spikes_of(neuron, [0.8, 0.8, 0.8, 0.1, 0.1]) == [0, 1, 1, 0, 0]


def test_reset_that_decays():
    # v = 3 fires; eq. 9: 0.5 * 3 - 1 = 0.5; with the reset leaking too: 0.5 * (3 - 1) = 1 fires.
    assert spikes_of(LeakyIntegrateAndFire(decay=0.5), [3.0, 0.0]) == [1, 0]
    assert spikes_of(LeakyIntegrateAndFire(decay=0.5, reset_decays=True), [3.0, 0.0]) == [1, 1]


def test_ternary_neuron_fires_negative():
    # v: -1.5 < -1 fires -1; -1.5 + 1 = -0.5; -0.5 - 0.6 = -1.1 fires -1.
    assert spikes_of(IntegrateAndFire(negative_threshold=-1.0), [-1.5, 0.0, -0.6]) == [-1, 0, -1]


def test_state_goes_in_and_comes_out():
    x = torch.rand(20, 5)
    whole, end = IntegrateAndFire().unroll(x)
    first, middle = IntegrateAndFire().unroll(x[:7])
    second, split_end = IntegrateAndFire().unroll(x[7:], middle)
    assert torch.equal(whole.count, torch.cat([first.count, second.count]))
    assert torch.equal(end.v, split_end.v)


def test_charge_is_conserved():
    # Soft reset without leak: input = spikes * threshold + what is left, to rounding.
    x = torch.rand(50, 8, dtype=torch.float64)
    spikes, state = IntegrateAndFire(threshold=1.0).unroll(x)
    left = state.v - spikes.count[-1]
    torch.testing.assert_close(x.sum(0), spikes.count.sum(0) + left)


@pytest.mark.parametrize("cls", [IntegrateAndFire, LeakyIntegrateAndFire])
@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_silence_in_silence_out(cls, reset):
    assert cls(reset=reset, negative_threshold=-1.0).unroll(torch.zeros(9, 4))[0].count.count_nonzero() == 0


def test_threshold_per_neuron():
    x = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    spikes, _ = IntegrateAndFire(threshold=torch.tensor([1.0, 0.5])).unroll(x)
    assert spikes.count.tolist() == [[1, 1], [0, 1]]
    assert spikes.activation().sum(0).tolist() == [1.0, 1.0]


# The collapse, REFERENCE section 1: eq. 20 unrolled gives the spikes whose sum is eq. 21.


def test_unrolled_spikes_are_the_ternary_train_for_every_count():
    # Every count in range, at its exact activation and a little off it on both sides.
    counts = torch.arange(-300, 301)
    train = Ternary().encode(counts, num_timesteps=300)
    for offset in (-0.49, -0.25, 0.0, 0.25, 0.49):
        x = counts.double() + offset
        neuron = IntegrateAndFire(threshold=1.0, v_initial=0.5, negative_threshold=0.0)
        spikes, state = neuron.unroll(then_silence(x, 300))
        assert torch.equal(spikes.count, train.spikes.int())
        assert bool(((state.v - spikes.count[-1] >= 0) & (state.v - spikes.count[-1] < 1)).all())


def test_initial_potential_turns_floor_into_round():
    x = torch.randn(200, dtype=torch.float64) * 9
    inputs = then_silence(x, 60)
    from_zero = IntegrateAndFire(negative_threshold=0.0).unroll(inputs)[0].count.sum(0)
    from_half = IntegrateAndFire(v_initial=0.5, negative_threshold=0.0).unroll(inputs)[0].count.sum(0)
    assert torch.equal(from_zero, x.floor().int())
    assert torch.equal(from_half, x.round().int())


def test_ties_are_the_only_difference():
    # At n + 1/2 the unrolled neuron goes up; round half to even goes to the even neighbour: they differ for even n.
    n = torch.arange(-20, 20)
    x = n.double() + 0.5
    unrolled = IntegrateAndFire(v_initial=0.5, negative_threshold=0.0).unroll(then_silence(x, 30))[0].count.sum(0)
    assert torch.equal(unrolled, (n + 1).int())
    assert torch.equal(unrolled - x.round().int(), (n % 2 == 0).int())


def test_unrolled_neuron_equals_adaptive_threshold_on_activations():
    x = torch.randn(16, 64, dtype=torch.float64) * torch.logspace(-2, 2, 16, dtype=torch.float64)[:, None]
    collapsed = AdaptiveThreshold(k=3.0)(x)
    v = collapsed.threshold
    neuron = IntegrateAndFire(threshold=v, v_initial=v / 2, negative_threshold=torch.zeros_like(v))
    num_steps = int(collapsed.count.abs().max()) + 1
    assert torch.equal(neuron.unroll(then_silence(x, num_steps))[0].count.sum(0), collapsed.count)


def test_bad_input(as_users):
    with pytest.raises(ActivationError, match=r"LeakyIntegrateAndFire.*\(1,\)"):
        LeakyIntegrateAndFire()(torch.tensor([0.0, float("nan")]))
    with pytest.raises(InputError, match="T >= 1"):
        IntegrateAndFire().unroll(torch.zeros(0, 3))
    for settings, message in (
        ({"reset": "gentle"}, "reset"),
        ({"threshold": 0.0}, "threshold"),
        ({"v_initial": 1.0}, "v_initial"),
        ({"negative_threshold": 0.5}, "without input"),
    ):
        with pytest.raises(InputError, match=message):
            IntegrateAndFire(**settings)
    with pytest.raises(InputError, match="decay"):
        LeakyIntegrateAndFire(decay=1.5)
