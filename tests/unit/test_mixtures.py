"""Both levels of sparsity of mixtures of experts, worked out by hand, and the report's table of them."""

import pytest
import torch
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from spikebrain import SpikeSettings, record, to_spiking
from spikebrain.analysis import mixture_statistics
from spikebrain.analysis.mixtures import mixture_in_words, mixture_rows
from spikebrain.models.spikingbrain import tiny_76b
from spikebrain.models.spikingbrain.moe import MixtureOfExperts

# Of an expert: gate and up are 8 x 12, down is 12 x 8, a byte a weight.
SIZE = 3 * 96


def mixture(**changes):
    sizes = {"hidden_size": 8, "num_heads": 2, "head_dim": 4, "intermediate_size": 12, "num_experts": 4}
    config = tiny_76b(**(sizes | changes))
    return to_spiking(MixtureOfExperts(config), SpikeSettings(layers=("*_proj",))).eval()


@torch.no_grad()
def recorded(model, x):
    with record(model) as recording:
        model(x)
    return recording


def test_by_hand():
    """Ten tokens go to expert 1, and all to the shared one; half of the channels are silent."""
    moe = mixture()
    nn.init.zeros_(moe.router.weight)
    moe.router.weight.data[1] = 1.0
    x = torch.zeros(1, 10, 8)
    x[..., :4] = torch.rand(10, 4) + 1
    recording = recorded(moe, x)
    found = mixture_statistics(recording)
    hidden = [layer for layer in recording.layers.values() if layer.in_features == 12]
    active = sum(layer.num_active_channels for layer in hidden) / 10  # channels of both experts of a token
    assert found.num_layers == 1
    assert found.experts_per_token == (2.0, 5.0)  # one of four routed experts and the shared one, of five
    assert found.expert_sparsity == pytest.approx(1 - 2 / 5)
    read = 2 * 2 * 4 * 12 + active * 8  # experts x projections x active channels x outputs; down
    assert found.bytes_per_token == pytest.approx(read)
    assert found.expert_bytes_per_token == 2 * SIZE
    assert found.all_bytes_per_token == 5 * SIZE
    assert found.dense_bytes_per_token == SIZE
    assert found.dense_active_bytes_per_token == pytest.approx(read / 2)
    assert found.neuron_sparsity == pytest.approx(1 - read / (2 * SIZE))
    assert 1 - found.weight_sparsity == pytest.approx((1 - found.expert_sparsity) * (1 - found.neuron_sparsity))
    assert found.spikes_per_token == sum(layer.num_spikes for layer in recording.layers.values()) / 10
    assert found.dense_spikes_per_token == found.spikes_per_token / 2
    assert found.largest_load == 4.0  # all tokens, where a quarter would be even
    assert found.num_silent_experts == 3


def test_equal_experts_count_as_many_but_have_no_loads():
    moe = mixture(equal_experts=True, num_experts_per_token=2)
    found = mixture_statistics(recorded(moe, torch.randn(1, 6, 8)))
    assert found.experts_per_token == (3.0, 5.0)
    assert found.all_bytes_per_token == 5 * SIZE
    assert found.expert_sparsity == pytest.approx(2 / 5)
    assert found.largest_load is found.num_silent_experts is None
    assert "one set of weights" in mixture_in_words(vars(found))


def test_experts_of_transformers():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = MixtralConfig(vocab_size=16, num_hidden_layers=2, num_local_experts=4, num_experts_per_tok=2, **sizes)
    spiking = to_spiking(MixtralForCausalLM(config).eval())
    with torch.no_grad(), record(spiking) as recording:
        spiking(torch.randint(0, 16, (1, 9)))
    found = mixture_statistics(recording)
    assert (found.num_layers, found.experts_per_token) == (2, (2.0, 4.0))
    assert found.all_bytes_per_token == 2 * 4 * (16 * 48 + 24 * 16)
    assert found.expert_sparsity == pytest.approx(0.5)


def test_models_without_mixtures_that_spike_have_none():
    moe = mixture()
    spiking = to_spiking(nn.Sequential(nn.Linear(8, 8)), SpikeSettings())
    assert mixture_statistics(recorded(spiking, torch.randn(2, 8))) is None
    with torch.no_grad(), record(moe) as recording:
        pass
    assert mixture_statistics(recording) is None


def test_the_table_of_a_report():
    moe = mixture()
    found = vars(mixture_statistics(recorded(moe, torch.randn(1, 6, 8))))
    rows = mixture_rows(found)
    assert [row[2] for row in rows[:3]] == pytest.approx(
        [1.0, 1 - found["expert_sparsity"], 1 - found["weight_sparsity"]]
    )
    assert rows[1][0] == "the 2 experts of the token"
    assert "times an even share" in mixture_in_words(found)
