"""What resizing must say in vectors, for numba cannot: sums over pixels, whose three bytes alone fill no vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    spread,
    store,
)
from lmdali.pipeline.word_access import typed_intrinsic

try:
    from llvmlite import ir
    from numba.core import types
except ImportError as error:
    raise MissingExtraError("numba", "train", "the compiled filters") from error

_PIXEL, _COLUMNS, _TAPS = 3, 4, 4
_WEIGHTS = 16  # int16 that a group of taps has in the table of `blend_columns`


@typed_intrinsic
def weighted_colours(
    typing_context: Any, out: Any, to: Any, pixels: Any, begin: Any, weights: Any, first: Any, count: Any
) -> Any:
    """`out[to + c] = sum of pixels[begin + 3 * i + c] * weights[first + i]` for c in 0..3 and i below `count`.

    `out` and `weights` are float32, `pixels` uint8 of RGB; sums are made one after the other, nothing is fused. The
    fourth number is no colour of this pixel: it costs nothing, and whoever writes the next pixel there overwrites it.
    A `count` that is a number in the source becomes straight code. The caller answers for the ranges.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, source, shares = addresses(context, builder, signature, arguments, (0, 2, 4))
        floats = ir.VectorType(ir.FloatType(), 4)
        with _Loop(builder, arguments[6]) as loop:
            total = loop.carry(ir.Constant(floats, [0.0] * 4))
            address = builder.gep(source, [builder.add(arguments[3], builder.mul(loop.number, LONG(_PIXEL)))])
            colours = builder.uitofp(load(builder, address, BYTE, 4), floats)
            weight = builder.load(builder.gep(shares, [builder.add(arguments[5], loop.number)]))
            total.becomes(builder.fadd(total.value, builder.fmul(colours, spread(builder, weight, 4))))
        store(builder, total.result, builder.gep(target, [arguments[1]]), align=4)
        return context.get_dummy_value()

    return types.void(out, types.int64, pixels, types.int64, weights, types.int64, types.int64), generate


@typed_intrinsic
def blend_columns(
    typing_context: Any, out: Any, to: Any, pixels: Any, begin: Any, offsets: Any, first: Any, table: Any, groups: Any,
    shift: Any,
) -> Any:  # fmt: skip
    """Four pixels of a row that is filtered across, in fixed point: pixels `first` to `first + 3` of the result.

    Each colour of pixel x is the sum of `4 * groups` taps, the t-th `pixels[begin + offsets[x] + 3 * t + colour]` times
    its weight, in 32 bits; rounded, `shift` bits are cut off, and it is clipped to 0..255. `out` and `pixels` are
    uint8, `offsets` int64, bytes; `table` int16, where x has `16 * groups` numbers from `16 * groups * x` on: for four
    taps with the weights a, b, c, d these are abababxx, then cdcdcdxx; what x is does not matter. 16 bytes are
    written, the four last ones without sense, and 4 bytes read beyond the last tap. The caller answers for the ranges.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, source, starts, weights = addresses(context, builder, signature, arguments, (0, 2, 4, 6))
        groups, shift = arguments[7:]
        columns = [builder.add(arguments[5], LONG(column)) for column in range(_COLUMNS)]
        begins = [builder.add(arguments[3], builder.load(builder.gep(starts, [column]))) for column in columns]
        tables = [builder.mul(builder.mul(column, groups), LONG(_WEIGHTS)) for column in columns]
        with _Loop(builder, groups) as loop:
            totals = [loop.carry(constant(INT, [0] * 8)) for _ in columns]
            ahead = builder.mul(loop.number, LONG(_TAPS * _PIXEL))
            further = builder.mul(loop.number, LONG(_WEIGHTS))
            for total, begin, at in zip(totals, begins, tables, strict=True):
                taps = load(builder, builder.gep(source, [builder.add(begin, ahead)]), BYTE, 16)
                shorts = _as_shorts(builder, taps, _COLOURS_IN_PAIRS)
                pairs = load(builder, builder.gep(weights, [builder.add(at, further)]), SHORT, 16, align=2)
                total.becomes(builder.add(total.value, pair_sums(builder, shorts, pairs)))
        one, two, three, four = (total.result for total in totals)
        # Two pixels a vector: the sums of the first two taps of each four are in one half, those of the others in the
        # other.
        half = _half(builder, shift, 8)
        both = []
        for this, that in ((one, two), (three, four)):
            low = builder.shuffle_vector(this, that, constant(INT, [0, 1, 2, 3, 8, 9, 10, 11]))
            high = builder.shuffle_vector(this, that, constant(INT, [4, 5, 6, 7, 12, 13, 14, 15]))
            both.append(builder.ashr(builder.add(builder.add(low, high), half), spread(builder, shift, 8)))
        clipped = _clip(builder, builder.shuffle_vector(*both, constant(INT, range(16))))
        colours = [4 * pixel + colour for pixel in range(_COLUMNS) for colour in range(_PIXEL)]
        store(
            builder,
            builder.shuffle_vector(clipped, clipped, constant(INT, [*colours, *colours[-4:]])),
            builder.gep(target, [arguments[1]]),
        )
        return context.get_dummy_value()

    long, int32 = types.int64, types.int32
    return types.void(out, long, pixels, long, offsets, long, table, long, int32), generate


@typed_intrinsic
def blend_rows(
    typing_context: Any, out: Any, to: Any, rows: Any, begin: Any, pitch: Any, weights: Any, first: Any, pairs: Any,
    shift: Any,
) -> Any:  # fmt: skip
    """16 bytes of a row that is filtered down, in fixed point.

    Each is the sum of `2 * pairs` taps, the t-th `rows[begin + t * pitch]` times `weights[first + t]`, rounded, cut and
    clipped as in `blend_columns`. `out` and `rows` are uint8, `weights` int16. The caller answers for the ranges.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, source, shares = addresses(context, builder, signature, arguments, (0, 2, 5))
        begin, pitch, first, pairs, shift = (arguments[at] for at in (3, 4, 6, 7, 8))
        half = _half(builder, shift, 8)
        with _Loop(builder, pairs) as loop:
            low, high = loop.carry(half), loop.carry(half)
            tap = builder.mul(loop.number, LONG(2))
            upper = builder.gep(source, [builder.add(begin, builder.mul(tap, pitch))])
            shorts = [
                builder.zext(load(builder, row, BYTE, 16), ir.VectorType(SHORT, 16))
                for row in (upper, builder.gep(upper, [pitch]))
            ]
            weight = builder.bitcast(builder.gep(shares, [builder.add(first, tap)]), INT.as_pointer())
            pair = spread(builder, builder.load(weight, align=2), 8)
            weight_pairs = builder.bitcast(pair, ir.VectorType(SHORT, 16))
            for total, mixed in zip((low, high), interleaved(builder, *shorts), strict=True):
                total.becomes(builder.add(total.value, pair_sums(builder, mixed, weight_pairs)))
        bits = spread(builder, shift, 8)
        sums = [builder.ashr(total.result, bits) for total in (low, high)]
        store(builder, _clip(builder, builder.shuffle_vector(*sums, _IN_ORDER)), builder.gep(target, [arguments[1]]))
        return context.get_dummy_value()

    long, int32 = types.int64, types.int32
    return types.void(out, long, rows, long, long, weights, long, long, int32), generate


class _Carried:
    """A value that one pass of a loop hands to the next."""

    def __init__(self, phi: Any, first: Any, before: Any) -> None:
        self.value = self.result = phi
        phi.add_incoming(first, before)

    def becomes(self, value: Any) -> None:
        """What the next pass finds, and who comes after the last."""
        self.result = value


class _Loop:
    """`for number in range(count)`, at least once; a count that is a constant lets LLVM make straight code of it."""

    def __init__(self, builder: Any, count: Any) -> None:
        self._builder, self._count = builder, count
        self._before, self._body = builder.block, builder.append_basic_block("pass")
        self._carried: list[_Carried] = []
        builder.branch(self._body)
        builder.position_at_end(self._body)
        self.number = builder.phi(LONG)
        self.number.add_incoming(LONG(0), self._before)

    def carry(self, first: Any) -> _Carried:
        """A value that begins as `first`; before anything else of the body."""
        self._carried.append(_Carried(self._builder.phi(first.type), first, self._before))
        return self._carried[-1]

    def __enter__(self) -> _Loop:
        return self

    def __exit__(self, *exception: object) -> None:
        builder = self._builder
        following = builder.add(self.number, LONG(1))
        self.number.add_incoming(following, self._body)
        for carried in self._carried:
            carried.value.add_incoming(carried.result, self._body)
        after = builder.append_basic_block("after")
        builder.cbranch(builder.icmp_signed("<", following, self._count), self._body, after)
        builder.position_at_end(after)


_ZERO = 16  # the first number of the second operand of a shuffle of 16
# Four pixels of four bytes' room each to int16: reds of the first two, greens, blues, nothing; then of the other two.
_COLOURS_IN_PAIRS = [
    number
    for pixel in (0, 2)
    for colour in range(4)
    for other in (pixel, pixel + 1)
    for number in ((_PIXEL * other + colour if colour < _PIXEL else _ZERO), _ZERO)
]
_IN_ORDER = constant(INT, [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15])


def _half(builder: Any, shift: Any, count: int) -> Any:
    """What rounds before `shift` bits are cut off."""
    return spread(builder, builder.shl(INT(1), builder.sub(shift, INT(1))), count)


def _as_shorts(builder: Any, data: Any, order: Sequence[int]) -> Any:
    """16 int16 of 16 bytes by a shuffle that has zeros, too."""
    mixed = builder.shuffle_vector(data, constant(BYTE, [0] * 16), constant(INT, order))
    return builder.bitcast(mixed, ir.VectorType(SHORT, 16))


def _clip(builder: Any, sums: Any) -> Any:
    """uint8 of int32, clipped to 0..255."""
    count = sums.type.count
    black, white = constant(INT, [0] * count), constant(INT, [255] * count)
    sums = builder.select(builder.icmp_signed("<", sums, black), black, sums)
    sums = builder.select(builder.icmp_signed(">", sums, white), white, sums)
    return builder.trunc(sums, ir.VectorType(BYTE, count))
