"""The page of `spikebrain simulate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..analysis.units import energy_unit
from .charts import bars
from .figures import Figures
from .parts import Card, Column, Page, Section, Table, Text, View
from .tables import in_words, settings_table
from .terms import terms_for
from .words import amount, percent


def build(figures: Figures, meanings: Mapping[str, str]) -> Page:
    """Return the page of a simulation."""
    model, exact = figures["model"], figures["exactness"]
    checked = f"{exact['num_mismatches']:,} of {exact['num_checked']:,} sums differ from those of the model."
    page = Page(
        title=f"{model['source']} on the chip {figures['chip']}",
        subject=f"{model['source']}, {figures['num_tokens']:,} tokens of {figures['text']}, mode {figures['mode']}; "
        f"{figures['num_layers']} layers on {figures['num_cores']['mapped']:,} of {figures['num_cores']['chip']:,} "
        f"cores of {figures['chip']} ({figures['process']})",
        answer=_answer(figures),
        cards=_cards(figures),
        sections=[
            _energy(figures),
            _time(figures["time_per_token_ps"]),
            _mesh(figures),
            *_steps(figures),
            _layers(figures["layers"]),
            Section("exactness", "Exactness", "", [Text([checked])]),
            _settings(figures, meanings),
        ],
        terms={},
    )
    return Page(**{**vars(page), "terms": terms_for([*page.asked_for, "busy", "queue", "paper"])})


def _answer(figures: Figures) -> str:
    token, energy = figures["token_s"].number("mean"), figures["energy_per_token_pj"].number("total")
    per_mac = figures["energy_per_mac_pj"]
    simulated, paper = per_mac.number("simulated"), per_mac.number("paper")
    times = f"{simulated / paper:,.0f} times" if paper else "more than"
    if paper and simulated / paper < 2:
        times = f"{simulated / paper:.2f} times"
    time = "no time" if token == 0 else amount(token, "s")
    return (
        f"On {figures['chip']}, a token takes {time} and {amount(energy * 1e-12, 'J')}: a MAC costs {times} the "
        "paper’s estimate."
    )


def _cards(figures: Figures) -> list[Card]:
    token, per_mac, energy = figures["token_s"], figures["energy_per_mac_pj"], figures["energy_per_token_pj"]
    rate = figures["tokens_per_s"]
    total = energy.number("total")
    largest = max((part for part in energy if part != "total"), key=lambda part: energy[part])
    share = energy[largest] / total if total else 0.0
    exact = figures["exactness"]
    checked = f"{exact['num_checked']:,} sums compared with the model’s."
    return [
        Card(
            "Time of a token",
            "none" if token["mean"] == 0 else amount(token["mean"], "s"),
            ("" if rate is None else f"{rate:,.0f} tokens/s in the second half.",),
            "simulated",
            "latency",
        ),
        Card(
            "Energy of a token",
            amount(total * 1e-12, "J"),
            (f"{percent(share)} of it for {largest}.",),
            "simulated",
            "",
        ),
        Card(
            "Energy of a MAC",
            f"{per_mac.number('simulated'):.3g} pJ",
            (
                f"The paper’s estimate (additions only): {per_mac['paper']:.3g} pJ.",
                f"Without leakage and dense rest: {per_mac['spiking layers without leakage and dense rest']:.3g} pJ.",
            ),
            "simulated",
            "pj_per_mac",
        ),
        Card(
            "Exactness",
            f"{exact['num_mismatches']:,} sums differ",
            (checked,),
            "checked",
            "",
            "good" if exact["num_mismatches"] == 0 else "bad",
        ),
    ]


def _energy(figures: Figures) -> Section:
    energy, meanings = figures["energy_per_token_pj"], figures["components"]
    total = energy.number("total")
    factor, unit = energy_unit(total)
    parts = sorted((part for part in meanings), key=lambda part: -energy[part])
    rows = [{"name": f"{part}: {meanings[part]}", "value": energy[part] / factor} for part in parts]
    columns = [Column("component"), Column(f"{unit} a token", ",.3f"), Column("share", ".1%"), Column("what it is")]
    table = [
        (part, energy[part] / factor, energy[part] / total if total else None, meanings[part]) for part in parts
    ] + [("total", total / factor, None, "")]
    return Section(
        "energy",
        "Energy",
        "From exact counts of events, priced after the simulation.",
        [
            View("energy-parts", "chart", "By component", bars(rows, "name", "value", f"{unit} a token")),
            Table("Energy by component", columns, table, is_open=False, total=True),
            *_left_dense(figures, total, factor, unit),
        ],
    )


def _left_dense(figures: Figures, total: float, factor: float, unit: str) -> list[Table]:
    parts = figures["dense_rest_per_token_pj"]
    if not parts:
        return []
    columns = [Column("part of the model"), Column(f"{unit} a token", ",.3f"), Column("share of all", ".1%")]
    rows = [(name, pj / factor, pj / total) for name, pj in parts.items()]
    return [Table("What is left dense", columns, rows, is_open=False)]


def _time(times: Figures) -> Section:
    total = sum(times.values())
    if not total:
        return Section("time", "Time", "", [Text(["Nothing takes time on this chip."])])
    rows = [{"name": name, "value": value / 1e6} for name, value in times.items()]
    columns = [Column("what"), Column("µs a token", ",.2f"), Column("share", ".1%")]
    table = [(name, value / 1e6, value / total) for name, value in times.items()]
    return Section(
        "time",
        "Time",
        "What a token waits for, in the order of a block: all stages of a kind together.",
        [
            View("time-parts", "chart", "", bars(rows, "name", "value", "µs a token")),
            Table("Time of a token", columns, table, is_open=False),
        ],
    )


def _mesh(figures: Figures) -> Section:
    sizes = figures["description"]
    columns, rows = int(sizes["mesh.columns"]["value"]), int(sizes["mesh.rows"]["value"])
    tokens = figures.number("num_tokens")
    busy, queue, packets = ([None] * (columns * rows) for _ in range(3))
    borders = []

    def raise_to(values: list[Any], tile: list[int], value: float) -> None:
        place = tile[1] * columns + tile[0]
        values[place] = max(values[place] or 0.0, value)

    for layer in figures["layers"]:
        for core in layer["cores"]:
            raise_to(busy, core["tile"], 100 * core["busy"])
        for station in layer["queues"].values():
            raise_to(queue, station["tile"], station["mean"])
        for name, number in layer["links"].items():
            start = name.split(" ")[-1].split("-")[0].split(",")
            raise_to(packets, [int(start[0]), int(start[1])], number / tokens)
        borders.append({"name": layer["name"], **_box([core["tile"] for core in layer["cores"]])})
    metrics = [
        {"label": "busiest core", "unit": "% of its layer’s time", "values": busy, "most": 100},
        {"label": "fullest queue", "unit": "packets, mean", "values": queue, "most": _most(queue)},
        {"label": "busiest link", "unit": "packets a token", "values": packets, "most": _most(packets)},
    ]
    data = {"columns": columns, "rows": rows, "x": 0, "y": 0, "borders": borders, "metrics": metrics}
    note = "Point at a tile, or use the arrow keys. Lines are the borders of layers; tiles without a layer are grey."
    return Section(
        "mesh",
        "The mesh",
        "Each layer has tiles of its own. Colour: viridis, yellow is most.",
        [View("mesh", "mesh", "", data, note)],
    )


def _box(tiles: list[list[int]]) -> dict[str, int]:
    xs, ys = [tile[0] for tile in tiles], [tile[1] for tile in tiles]
    return {"x": min(xs), "y": min(ys), "columns": max(xs) - min(xs) + 1, "rows": max(ys) - min(ys) + 1}


def _most(values: Sequence[float | None]) -> float:
    return max((value for value in values if value is not None), default=0.0)


def _steps(figures: Figures) -> list[Section]:
    steps = figures["queue_steps"]
    if steps is None:
        return []
    box = _box(steps["tiles"])
    data = {
        **dict(steps.items()),
        **{key: box[key] for key in ("x", "y", "columns", "rows")},
        "tiles": [[x - box["x"], y - box["y"]] for x, y in steps["tiles"]],
        "borders": [{"name": steps["layer"], **box, "x": 0, "y": 0}],
        "most": max(max(row) for row in steps["waiting"]),
    }
    intro = (
        f"Packets that wait in the tiles of {steps['layer']}, all queues of a tile together, as means of "
        f"{len(steps['waiting'])} steps in time; the first {steps['num_tokens']} tokens."
    )
    tiles = [f"{x},{y}" for x, y in steps["tiles"]]
    columns = [Column("µs", ",.3f"), Column("token", ","), *(Column(f"tile {tile}", ".2f") for tile in tiles[:12])]
    rows = [
        (begin, token + 1, *waiting[:12])
        for begin, token, waiting in zip(steps["begin_us"], steps["token"], steps["waiting"], strict=True)
    ]
    parts: list[Any] = [View("steps", "steps", "", data), Table("Packets that wait", columns, rows, is_open=False)]
    return [Section("steps", "Queues, step by step", intro, parts)]


def _layers(layers: list[Figures]) -> Section:
    columns = [
        Column("layer"),
        Column("cores", ","),
        Column("µs a token", ",.2f", "latency"),
        Column("nJ a token", ",.1f"),
        Column("synaptic operations", ",", "synops"),
        Column("busy, mean", ".1%", "busy"),
        Column("fullest queue, mean", ".2f", "queue"),
        Column("its station"),
        Column("held up by"),
    ]
    rows = []
    for layer in layers:
        queues = layer["queues"]
        fullest = max(queues, key=lambda name: queues[name]["mean"], default=None)
        path = layer["critical_path_ps"]
        energy = sum(layer["energy_per_token_pj"].values())
        rows.append(
            (
                layer["name"],
                layer["num_cores"],
                layer["latency_s"] * 1e6,
                energy / 1e3,
                layer["num_synops"],
                layer["busy"]["mean"],
                None if fullest is None else queues[fullest]["mean"],
                fullest,
                max(path, key=lambda station: path[station]) if len(path) else None,
            )
        )
    note = "Held up by: the stations that make up most of the critical path; only with --critical-path."
    return Section("layers", "Layers", "", [Table(f"{len(layers)} layers", columns, rows, note)])


def _settings(figures: Figures, meanings: Mapping[str, str]) -> Section:
    numbers = [
        (key, in_words(entry["value"]), entry["process"], entry["source"])
        for key, entry in figures["description"].items()
    ]
    columns = [Column("number of the chip"), Column("value", "s"), Column("process"), Column("source")]
    return Section(
        "settings",
        "Settings",
        "",
        [
            settings_table(figures["settings"], meanings),
            Table("The chip, with the source of each number", columns, numbers, is_open=False),
            Text(figures["assumptions"], f"{len(figures['assumptions'])} assumptions"),
        ],
    )
