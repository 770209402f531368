"""What the pages of `report` and `energy` say about energy: cards, waterfall, parts, and where layers break even."""

from __future__ import annotations

from typing import Any

from ..analysis.energy import has_other_weights
from ..analysis.units import energy_unit
from .charts import break_even, ratio_steps, stacked_parts
from .figures import Figures
from .layers import short_names
from .parts import Card, Column, Section, Table, Text, View
from .words import amount, cost_in_words, percent

SYSTEMS = {"spiking": "on spikes", "int8": "dense INT8", "fp16": "dense FP16"}
# With what is dense, but for spikes the same model; shown where that is not the INT8 model.
_SAME = {"same_weights": "dense, same weights"}


def energy_card(energy: Figures) -> Card:
    """Return the card with the full ratio and the paper's."""
    full, paper = energy["digital"]["ratio_vs_int8"], energy["paper"]["ratio_vs_int8"]
    same = energy["digital"]["ratio_vs_same_weights"]
    tone = "" if full is None or abs(full - 1) < 0.005 else "good" if full > 1 else "bad"
    notes = (
        f"than dense INT8, with all that is counted (ratio {_ratio(full)}).",
        f"The paper’s estimate (additions only): {cost_in_words(paper)} (ratio {_ratio(paper)}).",
        *([f"Dense with the same weights: ratio {_ratio(same)}."] if has_other_weights(energy["digital"]) else []),
    )
    return Card("Energy", cost_in_words(full), notes, "modelled", "ratio", tone)


def weights_card(energy: Figures) -> Card:
    """Return the card with the weights that a token reads."""
    counts = energy["counts"]
    spiking, dense = weight_bytes(counts)
    tokens = max(counts.number("num_tokens"), 1)
    value = "no weights" if not dense else f"{percent(spiking / dense)} of dense INT8"
    notes = (
        f"{amount(spiking / tokens, 'B')} a token, dense INT8 {amount(dense / tokens, 'B')}.",
        "Spiking layers only.",
    )
    return Card("Weights read", value, notes, "counted", "weights_read")


def weight_bytes(counts: Figures) -> tuple[int, int]:
    """Return the bytes of weights that spiking layers read over all tokens, and those that they would read dense."""
    layers = [layer for layer in counts["layers"].values() if layer["kind"] == "projection"]
    spiking = sum(layer["spiking"].get("weight_channel_bytes", 0) for layer in layers)
    return spiking, sum(layer["int8"].get("weight_bytes", 0) for layer in layers)


def energy_section(energy: Figures) -> Section:
    """Return all about energy."""
    paper, digital = energy["paper"], energy["digital"]
    unverified = [f"Not confirmed by the table’s source: {', '.join(digital['unverified'])}."]
    left_out = [
        f"The paper’s estimate leaves out: {'; '.join(paper['left_out'])}.",
        f"The full estimate leaves out: {'; '.join(digital['left_out'])}.",
        *([energy["not_counted"]["sentence"]] if energy["not_counted"]["parts"] else []),
        *(unverified if digital["unverified"] else []),
    ]
    table = digital["table"]
    return Section(
        "energy",
        "Energy",
        f"Modelled, nothing is measured. {_capital(digital['model'])}. Energies: {table['source']} "
        f"({table['process']}), table {table['name']}.",
        [
            *_waterfall(energy["waterfall"], digital.number("num_tokens")),
            *_parts(digital),
            *_break_even(energy["break_even"]),
            _sensitivity(energy["sensitivity"]),
            Text(left_out, "What is left out"),
            Text(digital["assumptions"], f"{len(digital['assumptions'])} assumptions"),
        ],
    )


def _waterfall(steps: list[Figures], num_tokens: float) -> list[View | Table]:
    tokens = max(num_tokens, 1)

    def shown(step: Figures, system: str) -> str:
        return f"{amount(step.number(f'{system}_pj') / tokens * 1e-12, 'J')} a token"

    names = [("+ " if i else "") + step["name"] for i, step in enumerate(steps)]
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "ratio": step["ratio_vs_int8"],
            "spiking": shown(step, "spiking"),
            "dense": shown(step, "int8"),
            "fp16": "–" if step["ratio_vs_fp16"] is None else f"{step['ratio_vs_fp16']:.3g}×",
        }
        for name, step in zip(names, steps, strict=True)
    ]
    first, last = rows[0]["ratio"], rows[-1]["ratio"]
    says = "" if first is None or last is None else f"The ratio goes from {first:.2f} to {last:.2f}."
    factor, unit = energy_unit(max(step.number("fp16_pj") for step in steps) / tokens)
    columns = [Column("with"), Column("INT8 ÷ spikes", ".2f", "ratio"), Column("FP16 ÷ spikes", ".2f")]
    columns += [Column(f"{name}, {unit} a token", ",.2f") for name in SYSTEMS.values()]
    values = [
        (
            name,
            step["ratio_vs_int8"],
            step["ratio_vs_fp16"],
            *(step.number(f"{system}_pj") / tokens / factor for system in SYSTEMS),
        )
        for name, step in zip(names, steps, strict=True)
    ]
    note = (
        "Each bar counts one cost more, for both models. Right of 1 spikes cost less than dense INT8, left of it more."
    )
    return [
        View("waterfall", "chart", "From the paper’s estimate to the full one", ratio_steps(rows), note, says),
        Table("One cost after the other", columns, values, is_open=False),
    ]


def _parts(digital: Figures) -> list[View | Table]:
    systems = {**SYSTEMS, **_SAME} if has_other_weights(digital) else SYSTEMS
    by_system = {system: dict(digital[f"{system}_parts_pj"].items()) for system in systems}
    totals = [digital.number(f"{system}_total_pj") for system in systems]
    tokens = max(digital.number("num_tokens"), 1)
    factor, unit = energy_unit(max(totals) / tokens)
    divided = tokens * factor
    names = list(dict.fromkeys(part for parts in by_system.values() for part in parts))
    rows = [
        {"system": systems[system], "part": part, "value": value / divided}
        for system, parts in by_system.items()
        for part, value in parts.items()
    ]
    values = [(part, *(parts.get(part, 0.0) / divided for parts in by_system.values())) for part in names]
    values.append(("total", *(total / divided for total in totals)))
    columns = [Column("part"), *(Column(name, ",.2f") for name in systems.values())]
    chart = stacked_parts(rows, names, f"{unit} a token")
    of_kinds = {system: dict(digital[f"{system}_by_kind_pj"].items()) for system in systems}
    kinds = [
        (kind, value / max(totals[0], 1e-30), *(of_kinds[system].get(kind, 0.0) / divided for system in systems))
        for kind, value in of_kinds["spiking"].items()
    ]
    of_what = [Column("of"), Column("share, on spikes", ".1%"), *columns[1:]]
    return [
        View("parts", "chart", "Where the energy of a token goes", chart),
        Table(f"Energy of a token, {unit}", columns, values, is_open=False, total=True),
        Table(f"What is on spikes and what is left, {unit} a token", of_what, kinds, is_open=False),
    ]


def _break_even(points: list[Figures]) -> list[View | Table | Text]:
    if not points:
        return [Text(["Nothing fired, so no layer breaks even."])]
    short = short_names(point["layer"] for point in points)
    rows = [
        {
            "layer": short[point["layer"]],
            "spikes": point.number("spikes"),
            "with_memory": point.number("even_spikes"),
            "without_memory": point.number("even_spikes_without_memory"),
            "wins": point["wins"],
        }
        for point in points
    ]
    columns = [
        Column("layers"),
        Column("spikes", ".2f", "mean_spikes"),
        Column("break-even, with memory", ".2f", "even_spikes"),
        Column("without memory", ".2f", "even_spikes_without_memory"),
        Column("silent", ".1%", "silent_fraction"),
        Column("cheaper on spikes", None, "wins"),
    ]
    values = [
        (row["layer"], row["spikes"], row["with_memory"], row["without_memory"], point["silent_fraction"], row["wins"])
        for row, point in zip(rows, points, strict=True)
    ]
    note = (
        "A layer is cheaper on spikes while it fires less than its break-even spikes. Break-evens below 0, where no "
        "number of spikes would do, are only in the table."
    )
    return [
        View("break-even", "chart", "Where layers break even", break_even(rows), note),
        Table("Break-even spikes per channel", columns, values, is_open=False),
    ]


def _sensitivity(rows: list[Figures]) -> Table:
    columns = [Column("entry of the energy table"), Column("share, on spikes", ".1%"), Column("share, INT8", ".1%")]
    columns += [Column("ratio", ".2f", "ratio"), Column("if doubled", ".2f"), Column("if halved", ".2f")]
    keys = ("spiking_share", "int8_share", "ratio_vs_int8", "ratio_if_doubled", "ratio_if_halved")
    values = [(row["entry"], *(row[key] for key in keys)) for row in rows]
    return Table("What the ratio depends on", columns, values, is_open=False)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _ratio(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"
