"""The command `spikebrain sweep`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..answer import Answer
from ..complete import models, words
from ..options import MODEL, DeviceIfRun, TextFile, folder_for, listed, seed_for, table_of, tokens_if_run
from ..panels import INPUT, MACHINE, MANY, MEASURED, OUTPUT
from ..progress import Screen
from ..words import unused

if TYPE_CHECKING:
    from rich.console import Console

    from ...jobs import SweepSettings, Swept

PANEL = MANY
_OBJECTIVES = (
    "perplexity",
    "accuracy",
    "spikes",
    "bytes_read",
    "energy_paper",
    "energy_digital",
    "energy_nj",
    "chip_latency_us",
    "chip_energy_nj",
    "chip_pj_per_mac",
    "chip_cores",
    "tokens_per_s",
)
# Statistics that every table has, as table 11 of the SpikingBrain report has them.
_ALWAYS = {"window3_sparsity": "sparsity", "fraction_le_7": "|count| <= 7"}


def sweep(
    screen: Screen,
    spec: Annotated[
        Path | None,
        typer.Argument(help="TOML file that says what to sweep.", show_default="none", rich_help_panel=INPUT),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            "--option",
            help="KEY=VALUE holds for all runs; KEY=A,B,C or KEY=LOW:HIGH:STEP is swept; of a key that the file has, "
            "too, this counts. k.PATTERN=... is for the layers whose names match, chip.core.lanes=... a number of the "
            "chip; chip.core.sram_bytes+core.access_pj=32768+40,... vary together.",
            show_default="none",
            metavar="KEY=VALUES",
            rich_help_panel=MEASURED,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help=f"The model: {MODEL}", show_default="smollm2", autocompletion=models, rich_help_panel=INPUT),
    ] = None,
    text: TextFile = None,
    num_tokens: Annotated[int | None, tokens_if_run("2048")] = None,
    context: Annotated[
        int | None,
        typer.Option(help="Tokens per window; windows do not overlap.", show_default="512", rich_help_panel=INPUT),
    ] = None,
    objectives: Annotated[
        list[str] | None,
        typer.Option(
            "--objective",
            metavar="NAME",
            help=f"What is asked of each run; may be given several times: {', '.join(_OBJECTIVES)}.",
            show_default="perplexity and spikes",
            autocompletion=words(*_OBJECTIVES),
            rich_help_panel=MEASURED,
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="For the objective accuracy: winogrande, arc_easy, piqa, hellaswag, lambada; with commas between.",
            show_default="none",
            rich_help_panel=MEASURED,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with the files of the tasks.", show_default="none", rich_help_panel=INPUT),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Documents of each task, from its first on.", show_default="all", rich_help_panel=MEASURED),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="grid: all combinations; search: NSGA-II chooses.",
            show_default="grid",
            autocompletion=words("grid", "search"),
            rich_help_panel=MEASURED,
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="Runs of a search.", show_default="64", rich_help_panel=MEASURED)
    ] = None,
    seed: Annotated[int | None, seed_for("a search")] = None,
    workers: Annotated[int, typer.Option(help="Processes, each with a model of its own.", rich_help_panel=MACHINE)] = 1,
    storage: Annotated[
        str | None,
        typer.Option(
            help="URL of a database that machines share, such as postgresql://HOST/NAME.",
            show_default="study.journal in the folder",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    study: Annotated[str, typer.Option(help="Name of the study in the database.", rich_help_panel=OUTPUT)] = "sweep",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run again what failed.", rich_help_panel=MEASURED)
    ] = False,
    out: Annotated[
        Path, folder_for("the study, results.html, its data as JSON, Parquet and CSV, pareto.png, best-chip.toml")
    ] = Path("spikebrain-sweep"),
    device: DeviceIfRun = None,
) -> Answer:
    """Run a model with many settings, each once, and compare.

    It is a grid, or a search for the best of several objectives. The keys are called as the options of report, energy
    and simulate: neuron, k, layers, skip, weights, group_size, attention, encoder, backend; table, reads_per, ...;
    chip, mapping, mode, ...; chip.core.lanes and the like are numbers of the chip. The same command goes on after any
    interruption, even kill -9, and may run several times at once on one study. Exit code 1 says that a run failed.
    """
    from ...jobs.sweep import SweepSettings, read_options, read_spec
    from ...jobs.sweep import sweep as run
    from ...jobs.sweep.results import best_in_words

    given: dict[str, Any] = {} if spec is None else read_spec(spec)
    typed: dict[str, Any] = {"model": model, "text": text, "num_tokens": num_tokens, "context": context}
    typed |= {"objectives": tuple(objectives) if objectives else None, "method": method, "trials": trials}
    typed |= {"seed": seed, "device": device, "data": data, "limit": limit}
    typed |= {"tasks": listed(tasks) or None}
    given |= {name: value for name, value in typed.items() if value is not None}
    given["options"] = {**given.get("options", {}), **read_options(options or ())}
    settings = SweepSettings(**given)
    found = run(settings, out, screen, workers=workers, storage=storage, study=study, retry_failed=retry_failed)
    best = [f"{name}: {best_in_words(found.rows, name, row)}" for name, row in found.best.items()]
    whole = {name: getattr(found, name) for name in ("title", "float_perplexity", "next_steps", "num_open", "died")}
    rows = [asdict(row) for row in found.rows]
    best_rows = {name: row.settings for name, row in found.best.items()}
    chip = found.best_chip
    whole["best_chip"] = None if chip is None else {"objective": chip.objective, "pj_per_mac": chip.pj_per_mac}
    return Answer(
        f"Best {'; '.join(best)}." if best else "All runs failed.",
        {**whole, "rows": rows, "best": best_rows, "files": list(found.files)},
        lambda console: _print(console, found, settings),
        out=out,
        files=found.files,
        **_follows(screen, found, settings, out),
        exit_code=1 if found.num_failed or found.died else 0,
    )


def _follows(screen: Screen, found: Swept, settings: SweepSettings, out: Path) -> dict[str, Any]:
    """Return what to try next: what is not done, else the values that the sweep points to, else a whole report."""
    from ...jobs.sweep.results import BEST_CHIP

    if found.num_open:
        return {"next": screen.typed.again(), "why": "goes on with what is not done"}
    if found.num_failed:
        return {"next": screen.typed.again(retry_failed=True), "why": "once what made runs fail is mended"}
    if found.next_options:
        key, _, _ = found.next_options[0].partition("=")
        kept = [option for option in screen.typed.values["options"] or () if not option.startswith(f"{key}=")]
        changed = {"options": [*kept, found.next_options[0]], "out": unused(out), "retry_failed": None}
        if screen.typed.values["storage"]:
            changed["study"] = f"{screen.typed.values['study']}-2"
        return {"next": screen.typed.again(**changed), "why": "values nearer to the best"}
    if found.best_chip is not None:
        again = _on_best_chip(settings.point(found.best_chip.row.settings))
        same = (settings.model, "--chip", str(out / BEST_CHIP), *again, *screen.typed.same("text"))
        return {"next": ("spikebrain", "simulate", *same), "why": "the best chip, with all its figures"}
    same = (settings.model, *screen.typed.same("text", "device"))
    return {"next": ("spikebrain", "report", *same), "why": "one setting, with all its figures"}


def _on_best_chip(point: Mapping[str, Any]) -> list[str]:
    """Return the options of `simulate` that say how the model of a run spiked, and ran."""
    given = [(name, point.get(name)) for name in ("neuron", "k", "encoder", "layers", "mode", "mapping")]
    flags = [f"--{name.replace('_', '-')}" for name in ("include_head", "stream") if point.get(name)]
    return [word for name, value in given if value is not None for word in (f"--{name}", str(value))] + flags


def _print(console: Console, found: Swept, settings: SweepSettings) -> None:
    """Print one row for each setting, in the layout of table 11 of the report, and what is best."""
    from ...jobs.sweep.keys import key_of

    chosen = settings.chosen
    done = [row for row in found.rows if row.error is None]
    always = {name: title for name, title in _ALWAYS.items() if any(name in row.figures for row in done)}
    console.print(f"{found.title}\n")
    keys = [*settings.swept]
    table = table_of(*keys, *always.values(), *chosen, *(["front"] if len(chosen) > 1 else []), text_columns=())
    if found.float_perplexity is not None:
        blank = ["" for _ in range(len(keys) - 1 + len(always))]
        shown = [f"{found.float_perplexity:{chosen[n].form}}" if n == "perplexity" else "" for n in chosen]
        table.add_row("float", *blank, *shown)
    for row in done:
        settings_shown = [key_of(key).shown(row.settings[key]) for key in keys]
        shares = [f"{row.figures[name]:.3f}" for name in always]
        figures = [f"{row.figures[name]:{objective.form}}" for name, objective in chosen.items()]
        table.add_row(*settings_shown, *shares, *figures, *(["*"] if row.on_front and len(chosen) > 1 else []))
    console.print(table, "")
    for name, objective in chosen.items():
        console.print(f"{name}: {objective.meaning}; {objective.better} is better.")
    if always:
        console.print("sparsity: of three bit planes over channels with |count| <= 7. front: no run beats it in all.")
    for row in (row for row in found.rows if row.error is not None):
        console.print(f"Failed: {_shown(row.settings)}: {row.error}")
    if found.best_chip is not None:
        console.print(found.best_chip.in_words())
    for sentence in found.next_steps:
        console.print(f"{sentence}.")
    for sentence in found.died:
        console.print(sentence)
    if found.num_open:
        console.print(
            f"{found.num_open} runs are not done: other processes are at them, or died. The same command goes on."
        )


def _shown(values: dict[str, Any]) -> str:
    from ...jobs.sweep.run import in_words

    return in_words(values)
