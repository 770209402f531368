"""The kernel for narrow layers equals the two kernels that list and add, bit for bit; both equal the plain steps."""

import pytest
import torch
from devices import DEVICES, INTERPRETING, run_in_interpreter
from made_activations import activations

from spikebrain import AdaptiveThreshold, DeadZoneThreshold
from spikebrain.backends.gpu.job import Matrix

pytest.importorskip("triton")
groups, listed, narrow, spike, stages = (
    pytest.importorskip(f"spikebrain.backends.gpu.{name}") for name in ("groups", "list", "narrow", "spike", "stage")
)
Stage = stages.Stage
SOURCES = {"given": listed.GIVEN.value, "norm": listed.NORM.value, "gated": listed.GATED.value}


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETING, reason="this is the process that it starts")
def test_all_of_this_through_the_interpreter():
    run_in_interpreter(__file__)


def matrix_of(num_outputs, num_inputs, device, *, bias=False):
    weight = torch.randint(-128, 128, (num_inputs, num_outputs), dtype=torch.int8).t()
    weight[:, 0] = -128
    return Matrix(
        weight.to(device),
        torch.rand(num_outputs, 1).to(device),
        torch.randn(num_outputs).to(device) if bias else None,
    )


def outputs(settings, stage):
    seen = torch.empty(len(stage.x), stage.matrices[0].weight.shape[1], device=stage.x.device, dtype=stage.x.dtype)
    failed = torch.full((len(stage.x),), 7, dtype=torch.int32, device=stage.x.device)
    stage = stage._replace(y=stage.y.clone(), seen=seen, failed=failed)
    plan = groups.plan_groups(stage, settings) if stage.matrices[0].has_groups else spike.plan_for(settings, stage)
    plan.run()
    return stage.y, seen, failed


def check(stage):
    """Compare all launch settings with those of several kernels."""
    matrix = stage.matrices[0]
    one = stage._replace(x=stage.x[:1])
    settings = (groups if matrix.has_groups else spike).settings_for(one)
    expected = outputs(settings[0], stage)
    alone = [one for one in settings if hasattr(one, "warps")]
    assert alone
    for one in alone:
        assert all(map(torch.equal, outputs(one, stage), expected))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("bias", "residual", "k"), [(False, False, 3.0), (True, True, 3.0), (True, False, 300.0)])
def test_stages(device, source, bias, residual, k):
    num_inputs = 100
    neuron = DeadZoneThreshold(k=k, dead_zone=0.2) if bias else AdaptiveThreshold(k=k)
    matrices = tuple(matrix_of(size, num_inputs, device, bias=bias) for size in (48, 20, 7))
    x = activations(2, num_inputs * (2 if source == "gated" else 1)).clamp(-200, 200).to(device)
    y = torch.randn(2, 75, device=device)
    norm = (torch.rand(num_inputs, device=device), 1e-5) if source == "norm" else None
    check(
        Stage(
            x, matrices, y, neuron.kernel_rule(), neuron.count_bounds(num_inputs), None, SOURCES[source], norm, residual
        )
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_inputs", [1, 31, 544])
def test_sums_of_counts_that_are_given(device, num_inputs):
    # From no count at all to the largest whose sums fit, and as many channels as a thread may add in 16 bits.
    matrix = matrix_of(33, num_inputs, device)._replace(scale=None)
    for largest in (0, 1, 15, 16, 255, (2**31 - 1) // 128 // num_inputs):
        x = torch.randint(-largest, largest + 1, (1, num_inputs), dtype=torch.int32)
        x[0, 0] = largest
        for counts in (x.to(device), (x.sign() * largest).to(device)):
            stage = Stage(counts, (matrix,), torch.empty(1, 33, dtype=torch.int32, device=device))
            check(stage)
            found = spike.settings_for(stage)[-1]
            y = torch.empty_like(stage.y)
            spike.plan_for(found, stage._replace(y=y)).run()
            assert torch.equal(y, (counts.cpu().long() @ matrix.weight.cpu().t().long()).to(y))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("others", [0, 24, 63])
def test_a_giant_among_many_large_counts(device, others):
    # So many large counts leave no room for multiples of the largest digit in the list of places.
    giant = (2**31 - 1) // 128 - 255 * others
    counts = torch.full((1, 256), others, dtype=torch.int32, device=device)
    counts[0, 3] = giant
    matrix, y = matrix_of(32, 256, device)._replace(scale=None), torch.empty(1, 32, dtype=torch.int32, device=device)
    stage = Stage(counts, (matrix,), y)
    for settings in spike.settings_for(stage):
        y.fill_(7)
        spike.plan_for(settings, stage).run()
        assert torch.equal(y, (counts.cpu().long() @ matrix.weight.cpu().t().long()).to(y))


@pytest.mark.parametrize("device", DEVICES)
def test_a_token_whose_counts_may_not_fit_fails(device):
    neuron = AdaptiveThreshold()
    x = activations(3, 60)
    x[1, 5] = float("nan")
    matrix = matrix_of(10, 60, device)
    y = torch.empty(3, 10, device=device)
    stage = Stage(x.to(device), (matrix,), y, neuron.kernel_rule(), neuron.count_bounds(60))
    y, _, failed = outputs(spike.settings_for(stage._replace(x=stage.x[:1]))[-1], stage)
    assert failed.tolist() == [0, 1, 0]
    assert y[1].isnan().all()
    assert y[[0, 2]].isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
def test_rows_of_silent_channels_are_not_read(device):
    # All channels of odd number are silent; their rows hold other numbers, and nothing changes.
    x = activations(1, 64)
    x[:, 1::2] = 0
    neuron, matrix = AdaptiveThreshold(), matrix_of(12, 64, device)
    stage = Stage(
        x.to(device), (matrix,), torch.empty(1, 12, device=device), neuron.kernel_rule(), neuron.count_bounds(64)
    )
    before, *_ = outputs(spike.settings_for(stage)[-1], stage)
    matrix.weight[:, 1::2] += 1
    after, *_ = outputs(spike.settings_for(stage)[-1], stage)
    assert torch.equal(before, after)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("minimum", "residual", "k", "size"), [(False, False, 3.0, 32), (True, True, 3.0, 32), (True, False, 90.0, 8)]
)
def test_groups_of_4_bits(device, source, minimum, residual, k, size):
    # Whole scales and minima: all sums are exact in float32, in any order.
    num_inputs = 100
    matrices = []
    for num_outputs in (48, 20, 7):
        shape, low = (num_outputs, -(-num_inputs // size)), 0 if minimum else -8
        weight = torch.randint(low, low + 16, (num_inputs, num_outputs), dtype=torch.int8).t().to(device)
        scale, offset = (torch.randint(1, 3, shape).float().to(device) for _ in range(2))
        bias = torch.randn(num_outputs).to(device) if residual else None
        matrices.append(Matrix(weight, scale, bias, offset if minimum else None, size))
    x = activations(2, num_inputs * (2 if source == "gated" else 1)).clamp(-200, 200).to(device)
    neuron, y = AdaptiveThreshold(k=k), torch.randn(2, 75, device=device)
    norm = (torch.rand(num_inputs, device=device), 1e-5) if source == "norm" else None
    rule = neuron.kernel_rule(), neuron.count_bounds(num_inputs)
    check(Stage(x, tuple(matrices), y, *rule, None, SOURCES[source], norm, residual))


def test_wide_inputs_are_left_to_other_kernels():
    assert not narrow.narrow_settings_for(18944)
    matrix = Matrix(torch.ones(4, 18944, dtype=torch.int8), torch.ones(4, 592), None, None, 32)
    assert groups.settings_for(Stage(torch.ones(1, 18944), (matrix,), torch.ones(1, 4))) == [None]
