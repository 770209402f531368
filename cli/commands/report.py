"""The command `spikebrain report`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..answer import Answer
from ..clock import took
from ..options import (
    Attention,
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
    k_of,
    named,
    seed_for,
    table_of,
)
from ..panels import INPUT, MEASURE
from ..progress import Screen
from ..words import as_ratio, less_or_more, shares_in_words, unconfirmed

if TYPE_CHECKING:
    from rich.console import Console

PANEL = MEASURE


def report(
    screen: Screen,
    model: Model = "smollm2",
    text: TextFile = None,
    num_tokens: NumTokens = 2048,
    context: Annotated[
        int, typer.Option(help="Tokens per window; windows do not overlap.", rich_help_panel=INPUT)
    ] = 512,
    neuron: NeuronName = None,
    k: K = None,
    encoder: EncoderName = None,
    backend: BackendName = None,
    layers: Layers = None,
    skip: Skip = None,
    weights: Weights = None,
    group_size: GroupSize = None,
    attention: Attention = None,
    out: Annotated[Path, folder_for("report.html, report.json, layers.csv and the plots")] = Path("spikebrain-report"),
    seed: Annotated[int, seed_for("the sample of outputs that is checked")] = 0,
    device: Device = "auto",
) -> Answer:
    """Report accuracy, spikes, energy and exactness of a model on spikes.

    It runs in float, with INT8 weights, and on spikes. A model that spikes already runs as it is: --neuron, --k,
    --encoder, --backend, --layers, --skip, --weights, --group-size and --attention are for others.
    """
    from ... import backends, coding, jobs, neuro
    from ...jobs.report_files import WRITTEN

    settings = jobs.ReportSettings(
        model=model,
        text=text,
        num_tokens=num_tokens,
        context=context,
        neuron=named(neuro.NEURONS, neuron),
        k=k_of(k),
        encoder=named(coding.ENCODERS, encoder),
        backend=named(backends.BACKENDS, backend, "auto"),
        layers=layers,
        skip=tuple(skip) if skip else None,
        weights=weights,
        group_size=group_size,
        attention=attention,
        seed=seed,
        device=device,
    )
    found = jobs.report(settings, out, screen)
    return Answer(
        _figure(found),
        found,
        show=lambda console: _print(console, found),
        out=out,
        files=WRITTEN,
        next=("spikebrain", "energy", out),
        why="where the energy of a token goes, part by part",
    )


def _figure(found: dict[str, Any]) -> str:
    """Return whether spiking pays, in a line."""
    perplexity, energy = found["perplexity"], found["energy"]
    base, name = (perplexity["float"], "float") if perplexity["float"] else (perplexity["int8"], "integer weights")
    full, paper = energy["waterfall"][-1]["ratio_vs_int8"], energy["paper"]["ratio_vs_int8"]
    cost = less_or_more(full, "energy than INT8")
    if full is not None and paper is not None:
        cost += f" ({as_ratio(paper)} less by additions alone)" if paper >= 1 else ""
    return (
        f"On spikes: perplexity {perplexity['spiking']:.3f} ({perplexity['spiking'] / base - 1:+.2%} over {name}), "
        f"{found['spikes']['mean_spikes']:.2f} spikes per channel and token, {cost}."
    )


def _print(console: Console, found: dict[str, Any]) -> None:
    """Print a summary, each figure with its meaning."""
    model, text = found["model"], found["text"]
    console.print(
        f"{model['source']}: {model['num_spiking_layers']} layers on spikes, "
        f"{found['settings']['neuron']}, code {found['settings']['encoder']}"
        + (" (lossy)" if found["settings"]["lossy_code"] else "")
        + (f", attention {found['settings']['attention']}" if found["settings"]["attention"] else "")
    )
    console.print(f"{text['num_tokens']:,} tokens of {text['source']}, windows of {found['settings']['context']}\n")
    if isinstance(found["settings"]["k"], dict):
        _print_k(console, found["layers"])
    _print_perplexity(console, found["perplexity"], found["settings"]["weights"])
    _print_spikes(console, found["spikes"], found["codes"])
    if "mixture" in found:
        _print_mixture(console, found["mixture"])
    _print_energy(console, found["energy"])
    _print_exactness(console, found["exactness"])
    console.print(took())


def _print_k(console: Console, layers: list[dict[str, Any]]) -> None:
    """Print k for each kind of layer."""
    from ...models.layers.graded_linear import owner_of
    from ...text_table import kind_of

    of_layer = {owner_of(row["name"]): row["k"] for row in layers}  # coarse rows have that of their layer
    numbers = Counter((kind_of(name), k) for name, k in of_layer.items())
    table = table_of("k by kind of layer", "layers", "k", no_wrap=True)
    for (kind, k), number in numbers.items():
        table.add_row(kind, f"{number:,}", "" if k is None else f"{k:g}")
    console.print(table, "")


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

    table = table_of(
        "The same counts in each code", "spikes per channel", "empty in the train", "timesteps", no_wrap=True
    )
    for name, code in codes.items():
        if code is None:
            table.add_row(name, "", "", "too many")
            continue
        row = (f"{code['mean_spikes']:.4f}", f"{code['train_sparsity']:.2%}", f"{code['num_timesteps']:,}")
        table.add_row(name, *row)
    console.print(table, "")


def _print_mixture(console: Console, mixture: dict[str, Any]) -> None:
    """Print both levels of sparsity of mixtures of experts."""
    from ...analysis.mixtures import mixture_in_words, mixture_rows

    columns = ("Mixtures of experts, a token", "bytes of weights", "of all experts'", "spikes")
    table = table_of(*columns, no_wrap=True)
    for name, num_bytes, share, spikes in mixture_rows(mixture):
        table.add_row(name, f"{num_bytes:,.0f}", f"{share:.2%}", "" if spikes is None else f"{spikes:,.0f}")
    console.print(table)
    console.print(mixture_in_words(mixture), "")


def _print_energy(console: Console, energy: dict[str, Any]) -> None:
    """Print the whole model's energy first, and then what additions alone would give."""
    from ...analysis.energy import has_other_weights

    paper, whole = energy["paper"], energy["waterfall"][-1]
    columns = ("Energy, dense / on spikes (modelled)", "INT8", "FP16", "")
    table = table_of(*columns, text_columns=(0, 3), no_wrap=True)
    for name, ratios, meaning in (
        ("the whole model", whole, "every operation and byte that is counted; see waterfall.png"),
        ("additions alone", paper, "the paper's estimate: one 8-bit addition a spike, layers that spike"),
    ):
        shown = [ratios[f"ratio_vs_{system}"] for system in ("int8", "fp16")]
        table.add_row(name, *("no spikes" if ratio is None else as_ratio(ratio) for ratio in shown), meaning)
    console.print(table, "")
    if has_other_weights(energy["digital"]):
        same = energy["digital"]["ratio_vs_same_weights"]
        shown = "no spikes" if same is None else as_ratio(same)
        console.print(f"Dense with the same weights, INT8 activations / on spikes, the whole model: {shown}.")
    console.print(f"Where it goes, on spikes: {shares_in_words(energy['digital']['spiking_by_kind_pj'])}.")
    console.print(
        f"Additions alone: {paper['average_spikes']:.4f} a channel, {paper['spike_mac_pj']:.4f} pJ in place of a MAC "
        f"of {paper['int8_mac_pj']:g} pJ (INT8) or {paper['fp16_mac_pj']:g} pJ (FP16). "
        f"Left out: {'; '.join(paper['left_out'])}."
    )
    console.print(f"Nothing is measured. Energies: {paper['table']['source']} ({paper['table']['process']}).")
    if energy["not_counted"]["parts"]:
        console.print(energy["not_counted"]["sentence"])
    if energy["digital"]["unverified"]:
        console.print(unconfirmed(energy["digital"]["unverified"]))
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
