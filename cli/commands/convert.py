"""The command `spikebrain convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..options import Force, K, Spiking, Weights, folder_for, seed_for, spiking_or_none
from ..progress import on_screen


def convert(
    model: Annotated[str, typer.Argument(help="A Llama or Qwen2 model, in any form that `spikebrain report` takes.")],
    out: Annotated[Path, folder_for("the converted model")],
    layout: Annotated[
        str | None, typer.Option(help='"7b", "76b", or a plan per layer: "gla,swa,gla+full/moe".', show_default="7b")
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Tokens that window attention looks back.", show_default="4096")
    ] = None,
    num_sinks: Annotated[int | None, typer.Option(help="Sink tokens.", show_default="0; 76b: 128")] = None,
    num_experts: Annotated[int | None, typer.Option(help="Experts.", show_default="76b: 16")] = None,
    calibrate: Annotated[Path | None, typer.Option(help="UTF-8 text that new parameters are fitted to.")] = None,
    calibrate_tokens: Annotated[
        int | None, typer.Option(help="Tokens from the start of that text.", show_default="4096")
    ] = None,
    fit: Annotated[str | None, typer.Option(help="What is fitted: columns or o-proj.", show_default="columns")] = None,
    spiking: Spiking = "none",
    k: K = None,
    weights: Weights = None,
    format: Annotated[
        str | None,
        typer.Option(
            help="Folder: spikebrain, or compressed-tensors: INT8 weights without spikes, for other tools.",
            show_default="spikebrain",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where it is calibrated: cpu, cuda, or auto.", show_default="auto")
    ] = None,
    seed: Annotated[int | None, seed_for("new parameters of gates and routers")] = None,
    force: Force = False,
) -> None:
    """Convert a Transformer into a SpikingBrain model, on spikes or not.

    With --spiking it also puts a SpikingBrain model on spikes, for example one that was distilled; then only --k,
    --weights and --format go with it. --calibrate-tokens, --fit and --device need --calibrate; --k, --weights and
    --format need --spiking.
    """
    from ... import jobs

    settings = jobs.ConvertSettings(
        model=model,
        layout=layout,
        window=window,
        num_sinks=num_sinks,
        num_experts=num_experts,
        calibrate=calibrate,
        calibrate_tokens=calibrate_tokens,
        fit=fit,
        spiking=spiking_or_none(spiking),
        k=k,
        weights=weights,
        format=format,
        device=device,
        seed=seed,
    )
    with on_screen() as progress:
        student = jobs.convert(settings, out, progress, force=force)
    num_bytes = sum(x.numel() * x.element_size() for x in (*student.parameters(), *student.buffers()))
    print(f"Written to {out}: {student.settings.num_layers} layers, {num_bytes / 2**20:,.0f} MiB, spiking: {spiking}.")
