"""Kernels of training equal their plain forms: through Triton's interpreter, and on a GPU (-m gpu)."""

import importlib.util
import math

import pytest
import torch
from devices import DEVICES, INTERPRETING, run_in_interpreter
from torch.nn import functional as F

from spikebrain.models.spikingbrain.kernels import kernels_for
from spikebrain.models.spikingbrain.rope import rotary_angles, rotate
from spikebrain.models.spikingbrain.swa import float_attention

on_devices = pytest.mark.parametrize("device", DEVICES)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETING, reason="this is the process that it starts")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_all_of_this_through_the_interpreter():
    run_in_interpreter(__file__)


@on_devices
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("shape", [(3, 61), (2, 4096), (5, 9000)])
def test_divergence_and_its_gradient(device, shape, temperature):
    torch.manual_seed(0)
    found, wanted = (torch.randn(shape, device=device) * 5 for _ in range(2))
    found[0, 0] = 200  # a distribution with all its mass at one token
    kernels = kernels_for("divergence", found)
    rows, gradient = kernels.divergence(found, wanted, temperature, 0.25)
    leaf = found.double().requires_grad_()
    log_probability = (leaf / temperature).log_softmax(-1)
    target = (wanted.double() / temperature).log_softmax(-1)
    expected = F.kl_div(log_probability, target, reduction="none", log_target=True).sum(-1) * temperature**2
    (0.25 * expected.sum()).backward()
    torch.testing.assert_close(rows.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), leaf.grad, rtol=1e-4, atol=1e-6)


@on_devices
def test_divergence_keeps_nan(device):
    found, wanted = torch.randn(2, 70, device=device), torch.randn(2, 70, device=device)
    found[1, 69] = math.nan
    rows, gradient = kernels_for("divergence", found).divergence(found, wanted, 1.0, 1.0)
    assert torch.isfinite(rows).tolist() == [True, False]
    assert gradient[1].isnan().any()
    assert gradient[0].isfinite().all()


@on_devices
@pytest.mark.parametrize("position", [0, 5, 63, 64, 149])
@pytest.mark.parametrize("shape", [(2, 6, 2, 64), (3, 4, 4, 20)])
def test_attention_of_one_token(device, shape, position):
    torch.manual_seed(0)
    batch, num_heads, num_key_heads, dim = shape
    q = torch.randn(batch, num_heads, 1, dim, device=device)
    keys, values = (torch.randn(batch, num_key_heads, 150, dim, device=device) for _ in range(2))
    keys[:, :, position + 1 :] = math.nan  # columns that are not written yet
    last = torch.tensor([position], device=device)
    found = kernels_for("one_token", q, keys, values).attend(q, keys, values, last)
    seen = tuple(x[:, :, : position + 1].contiguous() for x in (keys, values))
    torch.testing.assert_close(found, float_attention((q,), seen, None), rtol=1e-5, atol=1e-5)


@on_devices
def test_rotation_is_rotated_back(device):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, 16, device=device, requires_grad=True)
    angles = rotary_angles(torch.arange(5, device=device).expand(2, 5), 16, 100.0, x.dtype)
    weight = torch.randn(x.shape, device=device)
    (rotate(x, *angles) * weight).sum().backward()
    other = x.detach().cpu().double().requires_grad_()
    (rotate(other, *(part.cpu().double() for part in angles)) * weight.cpu().double()).sum().backward()
    torch.testing.assert_close(x.grad.cpu().double(), other.grad, rtol=1e-5, atol=1e-5)
