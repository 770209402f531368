"""Our integrate-and-fire neurons against SpikingJelly and snnTorch; a convention that differs is a test."""

import pytest
import torch

from spikebrain import IntegrateAndFire, LeakyIntegrateAndFire

neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="pip install 'spikebrain[snn]'")
snntorch = pytest.importorskip("snntorch", reason="pip install 'spikebrain[snn]'")

X = torch.rand(200, 3, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 1.2 - 0.2


def run_spikingjelly(node, x=X):
    """Return spikes and the potential after each step's reset."""
    pairs = [(node(x_t), node.v.clone()) for x_t in x]
    return torch.stack([s for s, _ in pairs]).int(), torch.stack([v for _, v in pairs])


def run_snntorch(node, x=X):
    mem = torch.zeros_like(x[0])
    spikes, mems = [], []
    for x_t in x:
        spike, mem = node(x_t, mem)
        spikes.append(spike)
        mems.append(mem)
    return torch.stack(spikes).int(), torch.stack(mems)


def run_ours(ours, x=X):
    """Return spikes and the potential before each step's reset."""
    state, spikes, vs = ours.initial_state(x[0]), [], []
    for x_t in x:
        fired, state = ours.step(x_t, state)
        spikes.append(fired.count)
        vs.append(state.v)
    return torch.stack(spikes), torch.stack(vs)


def assert_same(theirs, ours):
    assert theirs.count_nonzero() > 500  # they do fire
    assert torch.equal(theirs, ours)


@pytest.mark.parametrize("v_reset", [None, 0.0, -0.3])
def test_spikingjelly_if(v_reset):
    # Their potential starts at v_reset.
    hard = {"reset": "hard", "v_reset": v_reset, "v_initial": v_reset}
    ours = IntegrateAndFire(reset="soft") if v_reset is None else IntegrateAndFire(**hard)
    theirs, v_after = run_spikingjelly(neuron.IFNode(v_threshold=1.0, v_reset=v_reset))
    spikes, v_before = run_ours(ours)
    assert_same(theirs, spikes)
    # Their v is the potential after the reset, ours the one before it.
    reset = v_before - spikes if v_reset is None else torch.where(spikes > 0, v_reset, v_before)
    torch.testing.assert_close(v_after, reset)


@pytest.mark.parametrize("tau", [2.0, 4.0])
@pytest.mark.parametrize("decay_input", [False, True])
@pytest.mark.parametrize("v_reset", [None, 0.0])
def test_spikingjelly_lif(tau, decay_input, v_reset):
    # Their soft reset leaks with the potential, hence reset_decays; their decay_input divides the input by tau.
    x = X * 2
    ours = LeakyIntegrateAndFire(decay=1 - 1 / tau, reset="soft" if v_reset is None else "hard", reset_decays=True)
    theirs, _ = run_spikingjelly(neuron.LIFNode(tau=tau, decay_input=decay_input, v_reset=v_reset), x)
    assert_same(theirs, run_ours(ours, x / tau if decay_input else x)[0])


def test_spikingjelly_soft_reset_differs_from_eq_9():
    # Without reset_decays ours is eq. 9, whose reset does not leak: the trains part.
    theirs, _ = run_spikingjelly(neuron.LIFNode(tau=2.0, decay_input=False, v_reset=None))
    assert not torch.equal(theirs, run_ours(LeakyIntegrateAndFire(decay=0.5))[0])


def test_spikingjelly_hard_reset_leaks_towards_v_reset():
    # Theirs leaks towards v_reset, eq. 9 towards 0: from rest, after silence, theirs moves and ours stays.
    node = neuron.LIFNode(tau=2.0, decay_input=False, v_reset=-0.5)
    silence = torch.zeros(1, 1, 1, dtype=torch.float64)
    _, v_after = run_spikingjelly(node, torch.cat([torch.full_like(silence, 2.0), silence, silence]))
    _, v_before = run_ours(
        LeakyIntegrateAndFire(decay=0.5, reset="hard", v_reset=-0.5), torch.cat([silence + 2.0, silence, silence])
    )
    assert v_after.flatten().tolist() == [-0.5, -0.5, -0.5]
    assert v_before.flatten().tolist() == [2.0, -0.5, -0.25]


@pytest.mark.parametrize("beta", [0.5, 0.9, 1.0])
@pytest.mark.parametrize(("mechanism", "reset"), [("subtract", "soft"), ("zero", "hard")])
def test_snntorch_leaky(beta, mechanism, reset):
    theirs, mem = run_snntorch(snntorch.Leaky(beta=beta, reset_mechanism=mechanism).double())
    spikes, v = run_ours(LeakyIntegrateAndFire(decay=float(torch.tensor(beta)), reset=reset))
    assert_same(theirs, spikes)
    torch.testing.assert_close(mem, v)


def test_snntorch_fires_above_the_threshold_only():
    # At the threshold exactly, eq. 9 (and SpikingJelly) fires, snnTorch does not.
    x = torch.ones(1, 1, 1, dtype=torch.float64)
    assert run_snntorch(snntorch.Leaky(beta=0.9).double(), x)[0].item() == 0
    assert run_ours(LeakyIntegrateAndFire(decay=0.9), x)[0].item() == 1
    assert run_spikingjelly(neuron.IFNode(), x)[0].item() == 1
