"""Layers that get the same tensor count and encode it once, and never use counts of other numbers."""

import gc
import weakref

import pytest
import torch
from torch import nn

import spikebrain as sb
from spikebrain import AdaptiveThreshold, SpikeLinear, checking_plugins, record, to_spiking
from spikebrain.models.layers import spike_linear
from spikebrain.models.layers.shared_input import SharedInput
from spikebrain.models.spikingbrain import tiny_76b
from spikebrain.models.spikingbrain.moe import MixtureOfExperts
from spikebrain.neuro import once
from spikebrain.neuro.checks import spikes_of

WIDTHS = (8, 4, 4)


@pytest.fixture
def layers():
    return nn.ModuleList(SpikeLinear.from_linear(nn.Linear(16, width)) for width in WIDTHS).requires_grad_(False)


@pytest.fixture
def calls(monkeypatch):
    """What is counted and encoded, in order."""
    found = []

    def watch(cls, name, what):
        plain = getattr(cls, name)

        def method(self, x, *arguments):
            found.append((what, tuple(x.shape)))
            return plain(self, x, *arguments)

        monkeypatch.setattr(cls, name, method)

    watch(AdaptiveThreshold, "step", "count")
    watch(sb.BidirectionalBitwise, "encode", "encode")
    return found


@pytest.mark.parametrize("shape", [(1, 16), (3, 16), (2, 3, 16), (16,)])
@pytest.mark.parametrize("inference", [False, True])
def test_recorded_layers_count_and_encode_once(layers, calls, shape, inference):
    with torch.inference_mode(inference), torch.no_grad():
        x = torch.randn(shape)
        with record(layers) as recording:
            found = [layer(x) for layer in layers]
        num_tokens = x.numel() // 16
        assert calls == [("count", shape), ("encode", (num_tokens, 16))]
        assert all(torch.equal(y, layer(x.clone())) for y, layer in zip(found, layers, strict=True))
    records = list(recording.layers.values())
    assert [r.num_tokens for r in records] == [num_tokens] * 3
    assert records[0].count_histogram == records[1].count_histogram == records[2].count_histogram


@pytest.mark.parametrize("backend", [sb.Reference(), sb.Cpu("count"), sb.Chip("ideal-45nm")])
def test_every_backend_counts_once(layers, calls, backend):
    x = torch.randn(3, 16)
    for layer in layers:
        layer.backend = backend
        layer(x)
    assert [what for what, _ in calls].count("count") == 1
    assert [what for what, _ in calls].count("encode") == (backend != sb.Cpu("count"))


CHANGES = {
    "in place": lambda x: x.mul_(-3),
    "one number": lambda x: x[2, 5].fill_(9.0),
    "numpy": lambda x: x.numpy().__setitem__((0, 1), 7.0),
    "data": lambda x: x.data.add_(1),
    "a view": lambda x: x.view(-1)[3:9].zero_(),
}


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("inference", [False, True])
def test_changes_in_place_are_seen(layers, how, inference):
    with torch.inference_mode(inference):
        x = torch.randn(3, 16)
        layers[0].backend = layers[1].backend = sb.Cpu("count")
        first = layers[0](x)
        CHANGES[how](x)
        again, other = layers[0](x), layers[1](x)
        assert not torch.equal(again, first)
        assert torch.equal(again, layers[0](x.clone()))
        assert torch.equal(other, layers[1](x.clone()))


def test_an_observer_that_changes_counts_changes_no_other_train(layers):
    x = torch.randn(3, 16)
    expected = layers[1](x)
    layers[0].observers.append(lambda layer, step: step.train.spikes.add_(0))
    layers[1].observers.append(lambda layer, step: None)
    layers[0](x)
    assert torch.equal(layers[1](x), expected)


def test_other_neurons_and_codes_are_not_shared(layers, calls):
    x = torch.randn(3, 16)
    layers[1].neuron = AdaptiveThreshold(k=7.0)
    layers[2].encoder = sb.Ternary()
    with record(layers) as recording:
        for layer in layers:
            layer(x)
    assert [what for what, _ in calls] == ["count", "encode", "count", "encode", "count"]
    trains = [r.num_timesteps for r in recording.layers.values()]
    assert trains[2] > trains[0]
    spikes = [sum(abs(c) * n for c, n in r.count_histogram.items()) for r in recording.layers.values()]
    assert spikes[1] > spikes[0] == spikes[2]


def test_equal_tensors_are_counted_anew_and_gradients_too(layers, calls):
    x = torch.randn(3, 16)
    with record(layers):
        layers[0](x)
        layers[1](x.clone())
        assert [what for what, _ in calls].count("count") == 2
        x.requires_grad_()
        layers[0](x).sum().backward()
        layers[1](x).sum().backward()
    assert [what for what, _ in calls].count("count") == 4
    assert x.grad is not None


def test_in_portions_nothing_is_shared_wrongly(layers, monkeypatch):
    x = torch.randn(9, 16)
    expected = [layer(x) for layer in layers]
    monkeypatch.setattr(spike_linear, "_PORTION_BYTES", 200)
    with record(layers) as recording:
        assert all(torch.equal(layer(x), y) for layer, y in zip(layers, expected, strict=True))
    assert {r.num_tokens for r in recording.layers.values()} == {9}


def test_what_users_write_is_asked_by_every_layer(layers):
    class Noisy(AdaptiveThreshold):
        def step(self, x, state=None):
            asked.append(x)
            return super().step(x, state)

    asked, x = [], torch.randn(3, 16)
    for layer in layers:
        layer.neuron = Noisy()
        layer(x)
    assert len(asked) == 3


def test_checks_run_for_every_layer(layers, calls):
    x = torch.randn(3, 16)
    with checking_plugins():
        for layer in layers:
            layer(x)
    assert [what for what, _ in calls] == ["count", "encode"] * 3


def test_nothing_is_kept_longer_than_the_input():
    kept, x = once.Once(), torch.randn(3)
    made = kept.get(x, "key", lambda: torch.ones(2))
    assert kept.get(x, "key", lambda: None) is made
    ref = weakref.ref(made)
    del made, x
    gc.collect()
    assert ref() is None
    tensors = [torch.randn(3) for _ in range(4)]
    for tensor in tensors:
        kept.get(tensor, "key", lambda: torch.ones(2))
    assert len(kept._kept) == 2
    assert [entry.given() is tensor for entry, tensor in zip(kept._kept, tensors[2:], strict=True)] == [True, True]


def test_experts_of_a_token_count_it_once(calls):
    from transformers import MixtralConfig, MixtralForCausalLM  # noqa: PLC0415

    config = MixtralConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        num_experts_per_tok=3,
    )
    spiking = to_spiking(MixtralForCausalLM(config).eval())
    calls.clear()
    with torch.no_grad(), record(spiking):
        spiking(torch.tensor([[3]]))
    # q, k and v once, o once; the token for its experts once, and what each of the three makes of it
    assert calls.count(("count", (1, 1, 16))) == 2
    assert calls.count(("count", (1, 16))) == 1
    assert calls.count(("count", (1, 24))) == 3


def test_what_somebody_writes_into_a_result_is_not_passed_on(layers):
    x = torch.randn(3, layers[0].in_features)
    expected = layers[1].neuron(x).count.clone()
    for inference in (False, True):
        with torch.inference_mode(inference), torch.no_grad():
            spikes_of(layers[0].neuron, x).count.neg_()
            assert torch.equal(spikes_of(layers[0].neuron, x).count, expected)


@pytest.mark.parametrize("backend", ["auto", sb.backends.Reference(), sb.backends.Cpu("count")])
def test_a_mixture_counts_and_encodes_its_tokens_once(calls, backend):
    """One layer, 9 tokens of 16 channels, four routed experts of 24 channels, two of them a token, and a shared one."""
    config = tiny_76b(hidden_size=16, num_heads=2, head_dim=8, intermediate_size=24, num_experts_per_token=2)
    moe = to_spiking(MixtureOfExperts(config), sb.SpikeSettings(layers=("*_proj",), backend=backend)).eval()
    x = torch.randn(1, 9, 16)
    with torch.no_grad():
        expected = moe(x)[0]
        calls.clear()
        with record(moe) as recording:
            recorded = moe(x)[0]
        routed = [layer.num_tokens for layer in recording.layers.values() if layer.in_features == 24]
        assert sum(routed) == 9 * 3
        assert [what for what, shape in calls if shape[-1] == 16] == ["count", "encode"]
        assert sum(shape[0] for what, shape in calls if shape[-1] == 24 and what == "encode") == 9 * 3
        timesteps = {layer.num_timesteps for layer in recording.layers.values() if layer.in_features == 16}
        assert len(timesteps) == 1  # one train for all
        torch.testing.assert_close(recorded, expected, rtol=1e-6, atol=1e-6)
        calls.clear()
        moe(x)
        assert len([0 for _, shape in calls if shape[-1] == 16]) <= 2


def test_a_promise_keeps_no_input_in_memory(calls, layers):
    layers = [layers[0], layers[1]]
    x = torch.randn(5, 16)
    shared = SharedInput(x, layers)
    part = shared.tokens(torch.tensor([1, 3]))
    with torch.no_grad():
        found = spikes_of(layers[0].neuron, part)
        assert torch.equal(found.count, layers[0].neuron(x[[1, 3]]).count)
        calls.clear()
        other = shared.tokens(torch.tensor([0]))
        kept = weakref.ref(shared)
        del shared
        assert kept() is None
        assert torch.equal(spikes_of(layers[0].neuron, other).count, layers[0].neuron(x[:1]).count)
        assert calls == [("count", (1, 16)), ("count", (1, 16))]
