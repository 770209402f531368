"""The JavaScript that draws charts: Vega, Vega-Lite and Vega-Embed in one text, made once a version."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from ..errors import SpikebrainError
from ..files import make_folder, write_whole
from ..paths import cache_dir


def vega_bundle() -> str:
    """Return the bundle; it defines `window.vegaEmbed`.

    vl-convert holds the libraries and takes seconds to join them, so the result is kept in the cache folder. Where
    that cannot be written it is made each time.
    """
    path = _kept()
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8")
            if text.endswith(_END):
                return text
        except (OSError, UnicodeDecodeError):
            pass  # it was not made yet, or was damaged
    import vl_convert  # noqa: PLC0415 - only when there is no copy

    text = vl_convert.javascript_bundle() + _END  # pyright: ignore[reportCallIssue] - its stub asks for more
    assert "</script" not in text.lower()
    assert "<!--" not in text
    if path is not None:
        try:
            make_folder(path.parent)
            write_whole(path, text)
        except SpikebrainError:
            pass
    return text


def _kept() -> Path | None:
    """Return where the bundle of this version is kept; None without a cache folder."""
    try:
        return cache_dir() / "pages" / f"vega-{version('vl-convert-python')}.js"
    except SpikebrainError:
        return None


# A file that was cut off lacks it.
_END = "\n/* end of the bundle */\n"
