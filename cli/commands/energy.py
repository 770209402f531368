"""The command `spikebrain energy`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..answer import Answer
from ..complete import models, tables, words
from ..options import (
    MODEL,
    Attention,
    DeviceIfRun,
    EncoderName,
    K,
    NeuronName,
    TextFile,
    Weights,
    folder_for,
    k_of,
    named,
    table_of,
    tokens_if_run,
)
from ..panels import COSTS, INPUT, MEASURE, OUTPUT
from ..progress import Screen
from ..template import print_template, template_of
from ..words import as_ratio, less_or_more, unconfirmed

if TYPE_CHECKING:
    from rich.console import Console

    from ...energy import EnergyReport, ModelCounts

PANEL = MEASURE
_TABLE, _NEWER = "horowitz_45nm", "jouppi_7nm"


def _cost(help: str, usual: str, *known: str) -> Any:
    """Return an option that says what something costs, with its usual value and the words that it can be."""
    return typer.Option(help=help, show_default=usual, autocompletion=words(*known), rich_help_panel=COSTS)


def energy(
    screen: Screen,
    source: Annotated[
        str,
        typer.Argument(
            help=f"A report.json or its folder, which is read; or a model, which is run: {MODEL}",
            autocompletion=models,
            rich_help_panel=INPUT,
        ),
    ] = "smollm2",
    table: Annotated[
        str,
        typer.Option(
            help="Energy table: a name (spikebrain doctor lists them), or the path of a .toml file.",
            autocompletion=tables,
            rich_help_panel=COSTS,
        ),
    ] = _TABLE,
    template: Annotated[bool, template_of("an energy table", "--table", COSTS)] = False,
    reads_per: Annotated[
        str | None,
        _cost("How often weights are read: once per spike, channel or block.", "channel", "spike", "channel", "block"),
    ] = None,
    shifts_per: Annotated[
        str | None, _cost("Digits are shifted per timestep or spike.", "timestep", "timestep", "spike")
    ] = None,
    sums_in: Annotated[
        str | None, _cost("Where sums are kept: register or sram.", "register", "register", "sram")
    ] = None,
    sram_bytes: Annotated[int | None, _cost("Size of an SRAM bank.", "32768")] = None,
    on_chip_bytes: Annotated[
        int | None, _cost("Memory for weights on the chip; a model with more reads them from DRAM.", "all on chip")
    ] = None,
    leakage_w: Annotated[float | None, _cost("Power of the idle chip, in watts; with --token-s.", "0")] = None,
    token_s: Annotated[float | None, _cost("Time of a token, in seconds, in which the chip leaks.", "0")] = None,
    block_bytes: Annotated[int | None, _cost("Size of a memory block, with --reads-per block.", "64")] = None,
    shared_tokens: Annotated[int | None, _cost("Tokens that share a read of weights.", "1")] = None,
    neuron: NeuronName = None,
    k: K = None,
    encoder: EncoderName = None,
    weights: Weights = None,
    attention: Attention = None,
    text: TextFile = None,
    num_tokens: Annotated[int | None, tokens_if_run("512")] = None,
    device: DeviceIfRun = None,
    out: Annotated[Path | None, folder_for("energy.html, energy.json and the plots")] = None,
    assumptions: Annotated[
        bool,
        typer.Option("--assumptions", help="List every assumption of the estimate.", rich_help_panel=OUTPUT),
    ] = False,
) -> Answer:
    """Estimate what a run on spikes costs beside dense INT8 and FP16.

    It is modelled, with the price of everything that is counted.

    A report has been run already: --block-bytes, --shared-tokens, --neuron, --k, --encoder, --weights, --attention,
    --text, --num-tokens and --device are for a model. The table of a chip has whole energies, so the options from
    --reads-per to --shared-tokens are for other tables.
    """
    from ... import coding, jobs, neuro
    from ...energy import load_table
    from ...energy.table import TABLES

    if template:
        print_template(screen.typed, TABLES, "table")
    options: dict[str, Any] = {"reads_per": reads_per, "shifts_per": shifts_per, "sums_in": sums_in}
    options |= {"sram_bytes": sram_bytes, "on_chip_bytes": on_chip_bytes, "leakage_w": leakage_w, "token_s": token_s}
    options = {name: value for name, value in options.items() if value is not None}
    settings = jobs.EnergySettings(
        source=source,
        energy=jobs.energy_model(load_table(table), **options),
        block_bytes=block_bytes,
        shared_tokens=shared_tokens,
        neuron=named(neuro.NEURONS, neuron),
        k=k_of(k),
        encoder=named(coding.ENCODERS, encoder),
        weights=weights,
        attention=attention,
        text=text,
        num_tokens=num_tokens,
        device=device,
    )
    found = jobs.energy(settings, out, screen)
    same = ("spikebrain", "energy", source)
    same += screen.typed.same("neuron", "k", "encoder", "weights", "attention", "text", "num_tokens", "device")
    if table == _TABLE:
        follows: dict[str, Any] = {"next": (*same, "--table", _NEWER), "why": "the same run in a newer process"}
    elif assumptions:
        follows = {"next": same, "why": f"the same run with the table {_TABLE}"}
    else:
        follows = {"next": screen.typed.again(assumptions=True), "why": "all that the estimate rests on"}
    if found.by_synops is not None:
        report = found.by_synops
        return Answer(
            f"A token costs {report.total_pj / max(report.num_tokens, 1) / 1e3:,.1f} nJ on {report.process}, by its "
            "energy of a synaptic operation (modelled).",
            report.to_dict(),
            lambda console: _print_synops(console, report, assumptions),
            **follows,
        )
    assert found.figures is not None
    figures = found.figures
    return Answer(
        _figure(figures["digital"]),
        figures,
        lambda console: _print(console, figures, found.counts, assumptions),
        out=out,
        files=found.files,
        **follows,
    )


def _figure(digital: dict[str, Any]) -> str:
    from ...analysis.energy import has_other_weights

    per_token = digital["spiking_total_pj"] / max(digital["num_tokens"], 1) / 1e3
    shown = {"int8": "INT8", "fp16": "FP16"}
    if has_other_weights(digital):
        shown["same_weights"] = "dense with the same weights"
    ratios = [less_or_more(digital[f"ratio_vs_{system}"], f"than {name}") for system, name in shown.items()]
    return f"A token costs {per_token:,.1f} nJ on spikes (modelled): {', '.join(ratios)}."


def _print_synops(console: Console, report: EnergyReport, assumptions: bool) -> None:
    console.print(f"{report.model}, {report.process}")
    if assumptions:
        console.print("Assumptions:\n" + "\n".join(f"- {sentence}" for sentence in report.assumptions))
    console.print("Left out: " + "; ".join(report.left_out) + f".\nSource: {report.source}.")


def _print(console: Console, figures: dict[str, Any], counts: ModelCounts, assumptions: bool) -> None:
    digital = figures["digital"]
    console.print(f"{counts.model}, {counts.neuron}, {counts.encoder}, {digital['num_tokens']:,} tokens")
    for sentence in digital["options"]:
        console.print(f"- {sentence}")
    console.print(f"Table {digital['table']['name']} ({digital['table']['process']})\n")
    _print_parts(console, digital)
    table = table_of("One cost after the other", "INT8 / spiking", "FP16 / spiking")
    for i, step in enumerate(figures["waterfall"]):
        ratios = [step[f"ratio_vs_{system}"] for system in ("int8", "fp16")]
        shown = ["" if r is None else as_ratio(r) for r in ratios]
        table.add_row(("+ " if i else "") + step["name"], *shown)
    console.print(table, "")
    if figures["not_counted"]["parts"]:
        console.print(figures["not_counted"]["sentence"], "")
    _print_break_even(console, figures["break_even"])
    largest = figures["sensitivity"][:3]
    if largest:
        said = ", ".join(
            f"{s['entry']} (doubled: {as_ratio(s['ratio_if_doubled'])})" for s in largest if s["ratio_if_doubled"]
        )
        console.print(f"The ratio depends most on {said}.")
    if digital["unverified"]:
        console.print(unconfirmed(digital["unverified"]))
    if assumptions:
        console.print("Assumptions:\n" + "\n".join(f"- {sentence}" for sentence in digital["assumptions"]))
    else:
        console.print(f"The estimate rests on {len(digital['assumptions'])} assumptions: --assumptions lists them.")
    console.print("Left out: " + "; ".join(digital["left_out"]) + f".\nSource: {digital['table']['source']}.")


def _print_parts(console: Console, digital: dict[str, Any]) -> None:
    """Print the energy of a token, part by part."""
    from ...analysis.energy import has_other_weights
    from ...energy.energy_report import TITLES

    tokens = max(digital["num_tokens"], 1)
    shows_all = has_other_weights(digital)
    systems = {name: title for name, title in TITLES.items() if shows_all or name != "same_weights"}
    table = table_of("Energy a token, nJ (modelled)", *systems.values())
    for part in dict.fromkeys((*digital["spiking_parts_pj"], *digital["int8_parts_pj"])):
        row = [digital[f"{system}_parts_pj"].get(part, 0.0) for system in systems]
        table.add_row(part, *(f"{value / tokens / 1e3:,.1f}" for value in row))
    totals = [digital[f"{system}_total_pj"] for system in systems]
    table.add_row("total", *(f"{value / tokens / 1e3:,.1f}" for value in totals), style="bold")
    console.print(table, "")


def _print_break_even(console: Console, points: list[dict[str, Any]]) -> None:
    """Print the spikes per channel at which a layer costs as much as in dense INT8."""
    columns = ("Break-even vs INT8", "spikes", "break-even", "without memory", "silent", "wins")
    table = table_of(*columns)
    for point in points:
        row = (point["spikes"], point["even_spikes"], point["even_spikes_without_memory"])
        shown = (
            *(f"{value:.2f}" for value in row),
            f"{point['silent_fraction']:.1%}",
            "yes" if point["wins"] else "no",
        )
        table.add_row(point["layer"].rpartition("layers.")[2], *shown)
    console.print(table, "")
