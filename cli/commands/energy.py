"""The command `spikebrain energy`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ..options import DEVICES, MODEL, EncoderName, K, NeuronName, TextFile, Weights, folder_for, named, table_of
from ..progress import on_screen

if TYPE_CHECKING:
    from ...energy import EnergyReport, ModelCounts


def energy(
    source: Annotated[
        str, typer.Argument(help=f"A report.json or its folder, which is read; or a model, which is run: {MODEL}")
    ] = "smollm2",
    table: Annotated[
        str, typer.Option(help="Energy table: a name (spikebrain doctor lists them), or the path of a .toml file.")
    ] = "horowitz_45nm",
    reads_per: Annotated[
        str | None, typer.Option(help="Weights are read per spike, channel or block.", show_default="channel")
    ] = None,
    shifts_per: Annotated[
        str | None, typer.Option(help="Digits are shifted per timestep or spike.", show_default="timestep")
    ] = None,
    sums_in: Annotated[
        str | None, typer.Option(help="Sums are kept in register or sram.", show_default="register")
    ] = None,
    sram_bytes: Annotated[int | None, typer.Option(help="Size of an SRAM bank.", show_default="32768")] = None,
    on_chip_bytes: Annotated[
        int | None, typer.Option(help="A model with more weights reads them from DRAM.", show_default="all on chip")
    ] = None,
    leakage_w: Annotated[
        float | None, typer.Option(help="Power of the idle chip, in watts; with --token-s.", show_default="0")
    ] = None,
    token_s: Annotated[
        float | None, typer.Option(help="Time of a token, in seconds, in which the chip leaks.", show_default="0")
    ] = None,
    block_bytes: Annotated[
        int | None, typer.Option(help="Size of a memory block, with --reads-per block.", show_default="64")
    ] = None,
    shared_tokens: Annotated[
        int | None, typer.Option(help="Tokens that share a read of weights.", show_default="1")
    ] = None,
    neuron: NeuronName = None,
    k: K = None,
    encoder: EncoderName = None,
    weights: Weights = None,
    text: TextFile = None,
    num_tokens: Annotated[
        int | None, typer.Option(help="Tokens from the start of the text.", show_default="512")
    ] = None,
    device: Annotated[str | None, typer.Option(help=DEVICES, show_default="auto")] = None,
    out: Annotated[Path | None, folder_for("energy.html, energy.json and the plots")] = None,
    assumptions: Annotated[bool, typer.Option("--assumptions", help="List every assumption of the estimate.")] = False,
) -> None:
    """Say what a run on spikes costs beside dense INT8 and FP16: modelled, with every cost that is counted.

    A report has been run already: --block-bytes, --shared-tokens, --neuron, --k, --encoder, --weights, --text,
    --num-tokens and --device are for a model. The table of a chip has whole energies, so the options from --reads-per
    to --shared-tokens are for other tables.
    """
    from ... import coding, jobs, neuro
    from ...energy import load_table

    options: dict[str, Any] = {"reads_per": reads_per, "shifts_per": shifts_per, "sums_in": sums_in}
    options |= {"sram_bytes": sram_bytes, "on_chip_bytes": on_chip_bytes, "leakage_w": leakage_w, "token_s": token_s}
    options = {name: value for name, value in options.items() if value is not None}
    settings = jobs.EnergySettings(
        source=source,
        energy=jobs.energy_model(load_table(table), **options),
        block_bytes=block_bytes,
        shared_tokens=shared_tokens,
        neuron=named(neuro.NEURONS, neuron),
        k=k,
        encoder=named(coding.ENCODERS, encoder),
        weights=weights,
        text=text,
        num_tokens=num_tokens,
        device=device,
    )
    with on_screen() as progress:
        found = jobs.energy(settings, out, progress)
    console = Console(highlight=False, markup=False)
    if found.by_synops is not None:
        _print_synops(console, found.by_synops, assumptions)
    elif found.figures is not None:
        _print(console, found.figures, found.counts, assumptions)
    if found.files:
        console.print(f"Written to {out}: {', '.join(found.files)}")


def _print_synops(console: Console, report: EnergyReport, assumptions: bool) -> None:
    per_token = report.total_pj / max(report.num_tokens, 1)
    console.print(f"{report.model}, {report.process}: {per_token:,.0f} pJ a token")
    if assumptions:
        console.print("Assumptions:\n" + "\n".join(f"- {sentence}" for sentence in report.assumptions))
    console.print("Left out: " + "; ".join(report.left_out) + f".\nSource: {report.source}.")


def _print(console: Console, figures: dict[str, Any], counts: ModelCounts, assumptions: bool) -> None:
    digital = figures["digital"]
    console.print(f"\n{counts.model}, {counts.neuron}, {counts.encoder}, {digital['num_tokens']:,} tokens")
    console.print(f"{digital['model']}\nTable {digital['table']['name']} ({digital['table']['process']})\n")
    _print_parts(console, digital)
    table = table_of("One cost after the other", "INT8 / spiking", "FP16 / spiking")
    for i, step in enumerate(figures["waterfall"]):
        ratios = [step[f"ratio_vs_{system}"] for system in ("int8", "fp16")]
        shown = ["" if r is None else f"{r:.2f}x" for r in ratios]
        table.add_row(("+ " if i else "") + step["name"], *shown)
    console.print(table, "")
    if figures["not_counted"]["parts"]:
        console.print(figures["not_counted"]["sentence"], "")
    _print_break_even(console, figures["break_even"])
    largest = figures["sensitivity"][:3]
    if largest:
        said = ", ".join(
            f"{s['entry']} (doubled: {s['ratio_if_doubled']:.2f}x)" for s in largest if s["ratio_if_doubled"]
        )
        console.print(f"The ratio depends most on {said}.")
    if digital["unverified"]:
        console.print(
            f"Not confirmed by the table's source: {', '.join(digital['unverified'])}. If you know better values, put "
            "them into a table of your own (--table FILE.toml)."
        )
    if assumptions:
        console.print("Assumptions:\n" + "\n".join(f"- {sentence}" for sentence in digital["assumptions"]))
    else:
        console.print(f"The estimate rests on {len(digital['assumptions'])} assumptions: --assumptions lists them.")
    console.print("Left out: " + "; ".join(digital["left_out"]) + f".\nSource: {digital['table']['source']}.")


def _print_parts(console: Console, digital: dict[str, Any]) -> None:
    """Print the energy of a token, part by part."""
    from ...energy.counts import SYSTEMS

    tokens = max(digital["num_tokens"], 1)
    table = table_of("Energy a token, nJ (modelled)", "spiking", "INT8", "FP16")
    for part in dict.fromkeys((*digital["spiking_parts_pj"], *digital["int8_parts_pj"])):
        row = [digital[f"{system}_parts_pj"].get(part, 0.0) for system in SYSTEMS]
        table.add_row(part, *(f"{value / tokens / 1e3:,.1f}" for value in row))
    totals = [digital[f"{system}_total_pj"] for system in SYSTEMS]
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
