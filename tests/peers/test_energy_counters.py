"""Our counts against those of SpikingJelly, fvcore and NeuroBench; where theirs fail is a test with a sentence."""

import warnings

import pytest
import torch
from torch import nn

from spikebrain import Binary, SpikeLinear, SpikeSettings, Ternary, load, record, to_spiking
from spikebrain.energy import count_operations
from spikebrain.energy.neurobench import neurobench_counts
from spikebrain.errors import CheckpointError, InputError


def spikingjelly_macs(model, *inputs):
    counter = pytest.importorskip("spikingjelly.activation_based.op_counter", reason="pip install 'spikebrain[snn]'")
    macs = counter.MACCounter()  # under no_grad: in inference mode it sees no operators that it knows, and counts 0
    with torch.no_grad(), counter.DispatchCounterMode([macs]):
        model(*inputs)
    return macs.get_total()


def dense_macs(model, ids):
    """Our MACs of products with weights, of the model on spikes, in its dense version."""
    spiking = to_spiking(model, SpikeSettings())
    with torch.inference_mode(), record(spiking) as recording:
        spiking(ids)
    return count_operations(recording).total("fp16").num_macs


def check_dense_macs(model, ids):
    # Products with weights only: attention itself is one operator, for which their counter has no rule.
    assert spikingjelly_macs(model, ids) == dense_macs(model, ids)


def test_dense_macs_of_a_tiny_llama(tiny_llama):
    check_dense_macs(tiny_llama, torch.arange(12)[None])


@pytest.mark.model
def test_dense_macs_of_smollm2():
    try:
        model, _, _ = load("smollm2")
    except CheckpointError as error:
        pytest.skip(f"the default model is neither in the cache nor to be had: {error}")
    check_dense_macs(model, torch.arange(1, 9)[None])


def test_fvcore():
    fvcore = pytest.importorskip("fvcore.nn", reason="pip install fvcore")
    net = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 7))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = fvcore.FlopCountAnalysis(net, torch.randn(5, 20)).total()  # its flop is a MAC
    spiking = to_spiking(net)
    with torch.inference_mode(), record(spiking) as recording:
        spiking(torch.randn(5, 20))
    assert theirs == count_operations(recording).total("fp16").num_macs == 5 * (600 + 210)


def run(encoder):
    """Return a layer, its recording and its train; an eighth of the weights are 0."""
    weight = torch.randint(-3, 4, (6, 10), dtype=torch.int8)
    layer = SpikeLinear(weight, torch.ones(6, 1), encoder=encoder)
    x = torch.rand(4, 10) if isinstance(encoder, Binary) else torch.randn(4, 10)
    with torch.no_grad(), record(layer, keep_trains=True) as recording:
        layer(x)
    return layer, recording, recording.trains[""][0]


def neurobench_of(layer, train):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        macs = pytest.importorskip("neurobench.metrics.utils.layers.macs", reason="pip install neurobench")
    linear = nn.Linear(10, 6, bias=False)
    linear.weight = nn.Parameter(layer.weight.float())
    effective = spiking = total = 0
    for spikes in train.spikes.float():
        some, is_spiking = macs.single_layer_MACs(spikes, linear)
        effective, spiking = effective + some, spiking + is_spiking
        total += macs.single_layer_MACs(spikes, linear, total=True)[0]
    return effective, total, spiking


@pytest.mark.parametrize("encoder", [Binary(), Ternary()])
def test_effective_acs(encoder):
    layer, recording, train = run(encoder)
    ours = neurobench_counts(layer, recording)
    effective, total, num_spiking = neurobench_of(layer, train)
    assert (ours.dense, num_spiking) == (total, train.num_timesteps)
    assert ours.activation_sparsity == pytest.approx(1 - train.firing_rate)
    assert ours.membrane_updates == train.num_timesteps * 4 * 6
    by_hand = sum(int(layer.weight[:, i].count_nonzero()) for t, n, i in train.spikes.nonzero().tolist())
    assert ours.effective_acs == by_hand
    assert effective == by_hand


def test_spikingjelly_takes_a_ternary_train_for_numbers():
    # Its counters call a tensor spikes if it holds 0 and 1 only: a train with one -1 is dense MACs, and no AC at all.
    counter = pytest.importorskip("spikingjelly.activation_based.op_counter", reason="pip install 'spikebrain[snn]'")
    layer, recording, train = run(Ternary())
    assert int(train.spikes.min()) == -1
    weight = layer.weight.float()
    macs, acs = counter.MACCounter(), counter.ACCounter()
    with torch.no_grad(), counter.DispatchCounterMode([macs, acs]):
        for spikes in train.spikes[:1].float():
            spikes @ weight.t()
    assert (macs.get_total(), acs.get_total()) == (4 * 10 * 6, 0)
    assert count_operations(recording).total("spiking").num_synops == train.num_spikes * 6


def test_trains_are_needed():
    layer = SpikeLinear.from_linear(nn.Linear(10, 6))
    with torch.no_grad(), record(layer) as recording:
        layer(torch.randn(2, 10))
    with pytest.raises(InputError, match="keep_trains"):
        neurobench_counts(layer, recording)
