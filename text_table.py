"""Tables as plain text, for what `print` shows of a result."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# More names than these are not listed one by one.
_MOST_NAMES = 3


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return columns of text: the first to the left, all others to the right.

    >>> print(text_table(("part", "nJ"), [("additions", "1.5"), ("weights", "12.0")]))
    part         nJ
    additions   1.5
    weights    12.0
    """
    lines = [tuple(header), *map(tuple, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    first, *others = widths
    return "\n".join(
        "  ".join([line[0].ljust(first), *(cell.rjust(width) for cell, width in zip(line[1:], others, strict=True))])
        for line in lines
    )


def kind_of(name: str) -> str:
    """Return the name of a layer without its number, which like layers have in common.

    >>> kind_of("model.layers.3.mlp.down_proj")
    'model.layers.*.mlp.down_proj'
    """
    return re.sub(r"\.\d+(?=\.|$| )", ".*", name)


def few_in_words(names: Iterable[str], what: str) -> str:
    """Return the different names in their order, or how many there are if they are more than three.

    >>> few_in_words("abab", "letters"), few_in_words("abcda", "letters")
    ('a, b', '4 letters that differ by layer, such as a')
    """
    first, *others = dict.fromkeys(names)
    if len(others) < _MOST_NAMES:
        return ", ".join((first, *others))
    return f"{len(others) + 1} {what} that differ by layer, such as {first}"
