"""From activations to a packed train in one go: threshold, count, encoding and packing."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..neuro import LARGEST_COUNT, NEURONS, Neuron
from ..neuro.checks import checks_all, spikes_of
from .base import ENCODERS, Encoder, as_rows, cached_unrolling, empty_train
from .checks import fitted_to
from .kernels import kernels_for
from .packed import PackedTrain

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def pack_activations(
    x: Float[Tensor, "*tokens channels"], neuron: Neuron | str, encoder: Encoder | str, num_timesteps: int | None = None
) -> tuple[PackedTrain, Float[Tensor, "*tokens 1"]]:
    """Turn activations into a packed train, and return it with the threshold of each token.

    The result equals neuron(x) followed by `Encoder.pack`, bit for bit, but no tensor of counts is made. If
    num_timesteps is given, kernels read x once (on a GPU a second time from the cache); otherwise they read it again
    when they know the range of all counts. They need a code with an `unrolling`, a neuron with a `kernel_rule`, and
    float32, bfloat16 or float16; for anything else the steps run one after the other. No gradient passes.

    Args:
        x: activations, [*tokens, channels].
        neuron: gives the thresholds and counts; an object or a registered name.
        encoder: the code; an object or a registered name.
        num_timesteps: length of the train; None for the code and length that `Encoder.fitted` finds for the counts.
    Returns:
        The train, and the thresholds, float32 (float64 for float64 input).
    Raises:
        InputError: neuron or encoder is neither, or a plug-in of yours returns what it should not.
        ActivationError: see `Neuron.step`.
        EncodingError: see `Encoder.encode`.

    >>> from spikebrain.coding import Ternary
    >>> from spikebrain.neuro import AdaptiveThreshold
    >>> train, threshold = pack_activations(torch.tensor([[1.0, -1.0, 4.0, 0.0]]), AdaptiveThreshold(k=2.0), Ternary())
    >>> train.num_timesteps, train.num_spikes, threshold.item()  # counts 1, -1, 5, 0
    (5, 7, 0.75)
    """
    neuron = NEURONS.resolve(neuron, "pack_activations.neuron")
    encoder = ENCODERS.resolve(encoder, "pack_activations.encoder")
    assert isinstance(neuron, Neuron)
    assert isinstance(encoder, Encoder)
    kernels = None if checks_all() else kernels_for(x.device)
    rule = neuron.kernel_rule() if x.dtype in _DTYPES else None
    if kernels is None or rule is None or x.ndim == 0 or x.numel() == 0:
        return _step_by_step(x, neuron, encoder, num_timesteps)
    tokens = x.detach().reshape(-1, x.shape[-1]).contiguous()
    threshold = torch.empty(len(tokens), dtype=torch.float32, device=x.device)
    measured = num_timesteps is None
    if num_timesteps is None:
        low, high = kernels.measure(tokens, rule, threshold)
        if not -LARGEST_COUNT <= low <= high <= LARGEST_COUNT:
            return _step_by_step(x, neuron, encoder, None)
        encoder, num_timesteps = fitted_to(encoder, round(low), round(high))
    if not encoder.has_kernels:
        return _step_by_step(x, neuron, encoder, num_timesteps)
    unrolling = cached_unrolling(encoder, num_timesteps)
    train = empty_train(unrolling, x.shape, x.device)
    if measured:
        kernels.pack_activations(tokens, rule, threshold, unrolling, *as_rows(train))
    elif not unrolling.fits(*kernels.measure_and_pack(tokens, rule, threshold, unrolling, *as_rows(train))):
        return _step_by_step(x, neuron, encoder, num_timesteps)
    return train, threshold.reshape(*x.shape[:-1], 1)


def _step_by_step(x: Tensor, neuron: Neuron, encoder: Encoder, num_timesteps: int | None) -> tuple[PackedTrain, Tensor]:
    """Do the same step by step: what the kernels must equal. It also raises the error if the input is wrong."""
    with torch.no_grad():
        spikes = spikes_of(neuron, x)
    if num_timesteps is None:
        count = spikes.count
        low, high = (int(v) for v in count.aminmax()) if count.numel() else (0, 0)
        encoder, num_timesteps = fitted_to(encoder, low, high)
    return encoder.pack(spikes.count, num_timesteps), spikes.threshold
