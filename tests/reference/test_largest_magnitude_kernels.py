"""`LargestMagnitude` in every kernel that counts equals its plain steps, also over several blocks of a token.

Whole layers and decoders are compared with other neurons, in test_fused.py, test_decoder.py and test_graph_decoder.py.
"""

import importlib.util

import pytest
import torch
from devices import DEVICES, INTERPRETING, run_in_interpreter
from torch import nn

from spikebrain import Cpu, LargestMagnitude, Reference, SpikeLinear, Triton
from spikebrain import pack_activations as pack
from spikebrain.coding import ENCODERS
from spikebrain.coding import activations as packing
from spikebrain.errors import ActivationError
from spikebrain.models.layers.grouped import routes_of, run_grouped

NEURON = LargestMagnitude()
CPU = [] if INTERPRETING else [pytest.param("cpu", Cpu(mode), id=f"cpu {mode}") for mode in ("spike", "count")]
BACKENDS = CPU + [
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


def steps_of(layer, x):
    layer.backend, backend = Reference(), layer.backend
    with torch.no_grad():
        y = layer(x)
    layer.backend = backend
    return y


def outliers(*shape):
    """Tokens whose largest magnitude is in their last channel, in the first, or among many that are alike."""
    x = torch.distributions.Laplace(0.0, 1.0).sample(shape)
    x[0, -1], x[-1, 0] = -37.5, 11.0
    return x


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("num_tokens", "width"), [(1, 1100), (3, 100)])
def test_layers(device, backend, form, num_tokens, width):
    layer = SpikeLinear.from_linear(nn.Linear(width, 40), neuron=NEURON, backend=backend, **FORMATS[form]).to(device)
    x = outliers(num_tokens, width).to(device)
    with torch.no_grad():
        found = layer.run_fused(x)
    if backend == Cpu("count") and form != "one scale":
        assert found is None, "there is a kernel that this does not compare"
        return
    assert found is not None, "there was no kernel for this"
    if isinstance(backend, Cpu) or form == "one scale":
        assert torch.equal(found, steps_of(layer, x))
    else:  # groups on a GPU: exact integers, whose floats are added in another order
        torch.testing.assert_close(found, steps_of(layer, x), rtol=3e-6, atol=3e-6 * float(found.abs().max()))


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 1099])
def test_what_is_not_finite_raises(device, backend, bad, place):
    layer = SpikeLinear.from_linear(nn.Linear(1100, 8), neuron=NEURON, backend=backend).to(device)
    x = torch.randn(2, 1100)
    x[1, place] = bad
    with torch.no_grad(), pytest.raises(ActivationError, match="expected finite activations"):
        layer(x.to(device))


@pytest.mark.parametrize(("device", "backend"), BACKENDS)
def test_experts(device, backend):
    layers = [
        [SpikeLinear.from_linear(nn.Linear(64, 24), backend=backend, neuron=NEURON).to(device) for _ in range(2)]
        for _ in range(3)
    ]
    x = outliers(5, 64).to(device)
    routes = routes_of(torch.randint(0, 3, (5, 2), device=device), 3)
    with torch.no_grad():
        found = run_grouped(layers, x, routes)
    if backend == Cpu("count"):
        assert found is None, "there is a kernel that this does not compare"
        return
    assert found is not None
    for e, pair in enumerate(layers):
        for layer, y in zip(pair, found, strict=True):
            assert torch.equal(y[routes.of(e)], steps_of(layer, x[routes.row[routes.of(e)]]))


@pytest.mark.parametrize("device", [*DEVICES, *([] if INTERPRETING else ["cpu"])])
@pytest.mark.parametrize("name", ["ternary", "bitwise", "bitwise-bidirectional", "signed-digit"])
@pytest.mark.parametrize(
    ("shape", "dtype"), [((3, 100), torch.bfloat16), ((1, 1500), torch.float32), ((2, 70), torch.float16)], ids=str
)
def test_packing(device, name, shape, dtype, monkeypatch):
    x, encoder = outliers(*shape).to(dtype), ENCODERS.create(name)
    spikes = NEURON(x)
    fitted, length = encoder.fitted(*(int(v) for v in spikes.count.aminmax()))
    expected = fitted.pack(spikes.count, length)
    monkeypatch.setattr(packing, "_step_by_step", lambda *arguments: pytest.fail("the kernels did not run"))
    for given in (None, length):
        packed, threshold = pack(x.to(device), NEURON, fitted if given else encoder, given)
        assert torch.equal(threshold.cpu(), spikes.threshold)
        for part in ("fired", "negative", "timestep_weight"):
            assert torch.equal(getattr(packed, part).cpu(), getattr(expected, part))
        assert packed.zero_point == expected.zero_point
