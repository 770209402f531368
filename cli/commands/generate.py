"""The command `spikebrain generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...paths import model_name
from ..answer import Answer
from ..complete import models
from ..options import Device, seed_for
from ..panels import CHANGE, INPUT, MEASURED
from ..progress import Screen
from ..words import unused

PANEL = CHANGE


def generate(
    screen: Screen,
    model: Annotated[
        str,
        typer.Argument(
            help="The model, in any form that `spikebrain report` takes; it runs as it is, on spikes or in floating "
            "point.",
            autocompletion=models,
            rich_help_panel=INPUT,
        ),
    ],
    prompt: Annotated[str | None, typer.Argument(help="Text to go on from.", rich_help_panel=INPUT)] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="UTF-8 file with the text to go on from.", rich_help_panel=INPUT)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to write.", rich_help_panel=MEASURED)] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.", rich_help_panel=MEASURED)] = 0.0,
    device: Device = "auto",
    seed: Annotated[int | None, seed_for("the tokens that are drawn, at a temperature above 0")] = None,
    parallel: Annotated[
        bool,
        typer.Option(
            "--parallel",
            help="Processes of torchrun read the text together, and the last writes: torchrun --nproc_per_node=2 "
            "--no_python spikebrain generate MODEL --prompt-file TEXT --parallel.",
            rich_help_panel=MEASURED,
        ),
    ] = False,
) -> Answer:
    """Write text as it comes, and say how fast and with how many spikes."""
    from ... import jobs

    settings = jobs.GenerateSettings(model, prompt, max_new_tokens, temperature, device, seed, prompt_file)
    if parallel:
        found = jobs.generate_in_parallel(settings, screen.write, screen)
        if found is None:  # another process writes
            raise typer.Exit
    else:
        found = jobs.generate(settings, screen.write, screen)
    screen.write("\n\n")
    spikes = found.spikes
    figure = (
        f"Wrote {found.num_new_tokens} tokens, {found.num_new_tokens / found.seconds:.1f} a second (prompt included), "
        f"with a state of {found.cache_bytes:,} bytes"
    )
    if spikes is not None:
        figure += f" and {spikes.per_channel:.3f} spikes per channel and token"
    if found.is_spiking:
        following, why = ("report", model), "its accuracy, spikes and energy"
    else:
        on_spikes = unused(_beside(model))
        to_spiking = ("convert", model, "--spiking", "as-described") if found.is_spikingbrain else ("export", model)
        following, why = (*to_spiking, "--out", on_spikes), "the same model on spikes"
    return Answer(
        (prompt or "") + found.text if screen.quiet else f"{figure}.",
        {
            "prompt": prompt,
            "prompt_file": None if prompt_file is None else str(prompt_file),
            "text": found.text,
            "token_ids": found.ids.tolist(),
            "num_new_tokens": found.num_new_tokens,
            "seconds": found.seconds,
            "cache_bytes": found.cache_bytes,
            "spikes": None if spikes is None else spikes._asdict(),
        },
        next=("spikebrain", *following),
        why=why,
    )


def _beside(model: str) -> Path:
    """Return a folder beside a model, for the same model on spikes."""
    path = Path(model).resolve() if Path(model).name in ("", "..") else Path(model)
    return path.with_name(f"{model_name(path)}-spiking")
