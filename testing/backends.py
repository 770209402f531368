"""What must hold for a backend."""

from __future__ import annotations

import torch

from ..backends import BACKENDS, Backend, Reference
from ..backends.checks import sums_of
from ..coding import BidirectionalBitwise, SpikeTrain, Ternary
from ..errors import AccumulatorOverflowError, BackendUnavailableError
from ..models import SpikeLinear
from ..neuro.checks import asking, checking_plugins
from .laws import check_settings, random_tensor, require, strategies, try_law


def check_backend(backend: Backend | str, *, device: str = "cpu", examples: int = 60) -> None:
    """Check that a backend gives the sums of `Reference`, bit for bit, for any train and any INT8 weights.

    Timestep weights may have either sign, repeat or be 0; shapes may be odd or empty; memory may lie in any order. Sums
    that do not fit 32 bits raise. Weights and spikes stay as they are. A whole layer gives what its steps give.

    Args:
        backend: an object, or a name.
        device: where it is tried.
        examples: random inputs.
    Raises:
        BackendUnavailableError: it cannot run there.
        InputError: a law is broken; the message names the class and the method.
    """
    found: Backend = BACKENDS.resolve(backend, "check_backend.backend")
    st = strategies()
    check_settings(BACKENDS, found)
    with asking(found, "why_unavailable"):
        reason = found.why_unavailable(torch.device(device))
    if reason is not None:
        raise BackendUnavailableError(f"check_backend: {type(found).__name__} cannot run on {device}: {reason}")
    with checking_plugins():
        try_law(
            lambda **drawn: _any_train(found, device, **drawn),
            examples,
            weights=st.lists(st.integers(-9, 9), min_size=1, max_size=6),
            tokens=st.lists(st.integers(0, 3), min_size=1, max_size=2),
            num_inputs=st.sampled_from([0, 1, 3, 32, 40]),
            num_outputs=st.sampled_from([0, 1, 5, 33]),
            zero_point=st.integers(0, 9),
            seed=st.integers(0, 2**32),
        )
        _memory(found, device)
    _overflow(found, device)
    _layer(found, device)


def _any_train(
    backend: Backend,
    device: str,
    weights: list[int],
    tokens: list[int],
    num_inputs: int,
    num_outputs: int,
    zero_point: int,
    seed: int,
) -> None:
    spikes = random_tensor("spikes", (len(weights), *tokens, num_inputs), seed).to(device)
    train = SpikeTrain(spikes, torch.tensor(weights, device=device), zero_point)
    _compare(backend, train, random_tensor("weights", (num_outputs, num_inputs), seed + 1).to(device))


def _compare(backend: Backend, train: SpikeTrain, weight: torch.Tensor) -> None:
    expected = Reference().accumulate(train, weight)
    same = torch.equal(sums_of(backend, train, weight), expected)
    require(same, backend, "accumulate", "the sums of Reference", "others")


def _memory(backend: Backend, device: str) -> None:
    count = random_tensor("counts", (2, 3, 10), 0, 20).to(device)
    train = Ternary().encode(count, 20)
    weight = random_tensor("weights", (6, 10), 1).to(device)
    _compare(backend, train, weight)
    _compare(backend, train, weight.t().contiguous().t())
    wide = torch.zeros(20, 2, 3, 20, dtype=torch.int8, device=device)
    wide[..., ::2] = train.spikes
    _compare(backend, SpikeTrain(wide[..., ::2], train.timestep_weight), weight)
    _compare(backend, SpikeTrain(train.spikes[:, 0, 0], train.timestep_weight), weight)
    silent = torch.zeros(4, 50, dtype=torch.int32, device=device)
    silent[1, 7], silent[2] = 3570, -(2**15)
    _compare(backend, BidirectionalBitwise().encode(silent, 16), random_tensor("weights", (9, 50), 2).to(device))


def _overflow(backend: Backend, device: str) -> None:
    # 4 * 127 * 4227330 is the largest such sum in 32 bits.
    spikes = torch.ones(1, 2, 4, dtype=torch.int8, device=device)
    weight = torch.tensor([[127, 127, 127, 127], [127, -127, 127, -127]], dtype=torch.int8, device=device)
    _compare(backend, SpikeTrain(spikes, torch.tensor([4227330], device=device)), weight)
    for factor in (4227331, -4227331, 2**32):
        try:
            with asking(backend, "accumulate"):
                sums = backend.accumulate(SpikeTrain(spikes, torch.tensor([factor], device=device)), weight)
        except AccumulatorOverflowError:
            continue
        expected = f"an AccumulatorOverflowError for the sum {508 * factor}"
        require(False, backend, "accumulate", expected, str(int(sums[0, 0])))


def _layer(backend: Backend, device: str) -> None:
    weight, scale = random_tensor("weights", (7, 12), 0), torch.linspace(0.5, 1, 7)[:, None]
    x = random_tensor("activations", (5, 12), 1).to(device)
    outputs = [SpikeLinear(weight, scale, backend=one).to(device)(x) for one in (backend, Reference())]
    require(torch.equal(*outputs), backend, "fused", "the outputs of the separate steps", "others")
