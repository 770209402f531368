"""The command `spikebrain simulate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..answer import Answer
from ..clock import took
from ..complete import chips as chip_names
from ..complete import layers_of, mappings, orders, words
from ..options import (
    CoarseRows,
    CompactScales,
    EncoderName,
    GroupSize,
    IncludeHead,
    K,
    Layers,
    Model,
    NeuronName,
    NumTokens,
    Skip,
    TextFile,
    Weights,
    coarse_of,
    folder_for,
    k_of,
    named,
    seed_for,
    table_of,
)
from ..panels import CHIP, MEASURED, OUTPUT, SIMULATE
from ..progress import Screen
from ..template import print_template, template_of
from ..words import less_or_more

if TYPE_CHECKING:
    from rich.console import Console

    from ...jobs import Simulated

PANEL = SIMULATE


def simulate(
    screen: Screen,
    model: Model = "smollm2",
    chip: Annotated[
        str,
        typer.Option(
            help="A name (spikebrain doctor lists them), or the path of a .toml file.",
            autocompletion=chip_names,
            rich_help_panel=CHIP,
        ),
    ] = "async-45nm",
    template: Annotated[bool, template_of("a chip", "--chip", CHIP)] = False,
    text: TextFile = None,
    num_tokens: NumTokens = 16,
    mode: Annotated[
        str,
        typer.Option(
            help="decode: token after token; prefill: tokens follow each other.",
            autocompletion=words("decode", "prefill"),
            rich_help_panel=MEASURED,
        ),
    ] = "decode",
    mapping: Annotated[
        str,
        typer.Option(
            help="How layers are cut into cores: in-order, minimal-traffic or a plug-in.",
            autocompletion=mappings,
            rich_help_panel=CHIP,
        ),
    ] = "in-order",
    order: Annotated[
        str,
        typer.Option(
            help="Order of the channels in memory: as-given, by-rate or together; see above.",
            autocompletion=orders,
            rich_help_panel=CHIP,
        ),
    ] = "as-given",
    stream: Annotated[
        bool,
        typer.Option("--stream", help="Weights stream from DRAM: the model need not fit.", rich_help_panel=CHIP),
    ] = False,
    neuron: NeuronName = None,
    k: K = None,
    encoder: EncoderName = None,
    layers: Layers = None,
    skip: Skip = None,
    weights: Weights = None,
    group_size: GroupSize = None,
    compact_scales: CompactScales = False,
    coarse: CoarseRows = None,
    include_head: IncludeHead = False,
    jitter: Annotated[
        float, typer.Option(help="Services last up to this share longer, at random.", rich_help_panel=MEASURED)
    ] = 0.0,
    seed: Annotated[int | None, seed_for("the jitter")] = None,
    critical_path: Annotated[
        bool,
        typer.Option("--critical-path", help="Find what holds tokens up; slower.", rich_help_panel=MEASURED),
    ] = False,
    timeline: Annotated[
        str | None,
        typer.Option(
            help="Layers of which to write timeline.pftrace for Perfetto: a pattern of names, of 8 layers at most.",
            autocompletion=layers_of,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    out: Annotated[Path, folder_for("simulation.html, simulation.json and the plots")] = Path("spikebrain-chip"),
) -> Answer:
    """Run a model on a simulated asynchronous chip: time, energy, bottlenecks.

    It is simulated event by event, and all sums are checked. The order of channels (--order) is learned from the 128
    tokens of the text that follow those simulated. A model that spikes already runs as it is: --neuron, --k, --encoder,
    --layers, --skip, --weights, --group-size, --compact-scales, --coarse and --include-head are for others.
    """
    from ... import chip as chips
    from ... import coding, jobs, neuro
    from ...chip.description import CHIPS

    if template:
        print_template(screen.typed, CHIPS, "chip")
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
        k=k_of(k),
        encoder=named(coding.ENCODERS, encoder),
        layers=layers,
        skip=tuple(skip) if skip else None,
        weights=weights,
        group_size=group_size,
        compact_scales=compact_scales or None,
        coarse=coarse_of(coarse),
        include_head=include_head,
        jitter=jitter,
        seed=seed,
        critical_path=critical_path,
        timeline=timeline,
    )
    found = jobs.simulate(settings, out, screen)
    if not critical_path:
        changed, why = {"critical_path": True}, "what a token waits for"
    elif mapping == "in-order":
        changed, why = {"mapping": "minimal-traffic"}, "the same with fewer packets between cores"
    else:
        changed, why = {"mode": "prefill" if mode == "decode" else "decode"}, "the same in the other mode"
    return Answer(
        _figure(found.figures),
        found.figures,
        lambda console: _print(console, found),
        out=out,
        files=found.files,
        next=screen.typed.again(**changed),
        why=why,
    )


def _figure(figures: dict[str, Any]) -> str:
    """Return what a token costs, in a line."""
    per_mac, energy = figures["energy_per_mac_pj"], figures["energy_per_token_pj"]["total"]
    cost = f"{figures['token_s']['mean'] * 1e6:,.1f} µs and {energy / 1e6:,.2f} µJ on {figures['chip']}"
    beside = ""
    if per_mac["paper"] and per_mac["simulated"]:
        beside = f": {less_or_more(per_mac['paper'] / per_mac['simulated'], 'than additions alone')}"
    return f"A token takes {cost} (simulated), {per_mac['simulated']:.4g} pJ per dense MAC{beside}."


def _left_dense(figures: dict[str, Any]) -> str:
    """Return what does not spike, the most first, in a sentence."""
    parts, total = figures["dense_rest_per_token_pj"], figures["energy_per_token_pj"]["total"]
    shown = [f"{name} {pj / 1e6:.2f} µJ" + (f" ({pj / total:.0%})" if total else "") for name, pj in parts.items()][:4]
    more = f", and {len(parts) - 4} more" if len(parts) > 4 else ""
    return f"Left dense: {', '.join(shown)}{more}." if parts else "Nothing is left dense."


def _print(console: Console, found: Simulated) -> None:
    figures = found.figures
    cores, exact, per_mac = figures["num_cores"], figures["exactness"], figures["energy_per_mac_pj"]
    console.print(f"{found.title}: {figures['num_layers']} layers on {cores['mapped']:,} of {cores['chip']:,} cores\n")
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
    console.print(_left_dense(figures))
    rate = figures["tokens_per_s"]
    console.print(
        f"Time of a token: {figures['token_s']['mean'] * 1e6:.1f} µs"
        + ("" if rate is None else f"; {rate:,.0f} tokens/s in the second half of the tokens")
    )
    console.print(
        f"Exactness: {exact['num_mismatches']:,} of {exact['num_checked']:,} sums differ from those of the model. "
        f"{figures['activity']['num_synops'] / figures['seconds']:,.0f} synaptic operations simulated a second."
    )
    if figures["unsupported"]:
        console.print(f"Not counted: {'; '.join(figures['unsupported'])}.")
    console.print(f"It rests on {len(figures['assumptions'])} assumptions: simulation.json lists them.")
    console.print(took())
