"""The command `spikebrain calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..answer import Answer
from ..complete import words
from ..options import (
    Attention,
    CompactScales,
    EncoderName,
    Force,
    IncludeHead,
    Model,
    Skip,
    TextFile,
    Weights,
    budget_of,
    checked_budget,
    folder_for,
    named,
    table_of,
    tokens_if_run,
)
from ..panels import CHANGE, SPIKES
from ..progress import Screen

if TYPE_CHECKING:
    from rich.table import Table

    from ...jobs.calibration import Calibrated

PANEL = CHANGE


def calibrate(
    screen: Screen,
    model: Model,
    out: Annotated[Path, folder_for("the model on spikes, and calibration.json")],
    budget: Annotated[
        str,
        typer.Option(
            metavar="COUNTS=VALUE",
            callback=checked_budget,
            help="What may be spent: read=0.5 (bytes of weights, dense INT8 layers = 1), spikes=1.0 (per channel and "
            "token) or energy=0.5 (of the whole model, dense INT8 = 1).",
            autocompletion=words("read=", "spikes=", "energy="),
            rich_help_panel=SPIKES,
        ),
    ],
    text: TextFile = None,
    num_tokens: Annotated[int | None, tokens_if_run("4096")] = None,
    encoder: EncoderName = None,
    weights: Weights = None,
    compact_scales: CompactScales = False,
    skip: Skip = None,
    include_head: IncludeHead = False,
    attention: Attention = None,
    force: Force = False,
) -> Answer:
    """Find how each layer should spike so that a budget is kept at the least loss.

    Each gets a neuron, and coarse rows of weights, of its own. Small counts may read half of the bits of their weights,
    and smaller ones nothing. How much of both each layer bears is measured on the text. The result is compared with the
    paper's rule on the next 1024 tokens. A run that was interrupted goes on when it is started again.
    """
    from ... import coding, jobs

    settings = jobs.CalibrateSettings(
        model=model,
        budget=jobs.Budget(*budget_of(budget)),
        text=text,
        num_tokens=num_tokens,
        encoder=named(coding.ENCODERS, encoder),
        weights=weights,
        compact_scales=compact_scales,
        skip=tuple(skip) if skip else None,
        include_head=include_head,
        attention=attention,
    )
    found = jobs.calibrate(settings, out, screen, force=force)
    loss = found.found.perplexity / found.float_perplexity - 1
    return Answer(
        f"{model} on spikes with {budget}: perplexity {loss:+.1%} (float {found.float_perplexity:.2f}), "
        f"read {found.found.read:.3f}, spikes {found.found.spikes:.3f}, energy {found.found.energy:.3f}, on "
        f"{found.num_tokens:,} tokens of {found.text}.",
        _data(found, out),
        lambda console: console.print(_table(found)),
        out=out,
        next=("spikebrain", "report", out),
        why="its accuracy, spikes and energy, layer by layer",
    )


def _data(found: Calibrated, out: Path) -> dict[str, Any]:
    return {
        "out": str(out),
        "float_perplexity": found.float_perplexity,
        "calibrated": found.found._asdict(),
        "paper": [point._asdict() for point in found.paper],
        "num_measured_tokens": found.num_tokens,
        "text": found.text,
    }


def _table(found: Calibrated) -> Table:
    table = table_of("setting", "perplexity", "loss", "read", "spikes", "energy")
    for point in (*found.paper, found.found):
        loss = point.perplexity / found.float_perplexity - 1
        numbers = (f"{point.read:.3f}", f"{point.spikes:.3f}", f"{point.energy:.3f}")
        table.add_row(point.name, f"{point.perplexity:.2f}", f"{loss:+.1%}", *numbers)
    return table
