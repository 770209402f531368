"""What must hold for a neuron."""

from __future__ import annotations

from typing import Any

import torch

from ..coding import BidirectionalBitwise, pack_activations
from ..errors import ActivationError
from ..neuro import NEURONS, Neuron
from ..neuro.checks import asking, checking_plugins, spikes_of
from .laws import check_settings, random_tensor, require, strategies, try_law


def check_neuron(neuron: Neuron[Any] | str, *, examples: int = 100) -> None:
    """Check what must hold for a neuron, on random activations of any shape and dtype.

    It returns integer counts with one finite threshold a token, and leaves its input as it is. Silence gives silence; a
    token has the same counts in every batch; the same input gives the same counts again, since state goes in and comes
    out. NaN and infinity raise. Kernels and bounds, where it has them, agree with its steps.

    Args:
        neuron: an object, or a name.
        examples: random inputs for each law.
    Raises:
        InputError: a law is broken; the message names the class and the method.
    """
    found: Neuron[Any] = NEURONS.resolve(neuron, "check_neuron.neuron")
    st = strategies()
    check_settings(NEURONS, found)
    shape = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)
    dtype = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
    scale, seed = st.sampled_from([1e-3, 1.0, 1e2]), st.integers(0, 2**32)
    with checking_plugins():
        try_law(lambda shape: _silence(found, shape), max(1, examples // 4), shape=shape)
        try_law(lambda **d: _counts(found, **d), examples, shape=shape, dtype=dtype, scale=scale, seed=seed)
    try_law(lambda **d: _packed(found, **d), max(1, examples // 4), seed=seed, channels=st.sampled_from([1, 32, 100]))
    _not_finite(found)


def _silence(neuron: Neuron[Any], shape: tuple[int, ...]) -> None:
    spikes = spikes_of(neuron, torch.zeros(shape))
    fired = int(spikes.count.count_nonzero())
    require(fired == 0, neuron, "step", "no spikes in silence", f"{fired} spikes")


def _counts(neuron: Neuron[Any], shape: tuple[int, ...], dtype: torch.dtype, scale: float, seed: int) -> None:
    x = (random_tensor("activations", shape, seed) * scale).to(dtype)
    spikes = spikes_of(neuron, x)
    again = neuron(x.clone())
    same = torch.equal(spikes.count, again.count) and torch.equal(spikes.threshold, again.threshold)
    require(same, neuron, "step", "the counts of the first call from the initial state", "others in the second call")
    if x.ndim > 1:
        alone = neuron(x[-1:].clone())
        same = torch.equal(spikes.count[-1:], alone.count) and torch.equal(spikes.threshold[-1:], alone.threshold)
        require(same, neuron, "step", "the counts of a token that it has alone", "others beside other tokens")
    bounds = neuron.count_bounds(x.shape[-1])
    if bounds is not None:
        most, mean = int(spikes.count.abs().max()), float(spikes.count.abs().double().mean(-1).max())
        holds = most <= bounds.largest and mean <= bounds.mean
        require(holds, neuron, "count_bounds", f"counts within {bounds}", f"{most} with a mean of {mean}")
    with asking(neuron, "unroll"):
        unrolled, _ = neuron.unroll(x.unsqueeze(0))
    require(torch.equal(unrolled.count[0], spikes.count), neuron, "unroll", "the counts of a step", "others")


def _packed(neuron: Neuron[Any], seed: int, channels: int) -> None:
    x = random_tensor("activations", (3, channels), seed)
    spikes = spikes_of(neuron, x)
    packed, threshold = pack_activations(x, neuron, BidirectionalBitwise())
    expected = BidirectionalBitwise().pack(spikes.count, len(packed.fired))
    same = torch.equal(packed.fired, expected.fired) and torch.equal(threshold, spikes.threshold)
    require(same, neuron, "kernel_rule", "the counts of its steps", "others")


def _not_finite(neuron: Neuron[Any]) -> None:
    for value in (torch.nan, torch.inf, -torch.inf):
        x = torch.tensor([[1.0, value]])
        try:
            with asking(neuron, "step"):
                spikes = neuron(x)
        except ActivationError:
            continue
        require(False, neuron, "step", f"an ActivationError for {value}", str(spikes.count.tolist()))
