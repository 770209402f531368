"""The result of an energy model: energies, with their table, source and assumptions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError
from ..lazy import optional
from ..text_table import text_table
from .counts import ON_SPIKES, ModelCounts
from .table import EnergyTable

# Energy by part ("additions", "weights", ...) in picojoules.
Parts = Mapping[str, float]
# Fields of an `EnergyReport` that hold the energies of each system, and what tables call it.
_FIELDS = {
    "spiking": "layers",
    "same_weights": "same_weights_layers",
    "int8": "int8_layers",
    "fp16": "fp16_layers",
}
TITLES = {"spiking": "spiking", "same_weights": "same weights", "int8": "INT8", "fp16": "FP16"}


def origin(counts: ModelCounts, table: EnergyTable, used: Iterable[str]) -> dict[str, Any]:
    """Return the fields of an `EnergyReport` that say what it is of: the run, its size, and the table.

    Args:
        counts: of the run.
        table: energies per operation.
        used: entries of the table that went into the estimate.
    """
    return {
        "num_tokens": counts.num_tokens,
        "num_macs": counts.total("int8", kind=ON_SPIKES).num_macs,
        "table": table.name,
        "table_version": table.version,
        "process": table.process,
        "source": table.source,
        "unverified": tuple(name for name in used if not table.entry(name).verified),
        "run": f"{counts.model}, {counts.neuron}, {counts.encoder}",
    }


@dataclass(frozen=True)
class EnergyReport:
    """Modelled energy of a spiking run, beside the dense models it replaces. Nothing in it is measured.

    Attributes:
        model: which estimate this is, with its equation or options.
        layers: spiking energy by layer and part, in picojoules.
        int8_layers: the same of dense INT8 layers; empty if not estimated.
        fp16_layers: the same of dense FP16 layers; empty if not estimated.
        same_weights_layers: the same of dense layers with the same weights in their bits; empty if not estimated.
        num_tokens: that the energies are for.
        num_macs: of the dense products in the place of those that spike here, or 0.
        table: name of the energies per operation.
        table_version: of the table.
        process: of the table.
        source: of the table.
        assumptions: of the estimate.
        left_out: costs that it does not count.
        unverified: entries that were used and whose source this project did not see.
        run: model, neuron and code that ran, so that only equals are added.
    """

    model: str
    layers: Mapping[str, Parts]
    int8_layers: Mapping[str, Parts] = field(default_factory=dict)
    fp16_layers: Mapping[str, Parts] = field(default_factory=dict)
    same_weights_layers: Mapping[str, Parts] = field(default_factory=dict)
    num_tokens: int = 0
    num_macs: int = 0
    table: str = ""
    table_version: str = ""
    process: str = ""
    source: str = ""
    assumptions: tuple[str, ...] = field(default=(), repr=False)
    left_out: tuple[str, ...] = field(default=(), repr=False)
    unverified: tuple[str, ...] = field(default=(), repr=False)
    run: str = ""

    def __post_init__(self) -> None:
        for name in _FIELDS.values():
            for layer, parts in getattr(self, name).items():
                for part, value in parts.items():
                    if not 0 <= value < float("inf"):
                        raise InputError(
                            f"EnergyReport.{name}[{layer!r}][{part!r}]: expected picojoules >= 0, got {value!r}."
                        )

    def __repr__(self) -> str:
        """Return the energies part by part, a token where the number of tokens is known, and what they mean."""
        tokens = max(self.num_tokens, 1)
        parts = {TITLES[name]: by_part(layers) for name, layers in self.systems.items() if layers}
        names = dict.fromkeys(part for found in parts.values() for part in found)
        rows = [(name, *(f"{found.get(name, 0.0) / tokens / 1e3:,.4g}" for found in parts.values())) for name in names]
        totals = ("total", *(f"{sum(found.values(), 0.0) / tokens / 1e3:,.4g}" for found in parts.values()))
        lines = [
            f"{self.model} ({self.num_tokens:,} tokens)" if self.num_tokens else self.model,
            text_table(("nJ a token" if self.num_tokens else "nJ", *parts), [*rows, totals]),
        ]
        ratios = {name: getattr(self, f"ratio_vs_{name}") for name in _FIELDS if name != "spiking"}
        lines += [f"{TITLES[name]} / spiking: {value:.3g}" for name, value in ratios.items() if value is not None]
        lines += [f"Table {self.table} ({self.process}): {self.source}"] if self.table else []
        lines += [f"Modelled; {len(self.assumptions)} assumptions, left out: {len(self.left_out)} costs."]
        return "\n".join(lines)

    @property
    def systems(self) -> dict[str, Mapping[str, Parts]]:
        """Energies by layer and part of "spiking", "same_weights", "int8" and "fp16"; empty where not estimated."""
        return {name: getattr(self, field) for name, field in _FIELDS.items()}

    @property
    def total_pj(self) -> float:
        """Energy of the spiking model."""
        return total(self.layers)

    @property
    def same_weights_total_pj(self) -> float:
        """Energy of the dense model with the same weights in their bits."""
        return total(self.same_weights_layers)

    @property
    def int8_total_pj(self) -> float:
        """Energy of the dense INT8 model."""
        return total(self.int8_layers)

    @property
    def fp16_total_pj(self) -> float:
        """Energy of the dense FP16 model."""
        return total(self.fp16_layers)

    @property
    def parts(self) -> dict[str, float]:
        """Energy of the spiking model by part, summed over layers."""
        return by_part(self.layers)

    @property
    def by_layer_pj(self) -> dict[str, float]:
        """Energy of the spiking model by layer."""
        return {name: sum(parts.values(), 0.0) for name, parts in self.layers.items()}

    @property
    def ratio_vs_same_weights(self) -> float | None:
        """Energy of the dense model with the same weights over the spiking one, so what is won by spikes alone.

        None if either was not estimated or is nothing.
        """
        return ratio(self.same_weights_total_pj, self.total_pj)

    @property
    def ratio_vs_int8(self) -> float | None:
        """INT8 energy over the spiking one; None if either was not estimated or is nothing."""
        return ratio(self.int8_total_pj, self.total_pj)

    @property
    def ratio_vs_fp16(self) -> float | None:
        """FP16 energy over the spiking one; None if either was not estimated or is nothing."""
        return ratio(self.fp16_total_pj, self.total_pj)

    def __add__(self, other: EnergyReport) -> EnergyReport:
        same = ("model", "table", "table_version", "run")
        for name in same:
            if getattr(self, name) != getattr(other, name):
                raise InputError(
                    f"EnergyReport: expected reports of the same {name} to add, got {getattr(self, name)!r} and "
                    f"{getattr(other, name)!r}."
                )
        merged = {name: merge(getattr(self, name), getattr(other, name)) for name in _FIELDS.values()}
        texts = {
            name: tuple(dict.fromkeys(getattr(self, name) + getattr(other, name)))
            for name in ("assumptions", "left_out", "unverified")
        }
        sums = {name: getattr(self, name) + getattr(other, name) for name in ("num_tokens", "num_macs")}
        return dataclasses.replace(self, **merged, **texts, **sums)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per system, layer and part: what `to_dataframe` holds."""
        return [
            {"system": system, "layer": layer, "part": part, "energy_pj": value}
            for system, layers in self.systems.items()
            for layer, parts in layers.items()
            for part, value in parts.items()
        ]

    def to_dataframe(self) -> Any:
        """Return the rows as a pandas DataFrame.

        Raises:
            InputError: pandas is not installed.
        """
        pandas = optional("pandas", "exchange", "EnergyReport.to_dataframe, which is rows() as a table,")
        return pandas.DataFrame(self.rows(), columns=["system", "layer", "part", "energy_pj"])

    def to_dict(self) -> dict[str, Any]:
        """Return everything, and the totals, as JSON can hold it."""
        totals = {
            "total_pj": self.total_pj,
            "same_weights_total_pj": self.same_weights_total_pj,
            "int8_total_pj": self.int8_total_pj,
            "fp16_total_pj": self.fp16_total_pj,
            "ratio_vs_same_weights": self.ratio_vs_same_weights,
            "ratio_vs_int8": self.ratio_vs_int8,
            "ratio_vs_fp16": self.ratio_vs_fp16,
            "parts": self.parts,
        }
        return {**dataclasses.asdict(self), **totals}

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> EnergyReport:
        """Read what `to_dict` gave.

        Raises:
            InputError: a field is missing.
        """
        names = [f.name for f in dataclasses.fields(cls)]
        missing = [name for name in names if name not in content]
        if missing:
            raise InputError(f"EnergyReport.from_dict: fields {missing} are missing. Write it with to_dict.")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v := content[name], list) else v for name in names}
        return cls(**values)


def total(layers: Mapping[str, Parts]) -> float:
    """Return the energy of all layers."""
    return sum((sum(parts.values(), 0.0) for parts in layers.values()), 0.0)


def by_part(layers: Mapping[str, Parts]) -> dict[str, float]:
    """Return the energy by part, summed over layers; parts in order of first appearance."""
    sums: dict[str, float] = {}
    for parts in layers.values():
        for part, value in parts.items():
            sums[part] = sums.get(part, 0.0) + value
    return sums


def ratio(dense_pj: float, spiking_pj: float) -> float | None:
    """Return the dense energy over the spiking one; None if either is 0."""
    return dense_pj / spiking_pj if dense_pj and spiking_pj else None


def merge(mine: Mapping[str, Parts], others: Mapping[str, Parts]) -> dict[str, dict[str, float]]:
    """Return the sums of two sets of layers."""
    return {name: by_part({"a": mine.get(name, {}), "b": others.get(name, {})}) for name in {**mine, **others}}
