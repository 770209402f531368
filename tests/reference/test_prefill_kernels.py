"""Kernels for many tokens equal their plain forms: through Triton's interpreter, and on a GPU (-m gpu)."""

import importlib.util

import pytest
import torch
from devices import DEVICES, INTERPRETING, run_in_interpreter

from spikebrain.errors import ActivationError, InputError
from spikebrain.models.conversion import to_spiking
from spikebrain.models.spikingbrain import (
    PrefillGraph,
    SpikingBrainCache,
    SpikingBrainForCausalLM,
    parse_layers,
    prefill,
    swa,
    tiny_7b,
    tiny_76b,
)
from spikebrain.models.spikingbrain.gla import recurrent_gla
from spikebrain.models.spikingbrain.int8 import count_queries, quantize_tokens
from spikebrain.models.spikingbrain.kernels import kernels_for
from spikebrain.models.spikingbrain.mlp import SwiGLU
from spikebrain.models.spikingbrain.norm import RMSNorm
from spikebrain.models.spikingbrain.rope import rotary_angles, rotate
from spikebrain.neuro import AdaptiveThreshold

# The interpreter truncates where a GPU rounds to bfloat16.
HALF = torch.float16 if INTERPRETING else torch.bfloat16
on_devices = pytest.mark.parametrize("device", DEVICES)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETING, reason="this is the process that it starts")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_all_of_this_through_the_interpreter():
    run_in_interpreter(__file__)


@pytest.fixture(autouse=True)
def _exact():
    """Let the plain forms multiply float32 exactly on a GPU."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    with torch.inference_mode():
        yield
    torch.set_float32_matmul_precision(before)


def plain(monkeypatch, module, run):
    """Return what runs without kernels."""
    with monkeypatch.context() as patch:
        patch.setattr(f"spikebrain.models.spikingbrain.{module}.kernels_for", lambda *_: None)
        return run()


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("shape", [(3, 64), (2, 5, 576), (1, 3584), (7, 48)])
def test_norms_and_residuals(monkeypatch, device, dtype, shape):
    norm = RMSNorm(shape[-1], 1e-5).to(device)
    norm.weight.normal_()
    x, residual = torch.randn(2, *shape, device=device).to(dtype)
    for run in (lambda: norm(x), lambda: norm.after_residual(x, residual)):
        # One unit in the last place of half precision where the order of the sum decides a rounding.
        rtol = 1e-6 if dtype == torch.float32 else 2**-7
        torch.testing.assert_close(run(), plain(monkeypatch, "norm", run), atol=1e-6, rtol=rtol)


@on_devices
def test_products_of_swiglu(monkeypatch, device):
    mlp = SwiGLU(24, 40).to(device)
    x = torch.randn(3, 7, 24, device=device)
    expected = plain(monkeypatch, "mlp", lambda: mlp(x))
    torch.testing.assert_close(mlp(x), expected)


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_rotation_rounds_as_the_plain_form(monkeypatch, device, dtype):
    for batch, dim in ((1, 64), (2, 24)):
        x = torch.randn(batch, 9, 3, dim, device=device).to(dtype)
        positions = torch.arange(9, device=device).expand(batch, -1) + 100
        angles = rotary_angles(positions, dim, 1e4, dtype)
        expected = plain(monkeypatch, "rope", lambda x=x, angles=angles: rotate(x, *angles))
        assert torch.equal(rotate(x, *angles), expected)


@on_devices
@pytest.mark.parametrize("k", [0.5, 3.0, 100.0])
def test_counts_and_codes_are_those_of_the_plain_forms(monkeypatch, device, k):
    x = torch.randn(2, 3, 9, 40, device=device).to(HALF)
    x[0, 0, 0] = 0
    x[0, 0, 1, 1:] = 0  # one channel holds it all: the largest count there can be
    x[1] *= 1000
    for run in (lambda: count_queries(x, AdaptiveThreshold(k)), lambda: quantize_tokens(x)):
        for found, expected in zip(run(), plain(monkeypatch, "int8", run), strict=True):
            assert torch.equal(found.to(expected.dtype), expected)
    assert count_queries(x, AdaptiveThreshold(k))[0].dtype == torch.int16
    assert count_queries(x, AdaptiveThreshold(2000.0))[0].dtype == torch.int32  # beyond 16 bits
    x[1, 2, 3, 4] = torch.nan
    with pytest.raises(ActivationError):
        count_queries(x, AdaptiveThreshold(k))


def gla_inputs(length, device, heads, dims, strength):
    (num_heads, num_kv), (dim, value_dim) = heads, dims
    q = torch.randn(2, length, num_heads, dim, device=device)
    k, gate = torch.randn(2, 2, length, num_kv, dim, device=device)
    v = torch.randn(2, length, num_kv, value_dim, device=device)
    return q, k, v, strength * gate - strength, torch.randn(2, num_kv, dim, value_dim, device=device)


@on_devices
@pytest.mark.parametrize(
    ("length", "heads", "dims", "strength"),
    [
        (1, (4, 2), (16, 16), 0.1),
        (330, (2, 1), (24, 80), 0.1),
        (70, (2, 1), (24, 24), 8.0),  # so strong that each difference is taken by itself
    ],
)
def test_groups_and_chunks_equal_the_recurrence(device, length, heads, dims, strength):
    kernels = kernels_for("gla", torch.ones(1, device=device))
    # Sums of strong decays are large, and differences of them only as exact as they are.
    tolerance = 2e-4 if strength < 1 else 2e-3
    q, k, v, gate, state = gla_inputs(length, device, heads, dims, strength)
    for name, divisor, apply in (("sigmoid", 1.0, torch.sigmoid), ("relu", 16.0, torch.relu), ("none", None, None)):
        log_decay = gate.clamp(max=0) if divisor is None else torch.nn.functional.logsigmoid(gate) / divisor
        left, right = (q, k) if apply is None else (apply(q), apply(k))
        expected = recurrent_gla(left, right, v, log_decay, state)
        inputs = kernels.Inputs(q, k, v, log_decay if divisor is None else gate, divisor, name)
        for found, right in zip(kernels.run(inputs, state), expected, strict=True):
            torch.testing.assert_close(found, right, atol=tolerance, rtol=tolerance)
    expected = recurrent_gla(q, k, v, log_decay)
    torch.testing.assert_close(
        kernels.run(kernels.Inputs(q, k, v, log_decay))[0], expected[0], atol=tolerance, rtol=tolerance
    )


@on_devices
def test_linear_attention_in_portions_of_groups_is_the_same_to_the_bit(device):
    kernels = kernels_for("gla", torch.ones(1, device=device))
    *inputs, state = gla_inputs(700, device, (4, 2), (16, 32), 0.5)
    inputs[3] = inputs[3].clamp(max=0)
    whole, last = kernels.run(kernels.Inputs(*inputs), state)
    parts = []
    for first in (0, 256, 512):
        o, state = kernels.run(kernels.Inputs(*(x[:, first : first + 256] for x in inputs)), state)
        parts.append(o)
    assert torch.equal(torch.cat(parts, 1), whole)
    assert torch.equal(state, last)


@on_devices
@pytest.mark.parametrize(
    ("length", "num_columns", "window", "num_sinks", "dim"),
    [
        (2, 2, 1, 0, 16),
        (100, 100, None, 0, 24),
        (100, 100, 40, 0, 24),
        (70, 140, 100, 0, 64),
        (40, 130, 17, 5, 24),
        (33, 100, None, 37, 24),
    ],
)
def test_windows_against_the_plain_form(monkeypatch, device, length, num_columns, window, num_sinks, dim):
    q = torch.randn(2, length, 4, dim, device=device).transpose(1, 2)
    k, v = torch.randn(2, 2, 2, num_columns, dim, device=device)
    arguments = {"window": window, "num_sinks": num_sinks}
    run = lambda: swa.attend((q,), (k, v), swa.float_attention, **arguments)  # noqa: E731
    torch.testing.assert_close(run(), plain(monkeypatch, "swa", run), atol=1e-5, rtol=1e-4)
    for k_spikes in (3.0, 400.0):  # the second gives counts beyond INT8
        query = count_queries(q, AdaptiveThreshold(k_spikes))
        columns = (*quantize_tokens(k), *quantize_tokens(v))
        run = lambda query=query, columns=columns: swa.attend(query, columns, swa.integer_attention, **arguments)  # noqa: E731
        torch.testing.assert_close(run(), plain(monkeypatch, "swa", run), atol=1e-5, rtol=1e-4)


@on_devices
@pytest.mark.parametrize("k", [3.0, 400.0])
def test_scores_on_spikes_are_exact(device, k):
    # Two columns, of which the second has value 1 and the first 0: the output gives the difference of their scores.
    q = torch.randn(1, 2, 64, 32, device=device)
    keys = torch.randn(1, 1, 64, 32, device=device)
    count, _ = count_queries(q, AdaptiveThreshold(k))
    codes, _ = quantize_tokens(keys)
    expected = count.long().cpu() @ codes.long().cpu().transpose(-1, -2)
    one = torch.ones(1, 1, 64, 1, device=device)
    v = torch.eye(64, 32, device=device, dtype=torch.float32)[None, None].mul(100).to(torch.int8)
    # A threshold that makes the largest score a few units, so that the weights tell all scores apart.
    unit = torch.full((1, 2, 64, 1), 32**0.5 / float(expected.abs().max()) * 4, device=device)
    o = swa.attend((count, unit), (codes, one, v, one / 100), swa.integer_attention)
    i = torch.arange(64)
    scores = (expected * (unit.cpu() * 32**-0.5)).masked_fill(i[None] > i[:, None], -torch.inf).double()
    weight = scores.softmax(-1)[..., :32]
    torch.testing.assert_close(o.cpu().double(), weight, atol=1e-6, rtol=1e-5)


@on_devices
@pytest.mark.parametrize("spiking", [False, True])
@pytest.mark.parametrize("preset", [tiny_7b, tiny_76b])
def test_a_model_in_one_piece_in_portions_and_without_kernels(monkeypatch, device, preset, spiking):
    torch.manual_seed(0)
    model = SpikingBrainForCausalLM(preset(window=40)).to(device).eval()
    if spiking:
        model = to_spiking(model)
    ids = torch.randint(256, (2, 150), device=device)
    logits = model(ids, use_cache=False).logits
    cache = SpikingBrainCache(model.settings)
    parts = [model(part, cache=cache).logits for part in ids.split(64, 1)]
    with monkeypatch.context() as patch:
        for module in ("attention", "gla", "int8", "mlp", "norm", "rope", "swa"):
            patch.setattr(f"spikebrain.models.spikingbrain.{module}.kernels_for", lambda *_: None)
        expected = model(ids, use_cache=False).logits
    if spiking:
        # A count may differ by one where float rounding differs.
        assert float((logits - expected).norm() / expected.norm()) < 0.02
        assert float((torch.cat(parts, 1) - expected).norm() / expected.norm()) < 0.02
    else:
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-4, rtol=1e-3)


@on_devices
@pytest.mark.parametrize("trained", ["gk_proj", "mlp_norm", "v_proj", "up_proj"])
def test_kernels_step_aside_for_gradients(monkeypatch, device, trained):
    with torch.inference_mode(mode=False), torch.enable_grad():
        model = SpikingBrainForCausalLM(tiny_7b(layers=parse_layers("gla,swa"))).to(device)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained in name and "layers.0" in name)
        ids = torch.randint(256, (1, 20), device=device)

        def gradients():
            model.zero_grad()
            model(ids, labels=ids).loss.backward()
            return [p.grad.clone() for p in model.parameters() if p.requires_grad]

        found = gradients()
        with monkeypatch.context() as patch:
            for module in ("attention", "gla", "int8", "mlp", "norm", "rope", "swa"):
                patch.setattr(f"spikebrain.models.spikingbrain.{module}.kernels_for", lambda *_: None)
            expected = gradients()
        assert found
        for one, right in zip(found, expected, strict=True):
            assert float(right.abs().max()) > 0
            torch.testing.assert_close(one, right, atol=1e-6, rtol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU")
@pytest.mark.parametrize("spiking", [False, True])
def test_a_graph_gives_the_same_bits_and_a_state_of_its_own(spiking):
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = SpikingBrainForCausalLM(tiny_76b(window=40)).eval()
    model = to_spiking(model) if spiking else model
    graph = PrefillGraph(model, 90)
    texts = torch.randint(256, (2, 1, 90))
    found = [graph(ids) for ids in texts]
    for ids, one in zip(texts.cuda(), found, strict=True):
        expected = prefill(model, ids)
        assert torch.equal(one.logits, expected.logits)
        more = torch.randint(256, (1, 50), device="cuda")
        assert torch.equal(model(more, cache=one.cache).logits, model(more, cache=expected.cache).logits)
    with pytest.raises(InputError, match="Make another graph"):
        graph(texts[0, :, :80])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU")
def test_a_pass_with_a_token_that_cannot_be_counted_says_where():
    model = to_spiking(SpikingBrainForCausalLM(tiny_7b()).cuda().eval())
    embeddings = torch.randn(1, 9, 64, device="cuda")
    embeddings[0, 4, 7] = torch.inf
    with pytest.raises(ActivationError, match=r"SpikeLinear 'model.layers.0.attn"):
        model(inputs_embeds=embeddings)
