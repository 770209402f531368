"""At how many spikes, and how many silent channels, a layer on spikes costs as much as a dense INT8 one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import InputError
from .counts import LayerCounts, ModelCounts
from .digital import DigitalEnergy


@dataclass(frozen=True)
class BreakEven:
    """Energy of a layer as a plane over spikes per channel s and the share z of channels that are silent.

        spiking = fixed_pj + s * spike_pj + (1 - z) * channel_pj        dense INT8 = dense_pj

    per token, with all costs that the digital model counts for the layer; the numbers without memory leave out weights
    and activations on both sides.

    Attributes:
        layer: name.
        spikes: per channel, as it ran.
        silent_fraction: share of weight rows that were not read, as it ran.
        fixed_pj: encoding, rescaling, activations, shifts of sums.
        spike_pj: what one spike in each channel costs.
        channel_pj: what reading the rows of all channels costs; 0 if each spike reads its row.
        dense_pj: the dense INT8 layer.
        arithmetic_fixed_pj: as fixed_pj, without memory.
        arithmetic_spike_pj: as spike_pj, without memory.
        arithmetic_dense_pj: as dense_pj, without memory.
    """

    layer: str
    spikes: float
    silent_fraction: float
    fixed_pj: float
    spike_pj: float
    channel_pj: float
    dense_pj: float
    arithmetic_fixed_pj: float
    arithmetic_spike_pj: float
    arithmetic_dense_pj: float

    @property
    def spiking_pj(self) -> float:
        """What the layer cost as it ran."""
        return self.fixed_pj + self.spikes * self.spike_pj + (1 - self.silent_fraction) * self.channel_pj

    @property
    def even_spikes(self) -> float:
        """Spikes per channel at which both cost the same, at the layer's silent share; negative if none do."""
        return self.spikes_at(self.silent_fraction)

    @property
    def even_spikes_without_memory(self) -> float:
        """The same for arithmetic alone."""
        return (self.arithmetic_dense_pj - self.arithmetic_fixed_pj) / self.arithmetic_spike_pj

    @property
    def even_silent_fraction(self) -> float | None:
        """Silent share at which both cost the same, at the layer's spikes; None if none from 0 to 1 does.

        Below 0 the layer wins whatever its channels do, above 1 it never does; see `wins`.
        """
        if not self.channel_pj:
            return None
        z = 1 - (self.dense_pj - self.fixed_pj - self.spikes * self.spike_pj) / self.channel_pj
        return z if 0 <= z <= 1 else None

    @property
    def wins(self) -> bool:
        """Whether the layer cost less on spikes, as it ran."""
        return self.spiking_pj < self.dense_pj

    def spikes_at(self, silent_fraction: float) -> float:
        """Return the spikes per channel at which both cost the same, for a share of silent channels."""
        return (self.dense_pj - self.fixed_pj - (1 - silent_fraction) * self.channel_pj) / self.spike_pj


_MEMORY = ("weights", "activations")


def break_even(counts: ModelCounts, model: DigitalEnergy, layer: str) -> BreakEven:
    """Return where a layer that spikes breaks even.

    Blocks are read in proportion to the rows that are needed, as they were in this run.

    Args:
        counts: what ran.
        model: prices and options.
        layer: name of a layer that spikes.
    Raises:
        InputError: no such layer, or it did not run or spike.
    """
    found = counts.layers.get(layer)
    if found is None or found.kind != "projection":
        spiking = [name for name, part in counts.layers.items() if part.kind == "projection"]
        raise InputError(f"break_even: expected a layer that spikes, such as {spiking[:1]}, got {layer!r}.")
    done = found.spiking
    if not done.num_spikes or not done.num_encoded_tokens:
        raise InputError(
            f"break_even: expected a layer with spikes, {layer!r} had none. Record a text that reaches it."
        )
    report = model.estimate(replace(counts, layers={layer: found}, num_tokens=0))
    n = done.num_encoded_tokens
    parts = {part: value / n for part, value in report.layers[layer].items()}
    dense = {part: value / n for part, value in report.int8_layers[layer].items()}
    per_spike = ["additions", "accumulator"] + (["shifts"] if model.shifts_per == "spike" else [])
    spikes = done.num_spikes / done.num_activations
    arithmetic_spike = sum(parts[part] for part in per_spike) / spikes
    arithmetic_fixed = sum(v for part, v in parts.items() if part not in per_spike and part not in _MEMORY)
    read, fraction = _weights(found, model, parts["weights"])
    summed = _summed(found, model, parts["activations"])
    fixed = arithmetic_fixed + parts["activations"] - summed + parts["weights"] - read
    by_spike = model.reads_per == "spike"
    return BreakEven(
        layer=layer,
        spikes=spikes,
        silent_fraction=1 - fraction,
        fixed_pj=fixed,
        spike_pj=arithmetic_spike + (summed + (read if by_spike else 0.0)) / spikes,
        channel_pj=0.0 if by_spike or not fraction else read / fraction,
        dense_pj=sum(dense.values()),
        arithmetic_fixed_pj=arithmetic_fixed,
        arithmetic_spike_pj=arithmetic_spike,
        arithmetic_dense_pj=sum(v for part, v in dense.items() if part not in _MEMORY),
    )


def _weights(layer: LayerCounts, model: DigitalEnergy, weights_pj: float) -> tuple[float, float]:
    """Return the part of `weights_pj` that goes with spikes or channels, and the share of rows that were read."""
    done = layer.spiking
    chosen = {"spike": done.weight_spike_bytes, "channel": done.weight_channel_bytes, "block": done.weight_block_bytes}
    read = chosen[model.reads_per]
    whole = read + done.weight_bytes + done.parameter_bytes
    return weights_pj * read / whole, done.weight_channel_bytes / layer.int8.weight_bytes


def _summed(layer: LayerCounts, model: DigitalEnergy, activations_pj: float) -> float:
    """Return the part of `activations_pj` that is sums in SRAM, which goes with spikes."""
    if model.sums_in == "register":
        return 0.0
    done = layer.spiking
    return activations_pj * done.accumulator_bytes / (done.accumulator_bytes + done.activation_bytes)
