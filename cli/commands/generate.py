"""The command `spikebrain generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..options import Device, seed_for
from ..progress import on_screen


def generate(
    model: Annotated[Path, typer.Argument(help="Folder of a SpikingBrain model.")],
    prompt: Annotated[str, typer.Argument(help="Text to go on from.")],
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to write.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    device: Device = "auto",
    seed: Annotated[int | None, seed_for("the tokens that are drawn, at a temperature above 0")] = None,
) -> None:
    """Write text as it comes, and say how fast, with how much state and how many spikes."""
    from ... import jobs

    settings = jobs.GenerateSettings(model, prompt, max_new_tokens, temperature, device, seed)
    with on_screen() as progress:
        found = jobs.generate(settings, lambda text: print(text, end="", flush=True), progress)
    print(
        f"\n\n{found.num_new_tokens} tokens, {found.num_new_tokens / found.seconds:.1f} tokens/s (prompt included); "
        f"state {found.cache_bytes:,} bytes"
    )
    spikes = found.spikes
    if spikes is not None:
        print(
            f"{spikes.per_token:,.0f} spikes a token, {spikes.per_channel:.3f} a channel, in all spiking layers over "
            f"{spikes.num_tokens} tokens"
        )
