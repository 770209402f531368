"""Options that several commands share, each said once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from .complete import backends, encoders, layers_of, models, neurons, words
from .panels import INPUT, MACHINE, MEASURED, OUTPUT, SPIKES

if TYPE_CHECKING:
    from rich.table import Table

    from ..registry import Registry

MODEL = "smollm2, a .gguf file, a model folder, a file saved by spikebrain, or a hub id."
Model = Annotated[
    str, typer.Argument(help=f"The model: {MODEL}", autocompletion=models, rich_help_panel=INPUT, show_default=True)
]
TextFile = Annotated[
    Path | None,
    typer.Option(help="UTF-8 text file.", show_default="the texts of Python's help", rich_help_panel=INPUT),
]
NumTokens = Annotated[int, typer.Option(help="Tokens from the start of the text.", rich_help_panel=INPUT)]


def k_of(typed: list[str] | None) -> float | dict[str, float] | None:
    """Return the k that was typed: one for all layers, or one for each pattern; None if there was none.

    A number alone, beside patterns, is for all other layers.

    Raises:
        InputError: something else was typed, or one pattern twice.

    >>> k_of(["2.5"]), k_of(["*down_proj=4", "3"])
    (2.5, {'*down_proj': 4.0, '*': 3.0})
    """
    if not typed:
        return None
    parts = [part.strip() for text in typed for part in text.split(",")]
    pairs = [(pattern.strip(), value) for pattern, _, value in (part.rpartition("=") for part in parts)]
    found: dict[str, float] = {}
    for pattern, value in sorted(pairs, key=lambda pair: pair[0] == ""):  # numbers alone come last, where they count
        if (pattern or "*") in found:
            other = f"the pattern {pattern!r}" if pattern else "all other layers"
            raise InputError(f"k: expected one number for {other}, got two. Leave out one of both.")
        found[pattern or "*"] = _k(value, parts)
    return found["*"] if list(found) == ["*"] else found


def _k(value: str, parts: list[str]) -> float:
    try:
        return float(value)
    except ValueError:
        raise InputError(
            f"k: expected a number such as 3, or PATTERN=NUMBER such as *down_proj=4; got {', '.join(parts)!r}."
        ) from None


def checked_k(read: Callable[[list[str] | None], Any]) -> Callable[[list[str] | None], list[str] | None]:
    """Return what refuses a k that cannot be read before anything is imported for it; `read` raises an InputError."""

    def check(typed: list[str] | None) -> list[str] | None:
        try:
            read(typed)
        except InputError as error:
            raise typer.BadParameter(str(error).removeprefix("k: ")) from error
        return typed

    return check


# An option that counts only for some inputs is None unless it is typed: its job refuses it where it has no effect.
K = Annotated[
    list[str] | None,
    typer.Option(
        metavar="K or PATTERN=K",
        callback=checked_k(k_of),
        help="Mean |x| of a token divided by its threshold: larger k, more spikes. Layers that match a pattern can "
        "have a k of their own: --k '*down_proj=4' --k 3; the first pattern that matches counts.",
        show_default="3.0",
        rich_help_panel=SPIKES,
    ),
]
LISTED = "spikebrain doctor lists them, those of other packages too."
NeuronName = Annotated[
    str | None,
    typer.Option(
        help=f"Neuron; {LISTED}", show_default="adaptive-threshold", autocompletion=neurons, rich_help_panel=SPIKES
    ),
]
EncoderName = Annotated[
    str | None,
    typer.Option(
        help=f"Spike code; {LISTED}",
        show_default="bitwise-bidirectional",
        autocompletion=encoders,
        rich_help_panel=SPIKES,
    ),
]
BackendName = Annotated[
    str | None,
    typer.Option(
        help="Backend that computes the integer sums; auto picks the fastest.",
        show_default="auto",
        autocompletion=backends,
        rich_help_panel=MACHINE,
    ),
]
Layers = Annotated[
    str | None,
    typer.Option(
        help="Layers that spike: a pattern of names, with * and ?.",
        show_default="*",
        autocompletion=layers_of,
        rich_help_panel=SPIKES,
    ),
]
Skip = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Layers that stay dense: a pattern of names; may be given several times.",
        show_default="none",
        autocompletion=layers_of,
        rich_help_panel=SPIKES,
    ),
]
IncludeHead = Annotated[
    bool, typer.Option("--include-head", help="The output head spikes, too.", rich_help_panel=SPIKES)
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Weights: int8, rounded; stored, the integers of a GGUF file as they are; int4, rounded in groups of 32.",
        show_default="int8",
        autocompletion=words("int8", "stored", "int4"),
        rich_help_panel=SPIKES,
    ),
]
CompactScales = Annotated[
    bool,
    typer.Option(
        "--compact-scales", help="Keep scales of groups in few bits, which are read, too.", rich_help_panel=SPIKES
    ),
]


def coarse_of(typed: list[str] | None) -> tuple[tuple[int, int], ...] | None:
    """Return the coarse rows that were typed, pairs (bits, up_to); None if there were none.

    Raises:
        InputError: something else was typed.

    >>> coarse_of(["2:4"]), coarse_of(["2:2,4:9"])
    (((2, 4),), ((2, 2), (4, 9)))
    """
    if not typed:
        return None
    parts = [part.strip() for text in typed for part in text.split(",")]
    try:
        return tuple((int(bits), int(up_to)) for bits, up_to in (part.split(":") for part in parts))
    except ValueError:
        raise InputError(
            f"coarse: expected BITS:UP_TO, such as 2:4 for counts up to 4 that read 2 bits; got {', '.join(parts)!r}."
        ) from None


def _checked_coarse(typed: list[str] | None) -> list[str] | None:
    try:
        coarse_of(typed)
    except InputError as error:
        raise typer.BadParameter(str(error).removeprefix("coarse: ")) from error
    return typed


CoarseRows = Annotated[
    list[str] | None,
    typer.Option(
        "--coarse",
        metavar="BITS:UP_TO",
        callback=_checked_coarse,
        help="Counts up to UP_TO read rows of BITS bits: 2 or 4, fewer than the layer's own rows have.",
        show_default="none",
        rich_help_panel=SPIKES,
    ),
]
DeadZone = Annotated[
    float | None,
    typer.Option(
        help="A channel is silent below it, in units of the token's mean |x|.",
        show_default="none",
        rich_help_panel=SPIKES,
    ),
]
FolderFormat = Annotated[
    str | None,
    typer.Option(
        help="Of a folder: spikebrain, or compressed-tensors: INT8 weights without spikes, for other tools.",
        show_default="spikebrain",
        autocompletion=words("spikebrain", "compressed-tensors"),
        rich_help_panel=OUTPUT,
    ),
]
Attention = Annotated[
    str | None,
    typer.Option(
        help="Softmax attention: counts, that of a Transformer on spike counts of queries, INT8 keys and values; of a "
        "SpikingBrain model as-described or as-released.",
        show_default="in floating point",
        autocompletion=words("counts", "as-described", "as-released"),
        rich_help_panel=SPIKES,
    ),
]
GroupSize = Annotated[
    int | None,
    typer.Option(
        help="Input channels that share a weight scale; not with --weights stored.",
        show_default="all",
        rich_help_panel=SPIKES,
    ),
]
DEVICES = "cpu, cuda, or auto: a GPU if there is one."
_DEVICES = words("cpu", "cuda", "auto")
Device = Annotated[str, typer.Option(help=DEVICES, autocompletion=_DEVICES, rich_help_panel=MACHINE)]
DeviceIfRun = Annotated[
    str | None,
    typer.Option(help=DEVICES, show_default="auto", autocompletion=_DEVICES, rich_help_panel=MACHINE),
]
Force = Annotated[bool, typer.Option("--force", help="Write over what the folder holds.", rich_help_panel=OUTPUT)]
Spiking = Annotated[
    str,
    typer.Option(
        help="How the model spikes: none, as-described or as-released.",
        autocompletion=words("none", "as-described", "as-released"),
        rich_help_panel=SPIKES,
    ),
]


def budget_of(typed: str) -> tuple[str, float]:
    """Return what a budget counts, and its value.

    Raises:
        InputError: something else was typed.

    >>> budget_of("read=0.5")
    ('read', 0.5)
    """
    name, _, value = typed.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        raise InputError(
            f"budget: expected read=NUMBER, spikes=NUMBER or energy=NUMBER, such as read=0.5; got {typed!r}."
        ) from None


def checked_budget(typed: str | None) -> str | None:
    """Return a budget as it was typed, or refuse it before anything is imported for it."""
    if typed is None:
        return None
    try:
        budget_of(typed)
    except InputError as error:
        raise typer.BadParameter(str(error).removeprefix("budget: ")) from error
    return typed


def tokens_if_run(usual: str) -> Any:
    """Return the option --num-tokens of a command that does not always run a text, with its usual value."""
    return typer.Option(help="Tokens from the start of the text.", show_default=usual, rich_help_panel=INPUT)


def seed_for(what: str) -> Any:
    """Return the option --seed, with what it is for."""
    return typer.Option(help=f"Random seed for {what}.", show_default="0", rich_help_panel=MEASURED)


def listed(text: str | None) -> tuple[str, ...]:
    """Return what was typed with commas between; nothing if nothing was typed."""
    return tuple(part.strip() for part in text.split(",")) if text else ()


def folder_for(what: str) -> Any:
    """Return the option --out, with what is written there."""
    return typer.Option(help=f"Folder for {what}.", rich_help_panel=OUTPUT)


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
    from rich.table import Table  # takes long, which `--help` need not wait for

    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i in text_columns else "right", no_wrap=no_wrap)
    return table
