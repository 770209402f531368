"""Which calls of layers are replayed, and that they give what the kernels gave: without a GPU, by a graph in Python."""

import contextlib
import gc
import weakref
from typing import ClassVar

import pytest
import torch
from devices import INTERPRETING, run_in_interpreter
from made_activations import activations
from separate_steps import stepwise
from torch import nn

import spikebrain as sb
from spikebrain.backends import Triton
from spikebrain.backends.gpu.one_pass import one_pass

replay = pytest.importorskip("spikebrain.backends.gpu.replay", reason="triton is not installed")
needs_interpreter = pytest.mark.skipif(not INTERPRETING, reason="runs in a process with Triton's interpreter")
WEIGHTS = {"INT8": {}, "4 bits": {"weight_bits": 4, "group_size": 32}}
CASES = [("spike", 1, "INT8"), ("spike", 1, "4 bits"), ("spike", 2, "INT8"), ("count", 3, "INT8")]
NUM_INPUTS = 40


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETING, reason="this is the process that it starts")
def test_all_of_this_through_the_interpreter():
    run_in_interpreter(__file__)


class Graph:
    """Launches again what it captured, as a CUDA graph does."""

    capturing = None
    in_pool: ClassVar = {}

    def capture_begin(self, pool, **_):
        graphs = Graph.in_pool.get(pool)
        assert graphs is None or len(graphs), "a pool that all graphs have left takes no other one"
        Graph.in_pool.setdefault(pool, weakref.WeakSet()).add(self)
        Graph.capturing = self

    def capture_end(self):
        Graph.capturing = None

    def replay(self):
        RUNS.append(self)
        replay._Recording._launch(self.plans)


class Stream:
    def __init__(self, *_):
        pass

    def wait_stream(self, _):
        pass


RUNS = []


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    launch = replay._Recording._launch

    def captured(plans):
        if Graph.capturing is not None:
            Graph.capturing.plans = plans
        launch(plans)

    monkeypatch.setattr(replay._Recording, "_launch", staticmethod(captured))
    monkeypatch.setattr(replay, "_stream_on", lambda device: 0)
    cuda = {
        "CUDAGraph": Graph,
        "Stream": Stream,
        "stream": lambda _: contextlib.nullcontext(),
        "current_stream": Stream,
        "current_device": lambda: -1,
        "graph_pool_handle": lambda: (0, 1),
        "is_current_stream_capturing": lambda: False,
    }
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, value)
    RUNS.clear()


def layers_of(weights, *num_outputs):
    linears = [nn.Linear(NUM_INPUTS, number) for number in num_outputs]
    return [sb.SpikeLinear.from_linear(one, neuron=sb.AdaptiveThreshold(), **WEIGHTS[weights]) for one in linears]


def rest_of(layer):
    return layer.weight, layer.scale, layer.bias, layer.minimum, layer.neuron, layer.encoder, layer.group_size, ()


def run(layer, x, mode):
    """Return what a layer gives on a GPU, and whether it was replayed."""
    rest = rest_of(layer)
    if layer._memo.again is not None:
        y = layer._memo.again(x, *rest)
        if y is not None:
            return y, True
    groups = {"minimum": layer.minimum, "group_size": layer.group_size}
    y = Triton(mode).fused(x, *rest[:3], layer.neuron, layer.encoder, **groups)
    bounds = layer.neuron.count_bounds(NUM_INPUTS)
    replay.keep(layer._memo, (x, *rest), mode, layer.neuron.kernel_rule(), bounds)
    return y, False


def check(layers, x, mode):
    """Run layers in a pass, compare their outputs, and return which were replayed and how many graphs ran."""
    RUNS.clear()
    with one_pass() as shared:
        found = [run(layer, x, mode) for layer in layers]
    assert not shared.failed()
    for layer, (y, _) in zip(layers, found, strict=True):
        expected = stepwise(layer, x)
        assert y.shape == expected.shape
        torch.testing.assert_close(y, expected, rtol=0 if layer.group_size is None else 1e-5, atol=1e-5)
    return [was_replayed for _, was_replayed in found], len(RUNS)


@needs_interpreter
@pytest.mark.parametrize(("mode", "num_tokens", "weights"), CASES)
@torch.no_grad()
def test_layers_of_one_input_run_together(mode, num_tokens, weights):
    layers = layers_of(weights, 16, 10, 12, 9)

    def x():
        return activations(num_tokens, NUM_INPUTS).reshape(1, num_tokens, NUM_INPUTS)

    assert check(layers, x(), mode) == ([False] * 4, 0)
    assert check(layers, x(), mode) == ([False, True, True, True], 1)
    assert check(layers, x(), mode) == ([True] * 4, 1)
    assert check(layers, x().reshape(num_tokens, NUM_INPUTS), mode) == ([True] * 4, 1)
    layers[1].weight[0] += 1  # it leaves, and what stood together is recorded anew
    assert check(layers, x(), mode) == ([True, False, False, True], 2)
    assert check(layers, x(), mode) == ([True, False, True, True], 1)
    assert check(layers, x(), mode) == ([True] * 4, 2)


@needs_interpreter
@torch.no_grad()
def test_each_number_of_tokens_has_its_recording():
    (layer,) = layers_of("INT8", 8)
    for num_tokens in (1, 2, 3, 4):
        for call in range(3):
            assert check([layer], activations(num_tokens, NUM_INPUTS), "spike") == ([call == 2], call // 2)
    assert check([layer], activations(1, NUM_INPUTS), "spike") == ([True], 1)
    assert check([layer], activations(5, NUM_INPUTS), "spike") == ([False], 0)  # that for one token is dropped
    assert check([layer], activations(1, NUM_INPUTS), "spike") == ([False], 0)


@needs_interpreter
@torch.no_grad()
def test_failures_are_seen_once_a_pass():
    first, second = layers_of("INT8", 8, 7)
    good, bad = activations(1, NUM_INPUTS), activations(1, NUM_INPUTS)
    bad[0, 3] = float("nan")
    for _ in range(2):
        check([first], good, "spike")
        check([second], good.clone(), "spike")

    def failed(*calls):
        with one_pass() as shared:
            for layer, x in calls:
                run(layer, x, "spike")
        return shared.failed()

    assert not failed((first, good), (second, good))
    assert failed((first, good), (second, bad))
    assert not failed((first, good), (second, good))
    assert failed((first, bad), (first, good))  # the second run writes over the first one's flag
    assert first._memo.again(bad, *rest_of(first)) is None
    assert not failed((first, good), (second, good))


@needs_interpreter
@torch.no_grad()
def test_outputs_are_lent_until_somebody_holds_them():
    layers, places, held = layers_of("INT8", 8, 7), [], []
    inputs = [activations(1, NUM_INPUTS) for _ in range(8)]
    for x in inputs[:4]:
        with one_pass():
            y = run(layers[0], x, "spike")[0]
            assert torch.equal(run(layers[1], x, "spike")[0], stepwise(layers[1], x))
            assert torch.equal(y, stepwise(layers[0], x))
        places.append(y.data_ptr())
        y.add_(1)
        del y
    assert places[-1] == places[-2]
    for x in inputs[4:]:
        with one_pass():
            held.append([run(layer, x, "spike")[0] for layer in layers])
            held[-1][0].sub_(1)
            assert torch.equal(run(layers[0], x, "spike")[0], stepwise(layers[0], x))  # asked again, it runs again
    for x, (y, other) in zip(inputs[4:], held, strict=True):
        assert torch.equal(y, stepwise(layers[0], x) - 1)
        assert torch.equal(other, stepwise(layers[1], x))


@needs_interpreter
@torch.no_grad()
def test_recordings_hold_no_memory_when_layers_are_gone_or_moved():
    gc.collect()
    gc.disable()
    try:
        for ends in (list.clear, lambda layers: [layer.float() for layer in layers]):
            layers, x = layers_of("INT8", 8, 7), activations(1, NUM_INPUTS)
            for _ in range(2):
                check(layers, x, "spike")
            recording = weakref.ref(layers[0]._memo.again.layers[1].recording)
            assert recording() is not None
            RUNS.clear()
            ends(layers)
            assert recording() is None
    finally:
        gc.enable()


@needs_interpreter
@torch.no_grad()
def test_a_level_with_another_backend_is_not_replayed():
    model = sb.to_spiking(nn.Sequential(nn.Linear(NUM_INPUTS, 8)), sb.SpikeSettings(coarse=((4, 2),)))
    asked = []
    model[0].own._memo.again = lambda *_: asked.append(1)
    x = activations(1, NUM_INPUTS)
    expected = model(x)
    assert asked
    asked.clear()
    model[0].levels[0].backend = sb.backends.Reference()
    assert torch.equal(model(x), expected)
    assert not asked
