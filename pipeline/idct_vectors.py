"""The inverse DCT of `idct_kernel` in vectors of AVX2: a third of the time of what the compiler makes of its loops.

A pair of products and their sum is one instruction here, as in libjpeg-turbo's own code, so a rotation is four, and
packing 32 bits to 16 saturates by itself. Where that file computes with numbers, this computes with the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from lmdali.pipeline.errors import MissingExtraError
from lmdali.pipeline.vectors import (
    BYTE,
    INT,
    LONG,
    SHORT,
    addresses,
    constant,
    interleaved,
    load,
    pair_sums,
    saturated,
    spread,
    store,
)
from lmdali.pipeline.word_access import typed_intrinsic

try:
    from llvmlite import ir
    from numba.core import types
except ImportError as error:
    raise MissingExtraError("numba", "train", "the CPU loader's compiled JPEG decoder") from error

# Sums and differences of round(8192 * c) of the rotations of Loeffler, Ligtenberg and Moschytz (ICASSP 1989): what two
# numbers, in this order, are multiplied by, once for either result.
ROTATION_26: Final = ((4433, -10704), (10703, 4433))
ROTATION_SUMS: Final = ((-6436, 9633), (9633, 6437))
ROTATION_71: Final = ((-4927, -7373), (-7373, 4926))
ROTATION_53: Final = ((-4176, -20995), (-20995, 4177))

LANES: Final = 16
"""Blocks of a group; a group's coefficients are (64, LANES) int16."""

GROUP: Final = 64 * LANES
"""Numbers of a group."""

FIRST_CUT, SECOND_CUT = 11, 18
"""Bits cut off, rounded, after the first pass and after the second."""

FLAT_LIMIT: Final = 8192
"""Numbers of the first row from here on (or below its negative) are none that an image has."""

_ROW = 8 * LANES
_BEYOND_FLAT = -2 * FLAT_LIMIT  # bits of a number plus the limit that are all 0 where it is within

_Halves = list[Any]
"""32 bits of 16 numbers: the two vectors of 8 that `interleaved` leads to."""


@typed_intrinsic
def transform_column(
    typing_context: Any, coefficients: Any, begin: Any, quant: Any, column: Any, work: Any, to: Any
) -> Any:
    """The first pass over column `column` of 16 blocks, dequantised: eight rows of 16 int16 in, eight out.

    Row r is `coefficients[begin + 128 * r :][:16]`, its quantisation step `quant[8 * r + column]`, and what it becomes
    `work[to + 128 * r :][:16]`; all are int16. The result is an int32, not zero where a number of the first row leaves
    14 bits. The caller answers for the ranges.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, steps, target = addresses(context, builder, signature, arguments, (0, 2, 4))
        begin, column, to = arguments[1], arguments[3], arguments[5]
        rows = []
        for row in range(8):
            row_at = builder.gep(source, [builder.add(begin, LONG(_ROW * row))])
            step = builder.load(builder.gep(steps, [builder.add(column, LONG(8 * row))]))
            rows.append(builder.mul(load(builder, row_at, SHORT, LANES, align=2), spread(builder, step, LANES)))
        moved = builder.add(rows[0], constant(SHORT, [FLAT_LIMIT] * LANES))
        beyond = builder.and_(moved, constant(SHORT, [_BEYOND_FLAT] * LANES))
        for row, made in enumerate(_eight(builder, rows, FIRST_CUT)):
            store(builder, made, builder.gep(target, [builder.add(to, LONG(_ROW * row))]), align=2)
        all_bits = ir.IntType(16 * LANES)
        return builder.zext(builder.icmp_unsigned("!=", builder.bitcast(beyond, all_bits), all_bits(0)), INT)

    long = types.int64
    return types.int32(coefficients, long, quant, long, work, long), generate


@typed_intrinsic
def transform_row(typing_context: Any, work: Any, begin: Any, words: Any, to: Any) -> Any:
    """The second pass over one row of 16 blocks, to pixels.

    Column c is `work[begin + 16 * c :][:16]` int16; block b becomes eight pixels, the word `words[to + b]` of uint64.
    The caller answers for the ranges.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target = addresses(context, builder, signature, arguments, (0, 2))
        begin, to = arguments[1], arguments[3]
        columns = []
        for column in range(8):
            column_at = builder.gep(source, [builder.add(begin, LONG(LANES * column))])
            columns.append(load(builder, column_at, SHORT, LANES, align=2))
        x = _eight(builder, columns, SECOND_CUT)
        # The pixels of a block come together: pairs, then fours, then eights. Each step works on halves of 128 bits.
        pairs_01, pairs_23 = interleaved(builder, saturated(builder, x[0], x[2]), saturated(builder, x[1], x[3]), 8)
        pairs_45, pairs_67 = interleaved(builder, saturated(builder, x[4], x[6]), saturated(builder, x[5], x[7]), 8)
        left, right = interleaved(builder, pairs_01, pairs_23, 16), interleaved(builder, pairs_45, pairs_67, 16)
        centre = constant(BYTE, [-128] * 32)
        for quarter in range(4):
            two = interleaved(builder, left[quarter // 2], right[quarter // 2], 32)[quarter % 2]
            blocks = builder.bitcast(builder.xor(two, centre), ir.VectorType(LONG, 4))
            for half in range(2):
                pixels = builder.shuffle_vector(blocks, blocks, constant(INT, [2 * half, 2 * half + 1]))
                store(builder, pixels, builder.gep(target, [builder.add(to, LONG(2 * quarter + 8 * half))]), align=8)
        return context.get_dummy_value()

    long = types.int64
    return types.void(work, long, words, long), generate


def _eight(builder: Any, i: list[Any], shift: int) -> list[Any]:
    """`idct_kernel._eight` of 16 int16 each, rounded, `shift` bits cut off, saturated to int16."""

    def each(operation: Callable[[Any, Any], Any], one: _Halves, other: _Halves) -> _Halves:
        return [operation(*halves) for halves in zip(one, other, strict=True)]

    def rotated(one: Any, other: Any, rotation: tuple[tuple[int, int], tuple[int, int]]) -> list[_Halves]:
        both = interleaved(builder, one, other)
        return [[pair_sums(builder, half, constant(SHORT, factors * 8)) for half in both] for factors in rotation]

    def scaled(number: Any) -> _Halves:
        # Above 16 zeros a number is 65536 times itself: three bits too many. Rounding is added once, here.
        numbers = interleaved(builder, constant(SHORT, [0] * LANES), number)
        wide = [builder.bitcast(half, ir.VectorType(INT, 8)) for half in numbers]
        half_unit = constant(INT, [1 << shift - 1] * 8)
        return [builder.add(builder.ashr(half, constant(INT, [3] * 8)), half_unit) for half in wide]

    add, sub = builder.add, builder.sub
    t2, t3 = rotated(i[2], i[6], ROTATION_26)
    t0, t1 = scaled(add(i[0], i[4])), scaled(sub(i[0], i[4]))
    even = each(add, t0, t3), each(add, t1, t2), each(sub, t1, t2), each(sub, t0, t3)
    w3, w4 = rotated(add(i[7], i[3]), add(i[5], i[1]), ROTATION_SUMS)
    o0, o3 = rotated(i[7], i[1], ROTATION_71)
    o1, o2 = rotated(i[5], i[3], ROTATION_53)
    odd = each(add, o3, w4), each(add, o2, w3), each(add, o1, w4), each(add, o0, w3)
    totals = [each(add, *both) for both in zip(even, odd, strict=True)]
    totals += [each(sub, *both) for both in zip(even[::-1], odd[::-1], strict=True)]
    cut = constant(INT, [shift] * 8)
    return [saturated(builder, *(builder.ashr(half, cut) for half in total)) for total in totals]
