"""The command `spikebrain export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..answer import Answer
from ..options import (
    DeviceIfRun,
    EncoderName,
    K,
    Layers,
    Model,
    Skip,
    TextFile,
    Weights,
    k_of,
    named,
    tokens_if_run,
)
from ..panels import FILES, OUTPUT
from ..progress import Screen

PANEL = FILES
# How Python reads the file, by its suffix.
_READERS = {
    ".nir": "import nir; print(*nir.read({}).nodes, sep='\\n')",
    ".json": "import json; print(*json.load(open({})), sep='\\n')",
}
_READER = "import spikebrain; print(spikebrain.read_recording({}))"


def export(
    screen: Screen,
    model: Model,
    out: Annotated[
        Path,
        typer.Option(
            help="File to write: .parquet, .h5, .hdf5, .npz, .json, .pftrace or .nir.", rich_help_panel=OUTPUT
        ),
    ],
    text: TextFile = None,
    num_tokens: Annotated[int | None, tokens_if_run("512")] = None,
    trains: Annotated[
        bool, typer.Option("--trains", help="Also keep every spike, in a recording.", rich_help_panel=OUTPUT)
    ] = False,
    k: K = None,
    encoder: EncoderName = None,
    layers: Layers = None,
    skip: Skip = None,
    weights: Weights = None,
    device: DeviceIfRun = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write over a file that is there.", rich_help_panel=OUTPUT)
    ] = False,
) -> Answer:
    """Write a recording, results or layers in the files of other tools.

    .parquet, .h5, .hdf5 and .npz hold what the layers did on a text; .json the results of that run in NeuroBench's
    form, per token; .pftrace which layers spiked when, for ui.perfetto.dev; .nir the layers themselves, for which
    --text, --num-tokens, --trains and --device do not count. A model that spikes keeps its own settings.
    """
    from ... import coding, jobs

    settings = jobs.ExportSettings(
        model=model,
        text=text,
        num_tokens=num_tokens,
        trains=trains or None,
        k=k_of(k),
        encoder=named(coding.ENCODERS, encoder),
        layers=layers,
        skip=tuple(skip) if skip else None,
        weights=weights,
        device=device,
    )
    found = jobs.export(settings, out, screen, force=force)
    ran = f", {found.num_tokens:,} tokens" if found.num_tokens else ""
    listed = "\n".join(f"- {sentence}" for sentence in found.left_out)
    if out.suffix.lower() == ".pftrace":
        following, why = ("python", "-m", "webbrowser", "https://ui.perfetto.dev"), "open the file there"
    else:
        read = _READERS.get(out.suffix.lower(), _READER).format(repr(str(out)))
        following, why = ("python", "-c", read), "what is in it"
    return Answer(
        f"Exported a {found.what}: {found.num_layers} spiking layers{ran}.",
        {"out": str(out), **found._asdict()},
        (lambda console: console.print(f"Not said by it:\n{listed}")) if listed else None,
        out=out,
        next=following,
        why=why,
    )
