"""Which layers of a model spike, and how: one object."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ...backends import BACKENDS, Backend
from ...coding import ENCODERS, BidirectionalBitwise, Encoder
from ...coding.base import require_exact
from ...errors import InputError
from ...neuro import NEURONS, AdaptiveThreshold, Neuron
from ...registry import Registry
from .coarse import Coarse, check_coarse
from .quantize import check_group_size

# How softmax attention spikes: in SpikingBrain models, and in Transformers.
ATTENTION = ("as-described", "as-released")
COUNTED = "counts"
# What integer weights are: rounded to 8 bits, those of the model's file, or rounded to 4 bits in groups.
WEIGHTS = ("int8", "stored", "int4")
# Fields that files leave out, as older ones do not have them.
_AS_BEFORE = (("weights", "int8"), ("coarse", ()), ("compact_scales", False))


@dataclass(frozen=True)
class SpikeSettings:
    """Which layers spike, and how. Neuron, encoder and backend are objects, or names of registered classes.

    Attributes:
        layers: patterns for module names (as in `named_modules`, with * and ?); a layer spikes if any of them matches.
        skip: patterns for layers that stay dense even if `layers` matches. A pattern that matches no layer of the model
            is an error when the settings are used, here and in `layers` and `neuron`.
        neuron: turns activations into counts. A mapping from name patterns to neurons gives layers different neurons;
            the first pattern that matches applies. `AdaptiveThreshold(k)` sets k.
        encoder: turns counts into spikes.
        weights: "int8" rounds float weights to 8 bits; "int4" to 4 bits with a minimum (see `quantize_int4`); "stored"
            takes the integers, scales and minima of the GGUF file that the model was read from, as they are. A layer
            without any gets "int8" rows, and a warning says which and why; if no layer has any, that is an error.
        group_size: input channels that share a weight scale; None for one scale per output channel, in 4 bits for
            groups of 32. With "stored" the file says it: None.
        compact_scales: keep the scales and minima of groups in 15 bits (see `compact`), which changes weights a little.
        coarse: pairs (bits, up_to): counts of a magnitude up to `up_to` read rows of that few bits in the place of the
            layer's own (see `GradedLinear`). A mapping from name patterns to such pairs gives layers different ones;
            the first pattern that matches applies, and layers that none matches have no coarse rows.
        backend: accumulates spikes; "auto" picks the fastest for each input.
        include_head: whether the output head of a causal language model spikes too.
        attention: how softmax attention spikes; None leaves it in floating point. Of a SpikingBrain model it is
            "as-described" or "as-released". Of a Transformer it is "counts": queries are spike counts, with a threshold
            per token and head and the k of the neuron of their projection, and keys and values are INT8.
    Raises:
        InputError: a value of the wrong kind; the message names the field.

    >>> by_kind = SpikeSettings(neuron={"*down_proj": AdaptiveThreshold(k=4.0), "*": AdaptiveThreshold(k=3.0)})
    >>> by_kind.neuron_of("layers.0.mlp.down_proj").k
    4.0
    """

    layers: tuple[str, ...] = ("*",)
    skip: tuple[str, ...] = ()
    neuron: str | Neuron | Mapping[str, Neuron] = field(default_factory=AdaptiveThreshold)
    encoder: str | Encoder = field(default_factory=BidirectionalBitwise)
    weights: str = "int8"
    group_size: int | None = None
    compact_scales: bool = False
    coarse: Coarse | Mapping[str, Coarse] = ()
    backend: Backend | Literal["auto"] | str = "auto"
    include_head: bool = False
    attention: str | None = None

    def __post_init__(self) -> None:
        for name in ("layers", "skip"):
            patterns = getattr(self, name)
            check_patterns(patterns, f"SpikeSettings.{name}")
            object.__setattr__(self, name, tuple(patterns))
        if isinstance(self.neuron, Mapping):
            if not self.neuron:
                raise InputError("SpikeSettings.neuron: expected at least one pattern with a neuron, got none.")
            where = "SpikeSettings.neuron[{!r}]"
            neuron: Any = {p: NEURONS.resolve(n, where.format(p)) for p, n in self.neuron.items()}
        else:
            neuron = NEURONS.resolve(self.neuron, "SpikeSettings.neuron")
        object.__setattr__(self, "neuron", neuron)
        object.__setattr__(self, "encoder", ENCODERS.resolve(self.encoder, "SpikeSettings.encoder"))
        object.__setattr__(self, "backend", BACKENDS.resolve(self.backend, "SpikeSettings.backend", "auto"))
        check_weights(self.weights, self.group_size)
        if isinstance(self.coarse, Mapping):
            for pattern, pairs in self.coarse.items():
                check_coarse(pairs, f"SpikeSettings.coarse[{pattern!r}]")
        elif self.coarse != ():
            check_coarse(self.coarse, "SpikeSettings.coarse")
        check_attention(self.attention)
        if self.attention is not None:
            assert not isinstance(self.encoder, str)
            require_exact(self.encoder, "SpikeSettings.encoder", "spiking attention takes the counts themselves")

    def to_fields(self) -> dict[str, Any]:
        """Return the settings for `registry.to_dict`, without those of later versions that change nothing."""
        kept = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in kept.items() if (name, value) not in _AS_BEFORE}

    @classmethod
    def from_fields(cls, content: Mapping[str, Any]) -> SpikeSettings:
        """Build settings from what `to_fields` gave."""
        return cls(**content)

    def matches(self, name: str) -> bool:
        """Return whether the layer of that name is to spike."""
        return matches_any(name, self.layers) and not self.skips(name)

    def skips(self, name: str) -> bool:
        """Return whether the layer of that name is left out by `skip`."""
        return matches_any(name, self.skip)

    def coarse_of(self, name: str) -> Coarse:
        """Return the pairs (bits, up_to) of a layer's coarse rows; none if it has no such rows."""
        if not isinstance(self.coarse, Mapping):
            return self.coarse
        return next((pairs for pattern, pairs in self.coarse.items() if fnmatch.fnmatchcase(name, pattern)), ())

    def neuron_of(self, name: str) -> Neuron:
        """Return the neuron of a layer.

        Raises:
            InputError: no pattern matches the layer's name.
        """
        if isinstance(self.neuron, Neuron):
            return self.neuron
        assert isinstance(self.neuron, Mapping)
        found = next((neuron for pattern, neuron in self.neuron.items() if fnmatch.fnmatchcase(name, pattern)), None)
        if found is None:
            raise InputError(
                f"SpikeSettings.neuron: expected a pattern that matches {name!r}, got {', '.join(self.neuron)}. Add "
                "'*' as the last one, or leave the layer out with skip."
            )
        return found


SETTINGS: Registry[SpikeSettings] = Registry("settings", SpikeSettings)
SETTINGS.register("spike")(SpikeSettings)


def neuron_with_k(k: float | Mapping[str, float]) -> Neuron | dict[str, Neuron]:
    """Return an adaptive-threshold neuron with the given k, or one for each pattern of layer names.

    >>> neuron_with_k({"*down_proj": 4.0, "*": 3.0})["*"]
    AdaptiveThreshold(k=3.0, floor=1e-05, ceiling=10000.0)
    """
    if isinstance(k, Mapping):
        return {pattern: AdaptiveThreshold(value) for pattern, value in k.items()}
    return AdaptiveThreshold(k)


def check_weights(weights: str, group_size: int | None) -> None:
    """Raise an InputError unless that is a kind of integer weights, with a group size that it can have."""
    if weights not in WEIGHTS:
        raise InputError(f"weights: expected one of {', '.join(WEIGHTS)}; got {weights!r}.")
    check_group_size(group_size)
    if weights == "stored" and group_size is not None:
        raise InputError(
            f"group_size: has no effect with `weights` stored, whose groups are those of the file; got {group_size}. "
            "Leave out one of both."
        )


def check_attention(attention: str | None) -> None:
    """Raise an InputError unless softmax attention can spike in that way."""
    if attention not in (None, COUNTED, *ATTENTION):
        raise InputError(
            f"attention: expected None, {COUNTED!r} for a Transformer, or one of {ATTENTION} for a SpikingBrain model; "
            f"got {attention!r}."
        )


def check_patterns(patterns: Collection[str], where: str) -> None:
    """Raise an InputError unless `patterns` holds texts; of a single text, each letter would be taken as a pattern."""
    if isinstance(patterns, str):
        raise InputError(f"{where}: expected a tuple of patterns, got the text {patterns!r}. Write ({patterns!r},).")
    if not isinstance(patterns, Collection) or not all(isinstance(pattern, str) for pattern in patterns):
        raise InputError(f"{where}: expected a tuple of texts such as ('*_proj',), got {patterns!r}.")


def matches_any(name: str, patterns: Collection[str]) -> bool:
    """Return whether any of the patterns, with * and ?, matches a name."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
