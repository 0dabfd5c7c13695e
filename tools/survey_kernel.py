"""One pass over a stored picture, compiled: sums for its moments, and its perceptual hash."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.crop_kernel import compiled
from lmdali.pipeline.perceptual_hash import BASIS, HASH_BITS, THUMBNAIL_SIDE

# Gray of OpenCV's RGB2GRAY, which rounds a sum of whole numbers: 0.299, 0.587 and 0.114 in 1/32768.
_RED, _GREEN, _BLUE, _HALF, _SHIFT = 9798, 19235, 3735, 1 << 14, 15

_Plane = NDArray[np.int16]

# One loop a step: the compiler makes vectors of each, and of one loop that does it all it does not.


@compiled
def _add(line: NDArray[np.uint8], sums: NDArray[np.uint16]) -> None:
    for at in range(line.size):
        sums[at] += line[at]


@compiled
def _separate(line: NDArray[np.uint8], red: _Plane, green: _Plane, blue: _Plane) -> None:
    for x in range(red.size):
        red[x] = line[3 * x]
        green[x] = line[3 * x + 1]
        blue[x] = line[3 * x + 2]


@compiled
def _add_products(red: _Plane, green: _Plane, blue: _Plane, totals: NDArray[np.int64]) -> None:
    zero = np.int32(0)
    r = g = b = rr = rg = rb = gg = gb = bb = zero
    for x in range(red.size):
        one, two, three = np.int32(red[x]), np.int32(green[x]), np.int32(blue[x])
        # Each sum is put back into 32 bits: numba would go on with 64, half as many at a time.
        r, g, b = np.int32(r + one), np.int32(g + two), np.int32(b + three)
        rr, rg = np.int32(rr + np.int32(one * one)), np.int32(rg + np.int32(one * two))
        rb, gg = np.int32(rb + np.int32(one * three)), np.int32(gg + np.int32(two * two))
        gb, bb = np.int32(gb + np.int32(two * three)), np.int32(bb + np.int32(three * three))
    totals[0] += r
    totals[1] += g
    totals[2] += b
    totals[3] += rr
    totals[4] += rg
    totals[5] += rb
    totals[6] += gg
    totals[7] += gb
    totals[8] += bb


@compiled
def _add_gray(red: _Plane, green: _Plane, blue: _Plane, columns: _Plane) -> None:
    for x in range(red.size):
        gray = np.uint32(np.uint32(red[x]) * np.uint32(_RED)) + np.uint32(np.uint32(green[x]) * np.uint32(_GREEN))
        gray = np.uint32(gray) + np.uint32(np.uint32(blue[x]) * np.uint32(_BLUE)) + np.uint32(_HALF)
        columns[x] += np.int16(np.uint32(gray) >> np.uint32(_SHIFT))


@compiled
def _middle(waves: NDArray[np.float64]) -> float:
    """The number at place HASH_BITS // 2 - 1 among all but the first; np.sort would be two seconds of compiling."""
    for candidate in waves[1:]:
        below = equal = 0
        for other in waves[1:]:
            below += other < candidate
            equal += other == candidate
        if below <= HASH_BITS // 2 - 1 < below + equal:
            return float(candidate)
    return np.nan


@compiled
def _hash(thumbnail: NDArray[np.float64]) -> int:
    """As `perceptual_hash.picture_hash` has it: sums of whole numbers below 2**53, in any order the same."""
    kept, side = BASIS.shape
    down, waves = np.zeros((kept, side)), np.zeros((kept, kept))
    for wave in range(kept):
        for y in range(side):
            for x in range(side):
                down[wave, x] += BASIS[wave, y] * thumbnail[y, x]
    for wave in range(kept):
        for across in range(kept):
            for x in range(side):
                waves[wave, across] += down[wave, x] * BASIS[across, x]
    flat = waves.reshape(-1)
    median = _middle(flat)
    bits = 0
    for wave in range(1, HASH_BITS):
        bits |= int(flat[wave] > median) << (HASH_BITS - 1 - wave)
    return bits


@compiled
def survey_picture(
    pixels: NDArray[np.uint8], sums: NDArray[np.uint16], totals: NDArray[np.int64], picture: NDArray[np.int64]
) -> int:
    """Add up a picture.

    Args:
        pixels: `(S, S, 3)` uint8, C-contiguous; S a multiple of the thumbnail's side, more than twice it (there OpenCV
            halves by another rule) and at most 128 times (what is below its pixels is added up in 16 bits).
        sums: `(S, S, 3)` uint16: the picture is added; good for 257 of them.
        totals: `(9,)` int64: the picture's are added.
        picture: `(9,)` int64, set: sums of r, g, b, then of the products rr, rg, rb, gg, gb, bb.

    Returns:
        The hash: of the picture in gray, shrunk, each pixel the rounded mean of a square.
    """
    size, side = pixels.shape[0], THUMBNAIL_SIDE
    step = size // side
    share = np.float32(1) / np.float32(step * step)
    flat, flat_sums = pixels.reshape(-1), sums.reshape(-1)
    red, green, blue = np.empty(size, np.int16), np.empty(size, np.int16), np.empty(size, np.int16)
    columns, thumbnail = np.zeros(size, np.int16), np.empty((side, side))
    picture[:] = 0
    for y in range(size):
        line = flat[3 * size * y : 3 * size * (y + 1)]
        _add(line, flat_sums[3 * size * y : 3 * size * (y + 1)])
        _separate(line, red, green, blue)
        _add_products(red, green, blue, picture)
        _add_gray(red, green, blue, columns)
        if (y + 1) % step == 0:
            for x in range(side):
                total = 0
                for column in range(step * x, step * (x + 1)):
                    total += columns[column]
                thumbnail[y // step, x] = np.rint(np.float32(total) * share)
            columns[:] = 0
    totals += picture
    return _hash(thumbnail)
