"""Mixture of experts: grouped computation against all experts on all tokens, silent experts, load, spikes."""

import pytest
import torch

from spikebrain import SpikeSettings, to_spiking
from spikebrain.backends import Cpu
from spikebrain.models.spikingbrain import tiny_76b
from spikebrain.models.spikingbrain.mlp import SwiGLU
from spikebrain.models.spikingbrain.moe import MixtureOfExperts, load_balancing_loss


def build(num_experts_per_token=1, num_shared=1, num_experts=4):
    sizes = {"num_experts": num_experts, "num_experts_per_token": num_experts_per_token, "num_shared": num_shared}
    return MixtureOfExperts(tiny_76b(hidden_size=8, num_heads=2, head_dim=4, intermediate_size=12, **sizes))


def all_experts(moe, x):
    """Run every expert on every token, and weigh."""
    probability = moe.router(x).softmax(-1)
    chosen = torch.zeros_like(probability).scatter(-1, probability.topk(moe.num_chosen, -1).indices, 1.0)
    routed = sum((probability * chosen)[..., i, None] * expert(x) for i, expert in enumerate(moe.experts))
    return routed + sum(expert(x) for expert in moe.shared)


def test_swiglu_by_hand():
    mlp = SwiGLU(1, 1)
    for layer, value in ((mlp.gate_proj, 1.0), (mlp.up_proj, 3.0), (mlp.down_proj, 2.0)):
        torch.nn.init.constant_(layer.weight, value)
    # silu(2) = 2 / (1 + e^-2) = 1.761594; times 6, times 2.
    assert float(mlp(torch.tensor([2.0]))) == pytest.approx(21.139130, rel=1e-6)


@pytest.mark.parametrize(("per_token", "num_shared"), [(1, 1), (2, 0), (3, 2), (4, 1)])
@pytest.mark.parametrize("shape", [(2, 7), (1, 1), (3, 0)])
def test_grouped_equals_all_experts(per_token, num_shared, shape):
    moe, x = build(per_token, num_shared), torch.randn(*shape, 8, requires_grad=True)
    y, _ = moe(x)
    expected = all_experts(moe, x)
    torch.testing.assert_close(y, expected, atol=1e-6, rtol=1e-5)
    if x.numel():
        ours, wanted = (torch.autograd.grad(o.square().sum(), [x, moe.router.weight]) for o in (y, expected))
        for a, b in zip(ours, wanted, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_only_routed_tokens_are_computed_and_silent_experts_never():
    moe = build(num_experts_per_token=1)
    seen = {}
    for i, expert in enumerate(moe.experts):
        expert.register_forward_pre_hook(lambda _, args, i=i: seen.__setitem__(i, len(args[0])))
    torch.nn.init.zeros_(moe.router.weight)
    moe.router.weight.data[1, 0], moe.router.weight.data[2, 0] = 5.0, -5.0  # by the sign of the first channel
    x = torch.randn(1, 10, 8)
    x[0, :, 0] = torch.tensor([1.0] * 7 + [-1.0] * 3)
    moe(x)
    assert seen == {1: 7, 2: 3}
    moe(x)[0].sum().backward()
    assert moe.experts[0].up_proj.weight.grad is None
    assert moe.experts[1].up_proj.weight.grad is not None


def test_on_spikes_as_well():
    moe, x = build(2), torch.randn(2, 5, 8)
    spiking = to_spiking(moe, SpikeSettings(layers=("experts.*", "shared.*")))
    torch.testing.assert_close(spiking(x)[0], all_experts(spiking, x), atol=1e-5, rtol=1e-5)


def test_load_balancing_loss_by_hand():
    even = torch.full((4, 2), 0.5)
    assert float(load_balancing_loss(even, torch.tensor([[0], [1], [0], [1]]))) == pytest.approx(1.0)
    # All to expert 0, with probability 3/4: 2 * (1 * 3/4 + 0 * 1/4).
    skewed = torch.tensor([[0.75, 0.25]] * 3)
    assert float(load_balancing_loss(skewed, torch.zeros(3, 1, dtype=torch.int64))) == pytest.approx(1.5)


def test_padding_is_no_load():
    moe, x = build(), torch.randn(2, 6, 8)
    valid = torch.tensor([[False] * 4 + [True] * 2, [True] * 6])
    alone = torch.cat([x[0, 4:], x[1]])[None]
    torch.testing.assert_close(moe(x, valid)[1], moe(alone)[1])
    assert float(moe(x, torch.zeros_like(valid))[1]) == 0.0


@pytest.mark.parametrize(
    ("per_token", "num_shared", "equal"), [(1, 1, False), (3, 2, False), (2, 1, True), (2, 0, False)]
)
@pytest.mark.parametrize("num_tokens", [0, 1, 7])
@torch.no_grad()
def test_experts_together_equal_experts_one_by_one(monkeypatch, per_token, num_shared, equal, num_tokens):
    sizes = {"num_experts_per_token": per_token, "num_shared": num_shared, "num_experts": 4, "equal_experts": equal}
    config = tiny_76b(hidden_size=16, num_heads=2, head_dim=8, intermediate_size=24, **sizes)
    moe = to_spiking(MixtureOfExperts(config), SpikeSettings(layers=("*_proj",), backend=Cpu())).eval()
    x, together = torch.randn(1, num_tokens, 16), []
    run = MixtureOfExperts._together
    monkeypatch.setattr(MixtureOfExperts, "_together", lambda *given: together.append(run(*given)) or together[-1])
    found = moe(x)[0]
    assert (together[0] is not None) == (num_tokens > 0)
    monkeypatch.setattr(MixtureOfExperts, "_together", lambda *given: None)
    torch.testing.assert_close(found, moe(x)[0], rtol=1e-6, atol=1e-6)
