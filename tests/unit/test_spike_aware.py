"""Layers that train: the values of the spiking layers, the gradients of plain ones, silence that grows."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from transformers.pytorch_utils import Conv1D

import spikebrain as sb
from spikebrain import AdaptiveThreshold, DeadZoneThreshold, RateDistortionThreshold, SpikeSettings
from spikebrain.energy import count_operations
from spikebrain.errors import ActivationError, InputError
from spikebrain.models.layers.bytes_read import bits_read
from spikebrain.models.layers.quantize import dequantize, quantize_to, rounded_to
from spikebrain.models.layers.spike_aware import Carried, Sharing, SpikeAwareLinear
from spikebrain.neuro.faults import marked_faults

NEURONS = (AdaptiveThreshold(k=6.0), DeadZoneThreshold(k=9.0, dead_zone=0.3), RateDistortionThreshold(k=5.0))
DEAD = DeadZoneThreshold(k=8.0, dead_zone=0.4)


@st.composite
def chosen(draw):
    """Draw settings, and the sizes of a layer that they fit."""
    weights = draw(st.sampled_from(("int8", "int4")))
    group_size = draw(st.sampled_from((None, 5, 16, 32)))
    edges = sorted(draw(st.lists(st.integers(1, 12), min_size=2, max_size=2, unique=True)))
    coarse = draw(st.sampled_from(((), ((2, edges[0]),), ((2, edges[0]), (4, edges[1])))))
    coarse = coarse[:1] if weights == "int4" else coarse
    settings = SpikeSettings(
        weights=weights,
        group_size=group_size,
        coarse=coarse,
        compact_scales=(weights == "int4" or group_size is not None) and draw(st.booleans()),
        neuron=draw(st.sampled_from(NEURONS)),
    )
    return settings, draw(st.integers(33, 70)), draw(st.integers(1, 9)), draw(st.booleans()), draw(st.integers(0, 9999))


@given(chosen())
@hypothesis_settings(max_examples=80, deadline=None)
def test_values_of_the_spiking_layer_and_gradients_of_the_plain_one(case):
    settings, num_in, num_out, has_bias, seed = case
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(num_in, num_out, has_bias))
    linear, x = model[0], (torch.randn(2, 3, num_in) * torch.rand(2, 3, 1) * 4).requires_grad_()
    spiking = sb.to_spiking(model, settings)
    with sb.spike_aware(model, settings):
        y = model(x)
        g = torch.randn_like(y)
        y.backward(g)
    with torch.no_grad():
        expected = spiking(x)
    torch.testing.assert_close(y, expected, atol=2e-5, rtol=2e-5)
    # As of y = W' x' + b with all roundings taken for the identity: dx = g W', dW = g^T x', db = sum of g.
    rows = spiking[0].dequantized_weight()
    carried = settings.neuron(x.detach()).activation()
    torch.testing.assert_close(x.grad, g @ rows)
    torch.testing.assert_close(linear.weight.grad, g.flatten(0, 1).t() @ carried.flatten(0, 1))
    if has_bias:
        torch.testing.assert_close(linear.bias.grad, g.sum((0, 1)))


def test_a_model_with_settings_by_layer(tiny_llama):
    settings = SpikeSettings(
        weights="int4",
        group_size=8,
        compact_scales=True,
        coarse={"*mlp*": ((2, 3),)},
        neuron={"*down_proj": AdaptiveThreshold(4.0), "*": DEAD},
        include_head=True,
    )
    ids = torch.arange(9)[None]
    spiking = sb.to_spiking(tiny_llama, settings)
    with torch.no_grad():
        expected = spiking(ids).logits
        with sb.spike_aware(tiny_llama, settings):
            torch.testing.assert_close(tiny_llama(ids).logits, expected, atol=2e-4, rtol=1e-4)
    assert not any(isinstance(module, SpikeAwareLinear) for module in tiny_llama.modules())


def test_a_transposed_weight_gets_its_gradient():
    torch.manual_seed(2)
    model, x = nn.Sequential(Conv1D(6, 40)), torch.randn(3, 40)
    settings = SpikeSettings(neuron=DEAD, weights="int4", coarse=((2, 4),), compact_scales=True)
    spiking = sb.to_spiking(model, settings)
    with sb.spike_aware(model, settings):
        y = model(x)
        g = torch.randn_like(y)
        y.backward(g)
    with torch.no_grad():
        torch.testing.assert_close(y, spiking(x), atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(model[0].weight.grad, DEAD(x).activation().t() @ g)
    torch.testing.assert_close(model[0].bias.grad, g.sum(0))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_silence_grows(share):
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(64, 8)), torch.randn(5, 64)
    settings = SpikeSettings(neuron=DEAD, coarse=((2, 4),), weights="int4")
    # A dead zone and an edge of that share; with none, all counts but 0 read the layer's own rows.
    less = {"neuron": DeadZoneThreshold(8.0, dead_zone=0.4 * share), "weights": "int4"}
    edge = int(4 * share)
    spiking = sb.to_spiking(model, SpikeSettings(**less, coarse=((2, edge),) if edge else ()))
    with torch.no_grad(), sb.spike_aware(model, settings) as aware:
        whole = model(x)
        aware.grow(share)
        torch.testing.assert_close(model(x), spiking(x))
        assert torch.equal(model(x), whole) == (share == 1)
        with pytest.raises(InputError, match=r"SpikeAware\.grow: expected a share from 0 to 1, got 1\.5"):
            aware.grow(1.5)


class TwoReaders(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x):
        x = x * 1
        y = self.q(x) + self.k(x)
        if not torch.is_grad_enabled():
            x *= 2  # seen by the next reader
        return y + self.q(x)


def test_layers_that_read_the_same_tensor_count_it_once(monkeypatch):
    counted, step = [], AdaptiveThreshold.step
    monkeypatch.setattr(AdaptiveThreshold, "step", lambda *a: counted.append(1) or step(*a))
    model, x = TwoReaders(), torch.randn(3, 16)
    with sb.spike_aware(model, SpikeSettings(neuron={"q": AdaptiveThreshold(4.0), "k": AdaptiveThreshold(4.0)})):
        model(x.requires_grad_())
        assert len(counted) == 1
        with torch.no_grad():
            found = model(x)
        assert len(counted) == 3
    with torch.no_grad():
        torch.testing.assert_close(sb.to_spiking(model, SpikeSettings(neuron=AdaptiveThreshold(4.0)))(x), found)
    counted.clear()
    with sb.spike_aware(model, SpikeSettings(neuron={"q": AdaptiveThreshold(4.0), "k": AdaptiveThreshold(3.0)})):
        model(x)
        assert len(counted) == 3  # q, k and q again


def test_what_is_shared_does_not_outlive_its_tensor():
    sharing, x = Sharing(), torch.randn(2, 3)
    sharing.keep(x, "key", carried := Carried(x * 2))
    assert sharing.get(x, "key") is carried
    assert sharing.get(x, "other") is None
    assert sharing.get(x.clone(), "key") is None
    del x
    assert sharing._known is None


def test_copies_and_pickles_inside_the_block():
    model, x = TwoReaders(), torch.randn(3, 16)
    with torch.no_grad(), sb.spike_aware(model, SpikeSettings(coarse=((2, 2),))):
        expected = model(x)
        again = copy.deepcopy(model)
        assert torch.equal(again(x), expected)
        assert again.q.sharing is again.k.sharing is not model.q.sharing
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)


@pytest.mark.parametrize("neuron", [AdaptiveThreshold(4.0), DEAD])
@pytest.mark.parametrize(
    "rows",
    [
        {"group_size": None, "coarse": ((2, 2), (4, 5))},
        {"group_size": 32, "weight_bits": 4, "coarse": ((2, 2),), "compact_scales": True},
        {"group_size": 25, "compact_scales": True},
    ],
)
def test_a_step_needs_no_number_back(neuron, rows):
    """Tensors without numbers go through, as through the capture of a CUDA graph; whatever asks for one raises."""
    with FakeTensorMode(), marked_faults():
        x, growth = torch.randn(3, 64, requires_grad=True), torch.ones(())
        shared = {"growth": growth, "sharing": Sharing(), "counts_bytes": True}
        layer = SpikeAwareLinear(nn.Linear(64, 4), neuron, **shared, **rows)
        growth.fill_(0.5)
        ((layer(x) + layer(x)).sum() + layer.bytes_read()).backward()
        assert layer.weight.grad.shape == (4, 64)
        with pytest.raises(DataDependentOutputException):
            bool(x.sum() > 0)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [None, 7, 16])
def test_integers_as_floats_are_those_of_the_integers(bits, group_size):
    weight = torch.randn(6, 40)
    weight[1] = 0.5
    plain, floats = quantize_to(bits, weight, group_size), rounded_to(bits, weight, group_size)
    assert torch.equal(plain.weight.float(), floats.weight)
    assert torch.equal(plain.scale, floats.scale)
    assert plain.group_size == floats.group_size
    assert (plain.minimum is None) == (bits == 8)
    assert bits == 8 or torch.equal(plain.minimum, floats.minimum)
    for group in range(0, 40, floats.group_size or 40):  # each group from its definition
        part = weight[:, group : group + (floats.group_size or 40)]
        low, high = (part.amin(1), part.amax(1)) if bits == 4 else (torch.zeros(6), part.abs().amax(1))
        step = (high - low) / (15 if bits == 4 else 127)
        found = dequantize(floats.weight, floats.scale, floats.minimum, floats.group_size)
        found = found[:, group : group + len(part[0])]
        assert bool(((found - part).abs() <= step[:, None] / 2 * 1.001).all())


@pytest.mark.parametrize("settings", [SpikeSettings(), SpikeSettings(weights="int4", coarse=((2, 2),))])
def test_weights_that_are_not_finite_stay_so(settings):
    for wrong in (math.nan, math.inf):
        model = nn.Sequential(nn.Linear(40, 3))
        with torch.no_grad():
            model[0].weight[1, 35] = wrong
            with sb.spike_aware(model, settings):
                assert bool(torch.isnan(model(torch.randn(2, 40))).any(0)[1])


@pytest.mark.parametrize("neuron", [AdaptiveThreshold(k=4.0, ceiling=2.0), DEAD])
def test_faults_are_marked_where_nothing_may_wait(neuron):
    x = torch.randn(5, 8)
    x[1, 3], x[2, 0] = math.nan, -math.inf
    x[3] *= 1e2  # the ceiling binds, of one neuron
    with pytest.raises(ActivationError, match="expected finite activations, got nan"):
        neuron(x)
    with marked_faults():
        found = neuron(x).activation()
    is_bad = torch.isnan(found).all(1)
    assert is_bad.tolist() == [False, True, True, neuron.ceiling == 2.0, False]
    assert torch.equal(found[~is_bad], neuron(x[~is_bad]).activation())
    with pytest.raises(ActivationError):  # as before the block
        neuron(x)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (SpikeSettings(compact_scales=True), "expected weights in groups, got one scale an output in 0"),
        (SpikeSettings(weights="int4", coarse=((4, 2),)), r"0\.coarse: expected fewer bits than the 4 of the layer's"),
        (SpikeSettings(weights="stored"), 'got "stored": .* "int4" has groups of 32 with minima'),
    ],
)
def test_rows_that_cannot_be(settings, message):
    model = nn.Sequential(nn.Linear(64, 3))
    with pytest.raises(InputError, match=message), sb.spike_aware(model, settings):
        pass
    assert type(model[0]) is nn.Linear


def test_training_lowers_the_loss_of_the_spiking_model():
    torch.manual_seed(3)
    settings = SpikeSettings(weights="int4", coarse=((2, 4),), neuron=DEAD, compact_scales=True)
    student = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    teacher, x = copy.deepcopy(student), torch.randn(256, 64)
    with torch.no_grad():
        wanted = teacher(x)
        before = nn.functional.mse_loss(sb.to_spiking(student, settings)(x), wanted)
    optimizer = torch.optim.Adam(student.parameters(), 5e-4)
    with sb.spike_aware(student, settings):
        for _ in range(120):
            optimizer.zero_grad()
            nn.functional.mse_loss(student(x), wanted).backward()
            optimizer.step()
    with torch.no_grad():
        after = nn.functional.mse_loss(sb.to_spiking(student, settings)(x), wanted)
    assert float(after) < 0.5 * float(before)


@pytest.mark.parametrize(
    "rows",
    [
        {"weights": "int4", "coarse": ((2, 4),), "compact_scales": True},
        {"weights": "int4", "group_size": 16},
        {"coarse": ((2, 2), (4, 5))},
        {"group_size": 12, "compact_scales": True},
    ],
)
@pytest.mark.parametrize("neuron", [AdaptiveThreshold(4.0), DeadZoneThreshold(8.0, dead_zone=0.4)])
def test_bytes_are_those_of_a_recording(neuron, rows):
    torch.manual_seed(5)
    model, x = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 40, bias=False)), torch.randn(7, 64)
    settings = SpikeSettings(neuron=neuron, **rows)
    spiking = sb.to_spiking(model, settings)
    with torch.no_grad(), sb.record(spiking) as recording:
        spiking(x)
    counts = count_operations(recording)
    totals = [counts.total(system) for system in ("spiking", "int8")]
    read, dense = (one.weight_channel_bytes + one.weight_bytes + one.parameter_bytes for one in totals)
    with sb.spike_aware(model, settings, counts_bytes=True) as aware:
        with pytest.raises(InputError, match=r"SpikeAware\.read: expected layers that have counted bytes, got none"):
            aware.read()
        model(x)
        assert float(aware.read().detach()) == pytest.approx(read / dense, rel=1e-5)


def test_the_gradient_of_bytes_is_that_of_sigmoids_at_the_steps():
    x = torch.randn(3, 10, dtype=torch.float64)
    k, edges, increments = 4.0, [torch.tensor(1.0), torch.tensor(4.5)], [2.0, -1.0]
    ratio = k * x.abs() / x.abs().mean(-1, keepdim=True)
    leaf = x.clone().requires_grad_()
    found = bits_read(leaf, ratio, edges, increments)
    assert float(found) == pytest.approx(float((2.0 * (ratio >= 1) - 1.0 * (ratio >= 4.5)).mean()))
    (3 * found).backward()
    # The same with automatic derivatives, through the mean, too.
    other = x.clone().requires_grad_()
    smooth = k * other.abs() / other.abs().mean(-1, keepdim=True)
    steps = [
        more * torch.sigmoid((smooth - edge) / (0.25 * edge)) for more, edge in zip(increments, edges, strict=True)
    ]
    (3 * sum(steps).mean()).backward()
    torch.testing.assert_close(leaf.grad, other.grad)
    assert float((leaf.grad * x).sum().abs()) < 1e-12  # a factor for all of x changes no count


def test_bytes_of_other_neurons_are_refused():
    settings = SpikeSettings(neuron=RateDistortionThreshold())
    model = nn.Sequential(nn.Linear(8, 3))
    with pytest.raises(InputError, match="counts_bytes: expected AdaptiveThreshold or DeadZoneThreshold, got Rate"):
        sb.spike_aware(model, settings, counts_bytes=True).__enter__()


@pytest.mark.parametrize("rows", [{}, {"weights": "int4", "coarse": ((2, 3),)}])
def test_autocast_finds_what_it_multiplies_in_its_dtype(rows):
    torch.manual_seed(6)
    model, x = nn.Sequential(nn.Linear(64, 8)), torch.randn(5, 64, requires_grad=True)
    kept = []
    with (
        sb.spike_aware(model, SpikeSettings(neuron=DEAD, **rows)),
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
    ):
        y = model(x)
        exact = model[0].rounded_weights(torch.float32)[0]
    assert y.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in kept} == {torch.bfloat16}
    y.sum().backward()
    assert model[0].weight.grad.dtype == x.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad, exact.bfloat16().float().sum(0).expand(5, -1), rtol=0.02, atol=0.02)
