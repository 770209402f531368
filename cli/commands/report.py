"""The command `spikebrain report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..options import (
    BackendName,
    Device,
    EncoderName,
    GroupSize,
    K,
    Layers,
    Model,
    NeuronName,
    NumTokens,
    Skip,
    TextFile,
    Weights,
    folder_for,
    named,
    seed_for,
    table_of,
)
from ..progress import on_screen


def report(
    model: Model = "smollm2",
    text: TextFile = None,
    num_tokens: NumTokens = 2048,
    context: Annotated[int, typer.Option(help="Tokens per window; windows do not overlap.")] = 512,
    neuron: NeuronName = None,
    k: K = None,
    encoder: EncoderName = None,
    backend: BackendName = None,
    layers: Layers = None,
    skip: Skip = None,
    weights: Weights = None,
    group_size: GroupSize = None,
    out: Annotated[Path, folder_for("report.html, report.json, layers.csv and the plots")] = Path("spikebrain-report"),
    seed: Annotated[int, seed_for("the sample of outputs that is checked")] = 0,
    device: Device = "auto",
) -> None:
    """Run a model in float, with INT8 weights, and on spikes; report accuracy, spikes, energy and exactness.

    A model that spikes already runs as it is: --neuron, --k, --encoder, --backend, --layers, --weights and --group-size
    are for others.
    """
    from ... import backends, coding, jobs, neuro

    settings = jobs.ReportSettings(
        model=model,
        text=text,
        num_tokens=num_tokens,
        context=context,
        neuron=named(neuro.NEURONS, neuron),
        k=k,
        encoder=named(coding.ENCODERS, encoder),
        backend=named(backends.BACKENDS, backend, "auto"),
        layers=layers,
        skip=tuple(skip) if skip else None,
        weights=weights,
        group_size=group_size,
        seed=seed,
        device=device,
    )
    with on_screen() as progress:
        found = jobs.report(settings, out, progress)
    _print(found, context, out)


def _print(found: dict[str, Any], context: int, out: Path) -> None:
    """Print a summary, each figure with its meaning."""
    console = Console(highlight=False, markup=False)
    model, text = found["model"], found["text"]
    console.print(
        f"\n{model['source']}: {model['num_spiking_layers']} layers on spikes, "
        f"{found['settings']['neuron']}, code {found['settings']['encoder']}"
        + (" (lossy)" if found["settings"]["lossy_code"] else "")
    )
    console.print(f"{text['num_tokens']:,} tokens of {text['source']}, windows of {context}\n")
    _print_perplexity(console, found["perplexity"], found["settings"]["weights"])
    _print_spikes(console, found["spikes"], found["codes"])
    _print_energy(console, found["energy"])
    _print_exactness(console, found["exactness"])
    console.print(
        f"Written to {out}: report.html (open it in a browser), report.json, layers.csv, histogram.png, raster.png, "
        f"waterfall.png ({found['seconds']['total']:.0f} s)"
    )


def _print_perplexity(console: Console, perplexity: dict[str, float | None], weights: str) -> None:
    base = perplexity["float"] or perplexity["int8"]
    table = table_of("Perplexity", "", "", "", text_columns=(0, 3), no_wrap=True)
    for key, shown, meaning in (
        ("float", "float", "float32 weights and activations"),
        ("int8", "int8" if weights == "INT8" else "integer", f"{weights} weights, float32 activations"),
        ("spiking", "spiking", f"{weights} weights, spike trains"),
    ):
        value = perplexity[key]
        if value is not None and base is not None:
            table.add_row(shown, f"{value:.3f}", f"{value / base - 1:+.2%}", meaning)
    console.print(table, "")


def _print_spikes(console: Console, spikes: dict[str, Any], codes: dict[str, Any]) -> None:
    from ...analysis import DEFINITIONS, LABELS

    table = table_of("Spikes", "", "", text_columns=(0, 2), no_wrap=True)
    for key, meaning in DEFINITIONS.items():
        value = spikes[key]
        if isinstance(value, int):
            shown = f"{value:,}"
        else:
            is_share = any(word in key for word in ("fraction", "sparsity", "rate"))
            shown = f"{value:.2%}" if is_share else f"{value:.4f}"
        table.add_row(LABELS[key], shown, meaning)
    console.print(table, "")

    table = table_of("The same counts in each code", "spikes per channel", "train sparsity", "timesteps", no_wrap=True)
    for name, code in codes.items():
        if code is None:
            table.add_row(name, "", "", "too many")
            continue
        row = (f"{code['mean_spikes']:.4f}", f"{code['train_sparsity']:.2%}", f"{code['num_timesteps']:,}")
        table.add_row(name, *row)
    console.print(table, "")


def _print_energy(console: Console, energy: dict[str, Any]) -> None:
    paper = energy["paper"]
    columns = ("Energy (modelled)", "pJ per MAC", "spiking saves", "ratio", "")
    table = table_of(*columns, text_columns=(0, 4), no_wrap=True)
    for name, key in (("FP16 MAC", "fp16"), ("INT8 MAC", "int8")):
        ratio = paper[f"ratio_vs_{key}"]
        shown = "none: no spikes" if ratio is None else f"{ratio:.2f}x"
        saved = f"{paper[f'saving_vs_{key}']:.1%}"
        if ratio is not None and ratio < 1:
            saved = f"nothing: costs {1 / ratio:.3g} times more"
        table.add_row(name, f"{paper[f'{key}_mac_pj']:.4f}", saved, shown)
    additions = f"{paper['average_spikes']:.4f} additions of 8 bits"
    table.add_row("spikes", f"{paper['spike_mac_pj']:.4f}", "", additions)
    console.print(table, "")
    console.print(
        f"This is the paper's estimate (additions only), nothing is measured. Energies: {paper['table']['source']} "
        f"({paper['table']['process']})."
    )
    console.print("Left out: " + "; ".join(paper["left_out"]) + ".")
    steps, digital = energy["waterfall"], energy["digital"]
    first, last = steps[0]["ratio_vs_int8"], steps[-1]["ratio_vs_int8"]
    if last is not None:
        console.print(
            f"With all that is counted (sums as wide as they must be, encoding, weights, activations, what stays "
            f"dense) the ratio to INT8 is {last:.2f}x instead of {first:.2f}x: waterfall.png, and `spikebrain energy`."
        )
    if energy["not_counted"]["parts"]:
        console.print(energy["not_counted"]["sentence"])
    if digital["unverified"]:
        console.print(f"Not confirmed by the table's source: {', '.join(digital['unverified'])}.")
    console.print()


def _print_exactness(console: Console, exact: dict[str, Any]) -> None:
    console.print(
        f"Exactness: {exact['num_mismatches']:,} of {exact['num_checked']:,} sampled outputs differ from the exact "
        f"integer product{': ' + exact['first_mismatch'] if exact['first_mismatch'] else '.'}"
    )
    fused, code = exact["fused"], exact["code"]
    if code["num_checked"]:
        console.print(
            f"Lossy code: {code['num_mismatches']:,} of {code['num_checked']:,} sampled outputs differ from those of "
            "the counts. The products above are those of what the trains carry."
        )
    if not fused["num_checked"]:
        console.print("Fused layers: these layers have no fused kernel, so there is nothing to compare.")
        return
    console.print(
        f"Fused layers, as they run unrecorded: {fused['num_mismatches']:,} of {fused['num_checked']:,} outputs differ "
        f"from the recorded sums{': ' + fused['first_mismatch'] if fused['first_mismatch'] else '.'}"
    )
