"""The contract of a neuron: it declares its state and advances by one step; state goes in and comes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ActivationError, InputError
from ..registry import Registry
from .spike_count import SpikeCount

State = TypeVar("State")


class MembraneState(NamedTuple):
    """State of an integrating neuron: its membrane potential v, in the unit of the activation."""

    v: Tensor


class Neuron(ABC, Generic[State]):
    """Turns activations into spike counts, one step at a time.

    A subclass writes `initial_state` and `step` and keeps nothing of its input on itself: the same neuron object
    serves any number of layers and shapes. Silence in, silence out: a zero input to a resting neuron gives no spike.
    """

    @abstractmethod
    def initial_state(self, x: Float[Tensor, "*shape"]) -> State:
        """Return the state before the first step for inputs of the shape, dtype and device of x."""

    @abstractmethod
    def step(self, x: Float[Tensor, "*shape"], state: State) -> tuple[SpikeCount, State]:
        """Advance one step.

        Args:
            x: activation of this step.
            state: what `initial_state` or the previous step returned.
        Returns:
            The spikes of this step, and the state after it.
        Raises:
            ActivationError: x holds NaN or infinity.
        """

    def __call__(self, x: Float[Tensor, "*shape"]) -> SpikeCount:
        """Return the spikes of one step from the initial state."""
        return self.step(x, self.initial_state(x))[0]

    def unroll(self, x: Float[Tensor, "timesteps *shape"], state: State | None = None) -> tuple[SpikeCount, State]:
        """Step through the leading axis of x.

        Args:
            x: activation per timestep, [T, *shape], T >= 1.
            state: state to start from; None for the initial one.
        Returns:
            Counts of all steps, [T, *shape], and the state after the last.
        Raises:
            InputError: x has no timestep.
        """
        if x.ndim == 0 or x.shape[0] == 0:
            raise InputError(
                f"{type(self).__name__}.unroll: expected x of shape [T, ...] with T >= 1, got {tuple(x.shape)}. "
                "Put the time axis first."
            )
        if state is None:
            state = self.initial_state(x[0])
        steps = []
        for x_t in x:
            spikes, state = self.step(x_t, state)
            steps.append(spikes)
        count = torch.stack([s.count for s in steps])
        threshold = torch.stack([s.threshold.expand_as(s.count) for s in steps])
        return SpikeCount(count, threshold), state


NEURONS: Registry[Neuron] = Registry("neuron", Neuron)


def raise_if_not_finite(x: Tensor, where: str) -> None:
    """Raise an ActivationError that names the first NaN or infinity in x, if there is one."""
    finite = torch.isfinite(x)
    if not bool(finite.all()):
        index = tuple((~finite).nonzero()[0].tolist())
        num_bad = int((~finite).sum())
        raise ActivationError(
            f"{where}: expected finite activations, got {x[index].item()} at index {index} "
            f"({num_bad} of {x.numel()} are not finite). Look at the layer before, its weights or its number format."
        )
