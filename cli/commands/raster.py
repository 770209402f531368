"""The command `spikebrain raster`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..answer import Answer
from ..complete import encoders, layers_of
from ..options import Device, K, Model, NeuronName, Skip, TextFile, Weights, k_of, named, tokens_if_run
from ..panels import FILES, INPUT, MEASURED, OUTPUT
from ..progress import Screen
from ..words import unused

if TYPE_CHECKING:
    from ...analysis import Raster

PANEL = FILES
# What stands for the trains as they ran.
_AS_RUN = "as-run"


def raster(
    screen: Screen,
    model: Model,
    out: Annotated[Path, typer.Option(help="File to write: .png, .svg or .html.", rich_help_panel=OUTPUT)],
    text: TextFile = None,
    prompt: Annotated[
        str | None, typer.Option(help="A text itself, in the place of a file.", rich_help_panel=INPUT)
    ] = None,
    num_tokens: Annotated[int | None, tokens_if_run("12")] = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="Tokens that the model writes after the text.", rich_help_panel=INPUT)
    ] = 0,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Layers to draw: a pattern of names, with * and ?; 8 at most.",
            show_default="the one in the middle",
            autocompletion=layers_of,
            rich_help_panel=MEASURED,
        ),
    ] = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Spike code to draw; may be given several times, for codes side by side. {_AS_RUN}: the trains as "
            "they ran; spikebrain doctor lists the others.",
            show_default="binary, ternary, bitwise-bidirectional",
            autocompletion=encoders,
            rich_help_panel=MEASURED,
        ),
    ] = None,
    num_neurons: Annotated[
        int, typer.Option(help="Neurons of a layer to draw, evenly spread over all.", rich_help_panel=MEASURED)
    ] = 64,
    num_timesteps: Annotated[
        int | None,
        typer.Option(
            help="Timesteps of a token to draw.",
            show_default="as many as 99 % of its neurons need",
            rich_help_panel=MEASURED,
        ),
    ] = None,
    potential_of: Annotated[
        int | None,
        typer.Option(
            help="Number of the neuron whose membrane potential is drawn.",
            show_default="one that fires at most tokens",
            rich_help_panel=MEASURED,
        ),
    ] = None,
    neuron: NeuronName = None,
    k: K = None,
    skip: Skip = None,
    weights: Weights = None,
    device: Device = "auto",
    force: Annotated[
        bool, typer.Option("--force", help="Write over a file that is there.", rich_help_panel=OUTPUT)
    ] = False,
) -> Answer:
    """Draw the spikes of a layer, in several codes side by side.

    A picture (.png, .svg) or a page with zoom (.html), in which each place says its neuron, token, timestep and count.
    Below the rate codes is the membrane potential of one neuron, unrolled. Every layer of the model spikes, whichever
    are drawn; a model that spikes already runs as it is.
    """
    from ... import coding, jobs, neuro

    codes = tuple(named(coding.ENCODERS, name, _AS_RUN) for name in encoder or ())
    settings = jobs.RasterSettings(
        model=model,
        text=text,
        prompt=prompt,
        num_tokens=num_tokens,
        max_new_tokens=max_new_tokens,
        layers=layers,
        encoders=tuple(None if code == _AS_RUN else code for code in codes),
        num_neurons=num_neurons,
        num_timesteps=num_timesteps,
        potential_of=potential_of,
        neuron=named(neuro.NEURONS, neuron),
        k=k_of(k),
        skip=tuple(skip) if skip else None,
        weights=weights,
        device=device,
    )
    found = jobs.raster(settings, out, screen, force=force)
    page = unused(out.with_suffix(".html"))
    more = ("spikebrain", "report", model) if out.suffix == ".html" else screen.typed.again(out=page)
    return Answer(
        _figure(found.raster),
        {"out": str(out), "text": found.text, **_data(found.raster)},
        (lambda console: console.print(*found.raster.notes, sep="\n")) if found.raster.notes else None,
        out=out,
        next=more,
        why="accuracy, spikes and energy of the whole model" if out.suffix == ".html" else "the same, with zoom",
    )


def _figure(drawn: Raster) -> str:
    first = drawn.panels[0]
    spikes = [f"{panel.code.partition(',')[0]} {sum(panel.num_spikes):,}" for panel in drawn.panels]
    per_code = spikes if len(drawn.panels) == drawn.num_columns else []
    what = f"Drew {len(first.neurons):,} of {first.num_neurons:,} neurons over {len(drawn.calls):,} tokens"
    layers = len(drawn.panels) // drawn.num_columns
    return f"{what} in {layers} layers." if not per_code else f"{what}; spikes: {', '.join(per_code)}."


def _data(drawn: Raster) -> dict[str, Any]:
    panels = [
        {
            "layer": panel.layer,
            "code": panel.code,
            "num_neurons": panel.num_neurons,
            "num_neurons_drawn": len(panel.neurons),
            "num_timesteps_drawn": panel.spikes.shape[2],
            "num_spikes_drawn": sum(panel.num_spikes),
            "firing_rate_drawn": float(panel.firing_rate.sum(0).mean()),
        }
        for panel in drawn.panels
    ]
    return {"num_tokens": len(drawn.calls), "tokens": drawn.tokens, "panels": panels, "notes": drawn.notes}
