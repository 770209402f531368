"""The command `spikebrain energy`: what a run costs with a table and options, from a model or from report.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from ..analysis import plot_break_even, plot_waterfall, split_windows, window_nlls
from ..analysis.energy import describe_energy
from ..coding import ENCODERS
from ..energy import DigitalEnergy, ModelCounts, SynopEnergy, break_even, count_operations, load_table, waterfall
from ..errors import InputError
from ..jobs.progress import progress_bars
from ..jobs.report import ReportSettings, load_spiking
from ..models.recording import record
from .convert import DEVICE


def energy_command(
    source: Annotated[
        str, typer.Argument(help="A model, as of `spikebrain report`, which is run; or a report.json, which is read.")
    ] = "smollm2",
    table: Annotated[str, typer.Option(help="Energy table: a name, or the path of a .toml file.")] = "horowitz_45nm",
    reads_per: Annotated[str, typer.Option(help="Weights read per spike, channel or block.")] = "channel",
    shifts_per: Annotated[str, typer.Option(help="Digits shifted per timestep or spike.")] = "timestep",
    sums_in: Annotated[str, typer.Option(help="Sums kept in register or sram.")] = "register",
    sram_bytes: Annotated[int, typer.Option(help="Size of an SRAM bank.")] = 32768,
    on_chip_bytes: Annotated[
        int | None, typer.Option(help="Weights beyond come from DRAM.", show_default="all on chip")
    ] = None,
    leakage_w: Annotated[float, typer.Option(help="Power of the idle chip.")] = 0.0,
    token_s: Annotated[float, typer.Option(help="Time of a token.")] = 0.0,
    block_bytes: Annotated[int, typer.Option(help="Size of a memory block; for a model only.")] = 64,
    shared_tokens: Annotated[int, typer.Option(help="Tokens that share a read of weights; for a model only.")] = 1,
    k: Annotated[float, typer.Option(help="Of the threshold; for a model only.")] = 3.0,
    encoder: Annotated[str, typer.Option(help="Spike code; for a model only.")] = "bitwise-bidirectional",
    text: Annotated[Path | None, typer.Option(help="UTF-8 text; for a model only.")] = None,
    num_tokens: Annotated[int, typer.Option(help="Tokens of the text; for a model only.")] = 512,
    device: Annotated[str, DEVICE] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for energy.json and the plots.")] = None,
) -> None:
    """Say what a run on spikes costs beside dense INT8 and FP16: modelled, with every cost that is counted."""
    energies = load_table(table)
    if encoder not in ENCODERS:
        raise InputError(f"--encoder: expected one of {', '.join(ENCODERS)}; got {encoder!r}.")
    options: dict[str, Any] = {"reads_per": reads_per, "shifts_per": shifts_per, "sums_in": sums_in}
    options |= {"sram_bytes": sram_bytes, "on_chip_bytes": on_chip_bytes, "leakage_w": leakage_w, "token_s": token_s}
    is_chip = "synop" in energies and "int8_add" not in energies
    if is_chip and out is not None:
        raise InputError(f"--out: nothing is written with the table {table}, which gives one number. Leave it out.")
    model = None if is_chip else DigitalEnergy(energies, **options)  # wrong options are told before anything runs
    console = Console(highlight=False, markup=False)
    if source.endswith(".json"):
        counts = _counts_of(Path(source))
    else:
        settings = ReportSettings(
            source, text, num_tokens, min(num_tokens, 512), k=k, encoder=ENCODERS.create(encoder), device=device
        )
        counts = _run(settings, block_bytes, shared_tokens)
    if model is None:
        report = SynopEnergy(energies).estimate(counts)
        console.print(
            f"{report.model}, {report.process}: {report.total_pj / max(report.num_tokens, 1):,.0f} pJ a token"
        )
        console.print("Left out: " + "; ".join(report.left_out) + f".\nSource: {report.source}.")
        return
    found = describe_energy(counts, model)
    _print(console, found, counts)
    if out is not None:
        _write(found, counts, model, out)
        console.print(f"Written to {out}: energy.json, waterfall.png, break_even.png")


def _counts_of(path: Path) -> ModelCounts:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return ModelCounts.from_dict(content.get("energy", content)["counts"])
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: expected a report.json of this version, with the counts of its run: {error!r}. Run spikebrain "
            "report again."
        ) from error


def _run(settings: ReportSettings, block_bytes: int, shared_tokens: int) -> ModelCounts:
    console = Console(stderr=True, markup=False)
    spiking, ids, _, _ = load_spiking(settings, console)
    windows = split_windows(ids, settings.context)
    with (
        progress_bars(console) as add_bar,
        record(spiking, block_bytes=(block_bytes,), shared_tokens=(shared_tokens,)) as recording,
    ):
        done = add_bar("spiking", sum(len(window) for window in windows))
        for first in range(0, len(windows), torch.get_num_threads()):
            window_nlls(spiking, windows[first : first + torch.get_num_threads()], done)
    return count_operations(recording, block_bytes=block_bytes, shared_tokens=shared_tokens)


def _print(console: Console, found: dict[str, Any], counts: ModelCounts) -> None:
    digital = found["digital"]
    tokens = max(digital["num_tokens"], 1)
    console.print(f"\n{counts.model}, {counts.neuron}, {counts.encoder}, {digital['num_tokens']:,} tokens")
    console.print(f"{digital['model']}\nTable {digital['table']['name']} ({digital['table']['process']})\n")
    table = _table("Energy a token, nJ (modelled)", "spiking", "INT8", "FP16")
    names = dict.fromkeys((*digital["spiking_parts_pj"], *digital["int8_parts_pj"]))
    for part in names:
        row = [digital[f"{system}_parts_pj"].get(part, 0.0) for system in ("spiking", "int8", "fp16")]
        table.add_row(part, *(f"{value / tokens / 1e3:,.1f}" for value in row))
    totals = [digital[f"{system}_total_pj"] for system in ("spiking", "int8", "fp16")]
    table.add_row("total", *(f"{value / tokens / 1e3:,.1f}" for value in totals), style="bold")
    console.print(table, "")
    table = _table("One cost after the other", "INT8 / spiking", "FP16 / spiking")
    for i, step in enumerate(found["waterfall"]):
        ratios = [step[f"ratio_vs_{system}"] for system in ("int8", "fp16")]
        shown = ["" if r is None else f"{r:.2f}x" for r in ratios]
        table.add_row(("+ " if i else "") + step["name"], *shown)
    console.print(table, "")
    table = _table("Break-even with dense INT8", "spikes", "even at", "arithmetic alone", "silent", "wins")
    for point in found["break_even"]:
        row = (point["spikes"], point["even_spikes"], point["even_spikes_without_memory"])
        shown = (
            *(f"{value:.2f}" for value in row),
            f"{point['silent_fraction']:.1%}",
            "yes" if point["wins"] else "no",
        )
        table.add_row(point["layer"].rpartition("layers.")[2], *shown)
    console.print(table, "")
    largest = found["sensitivity"][:3]
    if largest:
        said = ", ".join(
            f"{s['entry']} (doubled: {s['ratio_if_doubled']:.2f}x)" for s in largest if s["ratio_if_doubled"]
        )
        console.print(f"The ratio depends most on {said}.")
    if digital["unverified"]:
        console.print("Not verified in their source: " + ", ".join(digital["unverified"]) + ".")
    console.print("Taken for granted: " + "; ".join(digital["assumptions"]) + ".")
    console.print("Left out: " + "; ".join(digital["left_out"]) + f".\nSource: {digital['table']['source']}.")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def _write(found: dict[str, Any], counts: ModelCounts, model: DigitalEnergy, out: Path) -> None:
    title = f"{counts.model}, table {model.table.name}, weights read per {model.reads_per}"
    groups = counts.grouped()
    points = [break_even(groups, model, name) for name, layer in groups.layers.items() if layer.spiking.num_spikes]
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "energy.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        plot_waterfall(waterfall(counts, model), out / "waterfall.png", title)
        plot_break_even(points, out / "break_even.png", title)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written: {error}. Name another folder.") from error
