import copy
import pickle

import pytest
import torch
from made_codes import EXACT
from torch import nn

from spikebrain import AdaptiveThreshold, IntegrateAndFire, SpikeLinear, SpikeSettings, decode, record
from spikebrain.backends import BACKENDS, Cpu
from spikebrain.coding import ENCODERS
from spikebrain.errors import ActivationError, InputError, SpikebrainError
from spikebrain.models.layers import spike_linear
from spikebrain.models.layers.quantize import quantize

ON_CPU = [name for name in BACKENDS if BACKENDS.create(name).why_unavailable(torch.device("cpu")) is None]


def dense(layer, x):
    """What the layer must give, in float64 from its own counts."""
    spikes = layer.neuron(x)
    value = spikes.count.double() * spikes.threshold.double()
    y = value @ layer.dequantized_weight().double().t()
    return y if layer.bias is None else y + layer.bias.double()


def test_by_hand():
    # Scales: 1.27 / 127 = 0.01 and 2.54 / 127 = 0.02. Integers: [127, -64 (of -63.5, to even)], [50, 127].
    linear = nn.Linear(2, 2)
    linear.weight.data = torch.tensor([[1.27, -0.635], [1.0, 2.54]])
    linear.bias.data = torch.tensor([0.5, -0.5])
    layer = SpikeLinear.from_linear(linear, neuron=AdaptiveThreshold(k=1.0))
    assert layer.weight.tolist() == [[127, -64], [50, 127]]
    assert layer.scale.flatten().tolist() == pytest.approx([0.01, 0.02])
    # mean|x| = 1, k = 1: threshold 1, counts [2, 0]: 254 * 0.01 + 0.5 and 100 * 0.02 - 0.5.
    assert layer(torch.tensor([2.0, 0.0])).tolist() == pytest.approx([3.04, 1.5])


@pytest.mark.parametrize("group_size", [None, 1, 5, 8, 16, 100])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("code", EXACT)
@pytest.mark.parametrize("backend", ON_CPU)
def test_equals_dense_product(group_size, bias, code, backend):
    layer = SpikeLinear.from_linear(
        nn.Linear(16, 9, bias=bias),
        group_size=group_size,
        encoder=ENCODERS.create(code),
        backend=BACKENDS.create(backend),
    )
    x = torch.randn(2, 3, 16)
    assert layer.scale.shape == (9, len(layer.groups))
    torch.testing.assert_close(layer(x).double(), dense(layer, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    layer = SpikeLinear.from_linear(nn.Linear(32, 8)).to(dtype)
    assert (layer.weight.dtype, layer.scale.dtype, layer.bias.dtype) == (torch.int8, torch.float32, dtype)
    x = torch.randn(4, 32).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    # One rounding to the output's dtype, after everything else.
    torch.testing.assert_close(y, dense(layer, x).to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("shape", [(5,), (1, 5), (0, 5), (2, 0, 5), (2, 3, 4, 5)])
def test_shapes(shape):
    layer = SpikeLinear.from_linear(nn.Linear(5, 3))
    assert layer(torch.randn(shape)).shape == (*shape[:-1], 3)


def test_no_input_channels():
    assert torch.equal(SpikeLinear.from_linear(nn.Linear(0, 3, bias=False))(torch.zeros(2, 0)), torch.zeros(2, 3))


def test_non_contiguous_input():
    layer, x = SpikeLinear.from_linear(nn.Linear(6, 4)), torch.randn(6, 5)
    assert torch.equal(layer(x.t()), layer(x.t().contiguous()))


def test_tokens_in_portions_give_the_same(monkeypatch):
    layer, x = SpikeLinear.from_linear(nn.Linear(20, 7), encoder=ENCODERS.create("ternary")), torch.randn(11, 20)
    steps = []
    layer.observers.append(lambda _, step: steps.append(step))
    whole = layer(x)
    assert [len(step.count) for step in steps] == [11]
    # Three tokens: their spikes, and 4 bytes for each of 7 sums.
    monkeypatch.setattr(spike_linear, "_PORTION_BYTES", 3 * (20 * steps[0].train.num_timesteps + 28))
    steps.clear()
    assert torch.equal(layer(x), whole)
    assert [(step.first_token, len(step.count)) for step in steps] == [(0, 3), (3, 3), (6, 3), (9, 2)]
    # All portions of a call have the same code, and carry their counts.
    assert len({step.train.num_timesteps for step in steps}) == 1
    assert all(torch.equal(decode(step.train), step.count) for step in steps)


def test_gradient_is_that_of_the_dense_layer():
    layer, x = SpikeLinear.from_linear(nn.Linear(12, 5)), torch.randn(3, 12, requires_grad=True)
    upstream = torch.randn(3, 5)
    y = layer(x)
    y.backward(upstream)
    torch.testing.assert_close(x.grad, upstream @ layer.dequantized_weight())
    torch.testing.assert_close(layer.bias.grad, upstream.sum(0))
    with torch.no_grad():
        assert torch.equal(layer(x), y)


def test_quantize():
    weight = torch.tensor([[0.0, 0.0], [1e-40, -1e-40], [3e38, -3e38], [1.0, -0.5]])
    integers, scale = quantize(weight, None)
    assert integers.tolist()[0] == [0, 0]
    assert scale[0].item() == 1.0
    assert bool(torch.isfinite(scale).all())
    assert integers.tolist()[2:] == [[127, -127], [127, -64]]
    assert int(integers.min()) >= -127


@pytest.mark.parametrize("group_size", [None, 4, 7])
def test_quantization_error_is_half_a_step(group_size):
    linear = nn.Linear(20, 6)
    layer = SpikeLinear.from_linear(linear, group_size=group_size)
    for g, group in enumerate(layer.groups):
        error = (layer.dequantized_weight() - linear.weight)[:, group].abs()
        assert bool((error <= 0.5001 * layer.scale[:, g, None]).all())
        assert bool((layer.weight[:, group].abs().amax(1) == 127).all())


def test_moving_keeps_rows_together_and_scales_wide():
    layer = SpikeLinear.from_linear(nn.Linear(6, 4))
    assert layer.weight.t().is_contiguous()
    scale = layer.scale.clone()
    layer.half().float()
    assert torch.equal(layer.scale, scale)
    assert layer.weight.t().is_contiguous()


def test_not_finite_activation_names_the_layer():
    layer = SpikeLinear.from_linear(nn.Linear(3, 2), name="model.layers.7.mlp.up_proj")
    with pytest.raises(
        ActivationError, match=r"'model\.layers\.7\.mlp\.up_proj': AdaptiveThreshold.*nan at index \(1,\)"
    ):
        layer(torch.tensor([1.0, float("nan"), 0.0]))


def test_overflow_names_the_layer():
    # At the ceiling of the threshold the bound k * K fails: 127 * 2e8 spikes do not fit 32 bits.
    layer = SpikeLinear.from_linear(nn.Linear(1, 1), name="head")
    with pytest.raises(OverflowError, match=r"'head'.*32 bits"):
        layer(torch.tensor([2e12]))


def test_bad_input(as_users):
    layer = SpikeLinear.from_linear(nn.Linear(3, 2))
    with pytest.raises(InputError, match=r"\[\.\.\., 3\], got shape \(4,\)"):
        layer(torch.zeros(4))
    with pytest.raises(InputError, match="group_size"):
        SpikeLinear.from_linear(nn.Linear(3, 2), group_size=0)
    with pytest.raises(InputError, match="int8"):
        SpikeLinear(torch.zeros(2, 3), torch.ones(2, 1))
    with pytest.raises(InputError, match=r"scale.*\(2, 1\)"):
        SpikeLinear(layer.weight, torch.ones(2, 2))
    with pytest.raises(InputError, match=r"bias: expected shape \(2,\), got \(3,\)"):
        SpikeLinear(layer.weight, layer.scale, torch.zeros(3))
    broken = nn.Linear(3, 2)
    broken.weight.data[1, 2] = float("inf")
    with pytest.raises(InputError, match=r"weights of lm: expected finite, got inf at \(1, 2\)"):
        SpikeLinear.from_linear(broken, name="lm")


def test_a_neuron_without_gradient_says_so():
    layer = SpikeLinear.from_linear(nn.Linear(3, 2), neuron=IntegrateAndFire())
    with pytest.raises(InputError, match="IntegrateAndFire passes no gradient"):
        layer(torch.randn(2, 3, requires_grad=True))
    with torch.no_grad():
        layer(torch.randn(2, 3, requires_grad=True))


def test_sums_of_half_precision_neurons_are_rescaled_in_float32():
    # 1024 spikes times a weight of 127: more than float16 holds, while the result, 1024, is not.
    linear = nn.Linear(1024, 1, bias=False)
    linear.weight.data.fill_(1.0)
    layer = SpikeLinear.from_linear(linear, neuron=IntegrateAndFire())
    assert layer(torch.ones(1, 1024, dtype=torch.float16)).item() == 1024


def test_threshold_per_channel_is_refused():
    layer = SpikeLinear.from_linear(nn.Linear(3, 2), neuron=IntegrateAndFire(threshold=torch.ones(3)), name="x")
    with pytest.raises(InputError, match="'x': expected one threshold per token"):
        layer(torch.ones(2, 3))


def test_copies_and_pickles_leave_observers_behind():
    layer = SpikeLinear.from_linear(nn.Linear(3, 2))
    with record(layer) as recording:
        twins = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    x = torch.randn(2, 3)
    for twin in twins:
        assert torch.equal(twin(x), layer(x))
    assert recording.layers[""].num_tokens == 0


@pytest.mark.parametrize("backend", ["gpu", None, Cpu])
def test_a_backend_is_an_object_or_a_name(as_users, backend):
    with pytest.raises(InputError, match=r"SpikeLinear\.backend: expected an object such as"):
        SpikeLinear.from_linear(nn.Linear(3, 2), backend=backend)
    with pytest.raises(InputError, match=r"SpikeSettings\.backend: expected an object such as"):
        SpikeSettings(backend=backend)
    assert SpikeLinear.from_linear(nn.Linear(3, 2), backend="cpu").backend == Cpu()


def test_replaced_buffers_reach_no_kernel():
    layer, x = SpikeLinear.from_linear(torch.nn.Linear(40, 24)), torch.randn(5, 40)
    expected = layer(x)
    layer.scale = layer.scale.double()
    torch.testing.assert_close(layer(x), expected)
    layer.scale = layer.scale.float()
    layer.bias = torch.nn.Parameter(torch.ones(5))
    with pytest.raises(InputError, match="bias: expected 24 numbers"), torch.no_grad():
        layer(x)
    layer.bias, layer.weight = None, layer.weight[:, :30]
    with pytest.raises(SpikebrainError):
        layer(x)


@pytest.mark.parametrize(("name", "value"), [("weight", torch.rand(24, 40)), ("scale", torch.ones(24, 1).double())])
def test_state_of_another_kind_is_refused(name, value):
    layer = SpikeLinear.from_linear(torch.nn.Linear(40, 24))
    before = {key: tensor.clone() for key, tensor in layer.state_dict().items()}
    with pytest.raises(RuntimeError, match=f"{name}: expected torch"):
        layer.load_state_dict({**before, name: value}, strict=False)
    assert torch.equal(layer.state_dict()[name], before[name])
