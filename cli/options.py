"""Options that several commands share, each said once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ..errors import InputError

if TYPE_CHECKING:
    from ..registry import Registry

MODEL = "smollm2, a .gguf file, a model folder, a file saved by spikebrain, or a hub id."
Model = Annotated[str, typer.Argument(help=f"The model: {MODEL}")]
TextFile = Annotated[Path | None, typer.Option(help="UTF-8 text file.", show_default="pydoc_data.topics")]
NumTokens = Annotated[int, typer.Option(help="Tokens from the start of the text.")]
# An option that counts only for some inputs is None unless it is typed: its job refuses it where it has no effect.
K = Annotated[
    float | None,
    typer.Option(help="Mean |x| of a token divided by its threshold: larger k, more spikes.", show_default="3.0"),
]
LISTED = "spikebrain doctor lists them, those of other packages too."
NeuronName = Annotated[str | None, typer.Option(help=f"Neuron; {LISTED}", show_default="adaptive-threshold")]
EncoderName = Annotated[str | None, typer.Option(help=f"Spike code; {LISTED}", show_default="bitwise-bidirectional")]
BackendName = Annotated[
    str | None,
    typer.Option(help="Backend that computes the integer sums; auto picks the fastest.", show_default="auto"),
]
Layers = Annotated[
    str | None, typer.Option(help="Layers that spike: a pattern of names, with * and ?.", show_default="*")
]
Skip = Annotated[
    list[str] | None,
    typer.Option(help="Layers that stay dense: a pattern of names; may be given several times.", show_default="none"),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Weights: int8, rounded; stored, the integers of a GGUF file as they are; int4, rounded in groups of 32.",
        show_default="int8",
    ),
]
GroupSize = Annotated[
    int | None,
    typer.Option(help="Input channels that share a weight scale; not with --weights stored.", show_default="all"),
]
DEVICES = "cpu, cuda, or auto: a GPU if there is one."
Device = Annotated[str, typer.Option(help=DEVICES)]
Force = Annotated[bool, typer.Option("--force", help="Write over what the folder holds.")]
Spiking = Annotated[str, typer.Option(help="How the model spikes: none, as-described or as-released.")]


def seed_for(what: str) -> Any:
    """Return the option --seed, with what it is for."""
    return typer.Option(help=f"Random seed for {what}.", show_default="0")


def folder_for(what: str) -> Any:
    """Return the option --out, with what is written there."""
    return typer.Option(help=f"Folder for {what}.")


def named(registry: Registry[Any], name: str | None, *words: str) -> Any:
    """Return the plug-in of that name; None and other words that are allowed there as they are.

    Raises:
        InputError: there is none, or it cannot be used; the message begins with its kind, which is the option's name.
    """
    if name is None or name in words:
        return name
    if words and not registry.knows(name):
        raise InputError(f"{registry.kind}: expected one of {', '.join((*words, *registry))}; got {name!r}.")
    return registry.create(name)


def spiking_or_none(spiking: str) -> str | None:
    """Return the value of --spiking as jobs take it."""
    return None if spiking == "none" else spiking


def table_of(*columns: str, text_columns: tuple[int, ...] = (0,), no_wrap: bool = False) -> Table:
    """Return an empty table: columns of text to the left, numbers to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i in text_columns else "right", no_wrap=no_wrap)
    return table
