"""The Triton kernels equal plain PyTorch bit for bit: through Triton's interpreter, and on a GPU (`pytest -m gpu`)."""

import importlib.util

import pytest
import torch
from devices import DEVICES, INTERPRETING, run_in_interpreter
from made_codes import EXACT

from spikebrain import AdaptiveThreshold, ChannelEvents, PackedTrain, SpikeTrain, pack_activations
from spikebrain.coding import ENCODERS, activations, kernels
from spikebrain.errors import ActivationError, EncodingError
from spikebrain.neuro import NEURONS


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETING, reason="this is the process that it starts")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_all_of_this_through_the_interpreter():
    run_in_interpreter(__file__)


@pytest.mark.parametrize("device", DEVICES)
def test_triton_runs(device):
    assert kernels.kernels_for(torch.device(device)).__name__.endswith("packing_triton")


def check(packed, encoder, count, num_timesteps):
    """Compare with the plain path, which ran on the CPU."""
    expected = PackedTrain.from_train(encoder.encode(count, num_timesteps), len(packed.negative))
    for name in ("fired", "negative", "timestep_weight"):
        assert torch.equal(getattr(packed, name).cpu(), getattr(expected, name))
    assert (packed.num_channels, packed.zero_point) == (expected.num_channels, expected.zero_point)
    check_events(packed, expected)


def check_events(packed, expected):
    events, plain = ChannelEvents.from_packed(packed), ChannelEvents.from_packed_plainly(expected)
    for name in ("indptr", "channel", "count"):
        assert torch.equal(getattr(events, name).cpu(), getattr(plain, name))
        assert getattr(events, name).dtype == getattr(plain, name).dtype


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("shape", [(1, 1), (31,), (2, 1, 33), (1, 63), (2, 100), (1, 1100), (0, 5), (3, 0)], ids=str)
def test_pack(device, name, shape):
    count = (torch.randn(shape) * 3).round().int()
    if len(shape) > 1 and shape[0] > 1:
        count[0] = 0  # a silent token
    low, high = (int(count.min()), int(count.max())) if count.numel() else (0, 0)
    encoder, num_timesteps = ENCODERS.create(name).fitted(low, high)
    for dtype in (torch.int32, torch.int64):
        packed = encoder.pack(count.to(device, dtype), num_timesteps)
        check(packed, encoder, count, num_timesteps)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", [name for name in EXACT if name not in ("binary", "ternary")])
@pytest.mark.parametrize("largest", [3570, 2**15, 2**20, 2**30 - 1, 2**31 - 1])
def test_extreme_counts(device, name, largest):
    count = torch.tensor([[largest, -largest, 0], [1, -1, largest - 1]])
    encoder, num_timesteps = ENCODERS.create(name).fitted(-largest, largest)
    for length in (num_timesteps, 60):
        check(encoder.pack(count.to(device), length), encoder, count, length)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", EXACT)
def test_a_count_that_does_not_fit_raises(device, name):
    count = torch.zeros(2, 3, dtype=torch.int32)
    count[1, 2] = 100
    with pytest.raises(EncodingError, match=r"got 100 at index \(1, 2\)"):
        ENCODERS.create(name).pack(count.to(device), 3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["bitwise", "bitwise-bidirectional", "signed-digit", "ternary"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 100), (1, 577), (2, 1500), (1, 9000)], ids=str)
def test_pack_activations(device, name, dtype, shape):
    x = torch.randn(shape).to(dtype)
    x[0, 0] = 0
    neuron = AdaptiveThreshold()
    spikes = neuron(x)
    encoder, num_timesteps = ENCODERS.create(name).fitted(*(int(v) for v in spikes.count.aminmax()))
    for length in (None, num_timesteps):
        packed, threshold = pack_activations(x.to(device), neuron, encoder, length)
        assert torch.equal(threshold.cpu(), spikes.threshold)
        check(packed, encoder, spikes.count, num_timesteps)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", [name for name in NEURONS if NEURONS.create(name).kernel_rule() is not None])
@pytest.mark.parametrize("shape", [(1, 1), (3, 100), (2, 1500), (1, 9000)], ids=str)
def test_every_neuron_with_kernels(device, name, shape, monkeypatch):
    x, neuron = torch.randn(shape) ** 3, NEURONS.create(name)
    x[-1] = 0
    spikes = neuron(x)
    encoder, num_timesteps = ENCODERS.create("bitwise-bidirectional").fitted(*(int(v) for v in spikes.count.aminmax()))
    monkeypatch.setattr(activations, "_step_by_step", lambda *arguments: pytest.fail("the kernels did not run"))
    for length in (None, num_timesteps):
        packed, threshold = pack_activations(x.to(device), neuron, encoder, length)
        assert torch.equal(threshold.cpu(), spikes.threshold)
        check(packed, encoder, spikes.count, num_timesteps)


@pytest.mark.parametrize("device", DEVICES)
def test_ties_and_far_out(device):
    # Threshold 1: the floor binds. Halves go to the even neighbour, also where float32 has no smaller steps than 1/2.
    x = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 4194304.5, 4194305.5, 8388607.0, -4194305.5, 2147483520.0, 0.0]])
    encoder = ENCODERS.create("bitwise-bidirectional")
    packed, _ = pack_activations(x.to(device), AdaptiveThreshold(k=1e12, floor=1.0), encoder, 31)
    expected = [0, 2, 2, 0, -2, 4194304, 4194306, 8388607, -4194306, 2147483520, 0]
    check(packed, encoder, torch.tensor([expected]), 31)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e30])
def test_bad_activations(device, wrong):
    x = torch.ones(2, 40)
    x[1, 7] = wrong
    for length in (None, 4):
        with pytest.raises(ActivationError):
            pack_activations(x.to(device), AdaptiveThreshold(), ENCODERS.create("ternary"), length)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weights", [[3, -2, 0], [2**40, 1, 5]])
def test_events_of_any_train(device, weights):
    spikes = torch.randint(-1, 2, (3, 2, 70), dtype=torch.int8)
    expected = PackedTrain.from_train(SpikeTrain(spikes, torch.tensor(weights)))
    packed = PackedTrain.from_train(SpikeTrain(spikes.to(device), torch.tensor(weights, device=device)))
    assert torch.equal(packed.to_train().spikes.cpu(), spikes)
    check_events(packed, expected)
