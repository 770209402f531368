"""Graphs of NIR in SpikingJelly and snnTorch: equal spikes on random nets; what their importers change is a test."""

import pytest
import torch
from made_nets import hits_a_threshold, random_net

import spikebrain as sb
from spikebrain.exchange import run_stages

nir = pytest.importorskip("nir", reason="pip install 'spikebrain[exchange]'")
jelly = pytest.importorskip("spikingjelly.activation_based.nir_exchange", reason="pip install 'spikebrain[snn]'")
snntorch = pytest.importorskip("snntorch", reason="pip install 'spikebrain[snn]'")
import_nir = pytest.importorskip("snntorch.import_nir", reason="pip install 'spikebrain[snn]'")

SEEDS = range(40)


def in_spikingjelly(graph, spikes, **options):
    module = jelly.import_from_nir(graph, dt=1.0, **options)
    state, found = None, []
    for x in spikes.float():
        y, state = module(x, state)
        found.append(y)
    return torch.stack(found).detach().int()


def in_snntorch(graph, spikes, *, mend=True):
    """Run a graph; with `mend` without the leak and the soft reset that snnTorch 1.0.0 gives every nir.IF."""
    module = import_nir.import_from_nir(graph)
    leaky = [m for m in module.modules() if isinstance(m, snntorch.Leaky)]
    for neuron in leaky:
        neuron.reset_mem()
        if mend:
            neuron.beta = torch.tensor(1.0)
            neuron.reset_mechanism = "zero"
    found = []
    mems = {}
    for x in spikes.float():
        for name, node in graph.nodes.items():
            if isinstance(node, nir.Linear):
                x = getattr(module, name)(x)  # noqa: PLW2901
            elif isinstance(node, nir.IF):
                x, mems[name] = getattr(module, name)(x, mems.get(name, torch.zeros_like(x)))  # noqa: PLW2901
        found.append(x)
    return torch.stack(found).detach().int()


def test_spikingjelly(tmp_path):
    num_spikes = ties = 0
    for seed in SEEDS:
        stages, spikes = random_net(seed, v_reset=seed % 2 == 0)
        sb.to_nir(stages).write(tmp_path / "it.nir")
        trains = run_stages(stages, spikes)
        assert torch.equal(in_spikingjelly(str(tmp_path / "it.nir"), spikes), trains[-1])
        num_spikes += int(trains[-1].sum())
        ties += hits_a_threshold(stages, trains)
    assert num_spikes > 100
    assert ties > 5


def test_snntorch(capsys):
    num_spikes = ties = 0
    for seed in SEEDS:
        stages, spikes = random_net(seed)
        trains = run_stages(stages, spikes)
        assert torch.equal(in_snntorch(sb.to_nir(stages).graph, spikes), trains[-1])
        num_spikes += int(trains[-1].sum())
        ties += hits_a_threshold(stages, trains)
    assert num_spikes > 100
    assert ties > 5


def net(threshold):
    weight = torch.tensor([[2]], dtype=torch.int8)
    return [sb.SpikeLinear(weight, torch.ones(1, 1)), sb.IntegrateAndFire(threshold, reset="hard")]


def test_spikingjelly_fires_at_the_threshold_of_nir():
    # NIR fires above v_threshold, SpikingJelly 2.0 at it: with threshold - 1 = 3 it would fire at 3, one too early.
    graph = sb.to_nir([sb.SpikeLinear(torch.tensor([[3]], dtype=torch.int8), torch.ones(1, 1)), net(4.0)[1]]).graph
    spikes = torch.ones(3, 1, 1, dtype=torch.int8)
    assert in_spikingjelly(graph, spikes).flatten().tolist() == [0, 1, 0]
    graph.nodes["if_1"].v_threshold -= 0.5
    assert in_spikingjelly(graph, spikes).flatten().tolist() == [1, 1, 1]


def test_spikingjelly_takes_no_integers():
    with pytest.raises(RuntimeError, match="floating point"):
        jelly.import_from_nir(sb.to_nir(net(4.0), "int8").graph, dt=1.0)


def test_snntorch_gives_an_integrate_and_fire_neuron_a_leak():
    # snnTorch 1.0.0 imports nir.IF with beta = 0.9, and subtracts the threshold after a spike where NIR resets.
    # Potentials 2, 4, 6 fire at 6; with the leak 2, 3.8, 5.42, which is below 5.5.
    spikes = torch.ones(3, 1, 1, dtype=torch.int8)
    stages = net(6.0)
    assert run_stages(stages, spikes)[-1].flatten().tolist() == [0, 0, 1]
    assert in_snntorch(sb.to_nir(stages).graph, spikes, mend=False).flatten().tolist() == [0, 0, 0]
    assert in_snntorch(sb.to_nir(stages).graph, spikes).flatten().tolist() == [0, 0, 1]
