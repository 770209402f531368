"""What each setting of a layer's neuron and coarse rows would lose and cost, from one pass of the float model.

Layers that read the same input are one unit: they get the same neuron, so that the input is counted once.

A setting of a unit is a rule for counts and two magnitudes: counts up to `silent` are no spikes, and those up to
`small` read coarse rows. All settings with the same rule follow from sums over the channels with |count| = n.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...coding import Encoder
from ...coding.checks import fitted_to
from ...errors import InputError
from ...models import GradedLinear, LayerRecord
from ...models.layers.coarse import use_upper_bits
from ...models.layers.quantize import QuantizedWeight
from ...models.recording.layer_record import frequencies
from ...neuro import AdaptiveThreshold, RateDistortionThreshold
from ...neuro.count_sums_numba import add_up_by_count

# Magnitudes of counts that are kept apart; the last place holds all above.
LARGEST = 64


class Rule(NamedTuple):
    """How counts follow from activations: rounded at a k, or chosen by prices (see `RateDistortionThreshold`)."""

    k: float
    spike_price: float = 0.0
    read_price: float = 0.0

    @property
    def has_prices(self) -> bool:
        """Whether counts are chosen by prices."""
        return self.spike_price > 0 or self.read_price > 0

    def neuron(self) -> AdaptiveThreshold:
        """Return the neuron with this rule."""
        if self.has_prices:
            return RateDistortionThreshold(self.k, spike_price=self.spike_price, read_price=self.read_price)
        return AdaptiveThreshold(self.k)


# Rules that are tried; those with prices only where spikes are what a budget counts.
ROUNDED = tuple(map(Rule, (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)))
PRICED = (
    *(Rule(k, spike_price) for k in (3.0, 4.0, 6.0, 8.0) for spike_price in (0.5, 1.0, 2.0)),
    Rule(8.0, 4.0, 1.0),
    Rule(16.0, 4.0, 1.0),
)


@dataclass
class Sums:
    """Sums over all channels and tokens with |count| = n, for n from 0 to LARGEST; float64, [LARGEST + 1].

    Attributes:
        channels: how many.
        spikes: of their counts, in the code.
        silenced: squared error of the outputs if they were silent.
        rounded: if they fire.
        coarse: what is added to that if they read coarse rows.
    """

    channels: Tensor
    spikes: Tensor
    silenced: Tensor
    rounded: Tensor
    coarse: Tensor


@dataclass
class Unit:
    """Layers that read the same input.

    Attributes:
        layers: as they spike, with coarse rows of half of their bits, by name.
        num_tokens: that were seen.
        sums: by rule. Errors are those of the sum of squared outputs of all layers, as if no two channels' errors were
            alike: each channel's squared error times the squared norm of its weights.
    """

    layers: dict[str, GradedLinear]
    num_tokens: int = 0
    sums: dict[Rule, Sums] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Names of the layers."""
        return list(self.layers)

    @property
    def num_inputs(self) -> int:
        """Channels of the input."""
        return next(iter(self.layers.values())).in_features

    def afresh(self) -> Unit:
        """Return the same layers without sums."""
        found = copy.copy(self)  # with what is kept of the layers
        found.num_tokens, found.sums = 0, {}
        return found

    @property
    def has_coarse_rows(self) -> bool:
        """Whether all layers can have coarse rows."""
        return all(layer.upper for layer in self.layers.values())

    @functools.cached_property
    def norms(self) -> tuple[Tensor, Tensor]:
        """The squared norms of each channel's weights, and of what its coarse rows lack, float64 [inputs]."""
        own, lost = [], []
        for layer in self.layers.values():
            coarse, fine = (layer.levels[i].dequantized_weight() for i in (0, -1))  # pyright: ignore
            own.append(fine.square().sum(0, dtype=torch.float64))
            lost.append((fine - coarse).square().sum(0, dtype=torch.float64))
        return torch.stack(own).sum(0), torch.stack(lost).sum(0)

    @functools.cached_property
    def records(self) -> list[tuple[LayerRecord, LayerRecord]]:
        """Empty records of each layer, of its coarse rows and of its own."""
        found = []
        for name, layer in self.layers.items():
            coarse, own = (LayerRecord.of_layer(name, layer.levels[i], []) for i in (0, -1))  # pyright: ignore
            coarse.be_coarse(layer)
            found.append((coarse, own))
        return found


def units_of(model: nn.Module, spiking: nn.Module, names: Iterable[str], ids: Tensor) -> list[Unit]:
    """Return the layers of a model by the input that they read, in the order in which they run.

    Args:
        model: the float model.
        spiking: the same on spikes.
        names: of the layers that spike.
        ids: a few token ids, [B, L].
    Raises:
        InputError: a layer is none of the float model's, or does not run.
    """
    found: list[Unit] = []
    names, seen = list(names), set()
    last: list[Tensor] = []
    layers = {name: graded(spiking.get_submodule(name)) for name in names}

    def look(name: str, x: Tensor) -> None:
        if name in seen:
            return
        seen.add(name)
        if not (last and last[0] is x):
            last[:] = [x]
            found.append(Unit({}))
        found[-1].layers[name] = layers[name]

    own = dict(model.named_modules())
    with _watching(model, [name for name in names if name in own], look), torch.no_grad():
        model(input_ids=ids, use_cache=False)
    missing = [name for name in names if name not in seen]
    if missing:
        raise InputError(
            f"calibrate: expected layers that all run on the text's first tokens, but {len(missing)} did not, such as "
            f"{missing[0]}: an expert, or a part that the text does not use. Leave them out with `skip`."
        )
    return found


def graded(layer: Any) -> GradedLinear:
    """Return a spiking layer with coarse rows of half of its bits; without them if it leaves upper bits unused."""
    quantized = QuantizedWeight(layer.weight, layer.scale, layer.minimum, layer.group_size, layer.weight_bits)
    if not use_upper_bits(quantized):
        return GradedLinear([layer])
    return GradedLinear.from_quantized(
        quantized,
        ((layer.weight_bits // 2, 1),),
        layer.bias,
        neuron=layer.neuron,
        encoder=layer.encoder,
        backend=layer.backend,
        name=layer.name,
    )


@contextmanager
def summing(
    model: nn.Module, units: Sequence[Unit], encoder: Encoder, rules: Sequence[tuple[Rule, ...]]
) -> Iterator[None]:
    """Add what the layers of a model get to the sums of the units, while it runs inside a `with` block.

    Args:
        model: the float model, or one on spikes.
        units: of the model.
        encoder: the code that spikes are counted in.
        rules: of each unit.
    """
    first = {unit.names[0]: (unit, some) for unit, some in zip(units, rules, strict=True)}
    lock = threading.Lock()  # windows may run in several threads

    def look(name: str, x: Tensor) -> None:
        unit, some = first[name]
        flat = x.detach().reshape(-1, x.shape[-1]).float()
        for rule in some:
            new = _sums(flat, *unit.norms, rule, encoder)
            with lock:
                old = unit.sums.get(rule)
                unit.sums[rule] = new if old is None else Sums(*map(torch.add, vars(old).values(), vars(new).values()))
        with lock:
            unit.num_tokens += len(flat)

    with _watching(model, first, look):
        yield


def _sums(x: Tensor, own: Tensor, lost: Tensor, rule: Rule, encoder: Encoder) -> Sums:
    spikes = rule.neuron()(x)
    sums = torch.zeros(4, LARGEST + 1, dtype=torch.float64)
    given = (x, spikes.count, spikes.threshold[:, 0], own, lost, sums)
    add_up_by_count(*(tensor.contiguous().numpy() for tensor in given))
    channels, silenced, rounded, coarse = sums
    return Sums(channels, _spikes_by_place(spikes.count, encoder), silenced, rounded, coarse)


def _spikes_by_place(count: Tensor, encoder: Encoder) -> Tensor:
    """Return how many spikes the counts have in a code, by their magnitude, float64 [LARGEST + 1]."""
    values, frequency = frequencies(count)
    suited, num_timesteps = fitted_to(encoder, int(values[0]), int(values[-1]))
    spikes = suited.encode(values, num_timesteps).spikes.abs().sum(0).double()
    return torch.bincount(values.abs().clamp(max=LARGEST).long(), spikes * frequency, LARGEST + 1)


@contextmanager
def _watching(model: nn.Module, names: Iterable[str], look: Any) -> Iterator[None]:
    """Call a function with the name and the input of some layers while the model runs."""

    def hook(name: str) -> Any:
        return lambda module, arguments: look(name, arguments[0])

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
