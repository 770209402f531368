"""Building blocks for numba intrinsics that work on 32 channels at a time, as LLVM vectors."""

from __future__ import annotations

from llvmlite import ir


def vector(kind: ir.Type) -> ir.VectorType:
    """Return the type of 32 values."""
    return ir.VectorType(kind, 32)


def vector_pointer(context, builder, array_type, array, kind, first=None):
    """Return the address of 32 numbers of a contiguous array, starting at index `first`, as that of a vector."""
    start = context.make_array(array_type)(context, builder, array).data
    start = start if first is None else builder.gep(start, [first])
    return builder.bitcast(start, kind.as_pointer())


def in_all_lanes(builder, scalar):
    """Return a vector with the scalar in every lane."""
    one = builder.insert_element(ir.Constant(vector(scalar.type), ir.Undefined), scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(one, one, ir.Constant(vector(ir.IntType(32)), [0] * 32))


def cast(builder, number, kind):
    """Return an integer, or a vector of integers, with as many bits as kind has."""
    if isinstance(number.type, ir.VectorType):
        bits, wanted = number.type.element.width, vector(kind)
    else:
        bits, wanted = number.type.width, kind
    if bits == kind.width:
        return number
    return builder.trunc(number, wanted) if bits > kind.width else builder.sext(number, wanted)
