"""What a page is made of. Builders make these, the templates show them; none of it knows HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Term:
    """A figure's name and what it means.

    Attributes:
        label: as the page calls it.
        meaning: its definition, in sentences.
        code: its name in the JSON, if it has one there.
    """

    label: str
    meaning: str
    code: str = ""


@dataclass(frozen=True)
class Card:
    """One part of the answer, at the top of the page.

    Attributes:
        label: what it is about.
        value: the figure, in a few words.
        notes: what it is compared with, a line each.
        how: "measured", "counted", "modelled", "simulated" or "checked".
        term: key of its definition.
        tone: "good", "bad" or "" for neither.
    """

    label: str
    value: str
    notes: Sequence[str]
    how: str
    term: str
    tone: str = ""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        label: its heading.
        form: how its numbers are written, as for `format`; None for text.
        term: key of its definition, if it needs one.
    """

    label: str
    form: str | None = None
    term: str = ""


@dataclass(frozen=True)
class Cell:
    """What a table shows, and the value by which it is sorted."""

    shown: str
    value: Any


@dataclass(frozen=True)
class Table:
    """A table that sorts, and filters if it is long.

    Attributes:
        title: caption.
        columns: headings.
        rows: values; None is shown as an en dash.
        note: a sentence under it.
        is_open: False to show it folded, as the figures behind a chart.
        total: whether the last row is the sum of the others, which stays last.
    """

    kind: ClassVar[str] = "table"
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    is_open: bool = True
    total: bool = False

    @property
    def cells(self) -> list[list[Cell]]:
        """What is shown, row by row."""
        return [
            [Cell(_shown(value, column.form), value) for value, column in zip(row, self.columns, strict=True)]
            for row in self.rows
        ]


@dataclass(frozen=True)
class View:
    """Something that JavaScript draws.

    Attributes:
        name: unique on the page.
        what: "chart" (Vega-Lite), "raster", "mesh" or "steps".
        title: heading.
        data: what is drawn, as JSON values; a chart's specification.
        note: how to read it.
        says: what it shows, for readers who do not see it.
    """

    kind: ClassVar[str] = "view"
    name: str
    what: str
    title: str
    data: Any
    note: str = ""
    says: str = ""


@dataclass(frozen=True)
class Text:
    """Sentences, as paragraphs or as a list; folded if they have a title."""

    kind: ClassVar[str] = "text"
    sentences: Sequence[str]
    title: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with what belongs under it."""

    name: str
    title: str
    intro: str
    parts: Sequence[Table | View | Text]


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: of the window.
        subject: what ran, in a line.
        answer: the answer in one sentence.
        cards: the figures of the answer.
        sections: the rest.
        terms: definitions by key.
        is_wide: whether it takes a wide window, for drawings side by side.
    """

    title: str
    subject: str
    answer: str
    cards: Sequence[Card]
    sections: Sequence[Section]
    terms: Mapping[str, Term]
    is_wide: bool = False

    @property
    def asked_for(self) -> list[str]:
        """Keys of all definitions that the page links to."""
        tables = [part for section in self.sections for part in section.parts if isinstance(part, Table)]
        columns = [column.term for table in tables for column in table.columns]
        return [key for key in (*(card.term for card in self.cards), *columns) if key]

    @property
    def views(self) -> dict[str, View]:
        """All that JavaScript draws, by name."""
        return {part.name: part for section in self.sections for part in section.parts if isinstance(part, View)}


def _shown(value: Any, form: str | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and form is not None:
        return f"{value:{form}}".replace("-", "−").replace("%", "\u00a0%")
    return str(value)
