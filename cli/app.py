"""The command line: `spikebrain report` and `spikebrain doctor` here, the others in `cli_*`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..analysis import DEFINITIONS
from ..backends import BACKENDS
from ..coding import ENCODERS
from ..errors import InputError, SpikebrainError
from ..jobs.doctor import examine
from ..jobs.report import ReportSettings, run_report
from .convert import DEVICE, convert_command, generate_command
from .distill import distill_command
from .energy import energy_command
from .simulate import simulate_command

app = typer.Typer(
    help="Run language models on integer spike trains.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


app.command("convert")(convert_command)
app.command("distill")(distill_command)
app.command("generate")(generate_command)
app.command("energy")(energy_command)
app.command("simulate")(simulate_command)


@app.callback()
def _root() -> None:
    """Run language models on integer spike trains."""


@app.command()
def report(
    model: Annotated[
        str, typer.Argument(help="smollm2, a .gguf file, a model folder, a file saved by spikebrain, or a hub id.")
    ] = "smollm2",
    text: Annotated[Path | None, typer.Option(help="UTF-8 text file.", show_default="pydoc_data.topics")] = None,
    num_tokens: Annotated[int, typer.Option(help="Tokens from the start of the text.")] = 2048,
    context: Annotated[int, typer.Option(help="Tokens per window; windows do not overlap.")] = 512,
    k: Annotated[float, typer.Option(help="Thresholds that the mean |x| of a token is worth.")] = 3.0,
    encoder: Annotated[str, typer.Option(help="Spike code.")] = "bitwise-bidirectional",
    backend: Annotated[str, typer.Option(help="What accumulates; auto picks the fastest.")] = "auto",
    layers: Annotated[str, typer.Option(help="Layers that spike: a pattern of names, with * and ?.")] = "*",
    group_size: Annotated[
        int | None, typer.Option(help="Inputs that share a weight scale.", show_default="all")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for report.json, layers.csv and the plots.")] = Path(
        "spikebrain-report"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the sample of outputs that is checked.")] = 0,
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Run a model in float, with INT8 weights, and on spikes; report accuracy, spikes, energy and exactness."""
    if backend != "auto" and backend not in BACKENDS:
        raise InputError(f"--backend: expected one of auto, {', '.join(BACKENDS)}; got {backend!r}.")
    if encoder not in ENCODERS:
        raise InputError(f"--encoder: expected one of {', '.join(ENCODERS)}; got {encoder!r}.")
    settings = ReportSettings(
        model=model,
        text=text,
        num_tokens=num_tokens,
        context=context,
        k=k,
        encoder=ENCODERS.create(encoder),
        backend="auto" if backend == "auto" else BACKENDS.create(backend),
        layers=layers,
        group_size=group_size,
        seed=seed,
        device=device,
    )
    found = run_report(settings, out)
    _print_report(found, settings, out)


def _print_report(found: dict[str, Any], settings: ReportSettings, out: Path) -> None:
    """Print a summary, each figure with its meaning."""
    console = Console(highlight=False, markup=False)
    model, text, spikes = found["model"], found["text"], found["spikes"]
    console.print(
        f"\n{model['source']}: {model['num_spiking_layers']} layers on spikes, "
        f"{found['settings']['neuron']}, code {found['settings']['encoder']}"
    )
    console.print(f"{text['num_tokens']:,} tokens of {text['source']}, windows of {settings.context}\n")

    perplexity = found["perplexity"]
    base = perplexity["float"] or perplexity["int8"]
    table = _table("Perplexity", "", "")
    for key, meaning in (
        ("float", "float32 weights and activations"),
        ("int8", "INT8 weights, float32 activations"),
        ("spiking", "INT8 weights, spike trains"),
    ):
        value = perplexity[key]
        if value is not None:
            table.add_row(key, f"{value:.3f}", f"{value / base - 1:+.2%}", meaning)
    console.print(table, "")

    table = _table("Spikes", "")
    shares = ("fraction", "sparsity", "rate")
    for key, meaning in DEFINITIONS.items():
        value = spikes[key]
        if isinstance(value, int):
            shown = f"{value:,}"
        else:
            shown = f"{value:.2%}" if any(word in key for word in shares) else f"{value:.4f}"
        table.add_row(key, shown, meaning)
    console.print(table, "")

    table = _table("The same counts in each code", "spikes per channel", "train sparsity", "timesteps")
    for name, code in found["codes"].items():
        if code is None:
            table.add_row(name, "", "", "too many")
            continue
        row = (f"{code['mean_spikes']:.4f}", f"{code['train_sparsity']:.2%}", f"{code['num_timesteps']:,}")
        table.add_row(name, *row)
    console.print(table, "")

    energy = found["energy"]["paper"]
    table = _table("Energy (modelled)", "pJ per MAC", "spiking saves", "ratio")
    for name, key in (("FP16 MAC", "fp16"), ("INT8 MAC", "int8")):
        ratio = energy[f"ratio_vs_{key}"]
        shown = "none: no spikes" if ratio is None else f"{ratio:.2f}x"
        table.add_row(name, f"{energy[f'{key}_mac_pj']:.4f}", f"{energy[f'saving_vs_{key}']:.1%}", shown)
    table.add_row("spikes", f"{energy['spike_mac_pj']:.4f}", "", f"{energy['average_spikes']:.4f} additions of 8 bits")
    console.print(table, "")
    console.print(
        f"This is the estimate of the SpikingBrain report (eq. 24), nothing is measured. Energies: "
        f"{energy['table']['source']} ({energy['table']['process']})."
    )
    console.print("Left out: " + "; ".join(energy["left_out"]) + ".")
    _print_full_energy(console, found["energy"])

    exact = found["exactness"]
    console.print(
        f"Exactness: {exact['num_mismatches']:,} of {exact['num_checked']:,} sampled outputs differ from the exact "
        f"integer product{': ' + exact['first_mismatch'] if exact['first_mismatch'] else '.'}"
    )
    console.print(
        f"Written to {out}: report.json, layers.csv, histogram.png, raster.png, waterfall.png "
        f"({found['seconds']['total']:.0f} s)"
    )


def _print_full_energy(console: Console, energy: dict[str, Any]) -> None:
    """Print what becomes of the ratio when the other costs are counted."""
    steps, digital = energy["waterfall"], energy["digital"]
    first, last = steps[0]["ratio_vs_int8"], steps[-1]["ratio_vs_int8"]
    if last is not None:
        console.print(
            f"With all that is counted (sums as wide as they must be, encoding, weights, activations, what stays "
            f"dense) the ratio to INT8 is {last:.2f}x instead of {first:.2f}x: waterfall.png, and `spikebrain energy`."
        )
    if digital["unverified"]:
        console.print("Not verified in their source: " + ", ".join(digital["unverified"]) + ".")
    console.print()


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False) -> None:
    """Say what this machine can run, what "auto" picks, and why something is not available."""
    found = examine()
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        _print_doctor(found)


def _print_doctor(found: dict[str, Any]) -> None:
    """Print the findings on one screen."""
    console = Console(highlight=False, markup=False)
    cpu, cache = found["cpu"], found["model_cache"]
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in found["versions"].items())
    instructions = cpu["instructions"]
    known = "unknown" if instructions is None else ", ".join(k for k, v in instructions.items() if v) or "none"
    console.print(f"\n{versions}")
    console.print(f"CPU: {cpu['model']}, {cpu['num_threads']} of {cpu['num_cpus']} threads; instructions: {known}")
    for i, gpu in enumerate(found["gpus"]):
        memory = gpu["memory_bytes"] / 2**30
        console.print(f"GPU {i}: {gpu['name']}, compute capability {gpu['compute_capability']}, {memory:.0f} GiB")
    console.print()

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("Backend", "device", "auto picks it for", "can it run?"):
        table.add_column(column)
    for device, there in found["devices"].items():
        for name, reason in there["backends"].items():
            tokens = ", ".join(n for n, picked in there["auto"].items() if picked == name)
            table.add_row(name, device, f"{tokens} token(s)" if tokens else "", f"no: {reason}" if reason else "yes")
    console.print(table, "")

    console.print(f"Default model: {'in the cache' if cache['present'] else 'not fetched yet'} ({cache['path']})")
    for extra, packages in found["extras"].items():
        missing = ", ".join(name for name, version in packages.items() if version is None)
        remedy = f"{missing} missing; pip install 'spikebrain[{extra}]'" if missing else "installed"
        console.print(f"Extra {extra} (optional): {remedy}")
    console.print()
    for sentence in found["advice"]:
        console.print(f"- {sentence}")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, title_justify="left", header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    table.add_column("", style="dim")
    return table


def main() -> None:
    """Entry point: bad input ends with one message and exit code 2."""
    try:
        app()
    except SpikebrainError as error:
        Console(stderr=True, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), str(error)))
        sys.exit(2)
    except torch.OutOfMemoryError as error:
        remedy = "Use --device cpu, or less text at a time."
        Console(stderr=True, soft_wrap=True, markup=False).print(f"error: the GPU's memory is full. {remedy} {error}")
        sys.exit(2)
