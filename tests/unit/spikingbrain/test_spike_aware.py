"""Spikes in the forward pass of training."""

import pytest
import torch

from spikebrain import spikingbrain_settings
from spikebrain.models import SpikeSettings
from spikebrain.models.conversion import from_transformer, to_spiking
from spikebrain.models.layers.spike_aware import SpikeAwareLinear, spike_aware
from spikebrain.models.training import DistillSettings, Stage, distill
from spikebrain.models.training.distill import batch_of


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["as-described", "as-released"])
@pytest.mark.parametrize("plans", ["gla,swa", "gla+swa/moe,gla+full"])
def test_spike_aware_computes_what_the_spiking_model_does(teacher, tokens, setting, plans):
    student = from_transformer(teacher, plans, num_sinks=2, num_experts=2, equal_experts=False).double()
    spiking, ids = to_spiking(student, spikingbrain_settings(setting)), tokens[:60].view(2, 30)
    seen = []
    student.model.layers[1].register_forward_hook(lambda m, i, o: seen.append(o[0].detach()))
    stage = Stage(objective="logits", context=30, steps=1, batch_size=2, learning_rate=1e-3)
    distill(student, teacher.double(), tokens[:60], DistillSettings(stages=(stage,), spiking=setting))
    assert student.settings.spiking is None
    assert not any(isinstance(module, SpikeAwareLinear) for module in student.modules())
    ids = batch_of(tokens[:60], stage, 0, 0)
    spiking.model.layers[1].register_forward_hook(lambda m, i, o: seen.append(o[0].detach()))
    with torch.no_grad():
        spiking(ids)
    # Sink tokens run first; rounded weights are float32 in the one and exact in the other.
    torch.testing.assert_close(seen[-1], seen[-3], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_training_on_spikes_lowers_the_loss(teacher, tokens):
    for objective in ("attention", "logits"):
        student = from_transformer(teacher, "gla,gla+swa", num_sinks=2)
        stage = Stage(objective=objective, steps=12, context=20, learning_rate=0.02, trainable="all")
        found = [
            point.loss
            for point in distill(
                student, teacher, tokens, DistillSettings(stages=(stage,), spiking="as-described", k=2.0)
            ).losses
        ]
        assert sum(found[-3:]) < 0.95 * sum(found[:3])


def test_gradients_pass_both_roundings():
    linear = torch.nn.Linear(6, 3)
    wrapped, x = torch.nn.Sequential(linear), torch.randn(4, 6, requires_grad=True)
    with spike_aware(wrapped, SpikeSettings()):
        wrapped(x).sum().backward()
    assert wrapped[0] is linear
    # As if y were linear: the gradient of x is the sum of the (rounded) rows, that of b the number of tokens.
    torch.testing.assert_close(x.grad, linear.weight.sum(0).expand(4, -1), atol=0.02, rtol=0)
    assert linear.bias.grad.tolist() == [4.0] * 3
    assert bool((linear.weight.grad.abs() > 0).any())
