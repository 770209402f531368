"""Layers that run token by token on a GPU are recorded and replayed: the same outputs, and the same errors."""

import gc
import threading
import weakref

import pytest
import torch
from made_activations import activations
from torch import nn

import spikebrain as sb
from spikebrain.backends import Reference, Triton
from spikebrain.errors import ActivationError

replay = pytest.importorskip("spikebrain.backends.gpu.replay", reason="triton is not installed")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU"),
]
WEIGHTS = {"INT8": {}, "4 bits": {"weight_bits": 4, "group_size": 32}}


def layer_of(weights="INT8", dtype=torch.float32):
    linear = nn.Linear(300, 170)
    layer = sb.SpikeLinear.from_linear(
        linear, neuron=sb.AdaptiveThreshold(), backend=Triton("spike"), **WEIGHTS[weights]
    )
    return layer.to("cuda", dtype)


def stepwise(layer, x):
    backend, layer.backend = layer.backend, Reference()
    y = layer(x)
    layer.backend = backend
    return y


def is_recorded(layer):
    known = replay._kept.get(layer.weight)
    return known is not None and known[1] is not None


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_outputs_are_those_of_the_steps(weights, dtype):
    layer = layer_of(weights, dtype)
    outputs = []
    for call in range(5):
        x = activations(1, 300, dtype).cuda().reshape(1, 1, 300)
        y = layer(x)
        assert is_recorded(layer) == (call > 0)
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
    before = len(replay._kept)
    layer, x = layer_of(weights), activations(1, 300).cuda()
    for _ in range(3):
        layer(x)
    assert len(replay._kept) == before + 1
    memory = weakref.ref(layer.weight)
    del layer
    gc.collect()
    assert memory() is None
    assert len(replay._kept) == before


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
