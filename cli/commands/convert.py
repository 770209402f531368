"""The command `spikebrain convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..answer import Answer
from ..complete import models, words
from ..options import DeviceIfRun, FolderFormat, Force, K, Spiking, Weights, folder_for, k_of, seed_for, spiking_or_none
from ..panels import CHANGE, CONVERSION, INPUT
from ..progress import Screen
from ..words import unused

PANEL = CHANGE
# A text of fewer bytes may not fill the window that training needs.
_ENOUGH_TEXT = 2**16


def _of_model(help: str, usual: str, *known: str) -> Any:
    """Return an option of the model that is made, with its usual value and the words that it can be."""
    return typer.Option(help=help, show_default=usual, autocompletion=words(*known), rich_help_panel=CONVERSION)


def convert(
    screen: Screen,
    model: Annotated[
        str,
        typer.Argument(
            help="A Llama or Qwen2 model, in any form that `spikebrain report` takes.",
            autocompletion=models,
            rich_help_panel=INPUT,
        ),
    ],
    out: Annotated[Path, folder_for("the converted model")],
    layout: Annotated[
        str | None, _of_model('"7b", "76b", or a plan per layer: "gla,swa,gla+full/moe".', "7b", "7b", "76b")
    ] = None,
    window: Annotated[int | None, _of_model("Tokens that window attention looks back.", "4096")] = None,
    num_sinks: Annotated[
        int | None, _of_model("Learned tokens before the text, which every token sees.", "0; 76b: 128")
    ] = None,
    num_experts: Annotated[int | None, _of_model("Experts of a layer with experts.", "76b: 16")] = None,
    calibrate: Annotated[Path | None, _of_model("UTF-8 text that new parameters are fitted to.", "none")] = None,
    calibrate_tokens: Annotated[int | None, _of_model("Tokens from the start of that text.", "4096")] = None,
    fit: Annotated[
        str | None,
        _of_model("What is fitted: layers, or only columns or o-proj: quick.", "layers", "layers", "columns", "o-proj"),
    ] = None,
    steps: Annotated[int | None, _of_model("Gradient steps of each layer that is fitted.", "50")] = None,
    placement: Annotated[
        str | None,
        _of_model(
            "Linear layers: alternate, or measured: where they cost least.", "alternate", "alternate", "measured"
        ),
    ] = None,
    spiking: Spiking = "none",
    k: K = None,
    weights: Weights = None,
    format: FolderFormat = None,
    device: DeviceIfRun = None,
    seed: Annotated[int | None, seed_for("new parameters of gates and routers")] = None,
    force: Force = False,
) -> Answer:
    """Convert a Transformer into a SpikingBrain model, on spikes or not.

    To put a Transformer itself on spikes, as it is: spikebrain export MODEL --out FOLDER.

    --device says where it is calibrated. With --spiking it also puts a SpikingBrain model on spikes, for example one
    that was distilled; then only --k, --weights and --format go with it. --calibrate-tokens, --fit, --steps,
    --placement and --device need --calibrate; --k, --weights and --format need --spiking.
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
        steps=steps,
        placement=placement,
        spiking=spiking_or_none(spiking),
        k=k_of(k),
        weights=weights,
        format=format,
        device=device,
        seed=seed,
    )
    found = jobs.convert(settings, out, screen, force=force)
    student = found.model
    num_bytes = sum(x.numel() * x.element_size() for x in (*student.parameters(), *student.buffers()))
    if spiking != "none":
        follows: dict[str, Any] = {"next": ("spikebrain", "report", out), "why": "its accuracy, spikes and energy"}
    else:
        long = calibrate is not None and calibrate.stat().st_size >= _ENOUGH_TEXT
        trains_on = ("--text", calibrate) if long else ("--sample", 20_000)
        to = ("--out", unused(Path(f"{out}-trained")))
        follows = {"next": ("spikebrain", "distill", model, out, *trains_on, *to), "why": "recovers what was lost"}
    start = ""
    if found.perplexity is not None and found.teacher_perplexity is not None:
        start = (
            f"\nIt starts at {found.perplexity / found.teacher_perplexity:.2f} times the perplexity of {model}: "
            f"{found.perplexity:.1f} beside {found.teacher_perplexity:.1f}, in float, on {found.num_tokens:,} tokens "
            f"of {calibrate}."
        )
    return Answer(
        f"Converted {model}: {student.settings.num_layers} layers, {num_bytes / 2**20:,.0f} MiB, spiking: {spiking}."
        + start,
        {
            "model": model,
            "out": str(out),
            "spiking": spiking_or_none(spiking),
            "num_bytes": num_bytes,
            "perplexity": found.perplexity,
            "teacher_perplexity": found.teacher_perplexity,
            "num_measured_tokens": found.num_tokens,
            "settings": student.settings.to_dict(),
        },
        out=out,
        **follows,
    )
