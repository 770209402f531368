"""A digital chip with every cost that can be counted: arithmetic as wide as it must be, memory, what stays dense."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from ..errors import InputError
from .base import ENERGY_MODELS, EnergyModel
from .count_spiking import WIDTHS, adder_width
from .counts import ON_SPIKES, SYSTEMS, LayerCounts, ModelCounts, OperationCounts
from .energy_report import EnergyReport, origin
from .prices import Prices
from .table import EnergyTable, load_table

ReadsPer = Literal["spike", "channel", "block"]
ShiftsPer = Literal["timestep", "spike"]
SumsIn = Literal["register", "sram"]
_NEEDED = ("int8_add", "int32_add", "int8_mul", "fp16_add", "fp16_mul", "fp32_add", "fp32_mul")


@ENERGY_MODELS.register("digital")
@dataclass(frozen=True)
class DigitalEnergy(EnergyModel):
    """Energy of the counted operations and bytes, in the spiking model and in three dense ones.

    These are an INT8 model, an FP16 model, and one with the same weights in their bits, beside which spikes alone win.
    All pay for the same things: INT8 products go into sums of 32 bits and FP16 ones into FP32, INT8 activations
    are quantised per token, weights and activations come from memory, norms and attention are computed. The parts of a
    projection are "additions" (as eq. 24 and its comparison have them: 8-bit additions, MACs with additions as narrow
    as the factors), "accumulator" (what wider sums cost beyond that), "shifts", "encode", "rescale", "weights" and
    "activations"; of everything else "rest arithmetic" and "rest memory". The scores of attention on counts have the
    parts of a projection without weights.

    Attributes:
        table: energies per operation.
        reads_per: which weights are read: the row of each "spike", the row of each active "channel", or every memory
            "block" that holds a byte of an active row (block size as in the counts). Dense layers read all weights.
        shifts_per: when digits are shifted: once per "timestep" (the sums), or once per "spike" (the weights).
        sums_in: where sums are kept while spikes are added: "register" costs nothing, "sram" is read and written.
        accumulator_width: 8, 16 or 32 bits for the integer sums of spikes; None derives it for each layer from the
            bound of its sums.
        sram_bytes: size of an SRAM bank, which sets the energy of a byte.
        on_chip_bytes: a model with more bytes of weights reads them from DRAM; None if all fit the chip.
        leakage_w: power of the idle chip.
        token_s: time of a token, during which the chip leaks; the same for all models.
        function_macs: MACs of an exponential, division or square root, if the table has no entry for it.
    """

    table: EnergyTable = field(default_factory=load_table)
    reads_per: ReadsPer = "channel"
    shifts_per: ShiftsPer = "timestep"
    sums_in: SumsIn = "register"
    accumulator_width: int | None = None
    sram_bytes: int = 32768
    on_chip_bytes: int | None = None
    leakage_w: float = 0.0
    token_s: float = 0.0
    function_macs: int = 6

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", load_table(self.table))
        for name, allowed in (("reads_per", ReadsPer), ("shifts_per", ShiftsPer), ("sums_in", SumsIn)):
            self._require(getattr(self, name) in get_args(allowed), name, f"one of {get_args(allowed)}")
        self._require(self.accumulator_width in (None, *WIDTHS), "accumulator_width", f"None or one of {WIDTHS}")
        self._require(type(self.sram_bytes) is int and self.sram_bytes >= 1, "sram_bytes", "an integer >= 1")
        capacity = self.on_chip_bytes
        self._require(capacity is None or (type(capacity) is int and capacity >= 0), "on_chip_bytes", "None or >= 0")
        for name in ("leakage_w", "token_s"):
            self._require(0 <= getattr(self, name) < float("inf"), name, "a finite number >= 0")
        whole = type(self.function_macs) is int and self.function_macs >= 0
        self._require(whole, "function_macs", "an integer >= 0")
        if self.leakage_w and not self.token_s:
            raise InputError(
                f"DigitalEnergy.leakage_w: {self.leakage_w:g} W has no effect without `token_s`, the time in which the "
                "chip leaks. Give both."
            )
        missing = [name for name in _NEEDED if name not in self.table]
        if missing:
            raise InputError(
                f"energy table {self.table.name}: lacks {', '.join(missing)}, which the digital model needs. Tables of "
                "chips go with SynopEnergy; horowitz_45nm and jouppi_7nm have all."
            )
        self.table.sram(self.sram_bytes)

    def _require(self, fine: bool, name: str, expected: str) -> None:
        if not fine:
            raise InputError(f"DigitalEnergy.{name}: expected {expected}, got {getattr(self, name)!r}.")

    def estimate(self, counts: ModelCounts) -> EnergyReport:
        """Estimate the energy of all parts of a model in the four systems."""
        prices = Prices(self.table, self.function_macs)
        systems: dict[str, dict[str, dict[str, float]]] = {}
        for system in SYSTEMS:
            memory = self._weight_memory(counts, system)
            systems[system] = {
                name: self._price(layer, getattr(layer, system), memory, prices)
                for name, layer in counts.layers.items()
            }
            if self.leakage_w and self.token_s:
                leaked = self.leakage_w * self.token_s * counts.num_tokens * 1e12
                systems[system]["(whole chip)"] = {"leakage": leaked}
        return EnergyReport(
            model=f"digital: {'; '.join(self.describe())}",
            layers=systems["spiking"],
            same_weights_layers=systems["same_weights"],
            int8_layers=systems["int8"],
            fp16_layers=systems["fp16"],
            **origin(counts, self.table, prices.used),
            assumptions=self._assumptions(counts, prices),
            left_out=self._left_out(counts),
        )

    def describe(self) -> tuple[str, ...]:
        """Return the options in words, one sentence each."""
        width = f"of {self.accumulator_width} bits" if self.accumulator_width else "as wide as each layer needs"
        place = {"register": "registers", "sram": "SRAM"}[self.sums_in]
        capacity = self.on_chip_bytes
        memory = "all on the chip" if capacity is None else f"from DRAM if they exceed {capacity:,} bytes"
        leakage = f"leaks {self.leakage_w:g} W for {self.token_s:g} s a token" if self.leakage_w else "does not leak"
        return (
            f"weights are read once per {self.reads_per}, {memory}",
            f"SRAM banks have {self.sram_bytes:,} bytes",
            f"sums are {width}, in {place}",
            f"digits are shifted once per {self.shifts_per}",
            f"the chip {leakage}",
        )

    def _weight_memory(self, counts: ModelCounts, system: str) -> str:
        """Return the memory that weights come from: dense layers keep two bytes a weight, projections one in INT8.

        Projections on spikes keep `stored_bytes`, and so does the dense model of the same weights, but for coarse rows.
        """
        stored = 0
        for layer in counts.layers.values():
            is_projection = layer.kind == "projection"
            has_own_rows = system == "spiking" or layer.weight_count > 0
            if system in ("spiking", "same_weights") and is_projection:
                assert layer.stored_bytes is not None
                stored += layer.stored_bytes if has_own_rows else 0
            else:
                stored += layer.weight_count * (1 if system == "int8" and is_projection else 2)
        fits = self.on_chip_bytes is None or stored <= self.on_chip_bytes
        return self.table.sram(self.sram_bytes) if fits else "dram"

    def _price(self, layer: LayerCounts, done: OperationCounts, memory: str, prices: Prices) -> dict[str, float]:
        if done == OperationCounts():
            return {}
        chosen = {"spike": done.weight_spike_bytes, "channel": done.weight_channel_bytes}
        weights = chosen.get(self.reads_per, done.weight_block_bytes) + done.weight_bytes + done.parameter_bytes
        sram = prices.byte(self.table.sram(self.sram_bytes))
        moved = done.activation_bytes + done.state_bytes + done.kv_bytes
        data = sram * moved
        if self.sums_in == "sram":
            data += sram * done.accumulator_bytes
        weight_pj = prices.byte(memory) * weights if weights else 0.0
        parts = self._integers(layer, done, prices)
        parts["encode"] = self._encode(done, prices)
        parts["rescale"] = self._rescale(done, prices)
        if layer.kind in ON_SPIKES:
            return {**parts, "weights": weight_pj, "activations": data}
        arithmetic = sum(parts.values()) + self._functions(done, prices)
        return {"rest arithmetic": arithmetic, "rest memory": weight_pj + data}

    def _integers(self, layer: LayerCounts, done: OperationCounts, prices: Prices) -> dict[str, float]:
        """Return the energy of additions and MACs at the width of their factors, and what wide sums add to it."""
        by_width = {width: getattr(done, f"num_add_int{width}") for width in WIDTHS}
        if self.accumulator_width:
            by_width = {self.accumulator_width: sum(by_width.values())}
        narrow = wide = 0.0
        for width, number in by_width.items():
            if number:
                if prices.add(width) < prices.add(8):
                    raise InputError(f"energy table {self.table.name}: expected int{width}_add >= int8_add.")
                narrow += number * prices.add(8)
                wide += number * (prices.add(width) - prices.add(8))
        if done.num_mac_int8:
            narrow += done.num_mac_int8 * (prices.of("int8_mul") + prices.add(8))
            wide += done.num_mac_int8 * (prices.add(32) - prices.add(8))
        if done.num_mac_fp16:
            narrow += done.num_mac_fp16 * (prices.of("fp16_mul") + prices.of("fp16_add"))
            wide += done.num_mac_fp16 * (prices.of("fp32_add") - prices.of("fp16_add"))
        num_shifts = done.num_shifts_per_spike if self.shifts_per == "spike" else done.num_shifts_per_timestep
        width = self.accumulator_width or adder_width(max(layer.accumulator_bits, 1))
        return {
            "additions": narrow,
            "accumulator": wide,
            "shifts": num_shifts * prices.shift(width) if num_shifts else 0.0,
        }

    def _encode(self, done: OperationCounts, prices: Prices) -> float:
        """Comparing and rounding cost an addition; divisions by one number cost a reciprocal and a product each."""
        if not done.num_encoded_tokens:
            return 0.0
        additions = done.num_encode_add + done.num_encode_compare + done.num_encode_round
        return (
            additions * prices.of("fp32_add")
            + done.num_encode_div * prices.of("fp32_mul")
            + done.num_encoded_tokens * prices.function("div")
        )

    def _rescale(self, done: OperationCounts, prices: Prices) -> float:
        energy = done.num_mul_int32 * prices.of("int32_mul") if done.num_mul_int32 else 0.0
        energy += done.num_mul_int8 * prices.of("int8_mul") if done.num_mul_int8 else 0.0
        if done.num_rescale_mul:
            energy += done.num_rescale_mul * prices.of("fp32_mul")
        additions = done.num_rescale_convert + done.num_rescale_add
        return energy + (additions * prices.of("fp32_add") if additions else 0.0)

    def _functions(self, done: OperationCounts, prices: Prices) -> float:
        mac = prices.mac_fp32()
        return (
            done.num_mac_fp32 * mac
            + (done.num_add_fp32 + done.num_compare_fp32) * prices.of("fp32_add")
            + done.num_mul_fp32 * prices.of("fp32_mul")
            + done.num_div_fp32 * prices.function("div")
            + done.num_exp_fp32 * prices.function("exp")
            + done.num_sqrt_fp32 * prices.function("sqrt")
        )

    def _assumptions(self, counts: ModelCounts, prices: Prices) -> tuple[str, ...]:
        return (
            *counts.assumptions,
            "INT8 products are added in 32 bits, FP16 products in FP32; products with 4-bit weights cost those of INT8",
            "taking a magnitude is free; comparing, rounding and converting cost an FP32 addition",
            "divisions by the same number cost one reciprocal and a multiplication each",
            f"a byte costs as in the table for banks of {self.sram_bytes:,} bytes ({self.table.convention})",
            "leakage and its time are the same in all models" if self.leakage_w else "no leakage",
            *prices.notes,
        )

    def _left_out(self, counts: ModelCounts) -> tuple[str, ...]:
        share = f"these do up to {counts.uncounted_share:.1%} of all multiply-accumulates with weights"
        return (
            *(f"not counted: {what}" for what in counts.unsupported),
            *((share,) if counts.unsupported else ()),
            "routing of spikes, which needs a chip and a mapping",
            *(("sums are in registers, whose energy is not counted",) if self.sums_in == "register" else ()),
            "control, instruction fetch, clock and handshakes",
        )
