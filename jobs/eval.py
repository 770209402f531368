"""The evaluation of a model: perplexity, zero-shot tasks and the error of each layer; float, INT8 and spiking."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .. import pages
from ..analysis.perplexity import split_windows
from ..backends import BACKENDS, Backend, device_of
from ..coding import ENCODERS, Encoder
from ..errors import InputError
from ..files import write_json
from ..lazy import optional
from ..models import Loaded, SpikeSettings, choose_layers, to_dense, to_spiking
from ..models.io import load
from ..models.io.checksums import of_text
from ..neuro import NEURONS, AdaptiveThreshold, Neuron
from ..registry import describe, label
from .eval_figures import PUBLISHED, average_figures, task_figures, text_figures
from .eval_journal import FILE_NAME, Journal
from .eval_run import Run, Stage, Text
from .eval_tasks import Documents, check_tasks, read_task
from .given import K, k_in_words, refuse, refuse_spikes, spike_settings, usual
from .inputs import (
    alone,
    first_tokens,
    is_spiking,
    look_ahead,
    look_at_layers,
    move,
    read_text,
    require_tokenizer,
    require_writable,
)
from .measure import weights_in_words
from .progress import SILENT, Progress
from .report_files import describe_environment
from .resume import describe_source

WRITTEN = ("eval.html", "eval.json")
# Raised when an older unfinished evaluation could not go on.
_FORMAT = 1


@dataclass(frozen=True)
class EvalSettings:
    """What to run. At least one text or task is needed.

    A model that spikes already keeps its own settings, and is compared with its own integer weights: how it is to spike
    must then not be given.

    Attributes:
        model: anything that `load` takes.
        tasks: names of zero-shot tasks; see `TASKS`. They need lm-eval, of the extra `eval`.
        data: folder with the files of the tasks, or with a folder for each task.
        limit: documents of each task, from its first on; None for all.
        batch_size: requests of a task that run together; None for 32.
        text: UTF-8 files whose perplexity is measured, each by itself.
        num_tokens: tokens from the start of each text; None for all.
        context: tokens per window of a text; None for 512.
        layer_tokens: tokens of the first text over which the error of each layer is measured; None for no layers.
        neuron: as for `ReportSettings`.
        k: of the neuron, if it has one, each a stage of its own; one can be a mapping from patterns of names of
            layers. None for its own.
        encoder: as for `ReportSettings`, as are the following.
        backend: computes the integer sums.
        layers: pattern of the names of layers that spike.
        skip: patterns of the names of layers that stay dense.
        weights: "int8", "int4" or "stored".
        group_size: input channels that share a weight scale.
        attention: how softmax attention spikes; with integer weights and float activations it is in floating point.
        device: "cpu", "cuda" or "auto".
    Raises:
        InputError: a value of the wrong kind, or one that has no effect.
    """

    model: str = "smollm2"
    tasks: tuple[str, ...] = ()
    data: Path | None = None
    limit: int | None = None
    batch_size: int | None = None
    text: tuple[Path, ...] = ()
    num_tokens: int | None = None
    context: int | None = None
    layer_tokens: int | None = None
    neuron: Neuron | str | None = None
    k: tuple[K, ...] | None = None
    encoder: Encoder | str | None = None
    backend: Backend | Literal["auto"] | str | None = None
    layers: str | None = None
    skip: tuple[str, ...] | None = None
    weights: str | None = None
    group_size: int | None = None
    attention: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        """Put objects in the place of names, and check what can be checked without the model."""
        object.__setattr__(self, "neuron", NEURONS.resolve(self.neuron, "neuron", None))
        object.__setattr__(self, "encoder", ENCODERS.resolve(self.encoder, "encoder", None))
        object.__setattr__(self, "backend", BACKENDS.resolve(self.backend, "backend", "auto", None))
        if not self.tasks and not self.text:
            raise InputError("tasks: expected at least one task or text, got none. Give `tasks` and `data`, or `text`.")
        check_tasks(self.tasks, self.data, self.limit)
        for name in ("text", "k"):
            _check_distinct(name, getattr(self, name) or ())
        if self.k is not None and not self.k:
            raise InputError("k: expected at least one value, got none. Leave it out for the neuron's own.")
        for k in self.each_k():
            self.spike_settings(k)
        if not self.tasks:
            refuse(self, ("data", "limit", "batch_size"), "without `tasks`")
        if not self.text:
            refuse(self, ("num_tokens", "context", "layer_tokens"), "without `text`")
        for name, least in (("batch_size", 1), ("num_tokens", 2), ("context", 2), ("layer_tokens", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name}: expected an integer >= {least}, got {value}.")

    def each_k(self) -> tuple[K | None, ...]:
        """Return k of each stage on spikes: as given, else the neuron's own, which is None if it has none."""
        own = getattr(usual(self.neuron, AdaptiveThreshold()), "k", None)
        return self.k or (own if isinstance(own, int | float) else None,)

    def spike_settings(self, k: K | None = None) -> SpikeSettings:
        """Return which layers spike, and how, for one k; None for the first."""
        return spike_settings(self, usual(k, self.k[0]) if self.k else None)


@alone
def evaluate(settings: EvalSettings, out: Path, progress: Progress = SILENT) -> dict[str, Any]:
    """Measure perplexities, score tasks and find the worst layers, in float, with integer weights and on spikes.

    Writes eval.html and eval.json into `out`, with the result of every document and window. A run that was interrupted
    goes on where it stopped when it is started again with the same model and the same way to spike; tasks, texts and
    values of k may differ.

    Args:
        settings: what to run.
        out: folder to write to; made if it is missing.
        progress: told what happens.
    Returns:
        The content of eval.json.
    Raises:
        SpikebrainError: bad input; the message says which and what to do. A task that cannot be scored is told after
            all others, which are written and kept.
    """
    start = time.perf_counter()
    device_of(settings.device)
    chosen = settings.spike_settings()
    if settings.tasks:
        optional("lm_eval.evaluator", "eval", "tasks")
    tasks, faults = _read_tasks(settings, progress)
    if faults and not tasks and not settings.text:
        raise InputError("\n".join(faults.values()))
    contents = [read_text(path) for path in settings.text]
    context = usual(settings.context, 512)
    require_writable(out)
    found = None
    for content, name in contents or [("", "")]:
        found = look_ahead(settings.model, [content], name, context if contents else 0)
    look_at_layers(found, settings)
    progress.say(f"Loading {settings.model}")
    loaded = load(settings.model, say=progress.say, bar=progress.bar)
    require_tokenizer(loaded.tokenizer, loaded.source)
    device = move(loaded.model, settings.device, chosen.backend, progress)
    if spikes_already := is_spiking(loaded.model):
        refuse_spikes(settings, loaded.source)
        refuse(settings, ("layer_tokens",), "on a model that spikes already, which has no float model beside it")
    else:
        choose_layers(loaded.model, chosen)
    ids = [
        first_tokens(
            loaded,
            content,
            usual(settings.num_tokens, max(len(content), 1)),
            context,
            SILENT if settings.num_tokens is None else progress,
        )
        for content, _ in contents
    ]
    texts = [Text(str(path), split_windows(x, context)) for path, x in zip(settings.text, ids, strict=True)]
    journal = Journal.of_job(out, _job(settings, loaded, device))
    if journal.others:
        progress.say(
            f"{journal.path} has {len(journal.others)} parts of another model, version or settings, which do not count "
            "here. They stay for an evaluation that they belong to."
        )
    if journal.parts:
        progress.say(f"Going on with the run that was interrupted: {len(journal.parts)} parts were done.")
    layer_ids = ids[0][: settings.layer_tokens] if settings.layer_tokens else None
    run = Run(loaded, texts, tasks, layer_ids, usual(settings.batch_size, 32), journal, progress, faults=faults)
    stages = _stages(settings, loaded, spikes_already)
    seconds = {"load": time.perf_counter() - start}
    for stage in stages:
        began = time.perf_counter()
        run.run(stage)
        seconds[stage.name] = time.perf_counter() - began
    result = {
        "kind": "eval",
        "format": pages.FORMAT,
        "model": {"name": settings.model, "source": Path(loaded.source).name, "class": type(loaded.model).__name__},
        "stages": {stage.name: stage.meaning for stage in stages},
        "settings": _describe_settings(settings, loaded, spikes_already, device),
        **_figures(run, contents),
        "published": PUBLISHED,
        "faults": run.faults,
        "environment": describe_environment(device),
        "seconds": {**seconds, "total": time.perf_counter() - start},
    }
    result |= _samples(run)
    write_json(out / "eval.json", result)
    pages.write_page(result, out / "eval.html", WRITTEN, pages.attributes_of(EvalSettings))
    if run.faults:
        raise InputError(
            "\n".join(run.faults.values())
            + f"\nThe other results are in {out / 'eval.json'}. Mend this and run again: what "
            "was finished is kept."
        )
    journal.remove()
    return result


def _check_distinct(name: str, values: Sequence[Any]) -> None:
    twice = next((value for i, value in enumerate(values) if value in values[:i]), None)
    if twice is not None:
        raise InputError(f"{name}: expected each value once, got {str(twice)!r} twice.")


def _read_tasks(settings: EvalSettings, progress: Progress) -> tuple[list[Documents], dict[str, str]]:
    """Return the documents of all tasks, and why those of the others cannot be read."""
    tasks, faults = [], {}
    for task in settings.tasks:
        assert settings.data is not None
        try:
            tasks.append(read_task(task, settings.data, settings.limit))
        except InputError as error:
            faults[task] = str(error)
            progress.say(f"Left out: {task}. {error}")
    return tasks, faults


def _stages(settings: EvalSettings, loaded: Loaded, spikes_already: bool) -> list[Stage]:
    """Return the ways to run the model, the one that others are compared with first."""
    model = loaded.model
    if spikes_already:
        words = weights_in_words(model)
        return [
            Stage(words.lower(), f"{words} weights, float activations", lambda: to_dense(model)),
            Stage("spiking", f"{words} weights, spike trains, as the model has them", lambda: model, spikes=True),
        ]
    kind = usual(settings.weights, "int8")

    def on_spikes(k: K | None) -> Stage:
        spiking = settings.spike_settings(k)
        name = "spiking" if k is None else f"k={k_in_words(k)}"
        meaning = f"{kind} weights, spike trains"
        if settings.neuron is not None:
            meaning += f" of {' and '.join(_neuron_labels(spiking))}"
        return Stage(name, meaning, lambda: to_spiking(model, spiking), spikes=True)

    return [
        Stage("float", "float weights and activations", lambda: model),
        Stage(
            kind,
            f"{kind} weights, float activations",
            lambda: to_dense(to_spiking(model, settings.spike_settings()), inplace=True),
        ),
        *(on_spikes(k) for k in settings.each_k()),
    ]


def _neuron_labels(settings: SpikeSettings) -> list[str]:
    """Return what the neurons are called, each once."""
    neurons = settings.neuron.values() if isinstance(settings.neuron, Mapping) else [settings.neuron]
    return list(dict.fromkeys(map(label, neurons)))


def _job(settings: EvalSettings, loaded: Loaded, device: str) -> dict[str, Any]:
    """Return what all figures depend on, whatever the texts, the tasks and the values of k."""
    names = ("layers", "skip", "weights", "group_size", "attention")
    return {
        "format": _FORMAT,
        "settings": {name: repr(getattr(settings, name)) for name in names}
        | {name: describe(getattr(settings, name)) for name in ("neuron", "encoder", "backend")},
        "device": device,
        **describe_source(loaded, WRITTEN, FILE_NAME),
    }


def _describe_settings(settings: EvalSettings, loaded: Loaded, spikes_already: bool, device: str) -> dict[str, Any]:
    spikes = ("neuron", "k", "encoder", "backend", "layers", "skip", "weights", "group_size", "attention")
    chosen = settings.spike_settings()
    neurons = [name for k in settings.each_k() for name in _neuron_labels(settings.spike_settings(k))]
    return {
        "tasks": list(settings.tasks),
        "limit": settings.limit,
        "batch_size": usual(settings.batch_size, 32) if settings.tasks else None,
        "num_tokens": settings.num_tokens,
        "context": usual(settings.context, 512) if settings.text else None,
        "layer_tokens": settings.layer_tokens,
        **(
            dict.fromkeys(spikes, "as the model has them")
            if spikes_already
            else {
                "neuron": list(dict.fromkeys(neurons)),
                "k": list(settings.each_k()),
                "encoder": label(chosen.encoder),
                "backend": chosen.backend if isinstance(chosen.backend, str) else label(chosen.backend),
                "layers": list(chosen.layers),
                "skip": list(chosen.skip),
                "weights": chosen.weights,
                "group_size": chosen.group_size,
                "attention": chosen.attention,
            }
        ),
        "device": device,
    }


def _figures(run: Run, contents: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return all figures, as JSON values."""
    texts = {}
    for text, (content, _) in zip(run.texts, contents, strict=True):
        sizes = [len(window) - 1 for window in text.windows]
        texts[text.name] = {
            "sha256": of_text(content),
            "num_tokens": sum(map(len, text.windows)),
            "perplexity": text_figures(run.nlls[text.name], sizes),
        }
    tasks = {}
    for documents in run.tasks:
        if found := run.samples.get(documents.task):
            tasks[documents.task] = {
                "files": documents.files,
                "num_documents": len(documents.documents),
                "of": documents.total,
                "metrics": task_figures(documents.task, found),
            }
    whole = {task: figures["metrics"] for task, figures in tasks.items() if task not in run.faults}
    return {
        "texts": texts,
        "tasks": tasks,
        "average": average_figures(whole),
        "layers": {stage: [dataclasses.asdict(layer) for layer in layers] for stage, layers in run.layers.items()},
    }


def _samples(run: Run) -> dict[str, Any]:
    """Return the result of every document and window: by task or text, stage, and for a task what it is a result of."""
    samples = {
        task: {stage: {name: [row[name] for row in rows] for name in rows[0]} for stage, rows in stages.items()}
        for task, stages in run.samples.items()
    }
    return {"samples": samples, "window_nlls": run.nlls}
