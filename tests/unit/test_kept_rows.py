"""Rows that a layer keeps between calls on the CPU: made anew when its tensors change, never stale."""

import copy
import pickle

import pytest
import torch

from spikebrain import AdaptiveThreshold, Cpu, SpikeLinear
from spikebrain.models.layers.observing import observing

X = torch.randn(2, 96, generator=torch.Generator().manual_seed(1))


def stepwise(layer):
    with torch.no_grad(), observing([layer], lambda *_: None):
        return layer(X)


@pytest.fixture(params=[{"weight_bits": 4}, {"group_size": 32}, {"group_size": 7}], ids=str)
def layer(request):
    torch.manual_seed(0)
    made = SpikeLinear.from_linear(
        torch.nn.Linear(96, 70), backend=Cpu(), neuron=AdaptiveThreshold(4.0), **request.param
    )
    with torch.no_grad():
        made(X)
    assert made._memo.kept is not None
    return made


def runs_as_it_is(layer):
    with torch.no_grad():
        whole = layer.run_fused(X)
    assert whole is not None
    return torch.equal(whole, stepwise(layer))


def test_rows_are_kept(layer):
    kept = layer._memo.kept
    assert runs_as_it_is(layer)
    assert layer._memo.kept is kept


def negate_scale(layer):
    layer.scale.neg_()


def write_weight(layer):
    layer.weight[3] = 1


def replace_weight(layer):
    layer.weight = layer.weight.roll(1, 0).t().contiguous().t()


def replace_scale(layer):
    layer.scale = layer.scale * 3


def change_neuron(layer):
    layer.neuron = AdaptiveThreshold(2.0)


def load_others(layer):
    layer.load_state_dict({name: value.flip(0) for name, value in layer.state_dict().items()})


@pytest.mark.parametrize(
    "change",
    [negate_scale, write_weight, replace_weight, replace_scale, change_neuron, load_others],
    ids=lambda c: c.__name__,
)
def test_changes_are_seen(layer, change):
    before = stepwise(layer)
    change(layer)
    assert runs_as_it_is(layer)
    assert not torch.equal(stepwise(layer), before)


def test_wider_integers_are_not_packed_into_half_a_byte(layer):
    if layer.minimum is not None:
        layer.weight[0, 0] = 15
    else:
        layer.weight[0, 0] = 127
    assert runs_as_it_is(layer)


def test_rows_stay_with_their_layer(layer):
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other._memo.kept is None
        other.weight.zero_()
        assert runs_as_it_is(other)
        assert runs_as_it_is(layer)
    layer.float()
    assert layer._memo.kept is None


def test_nothing_is_kept_of_tensors_whose_changes_nobody_counts():
    with torch.inference_mode():
        linear = torch.nn.Linear(96, 70)
        layer = SpikeLinear.from_linear(linear, backend=Cpu(), weight_bits=4)
        layer(X)
        assert layer._memo.kept is None
        layer.weight.zero_()
        assert torch.equal(layer.run_fused(X), layer.run_fused(X))
        assert runs_as_it_is(layer)
