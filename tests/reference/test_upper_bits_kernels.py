"""Kernels for GPUs where small counts read upper bits: equal to the plain steps, with every way to launch them."""

import pytest
import torch
from devices import DEVICES, INTERPRETING, run_in_interpreter
from made_activations import activations
from torch import nn

import spikebrain as sb
from spikebrain import AdaptiveThreshold, DeadZoneThreshold, SpikeSettings
from spikebrain.analysis.exactness import ExactnessCheck
from spikebrain.backends.gpu.job import Matrix
from spikebrain.models.layers.observing import observing

pytest.importorskip("triton")
groups, spike, stages, upper = (
    pytest.importorskip(f"spikebrain.backends.gpu.{name}") for name in ("groups", "spike", "stage", "upper")
)
Triton = sb.backends.Triton
NEURON = AdaptiveThreshold(k=8.0)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETING, reason="this is the process that it starts")
def test_all_of_this_through_the_interpreter():
    run_in_interpreter(__file__)


def graded(device, coarse, num_inputs=150, num_outputs=70, *, neuron=None, **settings):
    torch.manual_seed(len(coarse) + num_outputs)
    model = nn.Sequential(nn.Linear(num_inputs, num_outputs))
    neuron = neuron or DeadZoneThreshold(k=8.0, dead_zone=0.2)
    layer = sb.to_spiking(model, SpikeSettings(neuron=neuron, coarse=coarse, backend=Triton(), **settings))[0]
    return layer.eval().to(device)


def expected_of(layer, x):
    for level in layer.levels:
        level.backend = "reference"
    with torch.inference_mode(), observing(layer.levels, lambda *_: None):
        y = layer(x)
    for level in layer.levels:
        level.backend = Triton()
    return y


def failed_of(x):
    return torch.empty(len(x), dtype=torch.int32, device=x.device)


def fused(layer, x):
    own = layer.own
    groups = {"minimum": own.minimum, "group_size": own.group_size} if own.in_groups else {}
    neuron = sb.neuro.without_band(own.neuron)
    return Triton().fused(x, own.weight, own.scale, own.bias, neuron, own.encoder, upper=layer.reads, **groups)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_tokens", [1, 3])
@pytest.mark.parametrize("coarse", [((4, 6),), ((2, 3),), ((2, 2), (4, 9)), ((4, 1),), ((4, 300),)])
@pytest.mark.parametrize("k", [8.0, 90.0])
def test_rows_of_8_bits(device, num_tokens, coarse, k):
    layer = graded(device, coarse, weights="int8", neuron=DeadZoneThreshold(k=k, dead_zone=0.2))
    x = activations(num_tokens, 150).clamp(-200, 200).to(device)
    with torch.inference_mode():
        assert torch.equal(fused(layer, x), layer(x))
        assert torch.equal(layer(x), expected_of(layer, x))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_tokens", [1, 2])
@pytest.mark.parametrize(
    ("weights", "coarse", "size", "k"),
    [
        ("int4", ((2, 4),), 32, 8.0),
        ("int4", ((2, 30),), 8, 90.0),
        ("int8", ((2, 2), (4, 9)), 32, 8.0),
        ("int8", ((4, 5),), 50, 8.0),
    ],
)
def test_groups(device, num_tokens, weights, coarse, size, k):
    layer = graded(device, coarse, weights=weights, group_size=size, neuron=AdaptiveThreshold(k=k))
    own = layer.own
    # Whole scales and minima: all sums are exact in float32, in any order.
    own.scale = torch.randint(1, 3, own.scale.shape, device=device).float()
    if own.minimum is not None:
        own.minimum = torch.randint(-3, 3, own.scale.shape, device=device).float()
    x = activations(num_tokens, 150).clamp(-200, 200).to(device)
    with torch.inference_mode():
        assert torch.equal(fused(layer, x), expected_of(layer, x))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("coarse", [(), ((2, 4),)])
@pytest.mark.parametrize("compact", [False, True])
def test_a_report_allows_groups_the_rounding_of_another_order_and_no_more(device, coarse, compact, monkeypatch):
    torch.manual_seed(1)
    settings = SpikeSettings(weights="int4", coarse=coarse, compact_scales=compact, neuron=NEURON, backend=Triton())
    model = sb.to_spiking(nn.Sequential(nn.Linear(300, 90)), settings).eval().to(device)
    x = activations(2, 300).clamp(-200, 200).to(device)

    def compared():
        check = ExactnessCheck()
        with torch.inference_mode(), check.watch(model):
            model(x)
        return check.fused

    fine = compared()
    assert fine.num_mismatches == 0 < fine.num_checked
    run = sb.SpikeLinear.run_fused

    def off(*args, **options):
        found = run(*args, **options)
        return None if found is None else found + 1e-3 * found.abs().max()

    monkeypatch.setattr(sb.SpikeLinear, "run_fused", off)
    wrong = compared()
    assert wrong.num_mismatches == wrong.num_checked == fine.num_checked


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("coarse", [((4, 6),), ((2, 2), (4, 40))])
@pytest.mark.parametrize("residual", [False, True])
def test_all_ways_to_launch_a_stage(device, coarse, residual):
    neuron = DeadZoneThreshold(k=40.0, dead_zone=0.2)
    layers = [graded(device, coarse, 100, size, weights="int8", neuron=neuron) for size in (48, 20, 7)]
    matrices = tuple(Matrix(x.own.weight, x.own.scale, x.bias, None, None, x.reads) for x in layers)
    x, y = activations(2, 100).clamp(-200, 200).to(device), torch.randn(2, 75, device=device)
    expected = torch.cat([expected_of(layer, x) for layer in layers], 1) + (y if residual else 0)
    stage = stages.Stage(
        x, matrices, y, neuron.kernel_rule(), neuron.count_bounds(100), failed_of(x), residual=residual
    )
    settings = spike.settings_for(stage._replace(x=x[:1]))
    assert {hasattr(one, "warps") for one in settings} == {False, True}
    assert {getattr(one, "planes", False) for one in settings} == {False, True}
    for one in settings:
        found = y.clone()
        spike.plan_for(one, stage._replace(y=found)).run()
        assert torch.equal(found, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_small_counts_do_not_read_the_lower_plane(device):
    neuron, weight = AdaptiveThreshold(k=4.0), torch.randint(-128, 128, (64, 40), dtype=torch.int8, device=device).t()
    x, matrix = torch.ones(1, 64, device=device), Matrix(weight, torch.ones(40, 1, device=device), upper=((4, 4),))
    settings = next(one for one in spike.settings_for(stages.Stage(x, (matrix,), x)) if getattr(one, "planes", False))

    def outputs():
        y = torch.empty(1, 40, device=device)
        stage = stages.Stage(x, (matrix,), y, neuron.kernel_rule(), neuron.count_bounds(64), failed_of(x))
        spike.plan_for(settings, stage).run()
        return y

    before = outputs()  # all counts are 4
    planes = upper._plane_copies[weight][1]
    assert planes.shape == (64, 64)
    planes[:, 32:] = 85  # other numbers in the lower planes: nothing changes
    assert torch.equal(outputs(), before)
    planes[:, :32] = 85
    assert not torch.equal(outputs(), before)


@pytest.mark.parametrize("num_outputs", [1, 8, 31, 33])
def test_planes_hold_the_weights(num_outputs):
    weight = torch.randint(-128, 128, (5, num_outputs), dtype=torch.int8).t()
    planes = upper.planes_of(weight).view(torch.uint8).int()
    halves = planes.reshape(5, 2, -1, 4).unsqueeze(3)
    nibbles = torch.cat([halves & 15, halves >> 4], 3).flatten(2)
    found = (16 * nibbles[:, 0] + nibbles[:, 1]).to(torch.uint8).view(torch.int8)
    assert torch.equal(found[:, :num_outputs], weight.t())


def test_what_kernels_are_told():
    assert upper.upper_bits((), 8) == (0, 0, -1, -1, 0, 0)
    assert upper.upper_bits(((4, 2),), 4) == (4, 0, 0xCCCCCCCC - 2**32, -1, 3, 0)
    assert upper.upper_bits(((2, 6), (9, 4)), 8) == (2, 9, 0xC0C0C0C0 - 2**32, 0xF0F0F0F0 - 2**32, 63, 15)
