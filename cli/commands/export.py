"""The command `spikebrain export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..options import DEVICES, EncoderName, K, Layers, Model, Skip, TextFile, Weights, named
from ..progress import on_screen


def export(
    model: Model,
    out: Annotated[Path, typer.Option(help="File to write: .parquet, .h5, .hdf5, .npz, .json or .nir.")],
    text: TextFile = None,
    num_tokens: Annotated[
        int | None, typer.Option(help="Tokens from the start of the text.", show_default="512")
    ] = None,
    trains: Annotated[bool, typer.Option("--trains", help="Also keep every spike, in a recording.")] = False,
    k: K = None,
    encoder: EncoderName = None,
    layers: Layers = None,
    skip: Skip = None,
    weights: Weights = None,
    device: Annotated[str | None, typer.Option(help=DEVICES, show_default="auto")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write what other tools read: a recording, results as NeuroBench has them, or the layers as a graph of NIR.

    .parquet, .h5, .hdf5 and .npz hold what the layers did on a text; .json the results of that run in NeuroBench's
    form, per token; .nir the layers themselves, for which --text, --num-tokens, --trains and --device do not count. A
    model that spikes keeps its own settings.
    """
    from ... import coding, jobs

    settings = jobs.ExportSettings(
        model=model,
        text=text,
        num_tokens=num_tokens,
        trains=trains or None,
        k=k,
        encoder=named(coding.ENCODERS, encoder),
        layers=layers,
        skip=tuple(skip) if skip else None,
        weights=weights,
        device=device,
    )
    with on_screen() as progress:
        found = jobs.export(settings, out, progress, force=force)
    ran = f", {found.num_tokens:,} tokens" if found.num_tokens else ""
    print(f"Written to {out}: {found.what}, {found.num_layers} spiking layers{ran}.")
    if found.left_out:
        print("Not said by it:\n" + "\n".join(f"- {sentence}" for sentence in found.left_out))
