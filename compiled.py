"""Compiled functions (numba) whose machine code is cached under a key made from the package's sources.

Numba's own cache looks only at the file of the function that is called. If that function calls one of another file,
an edit there goes unnoticed, and old machine code runs. Here the cache folder is named after a hash of all sources that
compiled code can come from, so every edit is compiled.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core import sigutils
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator
from numba.core.ccallback import CFunc

from .errors import InputError
from .paths import cache_dir

# The folders that have compiled functions. A folder imports only from those before it, so everything that a compiled
# function uses is in one of these, or in a module beside this one.
SOURCES = ("neuro", "coding", "chip", "backends")
# A folder of machine code that was not used for so long is deleted.
_UNUSED_S = 30 * 24 * 3600


def compiled(function: Callable | None = None, /, **options: Any) -> Any:
    """Compile a function with numba when it is first called; it runs without the GIL and is cached on disk.

    Use it as `@compiled` or `@compiled(error_model="numpy")`; options are those of `numba.njit`.
    """
    if function is None:
        return functools.partial(compiled, **options)
    # Said even where it is the default: numba would else take the options of the function that called this one first,
    # and the machine code in the cache, and so a rounding, would depend on who came first.
    options = {"fastmath": False, "error_model": "python", **options}
    dispatcher = numba.njit(nogil=True, **options)(function)
    # With NUMBA_DISABLE_JIT=1 numba returns the function itself.
    return _with_cache(dispatcher, function) if hasattr(dispatcher, "py_func") else dispatcher


def compiled_callback(function: Callable, signature: Any) -> int:
    """Compile a function that C code can call, now, and return its address.

    Args:
        function: takes and returns plain numbers.
        signature: numba's types of result and arguments, for example `types.void(types.int64)`.
    """
    callback = _with_cache(CFunc(function, sigutils.normalize_signature(signature), locals={}, options={}), function)
    callback.compile()
    assert callback.address is not None
    return callback.address


def _with_cache(owner: Any, function: Callable) -> Any:
    """Give numba's object for a compiled function our cache, if there is a folder for it."""
    if cache_folder() is not None:
        owner._cache = _Cache(function)
    return owner


@functools.cache
def cache_folder() -> Path | None:
    """Return the folder for machine code of these sources, or None if none can be written.

    It is `numba/<digest>` in `paths.cache_dir()`, or else in a private folder among the temporary files.
    """
    digest = source_digest(Path(__file__).parent)
    if digest is None:
        return None
    for parent in _parents():
        folder = parent / digest
        with contextlib.suppress(OSError):  # even a look into another user's home may not be allowed
            is_new = not folder.is_dir()
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            os.utime(folder)
            if is_new:
                remove_unused(parent)
            return folder
    return None


def source_digest(root: Path) -> str | None:
    """Return a hash of all sources below root that compiled code can come from, and of the compiler's version.

    None if there are no sources, as in a package that was shipped without them.
    """
    files = sorted([*root.glob("*.py"), *(file for room in SOURCES for file in (root / room).rglob("*.py"))])
    if not files:
        return None
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__} {sys.version}".encode())
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root).as_posix()} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()[:32]


def remove_unused(parent: Path) -> None:
    """Delete the folders of other sources that were last used more than a month ago."""
    with contextlib.suppress(OSError):
        for folder in list(parent.iterdir()):
            if folder.stat().st_mtime < time.time() - _UNUSED_S:
                shutil.rmtree(folder, ignore_errors=True)


def _parents() -> Iterator[Path]:
    """Yield the folders in which the machine code may be kept, best first."""
    with contextlib.suppress(InputError):
        yield cache_dir() / "numba"
    user = os.getuid() if hasattr(os, "getuid") else ""
    with contextlib.suppress(OSError):
        private = Path(tempfile.gettempdir()) / f"spikebrain-numba-{user}"
        private.mkdir(mode=0o700, exist_ok=True)
        found = private.lstat()
        # Everybody may write to the folder above: take ours only if nobody else can put machine code into it.
        if stat.S_ISDIR(found.st_mode) and (user == "" or (found.st_uid == user and not found.st_mode & 0o022)):
            yield private


class _Locator(_CacheLocator):
    """Tells numba where a function is cached."""

    def __init__(self, function: Callable) -> None:
        folder = cache_folder()
        assert folder is not None
        code = function.__code__
        self._folder, self._py_file, self._lineno = folder, code.co_filename, code.co_firstlineno

    def get_cache_path(self) -> Any:
        return str(self._folder)

    def get_source_stamp(self) -> Any:
        return self._folder.name

    def get_disambiguator(self) -> Any:
        return str(self._lineno)


class _CacheFiles(CompileResultCacheImpl):
    """Names the files of a function after its module as well, since all modules share one folder."""

    def __init__(self, py_func: Callable) -> None:
        self._lineno = py_func.__code__.co_firstlineno
        self._locator = _Locator(py_func)
        name = f"{py_func.__module__}.{py_func.__qualname__}"
        self._filename_base = self.get_filename_base(name, getattr(sys, "abiflags", ""))


class _Cache(FunctionCache):
    """Numba's cache of a function in our folder. If a file cannot be read or written, the function is compiled."""

    _impl_class = _CacheFiles

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        with contextlib.suppress(OSError):
            return super().load_overload(sig, target_context)

    def save_overload(self, sig: Any, data: Any) -> None:
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)
