"""The command `spikebrain sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ..options import DEVICES, MODEL, folder_for, seed_for, table_of
from ..progress import on_screen

if TYPE_CHECKING:
    from ...jobs import SweepSettings, Swept

# Statistics that every table has, as table 11 of the SpikingBrain report has them.
_ALWAYS = {"window3_sparsity": "sparsity", "fraction_le_7": "|count| <= 7"}


def sweep(
    spec: Annotated[Path | None, typer.Argument(help="TOML file that says what to sweep.", show_default="none")] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            "--option",
            help="KEY=VALUE holds for all runs; KEY=A,B,C or KEY=LOW:HIGH:STEP is swept; of a key that the file has, "
            "too, this counts. k.PATTERN=... is for the layers whose names match.",
            show_default="none",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help=f"The model: {MODEL}", show_default="smollm2")] = None,
    text: Annotated[Path | None, typer.Option(help="UTF-8 text file.", show_default="pydoc_data.topics")] = None,
    num_tokens: Annotated[
        int | None, typer.Option(help="Tokens from the start of the text.", show_default="2048")
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens per window; windows do not overlap.", show_default="512")
    ] = None,
    objectives: Annotated[
        list[str] | None,
        typer.Option(
            "--objective",
            help="What is asked of each run; may be given several times: perplexity, spikes, bytes_read, energy_paper, "
            "energy_digital, energy_nj, chip_latency_us, chip_energy_nj or tokens_per_s.",
            show_default="perplexity and spikes",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="grid: all combinations; search: NSGA-II chooses.", show_default="grid"),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Runs of a search.", show_default="64")] = None,
    seed: Annotated[int | None, seed_for("a search")] = None,
    workers: Annotated[int, typer.Option(help="Processes, each with a model of its own.")] = 1,
    storage: Annotated[
        str | None,
        typer.Option(
            help="URL of a database that machines share, such as postgresql://HOST/NAME.",
            show_default="study.journal in the folder",
        ),
    ] = None,
    study: Annotated[str, typer.Option(help="Name of the study in the database.")] = "sweep",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run again what failed.")] = False,
    out: Annotated[
        Path, folder_for("the study, results.html, the same as JSON, Parquet and CSV, and pareto.png")
    ] = Path("spikebrain-sweep"),
    device: Annotated[str | None, typer.Option(help=DEVICES, show_default="auto")] = None,
) -> None:
    """Run a model with many settings, each once: a grid, or a search for the best of several objectives.

    The keys are called as the options of report, energy and simulate: neuron, k, layers, skip, weights, group_size,
    encoder, backend; table, reads_per, ...; chip, mapping, mode, ... The same command goes on after any interruption,
    even kill -9, and may run several times at once on one study. Exit code 1 says that a run failed.
    """
    from ...jobs.sweep import SweepSettings, read_options, read_spec
    from ...jobs.sweep import sweep as run

    given: dict[str, Any] = {} if spec is None else read_spec(spec)
    typed: dict[str, Any] = {"model": model, "text": text, "num_tokens": num_tokens, "context": context}
    typed |= {"objectives": tuple(objectives) if objectives else None, "method": method, "trials": trials}
    typed |= {"seed": seed, "device": device}
    given |= {name: value for name, value in typed.items() if value is not None}
    given["options"] = {**given.get("options", {}), **read_options(options or ())}
    settings = SweepSettings(**given)
    with on_screen() as progress:
        found = run(settings, out, progress, workers=workers, storage=storage, study=study, retry_failed=retry_failed)
    _print(found, settings, out)
    if found.num_failed or found.died:
        raise typer.Exit(1)


def _print(found: Swept, settings: SweepSettings, out: Path) -> None:
    """Print one row for each setting, in the layout of table 11 of the report, and what is best."""
    from ...jobs.sweep.keys import KEYS, split_key

    console = Console(highlight=False, markup=False)
    chosen = settings.chosen
    done = [row for row in found.rows if row.error is None]
    always = {name: title for name, title in _ALWAYS.items() if any(name in row.figures for row in done)}
    console.print(f"\n{found.title}\n")
    keys = [*settings.swept]
    table = table_of(*keys, *always.values(), *chosen, *(["front"] if len(chosen) > 1 else []), text_columns=())
    if found.float_perplexity is not None:
        blank = ["" for _ in range(len(keys) - 1 + len(always))]
        shown = [f"{found.float_perplexity:{chosen[n].form}}" if n == "perplexity" else "" for n in chosen]
        table.add_row("float", *blank, *shown)
    for row in done:
        settings_shown = [KEYS[split_key(key)[0]].shown(row.settings[key]) for key in keys]
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
    if found.best:
        console.print("\nBest: " + "; ".join(f"{name}: {_shown(row.settings)}" for name, row in found.best.items()))
    for sentence in found.next_steps:
        console.print(f"Next: {sentence}")
    for sentence in found.died:
        console.print(sentence)
    if found.num_open:
        console.print(
            f"{found.num_open} runs are not done: other processes are at them, or died. The same command goes on."
        )
    console.print(f"Written to {out}: {', '.join(found.files)}")


def _shown(values: dict[str, Any]) -> str:
    from ...jobs.sweep.run import in_words

    return in_words(values)
