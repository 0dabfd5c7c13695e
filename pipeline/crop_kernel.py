"""The one pass over a decoded image: crop, flip, subtract, shift, scale and reorder, compiled by numba.

Separate NumPy or torch passes cost as much as the JPEG decode; one compiled loop over rows that are still in the cache
costs a fifth of it (docs/performance.md). numba is the best-kept way to such a loop that needs no compiler on the
user's machine; it releases the GIL, and keeps its machine code on disk between runs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.errors import MissingExtraError
from lmdali.pipeline.kernel_cache import KernelCache
from lmdali.pipeline.pixel_transform import PixelTransform

try:
    import numba
except ImportError as error:  # the converter and the tools that only read need none of this
    raise MissingExtraError("numba", "train", "the CPU loader's compiled crop") from error

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Compile at the first call; keep the machine code on disk where there is a place for it."""
    return _compile(function)


def reordered(function: _Function) -> _Function:
    """As `compiled`, and floating-point sums may be made in any order: a loop of additions vectorises only then."""
    return _compile(function, fastmath={"reassoc", "contract", "nsz"})


def _compile(function: _Function, **options: Any) -> _Function:
    kernel: Any = numba.njit(nogil=True, boundscheck=False, **options)(function)
    with suppress(RuntimeError, OSError):  # neither the package's folder nor the user's cache can be written
        kernel._cache = KernelCache(function)  # what `cache=True` does, with numba's own
    compiled_function: _Function = kernel
    return compiled_function


def inlined(function: _Function) -> _Function:
    """Compile as a part of each kernel that calls it: a call in an inner loop would keep the loop from vectorising.

    Nothing in it may allocate: it counts no references to its arrays, which took a third of the JPEG kernel's time.
    """
    part: _Function = numba.njit(nogil=True, boundscheck=False, forceinline=True, _nrt=False)(function)
    return part


def expanded(function: _Function) -> _Function:
    """Write it out in each kernel that calls it: for a line or two, which on its own would be 60 ms of compiling.

    Unlike what is `inlined` it counts references to arrays that it slices.
    """
    part: _Function = numba.njit(inline="always")(function)
    return part


@expanded
def copy_items(source: Any, begin: Any, target: Any, to: Any, count: Any) -> None:
    """Copy `source[begin : begin + count]` to `target[to:]`.

    Assigning a slice says what is wrong where lengths differ, for which numba compiles strings two seconds long.
    """
    for n in range(count):
        target[to + n] = source[begin + n]


def mean_rows(transform: PixelTransform, *, planar: bool) -> NDArray[np.float32]:
    """The mean image as the kernels here and in `paint_kernel` take it, (H, W, 3) or planar (3, H, W) float32.

    A mirrored patch is read from left to right and written from right to left. So where each patch loses the central
    window, there are 2 H rows: those of the mirror image follow, and what is subtracted is read as the patch is.
    """
    mean = np.concatenate([transform.mean, transform.mean[:, ::-1]]) if transform.centered else transform.mean
    return np.ascontiguousarray(mean.transpose(2, 0, 1) if planar else mean)


@expanded
def mean_corner(centered: bool, size: int, side: int, y0: int, x0: int, flip: bool) -> Any:
    """Row and column in `mean_rows` for the first pixel of a patch of `side` pixels at (y0, x0), as it is stored."""
    if not centered:
        return y0, x0
    first = (size - side) >> 1
    # With an odd rest, the window's left and right margins change places in the mirror image.
    return (size + first, size - side - first) if flip else (first, first)


# The loops below walk flat rows: there the compiler sees unit strides and vectorises, which halves the time.


@compiled
def crop_pixels(pixels: NDArray[np.uint8], y0: int, x0: int, flip: bool, out: NDArray[np.uint8]) -> None:
    """Copy a patch of (H, W, 3) uint8 `pixels` into (S, S, 3) uint8 `out`."""
    size = out.shape[0]
    for y in range(size):
        row = pixels[y0 + y, x0 : x0 + size].reshape(3 * size)
        target = out[y].reshape(3 * size)
        if flip:
            for x in range(size):
                source = 3 * (size - 1 - x)
                target[3 * x] = row[source]
                target[3 * x + 1] = row[source + 1]
                target[3 * x + 2] = row[source + 2]
        else:
            for i in range(3 * size):
                target[i] = row[i]


@compiled
def crop_pixels_planar(pixels: NDArray[np.uint8], y0: int, x0: int, flip: bool, out: NDArray[np.uint8]) -> None:
    """Copy a patch of (H, W, 3) uint8 `pixels` into (3, S, S) uint8 `out`."""
    size = out.shape[1]
    for y in range(size):
        row = pixels[y0 + y, x0 : x0 + size].reshape(3 * size)
        for c in range(3):
            target = out[c, y]
            if flip:
                for x in range(size):
                    target[size - 1 - x] = row[3 * x + c]
            else:
                for x in range(size):
                    target[x] = row[3 * x + c]


@compiled
def crop_normalized(
    pixels: NDArray[np.uint8],
    y0: int,
    x0: int,
    flip: bool,
    mean: NDArray[np.float32],
    centered: bool,
    shift: NDArray[np.float32],
    scale: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """`(pixel - mean + shift) * scale` of a patch into (S, S, 3) float32 `out`; `mean` is from `mean_rows`."""
    size = out.shape[0]
    mean_y, mean_x = mean_corner(centered, pixels.shape[0], size, y0, x0, flip)
    add0, add1, add2 = shift[0], shift[1], shift[2]
    factor0, factor1, factor2 = scale[0], scale[1], scale[2]
    for y in range(size):
        row = pixels[y0 + y, x0 : x0 + size].reshape(3 * size)
        row_mean = mean[mean_y + y, mean_x : mean_x + size].reshape(3 * size)
        target = out[y].reshape(3 * size)
        if flip:
            for x in range(size):
                k = 3 * (size - 1 - x)
                target[3 * x] = (np.float32(row[k]) - row_mean[k] + add0) * factor0
                target[3 * x + 1] = (np.float32(row[k + 1]) - row_mean[k + 1] + add1) * factor1
                target[3 * x + 2] = (np.float32(row[k + 2]) - row_mean[k + 2] + add2) * factor2
        else:
            for x in range(size):
                k = 3 * x
                target[k] = (np.float32(row[k]) - row_mean[k] + add0) * factor0
                target[k + 1] = (np.float32(row[k + 1]) - row_mean[k + 1] + add1) * factor1
                target[k + 2] = (np.float32(row[k + 2]) - row_mean[k + 2] + add2) * factor2


@compiled
def crop_normalized_planar(
    pixels: NDArray[np.uint8],
    y0: int,
    x0: int,
    flip: bool,
    mean: NDArray[np.float32],
    centered: bool,
    shift: NDArray[np.float32],
    scale: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """`(pixel - mean + shift) * scale` of a patch into (3, S, S) float32 `out`; `mean` is from `mean_rows`, planar."""
    size = out.shape[1]
    mean_y, mean_x = mean_corner(centered, pixels.shape[0], size, y0, x0, flip)
    for y in range(size):
        row = pixels[y0 + y, x0 : x0 + size].reshape(3 * size)
        for c in range(3):
            row_mean = mean[c, mean_y + y, mean_x : mean_x + size]
            target, add, factor = out[c, y], shift[c], scale[c]
            if flip:
                for x in range(size):
                    target[size - 1 - x] = (np.float32(row[3 * x + c]) - row_mean[x] + add) * factor
            else:
                for x in range(size):
                    target[x] = (np.float32(row[3 * x + c]) - row_mean[x] + add) * factor


# The same for a run of images: `data` is flat, image i is the size * size * 3 bytes from `starts[i]` on, its views are
# rows i * num_views and following of `crop_yx`, `flip`, `shifts` and `out`. One call from Python for all of them.


@compiled
def crop_run_pixels(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    size: int,
    num_views: int,
    crop_yx: NDArray[np.int64],
    flip: NDArray[np.bool_],
    out: NDArray[np.uint8],
) -> None:
    """`crop_pixels` of n images: (n * num_views, S, S, 3) uint8 `out`."""
    for i in range(len(starts)):
        pixels = data[starts[i] : starts[i] + 3 * size * size].reshape((size, size, 3))
        for v in range(i * num_views, (i + 1) * num_views):
            crop_pixels(pixels, crop_yx[v, 0], crop_yx[v, 1], flip[v], out[v])


@compiled
def crop_run_pixels_planar(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    size: int,
    num_views: int,
    crop_yx: NDArray[np.int64],
    flip: NDArray[np.bool_],
    out: NDArray[np.uint8],
) -> None:
    """`crop_pixels_planar` of n images: (n * num_views, 3, S, S) uint8 `out`."""
    for i in range(len(starts)):
        pixels = data[starts[i] : starts[i] + 3 * size * size].reshape((size, size, 3))
        for v in range(i * num_views, (i + 1) * num_views):
            crop_pixels_planar(pixels, crop_yx[v, 0], crop_yx[v, 1], flip[v], out[v])


@compiled
def crop_run_normalized(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
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
    """`crop_normalized` of n images: (n * num_views, S, S, 3) float32 `out`."""
    for i in range(len(starts)):
        pixels = data[starts[i] : starts[i] + 3 * size * size].reshape((size, size, 3))
        for v in range(i * num_views, (i + 1) * num_views):
            crop_normalized(pixels, crop_yx[v, 0], crop_yx[v, 1], flip[v], mean, centered, shifts[v], scale, out[v])


@compiled
def crop_run_normalized_planar(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
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
    """`crop_normalized_planar` of n images: (n * num_views, 3, S, S) float32 `out`."""
    for i in range(len(starts)):
        pixels = data[starts[i] : starts[i] + 3 * size * size].reshape((size, size, 3))
        for v in range(i * num_views, (i + 1) * num_views):
            crop_normalized_planar(
                pixels, crop_yx[v, 0], crop_yx[v, 1], flip[v], mean, centered, shifts[v], scale, out[v]
            )
