"""torch's antialiased bicubic filter of a square, compiled: the same fixed-point sums, so the same bytes.

torch copies the square, spreads it to four bytes a pixel, filters all rows, then all columns, and packs the result.
Here a pixel is filtered where it lies, and a row goes on to the columns while it is in the core's first cache
(docs/performance.md has what that saves). The weights are those of the filter's definition (R. Keys, "Cubic Convolution
Interpolation for Digital Image Processing", 1981, with a = -0.5), stretched where the picture shrinks, as Pillow
stretches it, in as many bits as int16 has room for.
"""

from __future__ import annotations

from math import ceil

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.crop_kernel import compiled, copy_items, expanded
from lmdali.tools.filter_vectors import blend_columns, blend_rows

_SUPPORT = 2.0  # of the filter, pixels to either side
_MOST_BITS = 22
_BYTES = 16  # that `blend_rows` makes, and that `blend_columns` writes and reads at once
_COLUMNS, _TAPS, _WEIGHTS = 4, 4, 16  # of `blend_columns`


@expanded
def _cubic(distance: float) -> float:
    x = abs(distance)
    if x < 1:
        return ((1.5 * x - 2.5) * x) * x + 1
    if x < 2:
        return ((-0.5 * x + 2.5) * x - 4) * x + 2
    return 0.0


@compiled
def _weigh(side: int, starts: NDArray[np.int64], weights: NDArray[np.int16]) -> tuple[int, int]:
    """Where the taps of each pixel of the result begin, and their weights; 0 behind them.

    Returns:
        The number of taps of the pixel that has most, and how many bits of the weights are behind the point.
    """
    size, room = weights.shape
    scale = side / size
    stretch = max(scale, 1.0)
    exact = np.zeros((size, room))
    most, largest = 0, 0.0
    for number in range(size):
        centre = scale * (number + 0.5)
        start = max(int(centre - _SUPPORT * stretch + 0.5), 0)
        count = min(int(centre + _SUPPORT * stretch + 0.5), side) - start
        total = 0.0
        for tap in range(count):
            exact[number, tap] = _cubic((tap + start - centre + 0.5) * (1 / stretch))
            total += exact[number, tap]
        for tap in range(count):
            exact[number, tap] /= total
            largest = max(largest, exact[number, tap])
        starts[number] = start
        most = max(most, count)
    bits = 0
    while bits < _MOST_BITS and int(0.5 + largest * (1 << bits + 1)) < 1 << 15:
        bits += 1
    for number in range(size):
        for tap in range(room):
            weight = exact[number, tap] * (1 << bits)
            weights[number, tap] = int(weight - 0.5) if weight < 0 else int(weight + 0.5)
    return most, bits


@compiled
def _table_of(weights: NDArray[np.int16], groups: int) -> NDArray[np.int16]:
    """The weights as `blend_columns` takes them, for a few pixels more than there are."""
    size = len(weights)
    table = np.zeros((size + _COLUMNS) * groups * _WEIGHTS, np.int16)
    for number in range(size):
        for tap in range(min(groups * _TAPS, weights.shape[1])):
            at = (number * groups + tap // _TAPS) * _WEIGHTS + (tap % _TAPS) // 2 * 8 + tap % 2
            for colour in range(3):
                table[at + 2 * colour] = weights[number, tap]
    return table


@compiled
def resize_bicubic(pixels: NDArray[np.uint8], top: int, left: int, side: int, out: NDArray[np.uint8]) -> None:
    """Resize a square of a picture, up or down.

    Args:
        pixels: `(H, W, 3)` uint8, C-contiguous.
        top: first row of the square.
        left: first column.
        side: of the square, pixels; it must lie inside.
        out: `(S, S, 3)` uint8, C-contiguous: the square resized; of the same size, a copy.
    """
    size = len(out)
    room = 2 * ceil(_SUPPORT * max(side / size, 1.0)) + 2
    starts, weights = np.empty(size, np.int64), np.empty((size, room), np.int16)
    taps, bits = _weigh(side, starts, weights)
    groups, pairs, shift = (taps + _TAPS - 1) // _TAPS, (taps + 1) // 2, np.int32(bits)
    table, shares = _table_of(weights, groups), weights.reshape(-1)
    offsets = np.zeros(size + _COLUMNS, np.int64)
    for x in range(size):
        offsets[x] = 3 * starts[x]

    source, result = pixels.reshape(-1), out.reshape(-1)
    length, spare = 3 * size, 3 * _TAPS * groups + _BYTES
    # All rows across, padded to whole vectors; more, which only weights of 0 reach, where one near the edge has fewer.
    pitch = (length + 2 * _BYTES) // _BYTES * _BYTES
    rows = np.empty((side + 2 * pairs) * pitch, np.uint8)
    line, edge = np.empty(pitch, np.uint8), np.zeros(3 * side + spare, np.uint8)
    done = 0
    for y in range(size):
        while done < min(starts[y] + taps, side):
            data, begin = source, 3 * ((top + done) * pixels.shape[1] + left)
            if begin + 3 * side + spare > source.size:  # too near the end of memory for whole vectors
                copy_items(source, begin, edge, 0, 3 * side)
                data, begin = edge, 0
            if groups == 2:  # sides of up to twice the result's
                for x in range(0, size, _COLUMNS):
                    blend_columns(rows, done * pitch + 3 * x, data, begin, offsets, x, table, 2, shift)
            else:
                for x in range(0, size, _COLUMNS):
                    blend_columns(rows, done * pitch + 3 * x, data, begin, offsets, x, table, groups, shift)
            done += 1
        first, from_row, to_row = y * room, starts[y] * pitch, y * length
        for at in range(0, length - _BYTES + 1, _BYTES):
            blend_rows(result, to_row + at, rows, from_row + at, pitch, shares, first, pairs, shift)
        at = length // _BYTES * _BYTES
        if at < length:
            blend_rows(line, 0, rows, from_row + at, pitch, shares, first, pairs, shift)
            copy_items(line, 0, result, to_row + at, length - at)
