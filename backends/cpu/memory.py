"""Addresses and atomic counters for compiled code that several threads run at once."""

# Type checkers do not know that numba passes an intrinsic its first argument.
# pyright: reportCallIssue=false

from __future__ import annotations

import ctypes
import functools
from ctypes import c_double, c_int64

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ...compiled import compiled

_WORD = ir.IntType(64)
# Looks at a counter before other threads are let run, about ten microseconds.
_PATIENCE = 1000


def record_of(fields: dict[str, type]) -> tuple[np.dtype, type[ctypes.Structure]]:
    """Return a record of int64 and float64 numbers, as compiled code and as Python see it.

    Args:
        fields: `c_int64` or `c_double`, by name.
    """
    assert set(fields.values()) <= {c_int64, c_double}
    dtype = np.dtype([(name, np.float64 if field is c_double else np.int64) for name, field in fields.items()])
    return dtype, type("_Record", (ctypes.Structure,), {"_fields_": list(fields.items())})


@intrinsic
def at(typing_context, address, element):  # pragma: no cover - compiled
    """Return an integer as a pointer to elements of that type."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(element.dtype)(address, element), generate


@intrinsic
def take(typing_context, address):  # pragma: no cover - compiled
    """Add 1 to the int64 at an address, atomically, and return its value before."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], _WORD.as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(_WORD, 1), "seq_cst")

    return types.int64(types.int64), generate


@intrinsic
def look(typing_context, address):  # pragma: no cover - compiled
    """Return the int64 at an address, with all that was written before another thread last took from it."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], _WORD.as_pointer())
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(types.int64), generate


@intrinsic
def call(typing_context, address):  # pragma: no cover - compiled
    """Call the `int function(void)` at an address."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.IntType(32), ())
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), ())
        return context.get_dummy_value()

    return types.void(types.int64), generate


@functools.cache
def give_way() -> int:
    """Return the address of the C function that lets other threads run, or 0 where there is none."""
    try:
        return ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value or 0
    except (AttributeError, OSError, TypeError):
        return 0


@compiled
def wait_for(address, number, way):  # pragma: no cover - compiled
    """Wait until the int64 at an address is at least a number; `way` is what `give_way` returned."""
    looks = 0
    while look(address) < number:
        looks += 1
        if looks % _PATIENCE == 0 and way != 0:
            call(way)
