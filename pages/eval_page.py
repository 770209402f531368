"""The page of `spikebrain eval`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from .charts import depth_map, differences
from .figures import Figures
from .layers import kind_and_depth, short_names
from .parts import Card, Column, Page, Section, Table, Text, View
from .tables import environment, settings_table
from .terms import terms_for
from .words import duration, percent

# A row: what was measured, whether it is a share, and the figures by stage.
Row = tuple[str, bool, Figures]


def build(figures: Figures, meanings: Mapping[str, str]) -> Page:
    """Return the page of an evaluation."""
    rows = _rows(figures)
    stages = list(figures["stages"])
    cards = [_card(row, stages) for row in _headlines(figures, rows)]
    faults = [Text([f"{task}: {fault}" for task, fault in figures["faults"].items()])] if figures["faults"] else []
    page = Page(
        title=f"{figures['model']['source']}: accuracy on spikes",
        subject=f"{figures['model']['source']}; "
        + "; ".join(f"{stage}: {meaning}" for stage, meaning in figures["stages"].items()),
        answer=_answer(_headlines(figures, rows), stages),
        cards=cards,
        sections=[
            *([Section("faults", "What could not be scored", "", faults)] if faults else []),
            _comparison(rows, stages),
            *_tasks(figures),
            *_layers(figures["layers"]),
            Section(
                "settings",
                "Settings",
                f"This run took {duration(figures['seconds'].number('total'))}.",
                [settings_table(figures["settings"], meanings), environment(figures["environment"])],
            ),
        ],
        terms={},
    )
    return Page(**{**vars(page), "terms": terms_for([*page.asked_for, "stderr"])})


def _rows(figures: Figures) -> list[Row]:
    rows: list[Row] = [
        (f"perplexity of {PurePath(name).name}", False, text["perplexity"]) for name, text in figures["texts"].items()
    ]
    for task, described in figures["tasks"].items():
        for metric, found in described["metrics"].items():
            rows.append((f"{task}, {metric}", metric != "perplexity", found))
    if figures["average"] is not None:
        rows.append(("average accuracy", True, figures["average"]))
    return rows


def _headlines(figures: Figures, rows: list[Row]) -> list[Row]:
    """Return what the answer is about: texts, and the average over tasks or each of them."""
    texts = [row for row in rows if not row[1] and row[0].startswith("perplexity of ")][:2]
    shares = [row for row in rows if row[1]]
    return (texts + (shares[-1:] if figures["average"] is not None else shares[:2]))[:3]


def _answer(rows: list[Row], stages: list[str]) -> str:
    if not rows or len(stages) < 2:
        return "No figure was measured on spikes."
    name, is_share, found = rows[-1]
    said = [f"{_difference(found, stage, is_share)} at {stage}" for stage in stages[1:] if stage in found]
    return f"{name[:1].upper() + name[1:]} changes from {stages[0]} by {_joined(said)}."


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _card(row: Row, stages: list[str]) -> Card:
    name, is_share, found = row
    last = stages[-1]
    notes = [f"{stage}: {_value(found[stage], is_share)}" for stage in stages if stage in found]
    return Card(name, f"{_difference(found, last, is_share)} at {last}", notes, "measured", "stderr")


def _value(figure: Figures, is_share: bool) -> str:
    value, error = figure["value"], figure["stderr"]
    shown = percent(value, 2) if is_share else f"{value:.3f}"
    return shown if error is None else f"{shown} ± {percent(error, 2) if is_share else f'{error:.3f}'}"


def _difference(found: Figures, stage: str, is_share: bool) -> str:
    """Return a difference from the first stage: in points of a share, in percent of a perplexity."""
    figure = found[stage]
    if "difference" not in figure:
        return "–"
    unit = " points" if is_share else "\u00a0%"
    value, error = figure["difference"], figure["difference_stderr"]
    shown = f"{100 * value:+.2f}".replace("-", "−")
    return f"{shown}{unit}" if error is None else f"{shown} ± {100 * error:.2f}{unit}"


def _comparison(rows: list[Row], stages: list[str]) -> Section:
    parts: list[Any] = []
    for is_share, title in ((False, "Perplexity: change in percent"), (True, "Accuracy: change in points")):
        points = [
            {
                "what": name,
                "stage": stage,
                "value": 100 * found[stage]["difference"],
                "low": 100 * (found[stage]["difference"] - (found[stage]["difference_stderr"] or 0.0)),
                "high": 100 * (found[stage]["difference"] + (found[stage]["difference_stderr"] or 0.0)),
                "shown": _difference(found, stage, is_share),
            }
            for name, share, found in rows
            if share == is_share
            for stage in stages[1:]
            if stage in found and "difference" in found[stage]
        ]
        if points:
            name = "accuracies" if is_share else "perplexities"
            note = "Bars are one standard error to each side." if any(p["low"] < p["high"] for p in points) else ""
            chart = differences(points, f"difference from {stages[0]}, {'points' if is_share else '%'}")
            parts.append(View(name, "chart", title, chart, note))
    columns = [Column("what"), *(Column(stage, "s", "stderr" if i == 0 else "") for i, stage in enumerate(stages))]
    values = [
        (name, *(_value(found[stage], is_share) if stage in found else None for stage in stages))
        for name, is_share, found in rows
    ]
    columns_of_differences = [Column("what"), *(Column(stage, "s") for stage in stages[1:])]
    changes = [
        (name, *(_difference(found, stage, is_share) if stage in found else None for stage in stages[1:]))
        for name, is_share, found in rows
    ]
    parts.append(Table("Figures ± standard error", columns, values))
    parts.append(Table(f"Difference from {stages[0]}, paired", columns_of_differences, changes))
    return Section("comparison", "Comparison", "", parts)


def _tasks(figures: Figures) -> list[Section]:
    if not figures["tasks"]:
        return []
    documents = [(task, row["num_documents"], row["of"]) for task, row in figures["tasks"].items()]
    columns = [Column("task"), Column("documents scored", ","), Column("documents of the task", ",")]
    published = figures["published"]
    shown = [task for task in published["metrics"] if task in figures["tasks"]]
    parts: list[Any] = [Table("Documents", columns, documents, "No examples in the prompt.")]
    if shown:
        rows: list[tuple[Any, ...]] = [
            (model, *(values[task] for task in shown)) for model, values in published["models"].items()
        ]
        for stage in figures["stages"]:
            metrics = [figures["tasks"][task]["metrics"][published["metrics"][task]] for task in shown]
            rows.append((f"this model, {stage}", *(m[stage]["value"] if stage in m else None for m in metrics)))
        parts.append(
            Table(
                "Beside published models",
                [Column("model"), *(Column(task, ".2%") for task in shown)],
                rows,
                f"{published['source']}. hellaswag: acc_norm.",
            )
        )
    return [Section("tasks", "Tasks", "", parts)]


def _layers(layers: Figures) -> list[Section]:
    if not layers:
        return []
    parts: list[Any] = []
    for i, (stage, found) in enumerate(layers.items()):
        placed = [(layer, *kind_and_depth(layer["name"])) for layer in found]
        short = short_names(kind for _, kind, _ in placed)
        rows = [
            {
                "kind": short[kind],
                "depth": depth,
                "layer": layer["name"],
                "kl": layer["kl_nats"],
                "sqnr": layer["sqnr_db"],
            }
            for layer, kind, depth in placed
            if depth is not None
        ]
        if rows:
            metrics = {"kl": ("KL divergence, nats", ".2e"), "sqnr": ("signal to noise, dB", ".1f")}
            kinds = list(dict.fromkeys(row["kind"] for row in rows))
            parts.append(View(f"layers-{i}", "chart", f"At {stage}", depth_map(rows, metrics, kinds)))
        columns = [
            Column("layer"),
            Column("KL divergence, nats", ".2e", "kl"),
            Column("signal to noise, dB", ".1f", "sqnr"),
        ]
        values = sorted(((r["name"], r["kl_nats"], r["sqnr_db"]) for r in found), key=lambda row: -row[1])
        parts.append(Table(f"Layers at {stage}, worst first", columns, values))
    intro = "One layer on spikes, all others in float: what that changes."
    return [Section("layers", "Layers", intro, parts)]
