"""Y, Cb and Cr planes to crops of a batch, compiled: libjpeg's fancy upsampling and colour conversion, only where seen.

Upsampling is the triangle filter of libjpeg (jdsample.c, h2v2): three parts of the nearer row or column and one of the
farther, with roundings that alternate. Colours follow JFIF in 16-bit fixed point (jdcolor.c). Both are exact, so that
the crops equal those of a decoded image bit for bit. One row at a time stays in the L1 cache from planes to output.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.colour_vectors import BLUE_CB, GREEN_CB, GREEN_CR, PIXELS, RED_CR, convert_pixels
from lmdali.pipeline.crop_kernel import compiled, expanded, inlined, mean_corner
from lmdali.pipeline.idct_vectors import LANES
from lmdali.pipeline.vectors import HAS_PAIR_SUMS
from lmdali.pipeline.word_access import colour

_I: Final = np.int32
_U: Final = np.uint16
_RED_CR, _BLUE_CB, _GREEN_CB, _GREEN_CR, _NONE = (_I(factor) for factor in (RED_CR, BLUE_CB, GREEN_CB, GREEN_CR, 0))
_THREE: Final = _I(3)

# Five rows of scratch, R, G, B, Cb, Cr, at distances that the compiler knows; an image has up to 4,096 columns.
ROW: Final = 4096 + 256
GREEN, BLUE, _CB, _CR = (np.uint64(n * ROW) for n in (1, 2, 3, 4))
_1, _2, _3 = np.uint64(1), np.uint64(2), np.uint64(3)  # a plain 1 would turn unsigned indexes into floats


@compiled
def paint_run(
    planes: NDArray[np.uint64],
    size: int,
    num_views: int,
    crop_yx: NDArray[np.int64],
    flip: NDArray[np.bool_],
    out: NDArray[np.uint8],
) -> None:
    """Views of decoded planes as pixels.

    Args:
        planes: (k, ...) of `jpeg_kernel.decode_run`, whose windows held the views.
        size: side of the images, pixels.
        num_views: V; the views of one image are adjacent in everything below.
        crop_yx: (k * V, 2) int64, top-left corners; the views lie inside the image.
        flip: (k * V,) bool.
        out: (k * V, S, S, 3) uint8 RGB.
    """
    side = out.shape[1]
    rows, sums, flat = np.empty(5 * ROW, np.uint8), np.empty(ROW, np.uint16), out.reshape(-1)
    pairs = rows.view(np.uint16)
    width = np.uint64(side)
    for view in range(len(out)):
        plane, x0, mirrored = planes[view // num_views].view(np.uint8), crop_yx[view, 1], flip[view]
        for y in range(side):
            at = _paint_row(plane, size, size, crop_yx[view, 0] + y, x0, side, rows, pairs, sums)
            start = np.uint64((view * side + y) * side * 3)
            if mirrored:
                for x in range(width):
                    k = start + _3 * (width - _1 - x)
                    flat[k], flat[k + _1], flat[k + _2] = rows[at + x], rows[at + x + GREEN], rows[at + x + BLUE]
            else:
                put_row(rows, at, flat, start, width)


@compiled
def paint_run_planar(
    planes: NDArray[np.uint64],
    size: int,
    num_views: int,
    crop_yx: NDArray[np.int64],
    flip: NDArray[np.bool_],
    out: NDArray[np.uint8],
) -> None:
    """`paint_run` into (k * V, 3, S, S) uint8 `out`."""
    side = out.shape[2]
    rows, sums, flat = np.empty(5 * ROW, np.uint8), np.empty(ROW, np.uint16), out.reshape(-1)
    pairs = rows.view(np.uint16)
    width = np.uint64(side)
    for view in range(len(out)):
        plane, x0, mirrored = planes[view // num_views].view(np.uint8), crop_yx[view, 1], flip[view]
        for y in range(side):
            at = _paint_row(plane, size, size, crop_yx[view, 0] + y, x0, side, rows, pairs, sums)
            for c in range(3):
                start, row = np.uint64(((view * 3 + c) * side + y) * side), at + np.uint64(c) * GREEN
                if mirrored:
                    for x in range(width):
                        flat[start + (width - _1 - x)] = rows[row + x]
                else:
                    for x in range(width):
                        flat[start + x] = rows[row + x]


@compiled
def paint_run_normalized(
    planes: NDArray[np.uint64],
    size: int,
    num_views: int,
    crop_yx: NDArray[np.int64],
    flip: NDArray[np.bool_],
    mean: NDArray[np.float32],
    centered: bool,
    shifts: NDArray[np.float32],
    scale: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """`(pixel - mean + shift) * scale` of the views of `paint_run`.

    Args:
        planes: see `paint_run`, as the next four.
        size: side of the images, pixels.
        num_views: V.
        crop_yx: (k * V, 2) int64.
        flip: (k * V,) bool.
        mean: from `crop_kernel.mean_rows`.
        centered: see there.
        shifts: (k * V, 3) float32.
        scale: (3,) float32.
        out: (k * V, S, S, 3) float32.
    """
    side = out.shape[1]
    rows, sums, flat = np.empty(5 * ROW, np.uint8), np.empty(ROW, np.uint16), out.reshape(-1)
    pairs = rows.view(np.uint16)
    width, means = np.uint64(side), mean.reshape(-1)
    for view in range(len(out)):
        plane, x0, mirrored = planes[view // num_views].view(np.uint8), crop_yx[view, 1], flip[view]
        add0, add1, add2 = shifts[view, 0], shifts[view, 1], shifts[view, 2]
        factor0, factor1, factor2 = scale[0], scale[1], scale[2]
        mean_y, mean_x = mean_corner(centered, size, side, crop_yx[view, 0], x0, mirrored)
        for y in range(side):
            at = _paint_row(plane, size, size, crop_yx[view, 0] + y, x0, side, rows, pairs, sums)
            start = np.uint64((view * side + y) * side * 3)
            m = np.uint64(((mean_y + y) * size + mean_x) * 3)
            if mirrored:
                for x in range(width):
                    k = start + _3 * (width - _1 - x)
                    n, r = m + _3 * x, at + x
                    flat[k] = (np.float32(rows[r]) - means[n] + add0) * factor0
                    flat[k + _1] = (np.float32(rows[r + GREEN]) - means[n + _1] + add1) * factor1
                    flat[k + _2] = (np.float32(rows[r + BLUE]) - means[n + _2] + add2) * factor2
            else:
                for x in range(width):
                    k = start + _3 * x
                    n, r = m + _3 * x, at + x
                    flat[k] = (np.float32(rows[r]) - means[n] + add0) * factor0
                    flat[k + _1] = (np.float32(rows[r + GREEN]) - means[n + _1] + add1) * factor1
                    flat[k + _2] = (np.float32(rows[r + BLUE]) - means[n + _2] + add2) * factor2


@compiled
def paint_run_normalized_planar(
    planes: NDArray[np.uint64],
    size: int,
    num_views: int,
    crop_yx: NDArray[np.int64],
    flip: NDArray[np.bool_],
    mean: NDArray[np.float32],
    centered: bool,
    shifts: NDArray[np.float32],
    scale: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """`paint_run_normalized` into (k * V, 3, S, S) float32 `out`; `mean` is planar."""
    side = out.shape[2]
    rows, sums, flat = np.empty(5 * ROW, np.uint8), np.empty(ROW, np.uint16), out.reshape(-1)
    pairs = rows.view(np.uint16)
    width, means = np.uint64(side), mean.reshape(-1)
    for view in range(len(out)):
        plane, x0, mirrored = planes[view // num_views].view(np.uint8), crop_yx[view, 1], flip[view]
        mean_y, mean_x = mean_corner(centered, size, side, crop_yx[view, 0], x0, mirrored)
        for y in range(side):
            at = _paint_row(plane, size, size, crop_yx[view, 0] + y, x0, side, rows, pairs, sums)
            for c in range(3):
                start, row = np.uint64(((view * 3 + c) * side + y) * side), at + np.uint64(c) * GREEN
                m = np.uint64((c * mean.shape[1] + mean_y + y) * size + mean_x)
                add, factor = shifts[view, c], scale[c]
                if mirrored:
                    for x in range(width):
                        value = (np.float32(rows[row + x]) - means[m + x] + add) * factor
                        flat[start + (width - _1 - x)] = value
                else:
                    for x in range(width):
                        flat[start + x] = (np.float32(rows[row + x]) - means[m + x] + add) * factor


@compiled
def paint_whole(planes: NDArray[np.uint64], out: NDArray[np.uint8]) -> None:
    """Whole images into (k, H, W, 3) uint8 `out`; all windows were whole."""
    height, width = out.shape[1], out.shape[2]
    rows, sums, flat = np.empty(5 * ROW, np.uint8), np.empty(ROW, np.uint16), out.reshape(-1)
    pairs = rows.view(np.uint16)
    for image in range(len(out)):
        plane = planes[image].view(np.uint8)
        for y in range(height):
            at = _paint_row(plane, height, width, y, 0, width, rows, pairs, sums)
            put_row(rows, at, flat, np.uint64((image * height + y) * width * 3), np.uint64(width))


@compiled
def paint_windows(
    planes: NDArray[np.uint64], corners: NDArray[np.int64], sides: NDArray[np.int64], out: NDArray[np.uint8]
) -> None:
    """Windows of whole images, each where it lies in its (k, H, H, 3) uint8 `out`; around it nothing is written.

    Args:
        planes: (k, ...) of `jpeg_kernel.decode_run`, whose windows held these.
        corners: (k, 2) int64, of the windows, which lie inside the images.
        sides: (k, 2) int64, their heights and widths.
        out: whose memory is contiguous.
    """
    size = out.shape[1]
    rows, sums, flat = np.empty(5 * ROW, np.uint8), np.empty(ROW, np.uint16), out.reshape(-1)
    pairs = rows.view(np.uint16)
    for image in range(len(planes)):
        plane, x0, width = planes[image].view(np.uint8), corners[image, 1], sides[image, 1]
        for y in range(corners[image, 0], corners[image, 0] + sides[image, 0]):
            at = _paint_row(plane, size, size, y, x0, width, rows, pairs, sums)
            put_row(rows, at, flat, np.uint64(((image * size + y) * size + x0) * 3), np.uint64(width))


@inlined
def put_row(rows: Any, at: Any, flat: Any, start: Any, width: Any) -> None:
    """`width` pixels of rows 0, 1 and 2 of `rows`, from column `at` on, to `flat[start:]`, RGBRGB."""
    for x in range(width):
        k = start + _3 * x
        flat[k], flat[k + _1], flat[k + _2] = rows[at + x], rows[at + x + GREEN], rows[at + x + BLUE]


@inlined
def _paint_row(
    plane: Any, height: int, width: int, y: int, x0: int, count: int, rows: Any, pairs: Any, sums: Any
) -> Any:
    """Row `y` as R, G and B in the first three of `rows`, and where column `x0` is in each; `pairs` is `rows`, too."""
    mcu_rows, mcus = (height + 15) >> 4, (width + 15) >> 4
    luma_stride = 8 * LANES * ((2 * mcus + LANES - 1) // LANES)
    stride = 8 * LANES * ((mcus + LANES - 1) // LANES)
    first, stop, last = x0 >> 1, ((x0 + count - 1) >> 1) + 1, (width - 1) >> 1
    near = y >> 1
    far = min(max(near + 2 * (y & 1) - 1, 0), (height - 1) >> 1)
    for c in range(2):
        at = 16 * mcu_rows * luma_stride + c * 8 * mcu_rows * stride
        upper, lower, into = np.uint64(at + near * stride), np.uint64(at + far * stride), np.uint64((3 + c) * ROW // 2)
        _upsample(plane, upper, lower, first, stop, last, pairs, into, sums)
    # From an even column on, so that all rows of `rows` begin at the same place: one check of overlap for the compiler.
    convert_row(plane, np.uint64(y * luma_stride + 2 * first), rows, _CB, _CR, rows, np.uint64(2 * (stop - first)))
    return np.uint64(x0 & 1)


@inlined
def _upsample(
    plane: Any, near: Any, far: Any, first: int, stop: int, last: int, pairs: Any, into: Any, sums: Any
) -> None:
    """Samples first..stop-1 of two rows of chroma to pairs of samples; past the borders the last sample is repeated."""
    begin, count = np.uint64(first), np.uint64(stop - first)
    upper, lower = near + begin, far + begin
    for i in range(count):
        sums[i + _1] = _U(_I(_I(plane[upper + i]) * _THREE) + _I(plane[lower + i]))
    left, right = np.uint64(max(first - 1, 0)), np.uint64(min(stop, last))
    sums[0] = _U(3 * _I(plane[near + left]) + _I(plane[far + left]))
    sums[count + _1] = _U(3 * _I(plane[near + right]) + _I(plane[far + right]))
    for i in range(count):
        three = _U(_U(sums[i + _1] * _U(3)) + _U(7))
        even = _U(_U(_U(three + sums[i]) + _U(1)) >> _U(4))
        odd = _U(_U(three + sums[i + _2]) >> _U(4))
        pairs[into + i] = _U(even | _U(odd << _U(8)))


@expanded
def _convert_in_vectors(luma: Any, y_at: Any, chroma: Any, cb_at: Any, cr_at: Any, rows: Any, width: Any) -> None:
    """`_convert_in_loops` where `HAS_PAIR_SUMS`; up to 31 samples more are read, and written behind each row."""
    for x in range(np.uint64(0), width, np.uint64(PIXELS)):
        convert_pixels(luma, y_at + x, chroma, cb_at + x, cr_at + x, rows, x, GREEN)


@expanded
def _convert_in_loops(luma: Any, y_at: Any, chroma: Any, cb_at: Any, cr_at: Any, rows: Any, width: Any) -> None:
    """`width` samples of Y, Cb and Cr, uint8 in `luma` and `chroma`, to rows 0, 1 and 2 of `rows`: R, G and B."""
    for x in range(width):
        y, cb, cr = luma[y_at + x], chroma[cb_at + x], chroma[cr_at + x]
        rows[x] = colour(y, cb, cr, _NONE, _RED_CR)
        rows[x + GREEN] = colour(y, cb, cr, _GREEN_CB, _GREEN_CR)
        rows[x + BLUE] = colour(y, cb, cr, _BLUE_CB, _NONE)


convert_row = _convert_in_vectors if HAS_PAIR_SUMS else _convert_in_loops
"""A row of samples to colours: what kernels call. Both give the same pixels."""
