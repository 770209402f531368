"""Vectors in compiled code: a numba type with the operators that event kernels need, and loads and stores at addresses.

A loop over arrays leaves it to the compiler where sums are kept. A kernel whose narrow sums must stay in registers says
so with vectors. They may be wider than a register; the compiler divides them as the machine needs.
"""

# Type checkers do not know that numba passes an intrinsic its first argument.
# pyright: reportCallIssue=false

from __future__ import annotations

import functools
import operator
import platform
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core.extending import register_model
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models

_INDEX = ir.IntType(32)
# Bytes of a cache line.
LINE = 64


class Vector(types.Type):
    """`lanes` numbers of one type of numba."""

    def __init__(self, element: types.Type, lanes: int) -> None:
        self.element, self.lanes = element, lanes
        super().__init__(f"Vector({element}, {lanes})")


@register_model(Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager, kind: Vector) -> None:
        super().__init__(manager, kind, ir.VectorType(manager.lookup(kind.element).get_value_type(), kind.lanes))


def _operator(function, emit: str, emit_float: str = "") -> None:
    """Let an operator work on two vectors of one type, lane by lane; sums wrap."""

    @infer_global(function)  # pyright: ignore[reportOptionalCall]
    class _Typing(AbstractTemplate):
        def generic(self, args, kws):
            if len(args) == 2 and isinstance(args[0], Vector) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    @lower_builtin(function, Vector, Vector)
    def _lower(context, builder, sig, args):
        return getattr(builder, emit_float if isinstance(sig.return_type.element, types.Float) else emit)(*args)


_operator(operator.add, "add", "fadd")
_operator(operator.mul, "mul", "fmul")
_operator(operator.sub, "sub")
_operator(operator.and_, "and_")
_operator(operator.xor, "xor")
_operator(operator.lshift, "shl")
_operator(operator.rshift, "lshr")  # zeros come in from above


def _zeros(kind: Vector) -> ir.Constant:
    return ir.Constant(ir.VectorType(_INDEX, kind.lanes), [0] * kind.lanes)


def _vectors(element: types.Type, lanes: int):
    """Return an intrinsic for a vector of zeros."""
    kind = Vector(element, lanes)

    @intrinsic
    def zeros(typing_context):  # pragma: no cover - compiled
        def generate(context, builder, signature, arguments):
            return ir.Constant(context.get_value_type(kind), [0] * lanes)

        return kind(), generate

    return zeros


no_bytes_16, no_bytes_32, no_bytes_64 = (_vectors(types.uint8, lanes) for lanes in (16, 32, 64))
no_small_integers = _vectors(types.int8, 32)
no_words = _vectors(types.int16, 32)
no_small_16 = _vectors(types.int8, 16)
no_numbers, no_floats = _vectors(types.int32, 32), _vectors(types.float32, 32)
no_floats_16, no_floats_64, no_floats_128 = (_vectors(types.float32, lanes) for lanes in (16, 64, 128))
# Numbers of a row in `load_rows`.
_ROW = 16


@intrinsic
def load(typing_context, address, like):  # pragma: no cover - compiled
    """Return the vector at an address, of the type of `like`."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], context.get_value_type(like).as_pointer())
        found = builder.load(pointer)
        found.align = 1
        return found

    return like(types.int64, like), generate


def _element(kind: types.Type):
    """Return an intrinsic for the number at an address."""

    @intrinsic
    def get(typing_context, address):  # pragma: no cover - compiled
        def generate(context, builder, signature, arguments):
            return builder.load(builder.inttoptr(arguments[0], context.get_value_type(kind).as_pointer()))

        return kind(types.int64), generate

    return get


def _setter(kind: Any):
    """Return an intrinsic that writes the low bits of an int64 to an address."""

    @intrinsic
    def put(typing_context, address, value):  # pragma: no cover - compiled
        def generate(context, builder, signature, arguments):
            pointer = builder.inttoptr(arguments[0], ir.IntType(kind.bitwidth).as_pointer())
            builder.store(builder.trunc(arguments[1], ir.IntType(kind.bitwidth)), pointer)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    return put


int32_at, uint8_at, float32_at = _element(types.int32), _element(types.uint8), _element(types.float32)
int8_at = _element(types.int8)
put_int32, put_uint8 = _setter(types.int32), _setter(types.uint8)


@intrinsic
def store(typing_context, address, vector):  # pragma: no cover - compiled
    """Write a vector to an address."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], context.get_value_type(vector).as_pointer())
        builder.store(arguments[1], pointer).align = 1
        return context.get_dummy_value()

    return types.void(types.int64, vector), generate


@intrinsic
def same(typing_context, number, like):  # pragma: no cover - compiled
    """Return a vector of the type of `like` with the low bits of a number in every lane."""

    def generate(context, builder, signature, arguments):
        kind = context.get_value_type(like)
        scalar = arguments[0]
        if isinstance(scalar.type, ir.IntType) and scalar.type.width > kind.element.width:
            scalar = builder.trunc(scalar, kind.element)
        one = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, _INDEX(0))
        return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), _zeros(like))

    return like(types.unliteral(number), like), generate


@intrinsic
def zeros(typing_context, like, number):  # pragma: no cover - compiled
    """Return a vector of zeros with as many lanes as `like`, of the type of `number`."""
    kind = Vector(types.unliteral(number), like.lanes)

    def generate(context, builder, signature, arguments):
        return ir.Constant(context.get_value_type(kind), [0] * kind.lanes)

    return kind(like, number), generate


@intrinsic
def num_lanes(typing_context, vector):  # pragma: no cover - compiled
    """Return how many lanes a vector has."""

    def generate(context, builder, signature, arguments):
        return ir.IntType(64)(vector.lanes)

    return types.int64(vector), generate


def _bits_as(element: Any):
    """Return an intrinsic for the bits of a vector as numbers of another type; the lowest of them come first."""

    @intrinsic
    def bits_as(typing_context, vector):  # pragma: no cover - compiled
        found = Vector(element, vector.lanes * vector.element.bitwidth // element.bitwidth)

        def generate(context, builder, signature, arguments):
            return builder.bitcast(arguments[0], context.get_value_type(found))

        return found(vector), generate

    return bits_as


as_bytes, as_words, as_longs = _bits_as(types.uint8), _bits_as(types.int16), _bits_as(types.int64)


@intrinsic
def as_numbers(typing_context, vector):  # pragma: no cover - compiled
    """Return signed integers as 32-bit numbers; 32-bit numbers stay what they are."""
    numbers = Vector(types.int32, vector.lanes)

    def generate(context, builder, signature, arguments):
        return builder.sext(arguments[0], context.get_value_type(numbers)) if vector != numbers else arguments[0]

    return numbers(vector), generate


@intrinsic
def to_floats(typing_context, numbers):  # pragma: no cover - compiled
    """Return 32-bit numbers as float32, rounded to nearest."""
    floats = Vector(types.float32, numbers.lanes)

    def generate(context, builder, signature, arguments):
        return builder.sitofp(arguments[0], context.get_value_type(floats))

    return floats(numbers), generate


@intrinsic
def halves_to_floats(typing_context, words):  # pragma: no cover - compiled
    """Return the float16 numbers whose bits are in 16-bit words as float32; see `has_halves`."""
    floats = Vector(types.float32, words.lanes)

    def generate(context, builder, signature, arguments):
        halves = builder.bitcast(arguments[0], ir.VectorType(ir.HalfType(), words.lanes))
        return builder.fpext(halves, context.get_value_type(floats))

    return floats(words), generate


@functools.cache
def has_halves() -> bool:
    """Return whether the machine turns float16 into float32; compiled code would else call a missing function."""
    return platform.machine().lower() in ("aarch64", "arm64") or bool(llvm.get_host_cpu_features().get("f16c"))


@intrinsic
def fitted(typing_context, words, like):  # pragma: no cover - compiled
    """Return words, which are not negative, in the width of `like`: 16 or 32 bits."""

    def generate(context, builder, signature, arguments):
        return builder.zext(arguments[0], context.get_value_type(like)) if words != like else arguments[0]

    return like(words, like), generate


def _alternate(half: int):
    """Return an intrinsic for half 0 or 1 of the lanes of two vectors in turns: first[0], second[0], first[1], ..."""

    @intrinsic
    def alternate(typing_context, first, second):  # pragma: no cover - compiled
        def generate(context, builder, signature, arguments):
            lanes = first.lanes
            numbers = [ir.Constant(_INDEX, lane + other * lanes) for lane in range(lanes) for other in (0, 1)]
            mask = ir.Constant(ir.VectorType(_INDEX, lanes), numbers[lanes * half : lanes * (half + 1)])
            return builder.shuffle_vector(*arguments, mask)

        return first(first, second), generate

    return alternate


alternate_first, alternate_second = _alternate(0), _alternate(1)


@intrinsic
def add_product(typing_context, total, first, second):  # pragma: no cover - compiled
    """Return total + first * second; the machine may round once or twice."""

    def generate(context, builder, signature, arguments):
        product = builder.fmul(*arguments[1:], flags=("contract",))
        return builder.fadd(arguments[0], product, flags=("contract",))

    return total(total, first, second), generate


@intrinsic
def load_rows(typing_context, address, stride, like):  # pragma: no cover - compiled
    """Return 16 numbers of each of some rows, `stride` bytes apart, row after row, as many as `like` holds."""
    row = Vector(like.element, _ROW)

    def generate(context, builder, signature, arguments):
        first, step, _ = arguments
        kind, parts = context.get_value_type(row), []
        for number in range(like.lanes // _ROW):
            place = builder.add(first, builder.mul(step, ir.IntType(64)(number)))
            parts.append(builder.load(builder.inttoptr(place, kind.as_pointer())))
            parts[-1].align = 1
        while len(parts) > 1:
            both = ir.VectorType(_INDEX, 2 * parts[0].type.count)
            mask = ir.Constant(both, list(range(both.count)))
            pairs = zip(parts[::2], parts[1::2], strict=True)
            parts = [builder.shuffle_vector(one, other, mask) for one, other in pairs]
        return parts[0]

    return like(types.int64, types.int64, like), generate


@intrinsic
def repeat(typing_context, row, like):  # pragma: no cover - compiled
    """Return the numbers of a row again and again, as many as `like` holds."""

    def generate(context, builder, signature, arguments):
        mask = ir.Constant(ir.VectorType(_INDEX, like.lanes), [lane % row.lanes for lane in range(like.lanes)])
        return builder.shuffle_vector(arguments[0], ir.Constant(arguments[0].type, ir.Undefined), mask)

    return like(row, like), generate


@intrinsic
def fold(typing_context, rows):  # pragma: no cover - compiled
    """Return the sum of each 16 neighbours, float32, as a vector: neighbours are added first, then their sums."""
    sums = Vector(rows.element, rows.lanes // _ROW)

    def generate(context, builder, signature, arguments):
        found = arguments[0]
        while found.type.count > sums.lanes:
            half = ir.VectorType(_INDEX, found.type.count // 2)
            even, odd = (ir.Constant(half, list(range(start, found.type.count, 2))) for start in (0, 1))
            nothing = ir.Constant(found.type, ir.Undefined)
            found = builder.fadd(*(builder.shuffle_vector(found, nothing, mask) for mask in (even, odd)))
        return found

    return sums(rows), generate


@intrinsic
def sum_of(typing_context, numbers):  # pragma: no cover - compiled
    """Return the sum of all float32 lanes: the two halves are added, then the halves of their sums, and so on."""

    def generate(context, builder, signature, arguments):
        found = arguments[0]
        while found.type.count > 1:
            half = found.type.count // 2
            kind = ir.VectorType(_INDEX, half)
            low, high = (ir.Constant(kind, list(range(start, start + half))) for start in (0, half))
            nothing = ir.Constant(found.type, ir.Undefined)
            found = builder.fadd(*(builder.shuffle_vector(found, nothing, mask) for mask in (low, high)))
        return builder.extract_element(found, _INDEX(0))

    return numbers.element(numbers), generate


@intrinsic
def lanes_with(typing_context, address, bits):  # pragma: no cover - compiled
    """Return, as 32 bits of an int64, which of the 32 int32 numbers at an address have one of some bits."""

    def generate(context, builder, signature, arguments):
        kind = ir.VectorType(_INDEX, 32)
        found = builder.load(builder.inttoptr(arguments[0], kind.as_pointer()))
        found.align = 4
        one = builder.insert_element(ir.Constant(kind, ir.Undefined), builder.trunc(arguments[1], _INDEX), _INDEX(0))
        wanted = builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(kind, [0] * 32))
        has = builder.icmp_signed("!=", builder.and_(found, wanted), ir.Constant(kind, [0] * 32))
        return builder.zext(builder.bitcast(has, _INDEX), ir.IntType(64))

    return types.int64(types.int64, types.int64), generate


@intrinsic
def lowest_bit(typing_context, number):  # pragma: no cover - compiled
    """Return the place of the lowest 1 of an int64 that is not 0."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.IntType(64), [ir.IntType(64), ir.IntType(1)])
        function = builder.module.declare_intrinsic("llvm.cttz.i64", (), kind)
        return builder.call(function, [arguments[0], ir.IntType(1)(1)])

    return types.int64(types.int64), generate


@intrinsic
def prefetch(typing_context, address):  # pragma: no cover - compiled
    """Fetch the cache line of an address into the second level, without waiting for it; no fault if there is none."""

    def generate(context, builder, signature, arguments):
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, _INDEX, _INDEX, _INDEX])
        function = builder.module.declare_intrinsic("llvm.prefetch.p0", (), kind)
        to_read, second_level, data = (_INDEX(value) for value in (0, 2, 1))
        builder.call(function, [builder.inttoptr(arguments[0], byte), to_read, second_level, data])
        return context.get_dummy_value()

    return types.void(types.int64), generate
