"""The error of each layer on spikes, and estimates with their errors, against figures worked out by hand."""

import math

import pytest
import torch

from spikebrain import AdaptiveThreshold, SpikeSettings, to_spiking
from spikebrain.analysis.layer_errors import comparable_layers, layer_errors
from spikebrain.analysis.paired import estimate_difference, estimate_mean, estimate_perplexity, estimate_ratio
from spikebrain.errors import ActivationError, InputError

IDS = torch.arange(20)


def test_error_of_each_layer(tiny_llama):
    spiking = to_spiking(tiny_llama, SpikeSettings(neuron=AdaptiveThreshold(2.0)))
    names = comparable_layers(tiny_llama, spiking)
    assert len(names) == 14
    found = {error.name: error for error in layer_errors(tiny_llama, spiking, IDS, names)}
    for name in ("model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj"):
        # The same by hand: the input of the layer in the float model, and a model with only this layer on spikes.
        inputs = []
        handle = tiny_llama.get_submodule(name).register_forward_hook(
            lambda m, x, y, inputs=inputs: inputs.append(x[0])
        )
        with torch.inference_mode():
            p = tiny_llama(IDS[None]).logits[0].double().softmax(-1)
            handle.remove()
            y = tiny_llama.get_submodule(name)(inputs[0])
            noise = spiking.get_submodule(name)(inputs[0]) - y
            alone = to_spiking(tiny_llama, SpikeSettings(layers=(name,), neuron=AdaptiveThreshold(2.0)))
            q = alone(IDS[None]).logits[0].double().softmax(-1)
        assert found[name].sqnr_db == pytest.approx(10 * math.log10(y.square().sum() / noise.square().sum()), abs=1e-3)
        assert found[name].kl_nats == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-2, abs=1e-9)
    assert not any(module._forward_hooks for module in tiny_llama.modules())


def test_more_spikes_less_noise(tiny_llama):
    few, many = (to_spiking(tiny_llama, SpikeSettings(neuron=AdaptiveThreshold(k))) for k in (1.0, 64.0))
    names = comparable_layers(tiny_llama, few)
    for a, b in zip(*(layer_errors(tiny_llama, m, IDS, names) for m in (few, many)), strict=True):
        assert a.sqnr_db < b.sqnr_db
    with pytest.raises(InputError, match="expected layers that are in both models, got 'lm_head'"):
        list(layer_errors(tiny_llama, few, IDS, ["lm_head"]))


def test_estimates():
    assert estimate_mean([3.0]) == (3.0, None)
    # Deviations 1, 1, 2: variance 6 / 2 = 3, error sqrt(3 / 3) = 1.
    assert estimate_mean([1.0, 1.0, 4.0]) == pytest.approx((2.0, 1.0))
    # Differences 0, 0, 1, -1: mean 0, variance 2 / 3, error sqrt(2 / 12).
    assert estimate_difference([1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0]) == pytest.approx((0.0, math.sqrt(1 / 6)))
    value, stderr = estimate_perplexity([2.0, 4.0], [2, 2])
    # Mean 1.5 nats; deviations of the sums -1 and 1: sqrt(2 / 1 * 2) / 4 = 0.5.
    assert (value, stderr) == pytest.approx((math.exp(1.5), 0.5 * math.exp(1.5)))
    assert estimate_ratio([1.0, 2.0, 3.0], [10, 20, 30]) == pytest.approx((0.1, 0.0))  # the same rate in all
    with pytest.raises(ActivationError, match="expected a mean negative log-likelihood up to 709"):
        estimate_perplexity([1e4], [1])
