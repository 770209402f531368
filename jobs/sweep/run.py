"""Run a sweep: in this process, or in several that share its study."""

from __future__ import annotations

import fnmatch
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from ...analysis.perplexity import split_windows
from ...errors import InputError, SpikebrainError
from ...files import locked
from ...lazy import optional
from ...models import choose_layers
from ...models.io import load
from ...paths import model_name
from ..eval_tasks import read_task
from ..given import refuse_spikes
from ..inputs import (
    check_windows,
    first_tokens,
    give_experts_cores,
    is_spiking,
    look_ahead,
    move,
    read_text,
    require_writable,
)
from ..progress import SILENT, Progress
from .bench import Bench, Run, settings_of
from .identity import identity_of
from .keys import split_key
from .results import (
    PER_MAC,
    BestChip,
    Row,
    best_chip,
    best_rows,
    files_of,
    in_words,
    next_steps,
    rows_of,
    write_results,
)
from .settings import SweepSettings
from .storage import optuna
from .study import Settled, Study

# Seconds between two looks at what workers have done.
_LOOK_S = 0.5


@dataclass(frozen=True)
class Swept:
    """What `sweep` found.

    Attributes:
        title: model, tokens and text, in words.
        rows: one for each point that is settled.
        float_perplexity: of the model as it was loaded; None if it is no objective or the model spikes already.
        best: the best row for each objective, if any.
        next_steps: what to try next, in sentences.
        next_options: the same as KEY=VALUES, where there are values to try.
        best_chip: the chip of the best row for the first objective on a chip; None if the sweep names none.
        num_open: points that are not settled, since others are at them or a worker died.
        died: workers that died, in sentences.
        files: names of the files that were written.
    """

    title: str
    rows: list[Row]
    float_perplexity: float | None
    best: dict[str, Row]
    next_steps: list[str]
    next_options: list[str]
    best_chip: BestChip | None
    num_open: int
    died: list[str]
    files: tuple[str, ...]

    @property
    def num_failed(self) -> int:
        """Points that failed."""
        return sum(row.error is not None for row in self.rows)


def sweep(
    settings: SweepSettings,
    out: Path,
    progress: Progress = SILENT,
    *,
    workers: int = 1,
    storage: str | None = None,
    study: str = "sweep",
    retry_failed: bool = False,
) -> Swept:
    """Run a model with many settings, each once, and write what was found.

    Writes results.html, results.json, results.parquet, results.csv, with two objectives or more pareto.png, and if
    chips are compared best-chip.toml into `out`, beside the study. A sweep that was ended in any way goes on when it is
    started again; several processes can work on one study.

    Args:
        settings: what is run.
        out: folder to write to; made if it is missing.
        progress: told what happens.
        workers: processes.
        storage: URL of a database for the study, which other machines can share; None for a journal in `out`.
        study: name of the study.
        retry_failed: run what failed again.
    Raises:
        SpikebrainError: bad input, or a study of something else; the message says which and what to do.
    """
    if workers < 1:
        raise InputError(f"workers: expected an integer >= 1, got {workers}.")
    optuna()
    optional("pyarrow", "sweep", "sweep")  # now, not after the last run
    require_writable(out)
    bench, identity, title = _prepare(settings, progress)
    settings = replace(settings, device=identity["device"])
    queue = Study(settings, storage, study, out)
    lost = queue.begin(identity, retry_failed)
    before = queue.settled()
    if before or lost:
        taken_up = f", and {lost} that a dead process left are taken up again" if lost else ""
        progress.say(f"Going on: {len(before)} of {settings.num_points} runs were done{taken_up}.")
    told = _Told(settings, progress, before)
    base = None
    if "perplexity" in settings.objectives and not bench.spikes:
        base = queue.note("float_perplexity", lambda: bench.float_perplexity)
    died: list[str] = []
    if len(before) < settings.num_points:
        if workers == 1:
            work(queue, bench, told)
        else:
            del bench
            died = _supervise(queue, workers, (settings, storage, study, out), told)
    with locked(out):  # so that who reads last also writes last
        rows = rows_of(settings, queue.settled())
        write_results(rows, settings, identity, base, title, out)
    num_open = settings.num_points - len(rows)
    steps = next_steps(rows, settings)
    sentences, options = [said for said, _ in steps], [option for _, option in steps if option is not None]
    best, files, chip = best_rows(rows, settings), files_of(rows, settings), best_chip(rows, settings)
    return Swept(title, rows, base, best, sentences, options, chip, num_open, died, files)


def _prepare(settings: SweepSettings, progress: Progress = SILENT) -> tuple[Bench, dict[str, Any], str]:
    """Load model and text; return the bench, the identity of the study, and both in words."""
    text, text_source = read_text(settings.text)
    check_windows(settings.num_tokens, settings.context)
    tasks = [read_task(task, settings.data, settings.limit) for task in settings.tasks if settings.data is not None]
    if tasks:
        optional("lm_eval.evaluator", "eval", "accuracy")
    look_ahead(settings.model, [text], text_source, settings.context)
    loaded = load(settings.model, say=progress.say, bar=progress.bar)
    model = loaded.model
    if spikes := is_spiking(model):
        refuse_spikes(settings.spikes_given, loaded.source)
    else:
        if settings.on_chip:
            give_experts_cores(model, progress)
        _check_patterns(model, settings)
    if settings.on_chip and settings.device == "cuda":
        raise InputError("device: expected cpu, since a chip is simulated on the CPU; got cuda.")
    device = move(model, "cpu" if settings.on_chip else settings.device, _backend_of(settings), progress)
    ids = first_tokens(loaded, text, settings.num_tokens, settings.context, progress)
    bench = Bench(model, split_windows(ids, settings.context), spikes, tasks, loaded.tokenizer)
    title = f"{model_name(loaded.source)}, {len(ids):,} tokens of {text_source}"
    for task in tasks:
        title += f", {len(task.documents):,} of {task.total:,} documents of {task.task}"
    return bench, identity_of(settings, model, ids, device, tasks), title


def _backend_of(settings: SweepSettings) -> str:
    """Return the backend that decides on the device: one that is not for every device, if there is one."""
    named = [name for name in settings.values_of("backend") if name != "auto"]
    return named[0] if named else "auto"


def _check_patterns(model: torch.nn.Module, settings: SweepSettings) -> None:
    """Raise an InputError if a pattern matches no layer, or if others before it match all of its layers."""
    chosen = settings_of(next(iter(settings.grid())))
    try:
        layers, _ = choose_layers(model, chosen)
    except InputError as error:  # which speaks of neurons, where keys of a sweep were given
        patterns = {split_key(name)[1]: name for name in settings.options}
        found = next((name for p, name in patterns.items() if p and str(error).startswith(f"neuron {p!r}:")), None)
        if found is None:
            raise
        raise InputError(f"{found}:{str(error).partition(':')[2]}") from error
    if not isinstance(chosen.neuron, Mapping):
        return
    patterns = list(chosen.neuron)
    taken = {next((p for p in patterns if fnmatch.fnmatchcase(name, p)), None) for name in layers}
    for pattern in patterns:
        given = [name for name in settings.options if split_key(name)[1] == pattern]
        if pattern not in taken and given:
            raise InputError(
                f"{given[0]}: has no effect, since earlier patterns match all of its layers. Name it first."
            )


def work(queue: Study, bench: Bench, told: _Told | None = None) -> None:
    """Take points from the queue until it is empty; what fails is kept with its message."""
    while (attempt := queue.take()) is not None:
        with queue.at_work(attempt):
            try:
                result = measure(bench.run(queue.settings.point(attempt.values)), queue.settings)
            except Exception as error:
                queue.fail(attempt, _message(error))
            else:
                queue.complete(attempt, result)
        if told is not None:
            told.look(queue.settled())
        queue.mend()


def measure(run: Run, settings: SweepSettings) -> dict[str, float]:
    """Return the objectives of a run, and its energy on a chip and the statistics of its spikes if they are known."""
    found = {name: float(objective.of(run)) for name, objective in settings.chosen.items()}
    found |= {f"{PER_MAC}{component}": pj for component, pj in run.known_parts.items()}
    return found | (asdict(run.known_statistics) if run.known_statistics is not None else {})


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, SpikebrainError) else f"{type(error).__name__}: {error}"


class _Told:
    """Says once what became of each point."""

    def __init__(self, settings: SweepSettings, progress: Progress, before: list[Settled]) -> None:
        self._settings, self._progress = settings, progress
        self._known = {one.number for one in before}
        self._done = progress.bar("sweep", settings.num_points, "runs")
        self._done(len(before))

    def look(self, settled: list[Settled]) -> None:
        for one in settled:
            if one.number not in self._known:
                self._known.add(one.number)
                self._progress.say(f"{in_words(one.values)}: {self._figures(one)}")
                self._done(1)

    def _figures(self, one: Settled) -> str:
        if one.result is None:
            return f"failed. {one.error}"
        shown = self._settings.chosen.items()
        return ", ".join(f"{name} {one.result[name]:{objective.form}}" for name, objective in shown)


def _supervise(queue: Study, workers: int, job: tuple[Any, ...], told: _Told) -> list[str]:
    """Run worker processes until all have ended; return which of them died."""
    context = multiprocessing.get_context("spawn")
    running: dict[Any, Connection] = {}
    died: list[str] = []
    faults: list[str] = []
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_worker, args=(theirs, workers, *job), daemon=True)
            process.start()
            theirs.close()
            running[process] = ours
        while running:
            wait([process.sentinel for process in running], timeout=_LOOK_S)
            told.look(queue.settled())
            for process in [one for one in running if not one.is_alive()]:
                ours = running.pop(process)
                if process.exitcode:
                    said = _received(ours)
                    faults += [said] if said else []
                    died += [] if said else [f"A worker (process {process.pid}) {_how(process.exitcode)}."]
    finally:
        for process in running:
            process.kill()
    if faults:
        raise InputError(faults[0])
    queue.mend()
    return died


def _received(connection: Connection) -> str | None:
    try:
        return connection.recv() if connection.poll() else None
    except EOFError:
        return None


def _how(exitcode: int) -> str:
    if exitcode < 0:
        return f"was killed by signal {-exitcode}; signal 9 often means that memory ran out"
    return f"ended with exit code {exitcode}"


def _worker(
    report: Connection, workers: int, settings: SweepSettings, storage: str | None, study: str, out: Path
) -> None:
    """Do the work of one process; the processors are shared with the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    _end_with_parent()
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    try:
        bench, _, _ = _prepare(settings)
        work(Study(settings, storage, study, out), bench)
    except SpikebrainError as error:
        report.send(str(error))
        sys.exit(1)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
