"""The command `spikebrain doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...lazy import install_command
from ..answer import Answer
from ..options import table_of
from ..panels import HELP
from ..progress import Screen

if TYPE_CHECKING:
    from rich.console import Console

PANEL = HELP


def doctor(screen: Screen) -> Answer:
    """Say what this machine can run, and why something cannot."""
    from ... import jobs

    found = jobs.examine()
    return Answer(
        f"Layers run {' and '.join(_picked(name, there['auto']) for name, there in found['devices'].items())}.",
        found,
        lambda console: _print(console, found),
        next=("spikebrain", "report"),
        why="a real model on spikes",
    )


def _picked(device: str, auto: dict[str, str]) -> str:
    """Return which backend "auto" picks on a device, in words."""
    choices = [f"by {name} for {tokens} {'token' if tokens == '1' else 'tokens'}" for tokens, name in auto.items()]
    return f"on {device}: {', '.join(choices)}"


def _print(console: Console, found: dict[str, Any]) -> None:
    """Print the findings on one screen."""
    cpu, cache = found["cpu"], found["model_cache"]
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in found["versions"].items())
    instructions = cpu["instructions"]
    known = "unknown" if instructions is None else ", ".join(k for k, v in instructions.items() if v) or "none"
    console.print(versions)
    console.print(f"CPU: {cpu['model']}, {cpu['num_threads']} of {cpu['num_cpus']} threads; instructions: {known}")
    for i, gpu in enumerate(found["gpus"]):
        memory = gpu["memory_bytes"] / 2**30
        console.print(f"GPU {i}: {gpu['name']}, compute capability {gpu['compute_capability']}, {memory:.0f} GiB")
    console.print()

    table = table_of("Backend", "device", "auto picks it for", "can it run?", text_columns=(0, 1, 2, 3))
    for device, there in found["devices"].items():
        for name, reason in there["backends"].items():
            tokens = ", ".join(n for n, picked in there["auto"].items() if picked == name)
            table.add_row(name, device, tokens + " tokens" if tokens else "", f"no: {reason}" if reason else "yes")
    console.print(table, "")

    _print_plug_ins(console, found)
    console.print(
        f"Default model: {'in the cache' if cache['present'] else 'not fetched yet'} ({cache['path'] or 'no folder'})"
    )
    for extra, packages in found["extras"].items():
        missing = ", ".join(name for name, version in packages.items() if version is None)
        remedy = f"{missing} missing; {install_command(extra)}" if missing else "installed"
        console.print(f"Extra {extra} (optional): {remedy}")
    console.print()
    for sentence in found["advice"]:
        console.print(f"- {sentence}")


def _print_plug_ins(console: Console, found: dict[str, Any]) -> None:
    """Print what can be named in commands, and what other packages bring."""
    for kind, names in found["names"].items():
        console.print(f"{kind.replace('_', ' ').capitalize()}: {', '.join(names)}")
    console.print()
    if found["plug_ins"]:
        table = table_of("Plug-in", "kind", "package", "can it be used?", text_columns=(0, 1, 2, 3))
        for row in found["plug_ins"]:
            fault = row["fault"]
            table.add_row(
                row["name"], row["kind"].replace("_", " "), row["package"], f"no: {fault}" if fault else "yes"
            )
        console.print(table, "")
