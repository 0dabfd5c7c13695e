"""Windows of random area and aspect, resized to the patch: what ImageNet trainings cut since GoogLeNet.

Szegedy et al., "Going deeper with convolutions" (2015), section 6; the draws are those of torchvision's
RandomResizedCrop, made from counters. The filter is the triangle whose support grows with the scale (antialiased
bilinear, as of Pillow, and torchvision with antialias=True), along both sides in fixed point with one rounding at the
end, so that every backend that computes in integers gives the same pixels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.counter_random import sample_words

UNIT_BITS = 12
"""Weights of one side add up to 2**12. With 8 bits of a pixel both sides together fill 32 bits, and no more."""

_ATTEMPTS = 10
_FIRST_STREAM = 16
"""Of `sample_words`, one for each attempt; lower ones are those of crops and lighting."""


def draw_windows(
    seed: int, epoch: int, indices: NDArray[np.int64], image_size: int, min_area: float, max_aspect: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Windows of some samples of one epoch.

    The area is uniform in min_area..1 of the image's, the logarithm of the aspect uniform; what does not fit into the
    image is drawn again, ten times, and then is the whole image.

    Args:
        seed: the run's seed.
        epoch: the epoch.
        indices: (B,) int64 sample numbers.
        image_size: side of the stored images, pixels.
        min_area: 0..1, of the image.
        max_aspect: width to height, and height to width, at most.

    Returns:
        (B, 2) int64 top-left corners and (B, 2) int64 heights and widths, pixels.
    """
    corners, sides = np.zeros((len(indices), 2), np.int64), np.full((len(indices), 2), image_size, np.int64)
    left = np.arange(len(indices))
    for attempt in range(_ATTEMPTS):
        w0, w1, w2, w3 = sample_words(seed, epoch, indices[left], _FIRST_STREAM + attempt)
        area = image_size**2 * (min_area + (1 - min_area) * (w0 * 2.0**-32))
        aspect = np.exp(np.log(max_aspect) * (w1 * 2.0**-31 - 1))
        drawn = np.rint(np.sqrt(np.stack([area / aspect, area * aspect], axis=1))).astype(np.int64).clip(1)
        fits = (drawn <= image_size).all(axis=1)
        room = (image_size - drawn[fits] + 1).astype(np.uint64)
        sides[left[fits]] = drawn[fits]
        corners[left[fits]] = np.stack([w2[fits], w3[fits]], axis=1) * room >> np.uint64(32)
        left = left[~fits]
        if not len(left):
            break
    return corners, sides


class ResizeTable(NamedTuple):
    """How each length up to an image's side becomes the side of a patch.

    Attributes:
        firsts: (L + 1, S) int64, for each length the first of the pixels that each of S pixels is made of.
        weights: (L + 1, S, T) uint32, T at least 2, of those pixels; they add up to 2**12.
        counts: (L + 1,) int64, of a length: how many of the T are ever more than 0.
    """

    firsts: NDArray[np.int64]
    weights: NDArray[np.uint32]
    counts: NDArray[np.int64]


@lru_cache(maxsize=8)
def resize_table(image_size: int, crop_size: int) -> ResizeTable:
    """The table from windows of images of one size to patches of another.

    Some 9 bytes for each pixel of an image: 1 MB for 256 x 256 pixels, 11 MB for 1,024 x 1,024.
    """
    found = [_axis_weights(length, crop_size) for length in range(1, image_size + 1)]
    taps = max(2, *(weights.shape[1] for _, weights in found))
    firsts = np.zeros((image_size + 1, crop_size), np.int64)
    weights = np.zeros((image_size + 1, crop_size, taps), np.uint32)
    counts = np.zeros(image_size + 1, np.int64)
    for length, (first, of_length) in enumerate(found, start=1):
        firsts[length], weights[length, :, : of_length.shape[1]] = first, of_length
        counts[length] = of_length.shape[1]
    for array in (firsts, weights, counts):
        array.flags.writeable = False
    return ResizeTable(firsts, weights, counts)


def _axis_weights(length: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First pixels (size,) and weights (size, taps) of `length` pixels that become `size`."""
    scale = length / size
    reach = max(scale, 1.0)
    centers = (np.arange(size) + 0.5) * scale
    first = np.floor(centers - reach + 0.5).clip(0).astype(np.int64)
    stop = np.floor(centers + reach + 0.5).clip(max=length).astype(np.int64)
    taps = int((stop - first).max())
    first = np.minimum(first, length - taps)
    pixels = first[:, None] + np.arange(taps) + 0.5
    shares = (1 - np.abs(pixels - centers[:, None]) / reach).clip(0)
    shares /= shares.sum(axis=1, keepdims=True)
    weights = np.rint(shares * 2**UNIT_BITS).astype(np.int64)
    # What rounding left over goes to the largest weights, one unit each: all of it to one of a thousand small weights
    # would be gray levels, or less than nothing.
    rest = 2**UNIT_BITS - weights.sum(axis=1)
    for row in np.flatnonzero(rest):
        largest = (-weights[row]).argsort(kind="stable")[: abs(rest[row])]
        weights[row, largest] += np.sign(rest[row])
    return first, weights


def resize_window(pixels: NDArray[np.uint8], crop_size: int) -> NDArray[np.uint8]:
    """The reference: a window as a patch, in plain NumPy.

    Args:
        pixels: (h, w, 3) uint8.
        crop_size: side S of the patch.

    Returns:
        (S, S, 3) uint8.
    """
    height, width = pixels.shape[:2]
    matrices = []
    for length in (height, width):
        first, weights = _axis_weights(length, crop_size)
        matrix = np.zeros((crop_size, length), np.int64)
        np.put_along_axis(matrix, first[:, None] + np.arange(weights.shape[1]), weights, axis=1)
        matrices.append(matrix)
    sums = np.einsum("rh,hwc,xw->rxc", matrices[0], pixels.astype(np.int64), matrices[1], optimize=True)
    return np.asarray((sums + 2 ** (2 * UNIT_BITS - 1)) >> 2 * UNIT_BITS, np.uint8)
