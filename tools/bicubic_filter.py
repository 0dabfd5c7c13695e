"""Antialiased bicubic resizing: with torch, and where many pictures are to come, by a loop that does the same.

Pillow's bicubic filter (a = -0.5) whose support grows with the scale, in 16-bit fixed point along one side after the
other. torch's uint8 kernels are vectorised, half the cost of OpenCV's area filter; vectorised and plain builds of torch
round alike (tests/test_bicubic_filter.py compares them). The compiled loop of `bicubic_kernel` takes two thirds of
torch's time; like that of the area filter it is tried on noise first, and left where a single byte is not torch's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from lmdali.pipeline.decode import Pixels
from lmdali.pipeline.errors import MissingExtraError
from lmdali.pipeline.release import installed_version

_TRIED_SIDES = (100, 375, 777)

_Kernel = Callable[[Pixels, int, int, int, Pixels], None]


@cache
def _torch() -> Any:
    # Imported where it is needed: other recipes convert without torch, and it takes a second.
    try:
        import torch
    except ImportError:
        raise _missing() from None
    return torch


def _missing() -> MissingExtraError:
    return MissingExtraError("torch", "train", "the filter 'bicubic'")


def torch_version() -> str:
    """For the manifest: which torch made the pixels.

    Raises:
        MissingExtraError: torch is not installed.
    """
    # Not by importing it: whoever plans and publishes resizes nothing, and torch takes more than a second.
    found = installed_version("torch")
    if found is None:
        raise _missing()
    return found.partition("+")[0]


class BicubicFilter:
    """Resizes the central square of pictures; thread-safe."""

    def __init__(self) -> None:
        self._kernel: _Kernel | None = None

    def compile(self) -> None:
        """Load the compiled loop, if it can be used here; not while anything is timed.

        Raises:
            MissingExtraError: torch is not installed.
        """
        self._kernel = _kernel_like_torch()

    @property
    def is_compiled(self) -> bool:
        """Whether the loop of `bicubic_kernel` does the work."""
        return self._kernel is not None

    def central_square(self, pixels: Pixels, size: int) -> Pixels:
        """Cut out the middle of a picture, and resize it, up or down.

        Args:
            pixels: `(H, W, 3)` uint8.
            size: side of the result, pixels.

        Returns:
            `(size, size, 3)` uint8, C-contiguous, never a view of `pixels`.

        Raises:
            MissingExtraError: torch is not installed.
        """
        height, width = pixels.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        if self._kernel is None or not pixels.flags.c_contiguous:
            return _with_torch(pixels[top : top + side, left : left + side], size)
        square = np.empty((size, size, 3), np.uint8)
        self._kernel(pixels, top, left, side, square)
        return square


def _with_torch(square: Pixels, size: int) -> Pixels:
    torch = _torch()
    # A batch of one with its channels last, as it lies in memory: torch has a kernel for that layout, and keeps it.
    planes = torch.from_numpy(square).unsqueeze(0).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(planes, (size, size), mode="bicubic", antialias=True)
    # numpy's views cost a fraction of torch's.
    return np.ascontiguousarray(resized.numpy()[0].transpose(1, 2, 0))


@cache
def _kernel_like_torch() -> _Kernel | None:
    """The compiled loop, or None where numba or AVX2 is missing, or the bytes are not torch's."""
    try:
        from lmdali.pipeline.vectors import HAS_PAIR_SUMS

        if not HAS_PAIR_SUMS:
            return None
        from lmdali.tools.bicubic_kernel import resize_bicubic
    except (MissingExtraError, MemoryError):
        return None
    random = np.random.default_rng(0)
    made = np.empty((256, 256, 3), np.uint8)
    for side in _TRIED_SIDES:
        pixels = random.integers(0, 256, (side, side, 3), np.uint8)
        resize_bicubic(pixels, 0, 0, side, made)
        if not np.array_equal(made, _with_torch(pixels, len(made))):
            return None
    return resize_bicubic
