"""The command `spikebrain simulate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ..options import (
    EncoderName,
    K,
    Layers,
    Model,
    NeuronName,
    NumTokens,
    Skip,
    TextFile,
    folder_for,
    named,
    seed_for,
    table_of,
)
from ..progress import on_screen

if TYPE_CHECKING:
    from ...jobs import Simulated


def simulate(
    model: Model = "smollm2",
    chip: Annotated[
        str, typer.Option(help="A name (spikebrain doctor lists them), or the path of a .toml file.")
    ] = "async-45nm",
    text: TextFile = None,
    num_tokens: NumTokens = 16,
    mode: Annotated[str, typer.Option(help="decode: token after token; prefill: tokens follow each other.")] = "decode",
    mapping: Annotated[
        str, typer.Option(help="How layers are cut into cores: in-order, minimal-traffic or a plug-in.")
    ] = ("in-order"),
    order: Annotated[
        str, typer.Option(help="Order of the channels in memory: as-given, by-rate or together; see above.")
    ] = "as-given",
    stream: Annotated[bool, typer.Option("--stream", help="Weights stream from DRAM: the model need not fit.")] = False,
    neuron: NeuronName = None,
    k: K = None,
    encoder: EncoderName = None,
    layers: Layers = None,
    skip: Skip = None,
    jitter: Annotated[float, typer.Option(help="Services last up to this share longer, at random.")] = 0.0,
    seed: Annotated[int | None, seed_for("the jitter")] = None,
    critical_path: Annotated[bool, typer.Option("--critical-path", help="Find what holds tokens up; slower.")] = False,
    timeline: Annotated[str | None, typer.Option(help="Layer of which to write timeline.json for Perfetto.")] = None,
    out: Annotated[Path, folder_for("simulation.html, simulation.json and the plots")] = Path("spikebrain-chip"),
) -> None:
    """Run a model on a simulated asynchronous chip, event by event: exact sums, time, energy and bottlenecks.

    The order of channels (--order) is learned from the 128 tokens of the text that follow those simulated. A model that
    spikes already runs as it is: --neuron, --k, --encoder and --layers are for others.
    """
    from ... import chip as chips
    from ... import coding, jobs, neuro

    settings = jobs.SimulateSettings(
        model=model,
        chip=chip,
        text=text,
        num_tokens=num_tokens,
        mode=mode,
        mapping=named(chips.MAPPINGS, mapping),
        order=None if order == "as-given" else named(chips.ORDERS, order),
        stream=stream,
        neuron=named(neuro.NEURONS, neuron),
        k=k,
        encoder=named(coding.ENCODERS, encoder),
        layers=layers,
        skip=tuple(skip) if skip else None,
        jitter=jitter,
        seed=seed,
        critical_path=critical_path,
        timeline=timeline,
    )
    with on_screen() as progress:
        found = jobs.simulate(settings, out, progress)
    _print(found, out)


def _print(found: Simulated, out: Path) -> None:
    console = Console(highlight=False, markup=False)
    figures = found.figures
    cores, exact, per_mac = figures["num_cores"], figures["exactness"], figures["energy_per_mac_pj"]
    console.print(
        f"\n{found.title}: {figures['num_layers']} layers on {cores['mapped']:,} of {cores['chip']:,} cores\n"
    )
    energy = figures["energy_per_token_pj"]
    table = table_of("Energy per token (simulated)", "µJ", "share", "", text_columns=(0, 3))
    for name, meaning in figures["components"].items():
        share = energy[name] / energy["total"] if energy["total"] else 0.0
        table.add_row(name, f"{energy[name] / 1e6:.2f}", f"{share:.1%}", meaning)
    table.add_row("total", f"{energy['total'] / 1e6:.2f}", "", f"{per_mac['simulated']:.4g} pJ per dense MAC")
    console.print(table, "")
    console.print(
        f"The paper's estimate (additions only) of the same spikes: {per_mac['paper']:.4f} pJ per MAC; simulated, "
        f"without leakage and dense rest: {per_mac['spiking layers without leakage and dense rest']:.4g} pJ."
    )
    rate = figures["tokens_per_s"]
    console.print(
        f"Time of a token: {figures['token_s']['mean'] * 1e6:.1f} µs"
        + ("" if rate is None else f"; {rate:,.0f} tokens/s in the second half of the tokens")
    )
    console.print(
        f"Exactness: {exact['num_mismatches']:,} of {exact['num_checked']:,} sums differ from those of the model. "
        f"{figures['activity']['num_synops'] / figures['seconds'] / 1e6:,.0f} M synaptic operations simulated a second."
    )
    if figures["unsupported"]:
        console.print(f"Not counted: {'; '.join(figures['unsupported'])}.")
    console.print(f"Written to {out}: {', '.join(found.files)} ({figures['seconds']:.1f} s)")
