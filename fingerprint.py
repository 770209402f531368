"""What tells two objects of users' classes apart, the same in every process: their fields and the code of the class."""

from __future__ import annotations

import copyreg
import hashlib
import os
import types
from collections.abc import Mapping, Set
from typing import Any

import numpy as np
import torch

_PLAIN = bool | int | float | complex | str | bytes | None
# Classes of these packages count by their name; the versions of the packages are part of a job.
_KNOWN = (__name__.partition(".")[0], "builtins", "torch", "numpy")
_NO_STATE = ("__dict__", "__weakref__")


def fingerprint(value: Any) -> str:
    """Return a checksum of all that an object keeps and of the code of its class, 12 hexadecimal digits.

    Two objects have the same one only if they do the same: it does not depend on addresses or on the process, and a
    class that was edited in the meantime is another one.

    >>> fingerprint([1, 2]) == fingerprint([1, 2]), fingerprint([1, 2]) == fingerprint([1, 2.0])
    (True, False)
    """
    return hashlib.sha256(_text(value, ()).encode()).hexdigest()[:12]


def state_of(value: Any) -> dict[str, Any]:
    """Return what an object keeps, in its slots and its dictionary."""
    listed = [getattr(cls, "__slots__", ()) for cls in type(value).__mro__]
    names = [name for slots in listed for name in ((slots,) if isinstance(slots, str) else slots)]
    kept = {name: getattr(value, name) for name in names if name not in _NO_STATE and hasattr(value, name)}
    return {**kept, **getattr(value, "__dict__", {})}


def _text(value: Any, above: tuple[int, ...]) -> str:
    """Return all that a value consists of; `above` are the ids of what holds it, so that a circle ends."""
    if isinstance(value, _PLAIN):
        return f"{type(value).__name__} {value!r}"
    if id(value) in above:
        return f"holder {above.index(id(value))}"
    above = (*above, id(value))
    name, parts = _parts(value)
    texts = [_text(part, above) for part in parts]
    return f"{name} [{', '.join(sorted(texts) if isinstance(value, Set) else texts)}]"


def _parts(value: Any) -> tuple[str, list[Any]]:  # noqa: PLR0911 - a return for each kind
    """Return what kind of value it is, and the values that it consists of."""
    match value:
        case list() | tuple() | Set():
            return type(value).__qualname__, [*value]
        case Mapping():
            return type(value).__qualname__, [*value.items()]
        case torch.Tensor():
            whole = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            return f"tensor {value.dtype} {tuple(value.shape)}", [whole.tobytes()]
        case np.ndarray() | np.generic():
            return f"array {value.dtype} {value.shape}", [value.tobytes()]
        case os.PathLike():  # it keeps more than its name, as others ask for it
            return type(value).__name__, [os.fspath(value)]
        case types.ModuleType():
            return f"module {value.__name__}", []
        case types.CodeType():
            names = (value.co_names, value.co_varnames, value.co_freevars)
            return "code", [value.co_code, value.co_consts, names]
        case types.FunctionType():
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            return f"function {value.__qualname__}", [value.__code__, value.__defaults__, value.__kwdefaults__, cells]
        case types.MethodType():  # its dictionary is that of the function
            return "method", [value.__func__, value.__self__]
        case classmethod() | staticmethod():
            return type(value).__name__, [value.__func__]
        case property():
            return "property", [value.fget]
        case type():
            return f"class {value.__module__}.{value.__qualname__}", _code_of(value)
    return "object", [type(value), state_of(value) or _as_pickled(value)]


def _as_pickled(value: Any) -> Any:
    """Return what pickle would write for an object whose content Python cannot list: a range, a dtype, a date."""
    reduce = copyreg.dispatch_table.get(type(value))
    try:
        return reduce(value) if reduce else value.__reduce_ex__(2)
    except TypeError:
        return None


def _code_of(cls: type) -> list[Any]:
    """Return the code and the constants of a class, and its bases."""
    if cls.__module__.partition(".")[0] in _KNOWN:
        return []
    kinds = (types.FunctionType, classmethod, staticmethod, property, int, float, str, tuple)
    hidden = ("__module__", "__qualname__", "__doc__", "__firstlineno__", "__static_attributes__")
    own = [(key, v) for key, v in vars(cls).items() if isinstance(v, kinds) and key not in hidden]
    return [own, list(cls.__bases__)]
