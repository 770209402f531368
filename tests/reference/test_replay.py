"""Layers that run token by token on a GPU are recorded and replayed: the same outputs, and the same errors."""

import copy
import gc
import threading
import weakref

import pytest
import torch
import transformers
from made_activations import activations
from separate_steps import stepwise
from torch import nn

import spikebrain as sb
from spikebrain.backends import Triton
from spikebrain.backends.gpu.one_pass import Pass, one_pass
from spikebrain.errors import ActivationError
from spikebrain.models.decoding import attach

pytest.importorskip("triton", reason="triton is not installed")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU"),
]
WEIGHTS = {"INT8": {}, "4 bits": {"weight_bits": 4, "group_size": 32}}


def layer_of(weights="INT8", dtype=torch.float32, backend="auto"):
    linear = nn.Linear(300, 170)
    layer = sb.SpikeLinear.from_linear(linear, neuron=sb.AdaptiveThreshold(), backend=backend, **WEIGHTS[weights])
    return layer.to("cuda", dtype)


def is_recorded(layer, num_tokens=1):
    known = calls_of(layer).get(num_tokens)
    return known is not None and known.recording is not None


def calls_of(layer):
    return getattr(layer._memo.again, "layers", {})


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("mode", "num_tokens"), [("spike", 1), ("spike", 3), ("count", 5)])
@torch.no_grad()
def test_outputs_are_those_of_the_steps(weights, dtype, mode, num_tokens):
    layer = layer_of(weights, dtype, Triton(mode))
    outputs = []
    for call in range(5):
        x = activations(num_tokens, 300, dtype).cuda().reshape(1, num_tokens, 300)
        y = layer(x)
        assert is_recorded(layer, num_tokens) == (call > 0)
        expected = stepwise(layer, x)
        if weights == "INT8":
            assert torch.equal(y, expected)
        else:
            torch.testing.assert_close(y, expected)
        outputs.append((y, y.clone()))
    assert all(torch.equal(*pair) for pair in outputs)  # a later call leaves them as they are


@torch.no_grad()
def test_what_changes_is_seen():
    layer, x = layer_of(), activations(1, 300).cuda()
    layer(x)
    layer(x)
    layer.bias += 1
    assert torch.equal(layer(x), stepwise(layer, x))
    layer.weight[3] = 7
    assert torch.equal(layer(x), stepwise(layer, x))
    layer.neuron = sb.AdaptiveThreshold(k=8.0)
    for _ in range(3):
        assert torch.equal(layer(x), stepwise(layer, x))
    with torch.cuda.stream(torch.cuda.Stream()):
        assert torch.equal(layer(x), stepwise(layer, x))


@torch.no_grad()
def test_a_token_that_is_not_finite_raises():
    layer, x = layer_of(), activations(1, 300).cuda()
    for _ in range(3):
        layer(x)
    x[0, 5] = float("nan")
    with pytest.raises(ActivationError):
        layer(x)
    x[0, 5] = 0
    assert torch.equal(layer(x), stepwise(layer, x))


@torch.no_grad()
def test_threads_do_not_share_a_recording():
    layer, wrong = layer_of(), []

    def work(seed):
        generator = torch.Generator("cuda").manual_seed(seed)
        with torch.no_grad():
            for _ in range(50):
                x = torch.randn(1, 300, generator=generator, device="cuda")
                wrong.append(not torch.equal(layer(x), layer(x.repeat(2, 1))[:1]))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 200
    assert not any(wrong)


@pytest.mark.parametrize("weights", WEIGHTS)
@torch.no_grad()
def test_a_recording_goes_with_its_layer(weights):
    layer, x = layer_of(weights), activations(1, 300).cuda()
    for _ in range(3):
        layer(x)
    assert is_recorded(layer)
    memory, recording = weakref.ref(layer.weight), weakref.ref(calls_of(layer)[1].recording)
    copied = copy.deepcopy(layer)
    assert not calls_of(copied)
    assert torch.equal(copied(x), layer(x))
    del layer
    gc.collect()
    assert memory() is None
    assert recording() is None


@torch.no_grad()
def test_a_graph_of_the_caller_holds_the_layer_itself():
    layer, x = layer_of(), activations(1, 300).cuda()
    for _ in range(3):
        layer(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer(x)
    x.copy_(activations(1, 300))
    graph.replay()
    assert torch.equal(y, stepwise(layer, x))


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("num_tokens", [1, 4])
@torch.no_grad()
def test_layers_of_one_input_run_together(weights, num_tokens, monkeypatch):
    layers, runs = [layer_of(weights) for _ in range(3)], []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda self: runs.append(self) or replay(self))
    for call in range(4):
        x, runs[:] = activations(num_tokens, 300).cuda(), []
        with one_pass() as shared:
            outputs = [layer(x) for layer in layers]
        assert not shared.failed()
        assert len(runs) == min(call, 1)
        for layer, y in zip(layers, outputs, strict=True):
            torch.testing.assert_close(y, stepwise(layer, x))
        y = outputs = None  # else they are not lent again


@torch.no_grad()
def test_a_layer_keeps_few_kinds_of_recordings():
    layer = layer_of()
    for _ in range(2):
        for num_tokens in (1, 5, 1, 5, 2, 3, 4, 6, 70):
            x = activations(num_tokens, 300).cuda()
            for _ in range(2):
                assert torch.equal(layer(x), stepwise(layer, x))
    assert len(calls_of(layer)) == 4
    assert all(map(is_recorded, [layer] * 2, [4, 6]))


CONFIGS = {
    "gpt_neox": (transformers.GPTNeoXConfig, {}),
    "gemma3": (transformers.Gemma3TextConfig, {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8}),
    "qwen2": (transformers.Qwen2Config, {"num_key_value_heads": 2}),
}
SIZES = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


def tiny(name):
    kind, more = CONFIGS[name]
    config = kind(**SIZES, **more)
    torch.manual_seed(0)
    return sb.to_spiking(transformers.AutoModelForCausalLM.from_config(config).eval()).cuda()


@pytest.mark.parametrize("name", ["gpt_neox", "gemma3", "qwen2"])
@pytest.mark.parametrize("num_texts", [1, 3])
@torch.no_grad()
def test_models_of_transformers_run_in_one_pass(name, num_texts, monkeypatch):
    model = tiny(name)
    model.register_forward_hook(lambda *_: None)  # no graph of the whole model
    ids = torch.randint(96, (num_texts, 5), device="cuda")
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    passes = []
    monkeypatch.setattr(attach, "one_pass", lambda: passes.append(1) or one_pass())
    fast = model.generate(ids, **options)
    assert len(passes) == 12
    del vars(model)["forward"]
    assert torch.equal(model.generate(ids, **options), fast)


@pytest.mark.parametrize("name", ["gemma3", "qwen2"])
@torch.no_grad()
def test_what_fails_in_a_pass_runs_again(name, monkeypatch):
    model, ids = tiny(name), torch.randint(96, (2, 12), device="cuda")
    caches = [transformers.DynamicCache(config=model.config) for _ in range(2)]
    for cache in caches:
        model(ids, past_key_values=cache)
    expected = model(ids[:, :1], past_key_values=caches[0]).logits
    monkeypatch.setattr(Pass, "failed", lambda self: True)
    assert torch.equal(model(ids[:, :1], past_key_values=caches[1]).logits, expected)
    for layer, other in zip(*(cache.layers for cache in caches), strict=True):
        assert layer.get_seq_length() == other.get_seq_length() == 13
        assert torch.equal(layer.keys, other.keys)
