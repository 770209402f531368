"""The lossy codes against the functions of snnTorch and SpikingJelly that define them."""

import math

import pytest
import torch

from spikebrain.coding import Delta, Latency, Poisson, WeightedPhase
from spikebrain.coding.noise import uniforms

encoding = pytest.importorskip("spikingjelly.activation_based.encoding", reason="pip install 'spikebrain[snn]'")
spikegen = pytest.importorskip("snntorch.spikegen", reason="pip install 'spikebrain[snn]'")

COUNT = torch.arange(-24, 25).reshape(7, 7)


def signed(theirs):
    """Their spikes of |count|, with the sign of the count; theirs fire for 0 as well, ours do not."""
    return (theirs * COUNT.sign()).to(torch.int8)


def all_steps(encoder, x, num_timesteps):
    return torch.stack([encoder(x) for _ in range(num_timesteps)])


@pytest.mark.parametrize("step", [1, 3])
def test_poisson_is_theirs_with_our_random_numbers(monkeypatch, step):
    code, num_timesteps = Poisson(step, seed=5).fitted(-24, 24)
    x = COUNT.abs() / (step * num_timesteps)
    numbers = uniforms(COUNT, num_timesteps, 5)
    monkeypatch.setattr(torch, "rand_like", lambda like: next(numbers))
    theirs = all_steps(encoding.PoissonEncoder(), x, num_timesteps)
    assert torch.equal(code.encode(COUNT, num_timesteps).spikes, signed(theirs))


def test_rates_are_those_of_snntorch():
    x, num_timesteps = torch.tensor([[0, 1, 5, 12, 23, 24]]), 24
    ours = torch.stack([Poisson(seed=s).encode(x, num_timesteps).spikes for s in range(300)]).float().mean((0, 1))
    theirs = spikegen.rate(x / num_timesteps, num_steps=300 * num_timesteps).mean(0)
    spread = (x / 24 * (1 - x / 24) / (300 * 24)).sqrt()  # of a mean of 7200 draws
    assert ((ours - x / 24).abs() <= 4 * spread).all()
    assert ((ours - theirs).abs() <= 6 * spread).all()


# With step 2 half of the counts lie between two timesteps, where the rounding of 1 - x in theirs decides.
@pytest.mark.parametrize("step", [1, 3, 5])
def test_latency_linear(step):
    code, num_timesteps = Latency(step).fitted(-24, 24)
    x = COUNT.abs().double() / (step * (num_timesteps - 1))
    ours = code.encode(COUNT, num_timesteps).spikes
    assert torch.equal(ours, signed(all_steps(encoding.LatencyEncoder(num_timesteps), x, num_timesteps)))
    linear = {"normalize": True, "linear": True, "threshold": 1e-9}
    assert torch.equal(ours, signed(spikegen.latency(x, num_steps=num_timesteps, **linear)))


@pytest.mark.parametrize("step", [1, 2])
def test_latency_log(step):
    code, num_timesteps = Latency(step, "log").fitted(-24, 24)
    x = COUNT.abs().double() / (step * math.expm1(num_timesteps - 1))
    theirs = all_steps(encoding.LatencyEncoder(num_timesteps, "log"), x, num_timesteps)
    assert torch.equal(code.encode(COUNT, num_timesteps).spikes, signed(theirs))


def test_latency_charge():
    code, num_timesteps = Latency(curve="charge").fitted(-24, 24)
    last = num_timesteps - 1
    charge = {"threshold": 0.5 / last, "tau": last / math.log(2)}
    theirs = spikegen.latency((COUNT.abs() / last).double(), num_steps=num_timesteps, bypass=True, **charge)
    assert torch.equal(code.encode(COUNT, num_timesteps).spikes, signed(theirs))


@pytest.mark.parametrize("threshold", [1, 5])
def test_delta(threshold):
    held = COUNT.float().expand(4, *COUNT.shape)
    theirs = spikegen.delta(held, threshold=threshold, off_spike=True)
    assert torch.equal(Delta(threshold=threshold).encode(COUNT, 4).spikes, theirs.to(torch.int8))


@pytest.mark.parametrize("step", [1, 2, 4])
def test_weighted_phase(step):
    code, num_timesteps = WeightedPhase(step).fitted(-24, 24)
    x = COUNT.abs() / (step * 2.0**num_timesteps)
    # Theirs takes x up to 1 - 2^-K and cuts off what is below the last phase.
    x = x.clamp_max(1 - 2.0**-num_timesteps)
    theirs = all_steps(encoding.WeightedPhaseEncoder(num_timesteps), x, num_timesteps)
    assert torch.equal(code.encode(COUNT, num_timesteps).spikes, signed(theirs))
