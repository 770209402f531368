"""The command `spikebrain eval`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...paths import model_name
from ..answer import Answer
from ..complete import words
from ..options import (
    Attention,
    BackendName,
    Device,
    EncoderName,
    GroupSize,
    Layers,
    Model,
    NeuronName,
    Skip,
    Weights,
    checked_k,
    folder_for,
    k_of,
    listed,
    named,
    table_of,
)
from ..panels import INPUT, MEASURE, MEASURED, SPIKES
from ..progress import Screen
from ..words import unused

if TYPE_CHECKING:
    from rich.console import Console

PANEL = MEASURE
_WORST = 5


def _measured(help: str, usual: str) -> Any:
    """Return an option that says what is measured, with its usual value."""
    return typer.Option(help=help, show_default=usual, rich_help_panel=MEASURED)


def _all_k(typed: list[str] | None) -> tuple[float | dict[str, float], ...] | None:
    """Return each k that was typed: numbers with commas between, or patterns, which are one setting together."""
    if not typed:
        return None
    groups = [[text] if "=" in text else text.split(",") for text in typed]
    return tuple(k for group in groups for text in group if (k := k_of([text])) is not None)


def eval(
    screen: Screen,
    model: Model = "smollm2",
    tasks: Annotated[
        str | None,
        typer.Option(
            help="winogrande, arc_easy, piqa, hellaswag, lambada; with commas between.",
            show_default="none",
            autocompletion=words("winogrande", "arc_easy", "piqa", "hellaswag", "lambada"),
            rich_help_panel=MEASURED,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the files of the tasks, or with a folder for each.",
            show_default="none",
            rich_help_panel=INPUT,
        ),
    ] = None,
    limit: Annotated[int | None, _measured("Documents of each task, from its first on.", "all")] = None,
    batch_size: Annotated[int | None, _measured("Requests of a task that run together.", "32")] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="UTF-8 text whose perplexity is measured; may be given several times.",
            show_default="none",
            rich_help_panel=INPUT,
        ),
    ] = None,
    num_tokens: Annotated[int | None, _measured("Tokens from the start of each text.", "all")] = None,
    context: Annotated[int | None, _measured("Tokens per window of a text; windows do not overlap.", "512")] = None,
    layer_tokens: Annotated[
        int | None, _measured("Measure the error of each layer over so many tokens of the first text.", "no")
    ] = None,
    neuron: NeuronName = None,
    k: Annotated[
        list[str] | None,
        typer.Option(
            metavar="K,K or PATTERN=K,K",
            callback=checked_k(_all_k),
            help="Mean |x| of a token divided by its threshold; several, with commas between, are compared. Layers "
            "that match a pattern can have a k of their own: --k 2,3 --k '*down_proj=4,3' compares three settings.",
            show_default="3.0",
            rich_help_panel=SPIKES,
        ),
    ] = None,
    encoder: EncoderName = None,
    backend: BackendName = None,
    layers: Layers = None,
    skip: Skip = None,
    weights: Weights = None,
    group_size: GroupSize = None,
    attention: Attention = None,
    out: Annotated[Path, folder_for("eval.html and eval.json")] = Path("spikebrain-eval"),
    device: Device = "auto",
) -> Answer:
    """Compare float, INT8 and spikes: perplexity, zero-shot tasks, worst layers.

    Tasks run through lm-eval, of the extra eval, on local files; nothing is fetched. --data, --limit and
    --batch-size are for tasks; --num-tokens, --context and --layer-tokens for texts. A model that spikes already runs
    as it is: --neuron, --k, --encoder, --backend, --layers, --skip, --weights, --group-size and --attention are for
    others.
    """
    from ... import backends, coding, jobs, neuro
    from ...jobs.eval import WRITTEN

    settings = jobs.EvalSettings(
        model=model,
        tasks=listed(tasks),
        data=data,
        limit=limit,
        batch_size=batch_size,
        text=tuple(text or ()),
        num_tokens=num_tokens,
        context=context,
        layer_tokens=layer_tokens,
        neuron=named(neuro.NEURONS, neuron),
        k=_all_k(k),
        encoder=named(coding.ENCODERS, encoder),
        backend=named(backends.BACKENDS, backend, "auto"),
        layers=layers,
        skip=tuple(skip) if skip else None,
        weights=weights,
        group_size=group_size,
        attention=attention,
        device=device,
    )
    found = jobs.evaluate(settings, out, screen)
    if layer_tokens is None and text and "float" in found["stages"]:
        follows: dict[str, Any] = {"next": screen.typed.again(layer_tokens=256), "why": "which layers lose most"}
    else:
        spikes = ("neuron", "encoder", "backend", "layers", "skip", "weights", "group_size", "attention")
        kept = ("model", *spikes, "device")
        same = screen.typed.same(*kept, *(["text"] if text and len(text) == 1 else []))
        to = ("--out", unused(Path("spikebrain-report")))
        follows = {"next": ("spikebrain", "report", *same, *to), "why": "its spikes and energy"}
    return Answer(_figure(found), found, lambda console: _print(console, found), out=out, files=WRITTEN, **follows)


def _figure(found: dict[str, Any]) -> str:
    """Return how far the best setting on spikes is from the first stage, in a line."""
    base, *_, stage = found["stages"]
    said = []
    for name, text in found["texts"].items():
        difference = text["perplexity"][stage]["difference"]
        said.append(f"{100 * difference:+.2f}% perplexity on {Path(name).name}")
    if found["average"]:
        said.append(f"{100 * found['average'][stage]['difference']:+.2f} points of accuracy")
    else:
        for task, described in found["tasks"].items():
            metric, figures = next(iter(described["metrics"].items()))
            said.append(
                f"{100 * figures[stage]['difference']:+.2f} {'%' if metric == 'perplexity' else 'points'} {task}"
            )
    return f"On spikes ({stage}), against {base}: {', '.join(said)}."


def _print(console: Console, found: dict[str, Any]) -> None:
    """Print all figures: first each stage's own, then the differences."""
    # Figures of many stages are wider than a narrow console, which may wrap a line but must not cut it.
    console.width = max(console.width, 30 + 20 * len(found["stages"]))
    console.print(found["model"]["source"])
    for stage, meaning in found["stages"].items():
        console.print(f"{stage}: {meaning}")
    console.print()
    stages = list(found["stages"])
    base, others = stages[0], stages[1:]
    rows = _rows(found)
    table = table_of("± standard error", *stages, no_wrap=True)
    for name, is_share, figures in rows:
        table.add_row(name, *(_cell(figures.get(stage), "value", "stderr", is_share) for stage in stages))
    console.print(table, "")
    columns = ("difference", "difference_stderr")
    table = table_of(f"Minus {base}, paired", *others, no_wrap=True)
    for name, _, figures in rows:
        table.add_row(name, *(_cell(figures.get(stage), *columns, True, "+") for stage in others))
    console.print(table, "")
    if found["tasks"]:
        _print_tasks(console, found)
    if found["layers"]:
        _print_layers(console, found["layers"])


def _rows(found: dict[str, Any]) -> list[tuple[str, bool, dict[str, Any]]]:
    """Return, for each row, its name, whether it is a share, and its figures by stage."""
    rows = [(f"{Path(name).name}, perplexity", False, text["perplexity"]) for name, text in found["texts"].items()]
    for task, described in found["tasks"].items():
        for metric, figures in described["metrics"].items():
            is_share = metric != "perplexity"
            rows.append((f"{task}, {metric}{' %' if is_share else ''}", is_share, figures))
    if found["average"]:
        rows.append(("average %", True, found["average"]))
    return rows


def _cell(figures: Mapping[str, float | None] | None, value: str, stderr: str, is_share: bool, sign: str = "") -> str:
    number = figures.get(value) if figures else None
    if number is None or figures is None:
        return ""
    error = figures.get(stderr)
    factor, digits = (100, 2) if is_share else (1, 3)
    shown = f"{factor * number:{sign}.{digits}f}"
    return shown if error is None else f"{shown} ± {factor * error:.{digits}f}"


def _print_tasks(console: Console, found: dict[str, Any]) -> None:
    counts = [f"{task} {row['num_documents']:,} of {row['of']:,}" for task, row in found["tasks"].items()]
    console.print(f"Documents: {', '.join(counts)}. No examples in the prompt.")
    console.print("Differences are in points; those of perplexities in percent.")
    if found["average"]:
        console.print("The average is over accuracies (acc), for hellaswag over acc_norm.")
    published = found["published"]
    shown = [task for task in published["metrics"] if task in found["tasks"]]
    if not shown:
        return
    console.print()
    table = table_of("Published, %", *shown, no_wrap=True)
    for model, values in published["models"].items():
        table.add_row(model, *(f"{100 * values[task]:.2f}" for task in shown))
    source = model_name(found["model"]["source"])
    for stage in found["stages"]:
        ours = [found["tasks"][task]["metrics"][published["metrics"][task]].get(stage) for task in shown]
        table.add_row(f"{source}, {stage} (ours)", *(_cell(row, "value", "", True) if row else "" for row in ours))
    console.print(table)
    console.print(f"{published['source']}. hellaswag: acc_norm.\n")


def _print_layers(console: Console, layers: dict[str, list[dict[str, Any]]]) -> None:
    """Print the layers that change the next token most when they spike alone."""
    for stage, rows in layers.items():
        table = table_of(f"Worst layers, {stage}", "KL, nats", "SQNR, dB", no_wrap=True)
        for row in sorted(rows, key=lambda row: -row["kl_nats"])[:_WORST]:
            sqnr = "" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}"
            table.add_row(row["name"], f"{row['kl_nats']:.2e}", sqnr)
        console.print(table, "")
    console.print("One layer on spikes, all others in float: KL of the next token; noise in that layer's output.\n")
