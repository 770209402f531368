"""The contract of a backend: exact integer accumulation of a spike train through INT8 weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int8, Int32, Int64
from torch import Tensor

from ..coding import Encoder, PackedTrain, SpikeTrain
from ..errors import AccumulatorOverflowError, BackendUnavailableError, InputError
from ..neuro import Neuron
from ..registry import Registry

INT32 = torch.iinfo(torch.int32)
# Largest magnitude of an INT8 weight.
MAX_WEIGHT = 128
# Activations that float32 holds exactly.
NARROW = (torch.float32, torch.bfloat16, torch.float16)


class ScaleUnits(NamedTuple):
    """Scales and minima of weight groups as integers times a unit of each output.

    scale[o, g] = steps[o, g] * unit[o], minimum[o, g] = minimum_steps[o, g] * minimum_unit[o]. So the sums of all
    groups of an output become one integer before anything is rounded; `models.layers.rescale` has the rule.

    Attributes:
        steps: int8 [outputs, groups].
        unit: float32 [outputs].
        minimum_steps: int8 [outputs, groups], or None where there are no minima.
        minimum_unit: float32 [outputs], or None.
        most_charge: sum of |count| of a token up to which all these integers fit 32 bits.
    """

    steps: Tensor
    unit: Tensor
    minimum_steps: Tensor | None = None
    minimum_unit: Tensor | None = None
    most_charge: int = 0


# Largest magnitude of a step.
MAX_STEP = 127


class ExpertWeights(NamedTuple):
    """A projection of an expert; see `Backend.fused` for what it holds."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None = None
    minimum: Tensor | None = None
    group_size: int | None = None
    units: ScaleUnits | None = None


@dataclass(eq=False)
class Memo:
    """What a backend noted of a layer, so that calls like earlier ones take less time.

    Attributes:
        again: takes x, weight, scale, bias, minimum, neuron, encoder, group_size and upper (see `Backend.fused`), by
            position and unchecked; returns what `fused` would, or None if they are not as it noted, so that `fused` has
            to run. None where nothing was noted.
        kept: of the layer's tensors as they are now, in the backend's own form; None if nothing is.
    """

    again: Callable[..., Tensor | None] | None = None
    kept: Any = None


def version_of(tensor: Tensor) -> int | None:
    """Return how often PyTorch saw a write to a tensor; None for one of inference mode, where it does not count."""
    return None if tensor.is_inference() else tensor._version


class WeightMemory(NamedTuple):
    """What a backend that simulates hardware is told of weights beside their integers.

    Attributes:
        bits: width of an integer.
        group_size: input channels that share a scale; None for all.
        scale_bytes: memory for the scales and minima of all groups and outputs.
        has_minimum: whether integer 0 stands for a minimum other than 0.
    """

    bits: int
    group_size: int | None
    scale_bytes: int
    has_minimum: bool


class Backend(ABC):
    """Adds up the weights of the channels that spike.

    A subclass writes `_accumulate`, and `why_unavailable` if it needs something that a machine may lack. Its sums equal
    those of `Reference` bit for bit; tests/reference runs over every registered backend.
    """

    # Whether it is told how weights lie in memory, where they are in groups or narrower than a byte.
    knows_memory: ClassVar[bool] = False
    # Whether `fused` runs layers whose small counts read upper bits: it then takes upper=((up_to, dropped), ...), too.
    # Counts of magnitudes up to `up_to`, which rises, read integers without their lowest `dropped` bits, as
    # `models.layers.coarse` says.
    knows_upper_bits: ClassVar[bool] = False
    # Whether `fused` adds up scaled groups in integers: it then takes units=ScaleUnits, too, where a layer has them.
    # Results of others are equal to rounding.
    knows_units: ClassVar[bool] = False
    # Whether `fused` rescales and adds up groups as the plain rule does, bit for bit; else to float32's rounding.
    rescales_in_order: ClassVar[bool] = True
    # Whether `fused` takes memo=Memo(), too: the layer's own, kept as long as its plug-ins are. Classes of other
    # packages are not given it, so a subclass need not know of it.
    remembers: ClassVar[bool] = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def why_unavailable(self, device: torch.device) -> str | None:
        """Return why this backend cannot work on tensors of that device, or None if it can."""
        return None

    def accumulate(
        self, train: SpikeTrain | PackedTrain, weight: Int8[Tensor, "out_features in_features"]
    ) -> Int32[Tensor, "*tokens out_features"]:
        """Return sum over t of timestep_weight[t] * (W spikes[t]) - zero_point * rowsum(W).

        Args:
            train: spikes of shape [T, *tokens, in_features]; a packed train is unpacked first.
            weight: INT8 weights, [out_features, in_features]. Memory in which an input channel's
                weights lie together (weight.t() contiguous) saves backends a copy.
        Returns:
            Exact sums, int32, [*tokens, out_features].
        Raises:
            InputError: shapes, dtypes or devices do not match.
            BackendUnavailableError: the backend cannot run on this device.
            AccumulatorOverflowError: a sum does not fit 32 bits.

        Source:
            SpikingBrain (arXiv:2509.05276), section 3.3.2, eq. 23, before its rescaling.
        """
        where = f"{type(self).__name__}.accumulate"
        train = self._checked(train, weight, where)
        flat = train.spikes.reshape(train.num_timesteps, train.spikes.shape[1:-1].numel(), weight.shape[1])
        total = self._accumulate(flat, train.timestep_weight, weight)
        expected = (flat.shape[1], weight.shape[0])
        if not isinstance(total, Tensor) or total.dtype not in (torch.int32, torch.int64) or total.shape != expected:
            got = f"{total.dtype} of shape {tuple(total.shape)}" if isinstance(total, Tensor) else repr(total)
            name = f"{type(self).__name__}._accumulate"
            raise InputError(f"{name}: expected int32 or int64 of shape {expected}, got {got}.")
        if train.zero_point:
            row_sum = weight.sum(1, dtype=torch.int64)
            total = total.to(torch.int64) - train.zero_point * row_sum
        return as_int32(total, where).reshape(*train.spikes.shape[1:-1], weight.shape[0])

    def accumulate_in_memory(
        self,
        train: SpikeTrain | PackedTrain,
        weight: Int8[Tensor, "out_features in_features"],
        memory: WeightMemory,
    ) -> Int32[Tensor, "*tokens groups out_features"]:
        """Return the sums of `accumulate` for each group of input channels by itself.

        Only a backend to which it matters how weights lie (`knows_memory`) is asked for this; for others `accumulate`
        runs on the channels of each group.

        Args:
            train: as for `accumulate`.
            weight: as for `accumulate`.
            memory: what the weights take, and their groups.
        """
        raise NotImplementedError

    def _checked(self, train: SpikeTrain | PackedTrain, weight: Tensor, where: str) -> SpikeTrain:
        """Return the train of a call, unpacked; raise an error if `accumulate` cannot run on it."""
        if isinstance(train, PackedTrain):
            train = train.to_train()
        spikes = train.spikes
        if weight.dtype != torch.int8 or weight.ndim != 2:
            raise InputError(
                f"{where}: expected int8 weights [out_features, in_features], got {weight.dtype} of shape "
                f"{tuple(weight.shape)}. SpikeLinear.from_linear quantises float weights."
            )
        if spikes.ndim < 2 or spikes.shape[-1] != weight.shape[1]:
            raise InputError(
                f"{where}: expected spikes [T, ..., {weight.shape[1]}] for weights of shape {tuple(weight.shape)}, "
                f"got {tuple(spikes.shape)}."
            )
        if spikes.device != weight.device:
            raise InputError(f"{where}: spikes are on {spikes.device}, weights on {weight.device}. Move one of them.")
        reason = self.why_unavailable(weight.device)
        if reason is not None:
            raise BackendUnavailableError(f"{where}: {reason}")
        flat = spikes.reshape(train.num_timesteps, spikes.shape[1:-1].numel(), weight.shape[1])
        _check_charge(flat, train.timestep_weight, where)
        return train

    def fused(
        self,
        x: Float[Tensor, "*tokens in_features"],
        weight: Int8[Tensor, "out_features in_features"],
        scale: Float[Tensor, "out_features groups"],
        bias: Float[Tensor, " out_features"] | None,
        neuron: Neuron,
        encoder: Encoder,
        *,
        minimum: Float[Tensor, "out_features groups"] | None = None,
        group_size: int | None = None,
    ) -> Float[Tensor, "*tokens out_features"] | None:
        """Run a whole layer, from activations to rescaled sums, in kernels of this backend.

        This is only for speed: the result equals that of neuron, encoder, `accumulate` and rescaling one after the
        other. Where the code is `lossless`, a kernel may add up counts without unrolling them; where the neuron has a
        `kernel_rule`, it may find the counts itself. Any other code or neuron must run, so then there is no kernel.

        Args:
            x: activations of any floating-point dtype; the result has the same.
            weight: INT8 weights; see `accumulate`.
            scale: what one unit of an INT8 weight stands for, float32.
            bias: added at the end, or None.
            neuron: turns activations into counts.
            encoder: turns counts into spikes.
            minimum: weight of integer 0, float32, or None for 0. It and `group_size` are only given for layers that
                have one, which a backend need not know.
            group_size: input channels that share a scale; None for all.
        Returns:
            (W count) * scale * threshold + bias, or None if there is no kernel for this input. Then run the separate
            steps, which also raise the error if the input is wrong.
        """
        return None

    def experts(
        self,
        x: Float[Tensor, "tokens in_features"],
        row: Int64[Tensor, " routes"],
        starts: Sequence[int],
        experts: Sequence[Sequence[ExpertWeights]],
        neuron: Neuron,
        encoder: Encoder,
    ) -> list[Tensor] | None:
        """Run the projections of several experts, each on its own tokens, in one call that counts every token once.

        This is only for speed, as `fused` is: the result equals that of `fused` for each expert e and projection of
        it, on x[row[starts[e] : starts[e + 1]]].

        Args:
            x: activations.
            row: the token of each route; the routes of an expert follow one another.
            starts: first route of each expert, and after them the number of routes.
            experts: projections of each expert, which all read x and have the same shapes in every expert.
            neuron: of all of them.
            encoder: of all of them.
        Returns:
            For each projection the outputs of all routes, [routes, out_features]; or None if there is no kernel for
            this input. Then run the experts one by one.
        """
        return None

    @abstractmethod
    def _accumulate(self, spikes: Tensor, timestep_weight: Tensor, weight: Tensor) -> Tensor:
        """Return sum over t of timestep_weight[t] * (W spikes[t]): [tokens, out_features], int32 or int64, exact.

        Args:
            spikes: int8, [T, tokens, in_features].
            timestep_weight: int64, [T].
            weight: int8, [out_features, in_features].

        The caller has checked that no partial sum, in any order of addition, can reach 2^61.
        """


BACKENDS: Registry[Backend] = Registry("backend", Backend, "spikebrain.backends")


def check_backend(backend: object, where: str) -> None:
    """Raise an InputError unless that is a backend, or "auto"."""
    if not isinstance(backend, Backend) and backend != "auto":
        raise InputError(
            f'{where}: expected a backend or "auto", got {backend!r}. Pass an object, as in backend=Cpu(); '
            f"BACKENDS.create(name) makes one of {', '.join(BACKENDS)}."
        )


def check_mode(backend: Backend, mode: str) -> None:
    """Raise an InputError unless the mode of a backend that has two is "spike" or "count"."""
    if mode not in ("spike", "count"):
        raise InputError(f'{type(backend).__name__}.mode: expected "spike" or "count", got {mode!r}.')


def as_int32(total: Tensor, where: str) -> Tensor:
    """Return sums as int32; raise an AccumulatorOverflowError with the element that does not fit."""
    if total.dtype == torch.int32:
        return total
    outside = (total < INT32.min) | (total > INT32.max)
    if bool(outside.any()):
        index = tuple(outside.nonzero()[0].tolist())
        raise AccumulatorOverflowError(
            f"{where}: expected sums that fit 32 bits, got {int(total[index])} at (token, output) {index}. "
            "Raise the threshold's ceiling or use weight groups (group_size) so that fewer channels add up."
        )
    return total.to(torch.int32)


def _check_charge(spikes: Tensor, timestep_weight: Tensor, where: str) -> None:
    """Raise unless every token's charge, sum over t of |weight[t]| * |spikes[t]|, keeps partial sums below 2^61."""
    weights = [abs(w) for w in timestep_weight.tolist()]
    most = 2**61 // MAX_WEIGHT
    # If even spikes everywhere stay below it, there is no need to look at them.
    if sum(weights) * spikes.shape[-1] < most:
        return
    charge = max(
        (sum(w * n for w, n in zip(weights, token, strict=True)) for token in spikes.count_nonzero(-1).t().tolist()),
        default=0,
    )
    if charge >= most:
        raise AccumulatorOverflowError(
            f"{where}: expected partial sums that fit 64 bits, got spikes that weigh {charge:,} in one token. "
            "Use smaller timestep weights."
        )
