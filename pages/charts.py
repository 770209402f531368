"""Charts as Vega-Lite specifications. Colours are variables of the page's style, so one serves light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
from altair.utils.schemapi import debug_mode

INK, MUTED, LINE = "var(--ink)", "var(--muted)", "var(--line)"
SPIKES, OTHER, QUIET = "var(--spikes)", "var(--other)", "var(--quiet)"
PARTS = [f"var(--part-{i})" for i in range(1, 10)]
# A test compares the charts with the schema of Vega-Lite, which takes longer than all the rest of a page.
unchecked = debug_mode(False)
# Of the counts on the axis of a histogram: few enough for a phone, and none beside the outermost bars.
_LABELLED = (-12, -8, -4, 0, 4, 8, 12)
Rows = Sequence[Mapping[str, Any]]


@unchecked
def ratio_steps(steps: Rows) -> dict[str, Any]:
    """Return bars of how the energy ratio falls (or rises) as one cost after the other is counted.

    Args:
        steps: "name", "ratio" (None without spikes), "spiking" and "dense" energies in words.
    """
    rows = [{**step, "place": i, "shown": _times(step["ratio"])} for i, step in enumerate(steps)]
    most = max((step["ratio"] or 0.0 for step in steps), default=1.0)
    base = alt.Chart(_values(rows)).encode(y=alt.Y("place:O", axis=None, scale=alt.Scale(paddingInner=0.1)))
    x = alt.X("ratio:Q", title="energy of dense INT8 ÷ energy on spikes", scale=_from_zero(most))
    color = alt.condition("datum.ratio >= 1", alt.value(SPIKES), alt.value(OTHER))
    tooltip = [
        _tip("name", "with"),
        _tip("shown", "ratio to INT8"),
        _tip("spiking", "on spikes"),
        _tip("dense", "dense INT8"),
        _tip("fp16", "ratio to FP16"),
    ]
    bars = base.mark_bar(height=14, yOffset=9, cornerRadiusEnd=2).encode(x=x, color=color, tooltip=tooltip)
    figures = base.mark_text(align="left", dx=6, dy=9, color=INK, fontWeight=600, fontSize=13)
    even = alt.Chart(_values([{"one": 1}])).mark_rule(color=MUTED, strokeDash=[3, 3]).encode(x="one:Q")
    return _spec(even + bars + _names(base, "name") + figures.encode(x=x, text="shown:N"), height=46 * len(rows))


@unchecked
def stacked_parts(rows: Rows, parts: Sequence[str], unit: str) -> dict[str, Any]:
    """Return a stacked bar for each system.

    Args:
        rows: "system", "part", "value".
        parts: in their order.
        unit: of the values.
    """
    systems = list(dict.fromkeys(row["system"] for row in rows))
    order = {part: i for i, part in enumerate(parts)}
    chart = alt.Chart(_values([{**row, "order": order[row["part"]]} for row in rows]))
    bars = chart.mark_bar(size=30, stroke="var(--surface)", strokeWidth=1).encode(
        x=alt.X("value:Q", title=unit, axis=alt.Axis(format=",~f")),
        y=alt.Y("system:N", sort=systems, title=None, axis=alt.Axis(labelFontSize=13)),
        color=alt.Color(
            "part:N",
            scale=alt.Scale(domain=list(parts), range=PARTS),
            legend=_below(wide=5, narrow=2),
        ),
        order=alt.Order("order:Q"),
        tooltip=[_tip("system", "system"), _tip("part", "part"), alt.Tooltip("value:Q", title=unit, format=",.4~g")],
    )
    return _spec(bars, height=48 * len(systems))


@unchecked
def bars(rows: Rows, name: str, value: str, unit: str, *, form: str = ",.3~g") -> dict[str, Any]:
    """Return horizontal bars in the order of the rows, with the name over each.

    Args:
        rows: what is drawn.
        name: key of the names.
        value: key of the values.
        unit: of the values.
        form: of the numbers, as D3 writes it.
    """
    placed = [{**row, "place": i} for i, row in enumerate(rows)]
    most = max((row[value] for row in rows), default=1.0)
    base = alt.Chart(_values(placed)).encode(y=alt.Y("place:O", axis=None))
    x = alt.X(f"{value}:Q", title=unit, scale=_from_zero(most), axis=alt.Axis(format=",~f"))
    tips = [_tip(name, "what"), alt.Tooltip(f"{value}:Q", title=unit, format=form)]
    drawn = base.mark_bar(height=12, yOffset=8, color=SPIKES, cornerRadiusEnd=2).encode(x=x, tooltip=tips)
    figures = base.mark_text(align="left", dx=6, dy=8, color=INK, fontWeight=600)
    return _spec(
        drawn + _names(base, name) + figures.encode(x=x, text=alt.Text(f"{value}:Q", format=form)),
        height=42 * len(rows),
    )


@unchecked
def break_even(rows: Rows) -> dict[str, Any]:
    """Return, for each kind of layer, the spikes that ran beside those at which it would cost as much as INT8.

    Args:
        rows: "layer", "spikes", "with_memory", "without_memory", "wins".
    """
    kinds = ["spikes, as it ran", "break-even, without memory", "break-even, with memory"]
    keys = ("spikes", "without_memory", "with_memory")
    dots = [
        {**row, "kind": kind, "value": row[key]}
        for row in rows
        for kind, key in zip(kinds, keys, strict=True)
        if row[key] >= 0
    ]
    y = alt.Y("layer:N", sort=None, title=None, axis=alt.Axis(labelFontSize=13, domain=False, ticks=False))
    x = alt.X("value:Q", title="spikes per channel and token", scale=alt.Scale(zero=True))
    spans = [{**row, "end": max(row["with_memory"], 0.0)} for row in rows]
    lines = alt.Chart(_values(spans)).mark_rule(color=LINE, strokeWidth=4).encode(y=y, x="spikes:Q", x2="end:Q")
    points = (
        alt.Chart(_values(dots))
        .mark_point(filled=True, size=110, opacity=1)
        .encode(
            y=y,
            x=x,
            color=alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=[SPIKES, QUIET, OTHER]), legend=_below()),
            shape=alt.Shape("kind:N", scale=alt.Scale(domain=kinds, range=["circle", "triangle-up", "diamond"])),
            tooltip=[_tip("layer", "layers"), _tip("kind", "what"), _number("value", "spikes", ".2f")],
        )
    )
    return _spec(lines + points, height=36 * max(len(rows), 1) + 10)


@unchecked
def histogram(rows: Rows, groups: Sequence[str]) -> dict[str, Any]:
    """Return the shares of channels by signed count, of a group of layers that the reader chooses.

    Args:
        rows: "group", "place", "count" (as shown), "share", "number".
        groups: the names of the groups; the first is shown at first.
    """
    chosen = alt.param(name="group", value=groups[0], bind=alt.binding_select(options=list(groups), name="Layers "))
    labels = list(dict.fromkeys(row["count"] for row in rows))
    shown = [label for label in labels if not label.lstrip("−").isdigit() or int(label.replace("−", "-")) in _LABELLED]
    chart = alt.Chart(_values(rows)).mark_bar(cornerRadiusEnd=2)
    drawn = chart.encode(
        x=alt.X("count:O", sort=labels, title="signed spike count of a channel", axis=_values_axis(shown)),
        y=alt.Y("share:Q", title="share of channels", axis=alt.Axis(format="~%")),
        color=alt.Color(
            "sign:N",
            scale=alt.Scale(domain=["below 0", "silent", "above 0"], range=[OTHER, QUIET, SPIKES]),
            legend=_below(),
        ),
        tooltip=[
            _tip("group", "layers"),
            _tip("count", "count"),
            alt.Tooltip("share:Q", title="share of channels", format=".3%"),
            alt.Tooltip("number:Q", title="channels × tokens", format=","),
        ],
    )
    return _spec(drawn.add_params(chosen).transform_filter("datum.group == group"), height=260)


@unchecked
def depth_map(rows: Rows, metrics: Mapping[str, tuple[str, str]], kinds: Sequence[str]) -> dict[str, Any]:
    """Return a map of kinds of layers over the depth of the model, of a figure that the reader chooses.

    Args:
        rows: "kind", "depth" and a value for each metric.
        metrics: label and number format by key of a row.
        kinds: from the top.
    """
    keys = list(metrics)
    labels = [metrics[key][0] for key in keys]
    choice = alt.binding_select(options=keys, labels=labels, name="Figure ")
    chosen = alt.param(name="figure", value=keys[0], bind=choice)
    tips = [_tip("layer", "layer")] + [_number(key, label, form) for key, (label, form) in metrics.items()]
    drawn = (
        alt.Chart(_values(rows))
        .mark_rect(stroke="var(--surface)", strokeWidth=1)
        .transform_calculate(shown="datum[figure]")
        .encode(
            x=alt.X("depth:O", title="depth (number of the block)", axis=alt.Axis(labelOverlap=True, labelAngle=0)),
            y=alt.Y("kind:N", sort=list(kinds), title=None, axis=alt.Axis(labelFontSize=13)),
            color=alt.Color(
                "shown:Q",
                scale=alt.Scale(scheme="viridis", zero=False),
                legend=alt.Legend(title=None, orient="top", gradientLength=220, gradientThickness=10, format="~g"),
            ),
            tooltip=tips,
        )
    )
    return _spec(drawn.add_params(chosen), height=max(28 * len(kinds), 60))


@unchecked
def frontier(rows: Rows, x_title: str, y_title: str, tips: Mapping[str, str]) -> dict[str, Any]:
    """Return the runs of a sweep over two objectives, with the front as a line.

    Args:
        rows: "x", "y", "front" (of these two), "label" and the keys of `tips`.
        x_title: name of the objective on the horizontal axis.
        y_title: name of the other one.
        tips: what else a reader is shown: titles by key.
    """
    kinds = ["on the front of these two", "other runs"]
    data = [{**row, "kind": kinds[0] if row["front"] else kinds[1]} for row in rows]
    axes = {
        "x": alt.X("x:Q", title=x_title, scale=alt.Scale(zero=False, padding=24)),
        "y": alt.Y("y:Q", title=y_title, scale=alt.Scale(zero=False, padding=24)),
    }
    front = [row for row in data if row["front"]]
    line = alt.Chart(_values(front)).mark_line(color=SPIKES, strokeWidth=1.5, opacity=0.6).encode(**axes)
    points = (
        alt.Chart(_values(data))
        .mark_point(filled=True, size=90, opacity=1)
        .encode(
            **axes,
            color=alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=[SPIKES, QUIET]), legend=_below()),
            shape=alt.Shape("kind:N", scale=alt.Scale(domain=kinds, range=["circle", "triangle-up"])),
            tooltip=[_tip(key, title) for key, title in tips.items()],
        )
    )
    labels = alt.Chart(_values(front)).mark_text(align="left", dx=9, dy=-7, color=INK).encode(**axes, text="label:N")
    return _spec(line + points + labels, height=320)


@unchecked
def tradeoff(rows: Rows, x_title: str) -> dict[str, Any]:
    """Return how much perplexity rises over what settings cost, a line for each kind of setting.

    Args:
        rows: "x", "y" (a share), "kind" and "label".
        x_title: what is on the horizontal axis.
    """
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    colors, shapes = [QUIET, SPIKES, OTHER][: len(kinds)], ["triangle-up", "circle", "diamond"][: len(kinds)]
    color = alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=colors), legend=_below())
    axes = {
        "x": alt.X("x:Q", title=x_title, scale=alt.Scale(zero=False, padding=24)),
        "y": alt.Y("y:Q", title="rise of perplexity over float", axis=alt.Axis(format="+~%")),
    }
    chart = alt.Chart(_values(rows))
    lines = chart.mark_line(strokeWidth=1.5, opacity=0.6).encode(**axes, color=color)
    points = chart.mark_point(filled=True, size=90, opacity=1).encode(
        **axes,
        color=color,
        shape=alt.Shape("kind:N", scale=alt.Scale(domain=kinds, range=shapes)),
        tooltip=[_tip("label", "setting"), _number("x", x_title, ".3f"), _number("y", "rise of perplexity", "+.2%")],
    )
    return _spec(lines + points, height=300)


@unchecked
def differences(rows: Rows, title: str) -> dict[str, Any]:
    """Return differences from the float model with their standard errors.

    Args:
        rows: "what", "stage", "value", "low", "high", "shown".
        title: of the axis.
    """
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    y = alt.Y("what:N", sort=None, title=None, axis=alt.Axis(labelFontSize=13, labelLimit=170))
    place = alt.YOffset("stage:N", sort=stages)
    color = alt.Color("stage:N", scale=alt.Scale(domain=stages, range=PARTS), legend=_below())
    chart = alt.Chart(_values(rows))
    zero = alt.Chart(_values([{"zero": 0}])).mark_rule(color=MUTED, strokeDash=[3, 3]).encode(x="zero:Q")
    spans = chart.mark_rule(strokeWidth=2).encode(y=y, yOffset=place, x="low:Q", x2="high:Q", color=color)
    points = chart.mark_point(filled=True, size=80, opacity=1).encode(
        y=y,
        yOffset=place,
        x=alt.X("value:Q", title=title),
        color=color,
        shape=alt.Shape("stage:N", scale=alt.Scale(domain=stages)),
        tooltip=[_tip("what", "what"), _tip("stage", "model"), _tip("shown", "difference")],
    )
    whats = len({row["what"] for row in rows})
    return _spec(zero + spans + points, height=max(22 * len(stages), 44) * whats + 20)


def _names(base: Any, name: str) -> Any:
    """Return the names over bars, with a margin that lines behind them do not cross."""
    encoded = base.encode(x=alt.value(0), text=f"{name}:N")
    style = {"align": "left", "dy": -9, "fontSize": 13}
    behind = encoded.mark_text(**style, color="var(--surface)", stroke="var(--surface)", strokeWidth=5)
    return behind + encoded.mark_text(**style, color=INK)


def _spec(chart: Any, *, height: int) -> dict[str, Any]:
    """Return the specification, as wide as its place on the page."""
    text = {"labelColor": MUTED, "titleColor": MUTED, "labelFontSize": 12, "titleFontSize": 12}
    axis = {**text, "titleFontWeight": 400, "gridColor": LINE, "domainColor": LINE, "tickColor": LINE}
    font = "Inter, system-ui, sans-serif"
    styled = chart.properties(
        width="container", height=height, autosize=alt.AutoSizeParams(type="fit-x", contains="padding")
    ).configure(
        background="transparent",
        font=font,
        axis=alt.AxisConfig(**axis, titlePadding=10, labelLimit=200),
        axisQuantitative=alt.AxisConfig(tickCount=6),
        legend=alt.LegendConfig(**text, titleFontWeight=400, labelLimit=260),
        view=alt.ViewConfig(stroke=None),
        text=alt.MarkConfig(font=font, fontSize=12),
    )
    found = styled.to_dict()
    found.pop("$schema", None)  # an address that nobody opens
    return found


def _values(rows: Rows) -> Any:
    return alt.Data(values=[dict(row) for row in rows])


def _tip(key: str, title: str) -> alt.Tooltip:
    return alt.Tooltip(f"{key}:N", title=title)


def _number(key: str, title: str, form: str) -> alt.Tooltip:
    return alt.Tooltip(f"{key}:Q", title=title, format=form)


def _below(wide: int = 3, narrow: int = 1) -> alt.Legend:
    """Return a legend under the chart, with so many columns where there is room and on a phone."""
    columns = {"expr": f"width < 420 ? {narrow} : {wide}"}
    return alt.Legend(title=None, orient="bottom", columns=columns, symbolSize=90)


def _from_zero(most: float) -> alt.Scale:
    """Return a scale with room for a figure behind the longest bar."""
    return alt.Scale(domain=[0, 1.18 * most or 1.0], nice=False)


def _values_axis(shown: Sequence[str]) -> alt.Axis:
    return alt.Axis(values=list(shown), labelAngle=0, labelOverlap=False)


def _times(ratio: float | None) -> str:
    return "no spikes" if ratio is None else f"{ratio:.2f}×" if ratio < 100 else f"{ratio:,.0f}×"
