"""Packages that import their parts when they are asked for: PyTorch takes seconds, which `--help` should not.

And packages of other people that only some users have.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from .errors import InputError


def exports(
    package: str, homes: Mapping[str, Iterable[str]], modules: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the functions `__getattr__` and `__dir__` of a package.

    The package also imports the same names under `if TYPE_CHECKING`, for type checkers.

    Args:
        package: its `__name__`.
        homes: the names that it exports, by the module of the package where each is found.
        modules: modules of the package that are attributes, too, without having been imported.
    """
    home_of = {name: home for home, names in homes.items() for name in names}
    modules = frozenset(modules)

    def get(name: str) -> Any:
        if name in modules:
            return import_module(f"{package}.{name}")
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(import_module(f"{package}.{home_of[name]}"), name)
        setattr(sys.modules[package], name, found)  # so that Python does not ask again
        return found

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home_of, *modules})

    return get, names


def install_command(extra: str) -> str:
    """Return what installs an extra from where this package was installed: a folder, a file, a repository or an index.

    In the folder of the sources it is what README.md says.

    >>> install_command("test").startswith("pip install ")
    True
    """
    from importlib import metadata  # noqa: PLC0415 - only for a message
    from urllib.parse import unquote, urlsplit  # noqa: PLC0415

    package, root = __name__.partition(".")[0], Path(__file__).resolve().parent
    source = package
    if (root / "pyproject.toml").is_file():  # it runs from its sources
        source = "." if Path.cwd() == root else str(root)
    else:
        try:
            told = json.loads(metadata.distribution(package).read_text("direct_url.json") or "{}")
        except (metadata.PackageNotFoundError, ValueError):
            told = {}
        url = told.get("url", "")
        path = unquote(urlsplit(url).path)
        if "vcs_info" in told:
            return f"pip install {shlex.quote(f'{package}[{extra}] @ git+{url}')}"
        if url.startswith("file:") and Path(path).exists():
            source = "." if Path.cwd() == Path(path).resolve() else path
    return f"pip install {shlex.quote(f'{source}[{extra}]')}"


def optional(package: str, extra: str, where: str) -> Any:
    """Import a package of an extra, which not every installation has.

    Args:
        package: its name.
        extra: of this project's that installs it.
        where: what needs it, for the message.
    Raises:
        InputError: it is not installed, or cannot be imported.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise InputError(
            f"{where}: needs {package}, which cannot be imported ({error}). Run {install_command(extra)}."
        ) from error
