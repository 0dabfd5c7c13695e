"""The inverse DCT of sixteen blocks at a time: libjpeg's accurate integer transform (JDCT_ISLOW), compiled.

The algorithm is that of Loeffler, Ligtenberg and Moschytz (ICASSP 1989) with constants of 13 bits, in the arithmetic of
libjpeg-turbo's SIMD code: products in 32 bits, sums of two inputs in 16, results of the first pass saturated to 16.
Coefficients of one place lie side by side for all blocks, so that each line below is one vector instruction. With AVX2
`idct_vectors` says these instructions itself, which takes a third of the time.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from lmdali.pipeline.crop_kernel import compiled, inlined
from lmdali.pipeline.idct_vectors import (
    FIRST_CUT,
    FLAT_LIMIT,
    LANES,
    ROTATION_26,
    ROTATION_53,
    ROTATION_71,
    ROTATION_SUMS,
    SECOND_CUT,
    transform_column,
    transform_row,
)
from lmdali.pipeline.vectors import HAS_PAIR_SUMS

_ROW: Final = 8 * LANES
_I: Final = np.int32
_C0541, _C1847, _C1306, _ = np.array(ROTATION_26, _I).ravel()
_C1961, _C1175, _, _C0785 = np.array(ROTATION_SUMS, _I).ravel()
_C0298, _C0899, _, _C0601 = np.array(ROTATION_71, _I).ravel()
_C2053, _C2562, _, _C0509 = np.array(ROTATION_53, _I).ravel()
_ROUND_1, _ROUND_2 = _I(1 << FIRST_CUT - 1), _I(1 << SECOND_CUT - 1)
_SHIFT_1, _SHIFT_2, _SHIFT_13 = _I(FIRST_CUT), _I(SECOND_CUT), _I(13)
_LOW, _HIGH = _I(-32768), _I(32767)
_DARK, _BRIGHT, _CENTRE = _I(-128), _I(127), _I(128)
_FLAT_LIMIT, _FLAT_BITS = _I(FLAT_LIMIT), _I(14)
_U32: Final = np.uint32
_HALF_WORD: Final = np.uint64(32)


@inlined
def _eight(i0: Any, i1: Any, i2: Any, i3: Any, i4: Any, i5: Any, i6: Any, i7: Any) -> Any:
    """One transform of eight numbers, 8192 * sqrt(8) times too large; each is an int32 that fits in 16 bits."""
    t2, t3 = _I(_I(i2 * _C0541) + _I(i6 * _C1847)), _I(_I(i2 * _C1306) + _I(i6 * _C0541))
    t0, t1 = _I(_I(np.int16(i0 + i4)) << _SHIFT_13), _I(_I(np.int16(i0 - i4)) << _SHIFT_13)
    e0, e1, e2, e3 = _I(t0 + t3), _I(t1 + t2), _I(t1 - t2), _I(t0 - t3)
    z3, z4 = _I(np.int16(i7 + i3)), _I(np.int16(i5 + i1))
    w3, w4 = _I(_I(z3 * _C1961) + _I(z4 * _C1175)), _I(_I(z3 * _C1175) + _I(z4 * _C0785))
    o0 = _I(_I(_I(i7 * _C0298) + _I(i1 * _C0899)) + w3)
    o1 = _I(_I(_I(i5 * _C2053) + _I(i3 * _C2562)) + w4)
    o2 = _I(_I(_I(i5 * _C2562) + _I(i3 * _C0509)) + w3)
    o3 = _I(_I(_I(i7 * _C0899) + _I(i1 * _C0601)) + w4)
    return _I(e0 + o3), _I(e1 + o2), _I(e2 + o1), _I(e3 + o0), _I(e3 - o0), _I(e2 - o1), _I(e1 - o2), _I(e0 - o3)


@inlined
def _halfway(total: Any) -> Any:
    """Result of the first pass: two bits more than an integer, saturated."""
    return np.int16(min(max(_I(_I(total + _ROUND_1) >> _SHIFT_1), _LOW), _HIGH))


@inlined
def _pixel(total: Any) -> Any:
    """Result of the second pass: 0..255."""
    return _U32(_I(min(max(_I(_I(total + _ROUND_2) >> _SHIFT_2), _DARK), _BRIGHT) + _CENTRE))


@inlined
def _four(a: Any, b: Any, c: Any, d: Any) -> Any:
    """Four pixels side by side, the first in the lowest byte."""
    low = _U32(_pixel(a) | _U32(_pixel(b) << _U32(8)))
    return _U32(low | _U32(_U32(_pixel(c) << _U32(16)) | _U32(_pixel(d) << _U32(24))))


@compiled
def transform_group_in_vectors(
    coefficients: Any, quant: Any, work: Any, halves: Any, words: Any, at: int, stride: int
) -> Any:
    """`transform_group_in_loops` where `HAS_PAIR_SUMS`, which has no need of `halves`."""
    wild = np.int32(0)
    for c in range(8):
        wild |= transform_column(coefficients, c * LANES, quant, c, work, c * LANES)
    for r in range(8):
        transform_row(work, r * _ROW, words, at + r * stride)
    return wild


@compiled
def transform_group_in_loops(
    coefficients: Any, quant: Any, work: Any, halves: Any, words: Any, at: int, stride: int
) -> Any:
    """Dequantise and transform a group into a plane.

    Args:
        coefficients: (64 * LANES,) int16, place 8 * row + column after place.
        quant: (64,) int16, quantisation steps.
        work: (64 * LANES,) int16, overwritten.
        halves: (2 * LANES,) uint32, overwritten.
        words: flat uint64, the plane, eight pixels a word.
        at: index of the word where the first block's first row goes; the other blocks follow to the right.
        stride: words from one row of the plane to the next.

    Returns:
        int32, not zero where libjpeg-turbo's shortcut for flat columns may give another result than the transform,
        which takes coefficients that no image has.
    """
    wild = np.int32(0)
    for c in range(8):
        q0, q1, q2, q3 = _I(quant[c]), _I(quant[c + 8]), _I(quant[c + 16]), _I(quant[c + 24])
        q4, q5, q6, q7 = _I(quant[c + 32]), _I(quant[c + 40]), _I(quant[c + 48]), _I(quant[c + 56])
        v = coefficients[c * LANES : c * LANES + 7 * _ROW + LANES]
        w = work[c * LANES : c * LANES + 7 * _ROW + LANES]
        for b in range(LANES):  # on its own: a reduction would spoil the loop below
            wild |= _I(_I(_I(np.int16(v[b] * q0)) + _FLAT_LIMIT) >> _FLAT_BITS)
        for b in range(LANES):
            i0 = _I(np.int16(v[b] * q0))
            i1, i2 = _I(np.int16(v[b + _ROW] * q1)), _I(np.int16(v[b + 2 * _ROW] * q2))
            i3, i4 = _I(np.int16(v[b + 3 * _ROW] * q3)), _I(np.int16(v[b + 4 * _ROW] * q4))
            i5, i6 = _I(np.int16(v[b + 5 * _ROW] * q5)), _I(np.int16(v[b + 6 * _ROW] * q6))
            i7 = _I(np.int16(v[b + 7 * _ROW] * q7))
            o0, o1, o2, o3, o4, o5, o6, o7 = _eight(i0, i1, i2, i3, i4, i5, i6, i7)
            w[b], w[b + _ROW], w[b + 2 * _ROW], w[b + 3 * _ROW] = _halfway(o0), _halfway(o1), _halfway(o2), _halfway(o3)
            w[b + 4 * _ROW], w[b + 5 * _ROW] = _halfway(o4), _halfway(o5)
            w[b + 6 * _ROW], w[b + 7 * _ROW] = _halfway(o6), _halfway(o7)
    _second_pass(work, halves, words, at, stride)
    return wild


@compiled
def _second_pass(work: Any, halves: Any, words: Any, at: int, stride: int) -> None:
    for r in range(8):
        w = work[r * _ROW : r * _ROW + _ROW]
        for b in range(LANES):
            o0, o1, o2, o3, o4, o5, o6, o7 = _eight(
                _I(w[b]),
                _I(w[b + LANES]),
                _I(w[b + 2 * LANES]),
                _I(w[b + 3 * LANES]),
                _I(w[b + 4 * LANES]),
                _I(w[b + 5 * LANES]),
                _I(w[b + 6 * LANES]),
                _I(w[b + 7 * LANES]),
            )
            halves[b] = _four(o0, o1, o2, o3)
            halves[b + LANES] = _four(o4, o5, o6, o7)
        out = words[at + r * stride : at + r * stride + LANES]
        for b in range(LANES):
            out[b] = np.uint64(halves[b]) | np.uint64(halves[b + LANES]) << _HALF_WORD


transform_group = transform_group_in_vectors if HAS_PAIR_SUMS else transform_group_in_loops
"""What kernels call; both give the same pixels."""
