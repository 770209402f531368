"""Run the stages of an evaluation, float, integer weights, spikes, over texts, tasks and layers, part by part."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..analysis.layer_errors import LayerError, comparable_layers, layer_errors
from ..analysis.perplexity import window_nlls
from ..errors import SpikebrainError
from ..models import Loaded
from .eval_journal import Journal
from .eval_tasks import Documents
from .progress import Progress
from .resume import digest

# Finished parts are kept after so many: documents of a task, windows of a text.
_DOCUMENTS = 128
_WINDOWS = 8

Item = TypeVar("Item")


class Stage(NamedTuple):
    """One way to run the model.

    Attributes:
        name: "float", the kind of integer weights, or "k=3".
        meaning: in words.
        build: returns the model that runs so.
        spikes: whether it is on spikes.
    """

    name: str
    meaning: str
    build: Callable[[], nn.Module]
    spikes: bool = False


class Text(NamedTuple):
    """A text and its windows, each [L]."""

    name: str
    windows: list[Tensor]


@dataclass
class Run:
    """One stage after the other; what an earlier run has finished is taken from the journal.

    Attributes:
        loaded: the model, and its tokenizer.
        texts: whose perplexity is measured.
        tasks: whose documents are scored.
        layer_ids: tokens over which the error of each layer is measured, [L]; None for no layers.
        batch_size: requests that run together.
        journal: finished parts.
        progress: told what happens.
        nlls: of each window, by text and stage.
        samples: of each document, by task and stage.
        layers: by stage.
        faults: why a task was given up, by task.
    """

    loaded: Loaded
    texts: list[Text]
    tasks: list[Documents]
    layer_ids: Tensor | None
    batch_size: int
    journal: Journal
    progress: Progress
    nlls: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    samples: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    layers: dict[str, list[LayerError]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)

    def run(self, stage: Stage) -> None:
        """Run a stage over everything."""
        model = _Once(stage.build)
        for text in self.texts:
            self.nlls.setdefault(text.name, {})[stage.name] = self._run_text(stage, text, model)
        for documents in self.tasks:
            if documents.task not in self.faults:
                try:
                    found = self._run_task(stage, documents, model)
                except SpikebrainError as error:
                    self.faults[documents.task] = f"{documents.task}, {stage.name}: {error}"
                    self.progress.say(f"Given up: {self.faults[documents.task]}")
                else:
                    self.samples.setdefault(documents.task, {})[stage.name] = found
        if self.layer_ids is not None and stage.spikes:
            self.layers[stage.name] = self._run_layers(stage, self.layer_ids, model)
        model.forget()

    def _run_text(self, stage: Stage, text: Text, model: _Once) -> list[float]:
        part = (stage.name, "text", digest([window.tolist() for window in text.windows]))
        done = self.progress.bar(f"{stage.name}, {text.name}", sum(map(len, text.windows)), "tokens")

        def run(windows: list[Tensor]) -> list[float]:
            return window_nlls(model(), windows, done)

        return self._in_parts(part, text.windows, _WINDOWS, run, lambda windows: done(sum(map(len, windows))))

    def _run_task(self, stage: Stage, documents: Documents, model: _Once) -> list[dict[str, Any]]:
        how = [documents.documents, documents.task, self.batch_size, version("lm_eval")]
        done = self.progress.bar(f"{stage.name}, {documents.task}", len(documents.documents), "documents")
        scorer = _Once(lambda: self._scorer(model()))

        def run(portion: list[dict[str, Any]]) -> list[dict[str, Any]]:
            found = scorer().score(documents.task, portion)
            done(len(portion))
            return found

        part = (stage.name, "task", digest(how))
        return self._in_parts(part, documents.documents, _DOCUMENTS, run, lambda portion: done(len(portion)))

    def _scorer(self, model: nn.Module) -> Any:
        from .eval_scoring import Scorer  # noqa: PLC0415 - lm-eval is optional, and takes seconds

        return Scorer(model, self.loaded.tokenizer, self.batch_size)

    def _run_layers(self, stage: Stage, ids: Tensor, model: _Once) -> list[LayerError]:
        spiking = model()
        names = comparable_layers(self.loaded.model, spiking)
        done = self.progress.bar(f"{stage.name}, layers", len(names), "layers")

        def run(portion: list[str]) -> list[list[Any]]:
            found = []
            for error in layer_errors(self.loaded.model, spiking, ids, portion):
                found.append([error.name, error.sqnr_db, error.kl_nats])
                done(1)
            return found

        part = (stage.name, "layers", digest(ids.tolist()))
        rows = self._in_parts(part, names, _WINDOWS, run, lambda portion: done(len(portion)))
        return [LayerError(*row) for row in rows]

    def _in_parts(
        self,
        part: tuple[str, ...],
        items: list[Item],
        size: int,
        run: Callable[[list[Item]], list[Any]],
        skip: Callable[[list[Item]], Any],
    ) -> list[Any]:
        """Return what `run` gives for all items, in portions; those that the journal has are skipped."""
        found: list[Any] = []
        for start in range(0, len(items), size):
            portion = items[start : start + size]
            key = (*part, start, len(portion))
            if key in self.journal.parts:
                skip(portion)
            else:
                self.journal.add((key, run(portion)))
            found += self.journal.parts[key]
        return found


class _Once:
    """Makes an object when it is first needed, and the same one after that."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make, self._made = make, []

    def __call__(self) -> Any:
        if not self._made:
            self._made.append(self._make())
        return self._made[0]

    def forget(self) -> None:
        """Free its memory."""
        self._made.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
