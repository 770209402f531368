"""The Triton backend equals the steps one by one, bit for bit: through its interpreter, and on a GPU (-m gpu)."""

import importlib
import importlib.util
from pathlib import Path

import pytest
import torch
from devices import DEVICES, INTERPRETING, run_in_interpreter
from made_activations import activations
from torch import nn

import spikebrain as sb
from spikebrain.backends import Reference, Triton
from spikebrain.backends.gpu import backend as triton
from spikebrain.backends.gpu import tuning
from spikebrain.backends.gpu.job import Job
from spikebrain.errors import AccumulatorOverflowError, ActivationError, BackendUnavailableError, InputError
from spikebrain.neuro import NEURONS

MODES = ["spike", "count"]
LARGE = [(1, 18944, 577), (2, 577, 18944), (70, 640, 1024)]  # minutes in the interpreter


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETING, reason="this is the process that it starts")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_all_of_this_through_the_interpreter():
    shared = Path(__file__).with_name("test_backends.py")
    for arguments in ([__file__], [str(shared), "-k", "triton"]):
        run_in_interpreter(*arguments)


@pytest.fixture(autouse=True)
def _untuned(monkeypatch):
    """Take the first launch settings: to time all of them for every small shape takes minutes."""
    monkeypatch.setattr(triton, "fastest_of", lambda kernels, mode, job: kernels.settings_for(job)[0])


@pytest.fixture
def _garbage():
    """Let PyTorch fill what it allocates with NaN and the largest integers."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def layer_of(mode, num_inputs, num_outputs, k=3.0, bias=False, **settings):
    neuron = settings.pop("neuron", None) or sb.AdaptiveThreshold(k=k)
    linear = nn.Linear(num_inputs, num_outputs, bias=bias)
    return sb.SpikeLinear.from_linear(linear, neuron=neuron, backend=Triton(mode), **settings)


def check(layer, x):
    """Compare with neuron, encoder, `Reference` and rescaling one after the other; the kernels must have run."""
    with torch.no_grad():
        found = layer.run_fused(x)
        assert found is not None, "there was no kernel for this"
        backend, layer.backend = layer.backend, Reference()
        expected = layer(x)
        layer.backend = backend
    assert found.dtype == x.dtype
    assert torch.equal(found, expected)


@pytest.mark.usefixtures("_garbage")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 63, 100), (3, 100, 63), (2, 577, 5), (5, 4, 577), (70, 130, 48), *LARGE], ids=str
)
def test_layer(device, mode, bias, shape):
    if shape in LARGE and device == "cpu":
        pytest.skip("minutes in the interpreter; a GPU runs it")
    num_tokens, num_inputs, num_outputs = shape
    layer = layer_of(mode, num_inputs, num_outputs, bias=bias).to(device)
    check(layer, activations(num_tokens, num_inputs).to(device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [name for name in NEURONS if NEURONS.create(name).kernel_rule() is not None])
def test_every_neuron_with_kernels(device, mode, name):
    layer = layer_of(mode, 500, 70, neuron=NEURONS.create(name), bias=True).to(device)
    for num_tokens in (1, 3):
        check(layer, activations(num_tokens, 500).to(device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("k", [0.01, 0.5, 8.0, 40.0, 1000.0])
def test_sparse_and_dense_trains(device, mode, k):
    # From almost silent to counts beyond the 16-bit totals, which then take another way.
    check(layer_of(mode, 500, 70, k=k).to(device), activations(3, 500).to(device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", MODES)
def test_all_counts_of_one_size(device, mode):
    # x / mean|x| = +-1: all counts are +-k. Every digit alone, and totals at their limit.
    for k in (*range(1, 9), 12, 15, 16, 63, 64, 127, 128, 129, 255, 256, 3570):
        x = torch.where(torch.rand(2, 100) < 0.5, -1.0, 1.0)
        check(layer_of(mode, 100, 20, k=float(k)).to(device), x.to(device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(device, mode, dtype):
    if device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("the interpreter cuts bfloat16 off instead of rounding it")
    check(layer_of(mode, 200, 90, bias=True).to(device), activations(3, 200, dtype).to(device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", MODES)
def test_memory_layouts(device, mode):
    layer = layer_of(mode, 96, 48).to(device)
    x = activations(8, 192).to(device)
    check(layer, x[:, ::2])
    check(layer, x[:, :96].reshape(2, 4, 96))
    layer.weight = layer.weight.contiguous()
    check(layer, x[:, :96])
    layer.weight[0] = 5  # a copy in another order must follow
    check(layer, x[:, :96])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", MODES)
def test_what_the_kernels_leave_to_the_steps(device, mode):
    class Own(sb.Ternary):
        def encode(self, count, num_timesteps):
            return super().encode(count.clamp(-1, 1), num_timesteps)

    class OwnNeuron(sb.AdaptiveThreshold):
        def step(self, x, state=None):
            return super().step(2 * x)

    x = activations(2, 20).to(device)
    groups = layer_of(mode, 20, 6, group_size=7)
    groups.group_size = 10**9  # more channels than the kernels hold
    for layer in (
        layer_of(mode, 20, 6, encoder=Own()),
        layer_of(mode, 20, 6, neuron=OwnNeuron()),
        layer_of(mode, 20, 6, neuron=sb.AdaptiveThreshold(k=1e6)),
        groups,
    ):
        layer.to(device)
        with torch.no_grad():
            assert layer.run_fused(x) is None
    with torch.no_grad():
        assert layer_of(mode, 20, 6).to(device).run_fused(x.double()) is None


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", MODES)
def test_groups(device, mode):
    layer, x = layer_of(mode, 50, 6, group_size=16).to(device), activations(3, 50).to(device)
    with torch.no_grad():
        found = layer(x)
        layer.backend = Reference()
        # The sums of groups are exact (test_weight_groups); as floats they are added in another order.
        torch.testing.assert_close(found, layer(x), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_finite(device, mode, value):
    layer, x = layer_of(mode, 20, 6).to(device), torch.ones(3, 20, device=device)
    x[1, 4] = value
    with torch.no_grad(), pytest.raises(ActivationError, match=r"\(1, 4\)"):
        layer(x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", MODES)
def test_where_the_ceiling_binds(device, mode):
    layer, x = layer_of(mode, 20, 6).to(device), torch.full((2, 20), 1e5, device=device)
    with torch.no_grad():
        found = layer(x)
        layer.backend = Reference()
        assert torch.equal(found, layer(x))
        layer.backend = Triton(mode)
        with pytest.raises(AccumulatorOverflowError):
            layer(x * 1e7)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU")
@pytest.mark.parametrize("mode", MODES)
def test_cuda_graph(mode):
    layer = layer_of(mode, 300, 200).cuda()
    x = activations(4, 300).cuda()
    with torch.no_grad():
        layer(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)
        for _ in range(3):
            x.copy_(activations(4, 300))
            graph.replay()
            assert torch.equal(y, layer(x))
        x[2, 7] = float("nan")
        graph.replay()
        assert y[2].isnan().all()  # nothing can raise here
        assert y[[0, 1, 3]].isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("k", [3.0, 9.0])
def test_all_launch_settings(mode, k, monkeypatch):
    # All are exact, and the fastest is found and kept.
    layer, x = layer_of(mode, 700, 1040, k).cuda(), activations(66 if mode == "count" else 2, 700).cuda()
    kernels = importlib.import_module(f"spikebrain.backends.gpu.{mode}")
    for chosen in kernels.settings_for(Job(x, layer.weight, x, 0, bounds=layer.neuron.count_bounds(700))):
        monkeypatch.setattr(triton, "fastest", lambda key, settings, run, device, chosen=chosen: chosen)
        check(layer, x)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU")
def test_tuning(monkeypatch, tmp_path):
    monkeypatch.setenv("SPIKEBRAIN_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "_known", {})
    device = torch.device("cuda")
    work = {n: torch.rand(n, n, device=device) for n in (4000, 10, 3000)}
    assert tuning.fastest("product", list(work), lambda n: work[n] @ work[n], device) == 10
    monkeypatch.setattr(tuning, "_known", {})  # another process finds it in the file
    assert tuning.fastest("product", list(work), lambda n: pytest.fail("measured again"), device) == 10


@pytest.mark.skipif(INTERPRETING, reason="the interpreter runs on a CPU")
def test_unavailable_on_a_cpu():
    with pytest.raises(BackendUnavailableError, match=r"NVIDIA GPU|not installed"):
        layer_of("spike", 4, 3)(torch.ones(1, 4))


def test_bad_mode(as_users):
    with pytest.raises(InputError, match="'dense'"):
        Triton("dense")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("bits", "has_minimum", "shape", "size"),
    [
        (4, True, (3, 100, 300), 32),
        (4, False, (2, 70, 33), 20),
        (8, True, (2, 70, 33), 20),
        (8, False, (1, 96, 70), 32),
    ],
    ids=str,
)
def test_weight_groups(device, bits, has_minimum, shape, size):
    num_tokens, num_inputs, num_outputs = shape
    groups = -(-num_inputs // size)
    low, high = (-127, 128) if bits == 8 else (0, 16) if has_minimum else (-8, 8)
    weight = torch.randint(low, high, (num_outputs, num_inputs), dtype=torch.int8)
    x = activations(num_tokens, num_inputs)

    def layer_with(scale, minimum):
        return sb.SpikeLinear(
            weight, scale, torch.zeros(num_outputs), minimum=minimum if has_minimum else None, group_size=size,
            weight_bits=bits, neuron=sb.AdaptiveThreshold(), backend=Triton("spike"),
        ).to(device)  # fmt: skip

    # With scales of 1 the floats are whole numbers, exact in any order.
    check(layer_with(torch.ones(num_outputs, groups), torch.full((num_outputs, groups), 2.0)), x.to(device))
    layer = layer_with(torch.rand(num_outputs, groups) / 100, torch.randn(num_outputs, groups) / 10)
    with torch.no_grad():
        found = layer.run_fused(x.to(device))
        layer.backend = Reference()
        torch.testing.assert_close(found, layer(x.to(device)), rtol=2e-6, atol=2e-6 * float(found.abs().max()))
