"""A dead zone in every kernel that counts: as many channels are silent, the same ones, as in the plain steps.

The decoders' tests have a neuron with a dead zone among their settings.
"""

import importlib.util

import pytest
import torch
from devices import DEVICES, INTERPRETING, run_in_interpreter
from made_activations import activations
from torch import nn

from spikebrain import AdaptiveThreshold, Binary, Cpu, DeadZoneThreshold, Reference, SpikeLinear, Triton
from spikebrain import pack_activations as pack
from spikebrain.coding import ENCODERS
from spikebrain.coding import activations as packing
from spikebrain.models.layers.grouped import routes_of, run_grouped

NEURON = DeadZoneThreshold(k=8.0, dead_zone=0.5)
BACKENDS = [("cpu", Cpu("spike")), ("cpu", Cpu("count"))]
BACKENDS = [] if INTERPRETING else [pytest.param(*pair, id=str(pair[1])) for pair in BACKENDS]
BACKENDS += [
    pytest.param(device.values[0], Triton(mode), marks=device.marks, id=f"{device.values[0]} {mode}")
    for device in DEVICES
    for mode in ("spike", "count")
]
FORMATS = {"one scale": {}, "groups": {"group_size": 32}, "4 bits": {"weight_bits": 4}}


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETING, reason="this is the process that it starts")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_all_of_this_through_the_interpreter():
    run_in_interpreter(__file__)


def check_that_many_are_silenced(x):
    """A third of what would fire must be silent, so that a kernel without a dead zone gives something else."""
    plain, found = (neuron(x.cpu().float()).count for neuron in (AdaptiveThreshold(k=8.0), NEURON))
    assert 3 * int((found == 0).sum() - (plain == 0).sum()) >= int((plain != 0).sum())


@torch.no_grad()
def expected_of(layer, x):
    layer.backend, backend = Reference(), layer.backend
    y = layer(x)
    layer.backend = backend
    return y


def assert_same(found, expected, *, exact=True):
    assert found is not None, "there was no kernel for this"
    assert found.dtype == expected.dtype
    if exact:
        assert torch.equal(found, expected)
    else:  # groups on a GPU: exact integers, whose floats are added in another order
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6 * float(expected.abs().max()))


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("num_tokens", "dtype"), [(1, torch.float32), (3, torch.float16)], ids=str)
@torch.no_grad()
def test_layers(device, backend, form, dtype, num_tokens):
    linear = nn.Linear(100, 40)
    layer = SpikeLinear.from_linear(linear, neuron=NEURON, backend=backend, **FORMATS[form]).to(device, dtype)
    x = torch.distributions.Laplace(0.0, 1.0).sample((num_tokens, 100)).to(device, dtype)
    check_that_many_are_silenced(x)
    found = layer.run_fused(x)
    if backend == Cpu("count") and form != "one scale":
        assert found is None, "there is a kernel that this does not compare"
        return
    assert_same(found, expected_of(layer, x), exact=isinstance(backend, Cpu) or form == "one scale")


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@torch.no_grad()
def test_counts_at_the_edge_and_beyond_int8(device, backend):
    layer = SpikeLinear.from_linear(nn.Linear(64, 20), neuron=DeadZoneThreshold(8.0, dead_zone=0.5), backend=backend)
    layer.to(device)
    x = torch.full((3, 64), 0.5)
    x[:, 32:] = 1.5  # the mean is 1: the first half lies on the edge, where it fires
    x[1, :16], x[1, 16:32] = 0.5 - 2**-10, 0.5 + 2**-10  # the mean stays
    x[2] = 0
    x[2, 7] = -1.0  # 8 * 64 spikes
    assert [count.unique().tolist() for count in NEURON(x).count] == [[4, 12], [0, 4, 12], [-512, 0]]
    assert_same(layer.run_fused(x.to(device)), expected_of(layer, x.to(device)))
    # A dead zone of more than 127 steps: counts beyond INT8 are silent too.
    layer.neuron = DeadZoneThreshold(400.0, dead_zone=0.5)
    x = activations(3, 64).to(device)
    assert_same(layer.run_fused(x), expected_of(layer, x))


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("form", FORMATS)
@torch.no_grad()
def test_experts(device, backend, form):
    layers = [
        [
            SpikeLinear.from_linear(nn.Linear(64, 24), backend=backend, neuron=NEURON, **FORMATS[form]).to(device)
            for _ in range(2)
        ]
        for _ in range(3)
    ]
    x = torch.distributions.Laplace(0.0, 1.0).sample((5, 64)).to(device)
    check_that_many_are_silenced(x)
    index = torch.randint(0, 3, (5, 2), device=device)
    routes = routes_of(index, 3)
    found = run_grouped(layers, x, routes)
    if backend == Cpu("count") or (isinstance(backend, Triton) and form != "one scale"):
        assert found is None, "there is a kernel that this does not compare"
        return
    assert found is not None
    for e, pair in enumerate(layers):
        for layer, y in zip(pair, found, strict=True):
            assert_same(y[routes.of(e)], expected_of(layer, x[routes.row[routes.of(e)]]))


def packed_both_ways(x, encoder, device, monkeypatch):
    """Return a train of the plain steps, and those of the kernels, with its length given and not."""
    spikes = NEURON(x)
    low, high = (int(v) for v in spikes.count.aminmax())
    fitted, length = encoder.fitted(low, high)
    expected = fitted.pack(spikes.count, length)
    monkeypatch.setattr(packing, "_step_by_step", lambda *arguments: pytest.fail("the kernels did not run"))
    for given in (None, length):
        packed, threshold = pack(x.to(device), NEURON, fitted if given else encoder, given)
        assert torch.equal(threshold.cpu(), spikes.threshold)
        yield expected, packed


@pytest.mark.parametrize("device", [*DEVICES, *([] if INTERPRETING else ["cpu"])])
@pytest.mark.parametrize("name", ["ternary", "bitwise", "bitwise-bidirectional", "signed-digit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(3, 100), (1, 1500)], ids=str)
def test_packing(device, name, dtype, shape, monkeypatch):
    x = torch.distributions.Laplace(0.0, 1.0).sample(shape).to(dtype)
    check_that_many_are_silenced(x)
    for expected, packed in packed_both_ways(x, ENCODERS.create(name), device, monkeypatch):
        for part in ("fired", "negative", "timestep_weight"):
            assert torch.equal(getattr(packed, part).cpu(), getattr(expected, part))
        assert packed.zero_point == expected.zero_point


@pytest.mark.parametrize("device", [*DEVICES, *([] if INTERPRETING else ["cpu"])])
def test_the_range_of_counts_knows_what_is_silent(device, monkeypatch):
    # Ratios from -3.5 to 24; those below 4 are silent, so the smallest count is 0 and the code needs no zero point.
    x = torch.tensor([[-0.4375, 3.0, 0.4375, 0.125], [0.0, 3.0, 0.5, 0.5]])
    assert NEURON(x).count.tolist() == [[0, 24, 0, 0], [0, 24, 4, 4]]
    for expected, packed in packed_both_ways(x, Binary(), device, monkeypatch):
        assert packed.zero_point == expected.zero_point == 0
        assert torch.equal(packed.fired.cpu(), expected.fired)


@pytest.mark.parametrize("device", DEVICES)
def test_heads(device):
    pytest.importorskip("triton")
    from spikebrain.models.spikingbrain.kernels import heads_triton  # noqa: PLC0415 - after TRITON_INTERPRET is set

    x = torch.distributions.Laplace(0.0, 1.0).sample((2, 5, 3, 48)).to(device)
    check_that_many_are_silenced(x)
    count, threshold, failed = heads_triton.count(x, NEURON.kernel_rule())
    spikes = NEURON(x.cpu())
    assert not failed.any()
    assert torch.equal(count.cpu().int(), spikes.count)
    assert torch.equal(threshold.cpu(), spikes.threshold)
