"""The command `spikebrain eval`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ...errors import InputError
from ..options import (
    BackendName,
    Device,
    EncoderName,
    GroupSize,
    Layers,
    Model,
    Skip,
    Weights,
    folder_for,
    named,
    table_of,
)
from ..progress import on_screen

_WORST = 5


def eval(
    model: Model = "smollm2",
    tasks: Annotated[
        str | None,
        typer.Option(help="winogrande, arc_easy, piqa, hellaswag, lambada; with commas between.", show_default="none"),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with the files of the tasks, or with a folder for each.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Documents of each task, from its first on.", show_default="all")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Requests of a task that run together.", show_default="32")
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(help="UTF-8 text whose perplexity is measured; may be given several times.", show_default="none"),
    ] = None,
    num_tokens: Annotated[
        int | None, typer.Option(help="Tokens from the start of each text.", show_default="all")
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens per window of a text; windows do not overlap.", show_default="512")
    ] = None,
    layer_tokens: Annotated[
        int | None,
        typer.Option(help="Measure the error of each layer over so many tokens of the first text.", show_default="no"),
    ] = None,
    k: Annotated[
        str | None,
        typer.Option(
            help="Mean |x| of a token divided by its threshold; several with commas between.", show_default="3"
        ),
    ] = None,
    encoder: EncoderName = None,
    backend: BackendName = None,
    layers: Layers = None,
    skip: Skip = None,
    weights: Weights = None,
    group_size: GroupSize = None,
    out: Annotated[Path, folder_for("eval.html and eval.json")] = Path("spikebrain-eval"),
    device: Device = "auto",
) -> None:
    """Compare a model in float, with INT8 weights, and on spikes for each k: perplexity, zero-shot tasks, worst layers.

    Tasks run through lm-eval, of the extra eval, on local files; nothing is fetched. --data, --limit and
    --batch-size are for tasks; --num-tokens, --context and --layer-tokens for texts. A model that spikes already runs
    as it is: --k, --encoder, --backend, --layers, --skip, --weights and --group-size are for others.
    """
    from ... import backends, coding, jobs

    settings = jobs.EvalSettings(
        model=model,
        tasks=_listed(tasks),
        data=data,
        limit=limit,
        batch_size=batch_size,
        text=tuple(text or ()),
        num_tokens=num_tokens,
        context=context,
        layer_tokens=layer_tokens,
        k=None if k is None else tuple(_number(value) for value in _listed(k)),
        encoder=named(coding.ENCODERS, encoder),
        backend=named(backends.BACKENDS, backend, "auto"),
        layers=layers,
        skip=tuple(skip) if skip else None,
        weights=weights,
        group_size=group_size,
        device=device,
    )
    with on_screen() as progress:
        found = jobs.evaluate(settings, out, progress)
    # Figures of many stages are wider than a narrow console, which may wrap a line but must not cut it.
    width = max(Console().width, 30 + 20 * len(found["stages"]))
    _print(Console(highlight=False, markup=False, width=width), found)
    print(f"Written to {out}: eval.html, eval.json ({found['seconds']['total']:.0f} s)")


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",")) if text else ()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"k: expected numbers with commas between, such as 2,3,4; got {text!r}.") from None


def _print(console: Console, found: dict[str, Any]) -> None:
    """Print all figures: first each stage's own, then the differences."""
    console.print(f"\n{found['model']['source']}")
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
    source = Path(found["model"]["source"]).stem
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
