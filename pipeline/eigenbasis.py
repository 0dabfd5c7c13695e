"""Exact pixel moments of a dataset, and the RGB covariance eigenbasis that PCA lighting needs.

Moments are integers: uint8 pixels summed into int64 are exact for 15 million 256x256 images, and merging them is
integer addition, so any number of workers, in any order, gives the same bytes. The covariance is taken over all pixels
of all training images together (Krizhevsky et al. 2012, section 4.1): the familiar [0.2175, 0.0188, 0.0045] are its
eigenvalues for pixels scaled to 0..1.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.errors import IntegrityError
from lmdali.pipeline.files import npy_bytes, read_json, seal, write_atomic, write_json

STATISTICS_FILE = "statistics.json"
MEAN_FILE = "mean.npy"
_EXACT_IN_FLOAT32 = 2**24 // 255
"""So many uint8 images can be added up in float32 without rounding."""

_FORMAT = "lmdali-statistics"
_VERSION = 1


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


@dataclass(frozen=True, eq=False)
class Eigenbasis:
    """Mean and covariance eigenbasis of RGB pixels, in gray levels (0..255).

    Attributes:
        num_pixels: pixels behind the estimate.
        mean: (3,) float64, gray levels.
        covariance: (3, 3) float64, gray levels squared.
        eigenvalues: (3,) float64, descending, gray levels squared; their roots are standard deviations in gray levels.
        eigenvectors: (3, 3) float64, one per column; the component of largest magnitude of each is positive.
        mean_image: (H, W, 3) float32 gray levels, or None.
        dataset_digest: manifest digest of the dataset it was computed from, or "" for several or foreign ones.
    """

    num_pixels: int
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    eigenvalues: NDArray[np.float64]
    eigenvectors: NDArray[np.float64]
    mean_image: NDArray[np.float32] | None = None
    dataset_digest: str = ""

    @property
    def std(self) -> NDArray[np.float64]:
        """(3,) standard deviation of each channel, gray levels."""
        return np.sqrt(np.diag(self.covariance))

    @property
    def unit_eigenvalues(self) -> NDArray[np.float64]:
        """(3,) eigenvalues for pixels scaled to 0..1, the scale of the published constants."""
        return self.eigenvalues / 255.0**2


def solve(moments: Moments, dataset_digest: str = "") -> Eigenbasis:
    """Eigenbasis of exact moments: integer arithmetic up to one division, then `numpy.linalg.eigh` in float64.

    Raises:
        IntegrityError: there are no pixels.
    """
    n = moments.num_pixels
    if n == 0:
        raise IntegrityError("no pixels for an eigenbasis: the dataset has no stored records: convert others")
    sums = [int(s) for s in moments.sums]
    products = [[int(p) for p in row] for row in moments.products]
    # N * S2 - S1 S1ᵀ reaches 4.6e26 for ImageNet, past int64: Python integers, then one rounding.
    covariance = np.array([[(n * products[i][j] - sums[i] * sums[j]) / (n * n) for j in range(3)] for i in range(3)])
    eigenvalues, vectors = np.linalg.eigh(covariance)
    eigenvalues, vectors = np.maximum(eigenvalues[::-1], 0.0), vectors[:, ::-1]
    largest = np.argmax(np.abs(vectors).round(12), axis=0)
    vectors = vectors * np.sign(vectors[largest, range(3)])
    mean_image = None if moments.image_sums is None else (moments.image_sums / moments.num_images).astype(np.float32)
    mean = np.array([s / n for s in sums])
    return Eigenbasis(n, mean, covariance, eigenvalues, np.ascontiguousarray(vectors), mean_image, dataset_digest)


def save_statistics(directory: Path, moments: Moments, dataset_digest: str) -> Eigenbasis:
    """Write `statistics.json` and `mean.npy` (per-position int64 sums) of a dataset; returns the basis."""
    basis = solve(moments, dataset_digest)
    document = describe(basis, moments)
    if moments.image_sums is not None:
        payload = npy_bytes(moments.image_sums)
        write_atomic(directory / MEAN_FILE, payload)
        document["mean_image"] = {
            "file": MEAN_FILE,
            "sha256": hashlib.sha256(payload).hexdigest(),
            "content": "int64 sums of each channel at each position, (height, width, 3); divide by num_images",
        }
    write_json(directory / STATISTICS_FILE, seal(document))
    return basis


def describe(basis: Eigenbasis, moments: Moments) -> dict[str, Any]:
    """Everything about a basis as JSON, units and conventions spelled out."""
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "manifest_digest": basis.dataset_digest,
        "channel_order": "RGB",
        "value_range": [0, 255],
        "covariance_of": "all pixels of all images, divided by N",
        "moments": moments.to_json(),
        "mean": basis.mean.tolist(),
        "std": basis.std.tolist(),
        "covariance": basis.covariance.tolist(),
        "eigenvalues": basis.eigenvalues.tolist(),
        "eigenvalue_roots": np.sqrt(basis.eigenvalues).tolist(),
        "eigenvectors": basis.eigenvectors.tolist(),
        "units": {
            "mean": "gray levels",
            "std": "gray levels",
            "covariance": "gray levels squared",
            "eigenvalues": "gray levels squared (variances)",
            "eigenvalue_roots": "gray levels (standard deviations)",
            "eigenvectors": "unit length, one per column; the component of largest magnitude is positive",
        },
        "unit_scale": {
            "value_range": [0, 1],
            "eigenvalues": basis.unit_eigenvalues.tolist(),
            "eigenvalue_roots": np.sqrt(basis.unit_eigenvalues).tolist(),
        },
    }


def load_moments(directory: Path) -> tuple[Moments, str]:
    """Moments and manifest digest of a dataset's `statistics.json`.

    Raises:
        IntegrityError: the file is missing, damaged, or does not agree with its mean image.
    """
    path = directory / STATISTICS_FILE
    if not path.is_file():
        raise IntegrityError(f"{path}: no such file: run `lmdali pca {directory}` to write it")
    document = read_json(path)
    try:
        if document["format"] != _FORMAT or document["version"] > _VERSION or document["channel_order"] != "RGB":
            raise IntegrityError(f"{path}: not statistics that this version reads: run `lmdali pca` again")
        image_sums = None
        if "mean_image" in document:
            payload = (directory / MEAN_FILE).read_bytes()
            if hashlib.sha256(payload).hexdigest() != document["mean_image"]["sha256"]:
                raise IntegrityError(
                    f"{directory / MEAN_FILE}: differs from the hash in {STATISTICS_FILE}: run `lmdali pca`"
                )
            image_sums = np.lib.format.read_array(io.BytesIO(payload), allow_pickle=False)
        return Moments.from_json(document["moments"], image_sums), str(document["manifest_digest"])
    except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
        raise IntegrityError(f"{path}: {error!r}: run `lmdali pca {directory}` to write it again") from error


def load_eigenbasis(directory: Path) -> Eigenbasis:
    """Eigenbasis of a dataset, computed again from its exact moments (so nothing rounded or edited is trusted)."""
    moments, digest = load_moments(directory)
    return solve(moments, digest)
