"""Crop, mirror and normalise in one loop compiled by numba: for the ceilings and for peers whose users would write it.

It is lmdali's own kernel for one view where that exists, so that ceilings and loader do the same arithmetic.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline import crop_kernel
from peers.task import Task

crop_pixels, crop_normalized = crop_kernel.crop_pixels, crop_kernel.crop_normalized_planar


def arithmetic(task: Task) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Mean (3, H, W), shift (3,) and scale (3,) for `one_view` and `many_views`."""
    side = task.image_size
    mean = np.ascontiguousarray(np.broadcast_to(task.channel_mean[:, None, None], (3, side, side)))
    return mean, np.zeros(3, np.float32), (1 / task.channel_std).astype(np.float32)


def one_view(
    pixels: NDArray[np.uint8],
    y: int,
    x: int,
    flip: bool,
    mean: NDArray[np.float32],
    shift: NDArray[np.float32],
    scale: NDArray[np.float32],
    out: NDArray[Any],
) -> None:
    """One view of (H, W, 3) `pixels` into `out`: (S, S, 3) uint8 or (3, S, S) float32."""
    if out.dtype == np.uint8:
        crop_pixels(pixels, y, x, flip, out)
    else:
        crop_normalized(pixels, y, x, flip, mean, False, shift, scale, out)


# No cache on disk below: numba would not notice a change of the kernel that is called.


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def view_of_pixels(
    pixels: NDArray[np.uint8], y: int, x: int, flip: bool, mean: Any, shift: Any, scale: Any, out: Any
) -> None:
    """`one_view` for uint8, to be called by compiled code."""
    crop_pixels(pixels, y, x, flip, out)


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def view_of_floats(
    pixels: NDArray[np.uint8], y: int, x: int, flip: bool, mean: Any, shift: Any, scale: Any, out: Any
) -> None:
    """`one_view` for float32, to be called by compiled code."""
    crop_normalized(pixels, y, x, flip, mean, False, shift, scale, out)


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def many_pixels(images: Any, numbers: Any, crops: Any, flips: Any, out: Any) -> None:
    """Views of some of (N, H, W, 3) images into (B, S, S, 3) uint8, without Python between them."""
    for row in range(len(numbers)):
        crop_pixels(images[numbers[row]], crops[row, 0], crops[row, 1], flips[row], out[row])


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def many_floats(images: Any, numbers: Any, crops: Any, flips: Any, mean: Any, shift: Any, scale: Any, out: Any) -> None:
    """Views of some of (N, H, W, 3) images into (B, 3, S, S) float32, without Python between them."""
    for row in range(len(numbers)):
        crop_normalized(
            images[numbers[row]], crops[row, 0], crops[row, 1], flips[row], mean, False, shift, scale, out[row]
        )
