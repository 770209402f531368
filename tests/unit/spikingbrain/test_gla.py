"""Gated linear attention: by hand, chunks against the recurrence, gradients, and the call of the library's kernels."""

import math
import types

import pytest
import torch

from spikebrain.errors import BackendUnavailableError
from spikebrain.models.spikingbrain import fla_kernels
from spikebrain.models.spikingbrain.fla_kernels import few_launch_settings
from spikebrain.models.spikingbrain.gla import chunked_gla, gla, recurrent_gla


def random_inputs(length, *, dtype=torch.float32, kind="7b", heads=(4, 2), dims=(8, 6)):
    """Inputs as the models make them: ReLU and a low-rank gate, or sigmoid and a tied gate."""
    (num_heads, num_kv), (dim, value_dim) = heads, dims
    q = torch.randn(2, length, num_heads, dim, dtype=dtype)
    k = torch.randn(2, length, num_kv, dim, dtype=dtype)
    v = torch.randn(2, length, num_kv, value_dim, dtype=dtype)
    state = torch.randn(2, num_kv, dim, value_dim, dtype=dtype)
    if kind == "76b":
        return q.sigmoid(), k.sigmoid(), v, torch.nn.functional.logsigmoid(-k), state
    return q.relu(), k.relu(), v, torch.nn.functional.logsigmoid(torch.randn_like(k)) / 16, state


@pytest.mark.parametrize("run", [recurrent_gla, chunked_gla, gla])
def test_by_hand(run):
    # One head of one channel, D^-0.5 = 1. Decay 1/2, k = 1, v = 4, 2, 1: S = 4, then 2 + 2 = 4, then 2 + 1 = 3.
    q, k = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    v, g = torch.tensor([4.0, 2.0, 1.0]).view(1, 3, 1, 1), torch.full((1, 3, 1, 1), math.log(0.5))
    o, state = run(q, k, v, g)
    torch.testing.assert_close(o.flatten(), torch.tensor([4.0, 8.0, 9.0]))
    torch.testing.assert_close(state.flatten(), torch.tensor([3.0]))
    # From S_0 = 8: S = 4 + 4 = 8 after the first token.
    o, _ = run(q, k, v, g, torch.full((1, 1, 1, 1), 8.0))
    assert float(o[0, 0]) == pytest.approx(8.0)


def test_query_heads_in_a_row_share_a_state():
    q, k, v, g, state = random_inputs(9)
    o, last = recurrent_gla(q, k, v, g, state)
    repeated = [x.repeat_interleave(2, 2) for x in (k, v, g)]
    separate, states = recurrent_gla(q, *repeated, state.repeat_interleave(2, 1))
    torch.testing.assert_close(o, separate)
    torch.testing.assert_close(last.repeat_interleave(2, 1), states)


@pytest.mark.parametrize("kind", ["7b", "76b"])
@pytest.mark.parametrize("chunk_size", [1, 7, 16, 64])
@pytest.mark.parametrize("length", [1, 63, 100])
def test_chunks_equal_the_recurrence(length, chunk_size, kind):
    *inputs, state = random_inputs(length, kind=kind)
    expected, expected_state = recurrent_gla(*inputs, state)
    o, last = chunked_gla(*inputs, state, chunk_size)
    torch.testing.assert_close(o, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(last, expected_state, atol=1e-5, rtol=1e-5)


def test_text_in_parts_and_in_more_than_one_segment(monkeypatch):
    monkeypatch.setattr("spikebrain.models.spikingbrain.gla._SEGMENT", 32)
    *inputs, state = random_inputs(100)
    expected, expected_state = recurrent_gla(*inputs, state)
    outputs = []
    for part in zip(*(x.split([1, 62, 1, 36], 1) for x in inputs), strict=True):
        o, state = gla(*part, state, chunk_size=7)
        outputs.append(o)
    torch.testing.assert_close(torch.cat(outputs, 1), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, expected_state, atol=1e-5, rtol=1e-5)


def test_no_tokens_leave_the_state():
    *inputs, state = random_inputs(0)
    for run in (recurrent_gla, chunked_gla):
        o, last = run(*inputs, state)
        assert o.shape == (2, 0, 4, 6)
        assert torch.equal(last, state)


def test_strong_decay_does_not_overflow():
    # exp(-1000) is 0: each token sees itself alone. The factorisation exp(G) * exp(-G) would be infinite.
    q, k, v, _, _ = random_inputs(40)
    g = torch.full_like(k, -1000.0)
    o, state = chunked_gla(q, k, v, g)
    alone = torch.stack([recurrent_gla(q[:, t : t + 1], k[:, t : t + 1], v[:, t : t + 1], g[:, :1])[0][:, 0]
                         for t in range(40)], 1)  # fmt: skip
    torch.testing.assert_close(o, alone)
    torch.testing.assert_close(state, k[:, -1, :, :, None] * v[:, -1, :, None])


@pytest.mark.parametrize("chunk_size", [1, 4, 16])
def test_gradients_equal_those_of_the_recurrence(chunk_size):
    *inputs, state = random_inputs(11, dtype=torch.float64, dims=(3, 2))
    tensors = [x.requires_grad_() for x in (*inputs, state)]
    weight, state_weight = torch.randn(2, 11, 4, 2, dtype=torch.float64), torch.randn(2, 2, 3, 2, dtype=torch.float64)

    def gradients(run):
        o, last = run(*tensors)
        return torch.autograd.grad((o * weight).sum() + (last * state_weight).sum(), tensors)

    found = gradients(lambda *x: chunked_gla(*x, chunk_size))
    for ours, expected in zip(found, gradients(recurrent_gla), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-12, rtol=1e-10)


def test_gradients_equal_finite_differences():
    *inputs, state = random_inputs(5, dtype=torch.float64, heads=(2, 1), dims=(2, 2))
    tensors = [x.requires_grad_() for x in (*inputs, state)]
    assert torch.autograd.gradcheck(lambda *x: chunked_gla(*x, 3), tensors)


def test_half_precision_keeps_a_float32_state():
    *inputs, state = random_inputs(20)
    expected, _ = gla(*(x.bfloat16().float() for x in inputs), state)
    o, last = gla(*(x.bfloat16() for x in inputs), state)
    assert (o.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(o.float(), expected, atol=0, rtol=2**-8)  # one rounding, at the end


def test_autocast_does_not_reach_the_state():
    *inputs, state = random_inputs(20)
    expected = gla(*inputs, state)
    with torch.autocast("cpu", torch.bfloat16):
        found = gla(*inputs, state)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_kernels_of_the_library_that_cannot_run():
    *inputs, _ = random_inputs(3)
    with pytest.raises(BackendUnavailableError, match=r'kernel "fla" cannot run.*Use kernel="ours"'):
        gla(*inputs, kernel="fla")


@pytest.mark.parametrize(
    ("device", "dim", "reason"),
    [("cpu", 64, "need a CUDA GPU"), ("cuda", 8, "16 channels or more, not of 8"), ("cuda", 16, None)],
)
def test_why_the_library_cannot_run(monkeypatch, device, dim, reason):
    monkeypatch.setattr(fla_kernels.importlib.util, "find_spec", lambda name: object())
    found = fla_kernels.why_unavailable(torch.device(device), dim)
    assert found == reason or (reason is not None and reason in found)


@pytest.mark.parametrize("has_head_first", [True, False])
@pytest.mark.parametrize("length", [1, 5])
def test_arguments_of_the_library(monkeypatch, length, has_head_first):
    """A stand-in for the library, that computes with the recurrence and looks at what it is given."""
    *inputs, state = random_inputs(length)
    called = []

    def compute(q, k, v, g, scale, initial_state, output_final_state, head_first):
        assert q.shape[:3] == k.shape[:3] == v.shape[:3] == g.shape[:3] == (2, length, 4)
        assert (scale, output_final_state) == (8**-0.5, True)
        called.append(head_first)
        return recurrent_gla(q, k, v, g, initial_state)

    if has_head_first:

        def chunk(q, k, v, g, scale=None, initial_state=None, output_final_state=False, head_first=True):
            return compute(q, k, v, g, scale, initial_state, output_final_state, head_first)

        def recurrent(q, k, v, gk=None, scale=None, initial_state=None, output_final_state=False, head_first=True):
            return compute(q, k, v, gk, scale, initial_state, output_final_state, head_first)

    else:

        def chunk(q, k, v, g, scale=None, initial_state=None, output_final_state=False):
            return compute(q, k, v, g, scale, initial_state, output_final_state, None)

        def recurrent(q, k, v, gk=None, scale=None, initial_state=None, output_final_state=False):
            return compute(q, k, v, gk, scale, initial_state, output_final_state, None)

    library = types.SimpleNamespace(chunk_gla=chunk, fused_recurrent_gla=recurrent)
    monkeypatch.setattr(fla_kernels, "why_unavailable", lambda device, dim: None)
    monkeypatch.setattr(fla_kernels, "_library", lambda: library)
    o, last = gla(*inputs, state, kernel="fla")
    expected, expected_state = recurrent_gla(*inputs, state)
    torch.testing.assert_close(o, expected)
    torch.testing.assert_close(last, expected_state)
    assert called == [False if has_head_first else None]
    gla(*inputs, state, kernel="auto")  # float32: ours
    gla(*inputs, state, kernel="ours")
    assert len(called) == 1
    gla(*(x.bfloat16() for x in inputs), state, kernel="auto")
    assert len(called) == 2


def test_few_launch_settings():
    triton = pytest.importorskip("triton")
    configs = [triton.Config({"B": b}, num_warps=warps) for b in (1, 2, 3) for warps in (2, 4)]

    def tuned(some):
        return triton.runtime.autotuner.Autotuner(triton.jit(_kernel), ["x", "n"], some, [], None, None)

    with few_launch_settings():
        found, alone = tuned(configs).configs, tuned(configs[:1]).configs
    assert [(config.kwargs["B"], config.num_warps) for config in found] == [(1, 4), (3, 4)]
    assert alone == configs[:1]
    assert tuned(configs).configs == configs


def _kernel(x, n):
    pass
