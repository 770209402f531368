"""Every backend equals the reference bit for bit; the reference equals Python's own integers."""

import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from spikebrain import Binary, SpikeTrain, Ternary, decode
from spikebrain.backends import BACKENDS, Backend, Chip, Cpu, Reference, Triton, auto, reference
from spikebrain.chip import load_description
from spikebrain.coding import ENCODERS
from spikebrain.errors import AccumulatorOverflowError, BackendUnavailableError, InputError
from spikebrain.testing import check_backend

# A chip whose packets hold any count: the presets' refuse some that are tried here.
ASYNC = load_description("async-45nm")
WIDE = replace(ASYNC, packet=replace(ASYNC.packet, payload_bits=64))
# Every registered backend, and the modes of those that have several.
EVERY = {name: BACKENDS.create(name) for name in BACKENDS} | {
    "chip": Chip(WIDE),
    "chip-streamed": Chip(WIDE, stream=True),
    "cpu-count": Cpu("count"),
    "triton-count": Triton("count"),
}
# test_triton.py runs this file again with Triton's interpreter, where Triton is available on a CPU.
ALL = {name: backend for name, backend in EVERY.items() if backend.why_unavailable(torch.device("cpu")) is None}
OTHERS = [name for name in ALL if name != "reference"]


def random_weight(num_outputs, num_inputs, input_rows=True):
    weight = torch.randint(-127, 128, (num_outputs, num_inputs), dtype=torch.int8)
    return weight.t().contiguous().t() if input_rows else weight


def random_counts(*shape, largest=20):
    """Counts as a neuron gives them: many zeros and ones, a few large."""
    return (torch.randn(shape) ** 3).mul(largest / 8).round().clamp(-largest, largest).int()


def by_hand(train, weight):
    """Eq. 23 in Python integers, spike by spike."""
    value = decode(train).reshape(-1, weight.shape[1]).tolist()
    rows = weight.tolist()
    return [[sum(c * w for c, w in zip(counts, row, strict=True)) for row in rows] for counts in value]


def test_reference_equals_python():
    weight = torch.randint(-128, 128, (7, 11), dtype=torch.int8)
    for name in ENCODERS:
        count = random_counts(5, 11)
        encoder, num_timesteps = ENCODERS.create(name).fitted(int(count.min()), int(count.max()))
        train = encoder.encode(count, num_timesteps)
        assert Reference().accumulate(train, weight).tolist() == by_hand(train, weight)


@pytest.mark.parametrize(("num_tokens", "num_inputs", "num_outputs"), [(3, 7, 5), (0, 7, 5), (3, 0, 5), (3, 7, 0)])
def test_reference_without_integer_matrix_product(monkeypatch, num_tokens, num_inputs, num_outputs):
    # On a GPU the reference multiplies elementwise; here, the same code on the CPU.
    plane = torch.randint(-1, 2, (num_tokens, num_inputs))
    weight = torch.randint(-128, 128, (num_outputs, num_inputs))
    expected = plane @ weight.t()
    elsewhere = SimpleNamespace(type="cuda")
    monkeypatch.setattr(torch.Tensor, "device", elsewhere)
    result = reference._product(plane, weight)
    monkeypatch.undo()
    assert torch.equal(result, expected)


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("code", list(ENCODERS))
@pytest.mark.parametrize(
    ("num_tokens", "num_inputs", "num_outputs"),
    [(1, 1, 1), (1, 63, 100), (3, 100, 63), (2, 577, 5), (5, 4, 577), (0, 8, 8), (3, 0, 4), (3, 4, 0)],
    ids=str,
)
def test_equals_reference(backend, code, num_tokens, num_inputs, num_outputs):
    count = random_counts(num_tokens, num_inputs)
    low, high = (int(count.min()), int(count.max())) if count.numel() else (0, 0)
    encoder, num_timesteps = ENCODERS.create(code).fitted(low, high)
    train = encoder.encode(count, num_timesteps)
    weight = random_weight(num_outputs, num_inputs)
    result = ALL[backend].accumulate(train, weight)
    assert result.dtype == torch.int32
    assert torch.equal(result, Reference().accumulate(train, weight))


@pytest.mark.parametrize("backend", list(ALL))
@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(18944, 3), (3, 18944)])
def test_wide_layers(backend, num_inputs, num_outputs):
    count = random_counts(2, num_inputs)
    encoder, num_timesteps = ENCODERS.create("bitwise-bidirectional").fitted(int(count.min()), int(count.max()))
    weight = random_weight(num_outputs, num_inputs)
    # A float64 product of these integers is exact: far below 2^53.
    expected = (count.double() @ weight.double().t()).int()
    assert torch.equal(ALL[backend].accumulate(encoder.encode(count, num_timesteps), weight), expected)


@pytest.mark.parametrize("backend", OTHERS)
def test_any_train_memory_and_sum(backend):
    check_backend(ALL[backend])


@pytest.mark.parametrize("backend", list(ALL))
def test_zero_point_keeps_the_product_exact(backend):
    # W (s - z) = W s - z * rowsum(W): REFERENCE section 2.
    count = torch.tensor([[-3, 0, 2], [1, -1, 0]])
    weight = torch.tensor([[1, 2, 3], [-127, 127, 0]], dtype=torch.int8)
    train = Binary(zero_point=3).encode(count, 5)
    # [-3 + 6, 381], [1 - 2, -127 - 127].
    assert ALL[backend].accumulate(train, weight).tolist() == [[3, 381], [-1, -254]]


@pytest.mark.slow
@pytest.mark.parametrize("backend", list(ALL))
def test_overflow_is_detected_never_wrapped(backend):
    backend = ALL[backend]
    spikes = torch.ones(1, 2, 4, dtype=torch.int8)
    weight = torch.tensor([[127, 127, 127, 127], [127, -127, 127, -127]], dtype=torch.int8)
    # 4 * 127 * w fits 32 bits up to w = 4227330; the second output is 0 whatever w.
    fits = backend.accumulate(SpikeTrain(spikes, torch.tensor([4227330])), weight)
    assert fits.tolist() == [[508 * 4227330, 0]] * 2
    for w in (4227331, -4227331, 2**32, 2**40):
        with pytest.raises(AccumulatorOverflowError, match=rf"got {508 * w} at \(token, output\) \(0, 0\)"):
            backend.accumulate(SpikeTrain(spikes, torch.tensor([w])), weight)
    assert backend.accumulate(SpikeTrain(spikes, torch.tensor([2**40])), weight[1:]).tolist() == [[0], [0]]
    with pytest.raises(AccumulatorOverflowError, match="64 bits"):
        backend.accumulate(SpikeTrain(spikes, torch.tensor([2**60])), weight)


def test_threads_do_not_matter():
    count, weight = random_counts(7, 300), random_weight(500, 300)
    encoder, num_timesteps = ENCODERS.create("signed-digit").fitted(int(count.min()), int(count.max()))
    train = encoder.encode(count, num_timesteps)
    before = torch.get_num_threads()
    results = []
    try:
        for num_threads in (1, 2, 3, 16):
            torch.set_num_threads(num_threads)
            results.append(Cpu().accumulate(train, weight))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


GUARDED_WEIGHTS = """
import ctypes, mmap
import numpy as np, torch
from spikebrain import Ternary
from spikebrain.backends import Cpu

page = mmap.PAGESIZE
memory = mmap.mmap(-1, 5 * page)  # five input channels, one page of weights each
rows = np.frombuffer(memory, np.int8).reshape(5, page)
rows[:] = np.arange(5, dtype=np.int8)[:, None]
weight = torch.from_numpy(rows).t()
libc = ctypes.CDLL(None, use_errno=True)
start = rows.ctypes.data
for silent in (0, 2, 4):
    assert libc.mprotect(ctypes.c_void_p(start + silent * page), page, 0) == 0  # any access ends the process
train = Ternary().encode(torch.tensor([[0, 2, 0, -3, 0], [0, 0, 0, 1, 0]], dtype=torch.int32), 3)
total = Cpu().accumulate(train, weight)
print(total[:, 0].tolist(), total.unique(dim=1).shape[1])
{last}
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory protection is set through Linux' libc")
def test_cpu_backend_reads_no_weight_of_a_silent_channel():
    # Weights of silent channels lie in pages that cannot be read. 2 * 1 - 3 * 3 = -7, and 1 * 3 = 3.
    run = subprocess.run(
        [sys.executable, "-c", GUARDED_WEIGHTS.format(last="")], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout.strip()) == (0, "[-7, 3] 1"), run.stderr
    # The guard works: reading one such weight kills the process.
    read = GUARDED_WEIGHTS.format(last="int(weight[0, 2])")
    assert subprocess.run([sys.executable, "-c", read], capture_output=True, check=False).returncode == -signal.SIGSEGV


def test_compiled_code_runs():
    kernel = sys.modules["spikebrain.backends.cpu.backend"]._add_tokens
    Cpu().accumulate(Ternary().encode(torch.tensor([[1]]), 1), torch.ones(1, 1, dtype=torch.int8))
    assert kernel.signatures, "the numba kernel was not compiled: something else computed the result"


def test_auto():
    cpu, small, large = torch.device("cpu"), 576 * 1536, 3584 * 3584
    assert auto(cpu, 1, small) == auto(cpu, 1, large) == auto(cpu, 16, small) == Cpu("spike")
    assert auto(cpu, 10**6, small) == auto(cpu, 16, large) == Cpu("count")
    assert auto(cpu, 10**6, large, events_only=True) == Cpu("spike")
    gpu = torch.device("cuda")
    if Triton().why_unavailable(gpu) is None:
        assert (auto(gpu, 1, large), auto(gpu, 10**6, large)) == (Triton("spike"), Triton("count"))
        assert auto(gpu, 10**6, large, events_only=True) == Triton("spike")
    else:
        assert isinstance(auto(gpu, 1, large), Reference)


def test_bad_input(as_users):
    train, weight = Ternary().encode(torch.tensor([[1, 0, 2]]), 2), torch.ones(4, 3, dtype=torch.int8)
    for backend in ALL.values():
        with pytest.raises(InputError, match="int8 weights"):
            backend.accumulate(train, weight.float())
        with pytest.raises(InputError, match=r"\[T, \.\.\., 2\]"):
            backend.accumulate(train, weight[:, :2])
        with pytest.raises(InputError, match="meta"):
            backend.accumulate(train, weight.to("meta"))


def test_an_unavailable_backend_raises():
    class Absent(Backend):
        def why_unavailable(self, device):
            return "this machine has no such chip"

        def _accumulate(self, spikes, timestep_weight, weight):
            raise AssertionError("must not run")

    with pytest.raises(BackendUnavailableError, match=r"Absent\.accumulate: this machine has no such chip"):
        Absent().accumulate(Ternary().encode(torch.tensor([[1]]), 1), torch.ones(1, 1, dtype=torch.int8))
    assert "a CPU only" in str(Cpu().why_unavailable(torch.device("cuda")))
