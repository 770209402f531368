"""What came of a sweep: rows, files, the best of them, and what to try next."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ... import analysis, pages
from ...analysis.stats import SpikeStatistics
from ...chip import COMPONENTS, Description
from ...errors import InputError
from ...files import whole_file, write_json, write_whole
from ...lazy import optional
from ..inputs import DEFAULT_TEXT
from .bench import chip_of
from .keys import key_of
from .settings import Range, SweepSettings
from .study import Settled

FILES = ("results.html", "results.json", "results.parquet", "results.csv")
BEST_CHIP = "best-chip.toml"
# Begins the names of columns with the energy of a component on the chip, in pJ per MAC.
PER_MAC = "pj_per_mac."
_STATISTICS = tuple(SpikeStatistics.__dataclass_fields__)


@dataclass(frozen=True)
class Row:
    """One point of a sweep.

    Attributes:
        settings: values of the keys that were swept.
        figures: objectives and statistics by name; empty if the run failed.
        error: why it failed; None if it did not.
        on_front: whether no other row is at least as good in all objectives and better in one.
    """

    settings: dict[str, Any]
    figures: dict[str, float]
    error: str | None
    on_front: bool


@dataclass(frozen=True)
class BestChip:
    """The chip of the best row of a sweep, and what its energy consists of.

    Attributes:
        objective: for which it is best.
        row: its settings and figures.
        chip: the chip itself, as best-chip.toml has it.
        pj_per_mac: energy by component, the most first.
    """

    objective: str
    row: Row
    chip: Description
    pj_per_mac: dict[str, float]

    def in_words(self) -> str:
        """Return what it is and what its energy consists of."""
        total = sum(self.pj_per_mac.values())
        parts = [f"{name} {pj:.3g} ({pj / total:.0%})" for name, pj in self.pj_per_mac.items() if pj]
        energy = f"{total:.4g} pJ per MAC: {', '.join(parts)}" if total else "nothing costs energy"
        return f"Best chip by {self.objective}: {in_words(self.row.settings)}; {energy}."


def best_chip(rows: Sequence[Row], settings: SweepSettings) -> BestChip | None:
    """Return the chip of the best row for the first objective on a chip; None without a key of a chip or such a row."""
    objective = next((name for name, chosen in settings.chosen.items() if chosen.on_chip), None)
    best = best_rows(rows, settings)
    if objective is None or not best or "chip" not in settings.key_names:
        return None
    row = best[objective]
    parts = {name: row.figures[PER_MAC + name] for name in COMPONENTS}
    ordered = dict(sorted(parts.items(), key=lambda part: -part[1]))
    return BestChip(objective, row, chip_of(settings.point(row.settings)), ordered)


def rows_of(settings: SweepSettings, settled: Sequence[Settled]) -> list[Row]:
    """Return the rows of all points that are settled, in their order."""
    done = [one.result for one in settled if one.result is not None]
    signs = [1.0 if objective.better == "lower" else -1.0 for objective in settings.chosen.values()]
    costs = [[sign * one[name] for sign, name in zip(signs, settings.objectives, strict=True)] for one in done]
    front = iter(analysis.pareto_front(costs))
    return [Row(one.values, one.result or {}, one.error, one.result is not None and next(front)) for one in settled]


def best_rows(rows: Sequence[Row], settings: SweepSettings) -> dict[str, Row]:
    """Return the best row for each objective; none where all runs failed."""
    done = [row for row in rows if row.error is None]
    if not done:
        return {}
    choose = {"lower": min, "higher": max}
    return {
        name: choose[objective.better](done, key=lambda row: row.figures[name])
        for name, objective in settings.chosen.items()
    }


def best_in_words(rows: Sequence[Row], objective: str, best: Row) -> str:
    """Return the settings of the best row and of those that are as good; or that all rows are equal.

    Args:
        rows: of the sweep.
        objective: its name.
        best: row of this objective.
    """
    done = [row for row in rows if row.error is None]
    as_good = [row for row in done if row.figures[objective] == best.figures[objective]]
    if len(as_good) == len(done) > 1:
        return f"all {len(done)} runs are equal"
    others = f" and {len(as_good) - 3} more" if len(as_good) > 4 else ""
    first = as_good[:3] if others else as_good
    return ", ".join(in_words(row.settings) for row in first) + others


def next_steps(rows: Sequence[Row], settings: SweepSettings) -> list[tuple[str, str | None]]:
    """Return what to try next: beyond an end at which a best row is, or between the values around it.

    Returns:
        Sentences, each with the option KEY=VALUES to try, or None.
    """
    found: list[tuple[str, str | None]] = []
    for objective, row in best_rows(rows, settings).items():
        if len({other.figures[objective] for other in rows if other.error is None}) < 2:
            continue  # all are equally good
        for name in settings.swept:
            tried = sorted({other.settings[name] for other in rows if isinstance(other.settings[name], int | float)})
            value = row.settings[name]
            if isinstance(value, bool) or value not in tried or len(tried) < 2:
                continue
            said, option = _next_values(name, value, tried, settings)
            found.append((f"{objective}: {said}", option))
    return found


def _next_values(
    name: str, value: int | float, tried: list[int | float], settings: SweepSettings
) -> tuple[str, str | None]:
    key, place = key_of(name), tried.index(value)
    whole = key.kind is int
    if 0 < place < len(tried) - 1:
        between = [(tried[i] + tried[i + 1]) / 2 for i in (place - 1, place)]
        values = [value for value in ([round(b) for b in between] if whole else between) if value not in tried]
        where = "is best between others"
    else:
        other = tried[1] if place == 0 else tried[-2]
        ends = settings.swept[name]
        at_end = not isinstance(ends, Range) or value in (ends.low, ends.high)
        beyond = value * value / other if value * other > 0 else 2 * value - other
        values = [round(beyond) if whole else float(f"{beyond:.3g}")] if at_end else []
        where = f"is best at its {'least' if place == 0 else 'largest'}, {key.shown(value)}"
    values = [v for v in values if v > 0 and _can_be(name, v)]
    if not values:
        return f"{name} {where}", None
    option = f"{name}={','.join(key.shown(v) for v in sorted([value, *values]))}"
    return f"{name} {where}: try {option}", option


def _can_be(name: str, value: int | float) -> bool:
    try:
        key_of(name).read(value, name)
    except InputError:
        return False
    return True


def write_results(
    rows: Sequence[Row],
    settings: SweepSettings,
    identity: Mapping[str, Any],
    float_perplexity: float | None,
    title: str,
    out: Path,
) -> None:
    """Write the files of `files_of`.

    The Parquet file has a type for each column, and in its metadata, under "spikebrain", what the study is of.
    """
    table = [_flat(row, settings) for row in rows]
    names = _columns(settings)
    pyarrow, parquet = optional("pyarrow", "sweep", "sweep"), optional("pyarrow.parquet", "sweep", "sweep")
    kinds = {float: pyarrow.float64(), int: pyarrow.int64(), str: pyarrow.string(), bool: pyarrow.bool_()}
    about = json.dumps({"study": identity, "float_perplexity": float_perplexity, "title": title})
    schema = pyarrow.schema([(name, kinds[kind]) for name, kind in names.items()], {"spikebrain": about})
    with whole_file(out / "results.parquet") as partial:
        parquet.write_table(pyarrow.Table.from_pylist(table, schema=schema), str(partial))
    text = io.StringIO()
    writer = csv.DictWriter(text, [*names], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    write_whole(out / "results.csv", text.getvalue())
    done = [row for row in rows if row.error is None]
    files = files_of(rows, settings)
    if (found := best_chip(rows, settings)) is not None:
        write_whole(out / BEST_CHIP, f"# {found.in_words()}\n# {title}\n{found.chip.to_toml()}")
    if "pareto.png" in files:
        meanings = {name: (objective.meaning, objective.better) for name, objective in settings.chosen.items()}
        figures = {name: [row.figures[name] for row in done] for name in meanings}
        labels = [" ".join(key_of(k).shown(v) for k, v in row.settings.items()) for row in done]
        keys = ", ".join(settings.swept)
        analysis.plot_pareto(figures, meanings, labels, f"{title}; labels: {keys}", out / "pareto.png")
    figures = {"kind": "sweep", "format": pages.FORMAT, **_describe(rows, settings, float_perplexity, title)}
    write_json(out / "results.json", figures)
    pages.write_page(figures, out / "results.html", files)


def files_of(rows: Sequence[Row], settings: SweepSettings) -> tuple[str, ...]:
    """Return the names of the files that are written: no front of one objective, or of runs that all failed."""
    has_front = len(settings.objectives) > 1 and any(row.error is None for row in rows)
    has_chip = best_chip(rows, settings) is not None
    return (*FILES, *(("pareto.png",) if has_front else ()), *((BEST_CHIP,) if has_chip else ()))


def in_words(values: Mapping[str, Any]) -> str:
    """Return settings as they can be typed."""
    return " ".join(f"{name}={key_of(name).shown(value)}" for name, value in values.items())


def _describe(
    rows: Sequence[Row], settings: SweepSettings, float_perplexity: float | None, title: str
) -> dict[str, Any]:
    """Return all that was found, as JSON values."""
    chip = best_chip(rows, settings)
    described = {id(row): {"label": in_words(row.settings), **asdict(row)} for row in rows}
    return {
        "title": title,
        "objectives": {
            name: {"meaning": objective.meaning, "better": objective.better, "form": objective.form}
            for name, objective in settings.chosen.items()
        },
        "swept": list(settings.swept),
        "settings": {
            "model": settings.model,
            "text": DEFAULT_TEXT if settings.text is None else settings.text.name,
            "num_tokens": settings.num_tokens,
            "context": settings.context,
            "method": settings.method,
            "device": settings.device,
            **settings.fixed,
        },
        "float_perplexity": float_perplexity,
        "rows": list(described.values()),
        "best": {name: described[id(row)] for name, row in best_rows(rows, settings).items()},
        "best_chip": None if chip is None else {"objective": chip.objective, "pj_per_mac": chip.pj_per_mac},
        "next_steps": [said for said, _ in next_steps(rows, settings)],
    }


def _columns(settings: SweepSettings) -> dict[str, type]:
    """Return the names and types of all columns."""
    counted = {"max_count": int, "num_timesteps": int}
    return {
        **{name: key_of(name).kind for name in settings.swept},
        **dict.fromkeys(settings.objectives, float),
        **(dict.fromkeys([PER_MAC + name for name in COMPONENTS], float) if settings.on_chip else {}),
        **{name: counted.get(name, float) for name in _STATISTICS},
        "on_front": bool,
        "error": str,
    }


def _flat(row: Row, settings: SweepSettings) -> dict[str, Any]:
    figures = {name: row.figures.get(name) for name in _columns(settings) if name not in settings.swept}
    return {**row.settings, **figures, "on_front": row.on_front, "error": row.error}
