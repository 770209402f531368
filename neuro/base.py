"""The contract of a neuron: it declares its state and advances by one step; state goes in and comes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
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


class CountTable:
    """Counts by |x / threshold|, for neurons that choose them in another way than by rounding.

    A table is equal to itself only: whoever makes tables keeps one for each setting, so that rules can be compared.

    Attributes:
        choices: counts that can be chosen, ascending, int32 [M].
        borders: the |ratio| beyond which each next one is chosen, and infinity behind them, float32 [M].
        first: how many borders are below each multiple of 1 / `cells` from 0 on, int32. A larger |ratio| than its last
            place is compared with the counts around it, by error and price.
        cells: places of `first` per unit of the ratio, a power of 2: so many that rarely two borders are in one.
        reach: how many of these there are on each side; no count is farther from the rounded |ratio|, except 0.
        spike_price: of a spike in the signed-digit code, in squared thresholds.
    """

    def __init__(
        self, choices: Tensor, borders: Tensor, first: Tensor, cells: int, reach: int, spike_price: float
    ) -> None:
        self.choices, self.borders, self.first = choices, borders, first
        self.cells, self.reach, self.spike_price = cells, reach, spike_price


class KernelRule(NamedTuple):
    """A neuron as kernels run it: which rule for the threshold, the numbers in it, what is silent, and how to round.

    Attributes:
        number: of the rule in `threshold_numba` and `threshold_triton`, from 1 on, different for each rule.
        parameters: the rule's numbers, three of them (0 where it needs fewer); kernels take them as float32.
        threshold_range: smallest and largest threshold that the rule can give, in the unit of the activation.
        quiet: channels whose |x| / threshold is below it have no spikes, whatever that would round to; a number that
            float32 holds, 0 for none.
        table: of counts; None where x / threshold is rounded, half to even. Kernels on a GPU know no tables.
    """

    number: int
    parameters: tuple[float, float, float]
    threshold_range: tuple[float, float]
    quiet: float = 0.0
    table: CountTable | None = None

    @property
    def numbers(self) -> tuple[float, float, float, float]:
        """All that kernels take beside the number of the rule: the parameters and `quiet`."""
        return (*self.parameters, self.quiet)


# Stands for a rule where a kernel is given counts, or thresholds.
NO_RULE = KernelRule(0, (0.0, 0.0, 0.0), (0.0, 0.0))


class CountBounds(NamedTuple):
    """What the counts of a token cannot exceed.

    They hold for tokens at which no upper limit of the threshold binds; kernels check that.

    Attributes:
        largest: of |count| in one channel, with room for the rounding of float32.
        mean: of |count| over the channels of a token.
    """

    largest: float
    mean: float


class Neuron(ABC, Generic[State]):
    """Turns activations into spike counts, one step at a time.

    A subclass writes `initial_state` and `step` and keeps nothing of its input on itself: the same neuron object
    serves any number of layers and shapes. Silence in, silence out: a zero input to a resting neuron gives no spike.

    A neuron that has one threshold for each token and no state may also have kernels. It then says in `kernel_rule`
    which rule they run, and has that rule in `threshold_numba.py` and `threshold_triton.py`, in the operations and the
    order of `step`. A subclass with another `step` has no kernels and no bounds unless it defines its own.
    """

    def __init_subclass__(cls, **options) -> None:
        """Let no class inherit kernels or bounds that belong to another `step` than its own."""
        super().__init_subclass__(**options)
        for name in ("kernel_rule", "cpu_rule", "count_bounds"):
            if overrides(cls, name, ("step", "initial_state", "__call__")):
                setattr(cls, name, getattr(Neuron, name))

    def kernel_rule(self) -> KernelRule | None:
        """Return what kernels run in the place of `step`, or None: then `step` runs."""
        return None

    def cpu_rule(self) -> KernelRule | None:
        """Return what kernels on a CPU run, which may have a table of counts; see `kernel_rule`."""
        return self.kernel_rule()

    def count_bounds(self, num_channels: int) -> CountBounds | None:
        """Return bounds of the counts of a token of that many channels, for any activations; None if unknown."""
        return None

    def compares_per_channel(self) -> int:
        """Return how many comparisons a channel takes beside division and rounding, for counts of energy."""
        return 0

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
        stepped = self.step(x, self.initial_state(x))
        if not isinstance(stepped, tuple) or len(stepped) != 2:
            raise InputError(
                f"{type(self).__name__}.step: expected a SpikeCount and the next state, got "
                f"{type(stepped).__name__}. Return both, with None as the state if there is none."
            )
        return stepped[0]

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


NEURONS: Registry[Neuron] = Registry("neuron", Neuron, "spikebrain.neurons")


def overrides(cls: type, declaration: str, methods: Iterable[str]) -> bool:
    """Return whether cls has other methods than the class that a declaration was made in.

    Args:
        cls: the class.
        declaration: name of an attribute that says something about the methods.
        methods: names of the methods.
    """
    declared_in = next(base for base in cls.__mro__ if declaration in vars(base))
    return any(getattr(cls, method) is not getattr(declared_in, method) for method in methods)


def checked_activations(x: Tensor, where: str) -> Tensor:
    """Return activations without gradient, in float32, or float64 if they are that.

    Args:
        x: activations, [*tokens, N].
        where: the neuron, for the message.
    Raises:
        InputError: x is no floating-point tensor with a channel axis.
    """
    if not x.is_floating_point() or x.ndim == 0:
        raise InputError(
            f"{where}: expected a floating-point tensor [..., N], got {x.dtype} of shape {tuple(x.shape)}. Convert it, "
            "or add a channel axis."
        )
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


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
