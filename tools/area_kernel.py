"""OpenCV's area filter for shrinking, compiled: the same float32 sums in the same order, so the same bytes.

OpenCV adds one channel of one pixel after the other and filters a row again for each row of the result that it reaches
into. Here a pixel is a vector, each row is filtered once, and only the square that is kept is made: a sixth of the
time (docs/performance.md). The arithmetic is that of `ResizeArea_Invoker` in OpenCV's `resize.cpp`, as its
documentation of INTER_AREA and its results have it: weights in float32, first along a row, then down the rows.
"""

from __future__ import annotations

from math import ceil, floor

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.crop_kernel import compiled, copy_items
from lmdali.tools.filter_vectors import weighted_colours

_LEAST_SHARE = 1e-3
"""Of a pixel; what is covered less is left out, as OpenCV does."""


@compiled
def _weigh(
    side: int,
    scale: float,
    first: int,
    starts: NDArray[np.int64],
    counts: NDArray[np.int64],
    weights: NDArray[np.float32],
) -> int:
    """Where the cells of the result from the `first` on begin in the source, and how much of each pixel is theirs.

    Returns:
        The largest number of pixels in a cell. What `weights` has after a cell's own stays as it is.
    """
    most = 0
    for number in range(starts.size):
        begin = (first + number) * scale
        end = begin + scale
        cell = min(scale, side - begin)
        last = min(floor(end), side - 1)
        start = min(ceil(begin), last)
        count = 0
        if start - begin > _LEAST_SHARE:
            weights[number, 0] = (start - begin) / cell
            count = 1
        starts[number] = start - count
        for _ in range(last - start):
            weights[number, count] = 1.0 / cell
            count += 1
        if end - last > _LEAST_SHARE:
            weights[number, count] = min(min(end - last, 1.0), cell) / cell
            count += 1
        counts[number] = count
        most = max(most, count)
    return most


@compiled
def _keep_inside(side: int, taps: int, starts: NDArray[np.int64], weights: NDArray[np.float32]) -> None:
    """Move cells that would reach beyond the edge with `taps` pixels back; adding nothing first changes no sum."""
    for number in range(starts.size):
        beyond = starts[number] + taps - side
        if beyond > 0:
            starts[number] -= beyond
            for tap in range(taps - 1, -1, -1):
                weights[number, tap] = weights[number, tap - beyond] if tap >= beyond else np.float32(0)


@compiled
def shrink_area(
    pixels: NDArray[np.uint8], scale_y: float, scale_x: float, top: int, left: int, out: NDArray[np.uint8]
) -> None:
    """The window of a shrunk picture that begins at (top, left).

    Args:
        pixels: `(H, W, 3)` uint8, C-contiguous.
        scale_y: pixels of the source that one of the result is high, above 1.
        scale_x: the same across; not both are whole numbers, for which OpenCV has another loop.
        top: first row of the shrunk picture that is wanted.
        left: first column.
        out: `(rows, columns, 3)` uint8, C-contiguous: the window.
    """
    height, width = pixels.shape[:2]
    rows, columns = out.shape[:2]
    row_starts, row_counts = np.empty(rows, np.int64), np.empty(rows, np.int64)
    row_weights = np.empty((rows, int(scale_y) + 3), np.float32)
    _weigh(height, scale_y, top, row_starts, row_counts, row_weights)
    starts, counts = np.empty(columns, np.int64), np.empty(columns, np.int64)
    weights = np.zeros((columns, int(scale_x) + 3), np.float32)
    taps = _weigh(width, scale_x, left, starts, counts, weights)
    _keep_inside(width, taps, starts, weights)

    stride, length, most = 3 * width, 3 * columns, weights.shape[1]
    source, lines, shares = pixels.reshape(-1), out.reshape(rows, length), weights.reshape(-1)
    # A vector takes a byte more than its pixel has: where no more follows, it reads a copy.
    bottom = np.zeros(stride + 1, np.uint8)
    copy_items(source, (height - 1) * stride, bottom, 0, stride)
    filtered, total = np.empty(length + 1, np.float32), np.empty(length, np.float32)
    current = -1
    for y in range(rows):
        line = lines[y]
        total[:] = 0
        for number in range(row_counts[y]):
            row = row_starts[y] + number
            if row != current:  # the last row of a cell is the first of the next
                current = row
                data, begin = (bottom, 0) if row == height - 1 else (source, row * stride)
                if taps == 3:  # shorter sides of 257 to 512 pixels
                    for x in range(columns):
                        weighted_colours(filtered, 3 * x, data, begin + 3 * starts[x], shares, most * x, 3)
                else:
                    for x in range(columns):
                        weighted_colours(filtered, 3 * x, data, begin + 3 * starts[x], shares, most * x, taps)
            weight = row_weights[y, number]
            for at in range(length):
                total[at] += weight * filtered[at]
        for at in range(length):
            line[at] = np.uint8(np.int32(np.rint(total[at])))
