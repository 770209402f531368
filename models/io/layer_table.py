"""A model's spiking layers and their settings as JSON, for single files and folders alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...registry import from_dict, to_dict
from ..layers.settings import COUNTED, SpikeSettings
from ..layers.spike_linear import SpikeLinear, spiking_layers
from ..layers.swap import Conversion

VERSION = 1


def layer_table(model: nn.Module) -> dict[str, Any]:
    """Return the settings of every spiking layer, without repeats, and the model's `conversion`.

    Raises:
        InputError: a layer uses a class that is not registered, or a setting that JSON cannot hold.
    """
    first_names: dict[int, str] = {}
    settings: dict[str, int] = {}
    layers: dict[str, dict[str, Any]] = {}
    for name, layer in spiking_layers(model, every_name=True).items():
        first = first_names.setdefault(id(layer), name)
        if first != name:
            layers[name] = {"same_as": first}
            continue
        written = json.dumps(_settings_of(layer), sort_keys=True)
        layers[name] = {"settings": settings.setdefault(written, len(settings))}
    return {
        "version": VERSION,
        "settings": [json.loads(written) for written in settings],
        "layers": layers,
        "conversion": _conversion(model),
    }


class LayerTable:
    """Builds layers from a table made by `layer_table`.

    Args:
        content: the table.
    Raises:
        InputError: the table has another version, or names a class that is not registered here.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        if content.get("version") != VERSION:
            raise InputError(
                f"spiking layers: expected a table of version {VERSION}, got {content.get('version')!r}. Use the "
                "version of spikebrain that wrote it."
            )
        self._content = content
        with torch.device("cpu"):  # transformers asks while it builds a model without weights, on the meta device
            self._settings = [_settings_from(one) for one in content["settings"]]
            self._conversion = None if content["conversion"] is None else _conversion_of(content["conversion"])

    @property
    def names(self) -> list[str]:
        """Names of the layers, in the order of the model; a layer with several names appears under each."""
        return list(self._content["layers"])

    def same_as(self, name: str) -> str | None:
        """Return the first name of a layer that has several names, or None if `name` is the first."""
        return self._content["layers"][name].get("same_as")

    def weight_bits(self, name: str) -> int:
        """Return the width of the integers of a layer, by the first of its names."""
        return self._of(name)["weight_bits"]

    def group_size(self, name: str) -> int | None:
        """Return the input channels that share a scale in a layer, by the first of its names; None for all."""
        return self._of(name)["group_size"]

    def build(
        self, name: str, weight: Tensor, scale: Tensor, bias: Tensor | None, minimum: Tensor | None = None
    ) -> SpikeLinear:
        """Return the layer of that name, with the given tensors.

        Raises:
            InputError: the layer was saved with a minimum and there is none, or the other way round.
        """
        settings = dict(self._of(name))
        if settings.pop("has_minimum") != (minimum is not None):
            raise InputError(f"{name}: its minima are {'missing' if minimum is None else 'not expected'}.")
        return SpikeLinear(weight, scale, bias, minimum=minimum, name=name, **settings)

    def has_minimum(self, name: str) -> bool:
        """Return whether a layer was saved with minima, by the first of its names."""
        return self._of(name)["has_minimum"]

    def _of(self, name: str) -> dict[str, Any]:
        return self._settings[self._content["layers"][name]["settings"]]

    @property
    def attends_on_counts(self) -> bool:
        """Whether the model's softmax attention ran on counts, by its `conversion`."""
        return self._conversion is not None and self._conversion.settings.attention == COUNTED

    def restore_conversion(self, model: nn.Module) -> None:
        """Give the model the `conversion` that it had when it was saved."""
        if self._conversion is not None:
            model.conversion = self._conversion  # pyright: ignore[reportArgumentType]


def _settings_of(layer: SpikeLinear) -> dict[str, Any]:
    return {
        "group_size": layer.group_size,
        # Left out where they are as in older files.
        **({} if layer.weight_bits == 8 else {"weight_bits": layer.weight_bits}),
        **({} if layer.minimum is None else {"has_minimum": True}),
        "neuron": to_dict(layer.neuron),
        "encoder": to_dict(layer.encoder),
        "backend": "auto" if layer.backend == "auto" else to_dict(layer.backend),
    }


def _settings_from(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "group_size": stored["group_size"],
        "weight_bits": stored.get("weight_bits", 8),
        "has_minimum": stored.get("has_minimum", False),
        "neuron": from_dict(stored["neuron"]),
        "encoder": from_dict(stored["encoder"]),
        "backend": stored["backend"] if isinstance(stored["backend"], str) else from_dict(stored["backend"]),
    }


def _conversion_of(stored: Mapping[str, Any]) -> Conversion:
    settings = from_dict(stored["settings"])
    if not isinstance(settings, SpikeSettings):
        raise InputError(f"conversion: expected the settings of a spiking model, got {settings!r}.")
    return Conversion(settings, tuple(stored["converted"]), stored["skipped"], stored.get("rounded", {}))


def _conversion(model: nn.Module) -> dict[str, Any] | None:
    conversion = getattr(model, "conversion", None)
    if not isinstance(conversion, Conversion):
        return None
    return {
        "settings": to_dict(conversion.settings),
        "converted": list(conversion.converted),
        "skipped": dict(conversion.skipped),
        **({"rounded": dict(conversion.rounded)} if conversion.rounded else {}),
    }
