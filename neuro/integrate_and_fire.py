"""Integrate-and-fire neurons, unrolled in time: the dynamics that the adaptive-threshold neuron collapses.

Proof by execution (tests/unit/test_integrate_and_fire.py): give a soft-reset neuron without leak the whole activation
x at its first step and silence after it. It then fires in each of its first |count| steps, which is the ternary spike
train of `count`. Which count depends on the initial potential alone. With `negative_threshold=0` the potential comes
to rest in [0, threshold), so the sum of the spikes is floor((v_initial + x) / threshold): `v_initial = 0` gives the
floor, and `v_initial = threshold / 2` turns it into rounding to nearest. Only exact ties differ from the collapsed
neuron: n + 1/2 goes up here and to the even neighbour there.

Conventions of other libraries, and how to match them (tests/peers/test_snn_libraries.py):

* SpikingJelly `IFNode`: ours with the same `v_reset`; its `v_reset=None` is our soft reset. Its `v` is the potential
  after the reset, ours the one before it; it starts at `v_reset`, ours at `v_initial`.
* SpikingJelly `LIFNode`: `decay = 1 - 1/tau`. With its `decay_input=True` the input is divided by tau first, so give
  ours x / tau. Its soft reset leaks too (`decay * (v - threshold)`): `reset_decays=True`. Its hard reset leaks towards
  `v_reset`, eq. 9 towards 0: equal only for `v_reset=0`.
* snnTorch `Leaky`: `beta` is our `decay`; `reset_mechanism="subtract"` is eq. 9's soft reset, `"zero"` its hard
  reset to 0. It fires above the threshold, we (as eq. 9 and SpikingJelly) at it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from .base import NEURONS, MembraneState, Neuron, raise_if_not_finite
from .spike_count import SpikeCount


@NEURONS.register("leaky-integrate-and-fire")
@dataclass(frozen=True)
class LeakyIntegrateAndFire(Neuron[MembraneState]):
    """Leaky integrate-and-fire neuron with one spike at most per step.

    soft reset: v[t+1] = decay * v[t] - threshold * s[t] + x[t+1]
    hard reset: v[t+1] = decay * (1 - |s[t]|) * v[t] + v_reset * |s[t]| + x[t+1]
    s[t] = 1 where v[t] >= threshold, and -1 where v[t] < negative_threshold (if there is one), else 0

    Attributes:
        threshold: potential at which it fires, in the unit of x; a number or a tensor that broadcasts against x.
        decay: share of the potential kept from step to step (lambda of eq. 9), in [0, 1]; 1 is no leak.
        reset: "soft" subtracts the threshold, "hard" sets the potential to v_reset.
        v_reset: potential after a hard reset, in the unit of x.
        v_initial: potential before the first step, in the unit of x, below the threshold.
        negative_threshold: below this potential it fires -1 (a ternary neuron); None for a binary neuron.
        reset_decays: soft reset only: whether what the reset takes away leaks as well,
            decay * (v[t] - threshold * s[t]), as in SpikingJelly. Eq. 9 has False.

    Source:
        SpikingBrain (arXiv:2509.05276), section 3.3.1, eq. 9.

    >>> spikes, _ = LeakyIntegrateAndFire(decay=0.5).unroll(torch.tensor([[0.8], [0.8], [0.0]]))
    >>> spikes.count.flatten().tolist()  # v = 0.8, 1.2, then 0.6 - 1.0
    [0, 1, 0]
    """

    threshold: float | Tensor = 1.0
    decay: float = 0.9
    reset: Literal["soft", "hard"] = "soft"
    v_reset: float = 0.0
    v_initial: float | Tensor = 0.0
    negative_threshold: float | Tensor | None = None
    reset_decays: bool = False

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.reset not in ("soft", "hard"):
            raise InputError(f'{name}.reset: expected "soft" or "hard", got {self.reset!r}.')
        if not 0 <= self.decay <= 1:
            raise InputError(f"{name}.decay: expected a number in [0, 1], got {self.decay}. 1 is no leak.")
        threshold, v_initial = torch.as_tensor(self.threshold), torch.as_tensor(self.v_initial)
        if not bool((threshold > 0).all()):
            raise InputError(f"{name}.threshold: expected numbers > 0, got {self.threshold}.")
        if not bool((v_initial < threshold).all()):
            raise InputError(f"{name}.v_initial: expected a potential below the threshold, got {self.v_initial}.")
        if self.negative_threshold is not None:
            negative = torch.as_tensor(self.negative_threshold)
            if not bool((negative <= v_initial).all()):
                raise InputError(
                    f"{name}.negative_threshold: expected at most v_initial = {self.v_initial}, "
                    f"got {self.negative_threshold}: the neuron would fire without input."
                )

    def initial_state(self, x: Float[Tensor, "*shape"]) -> MembraneState:
        """Return the potential v_initial for every element of x."""
        return MembraneState(torch.zeros_like(x) + self.v_initial)

    def step(self, x: Float[Tensor, "*shape"], state: MembraneState) -> tuple[SpikeCount, MembraneState]:
        """Integrate one input and fire.

        Args:
            x: input of this step.
            state: the potential v[t] before the reset that its spike causes, so that v[t] and s[t] of eq. 9 are
                one state.
        Returns:
            Spikes as counts in {-1, 0, 1}, and the new potential, again before its reset.
        Raises:
            ActivationError: x holds NaN or infinity.
        """
        raise_if_not_finite(x, type(self).__name__)
        fired = self._fire(state.v)
        if self.reset == "hard":
            v = self.decay * (1 - fired.abs()) * state.v + self.v_reset * fired.abs() + x
        elif self.reset_decays:
            v = self.decay * (state.v - self.threshold * fired) + x
        else:
            v = self.decay * state.v - self.threshold * fired + x
        threshold = torch.as_tensor(self.threshold, dtype=x.dtype, device=x.device)
        if threshold.ndim == 0 and x.ndim > 0:
            threshold = threshold.expand(*x.shape[:-1], 1)  # one for each token
        return SpikeCount(self._fire(v), threshold), MembraneState(v)

    def _fire(self, v: Tensor) -> Tensor:
        spikes = (v >= self.threshold).to(torch.int32)
        if self.negative_threshold is not None:
            spikes -= (v < self.negative_threshold).to(torch.int32)
        return spikes


@NEURONS.register("integrate-and-fire")
@dataclass(frozen=True)
class IntegrateAndFire(LeakyIntegrateAndFire):
    """Integrate-and-fire neuron: `LeakyIntegrateAndFire` without leak (eq. 20).

    >>> x = torch.tensor([[2.6], [0.0], [0.0], [0.0]])  # all input first, then silence
    >>> neuron = IntegrateAndFire(v_initial=0.5, negative_threshold=0.0)
    >>> neuron.unroll(x)[0].count.flatten().tolist()  # three spikes: round(2.6)
    [1, 1, 1, 0]
    """

    decay: float = field(default=1.0, init=False)
