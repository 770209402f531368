"""The command `spikebrain simulate`: a model on a simulated asynchronous chip."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..analysis.chip_plots import plot_chip_energy, plot_chip_time, plot_mesh
from ..chip import MAPPINGS, ORDERS, load_description
from ..chip.trace import write_timeline
from ..coding import ENCODERS
from ..errors import InputError
from ..jobs.progress import progress_bars
from ..jobs.report import ReportSettings, load_spiking, require_writable
from ..models import SpikeLinear
from ..simulation.describe import describe_simulation
from ..simulation.model import MODES, simulate_model
from ..simulation.orders import learn_orders

_ORDER_TOKENS = 128


def simulate_command(
    model: Annotated[str, typer.Argument(help="A model, as of `spikebrain report`.")] = "smollm2",
    chip: Annotated[
        str, typer.Option(help="ideal-45nm, async-45nm, loihi, or the path of a .toml file.")
    ] = "async-45nm",
    text: Annotated[Path | None, typer.Option(help="UTF-8 text file.", show_default="pydoc_data.topics")] = None,
    num_tokens: Annotated[int, typer.Option(help="Tokens from the start of the text, as one window.")] = 16,
    mode: Annotated[str, typer.Option(help="decode: token after token; prefill: tokens follow each other.")] = "decode",
    mapping: Annotated[str, typer.Option(help="in-order or minimal-traffic.")] = "in-order",
    order: Annotated[
        str, typer.Option(help="Order of the channels in memory: as-given, by-rate or together; see below.")
    ] = "as-given",
    stream: Annotated[bool, typer.Option("--stream", help="Weights stream from DRAM: the model need not fit.")] = False,
    k: Annotated[float, typer.Option(help="Thresholds that the mean |x| of a token is worth.")] = 3.0,
    encoder: Annotated[str, typer.Option(help="Spike code.")] = "bitwise-bidirectional",
    layers: Annotated[str, typer.Option(help="Layers that spike: a pattern of names, with * and ?.")] = "*",
    jitter: Annotated[float, typer.Option(help="Services last up to this share longer, at random.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the jitter.")] = 0,
    critical_path: Annotated[bool, typer.Option("--critical-path", help="Find what holds tokens up; slower.")] = False,
    timeline: Annotated[str | None, typer.Option(help="Layer of which to write timeline.json for Perfetto.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for simulation.json and the plots.")] = Path("spikebrain-chip"),
) -> None:
    """Run a model on a simulated asynchronous chip, event by event: exact sums, time, energy and bottlenecks.

    An --order is learned from the 128 tokens of the text that follow those simulated.
    """
    if num_tokens < 1:
        raise InputError(f"--num-tokens: expected 1 or more, got {num_tokens}.")
    if encoder not in ENCODERS:
        raise InputError(f"--encoder: expected one of {', '.join(ENCODERS)}; got {encoder!r}.")
    if mapping not in MAPPINGS:
        raise InputError(f"--mapping: expected one of {', '.join(MAPPINGS)}; got {mapping!r}.")
    if mode not in MODES:
        raise InputError(f"--mode: expected one of {', '.join(MODES)}; got {mode!r}.")
    if order not in ORDERS:
        raise InputError(f"--order: expected one of {', '.join(ORDERS)}; got {order!r}.")
    description = load_description(chip)
    learned_from = 0 if order == "as-given" else _ORDER_TOKENS
    settings = ReportSettings(
        model,
        text,
        num_tokens + learned_from,
        num_tokens,
        k=k,
        encoder=ENCODERS.create(encoder),
        layers=layers,
        seed=seed,
        device="cpu",
    )
    require_writable(out)
    progress = Console(stderr=True, markup=False)
    spiking, ids, model_source, text_source = load_spiking(settings, progress)
    num_layers = sum(isinstance(module, SpikeLinear) for module in spiking.modules())
    if len(ids) < num_tokens:
        raise InputError(
            f"--num-tokens: expected at most the {len(ids):,} tokens of the text, got {num_tokens:,}. "
            "Give a longer text."
        )
    ids, following = ids[:num_tokens], ids[num_tokens:]
    orders = {}
    if learned_from:
        if len(following) == 0:
            raise InputError(f"--order {order}: expected a text of more than {num_tokens} tokens to learn from.")
        progress.print(f"Learning the order of channels from {len(following)} tokens")
        orders = learn_orders(spiking, following, ORDERS.create(order))
    began = time.perf_counter()
    with progress_bars(progress, unit="layers") as add_bar:
        found = simulate_model(
            spiking,
            ids,
            description,
            mapping=MAPPINGS.create(mapping),
            stream=stream,
            mode=mode,
            orders=orders,
            jitter=jitter,
            seed=seed,
            trace=critical_path,
            timeline=timeline,
            progress=add_bar("simulated", num_layers),
        )
    seconds = time.perf_counter() - began
    report = describe_simulation(found)
    report["model"] = {"name": model, "source": Path(model_source).name}
    report["text"] = text_source
    report["order"] = {"name": order, "num_tokens": len(following)}
    report["seconds"] = seconds
    title = f"{Path(model_source).stem}, {len(ids)} tokens, {mode}, on {description.name}"
    plot_chip_energy(found, out / "energy.png", title)
    plot_chip_time(found, out / "time.png", title)
    plot_mesh(found, out / "mesh.png", title)
    if found.timeline is not None and timeline is not None:
        report["num_timeline_events"] = write_timeline(found.timeline, out / "timeline.json", timeline)
    (out / "simulation.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    _print(report, title, out)


def _print(report: dict, title: str, out: Path) -> None:
    console = Console(highlight=False, markup=False)
    cores, exact, per_mac = report["num_cores"], report["exactness"], report["energy_per_mac_pj"]
    console.print(f"\n{title}: {report['num_layers']} layers on {cores['mapped']:,} of {cores['chip']:,} cores\n")
    energy = report["energy_per_token_pj"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("Energy per token (simulated)", "µJ", "share", ""):
        table.add_column(column, justify="right" if column in ("µJ", "share") else "left")
    for name, meaning in report["components"].items():
        share = energy[name] / energy["total"] if energy["total"] else 0.0
        table.add_row(name, f"{energy[name] / 1e6:.2f}", f"{share:.1%}", meaning)
    table.add_row("total", f"{energy['total'] / 1e6:.2f}", "", f"{per_mac['simulated']:.4g} pJ per dense MAC")
    console.print(table, "")
    console.print(
        f"The paper's estimate (eq. 24) of the same spikes: {per_mac['paper']:.4f} pJ per MAC; simulated, without "
        f"leakage and dense rest: {per_mac['spiking layers without leakage and dense rest']:.4g} pJ."
    )
    rate = report["tokens_per_s"]
    console.print(
        f"Time of a token: {report['token_s']['mean'] * 1e6:.1f} µs"
        + ("" if rate is None else f"; {rate:,.0f} tokens/s in the second half of the tokens")
    )
    console.print(
        f"Exactness: {exact['num_mismatches']:,} of {exact['num_checked']:,} sums differ from those of the model. "
        f"{report['activity']['num_synops'] / report['seconds'] / 1e6:,.0f} M synaptic operations simulated a second."
    )
    files = "simulation.json, energy.png, time.png, mesh.png" + (
        ", timeline.json" if "num_timeline_events" in report else ""
    )
    console.print(f"Written to {out}: {files} ({report['seconds']:.1f} s)")
