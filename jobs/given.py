"""Settings that count only for some inputs. Such a setting is None unless it is given, so that none is lost in silence.

None stands for the usual value. A setting that is given and would have no effect is refused, by whoever knows that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from ..errors import InputError
from ..models import SpikeSettings
from ..neuro import AdaptiveThreshold, Neuron

T = TypeVar("T")
# k of a job: one for all layers, or one for each pattern of names; layers that match none have the usual one.
K = float | Mapping[str, float]

# Settings of a model that is put on spikes. One that spikes already keeps its own.
SPIKES = (
    *("neuron", "k", "dead_zone", "encoder", "backend", "layers", "skip", "include_head"),
    *("weights", "group_size", "compact_scales", "coarse", "attention"),
)


def usual(value: T | None, default: T) -> T:
    """Return a setting, or its usual value if it was not given."""
    return default if value is None else value


def refuse(settings: Any, names: Iterable[str], why: str) -> None:
    """Raise an InputError if settings were given that would have no effect.

    Args:
        settings: of a job, or a mapping from names to values.
        names: of those that would have none; settings that this job does not have are passed over.
        why: goes on from "has no effect".
    """
    values = settings if isinstance(settings, Mapping) else vars(settings)
    given = [name for name in names if values.get(name) is not None and values[name] is not False]
    if given:
        listed = " and ".join(f"`{name}`" for name in given)
        raise InputError(f"{given[0]}: has no effect {why}. Leave out {listed}.")


def refuse_spikes(settings: Any, source: str) -> None:
    """Raise an InputError if it was said how a model is to spike that spikes already."""
    refuse(settings, SPIKES, f"on {source}, which spikes already and keeps its own settings")


def _neuron(neuron: Neuron | None, k: float | None) -> Neuron | None:
    """Return the neuron of a job with its k: that of `AdaptiveThreshold`, or of another neuron that has one."""
    if k is None or neuron is None:
        return neuron if k is None else AdaptiveThreshold(k)
    own = (
        {field.name: field.default for field in dataclasses.fields(neuron)}  # pyright: ignore[reportArgumentType]
        if dataclasses.is_dataclass(neuron)
        else {}
    )
    if "k" not in own:
        raise InputError(f"k: has no effect on `neuron` {neuron!r}, which has none. Leave out `k`.")
    if own["k"] != getattr(neuron, "k"):  # noqa: B009 - a field of the user's class
        raise InputError(f"k: expected one k, got {k} beside `neuron` {neuron!r}. Leave out one of both.")
    return dataclasses.replace(neuron, k=k)  # pyright: ignore[reportCallIssue, reportArgumentType]


def for_all_layers(k: K) -> K:
    """Return k with the usual one for the layers that match none of its patterns."""
    return {**k, "*": AdaptiveThreshold().k} if isinstance(k, Mapping) and "*" not in k else k


def k_in_words(k: K) -> str:
    """Return k as it can be typed.

    >>> k_in_words({"*down_proj": 4.0, "*": 3.0})
    '*down_proj=4,*=3'
    """
    return ",".join(f"{pattern}={value:g}" for pattern, value in k.items()) if isinstance(k, Mapping) else f"{k:g}"


def _neurons(neuron: Neuron | None, k: K | None) -> Neuron | dict[str, Neuron | None] | None:
    """Return the neuron of all layers, or one for each pattern of names."""
    if not isinstance(k, Mapping):
        return _neuron(neuron, k)
    found = {pattern: _neuron(neuron, value) for pattern, value in k.items()}
    return found if "*" in found else {**found, "*": neuron or AdaptiveThreshold()}


def spike_settings(settings: Any, k: K | None = None) -> SpikeSettings:
    """Return which layers spike, and how, from the settings of a job; what is not given is as in `SpikeSettings`.

    Args:
        settings: of a job.
        k: in the place of `settings.k`, for a job that has several.
    """
    names = ("encoder", "backend", "weights", "group_size", "compact_scales", "coarse")
    names += ("skip", "include_head", "attention")
    fields = {name: getattr(settings, name, None) for name in names}
    fields["neuron"] = _neurons(getattr(settings, "neuron", None), settings.k if k is None else k)
    if getattr(settings, "layers", None) is not None:
        fields["layers"] = (settings.layers,)
    return SpikeSettings(**{name: value for name, value in fields.items() if value is not None})
