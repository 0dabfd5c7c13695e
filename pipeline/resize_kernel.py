"""Windows of images to patches, compiled: `resized_crop.resize_window` for a run of images, the same bytes."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.crop_kernel import compiled
from lmdali.pipeline.resized_crop import UNIT_BITS

_U: Final = np.uint32
_HALF: Final = np.uint32(1 << (2 * UNIT_BITS - 1))
_BITS: Final = np.uint32(2 * UNIT_BITS)
_1, _2, _3 = np.uint64(1), np.uint64(2), np.uint64(3)  # a plain 1 would turn unsigned indexes into floats


@compiled
def resize_run(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    size: int,
    corners: NDArray[np.int64],
    sides: NDArray[np.int64],
    firsts: NDArray[np.int64],
    weights: NDArray[np.uint32],
    counts: NDArray[np.int64],
    out: NDArray[np.uint8],
) -> None:
    """Fill (n, S, S, 3) uint8 `out`, a row of a patch at a time: rows are added up first, then pixels of the sum.

    Args:
        data: flat; image i is the size * size * 3 bytes from `starts[i]` on.
        starts: (n,) int64.
        size: side of the images, pixels.
        corners: (n, 2) int64, of the windows, which lie inside.
        sides: (n, 2) int64, their heights and widths.
        firsts, weights, counts: of the `ResizeTable` from `size` to S.
        out: where patches go.
    """
    side, flat = out.shape[1], out.reshape(-1)
    sums = np.empty(3 * size, np.uint32)
    for i in range(len(starts)):
        height, width = sides[i, 0], sides[i, 1]
        length = np.uint64(3 * width)
        for row in range(side):
            first = starts[i] + 3 * ((corners[i, 0] + firsts[height, row]) * size + corners[i, 1])
            # Two rows at once are all that most windows have; of one row the second is the first, and weighs nothing.
            upper = np.uint64(first)
            lower = np.uint64(first + 3 * size) if counts[height] > 1 else upper
            weight, more = weights[height, row, 0], weights[height, row, 1]
            for k in range(length):
                sums[k] = _U(_U(weight * _U(data[upper + k])) + _U(more * _U(data[lower + k])))
            for tap in range(2, counts[height]):
                weight, upper = weights[height, row, tap], np.uint64(first + 3 * tap * size)
                for k in range(length):
                    sums[k] = _U(sums[k] + _U(weight * _U(data[upper + k])))
            at = np.uint64(3 * (i * side + row) * side)
            if counts[width] == 2:
                for x in range(side):
                    source = _3 * np.uint64(firsts[width, x])
                    weight, more = weights[width, x, 0], weights[width, x, 1]
                    for c in range(_3):
                        both = _U(weight * sums[source + c]) + _U(more * sums[source + c + _3])
                        flat[at + c] = _U(_U(both) + _HALF) >> _BITS
                    at += _3
                continue
            for x in range(side):
                red, green, blue = _HALF, _HALF, _HALF
                source = _3 * np.uint64(firsts[width, x])
                for tap in range(counts[width]):
                    weight = weights[width, x, tap]
                    red = _U(red + _U(weight * sums[source]))
                    green = _U(green + _U(weight * sums[source + _1]))
                    blue = _U(blue + _U(weight * sums[source + _2]))
                    source += _3
                flat[at], flat[at + _1], flat[at + _2] = red >> _BITS, green >> _BITS, blue >> _BITS
                at += _3
