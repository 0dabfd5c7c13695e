"""Antialiased bicubic resizing by torch, whose uint8 kernels are vectorised: half the cost of OpenCV's area filter.

Pillow's bicubic filter (a = -0.5) whose support grows with the scale, in 16-bit fixed point along one side after the
other. Vectorised and plain builds of torch round alike (tests/test_antialiased_resize.py compares them).
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from lmdali.pipeline.decode import Pixels
from lmdali.pipeline.errors import MissingExtraError


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
    try:
        return version("torch").partition("+")[0]
    except PackageNotFoundError:
        raise _missing() from None


def resize_antialiased(pixels: Pixels, size: int) -> Pixels:
    """Resize a square picture, up or down.

    Args:
        pixels: `(S, S, 3)` uint8; a view into a larger picture will do.
        size: side of the result, pixels.

    Returns:
        `(size, size, 3)` uint8, C-contiguous, never a view of `pixels`.

    Raises:
        MissingExtraError: torch is not installed.
    """
    torch = _torch()
    # A batch of one with its channels last, as it lies in memory: torch has a kernel for that layout, and keeps it.
    planes = torch.from_numpy(pixels).unsqueeze(0).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(planes, (size, size), mode="bicubic", antialias=True)
    # numpy's views cost a fraction of torch's.
    return np.ascontiguousarray(resized.numpy()[0].transpose(1, 2, 0))
