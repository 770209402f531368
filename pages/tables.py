"""Tables that several pages have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .figures import Figures
from .parts import Column, Table


def settings_table(settings: Figures, meanings: Mapping[str, str]) -> Table:
    """Return the settings with what each means."""
    rows = [(name, in_words(value), meanings.get(name, "")) for name, value in settings.items()]
    return Table("Settings", [Column("setting"), Column("value"), Column("meaning")], rows)


def environment(found: Figures) -> Table:
    """Return the machine and the versions."""
    rows = [(name.replace("num_", "").replace("_", " "), in_words(value)) for name, value in found.items()]
    return Table("Machine and versions", [Column("what"), Column("value")], rows, is_open=False)


def in_words(value: Any) -> str:
    """Return a JSON value as a reader would write it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(in_words(item) for item in value) or "none"
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {in_words(item)}" for key, item in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)
