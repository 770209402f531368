"""The page of `spikebrain sweep`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..analysis import LABELS, pareto_front
from .charts import frontier
from .figures import Figures
from .parts import Card, Column, Page, Section, Table, Term, Text, View
from .tables import in_words
from .terms import terms_for

# Statistics that every table has, as table 11 of the SpikingBrain report has them.
_ALWAYS = {"window3_sparsity": ".1%", "fraction_le_7": ".2%"}


def build(figures: Figures, meanings: Mapping[str, str]) -> Page:
    """Return the page of a sweep."""
    del meanings  # the objectives bring their own
    objectives, rows = figures["objectives"], figures["rows"]
    done = [row for row in rows if row["error"] is None]
    terms = {
        name: Term(name, f"{_capital(o['meaning'])}; {o['better']} is better.", name) for name, o in objectives.items()
    }
    swept = figures["swept"]
    sections = [
        *_fronts(done, objectives),
        *_best_chip(figures.get("best_chip")),
        _runs(done, swept, objectives, figures["float_perplexity"]),
        *_failed(rows),
        *([Section("next", "What to try next", "", [Text(figures["next_steps"])])] if figures["next_steps"] else []),
        Section("settings", "Settings", "", [_settings(figures["settings"])]),
    ]
    page = Page(
        title=f"Sweep of {figures['title']}",
        subject=f"{figures['title']}; swept: {', '.join(swept)}",
        answer=_answer(done, len(rows), objectives),
        cards=_cards(figures["best"], done, objectives),
        sections=sections,
        terms={},
    )
    return Page(**{**vars(page), "terms": terms_for([*page.asked_for, *objectives], terms)})


def _answer(done: list[Figures], num_rows: int, objectives: Figures) -> str:
    if not done:
        return f"All {num_rows} runs failed."
    failed = f" {num_rows - len(done)} failed." if num_rows > len(done) else ""
    if len(objectives) == 1:
        return f"{len(done)} runs are done.{failed}"
    front = sum(row["on_front"] for row in done)
    many = "1 is on the front: no other beats it" if front == 1 else f"{front} are on the front: no other beats them"
    return f"Of {len(done)} runs, {many} in all objectives.{failed}"


def _cards(best: Figures, done: list[Figures], objectives: Figures) -> list[Card]:
    def settings(name: str, row: Figures) -> str:
        num_as_good = sum(other["figures"][name] == row["figures"][name] for other in done)
        if num_as_good == len(done) > 1:
            return f"All {len(done)} runs are equal."
        return row["label"] + (f", and {num_as_good - 1} as good" if num_as_good > 1 else "")

    return [
        Card(
            f"Best {name}",
            f"{row['figures'].number(name):{objectives[name]['form']}}",
            (settings(name, row), f"{objectives[name]['better']} is better."),
            objectives[name]["meaning"].split(",")[0].split(" ")[0],
            name,
        )
        for name, row in best.items()
    ][:4]


def _fronts(done: list[Figures], objectives: Figures) -> list[Section]:
    names = list(objectives)
    if len(names) < 2 or not done:
        return []
    first, views = names[0], []
    for i, other in enumerate(names[1:]):
        signs = [1.0 if objectives[name]["better"] == "lower" else -1.0 for name in (first, other)]
        costs = [
            [sign * row["figures"].number(name) for sign, name in zip(signs, (first, other), strict=True)]
            for row in done
        ]
        points = [
            {
                "x": row["figures"][other],
                "y": row["figures"][first],
                "x_shown": f"{row['figures'][other]:{objectives[other]['form']}}",
                "y_shown": f"{row['figures'][first]:{objectives[first]['form']}}",
                "front": on_front,
                "label": row["label"],
            }
            for row, on_front in zip(done, pareto_front(costs), strict=True)
        ]
        titles = [f"{name} ({objectives[name]['better']} is better)" for name in (other, first)]
        tips = {"label": "settings", "y_shown": first, "x_shown": other}
        title = f"{_capital(first)} over {other}"
        views.append(View(f"front-{i}", "chart", title, frontier(points, titles[0], titles[1], tips)))
    return [Section("front", "Frontier", "A run on the front is beaten by no other in both objectives.", views)]


def _best_chip(chip: Figures | None) -> list[Section]:
    if not chip:
        return []
    parts, total = chip["pj_per_mac"], sum(chip["pj_per_mac"].values())
    columns = [Column("component"), Column("pJ a MAC", ",.4g"), Column("share", ".1%")]
    rows = [(name, pj, pj / total if total else None) for name, pj in parts.items()]
    table = Table("What its energy consists of", columns, [*rows, ("total", total, None)], total=True)
    intro = f"Of the best run by {chip['objective']}; best-chip.toml describes it."
    return [Section("best-chip", "Best chip", intro, [table])]


def _runs(done: list[Figures], swept: list[str], objectives: Figures, float_perplexity: float | None) -> Section:
    always = {key: form for key, form in _ALWAYS.items() if any(key in row["figures"] for row in done)}
    columns = [Column("run"), *(Column(key, _form(done, key)) for key in swept)]
    columns += [Column(LABELS[key], form, key) for key, form in always.items()]
    columns += [Column(name, objective["form"], name) for name, objective in objectives.items()]
    columns += [Column("on the front", None, "front")] if len(objectives) > 1 else []
    rows: list[tuple[Any, ...]] = [
        (
            row["label"],
            *(_setting(row["settings"][key]) for key in swept),
            *(row["figures"].get(key) for key in always),
            *(row["figures"][name] for name in objectives),
            *([row["on_front"]] if len(objectives) > 1 else []),
        )
        for row in done
    ]
    note = "" if float_perplexity is None else f"The float model has a perplexity of {float_perplexity:.3f}."
    return Section("runs", "Runs", "", [Table(f"{len(rows)} runs", columns, rows, note)])


def _form(done: list[Figures], key: str) -> str | None:
    """Return how a key's values are written: as numbers, or as text."""
    values = [row["settings"][key] for row in done]
    is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return ",.6g" if values and is_number else None


def _setting(value: Any) -> Any:
    return value if isinstance(value, int | float) else in_words(value)


def _failed(rows: list[Figures]) -> list[Section]:
    failed = [(row["label"], row["error"]) for row in rows if row["error"] is not None]
    if not failed:
        return []
    table = Table(f"{len(failed)} runs failed", [Column("run"), Column("why")], failed)
    return [Section("failed", "Failed runs", "The command with --retry-failed runs them again.", [table])]


def _settings(settings: Figures) -> Table:
    return Table("Settings", [Column("setting"), Column("value")], [(k, in_words(v)) for k, v in settings.items()])


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
