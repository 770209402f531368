"""Make a page from the figures of a result, and write it."""

from __future__ import annotations

import base64
import functools
import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import read_json, write_whole
from ..results import COMMANDS
from ..version import __version__
from .bundle import vega_bundle
from .data import script_json
from .figures import Figures
from .parts import Page

# Of the JSON files that pages are made from; raised when an older one lacks what a page shows.
FORMAT = 1
_TEMPLATES = Path(__file__).with_name("templates")
_SCRIPTS = ("page.js", "canvas.js", "raster_draw.js", "raster.js")
# A module of this room for each kind of result; its `build` makes the page.
_BUILDERS = {
    "report": "report_page",
    "energy": "energy_page",
    "simulation": "simulation_page",
    "eval": "eval_page",
    "sweep": "sweep_page",
    "raster": "raster",
}


def make_page(
    source: Mapping[str, Any] | str | Path, files: Sequence[str] = (), meanings: Mapping[str, str] | None = None
) -> str:
    """Return the page of a result as one HTML text, which holds all that it needs.

    Args:
        source: the figures, with "kind" and "format", or the JSON file that holds them.
        files: names of files beside the page, to which it links.
        meanings: of the settings, by name; see `attributes_of`.
    Raises:
        InputError: the figures are of another version, damaged, or none.
    """
    where, content = ("figures", source) if isinstance(source, Mapping) else (str(source), read_json(Path(source)))
    build = _builder(content, where)
    try:
        page = build(Figures(content, where), meanings or {})
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{where}: expected the figures of a {content['kind']}, but some have another type or value ({error}). "
            "The file was changed, or is of another version: run the command again."
        ) from error
    return _render(page, content, files)


def write_page(
    source: Mapping[str, Any] | str | Path,
    path: Path,
    files: Sequence[str] = (),
    meanings: Mapping[str, str] | None = None,
) -> str:
    """Write the page of a result.

    Args:
        source: as for `make_page`.
        path: *.html to write.
        files: as for `make_page`.
        meanings: as for `make_page`.
    Returns:
        The name of the file.
    Raises:
        InputError: the figures cannot be shown, or the file cannot be written.
    """
    # Half of a pair of surrogates, which a token's text may hold, has no UTF-8.
    others = [name for name in files if name != path.name]
    text = make_page(source, others, meanings).encode("utf-8", "backslashreplace").decode()
    write_whole(path, text)
    return path.name


def check_kind(source: Any, where: str, kinds: Collection[str]) -> str:
    """Return of which kind figures are.

    Args:
        source: JSON values.
        where: they are, for messages.
        kinds: that are expected.
    Raises:
        InputError: they are of another kind, or of another version.
    """
    kind = source.get("kind") if isinstance(source, Mapping) else None
    if isinstance(kind, str) and kind in COMMANDS and kind not in kinds:
        wanted = " or ".join(f"spikebrain {COMMANDS[name]}" for name in kinds)
        raise InputError(f"{where}: expected figures of {wanted}, got those of spikebrain {COMMANDS[kind]}.")
    if not isinstance(kind, str) or kind not in kinds:
        given = "none" if kind is None else repr(kind)
        raise InputError(
            f"{where}: expected figures of one of the kinds {', '.join(kinds)}, got {given}. Run the command again; "
            "older files do not say their kind."
        )
    if type(source.get("format")) is not int or source["format"] != FORMAT:
        raise InputError(
            f"{where}: expected format {FORMAT}, got {source.get('format')!r}: it is of another version of spikebrain. "
            "Run the command again."
        )
    return kind


def _builder(source: Any, where: str) -> Callable[[Figures, Mapping[str, str]], Page]:
    return import_module(f".{_BUILDERS[check_kind(source, where, _BUILDERS)]}", __package__).build


def _render(page: Page, source: Mapping[str, Any], files: Sequence[str]) -> str:
    style = (_TEMPLATES / "page.css").read_text("utf-8")
    needs_vega = any(view.what == "chart" for view in page.views.values())
    scripts = [vega_bundle(), _script()] if needs_vega else [_script()]
    return _template().render(
        page=page,
        files=files,
        style=style,
        scripts=scripts,
        # Only these scripts may run, whatever texts the page shows.
        allowed=" ".join(_hash(text) for text in scripts),
        views=script_json({name: {"what": view.what, "data": _finite(view.data)} for name, view in page.views.items()}),
        data=script_json(source),
        version=__version__,
    )


def _finite(value: Any) -> Any:
    """Return JSON values with null in the place of NaN and infinity, which browsers do not read and charts not draw."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@functools.cache
def _template() -> Any:
    import jinja2  # noqa: PLC0415 - with the first page

    loader = jinja2.FileSystemLoader(_TEMPLATES)
    options = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return jinja2.Environment(loader=loader, **options).get_template("page.html.j2")


def _script() -> str:
    return "".join((_TEMPLATES / name).read_text("utf-8") for name in _SCRIPTS)


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
