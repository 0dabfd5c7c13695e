"""64 bits that stay nearly the same while a picture is re-encoded, resized or lightened: for finding duplicates.

The DCT hash of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), in its common
variant: gray, 32 x 32, the 8 x 8 lowest frequencies, each compared with their median. The mean (DC) takes part in
neither, and its bit is 0. All sums are sums of whole numbers below 2**53, so every machine gets the same bits, also
where a coefficient lies next to the median; the DCT of a library would leave such bits to the instruction set.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.decode import Pixels

HASH_KIND = "dct 8x8 of 32x32"
"""Goes into the recipe of a dataset: hashes of another kind cannot be compared and are computed anew."""

HASH_BITS = 64
THUMBNAIL_SIDE, _KEPT = 32, 8
_FIXED_POINT = 1 << 14
"""255 * 32 * 32 pixels times its square is 7e13: far below 2**53."""

BLANK_SPREAD = 3.0
"""Gray levels; a picture whose channels all have a smaller standard deviation shows nothing. The flattest of 1,801
photographs (ImageNet, clothing) has 13.8."""

MIRROR_BITS = 0x5555_5555_5555_5555
"""The bits of the odd horizontal frequencies. Mirroring changes the sign of just these, and the median is close to 0:
so `hash ^ MIRROR_BITS` is within a few bits of the hash of the mirrored picture."""


def picture_hash(pixels: Pixels) -> int:
    """The perceptual hash of a picture.

    Args:
        pixels: `(H, W, 3)` uint8 RGB.

    Returns:
        64 bits as a signed integer (two's complement): what fits a column of int64. The highest bit is the DC's; then
        row by row, horizontal frequencies rising. A picture of one colour has 0.
    """
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA)
    waves = BASIS.dot(small.astype(np.float64)).dot(_BASIS_ACROSS).ravel()
    by_size = waves[1:].copy()
    by_size.partition(31)
    is_above = waves > by_size[31]  # the median of 63
    is_above[0] = False
    return int.from_bytes(np.packbits(is_above).tobytes(), "big", signed=True)


def is_blank(pixels: Pixels) -> bool:
    """Whether a picture shows nothing."""
    # From OpenCV's sums of whole numbers: the same everywhere.
    return float(cv2.meanStdDev(pixels)[1].max()) < BLANK_SPREAD


def hash_distance(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Number of bits in which hashes differ, element by element."""
    distance: NDArray[np.uint8] = np.bitwise_count((one ^ other).view(np.uint64))
    return distance


def _basis() -> NDArray[np.float64]:
    """(8, 32): the first rows of the orthonormal DCT-II but for a factor, as whole numbers."""
    angles = (2 * np.arange(THUMBNAIL_SIDE) + 1) * np.arange(_KEPT)[:, None] * (np.pi / (2 * THUMBNAIL_SIDE))
    rows = np.cos(angles)
    rows[0] *= np.sqrt(0.5)
    rounded: NDArray[np.float64] = np.rint(rows * _FIXED_POINT)
    return rounded


BASIS = _basis()
"""(8, 32) float64: down a thumbnail, and transposed across it."""
_BASIS_ACROSS = np.ascontiguousarray(BASIS.T)
