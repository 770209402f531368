"""PyTorch's tracers and transforms see no kernels: spiking layers refuse those that they cannot be an operator for."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from spikebrain import SpikeLinear, to_dense, to_spiking
from spikebrain.errors import InputError


@pytest.fixture
def model():
    return to_spiking(nn.Sequential(nn.Linear(16, 8))).requires_grad_(False)


X = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))


def dual(model):
    with forward_ad.dual_level():
        model(forward_ad.make_dual(X, X))


REFUSED = {
    "trace": (lambda m: torch.jit.trace(m, X), r"torch\.jit\.trace"),
    "script": (torch.jit.script, r"torch\.jit\.script"),
    "fx": (torch.fx.symbolic_trace, r"Tracer\.is_leaf_module"),
    "grad": (lambda m: torch.func.grad(lambda x: m(x).sum())(X), r"backward\(\)"),
    "grad of vmap": (lambda m: torch.func.grad(lambda x: torch.vmap(m)(x).sum())(X), r"backward\(\)"),
    "vmap of grad": (lambda m: torch.vmap(torch.func.grad(lambda x: m(x).sum()))(X), r"backward\(\)"),
    "jvp": (lambda m: torch.func.jvp(m, (X,), (X,)), "jvp"),
    "forward mode": (dual, "dual tensor"),
}


@pytest.mark.parametrize("how", REFUSED)
@pytest.mark.parametrize("grad", [False, True])
def test_refused_with_what_to_do(as_users, model, how, grad):
    use, message = REFUSED[how]
    with torch.set_grad_enabled(grad), pytest.raises(InputError, match=message) as caught:
        use(model)
    assert str(caught.value).startswith("SpikeLinear '0': ")
    assert "to_dense" in str(caught.value)
    assert torch.jit.trace(to_dense(model), X)(X).shape == (4, 8)


def test_an_fx_tracer_that_takes_the_layer_whole(as_users, model):
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m, module_qualified_name):
            return isinstance(m, SpikeLinear) or super().is_leaf_module(m, module_qualified_name)

    traced = torch.fx.GraphModule(model, Tracer().trace(model))
    assert torch.equal(traced(X), model(X))


def test_what_keeps_working(as_users, model):
    expected = model(X)
    with torch.inference_mode():
        assert torch.equal(model(X), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(X), expected)
    with FlopCounterMode(display=False):
        assert torch.equal(model(X), expected)
    with forward_ad.dual_level():
        assert torch.equal(model(X), expected)
    assert torch.equal(model(nn.Parameter(X)), expected)
    assert torch.equal(torch.func.functional_call(model, dict(model.named_parameters()), (X,)), expected)
    own = type("Own", (torch.Tensor,), {})
    assert torch.equal(model(X.as_subclass(own)), expected)
