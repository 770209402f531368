"""A layer in one go equals neuron, encoder, accumulation and rescaling one after the other, bit for bit."""

import signal
import subprocess
import sys
import threading

import pytest
import torch
from separate_steps import stepwise

from spikebrain import AdaptiveThreshold, RateDistortionThreshold, SpikeLinear, Ternary
from spikebrain.backends import Cpu
from spikebrain.backends.cpu import layer as cpu_layer
from spikebrain.backends.cpu import team
from spikebrain.coding import ENCODERS
from spikebrain.errors import ActivationError, EncodingError, InputError
from spikebrain.neuro import NEURONS

MODES = [Cpu("spike"), Cpu("count")]


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def make_layer(num_inputs, num_outputs, *, bias=False, dtype=torch.float32, **settings):
    return SpikeLinear.from_linear(torch.nn.Linear(num_inputs, num_outputs, bias=bias), **settings).to(dtype)


def activations(*shape, dtype=torch.float32):
    """Heavy tails, as in a language model: some counts beyond INT8."""
    return (torch.randn(shape) ** 5).to(dtype)


def assert_same(layer, x):
    expected = stepwise(layer, x)
    assert torch.equal(layer(x), expected)
    result = layer.run_fused(x)
    if layer.backend == Cpu("count") and layer.in_features == 1:
        assert result is None  # torch._int_mm does not stand one input
        return
    assert result is not None, "the kernel did not run"
    assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
    assert torch.equal(result, expected)


@pytest.mark.parametrize("backend", MODES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("num_inputs", "num_outputs"), [(1, 1), (1, 63), (63, 1), (63, 100), (100, 577), (577, 63)], ids=str
)
@pytest.mark.parametrize("tokens", [(), (1,), (2,), (3, 7), (40,)], ids=str)
def test_equals_the_separate_steps(backend, dtype, num_inputs, num_outputs, tokens):
    layer = make_layer(num_inputs, num_outputs, bias=num_outputs % 2 == 1, dtype=dtype, backend=backend)
    x = activations(*tokens, num_inputs, dtype=dtype)
    if len(tokens) == 2:
        x[0] = 0  # silent tokens
    assert_same(layer, x)


@pytest.mark.parametrize("backend", MODES, ids=str)
@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(18944, 40), (40, 40000), (2100, 2100)], ids=str)
@pytest.mark.parametrize("num_tokens", [1, 3])
def test_wide_layers(backend, num_inputs, num_outputs, num_tokens):
    assert_same(make_layer(num_inputs, num_outputs, bias=True, backend=backend), activations(num_tokens, num_inputs))


@pytest.mark.parametrize("backend", MODES, ids=str)
@pytest.mark.parametrize("code", [name for name in ENCODERS if ENCODERS.create(name).lossless])
def test_every_code(backend, code):
    layer = make_layer(100, 63, backend=backend, encoder=ENCODERS.create(code))
    assert_same(layer, torch.randn(5, 100))


@pytest.mark.parametrize("backend", MODES, ids=str)
@pytest.mark.parametrize("name", [name for name in NEURONS if NEURONS.create(name).cpu_rule() is not None])
def test_every_neuron_with_kernels(backend, name):
    layer = make_layer(577, 63, bias=True, backend=backend, neuron=NEURONS.create(name))
    for num_tokens in (1, 2, 40):
        x = activations(num_tokens, 577)
        x[-1] = 0
        assert_same(layer, x)


@pytest.mark.parametrize("backend", MODES, ids=str)
def test_extreme_counts(backend):
    # One channel of 7000 holds everything: mean = x / 7000, so its count is 3 * 7000 = 21000, beyond INT8; the
    # weights are -127 or 127 alternately. A count of exactly 2^k, and its neighbours, cross digits of every size.
    layer = make_layer(7000, 4, backend=backend)
    x = torch.zeros(40, 7000)
    x[0, 17] = 5.0
    for token in range(1, 40):
        x[token, :64] = torch.randint(-(2**14), 2**14, (64,)).float()
    assert_same(layer, x)
    fixed = make_layer(90, 7, backend=backend, neuron=AdaptiveThreshold(k=1000.0, floor=1.0, ceiling=1.0))
    counts = torch.tensor([n + d for bit in range(19) for n in (2**bit, -(2**bit)) for d in (-1, 0, 1)])[:90]
    assert_same(fixed, counts.float()[None])
    # The same where counts are chosen: those beyond the table are compared with their neighbours.
    for prices in ({"spike_price": 8.0}, {"spike_price": 0.5, "read_price": 1000.0}):
        chosen = RateDistortionThreshold(k=1000.0, floor=1.0, ceiling=1.0, **prices)
        assert_same(make_layer(90, 7, backend=backend, neuron=chosen), counts.float()[None] * 0.75)


@pytest.mark.parametrize("backend", MODES, ids=str)
def test_all_silent_and_memory_layout(backend):
    layer = make_layer(100, 63, bias=True, backend=backend)
    assert torch.equal(layer.run_fused(torch.zeros(3, 100)), layer.bias.expand(3, 63))
    wide = torch.randn(6, 200)
    assert_same(layer, wide[:, ::2])
    assert_same(layer, torch.randn(100, 4).t())


@pytest.mark.parametrize("backend", MODES, ids=str)
def test_what_is_left_to_the_separate_steps(backend):
    class OwnCode(Ternary):
        def encode(self, count, num_timesteps):
            return super().encode(count.clamp(-1, 1), num_timesteps)

    class OwnNeuron(AdaptiveThreshold):
        def step(self, x, state=None):
            return super().step(2 * x)

    class OtherName(AdaptiveThreshold):
        """Another class, but with its parent's `step`: the kernels are those of that."""

    x = torch.randn(2, 10)
    assert_same(make_layer(10, 4, backend=backend, neuron=OtherName(k=2.0)), x)
    assert make_layer(10, 4, backend=backend, encoder=OwnCode()).run_fused(x) is None
    assert make_layer(10, 4, backend=backend, neuron=OwnNeuron()).run_fused(x) is None
    grouped = make_layer(10, 4, backend=backend, group_size=5)
    if backend == Cpu("spike"):
        assert_same(grouped, x)
    else:
        assert grouped.run_fused(x) is None
    layer = make_layer(10, 4, backend=backend)
    assert layer.run_fused(x.double()) is None
    for shape in ((0, 10), (2, 0, 10)):
        assert layer.run_fused(torch.empty(shape)) is None
        assert layer(torch.empty(shape)).shape == (*shape[:-1], 4)
    assert make_layer(10, 0, backend=backend)(x).shape == (2, 0)
    assert torch.equal(layer(x.double()), stepwise(layer, x.double()))


@pytest.mark.parametrize("backend", MODES, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 5])
def test_faults_have_their_message(backend, num_tokens):
    layer = make_layer(30, 4, backend=backend, name="up_proj")
    good = torch.randn(num_tokens, 30)
    expected = layer(good)
    for bad in (float("nan"), float("inf"), -float("inf")):
        x = good.clone()
        x[-1, 29] = bad
        with pytest.raises(ActivationError, match=r"up_proj.*expected finite"):
            layer(x)
    many = AdaptiveThreshold(ceiling=1e-5)
    with pytest.raises(ActivationError, match="counts that fit 32 bits"):
        make_layer(30, 4, backend=backend, neuron=many)(good * 1e12)
    with pytest.raises(EncodingError, match="num_timesteps"):
        make_layer(30, 4, backend=backend, neuron=many, encoder=Ternary())(good * 1e3)
    # A refused call leaves nothing behind.
    assert torch.equal(layer(good), expected)


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 9])
def test_threads_do_not_matter(num_tokens, monkeypatch):
    layer, x = make_layer(577, 300, backend=Cpu()), activations(num_tokens, 577)
    expected = stepwise(layer, x)
    before = torch.get_num_threads()
    try:
        for num_threads in (1, 2, 3, 16):
            torch.set_num_threads(num_threads)
            assert torch.equal(layer.run_fused(x), expected)
        # Without OpenMP, Python's threads do the work.
        monkeypatch.setattr(team, "_openmp", lambda: None)
        torch.set_num_threads(2)
        assert torch.equal(layer.run_fused(x), expected)
    finally:
        torch.set_num_threads(before)


def test_several_callers_at_once():
    layer, x = make_layer(577, 300, backend=Cpu()), activations(1, 577)
    expected = stepwise(layer, x)
    wrong = []

    def call():
        with torch.no_grad():
            wrong.extend(1 for _ in range(50) if not torch.equal(layer(x), expected))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_kernel_runs(monkeypatch):
    layer = make_layer(8, 8, backend=Cpu())
    monkeypatch.setattr(cpu_layer.team, "run", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        layer(torch.randn(1, 8))


def test_an_unknown_mode():
    with pytest.raises(InputError, match='"spike" or "count"'):
        Cpu("dense")


def test_recorded_layers_run_on_events(monkeypatch):
    layer, x, modes = make_layer(20, 8), torch.randn(100, 20), []
    for name in ("fused", "_accumulate"):
        exact = getattr(Cpu, name)

        def noted(self, *rest, exact=exact, name=name, **options):
            modes.append((name, self.mode))
            return exact(self, *rest, **options)

        monkeypatch.setattr(Cpu, name, noted)
    layer(x)
    layer.observers.append(lambda layer, step: None)
    layer(x)
    assert modes == [("fused", "count"), ("_accumulate", "spike")]
    # What would run unobserved, for a token of a call of 100 and for one alone, even while somebody observes.
    assert layer.run_fused(x[:1], 100) is not None
    assert layer.run_fused(x[:1]) is not None
    assert modes[2:] == [("fused", "count"), ("fused", "spike")]


GUARDED_LAYER = """
import ctypes, mmap
import numpy as np, torch
import spikebrain as sb
from spikebrain.backends import Cpu

page = mmap.PAGESIZE
memory = mmap.mmap(-1, 5 * page)  # five input channels, one page of weights each
rows = np.frombuffer(memory, np.int8).reshape(5, page)
rows[:] = np.arange(5, dtype=np.int8)[:, None]
layer = sb.SpikeLinear(torch.ones(page, 5, dtype=torch.int8), torch.ones(page, 1), backend=Cpu("MODE"))
layer.weight = torch.from_numpy(rows).t()
libc = ctypes.CDLL(None, use_errno=True)
for silent in (0, 2, 4):
    start = ctypes.c_void_p(rows.ctypes.data + silent * page)
    assert libc.mprotect(start, page, 0) == 0  # any access ends the process
with torch.no_grad():
    # mean 1, threshold 1/3: counts 6 and -9; (6 * 1 - 9 * 3) / 3 = -7.
    y = layer.run_fused(torch.tensor([[0.0, 2.0, 0.0, -3.0, 0.0]]))
print(round(float(y.min()), 4), round(float(y.max()), 4))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory protection is set through Linux' libc")
def test_no_weight_of_a_silent_channel_is_read():
    run = subprocess.run(
        [sys.executable, "-c", GUARDED_LAYER.replace("MODE", "spike")], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout.split()) == (0, ["-7.0", "-7.0"]), run.stderr
    # The guard works: the other mode reads them all.
    run = subprocess.run([sys.executable, "-c", GUARDED_LAYER.replace("MODE", "count")], check=False)
    assert run.returncode == -signal.SIGSEGV
