"""From the layouts decoders give to 8-bit RGB, a strip of rows at a time.

A source may have hundreds of megapixels; written plainly, these conversions make several temporaries of its size. In
strips they need the decoded pixels and the result, or not even both, and their temporaries stay in the CPU's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

_STRIP_PIXELS = 1 << 16


def rgb_from_bgr(bgr: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Swap the channels of `(H, W, 3)` uint8 where they lie."""
    for rows in _strips(bgr):
        bgr[rows] = cv2.cvtColor(bgr[rows], cv2.COLOR_BGR2RGB)
    return bgr


def rgb_from_samples(bgr: npt.NDArray[Any], maximum: int) -> npt.NDArray[np.uint8]:
    """`(H, W, 3)` uint8 or uint16 BGR whose white is `maximum` -> uint8 RGB, round(255 * value / maximum)."""
    values = np.arange(np.iinfo(bgr.dtype).max + 1, dtype=np.uint32)
    table = ((values * 510 + maximum) // (2 * maximum)).astype(np.uint8)
    pixels = np.empty(bgr.shape, np.uint8)
    for rows in _strips(bgr):
        pixels[rows] = table[bgr[rows][..., ::-1]]
    return pixels


def rgb_from_inverted_cmyk(cmyk: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """`(H, W, 4)` with 255 meaning no ink -> `(H, W, 3)` RGB: each colour times black, rounded."""
    pixels = np.empty((*cmyk.shape[:2], 3), np.uint8)
    for rows in _strips(cmyk):
        black = cmyk[rows][..., 3:].astype(np.uint16)
        pixels[rows] = (cmyk[rows][..., :3] * black + 127) // 255
    return pixels


def _strips(image: npt.NDArray[Any]) -> Iterator[slice]:
    height, width = image.shape[:2]
    rows = max(1, _STRIP_PIXELS // max(width, 1))
    return (slice(start, start + rows) for start in range(0, height, rows))
