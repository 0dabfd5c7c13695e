"""Exact sums over the pixels of a dataset, of which mean and covariance are made.

They are integers: uint8 pixels summed into int64 are exact for 15 million 256x256 images, and merging them is integer
addition, so any number of workers, in any order, gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_EXACT_IN_FLOAT32 = 2**24 // 255
"""So many uint8 images can be added up in float32 without rounding."""


class Moments:
    """Integer sums over uint8 RGB pixels.

    Args:
        num_images: images added.
        num_pixels: N.
        sums: (3,) int64, the sum of each channel.
        products: (3, 3) int64, the sum of p pᵀ over pixels p.
        image_sums: (H, W, 3) int64, per-position sums, or None where images differ in size.
    """

    def __init__(
        self,
        num_images: int,
        num_pixels: int,
        sums: NDArray[np.int64],
        products: NDArray[np.int64],
        image_sums: NDArray[np.int64] | None,
    ) -> None:
        self.num_images, self.num_pixels, self._sums, self._products = num_images, num_pixels, sums, products
        self._recent_totals = [0] * 9
        self.image_sums = image_sums
        self._planes = np.empty((3, 1, 0), np.uint8)

    @property
    def sums(self) -> NDArray[np.int64]:
        """(3,) int64, the sum of each channel."""
        self._settle_totals()
        return self._sums

    @property
    def products(self) -> NDArray[np.int64]:
        """(3, 3) int64, the sum of p pᵀ over pixels p."""
        self._settle_totals()
        return self._products

    @property
    def image_sums(self) -> NDArray[np.int64] | None:
        """(H, W, 3) int64, per-position sums, or None where images differ in size."""
        self._settle()
        return self._older_sums

    @image_sums.setter
    def image_sums(self, image_sums: NDArray[np.int64] | None) -> None:
        # Images are added up in float32 first, plane by plane: a third of the time that OpenCV needs with float64.
        self._older_sums, self._num_recent = image_sums, 0
        height, width = image_sums.shape[:2] if image_sums is not None else (0, 0)
        self._recent_sums = np.zeros((3, height + 1, width), np.float32)

    @classmethod
    def from_totals(
        cls, num_images: int, num_pixels: int, totals: Sequence[int], image_sums: NDArray[np.int64] | None
    ) -> Moments:
        """Of the sums of r, g, b and of the products rr, rg, rb, gg, gb, bb."""
        return cls(num_images, num_pixels, *_sums_and_products(totals), image_sums)

    @classmethod
    def zero(cls, height: int | None = None, width: int | None = None) -> Moments:
        """Moments of nothing; give a size to keep per-position sums."""
        image_sums = None if height is None or width is None else np.zeros((height, width, 3), np.int64)
        return cls(0, 0, np.zeros(3, np.int64), np.zeros((3, 3), np.int64), image_sums)

    def add_image(self, pixels: NDArray[np.uint8]) -> float:
        """Add one (H, W, 3) uint8 RGB image; returns the largest standard deviation of a channel, gray levels."""
        # OpenCV's squared norms of uint8 planes add integers, a tenth of the time of a float64 product; rounding undoes
        # what their square root and square may change. Exact below 2**51, which is 34 billion pixels.
        height, width = pixels.shape[:2]
        if self._planes.shape[1:] != (height + 1, width):
            # A row of zeros after each plane: where planes are powers of two apart, writing them takes twice as long.
            self._planes = np.zeros((3, height + 1, width), np.uint8)
        r, g, b = cv2.split(pixels, list(self._planes[:, :height]))
        rr, gg, bb = _squared_norm(r), _squared_norm(g), _squared_norm(b)
        rg = (rr + gg - _squared_distance(r, g)) // 2
        rb = (rr + bb - _squared_distance(r, b)) // 2
        gb = (gg + bb - _squared_distance(g, b)) // 2
        red, green, blue = (int(total) for total in cv2.sumElems(pixels)[:3])
        totals = (red, green, blue, rr, rg, rb, gg, gb, bb)
        self._recent_totals = [before + more for before, more in zip(self._recent_totals, totals, strict=True)]
        count: int = height * width
        self.num_pixels += count
        self.num_images += 1
        if self._older_sums is not None:
            if self._older_sums.shape != pixels.shape:
                raise ValueError(f"an image of shape {pixels.shape} among sums of {self._older_sums.shape}")
            # The planes lie one after the other, in both: to OpenCV they are one of three times the height.
            cv2.accumulate(self._planes.reshape(-1, width), self._recent_sums.reshape(-1, width))
            self._num_recent += 1
            if self._num_recent == _EXACT_IN_FLOAT32:
                self._settle()
        return largest_deviation(count, (red, green, blue), (rr, gg, bb))

    def _settle(self) -> None:
        if self._older_sums is not None and self._num_recent:
            self._older_sums = self._older_sums + self._recent_sums[:, :-1].transpose(1, 2, 0).astype(np.int64)
            self._recent_sums[:], self._num_recent = 0, 0

    def _settle_totals(self) -> None:
        sums, products = _sums_and_products(self._recent_totals)
        self._sums += sums
        self._products += products
        self._recent_totals = [0] * 9

    def merge(self, other: Moments) -> None:
        """Add another set of moments; images of different sizes leave no mean image."""
        self.num_images += other.num_images
        self.num_pixels += other.num_pixels
        self._sums += other.sums
        self._products += other.products
        mine, others = self.image_sums, other.image_sums
        if mine is not None and others is not None and mine.shape == others.shape:
            self.image_sums = mine + others
        else:
            self.image_sums = None

    def to_json(self) -> dict[str, Any]:
        """The sums without `image_sums`, exact."""
        return {
            "num_images": self.num_images,
            "num_pixels": self.num_pixels,
            "sums": self.sums.tolist(),
            "products": self.products.tolist(),
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any], image_sums: NDArray[np.int64] | None) -> Moments:
        """Inverse of `to_json`."""
        sums, products = np.array(fields["sums"], np.int64), np.array(fields["products"], np.int64)
        if sums.shape != (3,) or products.shape != (3, 3):
            raise ValueError(f"sums of shape {sums.shape} and products of shape {products.shape}")
        return cls(int(fields["num_images"]), int(fields["num_pixels"]), sums, products, image_sums)


def _sums_and_products(totals: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    red, green, blue, rr, rg, rb, gg, gb, bb = totals
    return np.array((red, green, blue), np.int64), np.array(((rr, rg, rb), (rg, gg, gb), (rb, gb, bb)), np.int64)


def largest_deviation(count: int, sums: tuple[int, int, int], squares: tuple[int, int, int]) -> float:
    """The largest standard deviation of a channel, from exact sums of `count` pixels and of their squares."""
    return math.sqrt(max(square * count - total**2 for total, square in zip(sums, squares, strict=True))) / count


def _squared_norm(plane: Any) -> int:
    """Σ a² of a uint8 plane."""
    return round(cv2.norm(plane, cv2.NORM_L2SQR))


def _squared_distance(plane: Any, other: Any) -> int:
    """Σ (a - b)² of two uint8 planes."""
    return round(cv2.norm(plane, other, cv2.NORM_L2SQR))
