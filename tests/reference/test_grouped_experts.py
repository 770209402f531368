"""Experts in one grouped call equal experts one by one on the plain backend, bit for bit: CPU and Triton's kernels."""

import importlib.util
import itertools

import pytest
import torch
from devices import DEVICES, INTERPRETING, run_in_interpreter
from hypothesis import given, settings
from hypothesis import strategies as st
from made_activations import activations
from torch import nn

from spikebrain import AdaptiveThreshold, SpikeLinear
from spikebrain.backends import Cpu, Reference, Triton
from spikebrain.models.layers.grouped import routes_of, run_grouped


def layers_of(num_experts, num_inputs, widths, backend, *, bias=False, **options):
    return [
        [
            SpikeLinear.from_linear(nn.Linear(num_inputs, width, bias=bias), backend=backend, **options)
            for width in widths
        ]
        for _ in range(num_experts)
    ]


@torch.no_grad()
def check(layers, x, index):
    """Compare a grouped call with each layer on `Reference`, on its own tokens; the kernel must have run."""
    routes = routes_of(index, len(layers))
    found = run_grouped(layers, x, routes)
    assert found is not None, "there was no kernel for this"
    for e, expert in enumerate(layers):
        for layer, y in zip(expert, found, strict=True):
            layer.backend, backend = Reference(), layer.backend
            expected = layer(x[routes.row[routes.of(e)]])
            layer.backend = backend
            assert y.dtype == x.dtype
            assert torch.equal(y[routes.of(e)], expected)


@pytest.mark.skipif(INTERPRETING, reason="the other backends run in their own process")
@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 90),
    st.lists(st.integers(1, 140), min_size=1, max_size=2),
    st.integers(1, 20),
    st.integers(1, 3),
    st.sampled_from([{}, {"group_size": 32}, {"weight_bits": 4}]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_the_cpu(num_experts, num_inputs, widths, num_tokens, chosen, options, bias, seed):
    torch.manual_seed(seed)
    layers = layers_of(num_experts, num_inputs, widths, Cpu(), bias=bias, **options)
    index = torch.randint(-1, num_experts + 1, (num_tokens, chosen))  # some are no route
    index[0, 0] = 0
    check(layers, activations(num_tokens, num_inputs), index)


@pytest.mark.skipif(INTERPRETING, reason="the other backends run in their own process")
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("num_tokens", [1, 2, 70])
def test_threads_and_half_precision(num_threads, num_tokens):
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        for dtype in (torch.float32, torch.bfloat16):
            layers = layers_of(4, 128, [192, 192], Cpu())
            check(layers, activations(num_tokens, 128, dtype), torch.randint(0, 4, (num_tokens, 2)))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", ["spike", "count"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # the interpreter truncates bfloat16
@pytest.mark.parametrize(("shape", "bias"), [((5, 70, 48), True), ((1, 63, 130), False), ((40, 130, 20), False)])
def test_triton(device, mode, dtype, shape, bias):
    num_tokens, num_inputs, width = shape
    layers = layers_of(4, num_inputs, [width, width], Triton(mode), bias=bias)
    if dtype == torch.float16:
        for layer in itertools.chain(*layers):
            layer.half()
    for layer in itertools.chain(*layers):
        layer.to(device)
    index = torch.randint(0, 3, (num_tokens, 2), device=device)  # the last expert is silent
    check(layers, activations(num_tokens, num_inputs, dtype).to(device), index)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETING, reason="this is the process that it starts")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_triton_through_the_interpreter():
    run_in_interpreter(__file__, "-k", "triton")


@pytest.mark.skipif(INTERPRETING, reason="the other backends run in their own process")
@torch.no_grad()
def test_where_the_experts_run_one_by_one():
    x, routes = activations(6, 16), routes_of(torch.tensor([[0], [1]] * 3), 2)
    layers = layers_of(2, 16, [8], Cpu())
    assert run_grouped(layers, x, routes) is not None
    x[2, 3] = torch.nan
    assert run_grouped(layers, x, routes) is None  # each layer says so with its name
    x[2, 3] = 0
    layers[1][0].neuron = AdaptiveThreshold(2.0)
    assert run_grouped(layers, x, routes) is None
    layers[1][0].neuron = layers[0][0].neuron
    handle = layers[1][0].register_forward_hook(lambda *_: None)
    assert run_grouped(layers, x, routes) is None
    handle.remove()
    assert run_grouped([[nn.Linear(16, 8)], layers[0]], x, routes) is None
    assert run_grouped(layers_of(2, 16, [8], Cpu("count")), x, routes) is None
    assert run_grouped(layers, x[:, :15], routes) is None
    layers[0][0].scale = layers[0][0].scale[:4]
    assert run_grouped(layers, x, routes) is None
