"""The part of a report on how a calibrated model compares with the paper's rule."""

from __future__ import annotations

import math
from typing import Any

from .charts import tradeoff
from .figures import Figures
from .parts import Column, Section, Table, View

_COSTS = {
    "read": "weights read, dense INT8 = 1",
    "spikes": "spikes per channel and token",
    "energy": "energy of the whole model, dense INT8 = 1",
}


def calibration_section(calibration: Figures | None) -> list[Section]:
    """Return what `calibrate` measured; nothing for a model without it."""
    if calibration is None:
        return []
    points = [*calibration["paper"], calibration["calibrated"]]
    base = calibration.number("float_perplexity")
    losses = [point.number("perplexity") / base - 1 for point in points]
    counted = calibration["budget"]["counts"]
    columns = [Column("setting"), Column("perplexity", ".3f", "accuracy"), Column("change", "+.2%")]
    columns += [Column(key, ".3f") for key in _COSTS]
    rows = [
        (point["name"], point["perplexity"], loss, *(point[key] for key in _COSTS))
        for point, loss in zip(points, losses, strict=True)
    ]
    views = [_view(calibration, points, losses, key) for key in sorted(_COSTS, key=lambda key: key != counted)]
    intro = (
        f"Found by calibrate for the budget {counted}={calibration['budget'].number('value'):g}, and measured then on "
        f"{calibration.number('num_measured_tokens'):,} tokens of {calibration['text']}, behind those that it saw."
    )
    return [Section("calibration", "Beside the paper’s rule", intro, [*views, Table("All of it", columns, rows)])]


def _view(calibration: Figures, points: list[Figures], losses: list[float], key: str) -> View:
    *paper, calibrated = [
        {"x": point[key], "y": loss, "label": point["name"], "kind": "the paper’s rule"}
        for point, loss in zip(points, losses, strict=True)
    ]
    calibrated["kind"] = "calibrated"
    expected: list[dict[str, Any]] = []
    note = ""
    if key == calibration["budget"]["counts"]:
        worst = 1.5 * max(losses)
        expected = [
            {"x": point["value"], "y": math.expm1(point.number("expected_loss")), "kind": "expected of other budgets"}
            for point in calibration["frontier"]
        ]
        expected = [{**row, "label": f"{key}={row['x']:.3g}"} for row in expected if row["y"] <= worst]
        note = "What is expected adds up the losses of layers that spike alone; together they may lose more."
    title = f"Loss over {_COSTS[key].partition(',')[0]}"
    return View(f"calibration-{key}", "chart", title, tradeoff([*paper, calibrated, *expected], _COSTS[key]), note)
