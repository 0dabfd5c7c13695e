"""Shrinking by OpenCV's area filter: with OpenCV, and where many pictures are to come, by a loop that does the same.

The compiled loop of `area_kernel` takes a sixth of the time and gives the same bytes. It needs numba, a third of a
second to be loaded by each process and some seconds to be compiled by the first one of a machine: whoever has few
pictures does without. It is tried on pictures of noise first, and left where a single byte is not OpenCV's: a build for
another processor may round its sums otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import cv2
import numpy as np

from lmdali.pipeline.decode import Pixels
from lmdali.pipeline.errors import MissingExtraError

_TRIED_SIDES = ((300, 411), (777, 555), (1300, 1501))

_Kernel = Callable[[Pixels, float, float, int, int, Pixels], None]


class AreaFilter:
    """Makes the central square of pictures shrunk by the area filter; thread-safe."""

    def __init__(self) -> None:
        self._kernel: _Kernel | None = None

    def compile(self) -> None:
        """Load the compiled loop, if it can be used here; not while anything is timed."""
        self._kernel = _kernel_like_opencv()

    @property
    def is_compiled(self) -> bool:
        """Whether the loop of `area_kernel` does the work."""
        return self._kernel is not None

    def central_square(self, pixels: Pixels, sides: tuple[int, int], size: int) -> Pixels:
        """Shrink a picture and keep its middle.

        Args:
            pixels: `(H, W, 3)` uint8.
            sides: height and width to shrink it to; both smaller than what they were.
            size: of the square, at most either.

        Returns:
            `(size, size, 3)` uint8, C-contiguous.
        """
        kernel = self._kernel
        if kernel is not None and pixels.flags.c_contiguous:
            made = _with_kernel(kernel, pixels, sides, size)
            if made is not None:
                return made
        return _with_opencv(pixels, sides, size)


def _with_kernel(kernel: _Kernel, pixels: Pixels, sides: tuple[int, int], size: int) -> Pixels | None:
    """The square, or None where OpenCV has another loop: for ratios that are whole numbers on both sides."""
    (height, width), (new_height, new_width) = pixels.shape[:2], sides
    # The reciprocal of a quotient, as OpenCV is given one: `height / new_height` may differ in its last bit.
    scale_y, scale_x = 1 / (new_height / height), 1 / (new_width / width)
    if max(abs(scale_y - round(scale_y)), abs(scale_x - round(scale_x))) < np.finfo(float).eps:
        return None
    square = np.empty((size, size, 3), np.uint8)
    kernel(pixels, scale_y, scale_x, (new_height - size) // 2, (new_width - size) // 2, square)
    return square


def _with_opencv(pixels: Pixels, sides: tuple[int, int], size: int) -> Pixels:
    """The square, of a source that ends with it.

    A pixel of the area filter depends on the scale, on its number and on the pixels of the source below it. So what
    lies right of the central square, or under it, need not be computed: an eighth of most photographs.
    """
    (height, width), (new_height, new_width) = pixels.shape[:2], sides
    top, left = (new_height - size) // 2, (new_width - size) // 2
    # One pixel more than is covered at the edge: the filter would treat the last one it sees as an edge.
    rows, columns = (top + size) * height // new_height + 2, (left + size) * width // new_width + 2
    corner = cv2.resize(
        pixels[:rows, :columns],
        None,
        fx=new_width / width,
        fy=new_height / height,
        interpolation=cv2.INTER_AREA,
    ).astype(np.uint8, copy=False)
    return np.array(corner[top : top + size, left : left + size], order="C")


@cache
def _kernel_like_opencv() -> _Kernel | None:
    """The compiled loop, or None where numba is missing or the bytes are not OpenCV's."""
    try:
        from lmdali.tools.area_kernel import shrink_area
    except (MissingExtraError, MemoryError):
        return None
    random = np.random.default_rng(0)
    size = 256
    for sides in _TRIED_SIDES:
        pixels = random.integers(0, 256, (*sides, 3), np.uint8)
        shorter = min(sides)
        new_sides = sides[0] * size // shorter, sides[1] * size // shorter
        made = _with_kernel(shrink_area, pixels, new_sides, size)
        if made is None or not np.array_equal(made, _with_opencv(pixels, new_sides, size)):
            return None
    return shrink_area
