"""The figures inside a page: how they are put there, and how a script reads them back."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import parse_json, read_whole

# Characters that end a script, or a line of JavaScript, written so that they do neither.
_ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def script_json(content: Any) -> str:
    r"""Return JSON that can stand inside a `<script>` of any page, whatever its texts are.

    >>> print(script_json({"</script>": 1}))
    {"\u003c/script\u003e":1}
    """
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    for character, escaped in _ESCAPED.items():
        text = text.replace(character, escaped)
    # Half of a pair of surrogates, which a tokenizer may return, has no UTF-8.
    return text.encode("utf-8", "backslashreplace").decode()


def read_page(path: str | Path) -> dict[str, Any]:
    """Return the figures inside a page: the content of the JSON file that was written beside it.

    Args:
        path: an .html file that this package wrote.
    Raises:
        InputError: it cannot be read, or holds no figures.
    """
    path = Path(path)
    finder = _Finder()
    finder.feed(read_whole(path))
    if not finder.found:
        raise InputError(
            f'{path}: expected a page of spikebrain, with figures in <script id="data">; it has none. Name a page '
            "that report, energy, simulate, eval, sweep or raster wrote."
        )
    return parse_json("".join(finder.found), str(path))


class _Finder(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._is_inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self._is_inside = ("id", "data") in attrs

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._is_inside = False

    def handle_data(self, data: str) -> None:
        if self._is_inside:
            self.found.append(data)
